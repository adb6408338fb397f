"""Dead letters on a real Kafka: listed, sent again, and too many of them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from deployment import Deployment
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition

from burnfuse.event import REPLAY_HEADER
from stream.columns import Packed

NOW = 1_790_000_000.0


@pytest.fixture
def house(broker: str, topic_prefix: str, tmp_path: Path) -> Deployment:
    return Deployment(broker, topic_prefix.rstrip("."), tmp_path)


def send(house: Deployment, *values: Any, partition: int = 0) -> None:
    with KafkaProducer(bootstrap_servers=house.broker) as producer:
        for value in values:
            data = value if isinstance(value, bytes) else json.dumps(value).encode()
            producer.send(f"{house.name}-usage", value=data, partition=partition, headers=[("own", b"kept")])
        producer.flush()


def event(name: str, **more: Any) -> dict[str, Any]:
    return {"event_id": name, "agent_id": "a", "ts": NOW, "kind": "llm", "input_tokens": 1} | more


def letters(house: Deployment) -> list[dict[str, Any]]:
    found = [json.loads(record.value) for record in house.read(f"{house.name}.dead")]
    return [letter for letter in found if "type" not in letter]


def passed(house: Deployment) -> list[str]:
    """Ids of the events that ingest took in."""
    records = house.read(f"{house.name}.events")
    return sorted(e for record in records for e in Packed.decode(record.value).columns.texts["event_id"])


def committed(house: Deployment) -> int:
    consumer = KafkaConsumer(bootstrap_servers=house.broker, group_id=f"{house.name}-app", enable_auto_commit=False)
    done = consumer.committed(TopicPartition(f"{house.name}-usage", 0)) or 0
    consumer.close()
    return done


def output(done: subprocess.CompletedProcess[str], code: int = 0) -> str:
    assert done.returncode == code, done.stderr
    return done.stdout


def test_letters_are_listed_and_their_records_sent_again_once(house: Deployment) -> None:
    strict = house.write("strict", input={"future_s": 60.0, "max_record_bytes": 1024})
    house.topics(strict)
    far = NOW + 10 * 366 * 86400
    send(
        house,
        event("good"),
        event("far", ts=far),
        [event("in the array"), {"agent_id": "a", "ts": far}, {"agent_id": 3}],
        b"{",
        event("large", run_id="r", attributes="x" * 1000),
    )
    with house.worker(strict) as process:
        house.wait_for("letters", lambda: len(letters(house)) >= 5, process)

    lines = [json.loads(x) for x in output(house.run("dlq", "list", "--json", "--config", strict)).splitlines()]
    assert lines[-1] == {
        "type": "summary", "listed": 5, "reasons": {"bad_time": 2, "invalid": 1, "truncated": 1, "too_large": 1}
    }  # fmt: skip
    usage = f"{house.name}-usage/0"
    assert [line["source"] for line in lines[:-1]] == [
        f"{usage}/1",
        f"{usage}/2[1]",
        f"{usage}/2[2]",
        f"{usage}/3",
        f"{usage}/4",
    ]
    table = output(
        house.run("dlq", "list", "--reason", "bad_time", "--limit", "1", "--since", "1h", "--config", strict)
    )
    assert table.endswith("1 listed; in all: 2 bad_time\n")
    assert f"{usage}/2[1]" in table
    assert "0 listed; in all: no dead letters" in output(
        house.run("dlq", "list", "--since", "2100-01-01T00:00:00Z", "--config", strict)
    )

    lax = house.write("lax", input={"future_s": 20 * 366 * 86400.0})
    replay = ("dlq", "replay", "--config", lax)
    before = len(house.read(f"{house.name}-usage"))
    assert output(house.run(*replay, "--dry-run")) == "4 records would be sent again, for 5 letters\n"
    assert len(house.read(f"{house.name}-usage")) == before
    assert output(house.run(*replay, "--ids", f"{usage}/4")) == "1 records sent again, for 1 letters\n"
    done = json.loads(output(house.run(*replay, "--reason", "bad_time", "--json")))
    assert done == {"type": "replay", "dry_run": False, "letters": 2, "records": 2, "gone": 0, "already": 0,
                    "elsewhere": 0}  # fmt: skip
    assert output(house.run(*replay, "--reason", "bad_time")) == (
        "0 records sent again, for 0 letters; 2 letters replayed before (--again sends them once more)\n"
    )
    sent = house.read(f"{house.name}-usage")[before:]
    assert [[name for name, _ in record.headers] for record in sent] == [["own", REPLAY_HEADER]] * 3
    with house.worker(lax) as process:
        # The event of the array that had no id keeps the one it got from its first place; the good one counts once.
        expected = sorted(["good", "in the array", "far", "large", f"{usage}/2[1]"])
        house.wait_for("replayed events", lambda: passed(house) == expected, process)
    assert len(letters(house)) == 5


def test_what_is_no_longer_there_is_counted(house: Deployment) -> None:
    config = house.write()
    house.topics(config)
    send(house, b"{", b"[", event("good"))
    with house.worker(config) as process:
        house.wait_for("letters", lambda: len(letters(house)) == 2, process)
    admin = KafkaAdminClient(bootstrap_servers=house.broker)
    admin.delete_records({TopicPartition(f"{house.name}-usage", 0): 1})
    admin.close()
    assert output(house.run("dlq", "replay", "--config", config), code=3) == (
        "1 records sent again, for 1 letters; 1 letters whose record is no longer on the input topic\n"
    )


def test_a_bad_deploy_stops_the_worker_and_a_restart_stops_again(house: Deployment) -> None:
    config = house.write(input={"max_rejected_of": 20})
    house.topics(config)
    send(house, *[event(f"good-{n}") for n in range(5)])
    with house.worker(config) as process:
        house.wait_for("good events", lambda: committed(house) == 5, process)
        send(house, *[event(f"bad-{n}", input_tokens=-1) for n in range(40)])
        assert process.wait(timeout=120) == 1
    log = (house.folder / "worker.log").read_text()
    last = log.splitlines()[-1]
    assert last.startswith("burnfuse: ")
    assert "had to be turned away, most as invalid (such as " in last
    assert "set input.max_rejected_share: 1" in last
    assert "Traceback" not in log
    drained, done = len(letters(house)), committed(house)
    assert drained < 40
    assert done < 45

    for _ in range(2):
        stopped = house.run("worker", "--config", config)
        assert stopped.returncode == 1
        assert len(stopped.stderr.splitlines()) == 1, stopped.stderr
        assert "had to be turned away" in stopped.stderr
        assert (len(letters(house)), committed(house)) == (drained, done)

    # The operator lets them go; then all is as before.
    with house.worker(house.write("open", input={"max_rejected_share": 1.0})) as process:
        house.wait_for("the rest", lambda: committed(house) == 45, process)
    assert len(letters(house)) == 40
    with house.worker(config) as process:
        send(house, event("good again"))
        house.wait_for("good events", lambda: committed(house) == 46, process)


# Wherever people put texts: in the contents, in fields of other types, in fields nobody knows, in no JSON at all.
MARK = "PLANTED-CONTENTS"
PLANTED: list[Any] = [
    {"args": {"prompt": MARK}, "result": MARK},
    {"args": MARK, "result": [MARK]},
    {"attributes": {"prompt": MARK}},
    {"prompt": MARK, "messages": [{"content": MARK}]},
    {"kind": MARK},
    {"status": MARK},
    {"ts": MARK},
    {"input_tokens": MARK},
    {"http_status": MARK},
    {"agent_id": [MARK]},
    {"ts": 9e12, "args": MARK},
    {"args": json.dumps({"prompt": MARK})},
    {"status": "error", "error_type": f"ValueError: could not parse {MARK}", "result": f"Traceback: {MARK}"},
    {"args": {"file_path": f"/home/{MARK}"}, "tool": "Read"},
    {"kind": "message", "to_agent_id": "b", "args": MARK},
]


def test_contents_are_nowhere_but_on_the_input_topic(house: Deployment) -> None:
    config = house.write(input={"max_rejected_share": 1.0})
    house.topics(config)
    rows = [event(f"e{n}", tool="t", kind="tool") | planted for n, planted in enumerate(PLANTED)]
    looping = [event(f"loop-{n}", kind="tool", tool="t", args={"q": MARK}, result=MARK, ts=NOW + n) for n in range(8)]
    raw = [MARK.encode(), f'{{"agent_id": "{MARK}'.encode(), f'["{MARK}"]'.encode(), f'{{"args": "{MARK}", }}'.encode()]
    send(house, *rows, *looping, *raw)
    with house.worker(config, BURNFUSE_HASH_KEY="a key") as process:
        house.wait_for("everything", lambda: committed(house) == len(rows) + len(looping) + len(raw), process)
        house.wait_for("findings", lambda: bool(house.read(f"{house.name}.incidents")), process)
    admin = KafkaAdminClient(bootstrap_servers=house.broker)
    own = [topic for topic in admin.list_topics() if topic.startswith(f"{house.name}.")]
    admin.close()
    assert len(own) >= 8
    found = {t for t in own for r in house.read(t) if MARK.encode() in (r.value or b"") + (r.key or b"")}
    assert not found
    assert MARK not in (house.folder / "worker.log").read_text()
    for command in (["dlq", "list"], ["dlq", "list", "--json"]):
        done = house.run(*command, "--config", config)
        assert MARK not in done.stdout + done.stderr
    assert letters(house)
