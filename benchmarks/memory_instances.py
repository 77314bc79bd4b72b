"""Instances of memory plans without slack: a rectangle of time and bytes, cut to pieces at random.

All bytes are alive at all times, so the live peak is the capacity and there is a plan within it. Straight cuts split a
piece in two; a *pinwheel* splits it in five that no straight cut separates. Other instances are filled from moment to
moment: what ends leaves room that is cut anew, so that nothing is a rectangle but the whole.
"""

from __future__ import annotations

from heapq import heappop, heappush
from random import Random

from neuron_mlir.solvers.memory_plan import Buffer

_Piece = tuple[int, int, int, int]
"""From one time to another, and from one byte to another."""


def cut_rectangle(count: int, length: int, capacity: int, seed: int, pinwheels: float) -> list[Buffer]:
    """At least `count` buffers in random order, over `length` moments. `pinwheels` is the share of such cuts."""
    random = Random(seed)
    pieces: list[tuple[float, _Piece]] = [(0.0, (0, length, 0, capacity))]
    done: list[_Piece] = []
    while pieces and len(pieces) + len(done) < count:
        _, piece = heappop(pieces)
        parts = _pinwheel(piece, random) if random.random() < pinwheels else None
        parts = parts or _straight(piece, random)
        if parts is None:
            done.append(piece)
            continue
        for part in parts:
            # Mostly the largest next.
            heappush(pieces, (-(part[1] - part[0]) * (part[3] - part[2]) * random.uniform(0.3, 1.0), part))
    done += [piece for _, piece in pieces]
    random.shuffle(done)
    return [Buffer(n, lower, upper - 1, high - low, 1) for n, (lower, upper, low, high) in enumerate(done)]


def _straight(piece: _Piece, random: Random) -> list[_Piece] | None:
    lower, upper, low, high = piece
    in_time = random.random() < 0.5
    if upper - lower < 2:
        in_time = False
    if high - low < 2:
        in_time = True
    if in_time and upper - lower < 2:
        return None
    if in_time:
        at = random.randrange(lower + 1, upper)
        return [(lower, at, low, high), (at, upper, low, high)]
    at = random.randrange(low + 1, high)
    return [(lower, upper, low, at), (lower, upper, at, high)]


def _pinwheel(piece: _Piece, random: Random) -> list[_Piece] | None:
    """Four around one; None where there is no room."""
    lower, upper, low, high = piece
    if upper - lower < 3 or high - low < 3:
        return None
    t1, t2 = sorted(random.sample(range(lower + 1, upper), 2))
    b1, b2 = sorted(random.sample(range(low + 1, high), 2))
    parts = [(lower, t2, low, b1), (t2, upper, low, b2), (t1, upper, b2, high), (lower, t1, b1, high), (t1, t2, b1, b2)]
    if random.random() < 0.5:
        parts = [(lower + upper - end, lower + upper - begin, a, b) for begin, end, a, b in parts]
    return parts


def refilled(count: int, width: int, life: int, capacity: int, seed: int) -> list[Buffer]:
    """At least `count` buffers in random order, at first `width`, each of 1 to `life` moments: room that becomes free
    is taken by one to three others at once.
    """
    random = Random(seed)
    done: list[_Piece] = []
    now = 0
    live = [(0, 1 + random.randrange(life), low, high) for low, high in _intervals(0, capacity, width, random)]
    while len(done) + len(live) < count:
        now = min(upper for _, upper, _, _ in live)
        ending = sorted((piece for piece in live if piece[1] == now), key=lambda piece: piece[2])
        live = [piece for piece in live if piece[1] != now]
        done += ending
        free: list[tuple[int, int]] = []
        for _, _, low, high in ending:
            if free and free[-1][1] == low:
                low = free.pop()[0]
            free.append((low, high))
        for low, high in free:
            parts = _intervals(low, high, random.choice((1, 1, 2, 2, 3)), random)
            live += [(now, now + 1 + random.randrange(life), a, b) for a, b in parts]
    end = min(upper for _, upper, _, _ in live)
    done += [(lower, end, low, high) for lower, _, low, high in live]
    random.shuffle(done)
    return [Buffer(n, lower, upper - 1, high - low, 1) for n, (lower, upper, low, high) in enumerate(done)]


def _intervals(low: int, high: int, count: int, random: Random) -> list[tuple[int, int]]:
    cuts = sorted(random.sample(range(low + 1, high), min(count, high - low) - 1))
    return list(zip([low, *cuts], [*cuts, high], strict=True))
