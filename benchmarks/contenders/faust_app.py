"""A plain Faust application, as its documentation shows it; what the two Faust contenders share."""

from __future__ import annotations

import tempfile
from collections.abc import Awaitable, Callable
from typing import Any

import faust
from mode import Worker

from benchmarks.contenders import COMMIT_S, Job


def run(job: Job, agent: Callable[[Any], Awaitable[None]]) -> None:
    """Runs an application with one agent on the input topic."""
    with tempfile.TemporaryDirectory() as folder:
        app = faust.App(
            job.group,
            broker=f"kafka://{job.broker}",
            store="memory://",
            datadir=folder,
            topic_allow_declare=False,
            topic_disable_leader=True,
            consumer_auto_offset_reset="earliest",
            broker_commit_interval=COMMIT_S,
            web_enabled=False,
            autodiscover=False,
        )
        app.agent(app.topic(job.topic, value_type=bytes, value_serializer="raw"), name="agent")(agent)
        Worker(app, loglevel="WARNING", override_logging=False, redirect_stdouts=False).execute_from_commandline()
