"""A keeper, without Kafka: what a stage knows and what that led to go together, whoever is interrupted."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Iterable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import KafkaConnectionError, KafkaError, ProducerFenced, UnknownError
from aiokafka.producer.sender import SendProduceReqHandler
from event_loop import turn

from stream import checkpoints
from stream.checkpoints import FencedError, Keeper, Keeping, Place, Writer
from stream.clock import ManualClock
from stream.health import Health
from stream.metrics import Metrics
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

    def checkpoint(self, origin: Origin, *, everything: bool = False) -> Iterable[Page]:
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


def keeper(kafka: Kafka, clock: ManualClock | None = None) -> Keeper[Counter]:
    clock = clock or ManualClock()
    health, metrics = Health(clock, 30.0, 30.0), Metrics(clock)
    keeping = Keeping(SETTINGS.kafka, clock, health, metrics, 3.0, None, nothing, kafka.send, lambda _: None, nothing)
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


class Large(Counter):
    """A stage whose checkpoint has pages that take long to make."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__()
        self.clock = clock
        self.asked: list[bool] = []

    def checkpoint(self, origin: Origin, *, everything: bool = False) -> Iterable[Page]:
        self.asked.append(everything)
        for number in range(5):
            self.clock.advance(0.03)
            yield Page(str(number).encode(), str(self.count).encode())


def test_others_have_their_turn_while_pages_are_made_but_the_stage_stays_as_it_is() -> None:
    async def main() -> None:
        kafka, clock = Kafka(), ManualClock()
        kafka.room.set()
        kept = keeper(kafka, clock)
        kept._stage = stage = Large(clock)
        saving = asyncio.create_task(kept.save())
        stepping = asyncio.create_task(kept.work(Counter.step))
        turns = 0
        while not kafka.saved:
            await asyncio.sleep(0)
            turns += 1
            assert turns < 1000
        assert turns >= 5
        assert await saving
        assert kafka.saved == [b"0"] * 5, "a step came between the pages"
        await stepping
        assert stage.count == 1
        value = kept._keeping.metrics.registry.get_sample_value
        assert value("burnfuse_checkpoint_piece_seconds_sum") == pytest.approx(0.15)
        assert value("burnfuse_checkpoint_piece_seconds_bucket", {"le": "0.05"}) == 6  # the last one is empty
        assert value("burnfuse_checkpoint_bytes_total") == 5
        assert value("burnfuse_checkpoint_age_seconds") == 0


class Producer:
    """A transactional producer of which every call says what it is told to."""

    def __init__(self, **says: Exception) -> None:
        self._says = says
        self.stopped = False

    async def start(self) -> None:
        self._say("start")

    async def begin_transaction(self) -> None:
        self._say("begin")

    async def send(self, *_: Any, **__: Any) -> Awaitable[None]:
        self._say("send")
        sent: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        sent.set_result(None)
        return sent

    async def commit_transaction(self) -> None:
        self._say("commit")

    async def abort_transaction(self) -> None:
        self._say("abort")

    async def stop(self) -> None:
        self.stopped = True

    def _say(self, call: str) -> None:
        if call in self._says:
            raise self._says[call]


OF_NO_USE = AssertionError("Invalid state transition FATAL_ERROR -> ABORTING_TRANSACTION")


@pytest.mark.parametrize(
    ("says", "raised", "why"),
    [
        ({"send": KafkaError("planted")}, KafkaError, "planted"),
        ({"commit": KafkaError("planted"), "abort": KafkaError("too")}, KafkaError, "planted"),
        ({"commit": ProducerFenced()}, FencedError, "another worker has taken it"),
        ({"commit": KafkaError("planted"), "abort": OF_NO_USE}, FencedError, "its producer has failed .*planted"),
        ({"begin": OF_NO_USE}, FencedError, "its producer has failed"),
    ],
)
def test_a_producer_that_is_of_no_use_any_more_is_let_go(
    monkeypatch: pytest.MonkeyPatch, says: dict[str, Exception], raised: type[Exception], why: str
) -> None:
    async def main() -> None:
        monkeypatch.setattr(checkpoints, "AIOKafkaProducer", lambda **_: Producer(**says))
        writer = Writer(SETTINGS.kafka, "state", 0)
        with pytest.raises(raised, match=why):
            await writer.write([Page(b"count", b"1")])
        if raised is FencedError:
            with pytest.raises(FencedError):
                await writer.write([Page(b"count", b"1")])

    asyncio.run(main())


async def cut_off(task: asyncio.Task[bool]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def test_a_checkpoint_nobody_waits_for_any_more_is_made_to_its_end() -> None:
    async def main() -> None:
        kafka, clock = Kafka(), ManualClock()
        kept = keeper(kafka, clock)
        kept._stage = stage = Large(clock)
        saving = asyncio.create_task(kept.save())
        await turn()
        await cut_off(saving)
        assert await kept.save()
        assert kafka.saved == [b"0"] * 10
        assert stage.asked == [False, False]

    asyncio.run(main())


def test_after_a_part_of_a_checkpoint_all_of_it_is_written() -> None:
    async def main() -> None:
        clock = ManualClock()
        kept = keeper(Kafka(), clock)
        kept._stage = stage = Large(clock)
        resting = asyncio.create_task(kept._save())
        await asyncio.sleep(0)
        await cut_off(resting)  # there is no time left
        assert await kept.save()
        assert stage.asked == [False, True]

    asyncio.run(main())


def test_partitions_are_not_saved_all_at_once() -> None:
    keeping = keeper(Kafka())._keeping
    first = sorted(keeping.first_after_s() for _ in range(16))
    gaps = [b - a for a, b in zip([0.0, *first], [*first, keeping.interval_s], strict=True)]
    assert min(gaps[1:-1]) > 0.5 * keeping.interval_s / 17
    assert max(gaps) < 2 * keeping.interval_s / 17


def test_a_worker_is_ready_when_the_state_of_its_partitions_is_restored() -> None:
    async def main() -> None:
        kept = keeper(Kafka())
        health, ready = kept._keeping.health, asyncio.Event()
        health.answered()
        kept.start(ready.wait)
        health.assigned(1)
        assert health.unready() == ["state is being restored: events/0"]
        await turn()
        assert health.unready() == []
        await kept.close()

    asyncio.run(main())


def test_a_partition_that_was_let_go_is_taken_back_when_kafka_answers_again(monkeypatch: pytest.MonkeyPatch) -> None:
    producers = [
        Producer(),
        Producer(start=KafkaConnectionError("Unable to bootstrap")),
        Producer(start=KafkaConnectionError("Unable to bootstrap")),
        Producer(),
    ]

    async def main() -> None:
        made, crashes, read_from = iter(producers), [], []

        async def read(*_: Any) -> tuple[Saved, int]:
            return Saved(), 0

        async def crash(error: BaseException) -> None:
            crashes.append(error)

        async def note(place: Place, offset: int) -> None:
            read_from.append((place, offset))

        monkeypatch.setattr(checkpoints, "AIOKafkaProducer", lambda **_: next(made))
        monkeypatch.setattr(checkpoints, "read", read)
        monkeypatch.setattr(checkpoints, "_TAKE_BACK_S", 1e-6)
        clock = ManualClock()
        shared = SETTINGS.kafka, clock, Health(clock, 30.0, 30.0), Metrics(clock)
        keeping = Keeping(*shared, 1e-6, None, crash, Kafka().send, lambda _: None, note)
        kept = Keeper(keeping, ("events", 0), "state", origin("events", 1, None), Counter)
        begun = asyncio.Semaphore(0)

        async def ready() -> None:
            begun.release()

        kept.start(ready)
        await begun.acquire()
        producers[0]._says = {"commit": ProducerFenced()}
        await asyncio.wait_for(begun.acquire(), 60)
        await kept.close()
        assert (crashes, read_from) == ([], [(("events", 0), 0)])

    asyncio.run(main())
    assert all(producer.stopped for producer in producers)


def test_what_a_broker_refuses_for_no_reason_it_knows_is_sent_again() -> None:
    """A broker whose disk is full says so while it ends; aiokafka by itself would give up what is being sent."""

    class Batch:
        def expired(self) -> bool:
            return False

        def failure(self, exception: Exception) -> None:
            raise exception

    handler = SendProduceReqHandler(SimpleNamespace(_txn_manager=None, client=None, _retry_backoff=0.1), {
        TopicPartition("findings", 0): Batch(),
    })  # fmt: skip
    partition = (0, UnknownError.errno, -1, -1, -1, [], None)
    handler.handle_response(SimpleNamespace(API_VERSION=8, topics=[("findings", [partition])]))
    assert len(handler._to_reenqueue) == 1
