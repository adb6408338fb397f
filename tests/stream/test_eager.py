"""Coroutines begun without a task: they end at once, or go on as if they had been awaited."""

from __future__ import annotations

import asyncio

import pytest
from event_loop import counted_turns, turn

from stream.eager import Begun


def test_what_need_not_wait_is_done_without_a_turn_of_the_loop() -> None:
    async def work() -> str:
        return "done"

    async def scenario() -> None:
        begun = Begun(work())
        assert begun.done
        with counted_turns() as turns:
            assert await begun == "done"
            assert turns() == 0

    asyncio.run(scenario())


@pytest.mark.parametrize("waits", [1, 3])
def test_what_must_wait_goes_on_where_it_stopped(waits: int) -> None:
    async def scenario() -> None:
        steps: list[int] = []
        doors = [asyncio.get_running_loop().create_future() for _ in range(waits)]

        async def work() -> list[str]:
            passed = []
            for n, door in enumerate(doors):
                steps.append(n)
                passed.append(await door)
                await asyncio.sleep(0)
            return passed

        begun = Begun(work())
        assert (begun.done, steps) == (False, [0])
        task = asyncio.ensure_future(begun)
        for n, door in enumerate(doors):
            await turn()
            assert not task.done()
            door.set_result(f"door {n}")
        assert await task == [f"door {n}" for n in range(waits)]
        assert begun.done

    asyncio.run(scenario())


def test_what_is_raised_at_once_or_later_is_raised() -> None:
    async def work(door: asyncio.Future[None] | None) -> None:
        if door is not None:
            await door
        raise LookupError("planted")

    async def scenario() -> None:
        with pytest.raises(LookupError, match="planted"):
            Begun(work(None))
        door = asyncio.get_running_loop().create_future()
        begun = Begun(work(door))
        door.set_result(None)
        with pytest.raises(LookupError, match="planted"):
            await begun

    asyncio.run(scenario())


@pytest.mark.parametrize("given_in", [True, False])
def test_a_cancellation_reaches_what_was_begun(given_in: bool) -> None:
    async def scenario() -> None:
        seen: list[str] = []

        async def work() -> str:
            try:
                await asyncio.get_running_loop().create_future()
            except asyncio.CancelledError:
                seen.append("cancelled")
                if given_in:
                    raise
            await asyncio.sleep(0)
            return "went on"

        task = asyncio.ensure_future(Begun(work()))
        await turn()
        task.cancel()
        await asyncio.wait([task])
        assert seen == ["cancelled"]
        assert task.cancelled() if given_in else task.result() == "went on"

    asyncio.run(scenario())
