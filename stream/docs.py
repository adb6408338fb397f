"""Rewrites the generated parts of the documents: `python -m stream.docs [ROOT]`.

A generated part stands between `<!-- generated: NAME -->` and `<!-- end -->`. It says what the code says:
detectors, settings, topics, commands, modules. Nobody has to remember to write it down.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

import detectors
from detectors import checks
from detectors.base import Detector
from detectors.types import Scope
from stream import cli
from stream.acls import rules
from stream.actions import base as actions
from stream.ingest import reject
from stream.metrics import DECLARED, PREFIX
from stream.settings import SECRETS, KafkaSettings, Settings, default_settings
from stream.topics import TopicPlan, plans

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "docs/*.md")

_PART = re.compile(r"(<!-- generated: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
_BEGIN = "<!-- generated:"
_SCOPES = {Scope.RUN: "a run of an agent", Scope.AGENT: "an agent", Scope.ROOT: "a task (root run)"}
_PACKAGES = ("burnfuse", "detectors", "stream")
_SECTIONS = ("Fires when", "Quiet when", "Units", "State", "Source")
_UNITS_S = ((86_400, "d"), (3600, "h"), (60, "min"))


class DocsError(Exception):
    """A document asks for a part that does not exist, or leaves one open."""


# ---------------------------------------------------------------------------------------- Markdown


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; what is in the cells is escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(_cell(cell) for cell in line) + " |\n" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _code(text: str) -> str:
    return f"`{text}`"


# --------------------------------------------------------------------------------------- detectors


def _docstring(cls: type) -> tuple[str, dict[str, str]]:
    """What a detector's docstring says before its sections, and the sections."""
    parts = re.split(rf"^({'|'.join(_SECTIONS)}): ", inspect.getdoc(cls) or "", flags=re.MULTILINE)
    return parts[0].strip(), {name: " ".join(text.split()) for name, text in zip(parts[1::2], parts[2::2], strict=True)}


def _first(text: str) -> str:
    """The first paragraph, on one line."""
    return " ".join(text.split("\n\n")[0].split())


def _detectors() -> list[tuple[str, type[Detector]]]:
    """By name; what has nothing to set, such as the null detector, at the end."""
    return sorted(detectors.registered().items(), key=lambda entry: (len(entry[1].Config.model_fields) < 2, entry[0]))


def detectors_table() -> str:
    """All detectors, one line each."""
    return table(
        ("detector", "looks at", "finds"),
        ((f"[`{name}`](#{name})", _SCOPES[cls.spec.scope], _first(_docstring(cls)[0])) for name, cls in _detectors()),
    )


def detectors_sections() -> str:
    """A section per detector: what it finds, its contract, its settings."""
    return "\n".join(_detector(name, cls) for name, cls in _detectors())


def _detector(name: str, cls: type[Detector]) -> str:
    intro, sections = _docstring(cls)
    facts = {"Looks at": f"{_SCOPES[cls.spec.scope]}."} | sections
    lines = [f"## {name}", intro, "\n".join(f"- **{key}**: {text}" for key, text in facts.items())]
    lines += [f"Not held to `{check}`: {reason}." for check, reason in cls.spec.waived.items()]
    return "\n\n".join(lines) + f"\n\nSettings, under `detectors.{name}`:\n\n" + _settings_of(cls.Config)


def checks_table() -> str:
    """What every detector is held to."""
    rows = (
        (_code(check.__name__.removeprefix("check_")), _first(inspect.getdoc(check) or ""))
        for check in checks.all_checks()
    )
    return table(("check", "what must hold"), rows)


# ---------------------------------------------------------------------------------------- settings


def _inner(model: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """Sections within a section."""
    fields = model.model_fields.items()
    found = {key: field.annotation for key, field in fields}
    return {key: cls for key, cls in found.items() if isinstance(cls, type) and issubclass(cls, BaseModel)}


def _settings_of(model: type[BaseModel]) -> str:
    rows = []
    for key, field in model.model_fields.items():
        if key in _inner(model):
            continue
        extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        unit, source = str(extra.get("unit", "")), str(extra.get("source", ""))
        rows.append((_code(key), _default(field, unit), unit, field.description or "", source))
    return table(("key", "default", "unit", "meaning", "where the default comes from"), rows)


def _default(field: FieldInfo, unit: str) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None:
        return "none"
    if isinstance(value, bool):
        return _code(str(value).lower())
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = str(value).replace("'", '"')
    whole = unit == "s" and isinstance(value, int) and value > 60
    readable = (f" ({value // size} {name})" for size, name in _UNITS_S if whole and value % size == 0)
    return _code(text) + next(readable, "")


def settings_sections() -> str:
    """A table per section of the configuration; the detectors have their own page."""
    parts = []
    for name, field in Settings.model_fields.items():
        model = field.annotation
        if name == "detectors":
            continue
        if name == "actions":
            parts += [_section(f"actions.{key}", cls.Config, _about(cls)) for key, cls in actions.registered().items()]
        elif isinstance(model, type) and issubclass(model, BaseModel):
            parts.append(_section(name, model, _about(model)))
            parts += [_section(f"{name}.{key}", cls, _about(cls)) for key, cls in _inner(model).items()]
        else:  # a mapping of names to models
            model = get_args(model)[1]
            parts.append(_section(f"{name}.NAME", model, field.description or ""))
    return "\n".join(parts)


def _section(name: str, model: type[BaseModel], about: str) -> str:
    return f"### {name}\n\n{about}\n\n{_settings_of(model)}"


def _about(cls: type) -> str:
    return inspect.getdoc(cls) or ""


def secrets_table() -> str:
    """Which variables hold secrets."""
    return table(
        ("variable", "or a file with it, named by", "meaning"),
        (
            (_code(f"BURNFUSE_{name.upper()}"), _code(f"BURNFUSE_{name.upper()}_FILE"), about)
            for name, about in SECRETS.items()
        ),
    )


# ------------------------------------------------------------------------------------------- others


def topics_table() -> str:
    """The topics as `burnfuse topics` creates them with the default configuration."""
    return table(
        ("topic", "partitions", "kept", "holds"),
        ((_code(plan.name), str(plan.partitions), _kept(plan), plan.why) for plan in plans(KafkaSettings())),
    )


def acls_table() -> str:
    """Who needs which rights, with the default configuration."""
    return table(
        ("who", "resource", "name", "operations", "why"),
        (
            (rule.role, rule.resource, _code(rule.name) + (" and what begins so" if rule.prefixed else ""),
             ", ".join(rule.operations), rule.why)
            for rule in rules(default_settings())
        ),
    )  # fmt: skip


def _kept(plan: TopicPlan) -> str:
    if plan.configs["cleanup.policy"] == "compact":
        return "the latest record per key"
    days = int(plan.configs["retention.ms"]) // 86_400_000
    return "1 day" if days == 1 else f"{days} days"


def _commands() -> Iterator[tuple[str, Any]]:
    def walk(path: str, command: Any) -> Iterator[tuple[str, Any]]:
        inner = getattr(command, "commands", None)
        if inner is None:
            yield path, command
        else:
            for name, child in inner.items():
                yield from walk(f"{path} {name}", child)

    return walk("burnfuse", typer.main.get_command(cli.app))


def commands_table() -> str:
    """All commands, one line each."""
    rows = ((_code(path), (command.help or "").split("\n\n")[0]) for path, command in _commands())
    return table(("command", "does"), rows)


def commands_sections() -> str:
    """A section per command: its arguments and options, and an example."""
    parts = []
    for path, command in _commands():
        rows = [
            (", ".join(_code(word) for word in _words(param)), param.help or "")
            for param in command.params
            if "--help" not in param.opts
        ]
        example = (command.epilog or "").removeprefix("Example: ")
        part = f"## {path}\n\n{command.help}\n\n"
        part += table(("option", "meaning"), rows) + "\n" if rows else ""
        parts.append(part + (f"```sh\n{example}\n```\n" if example else ""))
    return "\n".join(parts)


def _words(param: Any) -> list[str]:
    return list(param.opts) if param.opts[0].startswith("-") else [param.metavar or param.name.upper()]


def reasons_table() -> str:
    """Why events are turned away."""
    return table(("reason", "meaning"), ((_code(value), text) for value, text in _members(reject.Reason)))


def metrics_table() -> str:
    """All metrics of the worker."""
    return table(
        ("metric", "kind", "unit", "labels", "meaning", "alert on"),
        (
            (_code(PREFIX + one.name), one.kind, one.unit, ", ".join(map(_code, one.labels)), one.help, one.alert)
            for one in DECLARED
        ),
    )


def second_stage_list() -> str:
    """Which detectors an overloaded worker leaves out."""
    names = [f"[`{name}`](detectors.md#{name})" for name, cls in _detectors() if cls.spec.second_stage]
    return f"The second stage: {', '.join(names)}.\n"


def _members(enum: type) -> Iterator[tuple[str, str]]:
    """Values of an enumeration with the text below each, which Python itself does not keep."""
    (tree,) = ast.parse(inspect.getsource(enum)).body
    assert isinstance(tree, ast.ClassDef)
    for member, text in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(member, ast.Assign) and isinstance(text, ast.Expr):
            yield ast.literal_eval(member.value), ast.literal_eval(text.value)


def house_table() -> str:
    """All modules with the first line of what they say about themselves."""
    base = Path(detectors.__file__).parent.parent
    rows = []
    for package in _PACKAGES:
        for path in sorted((base / package).rglob("*.py"), key=lambda p: (p.parent, p.name)):
            text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
            if text and path.name != "__main__.py":
                rows.append((_code(path.relative_to(base).as_posix().removesuffix("__init__.py")), _first(text)))
    return table(("module", "what it is"), rows)


PARTS: dict[str, Callable[[], str]] = {
    "checks": checks_table,
    "acls": acls_table,
    "commands": commands_table,
    "commands-in-full": commands_sections,
    "detectors": detectors_table,
    "detectors-in-full": detectors_sections,
    "metrics": metrics_table,
    "modules": house_table,
    "reasons": reasons_table,
    "second-stage": second_stage_list,
    "secrets": secrets_table,
    "settings": settings_sections,
    "topics": topics_table,
}
"""Name of a generated part -> what it says."""


def rewritten(text: str) -> str:
    """The document with its generated parts as they should be.

    Raises:
        DocsError: it asks for an unknown part, or leaves one open.
    """

    def part(match: re.Match[str]) -> str:
        if match[2] not in PARTS:
            raise DocsError(f"there is no generated part {match[2]!r}; known: {', '.join(PARTS)}")
        return f"{match[1]}\n{PARTS[match[2]]()}\n{match[3]}"

    if text.count(_BEGIN) != len(_PART.findall(text)):
        raise DocsError("a generated part has no end")
    return _PART.sub(part, text)


def documents(root: Path) -> Iterator[Path]:
    """The documents of a repository that may hold generated parts."""
    for pattern in DOCUMENTS:
        yield from sorted(root.glob(pattern))


def main(root: Path = ROOT) -> list[Path]:
    """Rewrites all documents; returns those that changed."""
    changed = []
    for path in documents(root):
        old = path.read_text(encoding="utf-8")
        try:
            new = rewritten(old)
        except DocsError as error:
            raise DocsError(f"{path}: {error}") from error
        if new != old:
            path.write_text(new, encoding="utf-8")
            changed.append(path)
    return changed


if __name__ == "__main__":
    for name in main(*map(Path, sys.argv[1:2])):
        sys.stdout.write(f"{name}\n")
