"""Labelled traces: which of them a contender flagged, as rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stream.evaluate import traces
from stream.evaluate.base import Contender, Progress, Row

EVENTS, LABELS = "native.jsonl.gz", "labels.jsonl"


def has(folder: Path, data: str) -> bool:
    """Whether a set of recorded traces is there."""
    return (folder / data / EVENTS).is_file()


def records(folder: Path, data: str) -> list[bytes]:
    """The events of a set."""
    return [line for line in traces.lines(folder / data / EVENTS) if line.strip()]


def labels(folder: Path, data: str) -> dict[str, dict[str, Any]]:
    """What is known of each trace of a set, by its name."""
    path = folder / data / LABELS
    return {line["trace"]: line for line in traces.json_lines(path)} if path.is_file() else {}


def row(
    family: str,
    data: str,
    contender: Contender,
    outcomes: Mapping[str, traces.Outcome],
    is_case: Callable[[str], bool | None],
    *,
    figures: Mapping[str, float] | None = None,
    notes: str = "",
) -> Row:
    """How many cases were caught, and how many of the others were flagged.

    Args:
        is_case: Of a trace: True, False, or None if it does not count.
    """
    caught, healthy = [], []
    missed = false_alarms = 0
    for name, outcome in outcomes.items():
        case = is_case(name)
        if case and outcome.findings:
            caught.append(outcome)
        elif case:
            missed += 1
        elif case is False:
            healthy.append(name)
            false_alarms += bool(outcome.findings)
    return Row(
        family,
        data,
        contender.name,
        caught=len(caught),
        missed=missed,
        false_alarms=false_alarms,
        healthy=len(healthy),
        delay_s=[max(0.0, outcome.findings[0].ts - outcome.start) for outcome in caught],
        cost_before_usd=[outcome.cost_before or 0.0 for outcome in caught if outcome.cost_usd],
        figures=figures or {},
        notes=notes,
    )


def part(progress: Progress, done: int, of: int) -> Progress:
    """Progress within the `done`-th of several equal parts."""
    return lambda share: progress((done + share) / max(1, of))


def each(
    contenders: Sequence[Contender], progress: Progress, rows_of: Sequence[Callable[[Contender, Progress], list[Row]]]
) -> list[Row]:
    """Rows of every set for every contender."""
    rows: list[Row] = []
    total = len(contenders) * len(rows_of)
    for i, make_rows in enumerate(rows_of):
        for j, contender in enumerate(contenders):
            rows += make_rows(contender, part(progress, i * len(contenders) + j, total))
    progress(1.0)
    return rows
