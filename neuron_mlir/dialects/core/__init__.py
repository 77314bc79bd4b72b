"""The `core` dialect: tiled operations on a NeuronCore's memories and engines."""

from __future__ import annotations

from xdsl.ir import Dialect

from neuron_mlir.dialects.core.access import AccessAttr
from neuron_mlir.dialects.core.compute import (
    ActivationOp,
    CopyOp,
    MatmulOp,
    MemsetOp,
    ScalarTensorTensorOp,
    SelectOp,
    TensorReduceOp,
    TensorScalarOp,
    TensorTensorOp,
    TransposeOp,
)
from neuron_mlir.dialects.core.memory import AllocOp, ConstOp, DramAttr, EngineOp, PsumAttr, SbufAttr
from neuron_mlir.dialects.core.movement import DmaOp, GatherOp, SemaphoreOp, SemaphoreType, SignalOp, WaitOp

Core = Dialect(
    "core",
    [
        AllocOp,
        ConstOp,
        EngineOp,
        MatmulOp,
        TransposeOp,
        ActivationOp,
        CopyOp,
        MemsetOp,
        TensorTensorOp,
        TensorScalarOp,
        ScalarTensorTensorOp,
        TensorReduceOp,
        SelectOp,
        DmaOp,
        GatherOp,
        SemaphoreOp,
        WaitOp,
        SignalOp,
    ],
    [SbufAttr, PsumAttr, DramAttr, AccessAttr, SemaphoreType],
)
