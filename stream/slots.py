"""64-bit ids to rows: an open-addressing hash table in numpy, asked and filled a batch at a time."""

from __future__ import annotations

import numpy as np

from detectors.types import Bools, Hashes, Ints

_EMPTY, _GONE = np.uint64(0), np.uint64(1)
_SPREAD = np.uint64(0x9E3779B97F4A7C15)
"""2^64 over the golden ratio (Knuth, TAOCP 6.4): spreads ids whose low or high bits are alike."""
_SMALLEST = 1 << 10


class SlotMap:
    """Rows (below 2^31) by 64-bit id; about 24 to 96 bytes per id.

    Linear probing, at most half full. The ids 0 and 1 mark free slots; whoever makes ids never makes these.
    """

    def __init__(self) -> None:
        self._used = self._gone = 0
        self._allocate(_SMALLEST)

    def __len__(self) -> int:
        return self._used

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self._ids.nbytes + self._rows.nbytes

    def find(self, ids: Hashes) -> Ints:
        """(n,) rows of (n,) ids; -1 where an id is not known."""
        rows = np.full(len(ids), -1, np.int64)
        left = np.arange(len(ids))
        wanted, place = ids, self._home(ids)
        while len(left):
            there = self._ids[place]
            hit = there == wanted
            rows[left[hit]] = self._rows[place[hit]]
            on = ~hit & (there != _EMPTY)
            left, wanted, place = left[on], wanted[on], (place[on] + 1) & self._mask
        return rows

    def ids(self) -> Hashes:
        """All known ids, in no order."""
        return self._ids[self._ids > _GONE]

    def add(self, ids: Hashes, rows: Ints) -> None:
        """Takes in (n,) ids, all different and none known, with their rows."""
        if 2 * (self._used + self._gone + len(ids)) > len(self._ids):
            self._rebuild(self._used + len(ids))
        self._used += len(ids)
        place = self._home(ids)
        while len(ids):
            free = self._ids[place] == _EMPTY
            self._ids[place[free]] = ids[free]
            # Of several for one slot the last has it; the others go on.
            lost = self._ids[place] != ids
            won = ~lost
            self._rows[place[won]] = rows[won]
            ids, rows, place = ids[lost], rows[lost], (place[lost] + 1) & self._mask

    def put(self, ids: Hashes, rows: Ints) -> None:
        """Other rows for (n,) known ids, all different."""
        place = self._home(ids)
        while len(ids):
            hit: Bools = self._ids[place] == ids
            self._rows[place[hit]] = rows[hit]
            ids, rows, place = ids[~hit], rows[~hit], (place[~hit] + 1) & self._mask

    def remove(self, ids: Hashes) -> None:
        """Forgets (n,) known ids, all different."""
        place = self._home(ids)
        self._used -= len(ids)
        self._gone += len(ids)
        while len(ids):
            hit = self._ids[place] == ids
            self._ids[place[hit]] = _GONE
            ids, place = ids[~hit], (place[~hit] + 1) & self._mask

    def clear(self) -> None:
        """Forgets all."""
        self._ids[:] = _EMPTY
        self._used = self._gone = 0

    def _home(self, ids: Hashes) -> Ints:
        with np.errstate(over="ignore"):
            return ((ids * _SPREAD) >> self._shift).astype(np.int64)

    def _allocate(self, size: int) -> None:
        self._ids = np.zeros(size, np.uint64)
        self._rows = np.zeros(size, np.int32)
        self._mask = size - 1
        self._shift = np.uint64(65 - size.bit_length())

    def _rebuild(self, entries: int) -> None:
        kept = self._ids > _GONE
        ids, rows = self._ids[kept], self._rows[kept].astype(np.int64)
        self._used = self._gone = 0
        self._allocate(max(_SMALLEST, 1 << (4 * entries - 1).bit_length()))
        self.add(ids, rows)


def first_of(ids: Hashes) -> Bools:
    """(n,) true where an id occurs for the first time among the n."""
    ordered = np.sort(ids)
    if not (ordered[1:] == ordered[:-1]).any():  # as nearly always
        return np.ones(len(ids), bool)
    first = np.zeros(len(ids), bool)
    first[np.unique(ids, return_index=True)[1]] = True
    return first
