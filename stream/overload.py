"""How far behind the worker is, and whether that is too much.

Lag in records says little: a thousand are nothing at one rate and an hour at another. So the end of each
partition is noted together with the (monotonic) time it was seen, and the lag in seconds is how long ago the
end lay where the worker is now. No clock of a producer or broker is asked, so none can mislead, and neither
can a wall clock that is set while the worker runs.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Hashable, Iterable, Mapping
from typing import Generic, TypeVar

from stream.settings import OverloadSettings

log = logging.getLogger(__name__)

_NOTES = 600
"""Ends remembered per partition. Of more every second one goes, and from then on they are noted half as often: an
hour behind is known to a few seconds."""
_REMIND_S = 300.0

_PROMPT_S, _LONGEST_WAIT_S = 5.0, 2.0
"""Lag is looked at once a second, and what waits for its order or a heartbeat lags too: a worker that keeps up shows
a lag of two to three seconds."""

P = TypeVar("P", bound=Hashable)


class _Partition:
    def __init__(self, now: float) -> None:
        self.ends: deque[tuple[int, float]] = deque()
        self.reached = now
        """When the end lay at, or before, what is done."""
        self.every_s = 0.0

    def note(self, end: int, now: float) -> None:
        """The partition ends here now."""
        ends = self.ends
        if not ends:
            self.every_s = 0.0
        elif end == ends[-1][0] or now - ends[-1][1] < self.every_s:
            return
        ends.append((end, now))
        if len(ends) > _NOTES:
            self.ends = deque(note for i, note in enumerate(ends) if i % 2 == 0)
            self.every_s = 2 * (now - ends[0][1]) / len(ends)


class Lag(Generic[P]):
    """How far behind a worker is on its partitions."""

    def __init__(self) -> None:
        self._of: dict[P, _Partition] = {}

    def look(self, ends: Mapping[P, int], done: Mapping[P, int], now: float) -> dict[P, tuple[int, float]]:
        """Notes how things stand.

        Args:
            ends: Partition -> offset after its last record, of all partitions of this worker.
            done: Partition -> offset up to which all records are done.
            now: Monotonic time, s.

        Returns:
            Partition -> records that are not done, and lag in seconds; of those whose `done` is known.
        """
        for gone in self._of.keys() - ends.keys():
            del self._of[gone]
        told = {}
        for partition, end in ends.items():
            known = self._of.get(partition)
            if known is None:
                known = self._of[partition] = _Partition(now)
            known.note(end, now)
            at = done.get(partition)
            if at is None:
                continue
            while known.ends and known.ends[0][0] <= at:
                known.reached = known.ends.popleft()[1]
            if at >= end:
                known.reached = now
            told[partition] = (max(0, end - at), now - known.reached)
        return told


def patience_s(lags_s: Iterable[float]) -> float:
    """How long events may wait for others to be judged together with: not at all while the worker keeps up, and up to
    2 s where it is behind. An event in a large batch costs a third of one in a small one, so it catches up sooner.

    Waiting adds to the lag; as only half of that is waited for, it does not feed itself.
    """
    return min(max(0.0, max(lags_s, default=0.0) - _PROMPT_S) / 2, _LONGEST_WAIT_S)


class Overload:
    """Says when the worker is overloaded: from `begin_lag_s` until it is below `end_lag_s` again."""

    def __init__(self, settings: OverloadSettings) -> None:
        self._settings = settings
        self.on = False
        self._since = self._reminded = 0.0

    def look(self, lags: Iterable[tuple[str, int, float]], now: float) -> bool:
        """Takes (name of a partition, lag in records, lag in seconds); whether the worker is overloaded."""
        worst = max(lags, key=lambda lag: lag[2], default=("", 0, 0.0))
        name, records, behind = worst
        config = self._settings
        if not self.on and behind >= config.begin_lag_s:
            self.on, self._since, self._reminded = True, now, now
            what = "the second stage is left out until it has caught up" if config.shed else "nothing is left out"
            log.warning("%.0f s behind on %s (%d records): overloaded; %s", behind, name, records, what)
        elif self.on and behind < config.end_lag_s:
            self.on = False
            log.warning("caught up after %.0f s of overload; everything runs again", now - self._since)
        elif self.on and now - self._reminded >= _REMIND_S:
            self._reminded = now
            log.warning(
                "still %.0f s behind on %s (%d records), for %.0f s now: more workers or less input are needed",
                behind,
                name,
                records,
                now - self._since,
            )
        return self.on
