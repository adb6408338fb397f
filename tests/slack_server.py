"""A local Slack: speaks what is needed of the Web API as Slack does, and misbehaves when told to."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, NamedTuple

from aiohttp import web

CHANNEL = "C024BE91L"
"""Id of the one channel that the bot is in."""


class Answer(NamedTuple):
    """How the server treats one call; by default the call succeeds."""

    status: int = 200
    error: str = ""
    """An error code of the Web API: answered as {"ok": false, "error": ...}."""
    headers: dict[str, str] = {}  # noqa: RUF012 - never changed
    body: str | None = None
    """Sent instead of JSON."""
    content_type: str = "application/json"
    drop: bool = False
    """The connection is closed without an answer."""
    late: bool = False
    """The message is taken, but the answer does not come."""


class Call(NamedTuple):
    """A call as it arrived."""

    method: str
    authorization: str
    arguments: dict[str, Any]
    at: float
    """When it came, s since 1970."""

    @property
    def incident(self) -> str:
        """The incident that a message is about; its text may name others."""
        return str(self.arguments["metadata"]["event_payload"]["incident_id"])


class SlackServer:
    """Records calls and answers them in turn from `answers`, then always well."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.answers: deque[Answer] = deque()
        self.messages: dict[str, dict[str, Any]] = {}
        """What people see in the channel: time stamp -> the latest content."""
        self.channel = "agent-alerts"
        self.url = ""
        self.takes_s = 0.0
        """How long an answer takes."""
        self._closing = asyncio.Event()

    @property
    def methods(self) -> list[str]:
        return [call.method for call in self.calls]

    async def handle(self, request: web.Request) -> web.Response:
        form = await request.read()
        arguments = json.loads(form) if request.content_type == "application/json" else dict(await request.post())
        arguments |= dict(request.query)
        for name in ("blocks", "metadata"):
            if isinstance(arguments.get(name), str):
                arguments[name] = json.loads(arguments[name])
        method = request.match_info["method"]
        self.calls.append(Call(method, request.headers.get("Authorization", ""), arguments, time.time()))
        answer = self.answers.popleft() if self.answers else Answer()
        if self.takes_s:
            await asyncio.sleep(self.takes_s)
        if answer.drop:
            assert request.transport is not None
            request.transport.close()
            raise web.HTTPServiceUnavailable
        if answer.body is not None:
            return web.Response(status=answer.status, text=answer.body, content_type=answer.content_type)
        reply = {"ok": False, "error": answer.error} if answer.error else self._take(method, arguments)
        if answer.late:
            await self._closing.wait()
        return web.json_response(reply, status=answer.status, headers=answer.headers)

    def _take(self, method: str, arguments: dict[str, Any]) -> dict[str, Any]:
        if method == "conversations.list":
            return {
                "ok": True,
                "channels": [{"id": "C0OTHER00", "name": "other"}, {"id": CHANNEL, "name": self.channel}],
            }
        if method == "conversations.history":
            if arguments["channel"] != CHANNEL:
                return {"ok": False, "error": "channel_not_found"}
            newest = sorted(self.messages.items(), reverse=True)
            start, limit = int(arguments.get("cursor") or 0), int(arguments["limit"])
            page = [{"ts": ts} | message for ts, message in newest[start : start + limit]]
            more = str(start + limit) if start + limit < len(newest) else ""
            return {"ok": True, "messages": page, "response_metadata": {"next_cursor": more}}
        if method == "chat.postMessage":
            ts = f"{1_750_000_000 + len(self.messages)}.000100"
        elif method == "chat.update":
            ts = arguments["ts"]
            if ts not in self.messages or arguments["channel"] != CHANNEL:
                return {"ok": False, "error": "message_not_found"}
        else:
            return {"ok": False, "error": "unknown_method"}
        self.messages[ts] = arguments
        # Names of channels become ids, which chat.update insists on.
        return {"ok": True, "channel": CHANNEL, "ts": ts, "message": {"text": arguments.get("text", "")}}


@asynccontextmanager
async def slack_server() -> AsyncIterator[SlackServer]:
    """A server on a free port of this machine, for as long as the block lasts."""
    server = SlackServer()
    app = web.Application()
    app.router.add_post("/api/{method}", server.handle)
    app.router.add_get("/api/{method}", server.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    server.url = f"http://{host}:{port}/api/"
    try:
        yield server
    finally:
        server._closing.set()
        await runner.cleanup()


@contextmanager
def slack_server_in_a_thread() -> Iterator[SlackServer]:
    """The same, for tests that wait for other processes."""
    started: list[SlackServer] = []
    ready, loop = threading.Event(), asyncio.new_event_loop()
    ending = asyncio.Event()

    async def serve() -> None:
        async with slack_server() as server:
            started.append(server)
            ready.set()
            await ending.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield started[0]
    finally:
        loop.call_soon_threadsafe(ending.set)
        thread.join(10)
        loop.close()
