"""Faults, one class each, and schedules of them by a seed."""

from __future__ import annotations

import random
import signal
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from chaos_world import World


@dataclass(frozen=True)
class Fault(ABC):
    """Something that goes wrong `at` seconds after the stream began, and is over `lasts` seconds later."""

    at: float
    lasts: float
    worker: int | None
    """Which one it happens to; None: all."""

    longest_s: ClassVar[float]
    of_worker: ClassVar[bool] = True
    recovers_s: ClassVar[float] = 1.0
    """Time for the target until its next fault."""
    at_once: ClassVar[bool] = False
    """Whether it is over as soon as it begins."""

    @property
    def kind(self) -> str:
        return type(self).__name__

    def __str__(self) -> str:
        """Replayed by its seed; told for people."""
        who = "" if self.worker is None else f" worker {self.worker}"
        return f"{self.at:5.1f} s  {self.kind}{who}" + ("" if self.at_once else f" for {self.lasts:.1f} s")

    @abstractmethod
    def begin(self, world: World) -> None: ...

    def end(self, world: World) -> None:  # noqa: B027 - some are over at once
        ...


class Kill(Fault):
    """Kill -9, and a start later."""

    longest_s = 6.0

    def begin(self, world: World) -> None:
        world.workers[self.worker].kill()

    def end(self, world: World) -> None:
        world.workers[self.worker].start()


class Stop(Fault):
    """A clean stop, and a start later."""

    longest_s = 6.0

    def begin(self, world: World) -> None:
        world.workers[self.worker].stop()

    def end(self, world: World) -> None:
        world.workers[self.worker].stopped(patience_s=0.1)  # else kill -9, as orchestrators do
        world.workers[self.worker].start()


class Freeze(Fault):
    """SIGSTOP, and SIGCONT later: longer than the session timeout, and it comes back as one who is not a member."""

    longest_s = 6.0

    def begin(self, world: World) -> None:
        world.workers[self.worker].send(signal.SIGSTOP)

    def end(self, world: World) -> None:
        world.workers[self.worker].send(signal.SIGCONT)


class CutOff(Fault):
    """A worker's connections to the broker are reset, and new ones too."""

    longest_s = 6.0

    def begin(self, world: World) -> None:
        world.broker.proxies[self.worker].set("refused")

    def end(self, world: World) -> None:
        world.broker.proxies[self.worker].set("open")


class Stall(Fault):
    """Nothing comes through between a worker and the broker, and nobody is told."""

    longest_s = 6.0

    def begin(self, world: World) -> None:
        world.broker.proxies[self.worker].set("stalled")

    def end(self, world: World) -> None:
        world.broker.proxies[self.worker].set("open")


class BrokerKill(Fault):
    """The broker is killed, and started again on the same data."""

    longest_s = 0.5
    recovers_s = 8.0  # its own start takes seconds
    of_worker = False

    def begin(self, world: World) -> None:
        world.broker.kill()

    def end(self, world: World) -> None:
        world.broker.start_soon()


class SlackCut(Fault):
    """Slack takes no connections."""

    longest_s = 4.0
    of_worker = False

    def begin(self, world: World) -> None:
        world.slack_proxy.set("refused")

    def end(self, world: World) -> None:
        world.slack_proxy.set("open")


class Duplicates(Fault):
    """Records that were sent are sent again."""

    longest_s = 0.0
    of_worker = False
    at_once = True

    def begin(self, world: World) -> None:
        world.sender.again = 200


class OutOfOrder(Fault):
    """Partitions of the input get their records one after the other, in an order that is not the stream's."""

    longest_s = 0.0
    of_worker = False
    at_once = True

    def begin(self, world: World) -> None:
        world.sender.apart = True


HARMLESS: tuple[type[Fault], ...] = (Duplicates, OutOfOrder)
FAULTS: tuple[type[Fault], ...] = (Kill, Stop, Freeze, CutOff, Stall, BrokerKill, SlackCut, Duplicates, OutOfOrder)


def schedule(seed: int, seconds: float, count: int, workers: int, kinds: Sequence[type[Fault]] = FAULTS) -> list[Fault]:
    """`count` faults within `seconds`, the same for the same arguments, in the order in which they begin.

    A target has one fault at a time; different ones may fail together.
    """
    rng = random.Random(f"faults {seed}")
    chosen: list[Fault] = []
    free: dict[object, float] = {}
    for at in sorted(round(rng.uniform(0.5, seconds), 1) for _ in range(count)):
        kind = rng.choice(kinds)
        worker = rng.randrange(workers) if kind.of_worker else None
        lasts = round(rng.uniform(0.3, 1.0) * kind.longest_s, 1)
        target = worker if kind.of_worker else kind
        # A broker that is down is nobody's to be cut off from.
        if at < free.get(target, 0.0) or at < free.get(BrokerKill, 0.0):
            continue
        free[target] = at + lasts + kind.recovers_s
        chosen.append(kind(at, lasts, worker))
    return chosen
