"""The numbers of events: which there are, within which bounds, and where they lie.

Columns of one type lie in one block, so that choosing, joining, packing and checking events takes a call per
type: with a call for each of thirty columns, most of the time of a small batch went into calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from burnfuse.event import MAX_NUMBER
from detectors.types import Finish, Kind, ToolKind
from stream.text import LAST_SECOND

MOST_SPENT = 10**14
"""Cap of one event's nano-dollars ($100,000) and thousandths of tokens: absurd values that the contract
still allows must not overflow the sums."""

MAX_PARTITIONS = 100_000
"""Far more than a topic has."""

LAST_MS = 1000 * LAST_SECOND
"""The last moment at which a record can have been logged, ms since 1970."""

NUMBERS: Mapping[str, np.dtype[Any]] = {
    # Hashes of ids: what tells entities apart. Texts are for people, and are looked at only in findings.
    "event": np.dtype("<u8"),
    "run": np.dtype("<u8"),  # of the agent and its run together: run ids may be used again by other agents
    "root": np.dtype("<u8"),
    "ts": np.dtype("<f8"),  # event time, s
    "kind": np.dtype("u1"),  # detectors.types.Kind
    "failed": np.dtype("?"),
    "http_status": np.dtype("<i2"),  # 0 is unknown
    "error": np.dtype("<u8"),  # class of the failure; 0 where it did not fail
    "finish": np.dtype("u1"),  # detectors.types.Finish
    "signature": np.dtype("<u8"),
    "result": np.dtype("<u8"),
    "empty": np.dtype("?"),  # the result was observed and holds nothing
    "tool_id": np.dtype("<u8"),
    "tool_kind": np.dtype("u1"),  # detectors.types.ToolKind
    "target": np.dtype("<u8"),
    "round": np.dtype("<u8"),
    "sender": np.dtype("<u8"),
    "receiver": np.dtype("<u8"),
    "model": np.dtype("<u8"),
    "group": np.dtype("<u8"),
    "input": np.dtype("<i8"),  # tokens read; -1 where unknown
    "cached": np.dtype("<i8"),  # of which from the cache; -1 where unknown
    "output": np.dtype("<i8"),  # tokens written; -1 where unknown
    "tokens": np.dtype("<i8"),  # effective tokens in thousandths, 0 where unknown
    "cost": np.dtype("<i8"),  # nano-dollars, 0 where unknown
    "in_tree": np.dtype("?"),  # the producer says what tree of runs the event belongs to
    "source": np.dtype("<i4"),  # partition of the input topic, or number of the input file
    "position": np.dtype("<i8"),  # offset, or line
    "item": np.dtype("<i4"),  # which of the record's events it is, from 0
    "log_ms": np.dtype("<i8"),  # when the record was logged, ms since 1970; 0 in files
    "sequence": np.dtype("<i8"),  # order among records logged in the same millisecond; 0 is unknown
}

BOUNDS: Mapping[str, tuple[float, float]] = {
    "ts": (0, LAST_SECOND),
    "kind": (0, max(Kind)),
    "http_status": (0, 999),
    "finish": (0, max(Finish)),
    "tool_kind": (0, max(ToolKind)),
    "input": (-1, MAX_NUMBER),
    "cached": (-1, MAX_NUMBER),
    "output": (-1, MAX_NUMBER),
    "tokens": (0, MOST_SPENT),
    "cost": (0, MOST_SPENT),
    "source": (0, MAX_PARTITIONS - 1),
    "position": (0, (1 << 43) - 1),  # with the item below it, it fits into 64 bits; see `stream.sequencer`
    "item": (0, (1 << 20) - 1),
    "log_ms": (-1, LAST_MS),  # -1 where Kafka does not say
    "sequence": (0, (1 << 63) - 1),
}
"""What ingest makes lies within. A damaged number must not get as far as the detectors: whichever fails on it is
switched off."""

_ROWS = {dtype: [name for name, other in NUMBERS.items() if other == dtype] for dtype in NUMBERS.values()}
"""Type -> the columns of its block, in their order there."""
_PLACE = {name: (block, row) for block, names in enumerate(_ROWS.values()) for row, name in enumerate(names)}

Block = NDArray[Any]
"""(columns, n) numbers of one type."""


class Numbers(Mapping[str, NDArray[Any]]):
    """The number columns of n events; those who ask for a column see the block it lies in.

    Args:
        blocks: One for each type in NUMBERS.
    """

    __slots__ = ("_blocks",)

    def __init__(self, blocks: Sequence[Block]) -> None:
        self._blocks = blocks

    @classmethod
    def of(cls, columns: Mapping[str, Any]) -> Numbers:
        """The columns named in NUMBERS, copied."""
        n = len(columns["ts"])
        blocks = [np.empty((len(names), n), dtype) for dtype, names in _ROWS.items()]
        for name, (block, row) in _PLACE.items():
            blocks[block][row] = columns[name]
        return cls(blocks)

    @classmethod
    def empty(cls) -> Numbers:
        """Those of no events."""
        return cls.of(dict.fromkeys(NUMBERS, ()))

    def __getitem__(self, name: str) -> NDArray[Any]:
        block, row = _PLACE[name]
        column: NDArray[Any] = self._blocks[block][row]
        return column

    def __iter__(self) -> Iterator[str]:
        return iter(NUMBERS)

    def __len__(self) -> int:
        return len(NUMBERS)

    @property
    def events(self) -> int:
        """How many events they are of."""
        return len(self._blocks[0][0])

    def take(self, index: NDArray[np.integer[Any]]) -> Numbers:
        """Those of the chosen events, in that order."""
        return self._each(lambda block: block.take(index, axis=1))

    def cut(self, low: int, high: int) -> Numbers:
        """Those of events low .. high - 1, where they lie."""
        return self._each(lambda block: block[:, low:high])

    def fixed(self) -> Numbers:
        """The same, which nobody can change by what they get here."""
        fixed = self._each(lambda block: block[:])
        for block in fixed._blocks:
            block.flags.writeable = False
        return fixed

    @classmethod
    def join(cls, parts: Sequence[Numbers]) -> Numbers:
        """All parts' numbers, one after the other; a single part as it is."""
        if len(parts) == 1:
            return parts[0]
        return cls([np.concatenate(blocks, axis=1) for blocks in zip(*(part._blocks for part in parts), strict=True)])

    def encode(self) -> list[bytes]:
        """The blocks."""
        return [block.tobytes() for block in self._blocks]

    @classmethod
    def decode(cls, blocks: Sequence[bytes]) -> Numbers:
        """The numbers that `encode` gave.

        Raises:
            ValueError: the blocks are not such.
        """
        # Copies, because arrays from bytes are read-only and cannot be sorted in place.
        made = cls(
            [
                np.frombuffer(raw, dtype).reshape(len(names), len(raw) // (len(names) * dtype.itemsize)).copy()
                for (dtype, names), raw in zip(_ROWS.items(), blocks, strict=True)
            ]
        )
        if len({block.shape[1] for block in made._blocks}) > 1:
            raise ValueError("columns differ in length")
        return made

    def out_of_bounds(self) -> str:
        """The first column with a value that ingest does not make; "" if there is none."""
        if not self.events:
            return ""
        wrong: set[str] = set()
        for block, (dtype, names) in zip(self._blocks, _ROWS.items(), strict=True):
            if dtype not in _LIMITS:
                continue
            low, high = _LIMITS[dtype]
            values = block.view(low.dtype)
            # So written that a time which is no number is out of bounds, too.
            within = (values >= low) & (values <= high)
            if not within.all():
                wrong |= {names[row] for row in (~within).nonzero()[0].tolist()}
        return next((name for name in NUMBERS if name in wrong), "")

    def _each(self, change: Callable[[Block], Block]) -> Numbers:
        return Numbers([change(block) for block in self._blocks])


_TRUTH = np.dtype("?")
_LIMITS = {
    # A truth value that was damaged is a byte above 1.
    dtype: tuple(
        np.array([[BOUNDS.get(name, (0, 1))[side]] for name in names], "u1" if dtype == _TRUTH else dtype)
        for side in (0, 1)
    )
    for dtype, names in _ROWS.items()
    if dtype == _TRUTH or all(name in BOUNDS for name in names)
}
"""Type of which all columns have bounds -> the least and the greatest value of each, in a column."""
