"""What passes estimate for groups and stages before lowering, beside what the simulator charges for the program.

`python -m benchmarks.estimate [NETWORK ...] [--cores N] [--json FILE]`. Each distinct group of a network is lowered and
run alone on one core, clock only, on a machine whose DMA takes no time: its operands are in place. Stages run alone
too, on the machine as it is.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from xdsl.dialects.builtin import DictionaryAttr, IntegerAttr, ModuleOp, StringAttr, i64
from xdsl.dialects.func import FuncOp, ReturnOp
from xdsl.ir import Block, Operation, Region, SSAValue

from neuron_mlir.dialects import nn, pipe
from neuron_mlir.errors import NeuronError, location_text
from neuron_mlir.machine import load_machine
from neuron_mlir.passes.estimate import estimate_group, is_constant, stored_with_its_layer
from neuron_mlir.passes.pipelines import Neuron, load_pipeline
from neuron_mlir.runtime.modules import make_context
from neuron_mlir.simulator.costs import StepCosts
from neuron_mlir.simulator.program import read_program
from neuron_mlir.simulator.report import request_load
from neuron_mlir.simulator.run import run_module

FREE_DMA = {
    "chip_link.fixed_ps": 1,
    "dma.bytes_per_s_per_engine": 10**15,
    "dma.fixed_ps": 1,
    "dram.bytes_per_s": 10**15,
    "host_link.bytes_per_s": 10**15,
}
ENGINES = ("tensor", "scalar", "vector")


@dataclass(frozen=True)
class Row:
    """A group or stage: estimated and simulated, picoseconds."""

    name: str
    kind: str
    estimate_ps: int
    simulated_ps: int
    estimate_busy_ps: tuple[int, int, int] = (0, 0, 0)
    """Of the tensor, scalar and vector engine."""
    simulated_busy_ps: tuple[int, int, int] = (0, 0, 0)

    @property
    def ratio(self) -> float:
        """Estimate over simulation."""
        return self.estimate_ps / max(1, self.simulated_ps)


def to_nn(module: ModuleOp) -> ModuleOp:
    """The passes of `neuron` up to `pipe-stage`, which is left out; without attention groups, which that dissolves."""
    for step in load_pipeline(Neuron().expand()):
        if step.name == "nn-fuse-attention":
            continue
        if step.name == "pipe-stage":
            break
        step.apply(make_context(), module)
    return module


def function_of(inputs: list[SSAValue], ops: list[Operation], outputs: list[SSAValue]) -> ModuleOp:
    """A function of copies of these ops."""
    block = Block()
    mapping: dict[SSAValue, SSAValue] = {}
    for value in inputs:
        if value not in mapping:
            mapping[value] = block.insert_arg(value.type, len(block.args))
    for op in ops:
        block.add_op(op.clone(mapping))
    results = [mapping[value] for value in outputs]
    block.add_op(ReturnOp(*results))
    types = [argument.type for argument in block.args], [value.type for value in results]
    return ModuleOp([FuncOp("main", types, Region(block))])


def alone(op: Operation) -> ModuleOp:
    """A group with its constants, as a function."""
    constants: list[Operation] = []
    for value in op.operands:
        if isinstance(value.owner, Operation) and is_constant(value.owner) and value.owner not in constants:
            constants.append(value.owner)
    inputs = [value for value in op.operands if value.owner not in constants]
    return function_of(inputs, [*constants, op], list(op.results))


def groups(module: ModuleOp) -> Iterator[tuple[Operation, ModuleOp]]:
    """Each distinct group of a function that computes something, with itself as a function; casts that take no time of
    their own apart."""
    seen: set[str] = set()
    for function in module.ops:
        if not isinstance(function, FuncOp):
            continue
        for op in function.body.block.ops:
            if is_constant(op) or isinstance(op, ReturnOp):
                continue
            if isinstance(op, nn.CastOp) and stored_with_its_layer(op):
                continue
            function_alone = alone(op)
            key = re.sub(r'%[\w.]+|"[^"]*"|dense<[^>]*>', "_", str(function_alone))
            if key not in seen:
                seen.add(key)
                yield op, function_alone


def finish(module: ModuleOp) -> ModuleOp:
    """To the final form on one core."""
    for step in load_pipeline("pipe-stage{cores=1},core-lower,core-allocate,core-schedule"):
        step.apply(make_context(), module)
    return module


def measure_group(op: Operation, module: ModuleOp) -> Row:
    """One request through a group whose operands are in place."""
    module.attributes["core.machine"] = StringAttr("inferentia1")
    module.attributes["core.machine_overrides"] = DictionaryAttr(
        {key: IntegerAttr(value, i64) for key, value in FREE_DMA.items()}
    )
    busy = request_load(read_program(finish(module))).busy_ps
    first = run_module(module, 1, values=False, hazards=False).report().latency_ms.first
    estimate = estimate_group(load_machine("inferentia1"), op)
    return Row(
        location_text(op.location) or op.name,
        op.name,
        estimate.span_ps,
        round(first * 1e9),
        (estimate.work.tensor_ps, estimate.work.scalar_ps, estimate.work.vector_ps),
        (busy.get("tensor of core 0", 0), busy.get("scalar of core 0", 0), busy.get("vector of core 0", 0)),
    )


def measure_layers(module: ModuleOp) -> list[Row]:
    """Of each location of a function, lowered as a whole on one core, how long the busiest engine is at work."""
    machine = load_machine("inferentia1")
    estimated: dict[str, list[int]] = {}
    (function,) = (op for op in module.ops if isinstance(op, FuncOp))
    for op in function.body.block.ops:
        if not is_constant(op) and not isinstance(op, ReturnOp):
            work = estimate_group(machine, op).work
            times = estimated.setdefault(str(op.location), [0, 0, 0])
            for index, time in enumerate((work.tensor_ps, work.scalar_ps, work.vector_ps)):
                times[index] += time
    program = read_program(finish(module))
    costs = StepCosts(program)
    simulated = {name: [0, 0, 0] for name in estimated}
    for stream in program.streams:
        for step, times_run, is_load in stream.steps():
            name = str(step.op.location)
            if is_load or not step.touches or stream.engine not in ENGINES or name not in simulated:
                continue
            simulated[name][ENGINES.index(stream.engine)] += costs.issue(step, stream)[0] * times_run
    rows: list[Row] = []
    for name, (tensor, scalar, vector) in estimated.items():
        busy = simulated[name]
        row = Row(
            name, "layer", max(tensor, scalar, vector), max(busy), (tensor, scalar, vector), (busy[0], busy[1], busy[2])
        )
        rows.append(row)
    return rows


def measure_stages(module: ModuleOp, cores: int, requests: int = 8) -> list[Row]:
    """Each stage of a cut alone on a core, grouped as `pipe-stage` reckons, requests following one another."""
    for step in load_pipeline(f"pipe-stage{{cores={cores}}},nn-fuse-depth-first"):
        step.apply(make_context(), module)
    (program,) = (op for op in module.ops if isinstance(op, pipe.ProgramOp))
    rows: list[Row] = []
    for stage in program.stages():
        body = stage.body.block
        last = body.last_op
        assert last is not None
        inside = function_of(list(body.args), [op for op in body.ops if op is not last], list(last.operands))
        report = run_module(finish(inside), requests, values=False, hazards=False).report()
        cost = stage.attributes["cost_ps"]
        assert isinstance(cost, IntegerAttr)
        rows.append(Row(stage.sym_name.data, "stage", cost.value.data, round(1e12 / report.throughput_per_s)))
    return rows


def main() -> int:
    """Print the tables."""
    from rich.console import Console
    from rich.table import Table

    from benchmarks.networks import network
    from neuron_mlir.frontends.onnx import import_model

    parser = argparse.ArgumentParser(prog="python -m benchmarks.estimate", description=__doc__)
    parser.add_argument("networks", nargs="*", default=["resnet50", "squeezenet", "shufflenet"], metavar="NETWORK")
    parser.add_argument("--cores", type=int, default=4, help="stages to cut for (default 4)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all rows")
    args = parser.parse_args()
    everything: dict[str, list[dict[str, Any]]] = {}
    for name in args.networks:
        chosen = network(name)
        module = to_nn(import_model(chosen.path, io_config=chosen.io_config))
        rows: list[Row] = []
        for op, function in groups(module):
            try:
                rows.append(measure_group(op, function))
            except (NeuronError, KeyError) as error:
                print(f"{name}: {op.name} does not run alone: {str(error)[:100]}", file=sys.stderr)
        rows += measure_stages(module, args.cores)
        table = Table(title=f"{name}: microseconds, estimate / simulated", box=None)
        for title in ("group or stage", "tensor", "scalar", "vector", "time", "ratio"):
            table.add_column(title, justify="left" if title.startswith("group") else "right")
        for row in rows:
            pairs = zip(row.estimate_busy_ps, row.simulated_busy_ps, strict=True)
            cells = [f"{a / 1e6:.2f} / {b / 1e6:.2f}" if a or b else "" for a, b in pairs]
            time = f"{row.estimate_ps / 1e6:.2f} / {row.simulated_ps / 1e6:.2f}"
            table.add_row(f"{row.name} {row.kind}", *cells, time, f"{row.ratio:.2f}")
        Console().print(table)
        everything[name] = [asdict(row) | {"ratio": round(row.ratio, 4)} for row in rows]
    if args.json is not None:
        args.json.write_text(json.dumps(everything, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
