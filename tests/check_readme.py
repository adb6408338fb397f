"""Finds commands that a document tells people to run and that do not exist.

    python tests/check_readme.py [FILE.md ...]

Looked at are blocks fenced as sh, bash or console, and `make ...` and `burnfuse ...` in running text. Targets
must be in the Makefile; commands and options must be in the help of the command line; paths into the
repository must exist.
"""

from __future__ import annotations

import functools
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent

Help = Callable[[tuple[str, ...]], str | None]
"""The help text of a command, such as ("config", "check"); none if there is no such command."""


class Command(NamedTuple):
    line: int
    words: list[str]


def commands(text: str) -> Iterator[Command]:
    """All simple commands of a Markdown text: pipes and lists are taken apart, assignments dropped."""
    fence, pending, start = "", "", 0
    for number, line in enumerate(text.splitlines(), 1):
        mark = re.match(r"\s*(`{3,}|~{3,})\s*(\w*)", line)
        if mark:
            fence = "" if fence else (mark[2] or "text")
            continue
        if not fence:
            for inline in re.finditer(r"`((?:make|burnfuse) [^`]+)`", line):
                yield from _simple(number, inline[1])
        elif fence in ("sh", "bash", "console"):
            # In console blocks only the lines with a prompt are typed by a person.
            if fence == "console" and not pending and not line.startswith("$ "):
                continue
            start = start if pending else number
            pending += line.removeprefix("$ ")
            if pending.endswith("\\"):
                pending = pending[:-1]
                continue
            yield from _simple(start, pending)
            pending = ""


def _simple(line: int, text: str) -> Iterator[Command]:
    lexer = shlex.shlex(text, posix=True, punctuation_chars="|&;")
    lexer.whitespace_split, lexer.commenters = True, "#"
    words: list[str] = []
    for word in [*lexer, ";"]:
        if set(word) <= set("|&;"):
            if words:
                yield Command(line, words)
            words = []
        elif words or not re.fullmatch(r"\w+=.*", word):
            words.append(word)


def make_targets(makefile: str) -> set[str]:
    return set(re.findall(r"^([\w.-]+):(?!=)", makefile, re.M))


@functools.cache
def cli_help(path: tuple[str, ...]) -> str | None:
    """Ask the `burnfuse` that is installed beside the running Python."""
    done = subprocess.run(
        [str(Path(sys.executable).with_name("burnfuse")), *path, "--help"],
        env=os.environ | {"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.stdout if done.returncode == 0 else None


def problems(text: str, targets: set[str], help_of: Help, root: Path = ROOT) -> Iterator[str]:
    """What is wrong with the commands of a text, as `LINE: what`."""
    for line, words in commands(text):
        name, rest = Path(words[0]).name, words[1:]
        if name == "make":
            for target in rest:
                if "=" not in target and not target.startswith("-") and target not in targets:
                    yield f"{line}: the Makefile has no target {target}"
        elif name == "burnfuse":
            yield from (f"{line}: {problem}" for problem in _cli_problems(rest, help_of))
        for word in words:
            if "/" in word and re.fullmatch(r"[\w.][\w./-]*", word) and not (root / word).exists():
                # Only what starts like the repository is meant to be in it; `.venv`, `.cache` and data are made later.
                first = word.split("/")[0]
                if first not in (".venv", ".cache") and (root / first).is_dir():
                    yield f"{line}: there is no {word}"


def _cli_problems(words: list[str], help_of: Help) -> Iterator[str]:
    path: tuple[str, ...] = ()
    page = help_of(path)
    # A group's usage line says that a command must follow.
    while page is not None and re.search(r"COMMAND \[ARGS\]", page) and words and not words[0].startswith("-"):
        path, words = (*path, words[0]), words[1:]
        page = help_of(path)
    if page is None:
        yield f"there is no command `{' '.join(('burnfuse', *path))}`"
        return
    for word in words:
        option = word.split("=")[0]
        if option.startswith("--") and option not in ("--", "--help") and not re.search(rf"{option}\b", page):
            yield f"`{' '.join(('burnfuse', *path))}` has no option {option}"


def main(files: list[str]) -> int:
    targets = make_targets((ROOT / "Makefile").read_text())
    found = 0
    for name in files or [str(ROOT / "README.md")]:
        for problem in problems(Path(name).read_text(), targets, cli_help):
            print(f"{name}:{problem}", file=sys.stderr)
            found += 1
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
