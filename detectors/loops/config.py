"""Settings of the retry loop detector; each says where its default comes from."""

from __future__ import annotations

from detectors.base import DetectorConfig, setting


class RetryLoopConfig(DetectorConfig):
    """The thresholds of the repetition rules."""

    repeat_warning: int = setting(
        3,
        unit="calls",
        why="Same call with the same result, one after the other: warning.",
        source="stella, cline, deer-flow, openfang and opencode: 3; OpenHands: 4",
        ge=2,
    )
    repeat_critical: int = setting(
        6,
        unit="calls",
        why="Same call with the same result, one after the other: critical.",
        source="hermes-agent halts at 5, cline at 5; one more, because we page people",
        ge=2,
    )
    blind_warning: int = setting(
        5,
        unit="calls",
        why="Same call, one after the other, when the producer sends no results: warning.",
        source="gemini-cli and qwen-code, which do not look at results: 5",
        ge=2,
    )
    blind_critical: int = setting(
        8,
        unit="calls",
        why="Same call, one after the other, when the producer sends no results: critical.",
        source="three more than the warning, as with results",
        ge=2,
    )
    poll_warning: int = setting(
        10,
        unit="calls",
        why="Same call of a tool that waits for something, with the same result: warning.",
        source="openclaw: known pollers get 10",
        ge=2,
    )
    poll_critical: int = setting(
        20,
        unit="calls",
        why="Same call of a tool that waits for something, with the same result: critical.",
        source="openclaw: known pollers get 20",
        ge=2,
    )
    laps_warning: int = setting(
        3,
        unit="laps",
        why="Laps of a cycle of 2 to 5 calls with equal results: warning.",
        source="OpenHands (period 2), stella, hermes-agent: 3 laps",
        ge=2,
    )
    laps_critical: int = setting(
        5,
        unit="laps",
        why="Laps of a cycle of 2 to 5 calls with equal results: critical.",
        source="hermes-agent halts at 5 laps; gemini-cli 5 laps",
        ge=2,
    )
    blind_laps: int = setting(
        1,
        unit="laps",
        why="Added for cycles of 3 and more calls when the producer sends no results.",
        source="three files looked at three times is healthy in gemini-cli's and qwen-code's tests",
        ge=0,
    )
    poll_laps: int = setting(
        6,
        unit="laps",
        why="Added for cycles with a call that waits for something.",
        source="openfang: three times the thresholds for polling",
        ge=0,
    )
    again_warning: int = setting(
        3,
        unit="calls",
        why="Same call with the same result, with fewer new results than repeats in between: warning.",
        source="stella: 3 occurrences with other work between them",
        ge=2,
    )
    sparse_warning: int = setting(
        5,
        unit="calls",
        why="Same call with the same result within 32 calls, whatever is in between: warning.",
        source="between stella's 3 and qwen-code's 6; three in eight calls is healthy in zeroclaw's tests",
        ge=2,
    )
    again_critical: int = setting(
        8,
        unit="calls",
        why="Same call with the same result within 32 calls, whatever is in between: critical.",
        source="two more than qwen-code's 6",
        ge=2,
    )
    failing_warning: int = setting(
        3,
        unit="calls",
        why="The same call failing again, whatever the error says: warning.",
        source="OpenHands: 3 errors, the text may differ",
        ge=2,
    )
    failing_critical: int = setting(
        6,
        unit="calls",
        why="The same call failing again, whatever the error says: critical.",
        source="hermes-agent blocks the same failing call at 5",
        ge=2,
    )
    same_error_warning: int = setting(
        6,
        unit="calls",
        why="One tool failing with the same kind of error though its arguments change: warning.",
        source="hermes-agent warns at 3 and halts at 8",
        ge=2,
    )
    same_error_critical: int = setting(
        10,
        unit="calls",
        why="One tool failing with the same kind of error though its arguments change: critical.",
        source="two more than hermes-agent's 8",
        ge=2,
    )
    errors_warning: int = setting(
        6,
        unit="calls",
        why="Calls of any tools failing one after the other: warning.",
        source="cline's mistake tracker: 6",
        ge=2,
    )
    errors_critical: int = setting(
        10,
        unit="calls",
        why="Calls of any tools failing one after the other: critical.",
        source="four more than the warning",
        ge=2,
    )
    shell_factor: int = setting(
        3,
        unit="times",
        why="So many failing commands of a shell count as one failing call: searching by trial is how shells are used.",
        source="hermes-agent never halts failing shell commands that differ; 12 are healthy in its tests",
        ge=1,
    )
    stagnant_warning: int = setting(
        6,
        unit="calls",
        why="One tool that changes nothing gives one answer to changing arguments: warning.",
        source="stella: 6; 5 are healthy in its tests",
        ge=2,
    )
    stagnant_critical: int = setting(
        10,
        unit="calls",
        why="One tool that changes nothing gives one answer to changing arguments: critical.",
        source="four more than the warning",
        ge=2,
    )
    shell_extra: int = setting(
        2,
        unit="calls",
        why="Added to `stagnant_*` for shells, which may have changed something.",
        source="qwen-code: 8 looks at the repository by shell",
        ge=0,
    )
    stale_warning: int = setting(
        20,
        unit="calls",
        why="Calls since the last result not seen before in this run: warning.",
        source="half of the longest stretch without a new target in illospace#533 (43 calls)",
        ge=2,
    )
    stale_critical: int = setting(
        40,
        unit="calls",
        why="Calls since the last result not seen before in this run: critical.",
        source="the longest stretch without a new target in illospace#533 (43 calls)",
        ge=2,
    )
    sweep_warning: int = setting(
        24,
        unit="calls",
        why="Reads of one target, a quarter of them of parts read before: warning; four times as many if none is.",
        source="stella: at most 24 reads of one file per turn; a straight read of 90 pages is healthy in its tests",
        ge=4,
    )
    sweep_critical: int = setting(
        60,
        unit="calls",
        why="Reads of one target, a quarter of them of parts read before: critical.",
        source="stella#4034: 164 reads of one file went unseen",
        ge=4,
    )
    said_warning: int = setting(
        3,
        unit="messages",
        why="The same text written again, nothing else in between: warning.",
        source="OpenHands: 3 equal messages",
        ge=2,
    )
    said_critical: int = setting(
        6,
        unit="messages",
        why="The same text written again, nothing else in between: critical.",
        source="OpenRouter doom loop stops at 6 identical texts",
        ge=2,
    )
    truncated_warning: int = setting(
        3,
        unit="answers",
        why="Answers cut off at the limit of output tokens, one after the other: warning.",
        source="two less than batuta's 5, which stops the run",
        ge=2,
    )
    truncated_critical: int = setting(
        5,
        unit="answers",
        why="Answers cut off at the limit of output tokens, one after the other: critical.",
        source="batuta: 5",
        ge=2,
    )
    compaction_warning: int = setting(
        3,
        unit="compactions",
        why="The context is compacted again before anything new was done: warning.",
        source="claude-code#22758: 27 compactions overnight; OpenHands' 10 is late at that price",
        ge=2,
    )
    compaction_critical: int = setting(
        5,
        unit="compactions",
        why="The context is compacted again before anything new was done: critical.",
        source="half of OpenHands' 10",
        ge=2,
    )
    storm_warning: float = setting(
        10.0,
        unit="errors",
        why="Failed model calls within the storm window: warning.",
        source="10 in 5 minutes cannot be a doubling backoff, which makes 9 attempts in 5 minutes",
        gt=1,
    )
    storm_critical: float = setting(
        30.0,
        unit="errors",
        why="Failed model calls within the storm window: critical.",
        source="three times the warning",
        gt=1,
    )
    storm_window_s: float = setting(
        300.0,
        unit="s",
        why="Window of the provider error storm (errors fade exponentially).",
        source="OpenSwarm#262: errors of the provider are an outage, told apart by rate",
        gt=0,
    )
    volume_warning: int = setting(
        1000,
        unit="calls",
        why="Tool calls of one run, whatever they are; never more than a warning.",
        source="qwen-code: hard limit of 1,000 calls per turn",
        ge=2,
    )
    weak_warning: int = setting(
        6,
        unit="calls",
        why="Model calls with equal growth of the context and equal output, where no hashes are sent: warning.",
        source="as for stagnation; not measured on labelled data",
        ge=3,
    )
    weak_critical: int = setting(
        12,
        unit="calls",
        why="Model calls with equal growth of the context and equal output, where no hashes are sent: critical.",
        source="twice the warning; not measured on labelled data",
        ge=3,
    )
    early: bool = setting(
        False,
        unit="yes or no",
        why="Warn of every call made twice in a row, whatever it brings: finds more repetitions, wakes more people.",
        source="people who label runs step by step call the first repetition one (llm-agents-study)",
    )
    paced_gap_s: float = setting(
        60.0,
        unit="s",
        why="Repeats at least this far apart on average are polling, not a loop.",
        source="software-agent-sdk#762: polling every few minutes was stopped as stuck",
        gt=0,
    )
    paced_factor: int = setting(
        3,
        unit="times",
        why="Failures so far apart warn at so many times their threshold, and never more.",
        source="openclaw: known pollers get 10/20 where others get 3/5",
        ge=1,
    )
    repeat_s: float = setting(
        60.0,
        unit="s",
        why="A loop that lasts is reported again after this time.",
        source="keeps the incident alive; well under the quiet time of incidents",
        gt=0,
    )
    rearm_news: int = setting(
        5,
        unit="results",
        why="After so many new results, or a change made, the same loop is new when it begins again.",
        source="five steps of work are more than a glance aside; measured on nothing",
        ge=1,
    )
    rearm_s: float = setting(
        300.0,
        unit="s",
        why="After this time without firing, a loop of the same run is new.",
        source="equal to the quiet time of incidents",
        gt=0,
    )
