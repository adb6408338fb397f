"""Quix Streams with a moving average per agent, in its own keyed state.

The state has no changelog topic: burnfuse's has none either, and it makes Quix Streams faster.
"""

from __future__ import annotations

import tempfile

from quixstreams import Application, State

from benchmarks.contenders import COMMIT_S, Job
from benchmarks.contenders.models import agent_and_tokens, step


def run(job: Job) -> None:
    """Runs until the process is ended."""
    with tempfile.TemporaryDirectory() as folder:
        app = Application(
            broker_address=job.broker,
            consumer_group=job.group,
            auto_offset_reset="earliest",
            commit_interval=COMMIT_S,
            state_dir=folder,
            use_changelog_topics=False,
            auto_create_topics=False,
            loglevel="WARNING",
        )
        topic = app.topic(job.topic, key_deserializer="str", value_deserializer="bytes")
        calls = app.dataframe(topic).apply(agent_and_tokens).filter(lambda call: call[1] is not None)
        calls.apply(_score, stateful=True).filter(bool)
        app.run()


def _score(call: tuple[str, int], state: State) -> bool:
    known = state.get("average")
    average, far = step(None if known is None else tuple(known), call[1])
    state.set("average", average)
    return far
