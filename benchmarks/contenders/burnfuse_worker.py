"""`burnfuse worker` as it is shipped, with all detectors; its topics are there already."""

from __future__ import annotations

from benchmarks.contenders import Job
from stream import app


def run(job: Job) -> None:
    """Runs the worker until it is ended."""
    app.run(job.settings())
