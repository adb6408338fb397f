"""How much of what comes is turned away, and when that is too much to go on."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence

import msgspec

from stream.errors import RejectedShareError
from stream.ingest.ingest import Record
from stream.ingest.reject import Reason, Reject
from stream.settings import InputSettings

_NORMAL = (Reason.DUPLICATE, Reason.LATE)
"""Redelivery and late producers are no faults of what is in a record."""


class Stopped(msgspec.Struct, tag="stopped", frozen=True):
    """Why a worker stopped, as it stands on the dead-letter topic: a restart goes on counting from here."""

    events: int
    rejected: int
    reasons: dict[str, int]
    example: str
    first: dict[int, int]
    """Partition of the input topic -> first offset of the batch that was not taken."""

    def holds(self, committed: Mapping[int, int]) -> bool:
        """Whether that batch is still to come.

        Args:
            committed: Partition of the input topic -> next offset to be read.
        """
        return any(committed.get(partition, 0) <= offset for partition, offset in self.first.items())


class RejectedShare:
    """Counts what is turned away among the latest events, and stops a worker where that is too much.

    A bad deploy would otherwise drain all that it sends into the dead-letter topic, acknowledged.
    """

    def __init__(self, settings: InputSettings, topic: str, dead: str) -> None:
        self._limit, self._of = settings.max_rejected_share, settings.max_rejected_of
        self._topic, self._dead = topic, dead
        self._batches: deque[tuple[int, Counter[str]]] = deque()
        self._events, self._reasons = 0, Counter[str]()
        self._example = ""

    def resume(self, stopped: Stopped) -> None:
        """Goes on where a worker stopped."""
        self._push(stopped.events, Counter(stopped.reasons))
        self._example = stopped.example

    def add(self, taken: int, rejects: Sequence[Reject], records: Sequence[Record]) -> None:
        """Counts a batch, before anything is done with it.

        Args:
            taken: Events that were taken in.
            rejects: Those that were not.
            records: Where both came from.

        Raises:
            RejectedShareError: too many of the latest events were turned away, and this batch is no better.
        """
        wrong = [reject for reject in rejects if reject.reason not in _NORMAL]
        events, reasons = taken + len(wrong), Counter(reject.reason.value for reject in wrong)
        if not events:
            return
        self._push(events, reasons)
        if wrong:
            often = reasons.most_common(1)[0][0]
            example = next(reject for reject in wrong if reject.reason.value == often)
            self._example = f"{example.source}: {example.detail}"
        # A batch of good events may pass, whatever came before: so a mended stream gets going again.
        if len(wrong) > self._limit * events and self._rejected > self._limit * self._events >= self._limit * self._of:
            raise self._error(records)

    @property
    def _rejected(self) -> int:
        return self._reasons.total()

    def _push(self, events: int, reasons: Counter[str]) -> None:
        self._batches.append((events, reasons))
        self._events += events
        self._reasons += reasons
        while self._events - self._batches[0][0] >= self._of:
            events, reasons = self._batches.popleft()
            self._events -= events
            self._reasons -= reasons

    def _error(self, records: Sequence[Record]) -> RejectedShareError:
        first: dict[int, int] = {}
        for record in records:
            first[record.source] = min(first.get(record.source, record.position), record.position)
        marker = Stopped(self._events, self._rejected, dict(self._reasons), self._example, first)
        often, _ = self._reasons.most_common(1)[0]
        message = (
            f"{self._rejected:,} of the latest {self._events:,} events of {self._topic} "
            f"({self._rejected / self._events:.0%}) had to be turned away, most as {often} (such as {self._example}), "
            f"more than input.max_rejected_share allows ({self._limit:.0%}): the worker stops, and nothing of this "
            "batch is lost; mend the producer, or set input.max_rejected_share: 1 to let such events go to "
            f"{self._dead}"
        )
        return RejectedShareError(message, msgspec.json.encode(marker))
