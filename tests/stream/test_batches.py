"""Work on batches: computing and waiting for Kafka overlap, in order, and what goes wrong loses nothing."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import KafkaError
from event_loop import turn

from stream.batches import _ON_THEIR_WAY, Ending, Hands, taken


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
