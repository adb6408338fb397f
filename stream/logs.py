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


class FewWords(logging.Filter):
    """Spares the reader what is told elsewhere, and tracebacks of what no code caused.

    What ends a worker by an error of ours is said in one sentence, at the very end: neither that error nor what
    Faust stumbles over in its wake is told before. Faust tells any crash again at every level.
    """

    def __init__(self) -> None:
        super().__init__()
        self._ending = False
        self._told: list[BaseException] = []

    def filter(self, record: logging.LogRecord) -> bool:
        errors = [record.exc_info[1] if record.exc_info else None]
        errors += (
            [arg for arg in record.args if isinstance(arg, BaseException)] if isinstance(record.args, tuple) else []
        )
        error = next((one for one in errors if one is not None), None)
        library = record.name.partition(".")[0] in ("faust", "mode", "asyncio", "aiokafka")
        if isinstance(error, BurnfuseError) and (library or record.exc_info):
            self._ending = True
            return False
        if library and not self._worth_telling(record, error):
            return False
        if error is not None:
            self._told = [*self._told[-9:], error]
        return True

    def _worth_telling(self, record: logging.LogRecord, error: BaseException | None) -> bool:
        if self._ending or any(error is told for told in self._told):
            return False
        if "while stopping child" in str(record.msg) or "We experienced a crash" in str(record.msg):
            return False
        if error is not None and _of_the_network(error):
            record.exc_info = None
            return record.name != "asyncio"  # there, of a task that nobody waits for
        return True


def _of_the_network(error: BaseException) -> bool:
    return isinstance(error, OSError) or any("kafka.errors" in cls.__module__ for cls in type(error).__mro__)


def set_up(verbose: bool) -> None:
    """Warnings and errors are logged; with `verbose` also what burnfuse does."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    handler.addFilter(FewWords())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("stream").setLevel(logging.INFO if verbose else logging.WARNING)
    # kafka-python logs every refused connection as an error; what fails for good it raises.
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    # aiokafka logs as errors what it tries again, such as a coordinator that is being elected.
    logging.getLogger("aiokafka").setLevel(logging.ERROR if verbose else logging.CRITICAL)
    for library in ("faust", "mode"):
        logging.getLogger(library).setLevel(logging.ERROR)
