"""The whole way in one process: records in, findings and incidents out. What `watch` and `demo` run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from detectors.base import FleetFigures
from detectors.types import Finding
from stream import calibration
from stream.clock import Clock
from stream.columns import Columns
from stream.engine import GRAPH, WATCH, Engine
from stream.incidents import Change, Incidents
from stream.ingest import formats
from stream.ingest.hashing import Hasher
from stream.ingest.ingest import Ingest, Record
from stream.ingest.pricing import Price, PriceBook
from stream.ingest.reject import Reason, Reject
from stream.settings import Settings


def make_ingest(settings: Settings, name_of: Callable[[int, int], str], clock: Clock, hash_key: str | None) -> Ingest:
    """The ingest stage as configured."""
    own = {model: Price(p.input, p.output, p.cached_input, p.cache_write) for model, p in settings.prices.items()}
    return Ingest(
        settings.input,
        settings.effective_tokens,
        formats.named(settings.input.format),
        Hasher((hash_key or "").encode()),
        PriceBook(own),
        name_of,
        clock,
    )


@dataclass(slots=True)
class Step:
    """What one batch of records led to, in order."""

    happened: list[Finding | Change] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)


@dataclass(slots=True)
class Totals:
    """What a stream came to so far."""

    events: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    duplicates: int = 0
    findings: int = 0
    incidents: int = 0
    cost_usd: float = 0.0
    effective_tokens: float = 0.0
    spend: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Agent -> (dollars, effective tokens)."""
    baselines: dict[str, str] = field(default_factory=dict)
    """Agent -> how far its baseline has come, of `detectors.base.READINESS`."""


class Pipeline:
    """Ingest, both engines and incidents, without Kafka.

    Args:
        figures: Fixed figures of the fleet; None: learned from the stream itself.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Clock,
        name_of: Callable[[int, int], str],
        figures: FleetFigures | None = None,
        hash_key: str | None = None,
    ) -> None:
        self._ingest = make_ingest(settings, name_of, clock, hash_key)
        self._watch = Engine(settings, WATCH, name_of, None if figures is not None else learn)
        self._graph = Engine(settings, GRAPH, name_of, None if figures is not None else learn)
        if figures is not None:
            self._watch.calibrate(figures)
            self._graph.calibrate(figures)
        self.incidents = Incidents(settings.incidents)
        self.totals = Totals()

    @property
    def clock(self) -> float:
        """Stream clock, s."""
        return self._watch.clock

    @property
    def quarantined(self) -> dict[str, str]:
        """Detectors that failed, with the error."""
        return self._watch.quarantined | self._graph.quarantined

    def figures(self) -> FleetFigures:
        """The fleet's figures as of now."""
        return calibration.merge([self._watch.sketch(), self._graph.sketch()])

    def process(self, records: Sequence[Record]) -> Step:
        """Takes records in, in order."""
        columns, rejects = self._ingest.columns(records)
        watched = self._watch.process(columns)
        step = Step(rejects=rejects + watched.rejects)
        in_tree = np.flatnonzero(columns.numbers["in_tree"])
        graphed = self._graph.process(columns.take(in_tree))
        found = [(at, finding) for at, finding in zip(watched.positions, watched.findings, strict=True)]
        found += [(int(in_tree[at]), f) for at, f in zip(graphed.positions, graphed.findings, strict=True)]
        found.sort(key=lambda pair: pair[0])
        for at, finding in found:
            clock = float(watched.clocks[at])
            step.happened += self.incidents.advance(clock)
            step.happened.append(finding)
            step.happened += self.incidents.add(finding, clock)
        if len(watched.clocks):
            step.happened += self.incidents.advance(float(watched.clocks[-1]))
        self._count(columns.take(np.array(watched.accepted, np.int64)), step)
        return step

    def idle(self, seconds: float) -> Step:
        """Nothing came for a while: time goes on for open incidents."""
        return Step(happened=list(self.incidents.idle(seconds)))

    def _count(self, columns: Columns, step: Step) -> None:
        totals = self.totals
        totals.events += len(columns)
        for reject in step.rejects:
            if reject.reason is Reason.DUPLICATE:
                totals.duplicates += 1
            else:
                totals.rejected[reject.reason] += 1
        for item in step.happened:
            totals.findings += isinstance(item, Finding)
            totals.incidents += isinstance(item, Change) and item.kind == "opened"
        if len(columns):
            ids, first, row = np.unique(columns.numbers["sender"], return_index=True, return_inverse=True)
            agents = columns.texts.take(first)["agent_id"]
            totals.baselines.update(zip(agents, self._watch.readiness(ids), strict=False))
            cost = np.bincount(row, columns.numbers["cost"] / 1e9)
            tokens = np.bincount(row, columns.numbers["tokens"] / 1e3)
            totals.cost_usd += float(cost.sum())
            totals.effective_tokens += float(tokens.sum())
            for agent, dollars, used in zip(agents, cost.tolist(), tokens.tolist(), strict=True):
                before = totals.spend.get(agent, (0.0, 0.0))
                totals.spend[agent] = (before[0] + dollars, before[1] + used)


def learn(engine: Engine) -> None:
    """Gives an engine the figures of the one partition there is."""
    engine.calibrate(calibration.merge([engine.sketch()]))
