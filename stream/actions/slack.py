"""Slack: one message per incident, edited as the incident goes on."""

from __future__ import annotations

import asyncio
import logging
import re
from typing import Any, ClassVar

import aiohttp
import msgspec
from pydantic import Field, field_validator
from slack_sdk.errors import SlackApiError, SlackRequestError
from slack_sdk.web.async_client import AsyncWebClient

from burnfuse.tokens import check_url
from detectors.base import setting
from stream.actions.base import ActionConfig, Failed, Outcome, Retry, Sent, Skipped, Tools, register
from stream.errors import ConfigError
from stream.incidents import Incident
from stream.text import clean, moment

log = logging.getLogger(__name__)

_SIGN = {"warning": ":warning:", "critical": ":rotating_light:"}
_TEXT_CHARS, _FIELD_CHARS = 2800, 1900  # Slack takes 3,000 and 2,000; our own words need the rest
_EVENT = "burnfuse_incident"
"""Type of the metadata of messages; it tells them apart from those of others."""
_PAGE, _PAGES = 200, 5
"""The latest 1,000 messages of the channel are looked through."""
_OVER_KEPT = 1000
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


class SlackConfig(ActionConfig):
    """Where to post."""

    channel: str = Field(default="#agent-alerts", description="Channel name or id; the bot must be a member.")
    base_url: str = Field(default="https://slack.com/api/", description="Web API; another one for tests.")
    timeout_s: int = setting(10, unit="s", why="Longest wait for an answer.", source="a few slow answers", ge=1)
    update_s: float = setting(
        30.0,
        unit="s",
        why="Least time between edits of a message that only gained findings.",
        source="Slack allows about one message per second and channel; a storm must leave room",
        ge=0,
    )
    pause_s: float = setting(
        1.0,
        unit="s",
        why="Least time between two messages or edits (of a worker).",
        source="Slack allows about one message per second and channel",
        ge=0,
    )

    @field_validator("base_url")
    @classmethod
    def _encrypted(cls, url: str) -> str:
        check_url(url, "Slack's Web API")
        return url

    @property
    def least_pause_s(self) -> float:
        return self.pause_s


@register
class Slack:
    """Posts a message when an incident opens and edits it when it escalates, goes on or is resolved.

    The token comes from BURNFUSE_SLACK_TOKEN (scope chat:write). Each message carries its incident's id as metadata:
    where a crash or a lost answer leaves it open whether a message was posted, the channel's latest messages are
    looked through first (scopes channels:history and channels:read; groups:... for private channels). Without
    these scopes the message is posted again.
    """

    name: ClassVar[str] = "slack"
    Config: ClassVar[type[ActionConfig]] = SlackConfig

    def __init__(self, config: SlackConfig, tools: Tools) -> None:
        token = tools.secret("slack_token")
        if not token:
            raise ConfigError(
                "actions.slack is enabled but there is no token: set BURNFUSE_SLACK_TOKEN or BURNFUSE_SLACK_TOKEN_FILE"
            )
        self._config, self._clock = config, tools.clock
        base_url = config.base_url if config.base_url.endswith("/") else config.base_url + "/"
        # Without retry handlers: the SDK's own one posts twice when an answer is lost.
        self._client = AsyncWebClient(token, base_url=base_url, timeout=config.timeout_s, retry_handlers=[])
        self._messages: dict[str, _Message] = {}
        self._channel = config.channel if re.fullmatch(r"[CGD][A-Z0-9]{6,}", config.channel) else ""
        """Id of the channel, once it is known."""
        self._told_scopes = False

        self._over: dict[str, None] = {}
        """Incidents that are over and told, the latest of them."""

    def remembered(self, incident_id: str) -> bytes:
        message = self._messages.get(incident_id)
        if message is None or message.ts is None:
            return b""
        return msgspec.msgpack.encode((message.channel, message.ts, message.shown))

    def remember(self, incident_id: str, saved: bytes) -> None:
        message = self._messages[incident_id] = _Message()
        try:
            message.channel, message.ts, message.shown = _decode_saved(saved)
        except (msgspec.DecodeError, UnicodeDecodeError):
            log.warning("what is saved of the Slack message of incident %s cannot be read", incident_id)
            message.unsure = True
        self._channel = message.channel or self._channel

    def doubt(self, incident_id: str) -> None:
        self._messages.setdefault(incident_id, _Message()).unsure = True

    async def execute(self, incident: Incident) -> Outcome:
        message = self._messages.setdefault(incident.id, _Message())
        async with message.lock:
            outcome = await self._send(incident, message)
        if incident.state == "resolved" and not isinstance(outcome, Retry):
            self._messages.pop(incident.id, None)
            self._over[incident.id] = None
            if len(self._over) > _OVER_KEPT:
                del self._over[next(iter(self._over))]
        return outcome

    async def close(self) -> None:
        """The client opens a session per call; nothing is left open."""

    async def _send(self, incident: Incident, message: _Message) -> Outcome:
        shown = (incident.state, incident.severity)
        now = self._clock.monotonic()
        if message.shown == shown and now - message.sent_at < self._config.update_s:
            return Skipped("nothing new but findings, and the message was edited a moment ago")
        content: dict[str, Any] = {
            "text": text(incident),
            "blocks": blocks(incident),
            "parse": "none",  # where it is not said, chat.update looks for mentions
            "unfurl_links": False,
            "unfurl_media": False,
            "metadata": {"event_type": _EVENT, "event_payload": {"incident_id": incident.id}},
        }
        posting = False
        try:
            if message.ts is None and message.unsure:
                await self._look_for(incident.id, message)
            if message.ts is None:
                # What came and went before it could be told is told all the same, so that the messages do not
                # depend on how fast anything was; a late finding of what was told and is over is not.
                if incident.id in self._over:
                    return Skipped("it is over and was told")
                posting = message.unsure = True  # until the answer is here
                answer = await self._client.chat_postMessage(channel=self._config.channel, **content)
                message.channel, message.ts, message.unsure = answer["channel"], answer["ts"], False
                self._channel = answer["channel"]
            else:
                content.pop("unfurl_links")
                content.pop("unfurl_media")
                await self._client.chat_update(channel=message.channel or "", ts=message.ts, **content)
        except SlackApiError as error:
            outcome = _classify(error)
            if posting and (isinstance(outcome, Failed) or _slow_down(error)):
                message.unsure = False  # it said no
            return outcome
        except (TimeoutError, aiohttp.ClientError, SlackRequestError) as error:
            return Retry(2.0, f"Slack cannot be reached ({type(error).__name__})")
        message.shown, message.sent_at = shown, now
        return Sent(message.ts or "")

    async def _look_for(self, incident_id: str, message: _Message) -> None:
        """Finds the incident's message among the channel's latest, if it was posted."""
        try:
            if not self._channel:
                self._channel = await self._channel_id()
            if not self._channel:
                self._cannot_look(f"{self._config.channel} is not among the channels it sees")
            cursor = ""
            for _ in range(_PAGES if self._channel else 0):
                answer = await self._client.conversations_history(
                    channel=self._channel, include_all_metadata=True, limit=_PAGE, cursor=cursor or None
                )
                for found in answer["messages"]:
                    metadata = found.get("metadata") or {}
                    payload = metadata.get("event_payload") or {}
                    if metadata.get("event_type") == _EVENT and payload.get("incident_id") == incident_id:
                        message.channel, message.ts, message.unsure = self._channel, found["ts"], False
                        return
                cursor = (answer.get("response_metadata") or {}).get("next_cursor") or ""
                if not cursor:
                    break
        except SlackApiError as error:
            if not isinstance(outcome := _classify(error), Failed):
                raise
            self._cannot_look(outcome.reason)
        message.unsure = False

    def _cannot_look(self, why: str) -> None:
        if not self._told_scopes:
            self._told_scopes = True
            log.warning(
                "cannot look whether a message was posted before a crash, so it may be there twice (%s): "
                "give the bot the scopes channels:history and channels:read (groups: for private channels)",
                why,
            )

    async def _channel_id(self) -> str:
        name, cursor = self._config.channel.removeprefix("#"), ""
        for _ in range(_PAGES):
            answer = await self._client.conversations_list(
                types="public_channel,private_channel", exclude_archived=True, limit=1000, cursor=cursor or None
            )
            for channel in answer["channels"]:
                if channel["name"] == name:
                    return str(channel["id"])
            cursor = (answer.get("response_metadata") or {}).get("next_cursor") or ""
            if not cursor:
                break
        return ""


_decode_saved = msgspec.msgpack.Decoder(tuple[str | None, str, tuple[str, str] | None]).decode


class _Message:
    """What is known of an incident's message."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.channel: str | None = None
        self.ts: str | None = None
        self.shown: tuple[str, str] | None = None
        self.sent_at = float("-inf")
        self.unsure = False
        """It may have been posted, though its time stamp is not known."""


def _classify(error: SlackApiError) -> Outcome:
    data = getattr(error.response, "data", None)
    if data is None:
        return Retry(2.0, "Slack's answer cannot be read")
    status = error.response.status_code
    code = data.get("error", "") if isinstance(data, dict) else ""
    if _slow_down(error):
        return Retry(float(error.response.headers.get("Retry-After", 1)), "Slack asks to slow down")
    if status >= 500 or code in ("internal_error", "fatal_error", "service_unavailable", "request_timeout"):
        return Retry(2.0, f"Slack has a problem ({code or status})")
    return Failed(f"Slack refuses: {code or status}")


def _slow_down(error: SlackApiError) -> bool:
    data = getattr(error.response, "data", None)
    code = data.get("error", "") if isinstance(data, dict) else ""
    return data is not None and (error.response.status_code == 429 or code in ("ratelimited", "rate_limited"))


def text(incident: Incident) -> str:
    """One line: the notification, and what screen readers read."""
    return f"{_SIGN[incident.severity]} {_word(incident)}: {_escape(incident.title)}"


def blocks(incident: Incident) -> list[dict[str, Any]]:
    """The message: what burns, how much, since when, by which rules."""
    money = f"${incident.cost_usd:,.2f} + " if incident.cost_usd else ""
    facts = [
        f"*Agent*\n{_escape(incident.agent_id, _FIELD_CHARS)}",
        f"*Run*\n{_escape(incident.run_id, _FIELD_CHARS)}",
        f"*Burnt since it began*\n{money}{incident.effective_tokens:,.0f} effective tokens".replace(" + ", ", "),
        f"*Since*\n{moment(incident.opened_ts)}",
    ]
    if incident.root_run_id != incident.run_id:
        facts.append(f"*Task (root run)*\n{_escape(incident.root_run_id, _FIELD_CHARS)}")
    if incident.merged_into:
        facts.append(f"*Now part of*\n{incident.merged_into}")
    context = f"{incident.id} · {', '.join(incident.rules[:8])} · {len(incident.findings)} findings"
    return [
        {"type": "section", "text": _mrkdwn(f"*{text(incident)}*")},
        {"type": "section", "fields": [_mrkdwn(fact) for fact in facts]},
        {"type": "context", "elements": [_mrkdwn(_escape(context))]},
    ]


def _mrkdwn(content: str) -> dict[str, Any]:
    # Verbatim: an agent named @channel calls nobody, and a URL in its name is no link.
    return {"type": "mrkdwn", "text": content, "verbatim": True}


def _word(incident: Incident) -> str:
    if incident.merged_into:
        return "Merged into a spiral"
    return {"open": incident.severity.capitalize(), "escalated": "Escalated to critical", "resolved": "Resolved"}[
        incident.state
    ]


def _escape(value: str, most: int = _TEXT_CHARS) -> str:
    """Text of agents is hostile: no control characters, no mentions, no formatting, no endless length."""
    plain = clean(value[:most]).replace("*", "∗").replace("`", "'")
    escaped = "".join(_ENTITIES.get(c, c) for c in plain)
    if len(value) <= most and len(escaped) <= most:
        return escaped
    return re.sub(r"&[a-z]*$", "", escaped[: most - 1]) + "…"
