"""Losses from outside the package: functions, Keras losses, classes, by name."""

import functools

import keras as keras3
import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from kdprune import distill
from kdprune.distill import Distiller, FeatureLoss, SoftLoss, register_loss
from kdprune.distill.features import FEATURE_LOSSES
from kdprune.distill.loss_spec import as_soft_losses
from kdprune.distill.losses import LOGIT_LOSSES
from kdprune.models.precision import cast_model

layers = keras.layers


def network(width=4, classes=4, seed=0):
    keras.utils.set_random_seed(seed)
    image = keras.Input((8, 8, 3))
    x = layers.ReLU(name="relu")(layers.Conv2D(width, 3, name="conv")(image))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, layers.Dense(classes, name="logits")(x))


def squared(teacher_logits, student_logits, scale=1.0):
    """What tests register: half the mean squared difference of the logits."""
    difference = teacher_logits - student_logits
    return 0.5 * scale * tf.reduce_mean(difference**2, axis=1)


class ChannelMeans(FeatureLoss):
    """Compares the mean of each map, whatever its channels."""

    def pair_loss(self, index, teacher, student):
        means = [tf.reduce_mean(x, axis=[1, 2, 3]) for x in (teacher, student)]
        return tf.square(means[0] - means[1])


@pytest.fixture
def registries():
    """Lets a test register losses, which are gone after it."""
    tables = LOGIT_LOSSES, FEATURE_LOSSES
    before = [dict(table) for table in tables]
    yield
    for table, content in zip(tables, before, strict=True):
        table.clear()
        table.update(content)


def log_softmax(x):
    x = x - x.max(axis=1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=1, keepdims=True))


def random_logits(seed, shape=(7, 5)):
    return np.random.default_rng(seed).normal(0, 3, shape).astype(np.float32)


def value_of(loss, temperature):
    (spec,) = as_soft_losses([loss])
    return spec.of_logits(
        np.arange(7) % 5, random_logits(0), random_logits(1), temperature
    )


# --------------------------------------------------------------- Keras losses


def kl(temperature):
    teacher, student = (log_softmax(random_logits(i) / temperature) for i in (0, 1))
    return temperature**2 * (np.exp(teacher) * (teacher - student)).sum(axis=1)


def cross_entropy(temperature):
    teacher, student = (log_softmax(random_logits(i) / temperature) for i in (0, 1))
    return -(temperature**2) * (np.exp(teacher) * student).sum(axis=1)


def squared_probabilities(temperature):
    teacher, student = (
        np.exp(log_softmax(random_logits(i) / temperature)) for i in (0, 1)
    )
    return temperature**2 * ((teacher - student) ** 2).mean(axis=1)


class Brier(keras.losses.Loss):
    """A user's own Keras loss."""

    def call(self, y_true, y_pred):
        return tf.reduce_mean((y_true - y_pred) ** 2, axis=-1)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (keras.losses.KLDivergence(), kl),
        (keras.losses.CategoricalCrossentropy(from_logits=True), cross_entropy),
        (keras.losses.CategoricalCrossentropy(), cross_entropy),
        (keras.losses.MeanSquaredError(), squared_probabilities),
        (Brier(), squared_probabilities),
        (keras3.losses.KLDivergence(), kl),
        (keras3.losses.CategoricalCrossentropy(from_logits=True), cross_entropy),
        (keras3.losses.CategoricalCrossentropy(), cross_entropy),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_keras_loss_compares_softened_predictions(loss, expected, temperature):
    values = value_of(loss, temperature)
    assert values.shape == (7,)
    # Keras keeps probabilities above 1e-7.
    np.testing.assert_allclose(values, expected(temperature), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize(
    ("loss", "name"),
    [
        (keras.losses.KLDivergence(), "kl"),
        (keras.losses.CategoricalCrossentropy(from_logits=True), "cross_entropy"),
    ],
)
def test_keras_losses_are_those_that_have_a_name(loss, name, temperature):
    np.testing.assert_allclose(
        value_of(loss, temperature), value_of(name, temperature), rtol=1e-3, atol=1e-4
    )


def test_the_reduction_of_a_keras_loss_changes_nothing():
    summed = keras.losses.KLDivergence(reduction="sum")
    one, two = value_of(summed, 2.0), value_of(keras.losses.KLDivergence(), 2.0)
    np.testing.assert_array_equal(one, two)


@pytest.mark.usefixtures("eagerly")
def test_students_learn_alike_by_a_keras_loss_and_by_its_name(data):
    images, labels = data
    losses = []
    for loss in ("kl", keras.losses.KLDivergence(), keras3.losses.KLDivergence()):
        made = Distiller(network(), network(6, seed=1), [loss])
        made.compile("sgd", temperature=3.0)
        history = made.fit(images, labels, 16, 2, shuffle=False, verbose=0).history
        losses.append(history["soft_loss"])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
    np.testing.assert_allclose(losses[2], losses[0], rtol=1e-4)


# ------------------------------------------------------------------ functions


@pytest.mark.usefixtures("eagerly")
def test_a_function_teaches_and_is_weighted(data):
    images, labels = data
    student, teacher = network(), network(6, seed=1)
    expected = 3.0 * np.mean((teacher(images).numpy() - student(images).numpy()) ** 2)
    weighted = SoftLoss(loss=squared, weight=2.0, arguments={"scale": 3})
    made = Distiller(student, teacher, ["kl", weighted])
    made.compile("sgd")
    result = made.train_on_batch(images, labels, return_dict=True)
    assert result["squared_loss"] == pytest.approx(expected, rel=1e-5)
    total = result["kl_loss"] + result["squared_loss"]
    assert result["soft_loss"] == pytest.approx(total, rel=1e-6)


def test_a_function_is_given_temperature_and_labels_if_it_takes_them(data):
    seen = {}

    def curious(teacher, student, temperature, labels):
        seen.update(temperature=temperature, labels=labels)
        return tf.reduce_sum((teacher - student) ** 2, axis=1)

    (spec,) = as_soft_losses([curious])
    spec.of_logits([1, 2], random_logits(0, (2, 3)), random_logits(1, (2, 3)), 5.0)
    assert seen == {"temperature": 5.0, "labels": [1, 2]}
    own = SoftLoss(loss=curious, arguments={"temperature": 2.0})
    own.of_logits([1, 2], random_logits(0, (2, 3)), random_logits(1, (2, 3)), 5.0)
    assert seen["temperature"] == 2.0
    plain = SoftLoss(loss=lambda t, s: tf.reduce_sum(t - s, axis=1))
    with pytest.raises(ValueError, match="unknown argument 'temperature'"):
        SoftLoss(loss=plain.loss, arguments={"temperature": 2.0})


@pytest.mark.slow
def test_python_conditions_in_a_loss_are_those_of_the_graph(data):
    def gated(teacher, student):
        difference = tf.reduce_mean((teacher - student) ** 2, axis=1)
        if tf.reduce_sum(difference) > 0:
            difference = 2.0 * difference
        return difference

    images, labels = data
    results = []
    for loss in (gated, SoftLoss(loss=squared, arguments={"scale": 4.0})):
        made = Distiller(network(), network(6, seed=1), [loss])
        made.compile("sgd")
        made.fit(images, labels, 64, verbose=0)
        results.append(made.history.history["soft_loss"][0])
    assert results[0] == pytest.approx(results[1], rel=1e-6)


@pytest.mark.parametrize(
    ("loss", "name"),
    [
        (squared, "squared"),
        (lambda t, s: tf.reduce_sum((t - s) ** 2, 1), "custom"),
        (functools.partial(squared, scale=2.0), "squared"),
        (distill.distillation_loss, "distillation"),
        (keras.losses.KLDivergence(), "kl_divergence"),
        (keras.losses.CategoricalCrossentropy(name="mine"), "mine"),
        (Brier(), "brier"),
        (ChannelMeans, "channel_means"),
        ("dkd", "dkd"),
        ({"loss": squared, "name": "two", "scale": 2.0}, "two"),
        ({"loss": "kl", "name": "sharp", "temperature": 1.0}, "sharp"),
    ],
)
def test_a_loss_is_called_what_it_calls_itself(loss, name):
    assert as_soft_losses([loss])[0].name == name


@pytest.mark.usefixtures("eagerly")
def test_one_loss_can_be_used_twice_by_two_names(data):
    made = Distiller(
        network(),
        network(6, seed=1),
        ["kl", {"name": "sharp", "loss": "kl", "temperature": 1.0}],
    )
    made.compile("sgd", temperature=4.0)
    result = made.train_on_batch(*data, return_dict=True)
    assert {"kl_loss", "sharp_loss"} <= set(result)
    assert result["kl_loss"] != result["sharp_loss"]


def scalar(teacher, student):
    return tf.reduce_mean((teacher - student) ** 2)


def per_class(teacher, student):
    return (teacher - student) ** 2


def in_numpy(teacher, student):
    return np.mean((teacher.numpy() - student.numpy()) ** 2, axis=1)


def ignores_the_student(teacher, student):
    return tf.reduce_sum(teacher**2, axis=1)


def no_gradient(teacher, student):
    return tf.cast(tf.argmax(student, axis=1), tf.float32)


def not_finite(teacher, student):
    return tf.reduce_sum(tf.math.log(student), axis=1)


def of_ten_classes(teacher, student):
    return tf.reduce_sum((teacher - student) @ tf.ones([10, 1]), axis=1)


def over_classes(teacher, student):
    return tf.reduce_sum((teacher - student) ** 2, axis=0)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (scalar, r"'scalar' must give one number per example, shape \(batch,\)\. Rec.*"
         r"shape \(\); leave out the mean over the batch"),
        (per_class, "'per_class' must give one number .* take the sum or mean over"),
        (over_classes, r"'over_classes' must give .* shape \(4,\) for a batch of 3"),
        (in_numpy, "'in_numpy' fails on random logits of shape .3, 4.: .*numpy"),
        (ignores_the_student, "does not depend on the student's logits"),
        (no_gradient, "does not depend on the student's logits"),
        (not_finite, "is NaN or infinite on random logits"),
        (of_ten_classes, r"'of_ten_classes' fails on random logits of shape \(3, 4\)"),
        (keras.losses.SparseCategoricalCrossentropy(), "fails on random|must give one"),
    ],
)  # fmt: skip
def test_a_loss_that_can_not_teach_is_refused_before_training(loss, message):
    with pytest.raises(ValueError, match=message) as error:
        Distiller(network(), network(6, seed=1), [loss])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda logits: logits, r"must take \(teacher_logits, student_logits\)"),
        (lambda student, teacher: student, "teacher's logits first.*exchange the two"),
        (lambda y_pred, y_true: y_pred, "teacher's logits first"),
        (lambda t, s, weight: t, "other parameters need defaults. Received: weight"),
        (keras.losses.KLDivergence, "an object of a class of keras.losses"),
        (keras.losses.kl_divergence, "an object of a class of keras.losses"),
        (keras3.losses.kl_divergence, "an object of a class of keras.losses"),
        ("kl_divergence", "must be one of kl, .*Received: 'kl_divergence'"),
        ("atention", "did you mean 'attention'"),
        (SoftLoss, "must be a function of logits"),
        ({"loss": squared, "scael": 2.0}, "unknown argument 'scael'.*mean 'scale'"),
        ({"loss": squared, "scale": "2"}, "scale must be a number. Received: '2'"),
        ({"loss": squared, "weight": "2"}, "weight of squared must be above 0"),
        ({"loss": squared, "name": "hard"}, "can't be named 'hard'"),
        ({"loss": squared, "teacher_layers": ("relu",)}, "has no layers"),
        ({"loss": "nothing"}, "must be one of"),
    ],
)
def test_what_is_no_loss_is_refused(loss, message):
    with pytest.raises(ValueError, match=message) as error:
        as_soft_losses([loss])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("losses", ["kl", squared, {"name": "kl"}, 3])
def test_losses_are_a_list(losses):
    with pytest.raises(ValueError, match="losses must be a list"):
        as_soft_losses(losses)


# --------------------------------------------------------------- registration


@pytest.mark.usefixtures("eagerly")
def test_registered_losses_go_by_name(data, registries):
    assert register_loss("squared_logits", squared) is squared

    @register_loss("channel_means")
    class Decorated(ChannelMeans):
        pass

    assert FEATURE_LOSSES["channel_means"] is Decorated
    made = Distiller(
        network(),
        network(6, seed=1),
        [{"name": "squared_logits", "weight": 0.5, "scale": 2.0}, "channel_means"],
    )
    made.compile("sgd")
    result = made.train_on_batch(*data, return_dict=True)
    assert result["channel_means_loss"] > 0
    assert result["squared_logits_loss"] > 0


@pytest.mark.parametrize(
    ("name", "loss", "message"),
    [
        ("kl", squared, "there is a loss 'kl' already"),
        ("kl", ChannelMeans, "there is a loss 'kl' already"),
        ("hint", squared, "there is a loss 'hint' already"),
        ("soft", squared, "can't be named 'soft'"),
        ("My-Loss", squared, "lower-case letters"),
        ("mine", 7, "must be callable"),
        ("mine", keras.losses.kl_divergence, "must be a function of logits"),
        ("mine", lambda logits: logits, "must take"),
    ],
)
def test_names_that_are_taken_or_not_fit_are_refused(name, loss, message):
    before = dict(LOGIT_LOSSES), dict(FEATURE_LOSSES)
    with pytest.raises(ValueError, match=message):
        register_loss(name, loss)
    assert before == (LOGIT_LOSSES, FEATURE_LOSSES)


def test_a_loss_can_be_replaced(registries):
    register_loss("hint", squared, replace=True)
    assert LOGIT_LOSSES["hint"] is squared
    assert "hint" not in FEATURE_LOSSES
    register_loss("hint", ChannelMeans, replace=True)
    assert not as_soft_losses(["hint"])[0].loss
    assert as_soft_losses(["hint"])[0].computation is ChannelMeans


# ----------------------------------------------------------------- the config


def test_specs_have_a_config(registries):
    register_loss("squared_logits", squared)
    specs = as_soft_losses(
        [
            "kl",
            {"name": "dkd", "weight": 0.5, "beta": 2.0},
            SoftLoss(loss=squared, weight=2.0, arguments={"scale": 3.0}),
            SoftLoss("hint", teacher_layers=("a",), student_layers=("b",)),
            keras.losses.CategoricalCrossentropy(from_logits=True),
        ]
    )
    for spec in specs:
        config = keras.saving.serialize_keras_object(spec)
        again = keras.saving.deserialize_keras_object(config)
        assert again.get_config() == spec.get_config()
        assert again.computation is spec.computation or "cross" in spec.name
    with pytest.raises(ValueError, match="register_loss\\('custom'"):
        SoftLoss(loss=lambda t, s: t).get_config()


def test_losses_are_given_float32_whatever_the_student_computes_in(data):
    seen = []

    class Watching(ChannelMeans):
        def pair_loss(self, index, teacher, student):
            seen.extend([teacher.dtype, student.dtype])
            return super().pair_loss(index, teacher, student)

    def looking(teacher, student):
        seen.extend([teacher.dtype, student.dtype])
        return squared(teacher, student)

    student = cast_model(network(), "mixed_bfloat16")
    made = Distiller(student, network(6, seed=1), [Watching, looking])
    made.compile("sgd")
    assert np.isfinite(made.fit(*data, verbose=0).history["loss"][0])
    assert len(seen) >= 4
    assert set(seen) == {tf.float32}
