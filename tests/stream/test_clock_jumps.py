"""The wall clock is set while the worker runs: by hours, ahead or back. Nothing is lost, and little waits."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest

from stream.batches import record_of
from stream.clock import ManualClock
from stream.columns import Columns
from stream.engine import WATCH
from stream.ingest.ingest import Record
from stream.pipeline import make_ingest
from stream.progress import Progress
from stream.settings import default_settings
from stream.stages import DetectStage, IngestStage, Topics, own, position_name
from stream.state import Saved, origin

SETTINGS = default_settings()
TOPICS = Topics.of(SETTINGS.kafka)
BEGIN_S = 1_800_000_000.0
HOURS = [2 * 3600.0, -2 * 3600.0]


class Jumping(ManualClock):
    """Wall time is set as one likes; monotonic time just goes on."""

    jump = 0.0

    def now(self) -> float:
        return super().now() + self.jump


class Offsets:
    """A consumer that only knows where partitions end."""

    async def end_offsets(self, partitions: list[Any]) -> dict[Any, int]:
        return dict.fromkeys(partitions, 1)


def record(n: int, logged_s: float) -> Record:
    event = {"agent_id": "a", "ts": logged_s, "event_id": f"e{n}"}
    return Record(json.dumps(event).encode(), 0, n, log_ms=int(logged_s * 1000), sequence=n)


@pytest.mark.parametrize("jump", HOURS)
def test_what_a_partition_was_read_to_never_falls_behind_its_newest_record(jump: float) -> None:
    clock = Jumping(BEGIN_S)
    progress = Progress(SETTINGS, TOPICS.usage, clock)
    progress._consumer = Offsets()
    progress.reassign({0})
    progress.passed_on(progress.passing_on([record(0, BEGIN_S)]))
    clock.jump = jump
    (told,) = asyncio.run(progress.look()).values()
    assert told >= BEGIN_S * 1000


@pytest.mark.parametrize("jump", HOURS)
def test_events_logged_after_a_jump_are_judged_all_the_same(jump: float) -> None:
    clock = Jumping(BEGIN_S)
    ingest = IngestStage(TOPICS, make_ingest(SETTINGS, position_name(TOPICS.usage), clock, None), inputs=1, outputs=1)
    stage = DetectStage(SETTINGS, TOPICS, WATCH, "bf.events/0", clock)

    def take(messages: Any) -> None:
        for message in messages:
            if message.topic == TOPICS.events:
                stage.add(message.value, message)

    done = 0
    for n in range(20):
        if n == 10:
            # The heartbeat speaks of the worker's time, the log goes on in the broker's.
            clock.jump = jump
            take(ingest.heartbeat({0: int(clock.now() * 1000)}, TOPICS.events))
        take(ingest.process([record(n, BEGIN_S + n)]))
        done += sum(1 for _ in stage.step()[1])
        clock.advance(1.0)
    # An input partition that nobody hears of any more holds back nobody.
    clock.advance(30.0)
    stage.read_up_to(stage.end, clock.monotonic())
    stage.step()
    assert stage.waiting == 0
    value = stage._metrics.registry.get_sample_value
    assert value("burnfuse_events_taken_total") == 20
    assert value("burnfuse_events_rejected_total", {"reason": "bad_time"}) == 0


def raw(n: int, at_s: float, logged_s: float) -> Any:
    """A record as aiokafka reads it."""
    value = json.dumps({"agent_id": "a", "ts": at_s, "event_id": f"e{n}"}).encode()
    return SimpleNamespace(value=value, partition=0, offset=n, timestamp=int(logged_s * 1000), headers=())


def taken_by(*stages: DetectStage) -> float:
    """How many events have gone through detectors."""
    return sum(stage._metrics.registry.get_sample_value("burnfuse_events_taken_total") or 0.0 for stage in stages)


def test_a_producer_whose_clock_is_a_day_ahead_holds_nothing_back() -> None:
    clock = Jumping(BEGIN_S)
    ingest = IngestStage(TOPICS, make_ingest(SETTINGS, position_name(TOPICS.usage), clock, None), inputs=1, outputs=1)
    stage = DetectStage(SETTINGS, TOPICS, WATCH, "bf.events/0", clock)
    for n in range(6):
        one = raw(n, clock.now(), clock.now() + (86_400.0 if n == 2 else 0.0))
        for message in ingest.process([record_of(one)]):
            stage.add(message.value, message)
        stage.step()
        clock.advance(1.0)
    # All but the latest: it may have company in its millisecond.
    assert stage.waiting == 1
    assert stage.first == stage.end - 1


@pytest.mark.parametrize("jump", [*HOURS, -30.0, -5.0, 0.0])
def test_a_keyed_input_that_is_read_again_by_another_clock_loses_nothing(jump: float) -> None:
    clock = Jumping(BEGIN_S)
    ingest = IngestStage(TOPICS, make_ingest(SETTINGS, position_name(TOPICS.usage), clock, None), inputs=1, outputs=1)
    made_of = origin(TOPICS.usage, 1, None)
    first, second = (DetectStage(SETTINGS, TOPICS, WATCH, f"{TOPICS.usage}/0", clock) for _ in range(2))

    def read(stage: DetectStage, log: list[Any]) -> None:
        _, handed = ingest.hand_over(list(map(record_of, log)))
        stage.take(handed[0], None, log[-1].offset)
        stage.step()

    # Two are out of order, and the latest one waits.
    log = [raw(n, BEGIN_S + n, BEGIN_S + n + {5: 1.5, 6: -1.0}.get(n, 0.0)) for n in range(8)]
    clock.advance(7.0)
    read(first, log[:7])
    assert first.waiting
    saved = Saved()
    saved.take(first.checkpoint(made_of))
    clock.jump = jump
    assert list(second.restore(saved, made_of))
    read(second, log[second.first :])
    second.take(own(Columns.empty(), 1 << 62), None)  # the partition is idle
    second.step()
    assert second.waiting == 0
    assert taken_by(first, second) == 8
