"""Situations that are loops, and situations that only look like loops, as usage events.

Published loop detectors say in their tests what they take for a loop and what not. These are such situations
in our own words and data, with the name of the project that thought of them. Where two projects disagree,
the one that looks at results is right: who learns something is not in a loop.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

Event = dict[str, Any]

START: Final = 1_767_200_000.0
_GAP_S: Final = 4.0
"""Seconds from one event of a case to the next, where the case does not say."""


@dataclass(frozen=True, slots=True)
class Case:
    """One situation."""

    name: str
    after: str
    """The project whose tests or issues state it."""
    situation: str
    loop: bool
    events: tuple[Event, ...]


# ------------------------------------------------------------------------------------------- events


def call(tool: str, args: Any = None, result: Any = None, **more: Any) -> Event:
    """A tool call; None for what the producer does not send."""
    sent = {name: value for name, value in (("args", args), ("result", result)) if value is not None}
    return {"kind": "tool", "tool": tool, **sent, **more}


def fails(tool: str, args: Any, result: Any = None, **more: Any) -> Event:
    """A tool call that fails."""
    return call(tool, args, result, status="error", **more)


def says(text: str, **more: Any) -> Event:
    """A model call that wrote this text."""
    return {"kind": "llm", "result": text, **more}


def cut(n: int, why: str = "max_tokens") -> list[Event]:
    """Model calls that ended so."""
    return [says(f"part {i} of a long answer", finish_reason=why, output_tokens=4096) for i in range(n)]


def read(path: str, result: str = "", **more: Any) -> Event:
    """A file is read."""
    return call("read_file", {"path": path, **more}, result or f"contents of {path}")


def edit(path: str, to: str) -> Event:
    """A file is changed."""
    return call("edit_file", {"path": path, "new": to}, "edited")


def checks(result: str, *, failed: bool = True) -> Event:
    """The tests are run."""
    return call("bash", {"command": "make check"}, result, status="error" if failed else "ok")


def refused(n: int, status: int = 429) -> list[Event]:
    """Model calls that the provider refuses."""
    return [{"kind": "llm", "status": "error", "http_status": status} for _ in range(n)]


COMPACTED: Final[Event] = {"kind": "compaction"}


def timed(events: Iterable[Mapping[str, Any]], gaps: Iterable[float]) -> list[Event]:
    """The events with these gaps (s) before each."""
    at, out = 0.0, []
    for event, gap in zip(events, gaps, strict=True):
        at += gap
        out.append({**event, "ts": START + at})
    return out


def paced(events: Iterable[Mapping[str, Any]], gap_s: float) -> list[Event]:
    """The events so far apart."""
    listed = list(events)
    return timed(listed, [gap_s] * len(listed))


def rounds(*calls: Iterable[Mapping[str, Any]]) -> list[Event]:
    """Parallel calls: each argument is what one model response asked for."""
    return [{**event, "round_id": f"answer {i}"} for i, several in enumerate(calls) for event in several]


def _cases() -> Iterable[tuple[str, str, str, bool, list[Event]]]:
    yield from (("loop " + name, after, why, True, list(events)) for name, after, why, events in _loops())
    yield from (("healthy " + name, after, why, False, list(events)) for name, after, why, events in _healthy())


_Told = tuple[str, str, str, Iterable[Event]]


def _loops() -> Iterable[_Told]:
    look = read("conf/app.toml", "debug = false")
    failing_edit = fails("edit_file", {"path": "a.py", "old": "x = 1", "new": "x = 2"}, "no such text in a.py")
    red = checks("2 failed")
    page = lambda n: read("big.log", f"lines {n}", offset=n * 200, limit=200)  # noqa: E731 - local shorthand

    # The same call again.
    yield "three equal reads", "stella", "The same file is read three times and holds the same.", [look] * 3
    yield "four equal listings", "OpenHands", "The same listing four times.", [call("bash", {"cmd": "ls"}, "a b")] * 4
    yield (
        "four empty answers",
        "OpenHands",
        "A command that prints nothing, four times.",
        [call("bash", "ls x", "")] * 4,
    )
    yield (
        "five calls, no results",
        "gemini-cli",
        "Five equal calls; the producer sends no results.",
        [call("find_symbol", {"name": "main"})] * 5,
    )
    yield (
        "keys reordered",
        "qwen-code",
        "The same arguments in another order of keys.",
        [call("search", {"q": "x", "n": 5} if i % 2 else {"n": 5, "q": "x"}, "nothing found") for i in range(5)],
    )
    yield (
        "arguments as text",
        "deer-flow",
        "The same arguments once as an object, once as JSON text.",
        [call("search", {"q": "x"} if i % 2 else '{"q": "x"}', "nothing found") for i in range(3)],
    )
    yield (
        "other events between",
        "gemini-cli",
        "Equal calls with thoughts and events between them.",
        [event for i in range(5) for event in (look, says(f"thought {i}"))],
    )
    yield (
        "same write again",
        "openclaw",
        "The same content is written to the same file again and again.",
        [call("write_file", {"path": "n.md", "text": "hi"}, "wrote 2 bytes")] * 4,
    )
    yield (
        "call ids differ",
        "stella",
        "The provider gives every call its own id.",
        [call("search", {"q": "rust"}, "3 hits", attributes={"call_id": f"call-{i}"}) for i in range(3)],
    )
    yield (
        "task progress in arguments",
        "cline",
        "Only a note on progress in the arguments changes.",
        [call("list_files", {"path": ".", "task_progress": f"{i} of 9 done"}, "a b c") for i in range(4)],
    )
    yield (
        "request id in arguments",
        "openclaw",
        "Only a request id in the arguments changes.",
        [call("lookup_order", {"order": 7, "request_id": f"r-{i}"}, {"state": "open"}) for i in range(4)],
    )
    yield (
        "board unchanged",
        "qwen-code",
        "The task board is listed five times and does not change.",
        [call("task_list", {"owner": "me"}, "#4 open")] * 5,
    )
    # Results that only look new.
    yield (
        "new pid in every result",
        "openclaw",
        "A command's result holds another pid and duration each time.",
        [
            call("exec", {"command": "api datasources"}, {"out": "loki", "durationMs": 90 + i, "pid": 400 + i})
            for i in range(6)
        ],
    )
    yield (
        "new session in the text",
        "openclaw",
        "A running command names its session and pid in the text.",
        [call("exec", {"command": "journalctl"}, f"Still running (session s-{i}, pid {900 + i})") for i in range(6)],
    )
    yield (
        "execution count",
        "hermes-agent",
        "A code cell prints the same under a rising execution count.",
        [
            call(
                "execute_code",
                {"code": "print(1)"},
                f'{{"output": "1", "duration_seconds": {i / 9}, "kernel": {{"execution_count": {i}}}}}',
            )
            for i in range(5)
        ],
    )
    yield (
        "message ids",
        "openclaw",
        "The same message is sent over and over; each gets an id.",
        [
            call("message", {"action": "send", "to": "ops", "text": "ping"}, {"ok": True, "messageId": f"m{i}"})
            for i in range(6)
        ],
    )
    yield (
        "ids in nested text",
        "openclaw",
        "The ids are in JSON inside a text of the result.",
        [
            call("telegram", {"to": 1, "text": "hi"}, {"content": [{"text": f'{{"ok": true, "messageId": "m{i}"}}'}]})
            for i in range(6)
        ],
    )
    yield (
        "tally in the text",
        "stella",
        "The tool itself counts in a footer how often the file was read.",
        [read("a.py", f"x = 1\n[read {i + 1}x this session]") for i in range(5)],
    )
    # Waiting that has become a loop.
    yield (
        "poll without progress",
        "openclaw",
        "Ten polls a few seconds apart with no new output.",
        [call("process", {"action": "poll", "id": 3}, "no new output")] * 10,
    )
    # Failures.
    yield (
        "same failure",
        "OpenHands",
        "The same command fails three times with the same words.",
        [fails("bash", {"command": "foo --bar"}, "foo: command not found")] * 3,
    )
    yield (
        "same call, new errors",
        "OpenHands",
        "The same command fails, each time with another error.",
        [fails("bash", {"command": "deploy"}, error) for error in ("not found", "still not found", "bad gateway")],
    )
    yield (
        "failure, results hashed",
        "hermes-agent",
        "The same call fails; the producer sends hashes only.",
        [{"kind": "tool", "tool": "web_search", "args_hash": "9f", "result_hash": "e1", "status": "error"}] * 4,
    )
    yield (
        "failure after an edit once",
        "hermes-agent",
        "One edit, then the red tests are run again unchanged.",
        [
            *[red] * 2,
            edit("a.py", "y"),
            *[red] * 4,
        ],
    )
    yield (
        "unknown tool",
        "openclaw",
        "A tool that does not exist is called with ever new arguments.",
        [fails("exec", {"command": f"try {i}"}, "tool exec not found") for i in range(20)],
    )
    yield (
        "one error for all",
        "hermes-agent",
        "Messages to ever new people fail in the same way.",
        [fails("send_message", {"to": f"user {i}"}, {"error": f"no route to user {i}"}) for i in range(8)],
    )
    yield (
        "error differs in a number",
        "our own",
        "The error names another line and path each time.",
        [fails("apply_patch", {"patch": f"p{i}"}, f"hunk {i} failed at /src/a{i}.py:{i * 7}") for i in range(7)],
    )
    yield (
        "cascade of errors",
        "cline",
        "Whatever tool is called, it fails.",
        [
            fails(tool, {"n": i}, f"{tool} broke down: {i}")
            for i, tool in enumerate(("read_file", "search_docs", "list_dir", "fetch_url", "read_file", "edit_file"))
        ],
    )
    # Cycles.
    yield (
        "to and fro",
        "OpenHands",
        "A listing and a read in turn, three times, nothing changed.",
        [
            call("bash", {"command": "ls"}, "a.txt"),
            read("a.txt"),
        ]
        * 3,
    )
    yield (
        "read and failing edit",
        "stella",
        "Read, failing edit, read, failing edit, three times.",
        [
            look,
            failing_edit,
        ]
        * 3,
    )
    yield "read, edit, test", "stella", "Read, failing edit, red test: three laps.", [look, failing_edit, red] * 3
    yield "four in a circle", "stella", "Four calls in a circle, three laps.", [look, read("b"), failing_edit, red] * 3
    yield (
        "five in a circle",
        "gemini-cli",
        "Five calls in a circle, three laps.",
        [*(look, read("b"), read("c"), failing_edit, red)] * 3,
    )
    yield (
        "to and fro, no results",
        "qwen-code",
        "Two calls in turn, three laps, no results sent.",
        [
            call("tool_a", {"p": 1}),
            call("tool_b", {"p": 2}),
        ]
        * 3,
    )
    yield (
        "circle without results",
        "openfang",
        "Three calls in a circle, five laps, no results sent.",
        [call(name, {"p": 1}) for name in ("tool_a", "tool_b", "tool_c")] * 5,
    )
    yield (
        "two files over and over",
        "openclaw",
        "Two files are written in a fixed but uneven order.",
        [call("write_file", {"path": p, "text": "same"}, f"wrote {p}") for p in "abaab" * 6],
    )
    yield (
        "churn with probes",
        "openclaw",
        "Two calls in turn; now and then another one is tried.",
        [call("write_file", {"path": f"probe{i}" if i in (8, 19) else f"f{i % 2}"}, "written") for i in range(30)],
    )
    # The same call with other work between.
    yield (
        "back to the same red test",
        "stella",
        "The same red test with another file read in between.",
        [*(red, read("a"), red, read("b"), red)],
    )
    yield (
        "scattered repeats",
        "qwen-code",
        "One call comes back every second time, results unchanged.",
        [event for i in range(6) for event in (look, read(f"other{i % 3}"))],
    )
    yield (
        "parallel calls repeated",
        "OpenRouter",
        "The same three parallel reads, answer after answer.",
        rounds(*([read("a"), read("b"), read("c")] for _ in range(3))),
    )
    yield (
        "parallel calls, other order",
        "OpenRouter",
        "The same parallel reads in another order each time.",
        rounds(
            [read("a"), read("b"), read("c")],
            [read("c"), read("a"), read("b")],
            [read("b"), read("c"), read("a")],
        ),
    )
    # One answer, nothing new.
    yield (
        "reshuffled pattern",
        "stella",
        "The search pattern is reshuffled; the answer stays the same.",
        [call("grep", {"pattern": f"a|b|{i}", "path": "deck.rs"}, "118: total") for i in range(6)],
    )
    yield (
        "no results for anything",
        "zeroclaw",
        "Seven queries, each in other words, find nothing.",
        [call("web_search", {"query": f"how to {i}"}, "no results found") for i in range(7)],
    )
    yield (
        "looking at the repository",
        "qwen-code",
        "Eight ways to look at a repository that has not changed.",
        [call("run_shell_command", {"command": f"git status -{i}"}, "nothing to commit") for i in range(8)],
    )
    yield (
        "nothing new for long",
        "illospace",
        "Known pages are visited again in a random order.",
        [read(f"page{i}") for i in (*range(7), *(3, 5, 1, 6, 0, 2, 4, 1, 3, 0, 6, 5, 2, 4, 0, 1, 5, 3, 2, 6, 4, 0, 3))],
    )
    yield (
        "second pass over a file",
        "stella",
        "A file is read part by part, and then all over again.",
        [
            *map(page, range(42)),
            *map(page, range(42)),
        ],
    )
    # Not calls of tools.
    yield "same message", "OpenHands", "The agent says the same three times and does nothing.", [says("I am done.")] * 3
    yield (
        "same message to another",
        "autogen",
        "An agent sends another one the same words three times.",
        [{"kind": "message", "to_agent_id": "reviewer", "args": "Thank you!"}] * 3,
    )
    yield "cut off again", "batuta", "Five answers in a row run into the limit of output tokens.", cut(5)
    yield "compacted again", "OpenHands", "The context is compacted over and over with nothing done.", [COMPACTED] * 10
    yield (
        "compacted, tried, compacted",
        "claude-code",
        "Compaction, a model call, compaction, all night.",
        [event for i in range(6) for event in (COMPACTED, says(f"summary {i}"))],
    )
    yield (
        "refused without backing off",
        "OpenSwarm",
        "A refused call is sent again every two seconds.",
        paced(refused(20), 2),
    )
    yield (
        "equal steps without hashes",
        "our own",
        "No hashes; the context grows by the same amount each call.",
        [{"kind": "llm", "input_tokens": 5000 + 800 * i, "output_tokens": 120} for i in range(10)],
    )


def _healthy() -> Iterable[_Told]:
    look = read("conf/app.toml", "debug = false")
    red = checks("2 failed")
    poll = {"action": "poll", "id": 3}

    yield "two equal calls", "stella", "The same file is read twice.", [look] * 2
    yield "four calls, no results", "gemini-cli", "Four equal calls without results.", [call("find", {"n": "x"})] * 4
    yield (
        "three files three times",
        "gemini-cli",
        "Three calls in turn, three times, no results sent.",
        [call("find", {"n": name}) for name in "abc"] * 3,
    )
    yield (
        "results not sent",
        "stella",
        "One tool with ever new arguments, no results sent.",
        [call("grep", {"pattern": str(i)}) for i in range(12)],
    )
    yield (
        "different commands",
        "ANOLISA",
        "Many different commands, each with its own output.",
        [call("terminal", {"command": f"step {i}"}, f"output {i}") for i in range(30)],
    )
    yield (
        "a hundred different calls",
        "qwen-code",
        "A long run that always does something else.",
        [call("fetch_page", {"id": i}, f"page {i}") for i in range(150)],
    )
    yield (
        "key with the same value",
        "stella",
        "The same tool on different paths that hold the same.",
        [read(path, "# generated") for path in ("a", "b", "c", "d")],
    )
    yield (
        "three in eight calls",
        "zeroclaw",
        "A call comes back a third time after five others.",
        [
            *[look] * 2,
            *(read(f"f{i}") for i in range(5)),
            look,
        ],
    )
    yield (
        "two laps",
        "stella",
        "Read and failing edit, twice.",
        [look, fails("edit_file", {"old": "x"}, "no match")] * 2,
    )
    yield (
        "alternation broken",
        "openclaw",
        "Two calls in turn, then something else.",
        [*(look, read("b"), look, call("write_file", {"path": "out"}, "ok"), read("b"))],
    )
    yield (
        "not stuck",
        "OpenHands",
        "A listing, a read, another listing, and these again once.",
        [
            *(call("bash", {"command": "ls"}, "f1 f2"), read("f1")),
            *[call("bash", {"command": "pwd"}, "/home"), read("f2")] * 2,
        ],
    )
    # Progress.
    yield (
        "polling that moves",
        "stella",
        "The same handle is polled and prints something new each time.",
        [call("read_output", {"handle": 5}, f"[{i} s] compiling") for i in range(20)],
    )
    yield (
        "poll and sleep in turn",
        "stella",
        "Polls that bring news, with a sleep between them.",
        [
            event
            for i in range(12)
            for event in (call("read_output", {"handle": 5}, f"line {i}"), call("bash", {"cmd": "sleep 5"}, ""))
        ],
    )
    yield (
        "percentages",
        "cline",
        "A job is asked how far it is, and it gets further.",
        [call("job_status", {"job": 9}, f"{i * 7}%") for i in range(15)],
    )
    yield (
        "board changes",
        "qwen-code",
        "The task board is listed again and again; others change it.",
        [call("task_list", {"owner": "me"}, f"{i} open, {20 - i} done") for i in range(20)],
    )
    yield (
        "both sides progress",
        "openclaw",
        "Two calls in turn whose results keep changing.",
        [event for i in range(10) for event in (read("a", f"rev {i}"), call("list_dir", {"dir": "."}, f"{i} files"))],
    )
    yield (
        "fewer failures",
        "stella",
        "The same test fails less and less, with reads in between.",
        [event for i in range(4) for event in (checks(f"{4 - i} failed"), read(f"src/{i}.rs"))],
    )
    yield (
        "laps that improve",
        "stella",
        "Read, edit, test in a circle; the tests get better.",
        [
            event
            for i in range(4)
            for event in (look, fails("edit_file", {"old": "x"}, "no match"), checks(f"{9 - i} failed"))
        ],
    )
    yield (
        "the file moves",
        "stella",
        "An edit misses because somebody else changes the file; it is read again.",
        [
            event
            for i in range(4)
            for event in (read("a.rs", f"v{i}"), fails("edit_file", {"old": "x"}, f"file changed, now v{i + 1}"))
        ],
    )
    yield (
        "the clock",
        "openclaw",
        "A command prints the time, again and again.",
        [call("exec", {"command": "date"}, f"10:00:{i:02}") for i in range(12)],
    )
    yield (
        "code that prints anew",
        "hermes-agent",
        "The same cell prints something else each time.",
        [call("execute_code", {"code": "next(it)"}, {"output": f"row {i}", "duration_seconds": 1.0}) for i in range(8)],
    )
    yield (
        "duration is the answer",
        "hermes-agent",
        "A job's status differs only in how long it has run.",
        [call("ci_job_status", {"job": "build"}, {"state": "running", "duration_seconds": 10 * i}) for i in range(14)],
    )
    yield (
        "reading new messages",
        "openclaw",
        "A channel is read; each time the newest message is another.",
        [
            call("message", {"action": "read", "channel": "ops"}, {"ok": True, "messageId": f"m{i}", "ts": i})
            for i in range(10)
        ],
    )
    yield (
        "each channel made",
        "openclaw",
        "Channels are created; the answer holds each one's id.",
        [call("message", {"action": "channel-create", "name": f"c{i}"}, {"ok": True, "id": i}) for i in range(10)],
    )
    # Edit and test.
    yield (
        "edit, test, edit, test",
        "hermes-agent",
        "The same red test after each of many different edits.",
        [event for i in range(12) for event in (red, edit("x.py", f"try {i}"))],
    )
    yield (
        "patch by command",
        "our own",
        "The same red test after each change by a command that prints nothing.",
        [event for i in range(8) for event in (red, call("bash", {"command": f"sed -i s/{i}/x/ a.py"}, ""))],
    )
    yield (
        "edit, read, edit, read",
        "our own",
        "A file is edited in many places and read after each.",
        [event for i in range(10) for event in (edit("a.py", f"line {i}"), read("a.py", f"version {i}"))],
    )
    yield (
        "two reds, an edit, two reds",
        "hermes-agent",
        "Two red runs, an edit, two red runs, an edit.",
        [*(red, red, edit("a.py", "1"), red, red, edit("a.py", "2"), red)],
    )
    yield (
        "retry after an action",
        "hermes-agent",
        "A page times out, something else is clicked, again.",
        [
            event
            for i in range(6)
            for event in (
                fails("browser_navigate", {"url": "app"}, "timeout"),
                call("browser_click", {"n": i}, f"at {i}"),
            )
        ],
    )
    # Batches.
    yield (
        "batch of writes",
        "openclaw",
        "Thirty files are written; all answers are the same.",
        [call("write_file", {"path": f"f{i}", "text": "same"}, "write complete") for i in range(30)],
    )
    yield (
        "batch in two passes",
        "openclaw",
        "Fifteen files are written, and written once more.",
        [call("write_file", {"path": f"f{i % 15}"}, f"wrote f{i % 15}") for i in range(30)],
    )
    yield (
        "batch by an unknown tool",
        "our own",
        "A tool with a name of its own handles item after item.",
        [call("frobnicate", {"item": i}, "ok") for i in range(30)],
    )
    yield (
        "components moved",
        "gemini-cli",
        "Ten components are moved, one after the other.",
        [event for i in range(10) for event in (read(f"c{i}.tsx"), call("write_file", {"path": f"x/c{i}.tsx"}, "ok"))],
    )
    yield (
        "messages to many",
        "openclaw",
        "Twenty lines are sent to one channel; each is another.",
        [
            call("message", {"action": "send", "to": "ops", "text": f"line {i}"}, {"ok": True, "messageId": f"m{i}"})
            for i in range(20)
        ],
    )
    yield (
        "commits",
        "qwen-code",
        "Each command stages, looks and commits another file.",
        [
            call("run_shell_command", {"command": f"git add {i} && git commit -m {i}"}, f"[main {i}abc] {i}")
            for i in range(10)
        ],
    )
    yield (
        "sweep of failing greps",
        "hermes-agent",
        "Twelve different searches by command find nothing.",
        [fails("terminal", {"command": f"grep -q word{i} notes"}, {"output": "", "exit_code": 1}) for i in range(12)],
    )
    yield (
        "searches without results",
        "stella",
        "Five queries find nothing; then another tool is used.",
        [
            *(call("web_search", {"query": f"q{i}"}, "no results found") for i in range(5)),
            read("notes"),
        ],
    )
    yield (
        "searches that find nothing at all",
        "our own",
        "Eight searches with empty answers.",
        [call("grep", {"pattern": f"p{i}"}, []) for i in range(8)],
    )
    # Reading.
    yield (
        "paging through",
        "stella",
        "A large file is read straight through.",
        [read("big.rs", f"lines {i}", offset=i * 100, limit=100) for i in range(40)],
    )
    yield (
        "two files paged in turn",
        "stella",
        "Two large files are read side by side.",
        [read(path, f"{path} {i}", offset=i * 100) for i in range(30) for path in ("alpha", "beta")],
    )
    yield (
        "another limit",
        "VTCode",
        "The same file with another limit is another read.",
        [read("a.py", f"{limit} lines", limit=limit) for limit in (50, 100, 200, 400)],
    )
    yield (
        "opening exploration",
        "qwen-code",
        "Five parallel reads at the start.",
        rounds([read(f"src/{i}.ts") for i in range(5)]),
    )
    # Rounds and delivery.
    yield "one round of equal calls", "OpenRouter", "Ten equal calls in one answer of the model.", rounds([look] * 10)
    yield (
        "parallel and different",
        "OpenRouter",
        "Each answer asks for three calls, always other ones.",
        rounds(*([read(f"{i}a"), read(f"{i}b"), read(f"{i}c")] for i in range(6))),
    )
    yield (
        "delivered twice",
        "qwen-code",
        "Four calls without results, and all of them delivered again.",
        [call("find", {"n": "x"}, event_id=f"delivered {i % 4}") for i in range(8)],
    )
    yield (
        "other runs",
        "openclaw",
        "The same call once in each of many runs.",
        [{**look, "run_id": f"run {i}"} for i in range(12)],
    )
    # Time.
    yield (
        "polling every five minutes",
        "OpenHands",
        "A job is looked at every five minutes; nothing has changed.",
        paced([call("bash", {"command": "squeue"}, "1 job running")] * 6, 300),
    )
    yield (
        "waiting for a build",
        "openfang",
        "Eight polls in a minute, still running.",
        paced([call("get_build_status", {"id": 7}, "running")] * 8, 8),
    )
    yield (
        "unchanged poll",
        "hermes-agent",
        "Six polls of a process that says it is running.",
        [call("process_manage", poll, "running")] * 6,
    )
    # Not calls of tools.
    yield "said twice", "OpenHands", "The same words twice, then work.", [says("Hi."), says("Hi."), look, says("Hi.")]
    yield (
        "words before each call",
        "our own",
        "The agent says the same before each different call.",
        [event for i in range(6) for event in (says("Next."), read(f"n{i}"))],
    )
    yield "cut off once", "batuta", "One long answer is cut off and continued.", [*cut(2), *cut(1, "stop"), *cut(2)]
    yield (
        "compaction with work",
        "OpenHands",
        "Compactions with new work between them.",
        [
            event
            for i in range(10)
            for event in (COMPACTED, call("bash", {"command": f"ls {i}"}, "f1 f2"), read(f"g{i}"))
        ],
    )
    yield (
        "backing off",
        "OpenSwarm",
        "A refused call is tried again after ever longer pauses.",
        timed(refused(12), [2.0**i for i in range(12)]),
    )
    yield (
        "outage for many",
        "OpenSwarm",
        "The provider is down for ten runs at once.",
        [{**event, "run_id": f"run {i % 10}"} for i, event in enumerate(refused(40))],
    )
    yield (
        "metered only",
        "our own",
        "No hashes; the context grows by what the work needs.",
        [{"kind": "llm", "input_tokens": 4000 + 37 * i * i, "output_tokens": 60 + i * 53 % 400} for i in range(40)],
    )


def cases() -> tuple[Case, ...]:
    """All of them; events have ids, times, one agent, and a run and root run of the case's name."""
    found = []
    for number, (name, after, situation, loop, events) in enumerate(_cases()):
        begin = START + 3600.0 * number
        done = []
        for i, event in enumerate(events):
            at = event.get("ts", START + _GAP_S * i) - START + begin
            run = f"{name}/{event['run_id']}" if "run_id" in event else name
            event_id = f"{name}/{event.get('event_id', i)}"
            done.append(
                {**event, "event_id": event_id, "ts": at, "agent_id": "agent", "run_id": run, "root_run_id": name}
            )
        found.append(Case(name, after, situation, loop, tuple(done)))
    return tuple(found)
