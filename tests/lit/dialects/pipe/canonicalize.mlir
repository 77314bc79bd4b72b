// RUN: neuron-opt %s -p canonicalize --split-input-file | filecheck %s

// Streams that nobody reads go, into a stage and out of it; what only they needed goes with them.

// CHECK-LABEL: pipe.program @narrow
// CHECK-NEXT:    %a = pipe.input "a" : !pipe.stream<tensor<4xf32>>
// CHECK-NEXT:    %b = pipe.input "b" : !pipe.stream<tensor<4xf32>>
// CHECK-NEXT:    %{{.*}} = pipe.stage @s0 cores [0] replicas (%b) attributes {cost = 7 : i64} {
// CHECK-NEXT:    ^bb0(%y: tensor<4xf32>):
// CHECK-NEXT:      %v = nn.neg %y : tensor<4xf32>
// CHECK-NEXT:      pipe.yield %v : tensor<4xf32>
// CHECK-NEXT:    } -> (!pipe.stream<tensor<4xf32>>)
// CHECK-NEXT:    pipe.output "out", %{{.*}} : !pipe.stream<tensor<4xf32>>
pipe.program @narrow {
  %a = pipe.input "a" : !pipe.stream<tensor<4xf32>>
  %b = pipe.input "b" : !pipe.stream<tensor<4xf32>>
  %c, %d = pipe.stage @s0 cores [0] replicas (%a, %b) attributes {cost = 7 : i64} {
  ^bb0(%x: tensor<4xf32>, %y: tensor<4xf32>):
    %u = nn.relu %x : tensor<4xf32>
    %v = nn.neg %y : tensor<4xf32>
    pipe.yield %u, %v : tensor<4xf32>, tensor<4xf32>
  } -> (!pipe.stream<tensor<4xf32>>, !pipe.stream<tensor<4xf32>>)
  pipe.output "out", %d : !pipe.stream<tensor<4xf32>>
}

// -----

// A stage without readers goes, and then the one that only it read.

// CHECK-LABEL: pipe.program @dead
// CHECK-NEXT:    %a = pipe.input "a" : !pipe.stream<tensor<4xf32>>
// CHECK-NEXT:    pipe.output "out", %a : !pipe.stream<tensor<4xf32>>
// CHECK-NEXT:  }
pipe.program @dead {
  %a = pipe.input "a" : !pipe.stream<tensor<4xf32>>
  %b = pipe.stage @s0 cores [0] (%a) {
  ^bb0(%x: tensor<4xf32>):
    %u = nn.relu %x : tensor<4xf32>
    pipe.yield %u : tensor<4xf32>
  } -> (!pipe.stream<tensor<4xf32>>)
  %c = pipe.stage @s1 cores [1] (%b) {
  ^bb0(%x: tensor<4xf32>):
    %u = nn.relu %x : tensor<4xf32>
    pipe.yield %u : tensor<4xf32>
  } -> (!pipe.stream<tensor<4xf32>>)
  pipe.output "out", %a : !pipe.stream<tensor<4xf32>>
}

// -----

// Memory form: a stage acts on memory, so it stays; a ring without a use goes.

// CHECK-LABEL: pipe.program @memory
// CHECK-NEXT:    %x = pipe.ring "x" depth 2 on chip 0 : memref<2x8xf32, #core.dram>
// CHECK-NEXT:    pipe.stage @s cores [0] (%x) {
pipe.program @memory {
  %x = pipe.ring "x" depth 2 on chip 0 : memref<2x8xf32, #core.dram>
  %y = pipe.ring "y" depth 2 on chip 0 : memref<2x8xf32, #core.dram>
  pipe.stage @s cores [0] (%x) {
  ^bb0(%xr: memref<2x8xf32, #core.dram>):
    pipe.load {}
    pipe.run (%r) {}
  }
}

// -----

// An argument that is only handed on goes with its result.

// CHECK-LABEL: pipe.program @handed_on
// CHECK:         pipe.stage @s0 cores [0] (%b) {
// CHECK-NEXT:    ^bb0(%y: tensor<4xf32>):
// CHECK-NEXT:      pipe.yield %y : tensor<4xf32>
pipe.program @handed_on {
  %a = pipe.input "a" : !pipe.stream<tensor<4xf32>>
  %b = pipe.input "b" : !pipe.stream<tensor<4xf32>>
  %c, %d = pipe.stage @s0 cores [0] (%a, %b) {
  ^bb0(%x: tensor<4xf32>, %y: tensor<4xf32>):
    pipe.yield %x, %y : tensor<4xf32>, tensor<4xf32>
  } -> (!pipe.stream<tensor<4xf32>>, !pipe.stream<tensor<4xf32>>)
  pipe.output "out", %d : !pipe.stream<tensor<4xf32>>
}
