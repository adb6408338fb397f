"""Records that are sent again count once, under the names they had."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from burnfuse.event import REPLAY_HEADER, UsageEvent
from stream.clock import ManualClock
from stream.columns import Columns
from stream.engine import WATCH, Engine
from stream.ingest.ingest import Record
from stream.ingest.reject import Reason, Reject
from stream.ingest.replayed import Replayed, replayed
from stream.pipeline import make_ingest
from stream.settings import default_settings, parse
from stream.stages import position_name

NAME_OF = position_name("usage")
INGEST = make_ingest(default_settings(), NAME_OF, ManualClock(1_800_000_000.0), None)


def ids(record: Record) -> list[str | None]:
    return [event.event_id for event in INGEST.events(record) if isinstance(event, UsageEvent)]


def test_only_the_events_that_are_meant_count_and_ids_stay() -> None:
    value = json.dumps([{"agent_id": f"a{n}", "ts": 1.0} | ({"event_id": "own"} if n == 1 else {}) for n in range(4)])
    first = Record(value.encode(), 0, 5)
    assert ids(first) == ["usage/0/5[0]", "own", "usage/0/5[2]", "usage/0/5[3]"]
    for meant, expected in [
        (Replayed("usage/0/5", places=(2,)), ["usage/0/5[2]"]),
        (Replayed("usage/0/5", ids=("own", "usage/0/5[3]")), ["own", "usage/0/5[3]"]),
        (Replayed("usage/0/5"), ids(first)),
    ]:
        assert ids(Record(value.encode(), 0, 900, replayed=meant)) == expected


def test_a_record_that_is_turned_away_again_keeps_its_place_in_letters() -> None:
    (again,) = INGEST.events(Record(b"{", 0, 900, replayed=Replayed("usage/0/5")))
    assert isinstance(again, Reject)
    assert again.source == "usage/0/5"
    bad = b'[{"agent_id": "a", "ts": 1}, {"agent_id": 3}, {"agent_id": 4}]'
    (again,) = INGEST.events(Record(bad, 0, 900, replayed=Replayed("usage/0/5", places=(2,))))
    assert isinstance(again, Reject)
    assert again.source == "usage/0/5[2]"


def test_a_header_survives_kafka() -> None:
    meant = Replayed("usage/0/5", (1, 2), ("e",))
    assert replayed([("bf-seq", b"12345678"), meant.header()]) == meant


@given(st.binary() | st.sampled_from([b"{}", b'{"source": ""}', b'{"source": 3}', b"[" * 9000, None]))
def test_any_other_header_is_left_alone(value: Any) -> None:
    assert replayed([(REPLAY_HEADER, value)]) is None


# ------------------------------------------------------------------- not duplicates of themselves


def columns(*events: tuple[str, float]) -> Columns:
    made, rejects = INGEST.columns(
        [
            Record(json.dumps({"agent_id": "a", "event_id": name, "ts": ts}).encode(), 0, n, log_ms=1_800_000_000_000)
            for n, (name, ts) in enumerate(events)
        ]
    )
    assert not rejects
    return made


def reasons(engine: Engine, *events: tuple[str, float]) -> list[tuple[str, Reason]]:
    return [(r.event_id, r.reason) for r in engine.process(columns(*events)).rejects]


def test_a_late_event_is_no_duplicate_of_itself() -> None:
    engine = Engine(parse("engine: {run_ttl_s: 5000.0}"), WATCH, NAME_OF)
    assert reasons(engine, ("new", 5000.0), ("late", 1.0)) == [("late", Reason.LATE)]
    assert reasons(engine, ("late", 1.0)) == [("late", Reason.LATE)]
    # Its run begins anew after a silence, where it is on time: once.
    assert reasons(engine, ("much later", 20_000.0), ("late", 20_000.0)) == []
    assert reasons(engine, ("late", 20_000.0)) == [("late", Reason.DUPLICATE)]


@pytest.mark.parametrize("cuts", [[4], [1, 1, 1, 1], [2, 2], [3, 1]])
def test_where_batches_are_cut_does_not_matter(cuts: list[int]) -> None:
    events = [("new", 5000.0), ("late", 1.0), ("late", 1.0), ("new", 5000.0)]
    engine, told = Engine(default_settings(), WATCH, NAME_OF), []
    for size in cuts:
        told += reasons(engine, *events[:size])
        events = events[size:]
    expected = [("late", Reason.LATE), ("late", Reason.LATE), ("new", Reason.DUPLICATE)]
    assert told == expected
