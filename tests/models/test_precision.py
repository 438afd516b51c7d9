"""A model changes the precision it computes in, and nothing else."""

import numpy as np
import pytest
import tf_keras as keras

from kdprune.models import build_model
from kdprune.models.precision import cast_model, fits_bfloat16
from kdprune.training import resolve_precision

layers = keras.layers
IMAGES = np.random.default_rng(0).random((4, 8, 8, 3), np.float32)


def functional():
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, name="conv")(image)
    x = layers.ReLU()(layers.BatchNormalization(name="bn")(x))
    x = layers.Add()([x, x * 2.0])  # a TFOpLambda
    x = layers.Flatten()(x)
    return keras.Model(image, layers.Dense(4, name="logits")(x), name="functional")


def sequential():
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(8, 3, activation="relu", name="conv"),
            layers.Flatten(),
            layers.Dense(4, name="logits"),
        ]
    )


def never_told_its_shape():
    model = keras.Sequential(sequential().layers)
    model(IMAGES)
    return model


def nested():
    body = keras.Sequential([layers.Conv2D(8, 3, name="conv"), layers.Flatten()])
    head = keras.Sequential([layers.Dense(6, name="hidden"), layers.Dense(4)], "head")
    image = keras.Input((8, 8, 3))
    return keras.Model(image, head(body(image)))


MODELS = [functional, sequential, never_told_its_shape, nested]


def inner_layers(model):
    """All layers but inputs, those of nested models in their place."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from inner_layers(layer)
        elif not isinstance(layer, layers.InputLayer):
            yield layer


@pytest.mark.parametrize("make", MODELS)
def test_layers_compute_in_bfloat16_but_the_last_and_keep_float32_weights(make):
    model = make()
    expected = model(IMAGES).numpy()
    cast = cast_model(model, "mixed_bfloat16")
    *inner, last = inner_layers(cast)
    dtypes = {layer.compute_dtype for layer in inner if "lambda" not in layer.name}
    assert dtypes == {"bfloat16"}
    assert last.compute_dtype == "float32"
    assert {weight.dtype for weight in cast.weights} == {"float32"} or all(
        weight.numpy().dtype == np.float32 for weight in cast.weights
    )
    logits = cast(IMAGES)
    assert logits.dtype == "float32"
    # bfloat16 keeps 8 bits: close, and not the same.
    np.testing.assert_allclose(logits, expected, atol=0.05 * np.abs(expected).max())
    assert not np.array_equal(logits, expected)


@pytest.mark.parametrize("make", MODELS)
def test_there_and_back_is_bit_equal(make):
    model = make()
    expected, names = model(IMAGES).numpy(), [layer.name for layer in model.layers]
    for policy in ("mixed_bfloat16", "float32"):
        back = cast_model(cast_model(model, policy), "float32")
        assert type(back) is type(model)
        np.testing.assert_array_equal(back(IMAGES), expected)
        assert [layer.name for layer in back.layers] == names
    # The model that was given is left as it was.
    assert next(inner_layers(model)).compute_dtype == "float32"
    np.testing.assert_array_equal(model(IMAGES), expected)


@pytest.mark.parametrize("make", MODELS)
def test_frozen_layers_stay_frozen(make):
    model = make()
    next(inner_layers(model)).trainable = False
    cast = cast_model(model, "mixed_bfloat16")
    frozen = [layer.trainable for layer in inner_layers(cast)]
    assert frozen == [False] + [True] * (len(frozen) - 1)
    assert len(cast.trainable_weights) == len(model.trainable_weights)


def test_the_weights_are_copies():
    model = functional()
    cast = cast_model(model, "float32")
    before = model.get_weights()
    cast.set_weights([weight + 1 for weight in before])
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_the_global_policy_is_left_alone():
    cast_model(functional(), "mixed_bfloat16")
    assert keras.mixed_precision.global_policy().name == "float32"


def test_a_subclassed_model_is_refused():
    class Subclassed(keras.Model):
        def call(self, inputs):
            return inputs

    with pytest.raises(ValueError, match="Functional and Sequential.*Subclassed"):
        cast_model(Subclassed(), "mixed_bfloat16")


def test_a_function_with_a_float32_constant_is_refused_in_one_line():
    image = keras.Input((8, 8, 3))
    model = keras.Model(image, layers.Dense(4)(2.0 * layers.ReLU()(image)), name="m")
    with pytest.raises(ValueError, match="model 'm' can't compute in mixed_b") as error:
        cast_model(model, "mixed_bfloat16")
    assert "tf.math.multiply" in str(error.value) and "\n" not in str(error.value)


def test_a_precision_that_is_named_is_taken():
    assert resolve_precision("float32") == "float32"
    assert resolve_precision("mixed_bfloat16") == "mixed_bfloat16"
    assert resolve_precision() in ("float32", "mixed_bfloat16")


@pytest.mark.parametrize(
    ("filters", "fits"),
    [
        ([16, 32, 64], True),
        ([16, 24, 64], True),
        ([12, 24, 48], False),
        ([24, 48, 96], False),
        ([8, 12, 20], False),
    ],
)
def test_bfloat16_is_for_widths_its_kernels_take(filters, fits, monkeypatch):
    model = build_model("resnet", (32, 32, 3), 10, depth=8, filters=filters)
    assert fits_bfloat16(model) == fits
    images = keras.Input((None, None, 3))
    convolution = keras.layers.SeparableConv2D(filters[0], 3, padding="same")
    nested = keras.Sequential([keras.Input((None, None, 3)), convolution])
    open_size = keras.Model(images, nested(images))
    assert fits_bfloat16(open_size) == (filters[0] == 16)
    # On a processor that has such kernels, and no GPU beside it.
    monkeypatch.setattr("tensorflow.config.list_physical_devices", lambda kind: [])
    monkeypatch.setattr("pathlib.Path.read_text", lambda path: "flags: avx512_bf16")
    chosen = "mixed_bfloat16" if fits else "float32"
    assert resolve_precision("auto", model) == chosen
    assert resolve_precision("mixed_bfloat16", model) == "mixed_bfloat16"


def test_a_model_without_convolutions_may_be_in_any_precision():
    assert fits_bfloat16(keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]))


def test_depthwise_convolutions_with_strides_stay_in_float32():
    """Their input's gradient is slow in bfloat16; the layers around are not."""
    model = build_model(
        "inverted_residual", (16, 16, 3), stem=16, blocks=[[16, 32, 1], [16, 32, 2]]
    )
    cast = cast_model(model, "mixed_bfloat16")
    depthwise = {
        layer.strides[0]: layer.compute_dtype
        for layer in cast.layers
        if isinstance(layer, layers.DepthwiseConv2D)
    }
    assert depthwise == {1: "bfloat16", 2: "float32"}
    images = np.random.default_rng(0).random((4, 16, 16, 3), np.float32)
    np.testing.assert_allclose(cast(images), model(images), atol=0.1)
    back = cast_model(cast, "float32")
    np.testing.assert_array_equal(back(images), model(images))
