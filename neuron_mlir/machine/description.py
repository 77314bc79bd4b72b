"""The machine as data: `Machine`, read from TOML.

A machine is a tree of small frozen dataclasses, one per table of `inferentia1.toml`; every number is an integer with
its unit in its name, and carries where it comes from as a `Fact`. Nothing here knows about IR; importing this module
costs little (`tomllib` only).
"""

from __future__ import annotations

import difflib
import tomllib
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, cast

from neuron_mlir.errors import NeuronError

STATUSES = ("published", "derived", "assumed", "fitted", "overridden")
"""What is known of a number; `fitted` is one chosen so that a measurement of the real machine comes out, `overridden`
one that a user's file sets without saying."""


@dataclass(frozen=True, slots=True)
class Fact:
    """Where one number of a machine comes from."""

    key: str
    """Dotted name, `table.key`."""
    value: int
    status: str
    """One of `STATUSES`."""
    source: str


@dataclass(frozen=True, slots=True)
class Chip:
    """What a chip holds, and how many chips there may be."""

    cores: int
    chips_max: int
    events_per_core: int
    semaphores_per_core: int
    semaphore_max: int


@dataclass(frozen=True, slots=True)
class Clock:
    """Engine clock, and the delay of a semaphore from signal to wait."""

    cycle_ps: int
    semaphore_cycles: int


@dataclass(frozen=True, slots=True)
class TensorEngine:
    """The PE array: `rows` contraction rows by `columns` output columns."""

    rows: int
    columns: int
    flops_per_s: int
    moving_columns_max: int
    matmul_cycles_min: int
    stationary_load_cycles: int
    access_cycles: int


@dataclass(frozen=True, slots=True)
class LaneEngine:
    """An engine of independent lanes, one partition each: the ScalarEngine or the VectorEngine."""

    lanes: int
    flop_per_cycle: int
    elements_per_lane_per_cycle: int
    access_cycles: int


@dataclass(frozen=True, slots=True)
class Sbuf:
    """The state buffer of a core."""

    partitions: int
    bytes_per_partition: int
    quadrant_partitions: int

    @property
    def size_bytes(self) -> int:
        return self.partitions * self.bytes_per_partition


@dataclass(frozen=True, slots=True)
class Psum:
    """The accumulation buffer of a core."""

    partitions: int
    bytes_per_partition: int
    banks: int

    @property
    def bank_bytes(self) -> int:
        """Bytes of one bank in one partition."""
        return self.bytes_per_partition // self.banks

    @property
    def size_bytes(self) -> int:
        return self.partitions * self.bytes_per_partition


@dataclass(frozen=True, slots=True)
class Dram:
    """The device memory of a chip, shared by its cores."""

    bytes_per_chip: int
    channels_per_chip: int
    bytes_per_s: int
    efficiency_permille: int

    @property
    def effective_bytes_per_s(self) -> int:
        """What a chip's DRAM delivers: nominal rate times efficiency, bytes per second."""
        return self.bytes_per_s * self.efficiency_permille // 1000


@dataclass(frozen=True, slots=True)
class Dma:
    """The DMA engines of a core."""

    engines_per_core: int
    queues_per_engine: int
    bytes_per_s_per_engine: int
    fixed_ps: int
    burst_bytes: int
    quantum_bytes: int

    @property
    def bytes_per_s_per_core(self) -> int:
        """What all DMA engines of one core move together, bytes per second."""
        return self.engines_per_core * self.bytes_per_s_per_engine


@dataclass(frozen=True, slots=True)
class ChipLink:
    """A link to the next chip of the chain: rate per direction."""

    bytes_per_s: int
    fixed_ps: int


@dataclass(frozen=True, slots=True)
class HostLink:
    """The link between host and chips: rate per direction."""

    bytes_per_s: int


@dataclass(frozen=True, slots=True)
class Instance:
    """A size one can rent."""

    name: str
    chips: int
    microdollars_per_hour: int


@dataclass(frozen=True)
class Machine:
    """One machine. Made by `load_machine`; equal machines have equal numbers, whatever their sources say."""

    name: str
    """The base it was loaded from, e.g. `inferentia1`."""
    description: str
    chip: Chip
    clock: Clock
    tensor_engine: TensorEngine
    scalar_engine: LaneEngine
    vector_engine: LaneEngine
    sbuf: Sbuf
    psum: Psum
    dram: Dram
    dma: Dma
    chip_link: ChipLink
    host_link: HostLink
    instances: tuple[Instance, ...]
    overrides: tuple[tuple[str, int], ...]
    """`(dotted key, value)` of every number that differs from the base, sorted by key."""

    @property
    def cores_max(self) -> int:
        return self.chip.cores * self.chip.chips_max

    @property
    def facts(self) -> tuple[Fact, ...]:
        """Every number with its status and source, in the order of the file; an override says `overridden`."""
        return tuple(
            Fact(f.key, dict(self.overrides)[f.key], "overridden", f"overrides {f.value} of {self.name}")
            if f.key in dict(self.overrides)
            else f
            for f in _base(self.name)[1]
        )

    def value(self, key: str) -> int:
        """The number of a dotted key such as `sbuf.partitions`. Raises `NeuronError` for a key there is not."""
        for fact in self.facts:
            if fact.key == key:
                return fact.value
        raise _unknown_key(key, [f.key for f in self.facts], self.name)


_TABLES: dict[str, type[Any]] = {
    "chip": Chip,
    "clock": Clock,
    "tensor_engine": TensorEngine,
    "scalar_engine": LaneEngine,
    "vector_engine": LaneEngine,
    "sbuf": Sbuf,
    "psum": Psum,
    "dram": Dram,
    "dma": Dma,
    "chip_link": ChipLink,
    "host_link": HostLink,
}


def machine_names() -> list[str]:
    """Names of the machines that come with the package."""
    return sorted(p.stem for p in Path(__file__).parent.glob("*.toml"))


def load_machine(name_or_path: str | Path = "inferentia1", *, overrides: dict[str, int] | None = None) -> Machine:
    """Load a machine by name, or from a user's TOML file, with optional overrides by dotted key.

    A user's file says `base = "inferentia1"` (the default) and the keys that differ:

        base = "inferentia1"
        [sbuf]
        bytes_per_partition = 131072

    Raises `NeuronError` for a file that is missing or not TOML, an unknown name, an unknown key (the nearest one is
    named), a value that is not an integer, or one out of range.
    """
    text_name = str(name_or_path)
    changes: dict[str, int] = {}
    base = text_name
    if text_name.endswith(".toml"):
        base, changes = _read_user_file(Path(text_name))
    elif text_name not in machine_names():
        raise NeuronError(
            f"unknown machine '{text_name}'",
            advice=f"use one of {', '.join(machine_names())}, or the path of a file ending in .toml",
        )
    changes.update(overrides or {})
    for key, value in changes.items():
        _check(key, value, text_name)
    return _build(base, tuple(sorted(changes.items())))


@cache
def _base(name: str) -> tuple[str, tuple[Fact, ...]]:
    """Description and facts of a machine of the package: those of its file, and the others of its base's."""
    path = Path(__file__).parent / f"{name}.toml"
    data = tomllib.loads(path.read_text(encoding="utf-8"))
    facts = {fact.key: fact for fact in _base(data["base"])[1]} if "base" in data else {}
    facts.update((fact.key, fact) for fact in _facts(data, ""))
    return str(data["description"]), tuple(facts.values())


def _facts(table: dict[str, Any], prefix: str) -> list[Fact]:
    result: list[Fact] = []
    for key, value in table.items():
        if not isinstance(value, dict):
            continue
        entry = cast(dict[str, Any], value)
        if "value" in entry:
            result.append(Fact(prefix + key, entry["value"], entry["status"], entry["source"]))
        else:
            result.extend(_facts(entry, f"{prefix}{key}."))
    return result


def _read_user_file(path: Path) -> tuple[str, dict[str, int]]:
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise NeuronError(
            f"cannot read machine file '{path}': {error.strerror}", advice="check the path, or give a machine's name"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise NeuronError(f"machine file '{path}' is not valid TOML: {error}") from None
    base = data.pop("base", "inferentia1")
    if base not in machine_names():
        raise NeuronError(
            f"machine file '{path}': unknown base '{base}'", advice=f"use one of {', '.join(machine_names())}"
        )
    for free_text in ("name", "description"):
        data.pop(free_text, None)
    known = [f.key for f in _base(base)[1]]
    return base, _flatten(data, "", known, str(path))


def _flatten(table: dict[str, Any], prefix: str, known: list[str], where: str) -> dict[str, int]:
    """Dotted keys and values of a user's tables; a value may be plain or `{value = .., status = .., source = ..}`."""
    result: dict[str, int] = {}
    for key, value in table.items():
        dotted = prefix + key
        if isinstance(value, dict) and dotted not in known:
            if not any(k.startswith(dotted + ".") for k in known):
                raise _unknown_key(dotted, known, where)
            result.update(_flatten(cast(dict[str, Any], value), dotted + ".", known, where))
            continue
        inside = [k.removeprefix(dotted + ".") for k in known if k.startswith(dotted + ".")]
        if inside:
            raise NeuronError(
                f"machine '{where}': '{dotted}' is a table", advice=f"[{dotted}] with keys such as {inside[0]}"
            )
        if dotted not in known:
            raise _unknown_key(dotted, known, where)
        if isinstance(value, dict):
            value = cast(dict[str, Any], value).get("value")
        result[dotted] = cast(int, value)  # checked with all other values in _check
    return result


def _unknown_key(key: str, known: list[str], where: str) -> NeuronError:
    tables = {k.rpartition(".")[0] for k in known}
    near = difflib.get_close_matches(key, [*known, *sorted(tables)], n=1, cutoff=0.5)
    advice = f"did you mean '{near[0]}'?" if near else f"tables are {', '.join(sorted(tables))}"
    return NeuronError(f"machine '{where}': unknown key '{key}'", advice=advice)


@cache
def _build(base: str, changes: tuple[tuple[str, int], ...]) -> Machine:
    description, facts = _base(base)
    values = {f.key: f.value for f in facts}
    for key, _ in changes:
        if key not in values:
            raise _unknown_key(key, list(values), base)
    overrides = tuple((k, v) for k, v in changes if values[k] != v)
    values.update(overrides)
    tables = {name: cls(**{f.name: values[f"{name}.{f.name}"] for f in fields(cls)}) for name, cls in _TABLES.items()}
    sizes = list(dict.fromkeys(k.split(".")[1] for k in values if k.startswith("instances.")))
    instances = tuple(
        Instance(
            size.replace("_", "."), values[f"instances.{size}.chips"], values[f"instances.{size}.microdollars_per_hour"]
        )
        for size in sizes
    )
    machine = Machine(name=base, description=description, instances=instances, overrides=overrides, **tables)
    _check_together(machine)
    return machine


def _check(key: str, value: object, where: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise NeuronError(
            f"machine '{where}': '{key}' must be an integer, got {value!r}", advice="the unit is in the key's name"
        )
    if value <= 0:
        raise NeuronError(f"machine '{where}': '{key}' must be positive, got {value}")
    if value >= 1 << 62:
        raise NeuronError(f"machine '{where}': '{key}' must be below 2^62, got {value}")


def _check_together(machine: Machine) -> None:
    """Conditions between numbers that the compiler relies on."""
    psum, tensor = machine.psum, machine.tensor_engine
    if machine.dram.efficiency_permille > 1000:
        raise NeuronError(
            "machine: 'dram.efficiency_permille' is more than all of it",
            resource="permille",
            needed=machine.dram.efficiency_permille,
            available=1000,
        )
    if psum.bytes_per_partition % psum.banks:
        raise NeuronError(
            "machine: 'psum.bytes_per_partition' is not a multiple of 'psum.banks'"
            f" ({psum.bytes_per_partition} and {psum.banks})"
        )
    pairs = (
        ("tensor_engine.rows", tensor.rows, "sbuf.partitions", machine.sbuf.partitions),
        ("tensor_engine.columns", tensor.columns, "psum.partitions", psum.partitions),
        ("4-byte tensor_engine.moving_columns_max", 4 * tensor.moving_columns_max, "a PSUM bank", psum.bank_bytes),
        ("sbuf.quadrant_partitions", machine.sbuf.quadrant_partitions, "sbuf.partitions", machine.sbuf.partitions),
    )
    for what, needed, room, available in pairs:
        if needed > available:
            raise NeuronError(f"machine: {what} does not fit {room}", resource=room, needed=needed, available=available)
