"""Events as columns: what ingest makes, what travels on the inner topics, what engines take."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, overload

import msgspec
import numpy as np
from numpy.typing import NDArray

from detectors.rounds import changes, rank
from detectors.types import Ints
from stream.errors import PackedRecordError
from stream.numeric import MAX_PARTITIONS, Numbers

TEXTS = ("event_id", "agent_id", "run_id", "root_run_id", "parent_run_id", "to_agent_id", "to_run_id", "tool")
"""Text columns; "" is absent."""

_SIZE = np.dtype("<u4")
_FORMAT = 6
"""Version of the packed record; raise it with every change to the columns."""

_WORD = np.dtype("<u8")
_WORD_BYTES = _WORD.itemsize
_WORD_SHIFT = 3
"""Dividing by a word's bytes; numpy shifts several times faster than it divides."""
_KEEP = np.array([~0 & (1 << 64) - 1, *((1 << 8 * left) - 1 for left in range(1, _WORD_BYTES))], _WORD)
"""Number of bytes in the last word of a text, 0 for all of them -> mask that keeps these."""


def items(record: Ints) -> Ints:
    """(n,) which of its record's events each event is, from 0.

    Args:
        record: (n,) a number of each event's record; the events of a record follow each other.

    >>> items(np.array([7, 7, 3, 9])).tolist()
    [0, 1, 0, 0]
    """
    return rank(changes(record))


class Words(Sequence[str]):
    """n texts in one piece: as UTF-8, each filled up with zeros to whole words of eight bytes.

    So they are hashed, chosen and sent without a look at the single text.

    Attributes:
        words: (m,) the words of all texts.
        sizes: (n,) bytes of each text.
        first: (n,) where the words of each text begin.
    """

    __slots__ = ("first", "sizes", "words")

    def __init__(self, words: NDArray[np.uint64], sizes: Ints) -> None:
        self.words, self.sizes = words, sizes
        counts = self.counts
        self.first: Ints = np.cumsum(counts) - counts

    @property
    def counts(self) -> Ints:
        """(n,) words of each text."""
        return (self.sizes + (_WORD_BYTES - 1)) >> _WORD_SHIFT

    @classmethod
    def of(cls, texts: Sequence[str]) -> Words:
        """Texts in one piece."""
        n = len(texts)
        data = _utf8("\0".join(texts))
        if len(data) < n:  # all of them are empty, as in many columns
            return cls(np.empty(0, _WORD), np.zeros(n, np.int64))
        ends = np.concatenate((np.flatnonzero(np.frombuffer(data, np.uint8) == 0), [len(data)]))
        if len(ends) == n:
            sizes = ends.copy()
            sizes[1:] -= ends[:-1] + 1
        else:  # none at all, or a text with a NUL character
            sizes = np.fromiter((len(_utf8(text)) for text in texts), np.int64, n)
            ends = np.cumsum(sizes + 1) - 1
        made = cls(np.empty(0, _WORD), sizes)
        counts = made.counts
        # The word that begins at each byte, whatever it holds behind the end of the text.
        spare = data + bytes(_WORD_BYTES)
        anywhere = np.ndarray((len(data) + 1,), _WORD, spare, strides=(1,))
        at = np.repeat(ends - sizes - _WORD_BYTES * made.first, counts)
        at += np.arange(0, _WORD_BYTES * len(at), _WORD_BYTES)
        made.words = anywhere[at]
        filled = sizes > 0
        made.words[(made.first + counts)[filled] - 1] &= _KEEP[sizes[filled] & (_WORD_BYTES - 1)]
        return made

    @classmethod
    def join(cls, parts: Sequence[Words]) -> Words:
        """All parts' texts, one after the other."""
        return cls(np.concatenate([part.words for part in parts]), np.concatenate([part.sizes for part in parts]))

    @classmethod
    def stack(cls, parts: Sequence[Words], columns: int) -> Words:
        """Parts that hold the same columns, each one after the other, as one that holds them so."""
        if len(parts) == 1:
            return parts[0]
        edges = [np.append(part.first[:: len(part) // columns], len(part.words)).tolist() for part in parts]
        words = [
            part.words[edge[column] : edge[column + 1]]
            for column in range(columns)
            for part, edge in zip(parts, edges, strict=True)
        ]
        sizes = np.concatenate([part.sizes.reshape(columns, -1) for part in parts], axis=1)
        return cls(np.concatenate(words), sizes.ravel())

    def head(self, n: int) -> Words:
        """The first n texts."""
        return Words(self.words[: self.counts[:n].sum()], self.sizes[:n])

    def take(self, index: Ints) -> Words:
        """The chosen texts, in that order."""
        taken = Words(self.words[:0], self.sizes[index])
        counts = taken.counts
        taken.words = self.words[np.repeat(self.first[index] - taken.first, counts) + np.arange(counts.sum())]
        return taken

    def find(self, text: str, low: int, high: int) -> Ints:
        """Which of the texts low .. high - 1 are this one: numbers between low and high."""
        wanted = Words.of([text])
        found = low + np.flatnonzero(self.sizes[low:high] == wanted.sizes[0])
        for place, word in enumerate(wanted.words):
            found = found[self.words[self.first[found] + place] == word]
        return found

    def encode(self) -> tuple[bytes, bytes]:
        """The sizes and the words."""
        return self.sizes.astype(_SIZE).tobytes(), self.words.tobytes()

    @classmethod
    def decode(cls, sizes: bytes, words: bytes) -> Words:
        """The texts that `encode` gave.

        Raises:
            ValueError: the sizes are not those of the words.
        """
        made = cls(np.frombuffer(words, _WORD), np.frombuffer(sizes, _SIZE).astype(np.int64))
        if made.counts.sum() != len(made.words):
            raise ValueError("sizes do not fit the texts")
        return made

    def __len__(self) -> int:
        return len(self.sizes)

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> Words: ...
    def __getitem__(self, i: int | slice) -> str | Words:
        if isinstance(i, slice):
            return self.take(np.arange(len(self))[i])
        first, size = int(self.first[i]), int(self.sizes[i])
        return _text(self.words[first : first - (-size // _WORD_BYTES)].tobytes()[:size])

    def tolist(self) -> list[str]:
        """All texts."""
        data = self.words.tobytes()
        start = _WORD_BYTES * self.first
        edges = zip(start.tolist(), (start + self.sizes).tolist(), strict=True)
        if data.isascii():
            whole = data.decode()
            return [whole[low:high] for low, high in edges]
        return [_text(data[low:high]) for low, high in edges]


def places(first: Ints, counts: Ints) -> Ints:
    """(m,) place of each word in its text."""
    return np.arange(counts.sum()) - np.repeat(first, counts)


def _utf8(text: str) -> bytes:
    """The text as bytes; names of files may hold what is no character."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode(errors="surrogatepass")


def _text(data: bytes) -> str:
    try:
        return data.decode(errors="surrogatepass")
    except UnicodeDecodeError:  # damaged on its way
        return data.decode(errors="replace")


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

    def place(self, text: str) -> int:
        """The first position at which a text stands.

        Raises:
            ValueError: it stands nowhere.
        """
        return self._texts.place(self._name, text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]  # as lists are


class Texts(Mapping[str, list[str]]):
    """The text columns of n events: which rows of which stores. Choosing events moves no text.

    A store holds the columns one after the other.
    """

    __slots__ = ("_part", "_row", "_stores")

    def __init__(self, stores: Sequence[Words], part: Ints, row: Ints) -> None:
        self._stores, self._part, self._row = stores, part, row

    @classmethod
    def of(cls, columns: Mapping[str, Sequence[str]]) -> Texts:
        """Events' texts, one after the other."""
        pieces = [columns[name] for name in TEXTS]
        return cls.stored(Words.join([piece if isinstance(piece, Words) else Words.of(piece) for piece in pieces]))

    @classmethod
    def stored(cls, store: Words) -> Texts:
        """All events of one store."""
        n = len(store) // len(TEXTS)
        return cls([store], np.zeros(n, np.int64), np.arange(n))

    def packed(self) -> Words:
        """The same in a store of its own."""
        if len(self._stores) != 1:
            return Texts.of(self).packed()
        columns = len(self._stores[0]) // len(TEXTS) * np.arange(len(TEXTS))
        return self._stores[0].take((columns[:, None] + self._row).ravel())

    def __len__(self) -> int:
        return len(self._row)

    def __iter__(self) -> Iterator[str]:
        return iter(TEXTS)

    def __getitem__(self, name: str) -> list[str]:
        found = np.empty(len(self), object)
        order = np.argsort(self._part, kind="stable")
        ends = np.searchsorted(self._part[order], np.arange(len(self._stores)), "right")
        for store, mine in zip(self._stores, np.split(order, ends[:-1]), strict=True):
            found[mine] = store.take(self._place(store, name) + self._row[mine]).tolist()
        texts: list[str] = found.tolist()
        return texts

    def at(self, name: str, i: int) -> str:
        """One event's text."""
        store = self._stores[int(self._part[i])]
        return store[self._place(store, name) + int(self._row[i])]

    def place(self, name: str, text: str) -> int:
        """The first event with this text, found without reading the others.

        Raises:
            ValueError: there is none.
        """
        events: list[int] = []
        for part, store in enumerate(self._stores):
            low = self._place(store, name)
            for row in store.find(text, low, low + len(store) // len(TEXTS)) - low:
                events += np.flatnonzero((self._part == part) & (self._row == row)).tolist()
        # What is damaged reads otherwise than it is written.
        return min(events) if events else self[name].index(text)

    @staticmethod
    def _place(store: Words, name: str) -> int:
        return len(store) // len(TEXTS) * TEXTS.index(name)

    def take(self, index: NDArray[Any]) -> Texts:
        """The chosen events' texts."""
        return Texts(self._stores, self._part[index], self._row[index])

    @classmethod
    def join(cls, parts: Sequence[Texts]) -> Texts:
        """All parts' texts, one after the other."""
        stores: list[Words] = []
        part = []
        for texts in parts:
            part.append(texts._part + len(stores))
            stores += texts._stores
        return cls(stores, np.concatenate(part), np.concatenate([texts._row for texts in parts]))


class Columns:
    """n events; `texts` and `numbers` hold exactly the columns named in TEXTS and NUMBERS."""

    __slots__ = ("numbers", "texts")

    def __init__(self, texts: Texts | Mapping[str, Sequence[str]], numbers: Mapping[str, Any]) -> None:
        self.texts = texts if isinstance(texts, Texts) else Texts.of(texts)
        self.numbers = numbers if isinstance(numbers, Numbers) else Numbers.of(numbers)

    def __len__(self) -> int:
        return self.numbers.events

    def text(self, name: str) -> TextColumn:
        """A text column for those who will look at few of its texts."""
        return TextColumn(self.texts, name)

    @classmethod
    def empty(cls) -> Columns:
        """No events."""
        return cls({name: [] for name in TEXTS}, Numbers.empty())

    def take(self, index: NDArray[Any]) -> Columns:
        """The chosen events, in that order; a boolean mask works too."""
        if index.dtype == bool:
            index = np.flatnonzero(index)
        return Columns(self.texts.take(index), self.numbers.take(index))

    def cut(self, low: int, high: int) -> Columns:
        """Events low .. high - 1."""
        piece: Any = slice(low, high)
        return Columns(self.texts.take(piece), self.numbers.cut(low, high))

    @classmethod
    def join(cls, parts: Sequence[Columns]) -> Columns:
        """All parts' events, one after the other."""
        if len(parts) == 1:
            return parts[0]
        if not parts:
            return cls.empty()
        return cls(Texts.join([part.texts for part in parts]), Numbers.join([part.numbers for part in parts]))


# As in `stream.numeric.BOUNDS`.
_Source = Annotated[int, msgspec.Meta(ge=0, lt=MAX_PARTITIONS)]
_Moment = Annotated[int, msgspec.Meta(ge=-1, le=(1 << 63) - 1)]


class _Wire(msgspec.Struct, array_like=True):
    version: int
    progress: dict[_Source, _Moment]
    partitions: Annotated[int, msgspec.Meta(ge=0, le=MAX_PARTITIONS)]
    texts: tuple[bytes, bytes]
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
        texts = self.columns.texts.packed().encode()
        return _encode(_Wire(_FORMAT, self.progress, self.partitions, texts, self.columns.numbers.encode()))

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
            texts, numbers = Words.decode(*wire.texts), Numbers.decode(wire.numbers)
            if len(texts) != numbers.events * len(TEXTS):
                raise ValueError("columns differ in length")
        except ValueError as error:
            raise PackedRecordError(
                "a record on an inner topic is damaged: columns are missing, cut short, or differ in length"
            ) from error
        if name := numbers.out_of_bounds():
            raise PackedRecordError(f"a record on an inner topic is damaged: {name} is out of bounds")
        return cls(Columns(Texts.stored(texts), numbers), wire.progress, wire.partitions)


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Wire).decode
