"""Tests that share an event loop with what they test."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager


async def turn() -> None:
    """Lets all tasks go on until they wait for something that does not come by itself."""
    for _ in range(20):
        await asyncio.sleep(0)


@contextmanager
def counted_turns() -> Iterator[Callable[[], int]]:
    """Says how often the loop has turned since."""
    turns = 0

    def tick() -> None:
        nonlocal turns, again
        turns += 1
        again = loop.call_soon(tick)

    loop = asyncio.get_running_loop()
    again = loop.call_soon(tick)
    yield lambda: turns
    again.cancel()
