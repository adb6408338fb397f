"""How fast a process gets on, seen from outside: by what it commits, and by what it uses.

A contender commits what it has handled every half second, a burnfuse worker every second. The committed
offsets are read twenty times a second, so the moment of each commit is known to a twentieth of a second. The
rate is taken between commits: from the first one seen, so that starting up does not count, to the last one
before the end of the input, so that waiting for the final commit does not count either.

A burnfuse worker puts events onto its inner topics and reads them there. What it has committed of the input is
only on its way: it counts when the inner topics have been committed as far as they reached when the input was.
It reads ahead of what it commits, so it is watched only until most of the input is committed: from the end of the
input on it would just wait for its checkpoints.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.processes import Process, cpu_seconds, peak_bytes

if TYPE_CHECKING:
    from benchmarks.broker import Broker  # needs a client that only the benchmarks' environment has

POLL_S = 0.05
_START_S = 120.0
_MOST = 0.85
"""Of the input; checkpoints come every three seconds."""


class TooShortError(Exception):
    """There was too little to do to measure anything."""


@dataclass(frozen=True, slots=True)
class Sample:
    """How far things were at one moment."""

    at: float
    """s, of the monotonic clock."""
    events: float
    """Handled since the start."""
    cpu_s: float
    """CPU time of the processes since their start."""
    broker_cpu_s: float


@dataclass(frozen=True, slots=True)
class Window:
    """What was measured between two commits."""

    events: float
    seconds: float
    cpu_s: float
    broker_cpu_s: float

    @property
    def rate(self) -> float:
        """Events per second."""
        return self.events / self.seconds


def window(samples: Sequence[Sample], total: int, skip: int = 0, least_s: float = 0.0) -> Window:
    """The stretch to judge by: see the module.

    Args:
        total: Events there are.
        skip: Leave out what was done before so many events were handled.
        least_s: What is shorter says nothing, s.

    Raises:
        TooShortError: fewer than two commits can be used, or they lie too close together.
    """
    edges = [b for a, b in itertools.pairwise(samples) if b.events > a.events >= 0]
    edges = [edge for edge in edges if edge.events >= skip]
    if len(edges) >= 3 and edges[-1].events >= total:
        edges.pop()
    if len(edges) < 2:
        raise TooShortError("it was done before two commits were seen: give it more events")
    first, last = edges[0], edges[-1]
    if last.at - first.at < least_s:
        took = f"{last.at - first.at:.1f} s"
        raise TooShortError(f"it was measured for {took} only, and commits come in lumps: give it more events")
    return Window(
        last.events - first.events,
        last.at - first.at,
        last.cpu_s - first.cpu_s,
        last.broker_cpu_s - first.broker_cpu_s,
    )


class WorkedOff:
    """How many events of the input are done with, as far as one inner topic is concerned."""

    def __init__(self) -> None:
        self._on_their_way: deque[tuple[int, int]] = deque()
        self._done = 0

    def look(self, read: int, end: int, committed: int) -> int:
        """Events of the input of which nothing is left on the topic.

        Args:
            read: Events of the input that have been committed: all of them that belong onto the topic are there.
            end: Records of the topic.
            committed: Of which have been committed.
        """
        if not self._on_their_way or read > self._on_their_way[-1][1]:
            self._on_their_way.append((end, read))
        while self._on_their_way and self._on_their_way[0][0] <= committed:
            self._done = self._on_their_way.popleft()[1]
        return self._done


@dataclass(frozen=True, slots=True)
class Watched:
    """What to look at.

    Attributes:
        total: Events on the input topic.
        inner: The group's own topics that all events (or a known part of them) pass through, with their
            number of partitions.
    """

    group: str
    topic: str
    total: int
    inner: Sequence[tuple[str, int]] = ()


def observe(
    broker: Broker,
    processes: Sequence[Process],
    watched: Watched,
    limit_s: float,
    tell: Callable[[float], None],
    skip: int = 0,
) -> Iterator[Sample]:
    """Samples until everything is handled (most of it, by a burnfuse worker), or for `limit_s` after the first `skip`
    events.

    Of several processes nothing counts before they share the work.

    Raises:
        EndedError: a process ended by itself.
        TooShortError: nothing was handled for two minutes.
    """
    started = time.monotonic()
    first: float | None = None
    worked_off = {topic: WorkedOff() for topic, _ in watched.inner}
    best, enough = 0, watched.total * (_MOST if watched.inner else 1.0)
    shared = len(processes) == 1
    while True:
        for process in processes:
            process.check()
        shared = shared or broker.members(watched.group) == len(processes)
        done = broker.committed(watched.group)
        at, read = time.monotonic(), done.get(watched.topic, 0)
        events = [read]
        for topic, partitions in watched.inner if read else ():
            # Asked after the input: what had been read by then is on the topic by now.
            end = sum(broker.ends(topic, partitions).values())
            events.append(worked_off[topic].look(read, end, done.get(topic, 0)))
        best = max(best, min(events))
        if shared:
            yield Sample(at, best, sum(cpu_seconds(p.pid) for p in processes), broker.cpu_seconds())
        tell(best)
        if read >= enough:
            return
        if shared and best > skip and first is None:
            first = at
        if first is not None and at - first > limit_s:
            return
        if not best and at - started > _START_S:
            raise TooShortError(f"nothing was handled within {_START_S:.0f} s")
        time.sleep(max(0.0, POLL_S - (time.monotonic() - at)))


def peak(processes: Sequence[Process]) -> int:
    """The most memory the processes have held, bytes."""
    return sum(peak_bytes(process.pid) for process in processes)
