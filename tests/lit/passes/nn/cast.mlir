// RUN: neuron-opt %s -p 'nn-cast{mode=all}' --split-input-file | filecheck %s --check-prefixes=CHECK,ALL
// RUN: neuron-opt %s -p 'nn-cast{mode=matmult}' --split-input-file | filecheck %s --check-prefixes=CHECK,MAT
// RUN: neuron-opt %s -p 'nn-cast{mode=matmult-bf16}' --split-input-file | filecheck %s --check-prefixes=CHECK,MAT
// RUN: neuron-opt %s -p 'nn-cast{mode=all-fp16}' --split-input-file | filecheck %s --check-prefix=HALF
// RUN: neuron-opt %s -p 'nn-cast{mode=matmult-fp16}' --split-input-file | filecheck %s --check-prefix=MATHALF
// RUN: neuron-opt %s -p 'nn-cast{mode=all},nn-cast{mode=all}' --split-input-file | filecheck %s --check-prefixes=CHECK,ALL

// Two groups: the value between them is narrow in `all`, wide in `matmult`; weights become constants, the bias stays.
// CHECK-LABEL: func.func @groups
// HALF-LABEL: func.func @groups
// HALF: nn.yield %{{.*}} : tensor<2x4xf16>
// HALF: nn.matmul {{.*}} (tensor<2x4xf16>, tensor<4x4xf16>) -> tensor<2x4xf32>
// MATHALF-LABEL: func.func @groups
// MATHALF: nn.matmul {{.*}} (tensor<2x4xf16>, tensor<4x4xf16>) -> tensor<2x4xf32>
// MATHALF: nn.yield %{{.*}} : tensor<2x4xf32>
func.func @groups(%x: tensor<2x4xf32>) -> tensor<2x4xf32> {
  // CHECK: %[[B:.*]] = nn.weight "b" : tensor<4xf32>
  // CHECK: %[[W:.*]] = nn.const {
  // CHECK:   nn.cast %{{.*}} : (tensor<4x4xf32>) -> tensor<4x4xbf16>
  // CHECK: } : tensor<4x4xbf16>
  %b = nn.weight "b" : tensor<4xf32>
  %w = nn.weight "w" : tensor<4x4xf32>
  // CHECK: %[[F:.*]] = nn.fused "matmul" (%x, %[[W]], %[[B]]) {
  // CHECK-NEXT: ^bb{{.*}}(%[[X:.*]]: tensor<2x4xf32>, %[[V:.*]]: tensor<4x4xbf16>, %[[C:.*]]: tensor<4xf32>):
  // CHECK-NEXT:   %[[N:.*]] = nn.cast %[[X]] : (tensor<2x4xf32>) -> tensor<2x4xbf16>
  // CHECK-NEXT:   %[[M:.*]] = nn.matmul %[[N]], %[[V]]
  // CHECK-NEXT:   %[[A:.*]] = nn.add %[[M]], %[[C]]
  // ALL-NEXT:     %[[O:.*]] = nn.cast %[[A]] : (tensor<2x4xf32>) -> tensor<2x4xbf16>
  // ALL-NEXT:     nn.yield %[[O]] : tensor<2x4xbf16>
  // MAT-NEXT:     nn.yield %[[A]] : tensor<2x4xf32>
  %0 = nn.fused "matmul" (%x, %w, %b) {
  ^bb0(%p: tensor<2x4xf32>, %q: tensor<4x4xf32>, %r: tensor<4xf32>):
    %m = nn.matmul %p, %q : (tensor<2x4xf32>, tensor<4x4xf32>) -> tensor<2x4xf32>
    %a = nn.add %m, %r : tensor<2x4xf32>, tensor<4xf32>
    nn.yield %a : tensor<2x4xf32>
  } : (tensor<2x4xf32>, tensor<4x4xf32>, tensor<4xf32>) -> tensor<2x4xf32>
  // The same weight is cast once; a lone product becomes a group. The graph's output stays f32.
  // CHECK: %[[G:.*]] = nn.fused "matmul" (%[[F]], %[[W]]) {
  // CHECK: nn.yield %{{.*}} : tensor<2x4xf32>
  // CHECK: func.return %[[G]] : tensor<2x4xf32>
  %1 = nn.matmul %0, %w : (tensor<2x4xf32>, tensor<4x4xf32>) -> tensor<2x4xf32>
  func.return %1 : tensor<2x4xf32>
}

// -----

// A residual is the input of two layers: narrow once, at the graph's input.
// CHECK-LABEL: func.func @input
func.func @input(%x: tensor<2x4xf32>, %w: tensor<4x4xf32>) -> tensor<2x4xf32> {
  // ALL-NEXT: %[[X:.*]] = nn.cast %x : (tensor<2x4xf32>) -> tensor<2x4xbf16>
  // ALL-NEXT: nn.fused "matmul" (%[[X]], %w) {
  // MAT-NEXT: nn.fused "matmul" (%x, %w) {
  // CHECK-NEXT: ^bb{{.*}}(%[[A:.*]]: tensor<2x4x{{.*}}>, %[[B:.*]]: tensor<4x4xf32>):
  // CHECK:   %[[M:.*]] = nn.matmul
  // CHECK-NEXT:   nn.add %[[M]], %[[A]] : tensor<2x4xf32>, tensor<2x4x
  %0 = nn.fused "matmul" (%x, %w) {
  ^bb0(%p: tensor<2x4xf32>, %q: tensor<4x4xf32>):
    %m = nn.matmul %p, %q : (tensor<2x4xf32>, tensor<4x4xf32>) -> tensor<2x4xf32>
    %a = nn.add %m, %p : tensor<2x4xf32>, tensor<2x4xf32>
    nn.yield %a : tensor<2x4xf32>
  } : (tensor<2x4xf32>, tensor<4x4xf32>) -> tensor<2x4xf32>
  func.return %0 : tensor<2x4xf32>
}

// -----

// Lone layers: what moves data keeps the narrow type, what computes is followed by a cast; a table is cast, too.
// CHECK-LABEL: func.func @lone
func.func @lone(%i: tensor<3xi64>) -> (tensor<6x3xf32>, tensor<3x6xi1>) {
  // ALL: %[[T:.*]] = nn.const {
  // ALL: } : tensor<9x6xbf16>
  // ALL-NEXT: %[[G:.*]] = nn.gather %[[T]], %i axis 0 : (tensor<9x6xbf16>, tensor<3xi64>) -> tensor<3x6xbf16>
  // ALL-NEXT: %[[S:.*]] = nn.softmax %[[G]] axis 1 : (tensor<3x6xbf16>) -> tensor<3x6xf32>
  // ALL-NEXT: %[[N:.*]] = nn.cast %[[S]] : (tensor<3x6xf32>) -> tensor<3x6xbf16>
  // ALL-NEXT: %[[P:.*]] = nn.transpose %[[N]] perm [1, 0] : (tensor<3x6xbf16>) -> tensor<6x3xbf16>
  // ALL-NEXT: %[[L:.*]] = nn.less %[[N]], %[[G]] : tensor<3x6xbf16>, tensor<3x6xbf16>
  // ALL-NEXT: %[[E:.*]] = nn.exp %[[P]] : tensor<6x3xbf16>
  // ALL-NEXT: func.return %[[E]], %[[L]] : tensor<6x3xf32>, tensor<3x6xi1>
  // MAT-NOT: bf16
  // MAT: func.return
  %t = nn.weight "table" : tensor<9x6xf32>
  %0 = nn.gather %t, %i axis 0 : (tensor<9x6xf32>, tensor<3xi64>) -> tensor<3x6xf32>
  %1 = nn.softmax %0 axis 1 : (tensor<3x6xf32>) -> tensor<3x6xf32>
  %2 = nn.transpose %1 perm [1, 0] : (tensor<3x6xf32>) -> tensor<6x3xf32>
  %3 = nn.less %1, %0 : tensor<3x6xf32>, tensor<3x6xf32>
  %4 = nn.exp %2 : tensor<6x3xf32>
  func.return %4, %3 : tensor<6x3xf32>, tensor<3x6xi1>
}

// -----

// An output that another layer reads, too, stays f32 for the outside and is narrow for the layer.
// CHECK-LABEL: func.func @returned
func.func @returned(%x: tensor<2x4xf32>) -> (tensor<2x4xf32>, tensor<8xf32>, tensor<2x4xf32>) {
  // ALL: %[[X:.*]] = nn.cast %x : (tensor<2x4xf32>) -> tensor<2x4xbf16>
  // ALL: %[[E:.*]] = nn.exp %[[X]] : tensor<2x4xbf16>
  // ALL: %[[N:.*]] = nn.cast %[[E]] : (tensor<2x4xf32>) -> tensor<2x4xbf16>
  // ALL: %[[R:.*]] = nn.reshape %[[N]] : (tensor<2x4xbf16>) -> tensor<8xbf16>
  // ALL: %[[W:.*]] = nn.cast %[[R]] : (tensor<8xbf16>) -> tensor<8xf32>
  // ALL: func.return %[[E]], %[[W]], %x
  %0 = nn.exp %x : tensor<2x4xf32>
  %1 = nn.reshape %0 : (tensor<2x4xf32>) -> tensor<8xf32>
  func.return %0, %1, %x : tensor<2x4xf32>, tensor<8xf32>, tensor<2x4xf32>
}

// -----

// Transposed convolutions are contractions; resizing moves what it gets.
// CHECK-LABEL: func.func @upsampling
// CHECK: nn.fused "conv_transpose"
// CHECK: nn.conv_transpose {{.*}} : (tensor<1x4x6xbf16>, tensor<4x2x2xbf16>) -> tensor<1x2x12xf32>
// ALL: nn.resize {{.*}} : (tensor<1x2x12xbf16>) -> tensor<1x2x24xbf16>
// MAT: nn.resize {{.*}} : (tensor<1x2x12xf32>) -> tensor<1x2x24xf32>
func.func @upsampling(%x: tensor<1x4x6xf32>) -> tensor<1x2x23xf32> {
  %w = nn.weight "w" seeded<1> : tensor<4x2x2xf32>
  %0 = nn.conv_transpose %x, %w strides [2] : (tensor<1x4x6xf32>, tensor<4x2x2xf32>) -> tensor<1x2x12xf32>
  %1 = nn.resize %0 scales [2] : (tensor<1x2x12xf32>) -> tensor<1x2x24xf32>
  %2 = nn.max_pool %1 kernel [2] : (tensor<1x2x24xf32>) -> tensor<1x2x23xf32>
  func.return %2 : tensor<1x2x23xf32>
}
