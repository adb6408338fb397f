"""Family `repetition`: runs in which people marked steps as repetitions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from detectors.types import Scope
from stream.evaluate import labelled, traces
from stream.evaluate.base import Contender, Plot, Progress, Row, register, sensible

_STUDY: Final = "llm-agents-study"
_MASFT: Final = "masft"


@register
class Repetition:
    """People's marks against findings, per run and per step."""

    name = "repetition"

    def found_in(self, folder: Path) -> bool:
        """Whether one of the two labelled sets is there."""
        return labelled.has(folder, _STUDY) or labelled.has(folder, _MASFT)

    def rows(self, folder: Path, contenders: Sequence[Contender], progress: Progress) -> list[Row]:
        """Each contender as it is and, where it can warn of the first repetition, so set."""
        contenders = sensible(contenders, {Scope.RUN, Scope.ROOT})
        tried = [variant for contender in contenders for variant in (contender, early(contender)) if variant]
        sets = {_STUDY: _study, _MASFT: _conversations}
        found = [partial(rows_of, folder) for data, rows_of in sets.items() if labelled.has(folder, data)]
        return labelled.each(tried, progress, found)

    def plots(self, folder: Path) -> Iterator[Plot]:
        """None: repetitions have no score over time."""
        return iter(())


def early(contender: Contender) -> Contender | None:
    """The contender with detectors that warn of the first repetition; None if none of them can."""

    def make() -> dict[str, Any]:
        made: dict[str, Any] = contender.make()
        for name, detector in made.items():
            config: Any = getattr(detector, "config", None)
            if hasattr(config, "early"):
                made[name] = type(detector)(config.model_copy(update={"early": True}))
        return made

    able = any(hasattr(getattr(detector, "config", None), "early") for detector in contender.make().values())
    return Contender(f"{contender.name}, early", make, contender.baseline) if able else None


def _study(folder: Path, contender: Contender, progress: Progress) -> list[Row]:
    known = labelled.labels(folder, _STUDY)
    outcomes = traces.run(labelled.records(folder, _STUDY), contender, progress)
    return [
        labelled.row(
            Repetition.name,
            _STUDY,
            contender,
            outcomes,
            lambda name: "human:repetition" in known[name]["labels"],
            figures=_by_step(outcomes, known),
            notes="A run counts once somebody marked one of its steps; a lasting loop is reported once a minute.",
        )
    ]


def _by_step(outcomes: Mapping[str, traces.Outcome], known: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Precision and recall of findings as marks of single steps."""
    marked = {(name, step) for name, label in known.items() for step in label["repetition_steps"] or ()}
    flagged = {
        (name, int(finding.event_id.rpartition("#")[2].rstrip("l")))
        for name, outcome in outcomes.items()
        for finding in outcome.findings
    }
    hits = len(marked & flagged)
    return {"step_precision": hits / max(1, len(flagged)), "step_recall": hits / max(1, len(marked))}


def _conversations(folder: Path, contender: Contender, progress: Progress) -> list[Row]:
    known = labelled.labels(folder, _MASFT)
    outcomes = traces.run(labelled.records(folder, _MASFT), contender, progress)

    def is_case(name: str) -> bool | None:
        if known[name]["system"] == "MetaGPT":
            return None
        return bool(known[name]["repetition_like"])

    notes = "Labels of whole conversations. All runs of MetaGPT have the same five steps: left out. "
    notes += "Logs of HyperAgent hold several runs each."
    return [labelled.row(Repetition.name, _MASFT, contender, outcomes, is_case, notes=notes)]
