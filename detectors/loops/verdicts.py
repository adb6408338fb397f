"""What the rules of the retry loop detector share: where a streak began, and how a loop is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from detectors.base import severity_of
from detectors.types import EventBatch, Finding, Scope, beyond, spend

NAME = "retry_loop"
SCOPE = Scope.RUN

Found = list[tuple[int, Finding]]
"""Findings with the position of the event that led to each."""


def totals_before(batch: EventBatch, at: Any) -> tuple[Any, Any]:
    """What the runs of these events had used before them: (thousandths of tokens, nano-dollars)."""
    entity = batch.entities[SCOPE]
    return entity.tokens[at] - batch.tokens[at], entity.cost[at] - batch.cost[at]


def finding(
    batch: EventBatch,
    i: int,
    *,
    rule: str,
    level: int,
    observed: float,
    threshold: float,
    unit: str,
    what: str,
    mark: Sequence[Any] | None,
    evidence: Mapping[str, Any],
    news: float | None = None,
) -> Finding:
    """A loop in words.

    Args:
        mark: When it began (s), and the run's totals before (thousandths of tokens, nano-dollars).
        news: When the last result came that the run had not seen before, s.
    """
    told, tail = dict(evidence), ""
    if mark is not None:
        entity = batch.entities[SCOPE]
        since, tokens_before, cost_before = (float(value) for value in mark)
        tokens = max(0.0, (int(entity.tokens[i]) - tokens_before) / 1e3)
        dollars = max(0.0, (int(entity.cost[i]) - cost_before) / 1e9)
        told |= {"since": since, "effective_tokens": round(tokens, 3), "cost_usd": round(dollars, 6)}
        used = f" ({spend(tokens, dollars)} since it began)" if tokens else ""
        tail = f" in {duration(batch.ts[i] - since)}{used}"
    if news is not None:
        told["last_new_result"] = news
        if news != told.get("since"):  # a repeated call mostly began with the last new result
            tail += f", last new result {duration(batch.ts[i] - news)} ago"
    return Finding.at(
        batch,
        i,
        detector=NAME,
        rule=rule,
        severity=severity_of(level),
        scope=SCOPE,
        score=beyond(observed, threshold),
        observed=float(observed),
        expected=float(threshold),
        unit=unit,
        reason=f"agent {batch.agent_id[i]} {what}{tail}",
        evidence=told,
    )


def duration(seconds: float) -> str:
    """A length of time for people.

    >>> duration(75.0), duration(600.0)
    ('75 s', '10 min')
    """
    seconds = max(0.0, float(seconds))
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
