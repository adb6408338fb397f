"""Random streams of usage events in which every detector has something to find."""

from __future__ import annotations

import random
from typing import Any

Event = dict[str, Any]


def random_stream(seed: int, events: int = 400) -> list[Event]:
    """Native events of a few agents in trees: loops, error storms, bursts, spawns, ping-pong.

    Times repeat, go back by up to a minute, and jump; some ids come twice; some fields are absent. Every
    id carries the seed, so that streams can be mixed.
    """
    rng = random.Random(seed)
    agents = [f"s{seed}-agent-{i}" for i in range(rng.randint(2, 7))]
    roots = [f"s{seed}-task-{i}" for i in range(rng.randint(1, 4))]
    ts, out = 1_700_000_000.0 + rng.random() * 1e6, []
    mode = {agent: rng.choice(["loop", "cycle", "mixed", "failing", "chat", "burst"]) for agent in agents}
    runs = 0
    while len(out) < events:
        ts += rng.choice([0, 0, 0, 1, 2, 5, rng.random() * 30, 700 if rng.random() < 0.02 else 0])
        agent, root = rng.choice(agents), rng.choice(roots)
        event: Event = {
            "event_id": f"s{seed}-e{len(out)}",
            "ts": round(max(0.0, ts - (rng.random() * 60 if rng.random() < 0.1 else 0)), 3),
            "agent_id": agent,
            "run_id": f"{root}/{agent}" if rng.random() < 0.9 else f"{root}/{agent}/{rng.randint(0, 3)}",
            "root_run_id": root,
        }
        kind = rng.random()
        step = len(out)
        if mode[agent] == "chat" and kind < 0.7:
            event |= {"kind": "message", "to_agent_id": rng.choice(agents[:2]), "args_hash": f"c{rng.randint(0, 3)}"}
        elif mode[agent] == "burst" and kind < 0.7:
            event |= {
                "kind": "llm",
                "input_tokens": int(10 ** rng.uniform(2, 7)),
                "output_tokens": rng.randint(1, 4000),
                "model": "gpt-4o",
            }
        elif kind < 0.55:
            args = {"loop": 1, "failing": 1, "cycle": step % 3, "mixed": rng.randint(0, 5)}.get(mode[agent], step)
            event |= {"kind": "tool", "tool": "search", "args": {"q": args}}
            if rng.random() < 0.9:
                event["result"] = {"failing": f"error {rng.randint(0, 2)}", "mixed": rng.randint(0, 3)}.get(
                    mode[agent], "same"
                )
            if mode[agent] == "failing":
                event["status"] = "error"
        elif kind < 0.75:
            event |= {
                "kind": "llm",
                "input_tokens": rng.randint(100, 5000),
                "output_tokens": rng.randint(1, 500),
                "status": "error" if mode[agent] == "failing" else "ok",
                "result": rng.choice(["a", "b"]),
            }
        elif kind < 0.9:
            runs += 1
            event |= {"kind": "spawn", "to_run_id": f"{root}/child-{runs}", "to_agent_id": rng.choice(agents)}
            if runs > 1:
                event["run_id"] = f"{root}/child-{rng.randint(max(1, runs - 3), runs - 1)}"
        else:
            event |= {"kind": "outcome", "outcome": "done", "value": 1.0}
        out.append(event)
        if rng.random() < 0.02:
            out.append(dict(event))
    return out
