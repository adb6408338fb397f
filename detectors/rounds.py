"""Vectorising over entities: the k-th event, or the k-th second, of every entity is processed at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

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
    if not len(row):
        return
    order = row.argsort(kind="stable")
    yield from _rounds(changes(row.take(order)), order)


def ticks(ts: Floats, length_s: float) -> Ints:
    """(n,) number of the tick of `length_s` that each time lies in, since 1970.

    >>> ticks(np.array([59.9, 60.0]), 60.0).tolist()
    [0, 1]
    """
    # Of what is not negative the whole part is the floor.
    number: Ints = (np.minimum(np.maximum(ts, 0.0), _LAST_S) / length_s).astype(np.int64)
    return number


@dataclass(frozen=True, slots=True)
class Segments:
    """Events, row by row, cut where their row's clock moves on.

    A row that has thousands of events within one tick has one segment then, and takes one round. Sums within
    a segment must not depend on where it is cut, as the next batch may go on in the same tick: they are made
    of integers.
    """

    starts: Ints
    """(m,) position of each segment's first event."""
    sizes: Ints
    """(m,) events of each."""
    row: Ints
    """(m,)"""
    tick: Ints
    """(m,) the row's newest tick; late events belong to it."""

    def rounds(self) -> Iterator[Ints]:
        """Yields arrays of segments; the k-th holds the k-th segment of every row."""
        return _rounds(changes(self.row))

    def sums(self, values: NDArray[np.int64]) -> NDArray[np.int64]:
        """(m, ...) sums per segment of (n, ...) integers."""
        total: NDArray[np.int64] = np.add.reduceat(values, self.starts, axis=0)
        return total

    def spread(self, values: Any) -> Any:
        """(n, ...) each segment's own of (m, ...) values, for its events."""
        return values.repeat(self.sizes, axis=0)

    def events(self, chosen: Ints) -> tuple[Ints, Ints]:
        """The events of some segments: (k,) index into `chosen`, (k,) position."""
        sizes = self.sizes[chosen]
        of = np.arange(len(chosen)).repeat(sizes)
        begins = np.cumsum(sizes) - sizes
        return of, (self.starts[chosen] - begins)[of] + np.arange(len(of))


def segments(row: Ints, tick: Ints, newest: NDArray[np.integer]) -> Segments:
    """Events cut into segments.

    Args:
        row: (n,) row of each event, n > 0; row by row, each row's events in order.
        tick: (n,) tick each event lies in, from 0 to 2^40 - 1.
        newest: (rows,) newest tick of each row before these events, -1 for none.

    >>> found = segments(np.array([3, 5, 5, 5]), np.array([1, 1, 2, 1]), np.full(6, -1))
    >>> found.starts.tolist(), found.row.tolist(), found.tick.tolist()
    ([0, 1, 2], [3, 5, 5], [1, 1, 2])
    """
    begins = changes(row)
    first = begins.nonzero()[0]
    rows = row.take(first)
    opens = np.maximum(tick.take(first), newest.take(rows))
    if tick.max() <= opens.min():  # no clock moves on within these events: they are few, or their ticks long
        return Segments(first, sizes(first, len(row)), rows, opens.astype(np.int64, copy=False))
    clock = tick.astype(np.int64)
    clock[first] = opens
    # One after the other, the clocks of all rows are a single one that never goes back.
    lift = begins.cumsum() << 40
    clock += lift
    np.maximum.accumulate(clock, out=clock)
    starts = changes(clock).nonzero()[0]
    return Segments(starts, sizes(starts, len(row)), row.take(starts), (clock - lift).take(starts))


def sizes(starts: Ints, n: int) -> Ints:
    """(m,) how many of n events lie from each start to the next."""
    ends = np.empty_like(starts)
    ends[:-1] = starts[1:]
    ends[-1] = n
    return ends - starts


def running(values: NDArray[np.int64], begins: Bools) -> NDArray[np.int64]:
    """(n, ...) sums of (n, ...) integers from the latest begin on, each event's own value included.

    >>> running(np.array([1, 2, 4, 8]), np.array([True, False, True, False])).tolist()
    [1, 3, 4, 12]
    """
    total = np.cumsum(values, axis=0)
    first = begins.nonzero()[0]
    before = total[first] - values[first]
    sums: NDArray[np.int64] = total - before.repeat(sizes(first, len(values)), axis=0)
    return sums


def unlike_recent(ring: NDArray[np.integer], row: Ints, values: NDArray[np.integer]) -> Bools:
    """Which values differ from those that came shortly before them in their row; the ring goes on.

    Args:
        ring: (rows, width) the latest values of each row, oldest first; changed.
        row: (n,) row of each value; row by row, each row's in order.
        values: (n,) known values: none equals the blank of the ring.
    """
    n, width = len(row), ring.shape[1]
    if not n:
        return np.zeros(0, np.bool_)
    begins = changes(row)
    first = begins.nonzero()[0]
    rows, count = row[first], sizes(first, n)
    # A line in which each row's values stand behind those of the ring.
    place = np.arange(n) + width * begins.cumsum()
    line = np.empty(n + width * len(first), values.dtype)
    behind = np.arange(-width, 0)
    before = place[first]
    line[before[:, None] + behind] = ring[rows]
    line[place] = values
    same = line[place[:, None] + behind] == values[:, None]
    ring[rows] = line[(before + count)[:, None] + behind]
    fresh: Bools = ~same.any(1)
    return fresh


def bits(hashes: Hashes) -> Hashes:
    """(n,) a bit for each hash, of 64; none for UNKNOWN. Joined by "or", they are a set in any order."""
    known = (hashes != UNKNOWN).astype(np.uint64)
    bit: Hashes = known << (hashes & np.uint64(63))
    return bit


def lives(batch: EventBatch, scope: Scope) -> Iterator[EventBatch]:
    """The batch, cut where an entity begins its life in a row that another one had earlier in the batch."""
    entity = batch.entities[scope]
    while entity.new.any():
        place = np.arange(len(batch))
        # Where a row occurs more than once, the value written last stays: that of its first event.
        first = np.empty(int(entity.row.max()) + 1, np.int64)
        first[entity.row[::-1]] = place[::-1]
        again = (entity.new & (first[entity.row] < place)).nonzero()[0]
        if not len(again):
            break
        begun, batch = batch.cut([int(again[0])])
        yield begun
        entity = batch.entities[scope]
    yield batch


def changes(values: NDArray[np.integer]) -> Bools:
    """(n,) where a value differs from the one before; the first does."""
    differs = np.empty(len(values), np.bool_)
    differs[:1] = True
    np.not_equal(values[1:], values[:-1], out=differs[1:])
    return differs


def rank(begins: Bools) -> Ints:
    """(n,) distance from the latest begin; the first event is one.

    >>> rank(np.array([True, False, False, True])).tolist()
    [0, 1, 2, 0]
    """
    number = np.arange(len(begins))
    distance: Ints = number - np.maximum.accumulate(number * begins)
    return distance


def _rounds(begins: Bools, order: Ints | None = None) -> Iterator[Ints]:
    """Positions, of which the k-th lot lies k behind the latest begin; `order`: of each event, if not as they stand."""
    if begins.all():  # as often
        yield np.arange(len(begins))
        return
    distance = rank(begins)
    if order is not None:
        distance[order] = distance.copy()
    by_rank = np.argsort(distance, kind="stable")
    edges = np.searchsorted(distance[by_rank], np.arange(int(distance.max()) + 2))
    for low, high in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        yield by_rank[low:high]
