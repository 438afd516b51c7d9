"""Pruning of arrays: a weight below the threshold is zeroed, or deleted."""

import numpy as np
import pytest

from kdprune.prune import prune_weights

WEIGHTS = np.array([[0.8, -0.1, 0.05], [-0.3, 0.0, 0.1]])


def test_small_weights_are_zeroed_and_equal_ones_stay():
    np.testing.assert_array_equal(
        prune_weights(WEIGHTS, 0.1), [[0.8, -0.1, 0], [-0.3, 0, 0.1]]
    )


def test_small_weights_are_deleted_row_by_row():
    np.testing.assert_array_equal(
        prune_weights(WEIGHTS, 0.1, remove=True), [0.8, -0.1, -0.3, 0.1]
    )


def test_a_threshold_of_zero_changes_nothing_and_a_large_one_leaves_nothing():
    np.testing.assert_array_equal(prune_weights(WEIGHTS, 0), WEIGHTS)
    assert not prune_weights(WEIGHTS, 1).any()
    assert prune_weights(WEIGHTS, 1, remove=True).shape == (0,)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int8"])
def test_the_type_is_kept_and_the_input_left_alone(dtype):
    weights = np.array([[1, -2], [3, -4]], dtype)
    before = weights.copy()
    for remove in (False, True):
        assert prune_weights(weights, 2.5, remove).dtype == dtype
    np.testing.assert_array_equal(prune_weights(weights, 2.5), [[0, 0], [3, -4]])
    np.testing.assert_array_equal(weights, before)


def test_lists_and_single_numbers_are_taken():
    np.testing.assert_array_equal(prune_weights([0.2, -0.01], 0.05), [0.2, 0])
    assert prune_weights(0.01, 0.05) == 0


def test_what_is_not_a_number_is_never_called_small():
    pruned = prune_weights([np.nan, np.inf, 0.1], 0.5)
    np.testing.assert_array_equal(pruned, [np.nan, np.inf, 0])


@pytest.mark.parametrize("threshold", [-0.1, float("nan")])
def test_a_threshold_must_be_zero_or_more(threshold):
    with pytest.raises(ValueError, match="threshold must be zero or more. Received"):
        prune_weights(WEIGHTS, threshold)
