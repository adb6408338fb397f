"""The bar chart of the throughput benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.screen import say

_OURS, _OTHERS, _CEILING = "#d1495b", "#8d99ae", "#2b2d42"


def draw(contenders: Mapping[str, Any], path: Path) -> None:
    """Events per second of every contender, with the spread of the repeats."""
    if find_spec("matplotlib") is None:
        say("no chart: matplotlib is not installed (benchmarks/requirements.txt)")
        return
    from matplotlib.figure import Figure

    names = list(contenders)[::-1]
    rates = [contenders[name]["rate"] for name in names]
    middle = [rate["median"] for rate in rates]
    reach = [[rate["median"] - rate["min"] for rate in rates], [rate["max"] - rate["median"] for rate in rates]]
    colors = [_CEILING if n == "ceiling" else _OURS if n.startswith("burnfuse") else _OTHERS for n in names]
    figure = Figure(figsize=(9, 0.6 * len(names) + 1.2), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(names, middle, xerr=reach, color=colors, capsize=3)
    axes.bar_label(bars, [f"{rate:,.0f}" for rate in middle], padding=6)
    axes.set_xlabel("events per second, one process on one core (median; whiskers: least and most)")
    axes.margins(x=0.15)
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
