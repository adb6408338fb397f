"""The benchmark's rule on numbers it published, and the family on a small benchmark made here."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.errors import InputError
from stream.evaluate.nab import (
    Nab,
    Profile,
    Series,
    alarms,
    credit,
    joined,
    lockstep,
    probation,
    profiles,
    read,
    sigmoid,
    tally,
    univariate,
)

STANDARD = Profile(1.0, 0.11, 1.0)
EVEN = Profile(1.0, 1.0, 1.0)


def series(rows: int, *windows: tuple[int, int]) -> Series:
    return Series("a/b.csv", np.arange(rows) * 300.0, np.zeros(rows), list(windows))


def scored(rows: int, *detected: int) -> np.ndarray:
    score = np.zeros(rows)
    score[list(detected)] = 1.0
    return score


def raw(one: Series, *detected: int, profile: Profile = EVEN) -> float:
    """What a file earns when exactly these rows are detected."""
    result = tally([one], [scored(len(one.value), *detected)])
    return float(result.raw(profile)[0, -1])


# ----------------------------------------------------------------------------------------- the rule


def test_worth_by_position_is_as_the_benchmark_states_it() -> None:
    # nab/sweeper.py, scaledSigmoid.
    assert sigmoid(np.array([-1.0, -0.5, 0.0, 1.0])) == pytest.approx([0.98661, 0.84828, 0.0, -0.98661], abs=5e-6)


def test_far_behind_a_window_a_false_alarm_costs_all_of_it() -> None:
    assert sigmoid(np.array([3.01, 100.0])).tolist() == [-1.0, -1.0]


@pytest.mark.parametrize(("rows", "skipped"), [(100, 15), (5000, 750), (6000, 750), (1127, 169), (3, 0)])
def test_the_start_of_a_file_is_not_scored(rows: int, skipped: int) -> None:
    assert probation(rows) == skipped


def test_a_hit_a_repeat_a_miss_and_a_false_alarm_add_up_as_in_the_benchmarks_own_test() -> None:
    # tests/integration/scorer_test.py, testScoringAllMetrics: -0.9540.
    assert raw(series(100, (30, 34), (65, 69)), 30, 31, 37) == pytest.approx(-0.9540, abs=5e-5)


def test_the_right_edge_of_a_window_is_worth_nothing_and_so_is_the_row_behind_it() -> None:
    # tests/integration/true_positive_test.py, testTruePositiveAtRightEdgeOfWindow.
    one = series(1000, (450, 549))
    assert raw(one, 549) + raw(one, 550) + 1 == pytest.approx(0.0, abs=5e-4)


def test_a_detection_at_the_left_edge_earns_all_whatever_the_width() -> None:
    assert raw(series(10, (4, 5)), 4) == raw(series(10, (4, 6)), 4) == 1.0


def test_only_the_first_detection_in_a_window_counts() -> None:
    one = series(100, (40, 59))
    assert raw(one, 45, 50, 59) == raw(one, 45) > raw(one, 50)


def test_a_false_alarm_costs_less_the_closer_it_follows_a_window() -> None:
    one = series(100, (40, 49))
    assert raw(one, 50) > raw(one, 55) > raw(one, 99) == pytest.approx(-2.0, abs=1e-6)
    assert raw(one, 20) == -2.0


def test_detections_in_the_unscored_start_change_nothing() -> None:
    assert raw(series(100, (40, 49)), 3) == raw(series(100, (40, 49))) == -1.0


def test_a_published_detectors_score_of_a_file_comes_out_to_the_last_digit() -> None:
    # results/ARTime: realTraffic/speed_7578.csv has 1,127 rows and four windows; eleven rows are above the
    # published threshold. Published: 7 rows inside, 4 outside, 3.1077313980278403.
    one = series(1127, (303, 331), (740, 768), (909, 937), (945, 973))
    detected = (276, 317, 362, 628, 631, 753, 921, 923, 924, 931, 959)
    assert raw(one, *detected, profile=STANDARD) == pytest.approx(3.1077313980278403, abs=1e-13)


def test_the_worth_of_each_row_is_as_published() -> None:
    # results/ARTime: realTraffic/speed_7578.csv, column S(t)_standard.
    worth, window = credit(1127, [(303, 331), (740, 768), (909, 937), (945, 973)])
    assert worth[[303, 304, 305, 331]] == pytest.approx(
        [1.0, 0.9974673237743696, 0.9944663453837748, 0.08716068383412914], abs=1e-15
    )
    assert 0.11 * worth[[302, 332, 333, 415, 416]] == pytest.approx(
        [-0.11, -0.009795412917274829, -0.019436697459237925, -0.10999993270151008, -0.11], abs=1e-15
    )
    assert window[[302, 303, 331, 332, 740, 973]].tolist() == [-1, 0, 0, -1, 1, 3]


def test_finding_nothing_is_0_and_finding_all_at_once_is_100() -> None:
    corpus = [series(100, (40, 49), (70, 79)), series(200, (90, 99)), series(50)]
    nothing = tally(corpus, [np.zeros(100), np.zeros(200), np.zeros(50)])
    all_of_it = tally(corpus, [scored(100, 40, 70), scored(200, 90), np.zeros(50)])
    for profile in (STANDARD, Profile(1.0, 0.22, 1.0), Profile(1.0, 0.11, 2.0)):
        assert nothing.best(profile)[0] == 0.0
        assert all_of_it.best(profile)[0] == 100.0


def test_weights_make_false_alarms_or_misses_dearer() -> None:
    result = tally([series(100, (40, 49), (70, 79))], [scored(100, 40, 20)])
    at = (0, -1)
    assert result.raw(STANDARD)[at] == pytest.approx(1 - 0.11 - 1)
    assert result.raw(Profile(1.0, 0.22, 1.0))[at] == pytest.approx(1 - 0.22 - 1)
    assert result.raw(Profile(1.0, 0.11, 2.0))[at] == pytest.approx(1 - 0.11 - 2)


def test_the_threshold_is_the_best_one_of_all_files() -> None:
    corpus = [series(100, (40, 49)), series(100, (40, 49))]
    scores = [np.zeros(100), np.zeros(100)]
    scores[0][40], scores[1][40] = 5.0, 3.0
    scores[1][20:30] = 2.0
    score, at = tally(corpus, scores).best(STANDARD)
    assert (score, tally(corpus, scores).threshold[at]) == (100.0, 3.0)


def test_rows_of_one_alarm_are_one_false_alarm() -> None:
    one = series(100, (70, 79))
    score = scored(100, *range(20, 30))
    assert tally([one], [score]).false_rows[0, -1] == 10
    assert tally([one], [score], rest=4).false_rows[0, -1] == 2
    assert alarms(score, 1.0, 4) == [20, 25]


def test_an_alarm_in_the_unscored_start_still_rests() -> None:
    assert tally([series(100, (70, 79))], [scored(100, 14, 16)], rest=4).false_rows[0, -1] == 0


def test_a_threshold_chosen_on_other_files_can_only_be_worse() -> None:
    # Each file is best served by its own threshold; the other's is too high or too low.
    corpus = [series(100, (40, 49)), series(100, (40, 49))]
    scores = [scored(100, 40) * 1.0, scored(100, 40) * 9.0]
    scores[1][50:] = 2.0
    result = tally(corpus, scores)
    mean, spread = result.held_out(STANDARD)
    # The first misses its window at 9; the second has 50 rows outside at 1.
    expected = (-1 + float(result.raw(STANDARD)[1, -1])) / 4 * 100 + 50
    assert (mean, spread) == (pytest.approx(expected), pytest.approx(0.0, abs=1e-9))
    assert mean < result.best(STANDARD)[0]


def test_joined_tallies_choose_among_all_of_them() -> None:
    one = series(100, (40, 49))
    late, early = tally([one], [scored(100, 48)]), tally([one], [scored(100, 41)])
    both = joined([late, early])
    assert both.best(STANDARD)[0] == early.best(STANDARD)[0] > late.best(STANDARD)[0]
    assert both.best(STANDARD)[1] == len(late.threshold) + early.best(STANDARD)[1]


Scores = st.lists(st.integers(0, 5), min_size=60, max_size=60)


@given(st.tuples(Scores, Scores), st.integers(0, 8))
def test_every_threshold_is_scored_as_if_it_were_the_only_one(values: tuple[list[int], ...], rest: int) -> None:
    corpus = [series(60, (20, 25), (40, 49)), series(60, (30, 31))]
    scores = [np.array(v, np.float64) for v in values]
    result = tally(corpus, scores, rest)
    for at, threshold in enumerate(result.threshold):
        for f, (one, own) in enumerate(zip(corpus, scores, strict=True)):
            worth, window = credit(60, one.windows)
            rows = [row for row in alarms(own, threshold, rest) if row >= 9]
            firsts = {window[row]: row for row in reversed(rows) if window[row] >= 0}
            outside = [row for row in rows if window[row] < 0]
            expected = sum(worth[row] for row in firsts.values()) + 0.11 * sum(worth[row] for row in outside)
            expected -= len(one.windows) - len(firsts)
            assert result.raw(STANDARD)[f, at] == pytest.approx(expected)
            assert (result.caught[f, at], result.false_rows[f, at]) == (len(firsts), len(outside))


# --------------------------------------------------------------------------------------- lockstep


def test_files_of_any_length_run_side_by_side_and_keep_their_order() -> None:
    corpus = [Series(str(n), np.arange(n) * 60.0, np.arange(n) * 1.0, []) for n in (3, 7, 5)]
    scores = lockstep(corpus, lambda rows, x, ts: x + ts, lambda _: None)
    assert [score.tolist() for score in scores] == [[61.0 * i for i in range(n)] for n in (3, 7, 5)]


def test_a_file_scores_the_same_alone_as_among_others() -> None:
    random = np.random.default_rng(4)
    corpus = [Series(str(n), np.arange(n) * 300.0, random.normal(size=n), []) for n in (400, 900)]
    together = univariate(corpus, lambda _: None)
    alone = univariate(corpus[:1], lambda _: None)
    np.testing.assert_array_equal(together[0], alone[0])


# ----------------------------------------------------------------------------------------- the family

WEIGHTS = {
    name: {"CostMatrix": {"tpWeight": 1.0, "fpWeight": fp, "fnWeight": fn, "tnWeight": 1.0}}
    for name, fp, fn in (("standard", 0.11, 1.0), ("reward_low_FP_rate", 0.22, 1.0), ("reward_low_FN_rate", 0.11, 2.0))
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three files of seven days of five minutes; two have a level three times as high for two hours."""
    root = tmp_path / "nab"
    (root / "data" / "made").mkdir(parents=True)
    random = np.random.default_rng(7)
    start = np.datetime64("2024-03-01T00:00:00")
    stamps = [str(start + np.timedelta64(300 * i, "s")).replace("T", " ") for i in range(2016)]
    labels: dict[str, list[list[str]]] = {"made/elsewhere.csv": []}
    for name, fault in (("one", 1200), ("two", 1500), ("calm", None)):
        value = 10 + random.normal(size=2016)
        labels[f"made/{name}.csv"] = []
        if fault is not None:
            value[fault : fault + 24] *= 3
            labels[f"made/{name}.csv"] = [[f"{stamps[fault - 20]}.000000", f"{stamps[fault + 79]}.000000"]]
        lines = [f"{stamp},{x}" for stamp, x in zip(stamps, value, strict=True)]
        (root / "data" / "made" / f"{name}.csv").write_text("\n".join(["timestamp,value", *lines]) + "\n")
    (root / "combined_windows.json").write_text(json.dumps(labels))
    (root / "profiles.json").write_text(json.dumps(WEIGHTS))
    return tmp_path


def test_the_benchmark_is_found_where_its_labels_are(folder: Path) -> None:
    assert Nab().found_in(folder)
    assert not Nab().found_in(folder / "nab")


def test_files_windows_and_weights_are_read(folder: Path) -> None:
    corpus = read(folder / "nab")
    assert [(s.name, len(s.value), s.windows) for s in corpus] == [
        ("made/calm.csv", 2016, []),
        ("made/one.csv", 2016, [(1180, 1279)]),
        ("made/two.csv", 2016, [(1480, 1579)]),
    ]
    assert corpus[0].ts[:2].tolist() == [1709251200.0, 1709251500.0]
    assert profiles(folder / "nab") == {
        "standard": STANDARD,
        "low FP": Profile(1.0, 0.22, 1.0),
        "low FN": Profile(1.0, 0.11, 2.0),
    }


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("combined_windows.json", "[]"),
        ("profiles.json", "{}"),
        ("data/made/one.csv", "timestamp,value\n2024-03-01 00:00:00,much\n"),
        ("data/made/one.csv", "when,what\n2024-03-01 00:00:00,1\n"),
    ],
)
def test_what_is_not_the_benchmark_is_refused_in_one_sentence(folder: Path, file: str, text: str) -> None:
    (folder / "nab" / file).write_text(text)
    with pytest.raises(InputError, match="nab"):
        Nab().rows(folder, [], lambda _: None)


def test_the_score_finds_both_faults_and_the_null_row_is_zero(folder: Path) -> None:
    shares: list[float] = []
    rows = {row.contender: row for row in Nab().rows(folder, [], shares.append)}
    assert list(rows) == ["null", "static_range", "ewma_z", "univariate", "univariate, tuned"]
    assert (rows["null"].caught, rows["null"].missed, rows["null"].false_alarms) == (0, 2, 0)
    assert set(rows["null"].figures.values()) == {0.0}
    ours = rows["univariate"]
    assert (ours.caught, ours.missed, ours.false_alarms) == (2, 0, 0)
    # Twenty rows of the window come before the fault; an alarm is within five rows of it.
    assert all(20 * 300 <= delay <= 25 * 300 for delay in ours.delay_s)
    assert ours.figures["standard"] > 95
    assert rows["univariate, tuned"].figures["standard"] >= ours.figures["standard"]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_the_same_data_give_the_same_rows(folder: Path) -> None:
    assert Nab().rows(folder, [], lambda _: None) == Nab().rows(folder, [], lambda _: None)


def test_pictures_show_value_band_score_and_alarm_over_the_same_times(folder: Path) -> None:
    plots = {plot.name: plot for plot in Nab().plots(folder)}
    assert len(plots) >= 2
    for plot in plots.values():
        assert plot.band is not None
        assert plot.score is not None
        lengths = {len(plot.ts), len(plot.value), len(plot.score), *map(len, plot.band)}
        assert lengths == {2016}
        assert all(map(math.isfinite, plot.score))
        assert set(plot.alarms) <= set(plot.ts)
