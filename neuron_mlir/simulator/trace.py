"""A run that is written down: when each instruction of some requests ran, what it touched, and what it waited for.

`TracingSimulator` runs a scheduled program on the clock (no values) as `MachineSimulator` does, to the same times, and
keeps for each instruction one row of integers per execution. Rows are int64 arrays, so that a network of a million
instructions takes tens of megabytes. What the rows mean to a person is made of them elsewhere (`runtime/profile`).
"""

from __future__ import annotations

from array import array
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from xdsl.ir.affine import AffineExpr

from neuron_mlir.dialects.core.compute import MatmulOp
from neuron_mlir.errors import NeuronError
from neuron_mlir.simulator.clock import Clock
from neuron_mlir.simulator.codegen import Options, StreamCompiler, StreamRun, expression
from neuron_mlir.simulator.costs import Server, StepCosts, Transfer
from neuron_mlir.simulator.machine_run import MachineRun, MachineSimulator
from neuron_mlir.simulator.program import HostPort, Program, Semaphore, Step, Stream, Touch

Rows = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class StepTrace:
    """Every execution of one instruction.

    Attributes:
        stream: whose instruction it is.
        step: the instruction.
        rows: one per execution: request, start, end, done (when the result is there), then the address of each of
            `touches`. Times are picoseconds from time 0 of the requests. A transfer starts when it is asked for and
            ends when its last byte has left the servers.
        touches: its accesses to SBUF and PSUM; an address is that of the first byte in a partition.
        transfer: of a DMA, what it moves through.
        accumulates: of a matmul, the last column says whether it adds to what is there (1) or not (0).
    """

    stream: Stream
    step: Step
    rows: Rows
    touches: tuple[Touch, ...]
    transfer: Transfer | None
    accumulates: bool


@dataclass(frozen=True, eq=False)
class WaitTrace:
    """Times at which a wait held its stream up.

    `rows`: request, start, end, number of the signal waited for.
    """

    stream: Stream
    semaphore: Semaphore
    rows: Rows


@dataclass(frozen=True, eq=False)
class SignalTrace:
    """Every signal of one instruction of a stream; `rows`: number of the signal, start of the instruction before."""

    stream: Stream
    semaphore: Semaphore
    rows: Rows


@dataclass(frozen=True, eq=False)
class HostTrace:
    """Transfers of the host for a graph input or output; `rows`: request, asked, left the servers, there."""

    port: HostPort
    direction: str
    transfer: Transfer
    rows: Rows


@dataclass(frozen=True, eq=False)
class ServerTrace:
    """Every quantum that a server has moved in the run; `rows`: end, bytes. It was at work for it up to the end, for
    as long as the bytes take at its rate.
    """

    server: Server
    rows: Rows


@dataclass(frozen=True, eq=False)
class Trace:
    """What was written down of a run, for the requests from `first` up to `last`, without it."""

    program: Program
    run: MachineRun
    first: int
    last: int
    steps: list[StepTrace]
    waits: list[WaitTrace]
    signals: list[SignalTrace]
    host: list[HostTrace]
    servers: list[ServerTrace]


def touch_bytes(touch: Touch) -> int:
    """Bytes from the first to the last byte of an access in each partition, those it steps over included."""
    strides = touch.storage.byte_strides()
    span = sum(
        (size - 1) * step * stride for size, step, stride in zip(touch.sizes, touch.strides, strides, strict=True)
    )
    return span + touch.storage.item_bytes


def on_core(touch: Touch) -> bool:
    """Whether an access is to SBUF or PSUM."""
    return touch.storage.memory.space != "dram"


@dataclass
class _Recorder:
    """The arrays that generated code writes to."""

    first: int
    last: int
    steps: list[tuple[Stream, Step, tuple[Touch, ...], Transfer | None, array[int]]] = field(default_factory=list[Any])
    waits: list[tuple[Stream, Semaphore, array[int]]] = field(default_factory=list[Any])
    signals: list[tuple[Stream, Semaphore, array[int]]] = field(default_factory=list[Any])
    host: list[tuple[HostPort, str, Transfer, array[int]]] = field(default_factory=list[Any])


class _TracingClock(Clock):
    """Also keeps when each server was at work."""

    def __init__(self, signals: list[list[int]], names: list[str]):
        super().__init__(signals, names)
        self.moved: dict[Server, array[int]] = {}

    def serve(self, transfer: Transfer, time: int, size: int) -> int:
        end = super().serve(transfer, time, size)
        for server, passes in transfer.servers:
            if server not in self.moved:
                self.moved[server] = array("q")
            self.moved[server].extend((self.free_at[server], size * passes))
        return end


class _TracingCompiler(StreamCompiler):
    """Code that also writes down what it does, in the turns of the requests that are traced."""

    def __init__(self, stream: Stream, costs: StepCosts, options: Options, recorder: _Recorder):
        super().__init__(stream, costs, options)
        self.recorder = recorder
        self.tracing = False

    def requests(self, numbers: str) -> None:
        turns = self.stream.turns
        low, high = turns.count(self.recorder.first), turns.count(self.recorder.last)
        super().requests(f"range(first, min(last, {low}))")
        self.tracing = True
        self.emit(1, "a = t")
        super().requests(f"range(max(first, {low}), min(last, {high}))")
        self.tracing = False
        super().requests(f"range(max(first, {high}), last)")

    def rows(self) -> tuple[array[int], str]:
        """A new array, and the name of what appends a row to it."""
        values = array("q")
        return values, self.constant(values.extend)

    def instruction(self, step: Step, depth: int) -> None:
        if self.tracing:
            self.emit(depth, "a = t")
        super().instruction(step, depth)
        if not self.tracing:
            return
        touches = tuple(touch for touch in step.touches if on_core(touch))
        values, name = self.rows()
        transfer = self.costs.transfer(step, self.stream)
        self.recorder.steps.append((self.stream, step, touches, transfer, values))
        done = "d" if transfer is None else f"t + {transfer.fixed_ps}"
        rest = "".join(f", {_address(touch, step.variables)}" for touch in touches)
        if isinstance(step.op, MatmulOp):
            rest += f", {expression(step.op.init.data.results[0], step.variables)} != 0"
        self.emit(depth, f"{name}((r, a, t, {done}{rest}))")

    def wait(self, step: Step, depth: int) -> None:
        if not self.tracing:
            super().wait(step, depth)
            return
        assert step.semaphore is not None
        self.emit(depth, "b = t")
        super().wait(step, depth)
        values, name = self.rows()
        self.recorder.waits.append((self.stream, step.semaphore, values))
        self.emit(depth, f"if t > b: {name}((r, b, t, v - 1))")

    def signal(self, step: Step, depth: int) -> None:
        super().signal(step, depth)
        if not self.tracing:
            return
        assert step.semaphore is not None
        values, name = self.rows()
        self.recorder.signals.append((self.stream, step.semaphore, values))
        self.emit(depth, f"{name}((len(S{step.semaphore.number}) - 1, a))")


def _address(touch: Touch, variables: tuple[str, ...]) -> str:
    """Text of the address of an access within its partitions."""
    strides = touch.storage.byte_strides()
    total = AffineExpr.constant(touch.storage.address or 0)
    for offset, stride in zip(touch.offsets, strides, strict=True):
        if stride:
            total = total + offset * stride
    return expression(total, variables)


class TracingSimulator(MachineSimulator):
    """Runs a scheduled program without values and writes down the requests from `first` up to `last`, without it."""

    def __init__(self, program: Program, first: int, last: int):
        if not program.scheduled:
            raise NeuronError("sequential code has no clock", op=program.op, advice="run core-schedule first")
        self.recorder = _Recorder(first, last)
        self.moved: dict[Server, array[int]] = {}
        super().__init__(program, values=False, hazards=False, count_loads=True, skip=False)

    def _make_clock(self, names: list[str]) -> Clock:
        clock = _TracingClock(self.signals, names)
        self.moved = clock.moved
        return clock

    def _compiler(self, stream: Stream) -> StreamCompiler:
        return _TracingCompiler(stream, self.costs, self.options, self.recorder)

    def _host_stream(self, port: HostPort, direction: str, generator: StreamRun) -> StreamRun:
        """The same stream, its transfers written down."""
        transfer = self.host_transfer(port, direction)
        values = array("q")
        self.recorder.host.append((port, direction, transfer, values))
        return _watch(generator, values, port, self.recorder.first, self.recorder.last, transfer.fixed_ps)

    def trace(self, count: int, in_flight: int | None = None) -> Trace:
        """Run `count` requests and tell of those that are traced."""
        recorder = self.recorder
        recorder.host.clear()
        for *_, values in (*recorder.steps, *recorder.waits, *recorder.signals):
            del values[:]
        run = self.run(count, in_flight)
        zero = run.load_ps
        return Trace(
            self.program,
            run,
            recorder.first,
            min(recorder.last, count),
            [
                _step_trace(stream, step, touches, transfer, values, zero)
                for stream, step, touches, transfer, values in recorder.steps
            ],
            [
                WaitTrace(stream, semaphore, _table(values, 4, (1, 2), zero, stream))
                for stream, semaphore, values in recorder.waits
            ],
            [
                SignalTrace(stream, semaphore, _table(values, 2, (1,), zero))
                for stream, semaphore, values in recorder.signals
            ],
            [
                HostTrace(port, direction, transfer, _table(values, 4, (1, 2, 3), zero))
                for port, direction, transfer, values in recorder.host
            ],
            [ServerTrace(server, _table(values, 2, (0,), zero)) for server, values in self.moved.items()],
        )


def _step_trace(
    stream: Stream, step: Step, touches: tuple[Touch, ...], transfer: Transfer | None, values: array[int], zero: int
) -> StepTrace:
    accumulates = isinstance(step.op, MatmulOp)
    rows = _table(values, 4 + len(touches) + accumulates, (1, 2, 3), zero, stream)
    return StepTrace(stream, step, rows, touches, transfer, accumulates)


def _table(values: array[int], width: int, times: tuple[int, ...], zero: int, stream: Stream | None = None) -> Rows:
    """Rows of so many columns, times from time 0 of the requests, turns of a stream as requests."""
    rows = np.frombuffer(values, np.int64).reshape(-1, width).copy() if len(values) else np.zeros((0, width), np.int64)
    for column in times:
        rows[:, column] -= zero
    if stream is not None:
        rows[:, 0] = rows[:, 0] * stream.turns.every + stream.turns.first
    return rows


def _watch(
    generator: StreamRun, values: array[int], port: HostPort, first: int, last: int, fixed_ps: int
) -> Generator[tuple[int, int, Transfer | None], int, tuple[int, int]]:
    turn, sent = 0, None
    try:
        while True:
            item = next(generator) if sent is None else generator.send(sent)
            sent = yield item
            if item[2] is None:
                sent = None
                continue
            request = port.turns.first + turn * port.turns.every
            turn += 1
            if first <= request < last:
                values.extend((request, item[1], sent, sent + fixed_ps))
    except StopIteration as stop:
        return stop.value
