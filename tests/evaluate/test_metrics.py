"""Scores against formulas written out independently."""

import numpy as np
import pytest
from scipy import stats

from kdprune.evaluate import score
from kdprune.evaluate.metrics import wilson_interval


def one_hot(classes, of):
    return np.eye(of)[classes]


def test_a_worked_example():
    scores = np.array(
        [[0.9, 0.1, 0], [0.6, 0.3, 0.1], [0.2, 0.3, 0.5], [0.1, 0.7, 0.2]]
    )
    result = score(scores, np.array([0, 1, 2, 1]))
    assert result["accuracy"] == 0.75
    assert result["per_class"] == [1.0, 0.5, 1.0]
    assert result["confusion"] == [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    assert result["test_images"] == 4
    # Each image lies in a bin of its own: 0.1, -0.6, 0.5 and 0.3 from right.
    assert result["ece"] == pytest.approx((0.1 + 0.6 + 0.5 + 0.3) / 4)
    expected = -np.log([0.9, 0.3, 0.5, 0.7]).mean()
    assert result["nll"] == pytest.approx(expected)


def test_the_balanced_accuracy_of_uneven_classes():
    labels = np.array([0, 0, 0, 0, 1, 1])
    result = score(one_hot([0, 0, 0, 1, 1, 0], 3), labels)
    assert result["balanced_accuracy"] == (3 / 4 + 1 / 2) / 2
    assert "balanced_accuracy" not in score(one_hot(labels[1:], 3), labels[1:] * 0)
    assert "balanced_accuracy" not in score(one_hot([0, 0, 1, 1], 3), [0, 0, 1, 1])


@pytest.mark.parametrize(("hits", "n"), [(8697, 10_000), (0, 50), (50, 50), (1, 3)])
def test_the_wilson_interval_is_the_formulas(hits, n):
    share, z = hits / n, stats.norm.ppf(0.975)
    middle = share + z**2 / (2 * n)
    reach = z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    expected = np.array([middle - reach, middle + reach]) / (1 + z**2 / n)
    np.testing.assert_allclose(wilson_interval(hits, n), expected, rtol=0, atol=1e-12)


def test_certain_and_right_is_perfectly_calibrated():
    labels = np.arange(10) % 5
    result = score(one_hot(labels, 5), labels)
    assert result["ece"] == 0 and result["nll"] == 0
    assert result["accuracy_ci"][1] == pytest.approx(1)


def test_certain_and_wrong_costs_a_finite_amount():
    result = score(one_hot([1, 1], 2), np.array([0, 0]))
    assert result["accuracy"] == 0 and result["ece"] == 1
    assert result["nll"] == pytest.approx(-np.log(1e-7))
    assert result["per_class"] == [0.0, None]


def test_calibration_of_a_model_that_knows_its_odds_is_small():
    random = np.random.default_rng(0)
    confidence = random.uniform(0.5, 1, 20_000)
    scores = np.stack([confidence, 1 - confidence], axis=1)
    labels = (random.random(20_000) > confidence).astype(int)
    assert score(scores, labels)["ece"] < 0.015


def test_a_bin_of_the_calibration_error_holds_its_upper_edge_and_not_its_lower():
    def ece(confidences, right):
        scores = np.stack([confidences, 1 - np.array(confidences)], axis=1)
        return score(scores, 1 - np.array(right, int))["ece"]

    # 0.6 is 9/15: with 0.55 in a bin, where a gap of -0.4 meets one of 0.55.
    assert ece([0.6, 0.55], [True, False]) == pytest.approx(0.15 / 2)
    # With 0.65 it would be 0.25 / 2; they lie in two bins.
    assert ece([0.6, 0.65], [True, False]) == pytest.approx((0.4 + 0.65) / 2)
    # The last bin starts at 14/15.
    assert ece([0.92, 0.95], [True, False]) == pytest.approx((0.08 + 0.95) / 2)
    assert ece([1.0, 0.95], [True, False]) == pytest.approx(0.95 / 2)
    # 15 bins: 0.7 and 0.72 in (10/15, 11/15], 0.66 in the one below.
    assert ece([0.7, 0.72], [True, False]) == pytest.approx((0.72 - 0.3) / 2)
    assert ece([0.66, 0.7], [True, False]) == pytest.approx((0.34 + 0.7) / 2)


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        (np.ones((3, 2)), [0, 1], "Received: \\(3, 2\\) and \\(2,\\)"),
        (np.ones((0, 2)), np.zeros(0, int), "n > 0"),
        (
            np.ones((2, 2)),
            [0, 2],
            "has 2 outputs, but the labels run from 0 to 2",
        ),
        (np.ones((2, 2)), [-1, 0], "run from -1 to 0"),
        (np.ones((2, 2)), [0.0, 1.0], "labels must be integers. Received: float64"),
        (np.full((2, 2), np.nan), [0, 1], "NaN"),
    ],
)
def test_what_does_not_belong_together_is_refused(scores, labels, message):
    with pytest.raises(ValueError, match=message):
        score(scores, labels)
