"""The passes. A pass is one file; this table names them without importing them.

To add one: write `passes/<dialect>/<verb>.py` with one `NeuronPass` of that name, and add its line below.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from neuron_mlir.passes.base import NeuronPass

PASS_MODULES: dict[str, str] = {
    "nn-fold-constants": "neuron_mlir.passes.nn.fold_constants",
    "nn-fold-batch-norm": "neuron_mlir.passes.nn.fold_batch_norm",
    "nn-match-activations": "neuron_mlir.passes.nn.match_activations",
    "nn-replicate-inputs": "neuron_mlir.passes.nn.replicate_inputs",
    "nn-batch": "neuron_mlir.passes.nn.batch",
    "nn-fuse": "neuron_mlir.passes.nn.fuse",
    "nn-cast": "neuron_mlir.passes.nn.cast",
    "nn-fuse-attention": "neuron_mlir.passes.nn.fuse_attention",
    "pipe-stage": "neuron_mlir.passes.pipe.stage",
    "pipe-shard": "neuron_mlir.passes.pipe.shard",
    "pipe-replicate": "neuron_mlir.passes.pipe.replicate",
    "nn-fuse-depth-first": "neuron_mlir.passes.nn.fuse_depth_first",
    "nn-rematerialize": "neuron_mlir.passes.nn.rematerialize",
    "pipe-stream-rows": "neuron_mlir.passes.pipe.stream_rows",
    "core-lower": "neuron_mlir.passes.core.lower",
    "core-allocate": "neuron_mlir.passes.core.allocate",
    "core-schedule": "neuron_mlir.passes.core.schedule",
}
"""Pass name to the module that defines it, in the order a network goes through them."""

PIPELINE_MODULES: dict[str, str] = {
    "neuron": "neuron_mlir.passes.pipelines",
}
"""Named pipelines (`NeuronPipeline`), which stand wherever a pass can."""


def load_pass(name: str, module_name: str) -> type[NeuronPass]:
    """The pass class called `name` in a module.

    Raises:
        LookupError: the module defines no such pass.
    """
    from neuron_mlir.passes.base import NeuronPass

    for value in vars(import_module(module_name)).values():
        if isinstance(value, type) and issubclass(value, NeuronPass) and getattr(value, "name", None) == name:
            return value
    raise LookupError(f"{module_name} defines no pass named '{name}'")


def get_all_passes() -> dict[str, Callable[[], type[NeuronPass]]]:
    """Every pass and named pipeline of this package, by name; a factory imports the pass when called."""
    return {name: partial(load_pass, name, module) for name, module in {**PASS_MODULES, **PIPELINE_MODULES}.items()}
