"""Logs: one line per trouble."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from aiokafka.errors import KafkaTimeoutError

from stream import logs
from stream.errors import BrokerError
from stream.logs import FewWords, JsonFormatter


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


class Log:
    """What comes of log calls of loggers with these names."""

    def __init__(self) -> None:
        self._stream = io.StringIO()
        self._handler = logging.StreamHandler(self._stream)
        self._handler.setFormatter(JsonFormatter())
        self._handler.addFilter(FewWords())

    def error(self, name: str, message: str, *args: object, error: BaseException | None = None) -> None:
        info = (type(error), error, error.__traceback__) if error is not None else None
        self._handler.handle(logging.LogRecord(name, logging.ERROR, __file__, 1, message, args, info))

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._stream.getvalue().splitlines()]


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except type(error) as caught:
        return caught


def test_a_crash_is_told_once_with_its_traceback() -> None:
    log, error = Log(), raised(RuntimeError("planted"))
    log.error("stream.agents", "ingest failed", error=error)
    log.error("faust.app.base", "Crashed reason=%r", error, error=error)
    log.error("mode.worker", "We experienced a crash! Reraising original exception...")
    log.error("faust.app.base", "Error while stopping child %r: %r", "x", ValueError(), error=ValueError())
    (line,) = log.lines()
    assert line["message"] == "ingest failed"
    assert "planted" in line["error"]


def test_what_was_told_as_a_sentence_is_not_told_again() -> None:
    log, error = Log(), KafkaTimeoutError("slow")
    log.error("stream.agents", "ingest failed: Kafka says %s", error)
    log.error("faust.app.base", "Crashed reason=%r", error)
    assert len(log.lines()) == 1


def test_what_only_faust_tells_is_told() -> None:
    log, error = Log(), raised(RuntimeError("planted"))
    log.error("faust.app.base", "Crashed reason=%r", error, error=error)
    (line,) = log.lines()
    assert "planted" in line["error"]


def test_the_networks_errors_have_no_traceback() -> None:
    log = Log()
    for error in (raised(KafkaTimeoutError("slow")), raised(ConnectionRefusedError("no"))):
        log.error("faust.app.base", "Crashed reason=%r", error, error=error)
        log.error("asyncio", "Task exception was never retrieved", error=error)
    assert [line["message"].split("=")[0] for line in log.lines()] == ["Crashed reason", "Crashed reason"]
    assert all("error" not in line for line in log.lines())


def test_our_own_errors_keep_theirs() -> None:
    log = Log()
    log.error("stream.engine", "detector failed", error=raised(OSError("disk")))
    (line,) = log.lines()
    assert "Traceback" in line["error"]
