"""The Numenta Anomaly Benchmark: what the univariate score makes of 58 labelled streams, by the benchmark's own rule.

A file is one stream; each of its windows is one case. One threshold serves all files. The rule, as published:

- The first 15 % of a file, at most 750 rows, are not scored.
- A window earns by its first detection, 1 at its left edge down to 0 at its right edge; further ones change
  nothing. A missed window costs.
- Each detected row outside costs, less the closer it follows a window.
- The total is told between that of finding nothing (0) and of finding every window at its left edge (100).

A detector that has raised an alarm rests for some rows here, like the alert pacing of the service: rows of one
alarm are not separate false alarms. The references rest too.

Source: Lavin and Ahmad, "Evaluating real-time anomaly detection algorithms", ICMLA 2015; nab/sweeper.py.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from detectors.base import Table
from detectors.null import Null
from detectors.types import Floats, Ints
from detectors.univariate import Univariate
from stream.errors import InputError
from stream.evaluate.base import Contender, Plot, Progress, Row, register

REST_ROWS = 30
"""Rows without an alarm after one; no window of the benchmark is shorter than 29."""
_SMOOTH, _REST = (0.03, 0.05, 0.08), (20, 30, 40)
"""What the tuned score chooses from."""
PROBATION_SHARE, PROBATION_ROWS = 0.15, 750
FOLDS, SEEDS = 5, 10
"""Cross-validation: parts the files are dealt into, and how often they are dealt."""
_LOWEST_SHARE = 0.03
"""Thresholds that more than this share of all rows passes are not tried."""


class Profile(NamedTuple):
    """What a hit, a false alarm and a miss weigh."""

    hit: float
    false_alarm: float
    miss: float


# ----------------------------------------------------------------------------------------- the rule


def sigmoid(position: Floats) -> Floats:
    """What a detection is worth at a position: -1 is a window's left edge, 0 its right edge, > 0 is behind it."""
    worth: Floats = np.where(position > 3, -1.0, 2 / (1 + np.exp(5 * np.minimum(position, 3))) - 1)
    return worth


def credit(rows: int, windows: Sequence[tuple[int, int]]) -> tuple[Floats, Ints]:
    """What a detection at each row of a file is worth, and which window it lies in.

    Args:
        windows: First and last row of each, in order of time.

    Returns:
        (rows,) worth, 1 at the left edge of a window, negative outside; and (rows,) window, -1 outside.
    """
    worth, window = np.full(rows, -1.0), np.full(rows, -1)
    for number, (first, last) in enumerate(windows):
        inside = np.arange(first, last + 1)
        position = -(last - inside + 1) / (last - first + 1)
        worth[inside] = sigmoid(position) / sigmoid(np.array(-1.0))
        window[inside] = number
        until = windows[number + 1][0] if number + 1 < len(windows) else rows
        behind = np.arange(last + 1, until)
        worth[behind] = sigmoid((behind - last) / (last - first)) if last > first else -1.0
    return worth, window


def probation(rows: int) -> int:
    """Rows at the start of a file that are not scored."""
    return int(min(np.floor(PROBATION_SHARE * rows), PROBATION_ROWS))


@dataclass(frozen=True, slots=True)
class Series:
    """One file."""

    name: str
    ts: Floats
    value: Floats
    windows: list[tuple[int, int]]
    """First and last row of each."""


@dataclass(frozen=True, slots=True)
class Tally:
    """What happens at each of t thresholds, from the highest down; every column is (files, t)."""

    threshold: Floats
    hit: Floats
    """Sum of what the first detection in each window is worth."""
    false_alarm: Floats
    """Sum of what the detections outside are worth; negative."""
    caught: Ints
    """Windows with a detection."""
    false_rows: Ints
    """Detections outside of windows."""
    windows: Ints
    """(files,) windows there are."""

    def raw(self, profile: Profile) -> Floats:
        """(files, t) total of each file."""
        missed = self.windows[:, None] - self.caught
        return profile.hit * self.hit + profile.false_alarm * self.false_alarm - profile.miss * missed

    def normal(self, raw: float, profile: Profile) -> float:
        """A total of all files between finding nothing (0) and finding all at once (100); 0 without windows."""
        windows = int(self.windows.sum())
        nothing, everything = -profile.miss * windows, profile.hit * windows
        return 100 * (raw - nothing) / (everything - nothing) if windows else 0.0

    def best(self, profile: Profile) -> tuple[float, int]:
        """The best score that one threshold for all files reaches, and which threshold that is."""
        totals = self.raw(profile).sum(0)
        at = int(totals.argmax())
        return self.normal(float(totals[at]), profile), at

    def held_out(self, profile: Profile) -> tuple[float, float]:
        """Mean and standard deviation of the score when each file's threshold is chosen on other files."""
        raw = self.raw(profile)
        files = len(raw)
        folds = min(FOLDS, files)
        scores = []
        for seed in range(SEEDS):
            part = np.random.default_rng(seed).permutation(files) % folds
            total = sum(float(raw[part == k, raw[part != k].sum(0).argmax()].sum()) for k in range(folds))
            scores.append(self.normal(total, profile))
        return float(np.mean(scores)), float(np.std(scores))


def tally(corpus: Sequence[Series], scores: Sequence[Floats], rest: int = 0) -> Tally:
    """Tries every score that occurs as threshold of all files.

    Args:
        scores: (rows,) for each file; rows that are 0, negative or NaN are never detected.
        rest: Rows after a detection in which there is no other.
    """
    everything = np.concatenate([np.nan_to_num(own, nan=0.0) for own in scores])
    lowest = np.sort(everything)[::-1][max(int(_LOWEST_SHARE * len(everything)), 200) :][:1]
    tried = np.unique(everything[everything > max([0.0, *lowest])])
    threshold = np.r_[np.inf, tried[::-1]]
    shape = (len(corpus), len(threshold))
    hit, false_alarm = np.zeros(shape), np.zeros(shape)
    caught, false_rows = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    windows = np.zeros(len(corpus), np.int64)
    for f, (series, own) in enumerate(zip(corpus, scores, strict=True)):
        worth, window = credit(len(own), series.windows)
        start = probation(len(own))
        windows[f] = len(np.unique(window[start:][window[start:] >= 0]))
        free_from = np.zeros(shape[1], np.int64)
        found = np.zeros((len(series.windows), shape[1]), bool)
        rows = np.flatnonzero(own >= threshold[-1])
        # A row is detected at the thresholds up to its score, which are the last ones.
        for row, first in zip(rows.tolist(), np.searchsorted(-threshold, -own[rows]).tolist(), strict=True):
            alarm = free_from[first:] <= row
            free_from[first:][alarm] = row + rest + 1
            if row < start:
                continue
            if window[row] < 0:
                false_alarm[f, first:] += worth[row] * alarm
                false_rows[f, first:] += alarm
            else:
                new = alarm & ~found[window[row], first:]
                hit[f, first:] += worth[row] * new
                caught[f, first:] += new
                found[window[row], first:] |= alarm
    return Tally(threshold, hit, false_alarm, caught, false_rows, windows)


def joined(tallies: Sequence[Tally]) -> Tally:
    """Several as one: what is best is then the best choice among all of them."""
    first = tallies[0]
    return Tally(
        np.concatenate([each.threshold for each in tallies]),
        np.concatenate([each.hit for each in tallies], 1),
        np.concatenate([each.false_alarm for each in tallies], 1),
        np.concatenate([each.caught for each in tallies], 1),
        np.concatenate([each.false_rows for each in tallies], 1),
        first.windows,
    )


def alarms(score: Floats, threshold: float, rest: int) -> list[int]:
    """Rows of a file at which there is an alarm."""
    found: list[int] = []
    for row in np.flatnonzero(score >= threshold).tolist():
        if not found or row > found[-1] + rest:
            found.append(row)
    return found


# ------------------------------------------------------------------------------------- the contenders

Step = Callable[[Ints, Floats, Floats], Floats]
"""One value of each stream: rows, values, times; gives scores."""


def lockstep(corpus: Sequence[Series], step: Step, progress: Progress) -> list[Floats]:
    """Runs a score over all files at once, row after row."""
    order = sorted(range(len(corpus)), key=lambda f: -len(corpus[f].value))
    lengths = np.array([len(corpus[f].value) for f in order])
    most = int(lengths.max(initial=0))
    value, ts, score = (np.zeros((most, len(order))) for _ in range(3))
    for column, f in enumerate(order):
        value[: lengths[column], column] = corpus[f].value
        ts[: lengths[column], column] = corpus[f].ts
    rows = np.arange(len(order))
    for i in range(most):
        # Files are in order of length: those that go on are the first ones.
        going = int(np.searchsorted(-lengths, -i))
        score[i, :going] = step(rows[:going], value[i, :going], ts[i, :going])
        if i % 500 == 0:
            progress(i / most)
    back = {f: score[: lengths[column], column] for column, f in enumerate(order)}
    return [back[f] for f in range(len(corpus))]


def nothing(corpus: Sequence[Series], progress: Progress) -> list[Floats]:
    """Finds nothing: the zero of the scale."""
    return [np.zeros(len(series.value)) for series in corpus]


def static_range(corpus: Sequence[Series], progress: Progress) -> list[Floats]:
    """Naive: how far a value is outside the range of the unscored start of its file, in widths of it."""
    scores = []
    for series in corpus:
        start = series.value[: max(1, probation(len(series.value)))]
        outside = np.maximum(series.value - start.max(), start.min() - series.value)
        scores.append(np.maximum(outside, 0.0) / max(float(np.ptp(start)), 1e-12))
    return scores


_EWMA_SHARE = 0.01
"""Of a value in the average: about 100 values, 8 hours of the benchmark's five minutes."""


def ewma_z(corpus: Sequence[Series], progress: Progress) -> list[Floats]:
    """Naive: standard deviations from an exponentially weighted average."""
    mean, var = np.zeros(len(corpus)), np.zeros(len(corpus))
    seen = 0

    def step(rows: Ints, x: Floats, ts: Floats) -> Floats:
        nonlocal seen
        seen += 1
        gap = x - mean[rows] if seen > 1 else np.zeros(len(rows))
        z: Floats = np.abs(gap) / np.sqrt(np.maximum(var[rows], 1e-12))
        share = max(_EWMA_SHARE, 1 / seen)
        mean[rows] = x if seen == 1 else mean[rows] + share * gap
        var[rows] += share * (gap * gap - var[rows])
        return z

    return lockstep(corpus, step, progress)


def univariate(corpus: Sequence[Series], progress: Progress, score: Univariate = Univariate()) -> list[Floats]:  # noqa: B008 - frozen
    """Ours."""
    table = Table(score.fields())
    table.reserve(len(corpus))
    return lockstep(corpus, lambda rows, x, ts: score.update(table, rows, x, ts), progress)


class Candidate(NamedTuple):
    """Scores of all files, and the rows of rest that go with them."""

    scores: list[Floats]
    rest: int


def _as_it_is(score: Callable[[Sequence[Series], Progress], list[Floats]]) -> Scorer:
    return lambda corpus, progress: [Candidate(score(corpus, progress), REST_ROWS)]


def tuned(corpus: Sequence[Series], progress: Progress) -> list[Candidate]:
    """Ours with a choice of how many values make a shift and how long an alarm rests: what tuning is worth."""
    found = []
    for number, smooth in enumerate(_SMOOTH):
        part = Univariate()
        part = replace(part, shift=replace(part.shift, smooth=smooth))
        scores = univariate(corpus, partial(_share, progress, number, len(_SMOOTH)), part)
        found += [Candidate(scores, rest) for rest in _REST]
    return found


def _share(progress: Progress, number: int, parts: int, done: float) -> None:
    progress((number + done) / parts)


Scorer = Callable[[Sequence[Series], Progress], list[Candidate]]
SCORERS: dict[str, Scorer] = {
    Null.spec.name: _as_it_is(nothing),
    "static_range": _as_it_is(static_range),
    "ewma_z": _as_it_is(ewma_z),
    "univariate": _as_it_is(univariate),
    "univariate, tuned": tuned,
}


# ----------------------------------------------------------------------------------------- the family


def read(folder: Path) -> list[Series]:
    """The labelled files under data/, in order of their names.

    Raises:
        InputError: the labels or a file cannot be read.
    """
    try:
        labels = msgspec.json.decode((folder / "combined_windows.json").read_bytes(), type=dict[str, list[list[str]]])
        found = {path.relative_to(folder / "data").as_posix(): path for path in folder.glob("data/**/*.csv")}
        return [_series(name, found[name], labels[name]) for name in sorted(found.keys() & labels.keys())]
    except (OSError, ValueError, KeyError, msgspec.MsgspecError) as error:
        raise InputError(f"{folder} does not hold the Numenta Anomaly Benchmark as published: {error}") from error


def _series(name: str, path: Path, labels: Sequence[Sequence[str]]) -> Series:
    with path.open(newline="", encoding="utf-8") as file:
        lines = [(line["timestamp"], float(line["value"])) for line in csv.DictReader(file)]
    ts = _seconds([at for at, _ in lines])
    windows = []
    for first, last in labels:
        edges = _seconds([first, last])
        windows.append((int(np.searchsorted(ts, edges[0])), int(np.searchsorted(ts, edges[1], "right")) - 1))
    return Series(name, ts, np.array([value for _, value in lines]), windows)


def _seconds(texts: Sequence[str]) -> Floats:
    seconds: Floats = np.array(texts, "datetime64[us]").astype(np.int64) / 1e6
    return seconds


def profiles(folder: Path) -> dict[str, Profile]:
    """The benchmark's three sets of weights.

    Raises:
        InputError: they cannot be read.
    """
    try:
        weights = msgspec.json.decode((folder / "profiles.json").read_bytes())
        return {
            name: Profile(*(float(weights[key]["CostMatrix"][w]) for w in ("tpWeight", "fpWeight", "fnWeight")))
            for name, key in (
                ("standard", "standard"),
                ("low FP", "reward_low_FP_rate"),
                ("low FN", "reward_low_FN_rate"),
            )
        }
    except (OSError, ValueError, KeyError, TypeError, msgspec.MsgspecError) as error:
        raise InputError(f"{folder / 'profiles.json'} cannot be used: {error}") from error


@register
class Nab:
    """Streams with labelled windows, scored by the benchmark's rule."""

    name = "nab"

    def found_in(self, folder: Path) -> bool:
        """Whether the folder holds the benchmark."""
        return (folder / "nab" / "combined_windows.json").is_file()

    def rows(self, folder: Path, contenders: Sequence[Contender], progress: Progress) -> list[Row]:
        """One row per score of a value column; detectors of events have nothing to work on here."""
        corpus, weights = read(folder / "nab"), profiles(folder / "nab")
        rows = []
        for number, (name, scorer) in enumerate(SCORERS.items()):
            rows.append(_row(name, corpus, scorer(corpus, partial(_share, progress, number, len(SCORERS))), weights))
        progress(1.0)
        return rows

    def plots(self, folder: Path) -> Iterator[Plot]:
        """The files that gain most, lose most and raise most false alarms."""
        corpus, weights = read(folder / "nab"), profiles(folder / "nab")
        score = Univariate()
        table = Table(score.fields())
        table.reserve(len(corpus))
        bands: list[tuple[Floats, Floats]] = []

        def step(rows: Ints, x: Floats, ts: Floats) -> Floats:
            bands.append(score.value.bounds(table, rows))
            return score.update(table, rows, x, ts)

        scores = lockstep(corpus, step, lambda _: None)
        result = tally(corpus, scores, REST_ROWS)
        _, at = result.best(weights["standard"])
        raw = result.raw(weights["standard"])[:, at]
        order = sorted(range(len(corpus)), key=lambda f: -len(corpus[f].value))
        for f in dict.fromkeys((int(raw.argmax()), int(raw.argmin()), int(result.false_rows[:, at].argmax()))):
            series, column = corpus[f], order.index(f)
            n, skipped = len(series.value), probation(len(series.value))
            band = [bands[i] for i in range(n)]
            yield Plot(
                name=series.name.removesuffix(".csv").replace("/", "-"),
                title=f"{series.name}: {result.caught[f, at]} of {result.windows[f]} windows caught, "
                f"{result.false_rows[f, at]} false alarms",
                ts=series.ts.tolist(),
                value=series.value.tolist(),
                unit="value",
                band=([float(low[column]) for low, _ in band], [float(high[column]) for _, high in band]),
                score=np.nan_to_num(scores[f]).tolist(),
                threshold=float(result.threshold[at]),
                events=[(float(series.ts[first]), float(series.ts[last])) for first, last in series.windows],
                alarms=[
                    float(series.ts[row])
                    for row in alarms(scores[f], float(result.threshold[at]), REST_ROWS)
                    if row >= skipped
                ],
            )


def _row(name: str, corpus: Sequence[Series], tried: Sequence[Candidate], weights: dict[str, Profile]) -> Row:
    tallies = [tally(corpus, scores, rest) for scores, rest in tried]
    result = joined(tallies)
    figures: dict[str, float] = {}
    for profile, weight in weights.items():
        mean, spread = result.held_out(weight)
        figures |= {profile: result.best(weight)[0], f"{profile}, cross-validated": mean, f"{profile}, +-": spread}
    _, at = result.best(weights["standard"])
    chosen = tried[int(np.searchsorted(np.cumsum([len(each.threshold) for each in tallies]), at, "right"))]
    caught = int(result.caught[:, at].sum())
    return Row(
        family="nab",
        data=f"{len(corpus)} files",
        contender=name,
        caught=caught,
        missed=int(result.windows.sum()) - caught,
        false_alarms=int(result.false_rows[:, at].sum()),
        delay_s=_delays(corpus, chosen, float(result.threshold[at])),
        figures=figures,
        notes=f"the threshold (and what else is tuned) is the best for these files; cross-validated: chosen on other "
        f"files ({FOLDS} parts, mean and standard deviation of {SEEDS} deals); delays count from the left edge of a "
        f"window, which lies well before what it marks",
    )


def _delays(corpus: Sequence[Series], chosen: Candidate, threshold: float) -> list[float]:
    delays = []
    for series, score in zip(corpus, chosen.scores, strict=True):
        found = alarms(score, threshold, chosen.rest)
        rows = np.array([row for row in found if row >= probation(len(score))], np.int64)
        for first, last in series.windows:
            inside = rows[(rows >= first) & (rows <= last)]
            if len(inside):
                delays.append(float(series.ts[inside[0]] - series.ts[first]))
    return delays
