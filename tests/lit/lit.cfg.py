"""lit's configuration: the tools come from the virtual environment that runs lit."""

# pyright: reportUndefinedVariable=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# ruff: noqa: F821
from __future__ import annotations

import os
import sys

import lit.formats

config.name = "neuron-mlir"
config.test_source_root = os.path.dirname(__file__)
config.test_exec_root = os.path.join(os.path.dirname(config.test_source_root), "..", "build", "lit")
config.test_format = lit.formats.ShTest(execute_external=False)
config.suffixes = [".mlir", ".test"]
config.excludes = ["Inputs"]

# sys.executable is the interpreter of the virtual environment, whose tools stand beside it.
_bin = os.path.dirname(sys.executable)
config.environment["PATH"] = os.pathsep.join([_bin, os.environ.get("PATH", "")])
for _threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    config.environment[_threads] = "1"
if "PYTHONPATH" in os.environ:
    config.environment["PYTHONPATH"] = os.environ["PYTHONPATH"]
config.substitutions.append(("%python", sys.executable))
