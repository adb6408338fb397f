"""Runs that repeat themselves: when it fires, when it is quiet, what it says."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from batches import START, Event, batch_of, call, every, find, message, refused, said, used, verdicts
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.loops.calls import PERIODS
from detectors.loops.config import RetryLoopConfig
from detectors.retry_loop import RetryLoop
from detectors.types import Kind


def laps(n: int, period: int, result: str = "same") -> list[Event]:
    return [call(f"{i}", result) for i in range(period)] * n


def new_errors(n: int) -> list[Event]:
    return [call("x", f"error {i}", failed=True) for i in range(n)]


# --------------------------------------------------------------------------------------- it fires


@pytest.mark.parametrize(
    ("rule", "events", "warning", "critical"),
    [
        pytest.param("same_call", [call()] * 6, 4, 6, id="same call, same result"),
        pytest.param("same_call", [call(failed=True)] * 6, 4, 6, id="same call, same error"),
        pytest.param("same_call", [call(result="")] * 8, 6, 8, id="same call, result not sent"),
        pytest.param("cycle", laps(5, 2), 3 * 2, 5 * 2, id="cycle of 2"),
        pytest.param("cycle", laps(5, 3), 3 * 3, 5 * 3, id="cycle of 3"),
        pytest.param("cycle", laps(5, 4), 3 * 4, 5 * 4, id="cycle of 4"),
        pytest.param("cycle", laps(5, 5), 3 * 5, 5 * 5, id="cycle of 5"),
        pytest.param("cycle", laps(7, 2, ""), 5 * 2, 7 * 2, id="cycle, results not sent"),
        pytest.param("failing_repeat", new_errors(6), 4, 6, id="failing with a new error each time"),
        pytest.param("same_words", [said("done")] * 8, 4, 8, id="same text"),
        pytest.param("same_words", [message("a", "b", "thanks")] * 8, 4, 8, id="same message"),
    ],
)
def test_it_fires_at_the_threshold(rule: str, events: list[Event], warning: int, critical: int) -> None:
    found = find(RetryLoop, every(2, events))
    assert verdicts(found) == [(rule, "warning", warning - 1), (rule, "critical", critical - 1)]
    assert found[0].score == 0


def test_provider_errors_fire_at_the_threshold() -> None:
    at_once = every(0, [refused()] * 30)
    assert verdicts(find(RetryLoop, at_once)) == [
        ("provider_errors", "warning", 9),
        ("provider_errors", "critical", 29),
    ]


@pytest.mark.parametrize("status", [0, 429, 500])
def test_provider_errors_tell_the_status_if_it_is_known(status: int) -> None:
    (finding,) = find(RetryLoop, every(0, [refused(status)] * 10))
    assert finding.evidence["http_status"] == (status or None)
    assert (f"HTTP {status}" in finding.reason) == bool(status)


def test_thresholds_are_settings() -> None:
    found = find(RetryLoop, every(2, [call()] * 6), repeat_warning=2, repeat_critical=3)
    assert verdicts(found) == [("same_call", "warning", 1), ("same_call", "critical", 2)]


def test_the_same_call_of_several_rounds_is_a_loop() -> None:
    events = [call(round=f"round {i // 3}") for i in range(12)]
    assert verdicts(find(RetryLoop, every(2, events))) == [("same_call", "warning", 9)]


def test_parallel_failures_count_once_per_round() -> None:
    events = [call("x", f"error {i}", failed=True, round=f"round {i // 2}") for i in range(8)]
    assert verdicts(find(RetryLoop, every(2, events))) == [("failing_repeat", "warning", 6)]


def test_paced_calls_that_fail_warn_later_and_never_more() -> None:
    found = find(RetryLoop, every(60, new_errors(40)))
    assert verdicts(found)[0] == ("failing_repeat", "warning", 11)
    assert {finding.severity for finding in found} == {"warning"}


@pytest.mark.parametrize(("args", "at"), [("another", 103), ("1", 102)])
def test_a_slow_poller_that_starts_to_loop_on_one_call_is_seen_at_once(args: str, at: int) -> None:
    polls = every(120, laps(50, 2))
    loop = every(1, [call(args)] * (at - 99), start=100 * 120)
    assert verdicts(find(RetryLoop, polls + loop)) == [("same_call", "warning", at)]


def test_a_loop_is_seen_whatever_other_runs_do_in_between() -> None:
    events = [call(run=f"run {i % 5}") for i in range(20)]
    assert verdicts(find(RetryLoop, every(1, events))) == [("same_call", "warning", 15 + i) for i in range(5)]


def test_late_events_count() -> None:
    events = every(2, [call()] * 4)
    assert verdicts(find(RetryLoop, [events[3], *events[:3]])) == [("same_call", "warning", 3)]


def test_calls_that_nobody_can_compare_do_not_hide_a_loop() -> None:
    events = [call(), call(args=""), said("thinking"), Event(kind=Kind.COMPACTION)] * 4
    assert verdicts(find(RetryLoop, every(2, events))) == [("same_call", "warning", 12)]


# ------------------------------------------------------------------------------------ it is quiet


def edit_and_test(n: int) -> Iterable[Event]:
    for i in range(n):
        yield call(f"line {i}", "ok", tool="edit")
        yield call("all", "1 failed", tool="test", failed=True)


def backing_off(n: int) -> list[Event]:
    return [refused(ts=START + 2.0**i) for i in range(n)]


@pytest.mark.parametrize(
    "events",
    [
        pytest.param(every(2, [call()] * 3), id="one call less"),
        pytest.param(every(2, laps(2, 3)), id="one lap less"),
        pytest.param(every(2, [call(result=f"{i}% done") for i in range(50)]), id="polling that makes progress"),
        pytest.param(every(60, [call(result="pending")] * 50), id="polling once a minute"),
        pytest.param(every(60, laps(20, 2)), id="polling two things in turn"),
        pytest.param(every(60, [said("still waiting")] * 50), id="words once a minute"),
        pytest.param(every(2, edit_and_test(20)), id="edit, then test again"),
        pytest.param(every(2, [call("file", f"page {i}", tool="read") for i in range(50)]), id="reading page by page"),
        pytest.param(every(2, [call(f"{i}", "ok", tool="write") for i in range(50)]), id="writes all answered with ok"),
        pytest.param(
            every(2, [call("x", f"error {i}", failed=i % 3 != 0) for i in range(50)]), id="every third call succeeds"
        ),
        pytest.param(every(0, [call(round="one")] * 50), id="parallel calls of one round"),
        pytest.param(every(0, [replace(e, round="one") for e in new_errors(20)]), id="parallel calls fail differently"),
        pytest.param(every(0, [replace(e, round="one") for e in laps(9, 3)]), id="parallel calls, answered in turn"),
        pytest.param(
            every(1, [call(result=f"{i // 5}", round=f"{i // 5}") for i in range(50)]), id="parallel calls, every round"
        ),
        pytest.param(every(2, [call(args="", failed=True)] * 50), id="arguments are not observed"),
        pytest.param(every(2, [said("")] * 50), id="words are not observed"),
        pytest.param(every(2, [said("overloaded", failed=True)] * 9), id="the words of a refusal"),
        pytest.param(backing_off(20), id="a backoff that doubles"),
        pytest.param(every(40, [refused()] * 100), id="now and then an error of the provider"),
        pytest.param(every(2, [refused(run=f"run {i // 9}") for i in range(90)]), id="an outage for ten runs"),
        pytest.param(
            every(2, [said("let me see"), call("x"), said("let me see"), call("y")] * 2), id="words and calls"
        ),
        pytest.param(every(2, [call(run=f"run {i}") for i in range(50)]), id="the same call in 50 runs"),
        pytest.param(every(2, [call(agent=f"agent {i}") for i in range(50)]), id="a run id used by 50 agents"),
    ],
)
def test_it_is_quiet(events: list[Event]) -> None:
    assert find(RetryLoop, events) == []


def test_a_tool_call_ends_a_streak_of_words() -> None:
    text_before_each_call = [event for i in range(20) for event in (said("Ok."), call(f"{i}", f"{i}"))]
    assert find(RetryLoop, every(2, text_before_each_call)) == []
    calls_nobody_can_compare = [event for _ in range(20) for event in (said("Ok."), call(args="", result=""))]
    assert find(RetryLoop, every(2, calls_nobody_can_compare)) == []


def test_a_changed_result_ends_a_streak() -> None:
    events = [call()] * 3 + [call(result="other")] + [call()] * 3
    assert find(RetryLoop, every(2, events)) == []


# -------------------------------------------------------------------------------- how often it speaks


def test_a_lasting_loop_is_reported_every_minute() -> None:
    found = find(RetryLoop, every(10, [call()] * 30))
    assert [finding.ts - START for finding in found] == [30, 50, 110, 170, 230, 290]
    assert [finding.severity for finding in found] == ["warning"] + ["critical"] * 5


def test_a_loop_after_a_long_pause_is_new() -> None:
    events = every(2, [call()] * 4) + every(2, [call("y")] * 4, start=310)
    found = find(RetryLoop, events)
    assert [(finding.ts - START, finding.severity) for finding in found] == [(6, "warning"), (316, "warning")]


def test_calls_and_words_and_provider_errors_have_alarms_of_their_own() -> None:
    loop = [call(), refused()] * 10
    words = [said("done")] * 4
    rules = {finding.rule for finding in find(RetryLoop, every(0, loop + words))}
    assert rules == {"same_call", "provider_errors", "same_words"}


# ----------------------------------------------------------------------------------- what it says


def one(events: list[Event]) -> Any:
    (finding,) = find(RetryLoop, events)
    return finding


@pytest.mark.parametrize(
    ("events", "reason"),
    [
        (every(2, [call()] * 4), "agent agent has made the same call of search 4 times in a row with the same result"),
        (every(2, [call(tool="")] * 4), "agent agent has made the same call of a tool 4 times in a row with the same"),
        (
            every(2, [call(failed=True)] * 4),
            "agent agent has made the same call of search 4 times in a row with the sa",
        ),
        (
            every(2, [call(result="")] * 6),
            "agent agent has made the same call of search 6 times in a row with no resul",
        ),
        (every(2, laps(3, 3)), "agent agent has gone round the same 3 calls 3 times with the same results in"),
        (every(2, new_errors(4)), "agent agent has called search 4 times in a row and it failed every time in 6 s"),
        (every(2, [said("ok")] * 4), "agent agent has written the same text 4 times in a row in 6 s"),
        (every(0, [refused()] * 10), "agent agent keeps calling a failing model: about 10 errors within 5 min (last: "),
        (
            every(59, [call()] * 4),
            "agent agent has made the same call of search 4 times in a row with the same result in 3",
        ),
    ],
)
def test_the_reason_says_who_does_what_how_often(events: list[Event], reason: str) -> None:
    assert one(events).reason.startswith(reason)


def test_spend_is_counted_from_the_first_call_of_the_loop() -> None:
    before = [used(70_000), call("y", tokens=9_000_000, cost=10**9), call("x", "other", tokens=9_000_000, cost=10**9)]
    loop = [call(tokens=1_000_000, cost=10**7), used(500), call(tokens=1_000_000, cost=10**7)] * 2
    finding = one(every(2, before + loop))
    assert finding.rule == "same_call"
    assert finding.evidence["since"] == START + 6
    assert finding.evidence["effective_tokens"] == 4 * 1000 + 2 * 500
    assert finding.evidence["cost_usd"] == pytest.approx(4 * 0.01 + 2 * 0.0015)
    assert finding.reason.endswith("in 10 s (5,000 effective tokens, $0.04 since it began)")


def test_an_older_pattern_does_not_date_a_loop_back() -> None:
    zigzag = [call("x"), call("y")] * 2
    found = find(RetryLoop, every(2, [*zigzag, *[call("x")] * 4]))
    assert [(finding.rule, finding.evidence["since"] - START) for finding in found] == [("same_call", 8)]


def test_a_cycle_of_equal_calls_is_the_same_call() -> None:
    found = find(RetryLoop, every(2, [call()] * 20), repeat_warning=4)
    assert {(finding.rule, finding.evidence["period"]) for finding in found} == {("same_call", 1)}


def test_evidence_counts_the_calls_of_a_cycle() -> None:
    finding = one(every(2, laps(3, 4)))
    assert (finding.evidence["calls"], finding.evidence["period"], finding.observed, finding.unit) == (12, 4, 3, "laps")


# ------------------------------------------------------------------------- against a naive reference


class Naive:
    """Counts of one run by looking back at all its calls."""

    def __init__(self) -> None:
        self.items: list[tuple[Any, ...]] = []
        self.rounds: list[str] = []
        self.starts: list[tuple[float, int]] = []
        self.failing: list[str] = []
        self.tokens = 0

    def add(self, event: Event) -> dict[str, tuple[int, float, int]] | None:
        """Candidates: name -> (count, when the streak began, tokens since); None if the call does not count."""
        self.tokens += event.tokens
        item = (event.signature, event.result, event.failed)
        of_round = 0
        while event.round and of_round < min(len(self.items), PERIODS) and self.rounds[-1 - of_round] == event.round:
            of_round += 1
        if item in self.items[len(self.items) - of_round :]:
            return None
        same_round = of_round > 0
        self.items.append(item)
        self.rounds.append(event.round)
        self.starts.append((event.ts, self.tokens - event.tokens))
        found = {}
        for period in range(1, PERIODS + 1):
            matches = 0
            while len(self.items) > matches + period and self.items[-1 - matches] == self.items[-1 - matches - period]:
                matches += 1
            start, before = self.starts[-1 - matches]
            found[f"period {period}"] = (matches // period + 1, start, self.tokens - before)
        if self.failing and (self.failing[0] != event.signature or not event.failed):
            self.failing = []
        if event.failed:
            if not self.failing:
                self.failing_start = self.starts[-1]
            if not self.failing or not same_round:
                self.failing.append(event.signature)
            found["failing"] = (len(self.failing), self.failing_start[0], self.tokens - self.failing_start[1])
        return found


Calls = st.lists(
    st.builds(
        call,
        st.sampled_from("xyz"),
        st.sampled_from(["same", "other", ""]),
        failed=st.booleans(),
        round=st.sampled_from(["", "1", "2"]),
        run=st.sampled_from(["run 0", "run 0", "run 1"]),
        tokens=st.integers(0, 3).map(lambda n: n * 1000),
    ),
    max_size=60,
)
EAGER: dict[str, Any] = {
    "repeat_warning": 2,
    "laps_warning": 2,
    "failing_warning": 2,
    "repeat_critical": 1000,
    "laps_critical": 1000,
    "failing_critical": 1000,
    "blind_extra": 1,
    "paced_gap_s": 1e9,
    "repeat_s": 0.5,
}


@settings(max_examples=300)
@given(Calls)
def test_repetitions_are_counted_as_by_looking_back(calls: list[Event]) -> None:
    events = every(1, calls)
    runs: dict[str, Naive] = defaultdict(Naive)
    expected = {}
    for i, event in enumerate(events):
        candidates = runs[event.run].add(event)
        blind = EAGER["blind_extra"] if not event.result else 0
        for name, (count, since, tokens) in (candidates or {}).items():
            if count >= 2 + (0 if name == "failing" else blind):
                expected[f"e{i}"] = (name, count, since, tokens / 1000)
                break
    found = {}
    for finding in find(RetryLoop, events, **EAGER):
        name = "failing" if finding.rule == "failing_repeat" else f"period {finding.evidence['period']}"
        evidence = finding.evidence
        found[finding.event_id] = (name, int(finding.observed), evidence["since"], evidence["effective_tokens"])
    assert found == expected


@given(st.lists(st.tuples(st.floats(0, 60), st.floats(0, 900), st.booleans()), min_size=1, max_size=60))
def test_provider_errors_fade_as_the_definition_says(steps: list[tuple[float, float, bool]]) -> None:
    at, events = START, []
    for gap, delay, failed in steps:
        at += gap
        events.append(refused(ts=at - delay) if failed else said("fine", ts=at - delay))
    detector = RetryLoop(RetryLoopConfig())
    detector.update(batch_of(events))
    now = max(event.ts for event in events)
    errors = math.fsum(math.exp(-(now - event.ts) / 300) for event in events if event.failed)
    assert detector.tables["storm"]["errors"][0] == pytest.approx(errors, rel=1e-9, abs=1e-9)
