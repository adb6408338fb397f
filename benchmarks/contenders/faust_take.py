"""A plain Faust agent that takes a thousand events at a time, with one river model per agent."""

from __future__ import annotations

from typing import Any

from benchmarks.contenders import Job, faust_app
from benchmarks.contenders.models import Scorers


def run(job: Job) -> None:
    """Runs until the process is ended."""
    scorers = Scorers()

    async def agent(stream: Any) -> None:
        async for values in stream.take(1000, within=0.1):
            for value in values:
                scorers.take(value)

    faust_app.run(job, agent)
