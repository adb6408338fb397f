"""A keeper, without Kafka: what a stage knows and what that led to go together, whoever is interrupted."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Iterator, Sequence
from typing import Any

import pytest
from aiokafka.errors import KafkaError
from event_loop import turn

from stream.checkpoints import Keeper, Keeping, Writer
from stream.clock import ManualClock
from stream.settings import default_settings
from stream.stages import Message
from stream.state import Origin, Page, Saved, origin

SETTINGS = default_settings()


class Counter:
    """A stage that counts, and tells each count."""

    first = end = 0

    def __init__(self) -> None:
        self.count = 0

    def read_again(self) -> None: ...

    def outgoing(self) -> list[Message]:
        return []

    def checkpoint(self, origin: Origin, *, everything: bool = False) -> list[Page]:
        return [Page(b"count", str(self.count).encode())]

    def restore(self, saved: Saved, origin: Origin) -> Iterator[int]:
        yield 0

    def step(self) -> tuple[list[Message], list[Any]]:
        self.count += 1
        return [Message("findings", None, str(self.count).encode())], []


class Kafka(Writer):
    """Takes what it is given; a producer whose buffer is full makes the sender wait."""

    def __init__(self) -> None:
        self.room = asyncio.Event()
        self.told: list[bytes] = []
        self.saved: list[bytes | None] = []
        self.refuses = False

    async def send(self, messages: Iterable[Message]) -> Sequence[Awaitable[Any]]:
        await self.room.wait()
        if self.refuses:
            raise KafkaError("planted")
        self.told += [message.value for message in messages]
        sent: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        sent.set_result(None)
        return [sent]

    async def write(self, pages: Sequence[Page], messages: Iterable[Message] = ()) -> None:
        self.saved += [page.value for page in pages]

    async def close(self) -> None: ...


async def nothing(*_: Any) -> None: ...


def keeper(kafka: Kafka) -> Keeper[Counter]:
    keeping = Keeping(SETTINGS.kafka, ManualClock(), 3.0, None, nothing, kafka.send, lambda _: None, nothing)
    kept = Keeper(keeping, ("events", 0), "state", origin("events", 1, None), Counter)
    # As if restored.
    kept._stage, kept._writer, kept._ready = Counter(), kafka, True
    return kept


def test_a_step_that_is_cancelled_while_it_sends_is_taken_to_its_end_before_the_state_is_saved() -> None:
    async def main() -> None:
        kafka = Kafka()
        kept = keeper(kafka)
        step = asyncio.create_task(kept.work(Counter.step))
        await turn()
        step.cancel()  # partitions move
        await asyncio.wait([step])
        resting = asyncio.create_task(kept.rest(5.0))
        await turn()
        assert (kafka.told, kafka.saved) == ([], []), "nothing may be saved before what it led to is on its way"
        kafka.room.set()
        await resting
        assert (kafka.told, kafka.saved) == ([b"1"], [b"1"])

    asyncio.run(main())


def test_what_could_not_be_sent_is_never_saved() -> None:
    async def main() -> None:
        kafka = Kafka()
        kafka.refuses = True
        kafka.room.set()
        kept = keeper(kafka)
        with pytest.raises(KafkaError):
            await kept.work(Counter.step)
        kafka.refuses = False
        assert not await kept.save()
        await kept.rest(5.0)
        assert kafka.saved == []

    asyncio.run(main())


def test_a_stage_that_is_elsewhere_does_nothing() -> None:
    async def main() -> None:
        kafka = Kafka()
        kafka.room.set()
        kept = keeper(kafka)
        await kept.close()
        assert await kept.work(Counter.step) == ()
        assert kafka.told == []

    asyncio.run(main())
