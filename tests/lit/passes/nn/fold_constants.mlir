// RUN: neuron-opt %s -p nn-fold-constants --split-input-file | filecheck %s
// RUN: neuron-opt %s -p 'nn-fold-constants{limit=8}' --split-input-file | filecheck %s --check-prefix=LIMIT

// A chain over weights becomes one constant; the weight both sides use is there once.
// CHECK-LABEL: func.func @chain
func.func @chain(%x: tensor<2x4xf32>) -> tensor<2x4xf32> {
  // CHECK-NEXT: %[[C:.*]] = nn.const {
  // CHECK-NEXT:   %[[W:.*]] = nn.weight "w" : tensor<4xf32>
  // CHECK-NEXT:   %[[E:.*]] = nn.exp %[[W]] : tensor<4xf32>
  // CHECK-NEXT:   %[[A:.*]] = nn.add %[[E]], %[[W]] : tensor<4xf32>, tensor<4xf32>
  // CHECK-NEXT:   %[[R:.*]] = nn.reshape %[[A]] : (tensor<4xf32>) -> tensor<1x4xf32>
  // CHECK-NEXT:   nn.yield %[[R]] : tensor<1x4xf32>
  // CHECK-NEXT: } : tensor<1x4xf32>
  // CHECK-NEXT: nn.mul %x, %[[C]] : tensor<2x4xf32>, tensor<1x4xf32>
  %w = nn.weight "w" : tensor<4xf32>
  %v = nn.weight "w" : tensor<4xf32>
  %0 = nn.exp %w : tensor<4xf32>
  %1 = nn.add %0, %v : tensor<4xf32>, tensor<4xf32>
  %2 = nn.reshape %1 : (tensor<4xf32>) -> tensor<1x4xf32>
  %3 = nn.mul %x, %2 : tensor<2x4xf32>, tensor<1x4xf32>
  func.return %3 : tensor<2x4xf32>
}

// -----

// Identities go, and the constants only they used.
// CHECK-LABEL: func.func @identities
// CHECK-SAME: (%x: tensor<2x4xf32>)
// CHECK-NEXT: %[[R:.*]] = nn.reshape %x : (tensor<2x4xf32>) -> tensor<8xf32>
// CHECK-NEXT: func.return %[[R]]
func.func @identities(%x: tensor<2x4xf32>) -> tensor<8xf32> {
  %one = nn.weight "one" splat<1.0> : tensor<f32>
  %zero = nn.weight "zero" splat<0.0> : tensor<4xf32>
  %0 = nn.mul %one, %x : tensor<f32>, tensor<2x4xf32>
  %1 = nn.sub %0, %zero : tensor<2x4xf32>, tensor<4xf32>
  %2 = nn.transpose %1 perm [1, 0] : (tensor<2x4xf32>) -> tensor<4x2xf32>
  %3 = nn.transpose %2 perm [1, 0] : (tensor<4x2xf32>) -> tensor<2x4xf32>
  %4 = nn.reshape %3 : (tensor<2x4xf32>) -> tensor<4x2xf32>
  %5 = nn.reshape %4 : (tensor<4x2xf32>) -> tensor<8xf32>
  func.return %5 : tensor<8xf32>
}

// -----

// A layer that takes an input is not a constant, whatever else it takes.
// CHECK-LABEL: func.func @inputs
// CHECK: nn.concat
func.func @inputs(%x: tensor<4xf32>) -> tensor<8xf32> {
  %w = nn.weight "w" : tensor<4xf32>
  %0 = nn.concat %w, %x axis 0 : (tensor<4xf32>, tensor<4xf32>) -> tensor<8xf32>
  func.return %0 : tensor<8xf32>
}

// -----

// A small constant may grow, up to the limit.
// CHECK-LABEL: func.func @growth
// CHECK-NOT: } : tensor<3x4xf32>
// CHECK: nn.expand
// CHECK: } : tensor<3x4xf32>
// LIMIT-LABEL: func.func @growth
// LIMIT-NEXT: nn.weight "w"
// LIMIT-NEXT: nn.expand
func.func @growth() -> tensor<3x4xf32> {
  %w = nn.weight "w" : tensor<4xf32>
  %0 = nn.expand %w : (tensor<4xf32>) -> tensor<3x4xf32>
  func.return %0 : tensor<3x4xf32>
}

// -----

// Unused constants go.
// CHECK-LABEL: func.func @empty
// CHECK-NEXT: func.return
func.func @empty() {
  %w = nn.weight "w" : tensor<4xf32>
  func.return
}
