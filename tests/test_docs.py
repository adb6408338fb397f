"""What the documents say is so: generated parts are fresh, links lead somewhere, examples run."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from check_readme import ROOT, cli_help, make_targets, problems

import burnfuse.track
from burnfuse.event import UsageEvent
from detectors import registered
from detectors.checks import all_checks, batch_of, mixed
from stream.actions.slack import text as slack_text
from stream.clock import ManualClock
from stream.docs import DocsError, documents, main, rewritten
from stream.incidents import Change, Incident
from stream.ingest.decode import decode_event, event_time
from stream.ingest.ingest import Record
from stream.ingest.reject import Reason
from stream.pipeline import Pipeline
from stream.settings import default_settings, parse

DOCUMENTS = sorted({*documents(ROOT), ROOT / "CHANGELOG.md"})
EVENTS = ROOT / "examples" / "events.jsonl"
NEW_DETECTOR = ROOT / "docs" / "writing-a-detector.md"

each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())


def blocks(path: Path, *languages: str) -> list[str]:
    """The fenced blocks of a document in these languages."""
    return [
        body for name, body in re.findall(r"^```(\w+)\n(.*?)^```$", path.read_text(), re.M | re.S) if name in languages
    ]


def all_blocks(*languages: str) -> list[Any]:
    return [
        pytest.param(body, id=f"{path.relative_to(ROOT)}-{number}")
        for path in DOCUMENTS
        for number, body in enumerate(blocks(path, *languages), 1)
    ]


def section(path: Path, heading: str) -> str:
    """What stands under a heading, down to the next one of any level."""
    return re.split(r"^#+ ", path.read_text().split(f"# {heading}\n", 1)[1], maxsplit=1, flags=re.M)[0]


def first_cells(text: str) -> list[str]:
    """The first column of all tables, without their heads."""
    cells = re.findall(r"^\| ?(.*?) ?\|.*\|$", text, re.M)
    ruled = [*(re.fullmatch(r"-+", below) is not None for below in cells[1:]), False]
    return [cell for cell, head in zip(cells, ruled, strict=True) if not head and not re.fullmatch(r"-+", cell)]


# ---------------------------------------------------------------------------------- generated parts


@each_document
def test_generated_parts_say_what_the_code_says(document: Path) -> None:
    text = document.read_text()
    assert rewritten(text) == text, "run `python -m stream.docs`"


def test_only_what_changed_is_written(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    stale, fresh = tmp_path / "docs" / "a.md", tmp_path / "README.md"
    stale.write_text("before\n<!-- generated: reasons -->\nold\n<!-- end -->\nafter\n")
    fresh.write_text("nothing generated\n")
    assert main(tmp_path) == [stale]
    assert main(tmp_path) == []
    text = stale.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("<!-- generated: strange -->\n<!-- end -->", "no generated part 'strange'"),
        ("<!-- generated: topics -->\nno end", "has no end"),
    ],
)
def test_a_wrong_marker_is_told(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "README.md").write_text(text)
    with pytest.raises(DocsError, match=rf"README\.md: .*{says}"):
        main(tmp_path)


def test_nothing_is_left_out() -> None:
    text = "\n".join(path.read_text() for path in DOCUMENTS)
    for name, cls in registered().items():
        assert f"\n## {name}\n" in text
        for key in cls.Config.model_fields:
            assert f"| `{key}` |" in (ROOT / "docs" / "detectors.md").read_text().split(f"\n## {name}\n")[1]
    assert {f"`{reason}`" for reason in Reason} <= set(first_cells(section(ROOT / "docs" / "events.md", "Bad input")))
    held_to = first_cells(section(NEW_DETECTOR, "What it is held to"))
    assert held_to == [f"`{check.__name__.removeprefix('check_')}`" for check in all_checks()]


# ------------------------------------------------------------------------------------------- links


def anchors(path: Path) -> set[str]:
    """Anchors of the headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.M | re.S)
    heads = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@each_document
def test_links_lead_to_headings_that_exist(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = document.parent / name if name else document
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), target


@each_document
def test_no_document_knows_the_machine_it_was_written_on(document: Path) -> None:
    assert not re.search(r"/(?:work|root|home|Users)/", document.read_text())


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "CHANGELOG.md"])
def test_more_documents_name_commands_that_exist(name: str) -> None:
    targets = make_targets((ROOT / "Makefile").read_text())
    assert list(problems((ROOT / name).read_text(), targets, cli_help)) == []


# ------------------------------------------------------------------------- examples in the documents


@pytest.mark.parametrize("body", [*all_blocks("yaml"), (ROOT / "examples" / "burnfuse.yaml").read_text()])
def test_configurations_are_fine(body: str) -> None:
    assert parse(body) is not None


def run_example(lines: list[str]) -> list[Any]:
    """Findings and changes of incidents."""
    pipeline = Pipeline(default_settings(), clock=ManualClock(2e9), name_of=lambda _, position: f"line {position}")
    return pipeline.process([Record(line.encode(), 0, number) for number, line in enumerate(lines, 1)]).happened


def watch(*args: str) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-m", "stream", "watch", "--json", *args],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def found() -> list[dict[str, Any]]:
    """What `burnfuse watch --json` tells of the example stream."""
    return watch(str(EVENTS))


@pytest.mark.parametrize("body", all_blocks("json"))
def test_json_is_what_burnfuse_takes_or_gives(body: str, found: list[dict[str, Any]]) -> None:
    given = {line["id"]: line for line in reversed(found) if "id" in line}
    for line in body.splitlines():
        value = json.loads(line)
        if "type" in value:
            assert value == given[value["id"]]
            continue
        event = decode_event(line.encode())
        assert event_time(event.ts) > 0
        assert value.keys() <= set(UsageEvent.__struct_fields__)


class Producer:
    """A Kafka that takes everything."""

    sent: list[bytes]

    def __init__(self, **options: Any) -> None:
        type(self).sent = []

    def send(self, topic: str, *, value: bytes, key: bytes, headers: Any) -> Producer:
        self.sent.append(value)
        return self

    def add_callback(self, call: Any) -> None:
        call(None)

    def add_errback(self, call: Any) -> None: ...

    def close(self, timeout: float) -> None: ...


@pytest.mark.parametrize("body", [block for block in all_blocks("python") if "@register" not in block.values[0]])
def test_python_runs(body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(burnfuse.track, "KafkaProducer", Producer)
    monkeypatch.setattr(Producer, "sent", [], raising=False)
    exec(compile(body, "example", "exec"), {})
    assert len(Producer.sent) == body.count("tracker.event(")


def test_every_field_of_an_event_is_explained() -> None:
    cells = " ".join(first_cells(section(ROOT / "docs" / "events.md", "Fields")))
    assert sorted(re.findall(r"`(\w+)`", cells)) == sorted(UsageEvent.__struct_fields__)


def test_every_rule_is_explained_to_on_call() -> None:
    explained = set(first_cells(section(ROOT / "docs" / "oncall.md", "At 3 a.m.")))
    fired = {
        f"`{finding.detector}.{finding.rule}`"
        for seed in (1, 2, 3)
        for cls in registered().values()
        for finding in cls(cls.Config()).update(batch_of(mixed(seed)))
    }
    assert fired <= explained
    assert {rule.strip("`").split(".")[0] for rule in explained} == set(registered()) - {"null"}


def test_thresholds_to_turn_exist() -> None:
    text = section(ROOT / "docs" / "oncall.md", "Too many messages, or too few")
    for name, key in re.findall(r"`(retry_loop|runaway|spiral|incidents)\.(\w+)`", text):
        model = registered()[name].Config if name in registered() else type(default_settings().incidents)
        assert key in model.model_fields


def test_the_message_on_call_sees_is_the_one_that_is_sent() -> None:
    changes = [item for item in run_example(EVENTS.read_text().splitlines()) if isinstance(item, Change)]
    incident: Incident = changes[-1].incident
    text = section(ROOT / "docs" / "oncall.md", "The message")
    assert f"> **{slack_text(incident)}**\n" in text
    assert f"${incident.cost_usd:,.2f}, {incident.effective_tokens:,.0f} effective tokens, " in text
    assert f"> {incident.id} · {', '.join(incident.rules)} · {len(incident.findings)} findings\n" in text


def test_the_readme_shows_all_detectors_and_the_version() -> None:
    cells = {cell.strip("`") for cell in first_cells(section(ROOT / "README.md", "What it finds"))}
    assert cells == set(registered()) - {"null"}
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.M)
    assert version is not None
    assert f"Version {version[1]}" in (ROOT / "README.md").read_text()
    assert f"## [{version[1]}]" in (ROOT / "CHANGELOG.md").read_text()


def test_the_demo_finds_each_fault_within_a_minute_and_a_half() -> None:
    done = subprocess.run([sys.executable, "-m", "stream", "demo"], capture_output=True, text=True, timeout=200)
    delays = [int(seconds) for seconds in re.findall(r"found after (\d+) s", done.stdout)]
    assert len(delays) == 3
    assert max(delays) <= 90


# ---------------------------------------------------------------------------------- a new detector


@pytest.fixture(scope="module")
def copy_with_a_new_detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository with the detector of docs/writing-a-detector.md as one more file."""
    root = tmp_path_factory.mktemp("copy")
    for name in ("burnfuse", "detectors", "stream", "docs"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    (body,) = blocks(NEW_DETECTOR, "python")
    (root / "detectors" / "budget.py").write_text(body)
    return root


def python(root: Path, *args: str) -> str:
    done = subprocess.run(
        [sys.executable, *args], cwd=root, env={"PYTHONPATH": str(root)}, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_detector_of_the_guide_keeps_the_contract(copy_with_a_new_detector: Path) -> None:
    script = """
from detectors import registered
from detectors.checks import all_checks

for check in all_checks():
    check(registered()["budget"])
"""
    python(copy_with_a_new_detector, "-c", script)


def test_a_new_detector_is_one_file(copy_with_a_new_detector: Path) -> None:
    python(copy_with_a_new_detector, "-m", "stream.docs", str(copy_with_a_new_detector))
    text = (copy_with_a_new_detector / "docs" / "detectors.md").read_text()
    assert "| [`budget`](#budget) | a run of an agent | A run has used more effective tokens" in text
    assert "| `warning` | `2000000` | effective tokens | Used by one run: warning. |" in text
    assert "\n  budget:\n    enabled: true\n    warning: 2000000.0\n" in python(
        copy_with_a_new_detector, "-m", "stream", "config", "show"
    )
    assert '"BudgetConfig"' in python(copy_with_a_new_detector, "-m", "stream", "config", "schema")


def test_the_detector_of_the_guide_finds_one_run_in_the_demo(copy_with_a_new_detector: Path) -> None:
    lines = map(json.loads, python(copy_with_a_new_detector, "-m", "stream", "demo", "--json").splitlines())
    (run,) = {line["run_id"] for line in lines if line.get("detector") == "budget"}
    assert run.startswith("fault-runaway-")


# ------------------------------------------------------------------------------------ examples/


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_example_stream_holds_one_retry_loop(found: list[dict[str, Any]]) -> None:
    lines = EVENTS.read_text().splitlines()
    assert 20 <= len(lines) <= 30
    assert all(json.loads(line).keys() <= set(UsageEvent.__struct_fields__) for line in lines)
    *told, summary = found
    assert (summary["events"], summary["rejected"], summary["incidents"]) == (len(lines), 0, 1)
    assert {line["detector"] for line in told if line["type"] == "finding"} == {"retry_loop"}
    assert [line["state"] for line in told if line["type"] == "incident"] == ["open", "escalated"]


def test_the_example_agent_is_found_stuck_after_its_third_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(burnfuse.track, "KafkaProducer", Producer)
    agent = example("send_events")
    monkeypatch.setattr(agent, "PAUSE_S", 0.0)
    assert agent.main() == len(Producer.sent) == 16
    assert not any(b"INV-77" in value or b"payment with" in value for value in Producer.sent)
    lines = [value.decode() for value in Producer.sent]
    assert run_example(lines[:5]) == []
    finding, opened = run_example(lines[:6])
    assert (finding.detector, opened.kind) == ("retry_loop", "opened")


def svg_texts(svg: str) -> Iterator[str]:
    for text in re.findall(r"<text[^>]*>(.*?)</text>", svg):
        yield text.replace("&#160;", " ").strip()


def test_the_picture_can_be_drawn_again(tmp_path: Path) -> None:
    drawn, shown = tmp_path / "demo.svg", ROOT / "docs" / "img" / "demo.svg"
    example("screenshot").main(drawn, days=1.0)
    for path in (drawn, shown):
        svg = path.read_text()
        assert {"open incidents", "what happened", "who burns how much", "critical"} <= set(svg_texts(svg))
        assert not re.search(r"(?:href|src|url)\W+https?:", svg), "an image must not load anything from elsewhere"
