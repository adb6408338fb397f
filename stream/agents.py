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
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from detectors import registered
from detectors.base import FleetFigures
from stream import calibration
from stream.actions.base import Remembering, Tools, configured
from stream.actions.outbox import Outbox
from stream.batches import Ending, Hands, Run, end_in_order, nothing, one_by_one, record_of, take_batches, taken
from stream.checkpoints import FencedError, Keeper, Keeping, Place, Standby, on_kafka
from stream.clock import Clock
from stream.columns import Columns
from stream.connection import connected, for_aiokafka
from stream.engine import GRAPH, WATCH
from stream.errors import BrokerError, BurnfuseError, ConfigError, RejectedShareError
from stream.health import Health, Silence
from stream.incidents import Change
from stream.ingest.ingest import Record
from stream.ingest.share import RejectedShare
from stream.metrics import Metrics, PartitionState
from stream.overload import Lag, Overload, patience_s
from stream.pipeline import make_ingest
from stream.progress import Progress
from stream.settings import Settings, secret
from stream.stages import DetectStage, IncidentStage, IngestStage, Message, Topics, own, position_name
from stream.state import origin
from stream.topics import state_topics

log = logging.getLogger(__name__)

T = TypeVar("T")

_HEARTBEAT_S = 0.25
_STEP_S = 0.1
"""How often to look for steps that are due: behind, events wait for others, and no record comes to set them off."""
_ANSWER_S = 5.0
"""How long a broker may take to say where partitions end."""
_MOST_WAITING = 100_000
"""Events that may wait for their order, some 50 MB, until no more is read ahead of others."""
_LIST_S = 15.0
"""How often to look whether all topics are still there."""
_SILENT_S = 10.0
"""How long no broker answers until it is worth a line."""
_LAST_CALLS_S = 10.0
"""How long a worker that stops goes on telling what happened."""
_CALL_S = 2.0
"""How long a rebalance waits for a call that is under way, say to Slack."""
_LOOK_S = 0.05
"""How often a call that must wait looks whether it may begin."""


class _Sender:
    """Sends messages through the application's producer; each partition gets them in the order of the calls."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._topics: dict[str, Any] = {}

    async def __call__(self, messages: Iterable[Message]) -> None:
        """Sends, and waits until Kafka has them."""
        await on_kafka(await self.begin(messages))

    async def begin(self, messages: Iterable[Message]) -> list[Awaitable[Any]]:
        """Hands messages to the producer; each of the results is done when Kafka has its message."""
        sent = []
        for message in messages:
            topic = self._topics.get(message.topic)
            if topic is None:
                topic = self._topics[message.topic] = self._app.topic(message.topic, value_type=bytes, key_type=bytes)
            sent.append(await topic.send(key=message.key, value=message.value, partition=message.partition))
        return sent


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
        async with connected(consumer):
            while True:
                batches = await consumer.getmany(timeout_ms=1000)
                records = [record for batch in batches.values() for record in batch]
                for record in records:
                    self._take(record.key, record.value)
                if records:
                    self._use(calibration.merge(self._sketches.values()))

    def _take(self, key: bytes | None, value: bytes | None) -> None:
        if key is None or value is None:
            return
        try:
            self._sketches[key] = calibration.decode(value, self._topic).counts
        except ConfigError as error:
            log.warning("%s: a record was skipped: %s", self._topic, error)


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
            started, records = clock.monotonic(), sum(len(event.message.value) for event in events)
            rest = await work(events)

            async def ending() -> None:
                await rest()
                metrics.batch(stage, clock.monotonic() - started, records)

            return ending

        return run

    send = _Sender(app)
    most = settings.kafka.batch_records
    hands = {name: Hands(app, name) for name in ("ingest", "watch", "graph", "incidents")}

    def topic(name: str) -> Any:
        return app.topic(name, value_type=bytes, key_type=bytes, value_serializer="raw", key_serializer="raw")

    # -------------------------------------------------------------------------------------- ingest

    ingest = make_ingest(settings, position_name(topics.usage), clock, secret("hash_key"))
    share = share or RejectedShare(settings.input, topics.usage, topics.dead)
    ingest_stage = IngestStage(topics, ingest, counts[topics.usage], counts[topics.events], share, metrics)
    progress = Progress(settings, topics.usage, clock)
    # A heartbeat must not overtake the events it speaks of.
    ingest_lock = asyncio.Lock()

    keyed = settings.input.keyed_by == "agent_id"
    # Whose events are judged where they are read: in the input's partitions, or in those of the shuffle.
    watched = topics.usage if keyed else topics.events

    # ------------------------------------------------------------------------------------ saved state

    state_of = state_topics(settings)
    hash_key = secret("hash_key")
    standby = (
        Standby(settings.kafka, {state: counts[home] for home, state in state_of.items()})
        if settings.state.standby
        else None
    )

    def pause(place: Place) -> None:
        app.consumer.pause_partitions({TopicPartition(*place)})
        if place[0] == topics.findings:
            give_up_telling()

    async def read_from(place: Place, offset: int) -> None:
        await app.consumer.seek(TopicPartition(*place), offset)
        app.consumer.resume_partitions({TopicPartition(*place)})

    async def crash(error: BaseException) -> None:
        if isinstance(error, BurnfuseError):
            end_in_order(app, error)
        else:
            await app.crash(error)

    every_s = settings.state.checkpoint_s
    keeping = Keeping(settings.kafka, clock, health, metrics, every_s, standby, crash, send.begin, pause, read_from)
    keepers: dict[Place, Keeper[Any]] = {}

    def keeper(place: Place, make: Callable[[], Any]) -> Keeper[Any]:
        return Keeper(keeping, place, state_of[place[0]], origin(place[0], counts[place[0]], hash_key), make)

    def restored(tp: Any) -> DetectStage | IncidentStage | None:
        """The stage of a partition, once its state has been restored."""
        kept = keepers.get((tp.topic, tp.partition))
        return kept.stage if kept is not None else None

    def at_work() -> list[DetectStage]:
        """Stages of detectors whose state has been restored."""
        return [k.stage for k in keepers.values() if isinstance(k.stage, DetectStage)]

    def sorted_out(name: str, events: Sequence[Any]) -> list[tuple[Keeper[Any], list[Any]]]:
        """Events by their partition's keeper; those of partitions that are being restored wait."""
        grouped: dict[int, list[Any]] = defaultdict(list)
        for event in events:
            grouped[event.message.partition].append(event)
        found = []
        for partition, mine in grouped.items():
            kept = keepers.get((name, partition))
            if kept is not None and kept.open:
                found.append((kept, mine))
            elif kept is not None:
                kept.held += mine
                app.consumer.pause_partitions({mine[0].message.tp})
        return found

    async def by_partition(
        name: str, events: Sequence[Any], work: Callable[[Any, list[Any]], Awaitable[Ending]]
    ) -> Ending:
        """Hands events to their partition's keeper, one after the other."""
        return partial(one_by_one, [await work(kept, mine) for kept, mine in sorted_out(name, events)])

    async def catch_up(kept: Keeper[Any], work: Callable[[Any, list[Any]], Awaitable[Ending]]) -> None:
        """What waited for a partition to be restored is worked on, and more is read."""
        paused = set()
        while kept.held:  # in the order in which they came
            held, kept.held = kept.held, []
            paused.add(held[0].message.tp)
            now = app.consumer_generation_id
            await (await work(kept, [event for event in held if event.message.generation_id == now]))()
        kept.open = True
        app.consumer.resume_partitions(paused)

    @app.agent(topic(topics.usage), name="ingest")
    async def ingest_agent(stream: Any) -> None:
        work = timed("ingest", keyed_batch if keyed else ingest_batch)
        await take_batches(app, stream, most, hands["ingest"], work)

    async def ingested(records: list[Record], stage: Callable[[list[Record]], T]) -> T:
        try:
            return stage(records)
        except RejectedShareError as error:
            await send([Message(topics.dead, None, error.marker)])
            raise

    async def ingest_batch(events: list[Any]) -> Ending:
        records = list(map(record_of, taken(events)))
        async with ingest_lock:
            passed = progress.passing_on(records)
            sent = await send.begin(await ingested(records, ingest_stage.process))

        async def ending() -> None:
            await on_kafka(sent)
            progress.passed_on(passed)
            for event in events:
                event.ack()

        return ending

    async def keyed_batch(events: list[Any]) -> Ending:
        return await keyed_events(sorted_out(topics.usage, events))

    async def keyed_events(of: Sequence[tuple[Keeper[DetectStage], list[Any]]]) -> Ending:
        # All partitions together: each record of the graph topic, and each look at records, has its price.
        records = [record_of(raw) for _, events in of for raw in taken(events)]
        async with ingest_lock:
            passed = progress.passing_on(records)
            messages, handed = await ingested(records, ingest_stage.hand_over)
            sent = await send.begin(messages)
            for kept, _ in of:
                kept.sends(sent)
        stepped = []
        for kept, events in of:
            if events and kept.stage is not None:
                kept.stage.take(handed[kept.place[1]], Run(events, parts=1), events[-1].message.offset)
                if kept.stage.due(patience):
                    stepped.append(await step(kept))

        async def ending() -> None:
            await on_kafka(sent)
            progress.passed_on(passed)
            await one_by_one(stepped)

        return ending

    async def keyed_alone(kept: Keeper[DetectStage], events: list[Any]) -> Ending:
        return await keyed_events([(kept, events)])

    def keep_in_step() -> None:
        """While many events wait for their order, the input is read no further than the slowest partition, whoever
        reads that one."""
        waiting = [(chosen.waiting, chosen.passed_ms) for chosen in at_work() if chosen.waiting]
        many = sum(events for events, _ in waiting) > _MOST_WAITING
        # Where nothing was ever heard of an input partition, those of which nothing was read yet may begin.
        app.consumer.hold_back(topics.usage, max(0, min(ms for _, ms in waiting)) if many else None)

    @app.timer(interval=_HEARTBEAT_S)
    async def heartbeat() -> None:
        keep_in_step()
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
        await on_kafka(sent)
        if keyed:
            for partition, ms in news.items():
                kept = keepers.get((watched, partition))
                if kept is not None and kept.stage is not None:
                    kept.stage.take(own(Columns.empty(), ms), None)

    # ---------------------------------------------------------------------------- how the worker is

    mine: set[Any] = set()
    ends: dict[Any, int] = {}
    begun: dict[Any, int] = {}
    behind: Lag[Any] = Lag()
    patience = 0.0
    overload, silence = Overload(settings.overload), Silence(_SILENT_S)

    needed = {topics.usage, topics.events, topics.graph, topics.findings}
    gone: set[str] = set()
    listed = clock.monotonic()

    @app.timer(interval=1.0)
    async def ask_kafka() -> None:
        """Where the partitions end: whoever answers is also known to be there."""
        nonlocal gone, listed
        found: dict[Any, int] = {}
        asked = clock.monotonic()
        with suppress(KafkaError, TimeoutError):
            found = await asyncio.wait_for(progress.ends(mine), _ANSWER_S)
            begun.update(await asyncio.wait_for(progress.committed(mine - begun.keys()), _ANSWER_S))
        ends.clear()
        ends.update(found)
        if found:
            health.answered()
        for tp, end in found.items():
            if isinstance(chosen := restored(tp), DetectStage):
                chosen.read_up_to(end, asked)
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
                    end_in_order(app, BrokerError(f"topics were deleted ({names}): run `burnfuse topics`"))

    @app.timer(interval=1.0)
    async def look_around() -> None:
        nonlocal patience
        now = clock.monotonic()
        done = {tp: at if (at := app.consumer.done(tp)) is not None else first for tp, first in begun.items()}
        # Records whose state is yet to be saved have been worked on all the same.
        done |= {tp: max(done[tp], chosen.first) for tp in done if (chosen := restored(tp)) is not None}
        lags = behind.look({tp: end for tp, end in ends.items() if tp in mine}, done, now)
        patience = patience_s(lag_s for _, lag_s in lags.values())
        was = overload.on
        # Where Kafka is silent the worker is not too slow; what that has cost is seen when it answers again.
        if not silence.look(health.silence_s()):
            overload.look(((f"{tp.topic}/{tp.partition}", *lag) for tp, lag in lags.items()), now)
        if overload.on is not was:
            for chosen in at_work():
                chosen.engine.shed(overload.on and settings.overload.shed)
        states, off = [], dict.fromkeys(registered(), 0)
        for tp in mine:
            lag, lag_s = lags.get(tp, (None, 0.0))
            state = PartitionState(tp.topic, tp.partition, lag, lag_s)
            if isinstance(chosen := restored(tp), DetectStage):
                moved = math.isfinite(chosen.engine.clock)
                delay = clock.now() - chosen.engine.clock if moved else None
                state = replace(state, watermark_delay_s=delay, held=chosen.waiting)
                for name in chosen.engine.quarantined:
                    off[name] += 1
            states.append(state)
        metrics.partitions(states)
        metrics.waiting(app.consumer.waiting())
        metrics.overloaded(overload.on)
        metrics.quarantined(off)
        metrics.assigned(len(mine))
        folding = restored(TopicPartition(topics.findings, 0))
        metrics.incidents(folding.incidents.open if isinstance(folding, IncidentStage) else ())

    # ------------------------------------------------------------------------------ watch and graph

    fixed = calibration.load(settings.calibration.file) if settings.calibration.file else None
    figures = fixed or FleetFigures()

    def detect_stage(name: str, partition: int) -> DetectStage:
        scopes = WATCH if name == watched else GRAPH
        made = DetectStage(settings, topics, scopes, f"{name}/{partition}", clock, metrics)
        made.calibrate(figures)
        made.engine.shed(overload.on and settings.overload.shed)
        return made

    async def step(kept: Keeper[DetectStage]) -> Ending:
        return partial(on_kafka, await kept.work(DetectStage.step))

    async def detect(kept: Keeper[DetectStage], events: Sequence[Any]) -> Ending:
        def take(chosen: DetectStage) -> tuple[list[Message], list[Any]]:
            letters = []
            for event in events:
                raws = taken([event])
                run = Run([event], parts=len(raws))
                letters += [chosen.add(raw.value, run, raw.offset) for raw in raws]
            messages, done = chosen.step() if chosen.due(patience) else ([], [])
            return [letter for letter in letters if letter is not None] + messages, done

        return partial(on_kafka, await kept.work(take))

    async def detect_batch(name: str, events: Sequence[Any]) -> Ending:
        return await by_partition(name, events, detect)

    if not keyed:

        @app.agent(topic(topics.events), name="watch")
        async def watch_agent(stream: Any) -> None:
            work = timed("watch", partial(detect_batch, topics.events))
            await take_batches(app, stream, most, hands["watch"], work)

    @app.agent(topic(topics.graph), name="graph")
    async def graph_agent(stream: Any) -> None:
        work = timed("graph", partial(detect_batch, topics.graph))
        await take_batches(app, stream, most, hands["graph"], work)

    async def resume(kept: Keeper[DetectStage]) -> None:
        if kept.stage is not None:
            # There may be news since it was made.
            kept.stage.calibrate(figures)
            kept.stage.engine.shed(overload.on and settings.overload.shed)
        if keyed and kept.place[0] == watched:
            await catch_up(kept, keyed_alone)
        else:
            await catch_up(kept, detect)

    def tell_clock(chosen: DetectStage) -> tuple[list[Message], list[Any]]:
        message = chosen.clock_message()
        return ([] if message is None else [message]), []

    @app.timer(interval=_STEP_S)
    async def step_what_is_due() -> None:
        for kept in list(keepers.values()):
            if isinstance(kept.stage, DetectStage) and kept.stage.due(patience):
                await (await step(kept))()

    @app.timer(interval=1.0)
    async def tell_clocks() -> None:
        for kept in list(keepers.values()):
            if isinstance(kept.stage, DetectStage) and kept.stage.waiting and not kept.stage.due(0.0):
                await (await step(kept))()  # for an input partition that nobody reads any more
            if isinstance(kept.stage, DetectStage):
                await on_kafka(await kept.work(tell_clock))

    def use(new: FleetFigures) -> None:
        nonlocal figures
        figures = new
        for chosen in at_work():
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
                    Message(topics.calibration, chosen.name.encode(), calibration.encode(share))
                    for chosen in at_work()
                    if (share := calibration.merge([chosen.engine.sketch()])).version != "none"
                ]
            )

    # ----------------------------------------------------------------------------------- incidents

    publish = _publisher(send)
    tools = Tools(publish=publish, clock=clock, secret=secret, proposals_topic=topics.proposals)
    # Slack may be slow; the next finding must not wait for it.
    known: dict[str, IncidentStage] = {}
    put: set[int] = set()
    """Numbers of changes that actions have been given."""

    def told(outbox: Outbox, incident_id: str, number: int) -> None:
        """An action has told what there was of an incident, up to the change of this number."""
        action, chosen = outbox.action, known.get("stage")
        remembered = action.remembered(incident_id) if isinstance(action, Remembering) else b""
        if chosen is not None:
            chosen.finish(action.name, incident_id, number, remembered)

    lease_s = settings.kafka.session_timeout_s

    async def may_tell() -> None:
        """Who was frozen or cut off may have been replaced without knowing it: a checkpoint that went through not
        longer ago than others wait before they take a partition over proves that it was not."""
        # Time that passes sets no event.
        while (kept := keepers.get((topics.findings, 0))) is None or not kept.saved_within(lease_s):  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_S)

    outboxes = [
        Outbox(action, config.least_pause_s, clock, metrics, told, may_tell)
        for action, config in configured(settings, tools)
    ]

    def give_up_telling() -> None:
        """Whoever has the incidents now does it, after looking whether it was done."""
        known.clear()
        for outbox in outboxes:
            outbox.clear()

    acts = [outbox.action.name for outbox in outboxes]
    heard: dict[str, float] = {}

    def make_incidents() -> IncidentStage:
        return IncidentStage(settings.incidents, topics, clock, metrics)

    async def tell(kept: Keeper[IncidentStage], chosen: IncidentStage, begun: list[tuple[int, Change]]) -> None:
        """Changes are told and saved together; then something is done about them."""
        while begun and not await kept.save():
            if kept.stage is not chosen:
                return  # whoever has the partition now finds the changes in its findings
            await asyncio.sleep(1.0)
        for number, change in begun:
            put.add(number)
            for outbox in outboxes:
                outbox.put(change, number)

    async def go_on(kept: Keeper[IncidentStage]) -> None:
        """Takes up what a process that is gone has left undone."""
        chosen = kept.stage
        if chosen is None:
            return
        if chosen is not known.get("stage"):
            known["stage"] = chosen
            put.clear()
            for outbox in outboxes:
                outbox.clear()
            for name, incident_id, saved in chosen.remembered:
                for action in (outbox.action for outbox in outboxes):
                    if action.name == name and isinstance(action, Remembering):
                        action.remember(incident_id, saved)
        for outbox in outboxes:
            outbox.go_on()
        for number, change in chosen.again(acts).items():
            if number not in put:
                put.add(number)
                for outbox in outboxes:
                    if isinstance(outbox.action, Remembering):
                        outbox.action.doubt(change.incident.id)
                    outbox.put(change, number)
        await catch_up(kept, tell_findings)

    @app.agent(topic(topics.findings), name="incidents")
    async def incident_agent(stream: Any) -> None:
        await take_batches(app, stream, most, hands["incidents"], timed("incidents", incident_batch))

    async def incident_batch(events: list[Any]) -> Ending:
        try:
            return await by_partition(topics.findings, events, tell_findings)
        except FencedError:  # its keeper is told so as well
            return nothing

    async def tell_findings(kept: Keeper[IncidentStage], events: list[Any]) -> Ending:
        chosen = kept.stage
        if chosen is None:
            return nothing
        begun: list[tuple[int, Change]] = []

        def fold(chosen: IncidentStage) -> tuple[list[Message], list[Any]]:
            letters = []
            for raw in taken(events):
                changes, letter = chosen.process(raw.value, raw.offset)
                begun.extend((chosen.begin(change, acts), change) for change in changes)
                letters += [letter] if letter is not None else []
            return letters, [Run([event], parts=1) for event in events]

        await kept.work(fold)
        for source in chosen.incidents.sources:
            heard[source] = clock.monotonic()
        await tell(kept, chosen, begun)
        return nothing

    @app.timer(interval=1.0)
    async def resolve_quiet() -> None:
        # Where nothing comes any more, the wall clock goes on.
        kept = keepers.get((topics.findings, 0))
        if kept is None or not isinstance(chosen := kept.stage, IncidentStage):
            return
        now = clock.monotonic()
        for source in chosen.incidents.sources:
            silent = now - heard.setdefault(source, now)
            if silent >= 1.0:
                heard[source] = now
                async with kept.order:
                    begun = [(chosen.begin(change, acts), change) for change in chosen.incidents.idle(silent, source)]
                with suppress(FencedError):
                    await tell(kept, chosen, begun)

    # ----------------------------------------------------------------------------- life of the worker

    @app.on_before_shutdown.connect
    async def finish(*_: Any, **__: Any) -> None:
        await asyncio.gather(*(outbox.close(_LAST_CALLS_S) for outbox in outboxes))
        await asyncio.gather(*(kept.rest(settings.state.revoke_s) for kept in keepers.values()))
        await asyncio.gather(*(kept.close() for kept in keepers.values()))

    @app.on_partitions_revoked.connect
    async def revoked(*_: Any, **__: Any) -> None:
        health.assigned(None)
        # What is in hand is finished, what is done need not come again.
        for hand in hands.values():
            await hand.empty()
        await asyncio.gather(*(outbox.rest(_CALL_S) for outbox in outboxes))
        await asyncio.gather(*(kept.rest(settings.state.revoke_s) for kept in keepers.values()))
        await app.consumer.commit()

    @app.on_partitions_assigned.connect
    async def assigned(_: Any, assigned: set[Any], **__: Any) -> None:
        mine.clear()
        mine.update(assigned)
        begun.clear()
        places = {(tp.topic, tp.partition) for tp in assigned}
        progress.reassign({partition for name, partition in places if name == topics.usage})
        # At a rebalance Kafka takes all partitions away and gives most of them back: what stays here keeps
        # its state. What was not acknowledged comes again.
        left = [keepers.pop(place) for place in set(keepers) - places]
        await asyncio.gather(*(kept.close() for kept in left))
        if any(kept.place[0] == topics.findings for kept in left):
            give_up_telling()
        for place in sorted(place for place in places if place[0] in state_of):
            if place not in keepers:
                make = make_incidents if place[0] == topics.findings else partial(detect_stage, *place)
                keepers[place] = keeper(place, make)
            kept = keepers[place]
            kept.start(partial(go_on if place[0] == topics.findings else resume, kept))
        health.assigned(len(mine))  # only now, when it is known whose state is to be restored
        log.info("reading %d partitions", len(mine))

    @app.task
    async def ask_for_progress() -> None:
        await progress.run()

    if standby is not None:

        @app.task
        async def follow_states() -> None:
            await standby.follow()


def _publisher(send: _Sender) -> Callable[[str, bytes, bytes], Any]:
    async def publish(topic: str, key: bytes, value: bytes) -> None:
        await send([Message(topic, key, value)])

    return publish
