"""Odd half hours of agents: what they are compared with, when they are told, and what survives a restart."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from batches import START, Event, batch_of
from pydantic import ValidationError

from detectors.base import StateError
from detectors.estimators import Model
from detectors.features import FEATURES, Windows
from detectors.odd_window import GENERATION, OddWindow, OddWindowConfig, _Group
from detectors.types import Entity, Finding, Kind, Scope

RIVER = ("HalfSpaceTrees", "OneClassSVM", "StandardAbsoluteDeviation", "GaussianScorer", "LODA")
RIVER += ("LocalOutlierFactor", "PredictiveAnomalyDetection")

EAGER: dict[str, Any] = {"window_s": 1800.0, "agent_windows": 8, "group_windows": 40, "budget": 0.2}
"""Warm after a day and a half of eight agents."""

MIDNIGHT = START // 86400 * 86400


def values_of(events: list[Event], length_s: float = 600.0) -> list[dict[str, float]]:
    """The windows that the events of one agent close."""
    batch, windows = batch_of(events), Windows(length_s)
    _, closed = windows.take(batch, batch.entities[Scope.AGENT].row)
    return [dict(zip(FEATURES, map(float, window), strict=True)) for window in closed]


def model_call(ts: float, **more: Any) -> Event:
    return Event(ts=MIDNIGHT + ts, kind=Kind.LLM, **more)


def test_a_window_is_told_in_nine_numbers() -> None:
    events = [
        model_call(0, tokens=100_000, cost=2 * 10**9, input=800, cached=600, output=100),
        model_call(10, tokens=300_000, failed=True, input=200, cached=200, output=150),
        Event(ts=MIDNIGHT + 20, tool="a", signature="x", result="1"),
        Event(ts=MIDNIGHT + 30, tool="b", signature="x", result="1"),
        model_call(600),
    ]
    (window,) = values_of(events)
    assert window == pytest.approx(
        {
            "tokens": math.log(400),
            "calls": math.log(4),
            "size": math.log(200),
            "dollars": math.log(2),
            "errors": 0.25,
            "cached": 0.8,
            "answer": math.log(0.25),
            "tools": math.log(2),
            "novelty": 0.5,
        },
        rel=1e-6,
    )


def test_what_was_not_observed_is_not_zero() -> None:
    (window,) = values_of([model_call(0), model_call(700)])
    unknown = {name for name, value in window.items() if math.isnan(value)}
    assert unknown == {"tokens", "size", "dollars", "cached", "answer", "tools", "novelty"}


def test_a_late_call_counts_in_the_open_window() -> None:
    windows = values_of([model_call(0), model_call(700), model_call(10), model_call(1300)])
    assert [round(math.exp(window["calls"])) for window in windows] == [1, 2]


def days(agents: int = 8, half_hours: int = 48 * 5, odd: tuple[int, int] | None = None, seed: int = 1) -> list[Event]:
    """Agents that read mostly from their cache, three calls each half hour; from one half hour on, one does not."""
    rng = random.Random(seed)
    events = []
    for step in range(half_hours):
        for agent in range(agents):
            share = rng.uniform(0.6, 0.9)
            if odd is not None and agent == odd[0] and step >= odd[1]:
                share = 0.0
            for call in range(12):
                event = model_call(
                    step * 1800 + 100 * call + agent,
                    agent=f"agent {agent}",
                    run=f"run {agent}",
                    group="group",
                    input=1000,
                    cached=int(1000 * share),
                    output=rng.randint(80, 120),
                    tokens=rng.randint(900, 1100) * 1000,
                )
                events.append(event)
    return sorted(events, key=lambda event: event.ts)


def found_in(events: list[Event], cuts: list[int] | None = None, **config: Any) -> list[Finding]:
    detector = OddWindow(OddWindowConfig(**(EAGER | config)))
    return [f for part in batch_of(events).cut(cuts or []) for f in detector.update(part)]


def test_a_lost_cache_is_odd_once_its_window_is_over() -> None:
    since = 48 * 4 + 20
    found = [f for f in found_in(days(odd=(3, since))) if f.agent_id == "agent 3" and f.ts > MIDNIGHT + since * 1800]
    assert found
    assert found[0].ts == pytest.approx(MIDNIGHT + (since + 1) * 1800, abs=60)
    assert (found[0].rule, found[0].severity) == ("odd", "warning")
    assert "0% of the input cached instead of 7" in found[0].reason
    assert found[0].evidence["features"]["cached"] == 0.0


def test_nothing_is_told_before_agent_group_and_days_are_known() -> None:
    since = 48 * 3
    events = days(odd=(3, since), half_hours=48 * 3 + 10)
    assert found_in(events, agent_windows=10**6) == []
    assert found_in(events, group_windows=10**6) == []
    assert found_in(events, budget=1 / 40) == []  # 24 agent-days are too few for one in 40


def test_what_is_odd_teaches_nothing() -> None:
    since = 48 * 3
    detector = OddWindow(OddWindowConfig(**EAGER))
    detector.update(batch_of(days(odd=(3, since), half_hours=48 * 3 + 20)))
    usual = detector.tables["agents"]["usual"][3, FEATURES.index("cached")]
    assert usual == pytest.approx(0.75, abs=0.05)


def test_doing_less_is_not_odd() -> None:
    events = [e for e in days() if not (e.agent == "agent 3" and e.ts > MIDNIGHT + 86400 * 4)]
    quiet = [replace(e, tokens=1000) if e.agent == "agent 3" and e.ts > MIDNIGHT + 86400 * 4 else e for e in events]
    late = MIDNIGHT + 86400 * 4
    assert [f for f in found_in(quiet) if f.agent_id == "agent 3" and f.ts > late] == []


@pytest.mark.parametrize("estimator", ["detectors.estimators.Farthest", "river.anomaly.StandardAbsoluteDeviation"])
def test_cuts_and_restarts_change_nothing_with_a_warm_model(estimator: str) -> None:
    more: dict[str, Any] = {"estimator": estimator}
    events = days(odd=(2, 48 * 4), half_hours=48 * 4 + 30)
    batch = batch_of(events)
    whole = found_in(events, **more)
    assert whole
    assert found_in(events, cuts=list(range(997, len(events), 997)), **more) == whole

    cut = len(events) * 19 // 20
    first, second = batch.cut([cut])
    config = OddWindowConfig(**(EAGER | more))
    before, after = OddWindow(config), OddWindow(config)
    found = list(before.update(first))
    rows = np.unique(batch.entities[Scope.AGENT].row)
    after.load_shared(before.dump_shared())
    after.load(rows + 5, before.dump(rows))
    assert after.dump_shared() == before.dump_shared()
    entity = second.entities[Scope.AGENT]
    moved = Entity(entity.row + 5, entity.new, entity.tokens, entity.cost)
    found += after.update(replace(second, entities={Scope.AGENT: moved}))
    assert found == whole


@pytest.mark.parametrize("estimator", RIVER)
def test_a_restored_model_scores_as_the_one_that_went_on(estimator: str) -> None:
    config = OddWindowConfig(estimator=f"river.anomaly.{estimator}")
    rng = np.random.default_rng(1)
    group = _Group(config)
    for _ in range(GENERATION + 40):
        group.learn(rng.normal(size=len(FEATURES)).astype(np.float32), config)
    again = _Group.loaded(config, group.dump())
    for _ in range(5):
        vector = rng.normal(size=len(FEATURES)).astype(np.float32)
        assert again.model.score(vector.tolist()) == group.model.score(vector.tolist())
        group.learn(vector, config)
        again.learn(vector, config)


@pytest.mark.parametrize("estimator", RIVER)
def test_any_estimator_of_river_scores_vectors_with_unknowns(estimator: str) -> None:
    model = Model([], f"river.anomaly.{estimator}", {}, ("a", "b"))
    rng = random.Random(1)
    for _ in range(300):
        model.learn([rng.random(), math.nan])
    score = model.score([0.5, math.nan])
    assert score is not None
    assert math.isfinite(score)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"estimator": "river.anomaly.Nothing"}, "there is no 'river.anomaly.Nothing'"),
        ({"estimator": "os.system"}, "no dotted path into river"),
        ({"estimator": "river.preprocessing.StandardScaler"}, "no anomaly estimator"),
        ({"estimator": "river.anomaly.LODA", "parameters": {"cuts": 3}}, "cannot be made"),
        ({"estimator": "river.anomaly.GaussianScorer", "steps": ["river.preprocessing.StandardScaler"]}, "no steps"),
    ],
)
def test_a_model_that_cannot_be_made_is_an_error_of_the_configuration(config: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        OddWindowConfig(**config)


def test_the_limit_is_the_score_so_many_agent_days_pass() -> None:
    group = _Group(OddWindowConfig())
    for highest in range(1, 30):
        group.add_day(highest)
        assert group.limit(0.1) == (None if highest < 9 else highest + 1 - (highest + 1) // 10)
    assert group.quantile(29.5) == pytest.approx(1 - 1 / 30)
    assert group.quantile(29.0) == pytest.approx(1 - 2 / 30)


def test_damaged_shared_state_is_refused() -> None:
    detector = OddWindow(OddWindowConfig())
    detector.update(batch_of(days(half_hours=30)))
    page = detector.dump_shared()
    for bad in (b"x", page[:-1], page.replace(b"odd_window", b"odd_widnow")):
        with pytest.raises(StateError):
            OddWindow(OddWindowConfig()).load_shared(bad)


def test_findings_of_others_are_told_what_the_last_window_was_like() -> None:
    since = 48 * 4 + 20
    events = days(odd=(3, since), half_hours=since + 3)
    batch, detector = batch_of(events), OddWindow(OddWindowConfig(**EAGER))

    def other(i: int) -> Finding:
        return Finding.at(
            batch, i, detector="other", rule="r", severity="critical", scope=Scope.AGENT, score=1, observed=1,
            expected=1, unit="u", reason="agent", evidence={"kept": 1},
        )  # fmt: skip

    own = detector.update(batch)
    at = {
        "warming up": next(i for i, e in enumerate(events) if e.agent == "agent 3"),
        "usual": max(i for i, e in enumerate(events) if e.agent == "agent 3" and e.ts < MIDNIGHT + since * 1800),
        "confirms": max(i for i, e in enumerate(events) if e.agent == "agent 3"),
    }
    reviewed = detector.review(batch, [*map(other, at.values()), *own])
    assert [f.evidence["odd_window"]["verdict"] for f in reviewed[:3]] == list(at)
    assert all(f.severity == "critical" and f.evidence["kept"] == 1 for f in reviewed[:3])
    assert list(reviewed[3:]) == list(own)
