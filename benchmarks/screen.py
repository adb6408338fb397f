"""What benchmarks show while they run, and the options they share."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import results
from benchmarks.observe import TooShortError
from tests import kafka_broker

FOLDER = Path(".cache/bench-kafka")


class MissingError(Exception):
    """Something must be measured or installed first; the text says what."""


def parser(name: str, about: str, example: str, events: int | None = 2_000_000) -> argparse.ArgumentParser:
    """A command line with the options all benchmarks have.

    Args:
        events: How many events are handled by default; None where something else decides.
    """
    made = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=about,
        epilog=f"example: python -m benchmarks.{name} {example}",
    )
    if events is not None:
        made.add_argument("--events", type=int, default=events, help="events to handle (default: %(default)s)")
    made.add_argument(
        "--json",
        type=Path,
        default=results.DEFAULT,
        metavar="PATH",
        help="figures are put here, beside those of other benchmarks (default: %(default)s)",
    )
    return made


def add_seconds(made: argparse.ArgumentParser, default: float = 30.0) -> None:
    """Adds how long to measure."""
    about = "longest measurement; slow contenders handle a part (default: %(default)s)"
    made.add_argument("--seconds", type=float, default=default, help=about)


def command_line(main: Callable[[], int | None]) -> NoReturn:
    """Runs a command line; Ctrl-C, and what the machine lacks, end it without a word too many."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was started is ended then, too
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except (kafka_broker.BrokerMissingError, kafka_broker.BrokerError) as error:
        sys.exit(f"no Kafka: {error}")
    except (MissingError, TooShortError) as error:
        sys.exit(str(error))


def say(text: str) -> None:
    """Something for the person at the terminal, besides the result."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


@contextmanager
def progress(title: str, total: float) -> Iterator[Callable[[float], None]]:
    """A bar for the length of the block; gives the function that moves it."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:,.0f}"), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=total)
        yield lambda done: bar.update(task, completed=done)
