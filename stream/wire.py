"""Findings and incidents as JSON: on standard output and on their topics."""

from __future__ import annotations

import math
from typing import Annotated, Any

import msgspec

from detectors.types import Finding
from stream.incidents import Incident
from stream.text import LAST_SECOND


def finding_json(finding: Finding) -> dict[str, Any]:
    """The finding as `watch --json` prints it and the findings topic carries it."""
    fields: dict[str, Any] = msgspec.to_builtins(finding)
    return {"type": "finding"} | fields


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


_Time = Annotated[float, msgspec.Meta(ge=0, le=LAST_SECOND)]


class _Spent(msgspec.Struct):
    """The evidence that incidents add up."""

    cost_usd: float = 0.0
    effective_tokens: float = 0.0


class _Place(msgspec.Struct):
    """What a record of the findings topic says besides the finding, and what of it must not be just any value."""

    ts: _Time
    clock: _Time | None = None
    source: str = ""
    evidence: _Spent = msgspec.field(default_factory=_Spent)


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
    place = _decode_place(value)
    return _decode_finding(value), -math.inf if place.clock is None else place.clock, place.source


_encode = msgspec.json.Encoder().encode
_decode_finding = msgspec.json.Decoder(Finding).decode
_decode_place = msgspec.json.Decoder(_Place).decode
