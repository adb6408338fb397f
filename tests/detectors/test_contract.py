"""Every registered detector passes every check."""

from __future__ import annotations

import inspect
import re
from collections import Counter

import pytest

from detectors import registered
from detectors.base import Detector
from detectors.checks import DAY, Check, all_checks, batch_of, mixed

DETECTORS = list(registered().values())


@pytest.mark.parametrize("check", all_checks(), ids=lambda check: check.__name__.removeprefix("check_"))
@pytest.mark.parametrize("cls", DETECTORS, ids=lambda cls: cls.spec.name)
def test_contract(cls: type[Detector], check: Check) -> None:
    reason = cls.spec.waived.get(check.__name__.removeprefix("check_"))
    if reason is not None:
        pytest.skip(f"waived: {reason}")
    check(cls)


@pytest.mark.parametrize("cls", DETECTORS, ids=lambda cls: cls.spec.name)
def test_the_state_is_as_large_as_the_docstring_says(cls: type[Detector]) -> None:
    stated = re.search(r"about (\d+) bytes", inspect.getdoc(cls) or "")
    tables = cls(cls.Config()).tables.values()
    held = sum(table.nbytes / table.rows for table in tables)
    assert (stated is None and held == 0) or (stated is not None and held == pytest.approx(float(stated[1]), rel=0.1))


@pytest.mark.parametrize(
    ("name", "rules"),
    [
        (
            "retry_loop",
            {"same_call", "failing_repeat", "cycle", "same_call_again", "same_error", "error_streak", "stagnation"}
            | {"nothing_new", "sweep", "same_words", "truncated", "compactions", "provider_errors", "equal_steps"},
        ),
        ("runaway", {"range"}),
        (
            "spiral",
            {
                "fan_out",
                "nested",
                "reproduction",
                "depth",
                "ping_pong",
                "handoffs",
                "circle",
                "verbatim",
                "closed_group",
            },
        ),
    ],
)
def test_the_made_up_streams_make_every_rule_fire(name: str, rules: set[str]) -> None:
    cls = registered()[name]
    counts = Counter(
        (finding.rule, finding.severity)
        for seed in (1, 2, 3)
        for finding in cls(cls.Config()).update(batch_of(mixed(seed, history=DAY)))
    )
    assert {(rule, severity) for rule in rules for severity in ("warning", "critical")} <= set(counts)
