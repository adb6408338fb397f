"""A plain Faust agent that handles one event after the other, with one river model per agent."""

from __future__ import annotations

from typing import Any

from benchmarks.contenders import Job, faust_app
from benchmarks.contenders.models import Scorers


def run(job: Job) -> None:
    """Runs until the process is ended."""
    scorers = Scorers()

    async def agent(stream: Any) -> None:
        async for value in stream:
            scorers.take(value)

    faust_app.run(job, agent)
