from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path

import pytest

from benchmarks import stages
from benchmarks.load import Load


@pytest.fixture(scope="module")
def result() -> dict[str, object]:
    return stages.measure(Load(events=3_000, loop_every=1_000), batch=500)


def test_every_stage_and_every_detector_is_measured(result: dict[str, object]) -> None:
    assert result["missing"] == []
    measured = set(result["stages_us"])  # type: ignore[call-overload]
    # The clock passes no mark within three seconds of events.
    assert set(stages.BATCHES) - {"marks of the clock"} <= measured
    assert {f"detector {name}" for name, cls in stages.registered().items() if cls.Config().enabled} <= measured


def test_stages_are_not_counted_twice(result: dict[str, object]) -> None:
    assert sum(result["stages_us"].values()) <= result["total_us"]  # type: ignore[attr-defined]


def test_planted_loops_are_found(result: dict[str, object]) -> None:
    assert result["findings"] >= 3  # type: ignore[operator]


def test_a_function_that_is_gone_is_told_and_does_not_stop_the_profile() -> None:
    profile = stages.Profile()
    with ExitStack() as stack:
        profile.wrap(stack, "gone", "stream.columns:Columns.gone")
        profile.wrap(stack, "moved", "stream.nowhere:f")
    assert profile.missing == ["gone: there is no stream.columns:Columns.gone", "moved: there is no stream.nowhere:f"]


def test_the_command_prints_a_table_and_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "stages.json"
    stages.main(["--events", "1000", "--agents", "100", "--batch", "200", "--gather", "3", "--json", str(out)])
    assert "records to columns" in capsys.readouterr().out
    assert json.loads(out.read_text())["stages"]["load"]["events"] == 1000
