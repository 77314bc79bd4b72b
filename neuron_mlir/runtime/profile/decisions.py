"""What the compiler decided, and why: read from the attributes of the final IR and from the artifact's metadata."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from xdsl.ir import Attribute

    from neuron_mlir.simulator.program import Program

MEANING = {
    "reason": "why so many cores",
    "bottleneck": "what the slowest stage is bound by, as estimated when the network was cut",
    "certificate": "the cut into stages: time of the slowest stage",
    "fewest_cores": "the number of cores whose SBUF holds all weights",
    "sharding": "the split of layers over cores: time of the slowest stage",
    "sharding_reason": "why layers are split over cores, or not",
    "replication": "the number of copies",
    "replication_reason": "why so many copies",
    "pipe.model_flops": "floating-point operations of one request of the network",
    "pipe.model_weight_bytes": "bytes of the network's weights",
    "compute_ps": "estimate of the busiest engine, per request",
    "cost_ps": "estimate of what bounds the stage, per request",
    "dram_bytes": "estimate of the DRAM traffic of a request",
    "weight_bytes": "weights of the stage",
    "streamed_bytes": "weights that do not fit SBUF and come from DRAM for each request",
    "core.sbuf_plan": "addresses in SBUF: highest byte used",
    "core.psum_plan": "addresses in PSUM: highest byte used",
    "core.spills": "buffers sent to DRAM and back, as SBUF is full",
}
"""What an attribute says, for a reader who has not read the passes."""


def decisions(program: Program, metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    """Decisions of a compiled program.

    `{"program": [..], "stages": [{"name", "cores", "decisions": [..]}], "passes": [{"pass", "statistics"}],
    "options": {..}, "producer"}`. A decision is `{"key", "meaning", "value"}`, or has a `certificate` in place of the
    value: objective, lower bound, gap, unit, method.

    Args:
        program: as the simulator reads it.
        metadata: of the artifact; None for a module from text, which says nothing of passes and options.
    """
    known = metadata or {}
    return {
        "program": _attributes(program.op.attributes),
        "stages": [
            {
                "name": stage.sym_name.data,
                "cores": list(stage.core_list()),
                "decisions": _attributes(stage.attributes),
            }
            for stage in program.op.stages()
        ],
        "passes": _passes(known.get("statistics")),
        "options": known["options"] if isinstance(known.get("options"), dict) else {},
        "producer": str(known.get("producer", "")),
    }


def _passes(recorded: object) -> list[dict[str, Any]]:
    """What passes counted, as far as the record has the form that it should have."""
    found: list[dict[str, Any]] = []
    for item in cast("list[object]", recorded) if isinstance(recorded, list) else []:
        entry = cast("dict[str, Any]", item) if isinstance(item, dict) else {}
        if isinstance(entry.get("pass"), str) and isinstance(entry.get("statistics"), dict):
            found.append({"pass": entry["pass"], "statistics": entry["statistics"]})
    return found


def _attributes(attributes: Mapping[str, Attribute]) -> list[dict[str, Any]]:
    from xdsl.dialects.builtin import ArrayAttr, FloatAttr, IntegerAttr, StringAttr

    from neuron_mlir.dialects.pipe.ops import CertificateAttr

    found: list[dict[str, Any]] = []
    for key, value in attributes.items():
        entry: dict[str, Any] = {"key": key, "meaning": MEANING.get(key, "")}
        if isinstance(value, CertificateAttr):
            entry["certificate"] = value.to_json()
        elif isinstance(value, StringAttr):
            entry["value"] = value.data
        elif isinstance(value, IntegerAttr | FloatAttr):
            entry["value"] = value.value.data
        elif isinstance(value, ArrayAttr):
            items = cast("ArrayAttr[Attribute]", value).data
            entry["value"] = [item.data if isinstance(item, StringAttr) else str(item) for item in items]
        else:
            continue
        found.append(entry)
    return found
