"""The `pipe` dialect: stages placed on cores, joined by streams of requests."""

from __future__ import annotations

from xdsl.ir import Dialect

from neuron_mlir.dialects.pipe.ops import (
    CertificateAttr,
    InputOp,
    LoadOp,
    OutputOp,
    ProgramOp,
    RingOp,
    RowsAttr,
    RunOp,
    StageOp,
    StreamType,
    YieldOp,
)

Pipe = Dialect(
    "pipe",
    [ProgramOp, InputOp, OutputOp, RingOp, StageOp, YieldOp, LoadOp, RunOp],
    [StreamType, CertificateAttr, RowsAttr],
)
