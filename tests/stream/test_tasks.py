"""A worker that stands still says what it waits for."""

from __future__ import annotations

import asyncio

from stream.tasks import waiting_for


async def inner(event: asyncio.Event) -> None:
    await event.wait()


async def outer(event: asyncio.Event) -> None:
    await inner(event)


def test_every_task_tells_where_it_waits_down_to_the_innermost_call() -> None:
    async def main() -> list[str]:
        event = asyncio.Event()
        task = asyncio.create_task(outer(event), name="stuck")
        await asyncio.sleep(0)
        lines = waiting_for()
        event.set()
        await task
        return lines

    (line,) = [line for line in asyncio.run(main()) if line.startswith("stuck: ")]
    names = [part.rsplit(" ", 1)[-1] for part in line.removeprefix("stuck: ").split(" > ")]
    assert names[:3] == ["outer", "inner", "wait"]
    assert "stream/test_tasks.py:" in line
