"""Runaways on real clients' minutes, where the development data lies beside the project."""

from __future__ import annotations

import pytest
from test_development_data import DATA

from stream.evaluate import runaway

pytestmark = [
    pytest.mark.extra,
    pytest.mark.skipif(
        not (DATA / "servegen" / "minutes.npz").is_file(),
        reason="no development data; set BURNFUSE_DEVELOPMENT_DATA to its folder",
    ),
]


def test_the_score_finds_what_it_is_said_to_find() -> None:
    tokens = runaway._read(DATA)
    (row,) = runaway._score_rows(tokens, runaway._faults(tokens), lambda _: None)
    assert row.false_alarms / row.agent_days <= 1 / 30
    assert row.figures["mean_recall"] >= 0.6


def test_the_default_budget_is_kept_within_thirty_percent() -> None:
    rows = runaway._budget_rows(runaway._read(DATA), lambda _: None)
    default = [row for row in rows if row.figures["stated"] == pytest.approx(1 / 30)]
    assert len(default) == 2
    for row in default:
        assert row.figures["realised"] == pytest.approx(row.figures["stated"], rel=0.3), row.data
