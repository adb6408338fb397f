"""Findings folded into incidents: what on-call sees."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from detectors.types import Finding, Scope, Severity
from stream.settings import IncidentSettings

State = Literal["open", "escalated", "resolved"]


@dataclass(frozen=True, slots=True)
class Incident:
    """Findings about one entity, from the first until it has been quiet for a while.

    An incident is about a run of an agent, an agent, or (for spirals) a whole root run.
    """

    id: str
    state: State
    severity: Severity
    scope: Scope
    opened_ts: float
    ts: float
    """Event time of the latest finding, or of the resolution, s."""
    agent_id: str
    run_id: str
    root_run_id: str
    title: str
    """The latest sentence of the gravest kind of finding."""
    findings: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()
    """`detector.rule` of everything found, in order of appearance."""
    cost_usd: float = 0.0
    """Known dollars burnt since the trouble began."""
    effective_tokens: float = 0.0
    """Effective tokens burnt since the trouble began."""
    merged_into: str | None = None
    evidence: dict[str, Any] = field(default_factory=dict)
    """Of the latest finding."""


@dataclass(frozen=True, slots=True)
class Change:
    """Something that happened to an incident."""

    kind: Literal["opened", "updated", "escalated", "resolved"]
    incident: Incident


@dataclass(slots=True)
class _Live:
    incident: Incident
    seen_clock: float
    """Stream clock when the last finding came: quiet is measured on this clock, whatever the
    timestamps of a replayed stream say."""


class Incidents:
    """Folds findings, in order, into incidents.

    One incident per agent and run; findings about an agent as a whole join the agent's open incident if
    there is one. A spiral takes in everything found in its root run.
    """

    def __init__(self, settings: IncidentSettings) -> None:
        self._settings = settings
        self._live: dict[str, _Live] = {}
        self._by_key: dict[tuple[str, ...], str] = {}
        self._clock = float("-inf")

    @property
    def open(self) -> list[Incident]:
        """Incidents not resolved yet, oldest first."""
        return [live.incident for live in self._live.values()]

    def add(self, finding: Finding, clock: float) -> list[Change]:
        """Takes a finding in.

        Args:
            clock: The stream clock, s: event time that never goes back.
        """
        self._clock = max(self._clock, clock)
        live = self._find(finding)
        if live is None:
            changes = [self._open(finding)]
        elif finding.id in live.incident.findings:
            return []
        else:
            changes = [self._extend(live, finding)]
        if finding.scope is Scope.ROOT:
            changes += self._absorb(changes[0].incident)
        return changes

    def advance(self, clock: float) -> list[Change]:
        """Resolves what has been quiet for long enough by `clock`, s."""
        self._clock = max(self._clock, clock)
        for live in self._live.values():
            if live.seen_clock == float("-inf"):  # found before the clock stood
                live.seen_clock = self._clock
        quiet = [live for live in self._live.values() if self._clock - live.seen_clock >= self._settings.quiet_s]
        return [self._resolve(live, ts=live.incident.ts + self._settings.quiet_s) for live in quiet]

    def _find(self, finding: Finding) -> _Live | None:
        for key in _keys(finding):
            if key in self._by_key:
                return self._live[self._by_key[key]]
        return None

    def _open(self, finding: Finding) -> Change:
        incident = _spend(
            Incident(
                id="i-" + hashlib.blake2b(finding.id.encode(), digest_size=8).hexdigest(),
                state="open",
                severity=finding.severity,
                scope=finding.scope,
                opened_ts=finding.ts,
                ts=finding.ts,
                agent_id=finding.agent_id,
                run_id=finding.run_id,
                root_run_id=finding.root_run_id,
                title=finding.reason,
                findings=(finding.id,),
                rules=(f"{finding.detector}.{finding.rule}",),
            ),
            finding,
        )
        self._live[incident.id] = _Live(incident, self._clock)
        for key in _own_keys(incident):
            self._by_key[key] = incident.id
        return Change("opened", incident)

    def _extend(self, live: _Live, finding: Finding) -> Change:
        old = live.incident
        rule = f"{finding.detector}.{finding.rule}"
        escalates = finding.severity == "critical" and old.severity == "warning"
        graver = escalates or finding.severity == old.severity
        live.incident = _spend(
            replace(
                old,
                state="escalated" if escalates else old.state,
                severity="critical" if escalates else old.severity,
                ts=max(old.ts, finding.ts),
                title=finding.reason if graver else old.title,
                # The newest are kept: an incident of days must not grow without bound.
                findings=(*old.findings, finding.id)[-self._settings.max_findings :],
                rules=old.rules if rule in old.rules else (*old.rules, rule),
            ),
            finding,
        )
        live.seen_clock = self._clock
        return Change("escalated" if escalates else "updated", live.incident)

    def _absorb(self, spiral: Incident) -> list[Change]:
        """Inhibition: what is open about members of a spiral's root run becomes part of the spiral."""
        members = [
            live
            for live in self._live.values()
            if live.incident.id != spiral.id and live.incident.root_run_id == spiral.root_run_id
        ]
        changes = []
        for live in members:
            taken = self._live[spiral.id].incident
            self._live[spiral.id].incident = replace(
                taken,
                findings=(*live.incident.findings, *taken.findings)[-self._settings.max_findings :],
                rules=tuple(dict.fromkeys((*taken.rules, *live.incident.rules))),
            )
            changes.append(self._resolve(live, ts=spiral.ts, merged_into=spiral.id))
        return changes

    def _resolve(self, live: _Live, ts: float, merged_into: str | None = None) -> Change:
        incident = replace(live.incident, state="resolved", ts=ts, merged_into=merged_into)
        del self._live[incident.id]
        self._by_key = {key: name for key, name in self._by_key.items() if name != incident.id}
        return Change("resolved", incident)


def _keys(finding: Finding) -> Iterable[tuple[str, ...]]:
    """Where a finding belongs, best first."""
    yield ("root", finding.root_run_id)
    if finding.scope is not Scope.ROOT:
        yield ("run", finding.agent_id, finding.run_id)
    if finding.scope is Scope.AGENT:
        yield ("agent", finding.agent_id)


def _own_keys(incident: Incident) -> Iterable[tuple[str, ...]]:
    if incident.scope is Scope.ROOT:
        yield ("root", incident.root_run_id)
    else:
        yield ("run", incident.agent_id, incident.run_id)
        yield ("agent", incident.agent_id)


def _spend(incident: Incident, finding: Finding) -> Incident:
    """The incident with the spend that the finding tells of; spend only grows."""
    evidence = finding.evidence
    return replace(
        incident,
        cost_usd=max(incident.cost_usd, float(evidence.get("cost_usd", 0.0))),
        effective_tokens=max(incident.effective_tokens, float(evidence.get("effective_tokens", 0.0))),
        evidence=dict(evidence),
    )
