"""The Faust agents: the stages of `stream.stages` connected to their topics.

An event is a run of records of one partition (`stream.transport`): its message's value is the list of raw
records. It is acknowledged when everything it led to is on Kafka. No exception leaves a stage: a record nobody
can read becomes a dead letter; anything else stops the worker with the batch not acknowledged, so that
nothing is lost.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias, TypeVar
from weakref import WeakKeyDictionary

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from burnfuse.event import SEQUENCE_HEADER
from detectors.base import FleetFigures
from stream import calibration
from stream.actions.base import Tools
from stream.actions.runner import Runner
from stream.clock import Clock
from stream.columns import Columns
from stream.connection import for_aiokafka
from stream.engine import GRAPH, WATCH
from stream.errors import BurnfuseError, ConfigError, RejectedShareError
from stream.incidents import Change
from stream.ingest.ingest import Record
from stream.ingest.replayed import replayed
from stream.ingest.share import RejectedShare
from stream.pipeline import make_ingest
from stream.settings import Settings, secret
from stream.stages import DetectStage, IncidentStage, IngestStage, Message, Topics, own, position_name
from stream.wire import incident_json

log = logging.getLogger(__name__)

T = TypeVar("T")

_HEARTBEAT_S = 0.25
_IDLE_AFTER_S = 10.0
"""An input partition idle for so long says so once and then keeps silent."""
_TAKE_S = 0.05
"""Far more than it takes to get an event that waits."""
_FOR_EVER_MS = 1 << 62


class _Sender:
    """Sends messages through the application's producer; each partition gets them in the order of the calls."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._topics: dict[str, Any] = {}

    async def __call__(self, messages: Iterable[Message]) -> None:
        """Sends, and waits until Kafka has them."""
        await asyncio.gather(*await self.begin(messages))

    async def begin(self, messages: Iterable[Message]) -> list[Awaitable[Any]]:
        """Hands messages to the producer; each of the results is done when Kafka has its message."""
        sent = []
        for message in messages:
            topic = self._topics.get(message.topic)
            if topic is None:
                topic = self._topics[message.topic] = self._app.topic(message.topic, value_type=bytes, key_type=bytes)
            sent.append(await topic.send(key=message.key, value=message.value, partition=message.partition))
        return sent


@dataclass(slots=True)
class _Passed:
    """Per partition of the input: where the next record stands, and when the newest was logged, ms."""

    next: dict[int, int] = field(default_factory=dict)
    newest: dict[int, int] = field(default_factory=dict)


class _Progress:
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

    async def start(self) -> None:
        """Opens a consumer that only asks for offsets."""
        consumer = AIOKafkaConsumer(
            **for_aiokafka(self._kafka),
            group_id=self._kafka.app_id,
            enable_auto_commit=False,
            client_id="burnfuse-progress",
        )
        # Its partitions are named by hand: it never joins the group, it only reads the group's offsets.
        consumer.assign([TopicPartition(self._topic, 0)])
        await consumer.start()
        # Only now may the heartbeat ask it: connecting with a token can take longer than its first beat.
        self._consumer = consumer

    async def stop(self) -> None:
        if self._consumer is not None:
            await self._consumer.stop()

    def passing_on(self, records: Sequence[Record]) -> _Passed:
        """These records' messages are on their way to Kafka."""
        passed = _Passed()
        for record in records:
            passed.next[record.source] = record.position + 1
            passed.newest[record.source] = max(passed.newest.get(record.source, 0), record.log_ms)
        self._under_way.update(list(passed.next))
        return passed

    def passed_on(self, passed: _Passed) -> None:
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
                done = self._next[partition] = await self._consumer.committed(tp) or await self._begin(tp)
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

    async def _begin(self, tp: TopicPartition) -> int:
        begin: int = (await self._consumer.beginning_offsets([tp]))[tp]
        return begin


class _Calibration:
    """Publishes each partition's share of the fleet's figures, and reads everybody's.

    The topic is compacted and has one record per partition, so whoever reads it from the start knows all.
    """

    def __init__(self, settings: Settings, topics: Topics, use: Callable[[FleetFigures], None]) -> None:
        self._settings, self._topic, self._use = settings, topics.calibration, use
        self._sketches: dict[bytes, calibration.Sketch] = {}

    async def follow(self) -> None:
        """Reads the topic from its start, for ever."""
        consumer = AIOKafkaConsumer(
            self._topic,
            **for_aiokafka(self._settings.kafka),
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            client_id="burnfuse-calibration",
        )
        await consumer.start()
        try:
            while True:
                batches = await consumer.getmany(timeout_ms=1000)
                records = [record for batch in batches.values() for record in batch]
                for record in records:
                    self._take(record.key, record.value)
                if records:
                    self._use(calibration.merge(self._sketches.values()))
        finally:
            await consumer.stop()

    def _take(self, key: bytes | None, value: bytes | None) -> None:
        if key is None or value is None:
            return
        try:
            self._sketches[key] = calibration.decode(value, self._topic).counts
        except ConfigError as error:
            log.warning("%s: a record was skipped: %s", self._topic, error)


Ending: TypeAlias = Callable[[], Awaitable[None]]
"""The second half of the work on a batch: waiting for Kafka, and what follows from its answer."""


class _Hands:
    """What one agent has in hand: the batch it works on, and the one before, whose messages are on their way.

    Computing a batch and waiting for Kafka overlap; a third batch has to wait.
    """

    def __init__(self, app: Any, name: str) -> None:
        self._app, self._name = app, name
        self._busy = asyncio.Lock()
        self._ending: asyncio.Future[None] | None = None

    async def do(self, work: Callable[[], Awaitable[Ending]]) -> None:
        """The first half of the work on a batch; the second one goes on by itself. What goes wrong in either
        stops the worker."""
        async with self._busy:
            ending = await self._safely(work())
            await self._ended()
            self._ending = asyncio.ensure_future(self._safely(ending()))

    async def empty(self) -> None:
        """Waits until nothing is in hand."""
        async with self._busy:
            await self._ended()

    async def _ended(self) -> None:
        ending, self._ending = self._ending, None
        if ending is not None:
            await ending

    async def _safely(self, half: Awaitable[T]) -> T:
        try:
            return await half
        except Exception as error:
            if not isinstance(error, BurnfuseError):  # which says by itself what is wrong
                log.critical("%s failed; the worker stops, nothing of this batch is lost", self._name, exc_info=True)
            await self._app.crash(error)
            raise


async def _batches(
    app: Any,
    stream: Any,
    settings: Settings,
    hands: _Hands,
    work: Callable[[list[Any]], Awaitable[Ending]],
) -> None:
    """Hands batches of events to `work`; what goes wrong there stops the worker.

    A batch is what waits at the moment, so the slower the work, the larger the batches. Faust would restart a
    failing agent and go on after the batch. Its events must not be acknowledged, so that whoever takes over
    sees them again.
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
            batch, records = [], 0
            while event is not None:
                batch.append(event)
                records += len(event.message.value)
                coming, event = following(), None
                if records < settings.kafka.batch_records and not stream.channel.queue.empty():
                    # At a rebalance what waits is thrown away: nobody may wait for it with a batch in hand.
                    await asyncio.wait([coming], timeout=_TAKE_S)
                    event = coming.result() if coming.done() else None
            await hands.do(partial(current, batch))
    finally:
        coming.cancel()


class _Run:
    """Acknowledges events when all of their parts are done."""

    def __init__(self, events: Sequence[Any], parts: int) -> None:
        self._events, self._left = events, parts

    def done(self) -> None:
        self._left -= 1
        if not self._left:
            for event in self._events:
                event.ack()


def attach(
    app: Any, settings: Settings, counts: dict[str, int], clock: Clock, share: RejectedShare | None = None
) -> None:
    """Adds the agents and timers to a Faust application.

    Args:
        counts: Partitions of the topics, as they are.
        share: How much has been turned away so far.
    """
    topics = Topics.of(settings.kafka)
    send = _Sender(app)
    hands = {name: _Hands(app, name) for name in ("ingest", "watch", "graph", "incidents")}

    def topic(name: str) -> Any:
        return app.topic(name, value_type=bytes, key_type=bytes, value_serializer="raw", key_serializer="raw")

    # -------------------------------------------------------------------------------------- ingest

    ingest = make_ingest(settings, position_name(topics.usage), clock, secret("hash_key"))
    share = share or RejectedShare(settings.input, topics.usage, topics.dead)
    ingest_stage = IngestStage(topics, ingest, counts[topics.usage], counts[topics.events], share)
    progress = _Progress(settings, topics.usage, clock)
    # A heartbeat must not overtake the events it speaks of.
    ingest_lock = asyncio.Lock()

    keyed = settings.input.keyed_by == "agent_id"
    # Whose events are judged where they are read: in the input's partitions, or in those of the shuffle.
    watched = topics.usage if keyed else topics.events

    @app.agent(topic(topics.usage), name="ingest")
    async def ingest_agent(stream: Any) -> None:
        await _batches(app, stream, settings, hands["ingest"], keyed_batch if keyed else ingest_batch)

    async def taken(records: list[Record], stage: Callable[[list[Record]], T]) -> T:
        try:
            return stage(records)
        except RejectedShareError as error:
            await send([Message(topics.dead, None, error.marker)])
            raise

    async def ingest_batch(events: list[Any]) -> Ending:
        records = [_record(raw) for event in events for raw in event.message.value]
        async with ingest_lock:
            passed = progress.passing_on(records)
            sent = await send.begin(await taken(records, ingest_stage.process))

        async def ending() -> None:
            await asyncio.gather(*sent)
            progress.passed_on(passed)
            for event in events:
                event.ack()

        return ending

    async def keyed_batch(events: list[Any]) -> Ending:
        records = [_record(raw) for event in events for raw in event.message.value]
        async with ingest_lock:
            passed = progress.passing_on(records)
            messages, handed = await taken(records, ingest_stage.hand_over)
            sent = await send.begin(messages)
        runs, stepped = [], []
        for partition, packed in handed.items():
            chosen = stage(watched, partition)
            mine = [event for event in events if event.message.partition == partition]
            runs.append(_Run(mine, parts=2))
            chosen.take(packed, runs[-1])
            stepped.append(await step(chosen))

        async def ending() -> None:
            await asyncio.gather(*sent)
            progress.passed_on(passed)
            for run in runs:
                run.done()
            for rest in stepped:
                await rest()

        return ending

    @app.timer(interval=_HEARTBEAT_S)
    async def heartbeat() -> None:
        try:
            news = await progress.look()
        except KafkaError as error:
            # The brokers are asked again at once; until they answer, events wait for their order.
            log.warning("cannot ask how far the input topic has got: %s", error)
            return
        async with ingest_lock:
            news = {partition: ms for partition, ms in news.items() if progress.is_news(partition)}
            if not news:
                return
            sent = await send.begin(ingest_stage.heartbeat(news, topics.graph, *([] if keyed else [topics.events])))
        await asyncio.gather(*sent)
        if keyed:
            for partition, ms in news.items():
                chosen = stage(watched, partition)
                chosen.take(own(Columns.empty(), ms), _Run([], parts=1))
                await (await step(chosen))()

    # ------------------------------------------------------------------------------ watch and graph

    fixed = calibration.load(settings.calibration.file) if settings.calibration.file else None
    figures = fixed or FleetFigures()
    detect: dict[tuple[str, int], DetectStage] = {}
    # A partition's clock must not overtake its findings: their incident would be resolved before they come.
    order: WeakKeyDictionary[DetectStage, asyncio.Lock] = WeakKeyDictionary()

    def stage(name: str, partition: int) -> DetectStage:
        found = detect.get((name, partition))
        if found is None:
            scopes = WATCH if name == watched else GRAPH
            found = DetectStage(settings, topics, scopes, f"{name}/{partition}", clock)
            found.calibrate(figures)
            detect[name, partition] = found
            order[found] = asyncio.Lock()
        return found

    async def step(chosen: DetectStage) -> Ending:
        async with order[chosen]:
            messages, done = chosen.step()
            sent = await send.begin(messages)

        async def ending() -> None:
            await asyncio.gather(*sent)
            for run in done:
                run.done()

        return ending

    async def detect_batch(name: str, events: Sequence[Any]) -> Ending:
        by_partition: dict[int, list[Any]] = defaultdict(list)
        for event in events:
            by_partition[event.message.partition].append(event)
        stepped = []
        for partition, mine in by_partition.items():
            chosen = stage(name, partition)
            for event in mine:
                run = _Run([event], parts=len(event.message.value))
                for raw in event.message.value:
                    letter = chosen.add(raw.value, run)
                    if letter is not None:
                        await send([letter])
                        run.done()
            stepped.append(await step(chosen))
        return partial(_one_by_one, stepped)

    if not keyed:

        @app.agent(topic(topics.events), name="watch")
        async def watch_agent(stream: Any) -> None:
            await _batches(app, stream, settings, hands["watch"], partial(detect_batch, topics.events))

    @app.agent(topic(topics.graph), name="graph")
    async def graph_agent(stream: Any) -> None:
        await _batches(app, stream, settings, hands["graph"], partial(detect_batch, topics.graph))

    @app.timer(interval=1.0)
    async def tell_clocks() -> None:
        for chosen in list(detect.values()):
            if chosen.waiting:  # for an input partition that nobody reads any more
                await (await step(chosen))()
            async with order[chosen]:
                message = chosen.clock_message()
                await send([message] if message is not None else [])

    def use(new: FleetFigures) -> None:
        nonlocal figures
        figures = new
        for chosen in detect.values():
            chosen.calibrate(new)

    if fixed is None:
        follower = _Calibration(settings, topics, use)

        @app.task
        async def follow_calibration() -> None:
            await follower.follow()

        @app.timer(interval=settings.calibration.publish_s)
        async def publish_calibration() -> None:
            await send(
                [
                    Message(topics.calibration, f"{name}/{partition}".encode(), calibration.encode(share))
                    for (name, partition), chosen in detect.items()
                    if (share := calibration.merge([chosen.engine.sketch()])).version != "none"
                ]
            )

    # ----------------------------------------------------------------------------------- incidents

    incident_stage = IncidentStage(settings.incidents, topics)
    publish = _publisher(send)
    runner = Runner(settings, Tools(publish=publish, clock=clock, secret=secret, proposals_topic=topics.proposals))
    acting: set[asyncio.Task[Any]] = set()
    heard: dict[str, float] = {}

    async def tell(changes: Iterable[Change]) -> None:
        for change in changes:
            incident = change.incident
            value = msgspec.json.encode(incident_json(incident) | {"change": change.kind})
            await send([Message(topics.incidents, incident.id.encode(), value)])
            # Slack may be slow; the next finding must not wait for it.
            task = asyncio.create_task(runner.act(incident))
            acting.add(task)
            task.add_done_callback(acting.discard)

    @app.agent(topic(topics.findings), name="incidents")
    async def incident_agent(stream: Any) -> None:
        await _batches(app, stream, settings, hands["incidents"], incident_batch)

    async def incident_batch(events: list[Any]) -> Ending:
        for event in events:
            for raw in event.message.value:
                changes, letter = incident_stage.process(raw.value)
                await send([letter] if letter is not None else [])
                await tell(changes)
            event.ack()
        for source in incident_stage.incidents.sources:
            heard[source] = clock.monotonic()
        return partial(_one_by_one, ())

    @app.timer(interval=1.0)
    async def resolve_quiet() -> None:
        # Where nothing comes any more, the wall clock goes on.
        now = clock.monotonic()
        for source in incident_stage.incidents.sources:
            silent = now - heard.setdefault(source, now)
            if silent >= 1.0:
                heard[source] = now
                await tell(incident_stage.incidents.idle(silent, source))

    # ----------------------------------------------------------------------------- life of the worker

    @app.on_before_shutdown.connect
    async def finish(*_: Any, **__: Any) -> None:
        if acting:
            await asyncio.wait(acting, timeout=10)
        await runner.close()
        await progress.stop()

    @app.on_partitions_revoked.connect
    async def revoked(*_: Any, **__: Any) -> None:
        # What is in hand is finished, what is done need not come again.
        for hand in hands.values():
            await hand.empty()
        await app.consumer.commit()

    @app.on_partitions_assigned.connect
    async def assigned(_: Any, assigned: set[Any], **__: Any) -> None:
        mine = {(tp.topic, tp.partition) for tp in assigned}
        progress.reassign({partition for name, partition in mine if name == topics.usage})
        # At a rebalance Kafka takes all partitions away and gives most of them back: what stays here keeps
        # its state. What was not acknowledged comes again.
        for place in list(detect):
            if place in mine:
                detect[place].forget_waiting()
            else:
                del detect[place]
        log.info("reading %d partitions", len(mine))

    @app.task
    async def start_progress() -> None:
        await progress.start()


async def _one_by_one(endings: Iterable[Ending]) -> None:
    for ending in endings:
        await ending()


def _record(raw: Any) -> Record:
    return Record(
        value=raw.value,
        source=raw.partition,
        position=raw.offset,
        log_ms=raw.timestamp,
        sequence=_sequence(raw.headers),
        replayed=replayed(raw.headers) if raw.headers else None,
    )


def _sequence(headers: Sequence[tuple[str, bytes | None]] | None) -> int:
    """The sequence number in a record's headers, 0 if there is none."""
    for name, value in headers or ():
        if name == SEQUENCE_HEADER and value is not None and len(value) == 8:
            return int.from_bytes(value, "big") & ((1 << 63) - 1)
    return 0


def _publisher(send: _Sender) -> Callable[[str, bytes, bytes], Any]:
    async def publish(topic: str, key: bytes, value: bytes) -> None:
        await send([Message(topic, key, value)])

    return publish
