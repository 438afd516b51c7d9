"""Rebuilding a model, whatever its shape; what a model ends in."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras as keras

from kdprune._graph import ends_in_softmax, named_layers, nodes, rebuild

layers = keras.layers


def chain(*stack, shape=(8, 8, 4)):
    return keras.Sequential([keras.Input(shape), *stack])


class Hidden(keras.Model):
    """A network without a graph."""

    def __init__(self, activation=None):
        super().__init__()
        self.head = layers.Dense(3, activation=activation)

    def call(self, inputs):
        return self.head(inputs)


def ending(end):
    """A layer graph whose scores `end` takes on."""
    image = keras.Input((8,))
    return keras.Model(image, end(layers.Dense(3)(image)))


def quantized(*stack):
    return tfmot.quantization.keras.quantize_model(chain(*stack, shape=(8,)))


def pruned(*stack):
    return tfmot.sparsity.keras.prune_low_magnitude(chain(*stack, shape=(8,)))


SOFTMAX = {
    "activation": lambda: chain(layers.Dense(3, activation="softmax"), shape=(8,)),
    "TensorFlow's as an activation": lambda: chain(
        layers.Dense(3, activation=tf.nn.softmax), shape=(8,)
    ),
    "layer as an activation": lambda: chain(
        layers.Dense(3, activation=layers.Softmax()), shape=(8,)
    ),
    "layer": lambda: ending(layers.Softmax()),
    "function": lambda: ending(tf.nn.softmax),
    "Keras's function": lambda: ending(keras.activations.softmax),
    "function in a layer": lambda: ending(layers.Lambda(tf.nn.softmax)),
    "then float32": lambda: ending(
        lambda x: layers.Activation("linear", dtype="float32")(layers.Softmax()(x))
    ),
    "then cast": lambda: ending(
        lambda x: tf.cast(tf.identity(tf.nn.softmax(x)), tf.float16)
    ),
    "then reshaped": lambda: ending(
        lambda x: layers.Reshape((3,))(layers.Softmax()(layers.Reshape((1, 3))(x)))
    ),
    "not built": lambda: keras.Sequential([layers.Dense(3), layers.Softmax()]),
    "in a model inside": lambda: ending(chain(layers.Softmax(), shape=(3,))),
    "before a model inside": lambda: ending(
        lambda x: chain(layers.Activation("linear"), shape=(3,))(layers.Softmax()(x))
    ),
    "quantization": lambda: quantized(layers.Dense(3, activation="softmax")),
    "quantization, layer": lambda: quantized(layers.Dense(3), layers.Softmax()),
    "pruning": lambda: pruned(layers.Dense(3), layers.Activation("softmax")),
}
LOGITS = {
    "layer": lambda: chain(layers.Dense(3), shape=(8,)),
    "log": lambda: ending(tf.nn.log_softmax),
    "scaled": lambda: ending(lambda x: 2.0 * tf.nn.softmax(x)),
    "not built": lambda: keras.Sequential([layers.Dense(3)]),
    "empty": lambda: keras.Sequential(),
    "copied": lambda: ending(layers.Activation("linear")),
    "quantization": lambda: quantized(layers.Dense(3)),
    "pruning": lambda: pruned(layers.Dense(3)),
    "hidden": Hidden,
    "hidden softmax": lambda: Hidden("softmax"),
    "hidden at the end of a chain": lambda: chain(Hidden(), shape=(8,)),
    "hidden at the end of a graph": lambda: ending(Hidden()),
    "softmax inside": lambda: ending(
        lambda x: layers.Dense(2)(layers.Dense(4, activation="softmax")(x))
    ),
    "a branch": lambda: ending(lambda x: layers.Add()([x, layers.Softmax()(x)])),
}


@pytest.mark.parametrize("kind", SOFTMAX)
def test_a_softmax_at_the_end_is_seen(kind):
    assert ends_in_softmax(SOFTMAX[kind]())


@pytest.mark.parametrize("kind", LOGITS)
def test_what_does_not_end_in_softmax_is_not_taken_for_it(kind):
    assert not ends_in_softmax(LOGITS[kind]())


def test_of_several_outputs_of_a_model_inside_the_one_that_is_used_counts():
    scores = keras.Input((3,))
    inner = keras.Model(scores, [layers.Dense(3)(scores), layers.Softmax()(scores)])
    assert ends_in_softmax(ending(lambda x: inner(x)[1]))
    assert not ends_in_softmax(ending(lambda x: inner(x)[0]))


# --- rebuild ---


def branched():
    """A layer used twice, a nested model, two inputs and named outputs."""
    keras.utils.set_random_seed(0)
    inner = keras.Sequential(
        [keras.Input((6, 6, 4)), layers.Conv2D(4, 1, name="point"), layers.ReLU()],
        name="inner",
    )
    image, other = keras.Input((6, 6, 3), name="image"), keras.Input((4,), name="other")
    x = layers.Conv2D(4, 3, padding="same", name="conv")(image)
    twice = layers.BatchNormalization(name="twice")
    y = layers.Add(name="add")([x, twice(inner(twice(x)))])
    z = layers.Dense(3, name="scores")(layers.GlobalAveragePooling2D(name="mean")(y))
    gate = tf.nn.sigmoid(layers.Dense(3, name="gate")(other) * 2.0)
    return keras.Model(
        {"image": image, "other": other}, {"z": z * gate, "y": y}, name="branched"
    )


def inputs_of(model):
    generator = np.random.default_rng(1)
    return {
        tensor.name: generator.uniform(size=(5, *tensor.shape[1:])).astype("float32")
        for tensor in model.inputs
    }


def assert_same_outputs(model, other, images):
    for one, two in zip(
        tf.nest.flatten(model(images)), tf.nest.flatten(other(images)), strict=True
    ):
        np.testing.assert_array_equal(one, two)


def test_a_rebuilt_model_is_equal_and_shares_nothing():
    model = branched()
    model.get_layer("inner").get_layer("point").trainable = False
    model.get_layer("twice").moving_mean.assign([0.5, -1.0, 2.0, 0.0])
    copy = rebuild(model)
    assert_same_outputs(model, copy, inputs_of(model))
    assert copy.get_config() == model.get_config()
    assert [w.name for w in copy.weights] == [w.name for w in model.weights]
    assert [w.name for w in copy.trainable_weights] == [
        w.name for w in model.trainable_weights
    ]
    assert not {id(w) for w in copy.weights} & {id(w) for w in model.weights}
    assert set(copy.output) == {"y", "z"} and set(copy.input) == {"image", "other"}
    assert len(copy.get_layer("twice")._inbound_nodes) == 2  # Made once, called twice.


def test_a_layer_shared_with_a_nested_model_is_made_once():
    shared = layers.Dense(4, name="shared")
    inside = keras.Input((4,))
    inner = keras.Model(inside, shared(inside), name="inner")
    image = keras.Input((4,))
    model = keras.Model(image, inner(shared(image)))
    copy = rebuild(model)
    assert copy.get_layer("inner").get_layer("shared") is copy.get_layer("shared")
    assert copy.count_params() == model.count_params() == 20


def test_a_sequential_model_stays_one_and_layers_can_be_taken_out():
    model = chain(
        layers.Conv2D(4, 3, name="conv"), layers.BatchNormalization(name="norm")
    )
    model.get_layer("norm").moving_mean.assign(np.ones(4))
    (norm,) = [node for node in nodes(model) if node.layer.name == "norm"]
    copy = rebuild(model, bypass={norm: norm.keras_inputs[0]})
    assert type(copy) is keras.Sequential
    assert [layer.name for layer in copy.layers] == ["conv"]
    image = np.ones((1, 8, 8, 4), "float32")
    np.testing.assert_array_equal(copy(image), model.get_layer("conv")(image))
    assert [layer.name for layer in model.layers] == ["conv", "norm"]


def test_what_only_a_bypassed_call_needed_is_left_out():
    image = keras.Input((8, 8, 4))
    x = layers.Conv2D(4, 1, name="stem")(image)
    branch = layers.Conv2D(4, 1, name="late")(layers.Conv2D(9, 1, name="early")(x))
    add = layers.Add(name="add")([x, branch])
    model = keras.Model(image, layers.ReLU(name="relu")(add))
    (call,) = [node for node in nodes(model) if node.layer.name == "add"]
    copy = rebuild(model, bypass={call: x})
    assert [layer.name for layer in copy.layers][1:] == ["stem", "relu"]
    images = np.ones((1, 8, 8, 4), "float32")
    stem = model.get_layer("stem")(images)
    np.testing.assert_array_equal(copy(images), tf.nn.relu(stem))


def test_configurations_change_and_weights_are_given():
    model = branched()
    old = model.get_layer("inner").get_layer("point").get_weights()

    def widths(layer):
        return {"use_bias": False} if layer.name == "point" else None

    def weights(before, after):
        assert before.name == after.name and before is not after
        return [2 * old[0]] if before.name == "point" else None

    copy = rebuild(model, config=widths, weights=weights)
    point = copy.get_layer("inner").get_layer("point")
    assert point.bias is None
    np.testing.assert_array_equal(point.kernel, 2 * old[0])
    np.testing.assert_array_equal(
        copy.get_layer("conv").kernel, model.get_layer("conv").kernel
    )


def test_input_layers_can_change_too():
    model = chain(layers.GlobalAveragePooling2D(), shape=(None, None, 3))
    copy = rebuild(
        model,
        config=lambda layer: (
            {"batch_input_shape": (None, 5, 7, 3)}
            if isinstance(layer, layers.InputLayer)
            else None
        ),
    )
    assert copy.input_shape == (None, 5, 7, 3)


@pytest.mark.parametrize("make", [branched, lambda: branched().get_layer("inner")])
def test_layers_are_inserted_behind_others(make):
    model = make()
    copy = rebuild(
        model,
        insert=lambda layer: (
            layers.Rescaling(3.0, name="tripled") if layer.name == "point" else None
        ),
    )
    paths = [path for path, _ in named_layers(copy) if path.endswith("tripled")]
    assert paths == ["tripled" if make is not branched else "inner/tripled"]
    image = np.random.default_rng(0).normal(size=(2, 6, 6, 4)).astype("float32")
    old = model if make is not branched else model.get_layer("inner")
    new = copy if make is not branched else copy.get_layer("inner")
    np.testing.assert_allclose(new(image), 3 * old(image), rtol=1e-6)


def test_wrappers_come_and_go_around_the_weights():
    model = chain(layers.Dense(4, name="dense"), layers.BatchNormalization(name="norm"))

    def wrap(layer):
        if not isinstance(layer, layers.Dense):
            return None
        copy = layers.Dense.from_config(layer.get_config())
        return tfmot.sparsity.keras.prune_low_magnitude(copy)

    wrapped = rebuild(model, replace=wrap)
    (wrapper, _) = wrapped.layers
    assert wrapper.layer.name == "dense" and len(wrapper.weights) == 5
    plain = rebuild(
        wrapped,
        replace=lambda layer: (
            layers.Dense.from_config(layer.layer.get_config())
            if hasattr(layer, "pruning_vars")
            else None
        ),
    )
    for one, other in zip(model.weights, plain.weights, strict=True):
        assert one.name == other.name
        np.testing.assert_array_equal(one, other)


def test_a_normalization_computes_with_the_weights_it_is_given():
    model = chain(layers.Normalization(name="norm"), shape=(2,))
    model.get_layer("norm").adapt(np.array([[1.0, 10.0], [3.0, 30.0]], "float32"))
    copy = rebuild(model)
    given = np.array([[3.0, 10.0]], "float32")
    np.testing.assert_allclose(copy(given), [[1.0, -1.0]])
    np.testing.assert_array_equal(copy(given), model(given))


class Unsaved(layers.Layer):
    def __init__(self, factor):
        super().__init__(name="unsaved")
        self.factor = factor

    def call(self, inputs):
        return self.factor * inputs


class Anonymous(layers.Layer):
    def get_config(self):
        return {}

    def call(self, inputs):
        return inputs + 1.0


def test_layers_that_cannot_be_made_again_are_named():
    with pytest.raises(ValueError, match="'unsaved' .Unsaved. cannot be made again"):
        rebuild(ending(Unsaved(tf.constant(2.0))))
    with pytest.raises(ValueError, match="'odd' .Anonymous.*its name is not in it"):
        rebuild(ending(Anonymous(name="odd")))
    with pytest.raises(ValueError, match="tf_keras model; a subclassed.*: Hidden"):
        rebuild(Hidden())
    with pytest.raises(ValueError, match="a subclassed model.*: Sequential"):
        rebuild(keras.Sequential([layers.Dense(2)]))


def test_weights_that_do_not_fit_are_told_with_the_layer():
    model = chain(layers.Dense(3, name="dense"))
    with pytest.raises(ValueError, match="layer 'dense' do not fit the Dense that"):
        rebuild(
            model,
            config=lambda layer: (
                {"units": 2} if isinstance(layer, layers.Dense) else None
            ),
        )


def test_a_loss_added_to_the_model_is_not_lost_silently():
    image = keras.Input((4,))
    model = keras.Model(image, layers.Dense(2)(image))
    model.add_loss(tf.reduce_sum(model.output))
    with pytest.raises(ValueError, match="not on the way to its outputs .losses or"):
        rebuild(model)
