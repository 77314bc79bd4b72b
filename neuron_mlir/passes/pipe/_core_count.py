"""How many cores `cores=auto` takes: the fewest that hold all weights, with the proof, or why none do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from neuron_mlir.solvers.certificate import Certificate
    from neuron_mlir.solvers.partition import PartitionProblem


@dataclass(frozen=True)
class CoreCount:
    """A number of cores, the reason for it in words, and its certificate if a number was searched for."""

    cores: int
    reason: str
    certificate: Certificate | None = None


def choose_cores(problem: PartitionProblem, labels: Sequence[str], most: int) -> CoreCount:
    """The fewest cores, of at most `most`, whose SBUF holds all weights beside the values.

    Args:
        problem: nodes with what they take, and the capacity of a core, in bytes per partition.
        labels: of the nodes, for messages.
        most: cores there are, and nodes.
    """
    from neuron_mlir.solvers.certificate import Certificate
    from neuron_mlir.solvers.partition import fewest_stages, fewest_stages_bound

    nodes, capacity = problem.nodes, problem.capacity_bytes
    total = sum(node.resident_bytes for node in nodes)
    weights = f"weights take {total} bytes per partition, a core has {capacity} for them and for activations"
    needed, bound = fewest_stages(problem), fewest_stages_bound(problem)
    if needed is None:
        weighty = [n for n, node in enumerate(nodes) if node.resident_bytes]
        worst = max(weighty, key=lambda n: nodes[n].resident_bytes + nodes[n].working_bytes)
        alone, beside = nodes[worst].resident_bytes, nodes[worst].working_bytes
        clipped = [
            replace(n, resident_bytes=min(n.resident_bytes, capacity - room), working_bytes=room)
            for n in nodes
            for room in [min(n.working_bytes, capacity)]
        ]
        enough = fewest_stages(replace(problem, nodes=tuple(clipped)))
        assert enough is not None
        cores = min(most, enough)
        why = f"'{labels[worst]}' alone takes {alone} bytes per partition, and {beside} beside them for values"
        return CoreCount(cores, f"{cores_text(cores)}: no number of cores holds all weights, for {why}; {weights}")
    if needed > most:
        proof = (
            f"it takes {bound} at least, that is proven"
            if bound > most
            else f"proven for the program's order, in any other it takes {bound} at least"
        )
        return CoreCount(
            most,
            f"{cores_text(most)}: all there are to use; holding all weights would take {needed} ({proof}); {weights}",
        )
    certificate = Certificate(needed, bound, "cores", "fewest in the program's order; bytes in any")
    words = f"{cores_text(needed)}: the fewest whose SBUF holds all weights; {weights}"
    return CoreCount(needed, words, certificate)


def cores_text(count: int) -> str:
    """A number of cores in words."""
    return "1 core" if count == 1 else f"{count} cores"
