"""`burnfuse evaluate`: which labelled data there are, who runs over them, and what comes of it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import msgspec
from rich import progress as bars
from rich.console import Console

import detectors
from detectors.base import Detector
from detectors.null import Null
from stream.engine import configured
from stream.errors import InputError, UsageError
from stream.evaluate import plots as png
from stream.evaluate import table
from stream.evaluate.base import Contender, Family, Plot, Progress, Row, families
from stream.evaluate.baselines import BASELINES
from stream.settings import Settings, detector_config

_encode = msgspec.json.Encoder().encode

ALL = "all"
"""The contender that is every detector switched on, together: what the product would say."""


def run(folder: str, data: Sequence[str], settings: Settings, plots: str | None, *, json: bool) -> None:
    """The command.

    Args:
        data: Kinds of data; none: all that the folder holds.
        plots: Folder for pictures.
        json: Rows as JSON lines, as they come, instead of the table.

    Raises:
        UsageError: data are unknown or missing, or pictures cannot be drawn.
        InputError: the data cannot be read.
    """
    into = None if plots is None else _folder(plots)
    path = Path(folder)
    todo = chosen(path, data)
    against = contenders(settings)
    told: list[Row] = []
    with _shown([family.name for family in todo]) as progress_of:
        for family in todo:
            new = rows(path, family, against, progress_of(family.name))
            told += new
            if json:
                sys.stdout.write("".join(f"{_encode(table.row_json(row)).decode()}\n" for row in new))
                sys.stdout.flush()
    if not json:
        table.show(told, Console())
    if into is not None:
        for family in todo:
            for plot in pictures(path, family):
                png.draw(plot, file := into / png.file_name(family.name, plot))
                sys.stderr.write(f"drew {file}\n")


def _folder(name: str) -> Path:
    png.check()
    path = Path(name)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make the folder {name}: {error.strerror}") from error
    return path


@contextmanager
def _shown(names: Sequence[str]) -> Iterator[Callable[[str], Progress]]:
    """Shows on standard error how far each kind of data is; a bar on a terminal, else a line per kind."""
    console = Console(stderr=True)
    if not console.is_terminal:

        def plain(name: str) -> Progress:
            sys.stderr.write(f"evaluating {name} ({names.index(name) + 1} of {len(names)})\n")
            return lambda _: None

        yield plain
        return
    columns = (bars.TextColumn("{task.description}"), bars.BarColumn(), bars.TaskProgressColumn())
    with bars.Progress(*columns, bars.TimeElapsedColumn(), console=console, transient=True) as progress:
        tasks = {name: progress.add_task(name, total=1.0, start=False) for name in names}

        def bar(name: str) -> Progress:
            progress.start_task(tasks[name])
            return lambda share: progress.update(tasks[name], completed=share)

        yield bar


def contenders(settings: Settings) -> list[Contender]:
    """The references, then each detector on its own, switched on or not, then all that are switched on."""

    def alone(cls: type[Detector]) -> dict[str, Detector]:
        return {cls.spec.name: cls(detector_config(settings, cls.spec.name))}

    def naive(cls: type[Detector]) -> dict[str, Detector]:
        return {cls.spec.name: cls(cls.Config())}

    ours = [cls for cls in detectors.registered().values() if cls is not Null]
    return [
        Contender(Null.spec.name, partial(alone, Null), baseline=True, settings=settings),
        *(Contender(cls.spec.name, partial(naive, cls), baseline=True, settings=settings) for cls in BASELINES),
        *(Contender(cls.spec.name, partial(alone, cls), settings=settings) for cls in ours),
        Contender(ALL, partial(configured, settings), settings=settings),
    ]


def chosen(folder: Path, names: Sequence[str]) -> list[Family]:
    """The kinds of data to run: those named, or all that the folder holds; in order of their names.

    Raises:
        UsageError: a kind is unknown, or not in the folder.
        InputError: the folder cannot be read, or holds nothing that is known.
    """
    known = families()
    if unknown := sorted(set(names) - set(known)):
        raise UsageError(f"there is no data called {unknown[0]!r}; --data takes {', '.join(known)}")
    if not folder.is_dir():
        why = "it is no folder" if folder.exists() else "no such folder"
        raise InputError(f"cannot read {folder}: {why}")
    try:
        there = {name: family for name, family in known.items() if family.found_in(folder)}
    except OSError as error:
        raise InputError(f"cannot read {folder}: {error.strerror}") from error
    if missing := sorted(set(names) - set(there)):
        raise UsageError(f"{folder} holds no data for --data {missing[0]}; it does for {', '.join(there) or 'none'}")
    if not there:
        raise InputError(f"{folder} holds no labelled data; looked for {', '.join(known)}")
    return [family for name, family in there.items() if not names or name in names]


def rows(folder: Path, family: Family, against: Sequence[Contender], progress: Progress) -> list[Row]:
    """One family's part of the table.

    Raises:
        InputError: the data cannot be read.
    """
    try:
        return family.rows(folder, against, progress)
    except (OSError, EOFError) as error:
        raise InputError(f"cannot read the data for {family.name}: {error}") from error


def pictures(folder: Path, family: Family) -> Iterator[Plot]:
    """One family's pictures.

    Raises:
        InputError: the data cannot be read.
    """
    try:
        yield from family.plots(folder)
    except (OSError, EOFError) as error:
        raise InputError(f"cannot read the data for {family.name}: {error}") from error
