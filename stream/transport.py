"""Records into Faust agents by the run instead of one by one.

Faust hands every record to its agent through two tasks: about 10,000 records/s on a core, a small part of
what aiokafka reads. With this transport an agent gets one message per run: consecutive records of one
partition, as they were read. The message's value is the list of aiokafka's records, its offset that of the
last one. Everything else is Faust's own code: fetching, fairness, flow control, rebalancing, the commit.
Topics that are not named (tables, changelogs, replies) are read as ever.

The trap is the commit. Faust takes every offset it was not given for a gap that needs no work, and commits
past it: given offsets 99, 199 and 299 it would commit 300 once 299 is acknowledged, with 99 and 199 still at
work. So this consumer

- keeps the runs that were handed out, per partition and in order, and overrides `_new_offset` to commit to
  the end of the longest row of runs that are all acknowledged. Holes in the log (compaction, transactions,
  retention) lie between runs or within them and stop nothing;
- sets `_read_offset` just below a message before it is handed out, or Faust would note a gap for every run,
  for ever;
- looks at the message whether a run is acknowledged, not at the list of acknowledged offsets: after a
  rebalance Faust acknowledges messages of the former assignment that nobody has worked on.

Overriding `Message.on_final_ack` or `Consumer.ack` looks right, and silently stops all commits after the
first: the compiled stream iterator calls neither.

Records that were read and not handed out yet stay here: a partition that is paused in between goes on where
it stopped. A seek or a rebalance drops them. While an agent leaves a run's worth of records of a partition
untouched in its stream, that partition is not read on, so a slow agent costs a few runs of memory. Partitions
of topics that are read in step (`stream.in_step`) also wait for those that are behind. A message that its stream
has room for is handed over at once, without a task.

`tests/stream/test_transport.py` fails when a release of Faust changes what this relies on.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from typing import Any, ClassVar

import msgspec
from aiokafka.consumer import fetcher
from faust.transport.drivers import aiokafka as driver
from faust.types import TP, ConsumerMessage
from mode.services import WaitResults

from stream.eager import Begun
from stream.in_step import InStep

_RUN_BYTES = 1 << 20
"""Most bytes of one run, unless a single record is larger."""
_LOOK_AGAIN_S = 0.005
"""How soon to look whether an agent has taken what waits in its stream. A run takes it longer."""

_HELD = object()
"""Stands in Faust's lists of fetched records for what this consumer holds of a partition."""


class Read(msgspec.Struct, gc=False):
    """A record as aiokafka reads it, with the fields of its `ConsumerRecord`, for two thirds of the time."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    timestamp_type: int
    key: bytes | None
    value: bytes | None
    checksum: int | None
    serialized_key_size: int
    serialized_value_size: int
    headers: tuple[tuple[str, bytes | None], ...]


# Making and collecting its own, a frozen dataclass, is most of what a consumer does for a record.
fetcher.ConsumerRecord = Read


class _Run:
    """A message that was handed out."""

    __slots__ = ("bytes", "first", "last", "message", "records")

    def __init__(self, message: Any, first: int, last: int, records: int, size: int) -> None:
        self.message, self.first, self.last, self.records, self.bytes = message, first, last, records, size

    def acked(self) -> bool:
        """Whether all is done; if so, lets go of the records, even while runs before it are at work."""
        if self.message is not None and self.message.acked:
            self.message = None
        return self.message is None

    def taken(self) -> bool:
        """Whether a stream has handed it to its agent."""
        return self.message is None or bool(self.message.tracked)


class Consumer(driver.Consumer):
    """Hands out runs of records of the transport's topics."""

    transport: Transport

    def _reset_state(self) -> None:
        super()._reset_state()
        self._held: dict[TP, list[Any]] = {}
        self._runs: dict[TP, deque[_Run]] = {}
        self._done: dict[TP, int] = {}
        """All before this offset is done."""
        self._sought: dict[TP, int] = {}
        """Where the next run of a partition begins anew."""
        self._in_step: dict[str, InStep[TP]] = {topic: InStep() for topic in self.transport.in_step}

    def _batched(self, tp: TP) -> bool:
        return tp.topic in self.transport.topics

    # ------------------------------------------------------------------------------------- reading

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[TP, Any]]:  # noqa: ASYNC109  Faust's signature
        async for tp, message in super().getmany(timeout):
            if message is not None:
                yield tp, message

    async def wait_first(self, *coros: Any, timeout: Any = None) -> Any:  # noqa: ASYNC109  Faust's signature
        if len(coros) != 2 or not asyncio.iscoroutine(coros[0]) or timeout is not None or self.should_stop:
            return await super().wait_first(*coros, timeout=timeout)
        # Faust makes four tasks for each message that it hands to a stream, and the loop turns several times: whoever
        # has work does it then, and a run each of two dozen partitions was not handed out before all had worked.
        handing, suspended = coros
        try:
            begun = Begun(handing)
        except BaseException:
            suspended.close()  # or Python tells of a coroutine that nobody has awaited
            raise
        if not begun.done:
            return await super().wait_first(begun, suspended)
        suspended.close()
        return WaitResults([handing], [None], False)

    async def _getmany(
        self,
        active_partitions: set[TP] | None,
        timeout: float,  # noqa: ASYNC109  Faust's signature
    ) -> Mapping[TP, list[Any]]:
        if active_partitions is None:  # an application that only sends and asks has no agents
            return await super()._getmany(active_partitions, timeout)
        later = {tp for tp in active_partitions if self._full(tp)} | self._ahead(active_partitions)
        held = {tp for tp in self._held if tp in active_partitions}
        ready = held - later
        if ready:
            timeout = 0
        elif later:
            timeout = min(timeout, _LOOK_AGAIN_S)
        fetched: Mapping[TP, list[Any]] = {}
        # To aiokafka no partitions means all of them.
        if wanted := active_partitions - later - held:
            fetched = await super()._getmany(wanted, timeout)
        else:
            await asyncio.sleep(0 if ready else timeout)
        items: dict[TP, list[Any]] = {}
        for tp, records in fetched.items():
            if self._batched(tp):
                self._held.setdefault(TP(*tp), []).extend(records)
                ready.add(TP(*tp))
            else:
                items[tp] = records
        return items | {tp: [_HELD] for tp in ready}

    def _full(self, tp: TP) -> bool:
        """Whether enough of a partition waits in its agent's stream."""
        records = size = 0
        if tp in self._sought:  # what was handed out before the seek does not count
            return False
        for run in reversed(self._runs.get(tp, ())):
            if run.taken():
                break
            records += run.records
            size += run.bytes
        return records >= self.transport.run_records or size >= _RUN_BYTES

    def _ahead(self, active_partitions: Iterable[TP]) -> set[TP]:
        """Partitions of topics read in step that others must catch up with first."""
        ahead: set[TP] = set()
        now = asyncio.get_running_loop().time()
        for topic, pace in self._in_step.items():
            ahead |= pace.ahead([tp for tp in active_partitions if tp.topic == topic], self._left, now)
        return ahead

    def _left(self, tp: TP) -> bool | None:
        """Whether records of a partition are left; None: they are yet to be fetched, or nobody knows."""
        if tp in self._held or self._full(tp):
            return True
        end, read = self.highwater(tp), self._read_offset[tp]
        if end is None or read is None:
            return None
        return None if read + 1 < end else False

    def hold_back(self, topic: str, floor_ms: int | None) -> None:
        """Nothing of a topic read in step is read ahead of this moment, ms since 1970; None: no such limit."""
        self._in_step[topic].floor_ms = floor_ms

    def _to_message(self, tp: TP, record: Any) -> Any:
        """The next run of a partition as a message; None if what was held has been dropped in the meantime."""
        if record is not _HELD:
            return super()._to_message(tp, record)
        held = self._held.pop(tp, None)
        if held is None:
            return None
        run, size = _cut(held, self.transport.run_records)
        if len(run) < len(held):
            self._held[tp] = held[len(run) :]
        first, last = run[0], run[-1]
        message = ConsumerMessage(
            last.topic,
            last.partition,
            last.offset,
            last.timestamp / 1000,
            last.timestamp_type,
            headers=None,
            key=None,
            value=run,  # type: ignore[arg-type]  # Faust hands it on as it is
            checksum=None,
            serialized_key_size=0,
            serialized_value_size=size,
            tp=tp,
            generation_id=self.app.consumer_generation_id,
        )
        runs = self._runs.setdefault(tp, deque())
        if (restart := self._sought.pop(tp, None)) is not None:
            # What was handed out from there on comes again: only the new messages count for it.
            while runs and runs[-1].first >= restart:
                runs.pop()
            if runs:
                runs[-1].last = min(runs[-1].last, restart - 1)
        self._advance(tp)
        runs.append(_Run(message, first.offset, last.offset, len(run), size))
        self._read_offset[tp] = last.offset - 1
        if tp.topic in self._in_step:
            self._in_step[tp.topic].read(tp, last.timestamp)
        return message

    # ---------------------------------------------------------------------------------- committing

    def _advance(self, tp: TP) -> None:
        runs = self._runs.get(tp)
        while runs and runs[0].acked():
            self._done[tp] = runs.popleft().last + 1

    def _new_offset(self, tp: TP) -> int | None:
        if not self._batched(tp):
            return super()._new_offset(tp)
        self._acked[tp].clear()
        self._acked_index[tp].clear()
        self._advance(tp)
        for run in self._runs.get(tp, ()):
            run.acked()
        return self._done.get(tp)

    def _filter_tps_with_pending_acks(self, topics: Any = None) -> Iterator[TP]:
        # When partitions are revoked Faust forgets what was acknowledged before it commits for the last time.
        yield from super()._filter_tps_with_pending_acks(topics)
        for tp in self._runs:
            if tp not in self._acked and (topics is None or tp in topics or tp.topic in topics):
                yield tp

    # ------------------------------------------------------------------------------- how it stands

    def done(self, tp: TP) -> int | None:
        """Offset up to which all records of a partition are done; None while nothing of it was read."""
        self._advance(tp)
        if runs := self._runs.get(tp):
            return int(runs[0].first)
        return self._done.get(tp)

    def waiting(self) -> dict[str, int]:
        """Records that were read and that no agent has taken yet, by topic."""
        records = dict.fromkeys(self.transport.topics, 0)
        for tp, held in self._held.items():
            records[tp.topic] += len(held)
        for tp, runs in self._runs.items():
            records[tp.topic] += sum(run.records for run in runs if not run.taken())
        return records

    # ------------------------------------------------------------------- seeking and reassignment

    def _restart(self, tp: TP, offset: int) -> None:
        self._held.pop(tp, None)
        self._sought[tp] = offset
        self._forget(tp)

    def _forget(self, tp: TP) -> None:
        if tp.topic in self._in_step:
            self._in_step[tp.topic].forget(tp)

    def resume_partitions(self, tps: Iterable[Any]) -> None:
        # Faust keeps what it is given, and fails later where that is aiokafka's class instead of its own.
        super().resume_partitions({TP(*tp) for tp in tps})

    async def perform_seek(self) -> None:
        await super().perform_seek()
        for tp in self.assignment():
            # Where nothing was committed yet, Faust leaves the position where it is.
            if self._batched(tp) and (offset := self._read_offset[tp]):
                self._restart(tp, offset)

    async def seek(self, partition: TP, offset: int) -> None:
        await super().seek(partition, offset)
        if self._batched(partition):
            self._restart(TP(*partition), offset)

    async def _seek(self, partition: TP, offset: int) -> None:
        # In the thread that reads: then whatever was read before the seek has arrived when it returns.
        def seek() -> Any:
            return self._thread.seek(partition, offset)

        await self._thread.call_thread(seek)

    async def seek_wait(self, partitions: Mapping[TP, int]) -> None:
        for tp, offset in partitions.items():
            if self._batched(tp):
                await self.seek(tp, offset)
        await super().seek_wait({tp: offset for tp, offset in partitions.items() if not self._batched(tp)})

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        try:
            # Waits for the agents to finish what they have begun, and commits it.
            await super().on_partitions_revoked(revoked)
        finally:
            for known in (self._held, self._runs, self._done, self._sought):
                for tp in revoked:
                    known.pop(tp, None)
            for tp in revoked:
                self._forget(tp)


def _cut(records: list[Any], most: int) -> tuple[list[Any], int]:
    """The first run of records, and its size in bytes."""
    run = records[:most]
    sizes = [record.serialized_value_size + record.serialized_key_size for record in run]
    size = sum(sizes)
    while size > _RUN_BYTES and len(sizes) > 1:
        size -= sizes.pop()
    return run[: len(sizes)], size


class Transport(driver.Transport):
    """Faust's transport, with runs of records for the agents of some topics.

    Args:
        topics: Topics whose agents take runs.
        run_records: Most records of one run.
        in_step: Those of them whose partitions are read in step.
    """

    Consumer: ClassVar[type[Any]] = Consumer

    def __init__(self, app: Any, topics: Iterable[str], run_records: int, in_step: Iterable[str] = ()) -> None:
        super().__init__(app.conf.broker_consumer, app)
        self.topics, self.run_records, self.in_step = frozenset(topics), run_records, frozenset(in_step)
