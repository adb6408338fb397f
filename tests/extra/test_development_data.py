"""Real agents' and services' events, where the development data lies beside the project."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from detectors import registered
from stream.evaluate.base import Contender, families

DATA = Path(os.environ.get("BURNFUSE_DEVELOPMENT_DATA", Path(__file__).parents[3] / "shared" / "data"))
FILES = sorted(DATA.glob("*/native.jsonl.gz"))

pytestmark = [
    pytest.mark.extra,
    pytest.mark.skipif(not FILES, reason="no development data; set BURNFUSE_DEVELOPMENT_DATA to its folder"),
]


def watch(path: Path) -> list[dict[str, object]]:
    command = [sys.executable, "-m", "stream", "watch", "--json", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.parent.name)
def test_every_real_event_is_taken(path: Path) -> None:
    summary = watch(path)[-1]
    assert summary["rejected"] == 0
    assert summary["events"] > 1000


def test_the_retry_storm_of_463_errors_is_critical_within_a_minute() -> None:
    lines = watch(DATA / "chatdev-warehouse" / "native.jsonl.gz")
    storm = [x for x in lines if x.get("rule") == "provider_errors" and "Good_code" in str(x["root_run_id"])]
    first = min(float(str(x["ts"])) for x in storm)
    critical = min(float(str(x["ts"])) for x in storm if x["severity"] == "critical")
    assert critical - first < 60


def test_tool_dialogues_without_loops_stay_quiet() -> None:
    assert watch(DATA / "tau-bench" / "native.jsonl.gz")[-1]["findings"] == 0


def test_loops_of_real_runs_are_told_from_work() -> None:
    cls = registered()["retry_loop"]
    found = families()["loops"].rows(DATA, [Contender("it", lambda: {"retry_loop": cls(cls.Config())})], lambda _: None)
    rows = {row.data: row for row in found}
    assert rows["tau-bench"].false_alarms == 0
    assert rows["llm-traffic"].false_alarms <= 2
    assert rows["multi-swe-bench-trajs"].caught >= 30
    assert rows["multi-swe-bench-trajs"].false_alarms <= 3


def test_conversations_that_go_in_circles_are_told_from_those_that_do_not() -> None:
    cls = registered()["spiral"]
    found = families()["spiral"].rows(DATA, [Contender("it", lambda: {"spiral": cls(cls.Config())})], lambda _: None)
    rows = {row.data: row for row in found}
    assert rows["who-and-when"].caught >= 14
    assert rows["who-and-when"].false_alarms == 0
    assert rows["healthy look-alikes"].false_alarms == 0
    for way in ("spawns", "messages"):
        assert rows[f"{way}, reproduction stays 0.6"].false_alarms == 0
        assert rows[f"{way}, reproduction 0.6 to 1.2"].missed == 0


def test_marks_of_people_are_met_as_far_as_documented() -> None:
    cls = registered()["retry_loop"]
    contender = Contender("it", lambda: {"retry_loop": cls(cls.Config())})
    rows = {
        row.contender: row
        for row in families()["repetition"].rows(DATA, [contender], lambda _: None)
        if "study" in row.data
    }
    assert rows["it, early"].caught >= 17
    assert (rows["it, early"].precision or 0) >= 0.8
