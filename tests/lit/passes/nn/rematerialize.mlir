// RUN: neuron-opt %s -p 'nn-rematerialize{percent=97},canonicalize,cse,dce' --split-input-file | filecheck %s
// RUN: neuron-opt %s -p 'nn-rematerialize{percent=97},canonicalize,cse,dce' --split-input-file --validate-each -o /dev/null
// RUN: neuron-opt %s -p 'nn-rematerialize{percent=97 mode=spill}' --split-input-file --validate-each | filecheck %s --check-prefix=SPILL

// A relu is cheap to run again; where only spills may be, it is written after it is made and read before the add.
// CHECK-LABEL: func.func @main(
// CHECK-SAME: nn.rematerialized = #pipe.certificate<636000.0, 636000.0, "ps", "CP-SAT, retention segments">
// CHECK: %a = nn.relu %x : tensor<1x64x24x24xbf16>
// CHECK: %[[A:.*]] = nn.relu %x {nn.recomputed = 1 : i64} : tensor<1x64x24x24xbf16>
// CHECK-NEXT: nn.add %[[A]], %d
// SPILL-LABEL: func.func @main(
// SPILL: %a = nn.relu %x : tensor<1x64x24x24xbf16>
// SPILL-NEXT: %[[S:.*]] = nn.spill %a : tensor<1x64x24x24xf32>
// SPILL-NEXT: nn.conv %a, %w
// SPILL: %[[R:.*]] = nn.reload %[[S]] : tensor<1x64x24x24xf32>
// SPILL-NEXT: nn.add %[[R]], %d
// SPILL-NOT: nn.recomputed
func.func @main(%x: tensor<1x64x24x24xbf16>) -> tensor<1x64x24x24xf32> {
  %w = nn.weight "w" seeded<1> : tensor<256x64x1x1xbf16>
  %v = nn.weight "v" seeded<2> : tensor<64x256x1x1xbf16>
  %a = nn.relu %x : tensor<1x64x24x24xbf16>
  %b = nn.conv %a, %w : (tensor<1x64x24x24xf32>, tensor<256x64x1x1xbf16>) -> tensor<1x256x24x24xf32>
  %c = nn.relu %b : tensor<1x256x24x24xf32>
  %d = nn.conv %c, %v : (tensor<1x256x24x24xf32>, tensor<64x256x1x1xbf16>) -> tensor<1x64x24x24xf32>
  %e = nn.add %a, %d : tensor<1x64x24x24xf32>, tensor<1x64x24x24xf32>
  func.return %e : tensor<1x64x24x24xf32>
}

// -----

// A concatenation takes what is spilled from DRAM, through no reload. Here the convolution takes less time than its
// result would take to DRAM and back; its cast comes along.
// CHECK-LABEL: pipe.program @net
// CHECK: pipe.stage @s0
// CHECK-SAME: nn.rematerialized
// CHECK: %[[S:.*]] = nn.spill %d : tensor<1x32x24x24xbf16>
// CHECK-NEXT: %[[X:.*]] = nn.reload %x : tensor<1x64x24x24xbf16>
// CHECK-NEXT: %[[A:.*]] = nn.conv %[[X]], %w {nn.recomputed = 1 : i64}
// CHECK-NEXT: %[[C:.*]] = nn.cast %[[A]] {nn.recomputed = 1 : i64}
// CHECK-NEXT: nn.concat %[[C]], %[[S]] axis 1
// SPILL-LABEL: pipe.program @net
// SPILL: %[[S:.*]] = nn.spill %ac : tensor<1x256x24x24xbf16>
// SPILL-NOT: nn.reload
// SPILL: nn.concat %[[S]], %d axis 1
pipe.program @net {
  %in = pipe.input "x" : !pipe.stream<tensor<1x64x24x24xbf16>>
  %out = pipe.stage @s0 cores [0] (%in) {
  ^bb0(%x: tensor<1x64x24x24xbf16>):
    %w = nn.weight "w" seeded<1> : tensor<256x64x1x1xbf16>
    %v = nn.weight "v" seeded<2> : tensor<32x256x1x1xbf16>
    %a = nn.conv %x, %w : (tensor<1x64x24x24xbf16>, tensor<256x64x1x1xbf16>) -> tensor<1x256x24x24xf32>
    %ac = nn.cast %a : (tensor<1x256x24x24xf32>) -> tensor<1x256x24x24xbf16>
    %b = nn.tanh %ac : tensor<1x256x24x24xbf16>
    %c = nn.cast %b : (tensor<1x256x24x24xf32>) -> tensor<1x256x24x24xbf16>
    %s = nn.conv %c, %v : (tensor<1x256x24x24xbf16>, tensor<32x256x1x1xbf16>) -> tensor<1x32x24x24xf32>
    %d = nn.cast %s : (tensor<1x32x24x24xf32>) -> tensor<1x32x24x24xbf16>
    %e = nn.concat %ac, %d axis 1 : (tensor<1x256x24x24xbf16>, tensor<1x32x24x24xbf16>) -> tensor<1x288x24x24xbf16>
    pipe.yield %e : tensor<1x288x24x24xbf16>
  } -> (!pipe.stream<tensor<1x288x24x24xbf16>>)
  pipe.output "y", %out : !pipe.stream<tensor<1x288x24x24xbf16>>
}

// -----

// Tiles of rows: where a layer with its input and its result is too much, its result goes to DRAM as it is made.
// CHECK-LABEL: func.func @tiles
// CHECK: %a = nn.relu %x : tensor<1x64x64x64xbf16>
// CHECK-NEXT: %b = nn.tanh %a {nn.tile_bytes = {{[0-9]+}} : i64} : tensor<1x64x64x64xf32>
// CHECK-NEXT: %[[S:.*]] = nn.spill %b : tensor<1x64x64x64xf32>
// CHECK-NEXT: nn.reload %[[S]]
func.func @tiles(%x: tensor<1x64x64x64xbf16>) -> tensor<1x64x32x32xf32> {
  %a = nn.relu %x : tensor<1x64x64x64xbf16>
  %b = nn.tanh %a : tensor<1x64x64x64xf32>
  %c = nn.max_pool %b kernel [2, 2] strides [2, 2] : (tensor<1x64x64x64xf32>) -> tensor<1x64x32x32xf32>
  func.return %c : tensor<1x64x32x32xf32>
}
