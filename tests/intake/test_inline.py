"""A nested model becomes one flat graph that computes the same and trains alike."""

import numpy as np
import pytest
import tf_keras as keras

from kdprune._graph import is_graph_model
from kdprune.intake.inline import inline
from kdprune.models import load_model

layers = keras.layers


def base(name="base"):
    images = keras.Input((16, 16, 3))
    x = layers.Conv2D(6, 3, name="conv")(images)
    x = layers.BatchNormalization(name="bn")(x)
    y = layers.Conv2D(6, 3, padding="same", activation="relu", name="more")(x)
    return keras.Model(images, layers.Add(name="add")([x, y]), name=name)


def transfer(trainable=True, training=None):
    inner = base()
    inner.trainable = trainable
    images = keras.Input((16, 16, 3))
    x = layers.RandomFlip("horizontal")(images)
    x = layers.Rescaling(1 / 127.5, -1)(x)
    x = inner(x, training=training)
    x = layers.Dropout(0.5)(layers.GlobalAveragePooling2D()(x))
    return keras.Model(images, layers.Dense(5, name="conv")(x))


def with_statistics(model):
    rng = np.random.default_rng(0)
    for layer in model._flatten_layers(include_self=False):
        if isinstance(layer, layers.BatchNormalization):
            layer.set_weights([rng.uniform(0.5, 1.5, w.shape) for w in layer.weights])
    return model


def images():
    return np.random.default_rng(1).random((4, 16, 16, 3), np.float32)


def assert_the_same(a, b):
    expected = a(images(), training=False).numpy()
    np.testing.assert_allclose(b(images(), training=False), expected, atol=1e-5)


def test_a_base_inside_becomes_part_of_one_graph():
    model = with_statistics(transfer())
    flat, changes = inline(model)
    assert_the_same(model, flat)
    assert not any(is_graph_model(layer) for layer in flat.layers)
    kinds = {type(layer).__name__ for layer in flat.layers}
    assert not kinds & {"Dropout", "RandomFlip"}
    # The outer layer of that name keeps it only if it comes first.
    assert len({layer.name for layer in flat.layers}) == len(flat.layers)
    assert "model 'base' inside the model" in changes[0]
    assert "(RandomFlip)" in changes[1] and "(Dropout)" in changes[1]
    assert flat.input_shape == model.input_shape and flat.name == model.name


@pytest.mark.parametrize("model", [transfer(trainable=False), transfer(training=False)])
def test_normalization_that_stood_still_stands_still(model):
    flat, _ = inline(with_statistics(model))
    flat.compile("sgd", "mse")
    before = flat.get_layer("bn").get_weights()
    flat.fit(images(), np.zeros((4, 5)), verbose=0)
    for old, new in zip(before, flat.get_layer("bn").get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_frozen_layers_stay_frozen_and_others_train():
    frozen, _ = inline(transfer(trainable=False))
    assert len(frozen.trainable_weights) == 2
    free, _ = inline(transfer())
    assert len(free.trainable_weights) == len(transfer().trainable_weights)


def test_a_model_that_is_called_twice_shares_its_layers():
    inner = keras.Sequential(
        [keras.Input((16, 16, 3)), layers.Conv2D(3, 3, padding="same")], name="inner"
    )
    source = keras.Input((16, 16, 3))
    model = keras.Model(source, layers.Flatten()(inner(inner(source))))
    flat, _ = inline(model)
    assert_the_same(model, flat)
    assert flat.count_params() == model.count_params()


def test_two_models_with_layers_of_one_name_are_told_apart():
    source = keras.Input((16, 16, 3))
    both = [base("left")(source), base("right")(source)]
    model = keras.Model(source, layers.GlobalMaxPooling2D()(layers.Add()(both)))
    flat, _ = inline(with_statistics(model))
    assert_the_same(model, flat)
    names = {layer.name for layer in flat.layers}
    assert {"conv", "right_conv"} <= names or {"conv", "left_conv"} <= names


def test_models_inside_models_inside_models():
    inner = keras.Sequential([keras.Input((16, 16, 3)), base(), layers.ReLU()])
    outer = keras.Sequential([keras.Input((16, 16, 3)), inner, layers.Flatten()])
    flat, _ = inline(with_statistics(outer))
    assert_the_same(outer, flat)


def test_a_flat_model_is_left_as_it_is():
    model = base()
    assert inline(model) == (model, [])


def test_dropout_that_stays_on_is_refused_by_name():
    source = keras.Input((16, 16, 3))
    on = layers.Dropout(0.5, name="always")(source, training=True)
    model = keras.Model(source, layers.Flatten()(on))
    with pytest.raises(ValueError, match=r"'always' \(Dropout\) .*training=True"):
        inline(model)


@pytest.mark.slow
def test_a_keras_3_model_becomes_flat(keras3_files):
    model = load_model(keras3_files / "nested.keras")
    flat, changes = inline(model)
    with np.load(keras3_files / "nested.npz") as arrays:
        x, y = arrays["x"], arrays["y"]
    np.testing.assert_allclose(flat(x, training=False), y, atol=1e-5)
    assert not any(is_graph_model(layer) for layer in flat.layers)
    assert len(changes) == 3 and "RandomFlip" in changes[-1]
