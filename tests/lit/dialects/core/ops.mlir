// RUN: neuron-opt %s --split-input-file | filecheck %s
// RUN: neuron-opt %s --split-input-file | neuron-opt --split-input-file | filecheck %s
// RUN: neuron-opt %s --split-input-file --print-op-generic | neuron-opt --split-input-file | filecheck %s

// Memory: buffers with and without addresses, constants, every memory space.

// CHECK-LABEL: pipe.program @memory
// CHECK:      %w = core.const "w" {
// CHECK-NEXT:   %0 = nn.weight "w" : tensor<64x3xf32>
// CHECK-NEXT:   %1 = nn.transpose %0 perm [1, 0] : (tensor<64x3xf32>) -> tensor<3x64xf32>
// CHECK-NEXT:   nn.yield %1 : tensor<3x64xf32>
// CHECK-NEXT: } : memref<3x64xf32, #core.dram>
// CHECK-NEXT: %a = core.alloc "a" : memref<128x4x8xbf16, #core.sbuf>
// CHECK-NEXT: %b = core.alloc "b" at 4096 : memref<64x512xf32, #core.psum>
// CHECK-NEXT: %c = core.alloc "c" at 0 : memref<10xi64, #core.dram>
// CHECK-NEXT: %d = core.alloc "with \22quotes\22" : memref<1x1xf16, #core.sbuf>
// CHECK-NEXT: pipe.load {
// CHECK-NEXT: }
// CHECK-NEXT: pipe.run (%r) {
// CHECK-NEXT: }
pipe.program @memory {
  pipe.stage @s cores [0] () {
    %w = core.const "w" {
      %0 = nn.weight "w" : tensor<64x3xf32>
      %1 = nn.transpose %0 perm [1, 0] : (tensor<64x3xf32>) -> tensor<3x64xf32>
      nn.yield %1 : tensor<3x64xf32>
    } : memref<3x64xf32, #core.dram>
    %a = core.alloc "a" : memref<128x4x8xbf16, #core.sbuf>
    %b = core.alloc "b" at 4096 : memref<64x512xf32, #core.psum>
    %c = core.alloc "c" at 0 : memref<10xi64, #core.dram>
    %d = core.alloc "with \22quotes\22" : memref<1x1xf16, #core.sbuf>
    pipe.load {}
    pipe.run (%r) {}
  }
}

// -----

// Every form of an access.

// CHECK-LABEL: pipe.program @accesses
pipe.program @accesses {
  pipe.stage @s cores [0] () {
    %a = core.alloc "a" : memref<128x16x32xf32, #core.sbuf>
    pipe.load {}
    pipe.run (%r) {
      // The whole buffer, written either way.
      // CHECK: core.memset %a, 0.0
      core.memset %a, 0.0
      // CHECK-NEXT: core.memset %a, 0.0
      core.memset %a[0, 0, 0] [128, 16, 32] [1, 1, 1], 0.0
      // CHECK-NEXT: core.memset %a[32, 1, 2] [32, 3, 4], -1.5
      core.memset %a[32, 1, 2] [32, 3, 4], -1.5
      // CHECK-NEXT: core.memset %a[0, 0, 1] [64, 8, 10] [1, 2, 3], 1.0e-20
      core.memset %a[0, 0, 1] [64, 8, 10] [1, 2, 3], 1.0e-20
      // CHECK-NEXT: core.memset %a[0, %r mod 2, 0] [128, 1, 32], inf
      core.memset %a[0, %r mod 2, 0] [128, 1, 32], inf
      affine.for %i = 0 to 4 {
        affine.for %j = 0 to 2 {
          // CHECK: core.memset %a[0, %i * 4 + %j - 1, 0] [128, 1, 8], 0.0
          core.memset %a[0, %i * 4 + %j - 1, 0] [128, 1, 8], 0.0
          // CHECK-NEXT: core.memset %a[%j * 32, (%i + %j) floordiv 2, (%i * 3 + %j) mod 8] [32, 1, 8], 0.0
          core.memset %a[%j * 32, (%i + %j) floordiv 2, (%i * 3 + %j) mod 8] [32, 1, 8], 0.0
          // CHECK-NEXT: core.memset %a[0, %i + (%j * 2) mod 3, 2] [128, 1, 8], 0.0
          core.memset %a[0, %i + ((%j * 2) mod 3), 2] [128, 1, 8], 0.0
          // Constants fold, and what is multiplied by 0 goes.
          // CHECK-NEXT: core.memset %a[0, %i, 5] [128, 1, 8], 0.0
          core.memset %a[0, %i + 0, 2 + 3] [128, 1, 8], 0.0
        }
      }
      // A stride of 0 repeats one element.
      // CHECK: core.copy %a[0, 0, 0] [128, 1, 32], %a[0, 1, 3] [128, 1, 32] [1, 1, 0]
      core.copy %a[0, 0, 0] [128, 1, 32], %a[0, 1, 3] [128, 1, 32] [1, 1, 0]
    }
  }
}

// -----

// Instructions of the engines.

// CHECK-LABEL: pipe.program @compute
pipe.program @compute {
  pipe.stage @s cores [0] () {
    %w = core.alloc "w" : memref<128x2x64xbf16, #core.sbuf>
    %x = core.alloc "x" : memref<128x2x8x64xbf16, #core.sbuf>
    %y = core.alloc "y" : memref<64x8x64xbf16, #core.sbuf>
    %f = core.alloc "f" : memref<64x8x64xf32, #core.sbuf>
    %b = core.alloc "b" : memref<64x4xf32, #core.sbuf>
    %acc = core.alloc "acc" : memref<64x8x64xf32, #core.psum>
    %t = core.alloc "t" : memref<64x128xf32, #core.psum>
    pipe.load {}
    pipe.run (%r) {
      // CHECK: core.matmul %acc, %w[0, 0, 0] [128, 1, 64], %x[0, 0, 0, 0] [128, 1, 8, 64]
      core.matmul %acc, %w[0, 0, 0] [128, 1, 64], %x[0, 0, 0, 0] [128, 1, 8, 64]
      affine.for %k = 0 to 2 {
        // CHECK: core.matmul %acc, %w[0, %k, 0] [128, 1, 64], %x[0, %k, 0, 0] [128, 1, 8, 64] init %k
        core.matmul %acc, %w[0, %k, 0] [128, 1, 64], %x[0, %k, 0, 0] [128, 1, 8, 64] init %k
        affine.for %j = 0 to 3 {
          // The sum begins anew where no index is above 0; an index may occur in `init` alone.
          // CHECK: core.matmul %acc, %w[0, %k, 0] [128, 1, 64], %x[0, %k, 0, 0] [128, 1, 8, 64] init %k + %j
          core.matmul %acc, %w[0, %k, 0] [128, 1, 64], %x[0, %k, 0, 0] [128, 1, 8, 64] init %k + %j
        }
      }
      // CHECK: core.matmul %acc[0, 0, 0] [32, 1, 64], %w[0, 0, 0] [128, 1, 32], %x[0, 0, 0, 0] [128, 1, 1, 64] init 1
      core.matmul %acc[0, 0, 0] [32, 1, 64], %w[0, 0, 0] [128, 1, 32], %x[0, 0, 0, 0] [128, 1, 1, 64] init 1
      // CHECK-NEXT: core.transpose %t, %w[0, 1, 0] [128, 1, 64]
      core.transpose %t, %w[0, 1, 0] [128, 1, 64]
      // CHECK-NEXT: core.activation relu %y, %acc
      core.activation relu %y, %acc
      // CHECK-NEXT: core.activation copy %y, %acc scale %b[0, 1] [64, 1] bias %b[0, 0] [64, 1]
      core.activation copy %y, %acc scale %b[0, 1] [64, 1] bias %b[0, 0] [64, 1]
      // CHECK-NEXT: core.activation leaky_relu %y, %acc times 0.5 plus -2.0 alpha 0.1
      core.activation leaky_relu %y, %acc times 0.5 plus -2 alpha 0.1
      // CHECK-NEXT: core.activation exp %f, %acc bias %b[0, 0] [64, 1] times 2.0
      core.activation exp %f, %acc bias %b[0, 0] [64, 1] times 2.0
      // CHECK-NEXT: core.copy %y, %f
      core.copy %y, %f
      // CHECK-NEXT: core.copy %y, %f on scalar
      core.copy %y, %f on scalar
      // CHECK-NEXT: core.memset %y[0, 0, 0] [64, 1, 64], 0.25
      core.memset %y[0, 0, 0] [64, 1, 64], 0.25
      // CHECK-NEXT: core.tensor_tensor add %y, %acc, %f
      core.tensor_tensor add %y, %acc, %f
      // CHECK-NEXT: core.tensor_scalar %y, %f op0 max 0.0
      core.tensor_scalar %y, %f op0 max 0.0
      // CHECK-NEXT: core.tensor_scalar %y, %f operand0 %b[0, 0] [64, 1] op0 mul op1 min 6.0
      core.tensor_scalar %y, %f operand0 %b[0, 0] [64, 1] op0 mul op1 min 6.0
      // CHECK-NEXT: core.tensor_scalar %y, %f operand0 %b[0, 0] [64, 1] operand1 %b[0, 1] [64, 1] op0 mul op1 add
      core.tensor_scalar %y, %f operand0 %b[0, 0] [64, 1] operand1 %b[0, 1] [64, 1] op0 mul op1 add
      // CHECK-NEXT: core.scalar_tensor_tensor mul add %f, %y, %b[0, 2] [64, 1], %f
      core.scalar_tensor_tensor mul add %f, %y, %b[0, 2] [64, 1], %f
      // CHECK-NEXT: core.tensor_reduce max %b[0, 0] [64, 1], %f
      // CHECK-NEXT: core.select %y, %f, %f, %y
      core.tensor_reduce max %b[0, 0] [64, 1], %f[0, 0, 0] [64, 8, 64]
      core.select %y, %f, %f, %y
    }
  }
}

// -----

// Streams, semaphores, DMA.

// CHECK-LABEL: pipe.program @streams
pipe.program @streams {
  // CHECK: %far = core.semaphore "far" on core 3
  %far = core.semaphore "far" on core 3
  pipe.stage @s cores [0] (%far) {
  ^bb0(%f: !core.semaphore):
    %table = core.const "table" {
      %0 = nn.weight "table" seeded<1> : tensor<50x16xf32>
      nn.yield %0 : tensor<50x16xf32>
    } : memref<50x16xf32, #core.dram>
    %a = core.alloc "a" : memref<16x64xf32, #core.sbuf>
    %b = core.alloc "b" : memref<4x4x64xf32, #core.sbuf>
    %ids = core.alloc "ids" : memref<16x1xi64, #core.sbuf>
    %rows = core.alloc "rows" : memref<16x16xf32, #core.sbuf>
    // CHECK: %s = core.semaphore "s"
    %s = core.semaphore "s"
    pipe.load {
      // CHECK: core.engine dma7 {
      // CHECK-NEXT: core.dma %table[0, 0] [16, 16] -> %rows
      core.engine dma7 {
        core.dma %table[0, 0] [16, 16] -> %rows
      }
    }
    pipe.run (%r) {
      // CHECK: core.engine vector {
      // CHECK-NEXT: }
      core.engine vector {}
      core.engine dma0 {
        affine.for %i = 0 to 4 {
          // CHECK: core.wait %s >= %r * 4 + %i - 3
          core.wait %s >= %r * 4 + %i - 3
          // CHECK-NEXT: core.wait %s >= 2
          core.wait %s >= 2
          // Dimensions of size 1 need not agree.
          // CHECK-NEXT: core.dma %a[%i, 0] [1, 64] -> %b[0, %i, 0] [1, 1, 64]
          core.dma %a[%i, 0] [1, 64] -> %b[0, %i, 0] [1, 1, 64]
          // CHECK-NEXT: core.signal %f
          core.signal %f
        }
        // CHECK: core.dma %a[0, 0] [16, 16] -> %a[0, 16] [16, 16] permute [1, 0]
        core.dma %a[0, 0] [16, 16] -> %a[0, 16] [16, 16] permute [1, 0]
        // CHECK-NEXT: core.dma %a[0, 0] [16, 16] -> %a[0, 16] [16, 16] permute [1, 0] queue 3
        core.dma %a[0, 0] [16, 16] -> %a[0, 16] [16, 16] permute [1, 0] queue 3
        // CHECK-NEXT: core.dma %a[0, 0] [16, 16] -> %a[0, 16] [16, 16] queue 2
        core.dma %a[0, 0] [16, 16] -> %a[0, 16] [16, 16] queue 2
        // CHECK-NEXT: core.gather %rows, %table, %ids
        core.gather %rows, %table, %ids
        // CHECK-NEXT: core.gather %rows, %table, %ids queue 1
        core.gather %rows, %table, %ids queue 1
      }
    }
  }
}
