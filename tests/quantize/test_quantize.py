"""Quantization-aware models: wrapping, ranges, training, saving."""

import json
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import kdprune
from kdprune.models import build_model
from kdprune.quantize import (
    calibrate_ranges,
    load_quantized,
    quantize_model,
    read_plan,
    save_quantized,
)
from kdprune.training.optimizers import build_variables

layers = keras.layers
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@pytest.fixture(scope="module")
def data(quadrants):
    return quadrants(200, 16)


@pytest.fixture(scope="module")
def images(data):
    return data[0].astype("float32") / np.float32(255)


def residual_model(classes=4):
    """Conv-BN-ReLU, a Conv-BN that ends in Add, and a 1x1 shortcut without BN."""
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((16, 16, 3))
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="conv1")(x)
    x = layers.ReLU()(layers.BatchNormalization(momentum=0.9, name="bn1")(x))
    y = layers.Conv2D(12, 3, 2, padding="same", use_bias=False, name="conv2")(x)
    y = layers.BatchNormalization(momentum=0.9, name="bn2")(y)
    x = layers.Add()([y, layers.Conv2D(12, 1, 2, padding="same", name="shortcut")(x)])
    x = layers.Flatten()(layers.ReLU()(x))
    return keras.Model(inputs, layers.Dense(classes, name="logits")(x))


@pytest.fixture(scope="module")
def aware():
    """The residual model wrapped, to be looked at only."""
    return quantize_model(residual_model())


def pruned_model():
    """The residual model with the smaller half of each kernel zeroed."""
    model = residual_model()
    for name in ("conv1", "conv2", "shortcut", "logits"):
        kernel = model.get_layer(name).kernel
        small = np.abs(kernel) < np.median(np.abs(kernel))
        kernel.assign(np.where(small, 0, kernel))
    return model


def train(model, images, labels, epochs=1, **arguments):
    model.compile(keras.optimizers.Adam(0.003, **arguments), LOSS)
    build_variables(model)
    model.fit(images, labels, batch_size=50, epochs=epochs, verbose=0, shuffle=False)
    return model


def ranges(model):
    """Every quantizer's limits, by name."""
    return {
        weight.name: weight.numpy()
        for weight in model.non_trainable_weights
        if weight.name.endswith(("_min:0", "_max:0"))
    }


@pytest.mark.usefixtures("eagerly")
def test_the_float_model_is_left_as_it_was(data, images):
    model = residual_model()
    before = model.get_weights()
    train(quantize_model(model), images, data[1])
    np.testing.assert_array_equal(
        np.concatenate([w.ravel() for w in before]),
        np.concatenate([w.ravel() for w in model.get_weights()]),
    )
    assert not any("quant" in layer.name for layer in model.layers)


@pytest.mark.usefixtures("eagerly")
def test_images_outside_the_range_do_not_move_the_input_range(data, images):
    model = train(quantize_model(residual_model()), images * 1.5 - 0.2, data[1])
    inside = model(images[:8].clip(0, 1)).numpy()
    # The quantized input is the byte grid itself, so bytes pass without any loss.
    quantize = keras.Model(model.inputs, model.layers[1].output)
    np.testing.assert_allclose(quantize(images), images, atol=1e-7)
    np.testing.assert_array_equal(quantize(images * 0 + 1.7), 1)
    assert np.isfinite(inside).all()


def test_ranges_and_statistics_move_in_training_only(data, images):
    model = quantize_model(residual_model())
    model.compile("sgd", LOSS)
    start = model.get_weights()
    model.evaluate(images, data[1], verbose=0)
    model.predict(images, verbose=0)
    model(images, training=False)
    for before, after in zip(start, model.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)
    before = ranges(model)
    model(images, training=True)
    assert any(np.any(before[name] != after) for name, after in ranges(model).items())


@pytest.mark.slow
def test_calibration_starts_the_ranges_at_the_float_models_activations(data, images):
    base = train(residual_model(), images, data[1], epochs=10)
    plain, calibrated = quantize_model(base), quantize_model(base, calibration=data[0])
    expected = base(images).numpy()
    coarse, fine = (
        np.abs(model(images).numpy() - expected).mean() / np.ptp(expected)
        for model in (plain, calibrated)
    )
    assert fine < 0.3 * coarse
    limits = ranges(calibrated)
    (logits,) = (v for n, v in limits.items() if "logits/post_activation_max" in n)
    batches = [expected[:100].max(), expected[100:].max()]
    assert logits == pytest.approx(np.mean(batches), rel=0.05)
    (kernel,) = (v for n, v in limits.items() if "conv2/kernel_max" in n)
    weights = np.abs(base.get_layer("conv2").kernel.numpy())
    np.testing.assert_array_equal(kernel, weights.max(axis=(0, 1, 2)))


def test_calibration_leaves_weights_and_statistics_alone(data):
    model = quantize_model(residual_model())

    def others():
        names = ("_min:0", "_max:0")
        return [w.numpy() for w in model.weights if not w.name.endswith(names)]

    before = others()
    calibrate_ranges(model, data[0])
    for old, new in zip(before, others(), strict=True):
        np.testing.assert_array_equal(old, new)
    once = ranges(model)
    calibrate_ranges(model, data[0])
    again = ranges(model)
    assert all(np.array_equal(once[name], again[name]) for name in once)


def test_calibrating_a_float_model_is_an_error(images, aware):
    with pytest.raises(ValueError, match="what quantize_model returns"):
        calibrate_ranges(residual_model(), images)
    with pytest.raises(ValueError, match="n > 0"):
        calibrate_ranges(aware, images[:0])


def test_images_that_are_not_in_the_range_of_the_input_are_refused(data, images, aware):
    start = ranges(aware)
    for wrong in (data[0].astype("float32"), images - 0.5, images * np.nan):
        with pytest.raises(ValueError, match=r"calibration images must be .*floats"):
            calibrate_ranges(aware, wrong)
    assert all(np.array_equal(start[name], now) for name, now in ranges(aware).items())


@pytest.mark.parametrize("preserve_sparsity", [False, True])
@pytest.mark.usefixtures("eagerly")
@pytest.mark.quick("True")
def test_zeros_stay_zero_when_asked_to(data, images, preserve_sparsity):
    model = quantize_model(pruned_model(), preserve_sparsity, calibration=data[0])
    zeros = {w.name: w.numpy() == 0 for w in model.weights if "kernel:0" in w.name}
    train(model, images, data[1], epochs=2)
    kept = [
        np.mean(weight.numpy()[zeros[weight.name]] == 0)
        for weight in model.weights
        if weight.name in zeros
    ]
    assert len(kept) == 4
    assert all(share == 1 for share in kept) == preserve_sparsity
    assert preserve_sparsity or max(kept) < 0.5


@pytest.mark.slow
def test_it_trains_in_float32_under_a_mixed_policy(data, images):
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        base = residual_model()
        model = quantize_model(base)
        assert keras.mixed_precision.global_policy().name == "mixed_bfloat16"
        assert base.layers[1].compute_dtype == "bfloat16"
        assert {layer.compute_dtype for layer in model.layers} == {"float32"}
        train(model, images, data[1])
    finally:
        keras.mixed_precision.set_global_policy("float32")
    np.testing.assert_array_equal(
        quantize_model(base).get_weights()[3], base.get_layer("conv1").kernel
    )


class Distilling(keras.Model):
    """The least that a distiller does: two models in one, one of them trained."""

    def __init__(self, student, teacher):
        super().__init__()
        self.student, self.teacher = student, teacher
        self.teacher.trainable = False

    def call(self, inputs, training=None):
        return self.student(inputs, training=training)

    def train_step(self, batch):
        images, _ = batch
        target = self.teacher(images, training=False)
        with tf.GradientTape() as tape:
            scores = self.student(images, training=True)
            loss = tf.reduce_mean(tf.square(scores - target))
        weights = self.student.trainable_variables
        gradients = tape.gradient(loss, weights)
        self.optimizer.apply_gradients(zip(gradients, weights, strict=True))
        return {"loss": loss}


@pytest.mark.slow
def test_it_learns_as_a_student_with_averaged_weights(data, images):
    teacher = train(residual_model(), images, data[1], epochs=10)
    student = quantize_model(teacher, calibration=data[0])
    student.get_layer("quant_logits").layer.set_weights(
        [w * 0.5 for w in student.get_layer("quant_logits").layer.get_weights()]
    )
    start = ranges(student)
    model = Distilling(student, teacher)
    optimizer = keras.optimizers.Adam(0.01, use_ema=True, ema_momentum=0.8)
    model.compile(optimizer, LOSS)
    # At its end fit puts the averages into the weights: not the ones whose ranges
    # the last step left, which is what calibrate_ranges then mends.
    losses = model.fit(images, data[1], batch_size=50, epochs=8, verbose=0)
    calibrate_ranges(student, data[0])
    assert losses.history["loss"][-1] < 0.5 * losses.history["loss"][0]
    assert any(np.any(start[name] != value) for name, value in ranges(student).items())
    answers = [model(images).numpy().argmax(1) for model in (student, teacher)]
    agree = answers[0] == answers[1]
    assert agree.mean() > 0.95


@pytest.mark.slow
def test_a_reloaded_model_is_bit_equal_and_trains_on(tmp_path, data, images):
    model = quantize_model(pruned_model(), preserve_sparsity=True)
    train(model, images, data[1])
    plan = save_quantized(model, tmp_path / "model")
    assert plan == read_plan(tmp_path / "model")
    assert plan["method"] == "qat"
    assert plan["preserve_sparsity"] is True
    loaded = load_quantized(tmp_path / "model")
    np.testing.assert_array_equal(loaded(images).numpy(), model(images).numpy())
    for one in (model, loaded):
        train(one, images, data[1])
    for old, new in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet8", "article_student", "dscnn"])
def test_the_packages_own_students_reload_bit_equal(tmp_path, name):
    images = np.random.default_rng(0).random((8, 32, 32, 3), "float32")
    model = quantize_model(build_model(name), calibration=images)
    train(model, images, np.arange(8) % 10)
    save_quantized(model, tmp_path)
    np.testing.assert_array_equal(
        load_quantized(tmp_path)(images).numpy(),
        model(images).numpy(),
    )


@pytest.mark.slow
def test_a_sequential_model_reloads_bit_equal_in_another_process(tmp_path, images):
    model = quantize_model(
        keras.Sequential(
            [
                keras.Input((16, 16, 3)),
                layers.Conv2D(4, 3, activation="relu"),
                layers.Flatten(),
                layers.Dense(4),
            ]
        ),
        calibration=images,
    )
    save_quantized(model, tmp_path)
    np.save(tmp_path / "images.npy", images[:4])
    code = (
        "import kdprune, numpy, sys; from kdprune.quantize import load_quantized\n"
        "folder = sys.argv[1]; images = numpy.load(folder + '/images.npy')\n"
        "scores = load_quantized(folder).predict(images, verbose=0)\n"
        "numpy.save(folder + '/scores.npy', scores)"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True)
    np.testing.assert_array_equal(
        np.load(tmp_path / "scores.npy"), model.predict(images[:4], verbose=0)
    )


def test_a_post_training_artifact_is_the_float_model_and_its_plan(tmp_path, images):
    model = residual_model()
    save_quantized(model, tmp_path, calibration={"images": 500, "seed": 7})
    plan = read_plan(tmp_path)
    assert (plan["method"], plan["calibration"]) == ("ptq", {"images": 500, "seed": 7})
    np.testing.assert_array_equal(
        load_quantized(tmp_path)(images).numpy(),
        model(images).numpy(),
    )


@pytest.mark.parametrize("dtype", ["float16", "dynamic"])
def test_a_type_that_needs_no_images_names_none(tmp_path, dtype):
    conversion = {"dtypes": [dtype]}
    save_quantized(residual_model(), tmp_path, conversion=conversion)
    plan = read_plan(tmp_path)
    assert (plan["calibration"], plan["conversion"]) == (None, conversion)
    with pytest.raises(ValueError, match="calibration=.'images': 500.*float16|dynamic"):
        save_quantized(residual_model(), tmp_path, {"images": 500}, conversion)


def test_an_unfinished_or_mixed_artifact_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="plan.json is missing"):
        load_quantized(tmp_path)
    model = quantize_model(residual_model())
    save_quantized(model, tmp_path)
    first = (tmp_path / "weights.h5").read_bytes()
    model.get_layer("quant_logits").layer.bias.assign([1.0, 2.0, 3.0, 4.0])
    (tmp_path / "notes.txt").write_text("mine")
    save_quantized(model, tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert not list(tmp_path.glob("*.partial"))
    (tmp_path / "weights.h5").write_bytes(first)
    with pytest.raises(ValueError, match="weights.h5 is not the file"):
        load_quantized(tmp_path)
    (tmp_path / "plan.json").write_text(json.dumps({"method": "magic"}))
    with pytest.raises(ValueError, match="must be one of qat, ptq. Received: 'magic'"):
        load_quantized(tmp_path)


def test_a_plan_must_fit_the_model(tmp_path, aware):
    with pytest.raises(ValueError, match="calibration=None"):
        save_quantized(residual_model(), tmp_path)
    with pytest.raises(ValueError, match="save_quantized expects"):
        save_quantized(aware, tmp_path, calibration={})


def stacked(*rest):
    x = inputs = keras.Input((8, 8, 3))
    for layer in (layers.Conv2D(4, 3, name="conv"), *rest):
        x = layer(x)
    return keras.Model(inputs, x)


REFUSED = {
    "lambda": (
        lambda: stacked(layers.Lambda(lambda x: 2 * x, name="culprit")),
        "write it with layers of Keras",
    ),
    "unknown activation": (
        lambda: stacked(layers.Conv2D(4, 3, activation="elu", name="culprit")),
        "activation elu.*quantize after training",
    ),
    "normalization of another axis": (
        lambda: stacked(layers.BatchNormalization(axis=1, name="culprit")),
        "on the last axis",
    ),
}


@pytest.mark.parametrize("preserve_sparsity", [False, True])
@pytest.mark.parametrize("case", REFUSED)
def test_a_refused_layer_is_named_in_one_line(case, preserve_sparsity):
    build, fix = REFUSED[case]
    with pytest.raises(ValueError, match=f"^layer 'culprit' .*{fix}") as caught:
        quantize_model(build(), preserve_sparsity)
    assert "\n" not in str(caught.value)
    assert keras.mixed_precision.global_policy().name == "float32"


def test_models_that_have_no_graph_or_the_wrong_one_are_refused(aware):
    with pytest.raises(ValueError, match="Functional or Sequential. .*subclassed"):
        quantize_model(Distilling(residual_model(), residual_model()))
    with pytest.raises(ValueError, match="keras.Input"):
        quantize_model(keras.Sequential([layers.Dense(2)]))
    with pytest.raises(ValueError, match="quantization-aware already"):
        quantize_model(aware)
    with pytest.raises(ValueError, match="Received: builtins.str"):
        quantize_model("model.keras")


def test_a_pruning_model_is_told_to_be_stripped():
    import tensorflow_model_optimization as tfmot

    model = tfmot.sparsity.keras.prune_low_magnitude(residual_model())
    with pytest.raises(ValueError, match="strip_pruning first"):
        quantize_model(model)


def test_a_keras_3_model_is_refused():
    keras3 = pytest.importorskip("keras")
    if not keras3.__version__.startswith("3"):
        pytest.skip("this keras is Keras 2")
    model = keras3.Sequential([keras3.Input((4,)), keras3.layers.Dense(2)])
    with pytest.raises(ValueError, match="tf_keras .*import kdprune before Keras"):
        quantize_model(model)


def test_the_public_name_is_this_function():
    assert kdprune.quantize_model is quantize_model
