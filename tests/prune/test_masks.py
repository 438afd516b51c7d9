"""One-shot masks: which weights they choose, against independent formulas."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from kdprune.prune import activation_masks, apply_masks, weight_masks

layers = keras.layers


@pytest.fixture(scope="module")
def model():
    """A residual net in which three channels of `a`, and one of `c`, are dead."""
    keras.utils.set_random_seed(0)
    image = keras.Input((6, 6, 3))
    x = layers.Conv2D(6, 3, padding="same", use_bias=False, name="a")(image)
    x = layers.ReLU()(layers.BatchNormalization(name="a_norm", scale=False)(x))
    y = layers.DepthwiseConv2D(3, padding="same", name="between")(x)
    y = layers.Conv2D(6, 1, name="b")(layers.ReLU()(y))
    y = layers.BatchNormalization(name="b_norm")(y)
    x = layers.ReLU(name="sum")(layers.Add()([x, y]))
    x = layers.Conv2D(4, 3, activation="relu", name="c")(x)
    x = layers.Dense(3, name="logits")(layers.Flatten()(x))
    model = keras.Model(image, x)
    generator = np.random.default_rng(0)
    for variable in model.weights:
        if "variance" not in variable.name:
            variable.assign(generator.normal(0, 0.3, variable.shape))
    for name in ("a_norm", "b_norm"):
        beta = model.get_layer(name).beta
        beta.assign(np.where(np.arange(6) % 2, -50, beta))
    model.get_layer("between").bias.assign([1, -50, 1, -50, 1, -50])
    model.get_layer("c").bias.assign([1, 1, 1, -50])
    return model


@pytest.fixture(scope="module")
def data():
    generator = np.random.default_rng(1)
    images = generator.uniform(size=(150, 6, 6, 3)).astype(np.float32)
    return images, generator.integers(0, 3, 150)


KERNELS = ["a", "b", "c", "logits"]


def kernel(model, name):
    return model.get_layer(name).kernel.numpy()


def test_an_absolute_thresapply_masks_what_is_smaller(model):
    masks = weight_masks(model, 0.2, exclude=["b"])
    assert list(masks) == ["a/kernel", "c/kernel", "logits/kernel"]
    for name in ("a", "c", "logits"):
        mask = masks[f"{name}/kernel"]
        np.testing.assert_array_equal(mask, np.abs(kernel(model, name)) >= 0.2)
        assert 0.2 < mask.mean() < 0.8


def test_a_relative_threshold_is_a_share_of_each_layers_largest(model):
    masks = weight_masks(model, relative_threshold=0.3)
    for name in KERNELS:
        sizes = np.abs(kernel(model, name))
        np.testing.assert_array_equal(
            masks[f"{name}/kernel"], sizes >= 0.3 * sizes.max()
        )


@pytest.mark.parametrize("by", ["gradient", "taylor"])
def test_gradients_are_those_of_the_mean_loss_of_all_images(model, data, by):
    images, labels = data
    kernels = [model.get_layer(name).kernel for name in KERNELS]
    with tf.GradientTape() as tape:
        logs = tf.nn.log_softmax(model(images))
        loss = -tf.reduce_mean(tf.gather(logs, labels, batch_dims=1))
    gradients = tape.gradient(loss, kernels)
    masks = weight_masks(model, relative_threshold=0.1, criterion=by, data=data)
    one_hot = np.eye(3, dtype=np.float32)[labels]
    batched = [(images[:7], one_hot[:7]), (images[7:], one_hot[7:])]
    again = weight_masks(model, relative_threshold=0.1, criterion=by, data=batched)
    for name, weight, gradient in zip(KERNELS, kernels, gradients, strict=True):
        scores = np.abs(gradient * weight if by == "taylor" else gradient)
        sure = np.abs(scores / scores.max() - 0.1) > 1e-4
        for found in (masks, again):
            mask = found[f"{name}/kernel"]
            np.testing.assert_array_equal(
                mask[sure], (scores >= 0.1 * scores.max())[sure]
            )
        assert 0 < mask.mean() < 1
    limit = float(scores.max() / 2)
    absolute = weight_masks(model, limit, criterion=by, data=data, exclude=KERNELS[:3])
    assert absolute["logits/kernel"].sum() == (scores >= limit).sum()


def test_a_dead_channel_goes_with_all_weights_that_make_it(model, data):
    before = model(data[0]).numpy()
    masks = activation_masks(model, 0.01, data[0])
    gone = np.array([False, True, False, True, False, True])
    for name in (
        "a/kernel", "a_norm/beta", "a_norm/moving_mean", "between/bias", "b/kernel",
        "b/bias", "b_norm/gamma", "b_norm/beta", "b_norm/moving_mean",
        "between/depthwise_kernel",
    ):  # fmt: skip
        mask = np.moveaxis(masks.pop(name), 2 if "depthwise" in name else -1, 0)
        assert (mask.reshape(6, -1) != gone[:, None]).all(), name
    for name in ("c/kernel", "c/bias"):
        mask = masks.pop(name)
        assert not mask[..., 3].any() and mask[..., :3].all()
    assert not masks
    after = apply_masks(model, activation_masks(model, 0.01, data[0]))(data[0]).numpy()
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-4)


def test_rates_are_compared_with_alpha(model, data):
    some = activation_masks(model, 0.01, data[0], ignore=["a", "b"])
    assert sorted(some) == ["c/bias", "c/kernel"]
    assert activation_masks(model, 1e-9, data[0], ignore=["c", "a"]) == {}


def test_what_would_leave_nothing_of_a_layer_is_refused(model, data):
    with pytest.raises(ValueError, match=r"leaves nothing of layer 'a', whose larg.*"):
        weight_masks(model, 100.0)
    dead = apply_masks(model, {})
    dead.get_layer("c").bias.assign([-50] * 4)
    with pytest.raises(ValueError, match="nothing of layer 'c', .* a rate of 0; lower"):
        activation_masks(dead, 0.01, data[0])


def test_bad_input_is_named(model, data):
    for given in ({}, {"threshold": 1.0, "relative_threshold": 0.5}):
        with pytest.raises(ValueError, match="either threshold or relative_threshold."):
            weight_masks(model, **given)
    for threshold in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="threshold must be positive"):
            weight_masks(model, threshold)
    for beta in (0.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match=r"relative_threshold must be in \(0, 1\)"):
            weight_masks(model, relative_threshold=beta)
    with pytest.raises(ValueError, match="one of magnitude, gradient, taylor"):
        weight_masks(model, 0.1, criterion="size")
    with pytest.raises(ValueError, match="among a, between, b, c, logits. Received: d"):
        weight_masks(model, 0.1, exclude=["d"])
    with pytest.raises(ValueError, match=r"give data=\(images, labels\). Received"):
        weight_masks(model, 0.1, criterion="taylor")
    with pytest.raises(ValueError, match="labels"):
        weight_masks(model, 0.1, criterion="gradient", data=data[0])
    for alpha in (0, 1.5, float("nan")):
        with pytest.raises(ValueError, match=r"alpha must be in \(0, 1\]"):
            activation_masks(model, alpha, data[0])
    with pytest.raises(ValueError, match="ignore names layers"):
        activation_masks(model, 0.5, data[0], ignore=["nothing"])
    with pytest.raises(ValueError, match="give data=images"):
        activation_masks(model, 0.5, None)
