"""Batch normalization after activations, folded into the layers that read it."""

import numpy as np
import pytest
import tf_keras as keras

import kdprune
from kdprune.models import load_model, save_model
from kdprune.quantize import fold_batch_norm, quantize_model
from kdprune.quantize.fold import fold_what_folds
from kdprune.tflite.convert import is_quantization_aware

layers = keras.layers
IMAGES = np.random.default_rng(0).random((6, 12, 12, 3), "float32")


def norm(name, **arguments):
    return layers.BatchNormalization(name=name, **arguments)


def built(connect, inputs=(12, 12, 3)):
    """A model of which every weight is random: all of gamma, beta and moments."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input(inputs)
    return scattered(keras.Model(inputs, connect(inputs)))


def scattered(model):
    rng = np.random.default_rng(1)
    for layer in model.layers:
        weights = [0.4 * rng.normal(size=w.shape) for w in layer.get_weights()]
        if isinstance(layer, layers.BatchNormalization):
            weights[-1] = rng.uniform(0.2, 3, weights[-1].shape)
            if layer.scale:
                weights[0] = rng.uniform(0.3, 2, weights[0].shape)
        layer.set_weights(weights)
    return model


def plain(x):
    x = layers.Conv2D(6, 3, name="conv1")(x)
    x = norm("bn")(layers.ReLU()(x))
    return layers.Dense(4)(layers.Flatten()(layers.Conv2D(5, 3, name="conv2")(x)))


def chain(x):
    """Conv with an activation of its own; 1 x 1 with stride; BN in its right place."""
    x = layers.Conv2D(6, 3, padding="same", activation="relu", name="conv1")(x)
    x = layers.Conv2D(8, 1, 2, padding="same", use_bias=False)(norm("bn1")(x))
    x = layers.ReLU()(norm("right")(x))
    x = layers.Conv2D(8, 3, activation="relu", name="conv3")(norm("bn2")(x))
    x = norm("bn3", scale=False)(x)
    return layers.Dense(4)(layers.GlobalAveragePooling2D()(x))


def pooled(x):
    x = norm("bn")(layers.ReLU()(layers.Conv2D(6, 3)(x)))
    x = layers.Dropout(0.5)(layers.MaxPooling2D(3, 2, padding="same")(x))
    x = layers.AveragePooling2D(2, padding="same")(x)
    x = layers.Dense(7, activation="relu")(layers.Flatten()(x))
    return layers.Dense(4)(norm("bn_dense", center=False)(x))


def depthwise(x):
    x = norm("bn")(layers.ReLU()(layers.Conv2D(6, 3, padding="same")(x)))
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, use_bias=False)(x)
    return layers.Dense(4)(layers.Flatten()(x))


def grouped(x):
    x = norm("bn")(layers.ReLU()(layers.Conv2D(6, 3, padding="same")(x)))
    return layers.Dense(4)(layers.Flatten()(layers.Conv2D(9, 3, groups=3)(x)))


def branched(x):
    """Two layers read it, whose sum is the residual."""
    x = norm("bn")(layers.ReLU()(layers.Conv2D(6, 3, padding="same")(x)))
    x = layers.Add()([layers.Conv2D(4, 1)(x), layers.Conv2D(4, 1, use_bias=False)(x)])
    return layers.Dense(4)(layers.Flatten()(layers.ReLU()(x)))


def sequential():
    parts = [
        keras.Input((12, 12, 3)),
        layers.Conv2D(6, 3, padding="same", activation="relu"),
        norm("bn"),
        layers.MaxPooling2D(),
        layers.Conv2D(5, 3, name="conv2"),
        layers.Flatten(),
        layers.Dense(4),
    ]
    return scattered(keras.Sequential(parts))


@pytest.mark.parametrize(
    "make", [plain, chain, pooled, depthwise, grouped, branched, sequential]
)
@pytest.mark.quick("chain", "depthwise", "branched")
def test_the_folded_model_scores_alike_and_can_be_quantized(make, tmp_path):
    model = make() if make is sequential else built(make)
    expected = model(IMAGES).numpy()
    before = model.get_weights()
    folded = fold_batch_norm(model)
    left = [
        layer.name for layer in folded.layers if "norm" in type(layer).__name__.lower()
    ]
    assert left == (["right"] if make is chain else [])
    scores = folded(IMAGES).numpy()
    np.testing.assert_allclose(scores, expected, atol=1e-5 * np.ptp(expected))
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert type(folded) is type(model)
    quantize_model(folded, calibration=IMAGES)
    save_model(folded, tmp_path / "folded.keras")
    loaded = load_model(tmp_path / "folded.keras")
    np.testing.assert_array_equal(loaded(IMAGES).numpy(), scores)


def padded(x):
    x = norm("bn")(layers.ReLU()(layers.Conv2D(6, 3)(x)))
    x = layers.Conv2D(5, 3, padding="same", name="conv2")(x)
    return layers.Dense(4)(layers.Flatten()(x))


def test_padding_is_in_the_way_of_a_shift_and_not_of_a_scale():
    model = built(padded)
    message = (
        "BatchNormalization 'bn' can't be folded .*'conv2' .Conv2D. pads .*Conv ->"
    )
    with pytest.raises(ValueError, match=message):
        fold_batch_norm(model)
    bn = model.get_layer("bn")
    gamma, beta, mean, variance = bn.get_weights()
    bn.set_weights([gamma, 0 * beta, 0 * mean, variance])
    expected = model(IMAGES).numpy()
    scores = fold_batch_norm(model)(IMAGES).numpy()
    np.testing.assert_allclose(scores, expected, atol=1e-5 * np.ptp(expected))


def test_negative_gamma_does_not_pass_a_maximum():
    model = built(pooled)
    bn = model.get_layer("bn")
    gamma, *others = bn.get_weights()
    bn.set_weights([-gamma, *others])
    with pytest.raises(ValueError, match="'bn' .*max_pooling2d.* takes the largest"):
        fold_batch_norm(model)


def before_relu(x):
    x = layers.ReLU()(norm("bn")(layers.ReLU()(layers.Conv2D(6, 3)(x))))
    return layers.Dense(4)(layers.Flatten()(x))


def at_the_end(x):
    x = layers.Dense(4, activation="relu")(layers.Flatten()(x))
    return norm("bn")(x)


def added(x):
    x = layers.ReLU()(layers.Conv2D(3, 3, padding="same")(x))
    return layers.Dense(4)(layers.Flatten()(layers.Add(name="sum")([x, norm("bn")(x)])))


def zero_padded(x):
    x = layers.ZeroPadding2D(name="pad")(norm("bn")(layers.ReLU()(x)))
    return layers.Dense(4)(layers.Flatten()(layers.Conv2D(4, 3)(x)))


@pytest.mark.parametrize(
    ("connect", "reason"),
    [
        (padded, "'conv2' .Conv2D. pads with zeros"),
        (before_relu, "re_lu.* .ReLU. reads it"),
        (at_the_end, "the model's output"),
        (added, "'sum' .Add. reads it and others"),
        (zero_padded, "'pad' .ZeroPadding2D. pads"),
    ],
)
def test_what_is_in_the_way_is_named(connect, reason):
    model = built(connect)
    with pytest.raises(ValueError, match=f"'bn' can't be folded.*{reason}") as caught:
        fold_batch_norm(model)
    assert "\n" not in str(caught.value)


def test_a_model_without_any_is_copied_and_one_without_a_graph_refused():
    model = built(lambda x: layers.Dense(4)(layers.Flatten()(x)))
    folded = kdprune.fold_batch_norm(model)
    np.testing.assert_array_equal(folded(IMAGES).numpy(), model(IMAGES).numpy())

    class Subclassed(keras.Model):
        pass

    with pytest.raises(ValueError, match="Functional or Sequential.*Subclassed"):
        fold_batch_norm(Subclassed())


def test_the_former_name_still_folds():
    with pytest.warns(DeprecationWarning, match="is now kdprune.fold_batch_norm"):
        assert kdprune.fold_batch_norms is fold_batch_norm


def backbone():
    """A base inside a model, as transfer learning has it; its last layer normalizes."""
    inner = keras.Input((12, 12, 3))
    x = norm("bn1")(layers.ReLU()(layers.Conv2D(6, 3, name="conv1")(inner)))
    x = layers.Conv2D(8, 3, activation="relu", name="conv2")(x)
    base = keras.Model(inner, norm("bn2")(x), name="base")
    inputs = keras.Input((12, 12, 3))
    x = base(inputs, training=False)
    return keras.Model(inputs, layers.Dense(4)(layers.GlobalAveragePooling2D()(x)))


def normalizations(model):
    every = [model, *model.submodules]
    return [one.name for one in every if isinstance(one, layers.BatchNormalization)]


def test_normalization_of_a_model_inside_the_model_is_folded_too():
    model = backbone()
    scattered(model.get_layer("base"))
    expected = model(IMAGES).numpy()
    assert sorted(normalizations(model)) == ["bn1", "bn2"]
    folded = fold_batch_norm(model)
    assert normalizations(folded) == []
    scores = folded(IMAGES).numpy()
    np.testing.assert_allclose(scores, expected, atol=1e-5 * np.ptp(expected))
    assert normalizations(fold_what_folds(model)) == []


def test_a_model_inside_the_model_is_kept_where_there_is_nothing_to_fold():
    inner = keras.Sequential([keras.Input((12, 12, 3)), layers.Conv2D(4, 3)], "base")
    model = built(lambda x: layers.Dense(4)(layers.Flatten()(inner(x))))
    folded = fold_batch_norm(model)
    assert [type(layer) for layer in folded.layers[1:2]] == [keras.Sequential]
    np.testing.assert_array_equal(folded(IMAGES).numpy(), model(IMAGES).numpy())


def test_normalization_that_no_graph_shows_is_named():
    class Hidden(keras.Model):
        def __init__(self):
            super().__init__(name="hidden")
            self.norm = norm("inside")

        def call(self, inputs):
            return self.norm(inputs)

    hidden = Hidden()
    inputs = keras.Input((12, 12, 3))
    model = keras.Model(inputs, layers.Dense(2)(layers.Flatten()(hidden(inputs))))
    with pytest.raises(ValueError, match="'inside' can't be .* inside 'hidden'"):
        fold_batch_norm(model)


def test_what_is_wrapped_in_a_model_inside_the_model_is_seen():
    aware = quantize_model(built(lambda x: layers.Conv2D(4, 3, name="c")(x)))
    inputs = keras.Input((12, 12, 3))
    outer = keras.Model(inputs, layers.Dense(2)(layers.Flatten()(aware(inputs))))
    with pytest.raises(ValueError, match="which is quantization-aware already"):
        quantize_model(outer)
    assert is_quantization_aware(outer)
