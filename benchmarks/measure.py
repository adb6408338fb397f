"""One measurement: contenders started on a preloaded topic, watched, and ended."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import ExitStack

import msgspec

from benchmarks.broker import Broker, new_group
from benchmarks.contenders import Contender, Job
from benchmarks.observe import Watched, observe, peak, window
from benchmarks.processes import CORES, Process, running
from benchmarks.results import Run

_LEAST_S = 10.0
"""A burnfuse worker commits what its checkpoints hold, and these come every three seconds and more: over less time than
several of them a rate is made of chance."""


def command(name: str, job: Job) -> list[str]:
    """Runs a contender."""
    return [sys.executable, "-m", "benchmarks.contenders", name, msgspec.json.encode(job).decode()]


def measure(
    broker: Broker,
    name: str,
    contender: Contender,
    topic: str,
    total: int,
    *,
    limit_s: float,
    tell: Callable[[float], None],
    skip: int = 0,
    workers: int = 1,
) -> Run:
    """Runs a contender over a topic.

    Args:
        name: Of the contender.
        total: Events on the topic.
        limit_s: Slow contenders handle as much of the topic as they can within this time.
        tell: Hears how many events were handled so far.
        skip: Events not measured at the start.
        workers: Processes of one group, each on the next core.

    Raises:
        EndedError: a process ended by itself.
        TooShortError: there was too little to do.
    """
    group = new_group()
    inner = [(f"{group}.{part}", Job("", "", "", 0, 0).settings().kafka.partitions) for part in contender.inner]
    watched = Watched(group, topic, total, inner)
    with ExitStack() as stack:
        processes: list[Process] = []
        for number in range(workers):
            core = CORES[number % len(CORES)]
            job = Job(broker.address, topic, group, core, os.getpid(), dict(contender.options))
            if contender.inner and not processes:
                job.make_topics()
            processes.append(stack.enter_context(running(command(name, job))))
        samples = list(observe(broker, processes, watched, limit_s, tell, skip))
        held = peak(processes)
    broker.delete_prefix(group)
    found = window(samples, total, skip, _LEAST_S if contender.inner else 0.0)
    return Run(
        events=round(found.events),
        seconds=found.seconds,
        rate=found.rate,
        cpu_s_per_million=found.cpu_s / found.events * 1e6,
        broker_cores=found.broker_cpu_s / found.seconds,
        peak_mb=held / 1e6,
    )
