"""The naive rules: they do what they say, no more and no less, and pass the checks of every detector."""

from __future__ import annotations

import inspect
import re

import pytest

from detectors import registered
from detectors.base import Detector
from detectors.checks import DAY as HISTORY
from detectors.checks import START, Check, Event, all_checks, batch_of, mixed
from detectors.types import Finding, Kind
from stream.evaluate.baselines import BASELINES, ManyMessages, SameCall, TimesMean


@pytest.mark.parametrize("check", all_checks(), ids=lambda check: check.__name__.removeprefix("check_"))
@pytest.mark.parametrize("cls", BASELINES, ids=lambda cls: cls.spec.name)
def test_contract(cls: type[Detector], check: Check) -> None:
    reason = cls.spec.waived.get(check.__name__.removeprefix("check_"))
    if reason is not None:
        pytest.skip(f"waived: {reason}")
    check(cls)


@pytest.mark.parametrize("cls", BASELINES, ids=lambda cls: cls.spec.name)
def test_the_state_is_as_large_as_the_docstring_says(cls: type[Detector]) -> None:
    stated = re.search(r"about (\d+) bytes", inspect.getdoc(cls) or "")
    held = sum(table.nbytes / table.rows for table in cls(cls.Config()).tables.values())
    assert stated is not None
    assert held == pytest.approx(float(stated[1]), rel=0.1)


@pytest.mark.parametrize("cls", BASELINES, ids=lambda cls: cls.spec.name)
def test_the_made_up_streams_make_every_baseline_fire(cls: type[Detector]) -> None:
    assert cls(cls.Config()).update(batch_of(mixed(1, history=HISTORY)))


def test_baselines_are_no_part_of_the_product() -> None:
    assert not {cls.spec.name for cls in BASELINES} & set(registered())


# ------------------------------------------------------------------------------------- same_call_3


def find(cls: type[Detector], events: list[Event]) -> list[Finding]:
    return list(cls(cls.Config()).update(batch_of(events)))


def call(second: float, args: str, result: str = "") -> Event:
    return Event(ts=START + second, kind=Kind.TOOL, tool="search", signature=args, result=result)


def test_the_third_equal_call_in_a_row_fires_whatever_comes_back() -> None:
    (found,) = find(SameCall, [call(0, "a"), call(1, "x", "1"), call(2, "x", "2"), call(3, "x", "3"), call(4, "y")])
    assert (found.event_id, found.observed, found.expected) == ("e3", 3, 3)
    assert found.reason == "agent agent has called search with the same arguments 3 times in a row"


def test_model_calls_between_equal_calls_change_nothing_and_another_call_does() -> None:
    thought = Event(ts=START + 5, kind=Kind.LLM, result="hm")
    assert len(find(SameCall, [call(0, "x"), thought, call(6, "x"), thought, call(7, "x")])) == 1
    assert find(SameCall, [call(0, "x"), call(1, "x"), call(2, "y"), call(3, "x"), call(4, "x")]) == []
    assert find(SameCall, [call(0, "x"), call(1, "x"), call(2, ""), call(3, "x"), call(4, "x")]) == []


# -------------------------------------------------------------------------------------- times_mean


def used(second: float, tokens: int) -> Event:
    return Event(ts=START + second, kind=Kind.LLM, tokens=tokens * 1000)


def test_ten_times_the_mean_of_the_active_windows_fires_once_there_are_twelve() -> None:
    hour = [used(300 * i, 100) for i in range(12)]
    (found,) = find(TimesMean, [*hour, used(3600, 999), used(3601, 1)])
    assert (found.event_id, found.observed, found.expected) == ("e13", 1000, 1000)
    assert find(TimesMean, [*hour[1:], used(3600, 100_000)]) == []


def test_idle_windows_do_not_count_in_the_mean() -> None:
    sparse = [used(6000 * i, 100) for i in range(12)]
    assert find(TimesMean, [*sparse, used(6000 * 12, 999)]) == []
    assert len(find(TimesMean, [*sparse, used(6000 * 12, 1000)])) == 1


def test_days_older_than_seven_are_no_part_of_the_mean() -> None:
    day = 86400.0
    small, large = [used(300 * i, 1) for i in range(12)], [used(6 * day + 300 * i, 9) for i in range(12)]
    # The mean of both is 5; a day later the small ones are forgotten, and it is 9.
    assert len(find(TimesMean, [*small, *large, used(6 * day + 7200, 50)])) == 1
    assert find(TimesMean, [*small, *large, used(7 * day + 7200, 50)]) == []


# ------------------------------------------------------------------------------------- messages_20


def test_the_twenty_first_message_of_a_task_fires() -> None:
    talk = [Event(ts=START + i, kind=Kind.MESSAGE, agent=f"a{i % 2}", to="b", signature=f"{i}") for i in range(21)]
    (found,) = find(ManyMessages, talk)
    assert (found.event_id, found.observed) == ("e20", 21)
    assert find(ManyMessages, talk[:20]) == []
    assert find(ManyMessages, [Event(ts=START + i, kind=Kind.LLM) for i in range(50)]) == []
