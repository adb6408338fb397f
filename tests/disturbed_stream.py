"""A stream that flows while brokers fail, a worker that is looked at meanwhile, and what must come of it in the end."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, suppress
from pathlib import Path
from typing import Any

from chaos_stream import ACTIONS, QUIET_S, Event, chaos_stream, configured, outcome_of, reference
from deployment import read_all
from kafka import KafkaProducer
from kafka.errors import KafkaError
from own_broker import DEADLINE_S, Worker
from slack_server import SlackServer, slack_server_in_a_thread

from detectors.base import FleetFigures
from stream import calibration

AT_ONCE = 5
"""So many events are on their way at once; those of an agent, or of a tree, go to one partition."""


UNDERSTOOD = (
    "no Kafka broker has answered for ",
    "Kafka answers again, after about ",
    " could not be saved, it is tried again: ",
    ": there was no time to save its state; its last seconds are done again",
    ": its producer has failed (",
    ": Kafka says that another worker has taken it; ",
    "behind on ",
    "caught up",
)
FEW_LINES = 20
"""At most so many lines in the worker's log; seven states are saved every three seconds."""


def disturbed_stream(seeds: Sequence[int]) -> list[Event]:
    """Loops, storms, runaways and spirals whose findings do not depend on how agents' events are interleaved."""
    mixed = [event for seed in seeds for event in chaos_stream(seed) if "agent-" not in event["agent_id"]]
    return sorted(mixed, key=lambda event: float(event["ts"]))


class Sender:
    """Sends a stream from a thread of its own, each few events when Kafka has those before, as far as it may.

    What Kafka does not take is sent again, in the order of each agent and tree.
    """

    def __init__(self, brokers: str, events: Sequence[Event]) -> None:
        self._brokers, self._events, self._may, self.sent = brokers, events, 0, 0
        self._changed, self._over = threading.Condition(), False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def go_on(self, share: float) -> None:
        """Sends the stream up to this share of it."""
        with self._changed:
            self._may = round(share * len(self._events))
            self._changed.notify()

    @property
    def done(self) -> bool:
        """Whether Kafka has all that may be sent."""
        assert self._thread.is_alive(), "the events cannot be sent"
        return self.sent == self._may

    def _run(self) -> None:
        while not self._over:
            producer = KafkaProducer(bootstrap_servers=self._brokers.split(","), acks="all")
            # A broker that ends may say anything before it does.
            with suppress(KafkaError):
                while self._send(producer):
                    pass
            with suppress(KafkaError):
                producer.close(timeout=0)

    def _send(self, producer: KafkaProducer) -> bool:
        """Sends the next few events, all of different agents or trees; false when it is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._over or self.sent < self._may)
            if self._over:
                return False
            batch: dict[str, Event] = {}
            for event in self._events[self.sent : min(self._may, self.sent + AT_ONCE)]:
                if batch.setdefault(event.get("root_run_id") or event["agent_id"], event) is not event:
                    break
        sending = [
            producer.send("usage", key=key.encode(), value=json.dumps(event).encode()) for key, event in batch.items()
        ]
        for record in sending:
            record.get(timeout=DEADLINE_S)
        self.sent += len(batch)
        return True

    def close(self) -> None:
        with self._changed:
            self._over = True
            self._changed.notify()
        self._thread.join(30)


class Disturbed:
    """A stream on its way through a worker, while the test has brokers fail; both are looked at all the time.

    Args:
        brokers: Addresses, separated by commas.
        folder: For the worker's configuration and log.
        told: Settings of the worker that decide nothing about results.
        events: The stream.
    """

    def __init__(self, brokers: str, folder: Path, told: dict[str, Any], events: Sequence[Event], stack: ExitStack):
        self._brokers, self._events = brokers, events
        self.slack: SlackServer = stack.enter_context(slack_server_in_a_thread())
        calibration.save(str(folder / "fleet.json"), FleetFigures())
        slack = {"enabled": True, "channel": "#agent-alerts", "base_url": self.slack.url, "pause_s": 0.0}
        # What decides about results is as in `configured`.
        self.worker = Worker(brokers, folder, told | {
            "calibration": {"file": str(folder / "fleet.json")},
            "incidents": {"quiet_s": QUIET_S},
            "overload": {"shed": False},
            "actions": ACTIONS | {"slack": slack},
        })  # fmt: skip
        self._expected = reference(configured(), events)
        self.differences = ["nothing was looked at"]
        done = self.worker.burnfuse("topics")
        assert done.returncode == 0, done.stderr
        self.sender = stack.enter_context(closing(Sender(brokers, events)))
        self.ill: set[str] = set()
        """What /healthz has said so far."""
        self.unready: set[str] = set()
        """What /readyz has said."""

    def running(self) -> AbstractContextManager[None]:
        """The worker, for the length of the block."""
        return self.worker.running(BURNFUSE_SLACK_TOKEN="xoxb-only-for-tests")

    def wait_for(self, what: str, condition: Callable[[], bool]) -> None:
        """Waits, and notes what the pages say in the meantime."""

        def looks() -> bool:
            for page, problems in (("/healthz", self.ill), ("/readyz", self.unready)):
                status, text = self.worker.page(page)
                if not status:
                    return False  # it has ended
                problems.update(json.loads(text)["problems"])
            # Whoever asks may come to a broker that is just ending.
            with suppress(KafkaError):
                return condition()
            return False

        self.worker.wait_for(what, looks)

    def wait_until_it_flows(self, share: float) -> None:
        """Waits until so much of the stream is on Kafka, and more is on its way."""
        self.wait_for("events that flow", lambda: self.sender.sent >= share * len(self._events))

    def wait_until_taken(self) -> None:
        """Waits until the worker, the first one, has taken all that may be sent."""
        self.wait_for("sent events", lambda: self.sender.done)
        self.wait_for("taken events", lambda: self.worker.metric("events_taken_total") >= self.sender.sent)

    def as_undisturbed(self) -> bool:
        """Whether findings, incidents, Slack messages and kill proposals are those of an undisturbed run."""

        def values(topic: str) -> list[bytes]:
            return [r.value for r in read_all(self._brokers, f"bf.{topic}", isolation_level="read_committed")]

        self.differences = outcome_of(self.slack.calls, values).differences(self._expected)
        return not self.differences

    def wait_for_the_end(self) -> None:
        """Lets the rest of the stream flow, and waits for its results."""
        self.sender.go_on(1.0)
        try:
            self.wait_for("the results of an undisturbed run", self.as_undisturbed)
        except AssertionError as error:
            raise AssertionError("\n".join(self.differences[:20])) from error

    def log(self) -> list[str]:
        """The worker's lines; it must not have many, and each must tell something to people."""
        told = [str(line["message"]) for line in self.worker.log()]
        assert len(told) <= FEW_LINES, told
        assert all(any(words in line for words in UNDERSTOOD) for line in told), told
        return told
