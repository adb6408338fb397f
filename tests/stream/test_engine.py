"""Detectors over the events of one partition: order, duplicates, lifetimes, isolation of failures."""

from __future__ import annotations

import itertools
import logging
import math
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from detectors import base
from detectors.base import Detector, DetectorConfig, FleetFigures, Spec
from detectors.types import EventBatch, Finding, Ints, Kind, Scope
from stream.columns import TEXTS, Columns
from stream.engine import GRAPH, WATCH, Engine, Result
from stream.ingest.hashing import Hasher, join
from stream.ingest.reject import Reason
from stream.numeric import NUMBERS
from stream.settings import Settings, default_settings, parse

START = 1_750_000_200.0
"""A mark of the stream clock."""
HOUR = 3600.0


# ------------------------------------------------------------------------------------------ events


@dataclass(frozen=True, slots=True)
class Event:
    """An event as ingest leaves it; hashes are small numbers."""

    at: float = 0.0
    """Seconds after START."""
    event_id: str = ""
    agent_id: str = "agent"
    run_id: str = "run"
    root_run_id: str = "root"
    parent_run_id: str = ""
    to_agent_id: str = ""
    to_run_id: str = ""
    tool: str = "search"
    kind: Kind = Kind.TOOL
    failed: bool = False
    http_status: int = 0
    signature: int = 0
    result: int = 0
    round: int = 0
    receiver: int = 0
    tokens: int = 0
    cost: int = 0


_ids = itertools.count()


def columns(events: Sequence[Event]) -> Columns:
    """The events as columns; their positions are their numbers."""
    texts = {name: [str(getattr(event, name)) for event in events] for name in TEXTS}
    texts["event_id"] = [event.event_id or f"id {next(_ids)}" for event in events]
    known = {field.name for field in fields(Event)}
    numbers = {
        name: np.array([getattr(event, name) for event in events], dtype)
        if name in known
        else np.zeros(len(events), dtype)
        for name, dtype in NUMBERS.items()
    }
    numbers["ts"] = START + np.array([event.at for event in events], float)
    numbers["position"] = np.arange(len(events))
    hasher = Hasher()
    numbers["event"] = hasher.texts("event", texts["event_id"])
    numbers["sender"] = hasher.texts("agent", texts["agent_id"])
    numbers["run"] = join(numbers["sender"], hasher.texts("run", texts["run_id"]))
    numbers["root"] = hasher.texts("run", texts["root_run_id"])
    return Columns(texts, numbers)


def every(gap: float, events: Iterable[Event], start: float = 0.0) -> list[Event]:
    return [_at(event, start + gap * i) for i, event in enumerate(events)]


def _at(event: Event, at: float) -> Event:
    return Event(at, *(getattr(event, field.name) for field in fields(event)[1:]))


# --------------------------------------------------------------------------------- made-up detectors


class Recorder(Detector):
    """Keeps what it is shown, and finds every tool call named "find me"."""

    spec: ClassVar[Spec] = Spec("recorder", version=1, scope=Scope.RUN)

    def __init__(self, config: DetectorConfig) -> None:
        self.tables = {}
        self.seen: list[dict[str, Any]] = []
        self.forgotten: list[int] = []
        self.batches: list[int] = []
        self.figures: list[FleetFigures] = []
        made.append(self)

    def update(self, batch: EventBatch) -> list[Finding]:
        entity = batch.entities[self.spec.scope]
        self.batches.append(len(batch))
        for i, event_id in enumerate(batch.event_id):
            seen = {name: getattr(entity, name)[i].item() for name in ("row", "new", "tokens", "cost")}
            tree = {"spawned": bool(batch.spawned[i]), "depth": int(batch.depth[i])}
            self.seen.append({"event_id": event_id} | seen | tree)
        return [self.finding(batch, i) for i, tool in enumerate(batch.tool) if tool == "find me"]

    def finding(self, batch: EventBatch, i: int) -> Finding:
        return Finding.at(
            batch,
            i,
            detector=self.spec.name,
            rule="found",
            severity="warning",
            scope=self.spec.scope,
            score=0,
            observed=1,
            expected=1,
            unit="calls",
            reason="found",
            evidence={},
        )

    def forget(self, rows: Ints) -> None:
        self.forgotten += rows.tolist()

    def calibrate(self, figures: FleetFigures) -> None:
        self.figures.append(figures)

    def column(self, name: str) -> list[Any]:
        return [seen[name] for seen in self.seen]


made: list[Recorder] = []


class AgentRecorder(Recorder):
    """The same for agents."""

    spec: ClassVar[Spec] = Spec("agent_recorder", version=1, scope=Scope.AGENT)


class RootRecorder(Recorder):
    """The same for root runs."""

    spec: ClassVar[Spec] = Spec("root_recorder", version=1, scope=Scope.ROOT)


class Reviewer(Recorder):
    """Adds to what others found in a batch how many events it had."""

    spec: ClassVar[Spec] = Spec("reviewer", version=1, scope=Scope.AGENT)
    breaks: ClassVar[bool] = False

    def update(self, batch: EventBatch) -> list[Finding]:
        return []

    def review(self, batch: EventBatch, found: Sequence[Finding]) -> list[Finding]:
        if self.breaks:
            raise ZeroDivisionError("a bug")
        return [replace(finding, evidence={"reviewed": len(batch)}) for finding in found]


class Raiser(Recorder):
    """Cannot stand one kind of event, nor one kind of call."""

    spec: ClassVar[Spec] = Spec("raiser", version=1, scope=Scope.RUN)
    on_forget: ClassVar[bool] = False

    def update(self, batch: EventBatch) -> list[Finding]:
        found = super().update(batch)
        if "poison" in batch.tool:
            raise ZeroDivisionError("a bug")
        return found

    def forget(self, rows: Ints) -> None:
        if self.on_forget:
            raise ZeroDivisionError("a bug")


@pytest.fixture(autouse=True)
def _registry(monkeypatch: pytest.MonkeyPatch) -> None:
    made.clear()
    monkeypatch.setattr(base, "_registry", dict(base._registry))


def engine_with(*classes: type[Recorder], scopes: Sequence[Scope] = WATCH, **engine: Any) -> Engine:
    """An engine with these detectors and no others."""
    base._registry.clear()
    for cls in classes:
        base.register(cls)
    return Engine(configured(**engine), scopes, lambda source, position: f"{source}/{position}")


def configured(**engine: Any) -> Settings:
    default = default_settings()
    return default.model_copy(update={"engine": default.engine.model_copy(update=engine)})


def recorder(scopes: Sequence[Scope] = WATCH, cls: type[Recorder] = Recorder, **engine: Any) -> tuple[Engine, Recorder]:
    built = engine_with(cls, scopes=scopes, **engine)
    return built, made[0]


def reasons(result: Result) -> list[Reason]:
    return [reject.reason for reject in result.rejects]


# -------------------------------------------------------------------------------------- duplicates


@pytest.mark.parametrize("cuts", [[], [1], [2], [1, 2, 3]], ids=str)
def test_an_event_that_comes_twice_counts_once(cuts: list[int]) -> None:
    engine, seen = recorder()
    events = [Event(0, "a", tokens=1), Event(1, "b", tokens=10), Event(2, "a", tokens=100), Event(3, "c", tokens=1000)]
    results = process(engine, events, cuts)
    assert seen.column("event_id") == ["a", "b", "c"]
    assert seen.column("tokens") == [1, 11, 1011]
    assert [position for result in results for position in result.accepted] == [0, 1, 3]
    (reject,) = [reject for result in results for reject in result.rejects]
    assert (reject.reason, reject.event_id, reject.source) == (Reason.DUPLICATE, "a", "0/2")


def test_the_memory_for_ids_is_bounded_and_as_long_as_promised() -> None:
    engine, _ = recorder(duplicate_ids=10)
    for i in range(100):
        assert reasons(engine.process(columns([Event(i, f"{i}")]))) == []
        again = [Event(i, f"{k}") for k in range(max(0, i - 9), i + 1)]
        assert reasons(engine.process(columns(again))) == [Reason.DUPLICATE] * len(again)
    assert reasons(engine.process(columns([Event(100, "0")]))) == []


# ---------------------------------------------------------------------------------------- lateness


@pytest.mark.parametrize("cuts", [[], [1], [2], [1, 2]], ids=str)
def test_an_event_far_behind_its_run_is_rejected(cuts: list[int]) -> None:
    engine, seen = recorder(lateness_s=900)
    events = [Event(1000, "new", tokens=1), Event(99, "late", tokens=10), Event(100, "on time", tokens=100)]
    results = process(engine, events, cuts)
    assert seen.column("event_id") == ["new", "on time"]
    assert seen.column("tokens") == [1, 101]
    (reject,) = [reject for result in results for reject in result.rejects]
    assert (reject.reason, reject.event_id, reject.source) == (Reason.LATE, "late", "0/1")
    assert "engine.lateness_s (900 s)" in reject.detail


def test_lateness_is_judged_per_run() -> None:
    engine, seen = recorder(lateness_s=900)
    process(engine, [Event(5000), Event(0, run_id="another"), Event(0, agent_id="another")])
    assert len(seen.seen) == 3


def test_a_run_with_a_wrong_timestamp_recovers() -> None:
    """All its events are late from then on, so it dies, and begins anew."""
    engine, _ = recorder()
    traffic = every(10, [Event(run_id=f"other {i // 100}") for i in range(2000)])
    process(engine, [*traffic[:10], Event(200 * 24 * HOUR), *traffic[10:]])
    assert reasons(engine.process(columns([Event(20_000)]))) == []


# --------------------------------------------------------------------------------- lives and totals


def test_runs_and_agents_have_lives_of_their_own() -> None:
    engine = engine_with(Recorder, AgentRecorder, run_ttl_s=HOUR, agent_ttl_s=48 * HOUR)
    agents, runs = made
    for at in (0, 1, HOUR + 2, 2 * HOUR + 1):
        engine.process(columns([Event(at, tokens=1)]))
    assert runs.column("new") == [True, False, True, False]
    assert runs.column("tokens") == [1, 2, 1, 2]
    assert agents.column("new") == [True, False, False, False]
    assert agents.column("tokens") == [1, 2, 3, 4]


@pytest.mark.parametrize("cuts", [[], [1], [3], [1, 2, 3, 4, 5]], ids=str)
def test_totals_go_on_across_batches(cuts: list[int]) -> None:
    engine, seen = recorder()
    process(engine, [Event(i, run_id="ab"[i % 2], tokens=10**i, cost=2 * 10**i) for i in range(6)], cuts)
    assert seen.column("tokens") == [1, 10, 101, 1010, 10101, 101010]
    assert seen.column("cost") == [2, 20, 202, 2020, 20202, 202020]


def test_a_run_id_used_by_two_agents_is_two_runs() -> None:
    engine, seen = recorder()
    process(engine, [Event(0, agent_id="a", tokens=1), Event(1, agent_id="b", tokens=10)])
    assert seen.column("new") == [True, True]
    assert seen.column("tokens") == [1, 10]


def test_no_events_lead_to_nothing() -> None:
    engine, seen = recorder()
    result = engine.process(Columns.empty())
    assert (result.findings, result.rejects, result.accepted, result.clocks.tolist()) == ([], [], [], [])
    assert seen.batches == []


# --------------------------------------------------------------------------------- the stream clock


def clocks_of(times: Sequence[float]) -> list[float]:
    engine, _ = recorder()
    return (process(engine, [Event(at, run_id=f"{i}") for i, at in enumerate(times)])[0].clocks - START).tolist()


@pytest.mark.parametrize(
    ("times", "clock"),
    [
        pytest.param([0, 1, 2, 3], [-math.inf] * 2 + [0, 1], id="it does not stand before three events"),
        pytest.param([0, 1, 2, 3, 4, 5], [-math.inf] * 2 + [0, 1, 2, 3], id="it follows the median of five"),
        pytest.param([9] * 5 + [0] * 9, [-math.inf] * 2 + [9] * 12, id="it never goes back"),
        pytest.param([0] * 5 + [10**6] * 2 + [0] * 5, [-math.inf] * 2 + [0] * 10, id="two wrong times are ignored"),
        pytest.param([0] * 5 + [10**6] * 3, [-math.inf] * 2 + [0] * 5 + [10**6], id="three are believed"),
        pytest.param(
            [0, 0, 10, 20, 0, 30, 40, 0, 50, 60],
            [-math.inf] * 2 + [0, 0, 0, 10, 20, 20, 30, 40],
            id="old events among the new do not stop it",
        ),
    ],
)
def test_the_stream_clock(times: list[float], clock: list[float]) -> None:
    assert clocks_of(times) == clock


def test_ticks_come_at_marks_of_the_clock_and_cut_the_batch() -> None:
    ticks: list[float] = []
    base._registry.clear()
    base.register(Recorder)
    engine = Engine(configured(tick_s=600), WATCH, lambda *_: "", lambda engine: ticks.append(engine.clock - START))
    process(engine, [Event(at, run_id=f"{at}") for at in range(0, 3000, 100)])
    assert ticks == [600, 1200, 1800, 2400]
    assert made[0].batches == [2 + 6, 6, 6, 6, 4]
    engine.process(columns([Event(100_000, run_id=f"{i}") for i in range(5)]))
    assert ticks[4:] == [100_000]


# ------------------------------------------------------------------------------------- quarantine


def test_a_detector_that_raises_is_left_out_and_the_others_go_on(caplog: pytest.LogCaptureFixture) -> None:
    engine = engine_with(Raiser, Recorder)
    raiser, healthy = made
    with caplog.at_level(logging.ERROR):
        first = process(engine, [Event(0, tool="find me")])[0]
        second = process(engine, [Event(1, tool="find me"), Event(2, tool="poison")])[0]
        third = process(engine, [Event(3, tool="find me")])[0]
    assert [finding.detector for finding in first.findings] == ["raiser", "recorder"]
    assert [finding.detector for finding in (*second.findings, *third.findings)] == ["recorder", "recorder"]
    assert engine.quarantined == {"raiser": "ZeroDivisionError: a bug"}
    assert len(raiser.batches) == 2
    assert len(healthy.seen) == 4
    assert [record.message for record in caplog.records] == ["detector raiser failed and is switched off until restart"]


def test_a_detector_may_review_what_others_found() -> None:
    engine = engine_with(Reviewer, Recorder)
    result = process(engine, [Event(0, tool="find me"), Event(1)])[0]
    assert [(finding.detector, finding.evidence) for finding in result.findings] == [("recorder", {"reviewed": 2})]


def test_a_review_that_raises_leaves_the_findings_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Reviewer, "breaks", True)
    engine = engine_with(Reviewer, Recorder)
    result = process(engine, [Event(0, tool="find me")])[0]
    assert [(finding.detector, finding.evidence) for finding in result.findings] == [("recorder", {})]
    assert engine.quarantined == {"reviewer": "ZeroDivisionError: a bug"}


def test_a_detector_that_raises_in_a_tick_is_left_out_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Raiser, "on_forget", True)
    engine = engine_with(Raiser, Recorder)
    process(engine, every(100, [Event(run_id=f"{i}") for i in range(200)]))
    assert engine.quarantined == {"raiser": "ZeroDivisionError: a bug"}


def test_a_detector_cannot_change_what_the_next_one_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(self: Raiser, batch: EventBatch) -> list[Finding]:
        batch.tokens[:] = 0
        return []

    monkeypatch.setattr(Raiser, "update", spoil)
    engine = engine_with(Raiser, Recorder)
    given_columns = columns([Event(0, tokens=5)])
    engine.process(given_columns)
    assert list(engine.quarantined) == ["raiser"]
    assert made[1].column("tokens") == [5]
    given_columns.numbers["tokens"][0] = 6  # the caller's columns stay the caller's


def test_a_detector_can_be_switched_off() -> None:
    config = parse("detectors: {retry_loop: {enabled: false}}")
    loop = [Event(signature=1, result=1)] * 6
    for settings_, n in ((default_settings(), 2), (config, 0)):
        engine = Engine(settings_, WATCH, lambda *_: "")
        assert len(process(engine, every(2, loop))[0].findings) == n


# ------------------------------------------------------------------------------------------ sweeps


def test_the_dead_are_forgotten_and_their_rows_given_to_others() -> None:
    engine, seen = recorder(run_ttl_s=HOUR)
    process(engine, [Event(0, run_id="dead"), *every(100, [Event(run_id="alive")] * 90)])
    assert seen.forgotten == [0]
    process(engine, [Event(9000, run_id="born", tokens=7)])
    born = seen.seen[-1]
    assert (born["row"], born["new"], born["tokens"]) == (0, True, 7)


def test_rows_are_bounded_by_who_is_alive() -> None:
    engine, seen = recorder(run_ttl_s=HOUR, tick_s=600)
    for day in range(5):
        process(engine, every(60, [Event(run_id=f"{day} {i}") for i in range(1440)], start=day * 24 * HOUR))
    assert max(seen.column("row")) <= (2 * HOUR + 600) / 60 + 10


def test_who_begins_right_after_a_long_pause_is_not_swept() -> None:
    engine, seen = recorder(run_ttl_s=HOUR)
    process(engine, every(10, [Event()] * 10))
    process(engine, every(10, [Event(run_id="later", tokens=1)] * 10, start=100 * HOUR))
    assert seen.column("tokens")[10:] == list(range(1, 11))


# ------------------------------------------------------------------------------------------- trees


def tree(*events: Event) -> tuple[list[bool], list[int]]:
    """Whether each event brings a run into its tree, and how deep it lies."""
    engine, seen = recorder(GRAPH, RootRecorder)
    process(engine, every(1, events))
    return seen.column("spawned"), seen.column("depth")


def works(run: str, parent: str = "", root: str = "root") -> Event:
    return Event(run_id=run, parent_run_id=parent, root_run_id=root, kind=Kind.LLM)


def spawns(run: str, child: str = "", root: str = "root", parent: str = "") -> Event:
    return Event(run_id=run, to_run_id=child, root_run_id=root, parent_run_id=parent, kind=Kind.SPAWN)


def test_a_run_with_a_parent_is_one_level_below_it() -> None:
    spawned, depth = tree(works("root"), works("a", "root"), works("b", "a"), works("b", "a"), works("a", "root"))
    assert spawned == [False, True, True, False, False]
    assert depth == [0, 1, 2, 2, 1]


def test_a_spawn_event_brings_in_its_child_which_then_counts_no_more() -> None:
    spawned, depth = tree(spawns("root", "a"), works("a", "root"), spawns("a", "b"), works("b", "a"), spawns("a", "b"))
    assert spawned == [True, False, True, False, False]
    assert depth == [1, 1, 2, 2, 1]


def test_a_spawn_event_that_names_no_child_leaves_it_to_the_childs_first_event() -> None:
    spawned, depth = tree(spawns("root"), works("a", "root"), works("a", "root"))
    assert (spawned, depth) == ([False, True, False], [0, 1, 1])


def test_runs_of_unknown_origin_are_not_counted() -> None:
    spawned, depth = tree(works("root"), *(works(f"session {i}") for i in range(3)))
    assert (spawned, depth) == ([False] * 4, [0, 1, 1, 1])


def writes(run: str, to: str, root: str = "root") -> Event:
    return Event(run_id=run, to_run_id=to, root_run_id=root, kind=Kind.MESSAGE)


def test_a_message_brings_in_the_run_it_sets_going_but_handing_on_is_no_descent() -> None:
    hops = [writes("root", "a"), writes("a", "b"), writes("b", "c"), writes("c", "d"), writes("d", "e")]
    assert tree(*hops, works("e", "d"), writes("e", "a")) == ([True] * 5 + [False] * 2, [1, 2, 3, 3, 3, 3, 3])


def test_a_parent_nobody_has_seen_lies_at_the_root() -> None:
    assert tree(works("a", "unseen"), works("b", "a")) == ([True, True], [1, 2])


def test_trees_do_not_mix() -> None:
    spawned, depth = tree(works("a", "x", root="x"), works("a", "y", root="y"), works("b", "a", root="y"))
    assert (spawned, depth) == ([True, True, True], [1, 1, 2])


def test_a_tree_that_was_silent_begins_anew() -> None:
    engine, seen = recorder(GRAPH, RootRecorder, root_ttl_s=HOUR)
    process(engine, [works("a", "root"), works("a", "root")])
    process(engine, [_at(works("a", "root"), HOUR + 1), _at(works("a", "root"), HOUR + 2)])
    assert seen.column("spawned") == [True, False, True, False]
    assert seen.column("new") == [True, False, True, False]


def test_watch_has_no_trees() -> None:
    engine, seen = recorder()
    process(engine, [spawns("root", "a"), works("b", "a")])
    assert (seen.column("spawned"), seen.column("depth")) == ([False, False], [0, 0])


def test_a_tree_first_seen_before_the_clock_stands_can_come_back() -> None:
    engine, seen = recorder(GRAPH, RootRecorder)
    process(engine, [works("root")])
    process(engine, every(100, [works("x", root=f"{i}") for i in range(20)]))
    process(engine, [_at(works("a", "root"), 2000)])
    assert (seen.column("spawned")[-1], seen.column("new")[-1]) == (True, False)


def test_a_tree_whose_last_event_was_late_dies_with_its_root() -> None:
    engine, seen = recorder(GRAPH, RootRecorder, root_ttl_s=HOUR, tick_s=60)
    process(engine, [_at(works("root"), 800), works("root")])
    process(engine, every(60, [works("x", root=f"{i}") for i in range(128)], start=200))
    process(engine, [_at(works("a", "root"), 4000)])
    assert seen.column("tokens")[-1] == 0


def test_what_a_tree_keeps_is_bounded() -> None:
    engine, _ = recorder(GRAPH, RootRecorder, root_ttl_s=HOUR)
    for day in range(5):
        process(engine, every(60, [works(f"{day} {i}") for i in range(1440)], start=day * 24 * HOUR))
    assert engine._trees is not None
    assert max(map(len, engine._trees._depths.values())) < 1440


# ---------------------------------------------------------------------- findings and their positions


def test_findings_come_in_the_order_of_their_events_with_their_positions() -> None:
    engine = engine_with(Recorder, AgentRecorder)
    events = [Event(i, f"e{i % 4}", tool="find me" if i % 2 else "") for i in range(6)]
    (result,) = process(engine, events)
    assert result.positions == [1, 1, 3, 3]
    assert [(f.event_id, f.detector) for f in result.findings] == [
        ("e1", "agent_recorder"),
        ("e1", "recorder"),
        ("e3", "agent_recorder"),
        ("e3", "recorder"),
    ]
    assert result.accepted == [0, 1, 2, 3]


# --------------------------------------------------------------------------- cuts change nothing

EAGER = """
engine: {run_ttl_s: 900, root_ttl_s: 900, agent_ttl_s: 3600, lateness_s: 200, tick_s: 100}
detectors:
  retry_loop: {repeat_warning: 2, laps_warning: 2, failing_warning: 2, said_warning: 2, storm_warning: 2, repeat_s: 5,
               paced_gap_s: 10000}
  runaway: {ready_minutes: 1, cold_minutes: 1, floor_tokens: 0, warning: 0.05, repeat_s: 5, calm_s: 600}
  spiral: {spawns_warning: 2, nested_warning: 2, depth_warning: 1, hops_warning: 2, echo_warning: 2, repeat_s: 5}
"""


def process(engine: Engine, events: Sequence[Event], cuts: Sequence[int] = ()) -> list[Result]:
    """The results of the events in consecutive pieces; positions are those in `events`."""
    whole, results = columns(events), []
    for low, high in itertools.pairwise([0, *cuts, len(events)]):
        result = engine.process(whole.cut(low, high))
        result.positions = [low + at for at in result.positions]
        result.accepted = [low + at for at in result.accepted]
        results.append(result)
    return results


def everything(results: list[Result]) -> dict[str, list[Any]]:
    """What the results say, one after the other; rejects in the order of their events."""
    said = {field.name: [x for result in results for x in getattr(result, field.name)] for field in fields(Result)}
    return said | {"rejects": sorted(said["rejects"], key=lambda reject: int(reject.source.rpartition("/")[2]))}


def random_stream(rng: random.Random, n: int) -> list[Event]:
    """A few runs of two agents that do anything, then others; some events come late, some twice."""
    events, at = [], 0.0
    for i in range(n):
        at += rng.choice((0, 1, 1, 2, 2, 5, 30) if rng.random() < 0.95 else (200, 700, 5000))
        events.append(
            Event(
                at=at - rng.choice((0, 0, 0, 0, 3, 20, 150, 350)),
                event_id=f"{i}" if rng.random() < 0.9 else f"twin {i // 3}",
                agent_id=rng.choice("ab"),
                run_id=f"{rng.choice('rstu')}{i // 50}",
                root_run_id=f"{rng.choice('rrs')}{i // 50}",
                parent_run_id=rng.choice(("", f"{rng.choice('rst')}{i // 50}")),
                to_agent_id=rng.choice("ab"),
                to_run_id=rng.choice(("", f"{rng.choice('tu')}{i // 50}")),
                kind=rng.choice((Kind.TOOL, Kind.TOOL, Kind.TOOL, *Kind)),
                failed=rng.random() < 0.3,
                signature=rng.choice((0, 1, 1, 1, 2)),
                result=rng.choice((0, 1, 1, 1, 2)),
                round=rng.choice((0, 0, 0, 1, 2)),
                receiver=rng.randint(0, 2),
                tokens=rng.choice((0, 10**6, 5 * 10**7)),
                cost=rng.choice((0, 10**7)),
            )
        )
    return events


def _learn(engine: Engine) -> None:
    engine.calibrate(FleetFigures("test", engine.sketch()))


@pytest.mark.parametrize("scopes", [WATCH, GRAPH], ids=["watch", "graph"])
@settings(max_examples=75, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 80), st.sets(st.integers(0, 80), max_size=8))
@example(78523, 9, {7})  # a late event, and its twin on the other side of the cut
def test_results_do_not_depend_on_batch_cuts(scopes: Sequence[Scope], seed: int, n: int, cuts: set[int]) -> None:
    config, events = parse(EAGER), random_stream(random.Random(seed), n)
    whole, parts = (Engine(config, scopes, lambda source, position: f"{source}/{position}", _learn) for _ in range(2))
    inner = sorted(min(cut, n) for cut in cuts)
    assert everything(process(parts, events, inner)) == everything(process(whole, events))
    assert parts.clock == whole.clock
    assert parts.sketch() == whole.sketch()


def test_the_random_streams_reach_detectors_rejects_and_sweeps() -> None:
    """Otherwise the property above would say nothing."""
    events = random_stream(random.Random(1), 600)
    found: Counter[str] = Counter()
    for scopes in (WATCH, GRAPH):
        engine = Engine(parse(EAGER), scopes, lambda *_: "")
        (result,) = process(engine, events)
        found.update([finding.detector for finding in result.findings] + reasons(result))
        assert engine._entities[Scope.RUN].rows < len({(event.agent_id, event.run_id) for event in events})
    assert set(found) == {"retry_loop", "runaway", "spiral", Reason.DUPLICATE, Reason.LATE}
    assert min(found.values()) >= 10


def test_who_is_swept_does_not_depend_on_batch_cuts() -> None:
    # A run whose events come long after they happened is alive or dead when they come.
    backlog = [Event(0, run_id="slow", tokens=1)]
    traffic = every(10, [Event(run_id="other")] * 60)
    later = every(0, [Event(run_id="other")] * 6, start=7200 + 300)
    events = [*traffic[:6], *backlog, *traffic[6:], *later, Event(100, run_id="slow", tokens=1)]
    totals = []
    for cuts in ([], [7]):
        engine, seen = recorder(run_ttl_s=HOUR, tick_s=600)
        made.clear()
        process(engine, events, cuts)
        totals.append(seen.column("tokens")[-1])
    assert totals[0] == totals[1]


def test_which_duplicates_are_known_does_not_depend_on_batch_cuts() -> None:
    events = [Event(i, f"{i % 25}") for i in range(50)]
    rejected = []
    for cuts in ([], list(range(1, 50))):
        engine, _ = recorder(duplicate_ids=10)
        rejected.append(everything(process(engine, events, cuts))["rejects"])
    assert rejected[0] == rejected[1]
