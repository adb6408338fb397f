"""Puts events back into the order in which they were logged, after the shuffle.

An inner partition is fed from all partitions of the input topic, and these are read at different speeds.
What an entity's detectors see must not depend on that. So every packed record says how far each input
partition has been passed on, and events wait until no earlier logged one can come.

The order is that of the log (the records' timestamps), not of event time: a producer's wrong clock then
delays nobody, and old streams can be sent after new ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from detectors.types import Ints
from stream.clock import Clock
from stream.columns import Columns, Packed

Token = TypeVar("Token")

_FAR = np.iinfo(np.int64).max


@dataclass(slots=True)
class _Part(Generic[Token]):
    columns: Columns
    token: Token


class Sequencer(Generic[Token]):
    """Merges packed records into one ordered stream.

    Args:
        silent_s: An input partition not heard of for so long holds back nobody any more, s: its reader
            is gone, and whoever takes over will say so.
    """

    def __init__(self, clock: Clock, silent_s: float) -> None:
        self._clock, self._silent_s = clock, silent_s
        self._parts: list[_Part[Token]] = []
        self._progress: dict[int, int] = {}
        self._heard: dict[int, float] = {}
        self._partitions = 0
        self._started: float | None = None

    def __len__(self) -> int:
        """Events waiting."""
        return sum(len(part.columns) for part in self._parts)

    def add(self, packed: Packed, token: Token) -> None:
        """Takes a record in; `token` comes back when all its events were given out."""
        now = self._clock.monotonic()
        self._started = now if self._started is None else self._started
        self._partitions = packed.partitions
        for source, ms in packed.progress.items():
            self._progress[source] = ms
            self._heard[source] = now
        self._parts.append(_Part(packed.columns, token))

    def ready(self) -> tuple[Columns, list[Token]]:
        """Events that may go on, in order, and the tokens of the records that are done with."""
        limit = self._limit()
        due = [part.columns.numbers["log_ms"] < limit for part in self._parts]
        chosen = [p.columns.take(d) if not d.all() else p.columns for p, d in zip(self._parts, due, strict=True)]
        done = [part.token for part, d in zip(self._parts, due, strict=True) if d.all()]
        self._parts = [
            _Part(part.columns.take(~d), part.token) for part, d in zip(self._parts, due, strict=True) if not d.all()
        ]
        columns = Columns.join([c for c in chosen if len(c)])
        return columns.take(_order(columns)), done

    def _limit(self) -> int:
        """Everything logged before this moment (ms) has come."""
        if self._started is None:
            return -_FAR
        now, limit = self._clock.monotonic(), _FAR
        for source in range(self._partitions):
            if now - self._heard.get(source, self._started) < self._silent_s:
                limit = min(limit, self._progress.get(source, -_FAR))
        return limit


def _order(columns: Columns) -> Ints:
    """Positions in the order of the log; within a millisecond by what else tells the order."""
    n = columns.numbers
    return np.lexsort((n["position"], n["source"], n["ts"], n["sequence"], n["log_ms"]))
