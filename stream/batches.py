"""Batches out of the streams of Faust agents, and how they are worked on."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Any, TypeAlias, TypeVar

from aiokafka.errors import KafkaError

from burnfuse.event import SEQUENCE_HEADER
from stream.errors import BurnfuseError
from stream.ingest.ingest import Record
from stream.ingest.replayed import replayed
from stream.numeric import LAST_MS

log = logging.getLogger(__name__)

T = TypeVar("T")

_ON_THEIR_WAY = 2
"""Batches whose messages Kafka has yet to confirm while another one is computed: with one, ingest stands still while a
broker writes."""

Ending: TypeAlias = Callable[[], Awaitable[None]]
"""The second half of the work on a batch: waiting for Kafka, and what follows from its answer."""


class Hands:
    """What one agent has in hand: the batch it works on, and those before, whose messages are on their way.

    Computing a batch and waiting for Kafka overlap. The second halves end in the order of the batches; what goes
    wrong in any half stops the worker, and nothing of a later batch is acknowledged.
    """

    def __init__(self, app: Any, name: str) -> None:
        self._app, self._name = app, name
        self._busy = asyncio.Lock()
        self._endings: deque[asyncio.Future[None]] = deque()

    async def do(self, work: Callable[[], Awaitable[Ending]]) -> None:
        """The first half of the work on a batch; the second one goes on by itself, unless too many do."""
        if self._app.ended_by is not None:  # nothing is begun any more; it comes again
            return
        async with self._busy:
            try:
                ending = await self._safely(work())
            except BurnfuseError:
                return
            while len(self._endings) >= _ON_THEIR_WAY:
                await self._endings.popleft()
            before = self._endings[-1] if self._endings else None
            self._endings.append(asyncio.ensure_future(self._safely(self._after(before, ending))))

    async def empty(self) -> None:
        """Waits until nothing is in hand."""
        async with self._busy:
            while self._endings:
                await self._endings.popleft()

    async def _after(self, before: asyncio.Future[None] | None, ending: Ending) -> None:
        if before is not None:
            await asyncio.wait([before])
            if before.cancelled() or before.exception() is not None:
                return
        await ending()

    async def _safely(self, half: Awaitable[T]) -> T:
        try:
            return await half
        except Exception as error:
            if isinstance(error, BurnfuseError):
                end_in_order(self._app, error)  # it says by itself what is wrong
                raise
            told = f"{self._name} failed; the worker stops, nothing of this batch is lost"
            # What Kafka refuses is explained at the end; where in here it was refused tells nobody anything.
            log.critical(told, exc_info=not isinstance(error, KafkaError))
            await self._app.crash(error)
            raise


def end_in_order(app: Any, error: BurnfuseError) -> None:
    """All else is well, so the worker stops as if it were asked to: after a crash Faust may wait for ever for a
    commit by a thread that is gone."""
    if app.ended_by is None:
        app.ended_by = error
        signal.raise_signal(signal.SIGTERM)


async def take_batches(
    app: Any, stream: Any, most: int, hands: Hands, work: Callable[[list[Any]], Awaitable[Ending]]
) -> None:
    """Hands batches of events to `work`; what goes wrong there stops the worker.

    A batch is what waits at the moment, so the slower the work, the larger the batches. Faust would restart a
    failing agent and go on after the batch. Its events must not be acknowledged, so that whoever takes over
    sees them again.

    Args:
        most: Records after which a batch is full.
    """
    stream = stream.noack()
    events = aiter(stream.events())

    def following() -> asyncio.Future[Any]:
        return asyncio.ensure_future(anext(events, None))

    def current(batch: list[Any]) -> Awaitable[Ending]:
        # What was taken before partitions moved comes again, to whoever has them now.
        now = app.consumer_generation_id if app.flow_control.is_active() else None
        return work([event for event in batch if event.message.generation_id == now])

    coming = following()
    try:
        while (event := await coming) is not None:
            batch, records = [event], len(event.message.value)
            coming = following()
            while records < most and (event := _waiting(app, stream)) is not None:
                batch.append(event)
                records += len(event.message.value)
            await hands.do(partial(current, batch))
    finally:
        coming.cancel()


def _waiting(app: Any, stream: Any) -> Any:
    """The next event that waits in a stream; None: there is none.

    The stream's own iterator lets the loop turn for each event, and whatever else has work does it then: a batch of
    eight took longer to get than to work on. What it leaves out, events from before a rebalance, `current` does.
    """
    queue = stream.channel.queue
    if queue.empty() or queue._errors:  # an error is the iterator's to raise
        return None
    event = queue.get_nowait()
    event.message.tracked = True
    app.consumer.track_message(event.message)
    return event


class Run:
    """Acknowledges events when all of their parts are done."""

    def __init__(self, events: Sequence[Any], parts: int) -> None:
        self._events, self._left = events, parts

    def done(self) -> None:
        """One part is done."""
        self._left -= 1
        if not self._left:
            for event in self._events:
                event.ack()


def taken(events: Sequence[Any]) -> list[Any]:
    """The raw records of events, which hold them no longer: until all is acknowledged, they would be in the way."""
    raws = [raw for event in events for raw in event.message.value]
    for event in events:
        event.message.value.clear()
    return raws


async def nothing() -> None:
    """There is nothing to wait for."""


async def one_by_one(endings: Iterable[Ending]) -> None:
    """Several second halves, in order."""
    for ending in endings:
        await ending()


def record_of(raw: Any) -> Record:
    """A record as ingest takes it, from what aiokafka has read; of its timestamp what can be a time."""
    if not raw.headers and -1 <= raw.timestamp <= LAST_MS:
        return Record(raw.value, raw.partition, raw.offset, raw.timestamp)
    return Record(
        value=raw.value,
        source=raw.partition,
        position=raw.offset,
        log_ms=max(-1, min(raw.timestamp, LAST_MS)),
        sequence=sequence_of(raw.headers),
        replayed=replayed(raw.headers),
    )


def sequence_of(headers: Sequence[tuple[str, bytes | None]] | None) -> int:
    """The sequence number in a record's headers, 0 if there is none."""
    for name, value in headers or ():
        if name == SEQUENCE_HEADER and value is not None and len(value) == 8:
            return int.from_bytes(value, "big") & ((1 << 63) - 1)
    return 0
