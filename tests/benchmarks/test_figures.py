from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks import document, results
from benchmarks.contenders import CONTENDERS, Contender, models
from benchmarks.detectors_alone import figures_of
from benchmarks.observe import Sample, TooShortError, WorkedOff, window
from benchmarks.results import Run

ROOT = Path(__file__).resolve().parents[2]


def sample(at: float, events: float) -> Sample:
    return Sample(at, events, cpu_s=at / 2, broker_cpu_s=at / 10)


def run(rate: float, **more: Any) -> Run:
    return Run(**({"events": 10, "seconds": 1.0, "rate": rate, "cpu_s_per_million": 2.0, "broker_cores": 0.5,
                   "peak_mb": 100.0} | more))  # fmt: skip


# --------------------------------------------------------------------------------------- rates


def test_starting_up_and_the_final_commit_do_not_count() -> None:
    # Nothing for 10 s, commits of 100 each second, the last one late.
    samples = [sample(0, 0), sample(9, 0), sample(10, 50), sample(11, 150), sample(11.5, 150), sample(12, 250),
               sample(15, 300)]  # fmt: skip
    found = window(samples, total=300)
    assert (found.events, found.seconds, found.rate) == (200, 2, 100)
    assert found.cpu_s == pytest.approx(1.0)
    assert found.broker_cpu_s == pytest.approx(0.2)


def test_with_few_commits_the_final_one_counts() -> None:
    assert window([sample(0, 0), sample(1, 100), sample(3, 300)], total=300).rate == 100


def test_a_measurement_between_fewer_than_two_commits_is_refused() -> None:
    with pytest.raises(TooShortError):
        window([sample(0, 0), sample(1, 300)], total=300)


def test_a_measurement_shorter_than_its_lumps_is_refused() -> None:
    samples = [sample(0, 0), sample(1, 100), sample(2, 400), sample(3, 500)]
    assert window(samples, total=1000, least_s=2.0).rate == 200
    with pytest.raises(TooShortError, match=r"measured for 2\.0 s only"):
        window(samples, total=1000, least_s=2.1)


def test_events_to_skip_are_not_measured() -> None:
    samples = [sample(0, 0), sample(1, 10), sample(2, 20), sample(3, 120), sample(4, 220), sample(5, 320)]
    assert window(samples, total=1000, skip=15).rate == 100


# ------------------------------------------------------------------------------ what contenders do


def test_the_moving_average_finds_a_call_far_outside_and_is_quiet_before() -> None:
    average, found = None, []
    for tokens in [*[100, 110] * 20, 5000]:
        average, far = models.step(average, tokens)
        found.append(far)
    assert found == [False] * 40 + [True]


def test_models_learn_from_model_calls_only() -> None:
    llm = b'{"agent_id": "a", "ts": 1, "input_tokens": 3, "output_tokens": 4}'
    tool = b'{"agent_id": "a", "ts": 1, "kind": "tool", "tool": "t"}'
    assert models.agent_and_tokens(llm) == ("a", 7)
    assert models.agent_and_tokens(tool) == ("a", None)


def test_a_contender_whose_package_or_setting_is_missing_says_so() -> None:
    assert "nowhere is not installed" in Contender("x", "ceiling", needs=("nowhere",)).missing()
    assert "unknown key" in Contender("x", "ceiling", options={"input": {"strange": 1}}).missing()
    assert CONTENDERS["burnfuse"].missing() == ""


@pytest.mark.parametrize("contender", CONTENDERS.values(), ids=list(CONTENDERS))
def test_every_contender_has_a_file(contender: Contender) -> None:
    assert (ROOT / "benchmarks" / "contenders" / f"{contender.module}.py").exists()


# ------------------------------------------------------------------------------------------ figures


def figures() -> dict[str, Any]:
    rates = {"ceiling": 100, "burnfuse": 30, "faust": 2, "quix": 5, "bytewax": 6}
    repeats = {name: [run(rate), run(rate * 2), run(rate * 3)] for name, rate in rates.items()}
    return {"throughput": {"contenders": {name: results.summary(name, runs) for name, runs in repeats.items()}}}


def test_bars_are_ratios_of_medians_and_only_of_what_was_measured() -> None:
    rows = {what: rest for what, *rest in results.bars(figures())}
    assert rows["worker / ceiling, any key"] == ["0.25", "0.40", "0.30", "reaches the bar"]
    assert rows["worker / plain Faust with river"] == ["15.00", "25.00", "15.00", "reaches the bar"]
    assert rows["worker / the better of Quix Streams and Bytewax"][2:] == ["5.00", "reaches the bar"]
    assert len(rows) == 3


def test_a_bar_that_is_a_most_is_reached_from_below() -> None:
    bar = results.Bar("x", 500, 150, lambda _: 0.0, most=True)
    assert [bar.verdict(value) for value in (501, 500, 150)] == ["below the bar", "reaches the bar", "reaches the aim"]


def test_each_benchmark_replaces_its_own_figures_only(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "results.json"
    results.save(path, "stages", {"total_us": 1.0})
    results.save(path, "latency", {"rate": 5.0})
    results.save(path, "stages", {"total_us": 2.0})
    found = results.load(path)
    assert found["stages"] == {"total_us": 2.0}
    assert found["latency"] == {"rate": 5.0}
    assert found["machine"]["python"].startswith("3.")


def test_pytest_benchmarks_report_becomes_rates() -> None:
    line = {"extra_info": {"skew": "even", "detector": "all", "events": 1000}, "stats": {"mean": 0.002}}
    assert figures_of({"benchmarks": [line]}) == {"even": {"all": {"rate": 500_000.0, "us_per_event": 2.0}}}


# ----------------------------------------------------------------------------------------- document


def test_figures_get_into_the_document_and_the_rest_stays() -> None:
    text = "before\n<!-- measured: bars -->\nold\n<!-- end -->\nafter <!-- measured: latency -->\n\n<!-- end -->\n"
    new = document.rewritten(text, figures())
    assert new.startswith("before\n<!-- measured: bars -->\n\n| what | must |")
    assert "| 0.30 | reaches the bar |" in new
    assert "old" not in new
    assert new.endswith("after <!-- measured: latency -->\n\nNot measured yet.\n\n<!-- end -->\n")
    assert document.rewritten(new, figures()) == new


def test_the_document_asks_only_for_parts_that_exist() -> None:
    asked = re.findall(r"<!-- measured: (\S+) -->", document.DOCUMENT.read_text(encoding="utf-8"))
    assert sorted(asked) == sorted(document.PARTS)


def test_events_count_when_what_they_became_is_done() -> None:
    topic = WorkedOff()
    assert topic.look(read=0, end=2, committed=2) == 0  # heartbeats
    assert topic.look(read=100, end=10, committed=9) == 0
    assert topic.look(read=100, end=12, committed=9) == 0
    assert topic.look(read=300, end=20, committed=11) == 100
    assert topic.look(read=300, end=90, committed=19) == 100
    assert topic.look(read=300, end=90, committed=20) == 300  # the rest are heartbeats
