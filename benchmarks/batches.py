"""Batches as detectors get them, cut out of a generated stream by the engine itself."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.load import Load
from benchmarks.stages import records
from detectors.base import Detector, Spec
from detectors.types import EventBatch, Finding, Scope
from stream.clock import SystemClock
from stream.engine import GRAPH, WATCH, Engine
from stream.pipeline import make_ingest
from stream.settings import default_settings
from stream.stages import position_name


class _Keep(Detector):
    """Finds nothing, and keeps what it was given."""

    def __init__(self, scope: Scope) -> None:
        self.tables = {}
        self._kept: list[EventBatch] = []
        # The engine asks each detector which scope it is for.
        self.spec = Spec(name=f"keep-{scope}", version=1, scope=scope)  # type: ignore[misc]

    def update(self, batch: EventBatch) -> Sequence[Finding]:
        self._kept.append(batch)
        return ()

    def taken(self) -> list[EventBatch]:
        """What came since the last time."""
        kept, self._kept = self._kept, []
        return kept


def batches(load: Load, size: int) -> list[dict[Scope, list[EventBatch]]]:
    """What detectors get when `size` events of the input are taken at a time: per such batch, scope -> batches.

    Those of the graph hold only the events of trees, as in the service; at marks of the clock the engine cuts
    batches in two.
    """
    settings = default_settings()
    name_of = position_name("usage")
    ingest = make_ingest(settings, name_of, SystemClock(), "key")
    keepers: dict[Scope, _Keep] = {scope: _Keep(scope) for scope in (*WATCH, *GRAPH)}
    engines = [
        Engine(settings, scopes, name_of, only={str(s): keepers[s] for s in scopes}) for scopes in (WATCH, GRAPH)
    ]
    given, made = records(load), []
    for low in range(0, len(given), size):
        columns, _ = ingest.columns(given[low : low + size])
        engines[0].process(columns)
        engines[1].process(columns.take(columns.numbers["in_tree"]))
        made.append({scope: keeper.taken() for scope, keeper in keepers.items()})
    return made
