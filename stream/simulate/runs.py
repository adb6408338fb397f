"""What one run of an agent writes down, by kind of agent.

Every behaviour is a function of a fresh `Run`; it moves the run's clock on and leaves events behind. Each
holds some of the healthy traffic that detectors are known to take for a fault; the docstrings name it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from random import Random
from typing import Any

from stream.simulate import figures
from stream.simulate.company import Agent, Kind
from stream.simulate.figures import Spread

Event = dict[str, Any]


def digest(value: object) -> str:
    """16 hex digits of a JSON value, equal for equal values."""
    text = json.dumps(value, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


class Run:
    """One execution of one agent: a clock, a context, and the events so far.

    A run started by another shares the list of events of the run at the top, `events`; `at` is in epoch
    seconds, `context` in tokens.
    """

    def __init__(
        self,
        agent: Agent,
        run_id: str,
        at: float,
        rng: Random,
        colleagues: Mapping[str, Agent],
        parent: Run | None = None,
    ) -> None:
        self.agent = agent
        self.id = run_id
        self.at = at
        self.rng = rng
        self.colleagues = colleagues
        self.context = 0.0
        self.events: list[Event] = parent.events if parent else []
        self.root_id: str = parent.root_id if parent else run_id
        self._identity: Event = {
            "tenant": "brightside",
            "team": agent.team,
            "agent_id": agent.id,
            "run_id": run_id,
            "root_run_id": self.root_id,
        }
        if parent:
            self._identity |= {"parent_run_id": parent.id, "parent_agent_id": parent.agent.id}
        self._written = 0
        self._prompt_cached = 0
        self._last_request = -math.inf

    def draw(self, spread: Spread) -> float:
        """One value of a measured spread."""
        return spread.draw(self.rng)

    def chance(self, share: float) -> bool:
        """True in this share of cases."""
        return self.rng.random() < share

    def wait(self, seconds: float) -> None:
        """Time passes."""
        self.at += seconds

    def think(self, output: float, *, seconds: float | None = None, asks: bool = False) -> str:
        """One request to the model, `output` tokens long; returns its round id.

        Args:
            seconds: how long it takes; by default half a second and 20 ms a token.
            asks: whether the model asks for tool calls.
        """
        rng, model = self.rng, self.agent.model
        # Each refusal comes as a short series of attempts, hence the share of requests is divided by two.
        if rng.random() < figures.RATE_LIMITED / 2:
            self._back_off()
        tokens_out = max(1, round(output))
        tokens_in = max(1, round(self.context))
        seconds = 0.5 + 0.02 * tokens_out if seconds is None else seconds
        self.wait(seconds)
        event: Event = {
            "provider": model.provider,
            "model": model.name,
            "input_tokens": tokens_in,
            "output_tokens": tokens_out,
        }
        if model.reasoning and tokens_out >= 20:
            event["reasoning_tokens"] = round(model.reasoning * tokens_out)
        if tokens_in >= figures.CACHE_MIN_TOKENS:
            warm = self.at - self._last_request <= figures.CACHE_SECONDS
            cached = min(self._prompt_cached, tokens_in) if warm else 0
            cached -= cached % figures.CACHE_STEP_TOKENS
            event["cached_input_tokens"] = cached
            if model.provider == "anthropic":
                event["cache_write_tokens"] = tokens_in - cached
            self._prompt_cached = tokens_in
        self._last_request = self.at
        self.context += tokens_out
        round_id = f"{self.id}/{self._written}"
        self._write(
            "llm",
            **event,
            **self._hashed("result", f"{round_id}: {tokens_out} tokens of text"),
            round_id=round_id,
            finish_reason="tool_calls" if asks else "stop",
            latency_ms=round(1000 * seconds, 1),
        )
        return round_id

    def call(
        self,
        tool: str,
        args: object,
        result: object,
        round_id: str,
        *,
        target: str | None = None,
        error: str | None = None,
        seconds: float = 0.3,
    ) -> None:
        """One tool call that takes `seconds`; a failing one names its error."""
        self.wait(seconds)
        event: Event = {"tool": tool, **self._hashed("args", args), **self._hashed("result", result)}
        if target is not None:
            event["target_hash"] = digest(target)
        if error is not None:
            event |= {"status": "error", "error_type": error}
        self._write("tool", **event, round_id=round_id, latency_ms=round(1000 * seconds, 1))

    def say(self, to: Run, text: str) -> None:
        """A message to another run."""
        self._write("message", to_agent_id=to.agent.id, to_run_id=to.id, **self._hashed("args", text))

    def spawn(self, name: str, number: int, round_id: str) -> Run:
        """Starts a run of another agent, one second later on its own clock."""
        child_id = f"{self.id}/{name}-{number}"
        task = self._hashed("args", f"part {number} of {self.id}")
        self._write("spawn", to_agent_id=name, to_run_id=child_id, **task, round_id=round_id)
        return self.beside(name, child_id, after=1.0)

    def beside(self, name: str, run_id: str, after: float) -> Run:
        """A run of another agent under this one, `after` seconds from now."""
        return Run(self.colleagues[name], run_id, self.at + after, self.rng, self.colleagues, parent=self)

    def compact(self) -> None:
        """The context is summarised to a third."""
        self.wait(8.0)
        self._write("compaction", input_tokens=round(self.context), output_tokens=round(self.context / 12))
        self.context /= 3
        self._prompt_cached = 0

    def finish(self, share: float = 1.0) -> None:
        """In this share of cases the run comes to something of value."""
        if self.agent.outcome and self.chance(share):
            self.wait(0.2)
            self._write("outcome", outcome=self.agent.outcome, value=1.0)

    def _back_off(self) -> None:
        """The provider refuses for the rate; each try waits about twice as long as the one before."""
        for attempt in range(1, self.rng.randint(1, 3) + 1):
            self._write(
                "llm",
                provider=self.agent.model.provider,
                model=self.agent.model.name,
                status="error",
                error_type="rate_limit_exceeded",
                http_status=429,
                attempt=attempt,
            )
            self.wait(2.0**attempt * self.rng.uniform(0.9, 1.2))

    def _hashed(self, name: str, value: object) -> Event:
        return {name: value} if self.agent.plain else {f"{name}_hash": digest(value)}

    def _write(self, kind: str, **fields: object) -> None:
        event_id = f"{self.id}#{self._written}"
        self.events.append({"event_id": event_id, "ts": round(self.at, 3), "kind": kind, **self._identity, **fields})
        self._written += 1


def service(run: Run) -> None:
    """A conversation with a customer: model rounds, about half of them with a tool call, then a wait."""
    # The instructions' size is what is left of a request's tokens (Azure conv) once the conversation's
    # own growth (tau-bench) is taken off.
    run.context = run.draw(Spread(60, 130, 1500))
    for step in range(max(2, round(run.draw(figures.ROUNDS)))):
        if not run.chance(figures.TOOL_ROUNDS):
            run.context += run.draw(figures.USER_TOKENS)
            run.think(run.draw(figures.ANSWER_TOKENS))
            run.wait(run.draw(figures.USER_SECONDS))
            continue
        round_id = run.think(run.rng.uniform(15, 40), asks=True)
        tool = run.rng.choice(run.agent.tools)
        args = {"id": run.rng.randrange(10**6), "step": step}
        if run.chance(figures.TOOL_ERRORS):
            run.call(tool, args, f"not found: {args['id']}", round_id, error="not_found")
        else:
            run.call(tool, args, {"record": args["id"], "rev": run.rng.randrange(50)}, round_id)
        run.context += run.draw(figures.TOOL_RESULT_TOKENS)
    run.finish(0.8)


def documents(run: Run) -> None:
    """Somebody pastes a document and asks about it."""
    run.context = run.draw(figures.DOCUMENT_TOKENS)
    for _ in range(max(1, round(run.draw(figures.DOCUMENT_ROUNDS)))):
        run.think(run.draw(figures.DOCUMENT_ANSWER_TOKENS))
        run.wait(run.draw(figures.USER_SECONDS))
        run.context += run.draw(figures.FOLLOW_UP_TOKENS)
    run.finish(0.6)


def coding(run: Run) -> None:
    """A change to a code base: search, read, edit, test, with a growing context.

    Looks like a loop, is work: the same test command after every edit, with another result each time;
    a file read page by page; several reads asked for in one round; a file read again unchanged.
    """
    rng = run.rng
    run.context = run.draw(figures.CODING_FIRST_TOKENS)
    files = [f"src/module_{rng.randrange(10**4)}.py" for _ in range(6)]
    suite = rng.choice(("pytest -x", "npm test", "mvn -q test", "go test ./..."))
    purposes = [p for p in figures.CODING_MIX if p != "test"]
    weights = [figures.CODING_MIX[p] for p in purposes]
    left = max(3, round(run.draw(figures.CODING_CALLS)))
    purpose, failures, edits = "search", 0, 0
    while left > 0:
        took = run.draw(figures.CODING_SECONDS)
        round_id = run.think(run.draw(figures.CODING_OUTPUT_TOKENS), seconds=0.7 * took, asks=True)
        if purpose == "read" and run.chance(0.25):
            left -= _page_through(run, rng.choice(files), min(left, rng.randint(3, 8)), round_id, edits)
            failures = 0
        elif purpose == "read" and run.chance(0.25):
            for path in rng.sample(files, min(left, 3)):
                run.call("read_file", {"path": path}, {"of": path, "edits": edits}, round_id, target=path)
                left -= 1
            failures = 0
        else:
            fails = failures < figures.ERRORS_IN_A_ROW and run.chance(figures.CODING_ERRORS[purpose])
            failures = failures + 1 if fails else 0
            edits += purpose == "edit"
            path = rng.choice(files)
            fresh = rng.randrange(10**6)
            tool, args, result = {
                "edit": ("edit", {"path": path, "patch": fresh}, "applied"),
                "read": ("read_file", {"path": path}, {"of": path, "edits": edits}),
                "search": ("grep", {"pattern": f"symbol_{fresh}"}, {"hits": fresh}),
                "shell": ("bash", {"command": f"git show {fresh}"}, {"commit": fresh}),
                "test": ("bash", {"command": suite}, {"edits": edits, "failing": rng.randrange(1, 9) if fails else 0}),
            }[purpose]
            run.call(
                tool,
                args,
                # A failing test has a result of its own; whatever else fails has its error for a result.
                f"{purpose} failed" if fails and purpose != "test" else result,
                round_id,
                target=path if purpose in ("edit", "read") else None,
                error={"search": "no_match", "test": "exit_1"}.get(purpose, "invalid_input") if fails else None,
                seconds=0.3 * took,
            )
            left -= 1
        run.context += run.draw(figures.CODING_GROWTH_TOKENS)
        if run.context > figures.COMPACT_TOKENS:
            run.compact()
        tests = purpose == "edit" and run.chance(figures.TEST_AFTER_EDIT)
        purpose = "test" if tests else rng.choices(purposes, weights)[0]
    run.finish(0.6)


def _page_through(run: Run, path: str, pages: int, round_id: str, edits: int) -> int:
    """Reads a file in pages, the first in this round, each other in one of its own; returns how many."""
    for page in range(pages):
        if page:
            run.context += run.draw(figures.CODING_GROWTH_TOKENS)
            output = run.draw(figures.CODING_OUTPUT_TOKENS)
            round_id = run.think(output, seconds=run.rng.uniform(1.5, 3.0), asks=True)
        seen = {"of": path, "page": page, "edits": edits}
        run.call("read_file", {"path": path, "offset": 200 * page}, seen, round_id, target=path)
    return pages


def batch(run: Run) -> None:
    """The nightly job. Looks like stagnation, is work: a few hundred writes, all answered "ok"."""
    rng = run.rng
    tool = run.agent.tools[0]
    row = 0
    for _ in range(rng.randint(*figures.BATCH_ROUNDS)):
        run.context = run.draw(figures.REQUEST_TOKENS)
        round_id = run.think(run.draw(figures.ANSWER_TOKENS), asks=True)
        for _ in range(rng.randint(4, 8)):
            run.call(tool, {"run": run.id, "row": row}, "ok", round_id, seconds=rng.uniform(0.05, 0.3))
            row += 1
        run.wait(rng.uniform(3, 12))
    run.finish()


def sync(run: Run) -> None:
    """The hourly copy of a table. Looks like a sweep, is work: pages of one source, each written away."""
    rng = run.rng
    read, write = run.agent.tools
    source = f"https://source.example/{run.agent.id}"
    for page in range(rng.randint(4, 12)):
        run.context = run.draw(figures.REQUEST_TOKENS)
        round_id = run.think(rng.uniform(20, 60), asks=True)
        args = {"source": source, "cursor": f"{run.id}:{page}"}
        if run.chance(figures.TOOL_ERRORS):
            run.call(read, args, "timeout", round_id, target=source, error="timeout", seconds=5.0)
            run.wait(rng.uniform(4, 8))
            round_id = run.think(rng.uniform(20, 60), asks=True)
        run.call(read, args, {"rows": rng.getrandbits(40)}, round_id, target=source, seconds=rng.uniform(0.3, 2))
        round_id = run.think(rng.uniform(40, 120), asks=True)
        run.call(write, {"rows_of": args["cursor"]}, "ok", round_id, seconds=rng.uniform(0.3, 2))
        run.wait(rng.uniform(2, 20))
    run.finish()


def poller(run: Run) -> None:
    """Waits for something. Looks like a loop, is work: the same question every minute or so.

    A steady poller gets the same answer several times in a row, any other sees progress at each look.
    """
    rng = run.rng
    tool = run.agent.tools[0]
    args = {"id": f"job-{rng.randrange(10**6)}"}
    run.context = rng.uniform(300, 600)
    if run.agent.steady:
        states = ("queued", "running", "verifying")
        seen: list[Event] = [{"state": s} for s in states for _ in range(rng.randint(*figures.POLLS_UNCHANGED))]
    else:
        seen = [{"state": "running", "done": 3 * look} for look in range(rng.randint(10, 25))]
    for answer in [*seen, {"state": "done"}]:
        round_id = run.think(rng.uniform(15, 30), asks=True)
        run.call(tool, args, answer, round_id, target=args["id"])
        run.context += rng.uniform(20, 40)
        run.wait(rng.uniform(*figures.POLL_SECONDS))
    run.finish()


def work(run: Run) -> None:
    """A worker's part: a few rounds of parallel calls.

    Looks like a loop, is work: now and then the same query several times within one round.
    """
    rng = run.rng
    run.context = run.draw(figures.DOCUMENT_TOKENS) / 4
    for step in range(rng.randint(3, 7)):
        round_id = run.think(run.draw(figures.CODING_OUTPUT_TOKENS), asks=True)
        tool = rng.choice(run.agent.tools)
        same = run.chance(0.15)
        for branch in range(rng.randint(1, 4)):
            query = f"{run.id} step {step}" if same else f"{run.id} step {step} branch {branch}"
            failed = run.chance(figures.TOOL_ERRORS) and not same
            run.call(
                tool,
                {"query": query},
                "timeout" if failed else {"found": query},
                round_id,
                error="timeout" if failed else None,
                seconds=rng.uniform(0.2, 1.5),
            )
            run.context += run.draw(figures.TOOL_RESULT_TOKENS)
    run.think(run.draw(figures.PAIR_OUTPUT_TOKENS))


def planner(run: Run) -> None:
    """Splits a task among workers, collects their results.

    Looks like a spiral, is work: up to 8 children at once and messages up, down and across.
    """
    rng = run.rng
    run.context = run.draw(figures.PAIR_INPUT_TOKENS)
    round_id = run.think(run.draw(figures.PAIR_OUTPUT_TOKENS), asks=True)
    workers = []
    for number in range(max(2, min(8, round(run.draw(figures.TEAM_SIZE))))):
        run.wait(rng.uniform(0.2, 1.5))
        workers.append(run.spawn(rng.choice(run.agent.mates), number, round_id))
    for worker in workers:
        if run.chance(0.3):
            worker.say(rng.choice(workers), f"question of {worker.id}")
        work(worker)
        worker.say(run, f"result of {worker.id}")
        run.context += run.draw(figures.PAIR_OUTPUT_TOKENS)
    run.at = max(worker.at for worker in workers) + 1.0
    run.think(run.draw(figures.DOCUMENT_ANSWER_TOKENS))
    run.finish(0.9)


def pair(run: Run) -> None:
    """Two agents go to and fro over one piece of work.

    Looks like a chatty spiral, is work: every message is new, and every few messages something is made.
    """
    rng = run.rng
    other = run.beside(run.agent.mates[0], f"{run.id}/{run.agent.mates[0]}", after=0.0)
    speaker, listener = run, other
    for turn in range(max(4, round(run.draw(figures.PAIR_MESSAGES)))):
        speaker.at = max(speaker.at, listener.at)
        speaker.context = run.draw(figures.PAIR_INPUT_TOKENS)
        makes = turn % 3 == 0
        round_id = speaker.think(run.draw(figures.PAIR_OUTPUT_TOKENS), asks=makes)
        if makes:
            args = {"run": run.id, "version": turn}
            speaker.call(speaker.agent.tools[0], args, {"version": turn, "notes": rng.randrange(10**6)}, round_id)
        speaker.wait(0.6 * run.draw(figures.MESSAGE_SECONDS))
        speaker.say(listener, f"turn {turn} of {run.id}")
        speaker, listener = listener, speaker
    run.at = max(run.at, other.at)
    run.finish(0.9)


BEHAVIOURS: Mapping[Kind, Callable[[Run], None]] = {
    "service": service,
    "documents": documents,
    "coding": coding,
    "batch": batch,
    "sync": sync,
    "poller": poller,
    "planner": planner,
    "pair": pair,
}
"""How a run of each kind of agent goes; workers run within the runs that start them."""
