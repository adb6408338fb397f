"""An agent that reports what it uses, and gets stuck: it makes the same failing call eight times.

    python examples/send_events.py [HOST:PORT]

`burnfuse worker` reports it after the fourth failure, as a retry loop.
"""

from __future__ import annotations

import sys
import time
import uuid

from burnfuse.track import Tracker

PAUSE_S = 1.0


def ask_model(tracker: Tracker, run_id: str, step: int) -> str:
    """Stands for a call of a model; returns the id of its answer, which the tool calls it asks for share."""
    round_id = f"{run_id}/{step}"
    tracker.event(
        run_id=run_id,
        kind="llm",
        provider="anthropic",
        model="claude-sonnet-4-5",
        input_tokens=5200 + 220 * step,
        cached_input_tokens=5120,
        output_tokens=90,
        result=f"Step {step}: let me look the payment up.",  # hashed here; the text is not sent
        round_id=round_id,
        finish_reason="tool_calls",
    )
    return round_id


def match_payment(tracker: Tracker, run_id: str, round_id: str) -> None:
    """Stands for a tool that fails."""
    tracker.event(
        run_id=run_id,
        kind="tool",
        tool="match_payment",
        args={"invoice": "INV-77", "currency": "EUR"},
        result="no payment with this reference",
        status="error",
        error_type="not_found",
        round_id=round_id,
    )


def main(broker: str = "localhost:9092") -> int:
    """Runs the agent; returns how many of its events Kafka has."""
    run_id = f"invoice-{uuid.uuid4().hex[:6]}"
    with Tracker(broker, agent_id="invoice-bot", team="finance") as tracker:
        for step in range(8):
            match_payment(tracker, run_id, ask_model(tracker, run_id, step))
            time.sleep(PAUSE_S)
    return tracker.sent


if __name__ == "__main__":
    sys.stdout.write(f"{main(*sys.argv[1:2])} events sent\n")
