"""The schedule, weight decay and averaging do what their names say."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from kdprune.training import OneCycle, build_optimizer
from kdprune.training.optimizers import averaged_weights

layers = keras.layers


def small_model():
    image = keras.Input((4, 4, 2))
    x = layers.Conv2D(3, 3, name="conv")(image)
    x = layers.BatchNormalization(name="bn")(x)
    x = layers.Flatten()(layers.DepthwiseConv2D(2, name="depthwise")(x))
    model = keras.Model(image, layers.Dense(2, name="bias_head")(x))
    for weight in model.trainable_variables:
        weight.assign(np.random.default_rng(0).uniform(0.5, 1.5, weight.shape))
    return model


def test_one_cycle_rises_from_a_fifth_to_the_peak_and_falls_to_zero():
    rate = OneCycle(0.5, 100, warmup=0.2)
    np.testing.assert_allclose(
        [float(rate(step)) for step in (0, 10, 20, 60, 100, 120)],
        [0.1, 0.3, 0.5, 0.25, 0.0, 0.0],
        atol=1e-7,
    )


def test_a_cosine_fall_is_half_way_in_the_middle_and_flat_at_both_ends():
    rate = OneCycle(1.0, 100, warmup=0.0, fall="cosine")
    steps = np.arange(0, 101, 25)
    expected = 0.5 + 0.5 * np.cos(np.pi * steps / 100)
    actual = [float(rate(int(step))) for step in steps]
    np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_a_cycle_of_one_step_has_a_rate():
    assert 0 < float(OneCycle(0.1, 1)(0)) <= 0.1


def test_a_schedule_comes_back_from_its_config():
    rate = OneCycle(0.3, 50, warmup=0.1, fall="cosine")
    schedules = keras.optimizers.schedules
    again = schedules.deserialize(schedules.serialize(rate))
    assert type(again) is OneCycle
    assert [float(again(s)) for s in range(50)] == [float(rate(s)) for s in range(50)]


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_weight_decay_shrinks_kernels_and_spares_the_rest(name):
    model = small_model()
    optimizer = build_optimizer(
        name, 0.2, steps=10, schedule="constant", weight_decay=0.1
    )
    before = [weight.numpy() for weight in model.trainable_variables]
    gradients = [tf.zeros_like(weight) for weight in model.trainable_variables]
    optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
    names = {"kernel:0": 0, "other": 0}
    for weight, old in zip(model.trainable_variables, before, strict=True):
        shrinks = weight.name.endswith("kernel:0")
        names["kernel:0" if shrinks else "other"] += 1
        # One step of zero gradient at rate 0.2 leaves 1 - 0.2 * 0.1 of a kernel.
        np.testing.assert_allclose(weight, old * (0.98 if shrinks else 1.0), 1e-6)
    assert names == {"kernel:0": 3, "other": 5}


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_no_weight_decay_means_none(name):
    model = small_model()
    optimizer = build_optimizer(name, 0.2, steps=10)
    before = model.get_weights()
    gradients = [tf.zeros_like(weight) for weight in model.trainable_variables]
    optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_names_choose_the_optimizer_and_its_schedule():
    sgd = build_optimizer("sgd", 0.1, steps=10, momentum=0.8)
    assert (type(sgd), sgd.momentum, sgd.nesterov) == (keras.optimizers.SGD, 0.8, True)
    assert not build_optimizer("sgd", 0.1, steps=10, momentum=0.0).nesterov
    adamw = build_optimizer("adamw", 0.1, steps=10, schedule="cosine", warmup=0.0)
    assert type(adamw) is keras.optimizers.AdamW
    assert adamw._learning_rate.fall == "cosine"
    adam = build_optimizer("adam", 0.1, steps=10, schedule="constant")
    assert type(adam) is keras.optimizers.Adam
    assert float(adam.learning_rate) == pytest.approx(0.1)


def test_unknown_names_are_refused_with_the_valid_ones():
    with pytest.raises(ValueError, match="sgd, adam, adamw. Received: .lion"):
        build_optimizer("lion", 0.1, steps=10)
    with pytest.raises(ValueError, match="one_cycle, cosine, constant.*step"):
        build_optimizer("sgd", 0.1, steps=10, schedule="step")


def test_the_average_follows_its_recurrence_and_is_only_lent():
    model = small_model()
    optimizer = build_optimizer(
        "sgd", 0.1, steps=10, schedule="constant", momentum=0.0, ema=0.9
    )
    model.compile(optimizer)
    values = [weight.numpy() for weight in model.trainable_variables]
    average = [value.copy() for value in values]
    for _ in range(3):
        gradients = [tf.ones_like(weight) for weight in model.trainable_variables]
        optimizer.apply_gradients(
            zip(gradients, model.trainable_variables, strict=True)
        )
        values = [value - 0.1 for value in values]
        average = [
            0.9 * old + 0.1 * new for old, new in zip(average, values, strict=True)
        ]
    with averaged_weights(model):
        for weight, expected in zip(model.trainable_variables, average, strict=True):
            np.testing.assert_allclose(weight, expected, 1e-5)
    for weight, expected in zip(model.trainable_variables, values, strict=True):
        np.testing.assert_allclose(weight, expected, 1e-5)


def test_the_weights_come_back_even_after_an_error():
    model = small_model()
    optimizer = build_optimizer("sgd", 0.1, steps=10, ema=0.9)
    model.compile(optimizer)
    optimizer.build(model.trainable_variables)
    model.get_layer("conv").kernel.assign_add(tf.ones([3, 3, 2, 3]))
    before = model.get_weights()
    with pytest.raises(KeyError), averaged_weights(model):
        assert not np.array_equal(model.get_weights()[0], before[0])
        raise KeyError
    np.testing.assert_array_equal(model.get_weights()[0], before[0])


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ({"name": "sgdd"}, "optimizer must be one of sgd.*'sgdd'; did you mean 'sgd'"),
        ({"schedule": "cosin"}, "schedule must be one of.*did you mean 'cosine'"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0. Received: 0.0"),
        (
            {"learning_rate": float("nan")},
            "learning_rate must be above 0. Received: nan",
        ),
        ({"steps": 0}, "steps must be above 0. Received: 0"),
        ({"warmup": 1.0}, r"warmup must be in \[0, 1\). Received: 1.0"),
        ({"momentum": -0.1}, r"momentum must be in \[0, 1\). Received: -0.1"),
        ({"weight_decay": -1e-4}, "weight_decay must be at least 0. Received: -0.0001"),
        ({"ema": 1.0}, r"ema must be in \(0, 1\), or None. Received: 1.0"),
    ],
)
def test_numbers_out_of_range_are_refused(arguments, fault):
    with pytest.raises(ValueError, match=fault):
        build_optimizer(**{"steps": 10, **arguments})
