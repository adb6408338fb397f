"""Processes that are measured: kept on one core, watched through /proc, ended with whoever started them."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

_PR_SET_PDEATHSIG = 1
_TICKS = os.sysconf("SC_CLK_TCK")
_GRACE_S = 20.0

CORES = tuple(sorted(os.sched_getaffinity(0)))
"""The first core is for what is measured, the last one for the broker and whoever watches."""


class EndedError(Exception):
    """A measured process ended by itself."""


def settle(core: int, parent: int) -> None:
    """Called by a measured process first of all: it stays on its core, and ends with its parent."""
    os.sched_setaffinity(0, {core})
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # the broker ends as well: no orderly end is left
    if os.getppid() != parent:  # it was gone before we asked
        sys.exit(1)


class Process:
    """A running process and what it uses."""

    def __init__(self, popen: subprocess.Popen[bytes], errors: IO[bytes]) -> None:
        self._popen, self._errors = popen, errors
        self.pid = popen.pid

    def alive(self) -> bool:
        """Whether it still runs."""
        return self._popen.poll() is None

    def check(self) -> None:
        """Raises EndedError, with what the process said last, if it has ended."""
        if not self.alive():
            self._errors.seek(0)
            said = self._errors.read().decode(errors="replace").strip()
            raise EndedError(f"it ended with exit code {self._popen.returncode}: {said[-1500:]}")

    def stop(self) -> None:
        """Asks the process to end, and makes it if it does not."""
        if self.alive():
            self._popen.terminate()
            try:
                self._popen.wait(_GRACE_S)
            except subprocess.TimeoutExpired:
                self._popen.kill()
        self._popen.wait()


@contextmanager
def running(command: Sequence[str]) -> Iterator[Process]:
    """Runs a process for the length of the block, whatever ends the block."""
    with tempfile.TemporaryFile() as errors:
        # A session of its own: Ctrl-C is for us, and we end the process in our own time.
        popen = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors, start_new_session=True
        )
        process = Process(popen, errors)
        try:
            yield process
        finally:
            process.stop()


def cpu_seconds(pid: int) -> float:
    """CPU time a process has used, all threads, user and system, s."""
    # The name, in brackets, may hold spaces; user and system time are the 14th and 15th field.
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def peak_bytes(pid: int) -> int:
    """The most memory a process has held, bytes."""
    return _memory(pid, "VmHWM")


def resident_bytes(pid: int) -> int:
    """The memory a process holds, bytes."""
    return _memory(pid, "VmRSS")


def _memory(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"process {pid} does not tell {name}")


def child_named(name: str, parent: int) -> int:
    """The process of this name among a process's descendants.

    Raises:
        LookupError: there is none.
    """
    parents: dict[int, tuple[int, str]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError:  # it ended while we looked
            continue
        pid, _, rest = text.partition(" (")
        called, _, fields = rest.rpartition(") ")
        parents[int(pid)] = (int(fields.split()[1]), called)
    for child, (above, called) in parents.items():
        while called == name and above in parents:
            if above == parent:
                return child
            above = parents[above][0]
    raise LookupError(f"no process {name!r} below {parent}")
