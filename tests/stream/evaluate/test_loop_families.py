"""The families `loops` and `repetition` on small made-up sets."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from detectors import registered
from stream.evaluate.base import Contender, Row, families
from stream.evaluate.cases import cases


def contender(name: str) -> Contender:
    cls = registered()[name]
    return Contender(name, lambda: {name: cls(cls.Config())})


LOOPS, NULL = contender("retry_loop"), contender("null")


def calls(trace: str, args: list[str]) -> list[dict[str, Any]]:
    run = {"agent_id": "a", "run_id": trace, "root_run_id": trace, "kind": "tool", "tool": "read"}
    return [
        {**run, "event_id": f"{trace}#{i}", "ts": 1e9 + 5 * i, "args_hash": text, "result_hash": f"of {text} {trace}"}
        for i, text in enumerate(args)
    ]


def write(folder: Path, events: list[dict[str, Any]], labels: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True)
    with gzip.open(folder / "native.jsonl.gz", "wt") as file:
        file.write("".join(json.dumps(event) + "\n" for event in events))
    (folder / "labels.jsonl").write_text("".join(json.dumps(label) + "\n" for label in labels))


def rows(family: str, folder: Path, *contenders: Contender) -> dict[tuple[str, str], Row]:
    told: list[float] = []
    found = families()[family].rows(folder, contenders, told.append)
    assert told == sorted(told)
    assert told[-1] == 1.0
    return {(row.data, row.contender): row for row in found}


def test_the_situations_need_no_data(tmp_path: Path) -> None:
    assert families()["loops"].found_in(tmp_path)
    found = rows("loops", tmp_path, LOOPS, NULL)
    loops = sum(case.loop for case in cases())
    row = found["situations", "retry_loop"]
    assert (row.caught, row.missed, row.false_alarms, row.healthy) == (loops, 0, 0, len(cases()) - loops)
    assert len(row.delay_s) == loops
    assert found["situations", "null"].missed == loops
    assert found["situations, hashed by the producer", "retry_loop"].false_alarms == 0


def test_recorded_sets_are_judged_by_their_label(tmp_path: Path) -> None:
    events = [*calls("stuck", ["x"] * 6), *calls("fine", ["a", "b"]), *calls("stopped", ["c", "d"])]
    labels = [{"trace": "stuck", "labels": ["exit_cost"]}, {"trace": "fine", "labels": []}]
    write(tmp_path / "multi-swe-bench-logs", events, [*labels, {"trace": "stopped", "labels": ["exit_cost"]}])
    row = rows("loops", tmp_path, LOOPS)["multi-swe-bench-logs", "retry_loop"]
    assert (row.caught, row.missed, row.false_alarms, row.healthy) == (1, 1, 0, 1)
    assert row.delay_s == [10.0]
    assert "Weak label" in row.notes


@pytest.mark.parametrize(("name", "caught", "precision"), [("retry_loop", 0, 0.0), ("retry_loop, early", 1, 1.0)])
def test_marks_of_people_are_compared_per_run_and_per_step(
    tmp_path: Path, name: str, caught: int, precision: float
) -> None:
    events = [*calls("twice", ["x", "y", "y", "z"]), *calls("never", ["x", "y", "z"])]
    labels = [
        {"trace": "twice", "labels": ["human:repetition"], "repetition_steps": [2, 3]},
        {"trace": "never", "labels": [], "repetition_steps": None},
    ]
    write(tmp_path / "llm-agents-study", events, labels)
    row = rows("repetition", tmp_path, LOOPS, NULL)["llm-agents-study", name]
    assert (row.caught, row.missed, row.false_alarms, row.healthy) == (caught, 1 - caught, 0, 1)
    assert row.figures == {"step_precision": precision, "step_recall": caught / 2}


def test_runs_that_all_look_alike_do_not_count(tmp_path: Path) -> None:
    assert not families()["repetition"].found_in(tmp_path)
    events = [*calls("one", ["x"] * 4), *calls("two", ["a"]), *calls("three", ["x"] * 4)]
    labels = [
        {"trace": "one", "system": "AG2", "repetition_like": ["Step repetition"]},
        {"trace": "two", "system": "AG2", "repetition_like": []},
        {"trace": "three", "system": "MetaGPT", "repetition_like": ["Step repetition"]},
    ]
    write(tmp_path / "masft", events, labels)
    row = rows("repetition", tmp_path, LOOPS)["masft", "retry_loop"]
    assert (row.caught, row.missed, row.false_alarms, row.healthy) == (1, 0, 0, 1)


def test_there_is_nothing_to_draw(tmp_path: Path) -> None:
    for name in ("loops", "repetition"):
        assert list(families()[name].plots(tmp_path)) == []
