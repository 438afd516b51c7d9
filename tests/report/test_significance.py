"""Welch's test and Holm's correction against formulas of other origin."""

import itertools
import math
import statistics
import warnings

import numpy as np
import pytest
from scipy.special import stdtr, stdtrit

from kdprune.report.study import ALPHA, holm, welch

SAMPLES = {
    "five and three": ([0.871, 0.874, 0.869, 0.8725, 0.8731], [0.88, 0.879, 0.884]),
    "two and two": ([0.871, 0.874], [0.868, 0.8684]),
    "one without spread": ([0.871, 0.871, 0.871], [0.868, 0.8684, 0.8701]),
    "unlike spreads": ([0.5, 0.7, 0.2, 0.9], [0.4001, 0.4, 0.4002]),
}


def welch_by_hand(ours, theirs, alpha):
    """The p-value and the interval by Welch's and Satterthwaite's formulas."""
    parts = [statistics.variance(values) / len(values) for values in (ours, theirs)]
    error = math.sqrt(sum(parts))
    difference = statistics.fmean(ours) - statistics.fmean(theirs)
    shares = [part / sum(parts) for part in parts]
    freedom = 1 / (
        shares[0] ** 2 / (len(ours) - 1) + shares[1] ** 2 / (len(theirs) - 1)
    )
    reach = stdtrit(freedom, 1 - alpha / 2) * error
    p = 2 * stdtr(freedom, -abs(difference) / error)
    return p, difference - reach, difference + reach


@pytest.mark.parametrize("name", SAMPLES)
def test_welch_is_the_formula_by_hand(name):
    for alpha in (0.05, 0.05 / 7):
        found = welch(*SAMPLES[name])
        figures = found.pvalue, *found.confidence_interval(1 - alpha)
        by_hand = welch_by_hand(*SAMPLES[name], alpha)
        assert figures == pytest.approx(by_hand, abs=1e-12, rel=1e-12)


def test_welch_of_a_worked_example():
    # Means 3 and 7; variances 1 and 4; standard error sqrt(1/3 + 4/3).
    found = welch([2.0, 3.0, 4.0], [5.0, 7.0, 9.0])
    assert found.statistic == pytest.approx(-4 / math.sqrt(5 / 3))
    assert found.df == pytest.approx((5 / 3) ** 2 / (1 / 18 + 16 / 18))


def test_a_sample_without_spread_beside_one_with_it_gives_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert 0 < welch([0.871] * 3, [0.868, 0.8684, 0.8701]).pvalue < 0.2


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [([0.5, 0.5], [0.5, 0.5]), ([0.6, 0.6], [0.5, 0.5]), ([0.1 + 0.2, 0.3], [0.2] * 3)],
)
def test_without_spread_there_is_no_test_and_no_warning(ours, theirs):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert welch(ours, theirs) is None


@pytest.mark.slow
def test_welch_holds_its_level_over_many_seeds_of_nothing():
    random = np.random.default_rng(0)
    draws = random.normal(0.87, [[0.002]] * 5 + [[0.004]] * 3, (2000, 8, 1))[..., 0]
    false = sum(
        welch(row[:5].tolist(), row[5:].tolist()).pvalue < 0.05 for row in draws
    )
    assert 0.03 < false / 2000 < 0.07


def by_closed_testing(p_values):
    """Holm by its definition: the worst Bonferroni test of any set with the member."""
    sets = [
        chosen
        for size in range(1, len(p_values) + 1)
        for chosen in itertools.combinations(range(len(p_values)), size)
    ]
    return [
        max(
            min(1.0, len(chosen) * min(p_values[i] for i in chosen))
            for chosen in sets
            if member in chosen
        )
        for member in range(len(p_values))
    ]


def test_holm_agrees_with_closed_testing():
    random = np.random.default_rng(0)
    for size in range(1, 7):
        for _ in range(20):
            p_values = (random.uniform(0, 1, size) ** 3).tolist()
            found = [p for p, _ in holm(p_values)]
            assert found == pytest.approx(by_closed_testing(p_values))


def test_holm_of_a_worked_example():
    adjusted, shares = zip(*holm([0.01, 0.04, 0.03, 0.005]), strict=True)
    assert adjusted == pytest.approx((0.03, 0.06, 0.06, 0.02))
    # Two are significant; the third stops, and the fourth stays at its step.
    assert shares == pytest.approx((0.05 / 3, 0.05 / 2, 0.05 / 2, 0.05 / 4))


def test_holm_of_one_changes_nothing_and_of_none_is_none():
    assert holm([0.02]) == [(0.02, ALPHA)]
    assert holm([]) == []
    assert [p for p, _ in holm([0.02, 0.02])] == [0.04, 0.04]


def test_an_interval_leaves_out_zero_exactly_where_holm_says_significant():
    random = np.random.default_rng(1)
    verdicts = []
    for _ in range(60):
        baseline = random.normal(0.87, 0.002, 4).tolist()
        tests = [
            welch(random.normal(0.87 + shift, 0.002, 3).tolist(), baseline)
            for shift in random.normal(0, 0.008, 5)
        ]
        outcomes = holm([test.pvalue for test in tests])
        for test, (p, share) in zip(tests, outcomes, strict=True):
            low, high = test.confidence_interval(1 - share)
            assert (low > 0 or high < 0) == (p < ALPHA)
            verdicts.append(p < ALPHA)
    assert 50 < sum(verdicts) < 250
