// RUN: neuron-opt %s --split-input-file | filecheck %s
// RUN: neuron-opt %s --split-input-file | neuron-opt --split-input-file | filecheck %s
// RUN: neuron-opt %s --split-input-file --print-op-generic | neuron-opt --split-input-file | filecheck %s

// Value form: streams of tensors. A stage hands on several results, and takes streams of several stages.

// CHECK-LABEL: pipe.program @net attributes {certificate = #pipe.certificate<3.0, 2.5, "us", "interval \22DP\22">, reason = "why"} {
// CHECK-NEXT:    %a = pipe.input "data" : !pipe.stream<tensor<4x8xf32>>
// CHECK-NEXT:    %b, %c = pipe.stage @s0 cores [0] (%a) attributes {cost = 7 : i64} {
// CHECK-NEXT:    ^bb0(%x: tensor<4x8xf32>):
// CHECK-NEXT:      %y = nn.relu %x : tensor<4x8xf32>
// CHECK-NEXT:      pipe.yield %y, %x : tensor<4x8xf32>, tensor<4x8xf32>
// CHECK-NEXT:    } -> (!pipe.stream<tensor<4x8xf32>>, !pipe.stream<tensor<4x8xf32>>)
// CHECK-NEXT:    %d = pipe.stage @s1 cores [1, 2] replicas (%b, %c, %a) {
// CHECK-NEXT:    ^bb0(%x: tensor<4x8xf32>, %y: tensor<4x8xf32>, %z: tensor<4x8xf32>):
// CHECK:         } -> (!pipe.stream<tensor<4x8xf32>>)
// CHECK-NEXT:    pipe.output "out", %d : !pipe.stream<tensor<4x8xf32>>
// CHECK-NEXT:    pipe.output "with \22quotes\22", %b : !pipe.stream<tensor<4x8xf32>>
pipe.program @net attributes {certificate = #pipe.certificate<3.0, 2.5, "us", "interval \22DP\22">, reason = "why"} {
  %a = pipe.input "data" : !pipe.stream<tensor<4x8xf32>>
  %b, %c = pipe.stage @s0 cores [0] (%a) attributes {cost = 7 : i64} {
  ^bb0(%x: tensor<4x8xf32>):
    %y = nn.relu %x : tensor<4x8xf32>
    pipe.yield %y, %x : tensor<4x8xf32>, tensor<4x8xf32>
  } -> (!pipe.stream<tensor<4x8xf32>>, !pipe.stream<tensor<4x8xf32>>)
  %d = pipe.stage @s1 cores [1, 2] replicas (%b, %c, %a) {
  ^bb0(%x: tensor<4x8xf32>, %y: tensor<4x8xf32>, %z: tensor<4x8xf32>):
    %0 = nn.add %x, %y : tensor<4x8xf32>, tensor<4x8xf32>
    %1 = nn.add %0, %z : tensor<4x8xf32>, tensor<4x8xf32>
    pipe.yield %1 : tensor<4x8xf32>
  } -> (!pipe.stream<tensor<4x8xf32>>)
  pipe.output "out", %d : !pipe.stream<tensor<4x8xf32>>
  pipe.output "with \22quotes\22", %b : !pipe.stream<tensor<4x8xf32>>
}

// -----

// Memory form: rings, sequential (no semaphores).

// CHECK-LABEL: pipe.program @rings {
// CHECK-NEXT:    %x = pipe.ring "x" depth 2 on chip 0 : memref<2x128x512xf32, #core.dram>
// CHECK-NEXT:    %h = pipe.ring "h" depth 3 on core 1 at 64 : memref<128x3x512xbf16, #core.sbuf>
// CHECK-NEXT:    pipe.input "data" to %x
// CHECK-NEXT:    pipe.stage @s0 cores [0] (%x, %h) {
// CHECK-NEXT:    ^bb0(%xr: memref<2x128x512xf32, #core.dram>, %hr: memref<128x3x512xbf16, #core.sbuf>):
// CHECK-NEXT:      pipe.load {
// CHECK-NEXT:      }
// CHECK-NEXT:      pipe.run (%r) {
// CHECK-NEXT:      }
// CHECK-NEXT:    }
// CHECK-NEXT:    pipe.output "prob" from %x
pipe.program @rings {
  %x = pipe.ring "x" depth 2 on chip 0 : memref<2x128x512xf32, #core.dram>
  %h = pipe.ring "h" depth 3 on core 1 at 64 : memref<128x3x512xbf16, #core.sbuf>
  pipe.input "data" to %x
  pipe.stage @s0 cores [0] (%x, %h) {
  ^bb0(%xr: memref<2x128x512xf32, #core.dram>, %hr: memref<128x3x512xbf16, #core.sbuf>):
    pipe.load {}
    pipe.run (%r) {}
  }
  pipe.output "prob" from %x
}

// -----

// Memory form with semaphores; several ops of a kind.

// CHECK-LABEL: pipe.program @semaphores
// CHECK:         pipe.input "data" to %x full %f credit %c
// CHECK-NEXT:    pipe.output "prob" from %x full %f credit %c
pipe.program @semaphores {
  %x = pipe.ring "x" depth 1 on chip 3 at 4096 : memref<1x8xf32, #core.dram>
  %f = core.semaphore "f" on core 0
  %c = core.semaphore "c"
  pipe.input "data" to %x full %f credit %c
  pipe.output "prob" from %x full %f credit %c
}

// -----

// A program without anything, and a certificate with extreme numbers.

// CHECK-LABEL: pipe.program @empty attributes {c = #pipe.certificate<1.0e+30, 0.0, "ps", "none">} {
// CHECK-NEXT:    }
pipe.program @empty attributes {c = #pipe.certificate<1.0e+30, 0.0, "ps", "none">} {
}

// -----

// Replicas: a ring with a lane for each, semaphores for each pair that shares requests, one code for both.

// CHECK-LABEL: pipe.program @replicas
// CHECK-NEXT:    %x = pipe.ring "x" depth 2 on chips [0, 1] at [64, 0] : memref<2x8xf32, #core.dram>
// CHECK-NEXT:    %f = core.semaphore "f" on cores [3, 4]
// CHECK-NEXT:    %g = core.semaphore "g" on cores [3, 4] by 2
// CHECK-NEXT:    %c = core.semaphore "c" on host 2 by 2
// CHECK-NEXT:    pipe.stage @s cores [3, 4] replicas dram [0, 128] (%x, %f) {
// CHECK-NEXT:    ^bb0(%xr: memref<2x8xf32, #core.dram>, %fr: !core.semaphore):
// CHECK-NEXT:      pipe.load {
// CHECK-NEXT:      }
// CHECK-NEXT:      pipe.run (%q, %i) {
// CHECK-NEXT:        core.engine scalar {
// CHECK-NEXT:          core.wait %fr from 1 >= (%q * 2 + %i) floordiv 3 + 1
pipe.program @replicas {
  %x = pipe.ring "x" depth 2 on chips [0, 1] at [64, 0] : memref<2x8xf32, #core.dram>
  %f = core.semaphore "f" on cores [3, 4]
  %g = core.semaphore "g" on cores [3, 4] by 2
  %c = core.semaphore "c" on host 2 by 2
  pipe.stage @s cores [3, 4] replicas dram [0, 128] (%x, %f) {
  ^bb0(%xr: memref<2x8xf32, #core.dram>, %fr: !core.semaphore):
    pipe.load {}
    pipe.run (%q, %i) {
      core.engine scalar {
        core.wait %fr from 1 >= (%q * 2 + %i) floordiv 3 + 1
      }
    }
  }
}

// -----

// A stream that goes by rows: an entry for each operand of the stage. Its ring, handed over in parts.

// CHECK-LABEL: pipe.program @rows
// CHECK: pipe.stage @s1 cores [1] (%b, %a) attributes {pipe.streams = [#pipe.rows<depth 6, images 1, rows 2>, unit]} {
pipe.program @rows {
  %a = pipe.input "data" : !pipe.stream<tensor<1x4x8x8xf32>>
  %b = pipe.stage @s0 cores [0] (%a) {
  ^bb0(%x: tensor<1x4x8x8xf32>):
    %y = nn.relu %x : tensor<1x4x8x8xf32>
    pipe.yield %y : tensor<1x4x8x8xf32>
  } -> (!pipe.stream<tensor<1x4x8x8xf32>>)
  %c = pipe.stage @s1 cores [1] (%b, %a) attributes {pipe.streams = [#pipe.rows<depth 6, images 1, rows 2>, unit]} {
  ^bb0(%x: tensor<1x4x8x8xf32>, %z: tensor<1x4x8x8xf32>):
    %y = nn.add %x, %z : tensor<1x4x8x8xf32>, tensor<1x4x8x8xf32>
    pipe.yield %y : tensor<1x4x8x8xf32>
  } -> (!pipe.stream<tensor<1x4x8x8xf32>>)
  pipe.output "out", %c : !pipe.stream<tensor<1x4x8x8xf32>>
}

// -----

// CHECK-LABEL: pipe.program @parts
// CHECK-NEXT: %x = pipe.ring "x" depth 6 chunks 45 on core 1 : memref<128x6x1x1x2x90xbf16, #core.sbuf>
// CHECK-NEXT: %y = pipe.ring "y" depth 6 chunks 45 on cores [1, 3] at [0, 64] : memref<128x6x1x1x2x90xbf16, #core.sbuf>
pipe.program @parts {
  %x = pipe.ring "x" depth 6 chunks 45 on core 1 : memref<128x6x1x1x2x90xbf16, #core.sbuf>
  %y = pipe.ring "y" depth 6 chunks 45 on cores [1, 3] at [0, 64] : memref<128x6x1x1x2x90xbf16, #core.sbuf>
}
