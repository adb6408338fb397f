"""The wall clock is set while the worker runs: by hours, ahead or back. Nothing is lost, and little waits."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest

from stream.batches import records_of
from stream.clock import ManualClock
from stream.engine import WATCH
from stream.ingest.ingest import Record
from stream.pipeline import make_ingest
from stream.progress import Progress
from stream.settings import default_settings
from stream.stages import DetectStage, IngestStage, Topics, position_name

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


def test_a_producer_whose_clock_is_a_day_ahead_holds_nothing_back() -> None:
    clock = Jumping(BEGIN_S)
    ingest = IngestStage(TOPICS, make_ingest(SETTINGS, position_name(TOPICS.usage), clock, None), inputs=1, outputs=1)
    stage = DetectStage(SETTINGS, TOPICS, WATCH, "bf.events/0", clock)
    for n in range(6):
        logged_s = clock.now() + (86_400.0 if n == 2 else 0.0)
        event = {"agent_id": "a", "ts": clock.now(), "event_id": f"e{n}"}
        raw = SimpleNamespace(
            value=json.dumps(event).encode(), partition=0, offset=n, timestamp=int(logged_s * 1000), headers=()
        )
        for message in ingest.process(records_of([raw], int(clock.now() * 1000))):
            stage.add(message.value, message)
        stage.step()
        clock.advance(1.0)
    # All but the latest: it may have company in its millisecond.
    assert stage.waiting == 1
    assert stage.first == stage.end - 1
