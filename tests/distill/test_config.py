"""A Distiller has a config, as other Keras models have."""

import json

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from kdprune.distill import Distiller, SoftLoss
from kdprune.training import build_optimizer

layers = keras.layers
pytestmark = pytest.mark.usefixtures("eagerly")


def network(width=4, seed=0, nested=False):
    keras.utils.set_random_seed(seed)
    image = keras.Input((8, 8, 3))
    x = layers.ReLU(name="relu")(layers.Conv2D(width, 3, name="conv")(image))
    body = keras.Model(image, x, name="body")
    if nested:
        image = keras.Input((8, 8, 3))
        x = body(image)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, layers.Dense(4, name="logits")(x))


def again_of(made):
    """What its config makes, through JSON, with the weights put back."""
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(made)))
    again = keras.saving.deserialize_keras_object(config)
    again.student.set_weights(made.student.get_weights())
    for new, old in zip(again.teachers, made.teachers, strict=True):
        new.set_weights(old.get_weights())
    return again


@pytest.mark.parametrize("nested", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("losses", "schedules"),
    [
        (None, {}),
        (["dkd", {"name": "dist", "weight": 0.5, "beta": 2.0}], {"temperature": 2.0}),
        pytest.param(
            [keras.losses.KLDivergence()],
            {"label_smoothing": 0.1},
            marks=pytest.mark.slow,
        ),
        (
            [SoftLoss("articles", 3.0)],
            {
                "temperature": [(0, 8), (1, 2)],
                "soft_weight": [(0, 1), (0.5, 1), (0.5, 0), (1, 0)],
                "steps": 4,
            },
        ),
    ],
)
@pytest.mark.quick("None-schedules0-False", "losses3-schedules3-False")
def test_what_a_config_makes_trains_alike(data, losses, schedules, nested):
    made = Distiller(network(nested=nested), network(6, 1, nested), losses)
    made.compile(build_optimizer("sgd", 0.1, steps=4, weight_decay=1e-3), **schedules)
    again = again_of(made)
    assert again.get_config() == made.get_config()
    assert again.get_compile_config() == made.get_compile_config()
    for model in (made, again):
        model.fit(*data, batch_size=32, epochs=2, shuffle=False, verbose=0)
    for old, new in zip(
        made.student.get_weights(), again.student.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(new, old)


def test_losses_of_features_keep_their_layers(data):
    hint = SoftLoss("hint", teacher_layers=("relu",), student_layers=("relu",))
    made = Distiller(network(), network(6, 1), ["kl", hint])
    made.compile("sgd")
    again = again_of(made)
    assert again.soft_losses[1].teacher_layers == ["relu"]
    assert len(again.feature_losses[0].trainable_variables) == 2
    history = again.fit(*data, verbose=0).history
    assert np.isfinite(history["hint_loss"][0])


def test_a_fitted_distiller_has_a_config(data):
    made = Distiller(network(), [network(6, 1), network(6, 2)])
    made.compile("adam", metrics=["accuracy"])
    made.fit(*data, verbose=0)
    again = again_of(made)
    assert len(again.teachers) == 2
    assert again.evaluate(*data, verbose=0) == pytest.approx(
        made.evaluate(*data, verbose=0)
    )


def test_teachers_of_random_weights_do_not_teach(data):
    made = Distiller(network(), network(6, 1))
    again = Distiller.from_config(made.get_config())
    again.compile("sgd")
    with pytest.raises(ValueError, match="still has the random weights"):
        again.fit(*data, verbose=0)
    again.teachers[0].set_weights(made.teachers[0].get_weights())
    again.fit(*data, verbose=0)


def test_a_checkpoint_holds_the_same_objects_as_ever():
    # One of an earlier version is restored as long as they are.
    made = Distiller(network(), network(6, 1), ["kl", "hint"])
    made.compile("sgd", temperature=[(0, 4.0), (1, 2.0)], steps=8)
    model = tf.train.Checkpoint(model=made)._trackable_children()["model"]
    names = set(model._trackable_children())
    assert names == {"feature_losses", "loss", "optimizer", "student"}


def test_without_compile_there_is_no_config_of_it():
    assert Distiller(network()).get_compile_config() is None


def test_a_function_without_a_name_has_no_config():
    made = Distiller(network(), network(6, 1), [lambda t, s: ((t - s) ** 2)[:, 0]])
    with pytest.raises(ValueError, match="known by a name: kdprune.register_loss"):
        made.get_config()
