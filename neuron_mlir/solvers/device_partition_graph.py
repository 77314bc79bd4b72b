"""Contracting what shares a device in some best plan, so that `device_partition` searches a smaller graph."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from neuron_mlir.solvers.device_partition import GridProblem

Handover = tuple[int, tuple[int, ...], int]
"""(maker, users, transfer): the maker is not among the users, which ascend."""


@dataclass(frozen=True)
class Contracted:
    """Groups of nodes in a topological order, each of which shares a device."""

    members: tuple[tuple[int, ...], ...]
    """The nodes of each group."""
    cost: tuple[int, ...]
    room: tuple[int, ...]
    """Bytes of each group, for plans."""
    least_room: tuple[int, ...]
    """Bytes that groups must have together in any plan, for bounds: without those that a contraction moved."""
    handovers: tuple[Handover, ...]
    edges: tuple[tuple[int, int], ...]
    """Sorted, each once."""
    devices: int
    capacity: int

    @cached_property
    def makers(self) -> tuple[tuple[int, ...], ...]:
        """For each group those it needs, ascending."""
        found: list[list[int]] = [[] for _ in self.cost]
        for source, target in self.edges:
            found[target].append(source)
        return tuple(tuple(sorted(f)) for f in found)

    @cached_property
    def users(self) -> tuple[tuple[int, ...], ...]:
        """For each group those that need it, ascending."""
        found: list[list[int]] = [[] for _ in self.cost]
        for source, target in self.edges:
            found[source].append(target)
        return tuple(tuple(sorted(f)) for f in found)

    @property
    def total(self) -> int:
        """The cost of all groups."""
        return sum(self.cost)

    def simple_bound(self) -> int:
        """The largest of: the average cost; the largest group; of the devices + 1 largest the two that are least."""
        ordered = sorted(self.cost, reverse=True)
        bound = max(-(-self.total // self.devices), ordered[0] if ordered else 0)
        for together in range(1, (len(ordered) - 1) // self.devices + 1):
            # Of the k m + 1 largest some m + 1 share one of k devices.
            count = together * self.devices + 1
            bound = max(bound, sum(ordered[count - together - 1 : count]))
        return bound

    def join(self, pairs: Iterable[tuple[int, int]], *, moved: Iterable[int] = ()) -> Contracted:
        """The graph with both groups of each pair on one device, and so all that lies on a path between them.

        Bytes of the groups `moved` do not count for bounds any more.
        """
        free = set(moved)
        least = [0 if n in free else r for n, r in enumerate(self.least_room)]
        group_of, count = _groups(len(self.cost), self.edges, pairs)
        members: list[list[int]] = [[] for _ in range(count)]
        cost, room, least_room = [0] * count, [0] * count, [0] * count
        for node, group in enumerate(group_of):
            members[group] += self.members[node]
            cost[group] += self.cost[node]
            room[group] += self.room[node]
            least_room[group] += least[node]
        transfers: dict[tuple[int, tuple[int, ...]], int] = {}
        for maker, users, transfer in self.handovers:
            home = group_of[maker]
            left = tuple(sorted({group_of[u] for u in users} - {home}))
            if left:
                transfers[home, left] = transfers.get((home, left), 0) + transfer
        edges = {(group_of[a], group_of[b]) for a, b in self.edges}
        return Contracted(
            tuple(tuple(sorted(m)) for m in members),
            tuple(cost),
            tuple(room),
            tuple(least_room),
            tuple((maker, users, transfer) for (maker, users), transfer in sorted(transfers.items())),
            tuple(sorted((a, b) for a, b in edges if a != b)),
            self.devices,
            self.capacity,
        )


def contract(problem: GridProblem, *, move_bytes: bool = True) -> Contracted:
    """Contract colours with all on paths between their nodes, and nodes that gain nothing from being apart.

    The second keeps the optimum: a node with one user costs no device more if it moves to its user whenever its cost
    and all it takes in are no more than what it hands on; a node with one maker likewise. With `move_bytes` this is
    also done where the move may exceed a capacity: plans are plans still, bounds leave those bytes out.
    """
    users: list[list[int]] = [[] for _ in problem.costs]
    for source, target in problem.edges:
        users[source].append(target)
    plain = Contracted(
        tuple((n,) for n in range(len(problem.costs))),
        problem.costs,
        problem.at_most_bytes,
        problem.at_least_bytes,
        tuple(
            (n, tuple(sorted(u)), t) for n, (u, t) in enumerate(zip(users, problem.transfers, strict=True)) if u and t
        ),
        problem.edges,
        problem.devices,
        problem.capacity,
    )
    first: dict[int, int] = {}
    pairs = [(first.setdefault(c, n), n) for n, c in enumerate(problem.colors) if c >= 0]
    graph = plain.join(pairs)
    binding = sum(problem.at_most_bytes) > problem.capacity
    while True:
        moves = _moves(graph, binding, move_bytes)
        if not moves:
            return graph
        graph = graph.join(moves, moved=[node for node, _ in moves] if binding else ())


def better_than(graph: Contracted, objective: int) -> Contracted:
    """Contract what shares a device in every plan that is better than `objective`: a handover that is made costs its
    maker and each user on another device its transfer beside their own cost.
    """
    while True:
        pairs: list[tuple[int, int]] = []
        for maker, users, transfer in graph.handovers:
            if graph.cost[maker] + transfer >= objective:
                pairs += [(maker, user) for user in users]
            else:
                pairs += [(maker, user) for user in users if graph.cost[user] + transfer >= objective]
        if not pairs:
            return graph
        graph = graph.join(pairs)


def _moves(graph: Contracted, binding: bool, move_bytes: bool) -> list[tuple[int, int]]:
    """(what moves, where to), no group twice."""
    taken, made, sole = [0] * len(graph.cost), [0] * len(graph.cost), [0] * len(graph.cost)
    for maker, users, transfer in graph.handovers:
        made[maker] += transfer
        for user in users:
            taken[user] += transfer
        if len(users) == 1:
            sole[users[0]] += transfer
    busy: set[int] = set()
    found: list[tuple[int, int]] = []
    for node, cost in enumerate(graph.cost):
        targets: list[int] = []
        if len(graph.users[node]) == 1 and cost + taken[node] <= made[node]:
            targets.append(graph.users[node][0])
        if len(graph.makers[node]) == 1 and cost + made[node] <= sole[node]:
            targets.append(graph.makers[node][0])
        for target in targets:
            if node in busy or target in busy:
                continue
            too_much = not move_bytes or graph.room[node] + graph.room[target] > graph.capacity
            if binding and graph.room[node] and too_much:
                continue
            busy |= {node, target}
            found.append((node, target))
    return found


def _groups(count: int, edges: Iterable[tuple[int, int]], pairs: Iterable[tuple[int, int]]) -> tuple[list[int], int]:
    """The group of each node, numbered in a topological order that keeps the nodes' own where it can."""
    import heapq

    import networkx as nx

    both: nx.DiGraph[int] = nx.DiGraph()
    both.add_nodes_from(range(count))
    edges = list(edges)
    both.add_edges_from(edges)
    for a, b in pairs:
        both.add_edge(a, b)
        both.add_edge(b, a)
    components = sorted(sorted(c) for c in nx.strongly_connected_components(both))
    home = [0] * count
    for number, component in enumerate(components):
        for node in component:
            home[node] = number
    waiting = [0] * len(components)
    following: list[list[int]] = [[] for _ in components]
    for a, b in sorted({(home[a], home[b]) for a, b in edges}):
        if a != b:
            following[a].append(b)
            waiting[b] += 1
    ready = [c for c, w in enumerate(waiting) if not w]
    rank = [0] * len(components)
    for position in range(len(components)):
        component = heapq.heappop(ready)
        rank[component] = position
        for after in following[component]:
            waiting[after] -= 1
            if not waiting[after]:
                heapq.heappush(ready, after)
    return [rank[h] for h in home], len(components)
