"""The detector that never fires."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from detectors.base import Detector, DetectorConfig, Spec, register
from detectors.types import EventBatch, Finding, Scope


@register
class Null(Detector):
    """The reference every other detector is measured against: what it costs to find nothing.

    Fires when: never.
    Quiet when: always.
    Units: none.
    State: none.
    Source: the null detector of the Numenta Anomaly Benchmark, which anchors its score at zero.
    """

    spec: ClassVar[Spec] = Spec("null", version=1, scope=Scope.RUN)

    def __init__(self, config: DetectorConfig) -> None:
        self.tables = {}

    def update(self, batch: EventBatch) -> Sequence[Finding]:
        return ()
