"""The simulated trees have the reproduction number they are said to have."""

from __future__ import annotations

from random import Random

import pytest

from stream.evaluate.spiral import _tree


@pytest.mark.parametrize("number", [0.3, 0.6])
def test_a_started_run_starts_so_many(number: float) -> None:
    events = _tree("task", Random(7), number, 0.0, 20_000.0)
    children = sum(event["run_id"] != "task" for event in events)
    assert children / len(events) == pytest.approx(number, abs=0.06)
