"""Logs: one JSON object per line on standard error, quiet unless asked."""

from __future__ import annotations

import datetime as dt
import json
import logging
import sys

from stream.errors import BurnfuseError


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


class _OneSentence(logging.Filter):
    """What ends a worker by an error of ours is said in one sentence, at the very end.

    Neither that error nor what Faust stumbles over in its wake is told before.
    """

    def __init__(self) -> None:
        super().__init__()
        self._ending = False

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        self._ending |= isinstance(error, BurnfuseError)
        echo = self._ending and record.name.partition(".")[0] in ("faust", "mode", "asyncio", "aiokafka")
        return not (echo or isinstance(error, BurnfuseError))


def set_up(verbose: bool) -> None:
    """Warnings and errors are logged; with `verbose` also what burnfuse does."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    handler.addFilter(_OneSentence())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("stream").setLevel(logging.INFO if verbose else logging.WARNING)
    # kafka-python logs every refused connection as an error; what fails for good it raises.
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    # aiokafka logs as errors what it tries again, such as a coordinator that is being elected.
    logging.getLogger("aiokafka").setLevel(logging.ERROR if verbose else logging.CRITICAL)
    for library in ("faust", "mode"):
        logging.getLogger(library).setLevel(logging.ERROR)
