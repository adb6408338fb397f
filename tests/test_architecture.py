"""Who may import what, and who alone may do what; what the documents name exists."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

from detectors import registered

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("burnfuse", "detectors", "stream")
DETECTOR_MODULES = {cls.__module__ for cls in registered().values() if cls.__module__.startswith("detectors.")}


def files(*packages: str) -> list[str]:
    """Source files of packages, relative to the repository."""
    return sorted(path.relative_to(ROOT).as_posix() for package in packages for path in (ROOT / package).rglob("*.py"))


@cache
def tree(file: str) -> ast.Module:
    return ast.parse((ROOT / file).read_text(encoding="utf-8"), file)


def module_of(file: str) -> str:
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def imports(file: str) -> set[str]:
    """Dotted names of everything a file imports; of `from a import b` both a and a.b."""
    found: set[str] = set()
    package = module_of(file) if file.endswith("__init__.py") else module_of(file).rpartition(".")[0]
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*package.split(".")[: len(package.split(".")) - node.level + 1], *base.split(".")])
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return found


def tops(names: Iterable[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def importers(library: str) -> set[str]:
    return {file for file in files(*PACKAGES) if library in tops(imports(file))}


# -------------------------------------------------------------------------------- who imports what


@pytest.mark.parametrize("file", files("detectors"))
def test_detectors_import_nothing_of_ours_but_themselves(file: str) -> None:
    assert tops(imports(file)) & set(PACKAGES) <= {"detectors"}


@pytest.mark.parametrize("module", sorted(DETECTOR_MODULES))
def test_no_detector_imports_another(module: str) -> None:
    assert not imports(f"{module.replace('.', '/')}.py") & (DETECTOR_MODULES - {module})


@pytest.mark.parametrize("file", files("detectors"))
def test_detectors_are_pure(file: str) -> None:
    outside = {
        "aiokafka",
        "asyncio",
        "datetime",
        "faust",
        "http",
        "io",
        "kafka",
        "logging",
        "os",
        "pathlib",
        "requests",
    }
    outside |= {"shutil", "slack_sdk", "socket", "subprocess", "tempfile", "threading", "time", "urllib", "uuid"}
    assert not tops(imports(file)) & outside
    called = {node.func.id for node in ast.walk(tree(file)) if isinstance(node, ast.Call) and hasattr(node.func, "id")}
    assert not called & {"open", "print", "input"}


@pytest.mark.parametrize("file", files("burnfuse"))
def test_what_agents_import_is_light(file: str) -> None:
    allowed = {"burnfuse", "msgspec", "kafka", "cryptography"} | sys.stdlib_module_names
    assert tops(imports(file)) <= allowed


@pytest.mark.parametrize(
    ("library", "allowed"),
    [
        ("faust", {"stream/app.py", "stream/agents.py", "stream/transport.py", "stream/state_faust.py"}),
        ("slack_sdk", {"stream/actions/slack.py"}),
    ],
)
def test_libraries_stay_in_their_files(library: str, allowed: set[str]) -> None:
    assert importers(library) <= allowed


def test_one_file_speaks_prometheus() -> None:
    assert len(importers("prometheus_client")) <= 1


# --------------------------------------------------------------------------------- one place for each


def attributes(file: str) -> Iterator[str]:
    """Dotted names that a file reads, such as os.environ; also what it imports by name."""
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name | ast.Attribute):
            yield ast.unparse(node)
    yield from imports(file)


@pytest.mark.parametrize("file", sorted(set(files(*PACKAGES)) - {"stream/settings.py"}))
def test_the_environment_is_read_in_one_place(file: str) -> None:
    assert not {"os.environ", "os.getenv", "os.environb"} & set(attributes(file))


CLOCKS = {
    *(f"time.{name}{ns}" for name in ("time", "monotonic", "perf_counter", "process_time") for ns in ("", "_ns")),
    *(f"{module}{kind}.{name}" for module in ("", "datetime.", "dt.") for kind in ("datetime", "date")
      for name in ("now", "utcnow", "today")),
}  # fmt: skip


# What runs inside an agent's own process (burnfuse) cannot be handed a clock of the service.
@pytest.mark.parametrize("file", sorted(set(files("detectors", "stream")) - {"stream/clock.py"}))
def test_the_clock_is_read_in_one_place(file: str) -> None:
    assert not CLOCKS & set(attributes(file))


@pytest.mark.parametrize("file", sorted(set(files(*PACKAGES)) - {"stream/__main__.py"}))
def test_the_process_is_ended_in_one_place(file: str) -> None:
    assert not {"sys.exit", "os._exit", "os.abort"} & set(attributes(file))


NAMES_DETECTORS = {
    "stream/actions/kill.py": "which detectors' incidents count by default is a decision of the kill switch",
    "stream/inject.py": "a fault is called after the detector that should find it",
    "stream/evaluate/runaway.py": "the labelled data are called after the detector that they are about",
    "stream/evaluate/spiral.py": "the labelled data are called after the detector that they are about",
    "stream/docs.py": "documents may order what they tell",
    "stream/simulate/": "the simulation tells which detector its look-alikes are meant for",
}


@pytest.mark.parametrize("file", [file for file in files("stream") if not file.startswith(tuple(NAMES_DETECTORS))])
def test_the_service_knows_no_detector_by_name(file: str) -> None:
    texts = {node.value for node in ast.walk(tree(file)) if isinstance(node, ast.Constant)}
    # "null" is also a word of YAML, which is read in one place.
    words = {"null"} if file == "stream/settings.py" else set()
    assert texts & set(registered()) <= words


# --------------------------------------------------------------------------------------- documents

DOCUMENTS = sorted(path.relative_to(ROOT).as_posix() for path in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")])
FOLDERS = sorted({path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")})


WRITTEN_BY_READERS = {"docs/writing-a-detector.md": {"detectors/budget.py"}}


def paths(text: str) -> Iterator[str]:
    """Paths into the repository that a document names in backticks; NAME stands for any name."""
    for code in re.findall(r"`([^`\n]+)`", text):
        if re.fullmatch(rf"(?:{'|'.join(FOLDERS)})/[\w./*-]*", code):
            yield code.replace("NAME", "*")


def links(text: str) -> Iterator[str]:
    """Targets of links and images that are not addresses."""
    for target in re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"(?:src|href)=\"([^\"]+)\"", text):
        if not re.match(r"[a-z]+:|#", target):
            yield target.partition("#")[0]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_paths_in_documents_exist(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    missing = {path for path in paths(text) if not list(ROOT.glob(path.rstrip("/")))}
    missing |= {link for link in links(text) if not (ROOT / document).parent.joinpath(link).exists()}
    assert missing == WRITTEN_BY_READERS.get(document, set())


def test_paths_and_links_are_found_in_text() -> None:
    text = (
        'See `stream/engine.py` and `docs/NAME.md`, not `a/b`; [one](../x.md#y), [two](https://z), <img src="i.png">.'
    )
    assert list(paths(text)) == ["stream/engine.py", "docs/*.md"]
    assert list(links(text)) == ["../x.md", "i.png"]
