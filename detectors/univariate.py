"""How unusual one number of a stream is, for many streams at once: no detector, but what detectors score with.

Each channel keeps its state in fields of a `Table` and takes one value of each of k distinct rows at a time:
arrays in, arrays out. A value is scored against what was learnt before it, then learnt. Scores are not
capped, so that of two extreme values the more extreme one ranks higher.

- `Shift`: how improbable the recent mean of the stream is, as an order of magnitude of its tail.
- `Range`: how far the value lies outside everything seen so far.
- `HourlyRange`: the same for the hour of the day.
- `Univariate`: all three in one score.

Measured on the Numenta Anomaly Benchmark by `burnfuse evaluate DIR --data nab`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from detectors.base import Table
from detectors.types import Bools, Floats, Ints

_EXCESS_MIN = 0.01
"""Smallest mean excess, in standard deviations: no tail is known to be thinner before it has been seen."""
_SHAPE_MAX = 0.45
"""Largest shape of the tail: from 0.5 on its variance, which the fit uses, does not exist."""
_SHAPE_MIN = 1e-6
"""Below, the tail is exponential; the formula divides by the shape."""
_TINY = 1e-12
"""Keeps ratios finite on streams that never changed."""
_ROUNDING = 1e-9
"""Of a width: sums of doubles differ by less."""


@dataclass(frozen=True, slots=True)
class Shift:
    """A sustained shift away from a slow baseline, as -log10 of its tail probability.

    z is the value in standard deviations of the baseline, clipped; s is its moving average; a streaming
    quantile u of |s| (or of s) cuts its tail off, and a generalized Pareto tail is fitted to what exceeds u
    by the method of moments. The result is -log10 P(tail beyond s): 0 up to u, then from -log10(tail) up.

    Baseline and tail learn with 1/n until n reaches their memory, so nothing depends on a first guess.

    Source: peaks over threshold (Siffer et al., KDD 2017); the moments' fit is Hosking and Wallis (1987).
    """

    prefix: str = "shift"
    """Of the fields in the table; a detector may keep several channels."""
    baseline: float = 1 / 1440
    """Share of a value in the baseline: its memory is the inverse, one day of active minutes."""
    smooth: float = 0.1
    """Share of a z in the moving average: about ten values must agree."""
    tail: float = 0.01
    """Share of values that counts as tail. Enough to fit within a day of minutes (14), and still a tail."""
    tail_rate: float = 0.02
    """Step of the quantile, in mean |s|."""
    excess_rate: float = 0.01
    """Share of an excess in the tail's moments: the memory is about 100 excesses."""
    floor: float = 0.3
    """Smallest standard deviation, in the value's unit. Of a logarithm, 0.3 is a third up or down: without it
    the steadiest streams, which differ by fractions, would be the most suspicious ones."""
    floor_share: float = 0.0
    """Smallest standard deviation, as a share of the unclipped one: clipping makes the robust one collapse
    on streams that are mostly constant."""
    level_share: float = 0.0
    """Smallest standard deviation, as a share of the mean: what never changed may stir."""
    clip_z: float = 8.0
    """Largest |z|: one wild value must not look like a sustained shift."""
    clip_learn: float = 3.0
    """What the baseline takes of a value, at most, in its standard deviations: a fault moves it slowly."""
    two_sided: bool = False
    """Whether a fall counts as well as a rise."""
    warm: int = 30
    """Values before there is a score: the robust standard deviation has an error of about 15 % then."""

    def fields(self) -> dict[str, tuple[Any, ...]]:
        """What the table must hold."""
        return {f"{self.prefix}_{name}": (np.float64, 0.0) for name in _SHIFT}

    def update(self, table: Table, rows: Ints, x: Floats, learn: Bools | None = None) -> Floats:
        """Scores, then learns.

        Args:
            rows: (k,) distinct rows.
            x: (k,) values.
            learn: (k,) where baseline and tail may learn; all of them by default. A detector stops the
                learning while it fires, so that a fault does not become the new normal.

        Returns:
            (k,) -log10 of the tail probability, 0 where the value is not in the tail; NaN while warming up.
        """
        column = {name: table[f"{self.prefix}_{name}"] for name in _SHIFT}
        n, mean, var, slow_var, s, scale, u, excess, excess2, beyond = (column[name][rows] for name in _SHIFT)
        gap = np.where(n > 0, x - mean, 0.0)
        least = np.maximum(self.level_share * np.abs(mean), max(self.floor, _TINY))
        sd = np.maximum(np.sqrt(np.maximum(var, self.floor_share**2 * slow_var)), least)
        s += self.smooth * (np.clip(gap / sd, -self.clip_z, self.clip_z) - s)
        size = np.abs(s) if self.two_sided else s
        thick = np.maximum(excess, _EXCESS_MIN)
        thick2 = np.maximum(excess2, 2 * _EXCESS_MIN**2)
        score = np.where(size > u, tail_order(size - u, thick, thick2, self.tail), 0.0)
        score[n < self.warm] = np.nan

        put = slice(None) if learn is None else learn
        at = rows[put]
        column["s"][rows] = s
        n = n[put] + 1
        x, gap, sd, size = x[put], gap[put], sd[put], size[put]
        step = np.maximum(self.baseline, 1 / n)
        column["n"][at] = n
        # The first values spread freely: there is no standard deviation to clip them by.
        kept = np.where(n > self.warm, np.clip(gap, -self.clip_learn * sd, self.clip_learn * sd), gap)
        column["mean"][at] = np.where(n == 1, x, mean[put] + step * kept)
        column["var"][at] = var[put] + step * (kept * kept - var[put])
        column["slow_var"][at] = slow_var[put] + step * (gap * gap - slow_var[put])
        column["scale"][at] = scale[put] + step * (np.abs(size) - scale[put])
        over = size - u[put]
        hit = over > 0
        pace = np.maximum(self.tail_rate, 1 / n) * np.maximum(scale[put], _TINY)
        column["u"][at] = np.maximum(u[put] + pace * (hit - self.tail), 0.0)
        count = beyond[put] + hit
        share = np.where(hit, np.maximum(self.excess_rate, 1 / np.maximum(count, 1)), 0.0)
        column["beyond"][at] = count
        column["excess"][at] = excess[put] + share * (over - excess[put])
        column["excess2"][at] = excess2[put] + share * (over * over - excess2[put])
        return score


_SHIFT = ("n", "mean", "var", "slow_var", "s", "scale", "u", "excess", "excess2", "beyond")


def tail_order(over: Floats, mean: Floats, square: Floats, tail: float) -> Floats:
    """-log10 of the probability beyond a threshold that a share `tail` of the values passes.

    The excess over the threshold is generalized Pareto with the given moments: of shape xi and scale sigma,
    mean = sigma / (1 - xi) and mean^2 / variance = 1 - 2 xi.

    Args:
        over: (k,) excess over the threshold, >= 0.
        mean: (k,) mean excess.
        square: (k,) mean squared excess.
    """
    mean = np.maximum(mean, _TINY)
    spread = np.maximum(square - mean * mean, _TINY * mean)
    shape = np.clip((1 - mean * mean / spread) / 2, _SHAPE_MIN, _SHAPE_MAX)
    scale = mean * (1 - shape)
    order: Floats = np.log1p(shape * np.maximum(over, 0.0) / scale) / (shape * math.log(10)) - math.log10(tail)
    return order


@dataclass(frozen=True, slots=True)
class Range:
    """How far a value lies outside the range of everything before it, in widths of that range.

    The range forgets: both ends creep towards its middle, so that one old extreme does not hide the next.
    """

    prefix: str = "range"
    """Of the fields in the table."""
    forget: float = 1e-4
    """Share of its half width that an end loses with each value: an extreme has halved after 7,000."""
    floor_share: float = 1e-3
    """Smallest width, as a share of the larger end: what never changed may stir by a thousandth."""
    warm: int = 30
    """Values before there is a score: the n-th of equal values is a new extreme with probability 2/n."""

    def fields(self) -> dict[str, tuple[Any, ...]]:
        """What the table must hold."""
        return {f"{self.prefix}_{name}": (np.float64, 0.0) for name in ("low", "high", "n")}

    def bounds(self, table: Table, rows: Ints) -> tuple[Floats, Floats]:
        """(k,) lowest and (k,) highest value expected next."""
        return table[f"{self.prefix}_low"][rows], table[f"{self.prefix}_high"][rows]

    def width(self, low: Floats, high: Floats) -> Floats:
        """(k,) widths that distances are told in."""
        width: Floats = np.maximum(high - low, self.floor_share * np.maximum(np.abs(low), np.abs(high)))
        return width

    def update(self, table: Table, rows: Ints, x: Floats, learn: Bools | None = None) -> Floats:
        """Scores, then learns; see `Shift.update`.

        Returns:
            (k,) distance outside the range over the range's width, 0 inside; NaN while warming up.
        """
        lows, highs, counts = (table[f"{self.prefix}_{name}"] for name in ("low", "high", "n"))
        n = counts[rows]
        low, high = np.where(n > 0, lows[rows], x), np.where(n > 0, highs[rows], x)
        outside = _outside(x, low, high, self.width(low, high))
        outside[n < self.warm] = np.nan
        put = slice(None) if learn is None else learn
        at, creep = rows[put], (self.forget / 2 * (high - low))[put]
        counts[at] = n[put] + 1
        highs[at] = np.maximum(high[put] - creep, x[put])
        lows[at] = np.minimum(low[put] + creep, x[put])
        return outside


@dataclass(frozen=True, slots=True)
class HourlyRange:
    """How far a value lies outside what the same hour of the day, and the hours beside it, have seen.

    An hour is learnt when the one after it has ended: else a day that goes wrong for hours would excuse each
    hour by the one before.
    """

    prefix: str = "hourly"
    """Of the fields in the table."""
    forget: float = 1e-4
    """As of `Range`, per value of the stream: what an hour sees less often it forgets in larger steps."""
    floor_share: float = 0.1
    """Smallest width of an hour's range, as a share of the stream's: a quiet hour may stir a little."""
    warm_s: float = 5 * 86_400
    """Seconds before there is a score: with fewer than five values of each time of day there is no pattern."""

    def fields(self) -> dict[str, tuple[Any, ...]]:
        """What the table must hold."""
        low, high, hour = (np.float64, np.inf), (np.float64, -np.inf), (np.int64, -1)
        return {
            f"{self.prefix}_low": (*low, _HOURS),
            f"{self.prefix}_high": (*high, _HOURS),
            f"{self.prefix}_since": low,
            # The open hour and the one before it, which are not learnt yet.
            **{f"{self.prefix}_{name}_low": low for name in _WAITING},
            **{f"{self.prefix}_{name}_high": high for name in _WAITING},
            **{f"{self.prefix}_{name}_hour": hour for name in _WAITING},
        }

    def update(self, table: Table, rows: Ints, x: Floats, ts: Floats, width: Floats) -> Floats:
        """Scores, then learns.

        Args:
            rows: (k,) distinct rows.
            x: (k,) values.
            ts: (k,) event time, s.
            width: (k,) width of the stream's range.

        Returns:
            (k,) distance outside the hours' range over its width, 0 inside; NaN while warming up.
        """
        lows, highs = table[f"{self.prefix}_low"], table[f"{self.prefix}_high"]
        hour = (ts // 3600).astype(np.int64) % _HOURS
        changed = hour != table[f"{self.prefix}_open_hour"][rows]
        if changed.any():
            self._next_hour(table, rows[changed], hour[changed])
        since = np.minimum(table[f"{self.prefix}_since"][rows], ts)
        table[f"{self.prefix}_since"][rows] = since

        beside = (hour[:, None] + (-1, 0, 1)) % _HOURS
        low, high = lows[rows[:, None], beside].min(1), highs[rows[:, None], beside].max(1)
        own_low, own_high = lows[rows, hour], highs[rows, hour]
        seen = own_high >= own_low
        room = np.maximum(high - low, self.floor_share * width)
        outside = _outside(x, low, high, room)
        outside[~seen | (ts - since < self.warm_s)] = np.nan

        creep = self.forget * _HOURS / 2 * np.where(seen, own_high - own_low, 0.0)
        highs[rows, hour], lows[rows, hour] = own_high - creep, own_low + creep
        open_low, open_high = table[f"{self.prefix}_open_low"], table[f"{self.prefix}_open_high"]
        open_low[rows] = np.minimum(open_low[rows], x)
        open_high[rows] = np.maximum(open_high[rows], x)
        return outside

    def _next_hour(self, table: Table, rows: Ints, hour: Ints) -> None:
        """Learns the hour before the open one, which then takes its place."""
        low, high, was = (table[f"{self.prefix}_last_{name}"] for name in ("low", "high", "hour"))
        lows, highs = table[f"{self.prefix}_low"], table[f"{self.prefix}_high"]
        learnt = rows[was[rows] >= 0]
        at = (learnt, was[learnt])
        lows[at] = np.minimum(lows[at], low[learnt])
        highs[at] = np.maximum(highs[at], high[learnt])
        for name, blank in (("low", np.inf), ("high", -np.inf), ("hour", hour)):
            table[f"{self.prefix}_last_{name}"][rows] = table[f"{self.prefix}_open_{name}"][rows]
            table[f"{self.prefix}_open_{name}"][rows] = blank


_HOURS = 24
_WAITING = ("last", "open")


def _outside(x: Floats, low: Floats, high: Floats, width: Floats) -> Floats:
    """(k,) widths outside of the range; what rounding alone can make is inside."""
    outside: Floats = np.maximum(np.maximum(x - high, low - x), 0.0) / np.maximum(width, _TINY)
    outside[outside < _ROUNDING] = 0.0
    return outside


def record_order(outside: Floats, tail: float = 0.01, unit: float = 0.01) -> Floats:
    """A distance outside a range on the scale of `tail_order`, so that one threshold serves both.

    Args:
        outside: (k,) widths outside; NaN stays NaN.
        tail: What any new extreme counts as, however small.
        unit: Widths from which the distance begins to count, a decade for each tenfold.
    """
    order: Floats = np.where(outside > 0, np.log10(1 + outside / unit) - math.log10(tail), 0 * outside)
    return order


@dataclass(frozen=True, slots=True)
class Univariate:
    """All of it in one score of a stream: the largest of a shift, a new extreme and an unusual hour.

    New extremes of the value and of its slow mean add up before they are ranked: what is both higher than
    ever and higher for longer than ever counts more than either.
    """

    shift: Shift = Shift(
        baseline=1 / 288, smooth=0.05, tail=0.02, floor=_TINY, floor_share=0.1, level_share=1e-3, two_sided=True
    )
    """A day of five-minute values as baseline, twenty values as a shift; falls count as rises do."""
    value: Range = Range("value")
    slow: Range = Range("slow")
    slow_share: float = 0.02
    """Share of a value in the slow mean."""
    hourly: HourlyRange = HourlyRange()
    tail: float = 0.01
    """What a new extreme counts as."""

    def fields(self) -> dict[str, tuple[Any, ...]]:
        """What the table must hold."""
        parts = (self.shift, self.value, self.slow, self.hourly)
        fields = {name: kind for part in parts for name, kind in part.fields().items()}
        return {**fields, "slow_mean": (np.float64, 0.0)}

    def update(self, table: Table, rows: Ints, x: Floats, ts: Floats) -> Floats:
        """Scores, then learns.

        Args:
            rows: (k,) distinct rows.
            x: (k,) values.
            ts: (k,) event time, s.

        Returns:
            (k,) order of magnitude of how unusual the stream is now, 0 if it is not; NaN while warming up.
        """
        n = table[f"{self.value.prefix}_n"][rows] + 1
        mean = table["slow_mean"][rows]
        mean = mean + np.maximum(self.slow_share, 1 / n) * (x - mean)
        table["slow_mean"][rows] = mean
        low, high = self.value.bounds(table, rows)
        hourly = self.hourly.update(table, rows, x, ts, self.value.width(low, high))
        outside = self.value.update(table, rows, x) + self.slow.update(table, rows, mean)
        score = np.maximum(self.shift.update(table, rows, x), record_order(outside, self.tail))
        # An hour has seen a 24th of the values, so its extremes are 24 times as frequent.
        best: Floats = np.where(np.isnan(score), score, np.fmax(score, record_order(hourly, self.tail * _HOURS)))
        return best
