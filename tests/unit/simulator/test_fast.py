"""Every instruction: the fast code gives the bits of the plain code, and both give what the op's documentation says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from reading import parse

from neuron_mlir.dialects.core.compute import ACTIVATIONS, ALU
from neuron_mlir.simulator.run import run_module

Array = NDArray[Any]

INSTRUCTIONS = {
    "matmul": "core.matmul %acc[0, 0, 0] [64, 2, 48], %w, %x[0, 0, 0] [128, 2, 48]",
    "matmul strided": "core.matmul %acc[0, 0, 0] [64, 4, 24], %w, %x[0, 0, 0] [128, 4, 24] [1, 1, 2]",
    "matmul narrow": "core.matmul %acc[0, 1, 5] [3, 1, 7], %w[0, 2] [32, 3], %x[32, 1, 3] [32, 1, 7]",
    "matmul one column": "core.matmul %acc[0, 1, 5] [64, 1, 1], %w, %x[0, 1, 3] [128, 1, 1]",
    "matmul one row": "core.matmul %acc[0, 1, 5] [64, 1, 9], %w[32, 0] [1, 64], %x[32, 1, 3] [1, 1, 9]",
    "matmul broadcast": "core.matmul %acc[0, 0, 0] [64, 1, 24], %w, %x[0, 0, 0] [128, 1, 24] [1, 1, 0]",
    "matmul accumulates": "core.matmul %acc, %w, %x\n"
    "core.matmul %acc, %w, %x init 1\n core.matmul %acc[0, 1, 0] [64, 2, 48], %w, %x[0, 2, 0] [128, 2, 48] init 1",
    "matmul in a loop": "affine.for %k = 0 to 3 {\n"
    "core.matmul %acc[0, %k, 0] [64, 2, 48], %w, %x[0, %k, 0] [128, 2, 48] init %k }",
    "matmul into planes": "core.matmul %planes[0, 0, 0] [64, 4, 24], %w, %x[0, 0, 0] [128, 4, 24]",
    "matmul into strided planes": "core.matmul %planes[0, 0, 1] [64, 4, 12] [1, 1, 2], %w, %x[0, 0, 0] [128, 4, 12]",
    "transpose": "core.transpose %acc[0, 1, 0] [48, 1, 48], %x[0, 1, 0] [48, 1, 48]",
    "copy f32 to bf16": "core.copy %y[0, 0, 0] [64, 2, 48], %f[0, 1, 0] [64, 2, 48]",
    "copy on scalar": "core.copy %y[0, 0, 0] [64, 2, 48], %f[0, 1, 0] [64, 2, 48] on scalar",
    "copy bf16 to f32": "core.copy %f, %x",
    "copy to f16": "core.copy %h, %f",
    "copy strided": "core.copy %y[0, 0, 1] [64, 2, 16] [1, 2, 3], %f[64, 1, 0] [64, 2, 16] [1, 1, 2]",
    "copy broadcast": "core.copy %y[0, 0, 0] [64, 2, 48], %f[0, 1, 7] [64, 2, 48] [1, 1, 0]",
    "copy one column": "core.copy %y[0, 0, 0] [64, 1, 1], %f[0, 1, 7] [64, 1, 1]",
    "memset": "core.memset %y[32, 1, 3] [32, 2, 5], 1.003",
    "bias and relu": "core.activation relu %y, %f bias %b[0, 0] [128, 1]",
    "scale and bias": "core.activation copy %y, %f scale %b[0, 2] [128, 1] bias %b[0, 0] [128, 1]",
    "scale and bias of other numbers": "core.activation copy %y, %f times 1.7 plus -0.3",
    "bias from the target": "core.activation relu %f, %x scale %f[0, 0, 0] [128, 1, 1] bias %f[0, 3, 0] [128, 1, 1]",
    "in place": "core.activation relu %f, %f bias %b[0, 1] [128, 1]",
    "in place and shifted": "core.activation relu %f[0, 0, 1] [128, 1, 40], %f[0, 0, 0] [128, 1, 40] plus 0.5",
    "leaky": "core.activation leaky_relu %y, %f alpha 0.2",
    "two numbers": "core.tensor_scalar %y, %f op0 mul 1.3 op1 add 0.7",
    "two columns": "core.tensor_scalar %y, %f operand0 %b[0, 0] [128, 1] operand1 %b[0, 1] [128, 1] op0 sub op1 mul",
    "clip": "core.tensor_scalar %f, %f op0 max 0.0 op1 min 1.0",
    "tap": "core.scalar_tensor_tensor mul add %f, %x, %b[0, 0] [128, 1], %f",
    "tap to bf16": "core.scalar_tensor_tensor mul add %y, %x, %b[0, 0] [128, 1], %f",
    "reduce": "core.tensor_reduce add %b[0, 0] [128, 1], %f",
    "reduce rows": "core.tensor_reduce max %b[0, 0] [128, 4], %f",
    "select": "core.tensor_tensor less %f, %f, %x\ncore.select %y, %f, %x, %x",
    "dma": "core.dma %x[0, 0, 0] [128, 4, 48] -> %y[0, 0, 0] [128, 4, 48]",
    "dma to one partition": "core.dma %x[3, 0, 0] [5, 1, 48] -> %y[7, 0, 0] [5, 1, 48]",
    "dma permute": "core.dma %x[0, 0, 0] [48, 1, 4] -> %y[0, 0, 0] [4, 1, 48] permute [2, 1, 0]",
    **{f"activation {f}": f"core.activation {f} %y, %f\ncore.activation {f} %g, %f times 0.25" for f in ACTIVATIONS},
    **{f"alu {f}": f"core.tensor_tensor {f} %y, %f, %x\ncore.tensor_tensor {f} %f, %x, %f" for f in ALU},
    **{f"alu number {f}": f"core.tensor_scalar %y, %f op0 {f} 2.0 op1 {f} 0.5" for f in ALU},
}


def program(instructions: str) -> str:
    return f"""
pipe.program @p {{
  %xr = pipe.ring "x" depth 1 on chip 0 : memref<1x128x4x48xbf16, #core.dram>
  %fr = pipe.ring "f" depth 1 on chip 0 : memref<1x128x4x48xf32, #core.dram>
  pipe.input "x" to %xr
  pipe.input "f" to %fr
  %accr = pipe.ring "acc" depth 1 on chip 0 : memref<1x64x4x48xf32, #core.dram>
  %yr = pipe.ring "y" depth 1 on chip 0 : memref<1x128x4x48xbf16, #core.dram>
  %hr = pipe.ring "h" depth 1 on chip 0 : memref<1x128x4x48xf16, #core.dram>
  %br = pipe.ring "b" depth 1 on chip 0 : memref<1x128x4xf32, #core.dram>
  %fo = pipe.ring "fo" depth 1 on chip 0 : memref<1x128x4x48xf32, #core.dram>
  %go = pipe.ring "go" depth 1 on chip 0 : memref<1x128x4x48xf32, #core.dram>
  %po = pipe.ring "po" depth 1 on chip 0 : memref<1x64x4x24xf32, #core.dram>
  pipe.stage @s cores [0] (%xr, %fr, %accr, %yr, %hr, %br, %fo, %go, %po) {{
  ^bb0(%xd: memref<1x128x4x48xbf16, #core.dram>, %fd: memref<1x128x4x48xf32, #core.dram>,
       %accd: memref<1x64x4x48xf32, #core.dram>, %yd: memref<1x128x4x48xbf16, #core.dram>,
       %hd: memref<1x128x4x48xf16, #core.dram>, %bd: memref<1x128x4xf32, #core.dram>,
       %fd2: memref<1x128x4x48xf32, #core.dram>, %gd2: memref<1x128x4x48xf32, #core.dram>,
       %pd2: memref<1x64x4x24xf32, #core.dram>):
    %x = core.alloc "x" : memref<128x4x48xbf16, #core.sbuf>
    %f = core.alloc "f" : memref<128x4x48xf32, #core.sbuf>
    %g = core.alloc "g" : memref<128x4x48xf32, #core.sbuf>
    %w = core.alloc "w" : memref<128x64xbf16, #core.sbuf>
    %y = core.alloc "y" : memref<128x4x48xbf16, #core.sbuf>
    %h = core.alloc "h" : memref<128x4x48xf16, #core.sbuf>
    %b = core.alloc "b" : memref<128x4xf32, #core.sbuf>
    %acc = core.alloc "acc" : memref<64x4x48xf32, #core.psum>
    %planes = core.alloc "planes" : memref<64x4x24xf32, #core.psum>
    %accs = core.alloc "accs" : memref<64x4x48xf32, #core.sbuf>
    %ps = core.alloc "ps" : memref<64x4x24xf32, #core.sbuf>
    pipe.load {{}}
    pipe.run (%r) {{
      core.dma %xd[0, 0, 0, 0] [1, 128, 4, 48] -> %x
      core.dma %fd[0, 0, 0, 0] [1, 128, 4, 48] -> %f
      core.memset %y, 0.0
      core.memset %g, 0.0
      core.memset %h, 0.0
      core.memset %acc, 0.0
      core.memset %planes, 0.0
      core.copy %w, %x[0, 0, 0] [128, 1, 64] [1, 1, 0]
      core.copy %w[0, 0] [128, 48], %x[0, 3, 0] [128, 1, 48]
      core.copy %b, %f[0, 0, 5] [128, 4, 1]
      {instructions}
      core.copy %accs, %acc
      core.copy %ps, %planes
      core.dma %accs -> %accd[0, 0, 0, 0] [1, 64, 4, 48]
      core.dma %y -> %yd[0, 0, 0, 0] [1, 128, 4, 48]
      core.dma %h -> %hd[0, 0, 0, 0] [1, 128, 4, 48]
      core.dma %b -> %bd[0, 0, 0] [1, 128, 4]
      core.dma %f -> %fd2[0, 0, 0, 0] [1, 128, 4, 48]
      core.dma %g -> %gd2[0, 0, 0, 0] [1, 128, 4, 48]
      core.dma %ps -> %pd2[0, 0, 0, 0] [1, 64, 4, 24]
    }}
  }}
  pipe.output "acc" from %accr
  pipe.output "y" from %yr
  pipe.output "h" from %hr
  pipe.output "b" from %br
  pipe.output "f" from %fo
  pipe.output "g" from %go
  pipe.output "planes" from %po
}}
"""


def inputs(kind: str) -> dict[str, Array]:
    generator = np.random.default_rng(11)
    if kind == "integers":
        x, f = (generator.integers(-3, 4, (128, 4, 48)).astype(np.float32) for _ in range(2))
    else:
        x, f = (generator.standard_normal((128, 4, 48), np.float32) for _ in range(2))
    if kind == "special":
        odd = np.array([np.inf, -np.inf, np.nan, -0.0, 1e-40, 3.4e38, 3.3961775e38, 65519.0], np.float32)
        odd = np.append(odd, np.array([0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001], np.uint32).view(np.float32))
        x[:, 1, : len(odd)] = odd
        f[:, 2, -len(odd) :] = odd
    return {"x": x, "f": f}


@pytest.mark.parametrize("kind", ["integers", "floats", "special"])
@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_fast_code_gives_the_bits_of_the_plain_code(name: str, kind: str) -> None:
    module = parse(program(INSTRUCTIONS[name]))
    plain = run_module(module, inputs(kind), plain=True).outputs
    fast = run_module(module, inputs(kind)).outputs
    for output, expected in plain.items():
        actual = fast[output]
        nan = np.isnan(expected)
        assert np.array_equal(nan, np.isnan(actual)), output
        same = expected.view(np.uint32) == actual.view(np.uint32)
        assert np.all(same | nan), f"{output}: {np.argwhere(~(same | nan))[:3]}"
