// RUN: neuron-opt %s --split-input-file --verify-diagnostics | filecheck %s

// CHECK: nn.conv needs 6 input channels (weight has 3 x group 2), got 4
func.func @main(%x: tensor<1x4x8x8xf32>, %w: tensor<4x3x3x3xf32>) {
  %0 = nn.conv %x, %w group 2 : (tensor<1x4x8x8xf32>, tensor<4x3x3x3xf32>) -> tensor<1x4x6x6xf32>
  func.return
}

// -----

// CHECK: nn.conv needs a group count that divides 4 output channels, got 3
func.func @main(%x: tensor<1x9x8x8xf32>, %w: tensor<4x3x3x3xf32>) {
  %0 = nn.conv %x, %w group 3 : (tensor<1x9x8x8xf32>, tensor<4x3x3x3xf32>) -> tensor<1x4x6x6xf32>
  func.return
}

// -----

// CHECK: nn.conv needs an input and a weight of one rank, at least 3, got 3x8 and 4x3x3
func.func @main(%x: tensor<3x8xf32>, %w: tensor<4x3x3xf32>) {
  %0 = nn.conv %x, %w : (tensor<3x8xf32>, tensor<4x3x3xf32>) -> tensor<1x4x6xf32>
  func.return
}

// -----

// CHECK: nn.conv needs a bias of shape 4, got 3
func.func @main(%x: tensor<1x3x8xf32>, %w: tensor<4x3x3xf32>, %b: tensor<3xf32>) {
  %0 = nn.conv %x, %w, %b : (tensor<1x3x8xf32>, tensor<4x3x3xf32>, tensor<3xf32>) -> tensor<1x4x6xf32>
  func.return
}

// -----

// CHECK: nn.conv needs a result of tensor<1x4x6xf32>, got tensor<1x4x7xf32>
func.func @main(%x: tensor<1x3x8xf32>, %w: tensor<4x3x3xf32>) {
  %0 = nn.conv %x, %w : (tensor<1x3x8xf32>, tensor<4x3x3xf32>) -> tensor<1x4x7xf32>
  func.return
}

// -----

// CHECK: nn.conv needs 2 pads, got 4
func.func @main(%x: tensor<1x3x8xf32>, %w: tensor<4x3x3xf32>) {
  %0 = nn.conv %x, %w pads [1, 1, 1, 1] : (tensor<1x3x8xf32>, tensor<4x3x3xf32>) -> tensor<1x4x8xf32>
  func.return
}

// -----

// CHECK: nn.conv needs strides of at least 1, got [0]
func.func @main(%x: tensor<1x3x8xf32>, %w: tensor<4x3x3xf32>) {
  %0 = nn.conv %x, %w strides [0] : (tensor<1x3x8xf32>, tensor<4x3x3xf32>) -> tensor<1x4x8xf32>
  func.return
}

// -----

// CHECK: nn.conv needs at least 9 padded elements along spatial axis 0, got 8
func.func @main(%x: tensor<1x3x8xf32>, %w: tensor<4x3x9xf32>) {
  %0 = nn.conv %x, %w : (tensor<1x3x8xf32>, tensor<4x3x9xf32>) -> tensor<1x4x1xf32>
  func.return
}

// -----

// CHECK: nn.conv needs elements of f32, bf16 or f16 in its weight, got i8
func.func @main(%x: tensor<1x3x8xf32>, %w: tensor<4x3x3xi8>) {
  %0 = nn.conv %x, %w : (tensor<1x3x8xf32>, tensor<4x3x3xi8>) -> tensor<1x4x6xf32>
  func.return
}

// -----

// CHECK: nn.matmul needs as many columns on the left as rows on the right, got 4 and 5
func.func @main(%x: tensor<3x4xf32>, %y: tensor<5x6xf32>) {
  %0 = nn.matmul %x, %y : (tensor<3x4xf32>, tensor<5x6xf32>) -> tensor<3x6xf32>
  func.return
}

// -----

// CHECK: nn.matmul needs operands of rank at least 2, got 4 and 4x6
func.func @main(%x: tensor<4xf32>, %y: tensor<4x6xf32>) {
  %0 = nn.matmul %x, %y : (tensor<4xf32>, tensor<4x6xf32>) -> tensor<6xf32>
  func.return
}

// -----

// CHECK: nn.matmul needs shapes that broadcast, got 2 and 3
func.func @main(%x: tensor<2x3x4xf32>, %y: tensor<3x4x6xf32>) {
  %0 = nn.matmul %x, %y : (tensor<2x3x4xf32>, tensor<3x4x6xf32>) -> tensor<2x3x6xf32>
  func.return
}

// -----

// CHECK: nn.max_pool needs pads smaller than the window of 2, got [2, 0]
func.func @main(%x: tensor<1x3x8xf32>) {
  %0 = nn.max_pool %x kernel [2] pads [2, 0] : (tensor<1x3x8xf32>) -> tensor<1x3x9xf32>
  func.return
}

// -----

// CHECK: nn.max_pool needs elements of f32, bf16, f16 or an integer, got i1
func.func @main(%x: tensor<1x3x8xi1>) {
  %0 = nn.max_pool %x kernel [2] : (tensor<1x3x8xi1>) -> tensor<1x3x7xi1>
  func.return
}

// -----

// CHECK: nn.avg_pool needs an input of rank at least 3 (N, C, spatial..), got 3x8
func.func @main(%x: tensor<3x8xf32>) {
  %0 = nn.avg_pool %x kernel [2] : (tensor<3x8xf32>) -> tensor<3x7xf32>
  func.return
}

// -----

// CHECK: nn.avg_pool needs 2 kernel sizes, got 1
func.func @main(%x: tensor<1x3x8x8xf32>) {
  %0 = nn.avg_pool %x kernel [2] : (tensor<1x3x8x8xf32>) -> tensor<1x3x7x7xf32>
  func.return
}

// -----

// CHECK: nn.lrn needs a size of at least 1, got 0
func.func @main(%x: tensor<1x3x8xf32>) {
  %0 = nn.lrn %x size 0 alpha 0.1 beta 0.75 bias 1.0 : (tensor<1x3x8xf32>) -> tensor<1x3x8xf32>
  func.return
}

// -----

// CHECK: nn.batch_norm needs a mean of shape 3, got 4
func.func @main(%x: tensor<1x3x8xf32>, %c: tensor<3xf32>, %m: tensor<4xf32>) {
  %0 = nn.batch_norm %x, %c, %c, %m, %c eps 1.0e-05 : (tensor<1x3x8xf32>, tensor<3xf32>, tensor<3xf32>, tensor<4xf32>, tensor<3xf32>) -> tensor<1x3x8xf32>
  func.return
}

// -----

// CHECK: nn.layer_norm needs 0 <= axis < 2, the rank of its operand, got 2
func.func @main(%x: tensor<3x8xf32>, %s: tensor<8xf32>) {
  %0 = nn.layer_norm %x, %s axis 2 eps 1.0e-05 : (tensor<3x8xf32>, tensor<8xf32>) -> tensor<3x8xf32>
  func.return
}

// -----

// CHECK: nn.layer_norm needs a scale that broadcasts to 3x8, got 7
func.func @main(%x: tensor<3x8xf32>, %s: tensor<7xf32>) {
  %0 = nn.layer_norm %x, %s axis 1 eps 1.0e-05 : (tensor<3x8xf32>, tensor<7xf32>) -> tensor<3x8xf32>
  func.return
}

// -----

// CHECK: nn.softmax needs elements of f32, bf16 or f16 in its operand, got i64
func.func @main(%x: tensor<3x8xi64>) {
  %0 = nn.softmax %x axis 1 : (tensor<3x8xi64>) -> tensor<3x8xi64>
  func.return
}

// -----

// CHECK: nn.reduce_sum needs axes in ascending order without repetition, got [1, 0]
func.func @main(%x: tensor<3x8xf32>) {
  %0 = nn.reduce_sum %x axes [1, 0] : (tensor<3x8xf32>) -> tensor<f32>
  func.return
}

// -----

// CHECK: nn.reduce_max needs at least one axis, got none
func.func @main(%x: tensor<3x8xf32>) {
  %0 = nn.reduce_max %x axes [] : (tensor<3x8xf32>) -> tensor<3x8xf32>
  func.return
}

// -----

// CHECK: nn.arg_max needs a result of tensor<3xi64>, got tensor<3xf32>
func.func @main(%x: tensor<3x8xf32>) {
  %0 = nn.arg_max %x axis 1 : (tensor<3x8xf32>) -> tensor<3xf32>
  func.return
}

// -----

// CHECK: nn.add needs shapes that broadcast, got 3x8 and 2x8
func.func @main(%x: tensor<3x8xf32>, %y: tensor<2x8xf32>) {
  %0 = nn.add %x, %y : tensor<3x8xf32>, tensor<2x8xf32>
  func.return
}

// -----

// CHECK: nn.add needs two float operands or two of the same integer type, got f32 and i32
func.func @main(%x: tensor<3x8xf32>, %y: tensor<3x8xi32>) {
  %0 = nn.add %x, %y : tensor<3x8xf32>, tensor<3x8xi32>
  func.return
}

// -----

// CHECK: nn.and needs elements of i1, got i32
func.func @main(%x: tensor<3x8xi1>, %y: tensor<3x8xi32>) {
  %0 = nn.and %x, %y : tensor<3x8xi1>, tensor<3x8xi32>
  func.return
}

// -----

// CHECK: nn.exp needs elements of f32, bf16 or f16 in its operand, got f64
func.func @main(%x: tensor<3x8xf64>) {
  %0 = nn.exp %x : tensor<3x8xf64>
  func.return
}

// -----

// CHECK: nn.relu needs elements of f32, bf16, f16 or an integer type, got i1
func.func @main(%x: tensor<3x8xi1>) {
  %0 = nn.relu %x : tensor<3x8xi1>
  func.return
}

// -----

// CHECK: nn.relu needs static dimensions of at least 1, got tensor<?x8xf32>
func.func @main(%x: tensor<?x8xf32>) {
  %0 = nn.relu %x : tensor<?x8xf32>
  func.return
}

// -----

// CHECK: nn.relu needs elements of f32, bf16, f16, f64, i64, i32, i8, ui8 or i1, got i16
func.func @main(%x: tensor<8xi16>) {
  %0 = nn.relu %x : tensor<8xi16>
  func.return
}

// -----

// CHECK: nn.reshape needs a shape of 24 elements, got 20 (3x8 to 4x5)
func.func @main(%x: tensor<3x8xf32>) {
  %0 = nn.reshape %x : (tensor<3x8xf32>) -> tensor<4x5xf32>
  func.return
}

// -----

// CHECK: nn.transpose needs a permutation of 0 to 1, got [0, 0]
func.func @main(%x: tensor<3x8xf32>) {
  %0 = nn.transpose %x perm [0, 0] : (tensor<3x8xf32>) -> tensor<3x3xf32>
  func.return
}

// -----

// CHECK: nn.slice needs elements 0 to 7 along axis 1, got 4 to 8
func.func @main(%x: tensor<3x8xf32>) {
  %0 = nn.slice %x starts [0, 4] sizes [3, 5] : (tensor<3x8xf32>) -> tensor<3x5xf32>
  func.return
}

// -----

// CHECK: nn.slice needs strides other than 0, got [1, 0]
func.func @main(%x: tensor<3x8xf32>) {
  %0 = nn.slice %x starts [0, 4] sizes [3, 2] strides [1, 0] : (tensor<3x8xf32>) -> tensor<3x2xf32>
  func.return
}

// -----

// CHECK: nn.concat needs operands that differ along axis 0 only, got 3x8 and 2x7
func.func @main(%x: tensor<3x8xf32>, %y: tensor<2x7xf32>) {
  %0 = nn.concat %x, %y axis 0 : (tensor<3x8xf32>, tensor<2x7xf32>) -> tensor<5x8xf32>
  func.return
}

// -----

// CHECK: nn.concat needs operands of one element type, got f32 and bf16
func.func @main(%x: tensor<3x8xf32>, %y: tensor<2x8xbf16>) {
  %0 = nn.concat %x, %y axis 0 : (tensor<3x8xf32>, tensor<2x8xbf16>) -> tensor<5x8xf32>
  func.return
}

// -----

// CHECK: nn.concat needs at least one operand, got none
func.func @main() {
  %0 = nn.concat axis 0 : () -> tensor<5x8xf32>
  func.return
}

// -----

// CHECK: nn.gather needs integer indices, got f32
func.func @main(%x: tensor<3x8xf32>, %i: tensor<2xf32>) {
  %0 = nn.gather %x, %i axis 0 : (tensor<3x8xf32>, tensor<2xf32>) -> tensor<2x8xf32>
  func.return
}

// -----

// CHECK: nn.pad needs low pads of at least 0, got [-1, 0]
func.func @main(%x: tensor<3x8xf32>) {
  %0 = nn.pad %x low [-1, 0] high [0, 0] value 0.0 : (tensor<3x8xf32>) -> tensor<2x8xf32>
  func.return
}

// -----

// CHECK: nn.expand needs an operand that broadcasts to 4x3x8, got 2x8
func.func @main(%x: tensor<2x8xf32>) {
  %0 = nn.expand %x : (tensor<2x8xf32>) -> tensor<4x3x8xf32>
  func.return
}

// -----

// CHECK: nn.where needs a condition of i1, got f32
func.func @main(%x: tensor<8xf32>) {
  %0 = nn.where %x, %x, %x : (tensor<8xf32>, tensor<8xf32>, tensor<8xf32>) -> tensor<8xf32>
  func.return
}

// -----

// CHECK: nn.where needs two choices of one element type, got f32 and bf16
func.func @main(%c: tensor<8xi1>, %x: tensor<8xf32>, %y: tensor<8xbf16>) {
  %0 = nn.where %c, %x, %y : (tensor<8xi1>, tensor<8xf32>, tensor<8xbf16>) -> tensor<8xf32>
  func.return
}

// -----

// CHECK: nn.weight needs 3 numbers for 3, got 2
%w = nn.weight "w" dense<[1.0, 2.0]> : tensor<3xf32>

// -----

// CHECK: nn.weight needs whole numbers for elements of i64
%w = nn.weight "w" splat<0.5> : tensor<3xi64>

// -----

// CHECK: nn.const needs only nn ops over nn.weight inside, got nn.fused
%c = nn.const {
  %w = nn.weight "w" : tensor<3xf32>
  %f = nn.fused (%w) {
  ^bb0(%a: tensor<3xf32>):
    nn.yield %a : tensor<3xf32>
  } : (tensor<3xf32>) -> tensor<3xf32>
  nn.yield %f : tensor<3xf32>
} : tensor<3xf32>

// -----

// CHECK: nn.const needs nn.yield of its result types (tensor<4xf32>), got (tensor<3xf32>)
%c = nn.const {
  %w = nn.weight "w" : tensor<3xf32>
  nn.yield %w : tensor<3xf32>
} : tensor<4xf32>

// -----

// CHECK: nn.const needs a region that ends in nn.yield, got test.termop
%c = nn.const {
  %w = nn.weight "w" : tensor<3xf32>
  "test.termop"() : () -> ()
} : tensor<3xf32>

// -----

// CHECK: nn.const needs a region without arguments, got 1
%c = nn.const {
^bb0(%w: tensor<3xf32>):
  nn.yield %w : tensor<3xf32>
} : tensor<3xf32>

// -----

// CHECK: nn.fused needs block arguments of its operands' types (tensor<3xf32>), got (tensor<4xf32>)
func.func @main(%x: tensor<3xf32>) {
  %f = nn.fused "elementwise" (%x) {
  ^bb0(%a: tensor<4xf32>):
    nn.yield %a : tensor<4xf32>
  } : (tensor<3xf32>) -> tensor<4xf32>
  func.return
}

// -----

// CHECK: nn.fused needs only nn ops inside, got arith.constant
func.func @main(%x: tensor<3xf32>) {
  %f = nn.fused "elementwise" (%x) {
  ^bb0(%a: tensor<3xf32>):
    %i = arith.constant 0 : i32
    nn.yield %a : tensor<3xf32>
  } : (tensor<3xf32>) -> tensor<3xf32>
  func.return
}

// -----

// CHECK: nn.conv_transpose needs 5 input channels, as its weight has, got 4
func.func @main(%x: tensor<1x4x8xf32>, %w: tensor<5x2x3xf32>) {
  %0 = nn.conv_transpose %x, %w : (tensor<1x4x8xf32>, tensor<5x2x3xf32>) -> tensor<1x2x10xf32>
  func.return
}

// -----

// CHECK: nn.conv_transpose needs output_padding below the stride of 2, got [2]
func.func @main(%x: tensor<1x4x8xf32>, %w: tensor<4x2x3xf32>) {
  %0 = nn.conv_transpose %x, %w strides [2] output_padding [2] : (tensor<1x4x8xf32>, tensor<4x2x3xf32>) -> tensor<1x2x19xf32>
  func.return
}

// -----

// CHECK: nn.conv_transpose needs pads that leave something of 3, got [2, 1]
func.func @main(%x: tensor<1x4x1xf32>, %w: tensor<4x2x3xf32>) {
  %0 = nn.conv_transpose %x, %w pads [2, 1] : (tensor<1x4x1xf32>, tensor<4x2x3xf32>) -> tensor<1x2x1xf32>
  func.return
}

// -----

// CHECK: nn.resize needs 2 scales, got 1
func.func @main(%x: tensor<1x4x8x8xf32>) {
  %0 = nn.resize %x scales [2] : (tensor<1x4x8x8xf32>) -> tensor<1x4x16x16xf32>
  func.return
}

// -----

// CHECK: nn.resize needs an input of rank at least 3 (N, C, spatial..), got 4x8
func.func @main(%x: tensor<4x8xf32>) {
  %0 = nn.resize %x scales [2] : (tensor<4x8xf32>) -> tensor<4x16xf32>
  func.return
}

// -----

// CHECK: nn.fused holds other groups only with tile [..] or as "attention", and those hold none
func.func @group_in_group(%x: tensor<2xf32>) -> tensor<2xf32> {
  %0 = nn.fused "elementwise" (%x) {
  ^bb0(%a: tensor<2xf32>):
    %1 = nn.fused (%a) {
    ^bb0(%b: tensor<2xf32>):
      %2 = nn.relu %b : tensor<2xf32>
      nn.yield %2 : tensor<2xf32>
    } : (tensor<2xf32>) -> tensor<2xf32>
    nn.yield %1 : tensor<2xf32>
  } : (tensor<2xf32>) -> tensor<2xf32>
  func.return %0 : tensor<2xf32>
}

// -----

// CHECK: nn.fused needs tile [images, rows], both at least 1
func.func @no_rows(%x: tensor<1x2x4x4xf32>) -> tensor<1x2x4x4xf32> {
  %0 = nn.fused "depth-first" (%x) tile [1, 0] {
  ^bb0(%a: tensor<1x2x4x4xf32>):
    %1 = nn.relu %a : tensor<1x2x4x4xf32>
    nn.yield %1 : tensor<1x2x4x4xf32>
  } : (tensor<1x2x4x4xf32>) -> tensor<1x2x4x4xf32>
  func.return %0 : tensor<1x2x4x4xf32>
}
