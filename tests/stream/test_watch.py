"""`watch`: files through the whole pipeline, with its actions; and nothing private comes out."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from slack_server import slack_server
from streams import START, Event, command, encode, event, good, loop, process, text

from detectors.types import Finding
from stream.clock import ManualClock
from stream.columns import Packed
from stream.incidents import Change
from stream.ingest.ingest import Record
from stream.ingest.reject import Reject
from stream.pipeline import Pipeline, Totals, make_ingest
from stream.settings import default_settings, parse
from stream.wire import encode_finding

# ----------------------------------------------------------------------------------------------- files


def findings(*paths: Path) -> list[dict[str, Any]]:
    return command("watch", "--json", *paths).only("finding")


def test_a_stream_is_the_same_however_it_lies_in_files(tmp_path: Path) -> None:
    events = good()
    whole = tmp_path / "whole.jsonl"
    whole.write_bytes(text(events))
    layouts: dict[str, dict[str, bytes]] = {
        "one after the other": {"1.jsonl": text(events[:40]), "2.jsonl": text(events[40:])},
        "names against time": {"1.jsonl": text(events[40:]), "2.jsonl": text(events[:40])},
        "turn by turn": {f"{n}.jsonl": text(events[n::5]) for n in range(5)},
        "some squeezed, some arrays": {
            "1.jsonl.gz": gzip.compress(text(events[::3])),
            "2.json": json.dumps(events[1::3], indent=1).encode(),
            "deep/er/3.ndjson": text(events[2::3]),
        },
        "a file per agent": {
            f"{agent}.jsonl": text(e for e in events if e["agent_id"] == agent)
            for agent in {e["agent_id"] for e in events}
        },
    }
    expected = findings(whole)
    assert len(expected) == 7
    for name, files in layouts.items():
        folder = tmp_path / name
        for file, content in files.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(content)
        assert findings(folder) == expected, name


def test_a_loop_whose_calls_lie_in_two_files_is_one_loop(tmp_path: Path) -> None:
    calls = loop(12)
    (tmp_path / "a.jsonl").write_bytes(text(calls[::2]))
    (tmp_path / "b.jsonl").write_bytes(text(calls[1::2]))
    assert [f["severity"] for f in findings(tmp_path)] == ["warning", "critical"]


def test_the_same_file_twice_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    anonymous = [{name: value for name, value in e.items() if name != "event_id"} for e in good()]
    file.write_bytes(text(anonymous))
    done = command("watch", "--json", file, file)
    assert done.summary["events"] == len(anonymous)
    assert done.summary["duplicates"] == len(anonymous)
    assert len(done.only("finding")) == 7


def test_time_goes_on_while_nothing_is_added() -> None:
    pipeline = Pipeline(default_settings(), clock=ManualClock(START), name_of=lambda _, line: str(line))
    lines = encode(loop(12))
    pipeline.process([Record(line, 0, i) for i, line in enumerate(lines)])
    assert len(pipeline.incidents.open) == 1
    ended = [item for _ in range(700) for item in pipeline.idle(0.5).happened]
    assert [item.kind for item in ended if isinstance(item, Change)] == ["resolved"]


def test_nothing_to_read_is_told(tmp_path: Path) -> None:
    told = command("watch", tmp_path)
    assert told.code == 3
    assert told.err.splitlines() == [f"burnfuse: no event files (.jsonl, .ndjson, .json, also .gz) in {tmp_path}"]
    told = command("watch", tmp_path / "gone.jsonl")
    assert told.code == 3
    assert told.err.splitlines() == [f"burnfuse: cannot read {tmp_path}/gone.jsonl: no such file"]


# --------------------------------------------------------------------------------------------- actions


def test_incidents_reach_slack_unless_it_is_a_dry_run(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_bytes(text(good()))

    async def main() -> None:
        async with slack_server() as server:
            config = tmp_path / "burnfuse.yaml"
            config.write_text(f"actions: {{slack: {{enabled: true, base_url: '{server.url}', update_s: 0.0}}}}")
            arguments = ("watch", "--json", "--config", config, tmp_path / "events.jsonl")
            token = {"BURNFUSE_SLACK_TOKEN": "xoxb-planted"}
            done = await asyncio.to_thread(command, *arguments, environment=token)
            assert done.code == 0
            assert server.methods.count("chat.postMessage") == done.summary["incidents"] == 3
            shown = [message["text"] for message in server.messages.values()]
            assert all("Resolved" in line for line in shown)
            assert "xoxb-planted" not in done.out + done.err
            server.calls.clear()
            again = await asyncio.to_thread(command, *arguments, "--dry-run", environment=token)
            assert again.summary == done.summary
            assert server.calls == []

    asyncio.run(main())


def test_slack_without_a_token_is_told_before_anything_is_read(tmp_path: Path) -> None:
    config = tmp_path / "burnfuse.yaml"
    config.write_text("actions: {slack: {enabled: true}}")
    done = command("watch", "--json", "--config", config, "-", stdin=text(good()))
    assert done.code == 2
    assert done.out == ""
    told = "burnfuse: actions.slack is enabled but there is no token: set BURNFUSE_SLACK_TOKEN or BURNFUSE_SLACK_TOKEN_"
    assert done.err == f"{told}FILE\n"


# --------------------------------------------------------------------------------------------- privacy

SECRETS = ["alice@example.com", "sk-live-4242", "the patient's diagnosis", "geheim-ä", "argument-name"]
PRIVATE: Event = {
    "args": {"argument-name": "alice@example.com", "deep": [{"q": "sk-live-4242"}]},
    "result": "the patient's diagnosis: geheim-ä",
    "attributes": {"prompt": "alice@example.com", "argument-name": ["sk-live-4242"]},
}


def private() -> list[bytes]:
    """Good, odd and bad events that all carry secrets."""
    lines = encode(e | PRIVATE for e in good())
    bad = [
        PRIVATE,
        event(1.0, agent_id=None) | PRIVATE,
        event(1.0, ts="alice@example.com") | PRIVATE,
        event(1.0, kind="sk-live-4242") | PRIVATE,
        event(1.0, input_tokens="alice@example.com") | PRIVATE,
        event(-7200.0, event_id="late") | PRIVATE,
        event(1.0, event_id="e3") | PRIVATE,
    ]
    lines[50:50] = [
        *encode(bad),
        lines[3],
        lines[5][:-9],
        lines[5][:-1] + b",,}",
        b"alice@example.com",
        b'"sk-live-4242"',
    ]
    lines += [
        json.dumps(e | PRIVATE | {"args": json.dumps(PRIVATE["args"])}, ensure_ascii=False).encode() for e in good()
    ]
    lines.append(lines[0][:-1] + b', "result": "geheim-\xe4 sk-live-4242", "args": 1e999}')
    return lines


def check_private(told: str) -> None:
    for secret in SECRETS:
        for form in (secret, json.dumps(secret)[1:-1], secret.encode().hex()):
            assert form not in told


@pytest.mark.parametrize(
    "arguments", [["watch"], ["watch", "--json"], ["watch", "--verbose"], ["watch", "--dry-run"], ["normalize"]]
)
def test_contents_do_not_come_out(tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(private()))
    done = command(*arguments, tmp_path / "a.jsonl")
    assert done.code == 0
    assert len(done.out) > 100
    assert len(done.err.splitlines()) >= 9  # the bad ones are told, without what is in them
    check_private(done.out + done.err)


def test_contents_are_in_nothing_that_travels_or_is_kept(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        seen = process(private())
        records = [Record(line, 0, i) for i, line in enumerate(private())]
        ingest = make_ingest(default_settings(), lambda _, line: str(line), ManualClock(START + 86400), None)
        columns, rejects = ingest.columns(records)
    packed = Packed(columns, {}, 1).encode()
    told = [encode_finding(item, 0.0, "") for item in seen.happened if isinstance(item, Finding)]
    assert len(columns) > 160
    assert told
    for secret in SECRETS:
        assert secret.encode() not in packed + b"".join(told)
    check_private(repr(seen) + repr(rejects) + caplog.text)


def test_contents_do_not_reach_slack(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(private()))

    async def main() -> None:
        async with slack_server() as server:
            config = tmp_path / "burnfuse.yaml"
            config.write_text(f"actions: {{slack: {{enabled: true, base_url: '{server.url}'}}}}")
            arguments = ("watch", "--config", config, tmp_path / "a.jsonl")
            await asyncio.to_thread(command, *arguments, environment={"BURNFUSE_SLACK_TOKEN": "t"})
            assert len(server.calls) > 3
            check_private(json.dumps([call.arguments for call in server.calls], ensure_ascii=False))

    asyncio.run(main())


def test_with_a_key_contents_cannot_be_guessed_from_their_hashes() -> None:
    lines = {}
    for key in ("", "one", "two"):
        done = command("normalize", "-", stdin=text(loop(1)), environment={"BURNFUSE_HASH_KEY": key})
        lines[key] = json.loads(done.out)
    assert len({line["args_hash"] for line in lines.values()}) == 3
    assert len({line["result_hash"] for line in lines.values()}) == 3


# -------------------------------------------------------------------------------------------- totals


def test_totals_add_up() -> None:
    prices = parse("prices: {m: {input: 1, output: 2}}")
    events = [event(float(i), agent_id=f"a{i % 2}", model="m", input_tokens=10**6, output_tokens=0) for i in range(5)]
    totals = process(encode(events), prices).totals
    assert totals == Totals(
        events=5,
        cost_usd=5.0,
        effective_tokens=5e6,
        spend={"a0": (3.0, 3e6), "a1": (2.0, 2e6)},
        # Who has hardly been seen is never shown as healthy.
        baselines={"a0": "warming up", "a1": "warming up"},
        rejected=totals.rejected,
    )
    assert not totals.rejected


def test_batches_do_not_change_what_is_found() -> None:
    whole = process(encode(good()), batch=10**6)
    for batch in (1, 7, 30):
        assert process(encode(good()), batch=batch) == whole


def test_a_reject_carries_no_content() -> None:
    assert set(Reject.__dataclass_fields__) == {"reason", "detail", "source", "size", "event_id"}
