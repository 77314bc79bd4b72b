"""What a statement waits for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Edge:
    """How far another stream must have come: its part of statement `position`, `distance` iterations ago."""

    distance: int
    position: int

    @property
    def key(self) -> tuple[int, int]:
        """Of two edges from one stream, the one with the larger key implies the other."""
        return -self.distance, self.position


Edges = dict[tuple[int, str], dict[str, Edge]]
"""By (position, engine): by other engine."""


def add_edge(edges: Edges, position: int, engine: str, other: str, edge: Edge) -> None:
    """Keep the strongest edge from a stream."""
    known = edges.setdefault((position, engine), {})
    if other not in known or known[other].key < edge.key:
        known[other] = edge
