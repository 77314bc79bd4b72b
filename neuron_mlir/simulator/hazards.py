"""Happens-before: finds what engines touch without a semaphore between them, and reads of what was never written.

Every stream and every host port is a thread with a vector clock; a wait joins the clock that the signal carried. An
access is in order when each earlier access to the same bytes, at least one of the two a write, lies within what the
thread knows. Most accesses are cleared by comparing coarse cells; on suspicion the exact bytes decide, so there is
neither a false alarm nor a miss. See docs/simulator.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from xdsl.ir.affine import AffineBinaryOpExpr, AffineBinaryOpKind, AffineConstantExpr, AffineExpr

from neuron_mlir.dialects.pipe.ops import RingOp
from neuron_mlir.errors import NeuronError, location_text, short_op
from neuron_mlir.simulator.footprint import (
    Domain,
    Entry,
    Footprint,
    Offsets,
    Overwrite,
    Place,
    State,
    common_byte,
    make_domains,
)
from neuron_mlir.simulator.program import HostPort, Program, Step, Storage

_LOG_LIMIT = 4096
_OVERWRITERS_KEPT = 256


def requests_to_check(program: Program) -> int:
    """Requests after which every ring and rotating buffer has gone round, and two more."""
    needed = max((port.depth + 2 for port in (*program.inputs, *program.outputs)), default=3)
    for stream in program.streams:
        depth = 1
        for step, _, is_load in stream.steps():
            if is_load:
                continue
            for touch in step.touches:
                # Of a ring that is handed over in parts, several slots are of one request.
                ring = touch.storage.op
                parts = ring.parts if isinstance(ring, RingOp) else 1
                depth = max(depth, *(-(-_modulus(offset) // parts) for offset in touch.offsets))
        # A replica's turns are as many of its own requests.
        needed = max(needed, (depth + 2) * stream.turns.every)
    return needed


def _modulus(expr: AffineExpr) -> int:
    if not isinstance(expr, AffineBinaryOpExpr):
        return 1
    if expr.kind == AffineBinaryOpKind.Mod and isinstance(expr.rhs, AffineConstantExpr):
        return expr.rhs.value
    return max(_modulus(expr.lhs), _modulus(expr.rhs))


class HazardChecker:
    """Follows a run of a program; called by the generated code and by the host's tasks."""

    def __init__(self, program: Program):
        self.program = program
        ports = [*program.inputs, *program.outputs]
        self.port_thread = {port: len(program.streams) + i for i, port in enumerate(ports)}
        self.names = [stream.name for stream in program.streams]
        self.names += [f"host input '{p.label}'" for p in program.inputs]
        self.names += [f"host output '{p.label}'" for p in program.outputs]
        count = len(self.names)
        self.clocks: NDArray[np.int32] = np.zeros((count, count), np.int32)
        np.fill_diagonal(self.clocks, 1)
        self.rows: list[NDArray[np.int32]] = list(self.clocks)
        """One clock per thread: views of `clocks`."""
        self.snapshots: list[list[NDArray[np.int32]]] = [[] for _ in program.semaphores]
        self.dropped = [0] * len(program.semaphores)
        """Per semaphore, how many of its first snapshots nobody can ask for any more."""
        self.joined: list[dict[int, int]] = [{} for _ in program.semaphores]
        """Per semaphore and waiting thread, the greatest value waited for."""
        self.approximate = False
        """Whether an order was taken to be stronger than known, as a checked request waited for an unchecked one."""
        self.domains = make_domains(program)
        self.footprints: dict[Step, tuple[Footprint, ...]] = {}
        self.port_footprints: dict[HostPort, Footprint] = {}
        self.states: dict[Storage, State] = {}
        self._find_waiters()
        self._find_footprints()
        self._find_overlaps()

    # Set-up

    def _find_waiters(self) -> None:
        for stream in self.program.streams:
            for step, _, _ in stream.steps():
                if step.semaphore is not None and step.value is not None:
                    self.joined[step.semaphore.number].setdefault(stream.number, 0)
        for port in self.program.inputs:
            if port.credit is not None:
                self.joined[port.credit.number][self.port_thread[port]] = 0
        for port in self.program.outputs:
            if port.full is not None:
                self.joined[port.full.number][self.port_thread[port]] = 0

    def _find_footprints(self) -> None:
        for stream in self.program.streams:
            for step, _, _ in stream.steps():
                if not step.touches:
                    continue
                made = tuple(
                    Footprint(t.role, t.storage, self.domains.get(t.storage), t.sizes, t.strides, t.write)
                    for t in step.touches
                )
                if stream.engine == "tensor" and made[0].storage.memory.space == "psum":
                    made[0].bank_bytes = self.program.machine.psum.bank_bytes
                self.footprints[step] = made
                for footprint in made:
                    if footprint.domain is not None:
                        footprint.domain.add_thread(stream.number)
        for port, thread in self.port_thread.items():
            slot = _slot_axis(port)
            sizes = tuple(1 if axis == slot else size for axis, size in enumerate(port.ring.shape))
            write = port in self.program.inputs
            domain = self.domains[port.ring]
            self.port_footprints[port] = Footprint("slot", port.ring, domain, sizes, (1,) * len(sizes), write)
            domain.add_thread(thread)
        for domain in dict.fromkeys(self.domains.values()):
            domain.allocate()

    def _find_overlaps(self) -> None:
        for storage in self.domains:
            self.states[storage] = State.of(storage)
        by_domain: dict[Domain, list[Storage]] = {}
        for storage, domain in self.domains.items():
            by_domain.setdefault(domain, []).append(storage)
        for storages in by_domain.values():
            storages.sort(key=lambda s: (s.address or 0, s.number))
            active: list[Storage] = []
            for storage in storages:
                start = storage.address or 0
                active = [other for other in active if (other.address or 0) + other.bytes > start]
                for other in active:
                    self.states[storage].overlaps.append(other)
                    self.states[other].overlaps.append(storage)
                active.append(storage)

    # Order

    def wait(self, thread: int, semaphore: int, value: int) -> None:
        """The thread has seen `value` signals of the semaphore: it knows what the last of them knew."""
        joined = self.joined[semaphore]
        if value <= joined[thread]:
            return
        snapshots, dropped = self.snapshots[semaphore], self.dropped[semaphore]
        if value - dropped > len(snapshots):
            # The signal came from a request that is no longer followed.
            self.approximate = True
            if snapshots:
                np.maximum(self.rows[thread], snapshots[-1], out=self.rows[thread])
            return
        np.maximum(self.rows[thread], snapshots[value - 1 - dropped], out=self.rows[thread])
        joined[thread] = value
        if len(snapshots) > 64:
            useless = min(joined.values()) - dropped
            if useless > 32:
                del snapshots[: useless - 1]
                self.dropped[semaphore] += useless - 1

    def signal(self, thread: int, semaphore: int) -> None:
        """The semaphore carries what the thread knows and has done."""
        clock = self.rows[thread]
        self.snapshots[semaphore].append(clock.copy())
        clock[thread] += 1

    def barrier(self) -> None:
        """Everything so far has happened before everything from here on (the end of the load)."""
        known = self.clocks.max(axis=0)
        self.clocks[:] = known
        self.clocks[np.diag_indices_from(self.clocks)] += 1

    # Accesses

    def touch(self, thread: int, step: Step, offsets: Sequence[Offsets], accumulates: bool = False) -> None:
        """The thread carries out an instruction whose accesses start at `offsets`; `accumulates` when it reads its
        first access too.

        Raises:
            NeuronError: a race, or a read of bytes that hold nothing.
        """
        footprints = self.footprints[step]
        for footprint, start in zip(footprints, offsets, strict=True):
            if footprint.write and not accumulates:
                continue
            if footprint.domain is not None:
                place = footprint.at(start)
                self._read(thread, step, footprint, place)
                if not footprint.write:
                    self._order(thread, step, footprint, footprint.domain, place)
        for footprint, start in zip(footprints, offsets, strict=True):
            if footprint.write:
                assert footprint.domain is not None, "constants are not written"
                place = footprint.at(start)
                if len(place.banks) > 1:
                    self._bank_conflict(step, footprint, place)
                self._order(thread, step, footprint, footprint.domain, place)
                self._write(step, footprint, place)

    def host_write(self, port: HostPort, request: int) -> None:
        """The host writes a request into its slot, after the credit for it, and signals `full`."""
        thread, footprint = self.port_thread[port], self.port_footprints[port]
        assert port.full is not None and port.credit is not None and footprint.domain is not None
        if request >= port.depth:
            self.wait(thread, port.credit.number, request + 1 - port.depth)
        place = footprint.at(self._slot(port, request))
        self._order(thread, port, footprint, footprint.domain, place)
        self._write(port, footprint, place)
        self.signal(thread, port.full.number)

    def host_read(self, port: HostPort, request: int) -> None:
        """The host reads a request from its slot, once it is full, and signals `credit`."""
        thread, footprint = self.port_thread[port], self.port_footprints[port]
        assert port.full is not None and port.credit is not None and footprint.domain is not None
        self.wait(thread, port.full.number, request + 1)
        place = footprint.at(self._slot(port, request))
        self._read(thread, port, footprint, place)
        self._order(thread, port, footprint, footprint.domain, place)
        self.signal(thread, port.credit.number)

    def _slot(self, port: HostPort, request: int) -> Offsets:
        slot = _slot_axis(port)
        return tuple(request % port.depth if axis == slot else 0 for axis in range(len(port.ring.shape)))

    def _order(self, thread: int, what: Step | HostPort, footprint: Footprint, domain: Domain, place: Place) -> None:
        clock = self.rows[thread]
        known = clock[domain.threads]
        cells = domain.touched if footprint.write else domain.written
        last = cells[:, place.partition_cells, place.cells].max(axis=(1, 2))
        suspects = last > known
        entry = Entry(int(clock[thread]), what, footprint, place)
        if suspects.any():
            for row in np.flatnonzero(suspects):
                self._compare(thread, entry, domain, int(row), int(known[row]))
        row = domain.row_of[thread]
        domain.touched[row, place.partition_cells, place.cells] = entry.epoch
        if footprint.write:
            domain.written[row, place.partition_cells, place.cells] = entry.epoch
        log = domain.logs[row]
        log.append(entry)
        if len(log) > _LOG_LIMIT and not len(log) & (_LOG_LIMIT - 1):
            self._prune(domain, row, thread)

    def _compare(self, thread: int, entry: Entry, domain: Domain, row: int, known: int) -> None:
        """Compare the exact bytes with all accesses of another thread that this one does not know of."""
        for other in reversed(domain.logs[row]):
            if other.epoch <= known:
                return
            if not (entry.footprint.write or other.footprint.write):
                continue
            where = common_byte(entry, other)
            if where is not None:
                self._race(thread, entry, int(domain.threads[row]), other, where)

    def _prune(self, domain: Domain, row: int, thread: int) -> None:
        """Forget accesses that all other threads of the memory know of."""
        others = [int(t) for t in domain.threads if t != thread]
        known = min((int(self.clocks[t, thread]) for t in others), default=0)
        log = domain.logs[row]
        keep = next((i for i, entry in enumerate(log) if entry.epoch > known), len(log))
        del log[:keep]

    def _read(self, thread: int, what: Step | HostPort, footprint: Footprint, place: Place) -> None:
        state = self.states[footprint.storage]
        if place.version == state.version:
            return
        if state.invalid[place.index].any():
            self._unwritten(thread, what, footprint, place, state)
        place.version = state.version

    def _write(self, what: Step | HostPort, footprint: Footprint, place: Place) -> None:
        state = self.states[footprint.storage]
        if place.version != state.version:
            state.invalid[place.index] = False
            place.version = state.version
            state.empty = False
        if state.overlaps:
            if place.overwrites is None:
                found = (self._overwrites(footprint, place, other) for other in state.overlaps)
                place.overwrites = [overwrite for overwrite in found if overwrite.parts]
            for overwrite in place.overwrites:
                if not overwrite.state.empty:
                    _overwrite(overwrite, what, footprint, place)

    def _overwrites(self, footprint: Footprint, place: Place, storage: Storage) -> Overwrite:
        """The elements of `storage` that share bytes with a write through another buffer."""
        state, item = self.states[storage], storage.item_bytes
        partitions = footprint.partitions(place)
        rows = slice(0, 1)
        if footprint.partitioned:
            rows = slice(partitions.start, min(partitions.stop, storage.shape[0]), partitions.step)
        starts, ends = footprint.runs
        base = place.start - (storage.address or 0)
        count = storage.bytes // item
        low = np.maximum((starts + base) // item, 0)
        high = np.minimum(-(-(ends + base) // item), count)
        some = low < high
        if rows.start >= rows.stop:
            some[:] = False
        columns = zip(low[some].tolist(), high[some].tolist(), strict=True)
        return Overwrite(state, [(rows, slice(begin, end)) for begin, end in columns])

    # Errors

    def _race(self, thread: int, entry: Entry, other_thread: int, other: Entry, where: tuple[int, int]) -> None:
        mine, theirs = entry.footprint, other.footprint
        raise NeuronError(
            f"race: {self.names[thread]} {_verb(mine)} '{mine.storage.label}' ({_text(entry.what)}) and "
            f"{self.names[other_thread]} {_verb(theirs)} '{theirs.storage.label}' ({_text(other.what)}), both "
            f"{_place(mine, where)}, and nothing orders one before the other",
            op=entry.what.op if isinstance(entry.what, Step) else self.program.op,
            resource=str(mine.storage.memory),
            advice=f"let {self.names[thread]} wait for a semaphore that {self.names[other_thread]} signals afterwards",
        )

    def _bank_conflict(self, step: Step, footprint: Footprint, place: Place) -> None:
        storage, banks = footprint.storage, place.banks
        raise NeuronError(
            f"bank conflict: {_text(step)} accumulates '{storage.label}' in banks {banks[0]} to {banks[-1]} of "
            f"{storage.memory}; a result lies in one bank",
            op=step.op,
            resource="bytes of a PSUM bank",
            needed=int(footprint.runs[1][-1]),
            available=footprint.bank_bytes,
            advice="give the buffer an address from which each result lies in one bank",
        )

    def _unwritten(self, thread: int, what: Step | HostPort, footprint: Footprint, place: Place, state: State) -> None:
        invalid = state.invalid[place.index]
        position = tuple(int(i) for i in np.unravel_index(int(np.argmax(invalid)), invalid.shape))
        element = tuple(
            part.start + index * (part.step or 0) for part, index in zip(place.index, position, strict=True)
        )
        storage = footprint.storage
        byte = footprint.base + sum(i * s for i, s in zip(element, footprint.byte_strides, strict=True))
        where = (element[0] if footprint.partitioned else 0, byte)
        writer, text = self._overwriter(state, storage, element, where)
        if text is None:
            text = f"{'which was never written' if writer is None else ''}"
        advice = "check the addresses: two buffers in use share bytes"
        if writer is None:
            names = self._writers(storage)
            advice = f"wait for {' or '.join(names)}, which writes it" if names else "nothing writes this buffer"
        raise NeuronError(
            f"read of {'overwritten' if writer is not None else 'never-written'} memory: {self.names[thread]} reads "
            f"'{storage.label}' ({_text(what)}) {_place(footprint, where)}, {text}",
            op=what.op if isinstance(what, Step) else self.program.op,
            resource=str(storage.memory),
            advice=advice,
        )

    def _overwriter(
        self, state: State, storage: Storage, element: tuple[int, ...], where: tuple[int, int]
    ) -> tuple[Entry | None, str | None]:
        """Who overwrote an element: the last write of another buffer there."""
        if state.stale is None or not state.stale.reshape(state.invalid.shape)[element]:
            return None, None
        point = Footprint("", storage, self.domains[storage], (1,) * len(element), (1,) * len(element), False)
        probe = Entry(0, state.overwriters[-1].what, point, point.at(element))
        for entry in reversed(state.overwriters):
            if common_byte(probe, entry) is not None:
                text = f"since overwritten through '{entry.footprint.storage.label}' ({_text(entry.what)})"
                return entry, text
        return state.overwriters[-1], "since overwritten through another buffer"

    def _writers(self, storage: Storage) -> list[str]:
        names: dict[str, None] = {}
        for stream in self.program.streams:
            for step, _, _ in stream.steps():
                if any(touch.write and touch.storage is storage for touch in step.touches):
                    names[stream.name] = None
        for port in self.program.inputs:
            if port.ring is storage:
                names[f"host input '{port.label}'"] = None
        return list(names)


def _overwrite(overwrite: Overwrite, what: Step | HostPort, footprint: Footprint, place: Place) -> None:
    """Mark elements of another buffer as holding nothing any more."""
    state = overwrite.state
    changed = False
    for part in overwrite.parts:
        invalid = state.flat[part]
        if invalid.all():
            continue
        if state.stale is None:
            state.stale = np.zeros(state.flat.shape, np.bool_)
        state.stale[part] |= ~invalid
        invalid[...] = True
        changed = True
    if changed:
        state.version += 1
        state.empty = bool(state.flat.all())
        state.overwriters.append(Entry(0, what, footprint, place))
        del state.overwriters[:-_OVERWRITERS_KEPT]


def _slot_axis(port: HostPort) -> int:
    return 0 if port.ring.memory.space == "dram" else 1


def _verb(footprint: Footprint) -> str:
    return "writes" if footprint.write else "reads"


def _text(what: Step | HostPort) -> str:
    if isinstance(what, HostPort):
        return f"transfer of '{what.label}'"
    where = location_text(what.op.location)
    return short_op(what.op) + (f" at {where}" if where else "")


def _place(footprint: Footprint, where: tuple[int, int]) -> str:
    partition, byte = where
    memory = footprint.storage.memory
    if memory.space == "dram":
        return f"at byte {byte} of {memory}"
    return f"at byte {byte} of partition {partition}, {memory}"
