"""Attempts to quantize, made until one is proven to be within the budget."""

import json

import numpy as np
import pytest

from kdprune.quantize.budget import Attempt, meet_budget
from kdprune.tflite import images_to_prove, paired_drop

IMAGES = 2000
LABELS = np.arange(IMAGES) % 4


def scores_that_lose(lost, gained=0):
    """Scores, against those of a model that is wrong on the last 100 images."""
    classes = LABELS.copy()
    classes[:lost] += 1
    classes[IMAGES - 100 + gained :] += 1
    return np.eye(4)[classes % 4]


def judge(scores):
    return paired_drop(scores_that_lose(0), scores, LABELS)


def attempt(name, lost, made=None, gained=0):
    def make():
        if made is not None:
            made.append(name)
        return scores_that_lose(lost, gained)

    return Attempt(name, make)


def test_it_stops_at_the_first_attempt_that_meets_the_budget():
    made = []
    outcome = meet_budget(
        [
            attempt("minmax", 40, made),
            attempt("mse", 4, made),
            attempt("qat", 0, made),
        ],
        judge,
        max_drop=0.01,
    )
    assert outcome.met and outcome.name == "mse" and made == ["minmax", "mse"]
    np.testing.assert_array_equal(outcome.best, scores_that_lose(4))
    assert [row["met"] for row in outcome.attempts] == [False, True]
    assert [row["drop"] for row in outcome.attempts] == [0.02, 0.002]
    assert all(row["seconds"] >= 0 for row in outcome.attempts)
    assert "1.00 points is met after 2 attempt(s)" in outcome.message
    json.dumps(outcome.attempts)


def test_the_bound_decides_and_not_the_measured_drop():
    # 16 lost of 2,000 is 0.8 points measured, and 1.2 at most.
    outcome = meet_budget([attempt("close", 16)], judge, max_drop=0.01)
    (row,) = outcome.attempts
    assert row["drop"] == 0.008 and row["drop_bound"] > 0.01
    assert not outcome.met
    assert "more validation images might prove it" in outcome.message
    assert meet_budget([attempt("close", 16)], judge, max_drop=0.0125).met


def test_a_budget_that_cannot_be_met_says_so_and_gives_the_best():
    outcome = meet_budget(
        [attempt("a", 90), attempt("b", 50), attempt("c", 70)], judge, max_drop=0.01
    )
    assert not outcome.met and outcome.name == "b" and len(outcome.attempts) == 3
    np.testing.assert_array_equal(outcome.best, scores_that_lose(50))
    assert "can't be met: the best of 3 attempt(s)" in outcome.message
    assert "'b' loses 2.50 points" in outcome.message
    assert "train a better model" in outcome.message


def test_no_budget_is_met_by_a_model_at_chance():
    constant = np.tile(np.eye(4)[0], (IMAGES, 1))
    outcome = meet_budget(
        [Attempt("a", lambda: constant), Attempt("b", lambda: constant)],
        lambda scores: paired_drop(constant, scores, LABELS),
        max_drop=0.01,
    )
    (row,) = outcome.attempts
    assert row["drop_bound"] < 0.01 and row["at_chance"]
    assert not outcome.met and not row["met"] and outcome.name == "a"
    assert "can't be judged" in outcome.message and "is met" not in outcome.message


def test_a_way_that_is_not_open_is_recorded_and_passed_over():
    def refuse():
        raise ValueError("layer 'norm' can't be trained quantization-aware")

    outcome = meet_budget(
        [Attempt("qat", refuse), attempt("mse", 0)], judge, max_drop=0.01
    )
    assert outcome.met and outcome.name == "mse"
    assert "layer 'norm'" in outcome.attempts[0]["error"]
    failed = meet_budget([Attempt("qat", refuse)], judge, max_drop=0.01)
    assert not failed.met and failed.best is None and failed.name is None
    assert "no attempt of 1" in failed.message and "'norm'" in failed.message


def test_an_attempt_can_depend_on_those_before_it():
    judged = []

    def attempts():
        yield attempt("first", 30)
        yield attempt(f"after {len(judged)}", 0)
        raise AssertionError("asked for one more than needed")

    outcome = meet_budget(
        attempts(), lambda made: judged.append(made) or judge(made), max_drop=0.01
    )
    assert outcome.met and outcome.name == "after 1"
    with pytest.raises(ValueError, match="different names"):
        meet_budget(iter([]), judge, max_drop=0.01)


def test_other_errors_are_not_swallowed():
    def crash():
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        meet_budget([Attempt("qat", crash)], judge, max_drop=0.01)


def test_a_files_bytes_are_counted_among_the_cost():
    figures = {"drop": 0.0, "drop_bound": 0.001}
    outcome = meet_budget(
        [Attempt("ptq", lambda: b"12345")], lambda made: dict(figures), 0.01
    )
    assert outcome.attempts[0]["bytes"] == 5 and outcome.best == b"12345"


@pytest.mark.parametrize("images", [20, 400, 5000])
def test_no_difference_is_no_proof_on_a_few_images(images):
    right = np.eye(2)[np.zeros(images, int)]
    figures = paired_drop(right, right, np.zeros(images, int))
    assert figures["drop_interval"] == [0, 0]
    assert figures["drop_bound"] == pytest.approx(2.33 / (images + 2), rel=0.01)


@pytest.mark.parametrize("max_drop", [0.9, 0.1, 0.01, 0.005, 0.0007])
def test_no_fewer_images_could_prove_a_budget(max_drop):
    def bound(images):
        right = np.eye(2)[np.zeros(images, int)]
        return paired_drop(right, right, np.zeros(images, int))["drop_bound"]

    images = images_to_prove(max_drop)
    assert bound(images) <= max_drop
    assert images == 1 or bound(images - 1) > max_drop


@pytest.mark.parametrize(("drop", "flips"), [(0.0, 0.0), (0.004, 0.01), (0.01, 0.03)])
def test_the_bound_holds_nineteen_times_of_twenty(drop, flips):
    rng = np.random.default_rng(0)
    lost, gained = (flips + drop) / 2, (flips - drop) / 2
    held = 0
    for _ in range(400):
        kind = rng.random(1000)
        before, after = np.tile([1.0, 0.0], (2, 1000, 1))
        after[kind < lost] = [0.0, 1.0]
        before[kind > 1 - gained] = [0.0, 1.0]
        bound = paired_drop(before, after, np.zeros(1000, int))["drop_bound"]
        held += bound >= drop
    assert held / 400 > 0.92


@pytest.mark.parametrize(
    ("attempts", "max_drop", "message"),
    [
        ([], 0.01, "attempts of different names"),
        ([attempt("a", 0), attempt("a", 0)], 0.01, "different names"),
        ([attempt("a", 0)], 0.0, "share of images"),
        ([attempt("a", 0)], 5, "half a point"),
    ],
)
def test_what_does_not_fit_is_an_error(attempts, max_drop, message):
    with pytest.raises(ValueError, match=message):
        meet_budget(attempts, judge, max_drop)
