"""Whatever goes wrong when a model is wrapped is one line that names the layer."""

import functools
import re

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from kdprune.quantize import qat_obstacles, quantize_model
from kdprune.quantize.qat import wrap_model

layers = keras.layers


def network(connect):
    inputs = keras.Input((8, 8, 3))
    x = connect(layers.Conv2D(8, 3, padding="same", name="conv")(inputs))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(4)(x), name="net")


def hard_swish(x):
    return x * tf.nn.relu6(x + 3.0) / 6.0


def refusal(attempt):
    with pytest.raises(ValueError) as caught:
        attempt()
    message = str(caught.value)
    assert "\n" not in message and len(message) < 600
    return message


def test_hard_swish_arithmetic_is_trained_and_in_earlier_forms_refused_by_name():
    model = network(hard_swish)
    quantize_model(model)
    # As TFMOT wraps it, the addition gets a list and raises AttributeError.
    message = refusal(lambda: wrap_model(model, False, False, as_before=True))
    # Keras numbers its name where others came before.
    assert re.match(r"layer 'tf\.__operators__\.add\w*' \(TFOpLambda\) can't", message)
    assert "AttributeError: 'list' object has no attribute 'dtype'" in message
    assert "leave it in float (float_layers)" in message


def test_an_error_that_names_no_layer_is_traced_to_it(monkeypatch):
    from kdprune.quantize import qat

    # A fault of wrapping that says nothing of where it is.
    def unknown(layer, final):
        return {}["nothing"] if type(layer) is layers.Permute else None

    monkeypatch.setattr(qat, "config_of", unknown)
    message = refusal(
        lambda: quantize_model(network(layers.Permute((2, 1, 3), name="turned")))
    )
    assert message.startswith("layer 'turned' (Permute) can't be trained quant")
    assert "KeyError: 'nothing'" in message


def test_an_error_of_the_whole_model_says_its_type(monkeypatch):
    from kdprune.quantize import obstacles

    def unknown(model):
        return {}["nothing"]

    monkeypatch.setattr(obstacles, "flat_graph", unknown)
    ((name, reason),) = qat_obstacles(network(layers.ReLU()))
    assert (name, reason) == ("net", "KeyError: 'nothing'")


@pytest.mark.parametrize(
    "activation", [functools.partial(tf.nn.leaky_relu, alpha=0.1), lambda x: 2 * x]
)
@pytest.mark.filterwarnings("ignore:.*includes a `lambda`")
def test_activations_that_no_copy_can_have_are_obstacles_and_no_want_of_float32(
    activation,
):
    model = network(layers.Activation(activation, name="odd"))
    message = refusal(lambda: quantize_model(model))
    assert message.startswith("layer 'odd' (Activation with activation ")
    assert "int8 has no exact operator" in message


def test_an_activation_with_weights_is_an_obstacle():
    inside = layers.Conv2D(8, 1, activation=layers.PReLU(), name="inside")
    message = refusal(lambda: quantize_model(network(inside)))
    assert message.startswith("layer 'inside' (Conv2D with activation PReLU) can't be")
    assert "make it a layer of its own" in message


def test_what_is_wrong_with_the_whole_model_is_said_of_the_model():
    model = network(lambda x: layers.Dropout(0.5, name="on")(x, training=True))
    message = refusal(lambda: quantize_model(model))
    assert message.startswith(
        "model 'net' can't be trained quantization-aware: layer 'o"
    )


def test_a_product_that_no_layer_takes_stays_a_function_and_is_named():
    model = network(lambda x: tf.cast(tf.shape(x)[1], tf.float32) * x)
    found = dict(qat_obstacles(model))
    assert any("multiply" in name for name in found)
    assert np.all(["\n" not in reason for reason in found.values()])
