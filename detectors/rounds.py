"""Vectorising over entities: the k-th event, or the k-th second, of every entity is processed at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detectors.types import UNKNOWN, Bools, EventBatch, Floats, Hashes, Ints, Scope

_LAST_S = 2.0**36
"""The time that all later ones count as, s: the year 4147."""


def rounds(row: Ints) -> Iterator[Ints]:
    """Yields arrays of positions; the k-th holds the k-th event of every row, each row at most once.

    Within a round all rows differ, so state can be gathered, changed and scattered as whole columns,
    and the order of events within an entity is kept.

    >>> [list(map(int, r)) for r in rounds(np.array([5, 3, 5, 5, 3]))]
    [[0, 1], [2, 4], [3]]
    """
    n = len(row)
    if n == 0:
        return
    order = np.argsort(row, kind="stable")
    rank = np.empty(n, np.int64)
    rank[order] = _rank(changes(row[order]))
    yield from _by_rank(rank)


def ticks(ts: Floats, length_s: float) -> Ints:
    """(n,) number of the tick of `length_s` that each time lies in, since 1970.

    >>> ticks(np.array([59.9, 60.0]), 60.0).tolist()
    [0, 1]
    """
    return np.floor(np.clip(ts, 0, _LAST_S) / length_s).astype(np.int64)


@dataclass(frozen=True, slots=True)
class Segments:
    """Events of each row in order, cut where the row's clock moves on.

    A row that has thousands of events within one tick has one segment then, and takes one round. Sums within
    a segment must not depend on where it is cut, as the next batch may go on in the same tick: they are made
    of integers.
    """

    order: Ints
    """(n,) positions of the events, row by row, each row's in order."""
    starts: Ints
    """(m,) where in `order` each segment begins."""
    row: Ints
    """(m,)"""
    tick: Ints
    """(m,) the row's newest tick; late events belong to it."""
    rank: Ints
    """(m,) which of its row's segments it is, from 0."""

    @property
    def sizes(self) -> Ints:
        """(m,) events of each segment."""
        return np.diff(self.starts, append=len(self.order))

    def rounds(self) -> Iterator[Ints]:
        """Yields arrays of segments; the k-th holds the k-th segment of every row."""
        return _by_rank(self.rank)

    def sums(self, values: NDArray[np.int64]) -> NDArray[np.int64]:
        """(m, ...) sums per segment of (n, ...) integers in the order of `order`."""
        total: NDArray[np.int64] = np.add.reduceat(values, self.starts, axis=0)
        return total

    def events(self, chosen: Ints) -> tuple[Ints, Ints]:
        """The events of some segments: (k,) index into `chosen`, (k,) index into `order`."""
        sizes = self.sizes[chosen]
        of = np.repeat(np.arange(len(chosen)), sizes)
        begins = np.cumsum(sizes) - sizes
        return of, self.starts[chosen][of] + np.arange(len(of)) - begins[of]


def segments(row: Ints, tick: Ints, newest: NDArray[np.integer]) -> Segments:
    """Events cut into segments.

    Args:
        row: (n,) row of each event, n > 0.
        tick: (n,) tick each event lies in, from 0 to 2^40 - 1.
        newest: (rows,) newest tick of each row before these events, -1 for none.

    >>> found = segments(np.array([5, 3, 5, 5]), np.array([1, 1, 2, 1]), np.full(6, -1))
    >>> found.order.tolist(), found.starts.tolist(), found.tick.tolist(), found.rank.tolist()
    ([1, 0, 2, 3], [0, 1, 2], [1, 1, 2], [0, 0, 1])
    """
    order = np.argsort(row, kind="stable")
    rows, own = row[order], tick[order]
    begins = changes(rows)
    own[begins] = np.maximum(own[begins], newest[rows[begins]])
    # One after the other, the clocks of all rows are a single one that never goes back.
    lift = np.cumsum(begins) << 40
    clock = np.maximum.accumulate(own + lift)
    starts = np.flatnonzero(changes(clock))
    row = rows[starts]
    return Segments(order, starts, row, (clock - lift)[starts], _rank(changes(row)))


def running(values: NDArray[np.int64], begins: Bools) -> NDArray[np.int64]:
    """(n, ...) sums of (n, ...) integers from the latest begin on, each event's own value included.

    >>> running(np.array([1, 2, 4, 8]), np.array([True, False, True, False])).tolist()
    [1, 3, 4, 12]
    """
    total = np.cumsum(values, axis=0)
    first = np.flatnonzero(begins)
    before = total[first] - values[first]
    sums: NDArray[np.int64] = total - before[np.cumsum(begins) - 1]
    return sums


def unlike_recent(ring: NDArray[np.integer], row: Ints, values: NDArray[np.integer]) -> Bools:
    """Which values differ from those that came shortly before them in their row; the ring goes on.

    Args:
        ring: (rows, width) the latest values of each row, oldest first; changed.
        row: (n,) rows, in ascending order.
        values: (n,) known values: none equals the blank of the ring.
    """
    n, width = len(row), ring.shape[1]
    if not n:
        return np.zeros(0, np.bool_)
    begins = changes(row)
    first = np.flatnonzero(begins)
    rows = row[first]
    # Each row's values behind those of the ring.
    group = np.cumsum(begins)
    place = np.arange(n) + width * group
    line = np.empty(n + width * len(first), values.dtype)
    behind = np.arange(-width, 0)
    line[place[first][:, None] + behind] = ring[rows]
    line[place] = values
    seen = np.zeros(n, np.bool_)
    for back in range(1, width + 1):
        seen |= line[place - back] == values
    end = place[np.append(first[1:], n) - 1] + 1
    ring[rows] = line[end[:, None] + behind]
    return ~seen


def bits(hashes: Hashes) -> Hashes:
    """(n,) a bit for each hash, of 64; none for UNKNOWN. Joined by "or", they are a set in any order."""
    known = (hashes != UNKNOWN).astype(np.uint64)
    bit: Hashes = known << (hashes & np.uint64(63))
    return bit


def lives(batch: EventBatch, scope: Scope) -> Iterator[EventBatch]:
    """The batch, cut where an entity begins its life in a row that another one had earlier in the batch."""
    entity = batch.entities[scope]
    while entity.new.any():
        born = np.flatnonzero(entity.new)
        order = np.argsort(entity.row, kind="stable")
        first = np.empty(len(order), np.bool_)
        first[order] = changes(entity.row[order])
        again = born[~first[born]]
        if not len(again):
            break
        begun, batch = batch.cut([int(again[0])])
        yield begun
        entity = batch.entities[scope]
    yield batch


def changes(values: NDArray[np.integer]) -> Bools:
    """(n,) where a value differs from the one before; the first does."""
    changes = np.ones(len(values), np.bool_)
    np.not_equal(values[1:], values[:-1], out=changes[1:])
    return changes


def _rank(begins: Bools) -> Ints:
    """(n,) distance from the latest begin."""
    number = np.arange(len(begins))
    rank: Ints = number - np.maximum.accumulate(number * begins)
    return rank


def _by_rank(rank: Ints) -> Iterator[Ints]:
    last = int(rank.max())
    if last == 0:
        yield np.arange(len(rank))
        return
    by_rank = np.argsort(rank, kind="stable")
    edges = np.searchsorted(rank[by_rank], np.arange(last + 2))
    for low, high in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        yield by_rank[low:high]
