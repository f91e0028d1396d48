"""The statistics of the gate: against scipy, against counting, and against their own promises."""

import numpy as np
import pytest
from scipy import stats as scipy_stats

from lssgen.bench.stats import (
    LEAST_PAIRS,
    UNBOUNDED,
    Interval,
    bootstrap,
    hodges_lehmann,
    level_of,
    log_ratio,
    looks_of,
    verdict,
)


@pytest.mark.parametrize("count", [6, 9, 15, 70])
def test_the_interval_leaves_out_one_exactly_where_scipys_signed_rank_test_rejects(count: int) -> None:
    rng = np.random.default_rng(count)
    for _ in range(200):
        numbers = rng.normal(0.03, 0.08, count)
        interval = hodges_lehmann(numbers, 0.95)
        method = "exact" if count <= 60 else "approx"
        rejected = scipy_stats.wilcoxon(numbers, method=method).pvalue <= 0.05
        # Beyond 60 both take the sum for normal, and differ in rounding at the very edge.
        assert rejected == (not interval.lower <= 1 <= interval.upper) or count > 60


def test_the_estimate_is_the_median_of_all_pairwise_means() -> None:
    numbers = [0.0, 0.1, 0.5]
    assert hodges_lehmann(numbers).ratio == pytest.approx(np.exp(np.median([0, 0.1, 0.5, 0.05, 0.25, 0.3])))


def test_too_few_pairs_give_an_interval_without_end_and_no_verdict() -> None:
    interval = hodges_lehmann([0.0] * (LEAST_PAIRS - 1))
    assert (interval.lower, interval.upper) == (0.0, UNBOUNDED)
    assert verdict(interval, 0.03) == "UNDECIDED"
    assert "too few" in str(interval)
    assert hodges_lehmann([0.0] * LEAST_PAIRS).upper == 1


@pytest.mark.parametrize("count", [6, 12])
def test_the_interval_covers_the_truth_as_often_as_it_says(count: int) -> None:
    rng = np.random.default_rng(0)
    held = sum(one.lower <= 1 <= one.upper for one in (hodges_lehmann(rng.normal(0, 0.1, count)) for _ in range(1000)))
    assert held >= 940  # 95 % of 1000, less one and a half standard deviations


def test_the_bootstrap_agrees_with_it_on_clean_numbers() -> None:
    numbers = np.random.default_rng(1).normal(0.05, 0.01, 40)
    one, other = hodges_lehmann(numbers), bootstrap(numbers)
    assert one.ratio == pytest.approx(other.ratio, abs=0.005)  # a tenth of the effect
    assert other.lower < one.ratio < other.upper


@pytest.mark.parametrize(
    ("lower", "upper", "said"),
    [
        (0.99, 1.02, "PASS"),
        (0.5, 0.6, "PASS"),
        (1.05, 1.1, "FAIL"),
        (0.99, 1.2, "UNDECIDED"),
        (1.01, 1.05, "UNDECIDED"),
    ],
)
def test_a_verdict_needs_the_whole_interval_on_one_side_of_the_margin(lower: float, upper: float, said: str) -> None:
    assert verdict(Interval(ratio=1, lower=lower, upper=upper, level=0.95), 0.03) == said


def test_a_gate_that_looks_often_errs_as_seldom_as_it_says() -> None:
    """At the margin itself, where FAIL and PASS are both wrong, each is said in at most 5 % of the comparisons."""
    rng, looks = np.random.default_rng(2), looks_of(30)
    level, said = level_of(len(looks), 0.05), {"PASS": 0, "FAIL": 0, "UNDECIDED": 0}
    for _ in range(300):
        numbers = np.log(1.03) + rng.normal(0, 0.03, looks[-1])
        found = (verdict(hodges_lehmann(numbers[:count], level), 0.03) for count in looks)
        said[next((one for one in found if one != "UNDECIDED"), "UNDECIDED")] += 1
    assert said["PASS"] <= 24  # 5 % of 300, and two and a half standard deviations
    assert said["FAIL"] <= 24


def test_looks_grow_by_half_and_end_at_the_budget() -> None:
    assert looks_of(30) == (8, 12, 18, 27, 30)
    assert looks_of(6) == (6,)


def test_what_drifts_evenly_in_a_block_cancels_and_one_disturbed_block_does_not_count() -> None:
    drift = np.exp(0.1 * np.arange(4))  # A B B A
    a, b = [drift[0], drift[3]] * 3, [drift[1], drift[2]] * 3
    assert log_ratio(a, b) == pytest.approx(0)
    b[0] = 100.0
    assert log_ratio(a, b) == pytest.approx(0)
