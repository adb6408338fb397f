"""Every check fails a detector that breaks what it is about."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest

from detectors.base import Detector, DetectorConfig, Spec, Table
from detectors.checks import Check, all_checks
from detectors.rounds import rounds
from detectors.types import UNKNOWN, EventBatch, Finding, Ints, Kind, Scope


class Good(Detector):
    """Says so at every call of a run that is the same as its third but last.

    Fires when: a call was made three calls before.
    Quiet when: it was not.
    Units: calls.
    State: per run, the latest three calls.
    Source: made up.
    """

    spec: ClassVar[Spec] = Spec("good", version=1, scope=Scope.RUN)

    def __init__(self, config: Any) -> None:
        self.table = Table({"latest": (np.uint64, 0, 3)})
        self.tables = {"calls": self.table}

    def update(self, batch: EventBatch) -> Sequence[Finding]:
        if not len(batch):
            return ()
        entity = batch.entities[self.spec.scope]
        self.reserve(int(entity.row.max()) + 1)
        found = []
        for at in rounds(entity.row):
            if entity.new[at].any():
                self.forget(entity.row[at[entity.new[at]]])
            for i in at[(batch.kind[at] == Kind.TOOL) & (batch.signature[at] != UNKNOWN)].tolist():
                found += self.look(batch, i)
        return [finding for _, finding in sorted(found, key=lambda pair: pair[0])]

    def look(self, batch: EventBatch, i: int) -> Iterator[tuple[int, Finding]]:
        latest = self.table["latest"][batch.entities[self.spec.scope].row[i]]
        if latest[2] == batch.signature[i]:
            yield i, self.finding(batch, i)
        latest[:] = [batch.signature[i], *latest[:2]]

    def finding(self, batch: EventBatch, i: int, **other: Any) -> Finding:
        finding = Finding.at(
            batch,
            i,
            detector=self.spec.name,
            rule="again",
            severity="warning",
            scope=self.spec.scope,
            score=0.5,
            observed=4,
            expected=3,
            unit="calls",
            reason=f"agent {batch.agent_id[i]} does it again",
            evidence={"calls": 4},
        )
        return replace(finding, **other)


@pytest.mark.parametrize("check", all_checks(), ids=lambda check: check.__name__)
def test_a_good_detector_passes(check: Check) -> None:
    check(Good)


# ------------------------------------------------------------------------------------ broken ones


class SaysOncePerBatch(Good):
    """Speaks only of the first event it finds."""

    def update(self, batch: EventBatch) -> Sequence[Finding]:
        return super().update(batch)[:1]


class FailsOnEmpty(Good):
    def update(self, batch: EventBatch) -> Sequence[Finding]:
        assert len(batch), "nothing to do"
        return super().update(batch)


class DividesByTime(Good):
    def finding(self, batch: EventBatch, i: int, **other: Any) -> Finding:
        gap = batch.ts[i] - batch.ts[max(0, i - 1)]
        return super().finding(batch, i, observed=1 / gap if gap > 0 else float("nan"))


class CountsInstances(Good):
    instances = 0

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        CountsInstances.instances += 1
        self.number = CountsInstances.instances

    def finding(self, batch: EventBatch, i: int, **other: Any) -> Finding:
        return super().finding(batch, i, observed=float(self.number))


class KeepsStateElsewhere(Good):
    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.found: dict[str, int] = {}

    def finding(self, batch: EventBatch, i: int, **other: Any) -> Finding:
        run = batch.agent_id[i] + batch.run_id[i]
        self.found[run] = self.found.get(run, 0) + 1
        return super().finding(batch, i, observed=float(self.found[run]))


class KnowsItsRowsOnly(Good):
    def dump(self, rows: Ints) -> bytes:
        assert int(rows.max()) < self.table.rows
        return super().dump(rows)


class TakesAnyState(Good):
    def load(self, rows: Ints, page: bytes) -> None:
        """Believes what it reads."""


class CountsAllRuns(Good):
    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.seen = 0

    def finding(self, batch: EventBatch, i: int, **other: Any) -> Finding:
        self.seen += 1
        return super().finding(batch, i, observed=float(self.seen))


class RemembersTheDead(Good):
    def forget(self, rows: Ints) -> None:
        """Keeps everything."""


class RemembersEverything(Good):
    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.seen: list[str] = []

    def update(self, batch: EventBatch) -> Sequence[Finding]:
        self.seen += batch.event_id
        return super().update(batch)


class ChangesItsInput(Good):
    def update(self, batch: EventBatch) -> Sequence[Finding]:
        if batch.tokens.flags.writeable:
            batch.tokens[:] = 0
        return super().update(batch)


class OverflowsOnHugeValues(Good):
    def update(self, batch: EventBatch) -> Sequence[Finding]:
        np.exp(batch.tokens / 1e6)
        return super().update(batch)


class TakesUnknownForEqual(Good):
    def look(self, batch: EventBatch, i: int) -> Iterator[tuple[int, Finding]]:
        yield i, self.finding(batch, i)

    def update(self, batch: EventBatch) -> Sequence[Finding]:
        return [self.finding(batch, i) for i in range(3, len(batch)) if not batch.signature[i - 3 : i + 1].any()]


class NeverQuiet(Good):
    def look(self, batch: EventBatch, i: int) -> Iterator[tuple[int, Finding]]:
        yield i, self.finding(batch, i)


class NamesAnotherEvent(Good):
    def finding(self, batch: EventBatch, i: int, **other: Any) -> Finding:
        return super().finding(batch, i, event_id="e0")


class NamesAnotherTime(Good):
    def finding(self, batch: EventBatch, i: int, **other: Any) -> Finding:
        return super().finding(batch, i, ts=0.0)


class MakesUpIds(Good):
    def finding(self, batch: EventBatch, i: int, **other: Any) -> Finding:
        return super().finding(batch, i, id=f"finding {i}")


class SaysItTwice(Good):
    def look(self, batch: EventBatch, i: int) -> Iterator[tuple[int, Finding]]:
        for pair in super().look(batch, i):
            yield from (pair, pair)


class ScoresBeyondOne(Good):
    def finding(self, batch: EventBatch, i: int, **other: Any) -> Finding:
        return super().finding(batch, i, score=1.5)


class GivesNumbersOfNumpy(Good):
    def finding(self, batch: EventBatch, i: int, **other: Any) -> Finding:
        return super().finding(batch, i, evidence={"since": batch.ts[i]})


class GivesMuchEvidence(Good):
    def finding(self, batch: EventBatch, i: int, **other: Any) -> Finding:
        return super().finding(batch, i, evidence={"calls": list(range(1000))})


class GivesInfiniteEvidence(Good):
    def finding(self, batch: EventBatch, i: int, **other: Any) -> Finding:
        return super().finding(batch, i, evidence={"times": [{"more": float("inf")}]})


class SaysNothing(Good):
    def finding(self, batch: EventBatch, i: int, **other: Any) -> Finding:
        return super().finding(batch, i, reason="")


class SaysTooMuch(Good):
    def finding(self, batch: EventBatch, i: int, **other: Any) -> Finding:
        return super().finding(batch, i, reason=f"agent {batch.agent_id[i]} does it again. Stop it")


class NamesNobody(Good):
    def finding(self, batch: EventBatch, i: int, **other: Any) -> Finding:
        return super().finding(batch, i, reason="somebody does it again")


class SaysWhenOnly(Good):
    """Fires when: it does."""


class BareConfig(DetectorConfig):
    limit: int = 3


class HasABareSetting(Good):
    Config: ClassVar[type[DetectorConfig]] = BareConfig


class WaivesNothing(Good):
    spec: ClassVar[Spec] = replace(Good.spec, waived={"no_such_check": "because"})


class WaivesWithoutAReason(Good):
    spec: ClassVar[Spec] = replace(Good.spec, waived={"reasons": ""})


BROKEN: dict[str, list[type[Detector]]] = {
    "batch_cuts_do_not_matter": [SaysOncePerBatch],
    "one_event_at_a_time": [SaysOncePerBatch],
    "empty_batch": [FailsOnEmpty],
    "late_events": [DividesByTime],
    "deterministic": [CountsInstances],
    "restart_equals_no_restart": [KeepsStateElsewhere, TakesAnyState],
    "unused_rows": [KnowsItsRowsOnly],
    "foreign_state_is_refused": [TakesAnyState],
    "entities_do_not_influence_each_other": [CountsAllRuns],
    "rows_are_reused": [RemembersTheDead],
    "memory_is_bounded": [RemembersEverything],
    "input_is_not_changed": [ChangesItsInput],
    "huge_values": [OverflowsOnHugeValues],
    "unknown_is_never_a_repetition": [TakesUnknownForEqual],
    "quiet_on_healthy_traffic": [NeverQuiet],
    "findings_name_their_event": [NamesAnotherEvent, NamesAnotherTime],
    "finding_ids": [MakesUpIds, SaysItTwice],
    "findings_are_plain_and_finite": [ScoresBeyondOne, GivesNumbersOfNumpy, GivesMuchEvidence, GivesInfiniteEvidence],
    "reasons": [SaysNothing, SaysTooMuch, NamesNobody],
    "docstring": [SaysWhenOnly],
    "configuration": [HasABareSetting],
    "waivers": [WaivesNothing, WaivesWithoutAReason],
}


def test_every_check_is_tried() -> None:
    assert [check.__name__.removeprefix("check_") for check in all_checks()] == list(BROKEN)


@pytest.mark.parametrize(
    ("check", "broken"),
    [(check, broken) for check, broken in zip(all_checks(), BROKEN.values(), strict=True)],
    ids=list(BROKEN),
)
def test_a_broken_detector_fails(check: Callable[[type[Detector]], None], broken: list[type[Detector]]) -> None:
    for cls in broken:
        with pytest.raises((AssertionError, RuntimeWarning)):
            check(cls)
