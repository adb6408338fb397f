"""The command line: help, exit codes, what goes to which stream, pipes, files that grow."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from streams import command, encode, finished, good, loop, process_of, text

from burnfuse.event import UsageEvent
from stream.cli import command_names

GROUPS = ("config", "dlq", "state")
IN_GROUPS = ["config check", "config schema", "config show", "dlq list", "dlq replay", "state show", "state reset"]
LEAVES = [name for name in command_names() if name not in GROUPS] + IN_GROUPS


@pytest.fixture(name="events")
def _events(tmp_path: Path) -> Path:
    file = tmp_path / "events.jsonl"
    file.write_bytes(text(good()))
    return file


@pytest.fixture(name="warning")
def _warning(tmp_path: Path) -> Path:
    file = tmp_path / "warning.jsonl"
    file.write_bytes(text(loop(5)))
    return file


# ------------------------------------------------------------------------------------------------ help


@pytest.mark.parametrize("name", LEAVES)
def test_the_help_of_every_command_ends_with_an_example(name: str) -> None:
    done = command(*name.split(), "--help")
    assert done.code == 0
    example = re.search(r"Example: (burnfuse .*)", done.out)
    assert example
    assert example[1].startswith(f"burnfuse {name}")
    for option in re.findall(r" (--[\w-]+)", example[1]):
        assert re.search(rf"{option}\b", done.out.replace(example[0], ""))


def test_the_help_says_what_there_is() -> None:
    for words in ([], ["--help"], ["-h"]):
        done = command(*words)
        assert "retry loops, runaways, spirals" in done.out
        for name in command_names():
            assert re.search(rf"\b{name}\b", done.out)


# ------------------------------------------------------------------------------------------ exit codes


def test_0_when_it_ran_to_the_end(events: Path) -> None:
    assert command("watch", "--json", events).code == 0
    assert command("normalize", events).code == 0


# Severity asked for, file, exit code.
FAIL_ON = [
    ("warning", "warning", 1),
    ("critical", "warning", 0),
    ("warning", "events", 1),
    ("critical", "events", 1),
    ("warning", "calm", 0),
    ("critical", "calm", 0),
]


@pytest.mark.parametrize(("severity", "file", "code"), FAIL_ON)
def test_1_when_such_an_incident_opened(
    severity: str, file: str, code: int, events: Path, warning: Path, tmp_path: Path
) -> None:
    (tmp_path / "calm.jsonl").write_bytes(text(loop(2)))
    done = command("watch", "--json", "--fail-on", severity, tmp_path / f"{file}.jsonl")
    assert (done.code, done.err) == (code, "")
    assert done.summary["incidents"] == {"events": 3, "warning": 1, "calm": 0}[file]


# Words, what must be said on standard error.
WRONG: list[tuple[list[str], str]] = [
    (["nonsense"], "nonsense"),
    (["watch"], "PATH"),
    (["watch", "--nonsense", "x"], "No such option: --nonsense"),
    (["watch", "--fail-on", "fatal", "x"], "fatal"),
    (["watch", "--format", "xml", "x"], "xml"),
    (["watch", "-", "x"], "standard input (-) cannot be combined with files"),
    (["watch", "--config", "gone.yaml", "-"], "cannot read the configuration gone.yaml: No such file or directory"),
    (["watch", "--calibration", "gone.json", "-"], "cannot read the calibration gone.json: No such file or directory"),
    (["watch", "--save-calibration", "no/such/folder", "-"], "cannot write the calibration no/such/folder: No such"),
    (["replay", "x", "--broker", "b:1", "--key", "user"], "--key must be one of agent_id, root_run_id, none"),
    (["config", "check"], "PATH"),
    (["config", "check", "gone.yaml"], "cannot read the configuration gone.yaml: No such file or directory"),
]


@pytest.mark.parametrize(("words", "says"), WRONG, ids=[" ".join(words) for words, _ in WRONG])
def test_2_when_it_was_called_wrongly(words: list[str], says: str) -> None:
    done = command(*words)
    assert done.code == 2
    assert says.lower() in done.err.lower()
    assert "Traceback" not in done.err
    if done.err.startswith("burnfuse: "):
        assert len(done.err.splitlines()) == 1


def test_3_when_an_input_cannot_be_read(events: Path, tmp_path: Path) -> None:
    for name in ("watch", "normalize"):
        done = command(name, tmp_path / "gone.jsonl")
        assert done.code == 3
        assert done.err == f"burnfuse: cannot read {tmp_path}/gone.jsonl: no such file\n"
        assert done.out == ""
        some = command(name, events, tmp_path / "gone.jsonl")
        assert some.code == 3
        assert "gone.jsonl: unreadable" in some.err
        assert some.out
    worse = command("watch", "--json", "--fail-on", "warning", events, tmp_path / "gone.jsonl")
    assert worse.code == 3


# --------------------------------------------------------------------------------------------- streams


def test_json_is_all_there_is_on_standard_output(events: Path) -> None:
    events.write_bytes(events.read_bytes() + b"not JSON\n")
    for options in ([], ["--verbose"], ["--fail-on", "warning"]):
        done = command("watch", "--json", *options, events)
        assert [line["type"] for line in done.lines[-1:]] == ["summary"]
        assert {line["type"] for line in done.lines} == {"finding", "incident", "summary"}
        assert "not JSON" in done.err
        assert done.summary["rejected"] == 1


def test_standard_input_is_read(events: Path) -> None:
    from_file, from_input = command("watch", "--json", events), command("watch", "--json", "-", stdin=text(good()))
    assert from_file.lines[:-1] == from_input.lines[:-1]
    assert from_file.summary == from_input.summary


def test_what_is_normalized_is_understood_the_same(events: Path) -> None:
    arrays = b"[" + b",\n".join(encode(good())) + b"]"
    done = command("normalize", "-", stdin=arrays)
    assert (done.code, done.err) == (0, "")
    assert len(done.lines) == len(good())
    assert {name for line in done.lines for name in line} <= set(UsageEvent.__struct_fields__)
    assert not {name for line in done.lines for name in line} & {"args", "result", "attributes"}
    again = command("watch", "--json", "-", stdin=done.out.encode())
    assert again.only("finding") == command("watch", "--json", events).only("finding")


def test_rejects_of_normalize_are_told_on_standard_error() -> None:
    done = command("normalize", "-", stdin=b"42\n" + text(loop(2)))
    assert done.code == 0
    assert len(done.lines) == 2
    assert done.err == "rejected -:1: invalid: Expected `object`, got `int`\n"


def test_logs_are_json_lines_on_standard_error(events: Path) -> None:
    done = command("watch", "--json", "--verbose", events)
    for line in done.err.splitlines():
        assert {"time", "level", "logger", "message"} <= set(json.loads(line))


def test_calibration_goes_out_and_comes_back(events: Path, tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    learned = command("watch", "--json", "--save-calibration", file, events)
    assert learned.code == 0
    assert set(json.loads(file.read_bytes())) == {"version", "steps", "counts"}
    fixed = command("watch", "--json", "--calibration", file, "--save-calibration", tmp_path / "again.json", events)
    assert fixed.code == 0
    assert fixed.summary["events"] == learned.summary["events"]
    assert (tmp_path / "again.json").read_bytes() == file.read_bytes()  # the same events make the same figures
    config = tmp_path / "burnfuse.yaml"
    config.write_text(f"calibration: {{file: '{file}'}}\n")
    assert command("watch", "--json", "--config", config, events).lines[:-1] == fixed.lines[:-1]


# ------------------------------------------------------------------------- as a process of its own


def test_the_same_through_a_real_pipe(events: Path) -> None:
    done = finished("watch", "--json", "--fail-on", "critical", "-", stdin=events.read_bytes())
    assert (done.code, done.err) == (1, "")
    assert done.lines[:-1] == command("watch", "--json", events).lines[:-1]


@pytest.mark.parametrize("words", [["watch", "--json"], ["normalize"]])
def test_a_reader_that_goes_away_is_no_error(words: list[str], events: Path) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with process_of(*words, events, stdout=write_end, stderr=subprocess.PIPE) as process:
        os.close(write_end)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, b"")


@contextlib.contextmanager
def following(file: Path) -> Iterator[subprocess.Popen[bytes]]:
    pipe = subprocess.PIPE
    with process_of("watch", "--json", "--follow", file, stdout=pipe, stderr=pipe, bufsize=0) as process:
        try:
            yield process
        finally:
            process.kill()


def next_line(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    """The next JSON line, which must come at all; how soon is not measured."""
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], 60)[0], "nothing came"
    line: dict[str, Any] = json.loads(process.stdout.readline())
    return line


def test_what_is_added_to_a_followed_file_is_watched(tmp_path: Path) -> None:
    file = tmp_path / "growing.jsonl"
    calls = encode(loop(12))
    file.write_bytes(b"\n".join(calls[:4]) + b"\n" + calls[4][:10])
    with following(file) as process:
        told = [next_line(process) for _ in range(2)]
        assert [(line["type"], line.get("state")) for line in told] == [("finding", None), ("incident", "open")]
        with file.open("ab") as more:
            more.write(calls[4][10:] + b"\n" + calls[5] + b"\n")
        told = [next_line(process) for _ in range(2)]
        assert [(line["type"], line.get("state")) for line in told] == [("finding", None), ("incident", "escalated")]
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert next_line(process)["type"] == "summary"
        assert process.wait(timeout=60) == 0


def test_without_the_server_extra_the_command_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("raise ModuleNotFoundError(\"No module named 'typer'\", name='typer')")
    done = subprocess.run(
        [sys.executable, "-m", "stream", "watch", "x"], capture_output=True, text=True, timeout=60,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{Path(__file__).parents[2]}"},
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == "burnfuse: typer is not installed: pip install 'burnfuse[server]'\n"
