"""Too much turned away stops a worker, and only that."""

from __future__ import annotations

import json

import msgspec
import pytest

from stream.clock import ManualClock
from stream.errors import RejectedShareError
from stream.ingest.ingest import Record
from stream.ingest.reject import Reason, Reject
from stream.ingest.share import RejectedShare, Stopped
from stream.pipeline import make_ingest
from stream.settings import Settings, default_settings, parse
from stream.stages import IngestStage, Topics, position_name

GOOD, BAD = b'{"agent_id": "a", "ts": 1.0}', b'{"agent_id": "a", "ts": 1.0, "input_tokens": -1}'
CLOCK = ManualClock(1_800_000_000.0)


def stage(settings: Settings, before: Stopped | None = None) -> IngestStage:
    topics = Topics.of(settings.kafka)
    share = RejectedShare(settings.input, topics.usage, topics.dead)
    if before is not None:
        share.resume(before)
    return IngestStage(topics, make_ingest(settings, position_name(topics.usage), CLOCK, None), 1, 1, share)


def records(*values: bytes, start: int = 0) -> list[Record]:
    return [Record(value, 0, start + n, log_ms=1) for n, value in enumerate(values)]


SMALL = parse("input: {max_rejected_of: 10}")


def test_more_than_the_share_stops_the_worker_in_one_sentence() -> None:
    told = stage(SMALL)
    told.process(records(*[GOOD] * 4))
    with pytest.raises(RejectedShareError) as stopped:
        told.process(records(*[BAD] * 5, b"{", start=4))
    assert str(stopped.value) == (
        "6 of the latest 10 events of usage (60%) had to be turned away, most as invalid (such as usage/0/4: "
        "`input_tokens`: expected `int` >= 0), more than input.max_rejected_share allows (50%): the worker stops, "
        "and nothing of this batch is lost; mend the producer, or set input.max_rejected_share: 1 to let such events "
        "go to bf.dead"
    )


@pytest.mark.parametrize("values", [[BAD] * 9, [GOOD] * 5 + [BAD] * 5, [GOOD] * 1000])
def test_too_few_events_or_no_more_than_the_share_go_on(values: list[bytes]) -> None:
    stage(SMALL).process(records(*values))


def test_a_share_of_1_lets_all_go() -> None:
    messages = stage(parse("input: {max_rejected_share: 1.0, max_rejected_of: 10}")).process(records(*[BAD] * 50))
    assert len([m for m in messages if m.topic == "bf.dead"]) == 50


def test_only_the_latest_events_count() -> None:
    told = stage(SMALL)
    for n in range(100):
        told.process(records(GOOD, GOOD, GOOD, BAD, start=4 * n))
    told.process(records(BAD, BAD, BAD, BAD, start=400))
    with pytest.raises(RejectedShareError):
        told.process(records(BAD, BAD, BAD, BAD, start=404))


def test_the_default_stops_a_bad_deploy_and_lets_single_faulty_producers_pass() -> None:
    told = stage(default_settings())
    for n in range(20):
        told.process(records(*[GOOD, GOOD, BAD] * 100, start=300 * n))
    told.process(records(*[BAD] * 300, start=6000))
    with pytest.raises(RejectedShareError):
        told.process(records(*[BAD] * 300, start=6300))


def test_duplicates_and_late_events_do_not_count() -> None:
    share = RejectedShare(SMALL.input, "usage", "bf.dead")
    share.add(0, [Reject(reason, "", "usage/0/1") for reason in (Reason.DUPLICATE, Reason.LATE)] * 50, records(GOOD))


def test_a_restart_stops_again_at_once_and_good_events_get_it_going() -> None:
    first = stage(SMALL)
    with pytest.raises(RejectedShareError) as stopped:
        first.process(records(*[BAD] * 12))
    marker = msgspec.json.decode(stopped.value.marker, type=Stopped)
    assert json.loads(stopped.value.marker)["type"] == "stopped"
    with pytest.raises(RejectedShareError):
        stage(SMALL, marker).process(records(BAD))
    mended = stage(SMALL, marker)
    for n in range(12):
        mended.process(records(GOOD, start=n))
    mended.process(records(BAD, start=12))


def test_a_stop_holds_until_its_batch_has_been_passed() -> None:
    stopped = Stopped(10, 9, {"invalid": 9}, "usage/0/4: wrong", {0: 100, 1: 7})
    assert stopped.holds({0: 100, 1: 20})
    assert stopped.holds({})
    assert not stopped.holds({0: 101, 1: 8})
