"""Findings folded into incidents: what on-call sees."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import msgspec

from detectors.types import SEVERITIES, Finding, Scope, Severity
from stream.settings import IncidentSettings

State = Literal["open", "escalated", "resolved"]
ChangeKind = Literal["opened", "updated", "escalated", "resolved"]

_RESOLVED_KEPT = 500
"""Resolved incidents remembered, for findings that come late."""


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
    last_ts: float
    """Event time of the latest finding, s."""
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

    kind: ChangeKind
    incident: Incident


class SavedIncident(msgspec.Struct, array_like=True):
    """An incident as it is remembered.

    Attributes:
        order: Incidents are remembered in this order.
        source: Whose clock measures its quiet; None: it has been resolved.
        seen_clock: That clock when the latest finding came, s.
    """

    incident: Incident
    order: int
    source: str | None = None
    seen_clock: float = 0.0


@dataclass(slots=True)
class _Live:
    incident: Incident
    source: str
    """Whose clock measures its quiet: that of the partition which its latest finding came from."""
    seen_clock: float
    """That clock when the latest finding came."""


class Incidents:
    """Folds findings, in order, into incidents.

    One incident per agent and run; findings about an agent as a whole join the agent's open incident if
    there is one. A spiral takes in everything found in its root run.
    """

    def __init__(self, settings: IncidentSettings) -> None:
        self._settings = settings
        self._live: dict[str, _Live] = {}
        self._by_key: dict[tuple[str, ...], str] = {}
        self._resolved: OrderedDict[str, Incident] = OrderedDict()
        self._clocks: dict[str, float] = {}
        self._order: dict[str, int] = {}
        self._last = 0
        self._changed: set[str] = set()

    @property
    def open(self) -> list[Incident]:
        """Incidents not resolved yet, oldest first."""
        return [live.incident for live in self._live.values()]

    def add(self, finding: Finding, clock: float, source: str = "") -> list[Change]:
        """Takes a finding in.

        Args:
            clock: Stream clock at the finding, s: event time that never goes back.
            source: Whose clock: partitions of a replayed stream may be hours apart.
        """
        clock = self._at(source, clock)
        live = self._find(finding)
        past = self._past(finding) if live is None else None
        if past is not None:
            return [] if finding.id in past.findings else [self._append(past, finding)]
        if live is None:
            changes = [self._open(finding, clock, source)]
        elif finding.id in live.incident.findings:
            return []
        else:
            live.source, live.seen_clock = source, clock
            self._changed.add(live.incident.id)
            changes = [self._extend(live, finding)]
        return self._absorb(changes[0]) if finding.scope is Scope.ROOT else changes

    def advance(self, clock: float, source: str = "") -> list[Change]:
        """Resolves what has been quiet for long enough by `clock`, s."""
        clock = self._at(source, clock)
        quiet = []
        for live in self._live.values():
            if live.source != source:
                continue
            if live.seen_clock == float("-inf"):  # found before the clock stood
                live.seen_clock = clock
                self._changed.add(live.incident.id)
            if clock - live.seen_clock >= self._settings.quiet_s:
                quiet.append(live)
        return [self._resolve(live, ts=live.incident.last_ts + self._settings.quiet_s) for live in quiet]

    def idle(self, seconds: float, source: str = "") -> list[Change]:
        """Nothing came from a source for so long, s: its time goes on all the same."""
        return self.advance(self._clocks.get(source, float("-inf")) + seconds, source)

    @property
    def sources(self) -> set[str]:
        """Sources that open incidents wait for."""
        return {live.source for live in self._live.values()}

    # ------------------------------------------------------------------------------ saved state

    def _note(self, name: str) -> None:
        self._last += 1
        self._order[name] = self._last
        self._changed.add(name)

    @property
    def clocks(self) -> dict[str, float]:
        """Source -> its clock, s."""
        return dict(self._clocks)

    def changed(self) -> dict[str, SavedIncident | None]:
        """Incidents that differ from what they were when this was asked before; None: no longer remembered."""
        changed, self._changed = sorted(self._changed), set()
        return {name: self._saved(name) for name in changed}

    def all_changed(self) -> None:
        """All incidents are to be saved anew."""
        self._changed.update(self._order)

    def _saved(self, name: str) -> SavedIncident | None:
        if (live := self._live.get(name)) is not None:
            return SavedIncident(live.incident, self._order[name], live.source, live.seen_clock)
        past = self._resolved.get(name)
        return None if past is None else SavedIncident(past, self._order[name])

    def load(self, saved: Iterable[SavedIncident], clocks: dict[str, float]) -> None:
        """Takes in what was remembered, before any finding."""
        for one in sorted(saved, key=lambda one: one.order):
            incident = one.incident
            if one.source is None:
                self._resolved[incident.id] = incident
            else:
                self._live[incident.id] = _Live(incident, one.source, one.seen_clock)
                self._by_key |= dict.fromkeys(_own_keys(incident), incident.id)
            self._order[incident.id] = one.order
            self._last = max(self._last, one.order)
        self._clocks = dict(clocks)

    def _at(self, source: str, clock: float) -> float:
        self._clocks[source] = clock = max(clock, self._clocks.get(source, float("-inf")))
        return clock

    def _find(self, finding: Finding) -> _Live | None:
        for key in _keys(finding):
            if key in self._by_key:
                return self._live[self._by_key[key]]
        return None

    def _past(self, finding: Finding) -> Incident | None:
        """The resolved incident at whose time the finding was made: partitions do not run in step."""
        keys = set(_keys(finding))
        for incident in reversed(self._resolved.values()):
            begin, end = incident.opened_ts - self._settings.quiet_s, incident.last_ts + self._settings.quiet_s
            graver = finding.severity == "critical" and incident.severity == "warning"
            if incident.merged_into is not None:
                continue  # it ended because a spiral goes on, not because it was quiet
            # What is graver than on-call was told opens an incident of its own.
            if not graver and begin <= finding.ts <= end and keys & set(_own_keys(incident)):
                return incident
        return None

    def _append(self, past: Incident, finding: Finding) -> Change:
        """Adds to a resolved incident, which stays resolved."""
        self._resolved[past.id] = incident = self._with(past, finding)
        self._changed.add(past.id)
        return Change("updated", incident)

    def _open(self, finding: Finding, clock: float, source: str) -> Change:
        incident = _spend(
            Incident(
                id="i-" + hashlib.blake2b(finding.id.encode(), digest_size=8).hexdigest(),
                state="open",
                severity=finding.severity,
                scope=finding.scope,
                opened_ts=finding.ts,
                ts=finding.ts,
                last_ts=finding.ts,
                agent_id=finding.agent_id,
                run_id=finding.run_id,
                root_run_id=finding.root_run_id,
                title=finding.reason,
                findings=(finding.id,),
                rules=(f"{finding.detector}.{finding.rule}",),
            ),
            finding,
        )
        self._live[incident.id] = _Live(incident, source, clock)
        self._note(incident.id)
        for key in _own_keys(incident):
            self._by_key[key] = incident.id
        return Change("opened", incident)

    def _extend(self, live: _Live, finding: Finding) -> Change:
        escalates = finding.severity == "critical" and live.incident.severity == "warning"
        live.incident = self._with(live.incident, finding)
        if escalates:
            live.incident = replace(live.incident, state="escalated")
        return Change("escalated" if escalates else "updated", live.incident)

    def _with(self, old: Incident, finding: Finding) -> Incident:
        rule = f"{finding.detector}.{finding.rule}"
        graver = finding.severity == "critical" or old.severity == "warning"
        last_ts = max(old.last_ts, finding.ts)
        return _spend(
            replace(
                old,
                severity=finding.severity if graver else old.severity,
                ts=old.ts if old.state == "resolved" else last_ts,
                last_ts=last_ts,
                title=finding.reason if graver else old.title,
                # The newest are kept: an incident of days must not grow without bound.
                findings=(*old.findings, finding.id)[-self._settings.max_findings :],
                rules=old.rules if rule in old.rules else (*old.rules, rule),
            ),
            finding,
        )

    def _absorb(self, change: Change) -> list[Change]:
        """Inhibition: what is open about members of a spiral's root run becomes part of the spiral."""
        spiral = self._live[change.incident.id]
        self._changed.add(change.incident.id)
        members = [
            live
            for live in self._live.values()
            if live is not spiral and live.incident.root_run_id == spiral.incident.root_run_id
        ]
        changes = []
        for live in members:
            taken, member = spiral.incident, live.incident
            spiral.incident = replace(
                taken,
                # A spiral is as grave as what it takes in: that is over as an incident of its own.
                severity=max(taken.severity, member.severity, key=SEVERITIES.index),
                findings=(*member.findings, *taken.findings)[-self._settings.max_findings :],
                rules=tuple(dict.fromkeys((*taken.rules, *member.rules))),
            )
            changes.append(self._resolve(live, ts=change.incident.ts, merged_into=taken.id))
        kind = change.kind
        if kind == "updated" and spiral.incident.severity != change.incident.severity:
            kind, spiral.incident = "escalated", replace(spiral.incident, state="escalated")
        return [Change(kind, spiral.incident), *changes]

    def _resolve(self, live: _Live, ts: float, merged_into: str | None = None) -> Change:
        incident = replace(live.incident, state="resolved", ts=ts, merged_into=merged_into)
        del self._live[incident.id]
        self._resolved[incident.id] = incident
        self._note(incident.id)
        if len(self._resolved) > _RESOLVED_KEPT:
            gone, _ = self._resolved.popitem(last=False)
            self._changed.add(gone)
            del self._order[gone]
        # Anew, because an older incident of the agent may have been behind this one.
        self._by_key = {key: name for name, live in self._live.items() for key in _own_keys(live.incident)}
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
