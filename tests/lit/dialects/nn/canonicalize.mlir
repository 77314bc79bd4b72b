// RUN: neuron-opt %s -p canonicalize --split-input-file | filecheck %s

// CHECK-LABEL: func.func @nothing_left
// CHECK-SAME: (%x: tensor<2x6xf32>)
// CHECK-NEXT: func.return %x, %x, %x, %x, %x, %x, %x
func.func @nothing_left(%x: tensor<2x6xf32>) -> (tensor<2x6xf32>, tensor<2x6xf32>, tensor<2x6xf32>, tensor<2x6xf32>, tensor<2x6xf32>, tensor<2x6xf32>, tensor<2x6xf32>) {
  %0 = nn.reshape %x : (tensor<2x6xf32>) -> tensor<2x6xf32>
  %1 = nn.transpose %x perm [0, 1] : (tensor<2x6xf32>) -> tensor<2x6xf32>
  %2 = nn.slice %x starts [0, 0] sizes [2, 6] : (tensor<2x6xf32>) -> tensor<2x6xf32>
  %3 = nn.pad %x low [0, 0] high [0, 0] value 1.0 : (tensor<2x6xf32>) -> tensor<2x6xf32>
  %4 = nn.expand %x : (tensor<2x6xf32>) -> tensor<2x6xf32>
  %5 = nn.concat %x axis 0 : (tensor<2x6xf32>) -> tensor<2x6xf32>
  %6 = nn.cast %x : (tensor<2x6xf32>) -> tensor<2x6xf32>
  func.return %0, %1, %2, %3, %4, %5, %6 : tensor<2x6xf32>, tensor<2x6xf32>, tensor<2x6xf32>, tensor<2x6xf32>, tensor<2x6xf32>, tensor<2x6xf32>, tensor<2x6xf32>
}

// -----

// CHECK-LABEL: func.func @merged
func.func @merged(%x: tensor<2x3x4xf32>) -> (tensor<24xf32>, tensor<4x2x3xf32>, tensor<2x3x4xf32>, tensor<5x2x3x4xf32>) {
  // CHECK-NEXT: %[[R:.*]] = nn.reshape %x : (tensor<2x3x4xf32>) -> tensor<24xf32>
  %0 = nn.reshape %x : (tensor<2x3x4xf32>) -> tensor<6x4xf32>
  %1 = nn.reshape %0 : (tensor<6x4xf32>) -> tensor<24xf32>
  // CHECK-NEXT: %[[T:.*]] = nn.transpose %x perm [2, 0, 1] : (tensor<2x3x4xf32>) -> tensor<4x2x3xf32>
  %2 = nn.transpose %x perm [1, 2, 0] : (tensor<2x3x4xf32>) -> tensor<3x4x2xf32>
  %3 = nn.transpose %2 perm [1, 2, 0] : (tensor<3x4x2xf32>) -> tensor<4x2x3xf32>
  %4 = nn.transpose %2 perm [2, 0, 1] : (tensor<3x4x2xf32>) -> tensor<2x3x4xf32>
  // CHECK-NEXT: %[[E:.*]] = nn.expand %x : (tensor<2x3x4xf32>) -> tensor<5x2x3x4xf32>
  %5 = nn.expand %x : (tensor<2x3x4xf32>) -> tensor<1x2x3x4xf32>
  %6 = nn.expand %5 : (tensor<1x2x3x4xf32>) -> tensor<5x2x3x4xf32>
  // CHECK-NEXT: func.return %[[R]], %[[T]], %x, %[[E]]
  func.return %1, %3, %4, %6 : tensor<24xf32>, tensor<4x2x3xf32>, tensor<2x3x4xf32>, tensor<5x2x3x4xf32>
}

// -----

// Widening loses nothing; narrowing does, so the second pair stays.
// CHECK-LABEL: func.func @casts
func.func @casts(%x: tensor<4xbf16>, %y: tensor<4xf32>) -> (tensor<4xbf16>, tensor<4xf16>, tensor<4xf32>) {
  %0 = nn.cast %x : (tensor<4xbf16>) -> tensor<4xf32>
  %1 = nn.cast %0 : (tensor<4xf32>) -> tensor<4xbf16>
  // CHECK-NEXT: %[[H:.*]] = nn.cast %x : (tensor<4xbf16>) -> tensor<4xf16>
  %2 = nn.cast %0 : (tensor<4xf32>) -> tensor<4xf16>
  // CHECK-NEXT: %[[N:.*]] = nn.cast %y : (tensor<4xf32>) -> tensor<4xbf16>
  // CHECK-NEXT: %[[W:.*]] = nn.cast %[[N]] : (tensor<4xbf16>) -> tensor<4xf32>
  %3 = nn.cast %y : (tensor<4xf32>) -> tensor<4xbf16>
  %4 = nn.cast %3 : (tensor<4xbf16>) -> tensor<4xf32>
  // CHECK-NEXT: func.return %x, %[[H]], %[[W]]
  func.return %1, %2, %4 : tensor<4xbf16>, tensor<4xf16>, tensor<4xf32>
}

// -----

// x + 0 stays, since -0 + 0 is 0; x + -0, x - 0, x * 1 and x / 1 are x.
// CHECK-LABEL: func.func @neutral
func.func @neutral(%x: tensor<2x4xf32>, %i: tensor<4xi64>) -> (tensor<2x4xf32>, tensor<2x4xf32>, tensor<2x4xf32>, tensor<2x4xf32>, tensor<2x4xf32>, tensor<4xi64>) {
  // CHECK-NEXT: %[[Z:.*]] = nn.weight "zero" splat<0.0> : tensor<f32>
  %zero = nn.weight "zero" splat<0.0> : tensor<f32>
  %minus = nn.weight "minus" splat<-0.0> : tensor<f32>
  %one = nn.weight "one" dense<[1.0, 1.0, 1.0, 1.0]> : tensor<4xf32>
  %none = nn.weight "none" splat<0> : tensor<i64>
  // CHECK-NEXT: %[[A:.*]] = nn.add %x, %[[Z]] : tensor<2x4xf32>, tensor<f32>
  %0 = nn.add %x, %zero : tensor<2x4xf32>, tensor<f32>
  %1 = nn.add %minus, %x : tensor<f32>, tensor<2x4xf32>
  %2 = nn.sub %x, %zero : tensor<2x4xf32>, tensor<f32>
  %3 = nn.mul %one, %x : tensor<4xf32>, tensor<2x4xf32>
  %4 = nn.div %x, %one : tensor<2x4xf32>, tensor<4xf32>
  %5 = nn.add %i, %none : tensor<4xi64>, tensor<i64>
  // CHECK-NEXT: func.return %[[A]], %x, %x, %x, %x, %i
  func.return %0, %1, %2, %3, %4, %5 : tensor<2x4xf32>, tensor<2x4xf32>, tensor<2x4xf32>, tensor<2x4xf32>, tensor<2x4xf32>, tensor<4xi64>
}

// -----

// A product with 1 that also widens or broadcasts stays.
// CHECK-LABEL: func.func @not_neutral
func.func @not_neutral(%x: tensor<4xbf16>, %y: tensor<4xf32>) -> (tensor<4xf32>, tensor<2x4xf32>) {
  // CHECK: nn.mul %x
  %one = nn.weight "one" splat<1.0> : tensor<f32>
  %ones = nn.weight "ones" splat<1.0> : tensor<2x4xf32>
  %0 = nn.mul %x, %one : tensor<4xbf16>, tensor<f32>
  // CHECK: nn.mul %y
  %1 = nn.mul %y, %ones : tensor<4xf32>, tensor<2x4xf32>
  func.return %0, %1 : tensor<4xf32>, tensor<2x4xf32>
}

// -----

// CHECK-LABEL: func.func @wrappers
func.func @wrappers(%x: tensor<4xf32>) -> (tensor<4xf32>, tensor<4xf32>) {
  // CHECK-NEXT: %[[C:.*]] = nn.weight "w" : tensor<4xf32>
  %c = nn.const {
    %w = nn.weight "w" : tensor<4xf32>
    nn.yield %w : tensor<4xf32>
  } : tensor<4xf32>
  %f = nn.fused (%x) {
  ^bb0(%a: tensor<4xf32>):
    %r = nn.reshape %a : (tensor<4xf32>) -> tensor<4xf32>
    nn.yield %r : tensor<4xf32>
  } : (tensor<4xf32>) -> tensor<4xf32>
  // CHECK-NEXT: func.return %[[C]], %x
  func.return %c, %f : tensor<4xf32>, tensor<4xf32>
}

// -----

// CHECK-LABEL: func.func @resizes
func.func @resizes(%x: tensor<1x2x3x4xf32>) -> (tensor<1x2x3x4xf32>, tensor<1x2x12x12xf32>) {
  %0 = nn.resize %x scales [1, 1] : (tensor<1x2x3x4xf32>) -> tensor<1x2x3x4xf32>
  // CHECK-NEXT: %[[R:.*]] = nn.resize %x scales [4, 3] : (tensor<1x2x3x4xf32>) -> tensor<1x2x12x12xf32>
  %1 = nn.resize %x scales [2, 3] : (tensor<1x2x3x4xf32>) -> tensor<1x2x6x12xf32>
  %2 = nn.resize %1 scales [2, 1] : (tensor<1x2x6x12xf32>) -> tensor<1x2x12x12xf32>
  // CHECK-NEXT: func.return %x, %[[R]]
  func.return %0, %2 : tensor<1x2x3x4xf32>, tensor<1x2x12x12xf32>
}
