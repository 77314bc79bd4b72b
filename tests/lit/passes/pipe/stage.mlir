// RUN: neuron-opt %s -p 'pipe-stage{cores=2}' --split-input-file --print-debuginfo | filecheck %s
// RUN: neuron-opt %s -p 'pipe-stage{cores=auto}' --split-input-file | filecheck %s --check-prefix AUTO
// RUN: neuron-opt %s -p 'pipe-stage{cores=2}' --split-input-file | neuron-opt --split-input-file | filecheck %s --check-prefix AGAIN
// RUN: neuron-opt %s -p 'pipe-stage{cores=auto piece-percent=0}' --split-input-file | filecheck %s --check-prefix WHOLE
// RUN: neuron-opt %s -p 'pipe-stage{cores=2 piece-percent=1}' --split-input-file --print-debuginfo | filecheck %s --check-prefix DIVIDED
// RUN: neuron-opt %s -p 'pipe-stage{cores=2 split=true}' --split-input-file --print-debuginfo | filecheck %s --check-prefix SPLIT

// Two layers, two stages: weights go with their users, names of the interface stay, locations too.
// CHECK: core.machine = "inferentia1"
// CHECK: pipe.program @chain
// CHECK-SAME: bottleneck = "DRAM of chip 0"
// CHECK-SAME: certificate = #pipe.certificate<{{.*}}, "ps", "interval DP
// CHECK-SAME: reason = "2 cores: as asked for"
// CHECK: %[[X:.*]] = pipe.input "data" : !pipe.stream<tensor<128x128xbf16>>
// CHECK: %[[A:.*]] = pipe.stage @s0 cores [0] (%[[X]])
// CHECK-NEXT: ^bb0(%[[X0:.*]]: tensor<128x128xbf16>
// CHECK-NEXT: %[[W1:.*]] = nn.weight "w1"
// CHECK-NEXT: nn.matmul %[[X0]], %[[W1]] {{.*}} loc("first")
// CHECK-NEXT: pipe.yield
// CHECK: %[[B:.*]] = pipe.stage @s1 cores [1] (%[[A]])
// CHECK: nn.weight "w2"
// CHECK: nn.matmul {{.*}} loc("second")
// CHECK: pipe.output "prob", %[[B]]

// AUTO: pipe.program @chain
// AUTO-SAME: reason = "1 core: the fewest whose SBUF holds all weights; weights take 512 bytes per partition, a core has 98304 for them and for activations"
// AUTO-SAME: fewest_cores = #pipe.certificate<1.0, 1.0, "cores", "fewest in the program's order; bytes in any">
// AUTO: cores [0]
// AUTO-NOT: cores [1]

// AGAIN: pipe.program @chain
func.func @chain(%x: tensor<128x128xbf16> {nn.name = "data"}) -> (tensor<128x128xf32> {nn.name = "prob"}) {
  %w1 = nn.weight "w1" seeded<1> : tensor<128x128xbf16>
  %w2 = nn.weight "w2" seeded<2> : tensor<128x128xbf16>
  %a = nn.matmul %x, %w1 : (tensor<128x128xbf16>, tensor<128x128xbf16>) -> tensor<128x128xf32> loc("first")
  %b = nn.matmul %a, %w2 : (tensor<128x128xf32>, tensor<128x128xbf16>) -> tensor<128x128xf32> loc("second")
  func.return %b : tensor<128x128xf32>
}

// -----

// One weight used in two stages is written in both; an input and a value of the first stage feed the second directly; a reshape stays
// with what it reshapes; an input may be an output.
// CHECK: pipe.program @shared
// CHECK: %[[X:.*]] = pipe.input "arg0"
// CHECK: %[[A:.*]], %[[FLAT:.*]] = pipe.stage @s0 cores [0] (%[[X]])
// CHECK: nn.weight "w"
// CHECK: nn.matmul
// CHECK: nn.relu
// CHECK: nn.reshape
// CHECK: pipe.yield %{{.*}}, %{{.*}} : tensor<128x2048xf32>, tensor<262144xf32>
// CHECK: %[[C:.*]] = pipe.stage @s1 cores [1] (%[[A]], %[[X]])
// CHECK: nn.weight "w"
// CHECK: nn.add
// CHECK: pipe.yield
// CHECK: pipe.output "out0", %[[C]]
// CHECK: pipe.output "out1", %[[FLAT]]
// CHECK: pipe.output "out2", %[[X]]

// AUTO: pipe.program @shared
// AUTO: cores [0]

// AGAIN: pipe.program @shared
func.func @shared(%x: tensor<128x2048xf32>) -> (tensor<128x2048xf32>, tensor<262144xf32>, tensor<128x2048xf32>) {
  %w = nn.weight "w" splat<0.5> : tensor<2048x2048xf32>
  %a = nn.matmul %x, %w : (tensor<128x2048xf32>, tensor<2048x2048xf32>) -> tensor<128x2048xf32>
  %r = nn.relu %a : tensor<128x2048xf32>
  %flat = nn.reshape %r : (tensor<128x2048xf32>) -> tensor<262144xf32>
  %b = nn.matmul %a, %w : (tensor<128x2048xf32>, tensor<2048x2048xf32>) -> tensor<128x2048xf32>
  %c = nn.add %b, %x : tensor<128x2048xf32>, tensor<128x2048xf32>
  func.return %c, %flat, %x : tensor<128x2048xf32>, tensor<262144xf32>, tensor<128x2048xf32>
}

// -----

// Weights that no core has room for are divided; with whole layers they are streamed, and the program says so.
// CHECK: pipe.program @large
// CHECK: nn.slice %{{.*}} starts [0, 0] sizes [2048, 2304]
// CHECK: nn.concat
// AUTO: pipe.program @large
// AUTO-SAME: reason = "2 cores: the fewest whose SBUF holds all weights; weights take 147456 bytes
// WHOLE: pipe.program @large
// WHOLE-SAME: reason = "2 cores: no number of cores holds all weights, for 'big' alone takes 131072 bytes per partition, and {{[0-9]+}} beside them for values; weights take
// WHOLE: streamed_bytes =
func.func @large(%x: tensor<1x2048xbf16>) -> tensor<1x4096xf32> {
  %w1 = nn.weight "w1" seeded<1> : tensor<2048x4096xbf16>
  %w2 = nn.weight "w2" seeded<2> : tensor<4096x128xbf16>
  %w3 = nn.const {
    %0 = nn.weight "w3" seeded<3> : tensor<128x4096xf32>
    %1 = nn.cast %0 : (tensor<128x4096xf32>) -> tensor<128x4096xbf16>
    nn.yield %1 : tensor<128x4096xbf16>
  } : tensor<128x4096xbf16>
  %a = nn.matmul %x, %w1 : (tensor<1x2048xbf16>, tensor<2048x4096xbf16>) -> tensor<1x4096xf32> loc("big")
  %b = nn.matmul %a, %w2 : (tensor<1x4096xf32>, tensor<4096x128xbf16>) -> tensor<1x128xf32>
  %c = nn.matmul %b, %w3 : (tensor<1x128xf32>, tensor<128x4096xbf16>) -> tensor<1x4096xf32>
  func.return %c : tensor<1x4096xf32>
}

// -----

// With more cores than layers a layer is divided: each stage makes some output channels, and who reads all of them puts them together.
// DIVIDED: pipe.program @divided
// DIVIDED: %[[A:.*]] = pipe.stage @s0 cores [0]
// DIVIDED: nn.slice %{{.*}} starts [0, 0] sizes [512, 256]
// DIVIDED: nn.matmul {{.*}} -> tensor<4x256xf32> loc("product")
// DIVIDED: %[[B:.*]] = pipe.stage @s1 cores [1] (%x, %[[A]])
// DIVIDED: nn.slice %{{.*}} starts [0, 256] sizes [512, 256]
// DIVIDED: %[[C:.*]] = nn.matmul {{.*}} -> tensor<4x256xf32> loc("product")
// DIVIDED: nn.concat %{{.*}}, %[[C]] axis 1 {{.*}} loc("product")
// DIVIDED: pipe.yield %{{[^,]*}} : tensor<4x512xf32>
func.func @divided(%x: tensor<4x512xbf16> {nn.name = "x"}) -> tensor<4x512xf32> {
  %w = nn.weight "w" seeded<1> : tensor<512x512xbf16>
  %a = nn.matmul %x, %w : (tensor<4x512xbf16>, tensor<512x512xbf16>) -> tensor<4x512xf32> loc("product")
  %b = nn.relu %a : tensor<4x512xf32>
  func.return %b : tensor<4x512xf32>
}

// -----

// A second stage does not help where one layer takes nearly all of the time: it is split over both cores.
// SPLIT: pipe.program @bound
// SPLIT-SAME: reason = "2 cores: as asked for; 1 stage, split over 2 cores"
// SPLIT-SAME: sharding = #pipe.certificate<
// SPLIT-SAME: sharding_reason = "more stages do not help 'large', whose stage takes {{.*}} ps; s0 2 ways by rows: from {{.*}} to {{.*}} ps per request"
// SPLIT: pipe.stage @s0.0 cores [0]
// SPLIT: nn.conv {{.*}} loc("large")
// SPLIT: pipe.stage @s0.1 cores [1]
// SPLIT: nn.conv {{.*}} loc("large")
func.func @bound(%x: tensor<1x32x48x48xbf16> {nn.name = "x"}) -> tensor<1x8x48x48xf32> {
  %w1 = nn.weight "w1" seeded<1> : tensor<64x32x7x7xbf16>
  %w2 = nn.weight "w2" seeded<2> : tensor<8x64x1x1xbf16>
  %a = nn.conv %x, %w1 pads [3, 3, 3, 3] : (tensor<1x32x48x48xbf16>, tensor<64x32x7x7xbf16>) -> tensor<1x64x48x48xf32> loc("large")
  %b = nn.cast %a : (tensor<1x64x48x48xf32>) -> tensor<1x64x48x48xbf16> loc("large")
  %c = nn.conv %b, %w2 : (tensor<1x64x48x48xbf16>, tensor<8x64x1x1xbf16>) -> tensor<1x8x48x48xf32> loc("small")
  func.return %c : tensor<1x8x48x48xf32>
}
