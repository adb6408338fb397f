"""Bytewax with a moving average per agent, in its own keyed state.

Its source belongs to no consumer group; it is given one that commits what was read, to be measured like the
others.
"""

from __future__ import annotations

from typing import Any

from bytewax import operators as op
from bytewax.connectors.kafka import KafkaSource
from bytewax.dataflow import Dataflow
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from bytewax.run import cli_main

from benchmarks.contenders import COMMIT_S, Job
from benchmarks.contenders.models import Average, agent_and_tokens, step


def run(job: Job) -> None:
    """Runs until the process is ended."""
    commits = {
        "group.id": job.group,
        "enable.auto.commit": "true",
        "auto.commit.interval.ms": str(round(COMMIT_S * 1000)),
    }
    flow = Dataflow("benchmark")
    read = op.input("read", flow, KafkaSource([job.broker], [job.topic], add_config=commits))
    calls = op.filter("calls", op.map("decode", read, _decode), lambda call: call[1] is not None)
    scored = op.stateful_map("score", calls, _score)
    op.output("far", op.filter("far only", scored, lambda call: call[1]), _Nowhere())
    cli_main(flow)


def _decode(record: Any) -> tuple[str, int | None]:
    return agent_and_tokens(record.value)


def _score(average: Average | None, tokens: int) -> tuple[Average, bool]:
    return step(average, tokens)


class _Drop(StatelessSinkPartition[Any]):
    def write_batch(self, items: list[Any]) -> None:
        pass


class _Nowhere(DynamicSink[Any]):
    def build(self, step_id: str, worker_index: int, worker_count: int) -> _Drop:
        return _Drop()
