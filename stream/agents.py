"""The Faust agents: the stages of `stream.stages` connected to their topics.

An event is a run of records of one partition (`stream.transport`): its message's value is the list of raw
records. It is acknowledged when everything it led to is on Kafka. No exception leaves a stage: a record nobody
can read becomes a dead letter; anything else stops the worker with the batch not acknowledged, so that
nothing is lost.
"""

from __future__ import annotations

import asyncio
import logging
import math
import signal
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeAlias, TypeVar
from weakref import WeakKeyDictionary

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from burnfuse.event import SEQUENCE_HEADER
from detectors import registered
from detectors.base import FleetFigures
from stream import calibration
from stream.actions.base import Tools, configured
from stream.actions.outbox import Outbox
from stream.clock import Clock
from stream.columns import Columns
from stream.connection import for_aiokafka
from stream.engine import GRAPH, WATCH
from stream.errors import BrokerError, BurnfuseError, ConfigError, RejectedShareError
from stream.health import Health, Silence
from stream.incidents import Change
from stream.ingest.ingest import Record
from stream.ingest.replayed import replayed
from stream.ingest.share import RejectedShare
from stream.metrics import Metrics, PartitionState
from stream.overload import Lag, Overload
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
_ANSWER_S = 5.0
"""How long a broker may take to say where partitions end."""
_LIST_S = 15.0
"""How often to look whether all topics are still there."""
_SILENT_S = 10.0
"""How long no broker answers until it is worth a line."""
_LAST_CALLS_S = 10.0
"""How long a worker that stops goes on telling what happened."""
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
        # A broker answers one request after the other, and a fetch of an empty partition takes half a second.
        consumer.pause(TopicPartition(self._topic, 0))
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
        if not asked:
            return {}
        begin = await self._consumer.beginning_offsets(list(asked))
        return {tp: await self._consumer.committed(key) or begin[key] for key, tp in asked.items()}

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
        if self._app.ended_by is not None:  # nothing is begun any more; it comes again
            return
        async with self._busy:
            try:
                ending = await self._safely(work())
            except BurnfuseError:
                return
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
            if isinstance(error, BurnfuseError):
                _end_in_order(self._app, error)  # it says by itself what is wrong
                raise
            told = f"{self._name} failed; the worker stops, nothing of this batch is lost"
            # What Kafka refuses is explained at the end; where in here it was refused tells nobody anything.
            log.critical(told, exc_info=not isinstance(error, KafkaError))
            await self._app.crash(error)
            raise


def _end_in_order(app: Any, error: BurnfuseError) -> None:
    """All else is well, so the worker stops as if it were asked to: after a crash Faust may wait for ever for a
    commit by a thread that is gone."""
    if app.ended_by is None:
        app.ended_by = error
        signal.raise_signal(signal.SIGTERM)


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
    app: Any,
    settings: Settings,
    counts: dict[str, int],
    clock: Clock,
    metrics: Metrics,
    health: Health,
    share: RejectedShare | None = None,
) -> None:
    """Adds the agents and timers to a Faust application.

    Args:
        counts: Partitions of the topics, as they are.
        share: How much has been turned away so far.
    """
    app.ended_by = None  # an error of ours
    topics = Topics.of(settings.kafka)

    def timed(stage: str, work: Callable[[list[Any]], Awaitable[Ending]]) -> Callable[[list[Any]], Awaitable[Ending]]:
        async def run(events: list[Any]) -> Ending:
            started = clock.monotonic()
            rest = await work(events)

            async def ending() -> None:
                await rest()
                metrics.batch(stage, clock.monotonic() - started, sum(len(event.message.value) for event in events))

            return ending

        return run

    send = _Sender(app)
    hands = {name: _Hands(app, name) for name in ("ingest", "watch", "graph", "incidents")}

    def topic(name: str) -> Any:
        return app.topic(name, value_type=bytes, key_type=bytes, value_serializer="raw", key_serializer="raw")

    # -------------------------------------------------------------------------------------- ingest

    ingest = make_ingest(settings, position_name(topics.usage), clock, secret("hash_key"))
    share = share or RejectedShare(settings.input, topics.usage, topics.dead)
    ingest_stage = IngestStage(topics, ingest, counts[topics.usage], counts[topics.events], share, metrics)
    progress = _Progress(settings, topics.usage, clock)
    # A heartbeat must not overtake the events it speaks of.
    ingest_lock = asyncio.Lock()

    keyed = settings.input.keyed_by == "agent_id"
    # Whose events are judged where they are read: in the input's partitions, or in those of the shuffle.
    watched = topics.usage if keyed else topics.events

    @app.agent(topic(topics.usage), name="ingest")
    async def ingest_agent(stream: Any) -> None:
        work = timed("ingest", keyed_batch if keyed else ingest_batch)
        await _batches(app, stream, settings, hands["ingest"], work)

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
            log.debug("cannot ask how far the input topic has got: %s", error)
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

    # ---------------------------------------------------------------------------- how the worker is

    mine: set[Any] = set()
    ends: dict[Any, int] = {}
    begun: dict[Any, int] = {}
    behind: Lag[Any] = Lag()
    overload, silence = Overload(settings.overload), Silence(_SILENT_S)

    needed = {topics.usage, topics.events, topics.graph, topics.findings}
    gone: set[str] = set()
    listed = clock.monotonic()

    @app.timer(interval=1.0)
    async def ask_kafka() -> None:
        """Where the partitions end: whoever answers is also known to be there."""
        nonlocal gone, listed
        found: dict[Any, int] = {}
        with suppress(KafkaError, TimeoutError):
            found = await asyncio.wait_for(progress.ends(mine), _ANSWER_S)
            begun.update(await asyncio.wait_for(progress.committed(mine - begun.keys()), _ANSWER_S))
        ends.clear()
        ends.update(found)
        if found:
            health.answered()
        now = clock.monotonic()
        if found and not gone and now - listed < _LIST_S:
            return
        # Maybe there are no partitions for this worker, or no broker, or no such topics.
        listed = now
        with suppress(KafkaError, TimeoutError):
            if known := await asyncio.wait_for(progress.topics(), _ANSWER_S):
                health.answered()
                gone, before = needed - known, gone
                if still := gone & before:
                    # Faust would wait for them for ever.
                    names = ", ".join(sorted(still))
                    _end_in_order(app, BrokerError(f"topics were deleted ({names}): run `burnfuse topics`"))

    @app.timer(interval=1.0)
    async def look_around() -> None:
        now = clock.monotonic()
        done = {tp: at if (at := app.consumer.done(tp)) is not None else first for tp, first in begun.items()}
        lags = behind.look({tp: end for tp, end in ends.items() if tp in mine}, done, now)
        was = overload.on
        # Where Kafka is silent the worker is not too slow; what that has cost is seen when it answers again.
        if not silence.look(health.silence_s()):
            overload.look(((f"{tp.topic}/{tp.partition}", *lag) for tp, lag in lags.items()), now)
        if overload.on is not was:
            for chosen in detect.values():
                chosen.engine.shed(overload.on and settings.overload.shed)
        states, off = [], dict.fromkeys(registered(), 0)
        for tp in mine:
            lag, lag_s = lags.get(tp, (None, 0.0))
            state = PartitionState(tp.topic, tp.partition, lag, lag_s)
            if (at_work := detect.get((tp.topic, tp.partition))) is not None:
                moved = math.isfinite(at_work.engine.clock)
                delay = clock.now() - at_work.engine.clock if moved else None
                state = replace(state, watermark_delay_s=delay, held=at_work.waiting)
                for name in at_work.engine.quarantined:
                    off[name] += 1
            states.append(state)
        metrics.partitions(states)
        metrics.waiting(app.consumer.waiting())
        metrics.overloaded(overload.on)
        metrics.quarantined(off)
        metrics.assigned(len(mine))
        folds = any(tp.topic == topics.findings for tp in mine)
        metrics.incidents(incident_stage.incidents.open if folds else ())

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
            found = DetectStage(settings, topics, scopes, f"{name}/{partition}", clock, metrics)
            found.calibrate(figures)
            found.engine.shed(overload.on and settings.overload.shed)
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
            work = timed("watch", partial(detect_batch, topics.events))
            await _batches(app, stream, settings, hands["watch"], work)

    @app.agent(topic(topics.graph), name="graph")
    async def graph_agent(stream: Any) -> None:
        work = timed("graph", partial(detect_batch, topics.graph))
        await _batches(app, stream, settings, hands["graph"], work)

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

    incident_stage = IncidentStage(settings.incidents, topics, metrics)
    publish = _publisher(send)
    tools = Tools(publish=publish, clock=clock, secret=secret, proposals_topic=topics.proposals)
    # Slack may be slow; the next finding must not wait for it.
    outboxes = [Outbox(action, config.least_pause_s, clock, metrics) for action, config in configured(settings, tools)]
    heard: dict[str, float] = {}

    async def tell(changes: Iterable[Change]) -> None:
        for change in changes:
            incident = change.incident
            value = msgspec.json.encode(incident_json(incident) | {"change": change.kind})
            await send([Message(topics.incidents, incident.id.encode(), value)])
            for outbox in outboxes:
                outbox.put(change)

    @app.agent(topic(topics.findings), name="incidents")
    async def incident_agent(stream: Any) -> None:
        await _batches(app, stream, settings, hands["incidents"], timed("incidents", incident_batch))

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
        await asyncio.gather(*(outbox.close(_LAST_CALLS_S) for outbox in outboxes))
        await progress.stop()

    @app.on_partitions_revoked.connect
    async def revoked(*_: Any, **__: Any) -> None:
        health.assigned(None)
        # What is in hand is finished, what is done need not come again.
        for hand in hands.values():
            await hand.empty()
        await app.consumer.commit()

    @app.on_partitions_assigned.connect
    async def assigned(_: Any, assigned: set[Any], **__: Any) -> None:
        mine.clear()
        mine.update(assigned)
        begun.clear()
        health.assigned(len(mine))
        places = {(tp.topic, tp.partition) for tp in assigned}
        progress.reassign({partition for name, partition in places if name == topics.usage})
        # At a rebalance Kafka takes all partitions away and gives most of them back: what stays here keeps
        # its state. What was not acknowledged comes again.
        for place in list(detect):
            if place in places:
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
    if not raw.headers:
        return Record(raw.value, raw.partition, raw.offset, raw.timestamp)
    return Record(
        value=raw.value,
        source=raw.partition,
        position=raw.offset,
        log_ms=raw.timestamp,
        sequence=_sequence(raw.headers),
        replayed=replayed(raw.headers),
    )


def _sequence(headers: Sequence[tuple[str, bytes | None]]) -> int:
    """The sequence number in a record's headers, 0 if there is none."""
    for name, value in headers:
        if name == SEQUENCE_HEADER and value is not None and len(value) == 8:
            return int.from_bytes(value, "big") & ((1 << 63) - 1)
    return 0


def _publisher(send: _Sender) -> Callable[[str, bytes, bytes], Any]:
    async def publish(topic: str, key: bytes, value: bytes) -> None:
        await send([Message(topic, key, value)])

    return publish
