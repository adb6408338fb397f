"""What is fuzzed: one target per decoder. A target takes any bytes, and raises if what must hold does not.

Targets know nothing of a fuzzer: the tests send the corpus through them as well.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import msgspec
import numpy as np

from burnfuse.event import MAX_ID_CHARS, SEQUENCE_HEADER
from detectors import registered
from detectors.base import Detector, FleetFigures, StateError
from detectors.types import Finding, Scope
from stream import calibration, settings
from stream.actions.slack import blocks, text
from stream.batches import sequence_of
from stream.clock import ManualClock
from stream.columns import Columns, Packed
from stream.engine import GRAPH, WATCH
from stream.errors import ConfigError, SavedStateError
from stream.ingest.decode import Invalid, _cut, elements
from stream.ingest.ingest import Ingest, Record
from stream.ingest.reject import Reject
from stream.numeric import NUMBERS
from stream.pipeline import make_ingest
from stream.settings import Settings
from stream.stages import DetectStage, IncidentStage, Topics
from stream.state import Page, Saved, origin
from stream.wire import encode_finding, incident_json

_NOW = 1_790_000_000.0
_TRIES_KEPT = 16
"""Longest list a seed holds: small seeds are mutated faster."""

Shape = Literal["json", "msgpack", "text"]


@dataclass(frozen=True, slots=True)
class Target:
    """One decoder."""

    check: Callable[[bytes], None]
    """Takes any bytes; raises if something is wrong."""
    seeds: Callable[[], Iterable[bytes]]
    """Good inputs to start from."""
    shape: Shape
    """How inputs are written, so that a fuzzer may change a value and leave the rest whole."""


# --------------------------------------------------------------------------------- usage events


@cache
def _defaults() -> Settings:
    return settings.default_settings()


@cache
def _topics() -> Topics:
    return Topics.of(_defaults().kafka)


@cache
def _ingest() -> Ingest:
    return make_ingest(_defaults(), lambda source, line: f"fuzz/{source}/{line}", ManualClock(_NOW), "key")


def native(data: bytes) -> None:
    """A record of the input topic: every event in it becomes a row or a reject, and travels unharmed."""
    record = Record(data, 3, 7, log_ms=int(_NOW * 1000))
    taken = _ingest().events(record)
    columns, rejects = _ingest().columns([record])
    assert len(columns) + len(rejects) == len(taken) or data in (b"[]",), "an event is lost, or there twice"
    assert len(rejects) == sum(isinstance(one, Reject) for one in taken), "the quick way and the long way differ"
    for reject in rejects:
        assert len(reject.detail) < 1000 + MAX_ID_CHARS, "a reject's detail is as large as its record"
    _plausible(columns)
    _same(columns, Packed.decode(Packed(columns, {3: 7}, 8).encode()).columns)
    if len(columns) == 1 and not rejects and data.lstrip()[:1] == b"{":
        again, none = _ingest().columns([Record(b"[" + data + b"]", 3, 7, log_ms=record.log_ms)])
        assert not none, "an event is taken alone and turned away in an array"
        _same(columns, again)


def _plausible(columns: Columns) -> None:
    numbers = columns.numbers
    assert np.isfinite(numbers["ts"]).all(), "an event time is not finite"
    assert (numbers["tokens"] >= 0).all(), "an event uses less than no tokens"
    assert (numbers["cost"] >= 0).all(), "an event costs less than nothing"


def _same(a: Columns, b: Columns) -> None:
    for name in NUMBERS:
        assert a.numbers[name].tobytes() == b.numbers[name].tobytes(), f"column {name} differs"
    for name in a.texts:
        # Half a surrogate pair does not travel, and does not come in either.
        assert a.texts[name] == b.texts[name], f"texts {name} differ"


def array(data: bytes) -> None:
    """The cutter of arrays: an array nobody can read as a whole gives the same elements as one that is whole."""
    whole = b"[" + data
    try:
        items = list(elements(whole))
    except Invalid:
        return
    try:
        parsed = msgspec.json.decode(whole, type=list[msgspec.Raw])
    except (msgspec.DecodeError, RecursionError):
        assert sum(len(item) for item in map(bytes, items)) <= len(whole), "the cutter made bytes up"
        return
    pieces = _cut(whole)
    if not parsed:
        assert not b"".join(pieces).strip()
        return
    assert [piece.strip() for piece in pieces] == [bytes(item).strip() for item in parsed], "cut in the wrong place"


def _native_seeds() -> Iterator[bytes]:
    for event in _EVENTS:
        yield json.dumps(event).encode()
    yield json.dumps(_EVENTS[:3]).encode()
    yield b'[{"agent_id":"a","ts":1.5},{"agent_id":"a","ts":2'
    yield b'{"agent_id":"a\\ud83d\\ude00\\ud800","ts":"2026-01-01T00:00:00Z"}'


_EVENTS: list[dict[str, Any]] = [
    {"agent_id": "a", "ts": 1790000000.5, "event_id": "e1", "input_tokens": 10, "output_tokens": 3, "model": "gpt-4o",
     "cached_input_tokens": 2, "cost_usd": 0.5, "finish_reason": "length", "latency_ms": 12.5, "attempt": 1},
    {"agent_id": "a", "ts": "2026-01-01T00:00:00.5+02:00", "kind": "tool", "tool": "read:file", "run_id": "r",
     "args": {"path": "/a/b.c", "action": "view", "n": [1, 2.5, None]}, "result": {"error": "no", "time": "12:00"},
     "status": "error", "error_type": "Timeout", "http_status": 429},
    {"agent_id": "a", "ts": 1790000000123456789, "kind": "message", "to_agent_id": "b", "args": "hello",
     "root_run_id": "t", "round_id": "1", "tenant": "x", "team": "y", "user": "z"},
    {"agent_id": "a", "ts": 1, "kind": "spawn", "to_run_id": "c", "parent_run_id": "p", "parent_agent_id": "q"},
    {"agent_id": "a", "ts": 2, "kind": "outcome", "outcome": "done", "value": 1.0, "attributes": {"k": []}},
    {"agent_id": "a", "ts": 3, "kind": "compaction", "args_hash": "h", "result_hash": "g", "target_hash": "f"},
]  # fmt: skip


# ------------------------------------------------------------------------------- the inner topics


def packed(data: bytes) -> None:
    """A record of an inner topic: taken or turned away, and it stops neither the stage nor a detector."""
    for scopes in (WATCH, GRAPH):
        clock = ManualClock(_NOW)
        stage = DetectStage(_defaults(), _topics(), scopes, "fuzz/0", clock)
        if stage.add(data, "token") is not None:
            continue
        messages, done = stage.step()
        # All was read, and the input's partitions are silent for so long that nobody waits for them any more.
        clock.advance(60.0)
        stage.read_up_to(1, clock.monotonic())
        more, late = stage.step()
        assert done + late == ["token"], "a record is never done"
        assert not stage.engine.quarantined, f"one record switches off {stage.engine.quarantined}"
        for message in messages + more:
            if message.topic == _topics().findings:
                finding(message.value)
        stage.clock_message()


def _packed_seeds() -> Iterator[bytes]:
    yield Packed(Columns.empty(), {0: 5, 3: 7}, 8).encode()
    for times in (1, 8):
        records = [
            Record(json.dumps(event | {"ts": _NOW + i}).encode(), 0, i, log_ms=int((_NOW + i) * 1000))
            for i, event in enumerate(_EVENTS * times)
        ]
        yield Packed(_ingest().columns(records)[0], {0: int(_NOW * 1000) + 100_000}, 1).encode()


def finding(data: bytes) -> None:
    """A record of the findings topic: it changes incidents that can be told to people, or is a dead letter."""
    stage = IncidentStage(_defaults().incidents, _topics(), ManualClock(_NOW))
    changes, letter = stage.process(data)
    assert letter is None or not changes
    again, _ = stage.process(data)
    assert not [change for change in again if change.kind == "opened"], "one finding opens two incidents"
    changes += again + stage.incidents.idle(1e4, next(iter(stage.incidents.sources), ""))
    for change in changes:
        told = json.loads(msgspec.json.encode(incident_json(change.incident)))
        assert told["id"] == change.incident.id
        assert text(change.incident)
        assert len(blocks(change.incident)) == 3


def _finding_seeds() -> Iterator[bytes]:
    yield b'{"type":"clock","source":"bf.events/0","clock":1790000000.0}'
    for scope in Scope:
        found = Finding(
            "f-1", "runaway", "burn_rate", "critical", scope, _NOW, "a", "r", "t", "e", 0.5, 2.0, 1.0, "tokens/min",
            "it burns", {"cost_usd": 1.5, "effective_tokens": 10.0, "calls": 3},
        )  # fmt: skip
        yield encode_finding(found, _NOW, "bf.events/0")
        yield encode_finding(found, -math.inf, "")


def headers(data: bytes) -> None:
    """The sequence number of a record: a number that fits into its column, whatever the headers hold."""
    for values in ((data,), (None, data), (data[:8], data[8:])):
        assert 0 <= sequence_of([(SEQUENCE_HEADER, value) for value in values]) < 1 << 63
    assert sequence_of(()) == 0


def calibrations(data: bytes) -> None:
    """Figures of the fleet: taken as written, or refused; what is taken can be added up and asked."""
    try:
        figures = calibration.decode(data, "fuzz")
    except ConfigError:
        return
    assert calibration.decode(calibration.encode(figures), "fuzz") == figures
    calibration.merge([figures.counts, figures.counts])
    for name in [*figures.counts][:_TRIES_KEPT]:
        figures.quantile(name, 0.99)
        figures.largest(name, 3)
        figures.exceeded_by(name, 0.01)
        figures.groups(name.partition("/")[0])


def _calibration_seeds() -> Iterator[bytes]:
    yield calibration.encode(FleetFigures())
    spend = [0] * 50 + [3, 4] + [0] * 548
    yield calibration.encode(calibration.merge([{"spend": spend, "spend/00000000000000ff": [1]}]))


# -------------------------------------------------------------------------------- saved state

_ROWS = np.arange(2)


@cache
def _fresh() -> dict[str, Detector]:
    return {name: cls(cls.Config()) for name, cls in registered().items()}


def pages(data: bytes) -> None:
    """A page of a detector's state: taken whole or refused whole."""
    for name, detector in _fresh().items():
        before = detector.dump(_ROWS)
        try:
            detector.load(_ROWS, data)
        except StateError:
            assert detector.dump(_ROWS) == before, f"{name} took a part of a page it refused"
            continue
        after = detector.dump(_ROWS)
        other = registered()[name](detector.Config())
        other.load(_ROWS, after)
        assert other.dump(_ROWS) == after, f"{name} does not keep what it loads"
        detector.forget(_ROWS)


def shared_pages(data: bytes) -> None:
    """A page of what a detector's entities share: taken or refused; what is taken can be published."""
    if not data:
        return
    for name, cls in registered().items():
        detector = cls(cls.Config())
        try:
            detector.load_shared(data)
        except StateError:
            continue
        after = detector.dump_shared()
        calibration.merge([detector.sketch()])
        other = cls(cls.Config())
        other.load_shared(after)
        assert other.dump_shared() == after, f"{name} does not keep what it loads"


def _seasoned() -> Iterator[Detector]:
    """Detectors that have seen a few minutes of three agents at work."""
    for scopes in (WATCH, GRAPH):
        stage = DetectStage(_defaults(), _topics(), scopes, "fuzz/0", ManualClock(_NOW))
        records = []
        for i in range(600):
            event = _EVENTS[i % 4] | {"agent_id": f"a{i % 3}", "ts": _NOW + 10 * i, "event_id": f"e{i}"}
            records.append(Record(json.dumps(event).encode(), 0, i, log_ms=int((_NOW + 10 * i) * 1000)))
        stage.engine.process(_ingest().columns(records)[0])
        yield from stage.engine._detectors.values()


def _page_seeds() -> Iterator[bytes]:
    for detector in _seasoned():
        yield detector.dump(_ROWS)


def _shared_seeds() -> Iterator[bytes]:
    for detector in _seasoned():
        yield detector.dump_shared()


_HERE = origin("fuzz", 1, None)


def checkpoints(data: bytes) -> None:
    """Saved states: taken or refused; who goes on from one can save it again, and has all its detectors."""
    try:
        pages = msgspec.msgpack.decode(data, type=list[tuple[bytes, bytes | None]])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return
    saved = Saved()
    saved.take(Page(key, value) for key, value in pages)
    for scopes in (WATCH, GRAPH):
        stage = DetectStage(_defaults(), _topics(), scopes, "fuzz/0", ManualClock(_NOW))
        with contextlib.suppress(SavedStateError):
            list(stage.restore(saved, _HERE))
            stage.checkpoint(_HERE, everything=True)
            assert not stage.engine.quarantined, f"a saved state switches off {stage.engine.quarantined}"
    incident_stage = IncidentStage(_defaults().incidents, _topics(), ManualClock(_NOW))
    with contextlib.suppress(SavedStateError):
        list(incident_stage.restore(saved, _HERE))
        incident_stage.checkpoint(_HERE, everything=True)


def _checkpoint_seeds() -> Iterator[bytes]:
    records = [Record(json.dumps(event | {"ts": _NOW + i}).encode(), 0, i) for i, event in enumerate(_EVENTS * 4)]
    for scopes in (WATCH, GRAPH):
        stage = DetectStage(_defaults(), _topics(), scopes, "fuzz/0", ManualClock(_NOW))
        stage.engine.process(_ingest().columns(records)[0])
        yield msgspec.msgpack.encode([tuple(page) for page in stage.checkpoint(_HERE)])
    incident_stage = IncidentStage(_defaults().incidents, _topics(), ManualClock(_NOW))
    for i, seed in enumerate(_finding_seeds()):
        for change in incident_stage.process(seed, i)[0]:
            incident_stage.begin(change)
    yield msgspec.msgpack.encode([tuple(page) for page in incident_stage.checkpoint(_HERE)])


# ------------------------------------------------------------------------------------ settings


def configuration(data: bytes) -> None:
    """A configuration file: taken, or refused for what is told."""
    try:
        settings.parse(data.decode(errors="surrogateescape"), "fuzz")
    except ConfigError:
        return


def _configuration_seeds() -> Iterator[bytes]:
    yield b"kafka:\n  bootstrap_servers: [a:1]\n  hold_s: 5.0\n  partitions: 3\n"
    yield b"detectors:\n  runaway: {enabled: false}\n  null: {enabled: true}\nactions:\n  slack:\n    channel: '#a'\n"
    yield b"prices: {m: {input: 1.0, output: 2}}\ninput: {volatile: {t: {args: [a, b.c]}}, tool_kinds: {x: poll}}\n"
    yield b"a: &x [1]\nb: *x\nc: 2026-02-31\nd: !!binary aGk=\n? [1]\n: 2\n<<: {a: 1}\n"


TARGETS: dict[str, Target] = {
    "native": Target(native, _native_seeds, "json"),
    "array": Target(array, _native_seeds, "json"),
    "packed": Target(packed, _packed_seeds, "msgpack"),
    "finding": Target(finding, _finding_seeds, "json"),
    "headers": Target(headers, lambda: [b"", (5).to_bytes(8, "big"), b"\xff" * 8], "text"),
    "calibration": Target(calibrations, _calibration_seeds, "json"),
    "pages": Target(pages, _page_seeds, "msgpack"),
    "shared_pages": Target(shared_pages, _shared_seeds, "msgpack"),
    "checkpoints": Target(checkpoints, _checkpoint_seeds, "msgpack"),
    "configuration": Target(configuration, _configuration_seeds, "text"),
}
