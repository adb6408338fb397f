"""The outbox: bounded, the newest state wins, what was missed in an outage is told when it is over."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, ClassVar, Literal

import pytest
from event_loop import turn
from slack_server import Answer, slack_server

from detectors.types import Scope, Severity
from stream.actions.base import ActionConfig, Failed, Outcome, Retry, Sent, Skipped, Tools
from stream.actions.outbox import Outbox
from stream.actions.slack import Slack, SlackConfig
from stream.clock import ManualClock
from stream.incidents import Change, Incident
from stream.metrics import Metrics

Kind = Literal["opened", "updated", "escalated", "resolved"]


def change(name: str, kind: Kind = "opened", severity: Severity = "warning", findings: int = 1) -> Change:
    state: Any = {"opened": "open", "updated": "open"}.get(kind, kind)
    incident = Incident(
        id=name, state=state, severity=severity, scope=Scope.RUN, opened_ts=0.0, ts=0.0, last_ts=0.0, agent_id="a",
        run_id="r", root_run_id="r", title=f"{name} burns", findings=("f",) * findings, rules=("retry_loop.same_call",),
    )  # fmt: skip
    return Change(kind, incident)


class Scripted:
    """An action whose other side behaves as `answer` says; remembers what it was told."""

    name: ClassVar[str] = "scripted"
    Config: ClassVar[type[ActionConfig]] = ActionConfig

    def __init__(self, answer: Callable[[Incident], Outcome]) -> None:
        self.answer, self.told, self.closed = answer, list[tuple[str, str, int]](), False

    async def execute(self, incident: Incident) -> Outcome:
        outcome = self.answer(incident)
        if not isinstance(outcome, Retry):
            self.told.append((incident.id, incident.state, len(incident.findings)))
        return outcome

    async def close(self) -> None:
        self.closed = True


def outcomes(metrics: Metrics) -> dict[str, float]:
    """How often each outcome was counted."""
    found: dict[str, float] = {}
    for family in metrics.registry.collect():
        for sample in family.samples:
            if sample.name == "burnfuse_actions_total":
                found[sample.labels["outcome"]] = found.get(sample.labels["outcome"], 0) + sample.value
    return found


def waiting(metrics: Metrics, action: str = "scripted") -> float | None:
    return metrics.registry.get_sample_value("burnfuse_actions_waiting", {"action": action})


def play(
    action: Any,
    script: Callable[[Outbox, ManualClock], Awaitable[None]],
    on_sleep: Callable[[float], None] = lambda _: None,
    pause_s: float = 0.0,
    most: int = 2000,
) -> Metrics:
    """Runs a script against an outbox in virtual time; pauses pass at once."""
    clock = ManualClock(1000.0)
    metrics = Metrics(clock)

    async def main() -> None:
        async def sleep(seconds: float) -> None:
            on_sleep(seconds)
            clock.advance(seconds)
            await asyncio.sleep(0)

        outbox = Outbox(action, pause_s, clock, metrics, sleep=sleep, most=most)
        await script(outbox, clock)
        await outbox.close(within_s=20)

    asyncio.run(main())
    return metrics


def test_every_incident_is_told_and_told_only_once() -> None:
    action = Scripted(lambda _: Sent())

    async def script(outbox: Outbox, clock: ManualClock) -> None:
        outbox.put(change("i-1"))
        outbox.put(change("i-2"))

    metrics = play(action, script)
    assert action.told == [("i-1", "open", 1), ("i-2", "open", 1)]
    assert outcomes(metrics) == {"sent": 2}
    assert waiting(metrics) == 0
    assert action.closed


def test_a_newer_state_takes_the_place_of_the_one_that_waits() -> None:
    action = Scripted(lambda _: Sent())

    async def script(outbox: Outbox, clock: ManualClock) -> None:
        for n in range(1, 500):
            outbox.put(change("i-1", "opened" if n == 1 else "updated", findings=n))

    metrics = play(action, script)
    assert action.told == [("i-1", "open", 499)]
    assert outcomes(metrics) == {"coalesced": 498, "sent": 1}


def test_what_is_new_and_critical_goes_first() -> None:
    action = Scripted(lambda _: Sent())

    async def script(outbox: Outbox, clock: ManualClock) -> None:
        outbox.put(change("warning"))
        outbox.put(change("edit", "updated", "critical"))
        outbox.put(change("fire", "opened", "critical"))

    play(action, script)
    assert [name for name, *_ in action.told] == ["fire", "warning", "edit"]


def test_it_goes_no_faster_than_the_other_side_allows() -> None:
    pauses: list[float] = []
    action = Scripted(lambda incident: Skipped("no news") if incident.id == "i-2" else Sent())

    async def script(outbox: Outbox, clock: ManualClock) -> None:
        for n in range(1, 5):
            outbox.put(change(f"i-{n}"))

    play(action, script, pauses.append, pause_s=1.0)
    assert pauses == [1.0] * 3  # none after what was skipped


def test_an_outage_of_an_hour_is_told_in_three_lines_and_made_up_for(caplog: pytest.LogCaptureFixture) -> None:
    clocks: list[ManualClock] = []
    action = Scripted(lambda _: Retry(2.0, "nobody answers") if clocks[0].now() < 1000 + 3600 else Sent())
    pauses: list[float] = []

    async def script(outbox: Outbox, clock: ManualClock) -> None:
        clocks.append(clock)
        # What happens goes on all the while: one short incident and many edits of a long one.
        outbox.put(change("long", "opened", "critical"))
        n = 1
        while clock.now() < 1000 + 3600:
            n += 1
            outbox.put(change("long", "updated", "critical", n))
            if n == 10:
                outbox.put(change("short"))
            if n == 20:
                outbox.put(change("short", "resolved"))
            await asyncio.sleep(0)
        outbox.put(change("after"))

    with caplog.at_level(logging.WARNING):
        metrics = play(action, script, pauses.append)
    assert [(name, state) for name, state, _ in action.told] == [
        ("long", "open"),
        ("short", "resolved"),
        ("after", "open"),
    ]
    assert action.told[0][2] > 50, "the newest state is told, not the first"
    assert max(pauses) == 60.0
    assert 60 <= outcomes(metrics)["retried"] < 80
    begin, *between, end = [record.getMessage() for record in caplog.records]
    assert begin == "scripted: nobody answers; 1 incidents wait, trying again"
    assert 5 < len(between) <= 12  # a reminder every five minutes
    assert "for 3" in between[-1]
    assert end.startswith("scripted answers again after 36")


def test_it_waits_as_long_as_it_is_told_to() -> None:
    pauses: list[float] = []
    answers = iter([Retry(300.0, "Slack asks to slow down"), Sent()])
    action = Scripted(lambda _: next(answers))

    async def script(outbox: Outbox, clock: ManualClock) -> None:
        outbox.put(change("i-1"))

    play(action, script, pauses.append)
    assert pauses == [300.0]


def test_memory_is_bounded_and_what_is_dropped_is_counted_and_told(caplog: pytest.LogCaptureFixture) -> None:
    action = Scripted(lambda _: Sent())

    async def script(outbox: Outbox, clock: ManualClock) -> None:
        outbox.put(change("fire", "opened", "critical"))
        for n in range(5):
            outbox.put(change(f"i-{n}"))

    metrics = play(action, script, most=3)
    assert [name for name, *_ in action.told] == ["fire", "i-3", "i-4"]
    assert outcomes(metrics) == {"dropped": 3, "sent": 3}
    assert "3 incidents wait for scripted: i-0 is not told" in caplog.text


def test_one_that_fails_for_good_or_raises_holds_up_nobody(caplog: pytest.LogCaptureFixture) -> None:
    def answer(incident: Incident) -> Outcome:
        if incident.id == "i-1":
            raise ValueError("planted")
        return Failed("channel_not_found") if incident.id == "i-2" else Sent()

    action = Scripted(answer)

    async def script(outbox: Outbox, clock: ManualClock) -> None:
        for n in range(1, 4):
            outbox.put(change(f"i-{n}"))

    metrics = play(action, script)
    assert outcomes(metrics) == {"failed": 2, "sent": 1}
    assert "action scripted gave up on incident i-2: channel_not_found" in caplog.text


def test_a_late_finding_of_an_incident_that_is_over_wakes_nobody() -> None:
    action = Scripted(lambda _: Sent())

    async def script(outbox: Outbox, clock: ManualClock) -> None:
        late = change("i-1", "resolved")
        outbox.put(replace(late, kind="updated"))

    play(action, script)
    assert action.told == []


def test_what_is_left_at_the_end_is_said(caplog: pytest.LogCaptureFixture) -> None:
    action = Scripted(lambda _: Retry(1.0, "down"))

    async def main() -> None:
        clock = ManualClock()
        outbox = Outbox(action, 0.0, clock, Metrics(clock))
        outbox.put(change("i-1"))
        await outbox.close(within_s=0.01)

    asyncio.run(main())
    assert "1 incidents could not be told to scripted before the end" in caplog.text
    assert action.closed


def test_slack_itself_is_posted_once_when_it_is_back() -> None:
    async def publish(topic: str, key: bytes, value: bytes) -> None:
        raise AssertionError("Slack sends nothing to Kafka")

    async def main() -> None:
        async with slack_server() as server:
            server.answers += [Answer(500, "x"), Answer(429, "ratelimited", {"Retry-After": "30"}), Answer(drop=True)]
            clock, pauses = ManualClock(1000.0), []

            async def sleep(seconds: float) -> None:
                pauses.append(seconds)
                clock.advance(seconds)

            config = SlackConfig(enabled=True, base_url=server.url)
            slack = Slack(config, Tools(publish=publish, clock=clock, secret=lambda _: "xoxb-planted"))
            outbox = Outbox(slack, config.least_pause_s, clock, Metrics(clock), sleep=sleep)
            outbox.put(change("i-1", "opened"))
            outbox.put(change("i-1", "escalated", "critical", 2))
            await outbox.close(within_s=20)
            # Whether the first one was posted is not known, so it is looked for before it is posted again.
            look = ["conversations.list"] * 3 + ["conversations.history"]
            assert server.methods == ["chat.postMessage", *look, "chat.postMessage"]
            assert len(server.messages) == 1
            assert "Escalated" in next(iter(server.messages.values()))["text"]
            # A look that gets no answer is repeated by the client at once: it changes nothing.
            assert pauses == [2.0, 30.0, 1.0][: len(pauses)]
            assert len(pauses) >= 2

    asyncio.run(main())


def test_it_says_which_changes_are_done_with() -> None:
    told: list[tuple[str, int]] = []

    async def main() -> None:
        clock = ManualClock()
        answers = {"i-1": Sent("1"), "i-2": Failed("no"), "i-3": Skipped("nothing to do")}
        action = Scripted(lambda incident: answers[incident.id])
        outbox = Outbox(action, 0.0, clock, Metrics(clock), lambda _, name, number: told.append((name, number)))
        outbox.put(change("i-1"), 1)
        outbox.put(change("i-1", "escalated", "critical", 2), 2)
        outbox.put(change("i-2"), 3)
        outbox.put(change("i-3"), 4)
        late = replace(change("i-4").incident, state="resolved")
        outbox.put(Change("updated", late), 5)  # never told, for it is over
        await outbox.close(within_s=5)

    asyncio.run(main())
    # The newest state stands for those before it.
    assert sorted(told) == [("i-1", 2), ("i-2", 3), ("i-3", 4), ("i-4", 5)]


def test_what_others_do_now_is_left_to_them() -> None:
    async def main() -> None:
        clock = ManualClock()
        action = Scripted(lambda _: Sent("1"))
        outbox = Outbox(action, 0.0, clock, Metrics(clock), lambda *_: pytest.fail("nothing was told"))
        outbox.put(change("i-1"), 1)
        outbox.clear()
        await asyncio.sleep(0)
        await outbox.close(within_s=1)
        assert action.told == []

    asyncio.run(main())


class Orderly(Scripted):
    every_change = True


def test_an_action_that_must_see_every_change_sees_them_in_order() -> None:
    told: list[tuple[str, int]] = []

    async def main() -> list[tuple[str, str, int]]:
        clock = ManualClock()
        action = Orderly(lambda _: Sent("1"))
        outbox = Outbox(action, 0.0, clock, Metrics(clock), lambda _, name, number: told.append((name, number)))
        outbox.put(change("i-1"), 1)
        outbox.put(change("i-2"), 2)
        outbox.put(change("i-1", "escalated", "critical", 2), 3)
        outbox.put(change("i-1", "resolved", "critical", 2), 4)
        await outbox.close(within_s=5)
        return action.told

    assert asyncio.run(main()) == [
        ("i-1", "open", 1), ("i-2", "open", 1), ("i-1", "escalated", 2), ("i-1", "resolved", 2)
    ]  # fmt: skip
    assert told == [("i-2", 2), ("i-1", 4)]


class Slow(Scripted):
    """Its other side answers when `answered` is set."""

    def __init__(self) -> None:
        super().__init__(lambda _: Sent())
        self.asked, self.answered = asyncio.Event(), asyncio.Event()

    async def execute(self, incident: Incident) -> Outcome:
        self.asked.set()
        await self.answered.wait()
        return await super().execute(incident)


def test_before_partitions_move_the_call_under_way_ends_and_no_other_begins() -> None:
    told: list[str] = []

    async def main() -> None:
        clock, action = ManualClock(), Slow()
        outbox = Outbox(action, 0.0, clock, Metrics(clock), lambda _, name, number: told.append(name))
        outbox.put(change("i-1"), 1)
        outbox.put(change("i-2"), 2)
        await action.asked.wait()
        resting = asyncio.create_task(outbox.rest(within_s=60))
        await asyncio.sleep(0)
        assert not resting.done()
        action.answered.set()
        await resting
        assert told == ["i-1"]
        outbox.put(change("i-3"), 3)
        await turn()
        assert told == ["i-1"]
        outbox.go_on()
        await outbox.close(within_s=5)

    asyncio.run(main())
    assert told == ["i-1", "i-2", "i-3"]


def test_a_call_that_never_ends_does_not_hold_up_those_who_take_over_and_is_made_again() -> None:
    async def main() -> list[str]:
        clock, action = ManualClock(), Slow()
        outbox = Outbox(action, 0.0, clock, Metrics(clock))
        outbox.put(change("i-1"), 1)
        await action.asked.wait()
        await outbox.rest(within_s=0.01)
        assert action.told == []
        action.answered.set()
        outbox.go_on()  # the partition has come back
        await outbox.close(within_s=5)
        return [name for name, *_ in action.told]

    assert asyncio.run(main()) == ["i-1"]


def test_nothing_is_told_before_this_process_may() -> None:
    async def main() -> None:
        clock, action, allowed = ManualClock(), Scripted(lambda _: Sent()), asyncio.Event()

        async def may() -> None:
            await allowed.wait()

        outbox = Outbox(action, 0.0, clock, Metrics(clock), may=may)
        outbox.put(change("i-1"))
        await turn()
        assert action.told == []
        allowed.set()
        await outbox.close(within_s=5)
        assert [name for name, *_ in action.told] == ["i-1"]

    asyncio.run(main())


def test_after_the_end_nothing_is_begun() -> None:
    async def main() -> None:
        clock, action = ManualClock(), Scripted(lambda _: Sent())
        outbox = Outbox(action, 0.0, clock, Metrics(clock), lambda *_: pytest.fail("nothing was told"))
        await outbox.close(within_s=5)
        outbox.put(change("i-1"), 1)  # it is saved as still to be told
        await turn()
        assert action.told == []

    asyncio.run(main())


def test_a_change_that_comes_during_the_call_is_told_after_it() -> None:
    told: list[tuple[str, int]] = []

    async def main() -> list[tuple[str, str, int]]:
        clock, action = ManualClock(), Slow()
        metrics = Metrics(clock)
        outbox = Outbox(action, 0.0, clock, metrics, lambda _, name, number: told.append((name, number)))
        outbox.put(change("i-1"), 1)
        await action.asked.wait()
        outbox.put(change("i-1", "resolved"), 2)
        action.answered.set()
        await outbox.close(within_s=5)
        assert outcomes(metrics) == {"sent": 2}
        return action.told

    assert asyncio.run(main()) == [("i-1", "open", 1), ("i-1", "resolved", 1)]
    assert told == [("i-1", 2)]
