"""Instruction streams as generated Python.

A stream's loop nest becomes one Python generator function, so that an instruction costs a few operations of the
interpreter instead of a walk over the IR. The same generator keeps the clock (time `t` the engine is free, `d` when
its latest result is there), moves values, and tells the hazard checker what it touches, each switched on or off
when the code is made.

A generator yields `(semaphore, value, None)` when it must wait, and `(0, time, transfer)` for a transfer; it is sent
the time at which the transfer's last byte left the shared servers. Where somebody wants to know where streams stand,
each writes its place into a list before it yields.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

from xdsl.ir.affine import AffineBinaryOpExpr, AffineBinaryOpKind, AffineConstantExpr, AffineDimExpr, AffineExpr

from neuron_mlir.dialects.core.compute import MatmulOp
from neuron_mlir.dialects.core.movement import DmaOp, SignalOp, WaitOp
from neuron_mlir.machine.cost import stationary_load_ps
from neuron_mlir.simulator import fast, kernels, nest_product
from neuron_mlir.simulator.costs import StepCosts, Transfer
from neuron_mlir.simulator.nests import Nest, Plan
from neuron_mlir.simulator.program import Limit, Loop, Step, Stream, Touch

Yielded = tuple[int, int, Transfer | None]
"""`(semaphore, value, None)` waits for a semaphore; `(0, time, transfer)` asks for a transfer at a time."""
StreamRun = Generator[Yielded, int, tuple[int, int]]
StreamFunction = Callable[[int, int, int], StreamRun]

_TOKENS = {
    AffineBinaryOpKind.Add: "+",
    AffineBinaryOpKind.Mul: "*",
    AffineBinaryOpKind.Mod: "%",
    AffineBinaryOpKind.FloorDiv: "//",
}


def expression(expr: AffineExpr, variables: Sequence[str]) -> str:
    """An affine expression as Python text over the stream's loop variables."""
    if isinstance(expr, AffineConstantExpr):
        return str(expr.value)
    if isinstance(expr, AffineDimExpr):
        return variables[expr.position]
    assert isinstance(expr, AffineBinaryOpExpr)
    left, right = expression(expr.lhs, variables), expression(expr.rhs, variables)
    return f"({left}{_TOKENS[expr.kind]}{right})"


def index_text(touch: Touch, variables: Sequence[str], squeeze: bool = True) -> str:
    """Text of a numpy basic index for the access.

    Free dimensions of size 1 are dropped (the partition dimension of SBUF and PSUM and, if nothing else is left,
    the last one stay), so that what two accesses of an instruction share has one shape. A stride of 0 becomes an
    axis of length 1. `squeeze=False` keeps all dimensions.
    """
    in_dram = touch.storage.memory.space == "dram"
    kept = {0} if not in_dram else set[int]()
    kept |= {axis for axis, size in enumerate(touch.sizes) if size != 1 and (in_dram or axis > 0)}
    if len(kept) < (1 if in_dram else 2):
        kept.add(len(touch.sizes) - 1)
    parts: list[str] = []
    for axis, (offset, size, step, extent) in enumerate(
        zip(touch.offsets, touch.sizes, touch.strides, touch.storage.shape, strict=True)
    ):
        start = expression(offset, variables)
        if squeeze and axis not in kept:
            parts.append(start)
        elif step == 0 and size > 1:
            parts.append(f"{start},None")
        else:
            parts.append(slice_text(start, size, step, extent))
    return ",".join(parts)


def slice_text(start: str, size: int, step: int, extent: int) -> str:
    """Text of a slice of `size` elements of an axis."""
    if start == "0" and size == extent and step == 1:
        return ":"
    end = str(int(start) + (size - 1) * step + 1) if start.isdigit() else f"{start}+{(size - 1) * step + 1}"
    return f"{start}:{end}" + ("" if 1 in (step, size) else f":{step}")


def range_text(loop: Loop) -> str:
    """Text of what a loop's variable runs over."""
    if loop.step != 1:
        return f"range({loop.start}, {loop.stop}, {loop.step})"
    return f"range({loop.start}, {loop.stop})" if loop.start else f"range({loop.stop})"


@dataclass
class Options:
    """What the generated code does besides running the loops."""

    clock: bool = True
    values: bool = True
    plain: bool = False
    """Use `kernels` for every instruction."""
    scratch: fast.Scratch = field(default_factory=fast.Scratch)
    plan: Plan = field(default_factory=Plan)
    """Nests of loops that become one product each."""
    limits: dict[int, Limit] = field(default_factory=dict[int, Limit])
    """Where the turns of each stream end, by its number."""
    checked_requests: int = 0
    """Requests whose accesses go to the hazard checker; the load's do when there are any."""
    places: dict[int, list[int]] | None = None
    """Where each stream, by its number, writes its place before it stops: of the statement, turn, time, time of the
    latest result, whether it had to wait, and the loop variables. None: nowhere.
    """
    exposed_loads: dict[Step, list[int]] | None = None
    """Where to count, for each instruction of a TensorEngine, how often its load was not hidden."""


class StreamCompiler:
    """Writes the function of one stream. Names it uses: `B<n>` arrays of storages (`U<n>` as bits, `F<n>` by rows of
    terms, `V<n>` how often written), `S<n>` signal times of semaphores, `K<n>` objects.
    """

    def __init__(self, stream: Stream, costs: StepCosts, options: Options):
        self.stream = stream
        self.costs = costs
        self.options = options
        self.lines: list[str] = []
        self.names: dict[str, object] = {}
        self.known: dict[int, str] = {}
        self.arrays: set[int] = set()
        self.semaphores: set[int] = set()
        self.hazards = False
        """Whether the code being written tells the checker what it does."""
        self.limit = options.limits.setdefault(stream.number, Limit())
        self.packed = nest_product.Packed()
        self.stops = 0
        """Statements so far at which the code may stop."""
        self.loops: list[str] = []
        """Variables of the loops around what is being written."""
        self.counts_loads = stream.engine == "tensor" and options.exposed_loads is not None

    def compile(self, load: bool) -> tuple[str, dict[str, object]]:
        """Source text of `def stream(first, last, t)` and the objects it refers to, arrays and semaphore lists
        apart.
        """
        checked = self.options.checked_requests
        self.emit(0, "def stream(first, last, t):")
        self.emit(1, "d = t")
        if not load:
            self.emit(1, f"{self.constant(self.limit)}.last = last")
        if self.counts_loads:
            self.emit(1, "x = 0")
        if load:
            self.hazards = checked > 0
            self.body(self.stream.load, 1)
        elif checked:
            # The requests that are checked, then the others without any of the checker's cost.
            self.hazards = True
            turns = self.stream.turns.count(checked)
            self.requests(f"{self.constant(self.limit)}.turns(first, {turns})")
            if checked < sys.maxsize:
                self.hazards = False
                self.requests(f"{self.constant(self.limit)}.turns(max(first, {turns}))")
        else:
            self.requests(f"{self.constant(self.limit)}.turns(first)")
        self.emit(1, "return (t, d)")
        self.emit(1, "yield")  # a stream without waits and transfers is a generator too
        return "\n".join(self.lines), self.names

    def requests(self, numbers: str) -> None:
        """What the stream does for each of these requests."""
        self.emit(1, f"for r in {numbers}:")
        self.loops.append("r")
        self.body(self.stream.run, 2)
        self.emit(2, "pass")
        self.loops.pop()

    def emit(self, depth: int, text: str) -> None:
        self.lines.append(" " * depth + text)

    def constant(self, value: object) -> str:
        # An id stays that of the object, which `names` keeps alive.
        name = self.known.get(id(value))
        if name is None:
            name = self.known[id(value)] = f"K{len(self.names)}"
            self.names[name] = value
        return name

    def body(self, items: Sequence[Loop | Step], depth: int) -> None:
        for item in items:
            if isinstance(item, Loop) and item in self.options.plan.nests:
                self.nest(self.options.plan.nests[item], depth)
            elif isinstance(item, Loop):
                self.loop(item, depth)
            elif isinstance(item.op, WaitOp):
                self.wait(item, depth)
            elif isinstance(item.op, SignalOp):
                self.signal(item, depth)
            else:
                self.instruction(item, depth)

    def loop(self, loop: Loop, depth: int) -> None:
        self.emit(depth, f"for {loop.variable} in {range_text(loop)}:")
        self.loops.append(loop.variable)
        self.body(loop.body, depth + 1)
        self.emit(depth + 1, "pass")
        self.loops.pop()

    def place(self) -> str:
        """Statements that write down where the stream stops."""
        places = self.options.places
        if places is None or "r" not in self.loops:
            return ""
        self.stops += 1
        exposed = "x" if self.counts_loads else "0"
        loops = "".join(f", {name}" for name in self.loops[1:])
        name = self.constant(places[self.stream.number])
        return f"{name}[:] = {self.stops}, r, t, d, {exposed}{loops}; "

    def wait(self, step: Step, depth: int) -> None:
        assert step.semaphore is not None and step.value is not None
        number = step.semaphore.number
        self.semaphores.add(number)
        # Few statements: Python takes longer to compile them than to run them.
        self.emit(depth, f"if (v := {expression(step.value, step.variables)}) > 0:")
        self.emit(depth + 1, f"if len(S{number}) < v: {self.place()}yield {number}, v, None")
        if self.options.clock:
            # A TensorEngine that had to wait has no matmul to hide the next load of a stationary operand behind.
            load = stationary_load_ps(self.costs.machine) if self.stream.engine == "tensor" else 0
            counted = "; x = 1" if self.counts_loads else ""
            late = f"if (w := S{number}[v - 1]) > t: t = w"
            self.emit(depth + 1, f"{late} + {load}{counted}" if load else late)
        if self.hazards:
            self.emit(depth + 1, f"HZ.wait({self.stream.number}, {number}, v)")

    def signal(self, step: Step, depth: int) -> None:
        assert step.semaphore is not None
        number = step.semaphore.number
        self.semaphores.add(number)
        if self.hazards:
            self.emit(depth, f"HZ.signal({self.stream.number}, {number})")
        delay = self.costs.semaphore(step.semaphore, self.stream)
        self.emit(depth, f"S{number}.append((d if d > t else t) + {delay})")

    def nest(self, nest: Nest, depth: int) -> None:
        """Terms one by one for the checker, all in one for the clock and the values."""
        if self.hazards:
            for level, loop in enumerate(nest.loops):
                self.emit(depth + level, f"for {loop.variable} in {range_text(loop)}:")
            self.hazard(nest.step, depth + len(nest.loops))
        for line in nest_product.emit(nest, self.options.plan, self.packed, self.options.scratch, self.constant):
            self.emit(depth, line)
        self.clock(nest.step, depth, nest.terms)

    def instruction(self, step: Step, depth: int) -> None:
        if self.hazards:
            self.hazard(step, depth)
        if self.options.values and step not in self.options.plan.resident:
            self.value(step, depth)
        self.clock(step, depth, 1)

    def clock(self, step: Step, depth: int, times: int) -> None:
        """The time an instruction takes, or so many like it in a row."""
        if not self.options.clock:
            return
        transfer = self.costs.transfer(step, self.stream)
        if transfer is not None:
            self.emit(depth, f"{self.place()}t = yield (0, t, {self.constant(transfer)})")
            self.emit(depth, f"if t + {transfer.fixed_ps} > d: d = t + {transfer.fixed_ps}")
            return
        occupancy, latency = self.costs.issue(step, self.stream)
        if self.counts_loads and self.options.exposed_loads is not None:
            counter = self.options.exposed_loads.setdefault(step, [0])
            self.emit(depth, f"{self.constant(counter)}[0] += x; x = 0")
        self.emit(depth, f"t += {occupancy * times}")
        self.emit(depth, f"d = t + {latency}" if latency else "d = t")

    def hazard(self, step: Step, depth: int) -> None:
        """Tell the checker what is touched: the step's number and the offsets of each access."""
        name = self.constant(step)
        touches = ", ".join(
            "(" + ", ".join(expression(e, step.variables) for e in touch.offsets) + ",)" for touch in step.touches
        )
        accumulates = ""
        if isinstance(step.op, MatmulOp):
            init = expression(step.op.init.data.results[0], step.variables)
            accumulates = "" if init == "0" else f", {init} != 0"
        self.emit(depth, f"HZ.touch({self.stream.number}, {name}, ({touches},){accumulates})")

    def value(self, step: Step, depth: int) -> None:
        views: dict[str, str] = {}
        for touch in step.touches:
            number = touch.storage.number
            self.arrays.add(number)
            squeeze = not (isinstance(step.op, DmaOp) and step.op.permute is not None)
            views[touch.role] = f"B{number}[{index_text(touch, step.variables, squeeze)}]"
        lines = None
        if not self.options.plain and step.touches[0].storage.memory.space != "dram":
            out = step.touches[0]
            bits = f"U{out.storage.number}[{index_text(out, step.variables)}]"
            lines = fast.emit(step, views, bits, self.options.scratch, self.constant)
        for line in kernels.emit(step, views, self.constant) if lines is None else lines:
            self.emit(depth, line)
        for touch in step.touches:
            if touch.write and touch.storage in self.options.plan.versions:
                self.emit(depth, f"V{touch.storage.number}[0] += 1")


def build(compiler: StreamCompiler, load: bool, environment: dict[str, object]) -> StreamFunction:
    """The generator function of a compiler's stream, bound to `environment` (arrays `B<n>`, semaphore lists `S<n>`, the
    checker `HZ`).
    """
    source, names = compiler.compile(load)
    scope: dict[str, Any] = {**environment, **names}
    code = compile(source, f"<stream {compiler.stream.name} {'load' if load else 'run'}>", "exec")
    exec(code, scope)
    return scope["stream"]
