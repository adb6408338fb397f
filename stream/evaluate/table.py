"""Rows of an evaluation, for people (a table) and for machines (JSON)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from stream.evaluate.base import Row
from stream.text import clean

_DIGITS = 6
_HEAD = (
    "data",
    "contender",
    "caught",
    "missed",
    "recall",
    "precision",
    "false alarms",
    "per agent-day",
    "delay p50",
    "delay p90",
    "spent before",
    "figures",
)
_LEFT = {"data", "contender", "figures"}
_NONE = "-"
_WIDEST = 10_000
"""Characters; no table is wider."""


def row_json(row: Row) -> dict[str, Any]:
    """A row as plain data; what is not known is null."""
    return {
        "type": "row",
        "family": row.family,
        "data": row.data,
        "contender": row.contender,
        "caught": row.caught,
        "missed": row.missed,
        "recall": _rounded(row.recall),
        "precision": _rounded(row.precision),
        "false_alarms": row.false_alarms,
        "healthy": row.healthy,
        "agent_days": _rounded(row.agent_days),
        "false_alarms_per_agent_day": _rounded(row.false_alarms_per_agent_day),
        "delay_s": _spread(row.delay_s),
        "cost_before_usd": _spread(row.cost_before_usd),
        "figures": {name: _rounded(value) for name, value in row.figures.items()},
        "notes": row.notes,
    }


def _spread(values: Sequence[float]) -> dict[str, float | None] | None:
    if not len(values):
        return None
    return {"median": _rounded(quantile(values, 0.5)), "p90": _rounded(quantile(values, 0.9))}


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(float(value), _DIGITS)


def quantile(values: Sequence[float], q: float) -> float:
    """The q-quantile, interpolated between neighbours.

    >>> quantile([1, 2, 3, 4], 0.5), quantile([7], 0.9)
    (2.5, 7.0)
    """
    return float(np.quantile(np.asarray(values, np.float64), q))


def table(rows: Sequence[Row]) -> Table:
    """The one table: a section per set of data, a line per contender."""
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for name in _HEAD:
        shown.add_column(name, justify="left" if name in _LEFT else "right", no_wrap=name != "figures")
    before: tuple[str, str] | None = None
    groups = list(dict.fromkeys((row.family, row.data) for row in rows))
    for row in sorted(rows, key=lambda row: groups.index((row.family, row.data))):
        group = (row.family, row.data)
        if before is not None and group != before:
            shown.add_section()
        cells = [Text(clean(cell)) for cell in _cells(row)]
        if group == before:
            cells[0] = Text()
        shown.add_row(*cells)
        before = group
    return shown


def _cells(row: Row) -> list[str]:
    delay, cost = row.delay_s, row.cost_before_usd
    cases = row.caught + row.missed
    return [
        row.family if row.data in ("", row.family) else f"{row.family}: {row.data}",
        row.contender,
        str(row.caught) if cases else _NONE,
        str(row.missed) if cases else _NONE,
        _share(row.recall),
        _share(row.precision),
        _false_alarms(row),
        _short(row.false_alarms_per_agent_day),
        span(quantile(delay, 0.5)) if len(delay) else _NONE,
        span(quantile(delay, 0.9)) if len(delay) else _NONE,
        dollars(quantile(cost, 0.5)) if len(cost) else _NONE,
        _figures(row.figures),
    ]


def _false_alarms(row: Row) -> str:
    if row.healthy:
        return f"{row.false_alarms} of {row.healthy}"
    return str(row.false_alarms) if row.false_alarms or row.agent_days else _NONE


def _share(value: float | None) -> str:
    return _NONE if value is None else f"{value:.2f}"


def _short(value: float | None) -> str:
    if value is None:
        return _NONE
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def dollars(amount: float) -> str:
    """An amount for people.

    >>> dollars(1234.5), dollars(0.1234), dollars(0.00123), dollars(0)
    ('$1,234.50', '$0.12', '$0.0012', '$0.00')
    """
    return f"${amount:.2g}" if 0 < amount < 0.01 else f"${amount:,.2f}"


def _figures(figures: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {_short(value)}" for name, value in figures.items())


def span(seconds: float) -> str:
    """A time for people.

    >>> span(4.26), span(95), span(4000), span(200_000)
    ('4.3 s', '95 s', '67 min', '56 h')
    """
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def notes(rows: Sequence[Row]) -> list[str]:
    """What the reader must know, each said once."""
    return list(dict.fromkeys(clean(f"{row.family}: {row.notes}") for row in rows if row.notes))


def show(rows: Sequence[Row], console: Console) -> None:
    """Prints the table and its notes."""
    shown = table(rows)
    # A file or a pipe has no width of its own: lines are as long as they need to be.
    if not console.is_terminal:
        console.width = console.measure(shown, options=console.options.update(width=_WIDEST)).maximum
    console.print(shown)
    for note in notes(rows):
        console.print(Text(note), soft_wrap=True)
