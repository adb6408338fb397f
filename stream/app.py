"""The Faust application: what it is made of, and how it is run."""

from __future__ import annotations

import logging
import tempfile
import threading
from typing import Any

import faust
from mode import Service, Worker

from stream.__main__ import end_at_once
from stream.agents import attach
from stream.clock import Clock, SystemClock
from stream.health import Health, pages, serving
from stream.metrics import Metrics
from stream.settings import Settings
from stream.stages import Topics
from stream.topics import layout
from stream.transport import Transport

log = logging.getLogger(__name__)

_BEAT_S = 1.0
_END_S = 25.0
"""Below the 30 s that most who stop a worker give it."""


def build(settings: Settings, folder: str, metrics: Metrics | None = None, health: Health | None = None) -> Any:
    """The application with its agents, for the topics as they are.

    Args:
        metrics, health: Where the agents tell how they are; nowhere if not given.
        folder: Faust wants one for tables on disk; there are none.

    Raises:
        BrokerError: Kafka cannot be reached, or topics are missing.
    """
    counts = layout(settings.kafka)
    app = faust.App(
        settings.kafka.app_id,
        broker=[f"kafka://{server}" for server in settings.kafka.bootstrap_servers],
        store="memory://",
        value_serializer="raw",
        key_serializer="raw",
        # Topics are made by `burnfuse topics`, with their settings; a worker needs no right to create any.
        topic_allow_declare=False,
        topic_disable_leader=True,
        consumer_auto_offset_reset="earliest",
        broker_commit_interval=1.0,
        # What agents hold may wait for records that come later: neither a shutdown nor a rebalance waits for it.
        stream_wait_empty=False,
        producer_linger=0.005,
        producer_max_request_size=1 << 20,
        datadir=folder,
        # Faust's own pages tell too much, and only while the event loop turns; see stream/health.py.
        web_enabled=False,
        autodiscover=False,
    )
    topics = Topics.of(settings.kafka)
    agents_read = (topics.usage, topics.events, topics.graph, topics.findings)
    app.transport = Transport(app, agents_read, settings.kafka.batch_records)
    clock = SystemClock()
    attach(app, settings, counts, clock, metrics or Metrics(clock), health or make_health(settings, clock))
    return app


def make_health(settings: Settings, clock: Clock) -> Health:
    """Health as configured."""
    return Health(clock, settings.metrics.hang_s, settings.metrics.silence_s)


class _Pulse(Service):
    """Tells that the event loop turns, and sees to it that a worker which is to end does end.

    Faust's own timers begin with the first partitions only; and with a Kafka that does not answer as it should, its
    shutdown can take for ever.
    """

    def __init__(self, health: Health, app: Any) -> None:
        super().__init__()
        self._health, self._app = health, app

    @Service.task
    async def _beat(self) -> None:
        # After a crash this service counts as crashed, too; on request the application stops first.
        try:
            while not (self.should_stop or self._app.should_stop):
                self._health.beat()
                await self.sleep(_BEAT_S)
        finally:
            last = threading.Timer(_END_S, _end)
            last.daemon = True
            last.start()


def _end() -> None:
    log.critical("the worker did not stop within %.0f s and is ended; what is not committed comes again", _END_S)
    end_at_once()


def run(settings: Settings) -> None:
    """Runs a worker until it gets SIGINT or SIGTERM."""
    clock = SystemClock()
    metrics, health = Metrics(clock), make_health(settings, clock)
    metrics.worker(lambda: not health.unready(), health.loop_delay_s, health.silence_s)
    with (
        tempfile.TemporaryDirectory(prefix="burnfuse-") as folder,
        serving(settings.metrics.listen, pages(health, metrics)) as port,
    ):
        if port is not None:
            log.info("health and metrics on port %d", port)
        app = build(settings, folder, metrics, health)
        # mode's own logging would write plain text to standard output.
        worker = Worker(_Pulse(health, app), app, loglevel="WARNING", override_logging=False, redirect_stdouts=False)
        worker.execute_from_commandline()
