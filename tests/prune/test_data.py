"""Labels that criteria are measured on mean what they mean in `Distiller.fit`."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from kdprune.images import Rows, as_float
from kdprune.prune import plan_channels, recalibrate_batch_norm, weight_masks
from kdprune.prune.channels.groups import find_channels
from kdprune.prune.channels.importance import ChannelStatistics
from kdprune.prune.inference import batches
from kdprune.quantize import equalize_channels

layers = keras.layers
IMAGES = np.random.default_rng(0).random((40, 6, 6, 3)).astype(np.float32)
LABELS = np.arange(40) % 4


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    image = keras.Input((6, 6, 3))
    x = layers.Conv2D(8, 3, activation="relu", name="conv")(image)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.Dense(4, name="logits")(layers.GlobalAveragePooling2D()(x))
    return keras.Model(image, x, name="net")


@pytest.fixture(autouse=True)
def eagerly():
    tf.config.run_functions_eagerly(True)  # Tracing would take longer.
    yield
    tf.config.run_functions_eagerly(False)


def gradients(model, data):
    found = ChannelStatistics(find_channels(model), data)._gradients
    return np.concatenate([np.ravel(part) for pair in found.values() for part in pair])


FORMS = {
    "one-hot": lambda y: np.eye(4)[y],
    "one-hot integers": lambda y: np.eye(4, dtype=np.int64)[y],
    "a column": lambda y: y[:, None],
    "floats": lambda y: y.astype(np.float32),
    "a list": list,
}


def test_every_form_of_labels_gives_the_same_gradients(model):
    expected = gradients(model, (IMAGES, LABELS))
    assert np.abs(expected).max() > 1e-5
    for form, made in FORMS.items():
        found = gradients(model, (IMAGES, made(LABELS)))
        np.testing.assert_allclose(found, expected, rtol=1e-5, err_msg=form)
    streamed = gradients(model, [(IMAGES, tf.constant(LABELS[:, None]))])
    np.testing.assert_allclose(streamed, expected, rtol=1e-5)


def test_images_whose_label_is_missing_are_left_out(model):
    known = LABELS != 0
    expected = gradients(model, (IMAGES[known], LABELS[known]))
    rows = np.where(known[:, None], np.eye(4)[LABELS], 0)
    for missing in (np.where(known, LABELS, -1), rows):
        found = gradients(model, (IMAGES, missing))
        np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (LABELS + 3, "from 0 to 3, or -1 where .* Received: labels from 3 to 6"),
        (LABELS - 2, "Received: labels from -2 to 1"),
        (LABELS + 0.5, "whole numbers .* Received: labels from 0.5 to 3.5"),
        (np.eye(6)[LABELS], "'net' has 4 outputs, so that rows .* Received: 6"),
        (np.full((40, 4), np.nan), "must be probabilities"),
        (np.full((40, 4), 0.7), "sums from 2.8 to 2.8; .* give booleans"),
        (np.array(list("abcd"))[LABELS], "number the classes from 0"),
        (np.zeros((40, 4)), "at least one batch of images with labels"),
        (np.zeros((40, 4, 2)), "expected a label for each of 40 images"),
        (None, "Received: images alone"),
    ],
)
def test_labels_that_are_none_of_the_models_are_refused_in_one_line(
    model, labels, message
):
    for attempt in (
        lambda: plan_channels(model, 0.3, "taylor", data=(IMAGES, labels)),
        lambda: plan_channels(model, 0.3, "gradient", data=[(IMAGES, labels)]),
        lambda: weight_masks(
            model, relative_threshold=0.1, criterion="taylor", data=(IMAGES, labels)
        ),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            attempt()
        assert "\n" not in str(caught.value)


def test_rows_of_several_labels_are_checked_too():
    image = keras.Input((6, 6, 3))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(image))
    net = keras.Model(image, layers.Dense(3, activation="sigmoid")(x))
    rows = (np.arange(120).reshape(40, 3) % 3 > 0).astype(int)
    missing = np.where(np.arange(40)[:, None] < 5, -1, rows)
    ((images, labels),) = batches((IMAGES, missing), net)
    assert len(images) == len(labels) == 35
    for wrong in (2 * rows, rows[:, :2], LABELS):
        with pytest.raises(ValueError, match="1 where one applies and 0 where not"):
            list(batches((IMAGES, wrong), net))


def test_where_no_labels_are_needed_any_form_of_data_does(model):
    for data in ((IMAGES, LABELS), [IMAGES, LABELS], (IMAGES, None), list(IMAGES)):
        ((images, labels),) = batches(data)
        assert labels is None
        np.testing.assert_array_equal(images, IMAGES)
    mapped = Rows((IMAGES * 255).astype(np.uint8))
    for data in ((mapped, np.where(LABELS == 3, -1, LABELS)), mapped):
        ((images, _),) = batches(data, model if isinstance(data, tuple) else None)
        assert len(images) == (30 if isinstance(data, tuple) else 40)
    for nothing in (None, "images", 3):
        for take in (recalibrate_batch_norm, equalize_channels):
            with pytest.raises(ValueError, match="data must be images, .images, lab"):
                take(model, nothing)


def test_images_with_labels_are_no_calibration_images():
    with pytest.raises(ValueError, match="calibration images must be one array .* tup"):
        as_float((IMAGES, LABELS), name="calibration images")
