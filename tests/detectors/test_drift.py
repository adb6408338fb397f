"""Levels that have moved for good: what is reported, what is not, and what survives cuts and restarts."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from batches import START, Event, batch_of
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.drift import Drift, DriftConfig
from detectors.moved import adwin, best_step, page_hinkley, settled
from detectors.types import Entity, Finding, Kind, Scope

DAY = 86400.0
MIDNIGHT = START // DAY * DAY


def work(factor: Callable[[int, int], float], days: int = 20, agent: str = "agent", **more: Any) -> list[Event]:
    """Five calls an hour, of 1,000 effective tokens by a quarter, times a factor of (day, hour)."""
    rng = random.Random(1)
    return [
        Event(
            ts=MIDNIGHT + day * DAY + hour * 3600 + call * 600,
            kind=Kind.LLM,
            agent=agent,
            run=agent,
            tokens=round(rng.uniform(0.75, 1.25) * 1e6 * factor(day, hour)),
            **more,
        )
        for day in range(days)
        for hour in range(24)
        for call in range(5)
        if factor(day, hour) > 0
    ]


def found_in(events: list[Event], **config: Any) -> list[Finding]:
    return list(Drift(DriftConfig(**config)).update(batch_of(events)))


def day_of(finding: Finding) -> float:
    return (finding.ts - MIDNIGHT) / DAY


@pytest.mark.parametrize("factor", [2.0, 3.0, 1 / 3])
def test_a_shift_is_told_once_when_its_third_day_is_over(factor: float) -> None:
    found = found_in(work(lambda day, _: factor if day >= 9 else 1.0))
    assert [(f.rule, day_of(f)) for f in found] in ([("tokens", 12.0)], [("size", 12.0)])
    assert found[0].observed / found[0].expected == pytest.approx(factor, rel=0.05)
    assert found[0].evidence["since"] == MIDNIGHT + 9 * DAY
    assert "for 3 days" in found[0].reason


def test_a_creep_is_told_instead_of_learned() -> None:
    found = found_in(work(lambda day, _: 1.05**day, days=30))
    assert found
    assert day_of(found[0]) <= 16
    assert found[0].observed > found[0].expected


@pytest.mark.parametrize(
    "factor",
    [
        lambda day, hour: 1.0,
        lambda day, hour: 10.0 if 9 <= hour < 17 else 1.0,
        lambda day, hour: 0.2 if day % 7 >= 5 else 1.0,
        lambda day, hour: 0.0 if day % 7 >= 5 else 1.0,
        lambda day, hour: 20.0 if day == 11 else 1.0,
        lambda day, hour: 1.4 if day >= 9 else 1.0,
    ],
    ids=["even", "office hours", "slow weekends", "free weekends", "one day", "a little more"],
)
def test_what_comes_back_or_is_small_is_not_told(factor: Callable[[int, int], float]) -> None:
    assert found_in(work(factor, days=30)) == []


def test_a_changed_model_is_named_as_what_it_may_be() -> None:
    before, after = work(lambda *_: 1.0, model="old"), work(lambda *_: 2.0, model="new")
    (found,) = found_in(before[: len(before) // 2] + after[len(after) // 2 :])
    assert found.evidence["model_changed"]
    assert "since its model changed 3 days ago" in found.reason


def test_a_lost_cache_and_longer_answers_are_told_as_such() -> None:
    usual = work(lambda *_: 1.0, input=1000, cached=900, output=100)
    half = len(usual) // 2
    lost = [*usual[:half], *(replace(event, cached=0) for event in usual[half:])]
    longer = [*usual[:half], *(replace(event, output=300) for event in usual[half:])]
    assert [(f.rule, f.observed, f.expected) for f in found_in(lost)] == [("uncached", 1.0, pytest.approx(0.1))]
    assert [(f.rule, f.observed, f.expected) for f in found_in(longer)] == [
        ("answer", pytest.approx(0.3), pytest.approx(0.1))
    ]


def test_unknown_tokens_tell_nothing() -> None:
    assert found_in([replace(event, tokens=0) for event in work(lambda day, _: 3.0 if day >= 9 else 1.0)]) == []


@settings(max_examples=8)
@given(st.lists(st.integers(1, 2000), max_size=6), st.integers(1, 1999))
def test_cuts_and_restarts_change_nothing(cuts: list[int], restart: int) -> None:
    one = work(lambda day, _: 3.0 if day >= 9 else 1.0, days=13, agent="a")
    two = work(lambda day, _: 1.1**day, days=13, agent="b")
    batch = batch_of(sorted([*one, *two], key=lambda event: event.ts))
    whole = list(Drift(DriftConfig()).update(batch))
    assert len(whole) >= 2
    detector = Drift(DriftConfig())
    assert [f for part in batch.cut(sorted(cuts)) for f in detector.update(part)] == whole

    first, second = batch.cut([restart])
    before, after = Drift(DriftConfig()), Drift(DriftConfig())
    found = list(before.update(first))
    after.load(np.array([7, 4]), before.dump(np.array([0, 1])))
    entity = second.entities[Scope.AGENT]
    moved = Entity(np.array([7, 4])[entity.row], entity.new, entity.tokens, entity.cost)
    assert [*found, *after.update(replace(second, entities={Scope.AGENT: moved}))] == whole


def test_adwin_may_be_asked_instead() -> None:
    # Of ten days before and six after, a hundredfold shift is what ADWIN's bound allows to see.
    found = found_in(work(lambda day, _: 1e4 if day >= 8 else 1.0), model="adwin")
    assert [f.severity for f in found] == ["warning"]


# -------------------------------------------------------------------------- the functions of levels


def test_the_best_step_leaves_the_least_squares() -> None:
    assert best_step(np.array([1.0, 1.0, 1.0, 5.0, 5.0])) == 3
    assert best_step(np.array([0.0, 9.0, 9.0])) == 1


def test_page_hinkley_moves_where_the_sum_passes() -> None:
    # The mean after the 5th value is 0.4, so it adds 2 - 0.4 - 0.5 = 1.1; the 6th adds 2 - 4/6 - 0.5 = 0.83.
    levels = np.array([0.0, 0.0, 0.0, 0.0, 2.0, 2.0])
    assert page_hinkley(levels[:5], 1.2, 0.5) is None
    assert page_hinkley(levels, 1.2, 0.5) == 4
    assert page_hinkley(np.zeros(16), 1.2, 0.5) is None


def test_adwin_cuts_a_large_step_and_nothing_else() -> None:
    assert adwin(np.zeros(48), 0.002) is None
    at = adwin(np.r_[np.zeros(24), np.full(24, 20.0)], 0.002)
    assert at is not None
    assert 20 <= at <= 32  # it lets go of the old level bucket by bucket


def test_a_move_is_settled_when_the_latest_days_all_lie_beyond() -> None:
    levels = np.array([0.0, 0.0, 0.0, 1.0, 1.0, 1.0])
    assert settled(levels, 3, 0.4, 3) == (3, 0.0, 1.0)
    assert settled(levels[:5], 3, 0.4, 3) is None
    assert settled(np.array([0.0, 0.0, 0.0, 1.0, 0.1, 1.0]), 3, 0.4, 3) is None
    assert settled(levels, 3, 1.1, 3) is None
    assert settled(levels, None, 0.4, 3) is None
