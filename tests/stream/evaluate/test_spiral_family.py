"""The simulated systems have the reproduction number they are said to have, however it is told."""

from __future__ import annotations

from random import Random

import pytest

from stream.evaluate.spiral import _system


@pytest.mark.parametrize("way", ["spawn", "message"])
@pytest.mark.parametrize("number", [0.3, 0.6])
def test_a_run_sets_so_many_going(way: str, number: float) -> None:
    events = _system("system", way, Random(7), number, 0.0, 20_000.0)
    children = sum(event["run_id"] != "system" for event in events)
    assert children / len(events) == pytest.approx(number, abs=0.06)
    assert {event["kind"] for event in events} == {way}
