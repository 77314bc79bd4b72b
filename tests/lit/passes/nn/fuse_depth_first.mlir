// RUN: neuron-opt %s -p nn-fuse-depth-first --split-input-file --print-debuginfo | filecheck %s
// RUN: neuron-opt %s -p 'nn-fuse-depth-first{rows=8 recompute=true}' --split-input-file | filecheck %s --check-prefix=ROWS
// RUN: neuron-opt %s -p 'nn-fuse-depth-first{longest=1}' --split-input-file | filecheck %s --check-prefix=SINGLE

// Maps of 260 KiB per partition: the one between the layers does not exist. The group has the names of its layers.
// CHECK-LABEL: func.func @chain
// CHECK-NEXT: %[[G:.*]] = nn.fused "depth-first" (%x) tile [1, {{[0-9]+}}] {
// CHECK-NEXT: ^bb{{.*}}(%[[X:.*]]: tensor<1x64x360x360xbf16>{{.*}}):
// CHECK-NEXT:   %[[A:.*]] = nn.max_pool %[[X]] {{.*}} loc("first")
// CHECK-NEXT:   %[[B:.*]] = nn.max_pool %[[A]] {{.*}} loc("second")
// CHECK-NEXT:   nn.yield %[[B]]
// CHECK-NEXT: } : {{.*}} loc(fused["first", "second"])
// CHECK-NEXT: func.return %[[G]]
// ROWS-LABEL: func.func @chain
// ROWS-NEXT: nn.fused "depth-first" (%x) tile [1, 8] recompute {
// SINGLE-LABEL: func.func @chain
// SINGLE-NOT: tensor<1x64x360x360xbf16>, tensor<1x64x360x360xbf16>)
// SINGLE: func.return
func.func @chain(%x: tensor<1x64x360x360xbf16>) -> tensor<1x64x180x180xbf16> {
  %0 = nn.max_pool %x kernel [3, 3] pads [1, 1, 1, 1] : (tensor<1x64x360x360xbf16>) -> tensor<1x64x360x360xbf16> loc("first")
  %1 = nn.max_pool %0 kernel [3, 3] strides [2, 2] pads [1, 1, 1, 1] : (tensor<1x64x360x360xbf16>) -> tensor<1x64x180x180xbf16> loc("second")
  func.return %1 : tensor<1x64x180x180xbf16>
}

// -----

// A fork and its join are in one group, weights become operands of it.
// CHECK-LABEL: func.func @residual
// CHECK-NEXT: %[[G:.*]] = nn.fused "depth-first" (%x, %w) tile
// CHECK-NEXT: ^bb
// CHECK-NEXT:   nn.relu
// CHECK-NEXT:   nn.conv
// CHECK-NEXT:   nn.cast
// CHECK-NEXT:   nn.add
// CHECK-NEXT:   nn.yield
// CHECK: func.return %[[G]]
func.func @residual(%x: tensor<1x64x360x360xf32>, %w: tensor<64x64x3x3xbf16>) -> tensor<1x64x360x360xf32> {
  %0 = nn.relu %x : tensor<1x64x360x360xf32>
  %1 = nn.conv %0, %w pads [1, 1, 1, 1] : (tensor<1x64x360x360xf32>, tensor<64x64x3x3xbf16>) -> tensor<1x64x360x360xf32>
  %2 = nn.cast %1 : (tensor<1x64x360x360xf32>) -> tensor<1x64x360x360xbf16>
  %3 = nn.add %2, %0 : tensor<1x64x360x360xbf16>, tensor<1x64x360x360xf32>
  func.return %3 : tensor<1x64x360x360xf32>
}

// -----

// Maps that fit SBUF gain nothing.
// CHECK-LABEL: func.func @small
// CHECK-NEXT: nn.max_pool
// CHECK-NEXT: nn.max_pool
func.func @small(%x: tensor<1x64x36x36xbf16>) -> tensor<1x64x36x36xbf16> {
  %0 = nn.max_pool %x kernel [3, 3] pads [1, 1, 1, 1] : (tensor<1x64x36x36xbf16>) -> tensor<1x64x36x36xbf16>
  %1 = nn.max_pool %0 kernel [3, 3] pads [1, 1, 1, 1] : (tensor<1x64x36x36xbf16>) -> tensor<1x64x36x36xbf16>
  func.return %1 : tensor<1x64x36x36xbf16>
}

// -----

// A softmax over channels needs whole maps: it ends the group before it.
// CHECK-LABEL: func.func @whole
// CHECK-NEXT: nn.fused "depth-first"
// CHECK: nn.yield
// CHECK: nn.softmax
func.func @whole(%x: tensor<1x64x360x360xbf16>) -> tensor<1x64x120x120xf32> {
  %0 = nn.max_pool %x kernel [3, 3] pads [1, 1, 1, 1] : (tensor<1x64x360x360xbf16>) -> tensor<1x64x360x360xbf16>
  %1 = nn.max_pool %0 kernel [3, 3] strides [3, 3] : (tensor<1x64x360x360xbf16>) -> tensor<1x64x120x120xbf16>
  %2 = nn.softmax %1 axis 1 : (tensor<1x64x120x120xbf16>) -> tensor<1x64x120x120xf32>
  func.return %2 : tensor<1x64x120x120xf32>
}
