"""Logs: one JSON object per line on standard error, quiet unless asked."""

from __future__ import annotations

import datetime as dt
import json
import logging
import sys


class JsonFormatter(logging.Formatter):
    """A record as JSON: time, level, logger, message, and the error if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": dt.datetime.fromtimestamp(record.created, dt.UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["error"] = self.formatException(record.exc_info)
        return json.dumps(entry)


class FewWords(logging.Filter):
    """Spares the reader what libraries say about an error that was told, and tracebacks of what no code caused.

    Faust tells a crash again at every level, and what goes wrong while it clears up after one.
    """

    def __init__(self) -> None:
        super().__init__()
        self._told: list[BaseException] = []

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        error = error or next((arg for arg in _arguments(record) if isinstance(arg, BaseException)), None)
        if record.name == "asyncio" and error is not None and _of_the_network(error):
            return False  # of a task in a library that nobody waits for
        if record.name.partition(".")[0] in ("faust", "mode"):
            if "while stopping child" in record.msg or "We experienced a crash" in record.getMessage():
                return False
            if error is not None and any(error is told for told in self._told):
                return False
            if error is not None and _of_the_network(error):
                record.exc_info = None
        if error is not None:
            self._told = [*self._told[-9:], error]
        return True


def _arguments(record: logging.LogRecord) -> tuple[object, ...]:
    return record.args if isinstance(record.args, tuple) else ()


def _of_the_network(error: BaseException) -> bool:
    return isinstance(error, OSError) or any("kafka.errors" in cls.__module__ for cls in type(error).__mro__)


def set_up(verbose: bool) -> None:
    """Warnings and errors are logged; with `verbose` also what burnfuse does."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    if not verbose:
        handler.addFilter(FewWords())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("stream").setLevel(logging.INFO if verbose else logging.WARNING)
    # kafka-python logs every refused connection as an error; what fails for good it raises.
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    # aiokafka logs as errors what it tries again, such as a coordinator that is being elected.
    logging.getLogger("aiokafka").setLevel(logging.ERROR if verbose else logging.CRITICAL)
    for library in ("faust", "mode"):
        logging.getLogger(library).setLevel(logging.ERROR)
