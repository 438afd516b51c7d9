"""Soft losses by name with weights, and values that change over training."""

import numpy as np
import pytest
import tensorflow as tf

from kdprune.distill import SoftLoss, as_soft_losses
from kdprune.distill.schedule import Schedule

TWO_PHASES = [(0, 1), (0.5, 1), (0.5, 0), (1, 0)]


def temperature(value, steps=None):
    return Schedule(value, steps, name="temperature", closed=False)


@pytest.mark.parametrize(
    ("points", "step", "expected"),
    [
        (4, 7, 4.0),
        ([(0, 8), (1, 2)], 0, 8.0),
        ([(0, 8), (1, 2)], 50, 5.0),
        ([(0, 8), (1, 2)], 100, 2.0),
        ([(0.2, 8), (0.4, 2)], 10, 8.0),
        ([(0.2, 8), (0.4, 2)], 30, 5.0),
        ([(0.2, 8), (0.4, 2)], 90, 2.0),
    ],
)
def test_a_value_moves_in_straight_lines_between_its_points(points, step, expected):
    assert float(temperature(points, 100).at(step)) == pytest.approx(expected)
    # As in a training step, where the count of steps is a variable.
    step = tf.Variable(step, dtype=tf.int64)
    assert float(temperature(points, 100).at(step)) == pytest.approx(expected)


def test_of_two_points_at_one_place_the_second_holds_from_there_on():
    weight = Schedule(TWO_PHASES, 10, name="soft_weight", high=1.0)
    assert [float(weight.at(step)) for step in range(10)] == [1.0] * 5 + [0.0] * 5


@pytest.mark.parametrize(
    ("value", "steps", "message"),
    [
        (0, None, "temperature must be above 0. Received: 0"),
        ([(0, 4), (1, -1)], 9, "temperature must be above 0. Received: -1"),
        ([(0.5, 4), (0.2, 1)], 9, "the shares rising within"),
        ([(0, 4), (2, 1)], 9, "the shares rising within"),
        ([(0, 4), (1, 1)], None, "give `steps`"),
        (float("nan"), None, "must be above 0"),
        ([], 9, "the shares rising within"),
    ],
)
def test_values_out_of_range_are_refused(value, steps, message):
    with pytest.raises(ValueError, match=message):
        temperature(value, steps)


def test_losses_are_named_in_several_ways():
    losses = as_soft_losses(
        ["kl", {"name": "dkd", "weight": 0.5, "beta": 2.0}, SoftLoss("hint", 3.0)]
    )
    assert [(loss.name, loss.weight) for loss in losses] == [
        ("kl", 1.0),
        ("dkd", 0.5),
        ("hint", 3.0),
    ]
    assert losses[1].arguments == {"beta": 2.0}
    assert [loss.of_features for loss in losses] == [False, False, True]


@pytest.mark.parametrize("nothing", [None, [], ()])
def test_no_losses_are_kl(nothing):
    assert as_soft_losses(nothing) == as_soft_losses(["kl"])


def test_a_loss_has_its_own_arguments_and_temperature():
    rng = np.random.default_rng(0)
    teacher, student = rng.normal(size=(2, 8, 10)).astype(np.float32)
    labels = np.arange(8)
    own = SoftLoss("kl", arguments={"temperature": 2.0})
    shared = SoftLoss("kl")
    given = own.of_logits(labels, teacher, student, 4.0)
    np.testing.assert_allclose(given, shared.of_logits(labels, teacher, student, 2.0))
    one = SoftLoss("dkd", arguments={"beta": 1.0})
    other = SoftLoss("dkd", arguments={"beta": 2.0})
    values = [
        loss.of_logits(labels, teacher, student, 4.0).numpy() for loss in (one, other)
    ]
    assert (values[1] > values[0]).all()


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ("kld", "must be one of kl, .*hint.*Received: 'kld'"),
        ({"name": "kl", "weight": 0}, "weight of kl must be above 0. Received: 0"),
        ({"name": "kl", "beta": 1}, "kl: unknown argument 'beta'; it takes temperat"),
        ({"name": "hint", "beta": 1}, "hint: unknown argument 'beta'; it takes none"),
        ({"name": "kl", "teacher_layers": ("a",)}, "compares logits and has no layers"),
        ({"name": "kl", "weight": float("inf")}, "weight of kl must be above 0"),
        ({"name": "kl", "temperature": 0}, "kl: temperature must be .* Received: 0"),
        ({"name": "kl", "temperature": "4"}, "temperature must be a number. .*'4'"),
        ({"name": "kl", "temperature": True}, "kl: temperature must be a number"),
        ({"name": "dkd", "alpha": -1}, "dkd: alpha must be .* Received: -1"),
        ({"name": "dkd", "alpha": 0, "beta": 0}, "dkd: one of alpha, beta must be"),
        ({"name": "dist", "beta": float("nan")}, "dist: beta must be .* Received: nan"),
        ({"name": "contrastive", "temperature": 0}, "contrastive: temperature must be"),
        (
            {"name": "relational", "angle_weight": -1},
            "relational: angle_weight must be",
        ),
        ({"name": "hint", "teacher_layers": ("a",)}, "both teacher_layers and student"),
        (
            {"name": "hint", "teacher_layers": ("a", "b"), "student_layers": ("a",)},
            "Received: 2 of the teacher, 1 of the student",
        ),
        ({"name": "hint", "teacher_layers": (), "student_layers": ()}, "at least one"),
        (7, "expected a soft loss as a name"),
    ],
)
def test_what_is_no_loss_is_refused(loss, message):
    with pytest.raises(ValueError, match=message):
        as_soft_losses([loss])


def test_a_loss_given_twice_is_refused():
    with pytest.raises(ValueError, match="each soft loss once. Received: kl, kl"):
        as_soft_losses(["kl", {"name": "kl", "weight": 2}])
