"""64-bit ids to rows: an open-addressing hash table in numpy, asked and filled a batch at a time."""

from __future__ import annotations

import numpy as np

from detectors.types import Bools, Hashes, Ints

_EMPTY, _GONE = np.uint64(0), np.uint64(1)
_SPREAD = np.uint64(0x9E3779B97F4A7C15)
"""2^64 over the golden ratio (Knuth, TAOCP 6.4): spreads ids whose low or high bits are alike."""
_SMALLEST = 1 << 10
_AHEAD = np.arange(1, 9)
_UNKNOWN = np.int64(-1)


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
        place = self._home(ids)
        there = self._ids.take(place)
        rows: Ints = np.where(there == ids, self._rows.take(place), _UNKNOWN)
        left = ((there != ids) & (there != _EMPTY)).nonzero()[0]
        while len(left):
            # Most of what did not lie in its own place lies among the next few, or a free place does.
            ahead = (place.take(left)[:, None] + _AHEAD) & self._mask
            wanted, there = ids.take(left), self._ids.take(ahead)
            ends = (there == wanted[:, None]) | (there == _EMPTY)
            where = (np.arange(len(left)), ends.argmax(axis=1))
            there, ahead = there[where], ahead[where]
            hit = (there == wanted).nonzero()[0]
            rows[left.take(hit)] = self._rows.take(ahead.take(hit))
            left = left[(there != wanted) & (there != _EMPTY)]
            place = place + len(_AHEAD)
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
        while True:
            there = self._ids.take(place)
            self._ids[place] = np.where(there == _EMPTY, ids, there)
            # Of several for one slot the last has it; the others go on.
            won = self._ids.take(place) == ids
            lost = (~won).nonzero()[0]
            if not len(lost):
                self._rows[place] = rows
                return
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
        home: Ints = ((ids * _SPREAD) >> self._shift).view(np.int64)
        return home

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
