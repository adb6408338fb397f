"""Kill proposals: what a kill switch would stop, put on Kafka for a controller to decide."""

from __future__ import annotations

import base64
import hashlib
import uuid
from typing import Any, ClassVar, Literal

import msgspec
from pydantic import Field, field_validator

from detectors import registered
from stream.actions.base import ActionConfig, Outcome, Sent, Skipped, Tools, register
from stream.incidents import Incident

PAYLOAD_TYPE = "application/vnd.burnfuse.kill+json; v=1"
_NAMESPACE = uuid.UUID("6f1d8a0e-5b0c-5d53-9d5e-0b8a6b6f5a10")
_OVER_KEPT = 10_000
"""Incidents that are over and remembered as proposed: a late finding may still come."""


class KillConfig(ActionConfig):
    """Which incidents lead to a proposal."""

    mode: Literal["dry_run"] = Field(
        default="dry_run", description="dry_run: proposals are marked as shadow, nothing will be stopped."
    )
    detectors: list[str] = Field(default=["runaway"], description="Detectors whose critical incidents count.")

    @field_validator("detectors")
    @classmethod
    def _known(cls, names: list[str]) -> list[str]:
        if unknown := [name for name in names if name not in registered()]:
            raise ValueError(f"no such detector: {', '.join(unknown)}; known: {', '.join(registered())}")
        return names

    topic: str | None = Field(default=None, description="Topic of the proposals; none: PREFIX.kill.proposals.")
    environment: str = Field(default="prod", description="Name of the deployment; agents ignore others'.")


@register
class Kill:
    """Proposes to stop the run of a critical incident: a record ready to be signed, in dry-run mode.

    The record is a DSSE envelope without signatures yet. A proposal is made once per incident.
    """

    name: ClassVar[str] = "kill"
    Config: ClassVar[type[ActionConfig]] = KillConfig

    every_change: ClassVar[bool] = True
    """An incident may be critical and over within one batch; it is proposed for all the same."""

    def __init__(self, config: KillConfig, tools: Tools) -> None:
        self._config, self._tools = config, tools
        self._proposed: set[str] = set()
        self._over: dict[str, None] = {}

    async def execute(self, incident: Incident) -> Outcome:
        if incident.severity != "critical":
            return Skipped("only critical incidents lead to a proposal")
        if incident.id in self._proposed or incident.id in self._over:
            if incident.state == "resolved":
                self._end(incident.id)
            return Skipped("proposed before")
        if not any(rule.split(".")[0] in self._config.detectors for rule in incident.rules):
            return Skipped("none of its detectors is in actions.kill.detectors")
        key, envelope = proposal(incident, self._config, self._tools.clock.now())
        # What came and went while nobody could be told is proposed as well: a controller sees what it would have
        # seen without the outage, and decides. Noted before it is sent: the incident's next change may come while
        # this one waits for Kafka.
        self._proposed.add(incident.id)
        try:
            await self._tools.publish(self._config.topic or self._tools.proposals_topic, key.encode(), envelope)
        except Exception:
            self._proposed.discard(incident.id)
            raise
        if incident.state == "resolved":
            self._end(incident.id)
        return Sent(key)

    def _end(self, incident_id: str) -> None:
        self._proposed.discard(incident_id)
        self._over[incident_id] = None
        while len(self._over) > _OVER_KEPT:
            del self._over[next(iter(self._over))]

    def remembered(self, incident_id: str) -> bytes:
        return b"proposed" if incident_id in self._proposed else b""

    def remember(self, incident_id: str, saved: bytes) -> None:
        self._proposed.add(incident_id)

    def doubt(self, incident_id: str) -> None:
        """A proposal that comes twice has the same `command_id`."""

    async def close(self) -> None:
        """Nothing is held open."""


def proposal(incident: Incident, config: KillConfig, now: float) -> tuple[str, bytes]:
    """Key and value of the proposal: a DSSE envelope around a kill command for one run."""
    key = f"|run|{incident.run_id}"
    payload: dict[str, Any] = {
        "v": 1,
        "env": config.environment,
        "key": key,
        "command_id": str(uuid.uuid5(_NAMESPACE, f"{key}|{incident.id}")),
        "state": "PROPOSED",
        "mode": "shadow",
        "action": "stop",
        "target": {"scope": "run", "id": incident.run_id, "agent_id": incident.agent_id},
        "reason": {
            "rules": list(incident.rules),
            "text": incident.title,
            "incident_id": incident.id,
            "evidence_digest": "sha256:" + hashlib.sha256(msgspec.json.encode(incident.findings)).hexdigest(),
        },
        "issued_at": round(now, 3),
    }
    body = msgspec.json.encode(payload, order="sorted")
    envelope = {"payloadType": PAYLOAD_TYPE, "payload": base64.b64encode(body).decode(), "signatures": []}
    return key, msgspec.json.encode(envelope)


def signing_bytes(payload_type: str, payload: bytes) -> bytes:
    """What a signature covers: the pre-authentication encoding of DSSE v1."""
    kind = payload_type.encode()
    return b" ".join((b"DSSEv1", str(len(kind)).encode(), kind, str(len(payload)).encode(), payload))
