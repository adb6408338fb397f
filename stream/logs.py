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


def _not_told_elsewhere(record: logging.LogRecord) -> bool:
    """What ends a worker is said in one sentence, at its very end."""
    error = record.exc_info[1] if record.exc_info else None
    return record.name != "mode.worker" and not isinstance(error, BurnfuseError)


def set_up(verbose: bool) -> None:
    """Warnings and errors are logged; with `verbose` also what burnfuse does."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    handler.addFilter(_not_told_elsewhere)
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("stream").setLevel(logging.INFO if verbose else logging.WARNING)
    # kafka-python logs every refused connection as an error; what fails for good it raises.
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    # aiokafka logs as errors what it tries again, such as a coordinator that is being elected.
    logging.getLogger("aiokafka").setLevel(logging.ERROR if verbose else logging.CRITICAL)
    for library in ("faust", "mode"):
        logging.getLogger(library).setLevel(logging.ERROR)
