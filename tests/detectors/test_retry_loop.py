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
from detectors.types import Finish, Kind


def laps(n: int, period: int, result: str = "same") -> list[Event]:
    return [call(f"{i}", result and f"{result} {i}") for i in range(period)] * n


def new_errors(n: int) -> list[Event]:
    return [call("x", f"error {i}", failed=True) for i in range(n)]


def fails(args: str, error: str = "no match", **more: Any) -> Event:
    return call(args, f"{error}: {args}", failed=True, error=error, **more)


def cut(n: int) -> list[Event]:
    return [said(f"part {i}", finish=Finish.TRUNCATED) for i in range(n)]


def steps(n: int, grow: int = 800, output: int = 100) -> list[Event]:
    return [Event(kind=Kind.LLM, input=5000 + grow * i, output=output) for i in range(n)]


def known_in_any_order(n: int) -> list[Event]:
    """Nine pages once, then again in an order that makes no cycle."""
    return [call(f"page {i}", f"text {i}", tool="read") for i in (*range(9), *(i * i % 9 for i in range(n)))]


COMPACTED = Event(kind=Kind.COMPACTION)
PAGES = [call(f"page {i}", f"lines {i}", tool="read", target="book") for i in range(30)]

# --------------------------------------------------------------------------------------- it fires


@pytest.mark.parametrize(
    ("rule", "events", "warning", "critical"),
    [
        pytest.param("same_call", [call()] * 6, 3, 6, id="same call, same result"),
        pytest.param("same_call", [call(failed=True)] * 6, 3, 6, id="same call, same error"),
        pytest.param("same_call", [call(result="")] * 8, 5, 8, id="same call, result not sent"),
        pytest.param("same_call", [call(tool="status")] * 20, 10, 20, id="a tool that waits"),
        pytest.param("cycle", laps(5, 2), 3 * 2, 5 * 2, id="cycle of 2"),
        pytest.param("cycle", laps(5, 3), 3 * 3, 5 * 3, id="cycle of 3"),
        pytest.param("cycle", laps(5, 4), 3 * 4, 5 * 4, id="cycle of 4"),
        pytest.param("cycle", laps(5, 5), 3 * 5, 5 * 5, id="cycle of 5"),
        pytest.param("cycle", laps(5, 2, ""), 3 * 2, 5 * 2, id="cycle of 2, results not sent"),
        pytest.param("cycle", laps(6, 3, ""), 4 * 3, 6 * 3, id="cycle of 3, results not sent"),
        pytest.param("cycle", [call(tool="status"), call("y")] * 11, 9 * 2, 11 * 2, id="cycle with a tool that waits"),
        pytest.param("failing_repeat", new_errors(6), 3, 6, id="failing with a new error each time"),
        pytest.param(
            "same_call_again",
            [event for i in range(8) for event in (call(), call(f"other {i}", f"{i}"))],
            5,
            15,
            id="the same call with others in between",
        ),
        pytest.param(
            "same_call_again",
            [event for i in range(8) for event in (call(), call(f"a{i}", f"a{i}"), call(f"b{i}", f"b{i}"))],
            13,
            22,
            id="the same call with more in between",
        ),
        pytest.param(
            "same_call_again",
            [event for i in range(8) for event in (call(), call(f"{i}", f"{i}", tool="frobnicate"))],
            9,
            15,
            id="the same call with calls of an unknown tool in between",
        ),
        pytest.param("same_error", [fails(f"{i}") for i in range(12)], 6, 10, id="one tool, one kind of error"),
        pytest.param(
            "same_error", [fails(f"{i}", tool="shell") for i in range(36)], 18, 30, id="a shell, one kind of error"
        ),
        pytest.param(
            "error_streak",
            [fails(f"{i}", f"error {i}", tool=("search", "read")[i % 2]) for i in range(10)],
            6,
            10,
            id="whatever is called fails",
        ),
        pytest.param("stagnation", [call(f"{i}") for i in range(10)], 6, 10, id="one answer to all questions"),
        pytest.param(
            "stagnation", [call(f"{i}", tool="shell") for i in range(12)], 8, 12, id="one answer to all commands"
        ),
        pytest.param(
            "nothing_new",
            known_in_any_order(40),
            9 + 20,
            9 + 40,
            id="nothing new",
        ),
        pytest.param("sweep", PAGES * 3, 40, 60, id="a target read all over again"),
        pytest.param("same_words", [said("done")] * 6, 3, 6, id="same text"),
        pytest.param("same_words", [message("a", "b", "thanks")] * 6, 3, 6, id="same message"),
        pytest.param("truncated", cut(5), 3, 5, id="cut off"),
        pytest.param("compactions", [COMPACTED] * 5, 3, 5, id="compacted again"),
        pytest.param("compactions", [COMPACTED, said("a"), said("b")] * 5, 7, 13, id="compacted, two calls, compacted"),
        pytest.param("equal_steps", steps(14), 7, 13, id="steps of one size without hashes"),
    ],
)
def test_it_fires_at_the_threshold(rule: str, events: list[Event], warning: int, critical: int) -> None:
    config = {"again_warning": 100, "sparse_warning": 100, "again_critical": 100} if rule == "nothing_new" else {}
    found = find(RetryLoop, every(1, events), **config)
    assert verdicts(found)[:2] == [(rule, "warning", warning - 1), (rule, "critical", critical - 1)]


def test_a_run_of_a_thousand_calls_is_a_warning_and_no_more() -> None:
    found = find(RetryLoop, every(1, [call(f"{i}", f"{i}") for i in range(3000)]))
    assert verdicts(found)[0] == ("volume", "warning", 999)
    assert {(finding.rule, finding.severity) for finding in found} == {("volume", "warning")}


def test_a_straight_read_of_one_target_warns_late_and_never_more() -> None:
    pages = [call(f"page {i}", f"lines {i}", tool="read", target="book") for i in range(300)]
    found = find(RetryLoop, every(1, pages))
    assert verdicts(found)[0] == ("sweep", "warning", 95)
    assert {finding.severity for finding in found} == {"warning"}


def test_the_first_repetition_is_reported_only_where_it_is_asked_for() -> None:
    twice = every(2, [call(result="a"), call(result="b"), call("y")])
    assert find(RetryLoop, twice) == []
    assert verdicts(find(RetryLoop, twice, early=True)) == [("repeat", "warning", 1)]
    assert find(RetryLoop, every(2, [call(tool="status")] * 9), early=True) == []


def test_provider_errors_fire_at_the_threshold() -> None:
    at_once = every(0, [refused()] * 30)
    assert verdicts(find(RetryLoop, at_once)) == [
        ("provider_errors", "warning", 9),
        ("provider_errors", "critical", 29),
    ]


def test_a_backoff_that_has_reached_its_longest_pause_is_a_storm_again() -> None:
    pauses = [1.0, 2.0, 4.0, 8.0, *[10.0] * 30]
    at = [START + sum(pauses[:i]) for i in range(len(pauses))]
    found = find(RetryLoop, [refused(ts=ts) for ts in at])
    assert found
    assert found[0].ts > at[5]


@pytest.mark.parametrize("status", [0, 429, 500])
def test_provider_errors_tell_the_status_if_it_is_known(status: int) -> None:
    (finding,) = find(RetryLoop, every(0, [refused(status)] * 10))
    assert finding.evidence["http_status"] == (status or None)
    assert (f"HTTP {status}" in finding.reason) == bool(status)


def test_thresholds_are_settings() -> None:
    found = find(RetryLoop, every(2, [call()] * 6), repeat_warning=4, repeat_critical=5)
    assert verdicts(found) == [("same_call", "warning", 3), ("same_call", "critical", 4)]


def test_the_same_call_of_several_rounds_is_a_loop() -> None:
    events = [call(round=f"round {i // 3}") for i in range(12)]
    found = verdicts(find(RetryLoop, every(2, events)))
    assert found == [("same_call", "warning", 6)]


def test_the_same_parallel_calls_in_any_order_are_a_loop() -> None:
    events = [call(args, args, round=order) for order in ("abc", "cab", "bca") for args in order]
    assert verdicts(find(RetryLoop, every(1, events)))[0] == ("same_call_again", "warning", 6)


def test_parallel_failures_count_once_per_round() -> None:
    events = [call("x", f"error {i}", failed=True, round=f"round {i // 2}") for i in range(8)]
    assert verdicts(find(RetryLoop, every(2, events))) == [("failing_repeat", "warning", 4)]


def test_paced_calls_that_fail_warn_later_and_never_more() -> None:
    found = find(RetryLoop, every(60, new_errors(40)))
    assert verdicts(found)[0] == ("failing_repeat", "warning", 8)
    assert {finding.severity for finding in found} == {"warning"}


@pytest.mark.parametrize(("args", "at"), [("another", 102), ("1", 102)])
def test_a_slow_poller_that_starts_to_loop_on_one_call_is_seen_at_once(args: str, at: int) -> None:
    polls = every(120, laps(50, 2))
    loop = every(1, [call(args, f"same {args}")] * (at - 99), start=100 * 120)
    found = [verdict for verdict in verdicts(find(RetryLoop, polls + loop)) if verdict[0] == "same_call"]
    assert found == [("same_call", "warning", at)]


def test_a_loop_is_seen_whatever_other_runs_do_in_between() -> None:
    events = [call(run=f"run {i % 5}") for i in range(20)]
    assert verdicts(find(RetryLoop, every(1, events))) == [("same_call", "warning", 10 + i) for i in range(5)]


def test_late_events_count() -> None:
    events = every(2, [call()] * 3)
    assert verdicts(find(RetryLoop, [events[2], *events[:2]])) == [("same_call", "warning", 2)]


def test_calls_that_nobody_can_compare_do_not_hide_a_loop() -> None:
    events = [call(), call(args=""), said("thinking"), said("what now")] * 3
    assert verdicts(find(RetryLoop, every(2, events))) == [("same_call", "warning", 8)]


# ------------------------------------------------------------------------------------ it is quiet


def edit_and_test(n: int) -> Iterable[Event]:
    for i in range(n):
        yield call(f"line {i}", "ok", tool="edit")
        yield call("all", "1 failed", tool="test", failed=True)


def commands_and_test(n: int) -> Iterable[Event]:
    for i in range(n):
        yield call(f"sed {i}", "nothing", tool="shell", empty=True)
        yield call("all", "1 failed", tool="test", failed=True)


def poll_and_sleep(n: int) -> Iterable[Event]:
    for i in range(n):
        yield call("log", f"line {i}", tool="read")
        yield call("sleep 5", "nothing", tool="shell")


def fails_but_not_always(n: int) -> Iterable[Event]:
    for i in range(n):
        yield call(f"{i}", f"{i}") if i % 5 == 0 else fails(f"{i}")


def compact_and_work(n: int) -> Iterable[Event]:
    for i in range(n):
        yield COMPACTED
        yield call(f"work {i}", f"done {i}")


def backing_off(n: int) -> list[Event]:
    return [refused(ts=START + 2.0**i) for i in range(n)]


@pytest.mark.parametrize(
    "events",
    [
        pytest.param(every(2, [call()] * 2), id="one call less"),
        pytest.param(every(2, laps(2, 3)), id="one lap less"),
        pytest.param(every(2, [call(result=f"{i}% done") for i in range(50)]), id="polling that makes progress"),
        pytest.param(every(60, [call(result="pending")] * 50), id="polling once a minute"),
        pytest.param(every(60, laps(20, 2)), id="polling two things in turn"),
        pytest.param(every(60, [said("still waiting")] * 50), id="words once a minute"),
        pytest.param(every(2, edit_and_test(20)), id="edit, then test again"),
        pytest.param(every(2, commands_and_test(20)), id="a command that prints nothing, then test again"),
        pytest.param(every(2, [*laps(1, 1), *PAGES[:5], *laps(1, 1), *PAGES[5:12], *laps(1, 1)]), id="now and then"),
        pytest.param(every(2, poll_and_sleep(20)), id="polls that bring news, and the same sleep between"),
        pytest.param(every(2, [call(tool="status")] * 9), id="a few polls"),
        pytest.param(every(2, [fails(f"{i}") for i in range(5)]), id="one failure less"),
        pytest.param(every(2, [fails(f"{i}", tool="shell") for i in range(17)]), id="searching by command"),
        pytest.param(every(2, fails_but_not_always(20)), id="every fifth call succeeds"),
        pytest.param(every(2, [call(f"{i}") for i in range(5)]), id="one answer to five questions"),
        pytest.param(every(2, [call(f"{i}", empty=True) for i in range(20)]), id="searches that find nothing"),
        pytest.param(
            every(2, [call(f"{i}", "ok", tool="frobnicate") for i in range(50)]), id="an unknown tool's batch"
        ),
        pytest.param(
            every(2, [event for i in range(9) for event in (call(), call(f"{i}", "ok", tool="frobnicate"))]),
            id="an unknown tool's work, then the same look",
        ),
        pytest.param(every(2, known_in_any_order(0) + known_in_any_order(0)[2:7]), id="a second look at a few pages"),
        pytest.param(every(2, PAGES + PAGES[:6]), id="a large file, and a few pages again"),
        pytest.param(every(2, [*cut(2), said("the end", finish=Finish.STOP)] * 5), id="long answers that end"),
        pytest.param(every(2, compact_and_work(9)), id="compactions with work between"),
        pytest.param(every(2, [COMPACTED, said("a"), said("b"), said("c")] * 5), id="compactions with thought between"),
        pytest.param(every(2, steps(20, output=0)), id="steps without output"),
        pytest.param(every(2, [*steps(6), said("x"), *steps(6)]), id="hashes are sent"),
        pytest.param(every(70, steps(15)), id="steps of one size once a minute"),
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
    events = [call()] * 2 + [call(result="other")] + [call()] * 2
    assert find(RetryLoop, every(2, events)) == []


# -------------------------------------------------------------------------------- how often it speaks


def test_a_lasting_loop_is_reported_every_minute() -> None:
    found = find(RetryLoop, every(10, [call()] * 30))
    assert [finding.ts - START for finding in found] == [20, 50, 110, 170, 230, 290]
    assert [finding.severity for finding in found] == ["warning"] + ["critical"] * 5


def test_a_loop_after_a_long_pause_is_new() -> None:
    events = every(2, [call()] * 3) + every(2, [call("y")] * 3, start=310)
    found = find(RetryLoop, events)
    assert [(finding.ts - START, finding.severity) for finding in found] == [(4, "warning"), (314, "warning")]


@pytest.mark.parametrize(("news", "alerts"), [(4, 1), (5, 2)])
def test_the_same_loop_is_new_again_after_progress(news: int, alerts: int) -> None:
    work = [call(f"{i}", f"{i}", tool="read") for i in range(news)]
    assert len(find(RetryLoop, every(1, [*[call()] * 3, *work, *[call()] * 3]))) == alerts


def test_another_loop_is_another_alert() -> None:
    found = find(RetryLoop, every(1, [call()] * 3 + [call("y", "y")] * 3))
    assert verdicts(found) == [("same_call", "warning", 2), ("same_call", "warning", 5)]


def test_a_cycle_that_starts_elsewhere_is_the_same_loop() -> None:
    found = find(RetryLoop, every(1, [*laps(3, 3), call("1"), *laps(3, 3)]))
    assert [finding.severity for finding in found] == ["warning"]


def test_one_loop_is_one_alert_whichever_of_its_calls_come_back() -> None:
    found = find(RetryLoop, every(1, known_in_any_order(12)))
    assert len(found) == 1


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
        (every(2, [call()] * 3), "agent agent has made the same call of search 3 times in a row with the same result"),
        (every(2, [call(tool="")] * 3), "agent agent has made the same call of a tool 3 times in a row with the same"),
        (
            every(2, [call(failed=True)] * 3),
            "agent agent has made the same call of search 3 times in a row with the same error in 4 s",
        ),
        (
            every(2, [call(result="")] * 5),
            "agent agent has made the same call of search 5 times in a row with no result sent in 8 s",
        ),
        (every(2, laps(3, 3)), "agent agent has gone round the same 3 calls 3 times with the same results in"),
        (every(2, new_errors(3)), "agent agent has called search 3 times in a row and it failed every time in 4 s"),
        (every(2, [fails(f"{i}") for i in range(6)]), "agent agent has called search 6 times with changing arguments"),
        (
            every(2, [call(f"{i}") for i in range(6)]),
            "agent agent has called search 6 times in a row with changing arguments and always got the same answer in "
            "10 s",
        ),
        (
            every(2, [call(), call("a", "a"), call(), call("b", "b"), call()]),
            "agent agent has come back 3 times to the same call of search with the same result in 8 s, last new result "
            "2 s ago",
        ),
        (every(2, cut(3)), "agent agent has run into its limit of output tokens 3 times in a row in 4 s"),
        (
            every(2, [COMPACTED] * 3),
            "agent agent has had its context compacted 3 times in a row without doing anything",
        ),
        (every(2, steps(7)), "agent agent has added as much to its context and written as much 6 times in a row"),
        (every(2, [said("ok")] * 3), "agent agent has written the same text 3 times in a row in 4 s"),
        (every(0, [refused()] * 10), "agent agent keeps calling a failing model: about 10 errors within 5 min (last: "),
        (
            every(59, [call(failed=True), *new_errors(2)]),
            "agent agent has called search 3 times in a row and it failed every time in 118 s",
        ),
    ],
)
def test_the_reason_says_who_does_what_how_often(events: list[Event], reason: str) -> None:
    assert one(events).reason.startswith(reason)


def test_spend_is_counted_from_the_first_call_of_the_loop() -> None:
    before = [used(70_000), call("y", tokens=9_000_000, cost=10**9), call("x", "other", tokens=9_000_000, cost=10**9)]
    loop = [call(tokens=1_000_000, cost=10**7), used(500), call(tokens=1_000_000, cost=10**7)] * 2
    finding = one(every(2, before + loop[:4]))
    assert finding.rule == "same_call"
    assert finding.evidence["since"] == START + 6
    assert finding.evidence["effective_tokens"] == 3 * 1000 + 500
    assert finding.evidence["cost_usd"] == pytest.approx(3 * 0.01 + 0.0015)
    assert "in 6 s (3,500 effective tokens, $0.03 since it began)" in finding.reason


def test_an_older_pattern_does_not_date_a_loop_back() -> None:
    zigzag = [call("x", "other"), call("y")] * 2
    found = find(RetryLoop, every(2, [*zigzag, *[call("x")] * 3]))
    found = [finding for finding in found if finding.rule == "same_call"]
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

    def blind(self, name: str) -> bool:
        """Whether a missing result makes this need one more."""
        period = int(name.split()[1])
        return period != 2 and any(not item[1] for item in self.items[-period:])


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
FAR: dict[str, Any] = {
    f"{rule}_{severity}": 10**6
    for rule in ("again", "same_error", "errors", "stagnant", "stale")
    for severity in ("warning", "critical")
} | {"sparse_warning": 10**6}
EAGER: dict[str, Any] = FAR | {
    "repeat_warning": 2,
    "laps_warning": 2,
    "failing_warning": 2,
    "repeat_critical": 1000,
    "laps_critical": 1000,
    "failing_critical": 1000,
    "blind_warning": 3,
    "blind_critical": 1000,
    "blind_laps": 1,
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
        for name, (count, since, tokens) in (candidates or {}).items():
            if count >= 2 + (name != "failing" and runs[event.run].blind(name)):
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
    # Nothing is kept of a run that was never refused.
    assert detector.tables["storm"]["errors"].sum() == pytest.approx(errors, rel=1e-9, abs=1e-9)


@given(
    st.lists(
        st.tuples(st.sampled_from(["search", "shell", "edit", "status", "frobnicate"]), st.sampled_from("xy")),
        max_size=80,
    )
)
def test_who_learns_something_from_every_call_is_in_no_loop(calls: list[tuple[str, str]]) -> None:
    events = [call(args, f"result {i}", tool=tool) for i, (tool, args) in enumerate(calls)]
    assert find(RetryLoop, every(1, events)) == []


@given(st.lists(st.sampled_from("abc"), min_size=2, max_size=5, unique=True), st.integers(4, 8), st.integers(0, 4))
def test_a_cycle_is_one_alert_wherever_it_starts(cycle: list[str], times: int, start: int) -> None:
    turned = cycle[start % len(cycle) :] + cycle[: start % len(cycle)]
    found = find(RetryLoop, every(1, [call(args, args) for args in turned * times]))
    assert [finding.severity for finding in found] == ["warning", *["critical"] * (times >= 5)]
    assert {finding.rule for finding in found} == {"cycle"}
