"""The benchmark's rule on its own files against published results, and the score it gives the product."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import numpy as np
import pytest

from stream.evaluate.nab import Nab, Series, credit, probation, read

DATA = Path(os.environ.get("BURNFUSE_DEVELOPMENT_DATA", Path(__file__).parents[3] / "shared" / "data"))

pytestmark = [
    pytest.mark.extra,
    pytest.mark.skipif(
        not Nab().found_in(DATA), reason="no development data; set BURNFUSE_DEVELOPMENT_DATA to its folder"
    ),
]

# Published results of the benchmark, results/DETECTOR/DETECTOR_standard_scores.csv: scores of files in which the
# detector raised no false alarm. What a window earns depends on one row alone, so there is such a row or not.
PUBLISHED = {
    ("randomCutForest", "artificialWithAnomaly/art_daily_jumpsup"): 0.86067182427,
    ("randomCutForest", "realAWSCloudwatch/ec2_cpu_utilization_825cc2"): 0.956537840284,
    ("randomCutForest", "realAWSCloudwatch/ec2_cpu_utilization_5f5533"): 1.72310160415,
    ("randomCutForest", "realTraffic/speed_t4013"): 1.75691291901,
    ("randomCutForest", "realKnownCause/machine_temperature_system_failure"): -2.1185689822,
    ("randomCutForest", "realKnownCause/nyc_taxi"): -3.1846309122,
    ("numenta", "realAWSCloudwatch/ec2_cpu_utilization_ac20cd"): 0.875727409493,
    ("numenta", "realTraffic/TravelTime_451"): 0.568159134461,
    ("numenta", "realTraffic/speed_t4013"): 1.9811376438,
    ("numenta", "realAWSCloudwatch/ec2_cpu_utilization_fe7f93"): -1.12276900965,
    ("numenta", "realAWSCloudwatch/ec2_network_in_257a54"): 0.855326299622,
    ("numenta", "realKnownCause/rogue_agent_key_hold"): -0.867400232622,
    ("ARTime", "artificialWithAnomaly/art_daily_jumpsup"): 0.8589086704377245,
    ("ARTime", "realTraffic/TravelTime_451"): 0.8548083738085046,
    ("ARTime", "realAWSCloudwatch/ec2_cpu_utilization_5f5533"): 1.6976723158532012,
}

# results/null/null_standard_scores.csv: windows, scored rows outside and inside of them.
COUNTS = {
    "realAdExchange/exchange-2_cpc_results": (1, 1218, 163),
    "realAdExchange/exchange-4_cpm_results": (4, 1233, 164),
    "realAWSCloudwatch/ec2_cpu_utilization_825cc2": (1, 3085, 343),
    "realAWSCloudwatch/ec2_cpu_utilization_fe7f93": (3, 3023, 405),
    "realAWSCloudwatch/ec2_disk_write_bytes_1ef3de": (1, 3548, 473),
    "realKnownCause/cpu_utilization_asg_misconfiguration": (1, 15801, 1499),
    "realKnownCause/machine_temperature_system_failure": (4, 19677, 2268),
    "realKnownCause/nyc_taxi": (5, 8535, 1035),
    "realKnownCause/rogue_agent_key_hold": (2, 1410, 190),
    "realTraffic/TravelTime_387": (3, 1876, 249),
    "realTraffic/speed_7578": (4, 842, 116),
    "realTweets/Twitter_volume_AAPL": (4, 13564, 1588),
    "realTweets/Twitter_volume_AMZN": (4, 13501, 1580),
    "realTweets/Twitter_volume_UPS": (5, 13531, 1585),
    "artificialNoAnomaly/art_daily_no_noise": (0, 3428, 0),
}


@pytest.fixture(scope="module")
def corpus() -> dict[str, Series]:
    return {series.name.removesuffix(".csv"): series for series in read(DATA / "nab")}


@pytest.mark.parametrize("name", COUNTS)
def test_windows_and_scored_rows_are_as_published(corpus: dict[str, Series], name: str) -> None:
    series = corpus[name]
    _, window = credit(len(series.value), series.windows)
    inside = window[probation(len(window)) :] >= 0
    assert (len(series.windows), int((~inside).sum()), int(inside.sum())) == COUNTS[name]


@pytest.mark.parametrize(("detector", "name"), PUBLISHED)
def test_a_published_score_is_one_that_the_rule_can_give(corpus: dict[str, Series], detector: str, name: str) -> None:
    series = corpus[name]
    worth, window = credit(len(series.value), series.windows)
    earned = [worth[window == number] for number in range(len(series.windows))]
    gaps = []
    for caught in (1, 2):
        for chosen in itertools.combinations(earned, min(caught, len(earned))):
            totals = chosen[0] if len(chosen) == 1 else np.add.outer(*chosen)
            missed = len(earned) - len(chosen)
            gaps.append(np.abs(totals - missed - PUBLISHED[detector, name]).min())
    # Published with 12 digits; by chance the nearest of 160,000 sums is 10^-6 away.
    assert min(gaps) < 1e-11


def test_the_score_keeps_its_level_on_files_it_was_and_was_not_tuned_on() -> None:
    rows = {row.contender: row for row in Nab().rows(DATA, [], lambda _: None)}
    ours = rows["univariate"].figures
    assert ours["standard"] >= 75
    for profile in ("standard", "low FN"):
        assert ours[profile] - ours[f"{profile}, cross-validated"] <= 5
    for naive in ("static_range", "ewma_z"):
        assert rows[naive].figures["standard"] + 20 < ours["standard"]
    assert rows["null"].figures["standard"] == 0
