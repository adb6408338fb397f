"""Which row belongs to which entity, how long entities live, and what they have spent."""

from __future__ import annotations

import numpy as np

from detectors.base import Table, TablePage
from detectors.rounds import changes, sizes
from detectors.types import Bools, Entity, Floats, Hashes, Ints
from stream.slots import SlotMap


class Entities:
    """Rows of one scope's entities.

    A row is given out when an entity first appears, and taken back by `sweep`. An entity that was silent
    for longer than its time to live begins anew even if no sweep came by, so results do not depend on
    when sweeps happen.

    Args:
        ttl_s: Time to live, s of event time.
    """

    def __init__(self, ttl_s: float) -> None:
        self._ttl_s = ttl_s
        self._row_of = SlotMap()
        self._free = np.empty(0, np.int64)
        self._rows = 0
        self._table = Table(
            {
                "id": (np.uint64, 0),  # 0: the row is free
                "last_ts": (np.float64, -np.inf),
                "touched": (np.float64, -np.inf),  # stream clock at the latest event
                "tokens": (np.int64, 0),
                "cost": (np.int64, 0),
            }
        )
        self._changed = np.zeros(self._table.rows, bool)

    def __len__(self) -> int:
        return len(self._row_of)

    @property
    def rows(self) -> int:
        """Rows ever given out: state must exist for 0 .. rows - 1."""
        return self._rows

    def assign(self, ids: Hashes) -> Ints:
        """(n,) rows of n entities by their hashes; unknown ones get a row."""
        rows = self._row_of.find(ids)
        unknown = (rows < 0).nonzero()[0]
        if len(unknown):
            order = ids.take(unknown).argsort(kind="stable")
            unknown = unknown.take(order)
            wanted = ids.take(unknown)
            begins = changes(wanted)
            first = begins.nonzero()[0]
            fresh = wanted.take(first)
            given = np.empty(len(fresh), np.int64)
            # In order of appearance, so that the same stream gives the same rows.
            given[order.take(first).argsort()] = self._give(len(fresh))
            self._row_of.add(fresh, given)
            self._table["id"][given] = fresh
            rows[unknown] = given.take(begins.cumsum() - 1)
        return rows

    def find(self, ids: Hashes) -> Ints:
        """(n,) rows of n known entities; -1 for the others."""
        return self._row_of.find(ids)

    def _give(self, n: int) -> Ints:
        reused, self._free = self._free[:n], self._free[n:]
        new = np.arange(self._rows, self._rows + n - len(reused))
        self._rows += len(new)
        self._reserve()
        given = np.concatenate([reused, new])
        self._changed[given] = True
        return given

    def _reserve(self) -> None:
        self._table.reserve(self._rows)
        more = self._table.rows - len(self._changed)
        if more > 0:
            self._changed = np.concatenate([self._changed, np.zeros(more, bool)])

    def newest(self, rows: Ints, ts: Floats) -> Floats:
        """(n,) the newest event time each event's entity had seen before that event, s."""
        return _running_max(_Groups(rows), ts, self._table["last_ts"].take(rows))

    def view(
        self, rows: Ints, ts: Floats, tokens: Ints, cost: Ints, clocks: Floats, newest: Floats | None = None
    ) -> Entity:
        """The columns detectors see; remembers the events.

        Args:
            rows, ts, tokens, cost: (n,) of the events, in order.
            clocks: (n,) stream clock at each of them, s.
            newest: (n,) what `newest` said of exactly these events, if it was asked.
        """
        table, groups = self._table, _Groups(rows)
        before = _running_max(groups, ts, table["last_ts"].take(rows)) if newest is None else newest
        new: Bools = ~(ts - before <= self._ttl_s)  # -inf (never seen) is new
        # Of an entity's events the latest says all; others would be written for nothing.
        last = groups.last
        latest = rows.take(last)
        total_tokens, total_cost = _running_sums(groups, rows, new, (tokens, table["tokens"]), (cost, table["cost"]))
        table["last_ts"][latest] = np.maximum(before, ts).take(last)
        table["tokens"][latest] = total_tokens.take(last)
        table["cost"][latest] = total_cost.take(last)
        table["touched"][latest] = clocks.take(last) if isinstance(clocks, np.ndarray) else clocks
        self._changed[latest] = True
        return Entity(rows, new, total_tokens, total_cost)

    def touch(self, rows: Ints, clock: float) -> None:
        """These entities are alive at `clock`, s."""
        self._table["touched"][rows] = clock
        self._changed[rows] = True

    def sweep(self, clock: float) -> Ints:
        """Takes back the rows of entities that have been silent for twice their time to live.

        Measured on the stream clock, which a single wrong timestamp cannot move; see `Engine`.
        """
        used = np.flatnonzero(self._table["id"][: self._rows])
        touched = self._table["touched"][used]
        # Whoever came before the clock stood counts as seen now.
        unknown = used[np.isneginf(touched)]
        self._table["touched"][unknown] = clock
        dead: Ints = used[np.isfinite(touched) & (clock - touched > 2 * self._ttl_s)]
        self._row_of.remove(self._table["id"][dead])
        self._free = np.concatenate([self._free, dead])
        self._table.clear(dead)
        self._changed[unknown] = True
        self._changed[dead] = True
        return dead

    # ------------------------------------------------------------------------------ saved state

    def changed(self) -> Ints:
        """Rows that differ from what they were when this was asked before, ascending."""
        rows = np.flatnonzero(self._changed)
        self._changed[rows] = False
        return rows

    def all_changed(self) -> None:
        """All rows are to be saved anew."""
        self._changed[: self._rows] = True

    def dump(self, rows: Ints) -> TablePage:
        """These rows as plain data."""
        return self._table.dump(rows)

    def load(self, rows: Ints, page: TablePage) -> None:
        """Takes a page of `dump` into the same rows, of a state that is as yet empty; `loaded` comes last.

        Raises:
            StateError: the page is damaged.
        """
        columns = self._table.decode(len(rows), page)
        self._rows = max(self._rows, int(rows.max(initial=-1)) + 1)
        self._reserve()
        self._table.write(rows, columns)

    def loaded(self) -> None:
        """All rows are there: finds out which of them are free."""
        ids = self._table["id"][: self._rows]
        used = np.flatnonzero(ids)
        self._row_of = SlotMap()
        self._row_of.add(ids[used], used)
        self._free = np.flatnonzero(ids == 0)


class _Groups:
    """Events by row: a stable order in which they stand row by row, and where each row's begin in it."""

    __slots__ = ("first", "order", "starts")

    def __init__(self, rows: Ints) -> None:
        self.order = rows.argsort(kind="stable")
        self.first = changes(rows.take(self.order))
        self.starts = self.first.nonzero()[0]

    @property
    def last(self) -> Ints:
        """(m,) positions of each row's last event."""
        ends = np.empty_like(self.starts)
        ends[:-1] = self.starts[1:]
        ends[-1:] = len(self.order)
        return self.order[ends - 1]


def _running_max(groups: _Groups, ts: Floats, start: Floats) -> Floats:
    """(n,) highest ts of the same row before each item, or `start` if that is higher.

    >>> rows = _Groups(np.array([1, 2, 1, 1]))
    >>> _running_max(rows, np.array([5.0, 1, 3, 9]), np.array([0.0, 7, 0, 0])).tolist()
    [0.0, 7.0, 5.0, 5.0]
    """
    n = len(ts)
    if n == 0:
        return ts
    order, starts = groups.order, groups.starts
    by_row, start = ts.take(order), start.take(order)
    # What came before an item: its predecessor in the group, or the group's start value.
    before = np.empty(n)
    before[1:] = by_row[:-1]
    before[starts] = start.take(starts)
    result = np.empty(n)
    back = before[1:] < before[:-1]
    back &= ~groups.first[1:]
    if back.any():
        before = np.maximum(before, start)
        # Ranks make the maximum within groups one exact integer accumulation over all of them.
        group = (np.cumsum(groups.first) - 1) * n
        values, rank = np.unique(before, return_inverse=True)
        result[order] = values[np.maximum.accumulate(group + rank) - group]
    else:
        # Mostly each row's events come in the order of time.
        result[order] = np.maximum(before, start)
    return result


def _running_sums(groups: _Groups, rows: Ints, reset: Bools, *columns: tuple[Ints, Ints]) -> list[Ints]:
    """(n,) sums of columns x over the same row up to each item, from the row's `start` on, or from 0 where `reset`.

    Args:
        columns: x (n,), and `start`, by row.

    >>> rows, x, start = np.array([1, 2, 1]), np.array([5, 1, 3]), np.array([0, 10, 20])
    >>> [sums.tolist() for sums in _running_sums(_Groups(rows), rows, np.zeros(3, bool), (x, start))]
    [[15, 21, 18]]
    """
    n, order = len(rows), groups.order
    if n == 0:
        return [x for x, _ in columns]
    zero = reset.take(order)
    at = (groups.first | zero).nonzero()[0]
    count, goes_on = sizes(at, n), ~zero.take(at)
    row = rows.take(order.take(at))
    sums = []
    for x, start in columns:
        by_row = x.take(order)
        total = by_row.cumsum()
        base = start.take(row) * goes_on - (total.take(at) - by_row.take(at))
        result = np.empty(n, np.int64)
        result[order] = total + base.repeat(count)
        sums.append(result)
    return sums
