"""Runs contenders over recorded events, and says which labelled traces they flagged.

A trace is one root run: what a task did from its start to its end.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from detectors.types import Finding
from stream import calibration
from stream.clock import ManualClock
from stream.engine import GRAPH, WATCH, Engine
from stream.evaluate.base import Contender, Progress
from stream.ingest.ingest import Record
from stream.pipeline import make_ingest
from stream.settings import Settings, default_settings

_BATCH = 1000
_FAR_FUTURE_S = 4e9
"""What the wall clock says: recordings may carry any time."""

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


@dataclass(slots=True)
class Outcome:
    """What happened in one root run."""

    start: float
    """Event time of its first event, s."""
    cost_usd: float = 0.0
    """Dollars it burnt, where known."""
    findings: list[Finding] = field(default_factory=list)
    cost_before: float | None = None
    """Dollars it had burnt when it was first flagged."""


def lines(path: Path) -> Iterator[bytes]:
    """Lines of a file, plain or gzip."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        yield from file


def json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines, plain or gzip."""
    return [_decode(line) for line in lines(path) if line.strip()]


def encoded(events: Iterable[dict[str, Any]]) -> list[bytes]:
    """Events as records."""
    return [_encode(event) for event in events]


def run(
    records: Sequence[bytes],
    contender: Contender,
    progress: Progress = lambda _: None,
    settings: Settings | None = None,
) -> dict[str, Outcome]:
    """What a contender finds, by root run; root runs in order of appearance.

    Args:
        records: Native events in order of time; what ingest would reject is left out.
    """
    settings = settings or default_settings()
    ingest = make_ingest(settings, lambda _, line: str(line), ManualClock(_FAR_FUTURE_S), None)
    made = contender.make()

    def name_of(source: int, position: int) -> str:
        return str(position)

    def learn(engine: Engine) -> None:
        engine.calibrate(calibration.merge([engine.sketch()]))

    watch = Engine(settings, WATCH, name_of, learn, only=made)
    graph = Engine(settings, GRAPH, name_of, only=made)
    outcomes: dict[str, Outcome] = {}
    for low in range(0, len(records), _BATCH):
        part = [Record(value, 0, low + i) for i, value in enumerate(records[low : low + _BATCH])]
        columns, _ = ingest.columns(part)
        watched = watch.process(columns)
        in_tree = np.flatnonzero(columns.numbers["in_tree"])
        graphed = graph.process(columns.take(in_tree))
        found: dict[int, list[Finding]] = {}
        for at, finding in zip(watched.positions, watched.findings, strict=True):
            found.setdefault(at, []).append(finding)
        for at, finding in zip(graphed.positions, graphed.findings, strict=True):
            found.setdefault(int(in_tree[at]), []).append(finding)
        for i, root in enumerate(columns.texts["root_run_id"]):
            outcome = outcomes.setdefault(root, Outcome(float(columns.numbers["ts"][i])))
            outcome.cost_usd += float(columns.numbers["cost"][i]) / 1e9
            if i in found:
                outcome.findings += found[i]
                if outcome.cost_before is None:
                    outcome.cost_before = outcome.cost_usd
        progress(min(1.0, (low + _BATCH) / len(records)))
    return outcomes
