"""Layers that the user froze keep their weights, whatever is done around them."""

import numpy as np
import pytest
import tf_keras as keras

from kdprune import quantize
from kdprune._graph import frozen_layers, named_layers, rebuild, unwrapped
from kdprune.config import parse_recipe
from kdprune.distill import Distiller
from kdprune.intake import take_model
from kdprune.intake.inline import inline
from kdprune.models import load_model, reset_weights, save_model
from kdprune.models.precision import cast_model
from kdprune.prune import (
    activation_masks,
    add_bn_l1,
    apply_masks,
    lamp_sparsity,
    plan_channels,
    prune_channels,
    prune_magnitude,
    pruning_callbacks,
    recalibrate_batch_norm,
    sparsity_below,
    sparsity_figures,
    strip_bn_l1,
    strip_masks,
    strip_pruning,
    weight_masks,
)
from kdprune.prune.recalibrate import recalibrate_after
from kdprune.runner import run as runner
from kdprune.training import fit

layers = keras.layers
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
FROZEN = ("conv", "conv_norm", "separable", "norm", "slopes")
RNG = np.random.default_rng(0)
IMAGES = RNG.random((32, 8, 8, 3), np.float32)
LABELS = np.arange(32) % 4


def network(nested=False):
    """Frozen up to a layer of its own; all of the frozen ones inside a model or not."""
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="conv")(image)
    x = layers.ReLU()(layers.BatchNormalization(name="conv_norm")(x))
    x = layers.SeparableConv2D(8, 3, padding="same", name="separable")(x)
    x = layers.PReLU(shared_axes=(1, 2), name="slopes")(x)
    x = layers.BatchNormalization(name="norm")(x)
    base = keras.Model(image, x, name="base")
    if nested:
        outer = keras.Input((8, 8, 3))
        image, x = outer, base(outer)
        base.trainable = False
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="free")(x)
    x = layers.ReLU()(layers.BatchNormalization(name="free_norm")(x))
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(image, layers.Dense(4, name="logits")(x))
    draw(model)
    for name, layer in named_layers(model):
        if not nested and name in FROZEN:
            layer.trainable = False
    return model


def draw(model):
    for weight in model.weights:
        noise = RNG.uniform(-0.2, 0.2, weight.shape)
        positive = "variance" in weight.name or "gamma" in weight.name
        weight.assign(noise + 1 if positive else weight + noise)


def weights_of(model, names=FROZEN):
    """`{layer: arrays}` of a model's layers, in wrappers and models inside, too."""
    found = {}
    for path, layer in named_layers(model):
        name = path.split("/")[-1].removeprefix("prune_low_magnitude_")
        found[name.removeprefix("cluster_")] = unwrapped(layer).get_weights()
    return {name: found[name] for name in names}


def assert_same(one, other):
    for name in one:
        for old, new in zip(one[name], other[name], strict=True):
            np.testing.assert_array_equal(old, new, err_msg=name)


def train(model, callbacks=()):
    model.compile(keras.optimizers.Adam(1e-2), LOSS, run_eagerly=True)
    model.fit(IMAGES, LABELS, batch_size=8, verbose=0, callbacks=list(callbacks))
    return model


def distill(student):
    distiller = Distiller(student, rebuild(network()))
    distiller.compile(keras.optimizers.Adam(1e-2), run_eagerly=True)
    distiller.fit(IMAGES, LABELS, batch_size=16, verbose=0)
    return student


def magnitude(model):
    wrapped = prune_magnitude(inline(model)[0], 0.5, schedule="constant", end=1)
    return strip_pruning(train(wrapped, pruning_callbacks()))


def masked(model):
    model = inline(model)[0]
    masks = weight_masks(model, relative_threshold=0.3)
    return strip_masks(train(apply_masks(model, masks)))


def clustered(model):
    return quantize.strip_clustering(train(quantize.cluster_weights(model, 4)))


TECHNIQUES = {
    "training": lambda model: train(rebuild(model)),
    "taken": lambda model: train(take_model(rebuild(model)).model),
    "bfloat16": lambda model: train(cast_model(model, "mixed_bfloat16")),
    "distilling": lambda model: distill(rebuild(model)),
    "magnitude": magnitude,
    "masks": masked,
    "clusters": clustered,
    "bn_l1": lambda model: strip_bn_l1(train(add_bn_l1(model))),
}


@pytest.mark.parametrize("nested", [False, True], ids=["flat", "nested"])
@pytest.mark.parametrize("technique", TECHNIQUES)
@pytest.mark.quick(
    "training-nested",
    "taken-flat",
    "distilling-flat",
    "magnitude-nested",
    "masks-flat",
    "clusters-nested",
    "bn_l1-flat",
)
def test_weights_and_statistics_of_frozen_layers_do_not_move(technique, nested):
    model = network(nested)
    before = weights_of(model, [*FROZEN, "free", "free_norm"])
    after = weights_of(TECHNIQUES[technique](model), before)
    assert_same({name: before[name] for name in FROZEN}, after)
    for name in ("free", "free_norm"):
        assert not np.array_equal(before[name][0], after[name][0])
    assert_same(before, weights_of(model, before))  # The given one is left as it was.


@pytest.mark.parametrize(
    "keep",
    [
        {},
        pytest.param({"preserve_sparsity": True}, marks=pytest.mark.slow),
        pytest.param({"preserve_clusters": True}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_quantization_aware_training_moves_what_is_free_alone(keep):
    one = quantize.quantize_model(network(nested=True), **keep)
    weights = {w.name: w.numpy() for w in one.weights}
    train(one)
    if keep.get("preserve_clusters"):
        quantize.calibrate_ranges(one, IMAGES)  # Puts the centroids into the kernels.
    moved = {w.name for w in one.weights if np.any(weights[w.name] != w.numpy())}
    ranges = ("_min:0", "_max:0", "/quantizer", "optimizer_step:0")
    moved = {name for name in moved if not name.endswith(ranges)}
    assert {name.split("/")[0].removeprefix("quant_") for name in moved} == {
        *("free", "free_norm", "logits"),
    }


def test_what_is_left_out_since_it_is_frozen_is_said_with_its_share(caplog):
    model = network()
    total = 216 + 72 + 64 + 576 + 32
    pruned = magnitude(model)
    (message,) = caplog.messages
    assert f"frozen Conv2D kernel {216 / total:.1%} (conv)" in message
    assert f"frozen SeparableConv2D pointwise_kernel {64 / total:.1%}" in message
    figures = sparsity_figures(pruned, 0.5)
    assert figures["found"] == pytest.approx(0.5, abs=0.01)
    assert figures["left_out"]["conv/kernel"] == pytest.approx(216 / total)
    for shares in (lamp_sparsity(model, 0.5), sparsity_below(model, 0.1)):
        assert sorted(shares) == ["free", "logits"]
    caplog.clear()
    quantize.cluster_weights(model, 4)
    assert "clustering leaves out" in caplog.text
    assert "frozen Conv2D kernel" in caplog.text


def test_a_frozen_layer_that_is_named_is_pruned_and_no_more(caplog):
    model = network()
    wrapped = prune_magnitude(model, {"conv": 0.5}, schedule="constant", end=1)
    assert "frozen layers lose weights, since they are named: conv;" in caplog.text
    (before,) = weights_of(model)["conv"]
    (after,) = weights_of(strip_pruning(train(wrapped, pruning_callbacks())))["conv"]
    assert np.mean(after == 0) == 0.5
    np.testing.assert_array_equal(after, np.where(after == 0, 0, before))


def test_a_model_that_is_frozen_altogether_is_neither_trained_nor_pruned(tmp_path):
    model = network()
    model.trainable = False
    for change in (lambda: prune_magnitude(model, 0.5, end=1),
                   lambda: quantize.cluster_weights(model)):  # fmt: skip
        with pytest.raises(ValueError, match="frozen: conv, separable, free") as error:
            change()
        assert "\n" not in str(error.value)
    refused = "nothing of model '.*' is left to train: expected a layer"
    with pytest.raises(ValueError, match=refused):
        distill(model)
    model.compile("adam", LOSS)
    with pytest.raises(ValueError, match=refused):
        fit(model, lambda _: (), None, epochs=1, steps=1)
    with pytest.raises(ValueError, match="scale=True that is not frozen"):
        add_bn_l1(model)
    save_model(model, tmp_path / "frozen.keras")
    loaded = load_model(tmp_path / "frozen.keras")
    assert not take_model(loaded).model.trainable_weights


def test_what_is_in_a_frozen_model_is_frozen_whatever_it_says_itself():
    model = network(nested=True)
    for layer in model.get_layer("base").layers:
        layer.trainable = True
    assert len(model.trainable_weights) == 5
    flat = inline(model)[0]
    assert len(flat.trainable_weights) == 5
    assert sorted(frozen_layers(flat)) == sorted(FROZEN)
    assert sorted(frozen_layers(model)) == sorted(f"base/{name}" for name in FROZEN)
    assert_same(weights_of(model), weights_of(train(flat)))


@pytest.mark.parametrize("ignore", [(), ["conv", "free"]], ids=["all", "some"])
def test_channels_that_go_from_frozen_layers_leave_the_rest_as_it_was(caplog, ignore):
    model = network()
    smaller = prune_channels(model, 0.5, round_to=1, ignore=ignore, data=IMAGES)
    plan = plan_channels(model, 0.5, round_to=1, ignore=ignore)
    changed = {"conv", "conv_norm", "separable", "slopes", "norm"}
    changed -= {"conv", "conv_norm"} if ignore else set()
    assert set(plan.frozen) == changed
    assert all(f"{name}: loses channels" in str(plan) for name in changed)
    named = caplog.text.partition("removed from frozen layers: ")[2].partition(";")[0]
    assert set(named.split(", ")) == changed
    before, after = weights_of(model), weights_of(train(smaller))
    filters = [np.flatnonzero((before["conv"][0] == kernel[..., None]).all((0, 1, 2)))
               for kernel in np.moveaxis(after["conv"][0], -1, 0)]  # fmt: skip
    kept = np.concatenate(filters)
    assert len(kept) == (8 if ignore else after["conv"][0].shape[-1])
    # Nothing was removed in front of this one, so that its statistics hold.
    assert_same(
        {"conv_norm": [array[kept] for array in before["conv_norm"]]},
        {"conv_norm": after["conv_norm"]},
    )
    assert ("are measured again: norm" in caplog.text) == (not ignore)
    if not ignore:
        assert not np.isin(after["norm"][2], before["norm"][2]).any()


def test_frozen_statistics_are_measured_behind_what_went_and_on_demand(caplog):
    model = network()
    same = rebuild(model)
    assert recalibrate_after(model, same, IMAGES) == []
    assert_same(weights_of(model), weights_of(same))
    free = same.get_layer("free_norm").moving_mean.numpy()
    assert not np.array_equal(free, model.get_layer("free_norm").moving_mean)
    recalibrate_batch_norm(same, IMAGES)
    assert caplog.messages == [
        "statistics of frozen normalizations are measured again: conv_norm, norm"
    ]


def test_rewrites_that_rescale_frozen_weights_say_so(caplog):
    model = network()
    quantize.equalize_channels(model, IMAGES)
    assert "weights of frozen layers are rescaled, in float without effect" in (
        caplog.text
    )
    caplog.clear()
    image = keras.Input((8, 8, 3))
    x = layers.BatchNormalization(name="norm", trainable=False)(layers.ReLU()(image))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 1, name="conv")(x))
    folded = quantize.fold_batch_norm(keras.Model(image, x))
    assert [layer.name for layer in folded.layers if layer.weights] == ["conv"]
    assert caplog.messages == [
        "weights of frozen layers change by folding, in float without effect: norm"
    ]
    caplog.clear()
    activation_masks(model, 0.45, IMAGES, ignore=["free"])
    assert "masks zero channels of frozen layers: conv, conv_norm" in caplog.text


def test_frozen_kernels_that_grow_with_the_pixels_are_told():
    model = network()
    taken = take_model(model, input_range=(0, 255))
    assert (
        "weights of frozen layers are rescaled to these pixels, without effect: conv"
        in taken.notes
    )
    (old,), (new,) = (weights_of(one)["conv"] for one in (model, taken.model))
    np.testing.assert_array_equal(256 * old, new)
    assert not any("rescaled" in note for note in take_model(model).notes)


def test_new_weights_are_trained_but_for_those_of_constants(caplog):
    image = keras.Input((8, 8, 3))
    fixed = keras.initializers.Constant(0.1)
    x = layers.Conv2D(4, 1, name="fixed", kernel_initializer=fixed, trainable=False)(
        image
    )
    base = keras.Sequential(
        [keras.Input((8, 8, 4)), layers.Conv2D(4, 3, name="drawn")], name="base"
    )
    base.trainable = False
    x = layers.GlobalAveragePooling2D()(base(x))
    again = reset_weights(keras.Model(image, layers.Dense(2)(x)))
    assert list(frozen_layers(again)) == ["fixed"]
    assert caplog.messages == [
        "frozen layers are trained, since their weights are drawn again: base/drawn"
    ]
    caplog.clear()
    assert list(frozen_layers(reset_weights(again))) == ["fixed"]
    assert not caplog.messages


@pytest.mark.slow
def test_a_recipe_keeps_what_the_loaded_model_froze(tmp_path, caplog):
    image = keras.Input((32, 32, 3))
    base = keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            layers.Conv2D(8, 3, strides=2, use_bias=False, name="conv"),
            layers.BatchNormalization(name="conv_norm"),
            layers.ReLU(),
        ],
        name="base",
    )
    base.trainable = False
    x = layers.Conv2D(16, 3, strides=2, name="free")(base(image))
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(x))
    model = keras.Model(image, layers.Dense(10, name="logits")(x))
    draw(model)
    save_model(model, tmp_path / "mine.keras")
    training = {"epochs": 1, "optimizer": "adam", "learning_rate": 0.01}
    stage = {"from": "net", "training": training}
    recipe = {
        "name": "frozen",
        "data": {"dataset": "shapes", "train_images": 200, "test_images": 40,
                 "calibration": 20},
        "stages": {
            "net": {"kind": "load", "file": str(tmp_path / "mine.keras"),
                    "input_range": [0, 1]},
            "tuned": {"kind": "train", **stage},
            "taught": {"kind": "distill", "teacher": "net", **stage},
            "sparse": {"kind": "prune", "sparsity": 0.5, **stage},
            "shared": {"kind": "cluster", "clusters": 4, **stage},
            "narrow": {"kind": "prune_channels", "ratio": 0.3, "round_to": 1,
                       "ignore": ["conv"], **stage},
            "int8": {"kind": "quantize", "method": "qat", **stage},
        },
    }  # fmt: skip
    with caplog.at_level("INFO", logger="kdprune"):
        runner.run(parse_recipe(recipe), tmp_path / "run")
    assert "2 frozen layers (base/conv, base/conv_norm)" in caplog.text
    expected = weights_of(model, ["conv", "conv_norm"])
    for name in recipe["stages"]:
        folder = tmp_path / "run" / name
        if name == "int8":
            found = quantize.load_quantized(folder)
            held = {w.name: w.numpy() for w in found.weights}
            arrays = [held["conv/kernel:0"]]
            arrays += [held[f"conv_norm/{one}:0"] for one in
                       ("gamma", "beta", "moving_mean", "moving_variance")]  # fmt: skip
            assert_same(expected, {"conv": arrays[:1], "conv_norm": arrays[1:]})
            continue
        found = load_model(folder / "model.keras")
        assert_same(expected, weights_of(found, expected))
        if name != "net":
            (kernel, *_), (old, *_) = (
                weights_of(one, ["free"])["free"] for one in (found, model)
            )
            assert kernel.shape != old.shape or not np.array_equal(kernel, old)
