"""Cross-layer equalization: exact in float on any graph, level ranges afterwards."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import kdprune
from kdprune._graph import named_layers
from kdprune.evaluate import predict

layers = keras.layers
IMAGES = np.random.default_rng(0).random((32, 8, 8, 3), "float32")


def unequal(model):
    """Weights whose channels differ by a factor of ten and more."""
    rng = np.random.default_rng(1)
    for _, layer in named_layers(model):
        weights = []
        for weight in layer.get_weights():
            sizes = np.exp(1.5 * rng.normal(size=weight.shape[-1:]))
            weights.append(0.3 * rng.normal(size=weight.shape) * sizes)
        if isinstance(layer, layers.BatchNormalization):
            weights[-1] = np.exp(rng.normal(size=weights[-1].shape))
        layer.set_weights(weights)
    return model


def outputs_of(model):
    outputs = model.predict(IMAGES, verbose=0)
    return outputs if isinstance(outputs, list) else [outputs]


def assert_equal(model, equalized):
    for before, after in zip(outputs_of(model), outputs_of(equalized), strict=True):
        np.testing.assert_allclose(after, before, atol=2e-5 * np.abs(before).max())


def spread(model, *names):
    """The largest range of a channel over the smallest, of each layer's output."""
    seen = keras.Model(model.inputs, [model.get_layer(n).output for n in names])
    found = []
    for values in tf.nest.flatten(seen.predict(IMAGES, verbose=0)):
        largest = np.abs(values).max(axis=tuple(range(values.ndim - 1)))
        found.append(largest.max() / largest[largest > 0].min())
    return found


# --- Any graph ---


class Graph:
    """Grows a model from a list of drawn steps."""

    def __init__(self, draw):
        self.draw = draw
        self.input = keras.Input((8, 8, 3))
        self.maps = [self.conv(self.input)]
        self.shared = layers.Conv2D(4, 1)

    def pick(self, options):
        return self.draw(st.sampled_from(options))

    def finish(self):
        last = self.pick([layers.Flatten, layers.GlobalAveragePooling2D])()
        x = layers.Dense(5, self.pick(ACTIVATIONS))(last(self.maps[-1]))
        outputs = [layers.Dense(3)(x)]
        if self.draw(st.booleans()):
            outputs.append(layers.GlobalMaxPooling2D()(self.pick(self.maps)))
        return unequal(keras.Model(self.input, outputs))

    def grow(self):
        x = self.pick(STEPS)(self, self.pick(self.maps))
        self.maps.append(self.pick(BETWEEN)(self, x))

    def conv(self, x):
        options = {"padding": self.pick(["same", "valid"]), "use_bias": self.pick(BOTH)}
        size = self.pick([1, 3]) if min(x.shape[1:3]) > 2 else 1
        return layers.Conv2D(self.pick([2, 4]), size, **options)(x)

    def activated(self, x):
        activation = self.pick(ACTIVATIONS)
        return layers.Conv2D(4, 1, activation=activation)(x)

    def grouped(self, x):
        groups = self.pick([g for g in (1, 2, 4) if x.shape[-1] % g == 0])
        filters = groups * self.pick([1, 2])
        return layers.Conv2D(filters, 3, padding="same", groups=groups)(x)

    def depthwise(self, x):
        times = self.pick([1, 2])
        return layers.DepthwiseConv2D(3, padding="same", depth_multiplier=times)(x)

    def separable(self, x):
        times = self.pick([1, 2])
        return layers.SeparableConv2D(
            4, 3, padding="same", depth_multiplier=times, activation="relu"
        )(x)

    def transposed(self, x):
        return layers.Conv2DTranspose(4, 3, padding="same")(x)

    def dense(self, x):
        return layers.Dense(4, self.pick(ACTIVATIONS))(x)

    def norm(self, x):
        return layers.BatchNormalization(scale=self.pick(BOTH), center=self.pick(BOTH))(
            x
        )

    def normal_shape(self, x):
        return layers.Conv2D(4, 1)(layers.Resizing(8, 8)(x))

    def merged(self, x):
        kinds = ["Add", "Subtract", "Multiply", "Average", "Maximum", "Concatenate"]
        other = self.normal_shape(self.pick(self.maps))
        return getattr(layers, self.pick(kinds))()([self.normal_shape(x), other])

    def gated(self, x):
        gate = layers.Dense(x.shape[-1], self.pick(["sigmoid", "relu"]))(
            layers.GlobalAveragePooling2D(keepdims=True)(x)
        )
        return layers.Multiply()([x, gate])

    def broadcast(self, x):
        return layers.Add()([x, layers.Conv2D(1, 1)(x)])

    def again(self, x):
        return self.shared(self.shared(self.normal_shape(x)))

    def function(self, x):
        return self.pick([lambda x: x + 0.5, lambda x: 2.0 - x, tf.nn.relu])(x)

    def nested(self, x):
        inner = keras.Input(x.shape[1:])
        return keras.Model(inner, layers.ReLU()(self.conv(inner)))(x)

    def nothing(self, x):
        return x

    def homogeneous(self, x):
        return self.pick(
            [
                *(layers.ReLU(), layers.LeakyReLU(), layers.PReLU()),
                *(layers.Dropout(0.2), layers.ZeroPadding2D(1)),
                *(layers.AveragePooling2D(2, 1), layers.MaxPooling2D(2, 1)),
            ][: 5 if min(x.shape[1:3]) < 2 else None]
        )(x)

    def not_homogeneous(self, x):
        return self.pick(
            [
                *(layers.ReLU(6.0), layers.ReLU(threshold=0.1), layers.ELU()),
                *(layers.Activation("swish"), layers.Softmax()),
                *(layers.LayerNormalization(), layers.Rescaling(2.0, 0.3)),
            ]
        )(x)


BOTH = [True, False]
ACTIVATIONS = ["linear", "relu", "relu6", "sigmoid"]
STEPS = [
    *(Graph.conv, Graph.activated, Graph.grouped, Graph.depthwise, Graph.separable),
    *(Graph.transposed, Graph.dense, Graph.norm, Graph.merged, Graph.gated),
    *(Graph.broadcast, Graph.again, Graph.function, Graph.nested),
]
BETWEEN = [
    *(Graph.homogeneous, Graph.homogeneous, Graph.not_homogeneous),
    *(Graph.norm, Graph.nothing),
]


@st.composite
def graphs(draw):
    graph = Graph(draw)
    for _ in range(draw(st.integers(1, 6))):
        graph.grow()
    return graph.finish()


SETTINGS = {
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
    "database": None,
}
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")


@settings(max_examples=4, derandomize=True, **SETTINGS)
@given(model=graphs())
def test_any_graph_computes_what_it_did(model):
    assert_equal(model, kdprune.equalize_channels(model, IMAGES))


@pytest.mark.soak
@settings(max_examples=15, **SETTINGS)
@given(model=graphs())
def test_many_graphs_compute_what_they_did(model):
    assert_equal(model, kdprune.equalize_channels(model, IMAGES))


# --- What it changes ---


def sequential(*given):
    return unequal(keras.Sequential([keras.Input((8, 8, 3)), *given]))


def test_channels_get_like_ranges():
    model = sequential(
        layers.Conv2D(8, 3, activation="relu", name="one"),
        layers.MaxPooling2D(),
        layers.Conv2D(8, 1, name="two"),
        layers.LeakyReLU(name="after"),
        layers.GlobalAveragePooling2D(),
        layers.Dense(4),
    )
    equalized = kdprune.equalize_channels(model, IMAGES)
    for before, after in zip(
        spread(model, "one", "after"), spread(equalized, "one", "after"), strict=True
    ):
        assert after < before / 3


def test_channels_that_are_added_keep_one_factor():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(6, 1, activation="relu", name="first")(inputs)
    y = layers.Conv2D(6, 1, name="second")(x)
    x = layers.Add(name="sum")([x, y])
    model = unequal(keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x))))
    equalized = kdprune.equalize_channels(model, IMAGES)
    ratios = [
        np.abs(equalized.get_layer(n).kernel / model.get_layer(n).kernel)
        for n in ("first", "second")
    ]
    assert np.ptp(ratios[0]) > 0.1
    # Input channels of the second layer are divided by what its outputs are
    # multiplied by.
    np.testing.assert_allclose(np.diagonal(ratios[1][0, 0]), 1, rtol=1e-5)
    assert_equal(model, equalized)


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_normalization_behind_an_activation_multiplies_all_channels_alike(padding):
    model = sequential(
        layers.Conv2D(6, 3, padding=padding, activation="relu"),
        layers.BatchNormalization(name="norm"),
        layers.Conv2D(6, 3, padding=padding, activation="relu"),
        layers.Flatten(),
        layers.Dense(4),
    )
    equalized = kdprune.equalize_channels(model, IMAGES)
    names = [layer.name for layer in equalized.layers]
    assert ("norm" in names) == (padding == "same")
    if padding == "same":
        norm = equalized.get_layer("norm")
        deviation = np.sqrt(norm.moving_variance + norm.epsilon)
        np.testing.assert_allclose(np.abs(norm.gamma) / deviation, 1, rtol=1e-5)
    assert_equal(model, equalized)


def test_dead_channels_are_left_alone():
    model = sequential(
        layers.Conv2D(4, 1, activation="relu", name="one"),
        layers.Conv2D(4, 1, activation="relu", name="two"),
        layers.Flatten(),
        layers.Dense(2),
    )
    one, two = model.get_layer("one"), model.get_layer("two")
    kernel, bias = one.get_weights()
    kernel[..., 0], bias[0] = -1, 0  # Never active.
    one.set_weights([kernel, bias])
    kernel, bias = two.get_weights()
    kernel[:, :, 1] = 0  # Read by nothing.
    two.set_weights([kernel, bias])
    equalized = kdprune.equalize_channels(model, IMAGES)
    ratio = equalized.get_layer("one").kernel / one.kernel
    np.testing.assert_allclose(ratio[..., :2], 1, rtol=1e-6)
    assert_equal(model, equalized)


def test_nothing_is_changed_across_what_does_not_scale():
    model = sequential(
        layers.Conv2D(4, 1, activation="relu6"),
        layers.Conv2D(4, 1),
        layers.Activation("swish"),
        layers.Flatten(),
        layers.Dense(2),
    )
    equalized = kdprune.equalize_channels(model, IMAGES)
    for before, after in zip(model.get_weights(), equalized.get_weights(), strict=True):
        np.testing.assert_array_equal(after, before)


def test_the_given_model_is_left_as_it_was():
    model = sequential(
        layers.Conv2D(4, 1, activation="relu"), layers.Flatten(), layers.Dense(2)
    )
    before = model.get_weights()
    kdprune.equalize_channels(model, IMAGES)
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_has_no_graph_or_no_images_is_refused():
    class Subclassed(keras.Model):
        pass

    with pytest.raises(ValueError, match="no graph"):
        kdprune.equalize_channels(Subclassed(), IMAGES)
    model = sequential(layers.Conv2D(4, 1), layers.Flatten(), layers.Dense(2))
    with pytest.raises(ValueError, match="Received: float32 in"):
        kdprune.equalize_channels(model, 255 * IMAGES)


# --- What it is for ---


@pytest.mark.slow
def test_int8_of_unequal_channels_collapses_and_of_equalized_ones_does_not(
    quadrants, tmp_path
):
    pictures, classes = quadrants(3000, 12, step=20)
    images, labels = pictures[:2000], classes[:2000]
    unseen, truth = pictures[2000:], classes[2000:]
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((12, 12, 3)),
            layers.Conv2D(16, 3, 2, activation="relu", name="one"),
            layers.Conv2D(16, 3, activation="relu", name="two"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(4, name="logits"),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.003), loss)
    model.fit(images / np.float32(255), labels, 50, 10, verbose=0)
    # What equalization takes off, put on: in float it is the same model.
    for maker, user in (("one", "two"), ("two", "logits")):
        maker, user = model.get_layer(maker), model.get_layer(user)
        factors = 10.0 ** np.random.default_rng(0).uniform(-2, 2, 16)
        maker.set_weights([weight * factors for weight in maker.get_weights()])
        kernel, bias = user.get_weights()
        rows = np.resize(factors, kernel.shape[-2])
        user.set_weights([kernel / rows[:, None], bias])

    def accuracy(made):
        if isinstance(made, bytes):
            (tmp_path / "made.tflite").write_bytes(made)
            made = tmp_path / "made.tflite"
        return (predict(made, unseen).argmax(axis=1) == truth).mean()

    equalized = kdprune.equalize_channels(model, images[:300])
    before = accuracy(model)
    assert before > 0.8
    assert accuracy(equalized) == pytest.approx(before, abs=0.002)
    plain, level = (
        accuracy(kdprune.convert_tflite(one, "int8", images[:300]))
        for one in (model, equalized)
    )
    assert plain < before - 0.1
    assert level > before - 0.02
