"""What saving state costs, and how fast it is restored, without Kafka: shares of CPU time in one process.

    python -m benchmarks.state --events 200000 --agents 50000

Events go through ingest and the detectors as in the worker; every `--every` seconds of processing all stages are
saved. Writing to and reading from Kafka come on top.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from benchmarks import screen
from benchmarks.load import Load
from benchmarks.stages import records
from stream.clock import SystemClock
from stream.engine import GRAPH, WATCH
from stream.pipeline import make_ingest
from stream.settings import default_settings
from stream.stages import DetectStage, IngestStage, Topics, position_name
from stream.state import Saved, origin


def measure(load: Load, batch: int = 8000, every_s: float = 3.0) -> dict[str, Any]:
    """CPU seconds of processing, of saving and of restoring, and what was saved."""
    settings, clock = default_settings(), SystemClock()
    topics, here = Topics.of(settings.kafka), origin("benchmark", 1, None)
    given = records(load)
    inner, inputs = settings.kafka.partitions, 1 + max(record.source for record in given)
    ingest = IngestStage(topics, make_ingest(settings, position_name(topics.usage), clock, "key"), inputs, inner)

    def blank(topic: str, partition: int) -> DetectStage:
        scopes = WATCH if topic == topics.events else GRAPH
        return DetectStage(settings, topics, scopes, f"{topic}/{partition}", clock)

    places = [(topic, p) for topic in (topics.events, topics.graph) for p in range(inner)]
    stages = {place: blank(*place) for place in places}
    saved = {place: Saved() for place in places}
    worked = saving = since = 0.0
    checkpoints = written = pages = 0
    for low in range(0, len(given), batch):
        begun = time.thread_time()
        for message in ingest.process(given[low : low + batch]):
            if message.partition is not None:
                stages[message.topic, message.partition].add(message.value, None)
        for stage in stages.values():
            stage.step()
        took = time.thread_time() - begun
        worked, since = worked + took, since + took
        if since >= every_s or low + batch >= len(given):
            since, checkpoints = 0.0, checkpoints + 1
            begun = time.thread_time()
            made = {place: list(stage.checkpoint(here)) for place, stage in stages.items()}
            saving += time.thread_time() - begun
            for place, some in made.items():
                saved[place].take(some)
                written += sum(len(page.value or b"") for page in some)
                pages += len(some)
    begun = time.thread_time()
    for place in places:
        for _ in blank(*place).restore(saved[place], here):
            pass
    restoring = time.thread_time() - begun
    rows = sum(stage.engine.rows(scope) for stage in stages.values() for scope in stage.engine.scopes)
    return {
        "events": len(given),
        "agents": load.agents,
        "checkpoints": checkpoints,
        "processing_s": worked,
        "saving_s": saving,
        "saving_share": saving / (worked + saving),
        "written_mb": written / 1e6,
        "pages": pages,
        "state_mb": sum(one.nbytes for one in saved.values()) / 1e6,
        "rows": rows,
        "restoring_s": restoring,
        "rows_per_s": rows / restoring,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = screen.parser("state", (__doc__ or "").splitlines()[0], "--events 200000 --agents 50000", events=200_000)
    parser.add_argument("--agents", type=int, default=Load().agents)
    parser.add_argument("--zipf", type=float, default=Load().zipf, help="0: every agent in turn")
    parser.add_argument("--rate", type=float, default=Load().rate, help="events per second of event time")
    parser.add_argument("--every", type=float, default=3.0, help="seconds of processing between checkpoints")
    options = parser.parse_args(arguments)
    load = Load(events=options.events, agents=options.agents, zipf=options.zipf, rate=options.rate)
    for name, value in measure(load, every_s=options.every).items():
        screen.say(f"{value:>14,.3f}  {name}" if isinstance(value, float) else f"{value:>14,}  {name}")


if __name__ == "__main__":
    main()
