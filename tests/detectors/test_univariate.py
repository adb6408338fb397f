"""How unusual one number of a stream is: by hand, on noise, and on what must stay quiet."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.base import Table
from detectors.univariate import HourlyRange, Range, Shift, Univariate, record_order, tail_order

DAY = 288
"""Values of a day, one each five minutes."""


def table_of(part: Shift | Range | HourlyRange | Univariate, streams: int) -> Table:
    table = Table(part.fields())
    table.reserve(streams)
    return table


def scores(part: Shift | Range, values: np.ndarray, learn: bool = True) -> np.ndarray:
    """Scores of (times, streams) values."""
    table, rows = table_of(part, values.shape[1]), np.arange(values.shape[1])
    mask = np.full(values.shape[1], learn)
    return np.array([part.update(table, rows, x, mask) for x in values])


def all_of(values: np.ndarray, part: Univariate | None = None) -> np.ndarray:
    """Univariate scores of (times, streams) values, five minutes apart."""
    part = part or Univariate()
    table, rows = table_of(part, values.shape[1]), np.arange(values.shape[1])
    return np.array([part.update(table, rows, x, np.full(len(x), 300.0 * i)) for i, x in enumerate(values)])


def noise(times: int, streams: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(times, streams))


# ---------------------------------------------------------------------------------------- the tail


def test_the_order_of_an_exponential_tail_is_linear_in_the_excess() -> None:
    # Mean excess 1, mean square 2: P(excess > y) = e^-y, so 10^-2 x 10^-3 takes y = 3 ln 10.
    over = np.array([0.0, 3 * math.log(10)])
    assert tail_order(over, np.ones(2), np.full(2, 2.0), 0.01) == pytest.approx([2.0, 5.0], abs=1e-4)


def test_the_order_of_a_heavy_tail_is_that_of_its_survival_function() -> None:
    # Generalized Pareto of shape 1/4 and scale 3: mean 3 / (3/4) = 4, variance 9 / (9/16 x 1/2) = 32.
    over = np.array([5.0, 50.0])
    survival = (1 + over / 4 / 3) ** -4.0
    assert tail_order(over, np.full(2, 4.0), np.full(2, 48.0), 0.02) == pytest.approx(-np.log10(0.02 * survival))


def test_the_order_has_no_ceiling() -> None:
    order = tail_order(np.array([1e3, 1e6, 1e9]), np.ones(3), np.full(3, 2.0), 0.01)
    assert np.all(np.diff(order) > 0)


# --------------------------------------------------------------------------------------- the shift


def test_a_score_is_passed_about_as_often_as_it_says() -> None:
    score = scores(Shift(), 8 + 1.3 * noise(6000, 100))[1500:]
    # Neighbours share most of their moving average, so the far tail is fitted from few and errs to the quiet side.
    assert 0.5 < np.mean(score > 2) * 1e2 < 1.5
    assert 0.1 < np.mean(score > 3) * 1e3 < 1.5
    assert np.mean(score > 4) * 1e4 < 1.5


def test_a_lasting_rise_scores_high_and_a_fall_only_where_falls_count() -> None:
    up, down = noise(2000, 20), noise(2000, 20)
    up[1980:] += 3
    down[1980:] -= 3
    assert np.median(scores(Shift(), up)[-1]) > 3.5
    assert np.all(scores(Shift(), down)[-1] == 0)
    assert np.median(scores(Shift(two_sided=True), down)[-1]) > 3.5


def test_one_wild_value_counts_no_more_than_the_largest_z() -> None:
    wild, large = noise(2000, 1), noise(2000, 1)
    wild[-1], large[-1] = 1e9, 1e3
    assert scores(Shift(), wild)[-1] == scores(Shift(), large)[-1]


def test_one_wild_value_hardly_moves_the_baseline() -> None:
    part = Shift()
    calm, wild = noise(2000, 1), noise(2000, 1)
    wild[1500] = 1e9
    tables = []
    for values in (calm, wild):
        table = table_of(part, 1)
        for x in values:
            part.update(table, np.zeros(1, np.int64), x)
        tables.append(table)
    assert tables[1]["shift_mean"] == pytest.approx(tables[0]["shift_mean"], abs=0.01)


def test_there_is_no_score_while_warming_up() -> None:
    score = scores(Shift(warm=30), noise(40, 3))
    assert np.all(np.isnan(score[:30]))
    assert np.all(np.isfinite(score[30:]))


def test_what_may_not_be_learned_leaves_baseline_and_tail_alone() -> None:
    part, rows = Shift(), np.arange(2)
    table = table_of(part, 2)
    for x in noise(500, 2):
        part.update(table, rows, x)
    before = {name: table[name].copy() for name in part.fields()}
    for _ in range(50):
        score = part.update(table, rows, np.full(2, 4.0), np.array([False, True]))
    for name in part.fields():
        assert (table[name][0] == before[name][0]) == (name != "shift_s")
    assert table["shift_mean"][1] > before["shift_mean"][1] + 0.1
    assert score[0] > score[1]


def test_the_floor_keeps_mostly_constant_streams_from_being_suspicious() -> None:
    # One value in 40 differs: clipping makes the robust deviation collapse to what the 39 show.
    values = np.where(np.arange(4000) % 40 == 0, 1.0, 0.0)[:, None]
    collapsed = scores(Shift(floor=0.0, smooth=1.0, clip_z=1e9), values)
    floored = scores(Shift(floor=0.0, floor_share=1.0, smooth=1.0, clip_z=1e9), values)
    assert np.nanmax(floored[2000:]) <= np.nanmax(collapsed[2000:])
    assert np.nanmax(floored[2000:]) < 3


# --------------------------------------------------------------------------------------- the range


def test_the_distance_outside_is_in_widths_of_the_range_so_far() -> None:
    values = np.array([[0.0], [10.0], [5.0], [15.0], [-15.0], [15.0]])
    score = scores(Range(forget=0.0, warm=1), values)[:, 0]
    # 5 beyond a width of 10; then 15 below a width of 15; then nothing new.
    assert score[2:].tolist() == [0.0, 0.5, 1.0, 0.0]


def test_an_old_extreme_is_forgotten_in_time() -> None:
    values = np.zeros((7001, 1))
    values[::2] = 1.0
    values[0] = 100.0
    part, table = Range(forget=1e-4), table_of(Range(), 1)
    for x in values:
        part.update(table, np.zeros(1, np.int64), x)
    low, high = part.bounds(table, np.zeros(1, np.int64))
    # The width shrinks by 1e-4 a value, half of it at the upper end: 100 (1 + e^-0.7) / 2.
    assert low[0] == pytest.approx(0.0, abs=0.01)
    assert 49 < high[0] < 76


def test_a_range_that_may_not_learn_stays() -> None:
    part, rows = Range(warm=1), np.arange(1)
    table = table_of(part, 1)
    for x in ([0.0], [1.0]):
        part.update(table, rows, np.array(x))
    for _ in range(3):
        assert part.update(table, rows, np.array([3.0]), np.array([False])) == pytest.approx(2.0, abs=1e-3)


@given(st.lists(st.integers(-100_000, 100_000), min_size=35, max_size=80))
def test_what_is_inside_the_range_scores_nothing_and_what_is_outside_something(values: list[int]) -> None:
    part = Range(forget=0.0)
    score = scores(part, np.array(values, np.float64)[:, None])[:, 0]
    for i in range(part.warm, len(values)):
        new = not min(values[:i]) <= values[i] <= max(values[:i])
        assert (score[i] > 0) == new


def test_an_hour_is_judged_by_its_own_past() -> None:
    part, rows = HourlyRange(), np.zeros(1, np.int64)
    table = table_of(part, 1)
    width = np.array([90.0])

    def at(i: int, value: float) -> float:
        return float(part.update(table, rows, np.array([value]), np.array([i * 300.0]), width)[0])

    def usual(i: int) -> float:
        return 100.0 if 9 <= i % DAY // 12 < 17 else 10.0

    first = [at(i, usual(i)) for i in range(5 * DAY)]
    assert all(math.isnan(score) for score in first)
    assert all(at(i, usual(i)) == 0 for i in range(5 * DAY, 6 * DAY))
    # At three in the morning 10 is usual and 100 is not: 90 beyond, in units of a tenth of the width.
    assert at(6 * DAY + 36, 100.0) == pytest.approx(90 / (0.1 * 90))
    # At eight, an hour before the day begins, 100 is near enough.
    assert at(6 * DAY + 96, 100.0) == 0


def test_a_new_extreme_ranks_on_the_scale_of_tails() -> None:
    # Any counts as 10^-2; 9 % of the range is ten units of 1 %, one order more.
    order = record_order(np.array([0.0, 1e-12, 0.09, np.nan]))
    assert order[:3] == pytest.approx([0.0, 2.0, 3.0])
    assert math.isnan(order[3])


# --------------------------------------------------------------------------------------- together


def test_noise_is_quiet_and_a_burst_is_not() -> None:
    values = noise(3000, 50)
    score = all_of(values)
    assert np.mean(score[1500:] > 3) < 0.002
    values[2900] += 12
    assert np.all(all_of(values)[2900] > 3)


def test_a_missing_daily_peak_is_seen_though_its_values_are_usual() -> None:
    hour = np.arange(12 * DAY) % DAY // 12
    values = np.where((hour >= 9) & (hour < 17), 80.0, 20.0)[:, None] + noise(12 * DAY, 1)
    missing = slice(11 * DAY + 108, 11 * DAY + 204)
    values[missing] -= 60
    score = all_of(values)[:, 0]
    assert score[missing].max() > 2.5
    assert np.mean(score[6 * DAY : 11 * DAY] > 2.5) < 0.002


def test_a_stream_that_never_changes_never_scores() -> None:
    assert np.all(all_of(np.full((2000, 1), 3.3))[30:] == 0)


def test_a_stream_that_never_changed_may_stir_by_a_hair() -> None:
    values = np.full((2000, 2), 3.3)
    values[1900:] *= (1 + 1e-6, 1.5)
    score = all_of(values)[1900]
    assert score[0] < 2.5 < score[1]


@settings(max_examples=30)
@given(st.lists(st.sampled_from([0.0, 1e-300, 1.0, -1.0, 1e12, -1e12]), min_size=31, max_size=120))
def test_scores_are_finite_whatever_comes(values: list[float]) -> None:
    score = all_of(np.array(values)[:, None])
    assert np.all(np.isfinite(score[30:]))
    assert np.all(score[30:] >= 0)


@settings(max_examples=20)
@given(st.sets(st.integers(0, 4), min_size=1), st.integers(0, 99))
def test_streams_do_not_touch_each_other(chosen: set[int], seed: int) -> None:
    values = noise(200, 5, seed)
    part, rows = Univariate(), np.array(sorted(chosen))
    table = table_of(part, 5)
    own = np.array([part.update(table, rows, x[rows], np.full(len(rows), 300.0 * i)) for i, x in enumerate(values)])
    np.testing.assert_array_equal(own, all_of(values)[:, rows])


def test_state_that_was_saved_and_loaded_goes_on_the_same() -> None:
    values = noise(2400, 3)
    part, rows = Univariate(), np.arange(3)
    table = table_of(part, 3)
    for i, x in enumerate(values[:2000]):
        part.update(table, rows, x, np.full(3, 300.0 * i))
    other = table_of(part, 8)
    moved = np.array([6, 2, 4])
    other.write(moved, other.decode(3, table.dump(rows)))
    for i, x in enumerate(values[2000:], 2000):
        ts = np.full(3, 300.0 * i)
        np.testing.assert_array_equal(part.update(table, rows, x, ts), part.update(other, moved, x, ts))


def test_a_stream_takes_about_half_a_kilobyte() -> None:
    table = table_of(Univariate(), 1000)
    assert 500 <= table.nbytes / table.rows <= 620
