// RUN: neuron-opt %s | neuron-opt | filecheck %s
// RUN: neuron-opt %s --print-op-generic | neuron-opt | filecheck %s

// CHECK-LABEL: func.func @constants
func.func @constants() -> tensor<f32> {
  // CHECK-NEXT: %{{.*}} = nn.weight "conv1.w" digest "ab12" : tensor<64x3x7x7xf32>
  %0 = nn.weight "conv1.w" digest "ab12" : tensor<64x3x7x7xf32>
  // CHECK-NEXT: nn.weight "b" seeded<7> : tensor<4xbf16>
  %1 = nn.weight "b" seeded<7> : tensor<4xbf16>
  // CHECK-NEXT: nn.weight "s" splat<-0.5> : tensor<f32>
  %2 = nn.weight "s" splat<-0.5> : tensor<f32>
  // CHECK-NEXT: nn.weight "i" splat<-inf> digest "0" : tensor<2xf32>
  %3 = nn.weight "i" splat<-inf> digest "0" : tensor<2xf32>
  // CHECK-NEXT: nn.weight "m" dense<[1, 2, -3, 4]> : tensor<2x2xi64>
  %4 = nn.weight "m" dense<[[1, 2], [-3, 4]]> : tensor<2x2xi64>
  // CHECK-NEXT: nn.weight "v" dense<[1.0, 1.0e-05, nan]> : tensor<3xf32>
  %5 = nn.weight "v" dense<[1.0, 1.0e-5, nan]> : tensor<3xf32>
  // CHECK-NEXT: %[[C:.*]] = nn.const {
  // CHECK-NEXT:   %[[S:.*]] = nn.weight "s" splat<2.0> : tensor<f32>
  // CHECK-NEXT:   %[[E:.*]] = nn.erf %[[S]] : tensor<f32>
  // CHECK-NEXT:   nn.yield %[[E]] : tensor<f32>
  // CHECK-NEXT: } : tensor<f32>
  %6 = nn.const {
    %s = nn.weight "s" splat<2.0> : tensor<f32>
    %e = nn.erf %s : tensor<f32>
    nn.yield %e : tensor<f32>
  } : tensor<f32>
  // CHECK-NEXT: func.return %[[C]]
  func.return %6 : tensor<f32>
}

// CHECK-LABEL: func.func @movement
func.func @movement(%x: tensor<2x6xbf16>, %i: tensor<3xi64>, %c: tensor<6xi1>) {
  // CHECK-NEXT: nn.reshape %x : (tensor<2x6xbf16>) -> tensor<3x4xbf16>
  %0 = nn.reshape %x : (tensor<2x6xbf16>) -> tensor<3x4xbf16>
  // CHECK-NEXT: nn.transpose %x perm [1, 0] : (tensor<2x6xbf16>) -> tensor<6x2xbf16>
  %1 = nn.transpose %x perm [1, 0] : (tensor<2x6xbf16>) -> tensor<6x2xbf16>
  // CHECK-NEXT: nn.slice %x starts [0, 5] sizes [2, 3] strides [1, -2] : (tensor<2x6xbf16>) -> tensor<2x3xbf16>
  %2 = nn.slice %x starts [0, 5] sizes [2, 3] strides [1, -2] : (tensor<2x6xbf16>) -> tensor<2x3xbf16>
  // CHECK-NEXT: nn.concat %x, %{{.*}} axis 1 : (tensor<2x6xbf16>, tensor<2x3xbf16>) -> tensor<2x9xbf16>
  %3 = nn.concat %x, %2 axis 1 : (tensor<2x6xbf16>, tensor<2x3xbf16>) -> tensor<2x9xbf16>
  // CHECK-NEXT: nn.gather %x, %i axis 0 : (tensor<2x6xbf16>, tensor<3xi64>) -> tensor<3x6xbf16>
  %4 = nn.gather %x, %i axis 0 : (tensor<2x6xbf16>, tensor<3xi64>) -> tensor<3x6xbf16>
  // CHECK-NEXT: nn.pad %x low [0, 1] high [1, 0] value -inf : (tensor<2x6xbf16>) -> tensor<3x7xbf16>
  %5 = nn.pad %x low [0, 1] high [1, 0] value -inf : (tensor<2x6xbf16>) -> tensor<3x7xbf16>
  // CHECK-NEXT: nn.expand %x : (tensor<2x6xbf16>) -> tensor<4x2x6xbf16>
  %6 = nn.expand %x : (tensor<2x6xbf16>) -> tensor<4x2x6xbf16>
  // CHECK-NEXT: %[[MAP:.*]] = nn.reshape %x
  %map = nn.reshape %x : (tensor<2x6xbf16>) -> tensor<1x1x2x6xbf16>
  // CHECK-NEXT: nn.resize %[[MAP]] scales [2, 1] : (tensor<1x1x2x6xbf16>) -> tensor<1x1x4x6xbf16>
  %up = nn.resize %map scales [2, 1] : (tensor<1x1x2x6xbf16>) -> tensor<1x1x4x6xbf16>
  // CHECK-NEXT: nn.where %c, %x, %x : (tensor<6xi1>, tensor<2x6xbf16>, tensor<2x6xbf16>) -> tensor<2x6xbf16>
  %7 = nn.where %c, %x, %x : (tensor<6xi1>, tensor<2x6xbf16>, tensor<2x6xbf16>) -> tensor<2x6xbf16>
  // CHECK-NEXT: nn.cast %x : (tensor<2x6xbf16>) -> tensor<2x6xui8>
  %8 = nn.cast %x : (tensor<2x6xbf16>) -> tensor<2x6xui8>
  func.return
}

// CHECK-LABEL: func.func @layers
func.func @layers(%x: tensor<1x4x8x8xf32>, %w: tensor<6x2x3x3xbf16>, %b: tensor<6xf32>, %c: tensor<4xf32>) {
  // CHECK-NEXT: nn.conv %x, %w, %b strides [2, 1] pads [1, 0, 0, 2] dilations [1, 2] group 2 : (tensor<1x4x8x8xf32>, tensor<6x2x3x3xbf16>, tensor<6xf32>) -> tensor<1x6x4x6xf32>
  %0 = nn.conv %x, %w, %b strides [2, 1] pads [1, 0, 0, 2] dilations [1, 2] group 2 : (tensor<1x4x8x8xf32>, tensor<6x2x3x3xbf16>, tensor<6xf32>) -> tensor<1x6x4x6xf32>
  // CHECK-NEXT: %[[T:.*]] = nn.slice %w
  %t = nn.slice %w starts [0, 0, 0, 0] sizes [4, 2, 3, 3] : (tensor<6x2x3x3xbf16>) -> tensor<4x2x3x3xbf16>
  // CHECK-NEXT: nn.conv_transpose %x, %[[T]] strides [2, 3] pads [1, 0, 0, 2] output_padding [0, 1] : (tensor<1x4x8x8xf32>, tensor<4x2x3x3xbf16>) -> tensor<1x2x16x23xf32>
  %up = nn.conv_transpose %x, %t strides [2, 3] pads [1, 0, 0, 2] output_padding [0, 1] : (tensor<1x4x8x8xf32>, tensor<4x2x3x3xbf16>) -> tensor<1x2x16x23xf32>
  // CHECK-NEXT: nn.matmul %x, %x : (tensor<1x4x8x8xf32>, tensor<1x4x8x8xf32>) -> tensor<1x4x8x8xf32>
  %1 = nn.matmul %x, %x : (tensor<1x4x8x8xf32>, tensor<1x4x8x8xf32>) -> tensor<1x4x8x8xf32>
  // CHECK-NEXT: nn.max_pool %x kernel [3, 3] strides [2, 2] pads [1, 1, 1, 1] dilations [2, 1] : (tensor<1x4x8x8xf32>) -> tensor<1x4x3x4xf32>
  %2 = nn.max_pool %x kernel [3, 3] strides [2, 2] pads [1, 1, 1, 1] dilations [2, 1] : (tensor<1x4x8x8xf32>) -> tensor<1x4x3x4xf32>
  // CHECK-NEXT: nn.avg_pool %x kernel [3, 3] pads [1, 1, 1, 1] count_include_pad : (tensor<1x4x8x8xf32>) -> tensor<1x4x8x8xf32>
  %3 = nn.avg_pool %x kernel [3, 3] pads [1, 1, 1, 1] count_include_pad : (tensor<1x4x8x8xf32>) -> tensor<1x4x8x8xf32>
  // CHECK-NEXT: nn.lrn %x size 5 alpha 0.0001 beta 0.75 bias 1.0 : (tensor<1x4x8x8xf32>) -> tensor<1x4x8x8xf32>
  %4 = nn.lrn %x size 5 alpha 0.0001 beta 0.75 bias 1.0 : (tensor<1x4x8x8xf32>) -> tensor<1x4x8x8xf32>
  // CHECK-NEXT: nn.batch_norm %x, %c, %c, %c, %c eps 1.0e-05 : (tensor<1x4x8x8xf32>, tensor<4xf32>, tensor<4xf32>, tensor<4xf32>, tensor<4xf32>) -> tensor<1x4x8x8xf32>
  %5 = nn.batch_norm %x, %c, %c, %c, %c eps 1.0e-5 : (tensor<1x4x8x8xf32>, tensor<4xf32>, tensor<4xf32>, tensor<4xf32>, tensor<4xf32>) -> tensor<1x4x8x8xf32>
  // CHECK-NEXT: nn.layer_norm %x, %x axis 3 eps 1.0e-12 : (tensor<1x4x8x8xf32>, tensor<1x4x8x8xf32>) -> tensor<1x4x8x8xf32>
  %6 = nn.layer_norm %x, %x axis 3 eps 1.0e-12 : (tensor<1x4x8x8xf32>, tensor<1x4x8x8xf32>) -> tensor<1x4x8x8xf32>
  // CHECK-NEXT: nn.softmax %x axis 1 : (tensor<1x4x8x8xf32>) -> tensor<1x4x8x8xf32>
  %7 = nn.softmax %x axis 1 : (tensor<1x4x8x8xf32>) -> tensor<1x4x8x8xf32>
  // CHECK-NEXT: nn.reduce_mean %x axes [2, 3] keepdims : (tensor<1x4x8x8xf32>) -> tensor<1x4x1x1xf32>
  %8 = nn.reduce_mean %x axes [2, 3] keepdims : (tensor<1x4x8x8xf32>) -> tensor<1x4x1x1xf32>
  // CHECK-NEXT: nn.reduce_sum %x axes [1] : (tensor<1x4x8x8xf32>) -> tensor<1x8x8xf32>
  %9 = nn.reduce_sum %x axes [1] : (tensor<1x4x8x8xf32>) -> tensor<1x8x8xf32>
  // CHECK-NEXT: nn.reduce_max %x axes [1] : (tensor<1x4x8x8xf32>) -> tensor<1x8x8xf32>
  %10 = nn.reduce_max %x axes [1] : (tensor<1x4x8x8xf32>) -> tensor<1x8x8xf32>
  // CHECK-NEXT: nn.reduce_min %x axes [1] : (tensor<1x4x8x8xf32>) -> tensor<1x8x8xf32>
  %11 = nn.reduce_min %x axes [1] : (tensor<1x4x8x8xf32>) -> tensor<1x8x8xf32>
  // CHECK-NEXT: nn.reduce_prod %x axes [1] : (tensor<1x4x8x8xf32>) -> tensor<1x8x8xf32>
  %12 = nn.reduce_prod %x axes [1] : (tensor<1x4x8x8xf32>) -> tensor<1x8x8xf32>
  // CHECK-NEXT: nn.arg_max %x axis 1 keepdims : (tensor<1x4x8x8xf32>) -> tensor<1x1x8x8xi64>
  %13 = nn.arg_max %x axis 1 keepdims : (tensor<1x4x8x8xf32>) -> tensor<1x1x8x8xi64>
  func.return
}

// Result types follow from the operands: f32 from any float, the broadcast shape, i1 from a comparison.
// CHECK-LABEL: func.func @elementwise
func.func @elementwise(%x: tensor<4x1xbf16>, %y: tensor<3xf32>, %i: tensor<4xi64>, %p: tensor<4x3xi1>) -> (tensor<4x3xf32>, tensor<4xi64>, tensor<4x3xi1>) {
  // CHECK-NEXT: %[[A:.*]] = nn.add %x, %y : tensor<4x1xbf16>, tensor<3xf32>
  %0 = nn.add %x, %y : tensor<4x1xbf16>, tensor<3xf32>
  // CHECK-NEXT: nn.leaky_relu %[[A]] alpha 0.1 : tensor<4x3xf32>
  %1 = nn.leaky_relu %0 alpha 0.1 : tensor<4x3xf32>
  // CHECK-NEXT: nn.clip %{{.*}} lo 0.0 hi 6.0 : tensor<4x3xf32>
  %2 = nn.clip %1 lo 0.0 hi 6.0 : tensor<4x3xf32>
  // CHECK-NEXT: nn.clip %{{.*}} hi 3.0 : tensor<4x3xf32>
  %3 = nn.clip %2 hi 3.0 : tensor<4x3xf32>
  // CHECK-NEXT: %[[N:.*]] = nn.neg %i : tensor<4xi64>
  %4 = nn.neg %i : tensor<4xi64>
  // CHECK-NEXT: %[[L:.*]] = nn.less %{{.*}}, %x : tensor<4x3xf32>, tensor<4x1xbf16>
  %5 = nn.less %3, %x : tensor<4x3xf32>, tensor<4x1xbf16>
  // CHECK-NEXT: %[[O:.*]] = nn.or %[[L]], %p : tensor<4x3xi1>, tensor<4x3xi1>
  %6 = nn.or %5, %p : tensor<4x3xi1>, tensor<4x3xi1>
  // CHECK-NEXT: %[[R:.*]] = nn.relu %x : tensor<4x1xbf16>
  %7 = nn.relu %x : tensor<4x1xbf16>
  // CHECK-NEXT: %[[S:.*]] = nn.sub %[[A]], %[[R]] : tensor<4x3xf32>, tensor<4x1xf32>
  %8 = nn.sub %0, %7 : tensor<4x3xf32>, tensor<4x1xf32>
  // CHECK-NEXT: func.return %[[S]], %[[N]], %[[O]]
  func.return %8, %4, %6 : tensor<4x3xf32>, tensor<4xi64>, tensor<4x3xi1>
}

// CHECK-LABEL: func.func @group
func.func @group(%x: tensor<2x3xf32>, %w: tensor<3x4xf32>) -> tensor<2x4xf32> {
  // CHECK-NEXT: %[[F:.*]] = nn.fused "matmul" (%x, %w) {
  // CHECK-NEXT: ^bb{{.*}}(%[[A:.*]]: tensor<2x3xf32>, %[[B:.*]]: tensor<3x4xf32>):
  // CHECK-NEXT:   %[[M:.*]] = nn.matmul %[[A]], %[[B]] : (tensor<2x3xf32>, tensor<3x4xf32>) -> tensor<2x4xf32>
  // CHECK-NEXT:   %[[R:.*]] = nn.relu %[[M]] : tensor<2x4xf32>
  // CHECK-NEXT:   nn.yield %[[R]] : tensor<2x4xf32>
  // CHECK-NEXT: } : (tensor<2x3xf32>, tensor<3x4xf32>) -> tensor<2x4xf32>
  %0 = nn.fused "matmul" (%x, %w) {
  ^bb0(%a: tensor<2x3xf32>, %b: tensor<3x4xf32>):
    %m = nn.matmul %a, %b : (tensor<2x3xf32>, tensor<3x4xf32>) -> tensor<2x4xf32>
    %r = nn.relu %m : tensor<2x4xf32>
    nn.yield %r : tensor<2x4xf32>
  } : (tensor<2x3xf32>, tensor<3x4xf32>) -> tensor<2x4xf32>
  // CHECK-NEXT: func.return %[[F]]
  func.return %0 : tensor<2x4xf32>
}

// CHECK-LABEL: func.func @unfold
func.func @unfold(%x: tensor<1x3x8x8xbf16>) -> (tensor<1x42x4x5xbf16>, tensor<1x6x7x8xbf16>) {
  // CHECK-NEXT: nn.unfold %x kernel [7, 2] strides [2, 2] pads [3, 1, 3, 1] : (tensor<1x3x8x8xbf16>) -> tensor<1x42x4x5xbf16>
  %0 = nn.unfold %x kernel [7, 2] strides [2, 2] pads [3, 1, 3, 1] : (tensor<1x3x8x8xbf16>) -> tensor<1x42x4x5xbf16>
  // CHECK-NEXT: nn.unfold %x kernel [2, 1] : (tensor<1x3x8x8xbf16>) -> tensor<1x6x7x8xbf16>
  %1 = nn.unfold %x kernel [2, 1] : (tensor<1x3x8x8xbf16>) -> tensor<1x6x7x8xbf16>
  func.return %0, %1 : tensor<1x42x4x5xbf16>, tensor<1x6x7x8xbf16>
}
