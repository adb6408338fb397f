from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from kafka import KafkaAdminClient
from pydantic import ValidationError

from stream.settings import KafkaSettings
from stream.topics import plans


def topics(config: Path, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "stream", "topics", "--config", str(config), *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def config_file(tmp_path: Path, broker: str, prefix: str) -> Path:
    path = tmp_path / "burnfuse.yaml"
    kafka = {"bootstrap_servers": [broker], "prefix": prefix, "input_topic": f"{prefix}-usage", "partitions": 2}
    path.write_text(yaml.safe_dump({"kafka": kafka}))
    return path


def test_topics_are_created_once_with_their_settings(broker: str, topic_prefix: str, tmp_path: Path) -> None:
    config = config_file(tmp_path, broker, topic_prefix.rstrip("."))
    missing = topics(config, "--check", "--json")
    assert missing.returncode == 1
    assert {json.loads(line)["state"] for line in missing.stdout.splitlines()} == {"missing"}

    for state in ("created", "fine"):
        done = topics(config, "--json")
        assert done.returncode == 0, done.stderr
        assert {json.loads(line)["state"] for line in done.stdout.splitlines()} == {state}
    assert topics(config).returncode == 0  # the table for people


def test_a_topic_that_would_break_burnfuse_is_told(broker: str, topic_prefix: str, tmp_path: Path) -> None:
    prefix = topic_prefix.rstrip(".")
    config = config_file(tmp_path, broker, prefix)
    admin = KafkaAdminClient(bootstrap_servers=broker)
    admin.create_topics(
        {
            f"{prefix}.findings": {"num_partitions": 3},
            f"{prefix}.calibration": {"num_partitions": 1, "configs": {"cleanup.policy": "delete"}},
        },
        wait_for_metadata=True,
    )
    admin.close()
    done = topics(config, "--json")
    assert done.returncode == 1
    states = {x["topic"]: x["state"] for x in map(json.loads, done.stdout.splitlines())}
    assert states[f"{prefix}.findings"] == "has 3 partitions, should have 1"
    assert states[f"{prefix}.calibration"] == "cleanup.policy is delete, should be compact"


def test_all_topics_have_a_purpose_and_the_configured_names() -> None:
    wanted = plans(KafkaSettings(prefix="x", input_topic="in", partitions=5, input_partitions=7))
    assert {plan.name: plan.partitions for plan in wanted} | {} == {
        "in": 7, "x.events": 5, "x.graph": 5, "x.findings": 1, "x.incidents": 1, "x.dead": 1, "x.calibration": 1,
        "x.kill.proposals": 1, "x.kill.state": 1, "x.state.watch": 5, "x.state.graph": 5, "x.state.incidents": 1,
    }  # fmt: skip
    assert all(plan.why for plan in wanted)


def test_a_state_topic_has_as_many_partitions_as_the_topic_that_it_belongs_to() -> None:
    kafka = KafkaSettings(prefix="x", input_topic="in", partitions=5, input_partitions=7)

    def watched(**given: Any) -> int:
        return next(plan.partitions for plan in plans(kafka, **given) if plan.name == "x.state.watch")

    assert watched(keyed=True) == 7
    assert watched(keyed=True, counts={"in": 9}) == 9
    assert watched(counts={"in": 9, "x.events": 6}) == 6


@pytest.mark.parametrize(
    ("replication", "given", "is_set"), [(1, None, None), (2, None, None), (3, None, "2"), (5, None, "2"), (5, 3, "3")]
)
def test_where_there_are_replicas_enough_two_must_have_a_record(
    replication: int, given: int | None, is_set: str | None
) -> None:
    kafka = KafkaSettings(replication=replication, min_insync_replicas=given)
    assert {plan.configs.get("min.insync.replicas") for plan in plans(kafka)} == {is_set}


def test_more_replicas_in_sync_than_there_are_would_let_nobody_write() -> None:
    with pytest.raises(ValidationError, match=r"min_insync_replicas \(3\) must be at most replication \(2\)"):
        KafkaSettings(replication=2, min_insync_replicas=3)
