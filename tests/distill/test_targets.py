"""Labels in every form, and what ordinary mistakes are answered with."""

import functools
import re

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from kdprune.distill import Distiller
from kdprune.stages import fitting
from kdprune.training import cross_entropy

layers = keras.layers


def network(width=4, classes=4, seed=0):
    keras.utils.set_random_seed(seed)
    image = keras.Input((8, 8, 3))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(width, 3)(image)))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, layers.Dense(classes, name="logits")(x))


def distiller(losses=None, teacher=True, **options):
    made = Distiller(network(), network(6, seed=1) if teacher else None, losses)
    made.compile("sgd", **{"soft_weight": 0.5, **options})
    return made


def fit(made, images, targets=None, **options):
    options = {"batch_size": 16, "shuffle": False, "verbose": 0, **options}
    return made.fit(images, targets, **options).history


def weights(made):
    return np.concatenate([w.ravel() for w in made.student.get_weights()])


def as_is(images, targets, batch=16):
    return tf.data.Dataset.from_tensor_slices((images, targets)).batch(batch)


ROWS = np.eye(4, dtype=np.float32)
SLOW = pytest.mark.slow


@pytest.fixture(scope="module")
def by_indices(data):
    """History, weights and scores of a training on indices, by its losses."""

    @functools.cache
    def taught(*losses):
        made = distiller(losses)
        history = fit(made, *data, epochs=2, validation_data=data)
        return history, weights(made), made.evaluate(*data, verbose=0)

    return taught


FORMS = {
    "rows": lambda y: ROWS[y],
    "whole rows": lambda y: ROWS[y].astype(int),
    "column": lambda y: y[:, None],
    "float": lambda y: y.astype(np.float32),
    "uint8": lambda y: y.astype(np.uint8),
    "tensor": lambda y: tf.one_hot(y, 4),
}


@pytest.mark.parametrize(
    ("form", "losses", "streamed"),
    [
        *((form, "kl", False) for form in ("rows", "column", "float")),
        # Of the types of those above, or by a loss that reads the labels itself.
        pytest.param("whole rows", "dkd", True, marks=SLOW),
        pytest.param("uint8", "dkd", False, marks=SLOW),
        pytest.param("column", "kl", True, marks=SLOW),
        pytest.param("tensor", "kl", False, marks=SLOW),
    ],
)
@pytest.mark.quick("column-kl-False")
def test_one_hot_labels_teach_as_indices_do(data, by_indices, losses, form, streamed):
    images, labels = data
    expected, taught, scored = by_indices(losses)
    other, given = distiller([losses]), FORMS[form](labels)
    if streamed:
        batches = as_is(images, given)
        found = other.fit(batches, epochs=2, validation_data=batches, verbose=0).history
    else:
        found = fit(other, images, given, epochs=2, validation_data=(images, given))
    assert set(found) == set(expected)
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5)
    np.testing.assert_allclose(weights(other), taught, atol=1e-6)
    found = other.evaluate(images, given, verbose=0)
    assert found == pytest.approx(scored, rel=1e-5)


@pytest.mark.slow
def test_lists_of_labels_are_labels(data):
    images, labels = data
    plain, other, pair = distiller(), distiller(), distiller()
    fit(plain, images, labels)
    fit(other, images, labels.tolist())
    np.testing.assert_array_equal(weights(other), weights(plain))
    stored = pair.teachers[0].predict(images, verbose=0)
    fit(pair, images, [labels, stored])
    np.testing.assert_allclose(weights(pair), weights(plain), atol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_mixed_labels_have_the_cross_entropy_of_the_mixture(data, smoothing):
    images, labels = data
    rows = 0.7 * ROWS[labels] + 0.3 * ROWS[labels[::-1]]
    made = distiller(label_smoothing=smoothing, run_eagerly=True)
    student = keras.models.clone_model(made.student)
    student.set_weights(made.student.get_weights())
    logits = student(images, training=True).numpy().astype(np.float64)
    log = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    target = (1 - smoothing) * rows + smoothing / 4
    result = made.train_on_batch(images, rows, return_dict=True)
    expected = -(target * log).sum(axis=1).mean()
    assert result["hard_loss"] == pytest.approx(expected, rel=1e-5)
    right = logits.argmax(axis=1) == rows.argmax(axis=1)
    assert result["accuracy"] == pytest.approx(right.mean())


@pytest.mark.slow
def test_rows_of_zeros_are_missing_labels(data):
    images, labels = data
    indices, rows = labels.copy(), ROWS[labels]
    indices[::3], rows[::3] = -1, 0
    plain, other = distiller(label_smoothing=0.1), distiller(label_smoothing=0.1)
    expected, found = fit(plain, images, indices), fit(other, images, rows)
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5)
    assert other.evaluate(images, rows, verbose=0) == pytest.approx(
        plain.evaluate(images, indices, verbose=0), rel=1e-5
    )


def test_rows_of_labels_come_with_stored_logits(data):
    images, labels = data
    stored = np.random.default_rng(0).normal(0, 2, (64, 4)).astype(np.float32)
    plain, other = distiller(teacher=False), distiller(teacher=False)
    fit(plain, images, (labels, stored))
    fit(other, images, (ROWS[labels], stored))
    np.testing.assert_allclose(weights(other), weights(plain), atol=1e-6)


def test_cross_entropy_takes_rows():
    logits = np.random.default_rng(0).normal(0, 2, (8, 4)).astype(np.float32)
    labels = np.arange(8) % 4
    for smoothing in (0.0, 0.3):
        np.testing.assert_allclose(
            cross_entropy(ROWS[labels], logits, smoothing),
            cross_entropy(labels, logits, smoothing),
            rtol=1e-6,
        )
    with pytest.raises(ValueError, match=r"shape of the logits.*Received: \(8, 3\)"):
        cross_entropy(np.ones((8, 3)) / 3, logits)
    with pytest.raises(ValueError, match="label_smoothing must be in"):
        cross_entropy(labels, logits, 1.0)


STORED = np.zeros((64, 4), np.float32)
LABELS = np.arange(64) % 4

MISTAKES = {
    "one class too many": (LABELS + 1, "0 to 3, or -1 .*Received: labels from 1 to 4"),
    "below -1": (LABELS - 2, "Received: labels from -2 to 1"),
    "half a class": (LABELS + 0.5, "whole numbers .*from 0.5 to 3.5"),
    "NaN": (np.where(LABELS, LABELS, np.nan), "whole numbers .*from nan to nan"),
    "names": (LABELS.astype(str), "class indices or rows .*number the classes from 0"),
    "five columns": (np.eye(5)[LABELS], "has 4 outputs.*4 columns. Received: 5"),
    "percent": (100 * ROWS[LABELS], "the sum 1.*Received: sums from 100 to 100"),
    "logits as labels": (ROWS[LABELS] - 0.25, "rows of labels must be probabilities"),
    "an image": (np.zeros((64, 8, 8, 3)), "expected a label for each of 64 images"),
    "too few": (LABELS[:60], r"each of 64 images.*Received: shape \(60,\)"),
    "three parts": ((LABELS, STORED, STORED), "the pair .*Received: 3 parts"),
    "logits of others": ((LABELS, STORED[:, :3]), r"of shape \(64, 4\). Received: .*3"),
    "logits of fewer": ((LABELS, STORED[:60]), r"of shape \(64, 4\). Received: .*60"),
    "NaN as logits": ((LABELS, STORED * np.nan), "must be finite"),
    "whole logits": ((LABELS, STORED.astype(int)), "must be floats .*Received: int64"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_targets_that_are_none_are_refused_before_training(data, mistake):
    targets, message = MISTAKES[mistake]
    made = distiller(teacher=not isinstance(targets, tuple))
    before = weights(made)
    with pytest.raises(ValueError, match=message) as error:
        fit(made, data[0], targets)
    assert "\n" not in str(error.value)
    np.testing.assert_array_equal(weights(made), before)
    with pytest.raises(ValueError, match=message):
        made.evaluate(data[0], targets, verbose=0)
    if not isinstance(targets, tuple):
        with pytest.raises(ValueError, match=message):
            fit(made, *data, validation_data=(data[0], targets))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((0, 8, 8, 3), np.float32), "expected images. Received: none"),
        (np.zeros((64, 9, 8, 3), np.float32), r"\(n, 8, 8, 3\). Received: .64, 9, 8"),
        (np.zeros((8, 8, 3), np.float32), r"for a single image use image\[None\]"),
        (np.full((64, 8, 8, 3), np.nan, np.float32), "must be finite"),
        (np.full((64, 8, 8, 3), np.inf, np.float32), "must be finite"),
    ],
)
def test_images_that_do_not_fit_are_refused(images, message):
    made = distiller()
    with pytest.raises(ValueError, match=message) as error:
        fit(made, images, LABELS)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "mistake",
    [
        *("one class too many", "five columns", "percent", "names"),
        # One check finds these with one of those above.
        pytest.param("half a class", marks=SLOW),
        pytest.param("NaN", marks=SLOW),
    ],
)
@pytest.mark.quick("one class too many", "names")
def test_streamed_labels_out_of_range_are_refused_in_one_line(data, mistake):
    targets, _ = MISTAKES[mistake]
    made = distiller()
    says = "labels must be|rows of labels"
    with pytest.raises(ValueError, match=says) as error:
        made.fit(as_is(data[0], targets), verbose=0)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=says) as error:
        made.evaluate(as_is(data[0], targets), verbose=0)
    assert "\n" not in str(error.value)


def failures(data):
    """What fails, before anything runs, while a step is traced, or as it runs."""
    images, labels = data
    stored = np.zeros((64, 5), np.float32) + np.arange(5)

    class Broken(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            raise RuntimeError("broken")

    return {
        "labels": lambda made: made.fit(images, labels + 9, verbose=0),
        "streamed labels": lambda made: made.fit(as_is(images, labels + 9), verbose=0),
        "streamed images": lambda made: made.fit(
            as_is(images[:, :5], labels), verbose=0
        ),
        "streamed rows": lambda made: made.fit(
            as_is(images, np.eye(5)[labels]), verbose=0
        ),
        "no labels": lambda made: made.fit(images, verbose=0),
        "stored logits": lambda made: made.fit(
            as_is(images, (labels, stored)), verbose=0
        ),
        "callback": lambda made: made.fit(
            images, labels, callbacks=[Broken()], verbose=0
        ),
        "evaluation": lambda made: made.evaluate(
            as_is(images, np.eye(5)[labels]), verbose=0
        ),
    }


# After a failure, a Distiller may be compiled again, and need not be.
COMPILED_AGAIN = ("labels", "streamed rows", "callback")


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        # Before anything runs, while a step is traced, as it runs, and after it.
        *((failure, "graph") for failure in ("labels", "streamed rows", "callback")),
        pytest.param("streamed labels", "graph", marks=SLOW),
        pytest.param("no labels", "subclassed", marks=SLOW),
        pytest.param("streamed images", "subclassed", marks=SLOW),
        pytest.param("stored logits", "hint", marks=SLOW),
        pytest.param("evaluation", "hint", marks=SLOW),
    ],
)
@pytest.mark.quick("labels-graph", "streamed rows-graph")
def test_a_distiller_is_fitted_after_a_fit_that_failed(data, subclassed, kind, failure):
    if kind == "subclassed":
        keras.utils.set_random_seed(0)
        models = subclassed(), subclassed()
        if failure == "streamed images":  # Not built, they take images of any size.
            for model in models:
                model(data[0][:1])
        made = Distiller(*models)
        made.compile("adam")
    else:
        made = distiller(["hint"] if kind == "hint" else None)
        made.compile("adam")
    with pytest.raises((ValueError, RuntimeError)) as error:
        failures(data)[failure](made)
    assert "\n" not in str(error.value)
    if failure in COMPILED_AGAIN:
        made.compile("adam")
    losses = fit(made, *data, epochs=3)["loss"]
    assert losses[-1] < losses[0]
    assert np.isfinite(made.evaluate(*data, verbose=0)).all()


@pytest.mark.slow
def test_the_weights_after_a_failed_fit_are_those_of_a_training_without_it(data):
    plain, other = distiller(), distiller()
    with pytest.raises(ValueError, match="has 4 outputs"):
        other.fit(as_is(data[0], np.eye(5)[LABELS]), verbose=0)
    fit(plain, *data, epochs=2)
    fit(other, *data, epochs=2)
    np.testing.assert_array_equal(weights(other), weights(plain))


@pytest.mark.parametrize("role", ["student", "teacher"])
@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("model.keras", r"Received: the path 'model.keras'; load it first: kdprune\."),
        (7, "must be a tf_keras .* Received: builtins.int"),
        (network, "must be a tf_keras .* Received: builtins.function"),
    ],
)
def test_what_is_no_model_is_refused(role, model, message):
    pair = {"student": network(), "teacher": network(), role: model}
    with pytest.raises(ValueError, match=f"{role} must be.*") as error:
        Distiller(**pair)
    assert re.search(message, str(error.value))


def test_a_model_of_keras_3_is_refused():
    import keras as keras3

    model = keras3.Sequential([keras3.Input((8, 8, 3)), keras3.layers.Flatten()])
    with pytest.raises(ValueError, match="of Keras 3; save it as .keras"):
        Distiller(model, network())


def test_bytes_that_no_layer_scales_are_warned_of(data, recwarn):
    pixels = (255 * data[0]).astype(np.uint8)
    with pytest.warns(UserWarning, match="from 0 to 255. If they take pixels in"):
        fit(distiller(), pixels, LABELS)
    recwarn.clear()
    image = keras.Input((8, 8, 3))
    scaled = keras.Model(image, network()(layers.Rescaling(1 / 255)(image)))
    made = Distiller(scaled, network(6, seed=1))
    made.compile("sgd")
    fit(made, pixels, LABELS)
    assert not recwarn


def of_bytes():
    """A student that scales bytes itself, and a teacher that was told to."""
    image = keras.Input((8, 8, 3))
    student = keras.Model(image, network()(layers.Rescaling(1 / 255)(image)))
    made = Distiller(student, network(6, seed=1))
    made.compile("sgd")
    return made


def of_signed():
    made = Distiller(network(), network(6, seed=1), input_range=(-1, 1))
    made.compile("sgd")
    return made


@pytest.mark.parametrize("how", ["arrays", "dataset"])
@pytest.mark.parametrize(
    ("made", "good", "wrong", "told"),
    [
        (of_bytes, lambda x: 255 * x, lambda x: x, "takes pixels of [0, 255]"),
        (of_signed, lambda x: 2 * x - 1, lambda x: 255 * x, "takes pixels of [-1, 1]"),
    ],
)
@pytest.mark.quick(
    "of_bytes-<lambda>-<lambda>-takes pixels of [0, 255]-arrays",
    "of_signed-<lambda>-<lambda>-takes pixels of [-1, 1]-arrays",
)
def test_pixels_of_another_range_are_refused_in_a_line(
    data, made, good, wrong, told, how
):
    images, made = data[0], made()

    def given(pixels):
        pixels = pixels.astype("float32")
        return (as_is(pixels, LABELS),) if how == "dataset" else (pixels, LABELS)

    for use in (made.fit, made.evaluate):
        with pytest.raises(ValueError, match=re.escape(told)) as error:
            use(*given(wrong(images)), verbose=0)
        assert "Received: pixels from " in str(error.value)
        assert "\n" not in str(error.value)
        use(*given(good(images)), verbose=0)


def test_augmented_pixels_may_leave_the_range(data):
    made = of_signed()
    fit(made, 2.6 * data[0] - 1.3, LABELS)


def test_a_range_is_part_of_the_config():
    made = Distiller(network(), network(6, seed=1), input_range="imagenet")
    again = Distiller.from_config(made.get_config())
    assert again.get_config()["input_range"] == made.get_config()["input_range"]
    assert again._input_range == made._input_range


@pytest.mark.slow
def test_data_sets_of_bytes_are_warned_of_once(data, recwarn):
    made = distiller()
    bytes_ = as_is((255 * data[0]).astype("float32"), LABELS)
    with pytest.warns(UserWarning, match="get as numbers from 0 to 255"):
        made.fit(bytes_, epochs=2, verbose=0)
    recwarn.clear()
    made.fit(bytes_, verbose=0)
    plain = distiller()
    plain.fit(as_is(*data), verbose=0)
    told = Distiller(network(), network(6, seed=1), input_range=(0, 255))
    told.compile("sgd")
    told.fit(bytes_, verbose=0)
    assert not recwarn


@pytest.mark.slow
def test_lists_of_images_are_images(data):
    plain, other = distiller(), distiller()
    fit(plain, *data)
    fit(other, list(data[0]), data[1])
    np.testing.assert_array_equal(weights(other), weights(plain))
    with pytest.raises(ValueError, match="images must be numbers. Received: <U"):
        fit(other, ["a.png", "b.png"], [0, 1])


def test_a_stage_logs_what_a_distiller_warns_of(caplog):
    with fitting._warnings_logged():
        Distiller(network(12), network())
    assert "are the two exchanged" in caplog.text


def test_a_teacher_smaller_than_its_student_is_warned_of(recwarn):
    with pytest.warns(UserWarning, match="fewer than the .* are the two exchanged"):
        Distiller(network(12), network())
    recwarn.clear()
    Distiller(network(), network(seed=1))
    Distiller(network(), network(12))
    assert not recwarn
