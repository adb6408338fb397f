"""Findings and incidents as JSON: the names of the contract, and the way there and back."""

from __future__ import annotations

import json
import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from streams import encode, good, process

from detectors.types import Finding, Scope
from stream.incidents import Change
from stream.text import LAST_SECOND
from stream.wire import decode_finding, encode_finding, finding_json, incident_json

HAPPENED = process(encode(good())).happened
FINDINGS = [item for item in HAPPENED if isinstance(item, Finding)]
INCIDENTS = [item.incident for item in HAPPENED if isinstance(item, Change)]

FINDING_FIELDS = {
    "type",
    "id",
    "detector",
    "rule",
    "severity",
    "ts",
    "agent_id",
    "run_id",
    "root_run_id",
    "event_id",
    "score",
    "observed",
    "expected",
    "unit",
    "reason",
    "evidence",
}
INCIDENT_FIELDS = {
    "type",
    "id",
    "state",
    "severity",
    "ts",
    "agent_id",
    "root_run_id",
    "title",
    "findings",
    "cost_usd",
    "effective_tokens",
}


def test_the_names_are_those_of_the_contract() -> None:
    for finding in FINDINGS:
        told = finding_json(finding)
        assert set(told) >= FINDING_FIELDS
        assert told["type"] == "finding"
        assert told["severity"] in ("warning", "critical")
        assert 0 <= told["score"] <= 1
    for incident in INCIDENTS:
        told = incident_json(incident)
        assert set(told) >= INCIDENT_FIELDS
        assert told["type"] == "incident"
        assert told["state"] in ("open", "escalated", "resolved")


def test_real_findings_are_json_that_others_can_read() -> None:
    for told in [*map(finding_json, FINDINGS), *map(incident_json, INCIDENTS)]:
        text = msgspec.json.encode(told)
        assert json.loads(text, parse_constant=pytest.fail) == json.loads(json.dumps(told))


@pytest.mark.parametrize("finding", FINDINGS, ids=lambda finding: f"{finding.detector}.{finding.rule}")
@pytest.mark.parametrize("clock", [-math.inf, 0.0, 1_750_000_000.25])
def test_a_finding_comes_back_with_its_clock_and_whose_it_is(finding: Finding, clock: float) -> None:
    assert decode_finding(encode_finding(finding, clock, "watch/3")) == (finding, clock, "watch/3")


TEXT = st.text(max_size=10)
NUMBER = st.floats(allow_nan=False, allow_infinity=False)
TIME = st.floats(0, LAST_SECOND)


@given(
    st.builds(
        Finding,
        *(TEXT, TEXT, TEXT, st.sampled_from(["warning", "critical"]), st.sampled_from(Scope)),
        *(TIME, TEXT, TEXT, TEXT, TEXT, NUMBER, NUMBER, NUMBER, TEXT, TEXT),
        st.dictionaries(TEXT, TEXT | NUMBER | st.integers(-(2**60), 2**60) | st.none() | st.booleans()),
    ),
    TIME,
    TEXT,
)
def test_any_finding_comes_back(finding: Finding, clock: float, source: str) -> None:
    assert decode_finding(encode_finding(finding, clock, source)) == (finding, clock, source)


@pytest.mark.parametrize("damaged", [b"", b"{}", b"[]", b"\xff", encode_finding(FINDINGS[0], 0.0, "")[:-1]])
def test_a_damaged_record_is_told(damaged: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_finding(damaged)


@pytest.mark.parametrize(
    ("name", "value"),
    [("ts", 1e16), ("ts", -1.0), ("evidence", {"cost_usd": "much"}), ("evidence", {"effective_tokens": []})],
)
def test_a_finding_that_incidents_cannot_tell_is_damaged(name: str, value: object) -> None:
    told = finding_json(FINDINGS[0]) | {"clock": 1.0, "source": "watch/3", name: value}
    with pytest.raises(msgspec.DecodeError):
        decode_finding(msgspec.json.encode(told))
