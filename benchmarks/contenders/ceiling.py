"""What reading and decoding alone take: no worker in Python that uses aiokafka can be faster."""

from __future__ import annotations

import asyncio
import time

import msgspec
from aiokafka import AIOKafkaConsumer

from benchmarks.contenders import COMMIT_S, Job
from burnfuse.event import UsageEvent


def run(job: Job) -> None:
    """Reads and decodes for ever."""
    asyncio.run(_read(job))


async def _read(job: Job) -> None:
    decode = msgspec.json.Decoder(UsageEvent).decode
    consumer = AIOKafkaConsumer(
        job.topic,
        bootstrap_servers=job.broker,
        group_id=job.group,
        auto_offset_reset="earliest",
        enable_auto_commit=False,
    )
    await consumer.start()
    committed = time.monotonic()
    while True:
        for records in (await consumer.getmany(timeout_ms=100)).values():
            for record in records:
                decode(record.value)
        if time.monotonic() - committed >= COMMIT_S:
            await consumer.commit()
            committed = time.monotonic()
