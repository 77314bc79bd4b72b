// RUN: neuron-opt %s -p 'pipe-stage{cores=1},core-lower' --split-input-file --verify-diagnostics | filecheck %s


// A convolution: taps and channel tiles sum in PSUM, 64 outputs by 10 rows at a time; bias and activation on the way out. The weight is
// re-laid in a constant and stays in SBUF; the input gets its padding when it is loaded.
// CHECK-LABEL: pipe.program @conv
// CHECK: core.const "w"
// CHECK: } : memref<4x128x2x9x64xbf16, #core.dram>
// CHECK: %[[W:.*]] = core.alloc "w" : memref<128x4x2x9x64xbf16, #core.sbuf>
// CHECK: pipe.load
// CHECK-NEXT: affine.for %[[B:.*]] = 0 to 4
// CHECK-NEXT: core.dma %{{.*}}[%[[B]], 0, 0, 0, 0] [1, 128, 2, 9, 64] -> %[[W]][0, %[[B]], 0, 0, 0] [128, 1, 2, 9, 64] queue 2
// CHECK: pipe.run
// CHECK: %[[X:.*]] = core.alloc "x" : memref<128x2x32x42xbf16, #core.sbuf>
// CHECK: core.memset %[[X]]
// CHECK: core.dma %{{.*}} -> %[[X]][0, 0, 1, 1] [128, 1, 30, 40] queue 0
// CHECK: affine.for %[[HALF:.*]] = 0 to 2
// CHECK-NEXT: affine.for %[[ROWS:.*]] = 0 to 3
// CHECK-NEXT: %[[ACC:.*]] = core.alloc "acc" : memref<64x1x10x40xf32, #core.psum>
// CHECK-NEXT: affine.for %[[I:.*]] = 0 to 3
// CHECK-NEXT: affine.for %[[J:.*]] = 0 to 3
// CHECK-NEXT: core.matmul %[[ACC]], %[[W]][0, %[[HALF]], 0, %[[I]] * 3 + %[[J]], 0] [128, 1, 1, 1, 64], %[[X]][0, 0, %[[ROWS]] * 10 + %[[I]], %[[J]]] [128, 1, 10, 40] init %[[I]] * 3 + %[[J]]
// CHECK: core.matmul %[[ACC]], %[[W]]{{.*}} [22, 1, 1, 1, 64], %[[X]]{{.*}} [22, 1, 10, 40] init 1
// CHECK: core.activation relu %{{.*}}[%[[HALF]] * 64, 0, %[[ROWS]] * 10, 0] [64, 1, 10, 40], %[[ACC]] bias %{{.*}}[%[[HALF]] * 64, 0] [64, 1]
// CHECK: [8, 1, 10, 40], %{{.*}} bias %{{.*}}[64, 1] [8, 1]
// CHECK-NOT: nn.conv
func.func @conv(%x: tensor<1x150x30x40xbf16>) -> tensor<1x200x30x40xbf16> {
  %w = nn.weight "w" seeded<1> : tensor<200x150x3x3xbf16>
  %b = nn.weight "b" seeded<2> : tensor<200xf32>
  %0 = nn.fused "conv" (%x, %w, %b) {
  ^bb0(%ix: tensor<1x150x30x40xbf16>, %iw: tensor<200x150x3x3xbf16>, %ib: tensor<200xf32>):
    %c = nn.conv %ix, %iw, %ib pads [1, 1, 1, 1] : (tensor<1x150x30x40xbf16>, tensor<200x150x3x3xbf16>, tensor<200xf32>) -> tensor<1x200x30x40xf32>
    %r = nn.relu %c : tensor<1x200x30x40xf32>
    %n = nn.cast %r : (tensor<1x200x30x40xf32>) -> tensor<1x200x30x40xbf16>
    nn.yield %n : tensor<1x200x30x40xbf16>
  } : (tensor<1x150x30x40xbf16>, tensor<200x150x3x3xbf16>, tensor<200xf32>) -> tensor<1x200x30x40xbf16>
  func.return %0 : tensor<1x200x30x40xbf16>
}

// -----

// Windows of a maximum find minus infinity in the padding, those of a mean 0 and a scale of their own: two copies of the input.
// CHECK-LABEL: pipe.program @pool
// CHECK: %[[S:.*]] = core.alloc "scale" : memref<128x1x7x7xf32, #core.sbuf>
// CHECK: core.dma %{{.*}}[0, 0, 0, 0] [1, 128, 7, 7] [1, 0, 1, 1] -> %[[S]]
// CHECK: %[[X:.*]] = core.alloc "x" : memref<128x2x9x9xbf16, #core.sbuf>
// CHECK: core.memset %[[X]][0, 0, 0, 0] [128, 1, 1, 9], -inf
// CHECK: core.memset %[[M:.*]][0, 0, 0, 0] [128, 1, 4, 4], -inf
// CHECK: core.tensor_tensor max %[[M]]{{.*}}, %[[X]][0, 0, %{{.*}}, %{{.*}}] [128, 1, 4, 4] [1, 1, 2, 2]
// CHECK: core.copy %[[Z:.*]][0, 0, 1, 1] [128, 1, 7, 7], %[[X]][0, 0, 1, 1] [128, 1, 7, 7]
// CHECK: core.tensor_tensor add %[[A:.*]], %[[A]], %[[Z]]
// CHECK: core.tensor_tensor mul %{{.*}}, %[[A]], %[[S]]
func.func @pool(%x: tensor<1x130x7x7xbf16>) -> (tensor<1x130x4x4xbf16>, tensor<1x130x7x7xf32>) {
  %0 = nn.max_pool %x kernel [3, 3] strides [2, 2] pads [1, 1, 1, 1] : (tensor<1x130x7x7xbf16>) -> tensor<1x130x4x4xbf16>
  %1 = nn.avg_pool %x kernel [3, 3] pads [1, 1, 1, 1] : (tensor<1x130x7x7xbf16>) -> tensor<1x130x7x7xf32>
  func.return %0, %1 : tensor<1x130x4x4xbf16>, tensor<1x130x7x7xf32>
}

// -----

// A product with outputs on the partitions: the weight is stationary. Rows of the input are loaded whole and turned by the PE array; so are
// those of the result.
// CHECK-LABEL: pipe.program @dense
// CHECK: core.dma %{{.*}}[%r mod 2, 0, 0] [1, 70, 300] -> %[[ROWS:.*]] queue 0
// CHECK: core.transpose %[[T:.*]], %[[ROWS]][0, 0, %[[I:.*]] * 128] [70, 1, 64]
// CHECK-NEXT: core.copy %[[X:.*]][0, %[[I]], 0] [64, 1, 70], %[[T]]
// CHECK: core.matmul %{{.*}}, %{{.*}} [128, 1, 1, 1, 64], %[[X]][0, %[[K:.*]], 0] [128, 1, 70] init %[[K]]
// CHECK: core.transpose
// CHECK: core.dma %{{.*}} -> %{{.*}}[%r mod 2, 0, 0] [1, 70, 130] queue 1
func.func @dense(%x: tensor<70x300xbf16>) -> tensor<70x130xbf16> {
  %w = nn.weight "w" seeded<1> : tensor<300x130xbf16>
  %0 = nn.matmul %x, %w : (tensor<70x300xbf16>, tensor<300x130xbf16>) -> tensor<70x130xf32>
  %1 = nn.cast %0 : (tensor<70x130xf32>) -> tensor<70x130xbf16>
  func.return %1 : tensor<70x130xbf16>
}

// -----

// What a softmax wants is rows on the partitions: then 64 rows of the input are stationary and 512 columns of the weight move.
// CHECK-LABEL: pipe.program @rows
// CHECK: core.matmul %[[ACC:.*]], %{{.*}}[0, %[[K:.*]], 0] [128, 1, 64], %{{.*}}[0, %[[K]], 0, 0] [128, 1, 1, 512] init %[[K]]
// CHECK: core.copy %[[Y:.*]][0, 0, 0] [64, 1, 512], %[[ACC]]
// CHECK: core.tensor_reduce max %[[MAX:.*]], %[[Y]]
// CHECK: core.tensor_scalar %[[MAX]], %[[MAX]] op0 mul -1.0
// CHECK: core.activation exp %[[EXP:.*]], %[[Y]] bias %[[MAX]]
// CHECK: core.tensor_reduce add %[[SUM:.*]], %[[EXP]]
// CHECK: core.activation reciprocal %[[SUM]], %[[SUM]]
// CHECK: core.tensor_scalar %{{.*}}, %[[EXP]] operand0 %[[SUM]] op0 mul
func.func @rows(%x: tensor<70x300xbf16>) -> tensor<70x600xf32> {
  %w = nn.weight "w" seeded<1> : tensor<300x600xbf16>
  %0 = nn.matmul %x, %w : (tensor<70x300xbf16>, tensor<300x600xbf16>) -> tensor<70x600xf32>
  %1 = nn.softmax %0 axis 1 : (tensor<70x600xf32>) -> tensor<70x600xf32>
  func.return %1 : tensor<70x600xf32>
}

// -----

// A product of two activations, one head after the other.
// CHECK-LABEL: pipe.program @attention
// CHECK: core.transpose
// CHECK: core.alloc "matmul" : memref<128x1x3x128xf32, #core.sbuf>
// CHECK-NEXT: affine.for %[[H:.*]] = 0 to 3
// CHECK-NEXT: affine.for %[[T:.*]] = 0 to 2
// CHECK-NEXT: core.alloc "acc" : memref<64x128xf32, #core.psum>
// CHECK-NEXT: core.matmul %{{.*}}, %{{.*}}[0, 0, %[[H]], %[[T]] * 64] [64, 1, 1, 64], %{{.*}}[0, 0, %[[H]], 0] [64, 1, 1, 128]
func.func @attention(%q: tensor<1x3x128x64xbf16>, %k: tensor<1x3x64x128xbf16>) -> tensor<1x3x128x128xf32> {
  %0 = nn.matmul %q, %k : (tensor<1x3x128x64xbf16>, tensor<1x3x64x128xbf16>) -> tensor<1x3x128x128xf32>
  func.return %0 : tensor<1x3x128x128xf32>
}

// -----

// Sums are multiplied by the f32 reciprocal of the count, as the nn level does.
// CHECK-LABEL: pipe.program @layer_norm
// CHECK: core.dma %{{.*}} [1, 128, 96] [1, 0, 1] -> %[[SCALE:.*]] queue 0
// CHECK: core.tensor_reduce add %[[MEAN:.*]], %[[X:.*]]
// CHECK-NEXT: core.tensor_scalar %[[MEAN]], %[[MEAN]] op0 mul 0.010416666977107525
// CHECK-NEXT: core.tensor_scalar %[[C:.*]], %[[X]] operand0 %[[MEAN]] op0 sub
// CHECK-NEXT: core.activation square %[[Q:.*]], %[[C]]
// CHECK-NEXT: core.tensor_reduce add %[[VAR:.*]], %[[Q]]
// CHECK-NEXT: core.tensor_scalar %[[VAR]], %[[VAR]] op0 mul 0.010416666977107525 op1 add
// CHECK-NEXT: core.activation rsqrt %[[VAR]], %[[VAR]]
// CHECK-NEXT: core.tensor_scalar %[[C]], %[[C]] operand0 %[[VAR]] op0 mul
// CHECK-NEXT: core.tensor_tensor mul %{{.*}}, %[[C]], %[[SCALE]]
func.func @layer_norm(%x: tensor<1x128x96xf32>) -> tensor<1x128x96xf32> {
  %s = nn.weight "s" seeded<1> : tensor<96xf32>
  %0 = nn.layer_norm %x, %s axis 2 eps 0.00001 : (tensor<1x128x96xf32>, tensor<96xf32>) -> tensor<1x128x96xf32>
  func.return %0 : tensor<1x128x96xf32>
}

// -----

// CHECK-LABEL: pipe.program @gather
// CHECK: core.dma %{{.*}} -> %[[I:.*]] queue 0
// CHECK: core.gather %{{.*}}, %{{.*}}, %[[I]] queue 0
func.func @gather(%x: tensor<1x128xi32>) -> tensor<1x128x24xf32> {
  %t = nn.weight "t" seeded<1> : tensor<50x24xf32>
  %0 = nn.gather %t, %x axis 0 : (tensor<50x24xf32>, tensor<1x128xi32>) -> tensor<1x128x24xf32>
  func.return %0 : tensor<1x128x24xf32>
}

// -----

// An input that begins on a quadrant of the partitions is copied by an engine; runs across tiles are two DMAs a tile, in a loop.
// CHECK-LABEL: pipe.program @concat
// CHECK: %[[Y:.*]] = core.alloc "concat"
// CHECK-NEXT: core.copy %[[Y]][0, 0, 0, 0] [32, 1, 4, 4], %{{.*}}
// CHECK-NEXT: affine.for %[[T:.*]] = 0 to 2
// CHECK-NEXT: core.dma %[[B:.*]][0, %[[T]], 0, 0] [96, 1, 4, 4] -> %[[Y]][32, %[[T]], 0, 0] [96, 1, 4, 4] queue 1
// CHECK-NEXT: core.dma %[[B]][96, %[[T]], 0, 0] [32, 1, 4, 4] -> %[[Y]][0, %[[T]] + 1, 0, 0] [32, 1, 4, 4] queue 1
func.func @concat(%x: tensor<1x32x4x4xbf16>, %y: tensor<1x300x4x4xbf16>) -> tensor<1x332x4x4xbf16> {
  %a = nn.relu %x : tensor<1x32x4x4xbf16>
  %b = nn.relu %y : tensor<1x300x4x4xbf16>
  %0 = nn.concat %a, %b axis 1 : (tensor<1x32x4x4xf32>, tensor<1x300x4x4xf32>) -> tensor<1x332x4x4xf32>
  %1 = nn.cast %0 : (tensor<1x332x4x4xf32>) -> tensor<1x332x4x4xbf16>
  func.return %1 : tensor<1x332x4x4xbf16>
}

// -----

// A slice of whole tiles costs nothing; one with steps over channels goes through DRAM.
// CHECK-LABEL: pipe.program @slice
// CHECK: %[[Y:.*]] = core.alloc "relu" : memref<128x3x4x4xf32, #core.sbuf>
// CHECK: core.dma %[[Y]]{{.*}} -> %[[D:.*]][0, %{{.*}} * 128, 0, 0] [1, 128, 4, 4] queue 1
// CHECK: core.dma %[[D]][0, 1, 0, 0] [1, 128, 4, 2] [1, 2, 1, 2] -> %{{.*}} [128, 1, 4, 2] queue 1
// CHECK: core.dma %[[Y]][0, 0, 0, 0] [128, 1, 4, 4] -> %{{.*}}[%r mod 2, 0, 0, 0, 0] [1, 1, 128, 4, 4] queue 1
func.func @slice(%x: tensor<1x300x4x4xf32>) -> (tensor<1x128x4x4xf32>, tensor<1x150x4x2xf32>) {
  %0 = nn.relu %x : tensor<1x300x4x4xf32>
  %1 = nn.slice %0 starts [0, 0, 0, 0] sizes [1, 128, 4, 4] strides [1, 1, 1, 1] : (tensor<1x300x4x4xf32>) -> tensor<1x128x4x4xf32>
  %2 = nn.slice %0 starts [0, 1, 0, 0] sizes [1, 150, 4, 2] strides [1, 2, 1, 2] : (tensor<1x300x4x4xf32>) -> tensor<1x150x4x2xf32>
  func.return %1, %2 : tensor<1x128x4x4xf32>, tensor<1x150x4x2xf32>
}

// -----

// CHECK-LABEL: pipe.program @reduce
// CHECK: core.tensor_reduce add %[[S:.*]], %{{.*}}[0, 0, 0, 0] [128, 1, 7, 7]
// CHECK-NEXT: core.tensor_scalar %{{.*}}[0, 0] [128, 1], %[[S]] op0 mul 0.020408162847161293
func.func @reduce(%x: tensor<1x200x7x7xf32>) -> tensor<1x200xf32> {
  %0 = nn.reduce_mean %x axes [2, 3] : (tensor<1x200x7x7xf32>) -> tensor<1x200xf32>
  func.return %0 : tensor<1x200xf32>
}

// -----

// Feature maps too large for SBUF: padded once in DRAM, then tiles of rows in, compute, tiles of rows out.
// CHECK-LABEL: pipe.program @large
// CHECK: %[[P:.*]] = core.alloc "padded" : memref<1x8x152x152xbf16, #core.dram>
// CHECK: pipe.load
// CHECK: core.dma %{{.*}} [1, 1, 1, 1, 1, 1, 8, 152] [1, 1, 1, 1, 1, 1, 0, 0] -> %[[P]][0, 0, 0, 0] [1, 8, 1, 152] queue 0
// CHECK: pipe.run
// CHECK-NEXT: core.dma %{{.*}} -> %[[P]][0, 0, 1, 1] [1, 8, 150, 150] queue 1
// CHECK-NEXT: affine.for %[[T:.*]] = 0 to 8
// CHECK-NEXT: %[[IN:.*]] = core.alloc "rows" : memref<8x1x19x152xbf16, #core.sbuf>
// CHECK-NEXT: core.dma %[[P]][0, 0, %[[T]] * 17, 0] [1, 8, 19, 152] -> %[[IN]] queue 0
// CHECK: core.dma %{{.*}} -> %[[Y:.*]][0, 0, %[[T]] * 17, 0] [1, 8, 17, 150] queue 1
// CHECK: core.dma %[[Y]][0, 0, %{{.*}} * 17, 0] [1, 8, 17, 150] -> %[[R:.*]] queue 0
// CHECK: core.activation relu %{{.*}}, %[[R]]
func.func @large(%x: tensor<1x8x150x150xbf16>) -> tensor<1x8x150x150xf32> {
  %w = nn.weight "w" seeded<1> : tensor<8x8x3x3xbf16>
  %0 = nn.conv %x, %w pads [1, 1, 1, 1] : (tensor<1x8x150x150xbf16>, tensor<8x8x3x3xbf16>) -> tensor<1x8x150x150xf32>
  %1 = nn.relu %0 : tensor<1x8x150x150xf32>
  func.return %1 : tensor<1x8x150x150xf32>
}

// -----

// Weights larger than SBUF are read for every request, a block of 64 outputs at a time.
// CHECK-LABEL: pipe.program @streamed
// CHECK: pipe.load
// CHECK-NEXT: }
// CHECK: affine.for %[[T:.*]] = 0 to 32
// CHECK-NEXT: affine.for %[[HALF:.*]] = 0 to 2
// CHECK-NEXT: %[[W:.*]] = core.alloc "weights" : memref<128x196x1x64xbf16, #core.sbuf>
// CHECK-NEXT: core.dma %{{.*}}[%[[T]] * 2 + %[[HALF]], 0, 0, 0, 0] [1, 128, 196, 1, 64] -> %[[W]] queue 2
// CHECK: core.matmul %{{.*}}, %[[W]][0, %[[K:.*]], 0, 0] [128, 1, 1, 64], %{{.*}}[0, %[[K]]] [128, 1] init %[[K]]
func.func @streamed(%x: tensor<1x25088xbf16>) -> tensor<1x1000xf32> {
  %w = nn.weight "w" seeded<1> : tensor<25088x4096xbf16>
  %v = nn.weight "v" seeded<1> : tensor<4096x1000xbf16>
  %0 = nn.matmul %x, %w : (tensor<1x25088xbf16>, tensor<25088x4096xbf16>) -> tensor<1x4096xf32>
  %1 = nn.cast %0 : (tensor<1x4096xf32>) -> tensor<1x4096xbf16>
  %2 = nn.matmul %1, %v : (tensor<1x4096xbf16>, tensor<4096x1000xbf16>) -> tensor<1x1000xf32>
  func.return %2 : tensor<1x1000xf32>
}

// -----

// What the device has no code for.
// CHECK: no lowering for nn.arg_max on the device [at 'nn.arg_max']; try:
func.func @arg_max(%x: tensor<3x40xf32>) -> tensor<3xi64> {
  %0 = nn.arg_max %x axis 1 : (tensor<3x40xf32>) -> tensor<3xi64>
  func.return %0 : tensor<3xi64>
}

// -----

// CHECK: the PE array has no f32 product (left operand of nn.matmul) [at 'nn.matmul'] (needs bf16 or f16, has f32); try: run nn-cast{mode=all}
func.func @f32_product(%x: tensor<3x40xf32>) -> tensor<3x20xf32> {
  %w = nn.weight "w" seeded<1> : tensor<40x20xf32>
  %0 = nn.matmul %x, %w : (tensor<3x40xf32>, tensor<40x20xf32>) -> tensor<3x20xf32>
  func.return %0 : tensor<3x20xf32>
}

// -----

// A transposed convolution whose kernel is its stride: one product for each place of a block, results two apart.
// CHECK-LABEL: pipe.program @up
// CHECK: %[[W:[0-9]+]] = core.alloc "w" : memref<8x4x1x1x64xbf16, #core.sbuf>
// CHECK: affine.for %[[I:[0-9]+]] = 0 to 2 {
// CHECK-NEXT: affine.for %[[J:[0-9]+]] = 0 to 2 {
// CHECK: core.matmul %{{.*}}, %[[W]][0, %[[I]] * 2 + %[[J]], 0, 0, 0] [8, 1, 1, 1, 16],
// CHECK: core.copy %{{.*}}[0, 0, %[[I]], %[[J]]] [16, 1, 6, 6] [1, 1, 2, 2], %{{.*}}
func.func @up(%x: tensor<1x8x6x6xbf16>) -> tensor<1x16x12x12xf32> {
  %w = nn.weight "w" : tensor<8x16x2x2xbf16>
  %y = nn.conv_transpose %x, %w strides [2, 2] : (tensor<1x8x6x6xbf16>, tensor<8x16x2x2xbf16>) -> tensor<1x16x12x12xf32>
  func.return %y : tensor<1x16x12x12xf32>
}

// -----

// CHECK-LABEL: pipe.program @larger
// CHECK: affine.for %[[I:[0-9]+]] = 0 to 3 {
// CHECK-NEXT: affine.for %[[J:[0-9]+]] = 0 to 2 {
// CHECK: core.copy %{{.*}}[0, 0, %[[I]], %[[J]]] [8, 1, 6, 6] [1, 1, 3, 2], %{{.*}}
func.func @larger(%x: tensor<1x8x6x6xbf16>) -> tensor<1x8x18x12xbf16> {
  %y = nn.resize %x scales [3, 2] : (tensor<1x8x6x6xbf16>) -> tensor<1x8x18x12xbf16>
  func.return %y : tensor<1x8x18x12xbf16>
}
