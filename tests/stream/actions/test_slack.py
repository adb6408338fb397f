"""Slack, with the real client against a local server: one message per incident, edited, never hostile."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from slack_server import Answer, SlackServer, slack_server

from detectors.types import Scope
from stream.actions.base import Failed, Outcome, Retry, Sent, Skipped, Tools
from stream.actions.slack import Slack, SlackConfig, blocks, text
from stream.clock import ManualClock
from stream.errors import ConfigError
from stream.incidents import Incident

TOKEN = "xoxb-planted-token"

OPEN = Incident(
    id="i-1",
    state="open",
    severity="warning",
    scope=Scope.RUN,
    opened_ts=1_750_000_000.0,
    ts=1_750_000_000.0,
    last_ts=1_750_000_000.0,
    agent_id="support-triage",
    run_id="r-1",
    root_run_id="t-1",
    title="agent support-triage has made the same call of read 4 times in a row",
    findings=("f-1",),
    rules=("retry_loop.same_call",),
    cost_usd=1234.5,
    effective_tokens=98765.4,
)
MORE = replace(OPEN, findings=("f-1", "f-2"), cost_usd=2000.0)
ESCALATED = replace(MORE, state="escalated", severity="critical")
RESOLVED = replace(ESCALATED, state="resolved", ts=OPEN.ts + 300)
MERGED = replace(OPEN, state="resolved", merged_into="i-2")

Use = Callable[[Slack, SlackServer, ManualClock], Awaitable[None]]


def tools(clock: ManualClock, token: str | None = TOKEN) -> Tools:
    async def publish(topic: str, key: bytes, value: bytes) -> None:
        raise AssertionError("Slack sends nothing to Kafka")

    return Tools(publish=publish, clock=clock, secret={"slack_token": token}.get)


def with_slack(use: Use, **config: Any) -> None:
    """Runs a test with an action whose Slack is a local server."""

    async def main() -> None:
        async with slack_server() as server:
            clock = ManualClock(1000.0)
            slack = Slack(SlackConfig(enabled=True, base_url=server.url, **config), tools(clock))
            await use(slack, server, clock)
            await slack.close()

    asyncio.run(main())


# ------------------------------------------------------------------------------- a life of an incident


def test_one_message_per_incident_edited_to_its_end() -> None:
    async def use(slack: Slack, server: SlackServer, clock: ManualClock) -> None:
        for incident in (OPEN, ESCALATED, RESOLVED):
            assert await slack.execute(incident) == Sent("1750000000.000100")
        assert server.methods == ["chat.postMessage", "chat.update", "chat.update"]
        post, escalated, resolved = (call.arguments for call in server.calls)
        assert post["channel"] == "#agent-alerts"
        assert (escalated["channel"], escalated["ts"]) == ("C024BE91L", "1750000000.000100")
        told = [call["text"].split(": ")[1] for call in (post, escalated, resolved)]
        assert told == ["Warning", "Escalated to critical", "Resolved"]
        assert {call.authorization for call in server.calls} == {f"Bearer {TOKEN}"}
        assert len(server.messages) == 1

    with_slack(use)


def test_each_incident_has_its_message() -> None:
    async def use(slack: Slack, server: SlackServer, clock: ManualClock) -> None:
        await asyncio.gather(*(slack.execute(replace(OPEN, id=f"i-{i}")) for i in range(5)))
        assert server.methods == ["chat.postMessage"] * 5
        await asyncio.gather(*(slack.execute(replace(ESCALATED, id=f"i-{i}")) for i in range(5)))
        assert server.methods[5:] == ["chat.update"] * 5
        assert len(server.messages) == 5

    with_slack(use)


def test_changes_that_come_at_once_do_not_post_twice() -> None:
    async def use(slack: Slack, server: SlackServer, clock: ManualClock) -> None:
        await asyncio.gather(*(slack.execute(incident) for incident in (OPEN, MORE, ESCALATED, RESOLVED)))
        assert server.methods.count("chat.postMessage") == 1
        assert [message["text"].split(": ")[1] for message in server.messages.values()] == ["Resolved"]

    with_slack(use)


def test_more_findings_edit_the_message_but_not_too_often() -> None:
    async def use(slack: Slack, server: SlackServer, clock: ManualClock) -> None:
        await slack.execute(OPEN)
        for _ in range(3):
            assert isinstance(await slack.execute(MORE), Skipped)
            clock.advance(9.9)
        assert server.methods == ["chat.postMessage"]
        clock.advance(0.3)
        assert isinstance(await slack.execute(MORE), Sent)
        assert "2 findings" in json.dumps(server.calls[-1].arguments)
        assert isinstance(await slack.execute(MORE), Skipped)
        assert isinstance(await slack.execute(ESCALATED), Sent)  # news does not wait
        assert isinstance(await slack.execute(RESOLVED), Sent)
        assert server.methods == ["chat.postMessage"] + ["chat.update"] * 3

    with_slack(use, update_s=30.0)


def test_an_incident_that_came_and_went_unseen_is_told_once() -> None:
    async def use(slack: Slack, server: SlackServer, clock: ManualClock) -> None:
        assert isinstance(await slack.execute(RESOLVED), Sent)
        assert isinstance(await slack.execute(replace(RESOLVED, findings=("f-1", "f-9"))), Skipped)
        assert server.methods == ["chat.postMessage"]
        assert "Resolved" in server.calls[0].arguments["text"]
        assert slack._messages == {}


def test_an_incident_that_went_into_a_spiral_unseen_is_told_once() -> None:
    async def use(slack: Slack, server: SlackServer, clock: ManualClock) -> None:
        assert isinstance(await slack.execute(MERGED), Sent)
        assert isinstance(await slack.execute(MERGED), Skipped)
        assert server.methods == ["chat.postMessage"]
        assert "Merged into a spiral" in str(server.calls[0].arguments)

    with_slack(use)


def test_nothing_is_remembered_of_what_is_over() -> None:
    async def use(slack: Slack, server: SlackServer, clock: ManualClock) -> None:
        for incident in (OPEN, ESCALATED, RESOLVED):
            await slack.execute(incident)
        server.answers.append(Answer(error="channel_not_found"))
        await slack.execute(replace(OPEN, id="i-2"))
        await slack.execute(replace(RESOLVED, id="i-2"))
        assert slack._messages == {}

    with_slack(use)


@pytest.mark.parametrize("url", ["http://slack.example/api/", "https://a:planted@slack.example/api/"])
def test_the_token_does_not_travel_in_clear(url: str) -> None:
    with pytest.raises(ValueError, match="Slack's Web API"):
        SlackConfig(base_url=url)


def test_the_base_url_works_with_and_without_a_slash_at_its_end() -> None:
    async def main() -> None:
        async with slack_server() as server:
            config = SlackConfig(enabled=True, base_url=server.url.rstrip("/"))
            assert isinstance(await Slack(config, tools(ManualClock())).execute(OPEN), Sent)

    asyncio.run(main())


# -------------------------------------------------------------------------------- when Slack misbehaves

RETRIED: dict[str, tuple[Answer, Retry]] = {
    "429": (Answer(429, "ratelimited", {"Retry-After": "7"}), Retry(7.0, "Slack asks to slow down")),
    "429 without a time": (Answer(429, "ratelimited"), Retry(1.0, "Slack asks to slow down")),
    "ratelimited": (Answer(200, "ratelimited"), Retry(1.0, "Slack asks to slow down")),
    "500": (Answer(500, "internal_error"), Retry(2.0, "Slack has a problem (internal_error)")),
    "503 as a page": (
        Answer(503, body="<html>sorry</html>", content_type="text/html"),
        Retry(2.0, "Slack has a problem (503)"),
    ),
    "502 as text": (
        Answer(502, body="Bad gateway", content_type="text/plain"),
        Retry(2.0, "Slack has a problem (502)"),
    ),
    "internal_error": (Answer(200, "internal_error"), Retry(2.0, "Slack has a problem (internal_error)")),
    "half an answer": (Answer(200, body='{"ok": tr'), Retry(2.0, "Slack's answer cannot be read")),
    "the connection is lost": (Answer(drop=True), Retry(2.0, "Slack cannot be reached (ServerDisconnectedError)")),
}
FAILED = ["invalid_auth", "token_revoked", "account_inactive", "not_in_channel", "channel_not_found", "invalid_blocks"]


@pytest.mark.parametrize(("answer", "outcome"), RETRIED.values(), ids=RETRIED)
def test_what_may_pass_is_tried_again(answer: Answer, outcome: Retry) -> None:
    async def use(slack: Slack, server: SlackServer, clock: ManualClock) -> None:
        server.answers.append(answer)
        assert await slack.execute(OPEN) == outcome
        assert len(server.calls) == 1  # trying again is the runner's business
        assert await slack.execute(OPEN) == Sent("1750000000.000100")
        server.answers.append(answer)
        assert await slack.execute(ESCALATED) == outcome
        assert isinstance(await slack.execute(ESCALATED), Sent)
        # Where it is not clear whether the message was posted, it is looked for first.
        said = [method for method in server.methods if method.startswith("chat.")]
        assert said == ["chat.postMessage"] * 2 + ["chat.update"] * 2

    with_slack(use)


@pytest.mark.parametrize("code", FAILED)
def test_what_will_not_pass_is_told(code: str) -> None:
    async def use(slack: Slack, server: SlackServer, clock: ManualClock) -> None:
        server.answers.append(Answer(error=code))
        assert await slack.execute(OPEN) == Failed(f"Slack refuses: {code}")
        assert isinstance(await slack.execute(ESCALATED), Sent)  # a later change gets its chance
        assert server.methods == ["chat.postMessage"] * 2

    with_slack(use)


def test_an_answer_that_does_not_come_is_not_waited_for() -> None:
    async def use(slack: Slack, server: SlackServer, clock: ManualClock) -> None:
        server.answers.append(Answer(late=True))
        assert await slack.execute(OPEN) == Retry(2.0, "Slack cannot be reached (TimeoutError)")

    with_slack(use, timeout_s=1)


def test_nobody_at_home() -> None:
    async def main() -> Outcome:
        async with slack_server() as server:
            url = server.url
        return await Slack(SlackConfig(enabled=True, base_url=url), tools(ManualClock())).execute(OPEN)

    assert asyncio.run(main()) == Retry(2.0, "Slack cannot be reached (ClientConnectorError)")


def test_without_a_token_it_does_not_start() -> None:
    for token in (None, ""):
        with pytest.raises(ConfigError, match="set BURNFUSE_SLACK_TOKEN or BURNFUSE_SLACK_TOKEN_FILE"):
            Slack(SlackConfig(enabled=True), tools(ManualClock(), token))


@pytest.mark.parametrize("answer", [Answer(), Answer(drop=True), Answer(error="invalid_auth"), Answer(500, "x")])
def test_the_token_is_in_no_message_error_or_log(answer: Answer, caplog: pytest.LogCaptureFixture) -> None:
    async def use(slack: Slack, server: SlackServer, clock: ManualClock) -> None:
        server.answers.append(answer)
        with caplog.at_level(logging.DEBUG):
            outcome = await slack.execute(OPEN)
        assert TOKEN not in repr(outcome) + repr(slack)
        assert TOKEN not in json.dumps([call.arguments for call in server.calls])
        assert TOKEN not in caplog.text

    with_slack(use)


# ------------------------------------------------------------------------------------ what people see


def words(incident: Incident) -> str:
    """All text of the message."""
    return "\n".join([text(incident), *(element["text"] for element in elements(blocks(incident)))])


def elements(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    texts = []
    for block in found:
        texts += [block["text"]] if "text" in block else []
        texts += block.get("fields", []) + block.get("elements", [])
    return texts


def test_the_message_says_what_burns_how_much_since_when_and_why() -> None:
    told = words(OPEN)
    for fact in (
        ":warning: Warning: agent support-triage has made the same call of read 4 times in a row",
        "*Agent*\nsupport-triage",
        "*Run*\nr-1",
        "*Task (root run)*\nt-1",
        "*Burnt since it began*\n$1,234.50, 98,765 effective tokens",
        "*Since*\n2025-06-15 15:06:40Z",
        "i-1 · retry_loop.same_call · 1 finding",
    ):
        assert fact in told
    assert "$" not in words(replace(OPEN, cost_usd=0.0))
    assert "Task" not in words(replace(OPEN, root_run_id=OPEN.run_id))
    assert ":rotating_light: Escalated to critical" in words(ESCALATED)
    assert "Merged into a spiral" in words(MERGED)
    assert "*Now part of*\ni-2" in words(MERGED)


HOSTILE = {
    "everybody": "<!channel> <!here> <!everyone>",
    "everybody, in words": "@channel @here @everyone",
    "a person": "<@U024BE7LH> <@W1>",
    "a group": "<!subteam^S1>",
    "a link": "<https://evil.example|https://bank.example>",
    "a bare link": "https://evil.example",
    "an escaped mention": "&lt;!channel&gt;",
    "a date": "<!date^1392734382^{date}|x>",
    "code": "`code` ```block```",
    "bold": "*bold*",
    "control characters": "\x1b[31m\x07\x00\r\u202e\u200b\x9b",
    "new lines": "\n> quote\n\n*Agent*\nsomeone-else",
}


def fields_of(hostile: str) -> Incident:
    return replace(OPEN, agent_id=hostile, run_id=hostile, root_run_id=hostile, title=hostile, rules=(hostile,))


@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE)
def test_names_of_agents_are_inert(hostile: str) -> None:
    async def use(slack: Slack, server: SlackServer, clock: ManualClock) -> None:
        for incident in (fields_of(hostile), replace(fields_of(hostile), state="resolved")):
            await slack.execute(incident)
        for call in server.calls:
            check_inert(call.arguments["text"])
            # Without these two Slack would look for mentions in plain words.
            assert call.arguments["parse"] == "none"
            for element in elements(call.arguments["blocks"]):
                check_inert(element["text"])
                assert element == {"type": "mrkdwn", "verbatim": True, "text": element["text"]}

    with_slack(use)


def check_inert(written: str) -> None:
    assert not re.search(r"[<>`]", written)
    assert not re.search(r"&(?!amp;|lt;|gt;)", written)
    assert not [c for c in written if not c.isprintable() and c != "\n"]
    assert written.count("\n") <= 1  # between our own heading and the fact
    bold = re.findall(r"\*", written)
    assert len(bold) in (0, 2)


def check_limits(incident: Incident) -> None:
    """The limits of Block Kit: https://docs.slack.dev/reference/block-kit/blocks"""
    found = blocks(incident)
    assert len(found) <= 50
    assert 0 < len(text(incident)) <= 4000
    for block in found:
        assert 1 <= len(block.get("text", {"text": "x"})["text"]) <= 3000
        assert len(block.get("fields", ())) <= 10
        assert all(1 <= len(field["text"]) <= 2000 for field in block.get("fields", ()))
        assert len(block.get("elements", ())) <= 10
        assert all(1 <= len(element["text"]) <= 3000 for element in block.get("elements", ()))
    for element in elements(found):
        check_inert(element["text"])


@pytest.mark.parametrize("character", ["a", "&", "<", "é", "\U0001f525", "\x00", "*"])
@pytest.mark.parametrize("length", [1, 512, 1900, 1901, 2800, 2801, 10_000])
def test_the_limits_hold_however_long_the_names_are(character: str, length: int) -> None:
    for state in (OPEN, ESCALATED, RESOLVED, MERGED):
        long = character * length
        rules = tuple(f"{long}{i}" for i in range(20))
        check_limits(replace(state, agent_id=long, run_id=long, root_run_id=long + "t", title=long, rules=rules))


@given(st.text(max_size=50), st.text("&<>*`a", max_size=4000), st.floats(0, 1e12), st.floats(0, 1e18))
@settings(max_examples=100)
def test_any_incident_makes_a_message(name: str, title: str, cost: float, tokens: float) -> None:
    hostile = fields_of(name or "x")
    check_limits(replace(hostile, title=title, cost_usd=cost, effective_tokens=tokens, run_id="r" + name))


def test_what_is_cut_says_so() -> None:
    told = text(replace(OPEN, title="x" * 5000))
    assert told.endswith("x…")
    assert text(replace(OPEN, title="&" * 5000)).endswith("&amp;…")
    assert "…" not in text(replace(OPEN, title="x" * 2800))


# ------------------------------------------------------------------------- after a crash of the worker


def another(server: SlackServer, clock: ManualClock, **config: Any) -> Slack:
    """The action in a process that goes on after one that is gone."""
    return Slack(SlackConfig(enabled=True, base_url=server.url, **config), tools(clock))


def test_whoever_goes_on_edits_the_message_that_is_remembered() -> None:
    async def use(slack: Slack, server: SlackServer, clock: ManualClock) -> None:
        await slack.execute(OPEN)
        after = another(server, clock)
        after.remember(OPEN.id, slack.remembered(OPEN.id))
        await after.execute(ESCALATED)
        assert after.remembered(OPEN.id) != slack.remembered(OPEN.id)
        await after.execute(RESOLVED)
        assert server.methods == ["chat.postMessage", "chat.update", "chat.update"]
        assert after.remembered(OPEN.id) == b""

    with_slack(use)


@pytest.mark.parametrize("channel", ["#agent-alerts", "C024BE91L"])
def test_a_message_that_was_posted_but_not_remembered_is_found_and_edited(channel: str) -> None:
    async def use(slack: Slack, server: SlackServer, clock: ManualClock) -> None:
        await slack.execute(OPEN)
        for i in range(250):  # it lies further back than a page
            await slack.execute(replace(OPEN, id=f"i-other-{i}"))
        after = another(server, clock, channel=channel)
        after.doubt(OPEN.id)
        assert await after.execute(ESCALATED) == Sent("1750000000.000100")
        assert server.methods[251:] == ["conversations.list"] * (channel[0] == "#") + [
            "conversations.history",
            "conversations.history",
            "chat.update",
        ]
        assert len(server.messages) == 251

    with_slack(use)


def test_a_message_that_was_not_posted_is_posted_after_a_look() -> None:
    async def use(slack: Slack, server: SlackServer, clock: ManualClock) -> None:
        slack.doubt(OPEN.id)
        await slack.execute(OPEN)
        await slack.execute(RESOLVED)
        assert server.methods == ["conversations.list", "conversations.history", "chat.postMessage", "chat.update"]

    with_slack(use)


def test_an_answer_that_was_lost_leads_to_a_look_and_not_to_a_second_message() -> None:
    async def use(slack: Slack, server: SlackServer, clock: ManualClock) -> None:
        server.answers.append(Answer(late=True))
        assert isinstance(await slack.execute(OPEN), Retry)
        assert await slack.execute(OPEN) == Sent("1750000000.000100")
        assert len(server.messages) == 1

    with_slack(use, timeout_s=1)


def test_where_the_channel_is_not_listed_the_message_is_posted_and_that_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def use(slack: Slack, server: SlackServer, clock: ManualClock) -> None:
        after = another(server, clock, channel="#private")
        after.doubt(OPEN.id)
        assert isinstance(await after.execute(OPEN), Sent)
        assert server.methods == ["conversations.list", "chat.postMessage"]

    with_slack(use)
    assert ["#private is not among the channels it sees" in message for message in caplog.messages] == [True]


def test_without_the_right_to_look_the_message_is_posted_and_that_is_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def use(slack: Slack, server: SlackServer, clock: ManualClock) -> None:
        for name in ("i-1", "i-2"):
            slack.doubt(name)
            server.answers.append(Answer(error="missing_scope"))
            assert isinstance(await slack.execute(replace(OPEN, id=name)), Sent)
        assert server.methods.count("chat.postMessage") == 2

    with_slack(use)
    assert [("channels:history" in message) for message in caplog.messages] == [True]


def test_a_look_that_has_to_wait_is_tried_again() -> None:
    async def use(slack: Slack, server: SlackServer, clock: ManualClock) -> None:
        slack.doubt(OPEN.id)
        server.answers.append(Answer(429, error="ratelimited", headers={"Retry-After": "3"}))
        assert await slack.execute(OPEN) == Retry(3.0, "Slack asks to slow down")
        assert isinstance(await slack.execute(OPEN), Sent)
        assert "conversations.history" in server.methods

    with_slack(use)


def test_a_saved_message_that_cannot_be_read_is_looked_for() -> None:
    async def use(slack: Slack, server: SlackServer, clock: ManualClock) -> None:
        await slack.execute(OPEN)
        after = another(server, clock)
        after.remember(OPEN.id, b"\xc1")
        await after.execute(ESCALATED)
        assert server.methods.count("chat.postMessage") == 1

    with_slack(use)
