"""Legal timings: engine streams run under random latencies, on memories that are bytes.

What the hazard checker says from the order of events, this shows by experiment. Each stream takes its instructions in
order and waits for its semaphores, and else may be fast or slow: a program whose semaphores order everything gives the
same outputs whatever the latencies. An instruction reads when it begins and writes when it ends, with other streams'
instructions in between. Buffers are views of the bytes of their memory, so that two at one address destroy each other,
and memory that nothing has written holds garbage. No clock, no costs: for tests and `benchmarks/hazards.py`.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuron_mlir.dialects.core.movement import DmaOp
from neuron_mlir.errors import NeuronError
from neuron_mlir.simulator import kernels
from neuron_mlir.simulator.clock import Clock, Task
from neuron_mlir.simulator.codegen import Options, StreamCompiler, StreamFunction, StreamRun, build, index_text
from neuron_mlir.simulator.costs import StepCosts
from neuron_mlir.simulator.interface import NUMPY_TYPES, Arrays
from neuron_mlir.simulator.machine_run import constant_value
from neuron_mlir.simulator.program import HostPort, Memory, Program, Semaphore, Step, Storage, Stream

Array = NDArray[Any]
_STORED: dict[str, str] = {
    "f64": "f8",
    "f32": "f4",
    "bf16": "u2",
    "f16": "f2",
    "i64": "i8",
    "i32": "i4",
    "i16": "i2",
    "i8": "i1",
    "ui8": "u1",
    "i1": "u1",
}
"""The NumPy type of an element as it lies in memory: of bf16, its bits."""
_PAUSE = "yield (0, 0, None)"


@dataclass(frozen=True)
class Timing:
    """How latencies are drawn.

    Attributes:
        seed: of everything random, garbage in memory included.
        spread: powers of ten between the slowest stream and the fastest; 0 for all alike.
        change: how likely a stream becomes faster or slower at an instruction.
    """

    seed: int
    spread: float = 3.0
    change: float = 0.02


class TimedRunner:
    """Runs a scheduled program under any number of timings.

    Raises:
        NeuronError: the program has no engine streams.
    """

    def __init__(self, program: Program, weights: Any = None):
        if not program.scheduled:
            raise NeuronError("sequential code has one order only", op=program.op, advice="run core-schedule first")
        self.program = program
        self.signals: list[list[int]] = [[] for _ in program.semaphores]
        self.memories = _make_memories(program)
        self.arrays: dict[Storage, Array] = {}
        """What streams read and write: views of the memories; constants as they are computed with."""
        environment: dict[str, object] = {f"S{s.number}": self.signals[s.number] for s in program.semaphores}
        for storage in program.storages:
            constant = storage.constant is not None
            array = constant_value(storage, weights) if constant else _view(storage, self.memories[_home(storage)])
            self.arrays[storage] = environment[f"B{storage.number}"] = array
        costs = StepCosts(program)
        self.functions = {
            (stream.number, load): _compile(stream, costs, load, environment)
            for stream in program.streams
            for load in (True, False)
        }

    def run(self, requests: Sequence[Arrays], timing: Timing) -> list[Arrays]:
        """The outputs of each request by name.

        Raises:
            NeuronError: a deadlock.
        """
        rng = np.random.default_rng(timing.seed)
        for times in self.signals:
            times.clear()
        for memory in self.memories.values():
            memory[...] = rng.integers(0, 256, memory.shape, np.uint8)
        outputs: list[Arrays] = [{} for _ in requests]
        count = len(requests)
        with np.errstate(all="ignore"):
            for load in (True, False):
                tasks = [
                    Task(s.number, s.name, self.functions[s.number, load](0, s.turns.count(count), 0), s.signals())
                    for s in self.program.streams
                    if (s.load if load else s.run)
                ]
                if not load:
                    tasks += self._host_tasks(requests, outputs, len(self.program.streams))
                self._interleave(tasks, timing, rng)
        return outputs

    def _interleave(self, tasks: list[Task], timing: Timing, rng: np.random.Generator) -> None:
        """Run all tasks, the next step being that of the task that is there first."""
        pace = {task.number: 10.0 ** rng.uniform(0, timing.spread) for task in tasks}
        waiting: dict[int, list[Task]] = {}
        heap = [(0.0, order, task) for order, task in zip(rng.permutation(len(tasks)).tolist(), tasks, strict=True)]
        heapq.heapify(heap)
        draws = iter(rng.random(4096).tolist())
        while heap:
            now, order, task = heapq.heappop(heap)
            try:
                semaphore, value, _ = next(task.generator)
            except StopIteration:
                semaphore, value, task.finished = 0, 0, True
            if value:
                task.waits_for = (semaphore, value)
                waiting.setdefault(semaphore, []).append(task)
            elif not task.finished:
                draw = next(draws, -1.0)
                if draw < 0:
                    draws = iter(rng.random(4096).tolist())
                    draw = next(draws)
                if draw < timing.change:
                    pace[task.number] = 10.0 ** rng.uniform(0, timing.spread)
                heapq.heappush(heap, (now + pace[task.number] * (0.5 + draw), order, task))
            for number in task.signals:
                for other in tuple(waiting.get(number, ())):
                    if other.waits_for and len(self.signals[number]) >= other.waits_for[1]:
                        waiting[number].remove(other)
                        heapq.heappush(heap, (now, len(tasks) + other.number, other))
        stuck = [task for task in tasks if not task.finished]
        if stuck:
            Clock(self.signals, [semaphore.label for semaphore in self.program.semaphores]).report_deadlock(stuck)

    def _host_tasks(self, requests: Sequence[Arrays], outputs: list[Arrays], number: int) -> list[Task]:
        tasks: list[Task] = []
        for port in self.program.inputs:
            full, credit = _both(port)
            generator = self._input(port, full, credit, requests)
            tasks.append(Task(number + len(tasks), f"host input '{port.label}'", generator, (full.number,)))
        for port in self.program.outputs:
            full, credit = _both(port)
            generator = self._output(port, full, credit, outputs)
            tasks.append(Task(number + len(tasks), f"host output '{port.label}'", generator, (credit.number,)))
        return tasks

    def _input(self, port: HostPort, full: Semaphore, credit: Semaphore, requests: Sequence[Arrays]) -> StreamRun:
        for turn, request in enumerate(range(port.turns.first, len(requests), port.turns.every)):
            needed = turn + 1 - port.depth
            if needed > 0 and len(self.signals[credit.number]) < needed:
                yield (credit.number, needed, None)
            yield (0, 0, None)
            values = requests[request][port.label]
            self._slot(port, turn)[...] = stored(values, str(port.ring.element)).reshape(values.shape)
            self.signals[full.number].append(0)
        return (0, 0)

    def _output(self, port: HostPort, full: Semaphore, credit: Semaphore, outputs: list[Arrays]) -> StreamRun:
        element = str(port.ring.element)
        for turn, request in enumerate(range(port.turns.first, len(outputs), port.turns.every)):
            if len(self.signals[full.number]) < turn + 1:
                yield (full.number, turn + 1, None)
            yield (0, 0, None)
            outputs[request][port.label] = loaded(self._slot(port, turn), element).astype(NUMPY_TYPES[element])
            self.signals[credit.number].append(0)
        return (0, 0)

    def _slot(self, port: HostPort, turn: int) -> Array:
        array, slot = self.arrays[port.ring], turn % port.depth
        return array[slot, ...] if port.ring.memory.space == "dram" else array[:, slot]


def loaded(raw: Array, element: str) -> Array:
    """Elements as they lie in memory, as the values that are computed with: float32, or int64 for whole numbers."""
    if element == "bf16":
        return (raw.astype(np.uint32) << 16).view(np.float32)
    return raw.astype(np.float32 if element in ("f32", "f16", "i1") else np.int64)


def stored(values: Any, element: str) -> Array:
    """Values as they lie in memory; those for bf16 are rounded already."""
    if element == "bf16":
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
        return (bits >> 16).astype(np.uint16).reshape(np.shape(values))
    if element == "i1":
        return (np.asarray(values) != 0).astype(np.uint8)
    return np.asarray(values).astype(_STORED[element])


class _Stepwise(StreamCompiler):
    """Streams that pause before an instruction, and between what it reads and what it writes."""

    def instruction(self, step: Step, depth: int) -> None:
        views: dict[str, str] = {}
        for touch in step.touches:
            squeeze = not (isinstance(step.op, DmaOp) and step.op.permute is not None)
            text = f"B{touch.storage.number}[{index_text(touch, step.variables, squeeze)}]"
            if not touch.write and touch.storage.constant is None and str(touch.storage.element) != "f32":
                text = f"{self.constant(loaded)}({text}, {str(touch.storage.element)!r})"
            views[touch.role] = text
        target, element = views[step.touches[0].role], str(step.touches[0].storage.element)
        self.emit(depth, _PAUSE)
        writes: list[str] = []
        for line in kernels.emit(step, views, self.constant):
            if line.startswith(f"{target} = "):
                # A view would see what others write until the end.
                self.emit(depth, f"q = {self.constant(np.array)}({line.removeprefix(f'{target} = ')})")
                writes.append(f"{target} = {self.constant(stored)}(q, {element!r})")
            elif line.startswith(("if ", "else: ")):
                writes.append(line)
            else:
                self.emit(depth, line)
        self.emit(depth, _PAUSE)
        for line in writes:
            self.emit(depth, line)


def _compile(stream: Stream, costs: StepCosts, load: bool, environment: dict[str, object]) -> StreamFunction:
    return build(_Stepwise(stream, costs, Options(clock=False, plain=True)), load, environment)


def _home(storage: Storage) -> Memory | Storage:
    """The memory a buffer lies in; without an address it is a memory of its own."""
    return storage if storage.address is None else storage.memory


def _make_memories(program: Program) -> dict[Memory | Storage, NDArray[np.uint8]]:
    """The bytes of each memory that is used: `[partitions, bytes]`, of which DRAM has one."""
    ends: dict[Memory | Storage, int] = {}
    for storage in program.storages:
        if storage.constant is None:
            home = _home(storage)
            ends[home] = max(ends.get(home, 0), (storage.address or 0) + storage.bytes)
    machine = program.machine
    partitions = {"dram": 1, "sbuf": machine.sbuf.partitions, "psum": machine.psum.partitions}
    return {
        home: np.zeros((partitions[home.space if isinstance(home, Memory) else home.memory.space], end), np.uint8)
        for home, end in ends.items()
    }


def _view(storage: Storage, memory: NDArray[np.uint8]) -> Array:
    element = str(storage.element)
    strides = list(storage.byte_strides())
    if storage.memory.space != "dram":
        strides[0] = memory.shape[1]
    kind = np.dtype(_STORED[element])
    return np.ndarray(storage.shape, kind, memory.data, storage.address or 0, tuple(strides))


def _both(port: HostPort) -> tuple[Semaphore, Semaphore]:
    assert port.full is not None and port.credit is not None, "scheduled programs have them"
    return port.full, port.credit


def same_outputs(a: Sequence[Arrays], b: Sequence[Arrays]) -> bool:
    """Whether all requests have the same outputs, bit for bit but for kinds of NaN."""
    return all(
        x.keys() == y.keys()
        and all(np.array_equal(x[name], y[name], equal_nan=x[name].dtype.kind == "f") for name in x)
        for x, y in zip(a, b, strict=True)
    )
