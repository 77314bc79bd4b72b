"""Micro-benchmarks of the clock: what the simulator takes, beside the closed form of the costs in docs/simulator.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.tables import Result
from neuron_mlir.machine import Machine, cost, load_machine
from neuron_mlir.runtime.modules import parse_module
from neuron_mlir.simulator.run import run_module

CYCLE_LIMIT = 0.001
"""Of the expected time that may be off: quanta are whole picoseconds each."""
DRAM = "#core.dram"


@dataclass(frozen=True)
class Part:
    """A stage of a micro-benchmark.

    Attributes:
        core: where it runs.
        streams: of each engine, its instructions.
        semaphores: of its own, by name.
        takes: names of the program's semaphores that it waits for or signals, and of its rings.
        last: the semaphore of its own after which the host gets the output; empty for none.
    """

    core: int
    streams: dict[str, str]
    semaphores: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()
    last: str = ""


BUFFERS = """
    %w = core.alloc "w" at 0 : memref<128x64xbf16, #core.sbuf>
    %x = core.alloc "x" at 128 : memref<128x1024xbf16, #core.sbuf>
    %f = core.alloc "f" at 4096 : memref<128x1024xf32, #core.sbuf>
    %big = core.alloc "big" at 16384 : memref<128x16384xbf16, #core.sbuf>
    %acc = core.alloc "acc" at 0 : memref<64x512xf32, #core.psum>"""
BIG = 128 * 16384 * 2
"""Bytes of `%big`."""


def program(parts: Sequence[Part], semaphores: dict[str, int] | None = None, rings: str = "") -> str:
    """A program of these stages; `semaphores` are between stages, with the core that waits; `rings` are text."""
    lines = [
        '%y = pipe.ring "y" depth 1 on chip 0 at 0 : memref<1x1x16xf32, #core.dram>',
        '%yf = core.semaphore "yf"',
        f'%yc = core.semaphore "yc" on core {next(part.core for part in parts if part.last)}',
        rings,
    ]
    lines += [f'%{name} = core.semaphore "{name}" on core {core}' for name, core in (semaphores or {}).items()]
    for n, part in enumerate(parts):
        takes, types = list(part.takes), ["!core.semaphore"] * len(part.takes)
        for i, name in enumerate(takes):
            for line in rings.splitlines():
                if line.startswith(f"%{name} = pipe.ring"):
                    types[i] = line.split(" : ")[1]
        streams = dict(part.streams)
        if part.last:
            takes += ["y", "yf", "yc"]
            types += [f"memref<1x1x16xf32, {DRAM}>", "!core.semaphore", "!core.semaphore"]
            streams["dma15"] = (
                f"core.wait %yc >= %r\ncore.wait %{part.last} >= %r + 1\n"
                "core.dma %f[0, 0] [1, 16] -> %y[0, 0, 0] [1, 1, 16]\ncore.signal %yf\n"
            )
        body = "\n".join(f"core.engine {engine} {{\n{text}\n}}" for engine, text in streams.items())
        for i, name in enumerate(takes):
            body = (
                body.replace(f"%{name} ", f"%a{i} ").replace(f"%{name}\n", f"%a{i}\n").replace(f"%{name}[", f"%a{i}[")
            )
        own = "\n".join(f'%{name} = core.semaphore "{name}"' for name in part.semaphores)
        arguments = ", ".join(f"%a{i}: {type}" for i, type in enumerate(types))
        operands = ", ".join(f"%{name}" for name in takes)
        entry = f"^bb0({arguments}):\n" if takes else ""
        lines.append(
            f"pipe.stage @s{n} cores [{part.core}] ({operands}) {{\n{entry}{BUFFERS}\n{own}\npipe.load {{}}\n"
            f"pipe.run (%r) {{\n{body}\n}}\n}}"
        )
    lines.append('pipe.output "y" from %y full %yf credit %yc')
    return "pipe.program @micro {\n" + "\n".join(lines) + "\n}"


def time_of(text: str, requests: int = 1) -> int:
    """Picoseconds until the host has the last output."""
    run = run_module(parse_module(text, "a micro-benchmark"), requests, values=False, hazards=False).machine
    assert run is not None
    return max(run.finished)


def loop(count: int, body: str) -> str:
    """So many times."""
    return f"affine.for %i = 0 to {count} {{\n{body}\n}}"


@dataclass(frozen=True)
class Check:
    """One micro-benchmark: the longer of two programs takes `expected` picoseconds more than the shorter one."""

    what: str
    formula: str
    expected: float
    short: str
    long: str
    requests: tuple[int, int] = (1, 1)

    @property
    def simulated(self) -> int:
        """Picoseconds between the two."""
        return time_of(self.long, self.requests[1]) - time_of(self.short, self.requests[0])


def _one(engine: str, body: str, count: int) -> str:
    """A core whose engine does something so many times."""
    stream = loop(count, body) + "\ncore.signal %done"
    return program([Part(0, {engine: stream}, ("done",), last="done")])


def _repeated(what: str, formula: str, each_ps: float, engine: str, body: str, times: int = 64) -> Check:
    return Check(what, formula, each_ps * times, _one(engine, body, times), _one(engine, body, 2 * times))


def _matmul(columns: int) -> str:
    return f"core.matmul %acc[0, 0] [64, {columns}], %w, %x[0, 0] [128, {columns}]"


def engines(machine: Machine) -> list[Check]:
    """Engines alone."""
    cycle = machine.clock.cycle_ps
    peak = _repeated("peak matmul, K 128, M 64, N 512", "512 cycles", 512 * cycle, "tensor", _matmul(512))
    short = _repeated("matmul of 16 columns", "64 cycles", 64 * cycle, "tensor", _matmul(16))
    activation = "core.activation relu %f[0, 0] [128, 300], %f[0, 0] [128, 300]"
    scalar = _repeated("activation of 300 elements", "60 + 300 cycles", 360 * cycle, "scalar", activation)
    copy = _repeated(
        "copy of 1 element", "60 + 1 cycles", 61 * cycle, "vector", "core.copy %f[0, 0] [128, 1], %f[0, 1] [128, 1]"
    )
    return [peak, short, scalar, copy]


def ping_pong(machine: Machine) -> list[Check]:
    """Two engines of a core in turn."""
    cycle = machine.clock.cycle_ps

    def between(count: int, first: tuple[str, str], second: tuple[str, str]) -> str:
        one = (
            loop(count, f"core.wait %b >= %i\n{first[1]}\ncore.signal %a")
            + f"\ncore.wait %b >= {count}\ncore.signal %done"
        )
        two = loop(count, f"core.wait %a >= %i + 1\n{second[1]}\ncore.signal %b")
        # A semaphore has one producer: `done` is the first engine's.
        return program([Part(0, {first[0]: one, second[0]: two}, ("a", "b", "done"), last="done")])

    lanes = (
        ("vector", "core.copy %f[0, 0] [128, 1], %f[0, 1] [128, 1]"),
        (
            "scalar",
            "core.activation copy %f[0, 2] [128, 1], %f[0, 3] [128, 1]",
        ),
    )
    product = ("tensor", _matmul(512)), ("scalar", "core.activation copy %f[0, 0] [64, 512], %acc")
    return [
        Check(
            "VectorEngine and ScalarEngine in turn, 1 element",
            "2 x (60 + 1 + 50) cycles",
            64 * 2 * 111 * cycle,
            between(64, *lanes),
            between(128, *lanes),
        ),
        Check(
            "matmul and its activation in turn, N 512",
            "32 + 512 + 60 + 50 + 60 + 512 + 50 cycles",
            64 * (32 + 512 + 60 + 50 + 60 + 512 + 50) * cycle,
            between(64, *product),
            between(128, *product),
        ),
    ]


def transfers(machine: Machine) -> list[Check]:
    """DMA of one core, and of several that share the DRAM of a chip."""
    ring = f'%d = pipe.ring "d" depth 1 on chip 0 at 4096 : memref<1x128x16384xbf16, {DRAM}>'
    rate, dram = cost.core_dma_bytes_per_s(machine), cost.dram_bytes_per_s(machine)

    def streamed(cores: int, count: int, part: str, size: str) -> str:
        body = loop(count, f"core.dma %d[0, 0, 0] [1, {size}] -> %big[0, 0] [{size}]{part}")
        tell = [f"core.signal %t{core}" for core in range(cores)]
        parts = [Part(core, {"dma0": body + f"\n{tell[core]}"}, (), ("d", f"t{core}")) for core in range(1, cores)]
        waits = "\n".join(f"core.wait %t{core} >= %r + 1" for core in range(1, cores))
        wait_all = (
            f"core.wait %own >= %r + 1\n{waits}\ncore.copy %f[0, 0] [128, 1], %f[0, 1] [128, 1]\ncore.signal %done"
        )
        first = Part(
            0,
            {"dma0": body + "\ncore.signal %own", "vector": wait_all},
            ("own", "done"),
            ("d", *(f"t{core}" for core in range(1, cores))),
            "done",
        )
        return program([first, *parts], {f"t{core}": 0 for core in range(1, cores)}, ring)

    checks: list[Check] = []
    for cores in range(1, machine.chip.cores + 1):
        checks.append(
            Check(
                f"DRAM to SBUF, {BIG >> 20} MiB each by {cores} core{'s' if cores > 1 else ''} at once",
                f"max(B / {rate / 1e9:g}e9, {cores} B / {dram / 1e9:g}e9)",
                8 * max(BIG / rate, cores * BIG / dram) * 1e12,
                streamed(cores, 8, "", "128, 16384"),
                streamed(cores, 16, "", "128, 16384"),
            )
        )
    # Rows of 8 elements: 16 bytes of each burst of 64 are wanted.
    checks.append(
        Check(
            "DRAM to SBUF, runs of 16 bytes",
            "bursts of 64 bytes: 4 B / DMA rate",
            64 * 128 * 64 / rate * 1e12,
            streamed(1, 64, "", "128, 8"),
            streamed(1, 128, "", "128, 8"),
        )
    )
    return checks


def links(machine: Machine) -> list[Check]:
    """SBUF to SBUF, there and back, on a chip and over the link between two."""
    checks: list[Check] = []
    rows, size = 128, 128 * 2048
    for far, what in ((1, "cores of a chip"), (machine.chip.cores, "neighbouring chips")):
        hops = 0 if far == 1 else 1
        text = [
            f'%p{core} = pipe.ring "p{core}" depth 1 on core {core} at 65536 : memref<{rows}x1x1024xbf16, #core.sbuf>'
            for core in (0, far)
        ]

        def turns(count: int, far: int = far, rings: str = "\n".join(text)) -> str:
            there = loop(
                count, f"core.wait %back >= %i\ncore.dma %x -> %p{far}[0, 0, 0] [{rows}, 1, 1024]\ncore.signal %go"
            )
            there += f"\ncore.wait %back >= {count}\ncore.signal %done"
            back = loop(
                count, f"core.wait %go >= %i + 1\ncore.dma %x -> %p0[0, 0, 0] [{rows}, 1, 1024]\ncore.signal %back"
            )
            first = Part(0, {"dma0": there}, ("done",), (f"p{far}", "go", "back"), "done")
            second = Part(far, {"dma0": back}, (), ("p0", "go", "back"))
            return program([first, second], {"go": far, "back": 0}, rings)

        rate = cost.core_dma_bytes_per_s(machine)
        if hops:
            rate = min(rate, cost.chip_link_bytes_per_s(machine))
        fixed = cost.dma_fixed_ps(machine) + hops * machine.chip_link.fixed_ps
        signal = cost.semaphore_ps(machine) + hops * machine.chip_link.fixed_ps
        checks.append(
            Check(
                f"256 KiB there and back between {what}",
                f"2 x (B / {rate / 1e9:g}e9 + {fixed / 1e6:g} us + {signal / 1e6:g} us)",
                16 * 2 * (size / rate * 1e12 + fixed + signal),
                turns(16),
                turns(32),
            )
        )
    return checks


def bubble(machine: Machine, stages: int, requests: int) -> Check:
    """Stages of equal time, each working on a request of its own: (K-1)/(m+K-1) of the time it has none."""
    cycle, work = machine.clock.cycle_ps, 4096
    parts: list[Part] = []
    semaphores = {f"h{n}": n for n in range(1, stages)}
    for n in range(stages):
        body = f"core.wait %h{n} >= %r + 1\n" if n else ""
        body += loop(work, _matmul(512)) + (f"\ncore.signal %h{n + 1}" if n < stages - 1 else "\ncore.signal %done")
        takes = tuple(f"h{i}" for i in (n, n + 1) if 0 < i < stages)
        parts.append(
            Part(n, {"tensor": body}, ("done",) if n == stages - 1 else (), takes, "done" if n == stages - 1 else "")
        )
    text = program(parts, semaphores)
    # From one request to so many; a hand-over (60 + 50 + 32 cycles) counts once, for the first.
    return Check(
        f"{stages} stages, {requests} requests: bubble {(stages - 1) / (requests + stages - 1):.1%}",
        "(m + K - 1) T, of which the first takes K T",
        (requests - 1) * work * 512 * cycle,
        text,
        text,
        (1, requests),
    )


def first_request(machine: Machine, stages: int) -> Check:
    """What a further stage adds to the latency of one request."""
    cycle, work = machine.clock.cycle_ps, 4096
    one, several = bubble(machine, 1, 1), bubble(machine, stages, 1)
    return Check(
        f"latency of {stages} stages over that of one",
        "(K - 1) (T + 60 + 50 + 32 cycles)",
        (stages - 1) * (work * 512 + 60 + 50 + 32) * cycle,
        one.short,
        several.short,
    )


def host(machine: Machine) -> Check:
    """Inputs of two sizes: the rest of the way is the same."""

    def taken(columns: int) -> str:
        ring = f"""%in = pipe.ring "in" depth 1 on chip 0 at 4096 : memref<1x{columns}xf32, {DRAM}>
%if = core.semaphore "if" on core 0
%ic = core.semaphore "ic"
pipe.input "in" to %in full %if credit %ic"""
        body = "core.wait %if >= %r + 1\ncore.copy %f[0, 0] [128, 1], %f[0, 1] [128, 1]\ncore.signal %done"
        return program([Part(0, {"vector": body}, ("done",), ("in", "if"), "done")], None, ring)

    size = 1 << 20
    rate = min(cost.host_link_bytes_per_s(machine), cost.dram_bytes_per_s(machine))
    return Check("4 MiB from the host", f"B / {rate / 1e9:g}e9", 4 * size / rate * 1e12, taken(size), taken(2 * size))


def checks(machine: Machine) -> list[Check]:
    """All of them."""
    found = [*engines(machine), *ping_pong(machine), *transfers(machine), *links(machine), host(machine)]
    return [*found, first_request(machine, 4), *(bubble(machine, k, m) for k, m in ((2, 4), (4, 8), (4, 64)))]


def clock(names: Sequence[str]) -> Result:
    """What the simulator takes for programs of a few instructions, beside the closed form that docs/simulator.md gives.
    Each row is the difference between a program and one with half of the repetitions (or requests), so that start and
    end, which are the same in both, are not in it. `off`: simulated over expected, less one."""
    result = Result(
        "clock",
        "The clock beside its closed forms",
        clock,
        ["what", "formula", "expected, us", "simulated, us", "off"],
    )
    for check in checks(load_machine()):
        simulated = check.simulated
        off = simulated / check.expected - 1
        result.add(check.what, check.formula, check.expected / 1e6, simulated / 1e6, f"{off:+.4%}")
        result.limit(f"{check.what}: within {CYCLE_LIMIT:.1%}", abs(off) <= CYCLE_LIMIT)
    return result
