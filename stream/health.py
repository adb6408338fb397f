"""Whether the worker lives and works: /healthz, /readyz and /metrics on one small server.

The server has a thread of its own. On the event loop it could not answer during a long batch, and what is to
be found out is whether that loop still turns.
"""

from __future__ import annotations

import json
import logging
import socket
import socketserver
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from stream.clock import Clock
from stream.metrics import Metrics

log = logging.getLogger(__name__)

_REQUEST_S = 10
"""A client that is slower is let go."""


class Health:
    """What is known of the worker's health; written by the event loop, read by the server's thread.

    Args:
        hang_s: The worker counts as hanging when its event loop has not turned for longer, s.
        silence_s: Kafka counts as out of reach when no broker has answered for longer, s.
    """

    def __init__(self, clock: Clock, hang_s: float, silence_s: float) -> None:
        self._clock, self._hang_s, self._silence_s = clock, hang_s, silence_s
        self._beat = clock.monotonic()
        self._answered = float("nan")
        self._assigned: int | None = None
        self._restoring: set[str] = set()

    # Told by the worker.

    def beat(self) -> None:
        """The event loop turns."""
        self._beat = self._clock.monotonic()

    def answered(self) -> None:
        """A broker has answered."""
        self._answered = self._clock.monotonic()

    def assigned(self, partitions: int | None) -> None:
        """The group has given this worker so many partitions, maybe none; None: they are being shared out."""
        self._assigned = partitions

    def restoring(self, what: str) -> None:
        """State is being read back, e.g. of a partition."""
        self._restoring = self._restoring | {what}

    def restored(self, what: str) -> None:
        """That state is there."""
        self._restoring = self._restoring - {what}

    # Asked by the server.

    def loop_delay_s(self) -> float:
        """How long the event loop has not turned, s."""
        return self._clock.monotonic() - self._beat

    def silence_s(self) -> float:
        """How long no broker has answered, s; NaN before the first answer."""
        return self._clock.monotonic() - self._answered

    def ill(self) -> list[str]:
        """Why the worker should be started again; nothing if it should not."""
        delay = self.loop_delay_s()
        return [f"the event loop has not turned for {delay:.0f} s"] if delay > self._hang_s else []

    def unready(self) -> list[str]:
        """Why the worker does not do its work at the moment; nothing if it does."""
        why = self.ill()
        if self._assigned is None:
            why.append("no partitions are assigned yet")
        if restoring := self._restoring:
            why.append(f"state is being restored: {', '.join(sorted(restoring))}")
        if not self.silence_s() <= self._silence_s:  # NaN: it never answered
            why.append(f"no Kafka broker has answered for {self._silence_s:.0f} s")
        return why


class Silence:
    """Tells once that Kafka does not answer, and once that it does again.

    Args:
        after_s: Shorter silences are nobody's concern, s.
    """

    def __init__(self, after_s: float) -> None:
        self._after_s = after_s
        self._longest: float | None = None

    def look(self, silence_s: float) -> bool:
        """Whether Kafka is silent, given how long no broker has answered."""
        if silence_s >= self._after_s:
            if self._longest is None:
                log.warning(
                    "no Kafka broker has answered for %.0f s; the worker tries again and goes on where it stopped",
                    silence_s,
                )
            self._longest = silence_s
            return True
        if self._longest is not None:
            log.warning("Kafka answers again, after about %.0f s", self._longest)
            self._longest = None
        return False


def pages(health: Health, metrics: Metrics) -> Callable[..., Iterable[bytes]]:
    """The WSGI application: /healthz, /readyz, /metrics."""
    of_metrics = metrics.wsgi()
    verdicts = {"/healthz": health.ill, "/readyz": health.unready}

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "/")
        if path == "/metrics":
            return of_metrics(environ, start_response)  # type: ignore[no-any-return]
        verdict = verdicts.get(path)
        if verdict is None:
            start_response("404 Not Found", [("Content-Type", "text/plain; charset=utf-8")])
            return [b"there is /healthz, /readyz and /metrics\n"]
        problems = verdict()
        start_response(
            "503 Service Unavailable" if problems else "200 OK",
            [("Content-Type", "application/json"), ("Cache-Control", "no-store")],
        )
        return [json.dumps({"ok": not problems, "problems": problems}).encode() + b"\n"]

    return answer


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True

    # Asking for one's own name can take seconds where no name server answers.
    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "", self.server_address[1]
        self.setup_environ()

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("a client of the health server went away", exc_info=True)


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Handler(WSGIRequestHandler):
    timeout = _REQUEST_S

    def log_message(self, format: str, *args: Any) -> None:
        """Probes come every few seconds: nobody wants to read of them."""


@contextmanager
def serving(listen: str | None, app: Callable[..., Iterable[bytes]]) -> Iterator[int | None]:
    """Serves the pages in a thread for as long as the block lasts; gives the port.

    An address that is taken does not stop the worker: watching goes before being watched.

    Args:
        listen: host:port, port 0 for any; None: no server.
    """
    if listen is None:
        yield None
        return
    host, _, port = listen.rpartition(":")
    try:
        kind = _Server6 if ":" in host else _Server
        server = make_server(host.strip("[]"), int(port), app, server_class=kind, handler_class=_Handler)
    except (OSError, OverflowError) as error:
        log.warning("no health page and no metrics: cannot listen on %s (%s); set metrics.listen", listen, error)
        yield None
        return
    thread = threading.Thread(target=server.serve_forever, name="health", daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
