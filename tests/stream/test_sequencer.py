from __future__ import annotations

from itertools import count

import numpy as np

from stream.clock import ManualClock
from stream.columns import TEXTS, Columns, Packed
from stream.numeric import LAST_MS, NUMBERS
from stream.sequencer import _AHEAD_MS, Sequencer

SILENT_S = 10.0
_positions = count(1)


def events(*rows: tuple[str, int, int]) -> Columns:
    """Columns of (id, source partition, log_ms)."""
    texts = {name: [""] * len(rows) for name in TEXTS} | {"event_id": [row[0] for row in rows]}
    numbers = {name: np.zeros(len(rows), dtype) for name, dtype in NUMBERS.items()}
    numbers["position"][:] = [next(_positions) for _ in rows]
    numbers["source"][:] = [row[1] for row in rows]
    numbers["log_ms"][:] = [row[2] for row in rows]
    return Columns(texts, numbers)


def packed(columns: Columns, **progress: int) -> Packed:
    return Packed(columns, {int(name[1:]): ms for name, ms in progress.items()}, partitions=2)


def make() -> tuple[Sequencer[str], ManualClock]:
    clock = ManualClock(100.0)
    return Sequencer(clock, SILENT_S), clock


def ids(columns: Columns) -> list[str]:
    return columns.texts["event_id"]


def test_events_wait_until_every_input_partition_has_come_so_far() -> None:
    sequencer, _ = make()
    sequencer.add(packed(events(("a", 0, 5), ("c", 0, 9)), p0=9), "first")
    columns, done = sequencer.ready()
    assert (ids(columns), done, len(sequencer)) == ([], [], 2)

    sequencer.add(packed(events(("b", 1, 7)), p1=8), "second")
    columns, done = sequencer.ready()
    assert (ids(columns), done) == (["a", "b"], ["second"])  # c was logged at 9, partition 1 is at 8


def test_a_record_is_done_when_all_its_events_were_given_out() -> None:
    sequencer, _ = make()
    sequencer.add(packed(events(("a", 0, 5), ("c", 0, 9)), p0=20, p1=6), "first")
    assert sequencer.ready()[1] == []
    sequencer.add(packed(Columns.empty(), p1=20), "heartbeat")
    columns, done = sequencer.ready()
    assert ids(columns) == ["c"]
    assert done == ["first", "heartbeat"]


def test_progress_is_exclusive_because_more_may_be_logged_in_the_same_millisecond() -> None:
    sequencer, _ = make()
    sequencer.add(packed(events(("a", 0, 5)), p0=5, p1=5), "first")
    assert ids(sequencer.ready()[0]) == []


def test_an_event_from_the_future_waits_for_nobody_and_is_no_progress() -> None:
    sequencer, clock = make()
    future = round(clock.now() * 1000) + _AHEAD_MS + 1
    sequencer.add(packed(events(("a", 0, 5), ("z", 0, future)), p0=future, p1=4), "first")
    assert ids(sequencer.ready()[0]) == ["z"]
    # Partition 0 has come as far as can be, and not further.
    sequencer.add(packed(events(("b", 0, future - 1)), p1=LAST_MS + 1), "second")
    columns, done = sequencer.ready()
    assert (ids(columns), done) == (["a"], ["first"])
    clock.advance(0.002)
    columns, done = sequencer.ready()
    assert (ids(columns), done) == ([], [])
    sequencer.add(packed(Columns.empty(), p0=LAST_MS + 1), "idle")
    assert ids(sequencer.ready()[0]) == ["b"]


def test_an_event_from_the_future_that_is_read_again_is_given_out_again() -> None:
    sequencer, _ = make()
    record = packed(events(("a", 0, 5), ("z", 0, LAST_MS)), p0=LAST_MS, p1=4)
    sequencer.add(record, "first")
    assert ids(sequencer.ready()[0]) == ["z"]
    again, _ = make()
    again.resume(sequencer.position)
    again.add(record, "first")
    # By which clock it was let through nobody knows any more; that it was, the engine tells by its id.
    assert ids(again.ready()[0]) == ["z"]
    again.add(packed(Columns.empty(), p1=6), "second")
    assert ids(again.ready()[0]) == ["a"]


def test_a_partition_nobody_reads_any_more_holds_back_nobody_for_long() -> None:
    sequencer, clock = make()
    sequencer.add(packed(events(("a", 0, 5)), p0=9), "first")
    clock.advance(SILENT_S - 1)
    sequencer.add(packed(Columns.empty(), p0=10), "still here")
    assert ids(sequencer.ready()[0]) == []
    clock.advance(1)
    sequencer.read_up_to(2, clock.monotonic())
    assert ids(sequencer.ready()[0]) == ["a"]


def test_while_kafka_does_not_answer_or_the_reader_is_behind_nobody_counts_as_gone() -> None:
    sequencer, clock = make()
    sequencer.add(packed(events(("a", 0, 5)), p0=9), "first")
    sequencer.read_up_to(1, clock.monotonic())
    clock.advance(100 * SILENT_S)
    assert ids(sequencer.ready()[0]) == []
    sequencer.read_up_to(2, clock.monotonic())  # a record waits: it may be the other partition's
    assert ids(sequencer.ready()[0]) == []
    sequencer.add(packed(events(("b", 1, 4)), p0=9, p1=9), "second")
    assert ids(sequencer.ready()[0]) == ["b", "a"]


def test_what_comes_after_its_turn_goes_on_at_once() -> None:
    sequencer, _ = make()
    sequencer.add(packed(events(("a", 0, 5)), p0=20, p1=20), "first")
    assert ids(sequencer.ready()[0]) == ["a"]
    sequencer.add(packed(events(("late", 1, 3)), p1=21), "second")
    assert ids(sequencer.ready()[0]) == ["late"]


def test_within_a_millisecond_the_sequence_number_decides() -> None:
    sequencer, _ = make()
    columns = events(("third", 0, 5), ("first", 1, 5), ("second", 0, 5))
    columns.numbers["sequence"][:] = [3, 1, 2]
    sequencer.add(packed(columns, p0=9, p1=9), "all")
    assert ids(sequencer.ready()[0]) == ["first", "second", "third"]
