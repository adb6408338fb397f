"""How unusual one number of a stream is, for many streams at once: no detector, but what detectors score with.

Each channel keeps its state in fields of a `Table` and takes one value of each of k distinct rows at a time:
arrays in, arrays out. A value is scored against what was learnt before it, then learnt. Scores are not
capped, so that of two extreme values the more extreme one ranks higher.

- `Shift`: how improbable is the recent mean of the stream, as an order of magnitude of its tail.
- `Range`: how far does the value lie outside everything seen so far.

Both follow what measured best of about 55 statistics on 185 production clients and 40 on the Numenta Anomaly
Benchmark: extreme-value tails carry one threshold over all streams, and new extremes alone are strong.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from detectors.base import Table
from detectors.types import Bools, Floats, Ints

_SHAPE_MAX = 0.45
"""Largest shape of the tail: from 0.5 on its variance, which the fit uses, does not exist."""
_SHAPE_MIN = 1e-6
"""Below, the tail is exponential; the formula divides by the shape."""
_TINY = 1e-12
"""Keeps ratios finite on streams that never changed."""


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
        sd = np.maximum(np.sqrt(np.maximum(var, self.floor_share**2 * slow_var)), max(self.floor, _TINY))
        s += self.smooth * (np.clip(gap / sd, -self.clip_z, self.clip_z) - s)
        size = np.abs(s) if self.two_sided else s
        score = np.where(size > u, tail_order(size - u, excess, excess2, self.tail), 0.0)
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
        column["u"][at] = u[put] + pace * (hit - self.tail)
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
    Alone it reaches the level of published nearest-neighbour detectors on the Numenta Anomaly Benchmark.
    """

    prefix: str = "range"
    """Of the fields in the table."""
    forget: float = 1e-4
    """Share of its half width that an end loses with each value: an extreme has halved after 7,000."""
    floor: float = 1e-9
    """Smallest width, in the value's unit."""
    warm: int = 1
    """Values before there is a score."""

    def fields(self) -> dict[str, tuple[Any, ...]]:
        """What the table must hold."""
        return {f"{self.prefix}_{name}": (np.float64, 0.0) for name in ("low", "high", "n")}

    def update(self, table: Table, rows: Ints, x: Floats, learn: Bools | None = None) -> Floats:
        """Scores, then learns; see `Shift.update`.

        Returns:
            (k,) distance outside the range over the range's width, 0 inside; NaN while warming up.
        """
        lows, highs, counts = (table[f"{self.prefix}_{name}"] for name in ("low", "high", "n"))
        n = counts[rows]
        low, high = np.where(n > 0, lows[rows], x), np.where(n > 0, highs[rows], x)
        outside: Floats = np.maximum(np.maximum(x - high, low - x), 0.0) / np.maximum(high - low, self.floor)
        outside[n < self.warm] = np.nan
        put = slice(None) if learn is None else learn
        at, creep = rows[put], (self.forget / 2 * (high - low))[put]
        counts[at] = n[put] + 1
        highs[at] = np.maximum(high[put] - creep, x[put])
        lows[at] = np.minimum(low[put] + creep, x[put])
        return outside
