"""The situations, and that the loop detector judges each as it should."""

from __future__ import annotations

import pytest

from detectors.loops.config import RetryLoopConfig
from detectors.retry_loop import RetryLoop
from stream.evaluate import traces
from stream.evaluate.base import Contender
from stream.evaluate.cases import Case, cases
from stream.evaluate.loops import hash_contents

CASES = cases()
DETECTOR = Contender("it", lambda: {"retry_loop": RetryLoop(RetryLoopConfig())})

LOOKS_NEW = {
    "arguments as text",
    "task progress in arguments",
    "request id in arguments",
    "new pid in every result",
    "new session in the text",
    "execution count",
    "message ids",
    "ids in nested text",
    "tally in the text",
}
"""Loops that only contents give away, not their hashes."""


def judge(events: list[dict[str, object]]) -> traces.Outcome:
    (outcome,) = traces.run(traces.encoded(events), DETECTOR).values()
    return outcome


def test_there_are_many_of_both_kinds_and_each_has_a_name() -> None:
    assert sum(case.loop for case in CASES) >= 40
    assert sum(not case.loop for case in CASES) >= 40
    assert len({case.name for case in CASES}) == len(CASES)
    assert all(case.situation.endswith(".") and case.after for case in CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_loop_is_found_and_what_only_looks_like_one_is_not(case: Case) -> None:
    outcome = judge(list(case.events))
    assert bool(outcome.findings) is case.loop, [finding.reason for finding in outcome.findings]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_same_with_contents_hashed_by_the_producer(case: Case) -> None:
    outcome = judge([hash_contents(event) for event in case.events])
    seen = case.loop and case.name.removeprefix("loop ") not in LOOKS_NEW
    assert bool(outcome.findings) is seen, [finding.reason for finding in outcome.findings]
