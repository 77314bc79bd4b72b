"""Small programs of the compiler, and what can be done wrong in one place of their final form."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from xdsl.dialects.builtin import AffineMapAttr, ArrayAttr, DenseArrayBase, IntegerAttr, MemRefType, ModuleOp, i64
from xdsl.ir import Operation, SSAValue
from xdsl.ir.affine import AffineBinaryOpExpr, AffineBinaryOpKind, AffineConstantExpr, AffineExpr, AffineMap
from xdsl.rewriter import Rewriter

from benchmarks.networks import WORK
from neuron_mlir.dialects.core.access import AccessAttr
from neuron_mlir.dialects.core.instruction import Instruction
from neuron_mlir.dialects.core.memory import AllocOp, ConstOp, buffer_bytes
from neuron_mlir.dialects.core.movement import SignalOp, WaitOp
from neuron_mlir.dialects.pipe.ops import LoadOp, RingOp, StageOp
from neuron_mlir.runtime.modules import make_context, parse_module

FINISH = "core-lower,core-allocate,core-schedule"
PREPARE = "nn-fold-constants,nn-fold-batch-norm,canonicalize,cse,dce,nn-fuse,nn-cast,nn-fuse-attention"
TENSOR = "tensor<16x64xbf16>"

# Programs -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Small:
    """A final program."""

    module: ModuleOp


def lowered(text: str, passes: str, machine: str = "") -> ModuleOp:
    """A module in text, through passes."""
    from neuron_mlir.passes.pipelines import load_pipeline

    attributes = (
        f'attributes {{core.machine = "inferentia1", core.machine_overrides = {{{machine}}}}} ' if machine else ""
    )
    module = parse_module(f"builtin.module {attributes}{{\n{text}\n}}", "a small program")
    for step in load_pipeline(passes):
        step.apply(make_context(), module)
    module.verify()
    return module


def _function(x: str, body: str, result: str, y: str) -> str:
    return (
        f'func.func @main(%x: tensor<{x}xf32> {{nn.name = "x"}}) -> (tensor<{y}xf32> {{nn.name = "y"}}) {{\n'
        f"{body}\nfunc.return {result} : tensor<{y}xf32>\n}}"
    )


def _conv(name: str, source: str, inputs: tuple[int, int], outputs: int, kernel: int = 1) -> str:
    """A convolution of the same size with bias and ReLU: `%name`."""
    channels, size = inputs
    x, y = f"tensor<1x{channels}x{size}x{size}xf32>", f"tensor<1x{outputs}x{size}x{size}xf32>"
    w, b = f"tensor<{outputs}x{channels}x{kernel}x{kernel}xf32>", f"tensor<{outputs}xf32>"
    pad = kernel // 2
    return f"""
  %{name}w = nn.weight "{name}w" seeded<{len(name) + outputs}> : {w}
  %{name}b = nn.weight "{name}b" seeded<{len(name) + channels}> : {b}
  %{name}c = nn.conv {source}, %{name}w, %{name}b pads [{pad}, {pad}, {pad}, {pad}] : ({x}, {w}, {b}) -> {y}
  %{name} = nn.relu %{name}c : {y}"""


def _convolutions(cores: int, extra: str = "", size: int = 10) -> str:
    body = _conv("a", "%x", (8, size), 16, 3) + _conv("bb", "%a", (16, size), 16, 3)
    shape = f"tensor<1x16x{size}x{size}xf32>"
    body += f"\n  %s = nn.add %bb, %a : {shape}, {shape}"
    body += _conv("ccc", "%s", (16, size), 24)
    return _function(f"1x8x{size}x{size}", body, "%ccc", f"1x24x{size}x{size}")


def pipeline() -> Small:
    """Convolutions with a residual, on three cores."""
    return Small(lowered(_convolutions(3), f"{PREPARE},pipe-stage{{cores=3}},{FINISH}"))


def shards() -> Small:
    """The same, a layer split over two cores."""
    return Small(lowered(_convolutions(2), f"{PREPARE},pipe-stage{{cores=2}},pipe-shard{{cores=4}},{FINISH}"))


def streamed() -> Small:
    """Dense layers of several tiles whose weights do not fit, so that DMA queues bring them for each request."""
    body, value, width = "", "%x", 300
    for n, outputs in enumerate((280, 200, 140)):
        x, y, w = f"tensor<70x{width}xf32>", f"tensor<70x{outputs}xf32>", f"tensor<{width}x{outputs}xf32>"
        body += f"""
  %w{n} = nn.weight "w{n}" seeded<{n + 1}> : {w}
  %m{n} = nn.matmul {value}, %w{n} : ({x}, {w}) -> {y}
  %g{n} = nn.gelu %m{n} : {y}"""
        value, width = f"%g{n}", outputs
    text = _function("70x300", body, value, "70x140")
    passes = f"{PREPARE},pipe-stage{{cores=1}},{FINISH}"
    return Small(lowered(text, passes, "sbuf.bytes_per_partition = 4096 : i64"))


def replicas() -> Small:
    """Three stages of one, three and one replicas, over two chips."""

    def stage(name: str, cores: list[int], inputs: list[str], work: int) -> str:
        arguments = ", ".join(f"%x{i}: {TENSOR}" for i in range(len(inputs)))
        lines, value = [f'%w = nn.weight "{name}" seeded<{len(name)}> : tensor<64x64xbf16>'], "%x0"
        if len(inputs) > 1:
            lines.append(f"%sum = nn.add %x0, %x1 : {TENSOR}, {TENSOR}")
            lines.append(f"%rounded = nn.cast %sum : (tensor<16x64xf32>) -> {TENSOR}")
            value = "%rounded"
        for n in range(work):
            lines.append(f"%p{n} = nn.matmul {value}, %w : ({TENSOR}, tensor<64x64xbf16>) -> tensor<16x64xf32>")
            lines.append(f"%c{n} = nn.cast %p{n} : (tensor<16x64xf32>) -> {TENSOR}")
            value = f"%c{n}"
        copies = " replicas" if len(cores) > 1 else ""
        body = "\n".join([*lines, f"pipe.yield {value} : {TENSOR}"])
        streams = ", ".join(inputs)
        return (
            f"%{name} = pipe.stage @{name} cores {cores}{copies} ({streams}) {{\n^bb0({arguments}):\n{body}\n}}"
            f" -> (!pipe.stream<{TENSOR}>)"
        )

    text = f"""
pipe.program @net {{
  %x = pipe.input "x" : !pipe.stream<{TENSOR}>
  {stage("a", [0], ["%x"], 1)}
  {stage("bb", [1, 2, 3], ["%a"], 4)}
  {stage("ccc", [4], ["%bb", "%a"], 1)}
  pipe.output "y", %ccc : !pipe.stream<{TENSOR}>
}}"""
    return Small(lowered(text, FINISH))


def depth_first() -> Small:
    """Layers of a large feature map, a few rows of each at a time."""
    from neuron_mlir.passes.depth_first_rows import why_not
    from neuron_mlir.passes.estimate import is_constant
    from neuron_mlir.passes.nn.fuse_depth_first import make_group
    from neuron_mlir.passes.pipelines import load_pipeline

    module = lowered(_convolutions(1), f"{PREPARE},pipe-stage{{cores=1}}")
    stage = next(op for op in module.walk() if isinstance(op, StageOp))
    layers = [op for op in list(stage.body.block.ops)[:-1] if not is_constant(op)]
    assert all(why_not(op) is None for op in layers)
    make_group(layers, (1, 3), False)
    for step in load_pipeline(FINISH):
        step.apply(make_context(), module)
    return Small(module)


def attention() -> Small:
    """A layer of BERT, small, on two cores."""
    from neuron_mlir.models.bert import CONFIGS, write_bert

    return _network("attention", lambda path: write_bert(path, CONFIGS["bert-tiny"], layers=1, seq=12), cores=2)


def residual() -> Small:
    """ResNet-50 with narrow layers on a small image, on three cores."""
    from neuron_mlir.models.catalogue import write_network

    return _network("residual", lambda path: write_network(path, "resnet50", size=32, width=1 / 16), cores=3)


def _network(name: str, write: Callable[[Path], object], cores: int) -> Small:
    from neuron_mlir.runtime.compiler import CompileOptions, compile_model

    WORK.mkdir(parents=True, exist_ok=True)
    path = WORK / f"small-{name}.onnx"
    write(path)
    return Small(compile_model(path, CompileOptions(cores=cores)).module)


PROGRAMS: Mapping[str, Callable[[], Small]] = {
    "pipeline": pipeline,
    "shards": shards,
    "streamed": streamed,
    "replicas": replicas,
    "depth first": depth_first,
    "attention": attention,
    "residual": residual,
}
"""All of them, by name."""


@cache
def program_text(name: str) -> str:
    """One of them as text, made once."""
    return str(PROGRAMS[name]().module)


# Mutations ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mutation:
    """One place changed.

    Attributes:
        kind: what is done, in words; the same words for all places.
        where: number of the operation in `module.walk()`.
        change: does it to that operation of a copy.
    """

    kind: str
    where: int
    change: Callable[[Operation], None]

    def apply(self, module: ModuleOp) -> ModuleOp:
        """A changed copy."""
        copy = module.clone()
        self.change(next(op for number, op in enumerate(copy.walk()) if number == self.where))
        return copy


def mutations(module: ModuleOp) -> list[Mutation]:
    """Everything that can be done to a program, place after place."""
    return [Mutation(kind, n, change) for n, op in enumerate(module.walk()) for kind, change in _changes(op)]


def _changes(op: Operation) -> Iterator[tuple[str, Callable[[Operation], None]]]:
    if isinstance(op, WaitOp):
        yield "wait removed", lambda op: Rewriter.erase_op(op)
        yield "wait for one less", lambda op: _weaken(op, 1)
        yield "wait for two less", lambda op: _weaken(op, 2)
        if isinstance(op.next_op, Instruction):
            yield "wait after the instruction", _swap_with_next
    elif isinstance(op, SignalOp):
        if isinstance(op.prev_op, Instruction):
            yield "signal before the instruction", lambda op: _swap_with_next(op.prev_op)
    elif isinstance(op, AllocOp) and op.address is not None:
        size = buffer_bytes(op.type)
        # Beside, in steps as small as an element and as large as the buffer.
        for words, step in (("little", 64), ("half", max(2, size // 2)), ("whole", size)):
            for sign in (-1, 1):
                if op.address.value.data + sign * step >= 0:
                    yield f"address shifted by {words}", lambda op, by=sign * step: _shift(op, by)
        yield from _smaller(op)
    elif isinstance(op, RingOp):
        addresses = op.address_list()
        for lane, address in enumerate(addresses or ()):
            for step in (-512, 512):
                if address + step >= 0:
                    yield "ring shifted", lambda op, lane=lane, by=step: _shift_ring(op, lane, by)


def _smaller(op: AllocOp) -> Iterator[tuple[str, Callable[[Operation], None]]]:
    shape = op.type.get_shape()
    for axis in (1, len(shape) - 1):
        if shape[axis] > 1:
            yield "buffer made smaller", lambda op, axis=axis: _shrink(op, axis)
    if any(_moduli(op.result)):
        yield "slot taken away", _take_slot


def _weaken(op: Operation, by: int) -> None:
    assert isinstance(op, WaitOp)
    value = op.value.data
    op.properties["value"] = AffineMapAttr(AffineMap(value.num_dims, 0, (value.results[0] - by,)))


def _swap_with_next(op: Operation | None) -> None:
    assert op is not None and op.next_op is not None and op.parent is not None
    block, following = op.parent, op.next_op
    op.detach()
    block.insert_op_after(op, following)


def _shift(op: Operation, by: int) -> None:
    assert isinstance(op, AllocOp) and op.address is not None
    op.properties["address"] = IntegerAttr(op.address.value.data + by, i64)


def _shift_ring(op: Operation, lane: int, by: int) -> None:
    assert isinstance(op, RingOp)
    addresses = list(op.address_list() or ())
    addresses[lane] += by
    op.properties["addresses"] = DenseArrayBase.from_list(i64, addresses)


def _shrink(op: Operation, axis: int) -> None:
    assert isinstance(op, AllocOp)
    shape = list(op.type.get_shape())
    shape[axis] -= 1
    smaller = MemRefType(op.type.element_type, shape, memory_space=op.type.memory_space)
    Rewriter.replace_value_with_new_type(op.result, smaller)


def _moduli(buffer: SSAValue) -> Iterator[int]:
    for use in buffer.uses:
        if isinstance(use.operation, Instruction) and use.index < len(use.operation.accesses.data):
            for offset in use.operation.accesses.data[use.index].map.data.results:
                yield from (size for size in _mods(offset) if size > 1)


def _mods(expr: AffineExpr) -> Iterator[int]:
    if isinstance(expr, AffineBinaryOpExpr):
        if expr.kind == AffineBinaryOpKind.Mod and isinstance(expr.rhs, AffineConstantExpr):
            yield expr.rhs.value
        yield from _mods(expr.lhs)
        yield from _mods(expr.rhs)


def _take_slot(op: Operation) -> None:
    """All accesses go round in one slot less; who waits for whom stays."""
    assert isinstance(op, AllocOp)
    for use in list(op.result.uses):
        user = use.operation
        if not isinstance(user, Instruction) or use.index >= len(user.accesses.data):
            continue
        accesses = list(user.accesses.data)
        old = accesses[use.index]
        offsets = tuple(_with_less(offset) for offset in old.map.data.results)
        mapped = AffineMapAttr(AffineMap(old.map.data.num_dims, 0, offsets))
        accesses[use.index] = AccessAttr(mapped, old.sizes, old.strides)
        user.properties["accesses"] = ArrayAttr(accesses)


def _with_less(expr: AffineExpr) -> AffineExpr:
    if not isinstance(expr, AffineBinaryOpExpr):
        return expr
    left, right = _with_less(expr.lhs), _with_less(expr.rhs)
    if expr.kind == AffineBinaryOpKind.Mod and isinstance(right, AffineConstantExpr) and right.value > 1:
        return left % (right.value - 1)
    return AffineBinaryOpExpr(expr.kind, left, right)


def is_of_load(module: ModuleOp, mutation: Mutation) -> bool:
    """Whether the place is in what runs once, before all requests."""
    op = next(op for number, op in enumerate(module.walk()) if number == mutation.where)
    parent = op.parent_op()
    while parent is not None and not isinstance(parent, (LoadOp, ConstOp)):
        parent = parent.parent_op()
    return parent is not None
