"""A broker whose disk is full: it ends, the worker waits, and nothing is lost or found twice."""

from __future__ import annotations

import errno
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from disturbed_stream import Disturbed, disturbed_stream
from own_broker import Broker

DISK = "32m"
FULL = ("No space left on device", "a fault occurred in a recent unsafe memory access operation")
"""What a broker says of it, by whether it is a log that cannot grow or an index, which is mapped into memory."""
SILENT = "no Kafka broker has answered for 8 s"
WAYS = (["--mount"], ["--user", "--map-root-user", "--mount"])
"""Options of unshare: root needs mounts of its own; others need to be root of their own as well."""


class SmallDisk:
    """A file system of its own, as seen by whoever is started with `inside` before the command.

    Args:
        holder: Process that lives in the namespace.
    """

    def __init__(self, folder: Path, holder: int, inside: list[str]) -> None:
        self.folder, self.inside = folder, inside
        self._filler = Path(f"/proc/{holder}/root{folder}/filler")

    def fill(self) -> None:
        """Leaves no room."""
        with self._filler.open("wb", buffering=0) as filler:
            try:
                while True:
                    filler.write(bytes(4096))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise

    def free(self) -> None:
        """Gives all of that back."""
        self._filler.unlink()


@contextmanager
def small_disk(folder: Path) -> Iterator[SmallDisk]:
    """Mounts a small file system for the length of the block, where nobody else sees it."""
    if shutil.which("unshare") is None or shutil.which("nsenter") is None:
        pytest.skip("no small file system: unshare and nsenter (Linux, util-linux) are needed to mount one")
    folder.mkdir()
    why = ""
    for way in WAYS:
        # Gone with the process that holds it, and that with the pipe.
        script = 'mount -t tmpfs -o "size=$1" tmpfs "$0" && echo mounted && exec cat'
        holder = subprocess.Popen(
            ["unshare", *way, "sh", "-c", script, str(folder), DISK],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert holder.stdout is not None
        mounted = holder.stdout.readline() == "mounted\n"
        try:
            if mounted:
                enter = [name for name in way if name != "--map-root-user"]
                enter += ["--preserve-credentials"] if "--user" in enter else []
                yield SmallDisk(folder, holder.pid, ["nsenter", *enter, "--target", str(holder.pid), "--"])
                return
        finally:
            why = holder.communicate()[1].strip()
    pytest.skip(f"no small file system: this machine lets nobody mount one ({why})")


@pytest.mark.kafka
def test_a_full_disk_ends_the_broker_and_costs_time_only(tmp_path: Path) -> None:
    with ExitStack() as stack:
        disk = stack.enter_context(small_disk(tmp_path / "disk"))
        broker = Broker(disk.folder / "kafka", before=disk.inside)
        stack.callback(broker.kill)
        broker.start()
        told = {"kafka": {"partitions": 2, "input_partitions": 2}, "metrics": {"silence_s": 8.0}}
        flow = Disturbed(broker.address, tmp_path, told, disturbed_stream([3]), stack)
        with flow.running():
            flow.sender.go_on(0.3)
            flow.wait_until_it_flows(0.1)
            disk.fill()
            flow.sender.go_on(0.9)
            why = broker.ended()
            assert any(words in why for words in FULL), why
            flow.wait_for("an unready worker", lambda: SILENT in flow.unready)
            assert not flow.sender.done
            disk.free()
            broker.start()
            flow.wait_for_the_end()
            flow.wait_for("a ready worker", lambda: flow.worker.page("/readyz")[0] == 200)
        assert flow.as_undisturbed(), flow.differences  # what comes twice may come late
    assert flow.ill == set(), "starting the worker again would not help"
    began, ended = [line for line in flow.log() if "answer" in line]
    assert began.startswith("no Kafka broker has answered for ")
    assert ended.startswith("Kafka answers again, after about ")
