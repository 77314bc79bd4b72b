// RUN: neuron-opt %s -p pipe-stream-rows --split-input-file | filecheck %s
// RUN: neuron-opt %s -p 'pipe-stream-rows{sbuf-percent=0}' --split-input-file | filecheck %s --check-prefix=NONE

// A slot has the rows that both steps have in common; the reader's window needs a row more at first.
// CHECK-LABEL: pipe.program @window
// CHECK: pipe.stage @s0 cores [0] (%a) {
// CHECK: pipe.stage @s1 cores [1] (%b) attributes {pipe.streams = [#pipe.rows<depth 7, images 1, rows 1>]} {
// NONE-LABEL: pipe.program @window
// NONE-NOT: pipe.rows
pipe.program @window {
  %a = pipe.input "x" : !pipe.stream<tensor<1x4x8x8xf32>>
  %b = pipe.stage @s0 cores [0] (%a) {
  ^bb0(%x: tensor<1x4x8x8xf32>):
    %y = nn.fused "depth-first" (%x) tile [1, 2] {
    ^bb1(%z: tensor<1x4x8x8xf32>):
      %r = nn.relu %z : tensor<1x4x8x8xf32>
      nn.yield %r : tensor<1x4x8x8xf32>
    } : (tensor<1x4x8x8xf32>) -> tensor<1x4x8x8xf32>
    pipe.yield %y : tensor<1x4x8x8xf32>
  } -> (!pipe.stream<tensor<1x4x8x8xf32>>)
  %c = pipe.stage @s1 cores [1] (%b) {
  ^bb0(%x: tensor<1x4x8x8xf32>):
    %y = nn.fused "depth-first" (%x) tile [1, 4] {
    ^bb1(%z: tensor<1x4x8x8xf32>):
      %r = nn.max_pool %z kernel [3, 3] pads [1, 1, 1, 1] : (tensor<1x4x8x8xf32>) -> tensor<1x4x8x8xf32>
      nn.yield %r : tensor<1x4x8x8xf32>
    } : (tensor<1x4x8x8xf32>) -> tensor<1x4x8x8xf32>
    pipe.yield %y : tensor<1x4x8x8xf32>
  } -> (!pipe.stream<tensor<1x4x8x8xf32>>)
  pipe.output "y", %c : !pipe.stream<tensor<1x4x8x8xf32>>
}

// -----

// Where a branch passes a stage that needs all of its input, the other would have to hold all rows, more than there is room for.
// CHECK-LABEL: pipe.program @around
// CHECK: pipe.stage @s1 cores [1] (%b) {
// CHECK: pipe.stage @s2 cores [2] (%b, %c) {
pipe.program @around {
  %a = pipe.input "x" : !pipe.stream<tensor<1x4x64x2048xf32>>
  %b = pipe.stage @s0 cores [0] (%a) {
  ^bb0(%x: tensor<1x4x64x2048xf32>):
    %y = nn.fused "depth-first" (%x) tile [1, 2] {
    ^bb1(%z: tensor<1x4x64x2048xf32>):
      %r = nn.relu %z : tensor<1x4x64x2048xf32>
      nn.yield %r : tensor<1x4x64x2048xf32>
    } : (tensor<1x4x64x2048xf32>) -> tensor<1x4x64x2048xf32>
    pipe.yield %y : tensor<1x4x64x2048xf32>
  } -> (!pipe.stream<tensor<1x4x64x2048xf32>>)
  %c = pipe.stage @s1 cores [1] (%b) {
  ^bb0(%x: tensor<1x4x64x2048xf32>):
    %y = nn.softmax %x axis 3 : (tensor<1x4x64x2048xf32>) -> tensor<1x4x64x2048xf32>
    pipe.yield %y : tensor<1x4x64x2048xf32>
  } -> (!pipe.stream<tensor<1x4x64x2048xf32>>)
  %d = pipe.stage @s2 cores [2] (%b, %c) {
  ^bb0(%x: tensor<1x4x64x2048xf32>, %v: tensor<1x4x64x2048xf32>):
    %y = nn.fused "depth-first" (%x, %v) tile [1, 2] {
    ^bb1(%z: tensor<1x4x64x2048xf32>, %u: tensor<1x4x64x2048xf32>):
      %r = nn.add %z, %u : tensor<1x4x64x2048xf32>, tensor<1x4x64x2048xf32>
      nn.yield %r : tensor<1x4x64x2048xf32>
    } : (tensor<1x4x64x2048xf32>, tensor<1x4x64x2048xf32>) -> tensor<1x4x64x2048xf32>
    pipe.yield %y : tensor<1x4x64x2048xf32>
  } -> (!pipe.stream<tensor<1x4x64x2048xf32>>)
  pipe.output "y", %d : !pipe.stream<tensor<1x4x64x2048xf32>>
}

// -----

// The reader does as much again behind its group. Meanwhile the writer, as slow as both together, makes half of the rows: they have
// room in the ring.
// CHECK-LABEL: pipe.program @pause
// CHECK: pipe.stage @s1 cores [1] (%b) attributes {pipe.streams = [#pipe.rows<depth 18, images 1, rows 2>]} {
pipe.program @pause {
  %a = pipe.input "x" : !pipe.stream<tensor<1x4x64x64xf32>>
  %b = pipe.stage @s0 cores [0] (%a) {
  ^bb0(%x: tensor<1x4x64x64xf32>):
    %y = nn.fused "depth-first" (%x) tile [1, 2] {
    ^bb1(%z: tensor<1x4x64x64xf32>):
      %r = nn.sigmoid %z : tensor<1x4x64x64xf32>
      %s = nn.sigmoid %r : tensor<1x4x64x64xf32>
      nn.yield %s : tensor<1x4x64x64xf32>
    } : (tensor<1x4x64x64xf32>) -> tensor<1x4x64x64xf32>
    pipe.yield %y : tensor<1x4x64x64xf32>
  } -> (!pipe.stream<tensor<1x4x64x64xf32>>)
  %c = pipe.stage @s1 cores [1] (%b) {
  ^bb0(%x: tensor<1x4x64x64xf32>):
    %y = nn.fused "depth-first" (%x) tile [1, 2] {
    ^bb1(%z: tensor<1x4x64x64xf32>):
      %r = nn.sigmoid %z : tensor<1x4x64x64xf32>
      nn.yield %r : tensor<1x4x64x64xf32>
    } : (tensor<1x4x64x64xf32>) -> tensor<1x4x64x64xf32>
    %u = nn.sigmoid %y : tensor<1x4x64x64xf32>
    pipe.yield %u : tensor<1x4x64x64xf32>
  } -> (!pipe.stream<tensor<1x4x64x64xf32>>)
  pipe.output "y", %c : !pipe.stream<tensor<1x4x64x64xf32>>
}
