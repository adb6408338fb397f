"""What the simulated company is built from: figures measured on public recordings of real traffic.

Only these aggregates are taken over, no recorded request is. The recordings, of each a part:

* ServeGen (github.com/alibaba/ServeGen, arXiv 2505.09999, Apache-2.0): 62 production clients over 14 days.
  It gives rates and burstiness per 10 minutes; the split into minutes was simulated from these. The
  inter-arrival CV is of 22 of its client files.
* Azure LLM inference trace 2023 (github.com/Azure/AzurePublicDataset, CC BY 4.0): 9,739 requests of a
  chat service ("conv").
* Mooncake (github.com/kvcache-ai/Mooncake, Apache-2.0): 5,606 requests in 3,627 chat sessions.
* Multi-SWE-bench (github.com/multi-swe-bench): coding agents, 50 logs with times and tokens ("logs") and
  232 trajectories without ("trajectories").
* tau-bench (github.com/sierra-research/tau-bench, MIT): 132 support conversations with tools.
* ChatDev warehouse (github.com/OpenBMB/ChatDev, data CC BY-NC): 29 runs of a simulated software company.
* Who&When (github.com/ag2ai/Agents_Failure_Attribution, MIT): 92 multi-agent conversations.

A `Spread` gives the 10th, 50th and 90th percentile. The figures under "arrivals" and those said to come out
are what the simulated stream is held against; the others are what it is drawn from. `docs/simulation.md`
shows both sides.
"""

from __future__ import annotations

from random import Random
from typing import NamedTuple

_Z90 = 1.2816
"""90th percentile of the normal distribution."""

_Z_MAX = 2.5
"""Draws stop here: real requests are capped by the model's context, so nothing is drawn far beyond p90."""


class Spread(NamedTuple):
    """A positive quantity as measured: 10th, 50th and 90th percentile."""

    p10: float
    p50: float
    p90: float

    def draw(self, rng: Random) -> float:
        """One value of a split log-normal with exactly these percentiles.

        >>> Spread(3, 3, 3).draw(Random(1))
        3.0
        """
        z = max(-_Z_MAX, min(_Z_MAX, rng.gauss(0.0, 1.0)))
        side = self.p90 if z > 0 else self.p10
        return float(self.p50 * (side / self.p50) ** (abs(z) / _Z90))


# ---------------------------------------------------------------------------------- arrivals: ServeGen

INTERARRIVAL_CV = Spread(0.90, 1.15, 3.05)
"""CV of the time between requests within 10 minutes, median per client (22 files, windows with traffic)."""

RATE_LAG1 = 0.92
"""Lag-1 autocorrelation of the log of requests per 10 minutes, median of 62 clients (p10 0.64, p90 0.97;
thinned as below 0.59 / 0.86 / 0.96)."""

PEAK_HOUR = Spread(1.3, 2.2, 6.6)
"""Busiest hour of the mean day / mean hour, tokens, 62 clients."""

CLIENT_REQUESTS = Spread(6.1, 65.5, 201.0)
"""Median requests per active minute of a client, 62 clients: too many to replay four days of a company.
The simulated agents are like such clients thinned at random, each to an average of 1.5 requests per minute
in which it was active; the next three figures are of the clients so thinned."""

ACTIVE_REQUESTS = Spread(2.1, 2.5, 4.7)
"""Requests per active minute, thinned clients (a minute that lost all its requests is not active)."""

ACTIVE_SHARE = Spread(0.05, 0.38, 0.65)
"""Share of minutes with requests, thinned clients (before thinning 0.13 / 0.84 / 0.98)."""

ACTIVE_LOG_SD = Spread(0.91, 0.99, 1.42)
"""Standard deviation of log tokens per active minute, thinned clients (before 0.61 / 1.34 / 1.86)."""

# ----------------------------------------------------- service agents: tau-bench, Azure conv, Mooncake

REQUEST_TOKENS = Spread(417, 1435, 4114)
"""Input + output tokens per request, Azure conv (ServeGen's clients: median 1,480)."""

ANSWER_TOKENS = Spread(50, 140, 428)
"""Output tokens per request, Azure conv."""

ROUNDS = Spread(6, 12, 19)
"""Model rounds per support conversation, tau-bench."""

TOOL_ROUNDS = 0.48
"""Share of those rounds that call a tool (796 calls in 1,638 rounds), tau-bench."""

TOOL_ERRORS = 0.038
"""Share of those calls that fail (30 of 796), tau-bench."""

TOOL_RESULT_TOKENS = Spread(4, 175, 362)
"""Tokens of a tool result (characters / 4), tau-bench."""

USER_TOKENS = Spread(12, 23, 43)
"""Tokens of a customer's message (characters / 4), tau-bench."""

USER_SECONDS = Spread(42, 117, 427)
"""Seconds between two requests of a chat session, Mooncake."""

DOCUMENT_TOKENS = Spread(906, 5959, 27330)
"""Input tokens of the first request of a session, Mooncake: people who paste documents."""

DOCUMENT_ANSWER_TOKENS = Spread(24, 356, 609)
"""Output tokens per request, Mooncake."""

DOCUMENT_ROUNDS = Spread(1, 1.2, 3)
"""Requests per session, Mooncake (mean 1.5)."""

FOLLOW_UP_TOKENS = Spread(1, 467, 4633)
"""Growth of the input from one request of a session to the next, Mooncake (p10 is 0)."""

PREFIX_SHARE = Spread(0.58, 0.945, 1.0)
"""Part of a request's input that the request before it already held, Mooncake; 0.88 / 0.98 / 0.99 in the
Multi-SWE-bench logs. It bounds what a prompt cache can serve: none of the recordings says what was cached."""

# ------------------------------------------------------------------- coding agents: Multi-SWE-bench

CODING_CALLS = Spread(7, 16, 43)
"""Tool calls per run, trajectories."""

CODING_SECONDS = Spread(2.0, 3.4, 18.2)
"""Seconds from one call to the next, logs."""

CODING_FIRST_TOKENS = Spread(6742, 6990, 8626)
"""Input tokens of a run's first request, logs."""

CODING_GROWTH_TOKENS = Spread(1, 120, 1252)
"""Growth of the input from call to call, logs (p10 is negative: old observations are cut)."""

CODING_OUTPUT_TOKENS = Spread(43, 68, 163)
"""Output tokens per request, logs."""

CODING_MIX = {"edit": 0.21, "read": 0.17, "search": 0.27, "shell": 0.26, "test": 0.09}
"""Share of the calls by purpose, logs (775 calls): edit, create | open, goto, scroll | find_file,
search_dir, search_file, find | ls, cd and other commands | javac, mvn, gradlew and other builds."""

CODING_ERRORS = {"edit": 0.05, "read": 0.06, "search": 0.44, "shell": 0.04, "test": 0.90}
"""Share of the calls that fail, by purpose, logs; 0.23 over all (median run 0.18)."""

TEST_AFTER_EDIT = 0.42
"""Share of edits that are followed by a build or test, logs."""

CODING_REPEATS = (0.036, 0.89)
"""Share of calls whose tool and arguments came before in the run, and the share of those with another
result than before, logs (trajectories: 0.18 and 0.47). What comes out, not an input."""

ERRORS_IN_A_ROW = 3
"""95th percentile of the length of a streak of failing calls, logs (62 % are single; longest 21)."""

# ------------------------------------------------------------- agents in company: ChatDev, Who&When

PAIR_MESSAGES = Spread(12, 17, 44)
"""Messages per run, ChatDev (Who&When: 6 / 10 / 32)."""

MESSAGE_SECONDS = Spread(15.9, 40, 96)
"""Seconds per message, ChatDev."""

PAIR_INPUT_TOKENS = Spread(591, 1607, 2720)
"""Input tokens per request, ChatDev."""

PAIR_OUTPUT_TOKENS = Spread(5, 346, 1186)
"""Output tokens per request, ChatDev."""

TEAM_SIZE = Spread(2, 4, 8)
"""Workers a planner starts. Only the middle is measured (agents per run: ChatDev 5, Who&When 4, the
leading one included); the range is set."""

RATE_LIMITED = 0.0018
"""Share of model requests that the provider refused for their rate, ChatDev's 27 calm runs of 29; in the
others 6 of 18 and 463 of 481."""

# -------------------------------------------------------------------------------- set, not measured

CACHE_SECONDS = 300.0
"""How long a provider keeps a prompt cached, s (Anthropic's default; OpenAI: 5 to 10 minutes idle)."""

CACHE_MIN_TOKENS = 1024
"""Shortest prompt that is cached, tokens (OpenAI, Anthropic)."""

CACHE_STEP_TOKENS = 128
"""Cached prefixes are served in steps of this many tokens (OpenAI)."""

POLL_SECONDS = (60.0, 90.0)
"""Pace of a poller, s: a well-behaved one leaves a minute between looks."""

POLLS_UNCHANGED = (4, 9)
"""Looks in a row that find nothing new."""

BATCH_ROUNDS = (24, 32)
"""Model rounds of a nightly batch, each asking for 4 to 8 writes at once."""

COMPACT_TOKENS = 24_000
"""Context at which a coding agent compacts; it keeps a third."""
