// RUN: neuron-opt %s -p canonicalize --split-input-file | filecheck %s

// Storage and semaphores that nothing uses.

// CHECK-LABEL: pipe.program @unused
// CHECK-NEXT:    pipe.stage @s cores [0] () {
// CHECK-NEXT:      %kept = core.alloc "kept" at 0 : memref<128x8xf32, #core.sbuf>
// CHECK-NEXT:      pipe.load {
pipe.program @unused {
  %far = core.semaphore "far" on core 1
  pipe.stage @s cores [0] () {
    %kept = core.alloc "kept" at 0 : memref<128x8xf32, #core.sbuf>
    %gone = core.alloc "gone" at 32 : memref<128x8xf32, #core.sbuf>
    %s = core.semaphore "s"
    %w = core.const "w" {
      %0 = nn.weight "w" splat<1.0> : tensor<8xf32>
      nn.yield %0 : tensor<8xf32>
    } : memref<8xf32, #core.dram>
    pipe.load {}
    pipe.run (%r) {
      core.memset %kept, 0.0
    }
  }
}

// -----

// Waits that every stream has passed before it starts; others stay, those on the request number too.

// CHECK-LABEL: pipe.program @waits
// CHECK:         core.engine vector {
// CHECK-NEXT:      core.wait %s >= 1
// CHECK-NEXT:      core.wait %s >= %r
// CHECK-NEXT:      core.memset
pipe.program @waits {
  pipe.stage @s cores [0] () {
    %a = core.alloc "a" at 0 : memref<128x8xf32, #core.sbuf>
    %s = core.semaphore "s"
    pipe.load {}
    pipe.run (%r) {
      core.engine vector {
        core.wait %s >= 0
        core.wait %s >= 1
        core.wait %s >= -3
        core.wait %s >= %r
        core.memset %a, 0.0
      }
      core.engine scalar {
        core.signal %s
      }
    }
  }
}

// -----

// Copies onto themselves; not those that move, or permute.

// CHECK-LABEL: pipe.program @copies
// CHECK:         pipe.run (%r) {
// CHECK-NEXT:      core.memset %a, 0.0
// CHECK-NEXT:      core.copy %a[0, 0, 0] [128, 1, 8], %a[0, 1, 0] [128, 1, 8]
// CHECK-NEXT:      core.dma %a[0, 0, 0] [8, 1, 8] -> %a[0, 0, 0] [8, 1, 8] permute [2, 1, 0]
// CHECK-NEXT:      core.copy %a[0, %r mod 2, 0] [128, 1, 8], %a[0, 1, 0] [128, 1, 8]
// CHECK-NEXT:    }
pipe.program @copies {
  pipe.stage @s cores [0] () {
    %a = core.alloc "a" : memref<128x2x8xf32, #core.sbuf>
    pipe.load {}
    pipe.run (%r) {
      core.memset %a, 0.0
      core.copy %a, %a
      core.copy %a[0, 0, 0] [128, 1, 8], %a[0, 1, 0] [128, 1, 8]
      core.dma %a[0, %r mod 2, 0] [128, 1, 8] -> %a[0, %r mod 2, 0] [128, 1, 8]
      core.dma %a[0, 0, 0] [8, 1, 8] -> %a[0, 0, 0] [8, 1, 8] permute [2, 1, 0]
      core.copy %a[0, %r mod 2, 0] [128, 1, 8], %a[0, 1, 0] [128, 1, 8]
    }
  }
}
