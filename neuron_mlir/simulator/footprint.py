"""Which bytes an access touches, exactly, and where they lie in coarse cells of their memory."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from neuron_mlir.simulator.program import HostPort, Memory, Program, Step, Storage

Ints = NDArray[np.int64]
Offsets = tuple[int, ...]
Index = tuple[slice, ...]
CELL_PARTITIONS = 32
CELL_BYTES = 64
DRAM_CELLS = 1 << 14
"""DRAM is cut into at most about this many cells."""


class Domain:
    """Bytes that can overlap: one memory, or one buffer that has no address yet.

    Cells remember when each of its threads last touched them: coarse, so that most accesses are cleared by one
    comparison.
    """

    def __init__(self, name: str, partitions: int, size: int, cell_bytes: int):
        self.name = name
        self.cell_bytes = cell_bytes
        self.partition_cells = -(-partitions // CELL_PARTITIONS)
        self.cells = -(-size // cell_bytes)
        self.row_of: dict[int, int] = {}
        self.threads: NDArray[np.intp] = np.zeros(0, np.intp)
        self.written: NDArray[np.int32] = np.zeros((0, 0, 0), np.int32)
        """Per row, partition cell and byte cell: the thread's epoch of its last write."""
        self.touched: NDArray[np.int32] = np.zeros((0, 0, 0), np.int32)
        """The same, reads counted too."""
        self.logs: list[list[Entry]] = []

    def add_thread(self, thread: int) -> None:
        """A thread that touches this memory."""
        self.row_of.setdefault(thread, len(self.row_of))

    def allocate(self) -> None:
        """Make the cells, once all threads are known."""
        self.threads = np.array(list(self.row_of), np.intp)
        shape = (len(self.row_of), self.partition_cells, self.cells)
        self.written = np.zeros(shape, np.int32)
        self.touched = np.zeros(shape, np.int32)
        self.logs = [[] for _ in self.row_of]


@dataclass(eq=False)
class State:
    """What a buffer's elements hold: `invalid` ones were never written, or, if `stale`, overwritten through another
    buffer.
    """

    invalid: NDArray[np.bool_]
    flat: NDArray[np.bool_]
    """The same elements, as `[partitions, elements]` (one row in DRAM)."""
    stale: NDArray[np.bool_] | None = None
    """Shaped as `flat`."""
    version: int = 0
    """Grows whenever elements become invalid: what was found valid in this version still is."""
    empty: bool = True
    """Whether no element is valid (False when it is not known)."""
    overlaps: list[Storage] = field(default_factory=list)
    """Buffers that share bytes with this one."""
    overwriters: list[Entry] = field(default_factory=list)

    @staticmethod
    def of(storage: Storage) -> State:
        """A buffer that nothing has been written to."""
        invalid = np.ones(storage.shape, np.bool_)
        return State(invalid, invalid.reshape(1 if storage.memory.space == "dram" else storage.shape[0], -1))


@dataclass(eq=False)
class Overwrite:
    """Elements of a buffer that a write through another one destroys: rows and columns of `[partitions, elements]`."""

    state: State
    parts: list[tuple[slice, slice]]


@dataclass(eq=False)
class Place:
    """An access at given offsets: first byte, partitions, cells and elements."""

    start: int
    partition: int
    partition_cells: slice
    cells: slice | NDArray[np.intp]
    index: Index
    banks: range = range(1)
    """Of a result of the TensorEngine: the PSUM banks it lies in."""
    version: int = -1
    """The buffer's version in which all elements were found valid."""
    overwrites: list[Overwrite] | None = None
    """Of a write: the parts of other buffers that share its bytes, once looked up."""


class Footprint:
    """An access of an instruction (or of the host) with its offsets left open."""

    def __init__(
        self, role: str, storage: Storage, domain: Domain | None, sizes: Offsets, strides: Offsets, write: bool
    ):
        self.role = role
        self.storage = storage
        self.domain = domain
        self.sizes = sizes
        self.strides = strides
        self.write = write
        self.byte_strides = storage.byte_strides()
        self.base = storage.address or 0
        self.partitioned = storage.memory.space != "dram"
        self.bank_bytes = 0
        """Of the PSUM banks that the access must not cross; 0 when it may."""
        self.places: dict[Offsets, Place] = {}
        self._runs: tuple[Ints, Ints] | None = None
        self._cells: dict[int, slice | NDArray[np.intp]] = {}

    @property
    def runs(self) -> tuple[Ints, Ints]:
        """Starts and ends of the runs of bytes in a partition (or in DRAM), relative to the first byte; sorted and
        apart.
        """
        if self._runs is None:
            self._runs = self._find_runs()
        return self._runs

    def _find_runs(self) -> tuple[Ints, Ints]:
        starts: Ints = np.zeros(1, np.int64)
        run = self.storage.item_bytes
        first = 1 if self.partitioned else 0
        for axis in range(len(self.sizes) - 1, first - 1, -1):
            size, stride = self.sizes[axis], self.strides[axis] * self.byte_strides[axis]
            if size == 1 or not stride:
                continue
            if len(starts) == 1 and stride == run:
                run *= size
            else:
                starts = np.add.outer(np.arange(size, dtype=np.int64) * stride, starts).reshape(-1)
        if np.any(starts[1:] <= starts[:-1]):
            starts = np.unique(starts)
        # Runs that touch or overlap become one.
        begins = np.append(True, starts[1:] > starts[:-1] + run).nonzero()[0]
        return starts[begins], starts[np.append(begins[1:], len(starts)) - 1] + run

    def partitions(self, place: Place) -> range:
        """The partitions touched; one, number 0, in DRAM."""
        if not self.partitioned:
            return range(1)
        step = max(1, self.strides[0])
        count = self.sizes[0] if self.strides[0] else 1
        return range(place.partition, place.partition + (count - 1) * step + 1, step)

    def at(self, offsets: Offsets) -> Place:
        """The access at these offsets."""
        place = self.places.get(offsets)
        if place is None:
            place = self.places[offsets] = self._place(offsets)
        return place

    def _place(self, offsets: Offsets) -> Place:
        start = self.base + sum(o * s for o, s in zip(offsets, self.byte_strides, strict=True))
        index = tuple(
            slice(offset, offset + (size - 1) * step + 1, step or None)
            for offset, size, step in zip(offsets, self.sizes, self.strides, strict=True)
        )
        partition = offsets[0] if self.partitioned else 0
        place = Place(start, partition, slice(0), slice(0), index)
        touched = self.partitions(place)
        place.partition_cells = slice(touched[0] // CELL_PARTITIONS, touched[-1] // CELL_PARTITIONS + 1)
        if self.bank_bytes:
            last = start + int(self.runs[1][-1]) - 1
            place.banks = range(start // self.bank_bytes, last // self.bank_bytes + 1)
        assert self.domain is not None
        cell = self.domain.cell_bytes
        relative = self._relative_cells(start % cell)
        first = start // cell
        if isinstance(relative, slice):
            place.cells = slice(relative.start + first, relative.stop + first)
        else:
            place.cells = relative + first
        return place

    def _relative_cells(self, phase: int) -> slice | NDArray[np.intp]:
        known = self._cells.get(phase)
        if known is not None:
            return known
        assert self.domain is not None
        starts, ends = self.runs
        low = (starts + phase) // self.domain.cell_bytes
        high = (ends - 1 + phase) // self.domain.cell_bytes
        if bool(np.all(low[1:] <= high[:-1] + 1)):
            known = slice(int(low[0]), int(high[-1]) + 1)
        else:
            edges = np.zeros(int(high[-1]) + 2, np.int64)
            np.add.at(edges, low, 1)
            np.add.at(edges, high + 1, -1)
            known = np.flatnonzero(np.cumsum(edges[:-1]))
        self._cells[phase] = known
        return known


@dataclass(frozen=True)
class Entry:
    """An access that has happened: by what, where, and in which epoch of its thread."""

    epoch: int
    what: Step | HostPort
    footprint: Footprint
    place: Place


def common_byte(a: Entry, b: Entry) -> tuple[int, int] | None:
    """A partition and byte that both accesses touch, or None."""
    first, second = a.footprint.partitions(a.place), b.footprint.partitions(b.place)
    if first.step == 1 and second.step == 1:
        partition = max(first.start, second.start)
        if partition >= min(first.stop, second.stop):
            return None
    else:
        both = set(second)
        partition = next((p for p in first if p in both), -1)
        if partition < 0:
            return None
    (a_starts, a_ends), (b_starts, b_ends) = a.footprint.runs, b.footprint.runs
    shift = b.place.start - a.place.start
    if a_ends[-1] <= b_starts[0] + shift or b_ends[-1] + shift <= a_starts[0]:
        return None
    following = np.searchsorted(b_ends + shift, a_starts, side="right")
    inside = following < len(b_starts)
    candidates = np.minimum(following, len(b_starts) - 1)
    hits = np.flatnonzero(inside & (b_starts[candidates] + shift < a_ends))
    if not len(hits):
        return None
    hit = int(hits[0])
    return partition, a.place.start + max(int(a_starts[hit]), int(b_starts[candidates[hit]]) + shift)


def make_domains(program: Program) -> dict[Storage, Domain]:
    """The domain of every buffer that is not a constant."""
    domains: dict[Storage, Domain] = {}
    shared: dict[Memory, Domain] = {}
    for storage in program.storages:
        if storage.constant is not None:
            continue
        if storage.address is None:
            partitions = 1 if storage.memory.space == "dram" else storage.shape[0]
            domains[storage] = Domain(f"'{storage.label}'", partitions, storage.bytes, _cell_bytes(storage.bytes))
            continue
        if storage.memory not in shared:
            shared[storage.memory] = _memory_domain(program, storage.memory)
        domains[storage] = shared[storage.memory]
    return domains


def _memory_domain(program: Program, memory: Memory) -> Domain:
    ends = [
        (s.address or 0) + s.bytes
        for s in program.storages
        if s.memory == memory and s.constant is None and s.address is not None
    ]
    machine = program.machine
    if memory.space == "dram":
        return Domain(str(memory), 1, max(ends), _cell_bytes(max(ends)))
    partitions = machine.sbuf.partitions if memory.space == "sbuf" else machine.psum.partitions
    return Domain(str(memory), partitions, max(ends), CELL_BYTES)


def _cell_bytes(size: int) -> int:
    cell = CELL_BYTES
    while size > cell * DRAM_CELLS:
        cell *= 2
    return cell
