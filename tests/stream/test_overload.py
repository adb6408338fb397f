"""Overload: how far behind, when it is too much, and what is left out then."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detectors import registered
from detectors.types import Finding
from stream.clock import ManualClock
from stream.columns import Columns
from stream.engine import WATCH, Engine
from stream.ingest.ingest import Record
from stream.overload import Lag, Overload, patience_s
from stream.pipeline import make_ingest
from stream.settings import OverloadSettings, parse
from stream.stages import position_name

# ------------------------------------------------------------------------------------------- lag


def test_lag_is_how_long_ago_the_end_lay_where_the_worker_is() -> None:
    lag: Lag[str] = Lag()
    assert lag.look({"p": 100}, {"p": 100}, now=0.0) == {"p": (0, 0.0)}
    assert lag.look({"p": 200}, {"p": 100}, now=10.0) == {"p": (100, 10.0)}
    assert lag.look({"p": 300}, {"p": 100}, now=20.0) == {"p": (200, 20.0)}
    assert lag.look({"p": 400}, {"p": 200}, now=30.0) == {"p": (200, 20.0)}  # where the end was at 10
    assert lag.look({"p": 400}, {"p": 399}, now=40.0) == {"p": (1, 20.0)}  # past the end of 20
    assert lag.look({"p": 400}, {"p": 400}, now=50.0) == {"p": (0, 0.0)}
    assert lag.look({"p": 400}, {"p": 400}, now=5000.0) == {"p": (0, 0.0)}
    assert lag.look({"p": 401}, {"p": 400}, now=5001.0) == {"p": (1, 1.0)}  # nothing came before


def test_what_waited_before_the_worker_came_counts_from_then_on() -> None:
    lag: Lag[str] = Lag()
    assert lag.look({"p": 1000}, {"p": 0}, now=50.0) == {"p": (1000, 0.0)}
    assert lag.look({"p": 1000}, {"p": 500}, now=80.0) == {"p": (500, 30.0)}


def test_a_partition_that_moved_away_is_forgotten_and_one_not_read_yet_is_not_told() -> None:
    lag: Lag[str] = Lag()
    lag.look({"p": 100, "q": 5}, {"p": 0}, now=0.0)
    assert lag.look({"q": 5}, {}, now=100.0) == {}
    assert lag.look({"p": 100}, {"p": 0}, now=101.0) == {"p": (100, 0.0)}


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=1, max_size=50))
def test_lag_is_zero_only_when_all_is_done_and_never_longer_than_the_watch(steps: list[tuple[int, int]]) -> None:
    lag: Lag[str] = Lag()
    end = done = 0
    for now, (more, worked) in enumerate(steps):
        end += more
        done = min(end, done + worked)
        ((records, seconds),) = lag.look({"p": end}, {"p": done}, float(now)).values()
        assert records == end - done
        assert 0 <= seconds <= now
        if not records:
            assert seconds == 0


def test_memory_of_a_long_lag_is_bounded_and_it_is_still_known() -> None:
    lag: Lag[str] = Lag()
    lag.look({"p": 0}, {"p": 0}, 0.0)
    for now in range(1, 20_000):
        lag.look({"p": now}, {"p": 0}, float(now))
    assert len(lag._of["p"].ends) <= 600
    for done in (100, 10_000, 19_000):
        ((_, seconds),) = lag.look({"p": 20_000}, {"p": done}, 20_000.0).values()
        assert seconds == pytest.approx(20_000 - done, abs=100)


# --------------------------------------------------------------------------------------- the verdict


def looks(*lags: float) -> list[bool]:
    overload = Overload(OverloadSettings())
    return [overload.look([("usage/0", 10, 0.0), ("usage/3", 500, lag)], 10.0 * i) for i, lag in enumerate(lags)]


def test_overload_begins_late_and_ends_only_when_caught_up() -> None:
    assert looks(0, 29.9, 30, 20, 5, 4.9, 20, 31) == [False, False, True, True, True, False, False, True]
    assert Overload(OverloadSettings()).look([], 0.0) is False


def test_overload_is_told_when_it_begins_now_and_then_and_when_it_ends(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        looks(0, *[40] * 35, 0)
    assert [record.getMessage() for record in caplog.records] == [
        "40 s behind on usage/3 (500 records): overloaded; the second stage is left out until it has caught up",
        "still 40 s behind on usage/3 (500 records), for 300 s now: more workers or less input are needed",
        "caught up after 350 s of overload; everything runs again",
    ]


# ----------------------------------------------------------------------------------- what is left out

DAY_S, WINDOW_S = 86_400, 600
BEGIN_S = 1_790_000_000 // DAY_S * DAY_S
SECOND_STAGE = sorted(name for name, cls in registered().items() if cls.spec.second_stage)
SETTINGS = parse("detectors: {odd_window: {enabled: true}}")


def engine() -> Engine:
    return Engine(SETTINGS, WATCH, position_name("usage"))


def ingest(values: Iterable[bytes], first: int = 0) -> Columns:
    make = make_ingest(SETTINGS, position_name("usage"), ManualClock(1.8e9), None)
    return make.columns([Record(value, 0, first + i) for i, value in enumerate(values)])[0]


def steady(days: int) -> Iterator[tuple[int, Columns]]:
    """(day, columns) of half a window each, of an agent that does the same for four hours of each day."""
    event = b'{"agent_id": "a", "ts": %d, "kind": "llm", "model": "m", "input_tokens": %d, "output_tokens": 50}'
    position = 0
    for day in range(days):
        for begin in range(0, 4 * 3600, WINDOW_S // 2):
            seconds = range(BEGIN_S + day * DAY_S + begin, BEGIN_S + day * DAY_S + begin + WINDOW_S // 2, 60)
            yield day, ingest((event % (ts, 1000 + ts // 60 % 11) for ts in seconds), position)
            position += len(seconds)


def run(days: int) -> tuple[list[Finding], Counter[str]]:
    """Findings, and how much was left out, where overload comes in every window of the later half of the days."""
    one, found, left_out = engine(), [], Counter[str]()
    for k, (day, columns) in enumerate(steady(days)):
        one.shed(day >= days // 2 and k % 2 == 1)
        result = one.process(columns)
        found += result.findings
        left_out.update(result.shed)
    return found, left_out


def test_there_is_a_second_stage_and_the_fast_detectors_are_not_in_it() -> None:
    assert SECOND_STAGE == ["drift", "odd_window"]


def test_nothing_is_left_out_unless_told() -> None:
    one = engine()
    assert all(one.process(columns).shed == {} for _, columns in steady(1))


def test_what_is_left_out_is_counted_and_raises_no_alarm() -> None:
    found, left_out = run(days=12)
    assert left_out == dict.fromkeys(SECOND_STAGE, 6 * 24 * 5)
    # Half a window is not taken for a whole one with half of the tokens.
    assert [f.rule for f in found if f.detector in SECOND_STAGE] == []


@pytest.mark.parametrize("name", ["drift"])
def test_taken_for_whole_those_windows_would_raise_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registered()[name], "resume", lambda self, clock: None)
    found, _ = run(days=12)
    assert name in {f.detector for f in found}


def test_the_others_find_the_same_while_the_second_stage_is_left_out() -> None:
    event = b'{"agent_id": "a", "ts": %d, "kind": "tool", "tool": "t", "args": {}, "result": "same"}'
    found = []
    for on in (False, True):
        one = engine()
        one.shed(on)
        found.append(one.process(ingest(event % (1_790_000_000 + n) for n in range(20))).findings)
    assert found[0]
    # All but the second opinion of a detector that was left out.
    told = [[(f.id, f.severity, f.reason) for f in one] for one in found]
    assert told[1] == told[0]


def test_a_worker_that_keeps_up_waits_for_nothing_and_one_that_is_behind_for_two_seconds_at_most() -> None:
    assert patience_s([]) == patience_s([0.0, 5.0]) == 0.0
    assert patience_s([0.5, 6.0]) == 0.5
    assert patience_s([3600.0]) == 2.0


@given(base=st.floats(0.0, 5.0))
def test_waiting_does_not_feed_itself(base: float) -> None:
    waited = 2.0
    for _ in range(60):
        waited = patience_s([base + waited])  # what waits is part of the lag
    assert waited < 1e-6
