from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from stream.demo import summary
from stream.incidents import Incident
from stream.inject import Fault
from stream.simulate import demo_stream


def demo(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "stream", "demo", *args], capture_output=True, text=True, timeout=120)


def test_the_demo_finds_its_three_faults_and_little_else() -> None:
    done = demo()
    assert done.returncode == 0, done.stderr
    tail = done.stdout.splitlines()[-5:]
    assert tail[0] == "Injected faults:"
    assert [line.split()[0] for line in tail[1:4]] == ["retry-loop", "runaway", "fan-out"]
    assert all("found after" in line and "critical" in line for line in tail[1:4])
    others = int(tail[4].rsplit(" ", 1)[1])
    assert others <= 5
    assert "simulated" in done.stderr


def test_with_json_there_is_nothing_but_json_on_standard_output() -> None:
    done = demo("--json", "--seed", "3")
    kinds = [json.loads(line)["type"] for line in done.stdout.splitlines()]
    assert kinds[-1] == "summary"
    assert {"finding", "incident"} <= set(kinds)
    assert kinds.count("summary") == 1


def test_the_saved_stream_is_the_one_that_is_shown(tmp_path: Path) -> None:
    plain = tmp_path / "demo.jsonl"
    assert demo("--save", str(plain)).returncode == 0
    events, _ = demo_stream(7)
    assert [json.loads(line) for line in plain.read_text().splitlines()] == events


def test_a_missed_fault_is_called_missed() -> None:
    fault = Fault("f", "runaway", "10x", "bot", "run-1", "run-1", 1000.0, 2000.0, 7)
    assert "MISSED" in summary([fault], [])[2]
    incident = Incident(id="i-1", state="open", severity="warning", scope="run", opened_ts=1030.0, ts=1030.0,  # type: ignore[arg-type]
                        last_ts=1030.0, agent_id="other", run_id="other", root_run_id="other", title="t",
                        rules=("runaway.range",))  # fmt: skip
    lines = summary([fault], [(incident, incident)])
    assert "MISSED" in lines[2]
    assert lines[3].endswith(": 1")
