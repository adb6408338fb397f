"""What every evaluation is: a family of labelled data, run through contenders, told as rows of one table.

A family is one file in this folder with a class under `@register`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from detectors.base import Detector
from detectors.types import Scope
from stream.settings import Settings

Progress = Callable[[float], None]
"""Told the share done, 0 to 1, as often as one likes."""


@dataclass(frozen=True, slots=True)
class Contender:
    """A detector (or several together) that runs over the labelled data."""

    name: str
    make: Callable[[], dict[str, Detector]]
    """Fresh detectors by name."""
    baseline: bool = False
    """One of the references: the null detector or a naive rule."""
    settings: Settings | None = None
    """The configuration in force; None: the defaults."""

    @property
    def scopes(self) -> frozenset[Scope]:
        """What it keeps state for."""
        return frozenset(detector.spec.scope for detector in self.make().values())


def sensible(contenders: Sequence[Contender], scopes: Collection[Scope]) -> list[Contender]:
    """The contenders that can see something in data about these scopes, and all the references."""
    return [contender for contender in contenders if contender.baseline or contender.scopes & set(scopes)]


@dataclass(frozen=True, slots=True)
class Row:
    """What one contender made of one set of labelled cases.

    Counts are of cases (runs, traces, injected faults, anomaly windows), as the family says.
    """

    family: str
    data: str
    """Which set, or which kind of fault."""
    contender: str
    caught: int = 0
    missed: int = 0
    false_alarms: int = 0
    """Healthy cases that were flagged; where time counts instead of cases, alarms outside of faults."""
    healthy: int = 0
    """Healthy cases there were; 0 where time counts instead."""
    agent_days: float = 0.0
    """Observed time of agents, where the data tell real times; else 0."""
    delay_s: Sequence[float] = ()
    """Seconds from the start of each caught case to its first finding."""
    cost_before_usd: Sequence[float] = ()
    """Dollars burnt by each caught case before its first finding, where the data tell."""
    figures: Mapping[str, float] = field(default_factory=dict)
    """Whatever else the family measures (scores, recall at a budget, realised rates), by name."""
    notes: str = ""
    """What the reader must know, in one sentence."""

    @property
    def recall(self) -> float | None:
        """Share of the cases that were caught; None without cases."""
        total = self.caught + self.missed
        return self.caught / total if total else None

    @property
    def precision(self) -> float | None:
        """Share of what was flagged that is a case; None where nothing was, or where only one kind could be."""
        flagged = self.caught + self.false_alarms
        both = (self.caught or self.missed) and (self.false_alarms or self.healthy or self.agent_days)
        return self.caught / flagged if flagged and both else None

    @property
    def false_alarms_per_agent_day(self) -> float | None:
        """None where the data tell no real times."""
        return self.false_alarms / self.agent_days if self.agent_days else None


@dataclass(frozen=True, slots=True)
class Plot:
    """One picture: a score over time, with the labelled event, the baseline's band and the alarm.

    All sequences are aligned; times are epoch seconds.
    """

    name: str
    """File name without its ending."""
    title: str
    ts: Sequence[float]
    value: Sequence[float]
    unit: str
    band: tuple[Sequence[float], Sequence[float]] | None = None
    """Lowest and highest value that the baseline expects."""
    score: Sequence[float] | None = None
    threshold: float | None = None
    events: Sequence[tuple[float, float]] = ()
    """Labelled events (start, end)."""
    alarms: Sequence[float] = ()
    """Times of findings."""


class Family(Protocol):
    """One kind of labelled data."""

    name: str
    """As `--data` takes it."""

    def found_in(self, folder: Path) -> bool:
        """Whether the folder holds this kind of data."""

    def rows(self, folder: Path, contenders: Sequence[Contender], progress: Progress) -> list[Row]:
        """Runs the contenders over the data. The same data give the same rows."""

    def plots(self, folder: Path) -> Iterator[Plot]:
        """Pictures worth looking at."""


_families: dict[str, Family] = {}
F = TypeVar("F", bound=Callable[[], Any])


def register(cls: F) -> F:
    """Class decorator: makes a family known."""
    instance = cls()
    _families[instance.name] = instance
    return cls


def families() -> dict[str, Family]:
    """All families by name."""
    package = importlib.import_module("stream.evaluate")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    return dict(sorted(_families.items()))
