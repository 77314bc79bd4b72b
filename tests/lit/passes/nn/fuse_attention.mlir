// RUN: neuron-opt %s -p nn-fuse-attention --split-input-file --validate-each | filecheck %s
// RUN: neuron-opt %s -p 'nn-cast{mode=matmult},nn-fuse-attention,pipe-stage{cores=2}' --split-input-file --validate-each | filecheck %s --check-prefix=STAGED

// Scores, scale, softmax and the product with the values are one group; the projection of the values stays outside.
// CHECK-LABEL: func.func @chain
// CHECK: %[[V:.*]] = nn.matmul %x, %w
// CHECK: %[[C:.*]] = nn.fused "attention" (%q, %k, %{{.*}}, %[[V]]) {
// CHECK:   %[[S:.*]] = nn.matmul
// CHECK:   %[[D:.*]] = nn.div %[[S]]
// CHECK:   %[[P:.*]] = nn.softmax %[[D]]
// CHECK:   nn.matmul %[[P]]
// CHECK:   nn.yield
// CHECK: func.return %[[C]]

// However the rest is cut, what was in the group is in one stage.
// STAGED-LABEL: pipe.program @chain
// STAGED: pipe.stage @s1
// STAGED: nn.div
// STAGED: nn.softmax
// STAGED: nn.matmul
// STAGED: pipe.yield
func.func @chain(%q: tensor<2x8x4xf32>, %k: tensor<2x4x8xf32>, %x: tensor<2x8x4xf32>) -> tensor<2x8x4xf32> {
  %0 = nn.matmul %q, %k : (tensor<2x8x4xf32>, tensor<2x4x8xf32>) -> tensor<2x8x8xf32>
  %w = nn.weight "w" seeded<1> : tensor<4x4xf32>
  %v = nn.matmul %x, %w : (tensor<2x8x4xf32>, tensor<4x4xf32>) -> tensor<2x8x4xf32>
  %two = nn.weight "two" splat<2.0> : tensor<f32>
  %1 = nn.div %0, %two : tensor<2x8x8xf32>, tensor<f32>
  %2 = nn.softmax %1 axis 2 : (tensor<2x8x8xf32>) -> tensor<2x8x8xf32>
  %3 = nn.matmul %2, %v : (tensor<2x8x8xf32>, tensor<2x8x4xf32>) -> tensor<2x8x4xf32>
  func.return %3 : tensor<2x8x4xf32>
}

// -----

// Scores that are used twice leave the group anyway: no group.
// CHECK-LABEL: func.func @scores_wanted
// CHECK-NOT: nn.fused
// STAGED-LABEL: pipe.program @scores_wanted
func.func @scores_wanted(%q: tensor<2x8x4xf32>, %k: tensor<2x4x8xf32>, %v: tensor<2x8x4xf32>) -> (tensor<2x8x4xf32>, tensor<2x8x8xf32>) {
  %0 = nn.matmul %q, %k : (tensor<2x8x4xf32>, tensor<2x4x8xf32>) -> tensor<2x8x8xf32>
  %2 = nn.softmax %0 axis 2 : (tensor<2x8x8xf32>) -> tensor<2x8x8xf32>
  %3 = nn.matmul %2, %v : (tensor<2x8x8xf32>, tensor<2x8x4xf32>) -> tensor<2x8x4xf32>
  func.return %3, %0 : tensor<2x8x4xf32>, tensor<2x8x8xf32>
}

// -----

// A product with a weight is a classifier, not attention.
// CHECK-LABEL: func.func @classifier
// CHECK-NOT: nn.fused
// STAGED-LABEL: pipe.program @classifier
func.func @classifier(%x: tensor<8x4xf32>, %v: tensor<8x4xf32>) -> tensor<8x4xf32> {
  %w = nn.weight "w" seeded<1> : tensor<4x8xf32>
  %0 = nn.matmul %x, %w : (tensor<8x4xf32>, tensor<4x8xf32>) -> tensor<8x8xf32>
  %2 = nn.softmax %0 axis 1 : (tensor<8x8xf32>) -> tensor<8x8xf32>
  %3 = nn.matmul %2, %v : (tensor<8x8xf32>, tensor<8x4xf32>) -> tensor<8x4xf32>
  func.return %3 : tensor<8x4xf32>
}
