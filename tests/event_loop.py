"""Tests that share an event loop with what they test."""

from __future__ import annotations

import asyncio


async def turn() -> None:
    """Lets all tasks go on until they wait for something that does not come by itself."""
    for _ in range(20):
        await asyncio.sleep(0)
