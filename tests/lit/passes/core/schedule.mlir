// RUN: neuron-opt %s -p core-schedule --split-input-file --print-debuginfo | filecheck %s

// One stream per engine, each with the loops it takes part in. Two slots: a tile is loaded while the one before is used.
// Locations stay, on waits and signals, too.
// CHECK-LABEL: pipe.program @streams
// CHECK: %[[XF:.*]] = core.semaphore "x.full" on core 0
// CHECK-NEXT: %[[XC:.*]] = core.semaphore "x.credit"
// CHECK: %[[YF:.*]] = core.semaphore "y.full"
// CHECK-NEXT: %[[YC:.*]] = core.semaphore "y.credit" on core 0
// CHECK: pipe.input "x" to %x full %[[XF]] credit %[[XC]]
// CHECK: pipe.stage @s0 cores [0] (%x, %y, %[[XF]], %[[XC]], %[[YF]], %[[YC]])
// CHECK-NEXT: ^bb0(%{{.*}}, %[[F:.*]]: !core.semaphore{{.*}}, %[[C:.*]]: !core.semaphore{{.*}}, %[[G:.*]]: !core.semaphore{{.*}}, %[[D:.*]]: !core.semaphore
// CHECK: pipe.run (%[[R:.*]]) {
// CHECK-NEXT: core.engine dma0 {
// CHECK-NEXT:   core.wait %[[F]] >= %[[R]] + 1
// CHECK-NEXT:   affine.for %[[I:.*]] = 0 to 6 {
// CHECK-NEXT:     core.wait %scalar >= %[[R]] * 6 + %[[I]] - 1 loc("load")
// CHECK-NEXT:     core.dma {{.*}} loc("load")
// CHECK-NEXT:     core.signal %dma0 loc("load")
// CHECK:        core.signal %[[C]]
// CHECK:      core.engine scalar {
// CHECK-NEXT:   affine.for %[[J:.*]] = 0 to 6 {
// CHECK-NEXT:     core.wait %dma0 >= %[[R]] * 6 + %[[J]] + 1 loc("relu")
// CHECK-NEXT:     core.wait %dma1 >= %[[R]] * 6 + %[[J]] - 1 loc("relu")
// CHECK-NEXT:     core.activation relu {{.*}} loc("relu")
// CHECK-NEXT:     core.signal %scalar loc("relu")
// CHECK:      core.engine dma1 {
// CHECK-NEXT:   core.wait %[[D]] >= %[[R]] - 1
// CHECK-NEXT:   affine.for %[[K:.*]] = 0 to 6 {
// CHECK-NEXT:     core.wait %scalar >= %[[R]] * 6 + %[[K]] + 1 loc("store")
// CHECK-NEXT:     core.dma {{.*}} loc("store")
// CHECK-NEXT:     core.signal %dma1 loc("store")
// CHECK:        core.signal %[[G]]
// CHECK: pipe.output "y" from %y full %[[YF]] credit %[[YC]]
pipe.program @streams {
  %x = pipe.ring "x" depth 2 on chip 0 at 0 : memref<2x64x6x16xf32, #core.dram>
  %y = pipe.ring "y" depth 2 on chip 0 at 65536 : memref<2x64x6x16xf32, #core.dram>
  pipe.input "x" to %x
  pipe.stage @s0 cores [0] (%x, %y) {
  ^bb0(%xr: memref<2x64x6x16xf32, #core.dram>, %yr: memref<2x64x6x16xf32, #core.dram>):
    %a = core.alloc "a" at 0 : memref<64x2x16xf32, #core.sbuf>
    %b = core.alloc "b" at 128 : memref<64x2x16xf32, #core.sbuf>
    pipe.load {
    }
    pipe.run (%r) {
      affine.for %i = 0 to 6 {
        core.dma %xr[%r mod 2, 0, %i, 0] [1, 64, 1, 16] -> %a[0, %i mod 2, 0] [64, 1, 16] loc("load")
        core.activation relu %b[0, %i mod 2, 0] [64, 1, 16], %a[0, %i mod 2, 0] [64, 1, 16] loc("relu")
        core.dma %b[0, %i mod 2, 0] [64, 1, 16] -> %yr[%r mod 2, 0, %i, 0] [1, 64, 1, 16] loc("store")
      }
    }
  }
  pipe.output "y" from %y
}

// -----

// What is apart does not wait: other tiles, other partitions. What shares an address does, by another name.
// CHECK-LABEL: pipe.program @apart
// CHECK: core.engine vector {
// CHECK-NEXT: core.wait %scalar >= %r loc
// CHECK-NEXT: core.memset %a[0, 0, 0] [64, 1, 16], 0.0
// CHECK-NEXT: core.signal %vector
// CHECK-NEXT: core.memset %a[64, 1, 0] [32, 1, 16], 0.0
// CHECK-NEXT: }
// CHECK-NEXT: core.engine scalar {
// CHECK-NEXT: core.activation relu %a[0, 1, 0] [64, 1, 16], %a[0, 2, 0] [64, 1, 16]
// CHECK-NEXT: core.activation relu %c, %a[0, 3, 0] [64, 1, 16]
// CHECK-NEXT: core.wait %vector >= %r + 1
// CHECK-NEXT: core.activation relu %d, %c
// CHECK-NEXT: core.signal %scalar
pipe.program @apart {
  pipe.stage @s0 cores [0] () {
    %a = core.alloc "a" at 0 : memref<128x4x16xf32, #core.sbuf>
    %c = core.alloc "c" at 1024 : memref<64x16xf32, #core.sbuf>
    %d = core.alloc "d" at 0 : memref<64x16xf32, #core.sbuf>
    pipe.load {
    }
    pipe.run (%r) {
      core.memset %a[0, 0, 0] [64, 1, 16], 0.0
      core.activation relu %a[0, 1, 0] [64, 1, 16], %a[0, 2, 0] [64, 1, 16]
      core.memset %a[64, 1, 0] [32, 1, 16], 0.0
      core.activation relu %c, %a[0, 3, 0] [64, 1, 16]
      core.activation relu %d, %c
    }
  }
}

// -----

// Three slots over eight iterations an inner loop: the distance reaches over the border of the loop, where another signal stands.
// CHECK-LABEL: pipe.program @border
// CHECK: core.engine vector {
// CHECK: core.tensor_tensor
// CHECK-NEXT: core.signal %vector
// CHECK: core.tensor_scalar
// CHECK-NEXT: core.signal %vector
// CHECK: core.engine dma0 {
// CHECK-NEXT: affine.for %[[N:.*]] = 0 to 3 {
// CHECK-NEXT:   affine.for %[[K:.*]] = 0 to 8 {
// CHECK-NEXT:     core.wait %vector >= %r * 27 + %[[N]] * 9 + %[[K]] + (%[[K]] - 3) floordiv 8 - 2
// CHECK: core.engine scalar {
// CHECK-NEXT: affine.for %[[M:.*]] = 0 to 3 {
// CHECK-NEXT: core.wait %vector >= %r * 27 + %[[M]] * 9 + 9
pipe.program @border {
  pipe.stage @s0 cores [0] () {
    %a = core.alloc "a" at 0 : memref<64x3x16xf32, #core.sbuf>
    %s = core.alloc "s" at 192 : memref<64x2x16xf32, #core.sbuf>
    %o = core.alloc "o" at 320 : memref<64x3x16xf32, #core.sbuf>
    %d = core.alloc "d" at 0 : memref<24x64x16xf32, #core.dram>
    pipe.load {
    }
    pipe.run (%r) {
      affine.for %n = 0 to 3 {
        core.memset %s[0, %n mod 2, 0] [64, 1, 16], 0.0
        affine.for %k = 0 to 8 {
          core.dma %d[%n * 8 + %k, 0, 0] [1, 64, 16] -> %a[0, (%n * 2 + %k) mod 3, 0] [64, 1, 16] queue 0
          core.tensor_tensor add %s[0, %n mod 2, 0] [64, 1, 16], %s[0, %n mod 2, 0] [64, 1, 16], %a[0, (%n * 2 + %k) mod 3, 0] [64, 1, 16]
        }
        core.tensor_scalar %s[0, %n mod 2, 0] [64, 1, 16], %s[0, %n mod 2, 0] [64, 1, 16] op0 mul 2.0
        core.activation relu %o[0, %n, 0] [64, 1, 16], %s[0, %n mod 2, 0] [64, 1, 16]
      }
    }
  }
}
