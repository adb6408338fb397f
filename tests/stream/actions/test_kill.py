"""Kill proposals: only when asked for, once per incident, as an envelope that others can read and sign."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError

from detectors.types import Scope
from stream.actions.base import Outcome, Sent, Skipped, Tools
from stream.actions.kill import PAYLOAD_TYPE, Kill, KillConfig, signing_bytes
from stream.clock import ManualClock
from stream.incidents import Incident
from stream.settings import default_settings

WARNING = Incident(
    id="i-1",
    state="open",
    severity="warning",
    scope=Scope.AGENT,
    opened_ts=100.0,
    ts=100.0,
    last_ts=100.0,
    agent_id="support-triage",
    run_id="r-1",
    root_run_id="t-1",
    title="agent support-triage burns 20x what it usually does",
    findings=("f-1", "f-2"),
    rules=("runaway.burst",),
)
CRITICAL = replace(WARNING, state="escalated", severity="critical")
LOOP = replace(CRITICAL, rules=("retry_loop.same_call",))
BOTH = replace(CRITICAL, rules=("retry_loop.same_call", "runaway.burst"))
RESOLVED = replace(CRITICAL, state="resolved")


def run(incidents: Sequence[Incident], **config: Any) -> tuple[list[Outcome], list[tuple[str, bytes, bytes]]]:
    """Outcomes, and what was published."""
    published: list[tuple[str, bytes, bytes]] = []

    async def publish(topic: str, key: bytes, value: bytes) -> None:
        published.append((topic, key, value))

    async def main() -> list[Outcome]:
        kill = Kill(
            KillConfig(enabled=True, **config),
            Tools(publish=publish, clock=ManualClock(1234.5678), secret={}.get),
        )
        outcomes = [await kill.execute(incident) for incident in incidents]
        await kill.close()
        return outcomes

    return asyncio.run(main()), published


def test_it_is_off_unless_switched_on() -> None:
    assert not default_settings().actions.kill.enabled
    with pytest.raises(ValidationError):
        KillConfig(mode="enforce")


@pytest.mark.parametrize(
    ("incidents", "config", "proposals"),
    [
        ([WARNING], {}, 0),
        ([CRITICAL], {}, 1),
        ([WARNING, CRITICAL, CRITICAL, CRITICAL], {}, 1),
        ([CRITICAL, RESOLVED], {}, 1),
        ([RESOLVED], {}, 1),  # it came and went during an outage
        ([RESOLVED, RESOLVED], {}, 1),
        ([CRITICAL, RESOLVED, RESOLVED], {}, 1),
        ([replace(RESOLVED, severity="warning")], {}, 0),
        ([CRITICAL, replace(CRITICAL, id="i-2", run_id="r-2")], {}, 2),
        ([LOOP], {}, 0),
        ([LOOP, BOTH], {}, 1),
        ([LOOP], {"detectors": ["retry_loop", "spiral"]}, 1),
        ([CRITICAL], {"detectors": ["retry_loop", "spiral"]}, 0),
        ([CRITICAL, LOOP, BOTH], {"detectors": []}, 0),
        ([replace(CRITICAL, rules=("runaway_of_mine.x",))], {}, 0),
    ],
)
def test_what_leads_to_a_proposal(incidents: list[Incident], config: dict[str, Any], proposals: int) -> None:
    outcomes, published = run(incidents, **config)
    assert len(published) == proposals
    assert [type(outcome) for outcome in outcomes].count(Sent) == proposals
    assert {type(outcome) for outcome in outcomes} <= {Sent, Skipped}


def test_changes_that_come_while_a_proposal_is_being_sent_lead_to_no_second_one() -> None:
    published, sent = [], asyncio.Event()

    async def publish(topic: str, key: bytes, value: bytes) -> None:
        published.append(topic)
        await sent.wait()

    async def main() -> None:
        kill = Kill(KillConfig(enabled=True), Tools(publish=publish, clock=ManualClock(), secret={}.get))
        both = asyncio.gather(kill.execute(CRITICAL), kill.execute(CRITICAL))
        await asyncio.sleep(0)
        sent.set()
        await both

    asyncio.run(main())
    assert published == ["bf.kill.proposals"]


def test_a_proposal_that_could_not_be_sent_is_made_again() -> None:
    published = []

    async def publish(topic: str, key: bytes, value: bytes) -> None:
        published.append(topic)
        if len(published) == 1:
            raise ConnectionError

    async def main() -> None:
        kill = Kill(KillConfig(enabled=True), Tools(publish=publish, clock=ManualClock(), secret={}.get))
        with pytest.raises(ConnectionError):
            await kill.execute(CRITICAL)
        await kill.execute(CRITICAL)

    asyncio.run(main())
    assert len(published) == 2


def test_a_proposal_is_a_dsse_envelope_around_a_command_in_shadow() -> None:
    (outcome,), ((topic, key, value),) = run([CRITICAL], environment="staging", topic="kills")
    assert (topic, key, outcome) == ("kills", b"|run|r-1", Sent("|run|r-1"))
    envelope = json.loads(value)
    assert set(envelope) == {"payloadType", "payload", "signatures"}
    assert (envelope["payloadType"], envelope["signatures"]) == (PAYLOAD_TYPE, [])
    payload = json.loads(base64.b64decode(envelope["payload"], validate=True))
    assert payload == {
        "v": 1,
        "env": "staging",
        "key": "|run|r-1",
        "command_id": payload["command_id"],
        "state": "PROPOSED",
        "mode": "shadow",
        "action": "stop",
        "target": {"scope": "run", "id": "r-1", "agent_id": "support-triage"},
        "reason": {
            "rules": ["runaway.burst"],
            "text": CRITICAL.title,
            "incident_id": "i-1",
            "evidence_digest": "sha256:" + hashlib.sha256(b'["f-1","f-2"]').hexdigest(),
        },
        "issued_at": 1234.568,
    }


def test_the_command_is_the_same_whoever_proposes_it() -> None:
    def command_id(incident: Incident) -> str:
        _, ((_, _, value),) = run([incident])
        payload = json.loads(base64.b64decode(json.loads(value)["payload"]))
        return str(payload["command_id"])

    assert command_id(CRITICAL) == command_id(replace(CRITICAL, findings=("f-9",), title="another sentence"))
    others = [replace(CRITICAL, id="i-2"), replace(CRITICAL, run_id="r-2")]
    assert len({command_id(incident) for incident in [CRITICAL, *others]}) == 3


@pytest.mark.parametrize(
    ("payload_type", "payload", "signed"),
    [
        # The example of the specification: https://github.com/secure-systems-lab/dsse/blob/master/protocol.md
        ("http://example.com/HelloWorld", b"hello world", b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"),
        ("", b"", b"DSSEv1 0  0 "),
        ("é", b"\xff\x00", b"DSSEv1 2 \xc3\xa9 2 \xff\x00"),
    ],
)
def test_what_is_signed_is_that_of_the_specification(payload_type: str, payload: bytes, signed: bytes) -> None:
    assert signing_bytes(payload_type, payload) == signed
