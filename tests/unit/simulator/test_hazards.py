"""The hazard checker against a brute-force definition of a hazard, on random small programs."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reading import parse

from neuron_mlir.errors import NeuronError
from neuron_mlir.simulator.run import run_module

STREAMS = ("vector", "scalar", "dma0", "dma1")
WIDTH = 48
"""bf16 elements of a buffer's only free dimension."""


@dataclass(frozen=True)
class Region:
    """Part of a buffer: elements `offset, offset + step, ...` of partitions `partition ...`."""

    buffer: int
    partition: int
    partitions: int
    offset: int
    count: int
    step: int

    def text(self) -> str:
        strides = "" if self.step == 1 else f" [1, {self.step}]"
        return f"%b{self.buffer}[{self.partition}, {self.offset}] [{self.partitions}, {self.count}]{strides}"

    def elements(self) -> set[tuple[int, int]]:
        return {
            (p, self.offset + i * self.step)
            for p in range(self.partition, self.partition + self.partitions)
            for i in range(self.count)
        }

    def bytes(self, addresses: list[int]) -> set[tuple[int, int]]:
        start = addresses[self.buffer]
        return {(p, start + 2 * e + k) for p, e in self.elements() for k in (0, 1)}


@dataclass(frozen=True)
class Event:
    kind: str  # "set", "copy", "wait", "signal"
    write: Region | None = None
    read: Region | None = None
    semaphore: int = 0
    value: int = 0

    def text(self, stream: str) -> str:
        if self.kind == "wait":
            return f"core.wait %s{self.semaphore} >= {self.value}"
        if self.kind == "signal":
            return f"core.signal %s{self.semaphore}"
        assert self.write is not None
        if self.kind == "set":
            if stream == "vector":
                return f"core.memset {self.write.text()}, 1.0"
            sizes = f"[{self.write.partitions}, {self.write.count}]"
            if stream == "scalar":
                return f"core.activation copy {self.write.text()}, %one[0, 0] {sizes} [1, 0]"
            return f"core.dma %const[0, 0] {sizes} -> {self.write.text()}"
        assert self.read is not None
        if stream.startswith("dma"):
            return f"core.dma {self.read.text()} -> {self.write.text()}"
        return f"core.copy {self.write.text()}, {self.read.text()}"


@dataclass(frozen=True)
class Case:
    addresses: tuple[int, ...]
    streams: tuple[tuple[Event, ...], ...]

    def text(self) -> str:
        allocs = "\n".join(
            f'%b{i} = core.alloc "b{i}" at {a} : memref<128x{WIDTH}xbf16, #core.sbuf>'
            for i, a in enumerate(self.addresses)
        )
        semaphores = "\n".join(f'%s{i} = core.semaphore "s{i}"' for i in range(len(STREAMS)))
        engines = "\n".join(
            f"core.engine {name} {{\n" + "\n".join(event.text(name) for event in events) + "\n}"
            for name, events in zip(STREAMS, self.streams, strict=True)
        )
        return f"""
pipe.program @p {{
  pipe.stage @s cores [0] () {{
    {allocs}
    {semaphores}
    %one = core.alloc "one" at 4096 : memref<128x1xbf16, #core.sbuf>
    %const = core.const "const" {{
      %0 = nn.weight "c" splat<1.0> : tensor<128x{WIDTH}xbf16>
      nn.yield %0 : tensor<128x{WIDTH}xbf16>
    }} : memref<128x{WIDTH}xbf16, #core.dram>
    pipe.load {{ core.engine vector {{ core.memset %one, 1.0 }} }}
    pipe.run (%r) {{
      {engines}
    }}
  }}
}}
"""


def simulate(case: Case) -> list[tuple[int, int]] | None:
    """An order in which the events can happen (stream, position), or None for a deadlock."""
    positions = [0] * len(case.streams)
    counts = [0] * len(case.streams)
    order: list[tuple[int, int]] = []
    moved = True
    while moved:
        moved = False
        for stream, events in enumerate(case.streams):
            while positions[stream] < len(events):
                event = events[positions[stream]]
                if event.kind == "wait" and counts[event.semaphore] < event.value:
                    break
                counts[stream] += event.kind == "signal"
                order.append((stream, positions[stream]))
                positions[stream] += 1
                moved = True
    return order if len(order) == sum(map(len, case.streams)) else None


def hazardous(case: Case, order: list[tuple[int, int]]) -> bool:
    """The definition: two unordered accesses to a byte of which one writes, or a read of a byte whose last write before
    it was none, or through another buffer."""
    before: dict[tuple[int, int], set[tuple[int, int]]] = {}
    signals: dict[tuple[int, int], tuple[int, int]] = {}
    counts = [0] * len(case.streams)
    for key in order:
        stream, position = key
        event = case.streams[stream][position]
        known = set[tuple[int, int]]()
        parents = [(stream, position - 1)] if position else []
        if event.kind == "wait" and event.value > 0:
            parents.append(signals[event.semaphore, event.value])
        for parent in parents:
            known |= before[parent] | {parent}
        before[key] = known
        if event.kind == "signal":
            counts[stream] += 1
            signals[stream, counts[stream]] = key
    addresses = list(case.addresses)
    written: dict[tuple[int, int], int] = {}
    history: list[tuple[tuple[int, int], set[tuple[int, int]], bool]] = []
    for key in order:
        event = case.streams[key[0]][key[1]]
        for region, write in ((event.read, False), (event.write, True)):
            if region is None:
                continue
            touched = region.bytes(addresses)
            for other, others, other_writes in history:
                if other[0] != key[0] and (write or other_writes) and other not in before[key] and touched & others:
                    return True
            if not write and any(written.get(byte) != region.buffer for byte in touched):
                return True
            history.append((key, touched, write))
            if write:
                written.update(dict.fromkeys(touched, region.buffer))
    return False


@st.composite
def regions(draw: st.DrawFn, buffers: int, engine: bool, partitions: int, count: int) -> Region:
    start = draw(st.sampled_from([0, 32, 64, 96] if engine else [0, 1, 31, 33, 64, 90]))
    step = draw(st.sampled_from([1, 1, 2, 3]))
    offset = draw(st.integers(0, WIDTH - 1 - (count - 1) * step))
    return Region(draw(st.integers(0, buffers - 1)), start, min(partitions, 128 - start), offset, count, step)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Programs written in one global order, so that most of them do not deadlock: streams set, copy what was written,
    and hand over to one another by a signal and a wait. Then, perhaps, one event is taken away."""
    buffers = draw(st.integers(1, 4))
    addresses = tuple(draw(st.sampled_from([0, 32, 64, 90, 96, 160, 256, 512])) for _ in range(buffers))
    streams: list[list[Event]] = [[] for _ in STREAMS]
    counts = [0] * len(STREAMS)
    written: list[Region] = []
    for _ in range(draw(st.integers(1, 14))):
        stream = draw(st.integers(0, len(STREAMS) - 1))
        engine = not STREAMS[stream].startswith("dma")
        kind = draw(st.sampled_from(["set", "copy", "copy", "hand over", "hand over", "hand over to all", "wait"]))
        if kind == "wait":
            other = draw(st.sampled_from([i for i in range(len(STREAMS)) if i != stream]))
            streams[stream].append(Event("wait", semaphore=other, value=draw(st.integers(0, counts[other]))))
        elif kind.startswith("hand over"):
            streams[stream].append(Event("signal", semaphore=stream))
            counts[stream] += 1
            others = [i for i in range(len(STREAMS)) if i != stream]
            for other in others if kind == "hand over to all" else [draw(st.sampled_from(others))]:
                streams[other].append(Event("wait", semaphore=stream, value=counts[stream]))
        elif kind == "set" or not written:
            region = draw(regions(buffers, engine, draw(st.sampled_from([1, 2, 32])), draw(st.integers(1, 12))))
            streams[stream].append(Event("set", region))
            written.append(region)
        else:
            read = draw(st.sampled_from(written))
            if engine and read.partition % 32:
                continue
            write = draw(regions(buffers, engine, read.partitions, read.count))
            if write.partitions == read.partitions:
                streams[stream].append(Event("copy", write, read))
                written.append(write)
    if draw(st.booleans()):
        stream = draw(st.sampled_from([i for i in range(len(STREAMS)) if streams[i]] or [0]))
        if streams[stream]:
            del streams[stream][draw(st.integers(0, len(streams[stream]) - 1))]
    return Case(addresses, tuple(map(tuple, streams)))


@settings(max_examples=250, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(cases())
def test_agrees_with_the_definition(case: Case) -> None:
    order = simulate(case)
    module = parse(case.text())
    if order is None:
        with pytest.raises(NeuronError, match=r"deadlock|race|read of"):
            run_module(module, 1, values=False, hazards=True)
        return
    if hazardous(case, order):
        with pytest.raises(NeuronError, match=r"race: |read of "):
            run_module(module, 1, values=False, hazards=True)
        return
    run_module(module, 1, values=False, hazards=True)
