"""A model's head is told, split off and put back, whatever form it has."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from kdprune.distill import Distiller
from kdprune.evaluate import predict
from kdprune.intake.heads import Head, split_head
from kdprune.tflite import convert_tflite

layers = keras.layers


def classifier(*tail, units=4):
    images = keras.Input((8, 8, 3))
    x = layers.Flatten()(layers.Conv2D(4, 3, activation="relu")(images))
    x = layers.Dense(units, name="scores")(x)
    for layer in tail:
        x = layer(x)
    return keras.Model(images, x)


def dense(activation, units=4):
    images = keras.Input((8, 8, 3))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(images))
    return keras.Model(images, layers.Dense(units, activation=activation)(x))


def sequential(activation):
    return keras.Sequential(
        [keras.Input((8, 8, 3)), layers.Flatten(), layers.Dense(4, activation)]
    )


def nested(activation):
    inner = dense(activation)
    images = keras.Input((8, 8, 3))
    return keras.Model(images, layers.Flatten()(inner(layers.Rescaling(0.5)(images))))


def images():
    return np.random.default_rng(0).random((6, 8, 8, 3), np.float32)


def inverse(probabilities, activation):
    if activation == "sigmoid":
        return np.log(probabilities) - np.log1p(-probabilities)
    logs = np.log(probabilities)
    return logs - logs.mean(axis=1, keepdims=True)


@pytest.mark.parametrize(
    "model, activation",
    [
        (dense("softmax"), "softmax"),
        (dense("sigmoid"), "sigmoid"),
        (dense("sigmoid", 1), "sigmoid"),
        (sequential("softmax"), "softmax"),
        (nested("softmax"), "softmax"),
        (nested("sigmoid"), "sigmoid"),
        (classifier(layers.Softmax()), "softmax"),
        (classifier(layers.Activation("softmax")), "softmax"),
        (classifier(layers.Activation("sigmoid"), layers.Dropout(0.5)), "sigmoid"),
        (
            classifier(layers.Activation("softmax"), layers.Activation("linear")),
            "softmax",
        ),
        (classifier(layers.Softmax(), layers.Reshape((4,))), "softmax"),
    ],
)
def test_what_is_split_off_was_the_head(model, activation):
    split, head = split_head(model)
    assert head == Head(activation, model.output_shape[1])
    said, logits = (
        model.predict(images(), verbose=0),
        split.predict(images(), verbose=0),
    )
    expected = inverse(said.astype(np.float64), activation)
    if activation == "softmax":
        logits = logits - logits.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    assert split_head(split)[1].activation == "none"


@pytest.mark.parametrize(
    "model", [dense(None), classifier(layers.ReLU()), classifier(layers.Dropout(0.5))]
)
def test_logits_stay_as_they_are(model):
    split, head = split_head(model)
    assert split is model and head == Head("none", 4)


def test_a_softmax_inside_the_network_is_no_head():
    model = classifier(layers.Softmax(), layers.Dense(4))
    assert split_head(model)[1].activation == "none"


@pytest.mark.parametrize(
    "head, kind",
    [
        (Head("softmax", 4), "classes"),
        (Head("none", 4), "classes"),
        (Head("sigmoid", 4), "labels"),
        (Head("sigmoid", 1), "binary"),
        (Head("none", 1), "binary"),
    ],
)
def test_the_head_tells_the_task(head, kind):
    assert head.kind == kind


def two_outputs():
    source = keras.Input((8, 8, 3))
    x = layers.GlobalAveragePooling2D()(source)
    kind = layers.Dense(4, activation="softmax", name="kind")(x)
    colour = layers.Dense(3, activation="sigmoid", name="colour")(x)
    return keras.Model(source, [kind, colour])


@pytest.mark.parametrize(
    "model, what",
    [
        (dense("sigmoid"), "sigmoid, for several labels"),
        (dense("sigmoid", 1), "one unit, for two classes"),
        (dense(None, 1), "one unit, for two classes"),
        (nested("sigmoid"), "sigmoid, for several labels"),
    ],
)
def test_no_softmax_is_put_behind_another_head(model, what):
    """Files, scores and students of such a model would be wrong without a word."""
    labels = np.zeros(6, np.int64)
    for call in (
        lambda: convert_tflite(model),
        lambda: predict(model, images()),
        lambda: Distiller(dense(None, model.output_shape[1]), model).fit(
            images(), labels
        ),
    ):
        with pytest.raises(ValueError, match=what) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_a_file_that_ends_in_sigmoid_is_not_scored_by_softmax(tmp_path):
    model = dense("sigmoid")
    content = tf.lite.TFLiteConverter.from_keras_model(model).convert()
    (tmp_path / "labels.tflite").write_bytes(content)
    with pytest.raises(ValueError, match="labels.tflite: .* ends in sigmoid"):
        predict(tmp_path / "labels.tflite", images())


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: split_head(two_outputs()), "of one output. Received: kind, colour"),
        (
            lambda: split_head(
                keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(4, 3)])
            ),
            r"a row of scores for each image. Received: .*\(None, 6, 6, 4\)",
        ),
    ],
)
def test_what_is_no_classifier_is_refused_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
