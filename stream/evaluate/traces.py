"""Runs contenders over recorded events, and says which labelled traces they flagged.

A trace is one root run: what a task did from its start to its end.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import msgspec
import numpy as np
from numpy.typing import NDArray

from detectors.base import Detector
from detectors.types import Finding, Ints, Scope
from stream.clock import ManualClock
from stream.columns import Columns
from stream.engine import GRAPH, WATCH, Engine
from stream.errors import BurnfuseError, InputError
from stream.evaluate.base import Contender, Progress
from stream.ingest.ingest import Record
from stream.pipeline import learn, make_ingest
from stream.settings import Settings, default_settings

_BATCH = 20_000
"""Events processed at once: with many entities large batches are cheap, and how they are cut changes nothing."""

_FAR_FUTURE_S = 4e9
"""What the wall clock says: recordings may carry any time."""

_decode = msgspec.json.Decoder(dict[str, Any]).decode
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
    """Lines of a file, plain or gzip.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield from file
    except (OSError, EOFError, zlib.error) as error:
        why = getattr(error, "strerror", None) or "it is damaged"
        raise InputError(f"cannot read {path}: {why}") from error


def json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines, plain or gzip.

    Raises:
        InputError: the file cannot be read, or holds something else.
    """
    found = []
    for number, line in enumerate(lines(path), 1):
        if line.strip():
            try:
                found.append(_decode(line))
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise InputError(f"{path}:{number} is no JSON object") from error
    return found


class Recording(Sequence[bytes]):
    """Native events in order of time, as records; ingested once, however many contenders run over them."""

    def __init__(self, records: Iterable[bytes]) -> None:
        self._records = list(records)
        self._key = b""
        self._ingested: Ingested | None = None

    def __len__(self) -> int:
        return len(self._records)

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> Recording: ...
    def __getitem__(self, index: int | slice) -> bytes | Recording:
        return Recording(self._records[index]) if isinstance(index, slice) else self._records[index]

    def ingested(self, settings: Settings) -> Ingested:
        """The events as columns; they depend on how input, weights and prices are configured."""
        key = _encode((settings.input.model_dump(), settings.effective_tokens.model_dump(), settings.prices))
        if self._ingested is None or key != self._key:
            ingest = make_ingest(settings, lambda _, line: str(line), ManualClock(_FAR_FUTURE_S), None)
            columns, _ = ingest.columns([Record(value, 0, i) for i, value in enumerate(self._records)])
            self._key, self._ingested = key, Ingested.of(columns)
        return self._ingested


@dataclass(frozen=True, slots=True)
class Ingested:
    """What all contenders see of a recording."""

    columns: Columns
    """(n,) the events that could be taken."""
    batches: Sequence[Mapping[tuple[Scope, ...], tuple[Ints, Columns]]]
    """For each engine (WATCH, GRAPH) what it is given of a batch, and where that stands among all events."""
    roots: dict[str, int]
    """Root run -> its number, in order of appearance."""
    root: Ints
    """(n,) number of each event's root run."""
    start: NDArray[np.float64]
    """(roots,) time of the first event."""
    spent: Ints
    """(n,) nano-dollars of the root run up to and including the event."""

    @classmethod
    def of(cls, columns: Columns) -> Ingested:
        batches = []
        for low in range(0, len(columns), _BATCH):
            at = np.arange(low, min(low + _BATCH, len(columns)))
            tree = at[columns.numbers["in_tree"][at]]
            batches.append({WATCH: (at, columns.cut(low, low + _BATCH)), GRAPH: (tree, columns.take(tree))})
        roots: dict[str, int] = {}
        root = np.array([roots.setdefault(name, len(roots)) for name in columns.texts["root_run_id"]], np.int64)
        order = np.argsort(root, kind="stable")
        total = np.cumsum(columns.numbers["cost"][order])
        _, first = np.unique(root[order], return_index=True)
        before = np.r_[0, total][first]
        spent = np.empty(len(root), np.int64)
        spent[order] = total - before[root[order]]
        return cls(columns, batches, roots, root, columns.numbers["ts"][order][first], spent)


def encoded(events: Iterable[dict[str, Any]]) -> Recording:
    """Events as records."""
    return Recording(_encode(event) for event in events)


def found(
    recording: Recording, contender: Contender, progress: Progress = lambda _: None, settings: Settings | None = None
) -> list[tuple[int, Finding]]:
    """What a contender finds, in order: number of the event among `Recording.ingested`, and the finding.

    Args:
        settings: Instead of the contender's.

    Raises:
        BurnfuseError: a detector failed; its silence would look like a verdict.
    """
    settings = settings or contender.settings or default_settings()
    ingested = recording.ingested(settings)
    made, scopes_needed = contender.make(), contender.scopes

    def name_of(source: int, position: int) -> str:
        return str(position)

    engines = {
        WATCH: Engine(settings, WATCH, name_of, learn, only=made),
        GRAPH: Engine(settings, GRAPH, name_of, learn, only=made),
    }
    pairs: list[tuple[int, Finding]] = []
    for done, batch in enumerate(ingested.batches, 1):
        for scopes, (at, columns) in batch.items():
            if scopes_needed & set(scopes):
                result = engines[scopes].process(columns)
                pairs += zip(at[result.positions].tolist(), result.findings, strict=True)
        progress(done / len(ingested.batches))
    for name, error in (engines[WATCH].quarantined | engines[GRAPH].quarantined).items():
        raise BurnfuseError(f"detector {name} failed: {error}")
    return sorted(pairs, key=lambda pair: pair[0])


def found_by_each(recording: Recording, contenders: Sequence[Contender]) -> dict[str, list[tuple[int, Finding]]]:
    """As `found`, for contenders of one configuration, by name: a detector runs once however many have it.

    Detectors do not influence each other, so what each finds is what it finds alone; one that reviews what
    others found runs only in its own contender's company.

    Raises:
        BurnfuseError: a detector failed.
    """
    made = {contender.name: contender.make() for contender in contenders}
    apart = {name for name, own in made.items() if any(map(_reviews, own.values()))}
    pool = {name: detector for key, own in made.items() if key not in apart for name, detector in own.items()}
    settings = contenders[0].settings if contenders else None
    pairs = found(recording, Contender("each", lambda: pool, settings=settings))
    by_name = {contender.name: contender for contender in contenders}
    return {
        name: found(recording, by_name[name]) if name in apart else [p for p in pairs if p[1].detector in own]
        for name, own in made.items()
    }


def _reviews(detector: Detector) -> bool:
    return type(detector).review is not Detector.review


def run(
    records: Sequence[bytes],
    contender: Contender,
    progress: Progress = lambda _: None,
    settings: Settings | None = None,
) -> dict[str, Outcome]:
    """What a contender finds, by root run; root runs in order of appearance.

    Args:
        records: Native events in order of time; what ingest would reject is left out. A `Recording` is
            ingested once for all contenders.
        settings: Instead of the contender's.

    Raises:
        BurnfuseError: a detector failed.
    """
    settings = settings or contender.settings or default_settings()
    recording = records if isinstance(records, Recording) else Recording(records)
    ingested = recording.ingested(settings)
    last = np.zeros(len(ingested.roots), np.int64)
    last[ingested.root] = ingested.spent  # of equal roots the last one stays
    outcomes = {
        name: Outcome(float(ingested.start[number]), float(last[number]) / 1e9)
        for name, number in ingested.roots.items()
    }
    names = list(ingested.roots)
    for i, finding in found(recording, contender, progress, settings):
        outcome = outcomes[names[ingested.root[i]]]
        outcome.findings.append(finding)
        if outcome.cost_before is None:
            outcome.cost_before = float(ingested.spent[i]) / 1e9
    return outcomes


def alarms(findings: Iterable[Finding], quiet_s: float = 3600.0) -> list[Finding]:
    """Findings that a person would take for new ones: an entity's first, and any after so long a silence.

    Args:
        findings: In order of time.
    """
    last: dict[tuple[str, ...], float] = {}
    new = []
    for finding in findings:
        entity = {
            Scope.AGENT: (finding.agent_id,),
            Scope.RUN: (finding.agent_id, finding.run_id),
            Scope.ROOT: (finding.root_run_id,),
        }[finding.scope]
        key = (finding.scope, *entity)
        if finding.ts - last.get(key, -np.inf) >= quiet_s:
            new.append(finding)
        last[key] = finding.ts
    return new
