"""Partitions are read in step: whoever is ahead waits, somebody always goes on."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stream.in_step import AHEAD_MS, STUCK_S, InStep

AT_HAND, TO_COME, AT_THE_END = True, None, False


def read(**newest: int) -> InStep[str]:
    step: InStep[str] = InStep()
    for partition, ms in newest.items():
        step.read(partition, ms)
    return step


def test_a_partition_waits_for_one_with_older_records_left() -> None:
    step = read(a=10_000, b=10_000 + AHEAD_MS, c=10_001 + AHEAD_MS)
    assert step.ahead("abc", {"a": AT_HAND, "b": AT_HAND, "c": AT_HAND}.get, 0.0) == {"c"}
    assert step.ahead("abc", {"a": TO_COME, "b": AT_HAND, "c": AT_HAND}.get, 0.0) == {"c"}


def test_nobody_waits_for_a_partition_that_was_read_to_its_end() -> None:
    step = read(a=10_000, b=90_000)
    assert step.ahead("ab", {"a": AT_THE_END, "b": AT_HAND}.get, 0.0) == set()
    step.read("a", 90_001)
    assert step.ahead("ab", {"a": AT_HAND, "b": AT_HAND}.get, 0.0) == set()


def test_a_partition_nothing_was_read_of_is_waited_for() -> None:
    step = read(a=90_000)
    assert step.ahead("ab", {"a": AT_HAND, "b": TO_COME}.get, 0.0) == {"a"}
    step.read("b", 90_000)
    assert step.ahead("ab", {"a": AT_HAND, "b": AT_THE_END}.get, 0.0) == set()


def test_a_partition_whose_records_do_not_come_is_waited_for_only_so_long() -> None:
    step = read(a=10_000, b=90_000)
    left = {"a": TO_COME, "b": AT_HAND}
    assert step.ahead("ab", left.get, 100.0) == {"b"}
    assert step.ahead("ab", left.get, 100.0 + STUCK_S) == set()
    left["a"] = AT_HAND  # they have come
    assert step.ahead("ab", left.get, 101.0 + STUCK_S) == {"b"}
    left["a"] = TO_COME
    assert step.ahead("ab", left.get, 102.0 + STUCK_S) == {"b"}


def test_records_without_a_time_hold_up_nobody() -> None:
    assert read(a=-1, b=90_000).ahead("ab", {"a": AT_HAND, "b": AT_HAND}.get, 0.0) == set()


def test_nothing_is_read_ahead_of_the_floor() -> None:
    step = read(a=10_000, b=90_000)
    step.floor_ms = 5_000
    assert step.ahead("abc", {"a": AT_THE_END, "b": AT_HAND, "c": AT_HAND}.get, 0.0) == {"a", "b"}
    step.floor_ms = None
    step.forget("c")
    assert step.ahead("ab", {"a": AT_THE_END, "b": AT_HAND}.get, 0.0) == set()


def test_a_partition_read_from_elsewhere_begins_anew() -> None:
    step = read(a=10_000, b=90_000)
    step.forget("b")
    assert step.ahead("ab", {"a": AT_HAND, "b": AT_HAND}.get, 0.0) == {"a"}


STATES = st.lists(st.tuples(st.integers(-1, 10_000), st.sampled_from([AT_HAND, TO_COME, AT_THE_END])), min_size=1)


@given(STATES)
def test_whoever_is_furthest_behind_is_never_ahead(states: list[tuple[int, bool | None]]) -> None:
    step: InStep[int] = InStep()
    for partition, (ms, _) in enumerate(states):
        step.read(partition, ms)
    ahead = step.ahead(range(len(states)), lambda partition: states[partition][1], 0.0)
    waiting = [p for p, (_, left) in enumerate(states) if left is not AT_THE_END]
    if waiting:
        assert min(waiting, key=lambda p: states[p][0]) not in ahead
    else:
        assert not ahead
