"""`burnfuse evaluate` from end to end, on a tiny family of labelled data made for it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import stream.evaluate.base as base
from detectors import registered
from detectors.types import Scope
from stream import __main__ as entry
from stream.evaluate import plots, traces
from stream.evaluate.base import Contender, Plot, Progress, Row
from stream.evaluate.run import ALL, contenders
from stream.settings import default_settings, parse

PNG = b"\x89PNG\r\n\x1a\n"


class Tiny:
    """Traces of a `tiny.jsonl`: those whose root run is called `bad...` are loops."""

    name = "tiny"

    def found_in(self, folder: Path) -> bool:
        return (folder / "tiny.jsonl").exists()

    def rows(self, folder: Path, contenders: Sequence[Contender], progress: Progress) -> list[Row]:
        recording = traces.Recording(traces.lines(folder / "tiny.jsonl"))
        told = []
        for contender in contenders:
            outcomes = traces.run(recording, contender, progress)
            bad = [outcome for root, outcome in outcomes.items() if root.startswith("bad")]
            good = [outcome for root, outcome in outcomes.items() if not root.startswith("bad")]
            caught = [outcome for outcome in bad if outcome.findings]
            told.append(
                Row(
                    family=self.name,
                    data="traces",
                    contender=contender.name,
                    caught=len(caught),
                    missed=len(bad) - len(caught),
                    false_alarms=sum(bool(outcome.findings) for outcome in good),
                    healthy=len(good),
                    agent_days=0.5,
                    delay_s=[outcome.findings[0].ts - outcome.start for outcome in caught],
                    cost_before_usd=[outcome.cost_before or 0.0 for outcome in caught],
                    figures={"of all": len(caught) / len(bad)},
                    notes="Made for this test.",
                )
            )
        return told

    def plots(self, folder: Path) -> Iterator[Plot]:
        ts = [1_780_000_000.0 + 60 * i for i in range(50)]
        value = [float(i % 7) + (90 if 30 < i < 40 else 0) for i in range(50)]
        yield Plot("one/two", "A rate", ts, value, "tokens", events=[(ts[30], ts[40])], alarms=[ts[33]])


@pytest.fixture(autouse=True)
def _only_tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "families", lambda: {"tiny": Tiny()})
    monkeypatch.setattr("stream.evaluate.run.families", lambda: {"tiny": Tiny()})


def call(root: str, i: int, args: str) -> dict[str, Any]:
    shared = {"ts": 1000.0 + 2 * i, "agent_id": root, "root_run_id": root, "kind": "tool", "tool": "search"}
    return {"event_id": f"{root}{i}", **shared, "args_hash": args, "result_hash": "same", "cost_usd": 0.5}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    events = [call("bad1", i, "x") for i in range(8)] + [call("good1", i, f"{i}") for i in range(8)]
    events += [call("bad2", i, f"{i}") for i in range(8)]
    events.sort(key=lambda event: event["ts"])
    (tmp_path / "tiny.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return tmp_path


class Done:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture
def evaluate(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*words: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["burnfuse", "evaluate", *map(str, words)])
        with pytest.raises(SystemExit) as left:
            entry.run()
        out, err = capsys.readouterr()
        return Done(int(left.value.code or 0), out, err)

    return run


# ------------------------------------------------------------------------------------- what it says


def test_json_has_a_row_per_contender_and_nothing_else(evaluate: Any, folder: Path) -> None:
    done = evaluate(folder, "--json")
    assert done.code == 0
    names = [row["contender"] for row in done.lines]
    assert names[:4] == ["null", "same_call_3", "times_mean", "messages_20"]
    assert names[-1] == ALL
    assert set(registered()) <= set(names)
    rows = {row["contender"]: row for row in done.lines}
    assert (rows["null"]["caught"], rows["null"]["missed"], rows["null"]["delay_s"]) == (0, 2, None)
    # The third of the equal calls comes 4 s after the first; three calls cost 1.50 dollars.
    assert rows["same_call_3"] == {
        "type": "row",
        "family": "tiny",
        "data": "traces",
        "contender": "same_call_3",
        "caught": 1,
        "missed": 1,
        "recall": 0.5,
        "precision": 1.0,
        "false_alarms": 0,
        "healthy": 1,
        "agent_days": 0.5,
        "false_alarms_per_agent_day": 0.0,
        "delay_s": {"median": 4.0, "p90": 4.0},
        "cost_before_usd": {"median": 1.5, "p90": 1.5},
        "figures": {"of all": 0.5},
        "notes": "Made for this test.",
    }
    # One warns at the third equal result, the other only where the loop is clear.
    assert rows["retry_loop"]["delay_s"]["median"] > 4.0


def test_the_table_says_the_same(evaluate: Any, folder: Path) -> None:
    done = evaluate(folder)
    assert done.code == 0
    (line,) = [line.split() for line in done.out.splitlines() if "same_call_3" in line]
    assert line == [
        "same_call_3",
        "1",
        "1",
        "0.50",
        "1.00",
        "0",
        "of",
        "1",
        "0",
        "4.0",
        "s",
        "4.0",
        "s",
        "$1.50",
        "of",
        "all",
        "0.5",
    ]
    assert done.out.count("tiny: traces") == 1
    assert "tiny: Made for this test." in done.out
    assert done.err == "evaluating tiny (1 of 1)\n"


def test_the_same_data_give_the_same_bytes(evaluate: Any, folder: Path) -> None:
    first, second = (evaluate(folder, "--json").out for _ in range(2))
    assert first == second != ""


def test_the_configuration_is_heeded(evaluate: Any, folder: Path, tmp_path: Path) -> None:
    config = tmp_path / "burnfuse.yaml"
    config.write_text("detectors: {retry_loop: {repeat_warning: 6, repeat_critical: 7, failing_warning: 6}}\n")
    rows = {row["contender"]: row for row in evaluate(folder, "--json", "--config", config).lines}
    assert rows["retry_loop"]["delay_s"]["median"] == 10.0


# -------------------------------------------------------------------------------------- exit codes


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (["--data", "foo"], 2, "there is no data called 'foo'; --data takes tiny"),
        (["--config", "nowhere.yaml"], 2, "cannot read the configuration nowhere.yaml: No such file or directory"),
    ],
)
def test_wrong_usage_is_told_in_one_line(evaluate: Any, folder: Path, words: list[str], code: int, line: str) -> None:
    done = evaluate(folder, *words)
    assert (done.code, done.out, done.err) == (code, "", f"burnfuse: {line}\n")


def test_a_folder_without_the_data_asked_for(evaluate: Any, tmp_path: Path) -> None:
    done = evaluate(tmp_path, "--data", "tiny")
    assert (done.code, done.err) == (2, f"burnfuse: {tmp_path} holds no data for --data tiny; it does for none\n")


def test_a_folder_without_any_data_is_unreadable(evaluate: Any, tmp_path: Path) -> None:
    assert (evaluate(tmp_path).code, evaluate(tmp_path / "nowhere").code) == (3, 3)
    file = tmp_path / "file"
    file.write_bytes(b"")
    done = evaluate(file)
    assert (done.code, done.err) == (3, f"burnfuse: cannot read {file}: it is no folder\n")


def test_unreadable_data_are_told_in_one_line(evaluate: Any, folder: Path) -> None:
    (folder / "tiny.jsonl").unlink()
    (folder / "tiny.jsonl").mkdir()
    done = evaluate(folder, "--json")
    assert (done.code, done.out) == (3, "")
    assert done.err.splitlines()[-1] == f"burnfuse: cannot read {folder / 'tiny.jsonl'}: Is a directory"


# --------------------------------------------------------------------------------------- contenders


def test_contenders_are_the_references_each_detector_and_all_together() -> None:
    made = contenders(default_settings())
    assert [c.name for c in made if c.baseline] == ["null", "same_call_3", "times_mean", "messages_20"]
    assert len({c.name for c in made}) == len(made) == len(registered()) + 3 + 1
    assert set(made[-1].make()) == {name for name, cls in registered().items() if cls.Config().enabled}
    assert made[0].make()["null"] is not made[0].make()["null"]


def test_what_is_switched_off_runs_alone_but_not_with_all() -> None:
    made = {c.name: c for c in contenders(parse("detectors: {spiral: {enabled: false}}"))}
    assert set(made["spiral"].make()) == {"spiral"}
    assert "spiral" not in made[ALL].make()


def test_references_always_make_sense_and_detectors_where_their_scope_is() -> None:
    names = [c.name for c in base.sensible(contenders(default_settings()), [Scope.ROOT])]
    assert names == ["null", "same_call_3", "times_mean", "messages_20", "spiral", ALL]


# -------------------------------------------------------------------------------------------- plots


def test_plots_are_png_files_and_the_same_again(evaluate: Any, folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    into = tmp_path / "a" / "b"
    done = evaluate(folder, "--plots", into)
    assert done.code == 0
    assert done.err.splitlines()[-1] == f"drew {into / 'tiny-one-two.png'}"
    (file,) = into.iterdir()
    first = file.read_bytes()
    assert first.startswith(PNG)
    evaluate(folder, "--plots", into)
    assert file.read_bytes() == first


def test_plots_without_matplotlib_are_refused_before_the_work(
    evaluate: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plots, "find_spec", lambda name: None)
    done = evaluate(folder, "--plots", folder / "p")
    assert (done.code, done.out) == (2, "")
    assert done.err == "burnfuse: --plots needs matplotlib: pip install 'burnfuse[evaluate]'\n"


# ------------------------------------------------------------------------- as a process of its own


def test_it_stops_at_ctrl_c_without_a_word(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "stream", "evaluate", str(tmp_path), "--data", "injected"]
    pipe = subprocess.PIPE

    def heed_it() -> None:  # in the background of a shell it would be ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(
        command, stdout=pipe, stderr=pipe, text=True, cwd=Path(__file__).parents[3], preexec_fn=heed_it
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "evaluating injected (1 of 1)\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert "Traceback" not in err
