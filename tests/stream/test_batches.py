"""Work on batches: computing and waiting for Kafka overlap, in order, and what goes wrong loses nothing."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import KafkaError
from event_loop import turn

from stream.batches import _ON_THEIR_WAY, Ending, Hands, nothing, record_of, take_batches, taken
from stream.numeric import LAST_MS


class App:
    ended_by = None

    def __init__(self) -> None:
        self.crashed: list[BaseException] = []

    async def crash(self, reason: BaseException) -> None:
        self.crashed.append(reason)


class Kafka:
    """Confirms batches when it is told to."""

    def __init__(self) -> None:
        self.confirmed: dict[int, asyncio.Event] = {}
        self.begun: list[int] = []
        self.ended: list[int] = []
        self.fails: set[int] = set()

    def batch(self, number: int) -> Any:
        confirmed = self.confirmed.setdefault(number, asyncio.Event())

        async def work() -> Ending:
            self.begun.append(number)

            async def ending() -> None:
                await confirmed.wait()
                if number in self.fails:
                    raise KafkaError("planted")
                self.ended.append(number)

            return ending

        return work


def test_batches_are_computed_while_others_are_on_their_way_but_only_so_many() -> None:
    async def main() -> None:
        kafka = Kafka()
        hands = Hands(App(), "ingest")
        tasks = []
        for n in range(5):
            tasks.append(asyncio.create_task(hands.do(kafka.batch(n))))
            await turn()
        assert kafka.begun == list(range(_ON_THEIR_WAY + 1)), "a further one has to wait"
        kafka.confirmed[0].set()
        await turn()
        assert kafka.begun == list(range(_ON_THEIR_WAY + 2))
        for confirmed in kafka.confirmed.values():
            confirmed.set()
        await asyncio.gather(*tasks)
        await hands.empty()
        assert kafka.ended == list(range(5))

    asyncio.run(main())


def test_a_later_batch_ends_after_those_before_it() -> None:
    async def main() -> None:
        kafka = Kafka()
        hands = Hands(App(), "ingest")
        await hands.do(kafka.batch(0))
        await hands.do(kafka.batch(1))
        kafka.confirmed[1].set()
        await turn()
        assert kafka.ended == []
        kafka.confirmed[0].set()
        await hands.empty()
        assert kafka.ended == [0, 1]

    asyncio.run(main())


def test_where_one_fails_the_worker_stops_and_nothing_after_it_is_done() -> None:
    async def main() -> None:
        app, kafka = App(), Kafka()
        kafka.fails = {0}
        hands = Hands(app, "ingest")
        await hands.do(kafka.batch(0))
        await hands.do(kafka.batch(1))
        for confirmed in kafka.confirmed.values():
            confirmed.set()
        with pytest.raises(KafkaError):
            await hands.empty()
        await turn()
        assert kafka.ended == []
        assert len(app.crashed) == 1

    asyncio.run(main())


def test_records_that_are_taken_are_held_by_nobody_else() -> None:
    raws = [object(), object()]
    event = SimpleNamespace(message=SimpleNamespace(value=list(raws)))
    assert taken([event]) == raws
    assert event.message.value == [], "until it is acknowledged it would keep them in memory"


class Stream:
    """Events of a channel, one in a turn of the loop, as Faust gives them; those that waited are tracked."""

    def __init__(self) -> None:
        queue: Any = asyncio.Queue()
        queue._errors = deque()
        self.queue, self.channel = queue, SimpleNamespace(queue=queue)
        self.tracked: list[Any] = []
        self.app: Any = App()
        self.app.consumer_generation_id = 1
        self.app.flow_control = SimpleNamespace(is_active=lambda: True)
        self.app.consumer = SimpleNamespace(track_message=self.tracked.append)

    def noack(self) -> Stream:
        return self

    async def events(self) -> AsyncIterator[Any]:
        while True:
            await asyncio.sleep(0)
            yield await self.queue.get()

    def come(self, *numbers: int, records: int = 1, generation: int = 1) -> None:
        for number in numbers:
            message = SimpleNamespace(value=[number] * records, generation_id=generation, tracked=False)
            self.queue.put_nowait(SimpleNamespace(message=message, number=number))


def batches_of(stream: Stream, most: int, come: Any, *, slow: int = 0) -> list[list[int]]:
    """The batches that were worked on while `come` let events come."""
    batches: list[list[int]] = []

    async def work(batch: list[Any]) -> Ending:
        batches.append([event.number for event in batch])
        for _ in range(slow):
            await asyncio.sleep(0)
        return nothing

    async def scenario() -> None:
        taking = asyncio.ensure_future(take_batches(stream.app, stream, most, Hands(stream.app, "ingest"), work))
        await come()
        await turn()
        taking.cancel()
        await asyncio.wait([taking])

    asyncio.run(scenario())
    return batches


def test_a_batch_is_what_waits() -> None:
    stream = Stream()

    async def come() -> None:
        stream.come(1, 2, 3, 4)
        await turn()
        stream.come(5)
        await turn()

    assert batches_of(stream, 100, come) == [[1, 2, 3, 4], [5]]
    assert len(stream.tracked) == 3  # the others Faust's own iterator has tracked
    assert all(message.tracked for message in stream.tracked)


def test_a_batch_has_an_end_and_nothing_is_out_of_order() -> None:
    stream = Stream()

    async def come() -> None:
        for number in range(0, 40, 4):
            stream.come(number, number + 1, number + 2, number + 3, records=10)
            await asyncio.sleep(0)
        while not stream.queue.empty():
            await turn()

    batches = batches_of(stream, 30, come, slow=3)
    assert [number for batch in batches for number in batch] == list(range(40))
    assert max(map(len, batches)) == 3


def test_what_was_taken_before_partitions_moved_is_left_out() -> None:
    stream = Stream()

    async def come() -> None:
        stream.come(1, 2, generation=0)
        stream.come(3)

    assert batches_of(stream, 100, come) == [[3]]


def test_an_error_in_a_stream_is_left_to_its_iterator() -> None:
    stream = Stream()

    async def come() -> None:
        stream.queue._errors.append(LookupError("planted"))
        stream.come(1, 2)

    assert batches_of(stream, 100, come) == [[1], [2]]
    assert not stream.tracked


@pytest.mark.parametrize("headers", [(), (("other", b"x"),)])
@pytest.mark.parametrize(
    ("says", "counts"),
    [
        (5_000, 5_000),
        (-1, -1),  # Kafka does not know
        (LAST_MS, LAST_MS),
        (LAST_MS + 1, LAST_MS),
        ((1 << 63) - 1, LAST_MS),
        (-(1 << 63), -1),
    ],
)
def test_a_timestamp_that_cannot_be_a_time_is_brought_within_bounds(headers: Any, says: int, counts: int) -> None:
    record = record_of(SimpleNamespace(value=b"{}", partition=3, offset=7, timestamp=says, headers=headers))
    assert (record.value, record.source, record.position, record.log_ms) == (b"{}", 3, 7, counts)
