"""How fast a process gets on, seen from outside: by what it commits, and by what it uses.

A contender commits what it has handled every half second, a burnfuse worker every second. The committed
offsets are read twenty times a second, so the moment of each commit is known to a twentieth of a second. The
rate is taken between commits: from the first one seen, so that starting up does not count, to the last one
before the end of the input, so that waiting for the final commit does not count either.

A burnfuse worker puts events onto its inner topics and reads them there. What it has committed of the input is
only on its way; it counts in the share in which the inner topics have been worked off.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.processes import Process, cpu_seconds, peak_bytes

if TYPE_CHECKING:
    from benchmarks.broker import Broker  # needs a client that only the benchmarks' environment has

POLL_S = 0.05
_START_S = 120.0


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
    """Samples until everything is handled, or for `limit_s` after the first `skip` events.

    Of several processes nothing counts before they share the work.

    Raises:
        EndedError: a process ended by itself.
        TooShortError: nothing was handled for two minutes.
    """
    started = time.monotonic()
    first: float | None = None
    final: dict[str, int] = {}
    best = 0.0
    shared = len(processes) == 1
    while True:
        for process in processes:
            process.check()
        shared = shared or broker.members(watched.group) == len(processes)
        done = broker.committed(watched.group)
        at, read = time.monotonic(), done.get(watched.topic, 0)
        shares = [1.0]
        for topic, partitions in watched.inner if read else ():
            end = final.get(topic) or sum(broker.ends(topic, partitions).values())
            if read >= watched.total:
                final[topic] = end  # from now on only heartbeats come
            shares.append(min(1.0, done.get(topic, 0) / end) if end else 1.0)
        best = max(best, read * min(shares))
        if shared:
            yield Sample(at, best, sum(cpu_seconds(p.pid) for p in processes), broker.cpu_seconds())
        tell(best)
        if best >= watched.total:
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
