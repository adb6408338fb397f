"""Which letters are meant, and which events of a record."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from streams import command

from stream.clock import ManualClock
from stream.dlq import Choice, Letter, _Line, _meant, moment
from stream.errors import UsageError
from stream.ingest.reject import Reason
from stream.ingest.replayed import Replayed

CLOCK = ManualClock(1_000_000.0)
RECORD = SimpleNamespace(topic="usage", partition=1, offset=7)


def letter(source: str = "usage/1/7", event_id: str = "", reason: str = "invalid", at: float = 0.0) -> Letter:
    return Letter(at, _Line(reason=reason, source=source, event_id=event_id))


@pytest.mark.parametrize(
    ("text", "expected"),
    [("30s", 999_970.0), ("2min", 999_880.0), ("2h", 992_800.0), ("1d", 913_600.0), ("1970-01-02T00:00:00Z", 86_400.0)],
)
def test_a_time_is_given_as_such_or_as_how_long_ago(text: str, expected: float) -> None:
    assert moment(text, CLOCK) == expected


@pytest.mark.parametrize("text", ["", "yesterday", "2 h", "-2h", "1970-01-02", "2w"])
def test_what_is_no_time_is_told(text: str) -> None:
    with pytest.raises(UsageError, match="is no time: give a time"):
        moment(text, CLOCK)


def test_all_that_is_asked_for_must_hold() -> None:
    choice = Choice(Reason.INVALID, 10.0, frozenset({"usage/1/7"}))
    assert choice.fits(letter(at=10.0))
    assert not choice.fits(letter(at=9.0))
    assert not choice.fits(letter(at=10.0, reason="late"))
    assert not choice.fits(letter(at=10.0, source="usage/1/8"))
    assert Choice().fits(letter())


@pytest.mark.parametrize(
    ("letters", "meant"),
    [
        ([letter()], Replayed("usage/1/7")),
        ([letter(event_id="e")], Replayed("usage/1/7", ids=("e",))),
        ([letter("usage/1/7[2]", "e"), letter("usage/1/7[0]")], Replayed("usage/1/7", places=(2, 0))),
        ([letter("usage/1/7[2]"), letter(event_id="late")], Replayed("usage/1/7", (2,), ("late",))),
        ([letter("usage/1/7[2]"), letter()], Replayed("usage/1/7")),
    ],
)
def test_only_events_that_letters_are_about_are_meant(letters: list[Letter], meant: Replayed) -> None:
    assert _meant(RECORD, letters) == meant


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["list", "--since", "soon"], 2, "--since soon is no time"),
        (["list", "--reason", "strange"], 2, "--reason"),
        (["replay", "--limit", "0"], 2, "--limit"),
        (["list", "--config", "gone.yaml"], 2, "cannot read the configuration gone.yaml"),
    ],
)
def test_what_is_wrong_is_told(args: list[str], code: int, says: str) -> None:
    done = command("dlq", *args)
    assert done.code == code
    assert says in done.err
