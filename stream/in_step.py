"""Reads the partitions of a topic in step: which of them are ahead of the others.

Events are judged in the order in which Kafka logged them, so what is read ahead of the slowest partition only waits for
it, in memory. Partitions differ: one has twice the records of another for the same hour, or was left behind by a
worker that is gone. While a backlog is worked off, each would otherwise be read as fast as its records come.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Generic, TypeVar

AHEAD_MS = 100
"""How far ahead of the slowest partition another one is read, by the time at which records were logged, ms: what was
logged fast is many events in little time. At least one run of records is always read."""
STUCK_S = 2.0
"""A partition whose records do not come for so long is waited for no more: its broker may be away."""

P = TypeVar("P", bound=Hashable)


class InStep(Generic[P]):
    """How far each partition of a topic has been read.

    Attributes:
        floor_ms: Nothing is read ahead of this moment either, ms since 1970; None: no such limit.
    """

    def __init__(self) -> None:
        self.floor_ms: int | None = None
        self._newest: dict[P, int] = {}
        self._alive: dict[P, float] = {}

    def read(self, partition: P, newest_ms: int) -> None:
        """A partition has been read up to a record that was logged at this moment."""
        self._newest[partition] = newest_ms

    def forget(self, partition: P) -> None:
        """It is read from elsewhere, or by somebody else, from now on."""
        self._newest.pop(partition, None)
        self._alive.pop(partition, None)

    def ahead(self, partitions: Iterable[P], left: Callable[[P], bool | None], now: float) -> set[P]:
        """Those that have been read ahead of others with records left.

        Args:
            partitions: Those of one topic that may be read at all.
            left: Whether records of a partition are left: True, they are at hand; None, they are yet to come.
            now: Monotonic time, s.
        """
        newest = {partition: self._newest.get(partition, 0) for partition in partitions}
        least = []
        for partition, ms in newest.items():
            if (known := left(partition)) is not None:
                self._alive[partition] = now
            if known is not False and now - self._alive.setdefault(partition, now) < STUCK_S and ms >= 0:
                least.append(ms)
        if self.floor_ms is not None:
            least.append(self.floor_ms)
        return {partition for partition, ms in newest.items() if least and ms > min(least) + AHEAD_MS}
