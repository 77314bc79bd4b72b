"""Running a memory-form program: values, clock, hazards."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from neuron_mlir.dialects.core.memory import ConstOp
from neuron_mlir.errors import NeuronError
from neuron_mlir.machine.cost import semaphore_ps
from neuron_mlir.simulator import fast
from neuron_mlir.simulator.clock import Clock, Task
from neuron_mlir.simulator.clock_table import make_table
from neuron_mlir.simulator.codegen import Options, StreamCompiler, StreamFunction, StreamRun, build
from neuron_mlir.simulator.costs import StepCosts, Transfer
from neuron_mlir.simulator.interface import NUMPY_TYPES, Arrays
from neuron_mlir.simulator.nests import logical, only, physical_shape, plan_nests, rows_of
from neuron_mlir.simulator.program import HostPort, Limit, Program, Semaphore, Step, Storage, Stream
from neuron_mlir.simulator.ranges import check_ranges
from neuron_mlir.simulator.steady import Watcher, keeps_pace

if TYPE_CHECKING:
    from neuron_mlir.simulator.hazards import HazardChecker


@dataclass
class MachineRun:
    """What a run gives: outputs per request, and times in picoseconds (empty without a clock)."""

    outputs: list[Arrays]
    started: list[int] = field(default_factory=list)
    """When the host began to send request `r`."""
    finished: list[int] = field(default_factory=list)
    """When the last output of request `r` had reached the host."""
    load_ps: int = 0
    """When the last stage had loaded its weights: time 0 of the requests."""
    checked_requests: int = 0
    """How many requests the hazard checker followed."""
    exposed_loads: dict[Step, int] = field(default_factory=dict["Step", int])
    """Of each instruction of a TensorEngine, how often the engine had to wait for it, so that the load of its
    stationary operand took time of its own; empty when not counted.
    """


@dataclass
class Events:
    """Starts of requests at the host, and outputs there, as (request, time)."""

    started: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    finished: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])


_SKIPS_FROM = 16
"""Requests of a run from which on it is watched for a steady state."""


def array_for(storage: Storage, after: int = 0) -> NDArray[Any]:
    """The array that holds a buffer's values: float32 for every float type; NaN (or -1) where nothing was written.

    In memory its partitions come after axis `after`; the array has them first all the same.
    """
    dtype = held_as(storage)
    return logical(np.full(physical_shape(storage, after), np.nan if dtype == np.float32 else -1, dtype), after)


def held_as(storage: Storage) -> np.dtype[Any]:
    """The NumPy type of a buffer's array: float32 for floats and i1 (0 or 1, as the engines compute), else int64."""
    return np.dtype(np.float32 if str(storage.element) in ("f32", "bf16", "f16", "i1") else np.int64)


def constant_value(storage: Storage, weights: Any) -> NDArray[Any]:
    """The array of a `core.const`: its region evaluated, in the buffer's shape. May be a read-only view of a stored
    weight.
    """
    from neuron_mlir.simulator.nn_eval import evaluate_block

    assert storage.constant is not None
    (value,) = evaluate_block(storage.constant.body.block, [], weights)
    return np.ascontiguousarray(value, held_as(storage)).reshape(storage.shape)


class MachineSimulator:
    """Runs a program for a number of requests.

    Args:
        program: as read from the IR.
        weights: the stored weights, anything with `get(name)`; needed only with values.
        values: move data; else only time passes.
        hazards: run the happens-before checker on all requests (True), on none, or ("auto") on as many as it takes
            for every ring to go round.
        plain: one plain NumPy expression per instruction, the reference for the faster code.
        count_loads: count the loads of stationary operands that are not hidden.
        costs: what steps cost, of this program; given where its servers are shared with other programs.
        constants: values of constants that were made before, by op; those made here are added.
        skip: without values, leave out what repeats: the times are the same.
    """

    def __init__(
        self,
        program: Program,
        weights: Any = None,
        *,
        values: bool = True,
        hazards: Literal["auto"] | bool = "auto",
        plain: bool = False,
        count_loads: bool = False,
        costs: StepCosts | None = None,
        constants: dict[ConstOp, NDArray[Any]] | None = None,
        skip: bool = True,
    ):
        check_ranges(program)
        self.program = program
        self.options = Options(clock=program.scheduled, values=values, plain=plain)
        if values and not plain:
            self.options.plan = plan_nests(program)
        self.options.exposed_loads = {} if count_loads else None
        self.costs = StepCosts(program) if costs is None else costs
        # Servers that others use too have a state of their own.
        alone = costs is None
        self.may_skip = skip and alone and not values and program.scheduled
        self.signals: list[list[int]] = [[] for _ in program.semaphores]
        self.environment: dict[str, object] = {f"S{s.number}": self.signals[s.number] for s in program.semaphores}
        self.arrays: dict[int, NDArray[Any]] = {}
        self.checked_requests = 0
        """How many requests the hazard checker follows."""
        self.checker: HazardChecker | None = None
        if values:
            self._make_arrays(weights, {} if constants is None else constants)
        if hazards is not False and program.scheduled:
            from neuron_mlir.simulator.hazards import requests_to_check

            self.checked_requests = requests_to_check(program) if hazards == "auto" else sys.maxsize
            self.options.checked_requests = self.checked_requests
        self.skipped_requests = 0
        """Of the last run, requests that were left out because they repeat others."""
        self.port_limits = {port: Limit() for port in (*program.inputs, *program.outputs)}
        self.functions: dict[tuple[int, bool], StreamFunction] = {}
        """The code of each stream, by number and whether it is the load's."""
        # With a checker the code is made for each run, as it is bound to that run's; it also depends on the run whether
        # streams tell where they stand.
        if not self.checked_requests and not self.may_skip:
            self._build(watched=False)

    def _make_arrays(self, weights: Any, constants: dict[ConstOp, NDArray[Any]]) -> None:
        for storage in self.program.storages:
            if storage.constant is None:
                array = array_for(storage, self.options.plan.partition_after.get(storage, 0))
            else:
                # Copies on several chips are never written: one array does for all.
                array = constants.get(storage.constant)
                if array is None:
                    array = constants[storage.constant] = fast.canonical(constant_value(storage, weights))
            self.arrays[storage.number] = array
            self.environment[f"B{storage.number}"] = array
            if storage in self.options.plan.partition_after:
                after = self.options.plan.partition_after[storage]
                self.environment[f"F{storage.number}"] = rows_of(storage, array, after)
            if array.dtype == np.float32:
                self.environment[f"U{storage.number}"] = array.view(np.uint32)

        for storage, version in self.options.plan.versions.items():
            self.environment[f"V{storage.number}"] = version
        self._put_in_place(self.options.plan.resident)

    def _put_in_place(self, steps: set[Step]) -> None:
        """Move what these steps of the load move, without a clock."""
        for stream in self.program.streams if steps else []:
            kept = only(stream.load, steps)
            if kept:
                compiler = StreamCompiler(replace(stream, load=kept), self.costs, Options(clock=False))
                _drain(build(compiler, True, self.environment)(0, 0, 0))

    def _build(self, watched: bool) -> None:
        """Make the code of all streams; if watched, they tell where they stand."""
        self.options.places = {stream.number: [] for stream in self.program.streams} if watched else None
        with np.errstate(all="ignore"):  # numbers in the text of a program may be too large for float32
            self._build_functions()

    def _build_functions(self) -> None:
        for stream in self.program.streams:
            for load in (True, False):
                table = self._table(stream, load)
                if table is None:
                    table = build(self._compiler(stream), load, self.environment)
                self.functions[stream.number, load] = table

    def _table(self, stream: Stream, load: bool) -> StreamFunction | None:
        """A stream that only the clock is kept of; None where more is wanted, or it has no table."""
        options = self.options
        if options.values or not options.clock or self.checked_requests or options.exposed_loads is not None:
            return None
        table = make_table(stream, self.costs, self.signals, load)
        if table is None:
            return None
        limit = None if load else options.limits.setdefault(stream.number, Limit())
        return partial(table.run, limit, (options.places or {}).get(stream.number))

    def _compiler(self, stream: Stream) -> StreamCompiler:
        """What writes the code of a stream."""
        return StreamCompiler(stream, self.costs, self.options)

    def run(self, requests: list[Arrays] | int, in_flight: int | None = None) -> MachineRun:
        """Run the given requests (inputs by name), or that many without values, from the load on.

        With `in_flight`, the host sends a request only when at most so many less one have not been answered, as a load
        generator with so many clients does; without, whenever the ring of the input has room.

        Raises `NeuronError` for a deadlock or, when checked, a hazard.
        """
        count = requests if isinstance(requests, int) else len(requests)
        feeds = None if isinstance(requests, int) else requests
        check_counts(self.program, count)
        result = MachineRun([{} for _ in range(count)], [-1] * count, [0] * count)
        for times in self.signals:
            times.clear()
        for counter in (self.options.exposed_loads or {}).values():
            counter[0] = 0
        watched = self.may_skip and count >= _SKIPS_FROM and self._moduli is not None
        if self.checked_requests:
            from neuron_mlir.simulator.hazards import HazardChecker

            self.checker = HazardChecker(self.program)
            self.environment["HZ"] = self.checker
        if self.checked_requests or not self.functions or watched != (self.options.places is not None):
            self._build(watched)
        if self.checked_requests:
            result.checked_requests = min(count, self.checked_requests)
        with np.errstate(all="ignore"):
            if self.program.scheduled:
                self._run_streams(count, feeds, result, in_flight)
            else:
                self._run_sequential(count, feeds, result)
        result.exposed_loads = {step: counter[0] for step, counter in (self.options.exposed_loads or {}).items()}
        return result

    # Engine streams

    @cached_property
    def _moduli(self) -> dict[int, int] | None:
        return keeps_pace(self.program)

    def _make_clock(self, names: list[str]) -> Clock:
        return Clock(self.signals, names)

    def _run_streams(self, count: int, feeds: list[Arrays] | None, result: MachineRun, in_flight: int | None) -> None:
        names = [semaphore.label for semaphore in self.program.semaphores]
        clock = self._make_clock(names)
        start = 0
        events = Events()
        for load in (True, False):
            tasks = [
                Task(
                    stream.number,
                    stream.name,
                    self.functions[stream.number, load](0, stream.turns.count(count), start),
                    stream.signals(),
                    (self.options.places or {}).get(stream.number, []),
                )
                for stream in self.program.streams
                if (stream.load if load else stream.run)
            ]
            if not load:
                tasks += self._host_tasks(count, feeds, result, start, in_flight, events)
                self._run_requests(clock, tasks, count, events)
                continue
            clock.run(tasks)
            if load:
                start = max((max(task.result) for task in tasks), default=0)
                result.load_ps = start
                if self.checker is not None:
                    self.checker.barrier()
        started, finished = [-1] * count, [start] * count
        for request, time in events.started:
            started[request] = time if started[request] < 0 else min(started[request], time)
        for request, time in events.finished:
            finished[request] = max(finished[request], time)
        result.started = [max(0, time - start) for time in started]
        result.finished = [time - start for time in finished]

    def _run_requests(self, clock: Clock, tasks: list[Task], count: int, events: Events) -> None:
        """Run all streams and host ports; with a steady state left out where that is possible."""
        if self.options.places is None or self._moduli is None:
            clock.run(tasks)
            return
        turns = {stream.number: stream.turns for stream in self.program.streams}
        limits = [(self.options.limits[stream.number], stream.turns) for stream in self.program.streams]
        ports = [*self.program.inputs, *self.program.outputs]
        for n, port in enumerate(ports):
            turns[len(self.program.streams) + n] = port.turns
            limits.append((self.port_limits[port], port.turns))
        every = {number: each.every for number, each in turns.items()}
        counters = list((self.options.exposed_loads or {}).values())
        checked = min(count, self.checked_requests)
        watcher = Watcher(count, every, self._moduli, limits, events.started, events.finished, counters, checked)
        running = [task for task in tasks if not task.finished]
        marker = next(task for task in tasks if task.number == len(self.program.streams))

        def look(now: int, left: int) -> None:
            if watcher.active:
                watcher.look(clock, running, marker, now, left)

        clock.run(tasks, marker, look)
        self.skipped_requests = watcher.skipped
        events.started = list(watcher.restored(events.started, outputs=False))
        events.finished = list(watcher.restored(events.finished, outputs=True))
        watcher.restore_loads()

    def _host_tasks(
        self,
        count: int,
        feeds: list[Arrays] | None,
        result: MachineRun,
        start: int,
        in_flight: int | None,
        events: Events,
    ) -> list[Task]:
        number = len(self.program.streams)
        tasks: list[Task] = []
        for port in self.program.inputs:
            full, credit = host_semaphores(port, self.program)
            self.port_limits[port].last = port.turns.count(count)
            place: list[int] = []
            generator = self._host_input(port, full, credit, feeds, events, start, in_flight, place)
            generator = self._host_stream(port, "in", generator)
            tasks.append(Task(number + len(tasks), f"host input '{port.label}'", generator, (full.number,), place))
        for port in self.program.outputs:
            full, credit = host_semaphores(port, self.program)
            self.port_limits[port].last = port.turns.count(count)
            place = []
            generator = self._host_output(port, full, credit, result, events, start, place)
            generator = self._host_stream(port, "out", generator)
            tasks.append(Task(number + len(tasks), f"host output '{port.label}'", generator, (credit.number,), place))
        return tasks

    def _host_stream(self, port: HostPort, direction: str, generator: StreamRun) -> StreamRun:
        """The stream that the clock runs for a port: `generator`, for who does not want to look at what it does."""
        return generator

    def _host_input(
        self,
        port: HostPort,
        full: Semaphore,
        credit: Semaphore,
        feeds: list[Arrays] | None,
        events: Events,
        start: int,
        in_flight: int | None,
        place: list[int],
    ) -> StreamRun:
        transfer = self.host_transfer(port, "in")
        delay = semaphore_ps(self.program.machine)
        filled, credits = self.signals[full.number], self.signals[credit.number]
        time = done = start
        for turn in self.port_limits[port].turns(0):
            request = port.turns.request(turn)
            needed = turn + 1 - port.depth
            if needed > 0:
                if len(credits) < needed:
                    place[:] = 0, turn, time, done
                    yield (credit.number, needed, None)
                time = max(time, credits[needed - 1])
            if in_flight is not None:
                for answered, outputs in self._answers(request - in_flight):
                    if len(self.signals[answered]) < outputs:
                        place[:] = 1, turn, time, done, answered
                        yield (answered, outputs, None)
                    time = max(time, self.signals[answered][outputs - 1])
            events.started.append((request, time))
            if self.checker is not None and request < self.checked_requests:
                self.checker.host_write(port, turn)
            if feeds is not None:
                self.write_input(port, turn, feeds[request])
            place[:] = 2, turn, time, done
            time = yield (0, time, transfer)
            done = max(done, time + transfer.fixed_ps)
            filled.append(done + delay)
        return (time, done)

    def _answers(self, request: int) -> list[tuple[int, int]]:
        """Semaphores that the host signals when it has the outputs of a request, and what they have then reached."""
        found: list[tuple[int, int]] = []
        for port in self.program.outputs if request >= 0 else []:
            turn = port.turns.turn(request)
            if turn is not None and port.credit is not None:
                found.append((port.credit.number, turn + 1))
        return found

    def _host_output(
        self,
        port: HostPort,
        full: Semaphore,
        credit: Semaphore,
        result: MachineRun,
        events: Events,
        start: int,
        place: list[int],
    ) -> StreamRun:
        transfer = self.host_transfer(port, "out")
        filled, credits = self.signals[full.number], self.signals[credit.number]
        delay = semaphore_ps(self.program.machine)
        time = done = start
        for turn in self.port_limits[port].turns(0):
            request = port.turns.request(turn)
            if len(filled) < turn + 1:
                place[:] = 0, turn, time, done
                yield (full.number, turn + 1, None)
            time = max(time, filled[turn])
            if self.checker is not None and request < self.checked_requests:
                self.checker.host_read(port, turn)
            if self.options.values:
                result.outputs[request][port.label] = self.read_output(port, turn)
            place[:] = 1, turn, time, done
            time = yield (0, time, transfer)
            done = max(done, time + transfer.fixed_ps)
            events.finished.append((request, done))
            credits.append(done + delay)
        return (time, done)

    def host_transfer(self, port: HostPort, direction: str) -> Transfer:
        """What moves one request's data between the host and a port: `in` or `out`."""
        return self.costs.host_transfer(port.ring.memory, port.ring.bytes_of_slot(port.depth), direction)

    def write_input(self, port: HostPort, turn: int, feed: Arrays) -> None:
        """Put a request's data where the program reads it."""
        _slot(self.arrays[port.ring.number], port, turn)[...] = fast.canonical(feed[port.label])

    def read_output(self, port: HostPort, turn: int) -> NDArray[Any]:
        """A copy of what the program has written for a turn."""
        dtype = NUMPY_TYPES[str(port.ring.element)]
        return _slot(self.arrays[port.ring.number], port, turn).astype(dtype)

    # Sequential code: one stream a stage, program order is meaning

    def _run_sequential(self, count: int, feeds: list[Arrays] | None, result: MachineRun) -> None:
        for stream in self.program.streams:
            _drain(self.functions[stream.number, True](0, 1, 0))
        for request in range(count):
            for port in self.program.inputs:
                turn = port.turns.turn(request)
                if feeds is not None and turn is not None:
                    self.write_input(port, turn, feeds[request])
            for stream in self.program.streams:
                turn = stream.turns.turn(request)
                if turn is not None:
                    _drain(self.functions[stream.number, False](turn, turn + 1, 0))
            for port in self.program.outputs:
                turn = port.turns.turn(request)
                if self.options.values and turn is not None:
                    result.outputs[request][port.label] = self.read_output(port, turn)


def check_counts(program: Program, requests: int) -> None:
    """Raise `NeuronError` when a semaphore would count further than the machine's do within so many requests."""
    counts: dict[Semaphore, int] = {}
    for stream in program.streams:
        turns = stream.turns.count(requests)
        for step, times, is_load in stream.steps():
            if step.semaphore is not None and step.value is None:
                counts[step.semaphore] = counts.get(step.semaphore, 0) + times * (1 if is_load else turns)
    limit = program.machine.chip.semaphore_max
    for semaphore, count in counts.items():
        if count > limit:
            raise NeuronError(
                f"semaphore overflow: '{semaphore.label}' is signalled {count} times in {requests} requests",
                op=semaphore.op,
                resource="count of a semaphore",
                needed=count,
                available=limit,
                advice="fewer requests in a run; loading the program again starts all semaphores at 0",
            )


def host_semaphores(port: HostPort, program: Program) -> tuple[Semaphore, Semaphore]:
    """What says that a slot of a port is full, and that it is free again. Raises NeuronError when there are none."""
    if port.full is None or port.credit is None:
        raise NeuronError(
            f"'{port.label}' has no semaphores, and the stages are scheduled",
            op=program.op,
            needed="full and credit of pipe.input and pipe.output",
        )
    return port.full, port.credit


def _slot(array: NDArray[Any], port: HostPort, turn: int) -> NDArray[Any]:
    """The slot of a ring's lane that holds a request, as a view: that of a scalar has no dimensions."""
    slot = turn % port.depth
    return array[slot, ...] if port.ring.memory.space == "dram" else array[:, slot]


def _drain(generator: StreamRun) -> None:
    for _ in generator:
        raise AssertionError("sequential code does not wait")
