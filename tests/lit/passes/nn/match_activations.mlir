// RUN: neuron-opt %s -p nn-match-activations --split-input-file --print-debuginfo --validate-each | filecheck %s

// CHECK-LABEL: func.func @mish
// CHECK-NEXT: %[[Y:.*]] = nn.mish %x : tensor<2x8xf32> loc(fused["soft", "tanh", "mish"])
// CHECK-NEXT: func.return %[[Y]]
func.func @mish(%x: tensor<2x8xf32>) -> tensor<2x8xf32> {
  %0 = nn.softplus %x : tensor<2x8xf32> loc("soft")
  %1 = nn.tanh %0 : tensor<2x8xf32> loc("tanh")
  %2 = nn.mul %x, %1 : tensor<2x8xf32>, tensor<2x8xf32> loc("mish")
  func.return %2 : tensor<2x8xf32>
}

// -----

// A gate that something else reads stays for it; a further factor is no part of the function.
// CHECK-LABEL: func.func @silu
// CHECK: %[[G:.*]] = nn.sigmoid %x
// CHECK-NEXT: %[[Y:.*]] = nn.silu %x
// CHECK-NEXT: %[[Z:.*]] = nn.mul %[[Y]], %u
// CHECK-NEXT: func.return %[[G]], %[[Z]]
func.func @silu(%x: tensor<2x8xf32>, %u: tensor<2x8xf32>) -> (tensor<2x8xf32>, tensor<2x8xf32>) {
  %0 = nn.sigmoid %x : tensor<2x8xf32>
  %1 = nn.mul %0, %x : tensor<2x8xf32>, tensor<2x8xf32>
  %2 = nn.mul %1, %u : tensor<2x8xf32>, tensor<2x8xf32>
  func.return %0, %2 : tensor<2x8xf32>, tensor<2x8xf32>
}

// -----

// Both ways of grouping the product, and a quotient for the root of 2.
// CHECK-LABEL: func.func @gelu
// CHECK-NOT: nn.erf
// CHECK: %[[A:.*]] = nn.gelu %x
// CHECK: %[[B:.*]] = nn.gelu %[[A]]
// CHECK-NOT: nn.mul
// CHECK: func.return %[[B]]
func.func @gelu(%x: tensor<2x8xf32>) -> tensor<2x8xf32> {
  %r = nn.weight "r" splat<1.4142135> : tensor<f32>
  %i = nn.weight "i" splat<0.7071> : tensor<f32>
  %one = nn.weight "one" splat<1.0> : tensor<f32>
  %half = nn.weight "half" splat<0.5> : tensor<f32>
  %0 = nn.div %x, %r : tensor<2x8xf32>, tensor<f32>
  %1 = nn.erf %0 : tensor<2x8xf32>
  %2 = nn.add %1, %one : tensor<2x8xf32>, tensor<f32>
  %3 = nn.mul %x, %2 : tensor<2x8xf32>, tensor<2x8xf32>
  %4 = nn.mul %3, %half : tensor<2x8xf32>, tensor<f32>
  %5 = nn.mul %i, %4 : tensor<f32>, tensor<2x8xf32>
  %6 = nn.erf %5 : tensor<2x8xf32>
  %7 = nn.add %one, %6 : tensor<f32>, tensor<2x8xf32>
  %8 = nn.mul %half, %4 : tensor<f32>, tensor<2x8xf32>
  %9 = nn.mul %7, %8 : tensor<2x8xf32>, tensor<2x8xf32>
  func.return %9 : tensor<2x8xf32>
}

// -----

// CHECK-LABEL: func.func @gelu_tanh
// CHECK: %[[Y:.*]] = nn.gelu_tanh %x
// CHECK-NEXT: func.return %[[Y]]
func.func @gelu_tanh(%x: tensor<2x8xf32>) -> tensor<2x8xf32> {
  %c = nn.weight "c" splat<0.044715> : tensor<f32>
  %s = nn.weight "s" splat<0.7978845608> : tensor<f32>
  %three = nn.weight "three" splat<3.0> : tensor<f32>
  %one = nn.weight "one" splat<1.0> : tensor<f32>
  %half = nn.weight "half" splat<0.5> : tensor<f32>
  %0 = nn.pow %x, %three : tensor<2x8xf32>, tensor<f32>
  %1 = nn.mul %0, %c : tensor<2x8xf32>, tensor<f32>
  %2 = nn.add %x, %1 : tensor<2x8xf32>, tensor<2x8xf32>
  %3 = nn.mul %2, %s : tensor<2x8xf32>, tensor<f32>
  %4 = nn.tanh %3 : tensor<2x8xf32>
  %5 = nn.add %4, %one : tensor<2x8xf32>, tensor<f32>
  %6 = nn.mul %half, %x : tensor<f32>, tensor<2x8xf32>
  %7 = nn.mul %6, %5 : tensor<2x8xf32>, tensor<2x8xf32>
  func.return %7 : tensor<2x8xf32>
}

// -----

// Not these: another slope, a gate of another value, another number.
// CHECK-LABEL: func.func @other
// CHECK-NOT: nn.gelu
// CHECK-NOT: nn.silu
// CHECK: func.return
func.func @other(%x: tensor<2x8xf32>, %y: tensor<2x8xf32>) -> (tensor<2x8xf32>, tensor<2x8xf32>, tensor<2x8xf32>) {
  %slope = nn.weight "slope" splat<0.6> : tensor<f32>
  %one = nn.weight "one" splat<1.0> : tensor<f32>
  %half = nn.weight "half" splat<0.5> : tensor<f32>
  %0 = nn.mul %x, %slope : tensor<2x8xf32>, tensor<f32>
  %1 = nn.erf %0 : tensor<2x8xf32>
  %2 = nn.add %1, %one : tensor<2x8xf32>, tensor<f32>
  %3 = nn.mul %x, %2 : tensor<2x8xf32>, tensor<2x8xf32>
  %4 = nn.mul %3, %half : tensor<2x8xf32>, tensor<f32>
  %5 = nn.sigmoid %y : tensor<2x8xf32>
  %6 = nn.mul %x, %5 : tensor<2x8xf32>, tensor<2x8xf32>
  %7 = nn.tanh %x : tensor<2x8xf32>
  %8 = nn.add %7, %one : tensor<2x8xf32>, tensor<f32>
  %9 = nn.mul %x, %8 : tensor<2x8xf32>, tensor<2x8xf32>
  func.return %4, %6, %9 : tensor<2x8xf32>, tensor<2x8xf32>, tensor<2x8xf32>
}
