"""Metrics: as declared, bounded, counted once, and what alert rules ask for exists."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from detectors.types import Finding, Scope
from stream.clock import ManualClock
from stream.incidents import Incidents
from stream.ingest.reject import Reason, Reject
from stream.metrics import DECLARED, OUTCOMES, PREFIX, Metrics, PartitionState
from stream.settings import default_settings

ROOT = Path(__file__).resolve().parents[2]
RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load((ROOT / "docs" / "alerts.yaml").read_text())["groups"] for rule in group["rules"]
]

FINDING = Finding(
    id="f-1", detector="retry_loop", rule="same_call", severity="warning", scope=Scope.RUN, ts=100.0, agent_id="a",
    run_id="r", root_run_id="t", event_id="e", score=0.5, observed=4.0, expected=4.0, unit="calls", reason="a repeats",
    evidence={},
)  # fmt: skip


def filled() -> Metrics:
    """Metrics after a little of everything."""
    metrics = Metrics(ManualClock(50.0))
    metrics.batch("watch", 0.3, 8000)
    metrics.taken(7990)
    metrics.rejected([Reject(Reason.MALFORMED, "", "usage/0/1"), Reject(Reason.DUPLICATE, "", "usage/0/2")])
    metrics.found([FINDING, replace(FINDING, id="f-2"), replace(FINDING, severity="critical")])
    metrics.shed({"drift": 100})
    metrics.partitions([PartitionState("usage", 0, 12, 3.5), PartitionState("bf.events", 1, 4, 1.0, 60.0, 7)])
    metrics.waiting({"usage": 500})
    metrics.overloaded(True)
    metrics.quarantined({"drift": 2})
    metrics.assigned(2)
    metrics.action("slack", "open", "sent")
    metrics.actions_waiting("slack", 3)
    metrics.checkpoint("bf.events/0", 1.5, 1000)
    metrics.checkpoint_piece(0.02)
    incidents = Incidents(default_settings().incidents)
    incidents.add(FINDING, 100.0)
    metrics.incidents(incidents.open)
    return metrics


def samples(metrics: Metrics) -> Iterable[Any]:
    return [sample for family in metrics.registry.collect() for sample in family.samples]


def test_what_happened_is_counted() -> None:
    value = filled().registry.get_sample_value
    told = {
        "events_taken_total": ({}, 7990),
        "events_rejected_total": ({"reason": "malformed"}, 1),
        "events_duplicate_total": ({}, 1),
        "batch_seconds_count": ({"stage": "watch"}, 1),
        "batch_records_total": ({"stage": "watch"}, 8000),
        "lag_records": ({"topic": "usage", "partition": "0"}, 12),
        "lag_seconds": ({"topic": "bf.events", "partition": "1"}, 1.0),
        "watermark_delay_seconds": ({"topic": "bf.events", "partition": "1"}, 60.0),
        "records_waiting": ({"topic": "usage"}, 500),
        "events_held": ({"topic": "bf.events"}, 7),
        "overloaded": ({}, 1),
        "shed_events_total": ({"detector": "drift"}, 100),
        "findings_total": ({"detector": "retry_loop", "severity": "warning"}, 2),
        "detector_quarantined": ({"detector": "drift"}, 2),
        "incidents_open": ({"severity": "warning"}, 1),
        "actions_total": ({"action": "slack", "state": "open", "outcome": "sent"}, 1),
        "actions_waiting": ({"action": "slack"}, 3),
        "checkpoint_age_seconds": ({}, 0.0),
        "checkpoint_seconds_sum": ({}, 1.5),
        "checkpoint_bytes_total": ({}, 1000),
        "checkpoint_piece_seconds_sum": ({}, 0.02),
        "partitions_assigned": ({}, 2),
    }
    assert {name: value(PREFIX + name, labels) for name, (labels, _) in told.items()} == {
        name: expected for name, (_, expected) in told.items()
    }


def test_a_partition_that_moved_away_is_told_no_more() -> None:
    metrics = filled()
    metrics.partitions([PartitionState("usage", 3, 1, 0.5)])
    places = {(s.labels["topic"], s.labels["partition"]) for s in samples(metrics) if "partition" in s.labels}
    assert places == {("usage", "3")}


def test_before_anything_happened_what_is_alerted_on_is_there() -> None:
    value = Metrics(ManualClock()).registry.get_sample_value
    assert value("burnfuse_incidents_open", {"severity": "critical"}) == 0
    assert value("burnfuse_events_rejected_total", {"reason": "malformed"}) == 0
    for name in ("checkpoint_age_seconds", "kafka_silence_seconds"):
        assert math.isnan(value(PREFIX + name) or 0)


@pytest.mark.parametrize("one", DECLARED, ids=lambda one: one.name)
def test_each_is_declared_as_the_field_does_it(one: Any) -> None:
    assert re.fullmatch(r"[a-z][a-z_]*[a-z]", one.name)
    assert (one.kind == "counter") == one.name.endswith("_total")
    assert (one.unit == "s") == one.name.endswith("_seconds")
    assert (one.unit == "bytes") == one.name.removesuffix("_total").endswith("_bytes")
    assert one.help.endswith(".")
    assert one.alert
    assert bool(one.buckets) == (one.kind == "histogram")


def test_names_are_declared_once() -> None:
    assert len({one.name for one in DECLARED}) == len(DECLARED)


def test_no_label_can_have_endless_values() -> None:
    bounded = {"reason", "stage", "topic", "partition", "detector", "severity", "action", "state", "outcome"}
    assert {label for one in DECLARED for label in one.labels} <= bounded
    # Nor can an agent's name come in by a value.
    assert not [s for s in samples(filled()) if {"a", "r", "t", "f-1"} & set(s.labels.values())]


def test_a_counter_is_one_line() -> None:
    assert [s.name for s in samples(filled()) if s.name.endswith("_created")] == []


def test_two_workers_in_one_process_share_nothing() -> None:
    one, other = Metrics(ManualClock()), Metrics(ManualClock())
    one.taken(5)
    assert other.registry.get_sample_value("burnfuse_events_taken_total") == 0


# ------------------------------------------------------------------------------------------- alerts


def test_alerts_ask_for_metrics_that_exist() -> None:
    known = {PREFIX + one.name: set(one.labels) for one in DECLARED}
    for rule in RULES:
        names = re.findall(r"\bburnfuse_\w+", rule["expr"])
        assert names
        assert set(names) <= set(known), rule["alert"]
        for name, selector in re.findall(r"(burnfuse_\w+)\{([^}]*)\}", rule["expr"]):
            assert set(re.findall(r"(\w+)\s*=", selector)) <= known[name]
        for labels in re.findall(r"by \(([^)]*)\)", rule["expr"]):
            assert set(labels.split(", ")) <= set().union(*(known[name] for name in names))


def test_alerts_name_values_that_exist() -> None:
    for rule in RULES:
        for label, values in re.findall(r"(\w+)=~?\"([^\"]*)\"", rule["expr"]):
            allowed = {"outcome": set(OUTCOMES), "severity": {"warning", "critical"}}[label]
            assert set(values.split("|")) <= allowed


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_alerts_say_what_is_wrong_and_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert set(rule["annotations"]) == {"summary", "do"}
    assert rule["alert"].startswith("Burnfuse")


def test_what_is_worth_an_alert_has_a_rule() -> None:
    expressions = " ".join(rule["expr"] for rule in RULES)
    without = {one.name for one in DECLARED if PREFIX + one.name not in expressions}
    assert without == {
        # Nothing to wake anybody for, by what the table says itself.
        *(one.name for one in DECLARED if one.alert.startswith("no alert")),
        # Depend on what is usual for a fleet, or are told by another rule.
        "batch_seconds", "watermark_delay_seconds", "events_held", "shed_events_total", "findings_total",
        "event_loop_delay_seconds", "partitions_assigned",
    }  # fmt: skip
