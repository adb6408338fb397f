"""Saved state on a real Kafka: what checkpoints cost, how long a restore takes, and how much comes again after kill -9.

Cost: two workers over the same events at the same time, one with checkpoints as they are by default and one with next
to none; by CPU time. Restore: a worker takes in an event of every agent and is killed with -9; another one starts.
Then load comes, it is killed again, and what comes again is looked up: what the saved state does not hold, up to the
end of the topics. That counts what was read but not worked on, too, so it is an upper bound.
"""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import msgspec
from confluent_kafka import Consumer, TopicPartition

from benchmarks import broker as kafka_broker
from benchmarks import pace, results
from benchmarks.broker import PARTITIONS, Broker
from benchmarks.contenders import CONTENDERS, Job
from benchmarks.load import Load
from benchmarks.measure import command
from benchmarks.observe import TooShortError
from benchmarks.processes import CORES, Process, cpu_seconds, peak_bytes, resident_bytes, running
from benchmarks.saved import Again, age_s, family_of, longest_piece_s, phase, total
from benchmarks.screen import FOLDER, command_line, parser, progress, say
from stream.checkpoints import read
from stream.clock import SystemClock
from stream.columns import Packed
from stream.state import MANIFEST, DetectManifest, decode
from tests.kafka_broker import free_port

_NAME = "burnfuse"
_INNER = CONTENDERS[_NAME].inner
_STATE_OF = {"events": "state.watch", "graph": "state.graph"}
_RARELY_S = 3600.0
"""Between checkpoints, where there are to be none."""
_POLL_S = 0.05
_LIMIT_S = 900.0
_HEARTBEATS = 200
"""Records that may always be on their way on inner topics: they come without events, too."""
_BEFORE_KILL_S = 15.0
_AFTER_KILL_S = 5.0
"""So much more would be sent, if the sender were not ended with the worker."""


class Worker:
    """A worker that is watched from outside: through its pages and /proc."""

    def __init__(self, process: Process, port: int, started: float) -> None:
        self.process, self._url, self.started = process, f"http://127.0.0.1:{port}", started

    def problems(self) -> list[str] | None:
        """Why the worker is not ready; None: it does not answer yet."""
        try:
            with urlopen(f"{self._url}/readyz", timeout=5) as answer:  # noqa: S310 - http, to this machine
                body = answer.read()
        except HTTPError as error:
            body = error.read()
        except (URLError, TimeoutError, ConnectionError):
            return None
        return list(msgspec.json.decode(body)["problems"])

    def metrics(self) -> dict[str, Any]:
        """Name of a family of metrics -> its samples; nothing if the worker does not answer in time."""
        try:
            with urlopen(f"{self._url}/metrics", timeout=10) as answer:  # noqa: S310 - http, to this machine
                return family_of(answer.read().decode())
        except (URLError, TimeoutError, ConnectionError):
            return {}

    def until(self, what: str, holds: Callable[[], bool]) -> None:
        """Waits for something.

        Raises:
            EndedError: the worker ended by itself.
            TooShortError: it did not come in time.
        """
        deadline = time.monotonic() + _LIMIT_S
        while not holds():
            self.process.check()
            if time.monotonic() > deadline:
                raise TooShortError(f"{what}: not within {_LIMIT_S:.0f} s")
            time.sleep(_POLL_S)

    def kill(self) -> float:
        """Kills it with -9; the wall clock then, s."""
        os.kill(self.process.pid, signal.SIGKILL)
        at = time.time()
        while self.process.alive():
            time.sleep(_POLL_S)
        return at


@contextmanager
def _worker(job: Job) -> Iterator[Worker]:
    port = free_port()
    options = dict(job.options) | {"metrics": {"listen": f"127.0.0.1:{port}"}}
    started = time.monotonic()
    with running(command(_NAME, msgspec.structs.replace(job, options=options))) as process:
        yield Worker(process, port, started)


def _job(broker: Broker, topic: str, group: str, **options: Any) -> Job:
    return Job(broker.address, topic, group, CORES[0], os.getpid(), dict(CONTENDERS[_NAME].options) | options)


# -------------------------------------------------------------------------------------------- cost


@dataclass(frozen=True, slots=True)
class Cost:
    """One run of a worker over a load.

    Attributes:
        cpu_s: CPU time of the worker from its first event to its last one.
        making_s: Time its event loop stood still to make checkpoints.
        longest_s: The longest piece of that, as a bound.
    """

    cpu_s: float
    seconds: float
    making_s: float
    longest_s: float
    written_mb: float
    checkpoints: float


class _Running:
    """A worker over a load, until it has worked it off."""

    def __init__(self, worker: Worker, events: int) -> None:
        self.worker, self._events = worker, events
        self._first: tuple[float, float] | None = None
        self.taken = 0.0
        self.cost: Cost | None = None

    def done(self) -> bool:
        """Asks once whether all events have been worked on, and notes what that took."""
        if self.cost is not None:
            return True
        self.worker.process.check()
        found, pid = self.worker.metrics(), self.worker.process.pid
        now = cpu_seconds(pid), time.monotonic()
        if found and self._first is None:  # imports and connections do not count
            self._first = now
        self.taken = total(found, "burnfuse_events_taken", "burnfuse_events_taken_total")
        if self._first is None or self.taken < self._events or total(found, "burnfuse_lag_records") > _HEARTBEATS:
            return False
        pieces = "burnfuse_checkpoint_piece_seconds"
        self.cost = Cost(
            now[0] - self._first[0],
            now[1] - self._first[1],
            total(found, pieces, f"{pieces}_sum"),
            longest_piece_s(found.get(pieces, ())),
            total(found, "burnfuse_checkpoint_bytes", "burnfuse_checkpoint_bytes_total") / 1e6,
            total(found, "burnfuse_checkpoint_seconds", "burnfuse_checkpoint_seconds_count"),
        )
        return True


def _pair(
    broker: Broker, topic: str, events: int, cores: Sequence[int], tell: Callable[[float], None]
) -> tuple[Cost, Cost]:
    """A worker with checkpoints as they are by default and one with next to none, at the same time."""
    groups = [kafka_broker.new_group() for _ in cores]
    with ExitStack() as stack:
        runs = []
        for group, core, state in zip(groups, cores, ({}, {"state": {"checkpoint_s": _RARELY_S}}), strict=True):
            job = msgspec.structs.replace(_job(broker, topic, group, **state), core=core)
            job.make_topics()
            runs.append(_Running(stack.enter_context(_worker(job)), events))

        def both() -> bool:
            done = [run.done() for run in runs]
            tell(min(run.taken for run in runs))
            return all(done)

        runs[0].worker.until("all events worked on", both)
        for run in runs:
            os.kill(run.worker.process.pid, signal.SIGKILL)  # with nothing saved a clean stop would save all of it
    for group in groups:
        broker.delete_prefix(group)
    first, second = (run.cost for run in runs)
    assert first is not None
    assert second is not None
    return first, second


def cost(broker: Broker, loads: Mapping[str, Load], repeats: int) -> results.Figures:
    """What checkpoints take of a worker's CPU time, by load.

    With and without at the same time, on cores that they swap from one pair to the next: the machine's speed changes
    by more within minutes than checkpoints cost.
    """
    figures: results.Figures = {}
    for kind, load in loads.items():
        with progress(f"preloading, {kind}", load.events) as tell:
            topic = broker.preload(load, False, tell)
        runs: dict[str, list[Cost]] = {"default": [], "rare": []}
        for number in range(repeats):
            cores = (CORES[0], CORES[-1])[:: -1 if number % 2 else 1]
            with progress(f"{kind}, with checkpoints and without", load.events) as tell:
                with_, without = _pair(broker, topic, load.events, cores, tell)
            runs["default"].append(with_)
            runs["rare"].append(without)
            say(
                f"{kind}: {with_.cpu_s:.1f} s of CPU with checkpoints, {with_.making_s:.2f} s making "
                f"{with_.written_mb:,.0f} MB; {without.cpu_s:.1f} s with next to none"
            )
        with_s, without_s = (statistics.median(run.cpu_s for run in runs[how]) for how in ("default", "rare"))
        # As many pairs on the one core as on the other: the mean of both cores' medians.
        pairs = [1 - b.cpu_s / a.cpu_s for a, b in zip(runs["default"], runs["rare"], strict=True)]
        figures[kind] = {
            "events": load.events,
            "agents": load.agents,
            "cpu_s_per_million": {"default": with_s / load.events * 1e6, "rare": without_s / load.events * 1e6},
            "share": statistics.fmean(statistics.median(some) for some in (pairs[::2], pairs[1::2]) if some),
            "making_share": statistics.median(run.making_s / run.cpu_s for run in runs["default"]),
            "longest_piece_s": max(run.longest_s for run in runs["default"]),
            "bytes_per_event": statistics.median(run.written_mb for run in runs["default"]) * 1e6 / load.events,
            "runs": msgspec.to_builtins(runs),
        }
    return figures


# ----------------------------------------------------------------------------------------- restore


def _restored(worker: Worker) -> results.Figures:
    """Waits until a worker has all its state; how long that took."""
    moments: dict[str, float] = {}

    def ready() -> bool:
        now, found = time.monotonic(), phase(worker.problems())
        if found in ("restoring", "ready"):
            moments.setdefault("assigned", now)
        if found == "ready":
            moments["ready"] = now
        return found == "ready"

    worker.until("state restored", ready)
    pid = worker.process.pid
    return {
        "from_start_s": moments["ready"] - worker.started,
        "from_assignment_s": moments["ready"] - moments["assigned"],
        "cpu_s": cpu_seconds(pid),
        "memory_mb": resident_bytes(pid) / 1e6,
        "peak_mb": peak_bytes(pid) / 1e6,
    }


def _on_disk(group: str) -> float:
    """10^6 bytes that state topics take on the broker."""
    return sum(path.stat().st_size for path in FOLDER.rglob(f"{group}.state.*/*.log")) / 1e6


class Looker:
    """Looks up what comes again to whoever goes on from what is saved and committed."""

    def __init__(self, broker: Broker, job: Job) -> None:
        self._broker, self._job = broker, job
        self._settings = job.settings()
        self._consumer = Consumer(
            {"bootstrap.servers": broker.address, "group.id": "looker", "enable.auto.commit": False, "log_level": 0}
        )

    def close(self) -> None:
        """No more questions."""
        self._consumer.close()

    def inner(self, part: str, ends: Mapping[int, int]) -> tuple[Again, float]:
        """What comes again on an inner topic, up to these ends, and how large its saved state is, 10^6 bytes."""
        topic, again, size = f"{self._job.group}.{part}", Again(), 0
        for partition, end in ends.items():
            state = f"{self._job.group}.{_STATE_OF[part]}"
            saved, _ = asyncio.run(read(self._settings.kafka, state, (topic, partition), SystemClock()))
            size += saved.nbytes
            page = saved.pages.get(MANIFEST)
            first = decode(page, DetectManifest, topic).position.first if page is not None else 0
            again += self._records(topic, partition, first, end, lambda value: len(Packed.decode(value).columns))
        return again, size / 1e6

    def input(self, ends: Mapping[int, int]) -> Again:
        """What comes again on the input, up to these ends."""
        again = Again()
        asked = [TopicPartition(self._job.topic, partition) for partition in ends]
        group = Consumer({"bootstrap.servers": self._broker.address, "group.id": self._job.group, "log_level": 0})
        committed = group.committed(asked, timeout=30)
        group.close()
        for at in committed:
            again += self._records(at.topic, at.partition, max(0, at.offset), ends[at.partition], lambda _: 1)
        return again

    def _records(self, topic: str, partition: int, first: int, end: int, events_of: Callable[[bytes], int]) -> Again:
        if first >= end:
            return Again()
        self._consumer.assign([TopicPartition(topic, partition, first)])
        records, events, oldest = 0, 0, None
        deadline = time.monotonic() + 60
        while True:
            for message in self._consumer.consume(1000, timeout=1.0):
                if message.error() is not None or message.offset() >= end:
                    continue
                count = events_of(message.value())
                records, events = records + 1, events + count
                if count and oldest is None:
                    oldest = message.timestamp()[1]
            at = self._consumer.position([TopicPartition(topic, partition)])[0].offset
            if at >= end:
                return Again(records, events, oldest)
            if time.monotonic() > deadline:
                raise TooShortError(f"{topic}/{partition} could not be read from {first} to {end}, only to {at}")


@contextmanager
def _sending(broker: Broker, topic: str, load: Load) -> Iterator[Process]:
    with pace.order(broker.address, topic, load) as (sending, _), running(sending) as sender:
        yield sender
        os.kill(sender.pid, signal.SIGKILL)


def restore(broker: Broker, agents: int, rate: float, kills: int) -> results.Figures:
    """Kills workers that hold the state of so many agents, and watches the next ones come back.

    Args:
        rate: Events per second while workers are killed.
        kills: How often that happens under load.
    """
    group = kafka_broker.new_group()
    job = _job(broker, f"{group}.usage", group)
    job.make_topics()
    load = Load(events=agents, agents=agents, zipf=0.0)
    with progress(f"sending an event of each of {agents:,} agents", agents) as tell:
        broker.fill(job.topic, load, False, tell)
    inner = {f"{group}.{part}": job.settings().kafka.partitions for part in _INNER}

    def left() -> int:
        """Records that are not committed, and with that not saved."""
        done = broker.committed(group)
        topics = {job.topic: PARTITIONS} | inner
        return sum(sum(broker.ends(topic, n).values()) - done.get(topic, 0) for topic, n in topics.items())

    with progress("taking them in", agents) as tell, _worker(job) as worker:

        def saved() -> bool:
            taken = total(worker.metrics(), "burnfuse_events_taken", "burnfuse_events_taken_total")
            tell(taken)
            return taken >= agents and left() <= _HEARTBEATS

        worker.until("all events saved", saved)
        before = {
            "seconds": time.monotonic() - worker.started,
            "memory_mb": resident_bytes(worker.process.pid) / 1e6,
            "peak_mb": peak_bytes(worker.process.pid) / 1e6,
        }
        worker.kill()
    say(f"an event of each of {agents:,} agents in {before['seconds']:.0f} s, {before['memory_mb']:,.0f} MB")
    restores, killed = [], []
    looker = Looker(broker, job)
    try:
        for number in range(kills + 1):
            disk = _on_disk(group)
            with _worker(job) as worker:
                found = _restored(worker) | {"disk_mb": disk, "after": "load" if number else "all was saved"}
                restores.append(found)
                say(
                    f"restored in {found['from_start_s']:.1f} s, {found['from_assignment_s']:.1f} s of it from the "
                    f"assignment on; {found['memory_mb']:,.0f} MB, {disk:,.0f} MB on disk"
                )
                if number == kills:
                    break
                worker.until("caught up", lambda: left() <= _HEARTBEATS)
                more = Load(
                    events=round(rate * (_BEFORE_KILL_S + _AFTER_KILL_S)),
                    agents=agents,
                    seed=2 + number,
                    start=load.start + load.events / load.rate + 1000 * number,
                    rate=rate,
                    loop_every=0,
                )
                begun = sum(broker.ends(job.topic, PARTITIONS).values())
                with _sending(broker, job.topic, more) as sender:
                    # Not always at the same moment between checkpoints.
                    wanted = begun + rate * (_BEFORE_KILL_S + 0.7 * number)

                    def enough(wanted: float = wanted, sender: Process = sender) -> bool:
                        return sum(broker.ends(job.topic, PARTITIONS).values()) >= wanted or not sender.alive()

                    worker.until("load sent", enough)
                    at = worker.kill()
                ends = {topic: broker.ends(topic, n) for topic, n in ({job.topic: PARTITIONS} | inner).items()}
                killed.append(_looked_up(looker, job, ends, at))
                say("killed with -9: {}".format(", ".join(f"{k} {v:,.1f}" for k, v in killed[-1].items())))
    finally:
        looker.close()
    broker.delete_prefix(group)
    return {"agents": agents, "rate": rate, "before": before, "restores": restores, "kills": killed}


def _looked_up(looker: Looker, job: Job, ends: Mapping[str, Mapping[int, int]], at: float) -> results.Figures:
    input_ = looker.input(ends[job.topic])
    again, size = Again(), 0.0
    for part in _INNER:
        more, held = looker.inner(part, ends[f"{job.group}.{part}"])
        again, size = again + more, size + held
    return {
        "input_events": input_.events,
        "input_age_s": age_s(input_, at),
        "inner_events": again.events,
        "inner_age_s": age_s(again, at),
        "state_mb": size,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    about = "--agents 20000 --events 100000 --repeats 1 --kills 1 --rate 2000"
    options_of = parser("restore", __doc__.splitlines()[0], about, events=500_000)
    options_of.add_argument("--agents", type=int, default=1_000_000, help="to restore (default: %(default)s)")
    options_of.add_argument("--repeats", type=int, default=6, help="pairs, of the cost (default: %(default)s)")
    options_of.add_argument("--kills", type=int, default=2, help="under load (default: %(default)s)")
    options_of.add_argument("--rate", type=float, default=5000.0, help="events/s then (default: %(default)s)")
    options_of.add_argument("--parts", nargs="+", choices=("cost", "restore"), default=("cost", "restore"))
    options = options_of.parse_args(arguments)
    loads = {
        "as in the other benchmarks": Load(events=options.events),
        "every event of another agent": Load(events=options.events, agents=options.events, zipf=0.0),
    }
    figures = results.load(options.json).get("restore", {})
    with kafka_broker.running(FOLDER) as broker:
        if "cost" in options.parts:
            figures["cost"] = cost(broker, loads, options.repeats)
        if "restore" in options.parts:
            figures |= restore(broker, options.agents, options.rate, options.kills)
    results.save(options.json, "restore", figures)
    sys.stdout.write(results.text_table(results.RESTORE_HEAD, results.restore_rows(figures)) + "\n")
    say(f"figures: {options.json}")


if __name__ == "__main__":
    command_line(main)
