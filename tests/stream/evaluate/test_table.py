"""Rows as a table and as JSON."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from stream.evaluate import table
from stream.evaluate.base import Row

ROW = Row("loops", "set", "ours", caught=3, missed=1, false_alarms=1, healthy=10, delay_s=[1, 2, 3], notes="Mind this.")


def test_recall_and_precision() -> None:
    assert (ROW.recall, ROW.precision) == (0.75, 0.75)
    assert (Row("f", "d", "c").recall, Row("f", "d", "c").precision) == (None, None)
    assert Row("f", "d", "c", missed=2, healthy=3).recall == 0
    assert Row("f", "d", "c", missed=2, healthy=3).precision is None  # nothing was flagged
    assert Row("f", "d", "c", caught=2).precision is None  # nothing healthy could have been flagged
    assert Row("f", "d", "c", false_alarms=2, healthy=9).precision is None  # nothing was to be caught


def test_false_alarms_per_agent_day() -> None:
    assert Row("f", "d", "c", false_alarms=3, agent_days=60).false_alarms_per_agent_day == 0.05
    assert ROW.false_alarms_per_agent_day is None


def shown(*rows: Row, width: int | None = None) -> str:
    out = io.StringIO()
    table.show(rows, Console(file=out, width=width, force_terminal=width is not None, color_system=None))
    return out.getvalue()


def test_a_pipe_gets_whole_lines_however_long() -> None:
    figures = {f"a figure with a long name {i}": float(i) for i in range(20)}
    text = shown(replace(ROW, figures=figures))
    (line,) = [line for line in text.splitlines() if "ours" in line]
    assert "a figure with a long name 19 19" in line


def test_a_terminal_gets_lines_that_fit() -> None:
    text = shown(replace(ROW, figures={f"figure {i}": float(i) for i in range(20)}), width=140)
    assert max(map(len, text.splitlines())) <= 140


def test_notes_are_said_once() -> None:
    text = shown(ROW, replace(ROW, contender="other"), replace(ROW, data="set 2"))
    assert text.count("loops: Mind this.") == 1
    assert text.count("loops: set ") == 2


def test_names_cannot_steer_the_terminal() -> None:
    assert "\x1b" not in shown(replace(ROW, data="\x1b[31mred", notes="\x1b[2J"))
    assert "[red]" in shown(replace(ROW, data="[red]"))


ANY = st.floats(allow_nan=True, allow_infinity=True)


@given(
    st.builds(
        Row,
        family=st.text(),
        data=st.text(),
        contender=st.text(),
        caught=st.integers(0, 99),
        missed=st.integers(0, 99),
        false_alarms=st.integers(0, 99),
        healthy=st.integers(0, 99),
        agent_days=st.floats(0, 1e6),
        delay_s=st.lists(st.floats(0, 1e9), max_size=5),
        cost_before_usd=st.lists(st.floats(0, 1e9), max_size=5),
        figures=st.dictionaries(st.text(), ANY, max_size=4),
        notes=st.text(),
    )
)
def test_any_row_is_plain_json_and_can_be_shown(row: Row) -> None:
    data = json.loads(msgspec.json.encode(table.row_json(row)), parse_constant=pytest.fail)
    assert (data["caught"], data["missed"]) == (row.caught, row.missed)
    assert set(data["figures"]) == set(row.figures)
    assert all(value is None or math.isfinite(value) for value in data["figures"].values())
    assert shown(row)
