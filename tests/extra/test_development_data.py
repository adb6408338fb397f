"""Real agents' and services' events, where the development data lies beside the project."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

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
