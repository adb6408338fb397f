"""A TCP proxy that can be cut or made slow: what lies between a worker and what it talks to."""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Literal

Mode = Literal["open", "refused", "stalled"]


class Proxy:
    """Passes connections on to `target` (host, port), until told otherwise.

    open: all goes through. refused: connections are reset, and new ones at once. stalled: nothing comes through
    in either direction, and nobody is told; what was sent goes on later.

    Attributes:
        bytes_per_s: As much comes through per connection and direction; infinite unless set.
    """

    def __init__(self, target: tuple[str, int], port: int = 0) -> None:
        self._target, self._mode = target, "open"
        self.bytes_per_s = math.inf
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._flows = asyncio.Event()
        self._flows.set()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._server = self._call(lambda: asyncio.start_server(self._accept, "127.0.0.1", port))
        self.port: int = self._server.sockets[0].getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"

    def set(self, mode: Mode) -> None:
        """Takes effect before it returns."""

        async def change() -> None:
            self._mode = mode
            if mode == "stalled":
                self._flows.clear()
            else:
                self._flows.set()
            if mode == "refused":
                self._reset()

        self._call(change)

    def close(self) -> None:
        async def end() -> None:
            self._server.close()
            self._reset()

        self._call(end)
        self._loop.call_soon_threadsafe(self._loop.stop)

    def _call(self, work: Callable[[], object]) -> object:
        return asyncio.run_coroutine_threadsafe(work(), self._loop).result(10)  # type: ignore[arg-type]

    def _reset(self) -> None:
        for writer in self._writers:
            _reset(writer)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._mode == "refused":
            _reset(writer)
            return
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        both = {writer, far_writer}
        self._writers |= both
        try:
            ways = [asyncio.ensure_future(self._pass_on(*way)) for way in ((reader, far_writer), (far_reader, writer))]
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in ways:
                way.cancel()
        finally:
            self._writers -= both
            for one in both:
                _reset(one) if self._mode == "refused" else one.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                await self._flows.wait()
                if wait_s := len(data) / self.bytes_per_s:
                    await asyncio.sleep(wait_s)
                writer.write(data)
                await writer.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    # Without lingering the other end gets a reset instead of a polite end.
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@contextlib.contextmanager
def proxied(host: str, port: int) -> Iterator[Proxy]:
    """A proxy for the length of the block."""
    proxy = Proxy((host, port))
    try:
        yield proxy
    finally:
        proxy.close()
