// RUN: neuron-opt %s -p nn-fold-batch-norm --split-input-file --print-debuginfo | filecheck %s

// Weight times factor; (bias - mean) * factor + shift as the new bias. The layer keeps both names.
// CHECK-LABEL: func.func @conv
func.func @conv(%x: tensor<1x3x8x8xf32>) -> tensor<1x4x6x6xf32> {
  // CHECK-NEXT: %[[W:.*]] = nn.const {
  // CHECK:        %[[E:.*]] = nn.weight "eps" splat<1.0e-05> : tensor<f32>
  // CHECK-NEXT:   %[[V:.*]] = nn.add %{{.*}}, %[[E]] : tensor<4xf32>, tensor<f32>
  // CHECK:        %[[S:.*]] = nn.sqrt %[[V]] : tensor<4xf32>
  // CHECK:        %[[F:.*]] = nn.div %{{.*}}, %[[S]] : tensor<4xf32>, tensor<4xf32>
  // CHECK:        %[[R:.*]] = nn.reshape %[[F]] : (tensor<4xf32>) -> tensor<4x1x1x1xf32>
  // CHECK:        %[[P:.*]] = nn.mul %{{.*}}, %[[R]] : tensor<4x3x3x3xf32>, tensor<4x1x1x1xf32>
  // CHECK-NEXT:   nn.yield %[[P]] : tensor<4x3x3x3xf32>
  // CHECK-NEXT: } : tensor<4x3x3x3xf32>
  // CHECK-NEXT: %[[B:.*]] = nn.const {
  // CHECK:      } : tensor<4xf32>
  // CHECK-NEXT: %[[C:.*]] = nn.conv %x, %[[W]], %[[B]] : {{.*}} loc(fused["conv1", "bn1"])
  // CHECK-NEXT: func.return %[[C]]
  %w = nn.weight "w" : tensor<4x3x3x3xf32>
  %b = nn.weight "b" : tensor<4xf32>
  %g = nn.weight "g" : tensor<4xf32>
  %h = nn.weight "h" : tensor<4xf32>
  %m = nn.weight "m" : tensor<4xf32>
  %v = nn.weight "v" : tensor<4xf32>
  %0 = nn.conv %x, %w, %b : (tensor<1x3x8x8xf32>, tensor<4x3x3x3xf32>, tensor<4xf32>) -> tensor<1x4x6x6xf32> loc("conv1")
  %1 = nn.batch_norm %0, %g, %h, %m, %v eps 1.0e-05 : (tensor<1x4x6x6xf32>, tensor<4xf32>, tensor<4xf32>, tensor<4xf32>, tensor<4xf32>) -> tensor<1x4x6x6xf32> loc("bn1")
  func.return %1 : tensor<1x4x6x6xf32>
}

// -----

// Batch normalisation with its affine half written as Mul and Add of unsqueezed weights.
// CHECK-LABEL: func.func @affine
// CHECK-NOT: nn.batch_norm
// CHECK: nn.conv %x, %{{.*}}, %{{.*}} group 2
// CHECK-NEXT: nn.relu
func.func @affine(%x: tensor<1x6x8x8xf32>) -> tensor<1x4x6x6xf32> {
  %w = nn.weight "w" : tensor<4x3x3x3xf32>
  %one = nn.weight "one" splat<1.0> : tensor<4xf32>
  %m = nn.weight "m" : tensor<4xf32>
  %s = nn.weight "s" : tensor<4xf32>
  %s4 = nn.reshape %s : (tensor<4xf32>) -> tensor<4x1x1xf32>
  %0 = nn.conv %x, %w group 2 : (tensor<1x6x8x8xf32>, tensor<4x3x3x3xf32>) -> tensor<1x4x6x6xf32>
  %1 = nn.batch_norm %0, %one, %m, %m, %one eps 1.0e-05 : (tensor<1x4x6x6xf32>, tensor<4xf32>, tensor<4xf32>, tensor<4xf32>, tensor<4xf32>) -> tensor<1x4x6x6xf32>
  %2 = nn.mul %1, %s4 : tensor<1x4x6x6xf32>, tensor<4x1x1xf32>
  %3 = nn.add %2, %s4 : tensor<1x4x6x6xf32>, tensor<4x1x1xf32>
  %4 = nn.relu %3 : tensor<1x4x6x6xf32>
  func.return %4 : tensor<1x4x6x6xf32>
}

// -----

// An addition alone becomes the bias of a convolution; weights stay as they are.
// CHECK-LABEL: func.func @bias
// CHECK-NEXT: %[[W:.*]] = nn.weight "w"
// CHECK-NEXT: %[[B:.*]] = nn.const {
// CHECK: nn.conv %x, %[[W]], %[[B]]
// CHECK-NEXT: func.return
func.func @bias(%x: tensor<1x3x8xf32>) -> tensor<1x4x6xf32> {
  %w = nn.weight "w" : tensor<4x3x3xf32>
  %b = nn.weight "b" : tensor<4x1xf32>
  %0 = nn.conv %x, %w : (tensor<1x3x8xf32>, tensor<4x3x3xf32>) -> tensor<1x4x6xf32>
  %1 = nn.add %b, %0 : tensor<4x1xf32>, tensor<1x4x6xf32>
  func.return %1 : tensor<1x4x6xf32>
}

// -----

// CHECK-LABEL: func.func @matmul
// CHECK: %[[W:.*]] = nn.const {
// CHECK: %[[M:.*]] = nn.matmul %x, %[[W]]
// CHECK: %[[B:.*]] = nn.const {
// CHECK: nn.add %[[M]], %[[B]] : tensor<5x4xf32>, tensor<4xf32>
// CHECK-NEXT: func.return
func.func @matmul(%x: tensor<5x3xf32>) -> tensor<5x4xf32> {
  %w = nn.weight "w" : tensor<3x4xf32>
  %g = nn.weight "g" : tensor<4xf32>
  %0 = nn.matmul %x, %w : (tensor<5x3xf32>, tensor<3x4xf32>) -> tensor<5x4xf32>
  %1 = nn.add %0, %g : tensor<5x4xf32>, tensor<4xf32>
  %2 = nn.batch_norm %1, %g, %g, %g, %g eps 1.0e-05 : (tensor<5x4xf32>, tensor<4xf32>, tensor<4xf32>, tensor<4xf32>, tensor<4xf32>) -> tensor<5x4xf32>
  func.return %2 : tensor<5x4xf32>
}

// -----

// Nothing to fold into: one multiplication, one addition.
// CHECK-LABEL: func.func @alone
// CHECK: %[[M:.*]] = nn.mul %x, %{{.*}} : tensor<1x4x8x8xf32>, tensor<4x1x1xf32> loc("bn")
// CHECK-NEXT: %[[A:.*]] = nn.add %[[M]], %{{.*}} : tensor<1x4x8x8xf32>, tensor<4x1x1xf32> loc("bn")
// CHECK-NEXT: func.return %[[A]]
func.func @alone(%x: tensor<1x4x8x8xf32>) -> tensor<1x4x8x8xf32> {
  %g = nn.weight "g" : tensor<4xf32>
  %0 = nn.batch_norm %x, %g, %g, %g, %g eps 1.0e-05 : (tensor<1x4x8x8xf32>, tensor<4xf32>, tensor<4xf32>, tensor<4xf32>, tensor<4xf32>) -> tensor<1x4x8x8xf32> loc("bn")
  func.return %0 : tensor<1x4x8x8xf32>
}

// -----

// The convolution's own result is needed, so it stays.
// CHECK-LABEL: func.func @shared
// CHECK: %[[C:.*]] = nn.conv
// CHECK: nn.mul %[[C]]
// CHECK: func.return %[[C]]
func.func @shared(%x: tensor<1x3x8xf32>) -> (tensor<1x4x6xf32>, tensor<1x4x6xf32>) {
  %w = nn.weight "w" : tensor<4x3x3xf32>
  %b = nn.weight "b" : tensor<4x1xf32>
  %0 = nn.conv %x, %w : (tensor<1x3x8xf32>, tensor<4x3x3xf32>) -> tensor<1x4x6xf32>
  %1 = nn.mul %0, %b : tensor<1x4x6xf32>, tensor<4x1xf32>
  func.return %0, %1 : tensor<1x4x6xf32>, tensor<1x4x6xf32>
}

// -----

// Scales along another axis, and ones that are not constant, stay.
// CHECK-LABEL: func.func @not_per_channel
// CHECK: nn.conv
// CHECK-NEXT: nn.mul
// CHECK-NEXT: nn.mul
func.func @not_per_channel(%x: tensor<1x3x8xf32>, %s: tensor<4x1xf32>) -> tensor<1x4x6xf32> {
  %w = nn.weight "w" : tensor<4x3x3xf32>
  %b = nn.weight "b" : tensor<6xf32>
  %0 = nn.conv %x, %w : (tensor<1x3x8xf32>, tensor<4x3x3xf32>) -> tensor<1x4x6xf32>
  %1 = nn.mul %0, %b : tensor<1x4x6xf32>, tensor<6xf32>
  %2 = nn.mul %1, %s : tensor<1x4x6xf32>, tensor<4x1xf32>
  func.return %2 : tensor<1x4x6xf32>
}
