// RUN: neuron-opt %s -p 'nn-batch{size=3}' --split-input-file | filecheck %s
// RUN: neuron-opt %s -p 'nn-batch{size=3}' --split-input-file --validate-each -o /dev/null

// Types become wider; a bias broadcasts; the residual of the same batch lines up.
// CHECK-LABEL: func.func @main(
// CHECK-SAME: %x: tensor<3x3x8x8xf32>
// CHECK: nn.conv %x, %w, %b pads [1, 1, 1, 1] : (tensor<3x3x8x8xf32>, tensor<4x3x3x3xf32>, tensor<4xf32>) -> tensor<3x4x8x8xf32>
// CHECK: nn.max_pool {{.*}} -> tensor<3x4x4x4xf32>
// CHECK: nn.reshape %{{.*}} : (tensor<3x4x4x4xf32>) -> tensor<3x64xf32>
// CHECK: nn.matmul %{{.*}}, %v : (tensor<3x64xf32>, tensor<64x10xf32>) -> tensor<3x10xf32>
// CHECK: nn.softmax %{{.*}} axis 1 : (tensor<3x10xf32>) -> tensor<3x10xf32>
func.func @main(%x: tensor<1x3x8x8xf32> {nn.name = "x"}) -> (tensor<1x10xf32> {nn.name = "y"}) {
  %w = nn.weight "w" seeded<1> : tensor<4x3x3x3xf32>
  %b = nn.weight "b" seeded<2> : tensor<4xf32>
  %v = nn.weight "v" seeded<3> : tensor<64x10xf32>
  %0 = nn.conv %x, %w, %b pads [1, 1, 1, 1] : (tensor<1x3x8x8xf32>, tensor<4x3x3x3xf32>, tensor<4xf32>) -> tensor<1x4x8x8xf32>
  %1 = nn.max_pool %0 kernel [2, 2] strides [2, 2] : (tensor<1x4x8x8xf32>) -> tensor<1x4x4x4xf32>
  %2 = nn.reshape %1 : (tensor<1x4x4x4xf32>) -> tensor<1x64xf32>
  %3 = nn.matmul %2, %v : (tensor<1x64xf32>, tensor<64x10xf32>) -> tensor<1x10xf32>
  %4 = nn.softmax %3 axis 1 : (tensor<1x10xf32>) -> tensor<1x10xf32>
  func.return %4 : tensor<1x10xf32>
}

// -----

// Attention with the tokens of a request as rows of a matrix: position embeddings are repeated, the mask broadcasts,
// heads split the batch off again.
// CHECK-LABEL: func.func @main(
// CHECK-SAME: %ids: tensor<3x4xi64>
// CHECK: nn.gather %t, %ids axis 0 : (tensor<16x8xf32>, tensor<3x4xi64>) -> tensor<3x4x8xf32>
// CHECK: nn.add %{{.*}}, %{{.*}} : tensor<12x8xf32>, tensor<12x8xf32>
// CHECK: nn.reshape %{{.*}} : (tensor<12x8xf32>) -> tensor<3x4x2x4xf32>
// CHECK: nn.transpose %{{.*}} perm [0, 2, 3, 1] : (tensor<3x4x2x4xf32>) -> tensor<3x2x4x4xf32>
// CHECK: nn.matmul %{{.*}} -> tensor<3x2x4x4xf32>
// CHECK: nn.reshape %m : (tensor<3x4xf32>) -> tensor<3x1x1x4xf32>
// CHECK: nn.slice %{{.*}} starts [0, 0, 2, 0] sizes [3, 2, 1, 4] :
func.func @main(%ids: tensor<1x4xi64>, %m: tensor<1x4xf32>) -> (tensor<1x2x1x4xf32>) {
  %t = nn.weight "t" seeded<1> : tensor<16x8xf32>
  %p = nn.weight "p" seeded<2> : tensor<4x8xf32>
  %0 = nn.gather %t, %ids axis 0 : (tensor<16x8xf32>, tensor<1x4xi64>) -> tensor<1x4x8xf32>
  %1 = nn.reshape %0 : (tensor<1x4x8xf32>) -> tensor<4x8xf32>
  %2 = nn.add %1, %p : tensor<4x8xf32>, tensor<4x8xf32>
  %3 = nn.reshape %2 : (tensor<4x8xf32>) -> tensor<1x4x2x4xf32>
  %4 = nn.transpose %3 perm [0, 2, 1, 3] : (tensor<1x4x2x4xf32>) -> tensor<1x2x4x4xf32>
  %5 = nn.transpose %3 perm [0, 2, 3, 1] : (tensor<1x4x2x4xf32>) -> tensor<1x2x4x4xf32>
  %6 = nn.matmul %4, %5 : (tensor<1x2x4x4xf32>, tensor<1x2x4x4xf32>) -> tensor<1x2x4x4xf32>
  %7 = nn.reshape %m : (tensor<1x4xf32>) -> tensor<1x1x1x4xf32>
  %8 = nn.add %6, %7 : tensor<1x2x4x4xf32>, tensor<1x1x1x4xf32>
  %9 = nn.softmax %8 axis 3 : (tensor<1x2x4x4xf32>) -> tensor<1x2x4x4xf32>
  %10 = nn.slice %9 starts [0, 0, 2, 0] sizes [1, 2, 1, 4] : (tensor<1x2x4x4xf32>) -> tensor<1x2x1x4xf32>
  func.return %10 : tensor<1x2x1x4xf32>
}

// -----

// Along the batch axis itself: the axis is split, and merged behind. A model of batch 2 has batch 6 after.
// CHECK-LABEL: func.func @main(
// CHECK-SAME: %x: tensor<6x4xf32>
// CHECK: nn.reshape %x : (tensor<6x4xf32>) -> tensor<3x2x4xf32>
// CHECK: nn.slice %{{.*}} starts [0, 1, 0] sizes [3, 1, 4] : (tensor<3x2x4xf32>) -> tensor<3x1x4xf32>
// CHECK: nn.reshape %{{.*}} : (tensor<3x1x4xf32>) -> tensor<3x4xf32>
// CHECK: nn.softmax %{{.*}} axis 1 : (tensor<3x2x4xf32>) -> tensor<3x2x4xf32>
// CHECK: nn.reduce_max %{{.*}} axes [1] : (tensor<3x2x4xf32>) -> tensor<3x4xf32>
// CHECK: nn.reshape %{{.*}} : (tensor<3x4xf32>) -> tensor<12xf32>
func.func @main(%x: tensor<2x4xf32>) -> (tensor<1x4xf32>, tensor<4xf32>) {
  %0 = nn.slice %x starts [1, 0] sizes [1, 4] : (tensor<2x4xf32>) -> tensor<1x4xf32>
  %1 = nn.softmax %x axis 0 : (tensor<2x4xf32>) -> tensor<2x4xf32>
  %2 = nn.reduce_max %1 axes [0] : (tensor<2x4xf32>) -> tensor<4xf32>
  func.return %0, %2 : tensor<1x4xf32>, tensor<4xf32>
}

// -----

// A class token is in front of each request's patches; an input without the batch is shared.
// CHECK-LABEL: func.func @main(
// CHECK-SAME: %x: tensor<3x5x4xf32>, %scale: tensor<f32>
// CHECK: nn.const {
// CHECK: nn.expand %{{.*}} : (tensor<1x1x4xf32>) -> tensor<3x1x4xf32>
// CHECK: nn.concat %{{.*}}, %{{.*}} axis 1 : (tensor<3x1x4xf32>, tensor<3x5x4xf32>) -> tensor<3x6x4xf32>
// CHECK: nn.fused "elementwise" (%{{.*}}, %scale)
// CHECK-NEXT: ^bb0(%{{.*}}: tensor<3x6x4xf32>, %{{.*}}: tensor<f32>):
// CHECK: nn.gather %{{.*}}, %{{.*}} axis 1 : (tensor<3x6x4xf32>, tensor<i64>) -> tensor<3x4xf32>
func.func @main(%x: tensor<1x5x4xf32>, %scale: tensor<f32>) -> (tensor<1x4xf32>) {
  %t = nn.weight "t" seeded<1> : tensor<1x1x4xf32>
  %i = nn.weight "i" splat<0> : tensor<i64>
  %0 = nn.concat %t, %x axis 1 : (tensor<1x1x4xf32>, tensor<1x5x4xf32>) -> tensor<1x6x4xf32>
  %1 = nn.fused "elementwise" (%0, %scale) {
  ^bb0(%a: tensor<1x6x4xf32>, %b: tensor<f32>):
    %c = nn.mul %a, %b : tensor<1x6x4xf32>, tensor<f32>
    nn.yield %c : tensor<1x6x4xf32>
  } : (tensor<1x6x4xf32>, tensor<f32>) -> tensor<1x6x4xf32>
  %2 = nn.gather %1, %i axis 1 : (tensor<1x6x4xf32>, tensor<i64>) -> tensor<1x4xf32>
  func.return %2 : tensor<1x4xf32>
}
