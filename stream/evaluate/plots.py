"""Pictures of an evaluation as PNG files; the same data give the same bytes."""

from __future__ import annotations

import datetime as dt
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream.errors import UsageError
from stream.evaluate.base import Plot
from stream.text import clean

_SIZE_INCHES = (12.0, 5.0)
_TALL_INCHES = (12.0, 7.0)
_DPI = 100
_EPOCH_S = 1e8
"""Times below it (before 1973) are no dates, but seconds since a recording began."""
_WIDE = 30.0
"""A value whose peak is so many times its median is drawn on a logarithmic axis, or nothing else shows."""

_VALUE, _BAND, _EVENT, _ALARM, _SCORE = "#1f4e79", "#9ecae1", "#fdae6b", "#c00000", "#4a4a4a"


def check() -> None:
    """Tells before the work begins that it would end without pictures.

    Raises:
        UsageError: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise UsageError("--plots needs matplotlib: pip install 'burnfuse[evaluate]'")


def file_name(family: str, plot: Plot) -> str:
    """A name for the picture that every file system takes.

    >>> file_name("nab", Plot("art/daily no noise", "", [], [], ""))
    'nab-art-daily-no-noise.png'
    """
    return re.sub(r"[^\w.-]+", "-", f"{family}-{plot.name}").strip("-") + ".png"


def draw(plot: Plot, path: Path) -> None:
    """Draws one picture.

    Raises:
        UsageError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=_TALL_INCHES if plot.score is not None else _SIZE_INCHES, dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    heights = (1,) if plot.score is None else (2, 1)
    axes = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights, squeeze=False)[:, 0]
    clock = _Clock(plot)
    _values(axes[0], plot, clock)
    if plot.score is not None:
        _score(axes[1], plot, clock)
    # Silence is a result as well, and nothing in the picture would show it.
    silent = "  (no alarm)" if plot.events and not plot.alarms else ""
    axes[0].set_title(clean(plot.title) + silent, loc="left", fontsize=12, wrap=True)
    for axis in axes:
        _marks(axis, plot, clock, labelled=axis is axes[0])
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.margins(x=0.01)
    clock.label(axes[-1])
    figure.legend(loc="outside lower center", ncols=6, frameon=False)
    try:
        figure.savefig(path, metadata={"Software": None})
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error


class _Clock:
    """The time axis: dates where times are dates, else hours since the recording began."""

    def __init__(self, plot: Plot) -> None:
        self._dates = len(plot.ts) > 0 and min(plot.ts) > _EPOCH_S
        self._start = 0.0 if self._dates else float(min(plot.ts, default=0.0))

    def places(self, ts: Any) -> NDArray[Any]:
        """Times as matplotlib takes them."""
        values = np.atleast_1d(np.asarray(ts, np.float64))
        if not self._dates:
            return (values - self._start) / 3600
        return np.array([dt.datetime.fromtimestamp(float(v), dt.UTC) for v in values], object)

    def label(self, axis: Any) -> None:
        """Names the axis and spaces its ticks."""
        if not self._dates:
            axis.set_xlabel("hours since the beginning")
            return
        from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

        locator = AutoDateLocator(tz=dt.UTC)  # type: ignore[no-untyped-call]
        axis.xaxis.set_major_locator(locator)
        axis.xaxis.set_major_formatter(ConciseDateFormatter(locator, tz=dt.UTC))  # type: ignore[no-untyped-call]
        axis.set_xlabel("time (UTC)")


def _values(axis: Any, plot: Plot, clock: _Clock) -> None:
    from matplotlib.ticker import EngFormatter

    at, values = clock.places(plot.ts), np.asarray(plot.value, np.float64)
    if plot.band is not None:
        low, high = (np.asarray(edge, np.float64) for edge in plot.band)
        axis.fill_between(at, low, high, color=_BAND, alpha=0.5, linewidth=0, label="expected range")
    axis.plot(at, values, color=_VALUE, linewidth=0.9, label=clean(plot.unit))
    axis.set_ylabel(clean(plot.unit))
    axis.yaxis.set_major_formatter(EngFormatter(sep=""))
    positive = values[np.isfinite(values) & (values > 0)]
    if len(positive) and (values[np.isfinite(values)] >= 0).all() and positive.max() > _WIDE * np.median(positive):
        axis.set_yscale("symlog", linthresh=float(np.median(positive)) / 10)
        axis.set_ylim(bottom=0)


def _score(axis: Any, plot: Plot, clock: _Clock) -> None:
    axis.plot(clock.places(plot.ts), np.asarray(plot.score, np.float64), color=_SCORE, linewidth=0.9, label="score")
    if plot.threshold is not None:
        axis.axhline(plot.threshold, color=_ALARM, linestyle="--", linewidth=1, label="threshold")
    axis.set_ylabel("score")


def _marks(axis: Any, plot: Plot, clock: _Clock, *, labelled: bool) -> None:
    """The labelled events as areas and the alarms as lines; named once per picture."""
    name = "labelled event" if labelled else None
    for start, end in plot.events:
        low, high = clock.places([start, end])
        # With an edge, or a minute among days would not be seen.
        axis.axvspan(low, high, facecolor=_EVENT, edgecolor=_EVENT, alpha=0.5, linewidth=2, label=name, zorder=0.9)
        name = None
    name = "alarm" if labelled else None
    for at in clock.places(plot.alarms) if len(plot.alarms) else ():
        axis.axvline(at, color=_ALARM, linewidth=1, label=name)
        name = None
