"""Puts events back into the order in which they were logged, after the shuffle.

An inner partition is fed from all partitions of the input topic, and these are read at different speeds.
What an entity's detectors see must not depend on that. So every packed record says how far each input
partition has been passed on, and events wait until no earlier logged one can come.

The order is that of the log (the records' timestamps), not of event time: a producer's wrong clock then
delays nobody, and old streams can be sent after new ones. Where those timestamps are producers' own, one may lie in
the future: such an event goes on at once, for else all that is committed would wait with it.

What waits is not saved. A `Position` says how a reader that begins again gets to the very same point: which
records to read again, and which of their events have been given out. Ingest may send events again after a
crash; per partition of the input they come in order, so a high-water mark tells which have been seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Generic, TypeAlias, TypeVar

import msgspec
import numpy as np

from detectors.types import Bools, Ints
from stream.clock import Clock
from stream.columns import Columns, Packed
from stream.numeric import LAST_MS, MAX_PARTITIONS

Token = TypeVar("Token")

_FAR = np.iinfo(np.int64).max
_AHEAD_MS = 10_000
"""Nothing is read before it was logged, but clocks of different machines differ by a little."""
_ITEM_BITS = 20
"""A record of at most 1 MiB holds fewer events than 2^20."""


# What is saved is checked: a damaged number must not make the reader wait, or take memory, without bound.
Partition: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=MAX_PARTITIONS)]
Offset: TypeAlias = Annotated[int, msgspec.Meta(ge=0, lt=1 << 43)]
Item: TypeAlias = Annotated[int, msgspec.Meta(ge=0, lt=1 << _ITEM_BITS)]


class Position(msgspec.Struct, frozen=True):
    """Where a partition's reader stands: all that it takes to go on exactly there.

    Attributes:
        first: Offset from which on records must be read again; those below are done with.
        end: Offset of the first record that has not been taken in.
        limit: Of the records between, events logged before this moment (ms since 1970) have been given out, and
            maybe some from the future: these are given out again, and their ids are known.
        progress: How far each input partition had been passed on by `end`; see `Packed`.
        partitions: How many the input topic has; 0: nobody has said so yet.
        marks: Input partition -> (position, item) of the latest event seen, as of `first`.
    """

    first: Offset = 0
    end: Offset = 0
    limit: int = -_FAR
    progress: dict[Partition, int] = {}
    partitions: Partition = 0
    marks: dict[Partition, tuple[Offset, Item]] = {}


@dataclass(slots=True)
class _Part(Generic[Token]):
    columns: Columns
    token: Token
    offset: int | Ints
    """Of the record; or of each event's, where a part holds several records."""
    marks: Ints
    """The high-water marks before it came."""

    @property
    def first(self) -> int:
        return self.offset if isinstance(self.offset, int) else int(self.offset.min())


class Sequencer(Generic[Token]):
    """Merges packed records into one ordered stream.

    Args:
        silent_s: An input partition not heard of for so long holds back nobody any more, s: nobody reads it, and
            whoever takes over will say so. Only time up to which everything has been read here counts (`read_up_to`):
            while Kafka does not answer, or this reader is behind, nobody can be heard.
    """

    def __init__(self, clock: Clock, silent_s: float) -> None:
        self._clock, self._silent_s = clock, silent_s
        self.seen_before = 0
        """Events that ingest sent again."""
        self.resume(Position())

    def __len__(self) -> int:
        """Events waiting."""
        return sum(len(part.columns) for part in self._parts)

    def nothing(self) -> Packed:
        """What stands for a record that nobody can read."""
        return Packed(Columns.empty(), {}, self._partitions)

    @property
    def position(self) -> Position:
        """Where the reader stood when `ready` was last asked."""
        return self._position

    def resume(self, position: Position) -> None:
        """Begins at a position; whatever waits will be read again, from `position.first` on."""
        now = self._clock.monotonic()
        self._parts: list[_Part[Token]] = []
        self._skipped: list[Token] = []
        self._position = position
        self._limit = position.limit
        self._partitions = position.partitions
        self._progress = dict(position.progress)
        self._heard = dict.fromkeys(position.progress, now)
        self._read_up_to = float("-inf")
        self._started = now if position.partitions else None
        self._next = position.first
        self._marks = np.full(1 + max(position.marks, default=-1), -1, np.int64)
        for source, (at, item) in position.marks.items():
            self._marks[source] = (at << _ITEM_BITS) + item

    def add(self, packed: Packed, token: Token, offset: int | None = None, offsets: Ints | None = None) -> None:
        """Takes a record in; `token` comes back when all its events were given out.

        Args:
            offset: The record's; one more than that of the record before if not given.
            offsets: (n,) of each event's record, where several are taken in at once; `offset` is then the
                highest of all records read.
        """
        offset = self._next if offset is None else offset
        begun = self._position
        self._next = max(self._next, offset + 1)
        if offset < begun.first:
            self._skipped.append(token)
            return
        columns, marks = packed.columns, self._marks
        if len(columns):
            fresh = self._mark(columns)
            again = offset < begun.end if offsets is None else offsets < begun.end
            if np.any(again):
                # What was given out before is no news; what waited then waits again.
                given = again & (columns.numbers["log_ms"] < begun.limit)
                given |= False if offsets is None else offsets < begun.first
                self.seen_before += int((~fresh & ~given).sum())
                fresh &= ~given
            else:
                self.seen_before += len(fresh) - int(fresh.sum())
            if not fresh.all():
                columns = columns.take(fresh)
                offsets = None if offsets is None else offsets[fresh]
        self.hear(packed)
        self._parts.append(_Part(columns, token, offset if offsets is None else offsets, marks))

    def hear(self, packed: Packed) -> None:
        """Takes in how far a record says that the input was passed on."""
        if self._next < self._position.end:
            return  # known, and it counts when all of what waited has come again
        now = self._clock.monotonic()
        self._started = now if self._started is None else self._started
        self._partitions = packed.partitions
        for source, ms in packed.progress.items():
            # What is beyond all times is no record's, but stands for a partition that is idle.
            self._progress[source] = ms if ms > LAST_MS else min(ms, self._horizon_ms)
            self._heard[source] = now

    def read_up_to(self, end: int, moment: float) -> None:
        """At this moment (of the monotonic clock, s) the log ended at this offset."""
        if self._next >= end:
            self._read_up_to = max(self._read_up_to, moment)

    def _mark(self, columns: Columns) -> Bools:
        """(n,) which events have not been seen; they are from now on."""
        source = columns.numbers["source"]
        place = (columns.numbers["position"] << _ITEM_BITS) + columns.numbers["item"]
        marks = np.full(max(len(self._marks), int(source.max()) + 1), -1, np.int64)
        marks[: len(self._marks)] = self._marks
        fresh: Bools = place > marks[source]
        np.maximum.at(marks, source, place)
        self._marks = marks  # a new one: parts that wait hold the former
        return fresh

    def ready(self) -> tuple[Columns, list[Token]]:
        """Events that may go on, in order, and the tokens of the records that are done with."""
        done, self._skipped = self._skipped, []
        if self._next < self._position.end:
            return Columns.empty(), done  # not all of what waited has come again
        # While anything waits the limit never falls, or it would not tell what has been given out: a partition
        # that was silent for long may come back with earlier events.
        limit, horizon = max(self._limit, self.passed_ms), self._horizon_ms
        chosen, left = [], []
        for part in self._parts:
            logged = part.columns.numbers["log_ms"]
            due = (logged < limit) | (logged > horizon)
            if due.all():
                chosen.append(part.columns)
                done.append(part.token)
            elif due.any():
                chosen.append(part.columns.take(due))
                left.append(_left(part, ~due))
            else:  # as most, where much waits
                left.append(part)
        self._parts = left
        self._limit = limit if self._parts else -_FAR
        columns = Columns.join([c for c in chosen if len(c)])
        marks = self._parts[0].marks if self._parts else self._marks
        self._position = Position(
            first=self._parts[0].first if self._parts else self._next,
            end=self._next,
            limit=self._limit,
            progress=dict(self._progress),
            partitions=self._partitions,
            marks={
                source: (at >> _ITEM_BITS, at & ((1 << _ITEM_BITS) - 1))
                for source, at in enumerate(marks.tolist())
                if at >= 0
            },
        )
        return columns.take(_order(columns)), done

    @property
    def _horizon_ms(self) -> int:
        """What was logged after this moment, ms since 1970, was so by a clock that is ahead: nobody waits for then.

        Only waiting depends on it. When a record was logged must be the same for all who read it again.
        """
        return int(self._clock.now() * 1000) + _AHEAD_MS

    @property
    def passed_ms(self) -> int:
        """Everything logged before this moment, ms since 1970, has come."""
        if self._started is None:
            return -_FAR
        limit = _FAR
        for source in range(self._partitions):
            if self._read_up_to - self._heard.get(source, self._started) < self._silent_s:
                limit = min(limit, self._progress.get(source, -_FAR))
        return limit


def _left(part: _Part[Token], waiting: Bools) -> _Part[Token]:
    offset = part.offset if isinstance(part.offset, int) else part.offset[waiting]
    return _Part(part.columns.take(waiting), part.token, offset, part.marks)


def _order(columns: Columns) -> Ints:
    """Positions in the order of the log; within a millisecond by what else tells the order."""
    n = columns.numbers
    return np.lexsort((n["position"], n["source"], n["ts"], n["sequence"], n["log_ms"]))
