"""State in columns, the pacing of alarms, figures of the fleet, the registry."""

from __future__ import annotations

import doctest
import importlib
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
from batches import Event, batch_of
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

import detectors
from detectors import base
from detectors.base import (
    ALARM_FIELDS,
    Detector,
    DetectorConfig,
    DetectorError,
    FleetFigures,
    LogGrid,
    Records,
    ScoreGrid,
    Sparse,
    Spec,
    StateError,
    Table,
    levels,
    pace,
    pace_in_order,
    register,
    registered,
)
from detectors.null import Null
from detectors.retry_loop import RetryLoop, RetryLoopConfig
from detectors.types import EventBatch, Finding, Scope, beyond, finding_id


@pytest.mark.parametrize("module", detectors.MODULES)
def test_examples_in_docstrings_hold(module: str) -> None:
    assert doctest.testmod(importlib.import_module(f"detectors.{module}")).failed == 0


# ------------------------------------------------------------------------------------------ tables


def table() -> Table:
    return Table({"count": (np.int32, 7), "recent": (np.uint64, 0, 3)})


def test_rows_are_blank_until_written_however_many_there_are() -> None:
    grown = table()
    grown["count"][2] = 1
    grown.reserve(1000)
    assert grown["count"][2] == 1
    assert grown["count"][[0, 1, 999]].tolist() == [7, 7, 7]
    assert grown["recent"].shape == (grown.rows, 3)


def test_small_vectors_are_taken_and_put_row_by_row() -> None:
    some, rows = table(), np.array([4, 1])
    some.put("recent", rows, np.array([[1, 2, 3], [4, 5, 6]]))
    assert some["recent"][[1, 4]].tolist() == [[4, 5, 6], [1, 2, 3]]
    assert some.take("recent", rows).tolist() == [[1, 2, 3], [4, 5, 6]]


def test_rows_grow_by_half_at_least() -> None:
    grown = table()
    before = grown.rows
    grown.reserve(before + 1)
    assert grown.rows == before + before // 2
    grown.reserve(3)
    assert grown.rows == before + before // 2


def test_few_more_rows_exist_in_a_large_table_than_were_asked_for() -> None:
    grown = table()
    grown.reserve(100_000)
    grown.reserve(100_001)
    assert 100_001 <= grown.rows <= 104_000
    assert grown.nbytes == grown.rows * (4 + 3 * 8)


@pytest.mark.parametrize("kind", [Table, Records])
@pytest.mark.parametrize("step", [7, 9_000, 150_000])
def test_however_a_table_grows_what_it_held_stays_and_the_rest_is_blank(kind: type[Table], step: int) -> None:
    grown = kind({"count": (np.int32, 7), "recent": (np.uint64, 0, 3)})
    rows = np.arange(0)
    for size in range(step, 40 * step if step < 10_000 else 4 * step, step):
        grown.reserve(size)
        fresh = np.arange(len(rows), size)
        assert (grown["count"][fresh] == 7).all()
        assert not grown["recent"][fresh].any()
        grown["count"][fresh], grown["recent"][fresh] = fresh, fresh[:, None]
        rows = np.arange(size)
        assert (grown["count"][rows] == rows).all()
        assert (grown["recent"][rows] == rows[:, None]).all()


def test_cleared_rows_are_blank_and_the_others_are_kept() -> None:
    kept = table()
    kept["count"][:] = 1
    kept["recent"][:] = 5
    kept.clear(np.array([3, 10_000]))
    assert kept["count"][[2, 3]].tolist() == [1, 7]
    assert kept["recent"][[2, 3]].tolist() == [[5, 5, 5], [0, 0, 0]]


def test_nbytes_is_what_the_columns_hold() -> None:
    assert table().nbytes == 16 * (4 + 3 * 8)


@given(st.dictionaries(st.integers(0, 200), st.tuples(st.integers(-9, 9), st.integers(0, 9)), max_size=20))
def test_what_was_dumped_is_what_is_there_after_writing_it(values: dict[int, tuple[int, int]]) -> None:
    full, other = table(), table()
    rows = np.array(list(values), np.int64)
    full.reserve(201)
    for row, (count, recent) in values.items():
        full["count"][row], full["recent"][row] = count, recent
    other.write(rows[::-1], other.decode(len(rows), full.dump(rows[::-1])))
    assert np.array_equal(other["count"][rows], full["count"][rows])
    assert np.array_equal(other["recent"][rows], full["recent"][rows])


def test_rows_that_do_not_exist_are_dumped_blank() -> None:
    assert table().decode(1, table().dump(np.array([500])))["count"].tolist() == [7]


@given(st.lists(st.sampled_from([0.0, -0.0, np.nan, 1.5]), max_size=40), st.sampled_from([0.0, np.nan, -np.inf]))
def test_columns_come_back_bit_by_bit_however_many_values_are_blank(values: list[float], blank: float) -> None:
    some, rows = Table({"one": (np.float64, blank), "two": (np.float64, blank, 2)}), np.arange(len(values))
    some.reserve(len(values))
    some["one"][rows] = values
    some["two"][rows, 1] = values
    page = some.dump(rows)
    found = some.decode(len(rows), page)
    for name in ("one", "two"):
        assert found[name].tobytes() == some[name][rows].tobytes()
        kind, shape, raw = page[name]
        assert len(raw) <= 8 * len(values) * (2 if name == "two" else 1) + 1
        assert kind in ("<f8", "~<f8")
        # What earlier versions wrote: all of it.
        whole = page | {name: ("<f8", shape, some[name][rows].tobytes())}
        assert some.decode(len(rows), whole)[name].tobytes() == some[name][rows].tobytes()


def test_mostly_blank_columns_are_dumped_small_and_damage_is_noticed() -> None:
    some, rows = Table({"words": (np.uint32, 0, 56)}), np.arange(1000)
    some.reserve(1000)
    some["words"][:, 0] = 5
    page = some.dump(rows)
    kind, shape, raw = page["words"]
    assert len(raw) == 1000 * 56 // 8 + 1000 * 4
    for damaged in (raw[:-1], raw + b"x", b"\xff" + raw[1:], raw[:10], b""):
        with pytest.raises(StateError):
            some.decode(1000, {"words": (kind, shape, damaged)})
    few = Table({"words": (np.uint32, 0, 3)})
    few.reserve(16)
    kind, shape, raw = few.dump(np.arange(1))["words"]
    with pytest.raises(StateError, match="damaged"):
        few.decode(1, {"words": (kind, shape, b"\x01" + b"1234")})  # a bit beyond the three


FIELDS = {"count": (np.int32, 7), "recent": (np.int64, 0, 3), "since": (np.float64, np.nan)}


@pytest.mark.parametrize("width", [1, 2, 4])
def test_vectors_as_long_as_a_number_are_moved_whole(width: int) -> None:
    some, rows = Table({"pair": (np.float32, -np.inf, width)}), np.array([4, 1])
    values = np.arange(2 * width, dtype=np.float64).reshape(2, width)
    some.put("pair", rows, values)
    assert some["pair"][[4, 1]].tolist() == some.take("pair", rows).tolist() == values.tolist()
    assert some.take("pair", rows[:0]).shape == (0, width)
    assert np.isneginf(some["pair"][0]).all()


def test_records_are_read_and_written_whole() -> None:
    some, rows = Records(FIELDS), np.array([20, 3])
    some.reserve(21)
    taken = some.gather(rows)
    assert taken["count"].tolist() == [7, 7]
    taken["count"], taken["recent"][1] = [1, 2], 5
    assert some["count"][rows].tolist() == [7, 7]
    some.scatter(rows, taken)
    assert (some["count"][rows].tolist(), some["recent"][3].tolist()) == ([1, 2], [5, 5, 5])
    assert some.take("count", rows).tolist() == [1, 2]
    some.clear(np.array([3, 10_000]))
    assert (some["count"][rows].tolist(), some["recent"][3].tolist()) == ([1, 7], [0, 0, 0])


@given(st.lists(st.tuples(st.sampled_from(["open", "clear"]), st.sets(st.integers(0, 60), max_size=8)), max_size=30))
def test_a_sparse_table_is_as_large_as_the_most_rows_in_use(steps: list[tuple[str, set[int]]]) -> None:
    some, held, most = Sparse(FIELDS), dict[int, int](), 0
    some.reserve(61)
    for number, (what, chosen) in enumerate(steps):
        rows = np.array(sorted(chosen), np.int64)
        if what == "open":
            places = some.open(rows)
            for row, place in zip(rows.tolist(), places.tolist(), strict=True):
                assert some["count"][place] == held.get(row, 7)
            some["count"][places] = 100 + number
            held |= dict.fromkeys(rows.tolist(), 100 + number)
        else:
            some.clear(rows)
            held = {row: count for row, count in held.items() if row not in chosen}
        most = max(most, len(held))
        places = some.find(np.arange(61))
        assert np.flatnonzero(places >= 0).tolist() == sorted(held)
        assert len(set(places[places >= 0].tolist())) == len(held)
        assert some["count"][places[sorted(held)]].tolist() == [held[row] for row in sorted(held)]
    assert len(some["count"]) <= 1.5 * most + 1
    every = np.arange(61)
    page, other = some.dump(every), Sparse(FIELDS)
    other.write(every, other.decode(61, page))
    assert other.dump(every) == page


# ------------------------------------------------------------------------------------- saved state


def page(detector: Detector, rows: int = 3) -> bytes:
    return detector.dump(np.arange(rows))


@pytest.mark.parametrize(
    ("saved", "says"),
    [
        (page(Null(DetectorConfig())), "saved state is of null version 1, this is retry_loop version 3"),
        (page(RetryLoop(RetryLoopConfig()))[:50], "saved state is damaged"),
        (b"", "saved state is damaged"),
        (page(RetryLoop(RetryLoopConfig()), 4), r"saved field 'start' is ~<f8\(4,\), expected <f8\(3,\)"),
    ],
    ids=["of another detector", "cut short", "empty", "of more rows"],
)
def test_why_a_saved_state_is_refused(saved: bytes, says: str) -> None:
    with pytest.raises(StateError, match=says):
        RetryLoop(RetryLoopConfig()).load(np.arange(3), saved)


def test_a_saved_state_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    saved = page(RetryLoop(RetryLoopConfig()))
    monkeypatch.setattr(RetryLoop, "spec", replace(RetryLoop.spec, version=4))
    with pytest.raises(StateError, match="saved state is of retry_loop version 3, this is retry_loop version 4"):
        RetryLoop(RetryLoopConfig()).load(np.arange(3), saved)


def test_no_rows_can_be_saved_and_restored() -> None:
    detector = RetryLoop(RetryLoopConfig())
    detector.load(np.arange(0), page(detector, 0))


# ----------------------------------------------------------------------------------- alarm pacing

QUIET, WARNING, CRITICAL = 0, 1, 2


@pytest.mark.parametrize(
    ("story", "spoken"),
    [
        pytest.param([(0, WARNING)], [0], id="a new alarm speaks"),
        pytest.param([(0, QUIET), (9, QUIET)], [], id="who does not fire is silent"),
        pytest.param([(0, WARNING), (59, WARNING)], [0], id="a lasting alarm is silent for a while"),
        pytest.param([(0, WARNING), (60, WARNING), (61, WARNING)], [0, 60], id="then it speaks again"),
        pytest.param([(0, WARNING), (1, CRITICAL)], [0, 1], id="a rising alarm speaks at once"),
        pytest.param([(0, CRITICAL), (1, WARNING), (2, CRITICAL)], [0], id="an alarm that falls and rises is known"),
        pytest.param([(0, CRITICAL), (61, WARNING), (62, CRITICAL)], [0, 61], id="and its height is remembered"),
        pytest.param([(0, CRITICAL), (300, WARNING), (301, CRITICAL)], [0, 300, 301], id="but not after a long pause"),
        pytest.param([(0, WARNING), (50, QUIET), (60, WARNING)], [0, 60], id="quiet events change nothing"),
        pytest.param([(100, WARNING), (90, WARNING), (159, WARNING)], [100], id="late events do not turn back time"),
        pytest.param([(100, WARNING), (90, CRITICAL), (150, CRITICAL)], [100, 90], id="a late event may raise it"),
    ],
)
def test_when_an_alarm_speaks(story: list[tuple[float, int]], spoken: list[float]) -> None:
    alarms = Table(ALARM_FIELDS)
    row = np.array([4])
    said = [
        at
        for at, level in story
        if pace(alarms, row, np.array([level]), np.array([float(at)]), repeat_s=60, rearm_s=300).all()
    ]
    assert said == spoken


@given(
    st.lists(st.tuples(st.integers(0, 2), st.sampled_from([QUIET, WARNING, CRITICAL]), st.integers(0, 40)), max_size=60)
)
def test_many_events_of_a_row_speak_as_if_they_were_paced_one_by_one(story: list[tuple[int, int, int]]) -> None:
    rows, level, ts = (np.array([step[i] for step in story], np.int64) for i in range(3))
    one_by_one, together = Table(ALARM_FIELDS), Table(ALARM_FIELDS)
    when = ts.astype(np.float64)
    expected = [
        i
        for i in range(len(story))
        if pace(one_by_one, rows[i : i + 1], level[i : i + 1], when[i : i + 1], repeat_s=5, rearm_s=20).all()
    ]
    assert pace_in_order(together, rows, level, when, repeat_s=5, rearm_s=20).tolist() == expected
    for name in ALARM_FIELDS:
        assert together[name].tolist() == one_by_one[name].tolist()


@pytest.mark.parametrize(("count", "level"), [(3.9, QUIET), (4, WARNING), (5.9, WARNING), (6, CRITICAL)])
def test_the_threshold_itself_fires(count: float, level: int) -> None:
    assert levels(np.array([count]), 4, 6).tolist() == [level]


# ----------------------------------------------------------------------------- figures of the fleet

Values = st.lists(st.floats(1.0, 1e13), min_size=1, max_size=50)


def figures(values: list[float]) -> FleetFigures:
    counts = np.bincount(LogGrid.index(np.array(values)), minlength=LogGrid.BINS)
    return FleetFigures("v", {"sums": counts.tolist()})


@given(Values, st.floats(0.0, 1.0))
def test_a_quantile_is_within_half_a_bin_of_the_true_one(values: list[float], q: float) -> None:
    read = figures(values).quantile("sums", q)
    rank = max(0, math.ceil(q * len(values)) - 1)
    assert read is not None
    assert abs(math.log(read) - math.log(sorted(values)[rank])) <= LogGrid.STEP / 2 + 1e-9


def test_too_few_values_have_no_quantile() -> None:
    assert figures([5.0] * 9).quantile("sums", 0.5, at_least=10) is None
    assert figures([5.0] * 10).quantile("sums", 0.5, at_least=10) is not None
    assert figures([5.0]).quantile("another", 0.5) is None
    assert FleetFigures().quantile("sums", 0.5) is None


def test_values_outside_the_grid_fall_into_its_ends() -> None:
    assert LogGrid.index(np.array([0.0, 0.5, 1.0, 1e13, 1e300])).tolist() == [0, 0, 0, 598, 599]


def scores(values: list[float]) -> FleetFigures:
    counts = np.bincount(ScoreGrid.index(np.array(values)), minlength=ScoreGrid.BINS)
    return FleetFigures("v", {"scores": counts.tolist()})


@given(st.lists(st.floats(0.0, 5.9), min_size=1, max_size=80), st.floats(0.01, 0.99))
def test_so_many_of_the_known_scores_exceed_the_threshold_as_the_budget_allows(
    values: list[float], share: float
) -> None:
    threshold = scores(values).exceeded_by("scores", share)
    k = math.floor(share * (len(values) + 1) + 1e-9)
    if k == 0:
        assert threshold is None
        return
    assert threshold is not None
    kth = sorted(values, reverse=True)[k - 1]
    assert sum(value > threshold + 1e-9 for value in values) < k
    assert kth - 1e-9 <= threshold <= kth + ScoreGrid.STEP + 1e-9


@given(st.integers(1, 30), st.integers(0, 2**32))
def test_a_new_day_exceeds_the_threshold_no_more_often_than_the_budget_says(n: int, seed: int) -> None:
    """Leaving out each of n + 1 exchangeable values in turn: at most k of them exceed the others' threshold."""
    values = np.random.default_rng(seed).permutation(n + 1) / 10.0
    share = 1 / 7
    over = 0
    for i, value in enumerate(values.tolist()):
        threshold = scores(np.delete(values, i).tolist()).exceeded_by("scores", share)
        over += threshold is not None and value > threshold + 1e-9
    assert over <= share * (n + 1) + 1e-9


def test_nothing_unusual_is_apart_from_the_smallest_score() -> None:
    assert ScoreGrid.index(np.array([0.0, 1e-6, 0.01, 0.0101, 5.98, 6.0, 99.0])).tolist() == [0, 1, 1, 2, 598, 599, 599]
    assert scores([0.0] * 40).exceeded_by("scores", 0.1) == 0.0
    assert FleetFigures().exceeded_by("scores", 0.5) is None


# ---------------------------------------------------------------------------------------- registry


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, type[Detector]]]:
    copy = dict(base._registry)
    monkeypatch.setattr(base, "_registry", copy)
    return copy


def make_detector(name: str, module: str) -> type[Detector]:
    class Made(Detector):
        spec: ClassVar[Spec] = Spec(name, version=1, scope=Scope.RUN)

        def __init__(self, config: Any) -> None:
            self.tables = {}

        def update(self, batch: EventBatch) -> list[Finding]:
            return []

    Made.__module__ = module
    return Made


def test_all_shipped_detectors_are_registered_in_order() -> None:
    assert list(registered()) == sorted(registered())
    assert {"null", "retry_loop", "runaway", "spiral"} <= set(registered())


def test_two_detectors_of_one_name_are_refused(registry: dict[str, type[Detector]]) -> None:
    register(make_detector("twin", "detectors.one"))
    with pytest.raises(DetectorError, match=r"two detectors are called 'twin': detectors\.one and detectors\.other"):
        register(make_detector("twin", "detectors.other"))


def test_a_module_may_be_imported_again(registry: dict[str, type[Detector]]) -> None:
    register(make_detector("twin", "detectors.one"))
    again = register(make_detector("twin", "detectors.one"))
    assert registry["twin"] is again


@pytest.mark.parametrize("config", [{"repeat_warnin": 3}, {"repeat_warning": "3"}, {"repeat_warning": 1}])
def test_wrong_settings_are_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        RetryLoopConfig(**config)


# ---------------------------------------------------------------------------------------- findings


def test_the_score_is_0_at_the_threshold_and_1_far_beyond() -> None:
    assert [beyond(observed, 4) for observed in (0, 3, 4, 8)] == [0, 0, 0, 0.5]
    assert beyond(1e12, 4) == pytest.approx(1)


def test_the_id_of_a_finding_follows_from_what_it_says() -> None:
    parts = ("retry_loop", "cycle", "warning", "e1")
    assert finding_id(*parts) == finding_id(*parts)
    others = [(*parts[:i], "else", *parts[i + 1 :]) for i in range(4)]
    assert len({finding_id(*other) for other in [parts, *others]}) == 5


def test_a_finding_is_plain_data_within_bounds() -> None:
    finding = Finding.at(
        batch_of([Event(agent="a")]),
        0,
        detector="d",
        rule="r",
        severity="warning",
        scope=Scope.RUN,
        score=np.float64(1.5),
        observed=np.int64(3),
        expected=np.float64(2),
        unit="calls",
        reason="agent a does it again",
        evidence={},
    )
    assert (finding.score, finding.observed, finding.expected) == (1.0, 3.0, 2.0)
    assert {type(finding.score), type(finding.observed), type(finding.expected)} == {float}
