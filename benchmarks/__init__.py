"""Benchmarks: one command per table, ONNX Runtime beside it in the same run, one thread each.

`python -m benchmarks` runs all, `python -m benchmarks compile stages` some; tables go to docs/results/.
"""

from __future__ import annotations

import os

# One thread each: ONNX Runtime is told so as well. BLAS reads these when NumPy is first imported, which is after this.
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_variable] = "1"
