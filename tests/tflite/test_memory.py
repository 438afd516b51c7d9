"""Peak activation memory of models and of files, against sums by hand."""

import numpy as np
import pytest
import tf_keras as keras

from kdprune.prune import plan_channels
from kdprune.tflite import convert_tflite
from kdprune.tflite.memory import peak_activations

layers = keras.layers


def test_a_chain_holds_the_input_and_output_of_one_layer():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 1)(inputs)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Conv2D(16, 1, strides=2)(x)
    model = keras.Model(inputs, layers.Dense(5)(layers.Flatten()(x)))
    # 192 + 256, then 256 + 256 (normalized in place), then 256 + 5.
    assert peak_activations(model) == 512
    assert peak_activations(model, "float32") == 4 * 512
    with pytest.raises(ValueError, match="one of int8, uint8, int16, float32"):
        peak_activations(model, "int4")


def test_a_shortcut_is_held_until_it_is_added():
    inputs = keras.Input((8, 8, 1))
    x = layers.Conv2D(2, 1)(inputs)
    y = layers.Conv2D(3, 1)(layers.ReLU()(x))
    inner = keras.Sequential([layers.InputLayer((8, 8, 3)), layers.Conv2D(2, 1)])
    model = keras.Model(inputs, layers.Add()([x, inner(y)]))
    # x stays beside its ReLU: 128 + 128 + 192; then 128 + 192 + 128.
    assert peak_activations(model) == 448


def test_an_output_is_not_overwritten_by_what_comes_after_it():
    inputs = keras.Input((8, 8, 1))
    x = layers.Conv2D(2, 1)(inputs)
    y = layers.Conv2D(1, 1)(layers.ReLU()(x))
    # Both of x and its ReLU, since x is handed out: 128 + 128 + 64.
    assert peak_activations(keras.Model(inputs, [x, y])) == 320
    assert peak_activations(keras.Model(inputs, y)) == 64 + 128


def test_a_model_and_its_file_need_the_same(tmp_path):
    inputs = keras.Input((16, 16, 3))
    x = layers.Conv2D(8, 3, padding="same", activation="relu")(inputs)
    y = layers.Conv2D(8, 3, padding="same")(x)
    x = layers.MaxPooling2D()(layers.Add()([x, y]))
    model = keras.Model(inputs, layers.Dense(4)(layers.Flatten()(x)))
    images = np.zeros((10, 16, 16, 3), np.uint8)
    for dtype, calibration in (("int8", images), ("float32", None)):
        path = tmp_path / f"{dtype}.tflite"
        path.write_bytes(convert_tflite(model, dtype, calibration))
        assert peak_activations(path) == peak_activations(model, dtype) > 6000


def test_the_plan_predicts_it_and_unknown_sizes_are_told():
    sizes = (16, 16)
    for size in (sizes, (None, None)):
        inputs = keras.Input((*size, 3))
        x = layers.Conv2D(32, 3, padding="same", name="wide")(inputs)
        x = layers.Conv2D(16, 3, padding="same", name="last")(x)
        model = keras.Model(inputs, layers.GlobalAveragePooling2D()(x))
        plan = plan_channels(model, 0.5, scope="local")
        if size is sizes:
            assert plan.memory == (256 * 48, 256 * 32)
            assert (
                "12,288 -> 8,192 (67%) bytes of peak activation memory (int8)"
                in str(plan)
            )
        else:
            assert "MACs and memory are not known: layer 'wide'" in str(plan)
            with pytest.raises(ValueError, match="image size that is not known"):
                peak_activations(model)
