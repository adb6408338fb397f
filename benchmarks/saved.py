"""What a worker's pages and the records that come again say about saved state: the sums behind `benchmarks.restore`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from prometheus_client.parser import text_string_to_metric_families


@dataclass(frozen=True, slots=True)
class Again:
    """Records that are read again.

    Attributes:
        events: In these records.
        oldest_ms: Kafka timestamp of the oldest one with events in it; None: there is none.
    """

    records: int = 0
    events: int = 0
    oldest_ms: int | None = None

    def __add__(self, other: Again) -> Again:
        known = [ms for ms in (self.oldest_ms, other.oldest_ms) if ms is not None]
        return Again(self.records + other.records, self.events + other.events, min(known, default=None))


def age_s(again: Again, at: float) -> float:
    """How old the oldest record was at a moment, s since 1970; 0 where there is none."""
    return 0.0 if again.oldest_ms is None else max(0.0, at - again.oldest_ms / 1000)


def phase(problems: Sequence[str] | None) -> Literal["starting", "joining", "restoring", "ready"]:
    """How far a worker is, by what /readyz says; None: it does not answer."""
    if problems is None:
        return "starting"
    if any("no partitions are assigned" in problem for problem in problems):
        return "joining"
    return "restoring" if any("being restored" in problem for problem in problems) else "ready"


def family_of(page: str) -> dict[str, Any]:
    """Name of a family -> its samples, from a page of metrics."""
    return {family.name: family.samples for family in text_string_to_metric_families(page)}


def total(families: Mapping[str, Iterable[Any]], family: str, sample: str | None = None) -> float:
    """Sum over the samples of this name, whatever their labels; 0 where there is none."""
    return float(sum(one.value for one in families.get(family, ()) if one.name == (sample or family)))


def longest_piece_s(samples: Iterable[Any]) -> float:
    """The bound of the highest bucket of a histogram that holds something, s; 0 where nothing was observed."""
    buckets = sorted((float(s.labels["le"]), s.value) for s in samples if s.name.endswith("_bucket"))
    most = buckets[-1][1] if buckets else 0
    return next((bound for bound, count in buckets if count == most), math.inf) if most else 0.0
