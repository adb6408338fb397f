"""The Faust application: what it is made of, and how it is run."""

from __future__ import annotations

import tempfile
from typing import Any

import faust
from aiokafka.errors import KafkaError
from faust.auth import OAuthCredentials, SASLCredentials, SSLCredentials
from mode import Worker

from burnfuse.security import Security
from stream.agents import attach
from stream.clock import SystemClock
from stream.connection import TokenProvider, explained, explanation, security, warn_if_in_clear
from stream.dlq import stopped
from stream.errors import BurnfuseError
from stream.ingest.share import RejectedShare
from stream.settings import Settings
from stream.stages import Topics
from stream.topics import layout
from stream.transport import Transport


def build(settings: Settings, folder: str) -> Any:
    """The application with its agents, for the topics as they are.

    Args:
        folder: Faust wants one for tables on disk; there are none.

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
        consumer_group_instance_id=settings.worker.instance_id,
        # What agents hold may wait for records that come later: neither a shutdown nor a rebalance waits for it.
        stream_wait_empty=False,
        producer_linger=0.005,
        producer_max_request_size=1 << 20,
        datadir=folder,
        web_enabled=settings.worker.health_port is not None,
        web_port=settings.worker.health_port or 6066,
        web_bind=settings.worker.health_host,
        autodiscover=False,
    )
    topics = Topics.of(settings.kafka)
    agents_read = (topics.usage, topics.events, topics.graph, topics.findings)
    app.transport = Transport(app, agents_read, settings.kafka.batch_records)
    share = RejectedShare(settings.input, topics.usage, topics.dead)
    before = stopped(settings.kafka) if settings.input.max_rejected_share < 1 else None
    if before is not None:
        share.resume(before)
    attach(app, settings, counts, SystemClock(), share)
    return app


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


def run(settings: Settings) -> None:
    """Runs a worker until it gets SIGINT or SIGTERM.

    Raises:
        BurnfuseError: what ended it, where the user can do something about it.
    """
    with tempfile.TemporaryDirectory(prefix="burnfuse-") as folder:
        # mode's own logging would write plain text to standard output.
        app = build(settings, folder)
        worker = Worker(app, loglevel="WARNING", override_logging=False, redirect_stdouts=False)
        try:
            worker.execute_from_commandline()
        except SystemExit:
            reason = app.crash_reason
            if isinstance(reason, BurnfuseError):
                raise reason from None
            if isinstance(reason, KafkaError):
                raise explanation(reason, settings.kafka) from reason
            raise
