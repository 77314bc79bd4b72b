// RUN: neuron-opt %s -p nn-fuse --split-input-file --print-debuginfo | filecheck %s
// RUN: neuron-opt %s -p 'nn-fuse{elementwise=false max-layers=2}' --split-input-file | filecheck %s --check-prefix=SMALL

// Bias, residual and activation join the product; the group has all their names.
// CHECK-LABEL: func.func @residual
func.func @residual(%x: tensor<1x4x6x6xf32>, %w: tensor<4x4x1x1xf32>, %b: tensor<4xf32>) -> tensor<1x4x6x6xf32> {
  // CHECK-NEXT: %[[G:.*]] = nn.fused "conv" (%x, %w, %b) {
  // CHECK-NEXT: ^bb{{.*}}(%[[X:.*]]: tensor<1x4x6x6xf32>{{.*}}, %[[W:.*]]: tensor<4x4x1x1xf32>{{.*}}, %[[B:.*]]: tensor<4xf32>{{.*}}):
  // CHECK-NEXT:   %[[C:.*]] = nn.conv %[[X]], %[[W]], %[[B]] : {{.*}} loc("conv")
  // CHECK-NEXT:   %[[A:.*]] = nn.add %[[X]], %[[C]] : {{.*}} loc("add")
  // CHECK-NEXT:   %[[R:.*]] = nn.relu %[[A]] : {{.*}} loc("relu")
  // CHECK-NEXT:   nn.yield %[[R]]
  // CHECK-NEXT: } : {{.*}} loc(fused["conv", "add", "relu"])
  // CHECK-NEXT: func.return %[[G]]
  // SMALL-LABEL: func.func @residual
  // SMALL: nn.fused "conv"
  // SMALL: nn.yield
  // SMALL: nn.relu
  // SMALL-NEXT: func.return
  %0 = nn.conv %x, %w, %b : (tensor<1x4x6x6xf32>, tensor<4x4x1x1xf32>, tensor<4xf32>) -> tensor<1x4x6x6xf32> loc("conv")
  %1 = nn.add %x, %0 : tensor<1x4x6x6xf32>, tensor<1x4x6x6xf32> loc("add")
  %2 = nn.relu %1 : tensor<1x4x6x6xf32> loc("relu")
  func.return %2 : tensor<1x4x6x6xf32>
}

// -----

// Two convolutions feed one addition: the later takes it.
// CHECK-LABEL: func.func @shortcut
// CHECK-NEXT: %[[F:.*]] = nn.conv %x, %w
// CHECK-NEXT: %[[G:.*]] = nn.fused "conv" (%x, %v, %[[F]]) {
// CHECK: func.return %[[G]]
func.func @shortcut(%x: tensor<1x4x6xf32>, %w: tensor<4x4x1xf32>, %v: tensor<4x4x1xf32>) -> tensor<1x4x6xf32> {
  %0 = nn.conv %x, %w : (tensor<1x4x6xf32>, tensor<4x4x1xf32>) -> tensor<1x4x6xf32>
  %1 = nn.conv %x, %v : (tensor<1x4x6xf32>, tensor<4x4x1xf32>) -> tensor<1x4x6xf32>
  %2 = nn.add %0, %1 : tensor<1x4x6xf32>, tensor<1x4x6xf32>
  func.return %2 : tensor<1x4x6xf32>
}

// -----

// gelu written with erf uses its input twice; both uses are inside.
// CHECK-LABEL: func.func @gelu
// CHECK-NEXT: %[[G:.*]] = nn.fused "matmul" (%x, %w, %b, %s, %o, %h) {
// CHECK:   nn.matmul
// CHECK:   %[[A:.*]] = nn.add
// CHECK:   nn.div %[[A]]
// CHECK:   nn.erf
// CHECK:   nn.add
// CHECK:   nn.mul %[[A]]
// CHECK:   nn.mul
// CHECK:   nn.yield
// CHECK: func.return %[[G]]
func.func @gelu(%x: tensor<2x8xf32>, %w: tensor<8x4xf32>, %b: tensor<4xf32>, %s: tensor<f32>, %o: tensor<f32>, %h: tensor<f32>) -> tensor<2x4xf32> {
  %0 = nn.matmul %x, %w : (tensor<2x8xf32>, tensor<8x4xf32>) -> tensor<2x4xf32>
  %1 = nn.add %0, %b : tensor<2x4xf32>, tensor<4xf32>
  %2 = nn.div %1, %s : tensor<2x4xf32>, tensor<f32>
  %3 = nn.erf %2 : tensor<2x4xf32>
  %4 = nn.add %3, %o : tensor<2x4xf32>, tensor<f32>
  %5 = nn.mul %1, %4 : tensor<2x4xf32>, tensor<2x4xf32>
  %6 = nn.mul %5, %h : tensor<2x4xf32>, tensor<f32>
  func.return %6 : tensor<2x4xf32>
}

// -----

// A value that is needed outside ends the group; what widens the shape or changes the type stays out.
// CHECK-LABEL: func.func @ends
// CHECK-NEXT: nn.matmul
// CHECK-NEXT: nn.relu
// CHECK-NEXT: nn.matmul
// CHECK-NEXT: nn.add
// CHECK-NEXT: nn.matmul
// CHECK-NEXT: nn.cast
func.func @ends(%x: tensor<2x8xf32>, %w: tensor<8x4xf32>, %y: tensor<3x1x4xf32>) -> (tensor<2x4xf32>, tensor<2x4xf32>, tensor<3x2x4xf32>, tensor<2x4xbf16>) {
  %0 = nn.matmul %x, %w : (tensor<2x8xf32>, tensor<8x4xf32>) -> tensor<2x4xf32>
  %1 = nn.relu %0 : tensor<2x4xf32>
  %2 = nn.matmul %x, %w : (tensor<2x8xf32>, tensor<8x4xf32>) -> tensor<2x4xf32>
  %3 = nn.add %2, %y : tensor<2x4xf32>, tensor<3x1x4xf32>
  %4 = nn.matmul %x, %w : (tensor<2x8xf32>, tensor<8x4xf32>) -> tensor<2x4xf32>
  %5 = nn.cast %4 : (tensor<2x4xf32>) -> tensor<2x4xbf16>
  func.return %0, %1, %3, %5 : tensor<2x4xf32>, tensor<2x4xf32>, tensor<3x2x4xf32>, tensor<2x4xbf16>
}

// -----

// Element-wise layers group among themselves.
// CHECK-LABEL: func.func @elementwise
// CHECK-NEXT: nn.fused "elementwise" (%x, %y) {
// CHECK:   nn.mul
// CHECK:   nn.add
// CHECK:   nn.relu
// CHECK: nn.max_pool
// CHECK-NEXT: nn.relu
// SMALL-LABEL: func.func @elementwise
// SMALL-NOT: nn.fused
func.func @elementwise(%x: tensor<1x4x6xf32>, %y: tensor<4x1xf32>) -> tensor<1x4x5xf32> {
  %0 = nn.mul %x, %y : tensor<1x4x6xf32>, tensor<4x1xf32>
  %1 = nn.add %0, %y : tensor<1x4x6xf32>, tensor<4x1xf32>
  %2 = nn.relu %1 : tensor<1x4x6xf32>
  %3 = nn.max_pool %2 kernel [2] : (tensor<1x4x6xf32>) -> tensor<1x4x5xf32>
  %4 = nn.relu %3 : tensor<1x4x5xf32>
  func.return %4 : tensor<1x4x5xf32>
}

// -----

// A transposed convolution takes in what follows as a convolution does; resizing stays a layer of its own.
// CHECK-LABEL: func.func @upsampling
// CHECK: nn.fused "conv_transpose"
// CHECK:   nn.conv_transpose
// CHECK:   nn.relu
// CHECK: nn.resize
// CHECK-NEXT: nn.relu
// SMALL-LABEL: func.func @upsampling
func.func @upsampling(%x: tensor<1x4x6x6xf32>, %w: tensor<4x2x2x2xf32>) -> tensor<1x2x24x24xf32> {
  %0 = nn.conv_transpose %x, %w strides [2, 2] : (tensor<1x4x6x6xf32>, tensor<4x2x2x2xf32>) -> tensor<1x2x12x12xf32>
  %1 = nn.relu %0 : tensor<1x2x12x12xf32>
  %2 = nn.resize %1 scales [2, 2] : (tensor<1x2x12x12xf32>) -> tensor<1x2x24x24xf32>
  %3 = nn.relu %2 : tensor<1x2x24x24xf32>
  func.return %3 : tensor<1x2x24x24xf32>
}
