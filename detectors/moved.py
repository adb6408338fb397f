"""Whether a level has moved for good: drift models of river as functions of remembered levels.

A function of what is remembered needs no saved state of its own: after a restart it says the same.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from river import drift

from detectors.types import Floats

# River carries no types.


def adwin(levels: Floats, delta: float) -> int | None:
    """Where ADWIN cuts levels (oldest first, none unknown): the first index of the level that holds now.

    None where nothing has changed. ADWIN's bound is for values between 0 and 1, so `delta` is as strict as
    it says only for levels on about that scale.
    """
    model = drift.ADWIN(delta=delta, min_window_length=3, grace_period=4, clock=1)  # type: ignore[no-untyped-call]
    changed = False
    for level in levels.tolist():
        model.update(level)  # type: ignore[no-untyped-call]
        changed |= bool(model.drift_detected)
    return len(levels) - int(model.width) if changed else None


def page_hinkley(levels: Floats, threshold: float, slack: float) -> int | None:
    """Where the level moved, after Page and Hinkley: the first index of the level that holds now.

    None where the sum of distances from the running mean, each less `slack`, never passed `threshold`.
    The test says that it moved; where is where a step fits the levels best.
    """
    model = drift.PageHinkley(min_instances=4, delta=slack, threshold=threshold, alpha=1.0)
    changed = False
    for level in levels.tolist():
        model.update(level)  # type: ignore[no-untyped-call]
        changed |= bool(model.drift_detected)
    return best_step(levels) if changed else None


def best_step(levels: Floats) -> int:
    """The index that splits levels into two whose distances from their own means are least."""
    n = len(levels)
    left = np.arange(1, n)
    sums = np.cumsum(levels)[:-1]
    # The sum of squares within both parts is least where that between them is largest.
    between = (sums - left * levels.mean()) ** 2 / (left * (n - left))
    return int(np.argmax(between)) + 1


class Move(NamedTuple):
    """A level that has moved."""

    at: int
    """Index of the first level after it."""
    before: float
    """Median before."""
    after: float
    """Median since."""


def settled(levels: Floats, at: int | None, least: float, days: int) -> Move | None:
    """The move at an index, if it is one for good.

    It is where the latest `days` levels all lie at least `least` from the median before, on one side: what
    comes and goes, such as a weekend, does not.
    """
    if at is None or at < days or len(levels) < at + days:
        return None
    before, after = float(np.median(levels[:at])), float(np.median(levels[at:]))
    off = levels[-days:] - before
    return Move(at, before, after) if (off >= least).all() or (off <= -least).all() else None
