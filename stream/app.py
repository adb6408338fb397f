"""The Faust application: what it is made of, and how it is run."""

from __future__ import annotations

import gc
import logging
import sys
import tempfile
import threading
from typing import Any

import faust
from aiokafka.errors import KafkaError
from faust.auth import OAuthCredentials, SASLCredentials, SSLCredentials
from mode import Service, Worker

from burnfuse.security import Security
from stream.__main__ import end_at_once
from stream.agents import attach
from stream.clock import Clock, SystemClock
from stream.connection import TokenProvider, explained, explanation, security, warn_if_in_clear
from stream.dlq import stopped
from stream.errors import BurnfuseError
from stream.health import Health, pages, serving
from stream.ingest.share import RejectedShare
from stream.metrics import Metrics
from stream.settings import Settings
from stream.stages import Topics
from stream.tasks import waiting_for
from stream.topics import layout
from stream.transport import Transport

log = logging.getLogger(__name__)

_METADATA_MS = 5000
_BEAT_S = 1.0
_TURN_S = 0.0001
_END_S = 25.0
"""Below the 30 s that most who stop a worker give it."""


def build(settings: Settings, folder: str, metrics: Metrics | None = None, health: Health | None = None) -> Any:
    """The application with its agents, for the topics as they are.

    Args:
        metrics, health: Where the agents tell how they are; nowhere if not given.
        folder: Faust wants one for tables on disk; there are none.
        failures: Gets the errors that stop the worker and that the user can do something about.

    Raises:
        BrokerError: Kafka cannot be reached, or topics are missing.
        ConfigError: a secret is missing, or a certificate cannot be used.
    """
    warn_if_in_clear(settings.kafka)
    counts = layout(settings)
    with explained(settings.kafka):
        credentials = _credentials(security(settings.kafka))
    app = faust.App(
        settings.kafka.app_id,
        broker=[f"kafka://{server}" for server in settings.kafka.bootstrap_servers],
        broker_credentials=credentials,
        store="memory://",
        value_serializer="raw",
        key_serializer="raw",
        # Topics are made by `burnfuse topics`, with their settings; a worker needs no right to create any.
        topic_allow_declare=False,
        topic_disable_leader=True,
        consumer_auto_offset_reset="earliest",
        broker_commit_interval=1.0,
        broker_session_timeout=settings.kafka.session_timeout_s,
        broker_heartbeat_interval=settings.kafka.heartbeat_s,
        consumer_group_instance_id=settings.kafka.instance_id,
        # A broker that has just come back may not know its topics yet: whoever shares out partitions then shares out
        # none, and does it again when it looks for the next time, by default after five minutes.
        consumer_metadata_max_age_ms=_METADATA_MS,
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
    app.transport = Transport(app, agents_read, settings.kafka.batch_records, in_step={topics.usage})
    share = RejectedShare(settings.input, topics.usage, topics.dead)
    before = stopped(settings.kafka) if settings.input.max_rejected_share < 1 else None
    if before is not None:
        share.resume(before)
    clock = SystemClock()
    attach(app, settings, counts, clock, metrics or Metrics(clock), health or make_health(settings, clock), share)
    return app


def make_health(settings: Settings, clock: Clock) -> Health:
    """Health as configured."""
    return Health(clock, settings.metrics.hang_s, settings.metrics.silence_s)


def _credentials(how: Security) -> Any:
    """The same for Faust; None: plain, and nobody."""
    context = how.context()
    if how.tokens is not None:
        return OAuthCredentials(oauth_cb=TokenProvider(how.tokens), ssl_context=context)
    if how.mechanism is not None:
        return SASLCredentials(
            username=how.username, password=how.password, ssl_context=context, mechanism=how.mechanism
        )
    return SSLCredentials(context) if context is not None else None


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
            last = threading.Timer(_END_S, _end, [self._app])
            last.daemon = True
            last.start()


def _end(app: Any) -> None:
    reason = app.ended_by or app.crash_reason
    why = f": {reason}" if reason is not None else ""
    log.critical("the worker could not stop within %.0f s and is ended%s", _END_S, why)
    end_at_once()


class _Worker(Worker):
    """Signals of mode's own would end the worker (USR1), or stop it for good in a debugger (USR2)."""

    def _on_sigusr1(self) -> None:
        for line in waiting_for():
            log.warning("task %s", line)

    def _on_sigusr2(self) -> None:
        self._on_sigusr1()


def _tame_garbage_collection() -> None:
    """Reference counting frees nearly all; the collector is there for the few cycles of tasks and exceptions.

    As it comes, it looks at tens of thousands of records that just pass, again and again. What is here by now lives as
    long as the process, and a look at it stopped the worker for a tenth of a second.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def _take_short_turns() -> None:
    """The thread that talks to Kafka asks for the interpreter after each call to the system, a dozen times per answer.

    By default it gets it after five milliseconds where the main thread computes, so answers took a tenth of a second.
    """
    sys.setswitchinterval(_TURN_S)


def run(settings: Settings) -> None:
    """Runs a worker until it gets SIGINT or SIGTERM.

    Raises:
        BurnfuseError: what ended it, where the user can do something about it.
    """
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
        _tame_garbage_collection()
        _take_short_turns()
        # mode's own logging would write plain text to standard output.
        worker = _Worker(_Pulse(health, app), app, loglevel="WARNING", override_logging=False, redirect_stdouts=False)
        try:
            worker.execute_from_commandline()
        except SystemExit:
            reason = app.ended_by or app.crash_reason
            if isinstance(reason, BurnfuseError):
                raise reason from None
            if isinstance(reason, KafkaError):
                raise explanation(reason, settings.kafka) from reason
            raise
