// RUN: neuron-opt %s --split-input-file --verify-diagnostics --parsing-diagnostics | filecheck %s

// CHECK: needs either a stream result (value form) or a ring (memory form)
pipe.program @p {
  "pipe.input"() <{label = "x", operandSegmentSizes = array<i32: 0, 0, 0>}> : () -> ()
}

// -----

// CHECK: full and credit come together
pipe.program @p {
  %x = pipe.ring "x" depth 1 on chip 0 : memref<1x8xf32, #core.dram>
  %f = core.semaphore "f" on core 0
  pipe.input "data" to %x full %f
}

// -----

// CHECK: full and credit come together
pipe.program @p {
  %x = pipe.ring "x" depth 1 on chip 0 : memref<1x8xf32, #core.dram>
  %f = core.semaphore "f" on core 0
  pipe.output "data" from %x credit %f
}

// -----

// CHECK: a ring lives in #core.sbuf or #core.dram
pipe.program @p {
  %x = pipe.ring "x" depth 2 on core 0 : memref<64x2x8xf32, #core.psum>
}

// -----

// CHECK: depth is 2, dimension 0 of memref<3x8xf32, #core.dram> is 3
pipe.program @p {
  %x = pipe.ring "x" depth 2 on chip 0 : memref<3x8xf32, #core.dram>
}

// -----

// CHECK: depth is 2, dimension 1 of memref<64x3x8xf32, #core.sbuf> is 3
pipe.program @p {
  %x = pipe.ring "x" depth 2 on core 0 : memref<64x3x8xf32, #core.sbuf>
}

// -----

// CHECK: needs a memory space #core.sbuf, #core.psum or #core.dram, got memref<3x8xf32>
pipe.program @p {
  %x = pipe.ring "x" depth 3 on chip 0 : memref<3x8xf32>
}

// -----

// CHECK: a stage needs at least one core
pipe.program @p {
  pipe.stage @s cores [] () {
    pipe.yield
  }
}

// -----

// CHECK: 1 operands, 0 block arguments
pipe.program @p {
  %a = pipe.input "data" : !pipe.stream<tensor<4xf32>>
  pipe.stage @s cores [0] (%a) {
    pipe.yield
  }
}

// -----

// CHECK: block argument 0 is tensor<5xf32>, its operand carries tensor<4xf32>
pipe.program @p {
  %a = pipe.input "data" : !pipe.stream<tensor<4xf32>>
  pipe.stage @s cores [0] (%a) {
  ^bb0(%x: tensor<5xf32>):
    pipe.yield
  }
}

// -----

// CHECK: block argument 0 is memref<1x9xf32, #core.dram>, its operand carries memref<1x8xf32, #core.dram>
pipe.program @p {
  %x = pipe.ring "x" depth 1 on chip 0 : memref<1x8xf32, #core.dram>
  pipe.stage @s cores [0] (%x) {
  ^bb0(%y: memref<1x9xf32, #core.dram>):
    pipe.load {}
    pipe.run (%r) {}
  }
}

// -----

// CHECK: memory form needs one pipe.load, one pipe.run and no results; has 0 and 1
pipe.program @p {
  pipe.stage @s cores [0] () {
    pipe.run (%r) {}
  }
}

// -----

// CHECK: memory form needs one pipe.load, one pipe.run and no results; has 1 and 2
pipe.program @p {
  pipe.stage @s cores [0] () {
    pipe.load {}
    pipe.run (%r) {}
    pipe.run (%q) {}
  }
}

// -----

// CHECK: value form must end in pipe.yield
pipe.program @p {
  pipe.stage @s cores [0] () {
    %0 = nn.weight "w" splat<1.0> : tensor<4xf32>
  }
}

// -----

// CHECK: yields !pipe.stream<tensor<4xf32>>; results are !pipe.stream<tensor<5xf32>>
pipe.program @p {
  %a = pipe.stage @s cores [0] () {
    %0 = nn.weight "w" splat<1.0> : tensor<4xf32>
    pipe.yield %0 : tensor<4xf32>
  } -> (!pipe.stream<tensor<5xf32>>)
}

// -----

// CHECK: takes one block argument, the request number, of type index
pipe.program @p {
  pipe.stage @s cores [0] () {
    pipe.load {}
    "pipe.run"() ({
    ^bb0(%r: i32):
    }) : () -> ()
  }
}

// -----

// CHECK: %x is not defined above
pipe.program @p {
  pipe.input "data" to %x
}

// -----

// CHECK: operand is used with type !core.semaphore, but has been previously used or defined with type memref<1x8xf32, #core.dram>
pipe.program @p {
  %x = pipe.ring "x" depth 1 on chip 0 : memref<1x8xf32, #core.dram>
  pipe.input "data" to %x full %x credit %x
}

// -----

// CHECK: operand is used with type !pipe.stream<tensor<5xf32>>, but has been previously used or defined with type !pipe.stream<tensor<4xf32>>
pipe.program @p {
  %a = pipe.input "data" : !pipe.stream<tensor<4xf32>>
  pipe.output "out", %a : !pipe.stream<tensor<5xf32>>
}

// -----

// CHECK: cores [0, 1]: a core for each replica, and `replicas` if there are several
pipe.program @p {
  pipe.stage @s cores [0, 1] () {
    pipe.load {}
    pipe.run (%r) {}
  }
}

// -----

// CHECK: pipe.run takes the number of the replica, and the stage is not replicated
pipe.program @p {
  pipe.stage @s cores [0] () {
    pipe.load {}
    pipe.run (%q, %i) {}
  }
}

// -----

// CHECK: needs a place for each lane, and an address for each place or for none
pipe.program @p {
  %x = pipe.ring "x" depth 1 on chips [0, 1] at [0] : memref<1x8xf32, #core.dram>
}

// -----

// CHECK: has two of pipe.input with the name 'data'
pipe.program @p {
  %a = pipe.input "data" : !pipe.stream<tensor<4xf32>>
  %b = pipe.input "data" : !pipe.stream<tensor<4xf32>>
}

// -----

// CHECK: has two of pipe.output with the name 'out'
pipe.program @p {
  %a = pipe.input "data" : !pipe.stream<tensor<4xf32>>
  pipe.output "out", %a : !pipe.stream<tensor<4xf32>>
  pipe.output "out", %a : !pipe.stream<tensor<4xf32>>
}
