"""Named pipelines: lists of passes under one name, with the options that matter to a user."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, cast

from xdsl.passes import ModulePass
from xdsl.utils.arg_spec import parse_pipeline

from neuron_mlir.passes.base import NeuronPipeline, option

if TYPE_CHECKING:
    from xdsl.context import Context
    from xdsl.dialects.builtin import ModuleOp

Fp32Cast = Literal["all", "all-fp16", "matmult", "matmult-bf16", "matmult-fp16"]


@dataclass(frozen=True)
class Neuron(NeuronPipeline):
    """From an imported `nn` function to the final form: everything that `neuron-cc compile` runs.

    Clean the import, fold batch norms into weights, take several requests as one, recognise activation functions
    written out, pack shallow convolutions, fuse layers, round to 16 bits where `fp32-cast` says, cut into stages, split
    the slowest, copy stages over further cores, take feature maps that do not fit depth first through layers, decide
    what stays in SBUF, let feature maps go from stage to stage by rows, lower to tiles, give addresses, and split into
    engine streams. What an option switches off is not in the list.

    Every prefix of the list works alone: `neuron-opt --print-pipeline -p neuron` prints it, ready to be cut short.
    """

    name = "neuron"
    summary: ClassVar[str] = "all of neuron-cc's passes: an imported nn function to engine streams"

    cores: int | Literal["auto"] = option(
        cast("int | Literal['auto']", 1), "pipeline stages, one core each; auto: the fewest cores that hold all weights"
    )
    batch: int = option(1, "requests taken as one: multiplies the batch of the module; see nn-batch")
    split: bool = option(
        True, "split a layer that keeps more stages from being faster over some of the cores; see pipe-stage"
    )
    shard_cores: int = option(0, "split the slowest stages over up to this many cores in all; see pipe-shard")
    replicas: int = option(1, "copies of all stages, requests in turn; see pipe-replicate")
    fp32_cast: Literal["all", "all-fp16", "matmult", "matmult-bf16", "matmult-fp16"] = option(
        cast("Fp32Cast", "all"), "what becomes 16 bits wide, as neuron-cc's --fp32-cast; see nn-cast"
    )
    replicate_inputs: bool = option(True, "pack shallow convolutions with their taps; see nn-replicate-inputs")
    depth_first: bool = option(True, "take large feature maps through several layers; see nn-fuse-depth-first")
    stream_rows: bool = option(
        True, "let large feature maps go from stage to stage by rows, where they go depth first; see pipe-stream-rows"
    )
    spill: bool = option(True, "whether values may go to DRAM and come back where SBUF is full; see core-allocate")
    rematerialize: bool = option(
        False, "decide what stays in SBUF, goes to DRAM or is recomputed; see nn-rematerialize"
    )

    def expand(self) -> str:
        steps = ["nn-fold-constants", "nn-fold-batch-norm"]
        if self.batch != 1:
            steps.append(f"nn-batch{{size={self.batch}}}")
        steps += ["canonicalize", "cse", "dce", "nn-match-activations"]
        if self.replicate_inputs:
            cores = "" if self.cores in ("auto", 1) else f"{{cores={self.cores}}}"
            steps.append(f"nn-replicate-inputs{cores}")
        stage = f"cores={self.cores}{'' if self.depth_first else ' depth-first=false'}"
        if self.split and self.cores != 1 and not self.shard_cores:
            stage += " split=true"
        steps += ["nn-fuse", f"nn-cast{{mode={self.fp32_cast}}}", "nn-fuse-attention", f"pipe-stage{{{stage}}}"]
        if self.shard_cores:
            steps.append(f"pipe-shard{{cores={self.shard_cores}}}")
        # Before layers are grouped: copies on the same chip share its DRAM.
        if self.replicas != 1:
            steps.append(f"pipe-replicate{{copies={self.replicas}}}")
        if self.depth_first:
            steps.append("nn-fuse-depth-first" if self.stream_rows else "nn-fuse-depth-first{stream-rows=false}")
        if self.rematerialize:
            steps.append("nn-rematerialize" if self.spill else "nn-rematerialize{mode=recompute}")
        if self.depth_first and self.stream_rows and self.cores != 1:
            steps.append("pipe-stream-rows")
        steps += ["core-lower", "core-allocate" if self.spill else "core-allocate{spill=false}", "core-schedule"]
        return ",".join(steps)

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        for step in load_pipeline(self.expand()):
            step.apply(ctx, op)


def load_pipeline(text: str) -> list[ModulePass]:
    """The passes of a pipeline in order, of this package and of xDSL; named pipelines are expanded.

    Raises:
        NeuronError: a bad option.
        KeyError: no pass of that name; `text` is our own, not a user's.
    """
    from xdsl.transforms import get_all_passes as get_upstream_passes

    from neuron_mlir.passes import get_all_passes

    table = {**get_upstream_passes(), **get_all_passes()}
    steps: list[ModulePass] = []
    for spec in parse_pipeline(text):
        instance = table[spec.name]().from_spec(spec)
        if isinstance(instance, NeuronPipeline):
            steps += load_pipeline(instance.expand())
        else:
            steps.append(instance)
    return steps
