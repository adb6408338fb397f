"""Contexts that grow, spending without an outcome, budgets per hour: when they fire and when they are quiet."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from batches import START, Event, every, find, used

from detectors.runaway import Runaway
from detectors.types import Finding, Kind

DAY_S = 86400.0


def only(rule: str, events: Iterable[Event], **config: Any) -> list[Finding]:
    found = find(Runaway, events, floor_tokens=1e15, floor_usd=1e15, new_tokens=1e15, **config)
    assert {finding.rule for finding in found} <= {rule}
    return found


def positions(found: Sequence[Finding]) -> list[tuple[str, int]]:
    return [(finding.severity, int(finding.event_id.removeprefix("e"))) for finding in found]


# --------------------------------------------------------------------------------------- contexts


def reads(*sizes: int, day: int = 0) -> list[Event]:
    return every(90, [used(100, input=size) for size in sizes], start=day * DAY_S)


EARLIER = [*reads(*[5000, 20_000] * 5), *reads(*[5000, 19_000] * 5, day=1)]
"""Two days of calls that read 20,000 tokens at most."""


def test_the_fifth_call_that_reads_three_times_the_most_of_earlier_days_is_flagged() -> None:
    found = only("context_growth", [*EARLIER, *reads(*[61_000] * 6, day=2)])
    assert positions(found)[0] == ("warning", len(EARLIER) + 4)
    assert found[0].observed == 61_000
    assert found[0].expected == pytest.approx(20_000, rel=0.25)  # a day or two of a half-life of seven have passed
    assert "agent agent reads 61,000 tokens per call" in found[0].reason
    assert "in 5 calls of the last half hour" in found[0].reason


def test_five_times_as_many_are_critical() -> None:
    found = only("context_growth", [*EARLIER, *every(10, [used(100, input=200_000)] * 40, start=2 * DAY_S)])
    assert {finding.severity for finding in found} == {"warning", "critical"}


@pytest.mark.parametrize(
    "events",
    [
        pytest.param([*EARLIER, *reads(*[40_000] * 30, day=2)], id="twice the most"),
        pytest.param([*EARLIER, *reads(61_000, 5000, 61_000, 5000, day=2)], id="two large documents"),
        pytest.param(
            [*EARLIER, *every(1800, [used(100, input=90_000)] * 20, start=2 * DAY_S)],
            id="one large call in half an hour",
        ),
        pytest.param([*reads(*[5000] * 20), *reads(*[90_000] * 9, day=1)], id="only one day is known"),
        pytest.param([*reads(100, 100), *reads(100, day=1), *reads(*[9000] * 20, day=2)], id="small contexts"),
        pytest.param([*EARLIER, *every(60, [used(100)] * 30, start=2 * DAY_S)], id="input is not known"),
    ],
)
def test_contexts_that_are_quiet(events: list[Event]) -> None:
    assert only("context_growth", events) == []


def test_a_context_that_stays_large_is_learned_a_factor_of_four_a_day() -> None:
    days = [event for day in range(2, 5) for event in reads(*[200_000] * 8, day=day)]
    found = only("context_growth", [*EARLIER, *days])
    assert {int((finding.ts - START) // DAY_S) for finding in found} == {2}


# --------------------------------------------------------------------------------------- outcomes


def tasks(*calls: int, tokens: float = 50_000) -> list[Event]:
    events: list[Event] = []
    for n in calls:
        events += [used(tokens)] * n + [Event(kind=Kind.OUTCOME)]
    return events


def test_three_times_the_calls_and_tokens_that_any_outcome_took_are_flagged() -> None:
    done = tasks(*[4, 10] * 6)
    found = only("no_outcome", every(5, [*done, *[used(50_000)] * 40]))
    assert positions(found)[0] == ("warning", len(done) + 29)
    assert found[0].expected == pytest.approx(10, rel=0.05)
    assert (
        "has made 30 calls without an outcome in 0.0 hours ($4.50), 3x the most that one took before" in found[0].reason
    )


def test_nine_times_as_much_is_critical() -> None:
    found = only("no_outcome", every(70, [*tasks(*[4, 10] * 6), *[used(50_000)] * 95]))
    assert "critical" in [finding.severity for finding in found]


@pytest.mark.parametrize(
    "events",
    [
        pytest.param([*tasks(*[4, 10] * 6), *tasks(25)], id="two and a half times the most"),
        pytest.param([*tasks(*[10] * 9), *[used(50_000)] * 200], id="too few outcomes to know"),
        pytest.param([used(50_000)] * 500, id="an agent that reports none"),
        pytest.param([*tasks(*[4, 10] * 6, tokens=900), *[used(900)] * 200], id="cheap calls"),
        pytest.param([*tasks(*[4, 10] * 6), *[used(100)] * 4000], id="many calls, but little spent"),
    ],
)
def test_work_that_is_quiet(events: list[Event]) -> None:
    assert only("no_outcome", every(5, events)) == []


# ------------------------------------------------------------------------------------------ hours


def test_an_hours_budget_is_off_until_it_is_set() -> None:
    assert only("hour_budget", every(60, [used(1_000_000)] * 30)) == []


def test_beyond_an_hours_budget_it_is_critical() -> None:
    # 3 dollars a minute; 53 minutes are left of the clock hour at START.
    found = only("hour_budget", every(60, [used(1_000_000)] * 30), hour_usd=30.0)
    assert positions(found)[0] == ("critical", 9)
    assert found[0].observed == 30.0
    assert "has spent $30.00 in this clock hour, with a budget of $30.00" in found[0].reason


def test_every_clock_hour_has_a_budget_of_its_own() -> None:
    events = [replace(used(1_000_000), ts=START + 3600 * hour + 60 * i) for hour in range(5) for i in range(9)]
    assert only("hour_budget", events, hour_usd=30.0) == []
