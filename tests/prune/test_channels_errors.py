"""Channel pruning: what it cannot follow, and what it refuses in one line."""

import re

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from kdprune.prune import plan_channels, prune_channels
from kdprune.quantize import quantize_model

layers = keras.layers


@keras.saving.register_keras_serializable("tests")
class Shuffle(layers.Layer):
    """A layer of one's own that mixes channels."""

    def call(self, inputs):
        return inputs[..., ::-1]


class Unsaved(layers.Layer):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def call(self, inputs):
        return self.factor * inputs


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(3)

    def call(self, inputs):
        return self.dense(inputs)


def model_with(layer, **arguments):
    """Two convolutions with the layer between them, then a classifier."""
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, name="first", **arguments)(inputs)
    x = layers.Conv2D(16, 3, name="second")(layer(x))
    return keras.Model(inputs, layers.Dense(3, name="scores")(layers.Flatten()(x)))


def small():
    return model_with(layers.ReLU())


@pytest.mark.parametrize(
    "layer, reason",
    [
        (Shuffle(name="mixing"), "a Shuffle"),
        (layers.LayerNormalization(name="mixing"), "a LayerNormalization"),
        (layers.GroupNormalization(4, name="mixing"), "a GroupNormalization"),
        (layers.BatchNormalization(axis=1, name="mixing"), r"axis \[1\]"),
        (layers.Softmax(name="mixing"), "a Softmax"),
        (layers.Activation("softmax", name="mixing"), "'softmax' may mix"),
        (layers.Lambda(lambda x: 2 * x, name="mixing"), "a Lambda"),
        (layers.Rescaling(np.ones((6, 1)).tolist(), name="mixing"), "another axis"),
    ],
)
def test_what_cannot_be_followed_stays_and_is_named(layer, reason, check_invariant):
    if isinstance(layer, layers.Lambda):
        plan = plan_channels(model_with(layer), 0.5, round_to=1)
    else:
        plan, _ = check_invariant(model_with(layer), 0.5)
    assert [group.name for group in plan.groups] == ["second"]
    why = plan.kept_layers["first"]
    assert why.startswith("coupled with mixing: ")
    assert re.search(reason, why)
    assert why in str(plan)


@pytest.mark.parametrize(
    "combine",
    [
        lambda x: x * np.arange(8, dtype=np.float32),
        lambda x: x * [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0],
        lambda x: tf.clip_by_value(x, 0.0, tf.range(8.0)),
        lambda x: layers.Add()([x, tf.ones((1, 6, 6, 8))]),
        lambda x: layers.Concatenate()([x, tf.ones((1, 6, 6, 8))]),
        lambda x: layers.Dropout(0.5, noise_shape=(None, 1, 1, 8))(x),
        lambda x: tf.reduce_mean(x, axis=[2, 3], keepdims=True) * x,
        lambda x: tf.reverse(x, axis=[3]),
    ],
)
def test_constant_arrays_are_not_followed(combine):
    plan = plan_channels(model_with(combine), 0.5, round_to=1)
    assert [group.name for group in plan.groups] == ["second"]
    assert "coupled with" in plan.kept_layers["first"]


def test_constants_and_other_axes_are_not_followed():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, name="first")(inputs) * np.ones(8, np.float32)
    x = layers.Conv2D(8, 3, name="second")(x)
    x = layers.Conv2D(8, 1, name="third")(layers.Permute((3, 1, 2))(x))
    model = keras.Model(inputs, layers.Dense(3, name="scores")(x[:, 0, 0, ::2]))
    with pytest.raises(ValueError, match="no channels .* first: .* constant array"):
        plan_channels(model, 0.5)


def test_a_layer_at_the_input_that_cannot_be_followed_is_named():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv1D(8, 3, name="rows")(inputs)
    x = layers.Conv2D(8, 3, name="conv")(x)
    model = keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))
    plan = plan_channels(model, 0.5, round_to=1)
    assert [group.name for group in plan.groups] == ["conv"]
    assert "Conv1D" in plan.kept_layers["rows"] and "rows: " in str(plan)


def test_a_layer_that_keeps_some_of_its_channels_says_how_many():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 1, name="conv")(inputs)
    a, b = (layers.Conv2D(n, 1, name=name)(inputs) for name, n in (("a", 6), ("b", 2)))
    x = layers.Flatten()(layers.Add()([x, layers.Concatenate()([a, b])]))
    mixed = layers.Flatten()(Shuffle(name="mixing")(b))
    scores = layers.Dense(3)(layers.Concatenate()([x, mixed]))
    plan = plan_channels(keras.Model(inputs, scores), 0.5, round_to=1)
    assert plan.kept_layers["conv"].startswith("2 of 8 channels: coupled with mixing: ")
    assert plan.kept_layers["b"].startswith("coupled with mixing: ")
    assert "a" not in plan.kept_layers


def test_an_activation_that_mixes_keeps_the_layers_own_channels(check_invariant):
    plan, _ = check_invariant(model_with(layers.ReLU(), activation="softmax"))
    assert [group.name for group in plan.groups] == ["second"]
    assert plan.kept_layers["first"] == "its activation 'softmax' may mix channels"


def test_ignored_layers_keep_their_channels():
    plan = plan_channels(small(), 0.5, round_to=1, ignore="fir*")
    assert [group.name for group in plan.groups] == ["second"]
    assert plan.kept_layers["first"] == "it is ignored"


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({}, "give exactly one of .*Received: none"),
        ({"ratio": 0.5, "target_macs": 9}, "exactly one of .*ratio, target_macs"),
        ({"ratio": 0.0}, r"between 0 and 1\. Received: 0.0"),
        ({"ratio": 1.0}, r"between 0 and 1\. Received: 1.0"),
        ({"ratio": -0.1}, r"between 0 and 1\. Received: -0.1"),
        ({"ratio": float("nan")}, r"between 0 and 1\. Received: nan"),
        ({"target_macs": 0}, "target_macs must be positive. Received: 0"),
        ({"target_macs": 10}, r"10 cannot be reached .* the least is [\d,]+$"),
        ({"target_parameters": 10}, r"10 cannot be reached .* the least is [\d,]+$"),
        ({"ratio": 0.99}, r"ratio 0.99 cannot be reached .* the most is 0\.\d+$"),
        ({"target_bytes": 10}, "give measure_bytes"),
        ({"ratio": 0.5, "round_to": 0}, "round_to is a whole number"),
        ({"ratio": 0.5, "round_to": 2.5}, "round_to is a whole number"),
        ({"ratio": 0.5, "scope": "layer"}, "scope must be one of 'global', 'per_"),
        ({"threshold": 0.5, "scope": "per_cost"}, "limits no cost that scope"),
        ({"ratio": 0.5, "importance": "l3"}, "importance must be one of l1, l2"),
        ({"ratio": 0.5, "ignore": ["secnd"]}, "did you mean 'second'.*'secnd'"),
        ({"ratio": 0.5, "importance": lambda g, e: [1.0]}, "must give 8 numbers"),
        ({"ratio": 0.5, "importance": "taylor"}, r"data=\(images, labels\)"),
        (
            {
                "ratio": 0.5,
                "importance": "taylor",
                "data": np.zeros((2, 8, 8, 3), np.float32),
            },
            "images and their labels.*Received: images alone",
        ),
        ({"ratio": 0.5, "importance": "activation_rate"}, "give data=images"),
        (
            {
                "ratio": 0.5,
                "importance": "activation_rate",
                "data": np.zeros((2, 8, 8, 3), int),
            },
            r"floats in \[0, 1\].*Received: int64",
        ),
        ({"ratio": 0.5, "importance": "apoz", "data": []}, "at least one batch"),
        ({"ratio": 0.5, "steps": 0}, "steps is a whole number"),
        ({"threshold": 0.5, "steps": 2}, "expected steps=1. Received: 2"),
        ({"ratio": 0.1, "scope": "local", "round_to": 16}, "removes nothing"),
        (
            {"target_bytes": 10, "measure_bytes": lambda m: m.count_params()},
            r"target_bytes 10 cannot be reached .* the least is [\d,]+$",
        ),
    ],
)
def test_arguments_that_make_no_sense_get_one_line(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        prune_channels(small(), **arguments)
    assert "\n" not in str(error.value)


def test_an_unknown_argument_is_a_type_error():
    with pytest.raises(TypeError, match="target_mac"):
        plan_channels(small(), target_mac=10)


def test_a_subclassed_model_is_told_what_to_do():
    model = Subclassed()
    model(np.zeros((1, 4), np.float32))
    with pytest.raises(ValueError, match="has no graph: build it from keras.Input"):
        prune_channels(model, 0.5)


def test_a_model_already_quantized_is_refused():
    model = quantize_model(small())
    with pytest.raises(ValueError, match="change the float model first"):
        prune_channels(model, 0.5)


def test_a_layer_that_cannot_be_made_again_is_named():
    plan = plan_channels(model_with(Unsaved(2.0)), 0.5, round_to=1)
    with pytest.raises(ValueError, match=r"\(Unsaved\) cannot be made again"):
        plan.apply()


def test_a_layer_shared_with_a_nested_model_is_refused():
    inputs = keras.Input((8, 8, 3))
    conv = layers.Conv2D(3, 3, padding="same", name="conv")
    inner_input = keras.Input((8, 8, 3))
    inner = keras.Model(inner_input, conv(inner_input), name="inner")
    model = keras.Model(inputs, layers.Flatten()(inner(conv(inputs))))
    with pytest.raises(ValueError, match="'conv' is also used as 'inner/conv'"):
        plan_channels(model, 0.5)
