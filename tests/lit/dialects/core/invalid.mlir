// RUN: neuron-opt %s --split-input-file --verify-diagnostics --parsing-diagnostics | filecheck %s

// CHECK: an access to memref<128x8x64xbf16, #core.sbuf> needs 3 offsets, sizes and strides, got 2, 2 and 2
pipe.program @p {
  pipe.stage @s cores [0] () {
    %x = core.alloc "x" : memref<128x8x64xbf16, #core.sbuf>
    pipe.load {}
    pipe.run (%r) {
      core.memset %x[0, 0] [128, 8], 0.0
    }
  }
}

// -----

// CHECK: an access to memref<128x8x64xbf16, #core.sbuf> needs 3 offsets, sizes and strides, got 3, 3 and 2
pipe.program @p {
  pipe.stage @s cores [0] () {
    %x = core.alloc "x" : memref<128x8x64xbf16, #core.sbuf>
    pipe.load {}
    pipe.run (%r) {
      core.memset %x[0, 0, 0] [128, 8, 64] [1, 1], 0.0
    }
  }
}

// -----

// CHECK: dimension 1 of an access needs size >= 1 and stride >= 0, got 0 and 1
pipe.program @p {
  pipe.stage @s cores [0] () {
    %x = core.alloc "x" : memref<128x8x64xbf16, #core.sbuf>
    pipe.load {}
    pipe.run (%r) {
      core.memset %x[0, 0, 0] [128, 0, 64], 0.0
    }
  }
}

// -----

// CHECK: dimension 2 of an access needs size >= 1 and stride >= 0, got 8 and -1
pipe.program @p {
  pipe.stage @s cores [0] () {
    %x = core.alloc "x" : memref<128x8x64xbf16, #core.sbuf>
    pipe.load {}
    pipe.run (%r) {
      core.memset %x[0, 0, 0] [128, 1, 8] [1, 1, -1], 0.0
    }
  }
}

// -----

// CHECK: out of range: dimension 2 of memref<128x8x64xbf16, #core.sbuf> has 64 elements, the access takes element 60 to 67
pipe.program @p {
  pipe.stage @s cores [0] () {
    %x = core.alloc "x" : memref<128x8x64xbf16, #core.sbuf>
    pipe.load {}
    pipe.run (%r) {
      core.memset %x[0, 0, 60] [128, 1, 8], 0.0
    }
  }
}

// -----

// CHECK: out of range: dimension 1 of memref<128x8x64xbf16, #core.sbuf> has 8 elements, the access takes element -1 to 0
pipe.program @p {
  pipe.stage @s cores [0] () {
    %x = core.alloc "x" : memref<128x8x64xbf16, #core.sbuf>
    pipe.load {}
    pipe.run (%r) {
      core.memset %x[0, -1, 0] [128, 2, 8], 0.0
    }
  }
}

// -----

// CHECK: out of range: dimension 1 of memref<128x8x64xbf16, #core.sbuf> has 8 elements, the access takes element 0 to 9
pipe.program @p {
  pipe.stage @s cores [0] () {
    %x = core.alloc "x" : memref<128x8x64xbf16, #core.sbuf>
    pipe.load {}
    pipe.run (%r) {
      core.memset %x[0, %r, 0] [128, 4, 8] [1, 3, 1], 0.0
    }
  }
}

// -----

// CHECK: out must be in sbuf or psum, got dram
pipe.program @p {
  pipe.stage @s cores [0] () {
    %d = core.alloc "d" : memref<128x64xf32, #core.dram>
    pipe.load {}
    pipe.run (%r) {
      core.memset %d, 0.0
    }
  }
}

// -----

// CHECK: out starts at partition 16 with stride 1: an engine starts at partition 0, 32, 64 or 96 and takes neighbouring ones; move the data by DMA or a transpose
pipe.program @p {
  pipe.stage @s cores [0] () {
    %x = core.alloc "x" : memref<128x8x64xbf16, #core.sbuf>
    pipe.load {}
    pipe.run (%r) {
      core.memset %x[16, 0, 0] [16, 1, 64], 0.0
    }
  }
}

// -----

// CHECK: out starts at partition 0 with stride 2: an engine starts at partition 0, 32, 64 or 96
pipe.program @p {
  pipe.stage @s cores [0] () {
    %x = core.alloc "x" : memref<128x8x64xbf16, #core.sbuf>
    pipe.load {}
    pipe.run (%r) {
      core.memset %x[0, 0, 0] [64, 1, 64] [2, 1, 1], 0.0
    }
  }
}

// -----

// CHECK: in [128, 1, 32] does not match out [128, 1, 64]: partitions and free sizes must be equal
pipe.program @p {
  pipe.stage @s cores [0] () {
    %x = core.alloc "x" : memref<128x8x64xbf16, #core.sbuf>
    %f = core.alloc "f" : memref<128x8x64xf32, #core.sbuf>
    pipe.load {}
    pipe.run (%r) {
      core.copy %x[0, 0, 0] [128, 1, 64], %f[0, 0, 0] [128, 1, 32]
    }
  }
}

// -----

// CHECK: in [64, 1, 64] does not match out [128, 1, 64]: partitions and free sizes must be equal
pipe.program @p {
  pipe.stage @s cores [0] () {
    %x = core.alloc "x" : memref<128x8x64xbf16, #core.sbuf>
    %f = core.alloc "f" : memref<128x8x64xf32, #core.sbuf>
    pipe.load {}
    pipe.run (%r) {
      core.copy %x[0, 0, 0] [128, 1, 64], %f[0, 0, 0] [64, 1, 64]
    }
  }
}

// -----

// CHECK: cannot run on tensor; allowed: vector, scalar
pipe.program @p {
  pipe.stage @s cores [0] () {
    %x = core.alloc "x" : memref<128x8x64xbf16, #core.sbuf>
    %f = core.alloc "f" : memref<128x8x64xf32, #core.sbuf>
    pipe.load {}
    pipe.run (%r) {
      core.copy %x, %f on tensor
    }
  }
}

// -----

// CHECK: bias needs one element in each of 128 partitions, got [128, 4]
pipe.program @p {
  pipe.stage @s cores [0] () {
    %x = core.alloc "x" : memref<128x8x64xbf16, #core.sbuf>
    %f = core.alloc "f" : memref<128x8x64xf32, #core.sbuf>
    %b = core.alloc "b" : memref<128x4xf32, #core.sbuf>
    pipe.load {}
    pipe.run (%r) {
      core.activation relu %x, %f bias %b
    }
  }
}

// -----

// CHECK: scale needs one element in each of 128 partitions, got [64, 1]
pipe.program @p {
  pipe.stage @s cores [0] () {
    %x = core.alloc "x" : memref<128x8x64xbf16, #core.sbuf>
    %f = core.alloc "f" : memref<128x8x64xf32, #core.sbuf>
    %b = core.alloc "b" : memref<128x4xf32, #core.sbuf>
    pipe.load {}
    pipe.run (%r) {
      core.activation relu %x, %f scale %b[0, 0] [64, 1]
    }
  }
}

// -----

// CHECK: no activation 'rely'; allowed: copy, relu, leaky_relu
pipe.program @p {
  pipe.stage @s cores [0] () {
    %x = core.alloc "x" : memref<128x8x64xbf16, #core.sbuf>
    %f = core.alloc "f" : memref<128x8x64xf32, #core.sbuf>
    pipe.load {}
    pipe.run (%r) {
      core.activation rely %x, %f
    }
  }
}

// -----

// CHECK: bias must be either a number or an access
pipe.program @p {
  pipe.stage @s cores [0] () {
    %x = core.alloc "x" : memref<128x8x64xbf16, #core.sbuf>
    %f = core.alloc "f" : memref<128x8x64xf32, #core.sbuf>
    %b = core.alloc "b" : memref<128x4xf32, #core.sbuf>
    pipe.load {}
    pipe.run (%r) {
      core.activation relu %x, %f bias %b[0, 0] [128, 1] plus 1.0
    }
  }
}

// -----

// CHECK: scale must be either a number or an access
pipe.program @p {
  pipe.stage @s cores [0] () {
    %x = core.alloc "x" : memref<128x8x64xbf16, #core.sbuf>
    %f = core.alloc "f" : memref<128x8x64xf32, #core.sbuf>
    %b = core.alloc "b" : memref<128x4xf32, #core.sbuf>
    pipe.load {}
    pipe.run (%r) {
      core.activation relu %x, %f scale %b[0, 0] [128, 1] times 1.0
    }
  }
}

// -----

// CHECK: alpha is the slope of leaky_relu, not of relu
pipe.program @p {
  pipe.stage @s cores [0] () {
    %x = core.alloc "x" : memref<128x8x64xbf16, #core.sbuf>
    %f = core.alloc "f" : memref<128x8x64xf32, #core.sbuf>
    pipe.load {}
    pipe.run (%r) {
      core.activation relu %x, %f alpha 1.0
    }
  }
}

// -----

// CHECK: stationary must be [<=128, <=64], got [128, 128]
pipe.program @p {
  pipe.stage @s cores [0] () {
    %x = core.alloc "x" : memref<128x8x64xbf16, #core.sbuf>
    %w = core.alloc "w" : memref<128x128xbf16, #core.sbuf>
    %acc = core.alloc "acc" : memref<64x8x64xf32, #core.psum>
    pipe.load {}
    pipe.run (%r) {
      core.matmul %acc, %w, %x
    }
  }
}

// -----

// CHECK: stationary must be [<=128, <=64], got [128, 8, 8]
pipe.program @p {
  pipe.stage @s cores [0] () {
    %x = core.alloc "x" : memref<128x8x64xbf16, #core.sbuf>
    %acc = core.alloc "acc" : memref<64x8x64xf32, #core.psum>
    pipe.load {}
    pipe.run (%r) {
      core.matmul %acc, %x[0, 0, 0] [128, 8, 8], %x
    }
  }
}

// -----

// CHECK: stationary has 64 rows, moving has 128
pipe.program @p {
  pipe.stage @s cores [0] () {
    %x = core.alloc "x" : memref<128x8x64xbf16, #core.sbuf>
    %w = core.alloc "w" : memref<128x128xbf16, #core.sbuf>
    %acc = core.alloc "acc" : memref<64x8x64xf32, #core.psum>
    pipe.load {}
    pipe.run (%r) {
      core.matmul %acc, %w[0, 0] [64, 64], %x
    }
  }
}

// -----

// CHECK: acc must be [64, [8, 64]], got [64, 4, 64]
pipe.program @p {
  pipe.stage @s cores [0] () {
    %x = core.alloc "x" : memref<128x8x64xbf16, #core.sbuf>
    %w = core.alloc "w" : memref<128x128xbf16, #core.sbuf>
    %acc = core.alloc "acc" : memref<64x8x64xf32, #core.psum>
    pipe.load {}
    pipe.run (%r) {
      core.matmul %acc[0, 0, 0] [64, 4, 64], %w[0, 0] [128, 64], %x
    }
  }
}

// -----

// CHECK: acc must be [32, [8, 64]], got [64, 8, 64]
pipe.program @p {
  pipe.stage @s cores [0] () {
    %x = core.alloc "x" : memref<128x8x64xbf16, #core.sbuf>
    %w = core.alloc "w" : memref<128x128xbf16, #core.sbuf>
    %acc = core.alloc "acc" : memref<64x8x64xf32, #core.psum>
    pipe.load {}
    pipe.run (%r) {
      core.matmul %acc, %w[0, 0] [128, 32], %x
    }
  }
}

// -----

// CHECK: stationary must be bf16 or f16 (no f32 product in hardware), got f32
pipe.program @p {
  pipe.stage @s cores [0] () {
    %x = core.alloc "x" : memref<128x8x64xbf16, #core.sbuf>
    %f = core.alloc "f" : memref<128x8x64xf32, #core.sbuf>
    %acc = core.alloc "acc" : memref<64x8x64xf32, #core.psum>
    pipe.load {}
    pipe.run (%r) {
      core.matmul %acc, %f[0, 0, 0] [128, 1, 64], %x
    }
  }
}

// -----

// CHECK: moving must be bf16 or f16 (no f32 product in hardware), got f32
pipe.program @p {
  pipe.stage @s cores [0] () {
    %w = core.alloc "w" : memref<128x128xbf16, #core.sbuf>
    %f = core.alloc "f" : memref<128x8x64xf32, #core.sbuf>
    %acc = core.alloc "acc" : memref<64x8x64xf32, #core.psum>
    pipe.load {}
    pipe.run (%r) {
      core.matmul %acc, %w[0, 0] [128, 64], %f
    }
  }
}

// -----

// CHECK: acc must be f32
pipe.program @p {
  pipe.stage @s cores [0] () {
    %x = core.alloc "x" : memref<128x8x64xbf16, #core.sbuf>
    %w = core.alloc "w" : memref<128x128xbf16, #core.sbuf>
    %accb = core.alloc "accb" : memref<64x8x64xbf16, #core.psum>
    pipe.load {}
    pipe.run (%r) {
      core.matmul %accb, %w[0, 0] [128, 64], %x
    }
  }
}

// -----

// CHECK: acc must be in psum, got sbuf
pipe.program @p {
  pipe.stage @s cores [0] () {
    %x = core.alloc "x" : memref<128x8x64xbf16, #core.sbuf>
    %w = core.alloc "w" : memref<128x128xbf16, #core.sbuf>
    %f = core.alloc "f" : memref<128x8x64xf32, #core.sbuf>
    pipe.load {}
    pipe.run (%r) {
      core.matmul %f[0, 0, 0] [64, 8, 64], %w[0, 0] [128, 64], %x
    }
  }
}

// -----

// CHECK: stationary must be in sbuf, got psum
pipe.program @p {
  pipe.stage @s cores [0] () {
    %x = core.alloc "x" : memref<128x8x64xbf16, #core.sbuf>
    %acc = core.alloc "acc" : memref<64x8x64xf32, #core.psum>
    %accb = core.alloc "accb" : memref<64x8x64xbf16, #core.psum>
    pipe.load {}
    pipe.run (%r) {
      core.matmul %acc, %accb[0, 0, 0] [64, 1, 64], %x[0, 0, 0] [64, 8, 64]
    }
  }
}

// -----

// CHECK: in must be [<=128, <=64], got [128, 128]
pipe.program @p {
  pipe.stage @s cores [0] () {
    %w = core.alloc "w" : memref<128x128xbf16, #core.sbuf>
    %acc = core.alloc "acc" : memref<64x8x64xf32, #core.psum>
    pipe.load {}
    pipe.run (%r) {
      core.transpose %acc[0, 0, 0] [64, 2, 64], %w
    }
  }
}

// -----

// CHECK: out must be [64, 128], got [64, 1, 64]
pipe.program @p {
  pipe.stage @s cores [0] () {
    %w = core.alloc "w" : memref<128x128xbf16, #core.sbuf>
    %acc = core.alloc "acc" : memref<64x8x64xf32, #core.psum>
    pipe.load {}
    pipe.run (%r) {
      core.transpose %acc[0, 0, 0] [64, 1, 64], %w[0, 0] [128, 64]
    }
  }
}

// -----

// CHECK: in must be bf16 or f16: the PE array has no f32 product
pipe.program @p {
  pipe.stage @s cores [0] () {
    %f = core.alloc "f" : memref<128x8x64xf32, #core.sbuf>
    %acc = core.alloc "acc" : memref<64x8x64xf32, #core.psum>
    pipe.load {}
    pipe.run (%r) {
      core.transpose %acc[0, 0, 0] [64, 1, 64], %f[0, 0, 0] [64, 1, 64]
    }
  }
}

// -----

// CHECK: no operation 'plus'; allowed: add, sub, rsub, mul
pipe.program @p {
  pipe.stage @s cores [0] () {
    %f = core.alloc "f" : memref<128x8x64xf32, #core.sbuf>
    pipe.load {}
    pipe.run (%r) {
      core.tensor_tensor plus %f, %f, %f
    }
  }
}

// -----

// CHECK: no operation 'plus'; allowed: add
pipe.program @p {
  pipe.stage @s cores [0] () {
    %f = core.alloc "f" : memref<128x8x64xf32, #core.sbuf>
    pipe.load {}
    pipe.run (%r) {
      core.tensor_scalar %f, %f op0 plus 1.0
    }
  }
}

// -----

// CHECK: no operation 'plus'; allowed: add
pipe.program @p {
  pipe.stage @s cores [0] () {
    %f = core.alloc "f" : memref<128x8x64xf32, #core.sbuf>
    pipe.load {}
    pipe.run (%r) {
      core.tensor_scalar %f, %f op0 add 1.0 op1 plus 1.0
    }
  }
}

// -----

// CHECK: operand0 must be either a number or an access
pipe.program @p {
  pipe.stage @s cores [0] () {
    %f = core.alloc "f" : memref<128x8x64xf32, #core.sbuf>
    pipe.load {}
    pipe.run (%r) {
      core.tensor_scalar %f, %f op0 add
    }
  }
}

// -----

// CHECK: operand0 must be either a number or an access
pipe.program @p {
  pipe.stage @s cores [0] () {
    %f = core.alloc "f" : memref<128x8x64xf32, #core.sbuf>
    %b = core.alloc "b" : memref<128x4xf32, #core.sbuf>
    pipe.load {}
    pipe.run (%r) {
      core.tensor_scalar %f, %f operand0 %b[0, 0] [128, 1] op0 add 1.0
    }
  }
}

// -----

// CHECK: operand1 must be either a number or an access
pipe.program @p {
  pipe.stage @s cores [0] () {
    %f = core.alloc "f" : memref<128x8x64xf32, #core.sbuf>
    pipe.load {}
    pipe.run (%r) {
      core.tensor_scalar %f, %f op0 add 1.0 op1 mul
    }
  }
}

// -----

// CHECK: no operation 'plus'; allowed: add
pipe.program @p {
  pipe.stage @s cores [0] () {
    %f = core.alloc "f" : memref<128x8x64xf32, #core.sbuf>
    %b = core.alloc "b" : memref<128x4xf32, #core.sbuf>
    pipe.load {}
    pipe.run (%r) {
      core.scalar_tensor_tensor mul plus %f, %f, %b[0, 0] [128, 1], %f
    }
  }
}

// -----

// CHECK: operand0 needs one element in each of 128 partitions, got [128, 4]
pipe.program @p {
  pipe.stage @s cores [0] () {
    %f = core.alloc "f" : memref<128x8x64xf32, #core.sbuf>
    %b = core.alloc "b" : memref<128x4xf32, #core.sbuf>
    pipe.load {}
    pipe.run (%r) {
      core.scalar_tensor_tensor mul add %f, %f, %b, %f
    }
  }
}

// -----

// CHECK: no reduction 'mean'; allowed: add, max, min, mul
pipe.program @p {
  pipe.stage @s cores [0] () {
    %f = core.alloc "f" : memref<128x8x64xf32, #core.sbuf>
    %b = core.alloc "b" : memref<128x4xf32, #core.sbuf>
    pipe.load {}
    pipe.run (%r) {
      core.tensor_reduce mean %b[0, 0] [128, 1], %f
    }
  }
}

// -----

// CHECK: out [128, 4] must be the partitions and leading free sizes of in [128, 8, 64]
pipe.program @p {
  pipe.stage @s cores [0] () {
    %f = core.alloc "f" : memref<128x8x64xf32, #core.sbuf>
    %b = core.alloc "b" : memref<128x4xf32, #core.sbuf>
    pipe.load {}
    pipe.run (%r) {
      core.tensor_reduce add %b, %f
    }
  }
}

// -----

// CHECK: src [128, 64] and dst [128, 8, 64] differ
pipe.program @p {
  pipe.stage @s cores [0] () {
    %f = core.alloc "f" : memref<128x8x64xf32, #core.sbuf>
    %d = core.alloc "d" : memref<128x64xf32, #core.dram>
    pipe.load {}
    pipe.run (%r) {
      core.dma %d -> %f
    }
  }
}

// -----

// CHECK: permute must reorder the 2 dimensions of src, got [0, 0]
pipe.program @p {
  pipe.stage @s cores [0] () {
    %d = core.alloc "d" : memref<128x64xf32, #core.dram>
    %rows = core.alloc "rows" : memref<128x64xf32, #core.sbuf>
    pipe.load {}
    pipe.run (%r) {
      core.dma %d -> %rows permute [0, 0]
    }
  }
}

// -----

// CHECK: src [64, 128] and dst [128, 64] differ
pipe.program @p {
  pipe.stage @s cores [0] () {
    %d = core.alloc "d" : memref<128x64xf32, #core.dram>
    %rows = core.alloc "rows" : memref<128x64xf32, #core.sbuf>
    pipe.load {}
    pipe.run (%r) {
      core.dma %d -> %rows permute [1, 0]
    }
  }
}

// -----

// CHECK: a DMA does not convert: src is f32, dst is bf16
pipe.program @p {
  pipe.stage @s cores [0] () {
    %x = core.alloc "x" : memref<128x8x64xbf16, #core.sbuf>
    %d = core.alloc "d" : memref<128x64xf32, #core.dram>
    pipe.load {}
    pipe.run (%r) {
      core.dma %d -> %x[0, 0, 0] [128, 1, 64]
    }
  }
}

// -----

// CHECK: src must be in sbuf or dram, got psum
pipe.program @p {
  pipe.stage @s cores [0] () {
    %f = core.alloc "f" : memref<128x8x64xf32, #core.sbuf>
    %acc = core.alloc "acc" : memref<64x8x64xf32, #core.psum>
    pipe.load {}
    pipe.run (%r) {
      core.dma %acc -> %f[0, 0, 0] [64, 8, 64]
    }
  }
}

// -----

// CHECK: needs dst [n, width], table [rows, width], index [n, 1]; got [128, 64], [128, 64], [64, 1]
pipe.program @p {
  pipe.stage @s cores [0] () {
    %d = core.alloc "d" : memref<128x64xf32, #core.dram>
    %ids = core.alloc "ids" : memref<128x1xi64, #core.sbuf>
    %rows = core.alloc "rows" : memref<128x64xf32, #core.sbuf>
    pipe.load {}
    pipe.run (%r) {
      core.gather %rows, %d, %ids[0, 0] [64, 1]
    }
  }
}

// -----

// CHECK: needs dst [n, width], table [rows, width], index [n, 1]; got [128, 64], [128, 32], [128, 1]
pipe.program @p {
  pipe.stage @s cores [0] () {
    %d = core.alloc "d" : memref<128x64xf32, #core.dram>
    %ids = core.alloc "ids" : memref<128x1xi64, #core.sbuf>
    %rows = core.alloc "rows" : memref<128x64xf32, #core.sbuf>
    pipe.load {}
    pipe.run (%r) {
      core.gather %rows, %d[0, 0] [128, 32], %ids
    }
  }
}

// -----

// CHECK: index must hold integers
pipe.program @p {
  pipe.stage @s cores [0] () {
    %d = core.alloc "d" : memref<128x64xf32, #core.dram>
    %fids = core.alloc "fids" : memref<128x1xf32, #core.sbuf>
    %rows = core.alloc "rows" : memref<128x64xf32, #core.sbuf>
    pipe.load {}
    pipe.run (%r) {
      core.gather %rows, %d, %fids
    }
  }
}

// -----

// CHECK: table must be in dram, got sbuf
pipe.program @p {
  pipe.stage @s cores [0] () {
    %f = core.alloc "f" : memref<128x8x64xf32, #core.sbuf>
    %ids = core.alloc "ids" : memref<128x1xi64, #core.sbuf>
    %rows = core.alloc "rows" : memref<128x64xf32, #core.sbuf>
    pipe.load {}
    pipe.run (%r) {
      core.gather %rows, %f[0, 0, 0] [128, 1, 64], %ids
    }
  }
}

// -----

// CHECK: %nowhere is not defined above
pipe.program @p {
  pipe.stage @s cores [0] () {
    pipe.load {}
    pipe.run (%r) {
      core.memset %nowhere, 0.0
    }
  }
}

// -----

// CHECK: an access needs a memref, got index
pipe.program @p {
  pipe.stage @s cores [0] () {
    pipe.load {}
    pipe.run (%r) {
      core.memset %r, 0.0
    }
  }
}

// -----

// CHECK: an offset needs index values, got memref<128x8x64xbf16, #core.sbuf>
pipe.program @p {
  pipe.stage @s cores [0] () {
    %x = core.alloc "x" : memref<128x8x64xbf16, #core.sbuf>
    pipe.load {}
    pipe.run (%r) {
      core.memset %x[0, %x, 0] [128, 1, 64], 0.0
    }
  }
}

// -----

// CHECK: needs a number
pipe.program @p {
  pipe.stage @s cores [0] () {
    %x = core.alloc "x" : memref<128x8x64xbf16, #core.sbuf>
    pipe.load {}
    pipe.run (%r) {
      core.memset %x, zero
    }
  }
}

// -----

// CHECK: needs a memory space #core.sbuf, #core.psum or #core.dram, got memref<128x8xf32>
pipe.program @p {
  pipe.stage @s cores [0] () {
    %a = core.alloc "a" : memref<128x8xf32>
    pipe.load {}
    pipe.run (%r) {}
  }
}

// -----

// CHECK: needs static, non-empty dimensions, got memref<128x?xf32, #core.sbuf>
pipe.program @p {
  pipe.stage @s cores [0] () {
    %a = core.alloc "a" : memref<128x?xf32, #core.sbuf>
    pipe.load {}
    pipe.run (%r) {}
  }
}

// -----

// CHECK: needs static, non-empty dimensions, got memref<128x0xf32, #core.sbuf>
pipe.program @p {
  pipe.stage @s cores [0] () {
    %a = core.alloc "a" : memref<128x0xf32, #core.sbuf>
    pipe.load {}
    pipe.run (%r) {}
  }
}

// -----

// CHECK: needs a partition dimension and at least one more in sbuf
pipe.program @p {
  pipe.stage @s cores [0] () {
    %a = core.alloc "a" : memref<128xf32, #core.sbuf>
    pipe.load {}
    pipe.run (%r) {}
  }
}

// -----

// CHECK: no storage format for element type f8E4M3FN; allowed: f32, bf16, f16
pipe.program @p {
  pipe.stage @s cores [0] () {
    %a = core.alloc "a" : memref<128x8xf8E4M3FN, #core.sbuf>
    pipe.load {}
    pipe.run (%r) {}
  }
}

// -----

// CHECK: address must not be negative, got -4
pipe.program @p {
  pipe.stage @s cores [0] () {
    %a = core.alloc "a" at -4 : memref<128x8xf32, #core.sbuf>
    pipe.load {}
    pipe.run (%r) {}
  }
}

// -----

// CHECK: a constant lives in #core.dram
pipe.program @p {
  pipe.stage @s cores [0] () {
    %w = core.const "w" {
      %0 = nn.weight "w" seeded<1> : tensor<4x8xf32>
      nn.yield %0 : tensor<4x8xf32>
    } : memref<4x8xf32, #core.sbuf>
    pipe.load {}
    pipe.run (%r) {}
  }
}

// -----

// CHECK: its region must end in nn.yield of one tensor
pipe.program @p {
  pipe.stage @s cores [0] () {
    %w = core.const "w" {
      %0 = nn.weight "w" seeded<1> : tensor<4x8xf32>
      nn.yield
    } : memref<4x8xf32, #core.dram>
    pipe.load {}
    pipe.run (%r) {}
  }
}

// -----

// CHECK: yields elements of f32, stores bf16
pipe.program @p {
  pipe.stage @s cores [0] () {
    %w = core.const "w" {
      %0 = nn.weight "w" seeded<1> : tensor<4x8xf32>
      nn.yield %0 : tensor<4x8xf32>
    } : memref<4x8xbf16, #core.dram>
    pipe.load {}
    pipe.run (%r) {}
  }
}

// -----

// CHECK: yields 32 elements, the buffer has 36
pipe.program @p {
  pipe.stage @s cores [0] () {
    %w = core.const "w" {
      %0 = nn.weight "w" seeded<1> : tensor<4x8xf32>
      nn.yield %0 : tensor<4x8xf32>
    } : memref<4x9xf32, #core.dram>
    pipe.load {}
    pipe.run (%r) {}
  }
}

// -----

// CHECK: no engine 'pool': allowed are tensor, scalar, vector and dma0, dma1, ...
pipe.program @p {
  pipe.stage @s cores [0] () {
    %s = core.semaphore "s"
    pipe.load {}
    pipe.run (%r) {
      core.engine pool {}
    }
  }
}

// -----

// CHECK: no engine 'dma': allowed are
pipe.program @p {
  pipe.stage @s cores [0] () {
    %s = core.semaphore "s"
    pipe.load {}
    pipe.run (%r) {
      core.engine dma {}
    }
  }
}

// -----

// CHECK: needs one value over 0 indices, got (d0) -> (d0)
pipe.program @p {
  pipe.stage @s cores [0] () {
    %s = core.semaphore "s"
    pipe.load {}
    pipe.run (%r) {
      "core.wait"(%s) <{value = affine_map<(d0) -> (d0)>}> : (!core.semaphore) -> ()
    }
  }
}

// -----

// CHECK: needs one value over 1 indices, got (d0) -> (d0, d0)
pipe.program @p {
  pipe.stage @s cores [0] () {
    %s = core.semaphore "s"
    pipe.load {}
    pipe.run (%r) {
      "core.wait"(%s, %r) <{value = affine_map<(d0) -> (d0, d0)>}> : (!core.semaphore, index) -> ()
    }
  }
}

// -----

// CHECK: needs accesses out, in, got out
pipe.program @p {
  pipe.stage @s cores [0] () {
    %x = core.alloc "x" : memref<128x64xf32, #core.sbuf>
    pipe.load {}
    pipe.run (%r) {
      "core.copy"(%x) <{accesses = [#core.access<() -> (0, 0) [128, 64] [1, 1]>], roles = ["out"], operandSegmentSizes = array<i32: 1, 0>}> : (memref<128x64xf32, #core.sbuf>) -> ()
    }
  }
}

// -----

// CHECK: 1 roles, 2 accesses and 1 buffers must be as many
pipe.program @p {
  pipe.stage @s cores [0] () {
    %x = core.alloc "x" : memref<128x64xf32, #core.sbuf>
    pipe.load {}
    pipe.run (%r) {
      "core.memset"(%x) <{value = 0.0 : f64, accesses = [#core.access<() -> (0, 0) [128, 64] [1, 1]>, #core.access<() -> (0, 0) [128, 64] [1, 1]>], roles = ["out"], operandSegmentSizes = array<i32: 1, 0>}> : (memref<128x64xf32, #core.sbuf>) -> ()
    }
  }
}

// -----

// CHECK: the access map takes 1 indices, the instruction has 0
pipe.program @p {
  pipe.stage @s cores [0] () {
    %x = core.alloc "x" : memref<128x64xf32, #core.sbuf>
    pipe.load {}
    pipe.run (%r) {
      "core.memset"(%x) <{value = 0.0 : f64, accesses = [#core.access<(d0) -> (0, d0) [128, 1] [1, 1]>], roles = ["out"], operandSegmentSizes = array<i32: 1, 0>}> : (memref<128x64xf32, #core.sbuf>) -> ()
    }
  }
}

// -----

// CHECK: out needs a buffer in #core.sbuf, #core.psum or #core.dram, got memref<128x64xf32>
func.func @f(%x: memref<128x64xf32>) {
  core.memset %x, 0.0
  func.return
}
