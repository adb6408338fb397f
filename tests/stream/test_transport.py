"""What the transport makes of Faust's own consumer, without Kafka: runs, commits, limits; what it relies on."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import faust
import pytest
from aiokafka import ConsumerRecord, TopicPartition
from aiokafka.consumer import fetcher
from event_loop import counted_turns
from faust.app import App
from faust.streams import Stream
from faust.tables.recovery import Recovery
from faust.transport import consumer as base
from faust.transport.conductor import ConductorCompiler
from faust.transport.drivers import aiokafka as driver
from faust.types import TP
from faust.types.tuples import ConsumerMessage, Message
from hypothesis import given
from hypothesis import strategies as st
from mode.services import Service
from mode.utils.queues import FlowControlQueue

from stream import transport
from stream.in_step import AHEAD_MS

T = TP("usage", 0)
OTHER = TP("other", 0)
U, V = TP("in step", 0), TP("in step", 1)


def record(offset: int, tp: TP = T, value: bytes = b"x", ms: int = 1000) -> Any:
    return ConsumerRecord(tp.topic, tp.partition, offset, ms, 0, None, value, None, 0, len(value), ())


class Kafka:
    """A consumer of runs whose thread is a dictionary of fetched records."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, run_records: int = 3) -> None:
        self.app = faust.App("test", broker="kafka://localhost:1", store="memory://", web_enabled=False)
        self.app.transport = transport.Transport(self.app, [T.topic, U.topic], run_records, in_step=[U.topic])
        self.consumer: Any = self.app.consumer
        self.app.topics._acking_topics.update({T.topic, OTHER.topic, U.topic})
        self.app.consumer_generation_id = 1
        self.log: dict[TP, list[Any]] = {}
        self.asked: list[set[TP]] = []
        self.committed: dict[TP, int | None] = {}
        self.consumer.resume_flow()
        self.consumer._set_active_tps({T, OTHER})

        async def fetch(_: Any, active_partitions: set[TP], _timeout: float) -> dict[TP, list[Any]]:
            self.asked.append(set(active_partitions))
            return {tp: self.log.pop(tp) for tp in list(self.log) if tp in active_partitions}

        async def seek_to_committed(_: Any) -> dict[TP, int | None]:
            return {tp: self.committed.get(tp) for tp in (T, OTHER)}

        async def seek(*_: Any) -> None:
            pass

        async def commit(_: Any, offsets: dict[TP, int]) -> bool:
            self.committed |= offsets
            return True

        monkeypatch.setattr(driver.Consumer, "_getmany", fetch)
        monkeypatch.setattr(driver.Consumer, "_commit", commit)
        monkeypatch.setattr(driver.Consumer, "seek_to_committed", seek_to_committed)
        monkeypatch.setattr(driver.Consumer, "assignment", lambda _: {T, OTHER})
        self.ends: dict[TP, int] = {}
        monkeypatch.setattr(driver.Consumer, "highwater", lambda _, tp: self.ends.get(tp, 0))
        monkeypatch.setattr(transport.Consumer, "_seek", seek)

    async def read(self, each: Callable[[Any], Any] = lambda _: None) -> list[Any]:
        """What one call of `getmany` hands out, through Faust's own drain."""
        messages: list[Any] = []

        async def callback(message: Any) -> None:
            message.refcount = 1
            messages.append(message)
            each(message)

        stop = iter([False, True])
        fetcher = SimpleNamespace(_stopped=SimpleNamespace(is_set=lambda: next(stop)))
        self.consumer.callback = callback
        await self.consumer._drain_messages(fetcher)
        return messages

    def ack(self, message: Any) -> None:
        message.ack(self.consumer)

    async def rebalance(self) -> None:
        """Takes the partition away and gives it back, as Faust does."""
        await self.consumer.on_partitions_revoked({T})
        self.consumer.resume_partitions({T})
        self.consumer.resume_flow()

    async def commit(self) -> int:
        """Commits as Faust does every second; where the group stands then."""
        await self.consumer.commit()
        return self.committed.get(T) or 0

    def new_offset(self, tp: TP = T) -> int | None:
        offset: int | None = self.consumer._new_offset(tp)
        return offset


def on_kafka(scenario: Callable[[Kafka], Any], run_records: int = 3) -> None:
    async def main() -> None:
        with pytest.MonkeyPatch.context() as patch:
            await scenario(Kafka(patch, run_records))

    asyncio.run(main())


def offsets(messages: Iterable[Any]) -> list[list[int]]:
    return [[r.offset for r in m.value] for m in messages]


# ------------------------------------------------------------------------------------------ reading


def test_a_run_is_one_message_with_the_raw_records() -> None:
    async def scenario(kafka: Kafka) -> None:
        kafka.log = {T: [record(7), record(9)]}
        (message,) = await kafka.read()
        assert (message.tp, message.partition, message.offset, message.timestamp) == (T, 0, 9, 1.0)
        assert [(r.offset, r.value) for r in message.value] == [(7, b"x"), (9, b"x")]

    on_kafka(scenario)


def test_other_topics_are_read_as_ever() -> None:
    async def scenario(kafka: Kafka) -> None:
        kafka.log = {OTHER: [record(offset, OTHER) for offset in range(4)]}
        messages = await kafka.read()
        assert [(m.offset, m.value) for m in messages] == [(offset, b"x") for offset in range(4)]
        kafka.ack(messages[0])
        kafka.ack(messages[2])
        assert kafka.new_offset(OTHER) == 1

    on_kafka(scenario)


@pytest.mark.parametrize(
    ("sizes", "runs"),
    [
        ([1] * 7, [3, 3, 1]),
        ([600_000, 400_000, 600_000, 1], [2, 2]),
        ([3_000_000, 1, 1], [1, 2]),
        ([1, 3_000_000, 1], [1, 1, 1]),
    ],
)
def test_a_run_is_bounded_in_records_and_in_bytes(sizes: list[int], runs: list[int]) -> None:
    async def scenario(kafka: Kafka) -> None:
        kafka.log = {T: [record(offset, value=bytes(size)) for offset, size in enumerate(sizes)]}
        messages = []
        for _ in runs:
            (message,) = await kafka.read()
            message.tracked = True
            messages.append(message)
        assert [len(message.value) for message in messages] == runs
        assert [offset for run in offsets(messages) for offset in run] == list(range(len(sizes)))

    on_kafka(scenario)


def test_a_partition_is_not_read_on_while_its_agent_leaves_a_run_untouched() -> None:
    async def scenario(kafka: Kafka) -> None:
        kafka.log = {T: [record(offset) for offset in range(7)]}
        (first,) = await kafka.read()
        kafka.asked.clear()
        kafka.log = {OTHER: [record(0, OTHER)]}
        assert [m.tp for m in await kafka.read()] == [OTHER]
        assert kafka.asked == [{OTHER}]
        first.tracked = True  # as Faust's stream does when it hands it to the agent
        assert offsets(await kafka.read()) == [[3, 4, 5]]

    on_kafka(scenario)


def test_partitions_of_a_topic_read_in_step_wait_for_the_slowest() -> None:
    async def scenario(kafka: Kafka) -> None:
        kafka.consumer._set_active_tps({U, V})
        kafka.ends = {U: 6, V: 6}
        kafka.log = {tp: [record(n, tp, ms=ms * (n + 1)) for n in range(6)] for tp, ms in ((U, 100), (V, 5_000))}
        first = {message.tp: message for message in await kafka.read()}
        assert offsets([first[U], first[V]]) == [[0, 1, 2], [0, 1, 2]]  # nobody knew
        first[V].tracked = True  # its agent would take more
        assert await kafka.read() == []  # that of the slowest is busy
        first[U].tracked = True
        (second,) = await kafka.read()
        assert (second.tp, offsets([second])) == (U, [[3, 4, 5]])
        second.tracked = True
        (third,) = await kafka.read()  # there is no more of the slowest
        assert (third.tp, offsets([third])) == (V, [[3, 4, 5]])

    on_kafka(scenario)


def test_a_topic_read_in_step_is_not_read_beyond_the_floor() -> None:
    async def scenario(kafka: Kafka) -> None:
        kafka.consumer._set_active_tps({U})
        kafka.log = {U: [record(n, U, ms=5_000) for n in range(6)]}
        (first,) = await kafka.read()
        first.tracked = True
        kafka.consumer.hold_back(U.topic, 4_999 - AHEAD_MS)
        assert await kafka.read() == []
        kafka.consumer.hold_back(U.topic, 5_000 - AHEAD_MS)
        assert offsets(await kafka.read()) == [[3, 4, 5]]

    on_kafka(scenario)


def test_faust_marks_a_message_when_an_agent_takes_it() -> None:
    assert not ConsumerMessage("t", 0, 0, 0.0, 0, None, None, None, None).tracked
    assert "message.tracked = True" in inspect.getsource(Stream._py_aiter)
    assert "message.tracked = True" in COMPILED_STREAM


def test_what_was_read_stays_while_a_partition_is_paused() -> None:
    second = TP(T.topic, 1)

    async def scenario(kafka: Kafka) -> None:
        kafka.consumer._set_active_tps({T, second})
        kafka.log = {T: [record(offset) for offset in range(4)], second: [record(5, second)]}
        first = await kafka.read(lambda _: kafka.consumer.pause_partitions([T, second]))
        assert len(first) == 1
        first[0].tracked = True
        kafka.consumer.resume_partitions([T, second])
        rest = await kafka.read()
        rest[0].tracked = rest[-1].tracked = True
        runs = [*first, *rest, *await kafka.read()]
        assert offsets(m for m in runs if m.tp == T) == [[0, 1, 2], [3]]
        assert offsets(m for m in runs if m.tp == second) == [[5]]

    on_kafka(scenario)


def test_messages_are_handed_to_streams_without_a_turn_of_the_loop() -> None:
    second = TP(T.topic, 1)

    async def scenario(kafka: Kafka) -> None:
        kafka.consumer._set_active_tps({T, second})
        kafka.log = {T: [record(0)], second: [record(5, second)]}
        when: list[int] = []
        with counted_turns() as turns:
            messages = await kafka.read(lambda _: when.append(turns()))
        assert len(messages) == 2
        assert when[0] == when[1] > 0

    on_kafka(scenario)


@pytest.mark.parametrize("suspended", [False, True])
def test_a_message_whose_stream_is_full_waits_unless_the_flow_is_suspended(suspended: bool) -> None:
    async def scenario(kafka: Kafka) -> None:
        room, handed = asyncio.Event(), []

        async def hand_over() -> None:
            await room.wait()
            handed.append("message")

        waiting = asyncio.ensure_future(kafka.consumer.wait_first(hand_over(), kafka.consumer.suspend_flow.wait()))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        (kafka.consumer.suspend_flow if suspended else room).set()
        await waiting
        await asyncio.sleep(0.01)
        room.set()
        await asyncio.sleep(0.01)
        assert handed == ([] if suspended else ["message"])

    on_kafka(scenario)


def test_what_goes_wrong_when_a_message_is_handed_over_is_told() -> None:
    async def scenario(kafka: Kafka) -> None:
        async def hand_over() -> None:
            raise LookupError("planted")

        with pytest.raises(LookupError, match="planted"):
            await kafka.consumer.wait_first(hand_over(), kafka.consumer.suspend_flow.wait())

    on_kafka(scenario)


# --------------------------------------------------------------------------------------- committing


def test_the_commit_waits_for_every_run_handed_out() -> None:
    async def scenario(kafka: Kafka) -> None:
        runs = []
        for first in (97, 100, 103):
            kafka.log = {T: [record(first + i) for i in range(3)]}
            (message,) = await kafka.read()
            message.tracked = True
            runs.append(message)
        kafka.ack(runs[2])
        assert kafka.new_offset() is None
        kafka.ack(runs[0])
        assert kafka.new_offset() == 100
        kafka.ack(runs[1])
        assert kafka.new_offset() == 106
        assert not kafka.consumer._gap[T], "Faust noted gaps: it would keep them for ever"
        assert not kafka.consumer._acked[T]

    on_kafka(scenario)


def test_holes_in_the_log_stop_no_commit() -> None:
    async def scenario(kafka: Kafka) -> None:
        for at in ([3, 4, 9], [50], [51, 70]):
            kafka.log = {T: [record(offset) for offset in at]}
            (message,) = await kafka.read()
            kafka.ack(message)
            assert kafka.new_offset() == at[-1] + 1

    on_kafka(scenario)


def test_records_done_out_of_order_do_not_stay_in_memory() -> None:
    async def scenario(kafka: Kafka) -> None:
        runs = []
        for offset in range(2):
            kafka.log = {T: [record(offset)]}
            runs += await kafka.read()
        kafka.ack(runs[1])
        assert kafka.new_offset() is None
        assert [run.message for run in kafka.consumer._runs[T]] == [runs[0], None]

    on_kafka(scenario)


def test_an_acknowledged_message_of_a_former_assignment_counts_for_nothing() -> None:
    async def scenario(kafka: Kafka) -> None:
        kafka.log = {T: [record(0)]}
        (before,) = await kafka.read()
        await kafka.rebalance()
        kafka.log = {T: [record(0)]}
        (after,) = await kafka.read()
        kafka.ack(before)
        assert kafka.consumer._acked[T] == [0]
        assert kafka.new_offset() is None
        kafka.ack(after)
        assert kafka.new_offset() == 1

    on_kafka(scenario)


def test_what_is_done_can_be_committed_while_partitions_are_revoked() -> None:
    async def scenario(kafka: Kafka) -> None:
        kafka.log = {T: [record(0)]}
        (message,) = await kafka.read()
        kafka.ack(message)

        async def revoked(_: Any) -> None:
            await kafka.consumer.commit()

        kafka.consumer._on_partitions_revoked = revoked
        await kafka.consumer.on_partitions_revoked({T})
        assert kafka.committed == {T: 1}
        assert kafka.new_offset() is None

    on_kafka(scenario)


# ------------------------------------------------------------------------------------------ seeking


def test_after_a_seek_back_only_the_new_messages_count() -> None:
    async def scenario(kafka: Kafka) -> None:
        runs = []
        for first in (0, 3):
            kafka.log = {T: [record(first + i) for i in range(3)]}
            (message,) = await kafka.read()
            message.tracked = True
            runs.append(message)
        await kafka.consumer.seek(T, 2)
        kafka.log = {T: [record(offset) for offset in (2, 3, 4)]}
        (again,) = await kafka.read()
        kafka.ack(runs[1])
        assert kafka.new_offset() is None
        kafka.ack(runs[0])
        assert kafka.new_offset() == 2
        kafka.ack(again)
        assert kafka.new_offset() == 5

    on_kafka(scenario)


def test_a_seek_drops_what_was_read_before() -> None:
    async def scenario(kafka: Kafka) -> None:
        kafka.log = {T: [record(offset) for offset in range(5)]}
        await kafka.read()
        await kafka.consumer.seek(T, 100)
        kafka.log = {T: [record(100)]}
        assert offsets(await kafka.read()) == [[100]]

    on_kafka(scenario)


def test_a_seek_to_where_the_group_stands_drops_what_was_read_before() -> None:
    async def scenario(kafka: Kafka) -> None:
        kafka.log = {T: [record(offset) for offset in range(10, 15)]}
        await kafka.read()
        kafka.committed = {T: 10}
        await kafka.consumer.perform_seek()
        kafka.log = {T: [record(offset) for offset in range(10, 13)]}
        assert offsets(await kafka.read()) == [[10, 11, 12]]

    on_kafka(scenario)


def test_where_nothing_was_committed_faust_does_not_seek_and_nothing_is_dropped() -> None:
    async def scenario(kafka: Kafka) -> None:
        kafka.log = {T: [record(offset) for offset in range(5)]}
        (first,) = await kafka.read()
        first.tracked = True
        kafka.committed = {T: None}
        await kafka.consumer.perform_seek()
        assert offsets(await kafka.read()) == [[3, 4]]

    on_kafka(scenario)


def test_a_partition_named_as_aiokafka_does_is_read_on() -> None:
    async def scenario(kafka: Kafka) -> None:
        kafka.consumer.pause_partitions({TopicPartition(*T)})
        kafka.consumer.resume_partitions({TopicPartition(*T)})
        kafka.log = {T: [record(0)]}
        assert offsets(await kafka.read()) == [[0]]

    on_kafka(scenario)


# --------------------------------------------------------------------------------- what always holds

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("read"), st.integers(1, 5)),
        st.tuples(st.just("take"), st.integers(0, 9)),
        st.tuples(st.just("ack"), st.integers(0, 9)),
        st.tuples(st.just("commit"), st.just(0)),
        st.tuples(st.just("seek"), st.integers(0, 9)),
        st.tuples(st.just("reset"), st.just(0)),
        st.tuples(st.just("rebalance"), st.just(0)),
    ),
    max_size=40,
)


@given(log=st.lists(st.integers(0, 60), unique=True, min_size=1, max_size=30).map(sorted), steps=STEPS)
def test_no_commit_passes_work_that_was_not_done_and_none_is_held_up(
    log: list[int], steps: list[tuple[str, int]]
) -> None:
    async def scenario(kafka: Kafka) -> None:
        given_out: list[Any] = []
        done: set[int] = set()
        position = skipped_to = 0

        async def read(count: int) -> None:
            nonlocal position
            coming = [offset for offset in log if offset >= position][:count]
            kafka.log = {T: [record(offset) for offset in coming]} if coming else {}
            given_out.extend(await kafka.read())
            if coming and not kafka.log:
                position = coming[-1] + 1

        def ack(message: Any) -> None:
            message.tracked = True
            kafka.ack(message)
            done.update(r.offset for r in message.value)

        async def commit() -> None:
            offset = await kafka.commit()
            assert {at for at in log if at < offset} <= done | set(range(skipped_to))

        for step, n in steps:
            if step == "read":
                await read(n)
            elif step == "take" and given_out:
                given_out[n % len(given_out)].tracked = True
            elif step == "ack" and given_out:
                ack(given_out[n % len(given_out)])
            elif step == "commit":
                await commit()
            elif step == "seek":
                position = log[n % len(log)]
                skipped_to = max(skipped_to, position)
                await kafka.consumer.seek(T, position)
            elif step == "reset":
                position = kafka.committed.get(T) or position
                await kafka.consumer.perform_seek()
            elif step == "rebalance":
                await kafka.rebalance()
                position = kafka.committed.get(T) or 0
                await kafka.consumer.perform_seek()
            await commit()
        while position <= log[-1] or kafka.consumer._held:
            await read(5)
            for message in given_out:
                ack(message)
        for message in given_out:
            ack(message)
        assert await kafka.commit() == log[-1] + 1

    on_kafka(scenario)


# ------------------------------------------------------------------------------- what this relies on

COMPILED_STREAM = (Path(faust.__file__).parent / "_cython" / "streams.pyx").read_text()

READ = {
    base.Consumer.__init__: "302410d59e69",
    base.Consumer._reset_state: "488b46f5c7f1",
    base.Consumer.getmany: "4b168d84882a",
    base.Consumer._wait_next_records: "6218e1969a63",
    base.Consumer._drain_messages: "44a2500309e8",
    base.Consumer.ack: "5fcf41cf4515",
    base.Consumer._new_offset: "1d2c7ea89a7a",
    base.Consumer._filter_tps_with_pending_acks: "f6f923977423",
    base.Consumer._filter_committable_offsets: "dc5e9baf5d99",
    base.Consumer._should_commit: "5ce941793947",
    base.Consumer._commit_offsets: "1a6979904118",
    base.Consumer.perform_seek: "0e8c130ff4b0",
    base.Consumer.seek: "b86a9fe05f95",
    base.Consumer.on_partitions_revoked: "d04b7ae72c6f",
    base.Consumer.track_message: "217d7f1399a4",
    base.ThreadDelegateConsumer._getmany: "f9d47aa9010b",
    base.ThreadDelegateConsumer._seek: "4f95c6314204",
    base.ThreadDelegateConsumer.seek_wait: "e9db5bbc4ceb",
    driver.Consumer._to_message: "7c24f6511b2f",
    driver.AIOKafkaConsumerThread.getmany: "26fc5fc9f3b6",
    driver.AIOKafkaConsumerThread._fetch_records: "39a2c6c79fc1",
    driver.AIOKafkaConsumerThread.seek: "1498560d05f0",
    ConductorCompiler.build: "837cf521368c",
    Message.ack: "4751b72c4ed8",
    App._on_partitions_revoked: "d5c895bbe57d",
    Recovery._resume_streams: "d986a6710c1a",
    Stream._py_aiter: "3a48ee257a65",
    Service.wait_first: "feade6a31f8a",
    FlowControlQueue.get_nowait: "57cb9b5c12e7",
}


def test_records_have_the_fields_that_aiokafka_fills() -> None:
    assert transport.Read.__struct_fields__ == tuple(field.name for field in dataclasses.fields(ConsumerRecord))
    assert fetcher.ConsumerRecord is transport.Read
    assert fetcher.PartitionRecords._consumer_record.__globals__ is vars(fetcher), "nobody else makes records"


def fingerprint(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def test_faust_is_as_it_was_when_the_transport_was_written() -> None:
    """If this fails: read what has changed, see whether stream/transport.py still holds, note the new fingerprint."""
    now = {function: fingerprint(inspect.getsource(function)) for function in READ}
    changed = [function.__qualname__ for function, known in READ.items() if now[function] != known]
    assert not changed
    assert fingerprint(COMPILED_STREAM) == "0041622f4a25"


@pytest.mark.parametrize("name", [name for name, value in vars(transport.Consumer).items() if inspect.isfunction(value)
                                  and hasattr(driver.Consumer, name)])  # fmt: skip
def test_what_is_overridden_is_called_as_before(name: str) -> None:
    ours, fausts = (list(inspect.signature(getattr(c, name)).parameters) for c in (transport.Consumer, driver.Consumer))
    assert ours == fausts
