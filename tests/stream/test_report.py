"""What people and machines are told: JSON lines, plain lines, the live view, rejects."""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from dataclasses import replace

import pytest
from rich.console import Console
from streams import START, encode, good, process

from detectors.types import Finding
from stream.clock import ManualClock
from stream.incidents import Change, Incident
from stream.ingest.reject import Reason, Reject
from stream.pipeline import Totals
from stream.report import JsonReporter, PlainReporter, Rejections, Reporter, incident_line, summary_json, summary_line
from stream.view import LiveReporter

SEEN = process(encode(good()))
OPENED = next(item for item in SEEN.happened if isinstance(item, Change))
HOSTILE = "\x1b[2J\x1b]0;owned\x07\r\n\x9b31m‮[red]"


def tell(reporter: Reporter, rejects: int = 0) -> None:
    """A whole stream's worth of news."""
    for number in range(rejects):
        reporter.rejected(Reject(Reason.MALFORMED, "this is not JSON", f"file:{number}"))
    for share, item in enumerate(SEEN.happened):
        reporter.happened(item)
        reporter.progress(share / len(SEEN.happened), START + share, SEEN.totals)
    reporter.finish(SEEN.totals, 1.2345)


def test_json_lines_hold_findings_and_changes_that_matter(capsys: pytest.CaptureFixture[str]) -> None:
    tell(JsonReporter())
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]
    findings = [item for item in SEEN.happened if isinstance(item, Finding)]
    changes = [item for item in SEEN.happened if isinstance(item, Change) and item.kind != "updated"]
    assert Counter(line["type"] for line in lines) == {
        "finding": len(findings),
        "incident": len(changes),
        "summary": 1,
    }
    assert [line["id"] for line in lines if line["type"] == "finding"] == [finding.id for finding in findings]
    assert lines[-1]["type"] == "summary"
    assert err == ""


def test_the_summary_has_the_names_of_the_contract() -> None:
    told = summary_json(SEEN.totals, 1.23456)
    assert {"type", "events", "rejected", "findings", "incidents", "wall_s"} <= set(told)
    assert (told["events"], told["findings"], told["incidents"], told["wall_s"]) == (82, 7, 3, 1.235)


def test_plain_lines_tell_what_opens_escalates_and_ends(capsys: pytest.CaptureFixture[str]) -> None:
    tell(PlainReporter())
    out, err = capsys.readouterr()
    assert [line.split()[2] for line in out.splitlines()[:-1]] == (
        ["opened", "escalated"] * 2 + ["opened"] + ["resolved"] * 3
    )
    assert out.splitlines()[0] == (
        f"2025-06-15 15:06:44Z  opened     warning   {OPENED.incident.id}  {OPENED.incident.title}"
    )
    assert out.splitlines()[-1].startswith("82 events in 1.2 s, 7 findings, 3 incidents, $0.00, ")
    assert re.findall(r"^ *(\d+) % read", err, re.MULTILINE) == [
        str(tenth) for tenth in (10, 20, 30, 40, 50, 60, 70, 80, 90)
    ]


def test_a_merged_incident_says_into_what() -> None:
    merged = replace(OPENED.incident, state="resolved", merged_into="i-2")
    assert "merged into i-2" in incident_line(Change("resolved", merged))


@pytest.mark.parametrize(
    ("totals", "says"),
    [
        (
            Totals(),
            "0 events in 0.0 s, 0 findings, 0 incidents, $0.00, 0 effective tokens; rejected: none; duplicates: 0; "
            "agents' baselines: none",
        ),
        (
            Totals(
                events=12345,
                rejected=Counter({"late": 2, "malformed": 1}),
                duplicates=3,
                cost_usd=1234.567,
                baselines={"a": "ready", "b": "warming up", "c": "ready"},
            ),
            "12,345 events in 0.0 s, 0 findings, 0 incidents, $1,234.57, 0 effective tokens; "
            "rejected: 2 late, 1 malformed; duplicates: 3; agents' baselines: 1 warming up, 2 ready",
        ),
    ],
)
def test_the_last_line(totals: Totals, says: str) -> None:
    assert summary_line(totals, 0.0) == says


def test_rejects_are_told_one_by_one_up_to_ten_of_a_reason() -> None:
    out = io.StringIO()
    rejections = Rejections(out)
    for number in range(25):
        rejections.add(Reject(Reason.LATE, "too late", f"file:{number}"))
        rejections.add(Reject(Reason.DUPLICATE, "seen before", f"file:{number}", event_id="e"))
    rejections.add(Reject(Reason.EMPTY, "nothing there", HOSTILE))
    rejections.finish()
    lines = out.getvalue().split("\n")[:-1]
    assert lines[:2] == ["rejected file:0: late: too late", "ignored file:0: duplicate: seen before"]
    assert lines[-3:-2] == [
        "rejected " + "".join(c if c.isprintable() else "�" for c in HOSTILE) + ": empty: nothing there"
    ]
    assert lines[-2:] == ["and 15 more late", "and 15 more duplicate"]
    assert len(lines) == 10 + 10 + 1 + 2


def hostile(incident: Incident) -> Incident:
    return replace(incident, title=HOSTILE, agent_id=HOSTILE)


def test_plain_lines_are_clean() -> None:
    line = incident_line(Change("opened", hostile(OPENED.incident)))
    assert line.isprintable()


def test_the_live_view_is_clean_and_ends_with_the_summary(capsys: pytest.CaptureFixture[str]) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=120, height=40, color_system=None, legacy_windows=False)
    reporter = LiveReporter(console, ManualClock(), "burnfuse watch")
    spend = {HOSTILE: (1.0, 5.0), **{f"agent-{n}": (0.0, float(n)) for n in range(20)}}
    for item in SEEN.happened:
        reporter.happened(Change(item.kind, hostile(item.incident)) if isinstance(item, Change) else item)
    for number in range(30):
        reporter.rejected(Reject(Reason.MALFORMED, "this is not JSON", f"file:{number}"))
    totals = replace(SEEN.totals, spend=spend)
    reporter.progress(0.5, START, totals)
    reporter.finish(totals, 1.2345)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())  # what the view itself uses to draw
    assert "owned" in shown
    assert "[red]" in shown
    assert not [c for c in shown if not c.isprintable() and c not in "\r\n"]
    assert "\x1b]" not in out.getvalue()
    assert "82 events in 1.2 s, 7 findings, 3 incidents" in shown
    assert len(capsys.readouterr().err.splitlines()) == 11  # ten rejects, and how many more
