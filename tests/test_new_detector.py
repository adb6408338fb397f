"""A new detector is one new file: everything else follows from it.

The packages are copied, a file is added, and the copy is run as a user would run it. The detector that the
documents show is added too.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from detectors.checks import all_checks

ROOT = Path(__file__).resolve().parent.parent

TOY = '''
"""A toy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from detectors.base import Detector, DetectorConfig, Spec, register, setting
from detectors.types import EventBatch, Finding, Kind, Scope


class ToyConfig(DetectorConfig):
    """What the toy can be told."""

    joy: float = setting(0.5, unit="smiles", why="Score of a toy.", source="made up", ge=0, le=1)


@register
class Toy(Detector):
    """Somebody calls a toy.

    Fires when: a tool is called toy.
    Quiet when: it is not.
    Units: toys.
    State: none.
    Source: made up.
    """

    spec: ClassVar[Spec] = Spec("toy", version=1, scope=Scope.RUN)
    Config: ClassVar[type[DetectorConfig]] = ToyConfig

    def __init__(self, config: ToyConfig) -> None:
        self.config = config
        self.tables = {}

    def update(self, batch: EventBatch) -> Sequence[Finding]:
        calls = [i for i, tool in enumerate(batch.tool) if tool == "toy" and batch.kind[i] == Kind.TOOL]
        return [self.finding(batch, i) for i in calls]

    def finding(self, batch: EventBatch, i: int) -> Finding:
        return Finding.at(
            batch,
            i,
            detector="toy",
            rule="call",
            severity="warning",
            scope=self.spec.scope,
            score=self.config.joy,
            observed=1,
            expected=0,
            unit="toys",
            reason=f"agent {batch.agent_id[i]} has called a toy",
            evidence={},
        )
'''


def documented() -> tuple[str, str]:
    """Name and code of the detector in the documents."""
    guide = (ROOT / "docs" / "writing-a-detector.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", guide, re.DOTALL)
    assert code is not None
    name = re.search(r"Spec\(\"(\w+)\"", code[1])
    assert name is not None
    return name[1], code[1]


class Copy:
    """A copy of the repository's code with more detectors."""

    def __init__(self, folder: Path, added: Mapping[str, str]) -> None:
        self.folder = folder
        for name in ("burnfuse", "detectors", "stream", "docs", "tests/detectors"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", folder)
        for name, code in added.items():
            (folder / "detectors" / f"{name}.py").write_text(code, encoding="utf-8")

    def run(self, *args: str, given: str = "") -> str:
        """Standard output of `python -m ...` on the copy, which must succeed."""
        environment = os.environ | {"PYTHONPATH": str(self.folder), "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(
            [sys.executable, "-m", *args],
            cwd=self.folder,
            env=environment,
            input=given,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    return Copy(tmp_path_factory.mktemp("copy"), {"toy": TOY} | dict([documented()]))


def test_it_is_part_of_the_schema(copy: Copy) -> None:
    schema = json.loads(copy.run("stream", "config", "schema"))
    joy = schema["$defs"]["ToyConfig"]["properties"]["joy"]
    assert (joy["default"], joy["unit"], joy["description"]) == (0.5, "smiles", "Score of a toy.")


def test_it_is_part_of_the_configuration(copy: Copy) -> None:
    shown = copy.run("stream", "config", "show")
    assert re.search(r"^  toy:\n    enabled: true\n    joy: 0\.5$", shown, re.MULTILINE)


def findings(copy: Copy, *options: str) -> list[dict[str, Any]]:
    event = {"agent_id": "child", "run_id": "r", "ts": 1_750_000_000, "kind": "tool"}
    events = [event | {"tool": tool, "event_id": f"e{i}"} for i, tool in enumerate(["search", "toy", "toybox", "toy"])]
    lines = copy.run("stream", "watch", "--json", *options, "-", given="".join(json.dumps(e) + "\n" for e in events))
    return [item for item in map(json.loads, lines.splitlines()) if item["type"] == "finding"]


def test_it_finds_something(copy: Copy) -> None:
    found = findings(copy)
    assert [(finding["detector"], finding["event_id"]) for finding in found] == [("toy", "e1"), ("toy", "e3")]
    assert found[0]["reason"] == "agent child has called a toy"
    assert found[0]["score"] == 0.5


def test_it_obeys_its_configuration(copy: Copy, tmp_path: Path) -> None:
    config = tmp_path / "burnfuse.yaml"
    config.write_text("detectors: {toy: {joy: 1.0}}\n", encoding="utf-8")
    assert [finding["score"] for finding in findings(copy, "--config", str(config))] == [1.0, 1.0]


@pytest.fixture(scope="module")
def contract(copy: Copy) -> str:
    """What the contract tests say about the two."""
    chosen = f"toy or {documented()[0]}"
    return copy.run("pytest", "-v", "-p", "no:cacheprovider", "-k", chosen, "tests/detectors/test_contract.py")


@pytest.mark.parametrize("name", ["toy", documented()[0]])
def test_it_is_held_to_the_contract(contract: str, name: str) -> None:
    passed = set(re.findall(rf"test_contract\[{name}-(\w+)\] PASSED", contract))
    assert passed == {check.__name__.removeprefix("check_") for check in all_checks()}


def test_it_is_part_of_the_documents(copy: Copy) -> None:
    copy.run("stream.docs")
    assert re.search(
        r"^\| \[`toy`\]", (copy.folder / "docs" / "detectors.md").read_text(encoding="utf-8"), re.MULTILINE
    )
