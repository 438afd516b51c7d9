"""Masked weights stay exactly zero in training, and in the file that is saved."""

import base64

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from kdprune import prune
from kdprune.distill import Distiller
from kdprune.models import load_model, save_model
from kdprune.models.precision import cast_model
from kdprune.prune import (
    activation_masks,
    apply_masks,
    check_masks,
    layer_sparsity,
    strip_masks,
    weight_masks,
)
from kdprune.prune.masks import HeldZeros, MaskConstraint

layers = keras.layers
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def small_model(seed=0):
    keras.utils.set_random_seed(seed)
    image = keras.Input((6, 6, 3))
    x = layers.Conv2D(6, 3, padding="same", name="conv")(image)
    x = layers.ReLU()(layers.BatchNormalization(name="norm")(x))
    x = layers.DepthwiseConv2D(3, name="depthwise", activation="relu")(x)
    x = layers.Dense(4, name="logits")(layers.Flatten()(x))
    return keras.Model(image, x, name="small")


@pytest.fixture(scope="module")
def data():
    generator = np.random.default_rng(1)
    images = generator.uniform(size=(32, 6, 6, 3)).astype(np.float32)
    return images, np.arange(32) % 4


def train(model, data, optimizer=None, eager=True):
    """Trains for 8 steps, which take less time than tracing one."""
    optimizer = optimizer or keras.optimizers.Adam(0.05, jit_compile=False)
    model.compile(optimizer, LOSS, run_eagerly=eager)
    model.fit(*data, batch_size=8, epochs=2, verbose=0)


def saved_zeros(model, path, masks):
    """Saves and loads; the share of exact zeros where masked and where not."""
    save_model(model, path)
    loaded = load_model(path)
    check_masks(loaded, masks)
    shares = {}
    for name, mask in masks.items():
        layer, _, weight = name.rpartition("/")
        zero = getattr(loaded.get_layer(layer), weight).numpy() == 0
        shares[name] = zero[~mask].mean(), zero[mask].mean()
    return shares


def test_zeros_hold_in_fit_while_the_rest_learns(data, tmp_path):
    model = small_model()
    weights = model.get_weights()
    masks = weight_masks(model, relative_threshold=0.5)
    held = apply_masks(model, masks)
    check_masks(held, masks)
    kept = masks["conv/kernel"]
    np.testing.assert_array_equal(
        held.get_layer("conv").kernel, np.where(kept, model.get_layer("conv").kernel, 0)
    )
    # Weight decay and momentum are no way round it.
    optimizer = keras.optimizers.SGD(
        0.05, momentum=0.9, weight_decay=0.01, jit_compile=False
    )
    train(held, data, optimizer, eager=False)
    old, new = (one.get_layer("conv").kernel.numpy() for one in (model, held))
    assert (old != new)[kept].all()
    stripped = strip_masks(held)
    np.testing.assert_array_equal(stripped(data[0]), held(data[0]))
    assert stripped.get_config() == model.get_config()
    assert [w.name for w in stripped.weights] == [w.name for w in model.weights]
    shares = saved_zeros(stripped, tmp_path / "m.keras", masks)
    assert set(shares) == {"conv/kernel", "logits/kernel"}
    assert all(share == (1, 0) for share in shares.values())
    for old, new in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.slow
def test_a_distiller_trains_a_masked_student_in_bfloat16(data, tmp_path):
    masks = weight_masks(small_model(), relative_threshold=0.5)
    student = cast_model(apply_masks(small_model(), masks), "mixed_bfloat16")
    distiller = Distiller(student, small_model(seed=1))
    distiller.compile(keras.optimizers.Adam(0.05, jit_compile=False))
    distiller.fit(*data, batch_size=8, epochs=2, verbose=0)
    stripped = strip_masks(cast_model(student, "float32"))
    shares = saved_zeros(stripped, tmp_path / "m.keras", masks)
    assert all(share == (1, 0) for share in shares.values())


def test_averages_of_the_weights_are_made_zero_again(data, tmp_path):
    masks = weight_masks(small_model(), relative_threshold=0.5)
    held = apply_masks(small_model(), masks)
    train(held, data, keras.optimizers.Adam(0.05, use_ema=True, jit_compile=False))
    with pytest.raises(ValueError, match="expected zeros wherever 'conv/kernel' is"):
        check_masks(held, masks)
    saved_zeros(strip_masks(held), tmp_path / "m.keras", masks)


def test_dead_channels_stay_dead_in_a_loop_of_ones_own(data, tmp_path):
    model = small_model()
    model.get_layer("norm").beta.assign([-50, 1, 1, -50, 1, 1])
    model.get_layer("depthwise").bias.assign([-1, 1, 1, -1, 1, 1])
    masks = activation_masks(model, 0.01, data[0])
    assert {"conv/kernel", "norm/gamma", "norm/beta", "norm/moving_mean"} < set(masks)
    held = apply_masks(model, masks)
    np.testing.assert_allclose(held(data[0]), model(data[0]), atol=1e-5)
    optimizer = keras.optimizers.SGD(0.1)
    for _ in range(3):
        with tf.GradientTape() as tape:
            loss = LOSS(data[1], held(data[0], training=True))
        variables = held.trainable_variables
        optimizer.apply_gradients(
            zip(tape.gradient(loss, variables), variables, strict=True)
        )
    shares = saved_zeros(strip_masks(held), tmp_path / "m.keras", masks)
    assert all(zeroed == 1 for zeroed, _ in shares.values())
    features = keras.Model(held.input, held.get_layer("depthwise").output)(data[0])
    active = np.abs(features).max(axis=(0, 1, 2)) > 0
    np.testing.assert_array_equal(active, [False, True, True, False, True, True])


def test_the_zeros_that_are_there_are_held_without_masks(data):
    model = strip_masks(apply_masks(small_model(), weight_masks(small_model(), 0.1)))
    before = layer_sparsity(model)
    held = apply_masks(model)
    train(held, data)
    assert layer_sparsity(strip_masks(held)) == before
    assert 0 < before["conv"] < 1


def test_layers_inside_models_are_held_too(data):
    inner = keras.Sequential([layers.Conv2D(4, 3, name="conv")], name="inner")
    model = keras.Sequential(
        [keras.Input((6, 6, 3)), inner, layers.Flatten(), layers.Dense(4)]
    )
    mask = np.zeros((3, 3, 3, 4), bool)
    mask[..., 0] = True
    held = apply_masks(model, {"inner/conv/kernel": mask})
    train(held, data)
    stripped = strip_masks(held)
    assert type(stripped) is keras.Sequential
    kernel = stripped.get_layer("inner").get_layer("conv").kernel.numpy()
    np.testing.assert_array_equal(kernel != 0, mask)


def test_a_held_model_is_saved_and_goes_on_holding(data, tmp_path):
    masks = weight_masks(small_model(), relative_threshold=0.5)
    save_model(apply_masks(small_model(), masks), tmp_path / "held.keras")
    loaded = load_model(tmp_path / "held.keras")
    train(loaded, data)
    check_masks(loaded, masks)


def test_a_constraint_is_told_in_few_bytes():
    mask = np.random.default_rng(0).random((3, 3, 5)) < 0.5
    config = MaskConstraint(mask).get_config()
    assert len(base64.b64decode(config["bits"])) == 6
    np.testing.assert_array_equal(MaskConstraint.from_config(config).mask, mask)
    weight = np.full((3, 3, 5), np.nan, np.float32)
    assert np.array_equal(np.isnan(MaskConstraint(mask)(weight)), mask)


def test_what_cannot_be_held_is_named():
    model = small_model()
    for name in ("conv/alpha", "convolution/kernel"):
        with pytest.raises(ValueError, match=f"'{name}' of .*the model's is none"):
            apply_masks(model, {name: np.ones(3, bool)})
    with pytest.raises(ValueError, match=r"shape \(3,\), where .* is \(3, 3, 3, 6\)"):
        apply_masks(model, {"conv/kernel": np.ones(3, bool)})
    masks = weight_masks(model, relative_threshold=0.5)
    with pytest.raises(ValueError, match="under a constraint already .MaskConstraint"):
        apply_masks(apply_masks(model, masks), masks)
    with pytest.raises(ValueError, match="Received: 'other/kernel'"):
        check_masks(model, {"other/kernel": np.ones(3, bool)})

    class Subclassed(keras.Model):
        pass

    with pytest.raises(ValueError, match="Functional and Sequential .* Subclassed"):
        apply_masks(Subclassed(), {})


def test_files_of_earlier_versions_load_and_are_stripped(tmp_path):
    mask = np.random.default_rng(0).random((3, 3, 3, 4)) < 0.5
    conv = layers.Conv2D(4, 3, kernel_constraint=HeldZeros(mask), name="conv")
    model = keras.Sequential([keras.Input((6, 6, 3)), conv])
    save_model(model, tmp_path / "earlier.keras")
    loaded = load_model(tmp_path / "earlier.keras")
    assert type(loaded.get_layer("conv").kernel_constraint) is HeldZeros
    stripped = strip_masks(loaded)
    assert stripped.get_layer("conv").kernel_constraint is None
    check_masks(stripped, {"conv/kernel": mask})


def test_the_former_names_of_prune_say_what_they_are_called_now():
    for former, name in (
        ("hold_masks", "apply_masks"),
        ("release_masks", "strip_masks"),
        ("regularize_batch_norm", "add_bn_l1"),
        ("release_batch_norm", "strip_bn_l1"),
    ):
        with pytest.warns(DeprecationWarning, match=f"is now kdprune.prune.{name}"):
            assert getattr(prune, former) is getattr(prune, name)
