"""Agents that burn far more than they usually do: when it fires, what it learns, what it does not learn."""

from __future__ import annotations

import copy
import math
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from batches import START, Event, batch_of, every, find, used, verdicts
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.base import FleetFigures, LogGrid, ScoreGrid, StateError, group_figure
from detectors.expansion import BLOCK, FAST_S, LAG, LULLS, lull_now
from detectors.runaway import Runaway, RunawayConfig
from detectors.types import Finding, Kind

HOUR, DAY = 60, 1440
"""Minutes."""

QUICK: dict[str, Any] = {"ready_minutes": 30, "cold_minutes": 60}
"""An agent with an hour behind it has a range of its own."""


def per_minute(rates: Iterable[float], after: int = 0) -> list[Event]:
    """One event a minute, of so many effective tokens (0: none), from minute `after` on."""
    return [event for event in every(60, map(used, rates), start=60 * after) if event.tokens]


def steady(minutes: int, rate: float = 20_000, seed: int = 1) -> list[float]:
    """Rates that vary by a quarter or so."""
    rng = random.Random(seed)
    return [rate * math.exp(rng.gauss(0, 0.25)) for _ in range(minutes)]


def by_time(events: Iterable[Event]) -> list[Event]:
    return sorted(events, key=lambda event: event.ts)


def minutes_of(found: Iterable[Finding], since: int = 0) -> list[int]:
    return [round((finding.ts - START) / 60) - since for finding in found]


class Reference:
    """Statistics of an agent that never fires, one event at a time and from all its events."""

    def __init__(self, memory_s: float = RunawayConfig().memory_s) -> None:
        self.fade = math.log(2) * 60 / memory_s
        self.events: list[tuple[float, float]] = []
        self.use: Counter[int] = Counter()
        self.now = -math.inf
        self.minute = self.born = -1
        self.high = self.lull_high = -math.inf
        self.fresh: dict[int, float] = {}
        self.fresh_lull: dict[int, float] = {}

    def burst(self) -> float:
        """An event counts as much as it has faded, in whole seconds, in whatever order they came."""
        return math.fsum(tokens * math.exp(-(self.now - ts) / FAST_S) for ts, tokens in self.events)

    def lull(self, last: int) -> float:
        """ln of the lowest two-minute mean of this block up to minute `last` and of the five blocks before it."""
        first = (self.minute // BLOCK - LULLS + 1) * BLOCK
        if first // BLOCK <= self.born // BLOCK:
            return 0.0
        means = [(self.use[minute] + self.use[minute - 1]) / 2 for minute in range(first, last + 1)]
        return math.log1p(min(means, default=0.0))

    def add(self, ts: float, tokens: float) -> None:
        minute = math.floor(ts / 60)
        if self.minute < 0:
            self.minute = self.born = minute
        if minute > self.minute:
            block = self.minute // BLOCK
            self.fresh_lull[block] = max(self.fresh_lull.get(block, -math.inf), self.lull(self.minute))
            gap, self.minute = minute - self.minute, minute
            for name, waiting in (("high", self.fresh), ("lull_high", self.fresh_lull)):
                learnt = [waiting.pop(old) for old in list(waiting) if old <= minute // BLOCK - LAG]
                setattr(self, name, max([getattr(self, name), *learnt]) - self.fade * gap)
        second = math.floor(ts)
        self.now = max(self.now, second)
        # A late event counts for what is left of it by now, to a thousandth.
        self.events.append((self.now, round(tokens * math.exp(-(self.now - second) / FAST_S), 3)))
        self.use[self.minute] += tokens  # type: ignore[assignment]
        block = self.minute // BLOCK
        self.fresh[block] = max(self.fresh.get(block, -math.inf), math.log(self.burst()))

    def score_of(self, ts: float, tokens: float, usual: float) -> float:
        """The score if this were the next event, in a later minute; `usual` is the mean ln of active minutes."""
        then = copy.deepcopy(self)
        then.add(ts, tokens)
        burst = max(0.0, math.log(then.burst()) - then.high)
        return burst + max(0.0, then.lull(then.minute) - max(then.lull_high, usual))


# --------------------------------------------------------------------------------------- the range


@pytest.mark.parametrize(("severity", "threshold"), [("warning", 0.9), ("critical", 1.6)])
def test_it_fires_beyond_the_threshold(severity: str, threshold: float) -> None:
    history = per_minute(steady(90))
    reference = Reference()
    for event in history:
        reference.add(event.ts, event.tokens / 1000)
    usual = float(np.mean(np.log1p([event.tokens / 1000 for event in history])))
    at = history[-1].ts + 60
    low, high = 1.0, 1e9
    while high / low > 1 + 1e-9:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if reference.score_of(at, middle, usual) < threshold else (low, middle)

    below = find(Runaway, [*history, replace(used(low * (1 - 1e-4)), ts=at)], **QUICK)
    above = find(Runaway, [*history, replace(used(high * (1 + 1e-4)), ts=at)], **QUICK)
    assert severity not in [finding.severity for finding in below]
    assert verdicts(above) == [("range", severity, 90)]
    assert above[0].evidence["nats"] == pytest.approx(threshold, abs=1e-3)
    assert above[0].score == pytest.approx(0.0, abs=1e-3)


def test_within_a_busy_second_each_level_is_told_at_the_call_that_reaches_it() -> None:
    history = per_minute(steady(90))
    burst = [replace(used(10_000), ts=history[-1].ts + 60 + i / 100) for i in range(80)]
    found = find(Runaway, [*history, *burst], **QUICK)
    (_, _, first), (_, _, second) = verdicts(found)
    assert [finding.severity for finding in found] == ["warning", "critical"]
    assert 90 < first < second < 170
    assert find(Runaway, [*history, *burst][:first], **QUICK) == []
    assert verdicts(find(Runaway, [*history, *burst][:second], **QUICK)) == verdicts(found)[:1]
    for cut in range(91, 170):
        detector = Runaway(RunawayConfig(**QUICK))
        assert [f for part in batch_of([*history, *burst]).cut([cut]) for f in detector.update(part)] == found


def test_a_burst_is_seen_with_the_default_settings_after_a_day() -> None:
    events = per_minute(steady(DAY + 10) + [600_000] * 3)
    found = find(Runaway, events)
    assert minutes_of(found, since=DAY + 10) == [0, 1, 2]


def test_what_never_pauses_is_seen_below_the_highest_burst() -> None:
    """Bursts of 12 times the usual use, with lulls between them, are everyday; half of that without a lull is not."""
    bursty = [240_000.0 if minute % 10 < 3 else 20_000.0 for minute in range(5 * HOUR)]
    assert find(Runaway, per_minute(bursty), **QUICK) == []
    found = find(Runaway, per_minute([*bursty, *[120_000.0] * 45]), **QUICK)
    assert found != []
    assert {finding.rule for finding in found} == {"no_lull"}
    # With 25 to 30 minutes of lulls remembered, the last everyday lull is forgotten by then.
    assert 25 <= minutes_of(found, since=5 * HOUR)[0] <= 31
    assert found[0].unit == "effective tokens per min, for 25 min without a lull"
    assert found[0].observed == pytest.approx(120_000, rel=1e-3)


def test_a_slow_rise_is_measured_from_where_it_began() -> None:
    """Every minute is a tenth above the one before: soon far above what was a quarter of an hour ago."""
    rise = [20_000 * 1.1**minute for minute in range(1, 40)]
    found = find(Runaway, per_minute([*[20_000.0] * 120, *rise]), **QUICK)
    assert found != []
    assert minutes_of(found, since=120)[0] <= 20


@given(
    st.lists(
        st.tuples(st.floats(0, 400), st.one_of(st.just(0.0), st.floats(0, 900)), st.integers(1, 50)),
        min_size=1,
        max_size=60,
    ),
    st.floats(600, 1e6),
)
@settings(max_examples=200)
def test_statistics_are_as_defined(steps: list[tuple[float, float, int]], memory_s: float) -> None:
    reference, events, at = Reference(memory_s), [], START
    for gap, delay, tokens in steps:
        at += gap
        events.append(replace(used(tokens), ts=at - delay))
        reference.add(at - delay, tokens)
    detector = Runaway(RunawayConfig(memory_s=memory_s))
    assert list(detector.update(batch_of(events))) == []
    table = detector.tables["agents"]
    use, last, lull, high, lull_high = (
        float(table[name][0, 0]) for name in ("open_use", "last_use", "lull", "high", "lull_high")
    )
    found = [detector.sums(np.array([0]), reference.now)[0, 0], high, lull_high]
    assert found == pytest.approx([reference.burst(), reference.high, reference.lull_high], rel=1e-4, abs=1e-4)
    now = lull_now(*(np.float32(value) for value in (lull, use / 1e3, last)))
    assert now == pytest.approx(reference.lull(reference.minute), abs=1e-4)


# ----------------------------------------------------------------------------------------- dollars


def test_a_pricier_model_is_seen_at_an_unchanged_token_rate() -> None:
    events = [replace(event, cost=300_000_000) for event in per_minute([20_000.0] * 100)]
    dearer = [replace(event, cost=9_000_000_000) for event in per_minute([20_000.0] * 5, after=100)]
    found = find(Runaway, [*events, *dearer], **QUICK)
    assert [finding.unit for finding in found] == ["dollars per 5 min"] * 5
    assert found[0].observed == pytest.approx(9 + 0.3 / (1 - math.exp(-60 / FAST_S)), rel=0.1)
    assert "its usual dollars" in found[0].reason


def test_cheap_dollars_wake_nobody() -> None:
    events = [replace(event, tokens=0, cost=10_000) for event in per_minute([1.0] * 100)]
    dearer = [replace(event, tokens=0, cost=20_000_000) for event in per_minute([1.0] * 5, after=100)]
    assert find(Runaway, [*events, *dearer], **QUICK) == []


# ------------------------------------------------------------------------------------- it is quiet


@pytest.mark.parametrize(
    "rates",
    [
        pytest.param(steady(5 * HOUR), id="the usual rate"),
        pytest.param([*steady(2 * HOUR), *[0] * 9 * HOUR, *steady(HOUR)], id="the usual rate at an unusual hour"),
        pytest.param(steady(2 * HOUR, 100) + [9_000] * 10, id="ninety times the usual rate, but cheap"),
        pytest.param(steady(2 * HOUR) + [0] * 3 * HOUR, id="tokens are unknown"),
        pytest.param([1e6] * 20, id="a new agent within what new agents may use"),
        pytest.param([*([*steady(30), *[400_000] * 5, *steady(25)] * 1), *[400_000] * 5], id="a peak it had before"),
    ],
)
def test_it_is_quiet(rates: list[float]) -> None:
    assert find(Runaway, per_minute(rates), **QUICK) == []


def test_the_floor_is_where_an_agent_begins_to_matter() -> None:
    history = per_minute([10] * 90)
    for tokens, fires in ((49_900, False), (50_000, True)):
        burst = [replace(used(tokens), ts=START + 8 * 3600)]
        assert bool(find(Runaway, history + burst, **QUICK)) == fires, tokens


def test_events_without_tokens_change_nothing() -> None:
    events = per_minute([*steady(90), 400_000])
    unknown = [replace(event, ts=event.ts + 1, tokens=0, cost=0) for event in events]
    both = [event for pair in zip(events, unknown, strict=True) for event in pair]
    stripped = [replace(f, event_id="", id="") for f in find(Runaway, both, **QUICK)]
    assert stripped == [replace(f, event_id="", id="") for f in find(Runaway, events, **QUICK)]


# -------------------------------------------------------------------------------------- cold start


def fleet(limit: float, agents: int = 10, sums: float = 1000.0) -> FleetFigures:
    """Figures of so many agents whose maxima are all about `limit`."""

    def all_at(value: float, n: int) -> list[int]:
        return [n if i == LogGrid.index(np.array([value]))[0] else 0 for i in range(LogGrid.BINS)]

    return FleetFigures(
        "v7",
        {
            "agent_maxima": all_at(limit, agents),
            "active_sums": all_at(sums, 1000),
            "active_costs": all_at(3 * sums, 1000),
        },
    )


def with_fleet(figures: FleetFigures, events: Sequence[Event], **config: Any) -> list[Finding]:
    detector = Runaway(RunawayConfig(**config))
    detector.calibrate(figures)
    return list(detector.update(batch_of(events)))


def test_a_new_agent_fires_beyond_what_any_new_agent_may_use() -> None:
    assert find(Runaway, [used(10_000_000)]) == []
    found = find(Runaway, [used(10_001_000)])
    assert verdicts(found) == [("cold_start", "warning", 0)]
    assert found[0].expected == 10_000_000
    assert found[0].reason == (
        "agent agent is new and has used 1.0x what any new agent should in the last 5 minutes ($30.00)"
    )


def test_in_its_first_day_an_agent_must_also_pass_the_fleets_limit() -> None:
    history = steady(5 * HOUR)
    assert find(Runaway, per_minute([*history, 9_000_000])) == []
    found = find(Runaway, per_minute([*history, 11_000_000]))
    assert verdicts(found) == [("cold_start", "warning", 5 * HOUR)]
    assert found[0].evidence["nats"] > RunawayConfig().critical


def test_in_its_first_day_an_agent_never_fires_critical() -> None:
    found = find(Runaway, per_minute([*steady(5 * HOUR), *[50_000_000] * 30]))
    assert {(finding.rule, finding.severity) for finding in found} == {("cold_start", "warning")}


@pytest.mark.parametrize(("agents", "fires"), [(9, False), (10, True)])
def test_the_fleets_limit_counts_once_ten_agents_are_known(agents: int, fires: bool) -> None:
    events = per_minute([*steady(5 * HOUR), 2_000_000])
    found = with_fleet(fleet(1_000_000, agents), events)
    assert bool(found) == fires
    assert all(finding.evidence["calibration"] == "v7" for finding in found)


def test_a_large_fleet_raises_what_a_new_agent_may_use() -> None:
    assert with_fleet(fleet(50_000_000), [used(20_000_000)]) == []
    assert with_fleet(fleet(1_000_000), [used(9_000_000)]) == []


def test_the_fleets_sums_raise_the_floor() -> None:
    events = per_minute([*steady(2 * HOUR), 800_000])
    assert find(Runaway, events, **QUICK) != []
    assert with_fleet(fleet(1e6, sums=5e6), events, **QUICK) == []
    assert with_fleet(fleet(1e6, agents=9, sums=5e6), events, **QUICK) != []


# -------------------------------------------------------------------------------- alarm and learning


def learned(rates: Sequence[float], **config: Any) -> tuple[Runaway, list[Finding]]:
    detector = Runaway(RunawayConfig(**(QUICK | config)))
    return detector, list(detector.update(batch_of(per_minute(rates))))


def highs(detector: Runaway) -> list[float]:
    return [float(detector.tables["agents"][name][0, 0]) for name in ("high", "lull_high")]


def test_the_learned_maxima_stand_still_while_it_fires() -> None:
    # The last minute before the burst is learned when the first event of the burst comes.
    before, _ = learned([*steady(90), 20_000])
    during, found = learned([*steady(90), *[400_000] * 30])
    assert len(found) == 30
    # They fade as ever, but nothing is added.
    assert highs(during) < highs(before)
    assert highs(during) == pytest.approx(highs(before), abs=0.01)
    assert during.tables["agents"]["active_minutes"][0] == before.tables["agents"]["active_minutes"][0]


@pytest.mark.parametrize("pause", [2 * HOUR, 12 * HOUR, 3 * DAY], ids=lambda minutes: f"{minutes // 60} h")
def test_a_burst_before_a_long_silence_is_not_learned(pause: int) -> None:
    burst = [400_000.0] * 5
    detector, found = learned([*steady(90), *burst, *[0.0] * pause, *burst], habit=1.0)
    assert highs(detector)[0] < math.log(300_000)
    assert minutes_of(found) == [*range(90, 95), *range(95 + pause, 100 + pause)]


def test_after_an_hour_below_the_threshold_the_alarm_is_over_and_learning_goes_on() -> None:
    burst = [400_000.0] * 3
    detector, found = learned([*steady(90), *burst, *steady(50), *burst, *steady(100), *burst], habit=1.0)
    first, second = 90, 90 + 3 + 50 + 3 + 100
    starts = [round((finding.evidence["since"] - START) / 60) for finding in found]
    assert set(starts) == {first, second}
    last_over = minutes_of(found)[starts.index(second) - 1]
    # Learning begins with the minute after the one that ended the alarm.
    assert detector.tables["agents"]["active_minutes"][0] == 90 + second - (last_over + HOUR)


def test_a_second_burst_within_the_hour_belongs_to_the_first() -> None:
    _, found = learned([*steady(90), *[400_000] * 3, *steady(40), *[400_000] * 3])
    first, second = found[0], found[-1]
    assert first.evidence["since"] == second.evidence["since"]
    assert second.evidence["effective_tokens"] > 6 * 400_000


def test_a_runaway_that_lasts_is_reported_every_minute() -> None:
    events = per_minute(steady(90)) + every(10, [used(100_000)] * 30, start=90 * 60)
    found = find(Runaway, events, **QUICK)
    gaps = np.diff([finding.ts for finding in found])
    assert len(found) >= 5
    # More often only where the warning becomes critical.
    assert sorted(gaps)[1:] == [60.0] * (len(gaps) - 1)


@pytest.mark.parametrize("minutes", [3, 10, 60])
def test_the_echo_of_a_burst_is_reported_for_half_an_hour_at_most(minutes: int) -> None:
    _, found = learned([*steady(90), *[400_000] * minutes, *steady(5 * HOUR)])
    assert minutes <= minutes_of(found, since=90)[-1] <= minutes + 30


def test_a_burst_is_over_when_use_has_fallen_to_half_of_the_five_minute_rate() -> None:
    _, found = learned([*steady(90), *[400_000] * 10, *steady(60)])
    # The minute before still counts; after it only what is left of the sum would.
    assert minutes_of(found, since=90) == list(range(11))


def test_the_echo_of_a_burst_is_no_next_burst() -> None:
    _, found = learned([*steady(90), *[400_000] * 10, *steady(20), *[28_000.0] * 15, *steady(30)])
    assert minutes_of(found, since=90)[-1] < 12


# ------------------------------------------------------------------------------------------- habit


def test_what_alarms_report_again_and_again_becomes_usual() -> None:
    """A burst of about ten times the range: each alarm widens it by a factor of 4, so the third is none."""
    burst = [1_000_000.0] * 2
    day = [*steady(2 * HOUR), *burst, *steady(2 * HOUR)]
    _, found = learned([*steady(2 * HOUR), *burst, *day, *day, *day])
    alarms = {finding.evidence["since"] for finding in found}
    assert len(alarms) == 2


def test_no_habit_means_that_nothing_of_an_alarm_is_learned() -> None:
    burst = [1_000_000.0] * 2
    day = [*steady(2 * HOUR), *burst, *steady(2 * HOUR)]
    _, found = learned([*steady(2 * HOUR), *burst, *day, *day, *day], habit=1.0)
    assert len({finding.evidence["since"] for finding in found}) == 4


# ---------------------------------------------------------------------------------- moved for good


def test_a_level_that_stays_is_learned_after_six_hours() -> None:
    _, found = learned([*steady(10 * HOUR), *steady(10 * HOUR, 800_000), *[20e6] * 3])
    minutes = minutes_of(found, since=10 * HOUR)
    alarm, burst = minutes[:-3], minutes[-3:]
    assert alarm[0] == 0
    assert 6 * HOUR <= alarm[-1] <= 7 * HOUR
    assert burst == [10 * HOUR, 10 * HOUR + 1, 10 * HOUR + 2]


@pytest.mark.parametrize(("up", "down"), [(10, 45), (20, 30), (30, 30), (45, 45), (90, 45)])
def test_a_runaway_that_goes_up_and_down_is_not_learned(up: int, down: int) -> None:
    rates = steady(10 * HOUR)
    while len(rates) < 30 * HOUR:
        rates += steady(up, 800_000, seed=len(rates)) + steady(down, seed=len(rates))
    detector, found = learned(rates)
    assert minutes_of(found)[-1] >= 30 * HOUR - down
    assert highs(detector)[0] < math.log(300_000)


def test_a_new_agent_that_stays_large_has_its_range_after_six_hours() -> None:
    """It has no old level that could have moved."""
    _, found = learned(steady(10 * HOUR, 20e6))
    minutes = minutes_of(found)
    assert minutes[0] == 0
    assert 6 * HOUR <= minutes[-1] <= 7 * HOUR


def test_an_alarm_of_less_than_six_hours_teaches_nothing() -> None:
    detector, _ = learned([*steady(10 * HOUR), *steady(5 * HOUR + 50, 800_000)])
    assert highs(detector)[0] < math.log(300_000)


# ------------------------------------------------------------------------------------- late events


def test_a_late_event_counts_for_what_is_left_of_it() -> None:
    history = per_minute(steady(90))
    late = replace(used(6_000_000), ts=history[-1].ts - 900)
    (finding,) = find(Runaway, [*history, late], **QUICK)
    on_time = Reference()
    for event in [*history, late]:
        on_time.add(event.ts, event.tokens / 1000)
    assert finding.observed == pytest.approx(on_time.burst(), rel=1e-6)
    assert finding.ts == late.ts


# ------------------------------------------------------------------------------------ what it says


def test_the_reason_tells_how_much_more_and_what_it_cost() -> None:
    (finding,) = find(Runaway, per_minute([*[20_000] * 90, 1_000_000]), **QUICK)
    usual = 20_000 / (1 - math.exp(-60 / FAST_S))
    assert finding.expected == pytest.approx(usual, rel=1e-3)
    assert finding.evidence["usual"] == pytest.approx(usual, rel=1e-3)
    assert finding.evidence["active_minutes"] == 90
    assert finding.reason == "agent agent has used 10x its usual effective tokens in the last 5 minutes ($3.00)"


def test_spend_is_counted_from_the_first_event_beyond_the_threshold() -> None:
    found = find(Runaway, per_minute([*[20_000] * 90, *[1_000_000] * 3]), **QUICK)
    assert [finding.evidence["effective_tokens"] for finding in found] == [1e6, 2e6, 3e6]
    assert [finding.evidence["cost_usd"] for finding in found] == [3, 6, 9]
    assert found[-1].reason.endswith("its usual effective tokens for 2 minutes ($9.00, $4.50/min)")


def test_the_reason_tells_when_a_tool_last_brought_something_new() -> None:
    result = Event(kind=Kind.TOOL, tool="search", result="page 1")
    history = per_minute([20_000] * 90)
    same = [replace(result, ts=START + 60 * minute + 1) for minute in (80, 85, 89)]
    (finding,) = find(Runaway, by_time([*history, *same, *per_minute([1_000_000], after=90)]), **QUICK)
    assert finding.reason.endswith("; last new result 10 min ago")
    other = replace(result, result="page 2", ts=START + 60 * 88)
    (finding,) = find(Runaway, by_time([*history, *same, other, *per_minute([1_000_000], after=90)]), **QUICK)
    assert finding.reason.endswith("; last new result 2 min ago")


def test_an_agent_is_warming_up_then_young_then_ready() -> None:
    config = RunawayConfig(ready_minutes=30, cold_minutes=60)
    for minutes, state in ((1, "warming up"), (30, "warming up"), (31, "young"), (60, "young"), (61, "ready")):
        detector = Runaway(config)
        detector.update(batch_of(per_minute([20_000.0] * minutes)))
        assert detector.readiness(np.array([0])) == [state], minutes
    seldom = [used(1000.0, ts=START + 1800 * i) for i in range(4 * 48 + 1)]
    detector = Runaway(RunawayConfig())
    detector.update(batch_of(seldom))
    assert detector.readiness(np.array([0])) == ["ready"]
    detector = Runaway(RunawayConfig())
    detector.update(batch_of(seldom[:-1]))
    assert detector.readiness(np.array([0])) == ["young"]


# ------------------------------------------------------------------------------- budgets of alarms


def day_scores(values: Sequence[float], group: int | None = None, **more: Sequence[int]) -> FleetFigures:
    counts = np.bincount(ScoreGrid.index(np.array(values)), minlength=ScoreGrid.BINS).tolist()
    name = "day_scores" if group is None else group_figure("day_scores", group)
    return FleetFigures("v7", {name: counts, **more})


HISTORY = [*steady(2 * HOUR), *[260_000.0]]
"""The last minute is about one nat above the range."""


@pytest.mark.parametrize(
    ("maxima", "fires"),
    [
        ([0.0] * 116 + [0.5] * 4, True),  # the fourth largest of 120 is below one nat
        ([0.0] * 116 + [1.4] * 4, False),
        ([0.0] * 117 + [1.4] * 3, True),
        ([0.0] * 115 + [1.4] * 4, True),  # 119 agent-days: not enough
    ],
)
def test_the_threshold_is_what_the_budget_leaves_of_the_fleets_daily_maxima(maxima: list[float], fires: bool) -> None:
    found = with_fleet(day_scores(maxima), per_minute(HISTORY), **QUICK)
    assert bool(found) == fires
    if found:
        budget = None if len(maxima) < 120 else pytest.approx(1 / 30)
        assert found[0].evidence["budget_per_agent_day"] == budget
        assert found[0].evidence["calibration"] == "v7"


def test_a_group_has_a_threshold_of_its_own() -> None:
    events = [replace(event, group="payments") for event in per_minute(HISTORY)]
    group = int(batch_of(events).group[0])
    high, low = [0.0] * 100 + [3.0] * 20, [0.0] * 116 + [0.5] * 4
    both = FleetFigures("v", {**day_scores(low).counts, **day_scores(high, group).counts})
    assert with_fleet(both, events, **QUICK) == []
    assert with_fleet(both, per_minute(HISTORY), **QUICK) != []
    few = FleetFigures("v", {**day_scores(low).counts, **day_scores(high[60:], group).counts})
    assert with_fleet(few, events, **QUICK) != []


def test_critical_is_never_easier_than_a_warning() -> None:
    maxima = [0.0] * 60 + [3.2] * 60  # too few days for the critical budget of 1 in 1000
    figures = day_scores(maxima)
    found = with_fleet(
        figures, per_minute([*steady(2 * HOUR), *[3_000_000.0] * 3]), critical_per_agent_day=1e-3, **QUICK
    )
    assert all(finding.evidence["threshold"] >= 3.2 for finding in found)


def in_days(*days: list[float]) -> list[Event]:
    return per_minute([rate for day in days for rate in day])


def test_each_agent_and_day_counts_with_its_highest_score() -> None:
    quiet = steady(DAY)
    busy = [*steady(600), *[80_000.0] * 4, *steady(DAY - 604)]
    detector = Runaway(RunawayConfig(**QUICK))
    assert list(detector.update(batch_of(in_days(quiet, busy, quiet, quiet)))) == []
    counts = np.array(detector.sketch()["day_scores"])
    # They begin in the middle of a day: of five days, the last is still open.
    assert counts.sum() == 4
    assert (np.flatnonzero(counts) > 0.4 / ScoreGrid.STEP).sum() == 1


def test_an_alarm_counts_on_the_day_it_begins_and_no_other() -> None:
    detector = Runaway(RunawayConfig(**QUICK, relearn_s=1e9))
    found = detector.update(batch_of(in_days(steady(DAY), steady(3 * DAY, 2_000_000))))
    assert len({finding.evidence["since"] for finding in found}) == 1
    counts = np.array(detector.sketch()["day_scores"])
    # The days before and after it count as they are, those that begin within it not at all.
    assert counts.sum() == 2
    assert (np.flatnonzero(counts) > 2 / ScoreGrid.STEP).sum() == 1


def test_what_is_below_the_floor_counts_as_nothing_unusual() -> None:
    detector = Runaway(RunawayConfig(**QUICK))
    detector.update(batch_of(in_days(steady(DAY, 100), [5_000.0] * 5, steady(2 * DAY, 100))))
    counts = np.array(detector.sketch()["day_scores"])
    assert counts[0] == counts.sum() > 0


def test_only_the_costliest_alarms_pass_when_the_fleets_budget_is_smaller_than_the_agents() -> None:
    events = per_minute([*steady(2 * HOUR), *[1_000_000.0] * 5])
    dollars = LogGrid.index(np.full(100, 10e6))
    excess = np.bincount(dollars, minlength=LogGrid.BINS).tolist()
    # 1,000 agents for a day; 100 of them raised alarms of about $10 each.
    figures = day_scores([0.0] * 1000, agent_maxima=fleet(1e6, 1000).counts["agent_maxima"], day_excess=excess)
    every_one = with_fleet(figures, events, alarms_per_day=100.0, **QUICK)
    assert [finding.evidence["least_excess_usd"] for finding in every_one] == [0.0] * 5
    few = with_fleet(figures, events, alarms_per_day=20.0, **QUICK)
    assert few != []
    assert few[0].evidence["least_excess_usd"] == pytest.approx(10, rel=0.05)
    assert all(finding.evidence["excess_usd"] >= finding.evidence["least_excess_usd"] for finding in few)
    assert len(few) < len(every_one)


# --------------------------------------------------------------------------------------- the fleet


def test_a_sketch_counts_minutes_and_agents_that_are_ready() -> None:
    rates = {"long": 90, "short": 20}
    events = [replace(event, agent=agent) for agent, n in rates.items() for event in per_minute([20_000] * n)]
    detector = Runaway(RunawayConfig())
    detector.update(batch_of(events))
    sketch = detector.sketch()
    assert sum(sketch["active_sums"]) == 89 + 19  # the last minute of each is still open
    assert sum(sketch["agent_maxima"]) == 1


def test_a_forgotten_agent_is_no_part_of_the_fleet() -> None:
    detector, _ = learned(steady(90))
    detector.forget(np.array([0]))
    assert sum(detector.sketch()["agent_maxima"]) == 0


def test_the_fleets_histograms_survive_a_restart() -> None:
    events = [replace(event, group="payments") for event in in_days(steady(3 * DAY))]
    before = Runaway(RunawayConfig())
    before.update(batch_of(events))
    assert sum(before.sketch()["day_scores"]) > 0
    after = Runaway(RunawayConfig())
    after.load_shared(before.dump_shared())
    after.load(np.array([0]), before.dump(np.array([0])))
    assert after.sketch() == before.sketch()
    assert after.dump_shared() == before.dump_shared()


@pytest.mark.parametrize(
    "change", [lambda p: p[:-1], lambda p: b"\x00" + p, lambda p: p[:200], lambda p: p.replace(b"runaway", b"another")]
)
def test_damaged_shared_state_is_refused_and_changes_nothing(change: Any) -> None:
    before = Runaway(RunawayConfig())
    before.update(batch_of(in_days(steady(3 * DAY))))
    after = Runaway(RunawayConfig())
    blank = after.dump_shared()
    with pytest.raises(StateError):
        after.load_shared(change(before.dump_shared()))
    assert after.dump_shared() == blank
    after.load_shared(b"")
    assert after.dump_shared() == blank
