"""The runner: tries again, waits as told, and keeps actions apart."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, ClassVar
from unittest import mock

import pytest
from slack_server import Answer, slack_server

from detectors.types import Scope
from stream.actions import base
from stream.actions.base import ActionConfig, Failed, Outcome, Retry, Sent, Skipped, Tools
from stream.actions.runner import Runner
from stream.clock import ManualClock
from stream.incidents import Incident
from stream.settings import Settings, default_settings, parse, settings_type

base.registered()  # imports them; while the registry is replaced they would go into the wrong one

INCIDENT = Incident(
    id="i-1",
    state="open",
    severity="critical",
    scope=Scope.RUN,
    opened_ts=0.0,
    ts=0.0,
    last_ts=0.0,
    agent_id="a",
    run_id="r",
    root_run_id="r",
    title="agent a has made the same call 6 times",
    rules=("retry_loop.same_call",),
)


def scripted(name: str, *script: Outcome | Exception) -> tuple[type[Any], list[str]]:
    """An action that comes to these outcomes in turn; and what was done with it."""
    outcomes, done = iter(script), []

    class Scripted:
        Config: ClassVar[type[ActionConfig]] = ActionConfig

        def __init__(self, config: ActionConfig, tools: Tools) -> None:
            done.append("made")

        async def execute(self, incident: Incident) -> Outcome:
            done.append("executed")
            outcome = next(outcomes)
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        async def close(self) -> None:
            done.append("closed")

    Scripted.name = name  # type: ignore[attr-defined]
    return Scripted, done


async def publish(topic: str, key: bytes, value: bytes) -> None:
    raise AssertionError("none of these actions sends anything to Kafka")


def act(settings: Settings) -> tuple[list[Outcome], list[float]]:
    """What the actions came to on the incident, and how long they were waited for in between."""
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    async def main() -> list[Outcome]:
        tools = Tools(publish=publish, clock=ManualClock(), secret=lambda _: "xoxb-planted")
        runner = Runner(settings, tools, sleep=sleep)
        outcomes = await runner.act(INCIDENT)
        await runner.close()
        return outcomes

    return asyncio.run(main()), waits


def act_with(*actions: type[Any]) -> tuple[list[Outcome], list[float]]:
    """The same where these are all the actions there are."""
    known = {action.name: action for action in actions}
    with mock.patch.dict(base._actions, known, clear=True):
        return act(settings_type().model_validate({"actions": {name: {"enabled": True} for name in known}}))


AGAIN = Retry(3.0, "busy")

# What the action comes to in turn, the outcome, the waits in between.
ROWS: list[tuple[list[Outcome | Exception], Outcome, list[float]]] = [
    ([Sent("1")], Sent("1"), []),
    ([Skipped("no news")], Skipped("no news"), []),
    ([Failed("no")], Failed("no"), []),
    ([AGAIN, Sent("1")], Sent("1"), [3.0]),
    ([Retry(1.0, "x"), Retry(30.0, "y"), Skipped("late")], Skipped("late"), [1.0, 30.0]),
    ([AGAIN, Failed("no"), Sent("never")], Failed("no"), [3.0]),
    ([AGAIN] * 4 + [Sent("1")], Sent("1"), [3.0] * 4),
    ([AGAIN] * 9, AGAIN, [3.0] * 4),
    ([AGAIN, ValueError("boom")], Failed("ValueError"), [3.0]),
]


@pytest.mark.parametrize(("script", "outcome", "waits"), ROWS)
def test_an_action_is_tried_again_as_it_asks(
    script: list[Outcome | Exception], outcome: Outcome, waits: list[float]
) -> None:
    action, done = scripted("one", *script)
    assert act_with(action) == ([outcome], waits)
    assert done == ["made", *["executed"] * (len(waits) + 1), "closed"]


@pytest.mark.parametrize("trouble", [RuntimeError("boom"), Failed("no"), AGAIN])
def test_an_action_in_trouble_does_not_hold_up_the_others(
    trouble: Outcome | Exception, caplog: pytest.LogCaptureFixture
) -> None:
    broken, _ = scripted("broken", *[trouble] * 5)
    fine, done = scripted("fine", Sent("1"))
    with caplog.at_level(logging.WARNING):
        (_, outcome), _ = act_with(broken, fine)
    assert outcome == Sent("1")
    assert done == ["made", "executed", "closed"]
    assert "broken" in caplog.text
    assert "i-1" in caplog.text
    assert "fine" not in caplog.text


def test_without_enabled_actions_nothing_is_done() -> None:
    assert act(default_settings()) == ([], [])


def test_slack_is_told_in_the_end_and_once(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with slack_server() as server:
            server.answers += [Answer(429, "ratelimited", {"Retry-After": "30"}), Answer(drop=True), Answer(500, "x")]
            settings = parse(f"actions: {{slack: {{enabled: true, base_url: '{server.url}'}}}}")
            # The runner has an event loop of its own, as in `watch`.
            assert await asyncio.to_thread(act, settings) == ([Sent("1750000000.000100")], [30.0, 2.0, 2.0])
            # After the lost answer the message is looked for, and that is tried again like anything else.
            look = ["conversations.list", "conversations.list", "conversations.history"]
            assert server.methods == ["chat.postMessage"] * 2 + look + ["chat.postMessage"]
            assert len(server.messages) == 1

    asyncio.run(main())
    assert "xoxb-planted" not in caplog.text
