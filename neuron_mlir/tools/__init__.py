"""The command line tools. Each is thin: it reads arguments, calls the library, and prints."""

from __future__ import annotations

import os

# Tiles are small: BLAS threads cost far more than they give, up to 400 times on a busy machine. Read when numpy is
# first imported, which no tool does before this package; what the user has set stays.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
