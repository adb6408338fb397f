"""Events as columns: what ingest makes, what travels on the inner topics, what engines take."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias, overload

import msgspec
import numpy as np
from numpy.typing import NDArray

from burnfuse.event import MAX_NUMBER
from detectors.types import Finish, Ints, Kind, ToolKind
from stream.errors import PackedRecordError
from stream.text import LAST_SECOND

TEXTS = ("event_id", "agent_id", "run_id", "root_run_id", "parent_run_id", "to_agent_id", "to_run_id", "tool")
"""Text columns; "" is absent."""

MOST_SPENT = 10**14
"""Cap of one event's nano-dollars ($100,000) and thousandths of tokens: absurd values that the contract
still allows must not overflow the sums."""

MAX_PARTITIONS = 100_000
"""Far more than a topic has."""

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
    "position": (0, 1 << 62),
    "log_ms": (-1, (1 << 63) - 1),  # what producers say, or -1
    "sequence": (0, (1 << 63) - 1),
}
"""What ingest makes lies within. A damaged number must not get as far as the detectors: whichever fails on it is
switched off."""

_SIZE = np.dtype("<u4")
_FORMAT = 3
"""Version of the packed record; raise it with every change to the columns."""


class _Blob:
    """Texts as they travel: all in one piece, with the length of each in bytes. Decoded when looked at."""

    __slots__ = ("_data", "_ends")

    def __init__(self, sizes: NDArray[Any], data: bytes) -> None:
        self._data, self._ends = data, np.cumsum(sizes, dtype=np.int64)

    @classmethod
    def encode(cls, texts: Sequence[str]) -> tuple[bytes, bytes]:
        """The sizes and the data."""
        whole = "".join(texts)
        if whole.isascii():
            return np.fromiter(map(len, texts), _SIZE, len(texts)).tobytes(), whole.encode()
        pieces = [text.encode() for text in texts]
        return np.fromiter(map(len, pieces), _SIZE, len(pieces)).tobytes(), b"".join(pieces)

    @classmethod
    def decode(cls, sizes: bytes, data: bytes) -> _Blob:
        """The texts that `encode` gave.

        Raises:
            ValueError: the sizes are not those of the data.
        """
        blob = cls(np.frombuffer(sizes, _SIZE), data)
        if blob._end(len(blob) - 1) != len(data):
            raise ValueError("sizes do not fit the text")
        return blob

    def _end(self, i: int) -> int:
        return int(self._ends[i]) if i >= 0 else 0

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, i: int) -> str:
        return self._data[self._end(i - 1) : self._end(i)].decode(errors="replace")


_Texts: TypeAlias = "Sequence[str] | _Blob"


class TextColumn(Sequence[str]):
    """n texts of one column, looked up when asked for."""

    __slots__ = ("_name", "_texts")

    def __init__(self, texts: Texts, name: str) -> None:
        self._texts, self._name = texts, name

    def __len__(self) -> int:
        return len(self._texts)

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> Sequence[str]: ...
    def __getitem__(self, i: int | slice) -> str | Sequence[str]:
        if isinstance(i, slice):
            return TextColumn(self._texts.take(np.arange(len(self))[i]), self._name)
        return self._texts.at(self._name, i)

    def __iter__(self) -> Iterator[str]:
        return iter(self._texts[self._name])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]  # as lists are


class Texts(Mapping[str, list[str]]):
    """The text columns of n events: which rows of which stores. Choosing events moves no text."""

    __slots__ = ("_part", "_row", "_stores")

    def __init__(self, stores: Sequence[Mapping[str, _Texts]], part: Ints, row: Ints) -> None:
        self._stores, self._part, self._row = stores, part, row

    @classmethod
    def of(cls, columns: Mapping[str, _Texts]) -> Texts:
        """Events' texts, one after the other."""
        n = len(columns[TEXTS[0]])
        return cls([columns], np.zeros(n, np.int64), np.arange(n))

    def __len__(self) -> int:
        return len(self._row)

    def __iter__(self) -> Iterator[str]:
        return iter(TEXTS)

    def __getitem__(self, name: str) -> list[str]:
        columns = [store[name] for store in self._stores]
        if len(columns) == 1:
            column = columns[0]
            return [column[i] for i in self._row.tolist()]
        return [columns[part][i] for part, i in zip(self._part.tolist(), self._row.tolist(), strict=True)]

    def at(self, name: str, i: int) -> str:
        """One event's text."""
        return self._stores[int(self._part[i])][name][int(self._row[i])]

    def take(self, index: NDArray[Any]) -> Texts:
        """The chosen events' texts."""
        return Texts(self._stores, self._part[index], self._row[index])

    @classmethod
    def join(cls, parts: Sequence[Texts]) -> Texts:
        """All parts' texts, one after the other."""
        stores: list[Mapping[str, _Texts]] = []
        part = []
        for texts in parts:
            part.append(texts._part + len(stores))
            stores += texts._stores
        return cls(stores, np.concatenate(part), np.concatenate([texts._row for texts in parts]))


class Columns:
    """n events; `texts` and `numbers` hold exactly the columns named in TEXTS and NUMBERS."""

    __slots__ = ("numbers", "texts")

    def __init__(self, texts: Texts | Mapping[str, _Texts], numbers: dict[str, NDArray[Any]]) -> None:
        self.texts = texts if isinstance(texts, Texts) else Texts.of(texts)
        self.numbers = numbers

    def __len__(self) -> int:
        return len(self.numbers["ts"])

    def text(self, name: str) -> TextColumn:
        """A text column for those who will look at few of its texts."""
        return TextColumn(self.texts, name)

    @classmethod
    def empty(cls) -> Columns:
        """No events."""
        return cls({name: [] for name in TEXTS}, {name: np.empty(0, dtype) for name, dtype in NUMBERS.items()})

    def take(self, index: NDArray[Any]) -> Columns:
        """The chosen events, in that order; a boolean mask works too."""
        if index.dtype == bool:
            index = np.flatnonzero(index)
        return Columns(self.texts.take(index), {name: column[index] for name, column in self.numbers.items()})

    def cut(self, low: int, high: int) -> Columns:
        """Events low .. high - 1."""
        piece: Any = slice(low, high)
        return Columns(self.texts.take(piece), {name: column[piece] for name, column in self.numbers.items()})

    @classmethod
    def join(cls, parts: Sequence[Columns]) -> Columns:
        """All parts' events, one after the other."""
        if len(parts) == 1:
            return parts[0]
        if not parts:
            return cls.empty()
        texts = Texts.join([part.texts for part in parts])
        return cls(texts, {name: np.concatenate([part.numbers[name] for part in parts]) for name in NUMBERS})


# As in BOUNDS.
_Source = Annotated[int, msgspec.Meta(ge=0, lt=MAX_PARTITIONS)]
_Moment = Annotated[int, msgspec.Meta(ge=-1, le=(1 << 63) - 1)]


class _Wire(msgspec.Struct, array_like=True):
    version: int
    progress: dict[_Source, _Moment]
    partitions: Annotated[int, msgspec.Meta(ge=0, le=MAX_PARTITIONS)]
    texts: list[tuple[bytes, bytes]]
    numbers: list[bytes]


@dataclass(slots=True)
class Packed:
    """One record of an inner topic: events of the input topic, and how far its partitions were read.

    Attributes:
        columns: The events; may be none.
        progress: Partition of the input -> everything logged there before this moment (ms since 1970)
            has been passed on. See `stream.sequencer`.
        partitions: How many partitions the input topic has.
    """

    columns: Columns
    progress: dict[int, int]
    partitions: int

    def encode(self) -> bytes:
        """The record's value."""
        texts = [_Blob.encode(self.columns.texts[name]) for name in TEXTS]
        numbers = [np.ascontiguousarray(self.columns.numbers[name], dtype).tobytes() for name, dtype in NUMBERS.items()]
        return _encode(_Wire(_FORMAT, self.progress, self.partitions, texts, numbers))

    @classmethod
    def decode(cls, value: bytes) -> Packed:
        """The record from its value.

        Raises:
            PackedRecordError: the value is damaged or of another version.
        """
        try:
            wire = _decode(value)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise PackedRecordError("a record on an inner topic is damaged; nothing else may write there") from error
        if wire.version != _FORMAT:
            raise PackedRecordError(
                f"a record on an inner topic has format {wire.version}, this worker reads {_FORMAT}; "
                "run the same version of burnfuse on all workers"
            )
        try:
            texts = {name: _Blob.decode(*text) for name, text in zip(TEXTS, wire.texts, strict=True)}
            # A copy, because columns from a buffer are read-only and cannot be sorted in place.
            numbers = {
                name: np.frombuffer(raw, dtype).copy()
                for (name, dtype), raw in zip(NUMBERS.items(), wire.numbers, strict=True)
            }
        except ValueError as error:
            raise PackedRecordError(
                "a record on an inner topic is damaged: columns are missing or cut short"
            ) from error
        n = len(texts["event_id"])
        if {len(column) for column in texts.values()} | {len(column) for column in numbers.values()} != {n}:
            raise PackedRecordError("a record on an inner topic is damaged: its columns differ in length")
        if n and (name := _out_of_bounds(numbers)):
            raise PackedRecordError(f"a record on an inner topic is damaged: {name} is out of bounds")
        return cls(Columns(texts, numbers), wire.progress, wire.partitions)


def _out_of_bounds(numbers: Mapping[str, NDArray[Any]]) -> str:
    """The first column with a value that ingest does not make; "" if there is none."""
    for name, (low, high) in BOUNDS.items():
        column = numbers[name]
        # So written that a time which is no number is out of bounds, too.
        if not (column.min() >= low and column.max() <= high):
            return name
    return next((name for name, c in numbers.items() if c.dtype == bool and c.view(np.uint8).max() > 1), "")


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Wire).decode
