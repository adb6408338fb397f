"""How far a worker says that its partitions of the input were passed on."""

from __future__ import annotations

import asyncio
from typing import Any

from stream.clock import ManualClock
from stream.ingest.ingest import Record
from stream.progress import Progress
from stream.settings import default_settings

SETTINGS = default_settings()
HOLD_MS = int(SETTINGS.kafka.hold_s * 1000)


class Group:
    """A consumer that knows where partition 0 ends, and how far the group has committed it."""

    def __init__(self, end: int, done: int) -> None:
        self.end, self.done, self.asked = end, done, 0

    async def end_offsets(self, partitions: list[Any]) -> dict[Any, int]:
        return dict.fromkeys(partitions, self.end)

    async def committed(self, _: Any) -> int:
        self.asked += 1
        return self.done


def reading(group: Group) -> tuple[Progress, ManualClock]:
    """A worker that has passed on the records 0 to 4, logged at 100 s, and nothing since."""
    clock = ManualClock(100.0)
    progress = Progress(SETTINGS, "usage", clock)
    progress._consumer = group
    progress.reassign({0})
    progress.passed_on(progress.passing_on([Record(b"{}", 0, n, log_ms=100_000) for n in range(5)]))
    return progress, clock


def test_a_partition_that_was_read_elsewhere_for_a_while_holds_nobody_back() -> None:
    # The worker was frozen; another one read records 5 to 9 and committed them, and the partition came back.
    progress, clock = reading(Group(end=10, done=10))
    assert asyncio.run(progress.look()) == {0: 100_000}
    clock.advance(3.0)
    assert asyncio.run(progress.look()) == {0: 103_000 - HOLD_MS}


def test_a_partition_whose_records_wait_says_no_more_than_was_passed_on() -> None:
    group = Group(end=10, done=3)  # commits come after
    progress, clock = reading(group)
    for _ in range(5):
        assert asyncio.run(progress.look()) == {0: 100_000}
        clock.advance(1.0)


def test_the_group_is_not_asked_while_records_come() -> None:
    group = Group(end=10, done=5)
    progress, clock = reading(group)
    clock.advance(1.0)
    asyncio.run(progress.look())
    assert group.asked == 0
