"""Quantization-aware training of layers that TFMOT refuses, or leaves in float."""

import json

import numpy as np
import pytest
import tf_keras as keras

from kdprune import tflite
from kdprune.intake.keras_layers import hard_sigmoid, hard_silu
from kdprune.quantize import (
    load_quantized,
    qat_obstacles,
    quantize_model,
    read_plan,
    save_quantized,
)
from kdprune.quantize.qat import wrap_model
from kdprune.quantize.rewrite import rewrite

layers = keras.layers
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3)).astype(np.uint8)


def gated(x, gate, names):
    """Squeeze and excite: channels weighed by what the whole image says."""
    y = layers.GlobalAveragePooling2D(keepdims=True)(x)
    y = layers.Conv2D(4, 1, activation="relu", name=f"{names}_squeeze")(y)
    y = layers.Conv2D(x.shape[-1], 1, activation=gate, name=f"{names}_excite")(y)
    return layers.Multiply(name=f"{names}_gate")([x, y])


def everything():
    """A model of all that is rewritten or has a config of its own."""
    keras.utils.set_random_seed(0)
    image = keras.Input((16, 16, 3))
    x = layers.Rescaling(2.0, -1.0, name="leading")(image)
    x = layers.Normalization(mean=[0.1, 0.2, 0.3], variance=[1.0, 1.2, 1.5])(x)
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="stem")(x)
    x = layers.BatchNormalization(name="norm_behind_relu")(x)
    x = layers.Conv2D(8, 3, padding="same", activation="swish", name="swish_conv")(x)
    x = gated(x, "sigmoid", "one")
    x = layers.PReLU(shared_axes=[1, 2], name="prelu")(layers.Conv2D(8, 3)(x))
    x = layers.LeakyReLU(0.1)(layers.Conv2D(8, 1)(x))
    x = gated(x, hard_sigmoid, "two")
    y = layers.Conv2D(8, 1)(x)
    # As MobileNetV3 has it: hard-swish in pieces, of functions of TensorFlow.
    y = layers.Multiply(name="pieces")([y, layers.ReLU(6.0)(y + 3.0) * (1.0 / 6.0)])
    z = layers.Activation(hard_silu, name="hard")(layers.Conv2D(8, 1)(x))
    x = layers.Average(name="mean")([x, y, z])
    x = layers.Activation("gelu")(x)
    base = keras.Sequential(
        [
            layers.Conv2D(8, 3, strides=2, name="inner"),
            layers.BatchNormalization(name="inner_norm"),
            layers.ReLU(2.0, name="bounded"),
            layers.Dropout(0.5),
        ],
        name="base",
    )
    x = layers.UpSampling2D()(base(x))
    x = layers.Add(name="three")([x, layers.ReLU(negative_slope=0.2)(x), x])
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dense(12, activation="tanh")(x)
    x = layers.BatchNormalization(name="norm_of_features")(x)
    model = keras.Model(image, layers.Dense(4, name="logits")(x))
    rng = np.random.default_rng(0)
    for weight in model.weights:
        name = weight.name.rpartition("/")[2]
        if name in ("gamma:0", "moving_variance:0"):
            weight.assign(rng.uniform(0.5, 2, weight.shape))
        elif name in ("beta:0", "moving_mean:0", "alpha:0"):
            weight.assign(rng.uniform(-0.3, 0.3, weight.shape))
    return model


@pytest.fixture(scope="module")
def model():
    return everything()


@pytest.fixture(scope="module")
def aware(model, images):
    return quantize_model(model, calibration=images)


def scores_of(content, images):
    """The file's scores in steps of 1 / 256."""
    interpreter = tflite.open_interpreter(content, "xnnpack")
    source = interpreter.get_input_details()[0]["index"]
    target = interpreter.get_output_details()[0]["index"]
    found = []
    for image in images:
        interpreter.set_tensor(source, (image.astype(int) - 128).astype(np.int8)[None])
        interpreter.invoke()
        found.append(interpreter.get_tensor(target)[0].astype(int) + 128)
    return np.array(found)


def steps_of(aware, images):
    scores = aware(images.astype("float32") / np.float32(255)).numpy()
    return keras.activations.softmax(keras.backend.constant(scores)).numpy() * 256


def test_what_is_rewritten_computes_the_same(model, images):
    found = rewrite(model)
    assert len(found.changes) >= 15
    kinds = {type(layer).__name__ for layer in found.model.layers}
    assert not kinds & {"Sequential", "TFOpLambda", "Rescaling", "Average"}
    pixels = images / np.float32(255)
    expected = model(pixels).numpy()
    np.testing.assert_allclose(
        found.model(pixels).numpy(),
        expected,
        atol=1e-5 * np.abs(expected).max(),
    )
    # One operator for arithmetic on arithmetic, and for hard-swish in its pieces.
    names = [layer.name for layer in found.model.layers]
    assert "leading" not in names
    assert found.model.get_layer("pieces").activation is hard_silu


def test_the_file_is_int8_and_does_what_the_model_does(aware, images):
    content = tflite.convert_tflite(aware, "int8")
    figures = tflite.inspect_tflite(content)
    assert figures["float_ops"] == []
    assert aware.quantized_from.float_layers == ()
    assert figures["ops"]["HARD_SWISH"] == 2
    difference = np.abs(scores_of(content, images) - steps_of(aware, images))
    assert np.quantile(difference, 0.99) <= 2


@pytest.mark.slow
def test_it_trains_is_saved_and_reloads_bit_equal(model, images, tmp_path):
    one = quantize_model(model, calibration=images)
    one.compile("sgd", LOSS)
    one.fit(images / np.float32(255), np.arange(40) % 4, epochs=1, verbose=0)
    save_quantized(one, tmp_path)
    pixels = images / np.float32(255)
    np.testing.assert_array_equal(
        load_quantized(tmp_path)(pixels).numpy(),
        one(pixels).numpy(),
    )


def small(*rest):
    x = image = keras.Input((8, 8, 3))
    x = layers.ReLU(name="relu")(layers.Conv2D(4, 3, name="conv")(x))
    for layer in rest:
        x = layer(x)
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, name="last")(x))
    return keras.Model(image, layers.Dense(4, name="logits")(x))


def test_all_obstacles_are_named_at_once():
    model = small(
        layers.ELU(name="elu"),
        layers.Lambda(lambda x: 2 * x, name="code"),
        layers.Conv2D(4, 1, activation="softplus", name="soft"),
        layers.ReLU(threshold=0.5, name="threshold"),
    )
    found = dict(qat_obstacles(model))
    assert list(found) == ["elu", "code", "soft", "threshold"]
    assert found["soft"].startswith("Conv2D with activation softplus: ")
    with pytest.raises(ValueError, match="^4 layers of model") as caught:
        quantize_model(model)
    assert all(f"'{name}': {reason}" in str(caught.value) for name, reason in
               found.items())  # fmt: skip
    assert "\n" not in str(caught.value)
    assert list(dict(qat_obstacles(model, ["elu", "soft"]))) == ["code", "threshold"]


def test_float_layers_must_be_layers():
    with pytest.raises(ValueError, match="'cnov'; did you mean 'conv'"):
        quantize_model(small(), float_layers=["cnov"])
    with pytest.raises(ValueError, match="list of names"):
        quantize_model(small(), float_layers="conv")


@pytest.mark.slow
def test_layers_stay_in_float_as_chosen(images, tmp_path):
    image = keras.Input((16, 16, 3))
    x = layers.Conv2D(4, 3, use_bias=False, name="chosen")(image)
    x = layers.ReLU(name="its_relu")(layers.BatchNormalization(name="its_norm")(x))
    x = layers.LayerNormalization(name="norm")(layers.Conv2D(4, 3, name="int8")(x))
    x = layers.ELU(name="elu")(layers.Conv2D(4, 3, name="int8_too")(x))
    x = layers.Dense(4, name="logits")(layers.GlobalAveragePooling2D()(x))
    model = quantize_model(
        keras.Model(image, x), calibration=images, float_layers=["elu", "chosen"]
    )
    in_float = ("chosen", "its_norm", "its_relu", "norm", "elu")
    assert model.quantized_from.float_layers == in_float
    plan = save_quantized(model, tmp_path)
    assert plan["conversion"]["float_layers"] == list(in_float)
    model = load_quantized(tmp_path)
    content = tflite.convert_tflite(model, "int8", float_layers=in_float)
    scores, labels = scores_of(content, images), np.arange(40) % 4
    given = steps_of(model, images), scores, labels
    figures = tflite.check_tflite(content, *given, float_layers=in_float, max_drop=1)
    assert {"norm", "elu"} < set(figures["float_layers"])
    assert set(figures["float_layers"]) & {"chosen", "its_norm", "its_relu"}
    types = {row["op"]: row["type"] for row in figures["operators"]}
    assert "CONV_2D" in types
    assert any(row["type"] == "float32" and row["op"] == "CONV_2D"
               for row in figures["operators"])  # fmt: skip
    with pytest.raises(ValueError, match="compute in float"):
        tflite.check_tflite(content, *given, max_drop=1)
    with pytest.raises(ValueError, match="chosen in quantize_model"):
        tflite.convert_tflite(model, "int8", float_layers=["int8"])


@pytest.mark.usefixtures("eagerly")
def test_frozen_layers_stay_frozen_and_others_move(images):
    model = small(layers.BatchNormalization(name="norm"))
    for name in ("conv", "norm"):
        model.get_layer(name).trainable = False
    one = quantize_model(model, calibration=images[:, :8, :8])
    before = {w.name: w.numpy() for w in one.weights}
    one.compile(keras.optimizers.SGD(0.1), LOSS)
    pixels = images[:, :8, :8] / np.float32(255)
    one.fit(pixels, np.arange(40) % 4, epochs=1, verbose=0)
    moved = {w.name for w in one.weights if np.any(before[w.name] != w.numpy())}
    held = ("conv/", "norm/")
    assert not {n for n in moved if n.startswith(held)}
    assert {"last/kernel:0", "last/bias:0", "logits/kernel:0"} <= moved


def test_weights_behind_a_relu_are_rounded_in_training(images):
    """TFMOT leaves them as they are, and the converter rounds them unseen."""
    model = quantize_model(small())
    rounded = model.get_layer("quant_conv").weights
    assert any("kernel_max" in weight.name for weight in rounded)


def test_an_artifact_of_an_earlier_version_has_the_form_it_had(images, tmp_path):
    earlier = wrap_model(small(), False, False, as_before=True)
    save_quantized(earlier, tmp_path)
    plan = read_plan(tmp_path)
    del plan["form"]
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    pixels = images[:, :8, :8] / np.float32(255)
    np.testing.assert_array_equal(
        load_quantized(tmp_path)(pixels).numpy(),
        earlier(pixels).numpy(),
    )


def test_dropout_still_drops_in_training_and_frozen_models_do_not():
    def aware(**called):
        image = keras.Input((8, 8, 3))
        base = keras.Sequential([layers.Conv2D(4, 3), layers.Dropout(0.5)])
        x = layers.GlobalAveragePooling2D()(base(image, **called))
        return quantize_model(keras.Model(image, layers.Dense(4)(x)))

    kinds = [
        [
            type(layer.layer).__name__
            for layer in model.layers
            if hasattr(layer, "layer")
        ]
        for model in (aware(), aware(training=False))
    ]
    assert ["Dropout" in found for found in kinds] == [True, False]
