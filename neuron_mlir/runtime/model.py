"""A loaded model: a callable on NumPy arrays, whose time is the simulated one.

A call becomes requests of the size the model was compiled for (`batching`). They wait in the model's queue, which takes
as many as the model has cores and three more, as AWS documents for its frameworks (NEURON_MAX_NUM_INFERS), and go to
the copy of the model that has the fewest under way.
"""

from __future__ import annotations

import asyncio
import math
import weakref
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from neuron_mlir.errors import NeuronError
from neuron_mlir.runtime.inputs import Arrays, bind, check
from neuron_mlir.runtime.instance import PS_PER_MS, Group, Instance
from neuron_mlir.runtime.status import NeuronRuntimeError, Status

if TYPE_CHECKING:
    from neuron_mlir.runtime.artifact import Artifact
    from neuron_mlir.runtime.batching import Rows
    from neuron_mlir.simulator.interface import Port
    from neuron_mlir.simulator.session import Ticket

Array = NDArray[Any]
Answer = Array | tuple[Array, ...] | dict[str, Array]
"""What a call gives: by position an array, or a tuple where there are several outputs; by name a dictionary."""


@dataclass(frozen=True)
class ModelPort:
    """An input or output as a caller sees it: `dtype` is the NumPy type of the arrays, `shape` that of one request."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    rows_axis: int | None
    """The axis along which a call may have any number of rows; None without dynamic batching."""


@dataclass(frozen=True)
class LoadOptions:
    """How a model is loaded; see `neuron_mlir.load`."""

    in_flight: int
    timeout_s: float
    check_nan: bool


class Inference:
    """A call that is under way: a future on the simulated clock, to wait for with `result()` or `await`.

    Waiting lets simulated time go on, no further than needed. Nothing runs in the background.
    """

    def __init__(self, model: Model, parts: list[_Part], rows: int | None, by_name: bool, submitted: int) -> None:
        self._model = model
        self._parts = parts
        self._rows = rows
        self._by_name = by_name
        self._submitted = submitted
        self._outputs: Arrays | None = None
        self._error: NeuronRuntimeError | None = None

    @property
    def requests(self) -> int:
        """Requests of the compiled size that the call became."""
        return len(self._parts)

    def done(self) -> bool:
        """Whether the answer has arrived, by the simulated clock."""
        now = self._model.instance.clock.now
        return self._error is not None or all(
            part.ticket.finished is not None and part.ticket.finished <= now for part in self._parts
        )

    def outputs(self) -> dict[str, Array]:
        """The answer by the names of the outputs. Waits; raises as `result`."""
        with self._model.instance.lock:
            if self._error is not None:
                raise self._error
            if self._outputs is None:
                try:
                    self._outputs = self._model.collect(self._parts, self._rows)
                except NeuronRuntimeError as error:
                    self._error = error
                    raise
            return self._outputs

    def result(self) -> Answer:
        """The answer, as a call of the model gives it.

        Raises:
            NeuronRuntimeError: a request took longer than the time-out (NRT_TIMEOUT); a NaN among the outputs, where
                that is checked (NRT_EXEC_COMPLETED_WITH_NUM_ERR); an index among the inputs is outside of its table
                (NRT_EXEC_OOB); the program failed in another way (NRT_EXEC_COMPLETED_WITH_ERR).
        """
        outputs = self.outputs()
        if self._by_name:
            return dict(outputs)
        arrays = tuple(outputs[port.name] for port in self._model.outputs)
        return arrays[0] if len(arrays) == 1 else arrays

    @property
    def status(self) -> Status:
        """The return code. Waits."""
        try:
            self.outputs()
        except NeuronRuntimeError as error:
            return error.status
        return Status.NRT_SUCCESS

    @property
    def latency_ms(self) -> float:
        """Simulated milliseconds from the call to its last answer, the wait for room in the queue included. Waits."""
        self.outputs()
        return (max(part.ticket.finished or 0 for part in self._parts) - self._submitted) / PS_PER_MS

    def __await__(self) -> Generator[Any, Any, Answer]:
        # Others that are ready to submit do so first, at the same simulated time.
        if not self.done():
            yield from asyncio.sleep(0).__await__()
        return self.result()


@dataclass(eq=False)
class _Part:
    group: Group
    ticket: Ticket


class Model:
    """A model on the cores of a simulated instance; made by `neuron_mlir.load` and `neuron_mlir.compile`.

    Calls by several threads are safe, and each has the instance to itself until it is answered; what is meant to be
    under way at the same simulated time is submitted together (`submit`, `map`, or `await` in several tasks).
    """

    def __init__(
        self,
        artifact: Artifact,
        instance: Instance,
        groups: list[Group],
        ports: tuple[Sequence[Port], Sequence[Port]],
        rows: Rows | None,
        options: LoadOptions,
    ) -> None:
        from neuron_mlir.simulator.interface import NUMPY_TYPES

        self.artifact = artifact
        self.instance = instance
        self.rows = rows
        self.options = options
        self._groups = groups
        self._ports = ports[0]
        self._flying: list[_Part] = []
        self._closed = False
        self._broken: NeuronRuntimeError | None = None
        none: Mapping[str, int] = {}
        # Whoever drops a model gives back its cores.
        weakref.finalize(self, instance.leave, list(groups))
        axes = (none, none) if rows is None else (rows.inputs, rows.outputs)
        self.inputs, self.outputs = (
            tuple(ModelPort(p.name, NUMPY_TYPES[p.element], p.shape, where.get(p.name)) for p in found)
            for found, where in zip(ports, axes, strict=True)
        )

    @property
    def batch_size(self) -> int:
        """Rows of one request: what the model was compiled for."""
        if self.rows is not None:
            return self.rows.size
        return next((port.shape[0] for port in self.inputs if port.shape), 1)

    @property
    def cores(self) -> list[tuple[int, ...]]:
        """The cores of each copy, by their numbers on the instance."""
        return [group.cores for group in self._groups]

    @property
    def load_ms(self) -> float:
        """Simulated milliseconds that it took until all weights were where they stay; of the slowest copy."""
        return max(group.session.load_ps for group in self._groups) / PS_PER_MS

    @property
    def under_way(self) -> int:
        """Requests that are not answered yet, at this simulated time."""
        with self.instance.lock:
            self._land()
            return len(self._flying)

    # Calls

    @overload
    def __call__(self, inputs: Mapping[str, ArrayLike], /) -> dict[str, Array]: ...
    @overload
    def __call__(self, *arrays: ArrayLike) -> Array | tuple[Array, ...]: ...
    @overload
    def __call__(self, **named: ArrayLike) -> dict[str, Array]: ...

    def __call__(self, *arrays: Any, **named: Any) -> Answer:
        """Run the model and wait for the answer.

        Args:
            arrays: the inputs in order, or one mapping from their ONNX names.
            named: the inputs by name, where names are Python's.

        Returns:
            By position the output, or a tuple of them; by name a dictionary.

        Raises:
            NeuronRuntimeError: bad inputs (NRT_EXEC_BAD_INPUT), and what `Inference.result` raises.
        """
        with self.instance.lock:
            return self.submit(*arrays, **named).result()

    def submit(self, *arrays: Any, block: bool = True, **named: Any) -> Inference:
        """Send a call and go on. With the queue full, simulated time goes on until there is room.

        Args:
            arrays: as of a call.
            block: False: do not wait for room.
            named: as of a call; an input that is named `block` needs a mapping.

        Raises:
            NeuronRuntimeError: bad inputs (NRT_EXEC_BAD_INPUT); no room, and `block` is False (NRT_QUEUE_FULL; nothing
                was sent); the model was unloaded (NRT_INVALID_HANDLE), its instance closed (NRT_CLOSED).
        """
        with self.instance.lock:
            self._check_open()
            try:
                feed, by_name = bind(self._ports, arrays, named)
                feed = check(self._ports, feed, self.rows, nan=self.options.check_nan)
                rows = None if self.rows is None else self.rows.count(feed)
                feeds = [feed] if self.rows is None else self.rows.split(feed)
            except NeuronError as error:
                raise NeuronRuntimeError.of(error, Status.NRT_EXEC_BAD_INPUT) from None
            submitted = self.instance.clock.now
            self._land()
            room = self.options.in_flight - len(self._flying)
            if not block and len(feeds) > room:
                raise NeuronRuntimeError(
                    Status.NRT_QUEUE_FULL,
                    f"the queue of the model takes {self.options.in_flight} requests at a time",
                    resource="places in the queue",
                    needed=len(feeds),
                    available=room,
                    advice="waiting for a result, in_flight=, or NEURON_MAX_NUM_INFERS",
                )
            return Inference(self, [self._send(feed) for feed in feeds], rows, by_name, submitted)

    def map(self, calls: Iterable[Any]) -> Iterator[Answer]:
        """The answers to many calls, in their order, with as many under way as the queue takes.

        Args:
            calls: the inputs of each: an array, a tuple of them in order, or a mapping by name.
        """
        waiting: list[Inference] = []
        for call in calls:
            waiting.append(self.submit(*call) if isinstance(call, tuple) else self.submit(call))
            while waiting and (waiting[0].done() or len(waiting) > self.options.in_flight):
                yield waiting.pop(0).result()
        for inference in waiting:
            yield inference.result()

    # Files and life

    def save(self, path: str) -> None:
        """Write the artifact, whole or not at all: what `neuron_mlir.load` and `neuron-run` read.

        Raises:
            NeuronError: the file cannot be written.
        """
        from neuron_mlir.runtime.files import replacing

        with replacing(path) as stream:
            stream.write(self.artifact.data)

    def close(self) -> None:
        """Unload: cores and DRAM are free again. What is under way is lost."""
        with self.instance.lock:
            self._closed = True
            for group in self._groups:
                self.instance.unload(group)

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Requests

    def _check_open(self) -> None:
        self.instance.check_open()
        if self._closed:
            raise NeuronRuntimeError(Status.NRT_INVALID_HANDLE, "the model was unloaded", advice="loading it again")
        if self._broken is not None:
            raise self._broken

    def _land(self) -> None:
        """Take answered requests out of the queue."""
        now = self.instance.clock.now
        self._flying = [p for p in self._flying if p.ticket.finished is None or p.ticket.finished > now]

    def _send(self, feed: Arrays) -> _Part:
        clock = self.instance.clock
        with self._failures():
            while len(self._flying) >= self.options.in_flight:
                known = [part.ticket for part in self._flying]
                clock.wait_for_any(known, self._flying[0].group.session)
                self._land()
            group = min(self._groups, key=lambda g: sum(part.group is g for part in self._flying))
            self.instance.activate(group)
            part = _Part(group, group.session.submit(feed))
        self._land()
        self._flying.append(part)
        return part

    def collect(self, parts: list[_Part], rows: int | None) -> Arrays:
        """The answer that requests make together; goes on until they are there. For `Inference`."""
        clock = self.instance.clock
        answers: list[Arrays] = []
        for part in parts:
            ticket = part.ticket
            limit = self.options.timeout_s
            deadline = None if math.isinf(limit) else ticket.submitted + round(limit * 1000 * PS_PER_MS)
            if ticket.finished is None:
                self._check_open()
            with self._failures():
                if not clock.wait(ticket, part.group.session, deadline):
                    raise NeuronRuntimeError(
                        Status.NRT_TIMEOUT,
                        "a request took longer than the time-out",
                        resource="simulated seconds",
                        needed="more"
                        if ticket.finished is None
                        else f"{(ticket.finished - ticket.submitted) / 1e12:g}",
                        available=f"{self.options.timeout_s:g}",
                        advice="timeout_s=, NEURON_RT_EXEC_TIMEOUT, or fewer requests in flight",
                    )
            if ticket.error is not None:
                raise _failed(ticket.error) from ticket.error
            answers.append(ticket.outputs)
        outputs = answers[0] if self.rows is None or rows is None else self.rows.join(answers, rows)
        outputs = {port.name: outputs[port.name] for port in self.outputs}
        if self.options.check_nan:
            wrong = [name for name, array in outputs.items() if array.dtype.kind == "f" and np.isnan(array).any()]
            if wrong:
                raise NeuronRuntimeError(
                    Status.NRT_EXEC_COMPLETED_WITH_NUM_ERR, f"output '{wrong[0]}' holds NaN", available=", ".join(wrong)
                )
        return outputs

    def _failures(self) -> _Failures:
        return _Failures(self)

    def broke(self, error: NeuronRuntimeError) -> None:
        """The program failed: no further request is sent to it."""
        self._broken = error


class _Failures:
    """Gives what a program raises a return code. A program that failed once is not asked again."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if error is None or isinstance(error, NeuronRuntimeError) or not isinstance(error, Exception):
            return
        found = _failed(error)
        self._model.broke(found)
        raise found from error


def _failed(error: Exception) -> NeuronRuntimeError:
    """What a program raised, with a return code."""
    if not isinstance(error, NeuronError):
        return NeuronRuntimeError(
            Status.NRT_EXEC_COMPLETED_WITH_ERR, f"the program failed: {type(error).__name__}: {error}"
        )
    outside = error.message.startswith("out-of-range access")
    return NeuronRuntimeError.of(error, Status.NRT_EXEC_OOB if outside else Status.NRT_EXEC_COMPLETED_WITH_ERR)
