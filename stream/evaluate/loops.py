"""Family `loops`: situations of published loop detectors, real retry storms, and real traffic without loops."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec

from detectors.types import Scope
from stream.evaluate import labelled, traces
from stream.evaluate.base import Contender, Plot, Progress, Row, register, sensible
from stream.evaluate.cases import cases

_ENCODE = msgspec.json.Encoder(order="sorted").encode

RECORDED: Final = {
    # set: (label of the cases, what the reader must know)
    "chatdev-warehouse": ("derived:rate_limit_retry_storm", "5 refusals in 60 s were labelled a storm."),
    "tau-bench": (None, "Tool dialogues without loops."),
    "llm-traffic": (None, "Sessions of real services; equal prompts stand for equal words in them."),
    "multi-swe-bench-logs": ("exit_cost", "Weak label: the run was stopped at its cost limit, for whatever reason."),
    "multi-swe-bench-trajs": ("exit_cost", "Weak label: the run was stopped at its cost limit, for whatever reason."),
}


@register
class Loops:
    """What is a loop and what only looks like one."""

    name = "loops"

    def found_in(self, folder: Path) -> bool:
        """Always: the situations come with the project."""
        return True

    def rows(self, folder: Path, contenders: Sequence[Contender], progress: Progress) -> list[Row]:
        """The situations, as they are and hashed by the producer; then the recorded sets that are there."""
        contenders = sensible(contenders, {Scope.RUN, Scope.ROOT})
        found = [data for data in RECORDED if labelled.has(folder, data)]
        return labelled.each(
            contenders,
            progress,
            [
                partial(_situations, hashed=False),
                partial(_situations, hashed=True),
                *(partial(_recorded, folder, data) for data in found),
            ],
        )

    def plots(self, folder: Path) -> Iterator[Plot]:
        """None: loops have no score over time."""
        return iter(())


def _situations(contender: Contender, progress: Progress, *, hashed: bool) -> list[Row]:
    known = {case.name: case for case in cases()}
    events = [hash_contents(event) if hashed else event for case in known.values() for event in case.events]
    outcomes = traces.run(traces.encoded(events), contender, progress)
    # The first event of a case is no sooner than its run; late findings are as telling as missed ones.
    return [
        labelled.row(
            Loops.name,
            "situations, hashed by the producer" if hashed else "situations",
            contender,
            outcomes,
            lambda name: known[name].loop,
            notes="What only the tool makes look new cannot be seen through hashes." if hashed else "",
        )
    ]


def hash_contents(event: dict[str, Any]) -> dict[str, Any]:
    """The event with hashes in place of arguments and result."""
    hidden = {}
    for name, value in event.items():
        if name in ("args", "result"):
            text = value.encode() if isinstance(value, str) else _ENCODE(value)
            hidden[f"{name}_hash"] = hashlib.sha256(text).hexdigest()
        else:
            hidden[name] = value
    return hidden


def _recorded(folder: Path, data: str, contender: Contender, progress: Progress) -> list[Row]:
    label, notes = RECORDED[data]
    known = labelled.labels(folder, data)
    records = labelled.records(folder, data)
    if not known:
        # Services, not tasks: every session stands for itself.
        records = [_without_root(record) for record in records]
    outcomes = traces.run(records, contender, progress)
    is_case = lambda name: label is not None and label in known.get(name, {}).get("labels", ())  # noqa: E731
    return [labelled.row(Loops.name, data, contender, outcomes, is_case, notes=notes)]


def _without_root(record: bytes) -> bytes:
    event = msgspec.json.decode(record)
    event.pop("root_run_id", None)
    return msgspec.json.encode(event)
