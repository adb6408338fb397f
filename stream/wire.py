"""Findings and incidents as JSON: on standard output and on their topics."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from detectors.types import Finding, Scope, Severity
from stream.incidents import Incident


def finding_json(finding: Finding) -> dict[str, Any]:
    """The finding as `watch --json` prints it and the findings topic carries it."""
    return {
        "type": "finding",
        "id": finding.id,
        "detector": finding.detector,
        "rule": finding.rule,
        "severity": finding.severity,
        "ts": finding.ts,
        "agent_id": finding.agent_id,
        "run_id": finding.run_id,
        "root_run_id": finding.root_run_id,
        "event_id": finding.event_id,
        "score": finding.score,
        "observed": finding.observed,
        "expected": finding.expected,
        "unit": finding.unit,
        "reason": finding.reason,
        "evidence": dict(finding.evidence),
        "scope": finding.scope.value,
    }


def incident_json(incident: Incident) -> dict[str, Any]:
    """The incident as `watch --json` prints it and the incidents topic carries it."""
    return {
        "type": "incident",
        "id": incident.id,
        "state": incident.state,
        "severity": incident.severity,
        "ts": incident.ts,
        "agent_id": incident.agent_id,
        "run_id": incident.run_id,
        "root_run_id": incident.root_run_id,
        "title": incident.title,
        "findings": list(incident.findings),
        "rules": list(incident.rules),
        "cost_usd": round(incident.cost_usd, 6),
        "effective_tokens": round(incident.effective_tokens, 3),
        "opened_ts": incident.opened_ts,
        "merged_into": incident.merged_into,
    }


class _FindingWire(msgspec.Struct):
    id: str
    detector: str
    rule: str
    severity: Severity
    ts: float
    agent_id: str
    run_id: str
    root_run_id: str
    event_id: str
    score: float
    observed: float
    expected: float
    unit: str
    reason: str
    evidence: dict[str, Any]
    scope: Scope
    clock: float | None = None
    source: str = ""


def encode_finding(finding: Finding, clock: float, source: str) -> bytes:
    """The record of the findings topic.

    Args:
        clock: Stream clock when it was found, s.
        source: Whose clock that is: the inner partition.
    """
    # JSON has no infinity: a clock that does not stand yet is null.
    extra = {"clock": clock if math.isfinite(clock) else None, "source": source}
    return _encode(finding_json(finding) | extra)


def decode_finding(value: bytes) -> tuple[Finding, float, str]:
    """The finding, clock and source that `encode_finding` wrote.

    Raises:
        msgspec.DecodeError: the record is damaged.
    """
    fields = msgspec.structs.asdict(_decode_finding(value))
    clock, source = fields.pop("clock"), fields.pop("source")
    return Finding(**fields), -math.inf if clock is None else clock, source


_encode = msgspec.json.Encoder().encode
_decode_finding = msgspec.json.Decoder(_FindingWire).decode
