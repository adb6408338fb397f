"""How clients are opened and closed."""

from __future__ import annotations

import asyncio
import gc
from contextlib import suppress
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaConnectionError

from stream.connection import connected


async def _complaints(port: int, cut_off: bool) -> list[str]:
    """What the loop is told of after a consumer of a broker that never answers, or is not there, was given up."""
    told: list[str] = []

    def note(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        told.append(context["message"])

    asyncio.get_running_loop().set_exception_handler(note)
    connecting = asyncio.Event()

    async def use() -> None:
        consumer = AIOKafkaConsumer(bootstrap_servers=f"127.0.0.1:{port}")
        connecting.set()
        async with connected(consumer):
            pytest.fail("there is no broker")

    task = asyncio.create_task(use())
    await connecting.wait()
    if cut_off:
        await asyncio.sleep(0)  # it has begun to connect
        task.cancel()
    with suppress(asyncio.CancelledError, KafkaConnectionError):
        await task
    del task
    gc.collect()
    return told


@pytest.mark.parametrize("cut_off", [True, False])
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # told to the loop as well
def test_a_consumer_that_never_connected_is_closed(cut_off: bool) -> None:
    async def run() -> list[str]:
        async def silent(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if not cut_off:
                writer.close()

        async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
            return await _complaints(server.sockets[0].getsockname()[1], cut_off)

    assert asyncio.run(run()) == []
