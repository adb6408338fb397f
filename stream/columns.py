"""Events as columns: what ingest makes, what travels on the inner topics, what engines take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream.errors import PackedRecordError

TEXTS = ("event_id", "agent_id", "run_id", "root_run_id", "parent_run_id", "to_agent_id", "to_run_id", "tool")
"""Text columns; "" is absent."""

NUMBERS: Mapping[str, np.dtype[Any]] = {
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

_FORMAT = 2
"""Version of the packed record; raise it with every change to the columns."""


@dataclass(slots=True)
class Columns:
    """n events; `texts` and `numbers` hold exactly the columns named in TEXTS and NUMBERS."""

    texts: dict[str, list[str]]
    numbers: dict[str, NDArray[Any]]

    def __len__(self) -> int:
        return len(self.texts["event_id"])

    @classmethod
    def empty(cls) -> Columns:
        """No events."""
        return cls({name: [] for name in TEXTS}, {name: np.empty(0, dtype) for name, dtype in NUMBERS.items()})

    def take(self, index: NDArray[Any]) -> Columns:
        """The chosen events, in that order; a boolean mask works too."""
        if index.dtype == bool:
            index = np.flatnonzero(index)
        chosen = index.tolist()
        texts = {name: [column[i] for i in chosen] for name, column in self.texts.items()}
        return Columns(texts, {name: column[index] for name, column in self.numbers.items()})

    def cut(self, low: int, high: int) -> Columns:
        """Events low .. high - 1."""
        return Columns(
            {name: column[low:high] for name, column in self.texts.items()},
            {name: column[low:high] for name, column in self.numbers.items()},
        )

    @classmethod
    def join(cls, parts: Sequence[Columns]) -> Columns:
        """All parts' events, one after the other."""
        if len(parts) == 1:
            return parts[0]
        if not parts:
            return cls.empty()
        texts = {name: [text for part in parts for text in part.texts[name]] for name in TEXTS}
        return cls(texts, {name: np.concatenate([part.numbers[name] for part in parts]) for name in NUMBERS})


class _Wire(msgspec.Struct, array_like=True):
    version: int
    progress: dict[int, int]
    partitions: int
    texts: list[list[str]]
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
        texts = [self.columns.texts[name] for name in TEXTS]
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
            texts = dict(zip(TEXTS, wire.texts, strict=True))
            # A copy, because columns from a buffer are read-only and cannot be sorted in place.
            numbers = {
                name: np.frombuffer(raw, dtype).copy()
                for (name, dtype), raw in zip(NUMBERS.items(), wire.numbers, strict=True)
            }
        except ValueError as error:
            raise PackedRecordError("a record on an inner topic is damaged: columns are missing") from error
        n = len(texts["event_id"])
        if {len(column) for column in texts.values()} | {len(column) for column in numbers.values()} != {n}:
            raise PackedRecordError("a record on an inner topic is damaged: its columns differ in length")
        return cls(Columns(texts, numbers), wire.progress, wire.partitions)


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Wire).decode
