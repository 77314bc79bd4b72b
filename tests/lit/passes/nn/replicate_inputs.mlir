// RUN: neuron-opt %s -p nn-replicate-inputs --split-input-file --print-debuginfo | filecheck %s
// RUN: neuron-opt %s -p nn-replicate-inputs,nn-fuse,nn-cast --split-input-file | filecheck %s --check-prefix=CAST
// RUN: neuron-opt %s -p nn-replicate-inputs{gain=40} --split-input-file | filecheck %s --check-prefix=GAIN
// RUN: neuron-opt %s -p nn-replicate-inputs{cores=16} --split-input-file | filecheck %s --check-prefix=CORES

// Stride 2: pairs of columns become channels, and the 7 columns of the window are 4 taps (with a column of zeros).
// CHECK-LABEL: func.func @stem
// CHECK-NEXT: %[[W:.*]] = nn.const {
// CHECK:        nn.pad %{{.*}} high [0, 0, 0, 1]
// CHECK:        nn.transpose %{{.*}} perm [0, 1, 2, 4, 3]
// CHECK:      } : tensor<64x42x1x4xf32>
// CHECK-NEXT: %[[U:.*]] = nn.unfold %x kernel [7, 2] strides [2, 2] pads [3, 3, 2, 3] : {{.*}} -> tensor<1x42x112x115xf32> loc("conv1")
// CHECK-NEXT: nn.conv %[[U]], %[[W]] : {{.*}} loc("conv1")
// Rounded before it is copied.
// CAST-LABEL: func.func @stem
// CAST: nn.fused "conv"
// CAST: %[[C:.*]] = nn.cast %{{.*}} : (tensor<1x3x224x224xf32>) -> tensor<1x3x224x224xbf16>
// CAST: %[[V:.*]] = nn.unfold %[[C]]
// CAST: nn.conv %[[V]]
// GAIN-LABEL: func.func @stem
// GAIN-NOT: nn.unfold
func.func @stem(%x: tensor<1x3x224x224xf32>) -> tensor<1x64x112x112xf32> {
  %w = nn.weight "w" : tensor<64x3x7x7xf32>
  %0 = nn.conv %x, %w strides [2, 2] pads [3, 3, 3, 3] : (tensor<1x3x224x224xf32>, tensor<64x3x7x7xf32>) -> tensor<1x64x112x112xf32> loc("conv1")
  func.return %0 : tensor<1x64x112x112xf32>
}

// -----

// Stride 1: two of three rows, since all three would take longer to copy than to multiply. The taps left are two rows
// apart. The bias stays. A stage for itself also sends the result, 6 MB: with DMA that busy, fewer copies are cheaper.
// CHECK-LABEL: func.func @vgg
// CHECK: nn.unfold %x kernel [2, 3] pads [1, 1, 2, 1] : {{.*}} -> tensor<1x18x226x224xf32>
// CHECK: nn.conv %{{.*}}, %{{.*}}, %b dilations [2, 1] : (tensor<1x18x226x224xf32>, tensor<64x18x2x1xf32>, tensor<64xf32>)
// CORES-LABEL: func.func @vgg
// CORES: nn.unfold %x kernel [1, 2]
func.func @vgg(%x: tensor<1x3x224x224xf32>) -> tensor<1x64x224x224xf32> {
  %w = nn.weight "w" : tensor<64x3x3x3xf32>
  %b = nn.weight "b" : tensor<64xf32>
  %0 = nn.conv %x, %w, %b pads [1, 1, 1, 1] : (tensor<1x3x224x224xf32>, tensor<64x3x3x3xf32>, tensor<64xf32>) -> tensor<1x64x224x224xf32>
  func.return %0 : tensor<1x64x224x224xf32>
}

// -----

// Deep enough as it is; groups; a window of one element; a weight that is computed.
// CHECK-LABEL: func.func @not
// CHECK-NOT: nn.unfold
func.func @not(%x: tensor<1x64x56x56xf32>, %y: tensor<1x3x56x56xf32>, %v: tensor<4x3x3x3xf32>)
    -> (tensor<1x64x54x54xf32>, tensor<1x3x54x54xf32>, tensor<1x64x56x56xf32>, tensor<1x4x54x54xf32>) {
  %w = nn.weight "w" : tensor<64x64x3x3xf32>
  %0 = nn.conv %x, %w : (tensor<1x64x56x56xf32>, tensor<64x64x3x3xf32>) -> tensor<1x64x54x54xf32>
  %d = nn.weight "d" : tensor<3x1x3x3xf32>
  %1 = nn.conv %y, %d group 3 : (tensor<1x3x56x56xf32>, tensor<3x1x3x3xf32>) -> tensor<1x3x54x54xf32>
  %p = nn.weight "p" : tensor<64x3x1x1xf32>
  %2 = nn.conv %y, %p : (tensor<1x3x56x56xf32>, tensor<64x3x1x1xf32>) -> tensor<1x64x56x56xf32>
  %3 = nn.conv %y, %v : (tensor<1x3x56x56xf32>, tensor<4x3x3x3xf32>) -> tensor<1x4x54x54xf32>
  func.return %0, %1, %2, %3 : tensor<1x64x54x54xf32>, tensor<1x3x54x54xf32>, tensor<1x64x56x56xf32>, tensor<1x4x54x54xf32>
}
