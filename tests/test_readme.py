"""What the documents tell people to run exists."""

from __future__ import annotations

from pathlib import Path

import pytest
from check_readme import ROOT, cli_help, commands, make_targets, problems

DOCUMENTS = sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("docker/**/*.md")])

PAGES = {
    (): "Usage: burnfuse [OPTIONS] COMMAND [ARGS]...",
    ("watch",): "Usage: burnfuse watch [OPTIONS] [PATH]...  --json  --fail-on TEXT",
    ("config",): "Usage: burnfuse config [OPTIONS] COMMAND [ARGS]...",
    ("config", "check"): "Usage: burnfuse config check [OPTIONS]",
}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_documents_name_commands_that_exist(document: Path) -> None:
    targets = make_targets((ROOT / "Makefile").read_text())
    assert list(problems(document.read_text(), targets, cli_help)) == []


def test_the_readme_targets_are_in_the_makefile() -> None:
    assert {"demo", "test"} <= make_targets((ROOT / "Makefile").read_text())


def test_commands_are_found_in_blocks_and_in_text() -> None:
    text = """\
Type `make demo`, not `other make`.
```sh
# a comment
A=1 cat x \\
  y | burnfuse watch - && make test  # why
```
```console
$ make help
  make imaginary
```
```python
make("nothing")
```
"""
    assert [(found.line, found.words) for found in commands(text)] == [
        (1, ["make", "demo"]),
        (4, ["cat", "x", "y"]),
        (4, ["burnfuse", "watch", "-"]),
        (4, ["make", "test"]),
        (8, ["make", "help"]),
    ]


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("make test ARGS=-x", None),
        ("make tset", "the Makefile has no target tset"),
        ("burnfuse watch runs.jsonl --json --fail-on=critical", None),
        ("burnfuse wacth", "there is no command `burnfuse wacth`"),
        ("burnfuse watch --jsno", "`burnfuse watch` has no option --jsno"),
        ("burnfuse config check", None),
        ("burnfuse config chekc", "there is no command `burnfuse config chekc`"),
        ("burnfuse watch --broker=127.0.0.1:9092 <(cat x)", "`burnfuse watch` has no option --broker"),
        ("docker/kafka/run --port 9092", None),
        ("docker/kakfa/run", "there is no docker/kakfa/run"),
        ("cat somewhere/else.txt .venv/bin/burnfuse", None),
    ],
)
def test_each_kind_of_mistake(command: str, says: str | None) -> None:
    expected = [] if says is None else [f"2: {says}"]
    assert list(problems(f"```sh\n{command}\n```", {"test"}, PAGES.get)) == expected
