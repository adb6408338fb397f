"""The usage event as it travels on the wire: the one place that names its fields.

A usage event says what one operation of an AI agent used. It is a JSON object; absent means unknown,
never zero. `docs/events.md` explains the fields for people who produce them.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

MAX_NUMBER = 10**12
"""Any count or amount above this is taken for a mistake (a trillion tokens in one call)."""

MAX_ID_CHARS = 512
"""Longest accepted identifier. Ids are held in memory per entity, so they must be bounded."""

SEQUENCE_HEADER = "bf-seq"
"""Kafka header with a record's number in its producer's stream, 8 bytes, big endian: it tells the order of
records of the same millisecond on different partitions."""

REPLAY_HEADER = "bf-replay"
"""Kafka header of a record that `burnfuse dlq replay` has sent again: JSON, see `stream.ingest.replayed`."""

Kind = Literal["llm", "tool", "message", "spawn", "compaction", "outcome"]

Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_NUMBER)]
Amount = Annotated[float, msgspec.Meta(ge=0, le=MAX_NUMBER)]
Id = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_ID_CHARS)]
# Producers send "" for "none"; an optional text may be empty and then counts as absent.
Text = Annotated[str, msgspec.Meta(max_length=MAX_ID_CHARS)]


NOTHING_SENT = msgspec.Raw()
"""The very object that stands for arguments, results and attributes that did not come."""


class UsageEvent(msgspec.Struct, omit_defaults=True, gc=False, kw_only=True):
    """One operation of one agent, ended at `ts`.

    Units: tokens are counts, `cost_usd` and `value` are plain amounts, `latency_ms` is milliseconds,
    `ts` is RFC 3339 text, or seconds since 1970-01-01 UTC, or nanoseconds as an integer above 10^17.
    """

    agent_id: Id
    ts: str | int | float
    event_id: Text | None = None
    kind: Kind = "llm"

    tenant: Text | None = None
    team: Text | None = None
    user: Text | None = None

    run_id: Text | None = None
    root_run_id: Text | None = None
    parent_run_id: Text | None = None
    parent_agent_id: Text | None = None
    to_agent_id: Text | None = None
    to_run_id: Text | None = None

    provider: Text | None = None
    model: Text | None = None
    input_tokens: Count | None = None
    cached_input_tokens: Count | None = None
    cache_write_tokens: Count | None = None
    output_tokens: Count | None = None
    reasoning_tokens: Count | None = None
    cost_usd: Amount | None = None

    tool: Text | None = None
    # Raw keeps arguments and results as undecoded bytes: they are hashed on arrival and dropped.
    args: msgspec.Raw = NOTHING_SENT
    result: msgspec.Raw = NOTHING_SENT
    args_hash: Text | None = None
    result_hash: Text | None = None
    target_hash: Text | None = None

    status: Literal["ok", "error"] = "ok"
    error_type: Text | None = None
    http_status: Annotated[int, msgspec.Meta(ge=0, le=999)] | None = None
    latency_ms: Amount | None = None
    attempt: Count | None = None
    round_id: Text | None = None
    finish_reason: Text | None = None

    outcome: Text | None = None
    value: Amount | None = None
    attributes: msgspec.Raw = NOTHING_SENT
