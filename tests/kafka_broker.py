"""Real Kafka brokers for tests, started by the script that people use by hand: docker/kafka/run."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

import pytest

T = TypeVar("T")

RUN = Path(__file__).resolve().parent.parent / "docker" / "kafka" / "run"
MISSING = 69
"""The script's exit code when this machine lacks what a broker needs."""


class BrokerMissingError(Exception):
    """This machine cannot run a broker; the text says what is missing and what to do."""


class BrokerError(Exception):
    """It should have started, and did not."""


@contextmanager
def running(*options: str) -> Iterator[str]:
    """Run a broker for the length of the block; gives its `host:port`. Options are the script's."""
    # This process is named as the parent: even if it is killed with -9 right now, the broker ends.
    command = [sys.executable, str(RUN), "--parent", str(os.getpid()), *options]
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        try:
            assert process.stdout is not None
            word, _, address = process.stdout.readline().strip().partition(" ")
            if word != "ready":
                code = process.wait()
                errors.seek(0)
                why = (errors.read().splitlines() or [f"exit code {code}"])[-1]
                raise BrokerMissingError(why) if code == MISSING else BrokerError(why)
            yield address
        finally:
            process.terminate()


def enter_or_skip(stack: ExitStack, broker: AbstractContextManager[T]) -> T:
    """Starts a broker; where this machine cannot, the test is skipped, or fails if that must not be."""
    try:
        return stack.enter_context(broker)
    except BrokerMissingError as error:
        missing = str(error)
    if os.environ.get("REQUIRE_KAFKA") == "1":
        # A skip that nobody sees would let a broken machine pass for a tested one.
        pytest.fail(f"REQUIRE_KAFKA=1, but {missing}", pytrace=False)
    pytest.skip(f"{missing}; or set BURNFUSE_TEST_BROKER=host:port")


def free_port() -> int:
    """A port for a further listener, from those that the script chooses from as well."""
    for port in random.SystemRandom().sample(range(20_000, 32_000), 200):
        with socket.socket() as one:
            try:
                one.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise BrokerError("no free port")
