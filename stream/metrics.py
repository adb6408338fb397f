"""Metrics: every one declared in one table, kept in a registry of our own, counted once per batch.

The only file that knows Prometheus. Labels have few values, all known beforehand: topics, partitions, names of
detectors and actions, never ids of agents or runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import prometheus_client as prometheus

from detectors.types import SEVERITIES, Finding
from stream.clock import Clock, SystemClock
from stream.incidents import Incident
from stream.ingest.reject import Reason, Reject

# When each counter was made is of no use, and doubles the page.
prometheus.disable_created_metrics()  # type: ignore[no-untyped-call]

PREFIX = "burnfuse_"


@dataclass(frozen=True, slots=True)
class Declared:
    """A metric as it is told to monitoring systems and to readers of docs/metrics.md."""

    name: str
    """Without the prefix; counters end in _total, times are in seconds."""
    kind: Literal["counter", "gauge", "histogram"]
    unit: str
    help: str
    alert: str
    """What is worth an alert, in one line."""
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


_BATCH_S = (0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 15.0)
_CHECKPOINT_S = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0)
_PIECE_S = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)

DECLARED: tuple[Declared, ...] = (
    # Events
    Declared(
        "events_taken_total",
        "counter",
        "events",
        "Events the detectors have taken in.",
        "stands still while the input topic grows",
    ),
    Declared(
        "events_rejected_total",
        "counter",
        "events",
        "Events turned away, by reason; each has a dead letter.",
        "more than 1% of the events taken: a producer sends what cannot be read",
        ("reason",),
    ),
    Declared(
        "events_duplicate_total",
        "counter",
        "events",
        "Events that came again and changed nothing.",
        "no alert: producers and restarts repeat events",
    ),
    Declared(
        "batch_seconds",
        "histogram",
        "s",
        "Time a batch took, by stage: ingest, watch, graph, incidents.",
        "a 99th percentile above 5 s: findings come late by as much",
        ("stage",),
        _BATCH_S,
    ),
    Declared(
        "batch_records_total",
        "counter",
        "records",
        "Records read, by stage.",
        "no alert: for rates and sizes of batches",
        ("stage",),
    ),
    # How far behind
    Declared(
        "lag_records",
        "gauge",
        "records",
        "Records on a topic's partition that are not done yet.",
        "no alert of its own: see lag_seconds, which means the same at any rate",
        ("topic", "partition"),
    ),
    Declared(
        "lag_seconds",
        "gauge",
        "s",
        "How long ago the end of a partition lay where the worker is now; 0 if all is done.",
        "above 60 s for 5 min: findings come late by as much",
        ("topic", "partition"),
    ),
    Declared(
        "watermark_delay_seconds",
        "gauge",
        "s",
        "Wall clock minus stream clock (event time) of a partition; of replayed streams the age of their events.",
        "rises on all partitions while lag_seconds is low: producers send late, or their clocks are wrong",
        ("topic", "partition"),
    ),
    Declared(
        "records_waiting",
        "gauge",
        "records",
        "Records that were read and wait for a stage, by topic; bounded (backpressure).",
        "no alert: it is full whenever the worker is behind",
        ("topic",),
    ),
    Declared(
        "events_held",
        "gauge",
        "events",
        "Events that wait until no earlier one can come, by topic.",
        "grows for minutes: an input partition is not read by anybody",
        ("topic",),
    ),
    # Overload
    Declared(
        "overloaded",
        "gauge",
        "0 or 1",
        "Whether the worker is overloaded and leaves out the second stage.",
        "1 for 10 min: add a worker, or find out who sends so much",
    ),
    Declared(
        "shed_events_total",
        "counter",
        "events",
        "Events a detector of the second stage was not shown because of overload.",
        "as overloaded",
        ("detector",),
    ),
    # What is found
    Declared(
        "findings_total",
        "counter",
        "findings",
        "Findings, by detector and severity.",
        "ten times the usual rate: a release, or a broken tool that many agents share",
        ("detector", "severity"),
    ),
    Declared(
        "detector_quarantined",
        "gauge",
        "partitions",
        "Partitions in which a detector is switched off, because it failed, until the worker starts again.",
        "above 0: that detector finds nothing there",
        ("detector",),
    ),
    Declared(
        "incidents_open",
        "gauge",
        "incidents",
        "Open incidents, by severity; told by the worker that folds them.",
        "criticals for 15 min: somebody must look",
        ("severity",),
    ),
    # Actions
    Declared(
        "actions_total",
        "counter",
        "calls",
        "What came of an action on an incident (sent, skipped, retried, failed, coalesced, dropped), by action "
        "(slack, kill, ...) and state of the incident.",
        "failed or dropped at all: on-call was not told",
        ("action", "state", "outcome"),
    ),
    Declared(
        "actions_waiting",
        "gauge",
        "incidents",
        "Incidents whose newest state still has to be told, by action.",
        "above 50 for 10 min: the other side is down or too slow",
        ("action",),
    ),
    # State
    Declared(
        "checkpoint_age_seconds",
        "gauge",
        "s",
        "Time since the last checkpoint of a partition was complete, of the partition where it is longest; NaN where "
        "there is none.",
        "above 60 s for 5 min: a restart would go back as far",
    ),
    Declared(
        "checkpoint_seconds",
        "histogram",
        "s",
        "Time a checkpoint of a partition took, until Kafka had it.",
        "no alert: for tuning",
        (),
        _CHECKPOINT_S,
    ),
    Declared(
        "checkpoint_piece_seconds",
        "histogram",
        "s",
        "Time the event loop stood still for a piece of a checkpoint; the sum is what making checkpoints took.",
        "no alert: for tuning",
        (),
        _PIECE_S,
    ),
    Declared(
        "checkpoint_bytes_total",
        "counter",
        "bytes",
        "State written in checkpoints, before compression.",
        "no alert: for capacity planning",
    ),
    # The worker itself
    Declared(
        "ready",
        "gauge",
        "0 or 1",
        "What /readyz says: partitions assigned, state restored, Kafka reachable.",
        "0 for 5 min: nothing is watched by this worker",
    ),
    Declared(
        "event_loop_delay_seconds",
        "gauge",
        "s",
        "How long the event loop has not turned; /healthz fails above metrics.hang_s.",
        "above 10 s: batches are too large or the machine is too slow",
    ),
    Declared(
        "kafka_silence_seconds",
        "gauge",
        "s",
        "Time since a broker last answered; NaN before the first answer.",
        "above 60 s: Kafka cannot be reached",
    ),
    Declared(
        "partitions_assigned",
        "gauge",
        "partitions",
        "Partitions this worker reads, all topics together.",
        "the sum over all workers is not what the topics have",
    ),
)

OUTCOMES = ("sent", "skipped", "retried", "failed", "coalesced", "dropped")
"""What can come of an action: coalesced means that a newer state of the same incident took its place, dropped
that too many incidents waited."""


@dataclass(frozen=True, slots=True)
class PartitionState:
    """How far a worker is on one partition."""

    topic: str
    partition: int
    lag_records: int | None = None
    """Records that are not done; None: Kafka has not said."""
    lag_s: float = 0.0
    watermark_delay_s: float | None = None
    """Wall clock minus stream clock; None: no detectors there, or no event yet."""
    held: int | None = None
    """Events that wait for their turn; None: no detectors there."""


class Metrics:
    """All metrics of one worker."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self.registry = prometheus.CollectorRegistry()
        prometheus.ProcessCollector(registry=self.registry)
        self._of: dict[str, Any] = {}
        for one in DECLARED:
            kind = {"counter": prometheus.Counter, "gauge": prometheus.Gauge, "histogram": prometheus.Histogram}
            more: dict[str, Any] = {"buckets": one.buckets} if one.buckets else {}
            self._of[one.name] = kind[one.kind](PREFIX + one.name, one.help, one.labels, registry=self.registry, **more)
        self._checkpoint_at: dict[str, float] = {}
        self._of["checkpoint_age_seconds"].set_function(self._checkpoint_age_s)
        for name in ("kafka_silence_seconds",):
            self._of[name].set(float("nan"))
        # What may be alerted on must be there before it happens for the first time: rates start from a 0.
        for severity in SEVERITIES:
            self._of["incidents_open"].labels(severity)
        for reason in Reason:
            if reason is not Reason.DUPLICATE:
                self._of["events_rejected_total"].labels(reason.value)

    def wsgi(self) -> Any:
        """The page with all metrics, as a WSGI application."""
        return prometheus.make_wsgi_app(self.registry)

    # ------------------------------------------------------------------------------------ events

    def batch(self, stage: str, seconds: float, records: int) -> None:
        """A stage has finished a batch."""
        self._of["batch_seconds"].labels(stage).observe(seconds)
        self._of["batch_records_total"].labels(stage).inc(records)

    def taken(self, events: int) -> None:
        """Detectors took events in."""
        self._of["events_taken_total"].inc(events)

    def rejected(self, rejects: Sequence[Reject]) -> None:
        """Events were turned away."""
        for reason, n in Counter(reject.reason for reject in rejects).items():
            if reason is Reason.DUPLICATE:
                self._of["events_duplicate_total"].inc(n)
            else:
                self._of["events_rejected_total"].labels(reason.value).inc(n)

    def found(self, findings: Sequence[Finding]) -> None:
        """Detectors made findings."""
        for (detector, severity), n in Counter((f.detector, f.severity) for f in findings).items():
            self._of["findings_total"].labels(detector, severity).inc(n)

    def shed(self, events: Mapping[str, int]) -> None:
        """Detectors, by name, were not shown so many events."""
        for detector, n in events.items():
            self._of["shed_events_total"].labels(detector).inc(n)

    # ------------------------------------------------------------------------------ how things stand

    def partitions(self, states: Iterable[PartitionState]) -> None:
        """How far this worker is on all its partitions; what is not named is not its own any more."""
        by_partition = ("lag_records", "lag_seconds", "watermark_delay_seconds")
        for name in (*by_partition, "events_held"):
            self._of[name].clear()
        held: Counter[str] = Counter()
        for state in states:
            values = (state.lag_records, state.lag_s, state.watermark_delay_s)
            for name, value in zip(by_partition, values, strict=True):
                if value is not None:
                    self._of[name].labels(state.topic, str(state.partition)).set(value)
            if state.held is not None:
                held[state.topic] += state.held
        for topic, n in held.items():
            self._of["events_held"].labels(topic).set(n)

    def waiting(self, records: Mapping[str, int]) -> None:
        """Records that were read and wait for a stage, by topic."""
        for topic, n in records.items():
            self._of["records_waiting"].labels(topic).set(n)

    def overloaded(self, on: bool) -> None:
        """The worker is overloaded, or no longer."""
        self._of["overloaded"].set(on)

    def quarantined(self, partitions: Mapping[str, int]) -> None:
        """In how many partitions detectors, by name, are switched off."""
        for detector, n in partitions.items():
            self._of["detector_quarantined"].labels(detector).set(n)

    def incidents(self, open_: Iterable[Incident]) -> None:
        """The incidents that are open."""
        counts = Counter(incident.severity for incident in open_)
        for severity in SEVERITIES:
            self._of["incidents_open"].labels(severity).set(counts[severity])

    def worker(
        self, ready: Callable[[], bool], loop_delay_s: Callable[[], float], silence_s: Callable[[], float]
    ) -> None:
        """Where to ask, at each scrape, how the worker itself is."""
        self._of["ready"].set_function(lambda: float(ready()))
        self._of["event_loop_delay_seconds"].set_function(loop_delay_s)
        self._of["kafka_silence_seconds"].set_function(silence_s)

    def assigned(self, partitions: int) -> None:
        """So many partitions are this worker's."""
        self._of["partitions_assigned"].set(partitions)

    # ----------------------------------------------------------------------------- actions and state

    def action(self, action: str, state: str, outcome: str) -> None:
        """An action on an incident came to one of OUTCOMES."""
        self._of["actions_total"].labels(action, state, outcome).inc()

    def actions_waiting(self, action: str, incidents: int) -> None:
        """So many incidents wait for an action."""
        self._of["actions_waiting"].labels(action).set(incidents)

    def checkpoint(self, name: str, seconds: float, size: int) -> None:
        """A checkpoint of a partition, of so many bytes, is complete; it took so long."""
        self._checkpoint_at[name] = self._clock.monotonic()
        self._of["checkpoint_seconds"].observe(seconds)
        self._of["checkpoint_bytes_total"].inc(size)

    def checkpoint_piece(self, seconds: float) -> None:
        """A piece of a checkpoint was made; nothing else could happen for so long."""
        self._of["checkpoint_piece_seconds"].observe(seconds)

    def no_checkpoint(self, name: str) -> None:
        """The partition's state is kept elsewhere now."""
        self._checkpoint_at.pop(name, None)

    def _checkpoint_age_s(self) -> float:
        # A scrape comes from another thread.
        moments = list(self._checkpoint_at.values())
        return self._clock.monotonic() - min(moments) if moments else float("nan")
