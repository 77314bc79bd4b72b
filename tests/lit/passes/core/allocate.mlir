// RUN: neuron-opt %s -p core-allocate --split-input-file | filecheck %s
// RUN: neuron-opt %s -p 'core-allocate{depth=1 psum-depth=1 alignment=256}' --split-input-file | filecheck %s --check-prefix=ONE

// A buffer of a loop gets slots. Tiles that DMA fills get enough of them to hide its latency, PSUM tiles a bank each.
// CHECK-LABEL: pipe.program @rotate
// CHECK: pipe.ring "x" depth 2 on chip 0 at 0
// CHECK: pipe.ring "h" depth 2 on core 0 at 0
// CHECK: core.sbuf_plan = #pipe.certificate<{{.*}}, "bytes per partition", "own bytes for each">
// CHECK-DAG: core.alloc "w" at 8192 : memref<128x8x64xbf16, #core.sbuf>
// CHECK-DAG: %[[T:.*]] = core.alloc "t" at 9216 : memref<128x4x512xbf16, #core.sbuf>
// CHECK-DAG: %[[A:.*]] = core.alloc "acc" at 0 : memref<64x4x512xf32, #core.psum>
// CHECK-DAG: %[[O:.*]] = core.alloc "o" at 13312 : memref<64x2x512xf32, #core.sbuf>
// CHECK: pipe.run
// CHECK: affine.for %[[N:.*]] = 0 to 4
// CHECK: affine.for %[[K:.*]] = 0 to 8
// CHECK-NOT: core.alloc
// CHECK: core.dma %{{.*}} -> %[[T]][0, %[[K]] mod 4, 0] [128, 1, 512]
// CHECK: core.matmul %[[A]][0, %[[N]] mod 4, 0] [64, 1, 512], %w[0, %[[K]], 0] [128, 1, 64], %[[T]][0, %[[K]] mod 4, 0] [128, 1, 512] init %[[K]]
// CHECK: core.activation relu %[[O]][0, %[[N]] mod 2, 0] [64, 1, 512], %[[A]][0, %[[N]] mod 4, 0] [64, 1, 512]
// ONE-LABEL: pipe.program @rotate
// ONE-DAG: core.alloc "t" at 9216 : memref<128x512xbf16, #core.sbuf>
// ONE-DAG: core.alloc "acc" at 0 : memref<64x512xf32, #core.psum>
// ONE-DAG: core.alloc "o" at 10240 : memref<64x512xf32, #core.sbuf>
// ONE-LABEL: pipe.program @share
pipe.program @rotate {
  %x = pipe.ring "x" depth 2 on chip 0 : memref<2x8x128x512xbf16, #core.dram>
  %h = pipe.ring "h" depth 2 on core 0 : memref<64x2x4x512xbf16, #core.sbuf>
  pipe.input "x" to %x
  pipe.stage @s0 cores [0] (%x) {
  ^bb0(%xr: memref<2x8x128x512xbf16, #core.dram>):
    %w = core.alloc "w" : memref<128x8x64xbf16, #core.sbuf>
    pipe.load {
      core.memset %w, 1.0
    }
    pipe.run (%r) {
      affine.for %n = 0 to 4 {
        %acc = core.alloc "acc" : memref<64x512xf32, #core.psum>
        affine.for %k = 0 to 8 {
          %t = core.alloc "t" : memref<128x512xbf16, #core.sbuf>
          core.dma %xr[%r mod 2, %k, 0, 0] [1, 1, 128, 512] -> %t
          core.matmul %acc, %w[0, %k, 0] [128, 1, 64], %t init %k
        }
        %o = core.alloc "o" : memref<64x512xf32, #core.sbuf>
        core.activation relu %o, %acc
      }
    }
  }
}

// -----

// Buffers share bytes only where they must: here SBUF is small, and `a` is dead when `c` begins.
// CHECK-LABEL: pipe.program @share
// CHECK: core.sbuf_plan = #pipe.certificate<2048.0, 2048.0, "bytes per partition", "{{.*}}">
// CHECK: core.alloc "a" at [[A:[0-9]+]] :
// CHECK: core.alloc "b" at
// CHECK: core.alloc "c" at [[A]] :
builtin.module attributes {core.machine = "inferentia1", core.machine_overrides = {sbuf.bytes_per_partition = 2048 : i64}} {
  pipe.program @share {
    pipe.stage @s0 cores [0] () {
      pipe.load {
      }
      pipe.run (%r) {
        %a = core.alloc "a" : memref<64x256xf32, #core.sbuf>
        core.memset %a, 1.0
        %b = core.alloc "b" : memref<64x256xf32, #core.sbuf>
        core.copy %b, %a
        %c = core.alloc "c" : memref<64x256xf32, #core.sbuf>
        core.copy %c, %b
      }
    }
  }
}

// -----

// `a` rests while `b` and `c` are alive: it goes to DRAM and comes back. The transfers say where they come from.
// CHECK-LABEL: pipe.program @spill
// CHECK: core.spills = ["a"]
// CHECK: core.alloc "a" at [[A:[0-9]+]] : memref<64x256xf32, #core.sbuf>
// CHECK: core.alloc "a.spill" at 0 : memref<2x64x256xf32, #core.dram>
// CHECK: core.memset %[[A1:.*]], 1.0
// CHECK-NEXT: core.dma %[[A1]] -> %[[S:.*]][%r mod 2, 0, 0] [1, 64, 256] queue 3
// CHECK-NEXT: core.memset %[[B:.*]], 2.0
// CHECK-NEXT: core.copy %[[C:.*]], %[[B]]
// CHECK-NEXT: core.dma %[[S]][%r mod 2, 0, 0] [1, 64, 256] -> %[[A2:.*]] queue 3
// CHECK-NEXT: core.tensor_tensor add %[[C]], %[[C]], %[[A2]]
builtin.module attributes {core.machine = "inferentia1", core.machine_overrides = {sbuf.bytes_per_partition = 2048 : i64}} {
  pipe.program @spill {
    pipe.stage @s0 cores [0] () {
      pipe.load {
      }
      pipe.run (%r) {
        %a = core.alloc "a" : memref<64x256xf32, #core.sbuf>
        core.memset %a, 1.0
        %b = core.alloc "b" : memref<64x256xf32, #core.sbuf>
        core.memset %b, 2.0
        %c = core.alloc "c" : memref<64x256xf32, #core.sbuf>
        core.copy %c, %b
        core.tensor_tensor add %c, %c, %a
      }
    }
  }
}

// -----

// A slot of PSUM does not cross a bank of 2048 bytes: rows are padded from 8 to 9, and the first slot begins later.
// CHECK-LABEL: pipe.program @banks
// CHECK: core.alloc "acc" at 128 : memref<64x4x1x9x56xf32, #core.psum>
// CHECK: core.memset %{{.*}}[0, %{{.*}} mod 4, 0, 0, 0] [64, 1, 1, 8, 56], 0.0
pipe.program @banks {
  pipe.stage @s0 cores [0] () {
    pipe.load {
    }
    pipe.run (%r) {
      affine.for %n = 0 to 7 {
        %acc = core.alloc "acc" : memref<64x1x8x56xf32, #core.psum>
        core.memset %acc, 0.0
      }
    }
  }
}
