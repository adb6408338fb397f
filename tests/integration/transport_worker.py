"""A worker that copies records by the run and dies on the way: python transport_worker.py BROKER PREFIX NAME STEP.

It writes `partition/offset` of every record to the topic PREFIX-out. Work is finished out of order on purpose:
of every four runs the last comes first, so that acknowledged runs lie behind runs nobody has worked on.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
from typing import Any

import faust
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread
from mode import Worker

from stream import transport

broker, prefix, name, step = sys.argv[1:]
source, out = f"{prefix}-in", f"{prefix}-out"
app = faust.App(
    f"{prefix}-app",
    broker=f"kafka://{broker}",
    store="memory://",
    topic_allow_declare=False,
    topic_disable_leader=True,
    consumer_auto_offset_reset="earliest",
    broker_commit_interval=0.2,
    broker_session_timeout=2.0,
    broker_heartbeat_interval=0.5,
    # What was begun is not waited for: it may never end without what comes next.
    stream_wait_empty=False,
    # A static member: whoever starts under the same name takes over at once.
    consumer_group_instance_id=name,
    datadir=tempfile.mkdtemp(prefix="burnfuse-test-"),
    web_enabled=False,
    autodiscover=False,
)
app.transport = transport.Transport(app, [source], run_records=20)
begun: list[Any] = []
commits = 0


def reached(this: str) -> None:
    """Kill -9 if this is the step to die at; only once something was committed."""
    if this == step and commits:
        os.kill(os.getpid(), signal.SIGKILL)


hand_out = transport.Consumer._to_message
commit = AIOKafkaConsumerThread._commit


def dying_hand_out(self: Any, tp: Any, record: Any) -> Any:
    message = hand_out(self, tp, record)
    reached("fetched")
    return message


async def dying_commit(self: Any, offsets: Any) -> Any:
    global commits
    reached("before the commit")
    sending = asyncio.ensure_future(commit(self, offsets))
    for _ in range(3):
        await asyncio.sleep(0)
        reached("during the commit")
    done = await sending
    reached("committed")
    commits += 1
    os.write(1, b"committed\n")  # in one piece, whenever the kill comes
    return done


transport.Consumer._to_message = dying_hand_out  # type: ignore[method-assign]
AIOKafkaConsumerThread._commit = dying_commit  # type: ignore[method-assign]


@app.on_partitions_revoked.connect
async def revoked(*_: Any, **__: Any) -> None:
    reached("revoking")
    await app.consumer.commit()
    reached("revoked")


results = app.topic(out, value_type=bytes, value_serializer="raw")


async def work_on(event: Any) -> None:
    values = [f"{record.partition}/{record.offset}".encode() for record in event.message.value]
    reached("processed")
    await asyncio.gather(*[await results.send(value=value, partition=0) for value in values])
    reached("produced")
    event.ack()
    reached("acked")
    first = event.message.value[0]
    if step == "pause" and first.offset and len(paused) < 6:
        paused.append(first.offset)
        app.consumer.pause_partitions([event.message.tp])
        asyncio.get_running_loop().call_later(0.02, app.consumer.resume_partitions, [event.message.tp])
    if step == "seek" and first.offset >= 500 and not sought:
        sought.append(first.offset)
        await app.consumer.seek(event.message.tp, 100)


paused: list[int] = []
sought: list[int] = []


async def finish() -> None:
    if begun:
        await work_on(begun.pop())
        # The moment to commit too much: an acknowledged run lies behind runs nobody has worked on.
        await app.consumer.commit()
    while begun:
        await work_on(begun.pop())


@app.agent(app.topic(source, value_type=bytes, value_serializer="raw"), name="copy")
async def copy(stream: Any) -> None:
    async for event in stream.noack().events():
        begun.append(event)
        if len(begun) == 4:
            await finish()


@app.timer(interval=0.05)
async def finish_when_quiet() -> None:
    if begun and begun[-1] is newest[0]:
        await finish()
    newest[0] = begun[-1] if begun else None


newest: list[Any] = [None]

Worker(app, loglevel="WARNING", override_logging=False, redirect_stdouts=False, daemon=True).execute_from_commandline()
