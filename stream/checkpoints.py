"""Saved state on Kafka: each partition of a state topic is the log of one stage's state.

A checkpoint is one Kafka transaction, so a reader (read_committed) sees all of it or nothing, and compaction never
takes away a page that counts. The transactional id belongs to the partition of the state topic: whoever begins to
write there fences whoever wrote before. A process that has lost a partition without having heard of it can neither
save nor tell incidents any more.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import InvalidProducerEpoch, KafkaConnectionError, KafkaError, ProducerFenced

from stream.clock import Clock
from stream.connection import connected, for_aiokafka
from stream.errors import SavedStateError
from stream.health import Health
from stream.metrics import Metrics
from stream.settings import KafkaSettings
from stream.stages import Message
from stream.state import Origin, Page, Saved

log = logging.getLogger(__name__)

_AT_ONCE = 4
"""So many partitions are restored, and so many saved, at once."""
_FETCH_BYTES = 8 << 20
_TELL_S = 5.0
"""How often a restore tells how far it is, s."""
_TAKE_BACK_S = 15.0
"""After so long a partition that another process has taken, but that is still given to this one, is restored, s."""
_STOP_S = 5.0
_PIECE_S = 0.01
"""Once making pages has taken so long, others have their turn, s."""
_GOLDEN = (5**0.5 - 1) / 2
"""Multiples of it, modulo 1, lie apart however many there are (Knuth, TAOCP 6.4)."""

_TAKEN = "Kafka says that another worker has taken it"

Place = tuple[str, int]
"""Topic and partition that a stage reads."""


async def on_kafka(sent: Iterable[Awaitable[Any]]) -> None:
    """Waits until Kafka has all messages that are on their way.

    Who waits may be cancelled, at a rebalance; what is on its way may not: it would count as lost for ever.
    """
    await asyncio.gather(*map(asyncio.shield, sent))


class FencedError(Exception):
    """This process cannot write to this state any more: another one does, or the producer has failed for good."""


class Token(Protocol):
    """Stands for records that have been worked on."""

    def done(self) -> None:
        """Their outcome is saved."""


class Stage(Protocol):
    """What can be saved and restored."""

    @property
    def first(self) -> int:
        """Offset from which on records must be read again."""

    @property
    def end(self) -> int:
        """Offset of the first record that is not part of the state."""

    def read_again(self) -> None:
        """Records come again, from somewhere below `end` on."""

    def outgoing(self) -> list[Message]:
        """Messages that go out with the next checkpoint, or not at all."""

    def checkpoint(self, origin: Origin, *, everything: bool = False) -> Iterable[Page]: ...

    def restore(self, saved: Saved, origin: Origin) -> Iterator[int]: ...


S = TypeVar("S", bound=Stage)


class Writer:
    """The one process that may write a state.

    Args:
        topic: State topic.
    """

    def __init__(self, kafka: KafkaSettings, topic: str, partition: int) -> None:
        self._topic, self._partition = topic, partition
        self._producer = AIOKafkaProducer(
            **for_aiokafka(kafka),
            client_id="burnfuse-state",
            transactional_id=f"{kafka.app_id}.{topic}.{partition}",
            max_batch_size=1 << 20,
            max_request_size=1 << 20,
        )
        self._fenced = False
        self._opening: asyncio.Future[None] | None = None

    async def open(self) -> None:
        """Fences whoever wrote before; what was not committed is gone."""
        self._opening = asyncio.ensure_future(self._producer.start())
        # Even if nobody waits for it any more: begun halfway it could fence whoever comes next.
        await asyncio.shield(self._opening)

    async def write(self, pages: Sequence[Page], messages: Iterable[Message] = ()) -> None:
        """Writes all of it or nothing.

        Raises:
            FencedError: another process has opened the state since, or this one's producer is of no use any more; it
                must let go of it.
            KafkaError: it could not be written.
        """
        producer, sending = self._producer, []
        records: list[tuple[str, int | None, bytes | None, bytes | None]] = [
            (self._topic, self._partition, *page) for page in pages
        ]
        records += [(message.topic, message.partition, message.key, message.value) for message in messages]
        if self._fenced:
            raise FencedError(_TAKEN)
        try:
            await producer.begin_transaction()
            try:
                for topic, partition, key, value in records:
                    sending.append(await producer.send(topic, value, key=key, partition=partition))
                await asyncio.gather(*sending)
            except KafkaError:
                await asyncio.gather(*sending, return_exceptions=True)
                raise
            await producer.commit_transaction()
        except (ProducerFenced, InvalidProducerEpoch) as error:
            self._fenced = True
            raise FencedError(_TAKEN) from error
        except AssertionError as error:
            raise self._failed(error) from error
        except KafkaError as error:
            try:
                with suppress(KafkaError):
                    await producer.abort_transaction()
            except AssertionError:
                raise self._failed(error) from error
            raise

    def _failed(self, error: Exception) -> FencedError:
        # Where a coordinator says what aiokafka does not know, as one does whose disk is full, its producer ends; all
        # it says from then on is that its state does not allow what it is asked. Another one cannot just be opened:
        # it would fence whoever may have taken the partition by now.
        self._fenced = True
        return FencedError(f"its producer has failed ({error})")

    async def close(self) -> None:
        """Lets go of the state."""
        with suppress(KafkaError, TimeoutError):
            if self._opening is not None:
                await asyncio.wait_for(asyncio.shield(self._opening), _STOP_S)
        with suppress(KafkaError, TimeoutError, AssertionError):
            await asyncio.wait_for(self._producer.stop(), _STOP_S)


async def read(
    kafka: KafkaSettings, topic: str, place: Place, clock: Clock, begun: Saved | None = None, at: int = 0
) -> tuple[Saved, int]:
    """A state as it stands, read from its topic, and the end of the partition that it belongs to.

    Args:
        begun: What has been read before; it is added to.
        at: Offset up to which that was.
    """
    saved, tp, home = begun or Saved(), TopicPartition(topic, place[1]), TopicPartition(*place)
    async with connected(_reader(kafka)) as consumer:
        consumer.assign([tp])
        ends = await consumer.end_offsets([tp, home])
        end, home_end = ends[tp], ends[home]
        first = (await consumer.beginning_offsets([tp]))[tp]
        at = max(at, first)
        consumer.seek(tp, at)
        told = clock.monotonic()
        while at < end:
            batch = (await consumer.getmany(tp, timeout_ms=200)).get(tp, [])
            saved.take(Page(record.key, record.value) for record in batch)
            at = await consumer.position(tp)
            if clock.monotonic() - told >= _TELL_S:
                told = clock.monotonic()
                log.warning("%s/%d: read %d of %d records", topic, place[1], at - first, end - first)
    return saved, home_end


def _reader(kafka: KafkaSettings) -> Any:
    return AIOKafkaConsumer(
        **for_aiokafka(kafka),
        client_id="burnfuse-state",
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
        max_partition_fetch_bytes=_FETCH_BYTES,
        max_poll_records=None,
    )


class Standby:
    """Follows state topics, so that who takes a partition over reads its tail only.

    It holds the latest pages of every partition that is at work elsewhere.
    """

    def __init__(self, kafka: KafkaSettings, topics: dict[str, int]) -> None:
        """`topics`: state topic -> its partitions."""
        self._kafka = kafka
        self._all = [TopicPartition(topic, p) for topic, count in topics.items() for p in range(count)]
        self._saved: dict[TopicPartition, tuple[Saved, int]] = {}
        self._here: set[TopicPartition] = set()

    async def follow(self) -> None:
        """Reads for ever."""
        async with connected(_reader(self._kafka)) as consumer:
            following: set[TopicPartition] = set()
            while True:
                wanted = {tp for tp in self._all if tp not in self._here}
                if wanted and wanted != following:
                    consumer.assign(sorted(wanted))
                    await consumer.seek_to_beginning(*wanted)
                    for tp in wanted & set(self._saved):
                        consumer.seek(tp, self._saved[tp][1])
                following = wanted
                if not following:
                    await asyncio.sleep(1.0)
                    continue
                for tp, batch in (await consumer.getmany(timeout_ms=500)).items():
                    if tp in self._here:
                        continue
                    saved, _ = self._saved.setdefault(tp, (Saved(), 0))
                    saved.take(Page(record.key, record.value) for record in batch)
                    self._saved[tp] = saved, batch[-1].offset + 1

    def take(self, topic: str, partition: int) -> tuple[Saved | None, int]:
        """What was read of a state that this process takes over, and up to which offset."""
        tp = TopicPartition(topic, partition)
        self._here.add(tp)
        return self._saved.pop(tp, (None, 0))

    def give_up(self, topic: str, partition: int) -> None:
        """The state is at work elsewhere now."""
        self._here.discard(TopicPartition(topic, partition))


@dataclass(slots=True)
class Keeping:
    """What all keepers of a worker share.

    Attributes:
        interval_s: Time between checkpoints of a partition.
        crash: Stops the worker.
        send: Hands messages to the producer; each of the results is done when Kafka has its message.
        pause: Reads no more of a partition.
        read_from: Reads a partition again, from an offset on.
    """

    kafka: KafkaSettings
    clock: Clock
    health: Health
    metrics: Metrics
    interval_s: float
    standby: Standby | None
    crash: Callable[[BaseException], Awaitable[None]]
    send: Callable[[Iterable[Message]], Awaitable[Sequence[Awaitable[Any]]]]
    pause: Callable[[Place], None]
    read_from: Callable[[Place, int], Awaitable[None]]
    restoring: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_AT_ONCE))
    saving: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_AT_ONCE))
    _begun: int = 0

    def first_after_s(self) -> float:
        """When the next partition is to be saved for the first time, so that not all are saved at one moment."""
        self._begun += 1
        return self._begun * _GOLDEN % 1.0 * self.interval_s


class Keeper(Generic[S]):
    """A stage of one partition, restored from its saved state, and saved every few seconds.

    Args:
        topic: State topic.
        make: Makes a blank stage.
    """

    def __init__(self, keeping: Keeping, place: Place, topic: str, origin: Origin, make: Callable[[], S]) -> None:
        self._keeping, self.place, self._topic, self._origin, self._make = keeping, place, topic, origin, make
        self._clock = keeping.clock
        self._name = f"{place[0]}/{place[1]}"
        self.order = asyncio.Lock()
        """Held while the stage takes a step, until what it led to is on its way: a clock must not overtake findings."""
        self.held: list[Any] = []
        """Events that came before the stage was restored."""
        self._stage: S | None = None
        self._ready = False
        self.open = False
        """Whether what was held has been worked on: new events need not wait any more."""
        self._done: list[Token] = []
        self._unsent: list[Message] = []
        self._sending: list[asyncio.Future[Any]] = []
        self._saving = asyncio.Lock()
        self._saved_at = float("-inf")
        self._everything = False
        self._writer: Writer | None = None
        self._task: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None

    @property
    def stage(self) -> S | None:
        """The stage, once it is restored."""
        return self._stage if self._ready else None

    def saved_within(self, seconds: float) -> bool:
        """Whether the latest checkpoint that went through, and was not fenced, is no older than this."""
        return self.stage is not None and self._clock.monotonic() - self._saved_at <= seconds

    async def work(self, do: Callable[[S], tuple[Iterable[Message], Iterable[Token]]]) -> Sequence[Awaitable[Any]]:
        """Does something with the stage, and sends what that leads to: both or nothing, for who waits may be
        cancelled, at a rebalance.

        Args:
            do: Gives messages to send, and records that are part of the state from now on: they are done when it
                is saved.

        Returns:
            The messages that are on their way; none if the stage is not here.
        """
        return await asyncio.shield(asyncio.ensure_future(self._work(do)))

    async def _work(self, do: Callable[[S], tuple[Iterable[Message], Iterable[Token]]]) -> Sequence[Awaitable[Any]]:
        async with self.order:
            if (stage := self.stage) is None:
                return ()
            messages, done = do(stage)
            try:
                sent = await self._keeping.send(messages)
            except Exception as error:
                # What the stage knows now must not be saved without what it led to.
                failed = asyncio.get_running_loop().create_future()
                failed.set_exception(error)
                self._sending.append(failed)
                raise
            self._done += done
            self.sends(sent)
            return sent

    def sends(self, futures: Iterable[Awaitable[Any]]) -> None:
        """These messages are on their way: nothing that led to them is saved before Kafka has them."""
        # What has failed stays: it must never count as sent.
        left = [f for f in self._sending if not f.done() or f.cancelled() or f.exception() is not None]
        self._sending = left + [asyncio.ensure_future(future) for future in futures]

    def start(self, when_ready: Callable[[], Awaitable[None]], after_s: float = 0.0) -> None:
        """Begins, or goes on after a rebalance: restores the stage, then saves it again and again."""
        if self._stage is not None:
            self._stage.read_again()
        self._keeping.health.restoring(self._name)
        self._task = asyncio.create_task(self._run(when_ready, after_s))

    async def _run(self, when_ready: Callable[[], Awaitable[None]], after_s: float) -> None:
        try:
            while True:
                if after_s:
                    await asyncio.sleep(after_s)
                    self._keeping.health.restoring(self._name)
                try:
                    try:
                        await self._restore()
                    except KafkaConnectionError:
                        if not after_s:
                            raise
                        self._let_go()  # Kafka may be away for long; that is told elsewhere
                        continue
                    self._ready = True
                    self._keeping.health.restored(self._name)
                    if after_s and self._stage is not None:
                        # There was no rebalance: what came in the meantime was left alone, and must come again.
                        self.held = []
                        await self._keeping.read_from(self.place, self._stage.first)
                    await when_ready()
                    interval_s = self._keeping.interval_s
                    due = self._clock.monotonic() + self._keeping.first_after_s()
                    while True:
                        await asyncio.sleep(due - self._clock.monotonic())
                        await self._save()
                        # Each partition keeps to its own moments, unless it has no time for that.
                        due = max(due + interval_s, self._clock.monotonic() + interval_s / 2)
                except FencedError as error:
                    self._keeping.pause(self.place)
                    self._let_go()
                    log.warning("%s: %s; it is left alone for %.0f s", self._name, error, _TAKE_BACK_S)
                    after_s = _TAKE_BACK_S
        except asyncio.CancelledError:
            raise
        except Exception as error:
            if not isinstance(error, SavedStateError):
                log.critical("the state of %s cannot be kept; the worker stops", self._name, exc_info=True)
            await self._keeping.crash(error)

    def _let_go(self) -> None:
        self._ready, self.open, self._stage, self._everything = False, False, None, False
        self._done, self._unsent, self._sending, self.held = [], [], [], []
        self._keeping.metrics.no_checkpoint(self._name)
        writer, self._writer = self._writer, None
        if writer is not None:
            self._closing = asyncio.create_task(writer.close())

    async def _restore(self) -> None:
        if self._stage is not None:
            # Kept over a rebalance: if it was elsewhere meanwhile, that process has fenced this one.
            await self._save()
            return
        kafka, standby = self._keeping.kafka, self._keeping.standby
        async with self._keeping.restoring:
            begun = self._clock.monotonic()
            if self._closing is not None:
                await self._closing
            self._writer = Writer(kafka, self._topic, self.place[1])
            fenced_others = self._clock.monotonic()
            await self._writer.open()
            known, at = standby.take(self._topic, self.place[1]) if standby else (None, 0)
            saved, end = await read(kafka, self._topic, self.place, self._clock, known, at)
            stage, told, size = self._make(), begun, saved.nbytes
            for taken in stage.restore(saved, self._origin):
                await asyncio.sleep(0)
                if self._clock.monotonic() - told >= _TELL_S:
                    told = self._clock.monotonic()
                    log.warning("%s: restored %.0f %%", self._name, 100 * taken / size)
            if stage.end > end:
                raise SavedStateError(
                    f"the saved state of {self._name} goes up to offset {stage.end}, but there are {end} records: "
                    "the topic was made anew; give the state up with `burnfuse state reset`"
                )
            self._stage, self._saved_at = stage, fenced_others
            log.info("%s: restored %.1f MB in %.1f s", self._name, size / 1e6, self._clock.monotonic() - begun)

    async def save(self) -> bool:
        """Saves what has changed, and sends the stage's outgoing messages, together or not at all.

        Returns:
            Whether that could be done; if not, the next time does it.

        Raises:
            FencedError: the partition is another process's now.
        """
        # Who waits may be cancelled, at a rebalance; half a checkpoint would be of no use.
        return await asyncio.shield(asyncio.ensure_future(self._save()))

    async def _save(self) -> bool:
        async with self._saving:
            stage, writer = self._stage, self._writer
            if stage is None or writer is None:
                return False
            begun = self._clock.monotonic()
            try:
                async with self.order:
                    everything, self._everything = self._everything, True
                    pages = await self._pages(stage, everything=everything)
                    done, self._done = self._done, []
                    messages, self._unsent = self._unsent + stage.outgoing(), []
                    sending = list(self._sending)
                await on_kafka(sending)
                async with self._keeping.saving:
                    written = self._clock.monotonic()
                    await writer.write(pages, messages)
            except KafkaError as error:
                if self._stage is stage:
                    self._done, self._unsent = done + self._done, messages + self._unsent
                log.warning("the state of %s could not be saved, it is tried again: %s", self._name, error)
                return False
            if self._stage is not stage:
                return False  # there was no time to wait for it
            self._everything, self._saved_at = False, written
            took, size = self._clock.monotonic() - begun, sum(len(page.value or b"") for page in pages)
            self._keeping.metrics.checkpoint(self._name, took, size)
            for token in done:
                token.done()
            return True

    async def _pages(self, stage: S, *, everything: bool) -> list[Page]:
        """The pages of a checkpoint; in between others have their turn, but the stage stays as it is."""
        pages, since = [], self._clock.monotonic()
        for page in stage.checkpoint(self._origin, everything=everything):
            pages.append(page)
            if (took := self._clock.monotonic() - since) >= _PIECE_S:
                self._keeping.metrics.checkpoint_piece(took)
                await asyncio.sleep(0)
                since = self._clock.monotonic()
        self._keeping.metrics.checkpoint_piece(self._clock.monotonic() - since)
        return pages

    async def rest(self, limit_s: float) -> None:
        """Stops; what has been done is saved, if that takes no longer than `limit_s`."""
        ready, self._ready, self.open = self._ready, False, False
        try:
            async with asyncio.timeout(limit_s):
                await self._stop()
                if ready:
                    await self._save()
        except FencedError:
            ready = False
        except TimeoutError:
            # What did get through is not known.
            log.warning("%s: there was no time to save its state; its last seconds are done again", self._name)
            ready = False
        if not ready:
            self._let_go()
        self.held, self._done = [], []

    async def _stop(self) -> None:
        task, self._task = self._task, None
        self._keeping.health.restored(self._name)  # or it is no concern of this process any more
        if task is None:
            return
        async with self._saving:  # in the midst of a transaction nobody may be interrupted
            task.cancel()
        await asyncio.wait([task])

    async def close(self) -> None:
        """Gives the partition up."""
        await self._stop()
        self._let_go()
        if self._closing is not None:
            await self._closing
        if self._keeping.standby is not None:
            self._keeping.standby.give_up(self._topic, self.place[1])
