"""How far this worker has passed on the partitions of its input."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition

from stream.clock import Clock
from stream.connection import connected, for_aiokafka
from stream.ingest.ingest import Record, last_of
from stream.settings import Settings

_STUCK_S = 2.0
"""A partition that has records which do not come for so long may have been read elsewhere."""
_IDLE_AFTER_S = 10.0
"""An input partition idle for so long says so once and then keeps silent."""
_FOR_EVER_MS = 1 << 62


@dataclass(slots=True)
class Passed:
    """Per partition of the input: where the next record stands, and when the newest was logged, ms."""

    next: dict[int, int]
    newest: dict[int, int]


class Progress:
    """How far this worker has passed on each of its input partitions.

    A partition with traffic tells by the records themselves. One that was read to its end is said to be
    passed on up to a moment ago: `hold_s` covers records that are on their way to the broker.
    """

    def __init__(self, settings: Settings, topic: str, clock: Clock) -> None:
        self._kafka, self._topic, self._clock = settings.kafka, topic, clock
        self._consumer: Any = None
        self._next: dict[int, int] = {}
        self._newest: dict[int, int] = {}
        self._active: dict[int, float] = {}
        self._idle: set[int] = set()
        self._under_way: Counter[int] = Counter()
        self.assigned: set[int] = set()

    async def run(self) -> None:
        """Keeps a consumer open that only asks for offsets, for ever."""
        consumer = AIOKafkaConsumer(
            **for_aiokafka(self._kafka),
            group_id=self._kafka.app_id,
            enable_auto_commit=False,
            client_id="burnfuse-progress",
        )
        # Its partitions are named by hand: it never joins the group, it only reads the group's offsets.
        consumer.assign([TopicPartition(self._topic, 0)])
        # A broker answers one request after the other, and a fetch of an empty partition takes half a second.
        consumer.pause(TopicPartition(self._topic, 0))
        async with connected(consumer):
            # Only now may the heartbeat ask it: connecting with a token can take longer than its first beat.
            self._consumer = consumer
            try:
                await asyncio.Event().wait()
            finally:
                self._consumer = None

    def passing_on(self, records: Sequence[Record]) -> Passed:
        """These records' messages are on their way to Kafka."""
        last = last_of(records)
        passed = Passed(
            next={source: position + 1 for source, (position, _) in last.items()},
            newest={source: ms for source, (_, ms) in last.items()},
        )
        self._under_way.update(list(passed.next))
        return passed

    def passed_on(self, passed: Passed) -> None:
        """They are on Kafka."""
        self._under_way.subtract(list(passed.next))
        now = self._clock.monotonic()
        for partition, position in passed.next.items():
            self._next[partition] = position
            self._newest[partition] = max(self._newest.get(partition, 0), passed.newest[partition])
            self._active[partition] = now
            self._idle.discard(partition)

    def is_news(self, partition: int) -> bool:
        """Whether what `look` said of a partition still holds: nothing of it is on its way."""
        return self._under_way[partition] <= 0

    def reassign(self, partitions: set[int]) -> None:
        """The input partitions this worker reads from now on."""
        for partition in partitions ^ self.assigned:
            for known in (self._next, self._newest, self._active):
                known.pop(partition, None)
            self._idle.discard(partition)
        self.assigned = set(partitions)

    async def look(self) -> dict[int, int]:
        """Partition -> everything logged before this moment (ms) was passed on; only what is news."""
        mine = sorted(self.assigned)
        if not mine or self._consumer is None:
            return {}
        asked_ms = int(self._clock.now() * 1000)
        partitions = [TopicPartition(self._topic, partition) for partition in mine]
        ends = await self._consumer.end_offsets(partitions)
        now, news = self._clock.monotonic(), {}
        for partition, tp in zip(mine, partitions, strict=True):
            done = self._next.get(partition)
            if done is None:
                # Nothing read since the start: where the group stands, or nothing at all.
                begin = await self._consumer.committed(tp) or await self._begin(tp)
                done = self._next.setdefault(partition, begin)  # records may have passed meanwhile
            elif done < ends[tp] and now - self._active.setdefault(partition, now) >= _STUCK_S:
                # Another worker may have had the partition for a while: what it passed on does not come here again.
                begin = await self._consumer.committed(tp) or 0
                if begin > self._next.get(partition, 0):
                    done = self._next[partition] = begin
                    self._active[partition] = now
            if done < ends[tp]:
                if partition in self._newest:
                    news[partition] = self._newest[partition]
                continue
            quiet = now - self._active.setdefault(partition, now)
            if quiet < _IDLE_AFTER_S:
                news[partition] = max(asked_ms - int(self._kafka.hold_s * 1000), self._newest.get(partition, 0))
            elif partition not in self._idle:
                self._idle.add(partition)
                news[partition] = _FOR_EVER_MS
        return news

    async def ends(self, partitions: Iterable[Any]) -> dict[Any, int]:
        """Partition -> offset after its last record.

        Raises:
            KafkaError: no broker answers.
        """
        asked = {TopicPartition(tp.topic, tp.partition): tp for tp in partitions}
        if not asked or self._consumer is None:
            return {}
        found = await self._consumer.end_offsets(list(asked))
        return {tp: found[key] for key, tp in asked.items()}

    async def topics(self) -> set[str]:
        """All topics there are.

        Raises:
            KafkaError: no broker answers.
        """
        found: set[str] = await self._consumer.topics() if self._consumer is not None else set()
        return found

    async def committed(self, partitions: Iterable[Any]) -> dict[Any, int]:
        """Partition -> where the group stands.

        Raises:
            KafkaError: no broker answers.
        """
        asked = {TopicPartition(tp.topic, tp.partition): tp for tp in partitions}
        if not asked or self._consumer is None:
            return {}
        begin = await self._consumer.beginning_offsets(list(asked))
        return {tp: await self._consumer.committed(key) or begin[key] for key, tp in asked.items()}

    async def _begin(self, tp: TopicPartition) -> int:
        begin: int = (await self._consumer.beginning_offsets([tp]))[tp]
        return begin
