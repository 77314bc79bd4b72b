// RUN: neuron-opt %s --split-input-file -p 'pipe-shard{stage=s0 axis=channel}' --validate-each | filecheck %s --check-prefix=CHANNEL
// RUN: neuron-opt %s --split-input-file -p 'pipe-shard{stage=s0 axis=row},core-lower,core-allocate,core-schedule' --validate-each > /dev/null
// RUN: neuron-opt %s --split-input-file -p 'pipe-shard{stage=s0 axis=row}' --statistics 2>&1 | filecheck %s --check-prefix=ROW
// RUN: neuron-opt %s --split-input-file -p 'pipe-shard{cores=3}' | filecheck %s --check-prefix=CORES

// Output channels: half of the weights and of the bias each; both read all of the input.
// CHANNEL: pipe.stage @s0.0 cores [0] (%x)
// CHANNEL:      nn.slice %{{.*}} starts [0, 0, 0, 0] sizes [64, 8, 3, 3]
// CHANNEL:      nn.fused "conv" (%{{.*}}) {
// CHANNEL:      nn.conv %{{.*}} pads [1, 1, 1, 1] : (tensor<1x8x12x12xbf16>, tensor<64x8x3x3xbf16>
// CHANNEL: pipe.stage @s0.1 cores [1] (%x)
// CHANNEL:      nn.slice %{{.*}} starts [64, 0, 0, 0] sizes [64, 8, 3, 3]
// CHANNEL: pipe.stage @s1 cores [2] (%a, %a_1)
// CHANNEL:      nn.concat %{{.*}} axis 1

// Rows: all weights, and the rows around that the window reaches. Padding is left where the map ends.
// ROW: sharding_reason = "s0 2 ways by rows: from {{[0-9]+}} to {{[0-9]+}} ps per request"
// ROW: pipe.stage @s0.0 cores [0] (%x)
// ROW:      nn.slice %{{.*}} starts [0, 0, 0, 0] sizes [1, 8, 7, 12]
// ROW:      nn.conv %{{.*}} pads [1, 1, 0, 1] : (tensor<1x8x7x12xbf16>
// ROW: pipe.stage @s0.1 cores [1] (%x)
// ROW:      nn.slice %{{.*}} starts [0, 0, 5, 0] sizes [1, 8, 7, 12]
// ROW:      nn.conv %{{.*}} pads [0, 1, 1, 1] : (tensor<1x8x7x12xbf16>
// ROW:      nn.concat %{{.*}} axis 2
// ROW: (S) 1 sharded - stages that were split
// ROW-NEXT: (S) 2 shards - stages they became
// ROW-NEXT: (S) 3 cores - cores in use

// One DRAM feeds both halves, each of which reads all of the input: a split by cost is refused, and says why.
// CORES: sharding = #pipe.certificate<{{.*}}, "ps", "greedy, links and DRAM checked">
// CORES-SAME: sharding_reason = "no split wins: s0 2 ways by output channels: {{.*}}, but DRAM of chip 0 would take
// CORES: pipe.stage @s0 cores [0]
// CORES: pipe.stage @s1 cores [1]
pipe.program @net {
  %x = pipe.input "x" : !pipe.stream<tensor<1x8x12x12xbf16>>
  %a = pipe.stage @s0 cores [0] (%x) {
  ^bb0(%v: tensor<1x8x12x12xbf16>):
    %w = nn.weight "w" seeded<1> : tensor<128x8x3x3xbf16>
    %b = nn.weight "b" seeded<2> : tensor<128xf32>
    %r = nn.fused "conv" (%v, %w, %b) {
    ^bb1(%i: tensor<1x8x12x12xbf16>, %k: tensor<128x8x3x3xbf16>, %c: tensor<128xf32>):
      %0 = nn.conv %i, %k, %c pads [1, 1, 1, 1] : (tensor<1x8x12x12xbf16>, tensor<128x8x3x3xbf16>, tensor<128xf32>) -> tensor<1x128x12x12xf32>
      %1 = nn.relu %0 : tensor<1x128x12x12xf32>
      %2 = nn.cast %1 : (tensor<1x128x12x12xf32>) -> tensor<1x128x12x12xbf16>
      nn.yield %2 : tensor<1x128x12x12xbf16>
    } : (tensor<1x8x12x12xbf16>, tensor<128x8x3x3xbf16>, tensor<128xf32>) -> tensor<1x128x12x12xbf16>
    pipe.yield %r : tensor<1x128x12x12xbf16>
  } -> (!pipe.stream<tensor<1x128x12x12xbf16>>)
  %b = pipe.stage @s1 cores [1] (%a) {
  ^bb0(%v: tensor<1x128x12x12xbf16>):
    %r = nn.abs %v : tensor<1x128x12x12xbf16>
    pipe.yield %r : tensor<1x128x12x12xf32>
  } -> (!pipe.stream<tensor<1x128x12x12xf32>>)
  pipe.output "y", %b : !pipe.stream<tensor<1x128x12x12xf32>>
}
