from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest

from stream import logs
from stream.errors import BrokerError


@pytest.fixture(autouse=True)
def _levels() -> Iterator[None]:
    names = ["", "stream", "kafka", "aiokafka", "faust", "mode"]
    before = [logging.getLogger(name).level for name in names]
    handlers = list(logging.getLogger().handlers)
    yield
    logging.getLogger().handlers[:] = handlers
    for name, level in zip(names, before, strict=True):
        logging.getLogger(name).setLevel(level)


def told(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [json.loads(line)["message"] for line in capsys.readouterr().err.splitlines()]


def failing(logger: str, error: Exception) -> None:
    try:
        raise error
    except type(error):
        logging.getLogger(logger).exception("it failed")


def test_an_error_of_ours_and_its_echoes_are_left_to_the_last_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up(False)
    failing("faust.app.base", RuntimeError("theirs"))
    failing("faust.app.base", BrokerError("ours"))
    failing("faust.app.base", RuntimeError("an echo"))
    logging.getLogger("stream.agents").warning("still told")
    assert told(capsys) == ["it failed", "still told"]


@pytest.mark.parametrize("verbose", [False, True])
def test_client_libraries_never_log_what_they_send(verbose: bool) -> None:
    # At DEBUG and INFO they log passwords and tokens as they stand.
    logs.set_up(verbose)
    for name in ("kafka.protocol.parser", "kafka.net.connection", "aiokafka.conn"):
        assert not logging.getLogger(name).isEnabledFor(logging.INFO)
