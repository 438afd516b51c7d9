"""Magnitude pruning zeroes the smallest weights, as many and when it was asked to."""

import numpy as np
import pytest
import tf_keras as keras

from kdprune.models import build_model, load_model, save_model
from kdprune.prune import (
    apply_masks,
    check_masks,
    lamp_sparsity,
    layer_sparsity,
    prune_magnitude,
    pruning_callbacks,
    sparsity_below,
    sparsity_figures,
    strip_masks,
    strip_pruning,
    weight_masks,
)
from kdprune.training.optimizers import build_variables

layers = keras.layers
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    return rng.random((64, 8, 8, 3), np.float32), np.arange(64) % 4


def branching_model():
    """Every kind of layer that matters, on two paths."""
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 3))
    x = layers.Rescaling(2.0, name="scale")(image)
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="conv")(x)
    x = layers.ReLU(name="relu")(layers.BatchNormalization(name="bn")(x))
    y = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    x = layers.Conv2D(8, 1, name="shortcut")(x)
    x = layers.Add(name="add")([y, x])
    x = layers.Conv2DTranspose(4, 2, name="transpose")(x)
    x = layers.Flatten(name="flatten")(x)
    return keras.Model(image, layers.Dense(4, name="logits")(x), name="branching")


PRUNABLE = ["conv", "shortcut", "transpose", "logits"]
KERNELS = ["conv", "depthwise", "shortcut", "transpose", "logits"]


def train(model, data, steps, rate=0.05, callbacks=(), eager=True):
    """Trains for `steps` steps of 16 images, which take less time than tracing one."""
    optimizer = keras.optimizers.SGD(rate, momentum=0.9)
    model.compile(optimizer, LOSS, run_eagerly=eager)
    build_variables(model)
    images, labels = (np.tile(a, (-(-steps // 4), *[1] * (a.ndim - 1))) for a in data)
    model.fit(
        images[: 16 * steps],
        labels[: 16 * steps],
        batch_size=16,
        verbose=0,
        shuffle=False,
        callbacks=[*pruning_callbacks(), *callbacks],
    )
    return model


class Watch(keras.callbacks.Callback):
    """Notes the share of the conv layer's mask that is zero, after each step."""

    def __init__(self):
        super().__init__()
        self.shares = []

    def on_train_batch_end(self, batch, logs=None):
        layer = self.model.get_layer("prune_low_magnitude_conv")
        ((_, mask, _),) = layer.pruning_vars
        self.shares.append(float(np.mean(mask.numpy() == 0)))


def test_each_layer_reaches_its_own_sparsity(data):
    shares = {"conv": 0.25, "logits": 0.9}
    wrapped = prune_magnitude(branching_model(), shares, end=8, frequency=2)
    model = strip_pruning(train(wrapped, data, 12))
    sparsity = layer_sparsity(model)
    assert sorted(sparsity) == sorted(KERNELS)
    assert sparsity["conv"] == 54 / 216
    assert sparsity["logits"] == pytest.approx(0.9, abs=1 / model.count_params())
    assert sparsity["shortcut"] == 0
    for name in ("depthwise", "transpose"):
        assert all(np.all(w != 0) for w in model.get_layer(name).get_weights()[:1])


@pytest.mark.parametrize(
    "begin, end, frequency, updates",
    [
        pytest.param(0, 8, 2, {2, 4, 6, 8}, marks=pytest.mark.slow),
        # What the frequency doesn't divide is waited for at the start.
        (0, 8, 3, {5, 8}),
        (3, 9, 2, {5, 7, 9}),
        (0, 6, 100, {6}),
        pytest.param(5, 5, 100, {5}, marks=pytest.mark.slow),
    ],
)
@pytest.mark.quick("0-8-3-updates1", "3-9-2-updates2")
def test_the_polynomial_schedule_reaches_the_sparsity_at_its_end(
    data, begin, end, frequency, updates
):
    wrapped = prune_magnitude(
        branching_model(), 0.5, begin=begin, end=end, frequency=frequency
    )
    watch = Watch()
    train(wrapped, data, 12, callbacks=[watch], eager=False)
    shares = [0.0, *watch.shares]
    changed = {step for step in range(1, 13) if shares[step] != shares[step - 1]}
    assert changed == updates
    assert shares[end] == shares[-1] == 0.5
    assert sorted(shares) == shares
    first = end - (end - min(begin, end - 1)) // frequency * frequency
    for step in updates - {end}:
        expected = 0.5 - 0.5 * (1 - (step - first) / (end - first)) ** 3
        assert shares[step] == pytest.approx(expected, abs=0.51 / 216)


@pytest.mark.parametrize("begin, first", [(0, 1), (3, 3)])
@pytest.mark.quick("3-3")
def test_the_constant_schedule_prunes_all_at_its_begin(data, begin, first):
    wrapped = prune_magnitude(
        branching_model(), 0.5, schedule="constant", begin=begin, end=4
    )
    watch = Watch()
    train(wrapped, data, 6, callbacks=[watch])
    assert watch.shares == [0.0] * (first - 1) + [0.5] * (7 - first)


def test_masks_hold_while_the_rest_goes_on_learning(data):
    wrapped = prune_magnitude(
        branching_model(), 0.5, schedule="constant", begin=1, end=1
    )
    train(wrapped, data, 1)
    kernel = wrapped.get_layer("prune_low_magnitude_conv").layer.kernel
    early = kernel.numpy()
    train(wrapped, data, 12)
    late = kernel.numpy()
    np.testing.assert_array_equal(early == 0, late == 0)
    assert (early == 0).mean() == 0.5
    kept = early != 0
    assert (early[kept] != late[kept]).mean() > 0.9


def test_the_smallest_weights_go_and_the_others_stay(data):
    model = branching_model()
    kernel = model.get_layer("conv").kernel.numpy()
    wrapped = prune_magnitude(model, 0.5, schedule="constant", end=1)
    pruned = strip_pruning(train(wrapped, data, 1, rate=0.0))
    small = np.abs(kernel) < np.median(np.abs(kernel))
    expected = np.where(small, 0, kernel)
    np.testing.assert_array_equal(pruned.get_layer("conv").kernel, expected)


@pytest.mark.parametrize("beta", [0.1, pytest.param(0.6, marks=pytest.mark.slow)])
def test_sparsity_below_gives_exactly_the_articles_rule(data, beta):
    model = branching_model()
    shares = sparsity_below(model, beta)
    wrapped = prune_magnitude(model, shares, schedule="constant", end=1)
    pruned = strip_pruning(train(wrapped, data, 1, rate=0.0))
    for name in PRUNABLE:
        kernel = model.get_layer(name).kernel.numpy()
        below = np.abs(kernel) < beta * np.abs(kernel).max()
        expected = np.where(below, 0, kernel)
        np.testing.assert_array_equal(pruned.get_layer(name).kernel, expected)
        assert shares[name] == below.mean() > 0


def test_lamp_shares_out_a_sparsity_by_what_a_layer_would_lose():
    model = branching_model()
    kernels = {name: model.get_layer(name).kernel for name in PRUNABLE}
    for name, spread in zip(PRUNABLE, (1.0, 4.0, 1.0, 1.0), strict=True):
        values = np.random.default_rng(len(name)).normal(size=kernels[name].shape)
        kernels[name].assign(np.sign(values) * np.abs(values) ** spread)
    scores = {}
    for name, kernel in kernels.items():
        flat = np.sort(np.abs(kernel.numpy().ravel()))
        scores[name] = [flat[i] ** 2 / np.sum(flat[i:] ** 2) for i in range(len(flat))]
    everything = np.sort(np.concatenate([*scores.values()]))
    shares = lamp_sparsity(model, 0.6)
    last = everything[int(0.6 * len(everything))]
    for name, found in scores.items():
        assert shares[name] == pytest.approx(np.mean(np.array(found) < last), abs=0.02)
    zeros = sum(shares[n] * k.shape.num_elements() for n, k in kernels.items())
    assert zeros / len(everything) == pytest.approx(0.6, abs=0.01)
    # Where few weights hold most of the sum, many can go.
    assert shares[PRUNABLE[1]] > max(shares[n] for n in PRUNABLE if n != PRUNABLE[1])
    assert PRUNABLE[0] not in lamp_sparsity(model, 0.6, exclude=PRUNABLE[:1])
    assert max(lamp_sparsity(model, 0.999).values()) < 1
    kernels[PRUNABLE[0]].assign(np.zeros(kernels[PRUNABLE[0]].shape))
    assert lamp_sparsity(model, 0.6)[PRUNABLE[0]] == 0


@pytest.mark.parametrize("sparsity", [0.0, 1.0, float("nan")])
def test_lamp_refuses_a_sparsity_out_of_range(sparsity):
    with pytest.raises(ValueError, match=r"in \(0, 1\). Received"):
        lamp_sparsity(branching_model(), sparsity)


def test_wrapping_and_stripping_change_no_prediction(data):
    images = data[0]
    model = branching_model()
    model.get_layer("bn").set_weights(
        [np.random.default_rng(0).uniform(0.5, 1.5, 8) for _ in range(4)]
    )
    before = model(images).numpy()
    weights = model.get_weights()
    wrapped = prune_magnitude(model, 0.5, end=4)
    np.testing.assert_allclose(wrapped(images).numpy(), before, atol=1e-5)
    train(wrapped, data, 6)
    trained = wrapped(images).numpy()
    stripped = strip_pruning(wrapped)
    np.testing.assert_allclose(stripped(images).numpy(), trained, atol=1e-5)
    assert type(stripped) is type(model)
    assert [layer.name for layer in stripped.layers] == [x.name for x in model.layers]
    assert [type(a) for a in stripped.layers] == [type(b) for b in model.layers]
    assert stripped.count_params() == model.count_params()
    # The model that was given is left as it was.
    for old, new in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("name", ["resnet8", "dscnn", "whitened_cnn"])
@pytest.mark.quick("resnet8")
def test_every_weight_of_a_factorys_model_finds_its_place(name):
    arguments = {"width": 4} if name != "resnet8" else {}
    model = build_model(name, (16, 16, 3), **arguments)
    rng = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(rng.uniform(0.1, 1, weight.shape))
    images = np.random.default_rng(0).random((4, 16, 16, 3), np.float32)
    wrapped = prune_magnitude(model, 0.5, end=1)
    np.testing.assert_allclose(wrapped(images), model(images), rtol=1e-5)
    stripped = strip_pruning(wrapped)
    assert list(layer_sparsity(stripped)) == list(layer_sparsity(model))
    for old, new in zip(model.weights, stripped.weights, strict=True):
        assert old.name == new.name
        np.testing.assert_array_equal(old, new)


def test_a_sequential_model_and_a_shared_layer_are_pruned(data):
    keras.utils.set_random_seed(0)
    shared = layers.Conv2D(3, 3, padding="same", name="conv")
    image = keras.Input((8, 8, 3))
    x = layers.Flatten()(shared(shared(image)))
    twice = keras.Model(image, layers.Dense(4, name="logits")(x))
    sequence = keras.Sequential(
        [keras.Input((8, 8, 3)), layers.Conv2D(4, 3, name="conv"), layers.Flatten()]
    )
    for model in (twice, sequence):
        wrapped = prune_magnitude(model, 0.5, schedule="constant", end=4)
        stripped = strip_pruning(train(wrapped, data, 4))
        assert type(stripped) is type(model)
        assert layer_sparsity(stripped)["conv"] == pytest.approx(0.5, abs=0.01)


def wide_model():
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, strides=4, activation="relu", name="first")(image)
    x = layers.Conv2D(6, 1, activation="relu", name="second")(x)
    x = layers.Dense(10, activation="relu", name="wide")(layers.Flatten()(x))
    return keras.Model(image, layers.Dense(4, name="logits")(x))


def saved_kernels(wrapped, path):
    """The kernels of the stripped model, from its file, by layer."""
    save_model(strip_pruning(wrapped), path)
    loaded = load_model(path)
    return {
        name: loaded.get_layer(name).kernel.numpy() for name in layer_sparsity(loaded)
    }


def test_two_of_every_four_weights_along_the_inputs_stay(data, tmp_path):
    model = wide_model()
    wrapped = prune_magnitude(model, 0.5, schedule="constant", end=1, pattern="2:4")
    train(wrapped, data, 1, rate=0.0)
    largest = saved_kernels(wrapped, tmp_path / "one.keras")
    train(wrapped, data, 8)
    kernels = saved_kernels(wrapped, tmp_path / "many.keras")
    assert list(kernels) == ["first", "second", "wide", "logits"]
    for name, kernel in kernels.items():
        np.testing.assert_array_equal(kernel == 0, largest[name] == 0)
        rows = np.moveaxis(kernel, -2, -1).reshape(-1, kernel.shape[-2])
        old = model.get_layer(name).kernel.numpy()
        old = np.abs(np.moveaxis(old, -2, -1).reshape(rows.shape))
        for start in range(0, rows.shape[1], 4):
            part, sizes = rows[:, start : start + 4], old[:, start : start + 4]
            np.testing.assert_array_equal((part != 0).sum(1), min(2, part.shape[1]))
            kept = np.where(part != 0, sizes, np.inf).min(1)
            assert (kept >= np.where(part == 0, sizes, 0).max(1)).all()
    assert (kernels["second"] == 0).mean() == 0.5
    assert (kernels["first"] == 0).mean() == pytest.approx(1 / 3)  # 3 channels.


def test_one_of_three_is_named_by_what_stays(data, tmp_path):
    wrapped = prune_magnitude(
        wide_model(), {"wide": 2 / 3}, schedule="constant", end=1, pattern="1:3"
    )
    train(wrapped, data, 2)
    kernel = saved_kernels(wrapped, tmp_path / "m.keras")["wide"]
    assert kernel.shape == (24, 10)
    np.testing.assert_array_equal((kernel.reshape(8, 3, 10) != 0).sum(1), 1)


def test_whole_blocks_of_a_dense_layer_go(data, tmp_path):
    model = wide_model()
    shares = {"wide": 0.5, "logits": 0.6}
    wrapped = prune_magnitude(model, shares, end=4, frequency=2, pattern="2x2")
    train(wrapped, data, 6, rate=0.0)
    kernels = saved_kernels(wrapped, tmp_path / "m.keras")
    for name, share in shares.items():
        old = model.get_layer(name).kernel.numpy()
        height, width = old.shape
        blocks = np.abs(old).reshape(height // 2, 2, width // 2, 2).mean((1, 3))
        zeros = kernels[name].reshape(height // 2, 2, width // 2, 2) == 0
        gone = zeros.all((1, 3))
        np.testing.assert_array_equal(gone, zeros.any((1, 3)))
        assert gone.mean() == share
        assert blocks[gone].max() <= blocks[~gone].min()


def test_patterns_that_cannot_be_are_refused():
    model = wide_model()
    for pattern in ("2", "0x4", "2:4:8", 124):
        with pytest.raises(ValueError, match="such as '4x1' or a choice such as '2:4'"):
            prune_magnitude(model, 0.5, end=1, pattern=pattern)
    constant = {"schedule": "constant", "end": 1}
    for pattern, sparsity in (("2:4", 0.8), ("1:4", 0.25), ("4:4", 0.5)):
        with pytest.raises(ValueError, match="expected fewer than all, and a sparsity"):
            prune_magnitude(model, sparsity, **constant, pattern=pattern)
    for late in ({"end": 5}, {**constant, "begin": 3, "end": 3}):
        with pytest.raises(ValueError, match="at the first step: expected schedule='c"):
            prune_magnitude(model, 0.5, **late, pattern="2:4")
    with pytest.raises(ValueError, match=r"Dense .* first \(3, 3, 3, 8\), second"):
        prune_magnitude(model, 0.5, end=1, pattern="2x2")
    with pytest.raises(ValueError, match=r"two or more each way. .* logits \(10, 4\)"):
        prune_magnitude(model, {"wide": 0.5, "logits": 0.5}, end=1, pattern="1x4")


def test_excluded_layers_are_left_alone(data):
    wrapped = prune_magnitude(
        branching_model(), 0.5, schedule="constant", end=1, exclude=("conv", "logits")
    )
    sparsity = layer_sparsity(strip_pruning(train(wrapped, data, 2)))
    assert sparsity.pop("transpose") == pytest.approx(0.5)
    assert sparsity == {"conv": 0, "depthwise": 0, "shortcut": 0.5, "logits": 0}


def test_layers_inside_a_nested_model_are_refused_unless_excluded(data):
    inner = keras.Sequential([layers.Conv2D(4, 3)], name="backbone")
    image = keras.Input((8, 8, 3))
    model = keras.Model(image, layers.Dense(4)(layers.Flatten()(inner(image))))
    with pytest.raises(ValueError, match="nested model can't be .* backbone; exclude"):
        prune_magnitude(model, 0.5, end=1)
    wrapped = prune_magnitude(model, 0.5, end=1, exclude=["backbone"])
    np.testing.assert_allclose(wrapped(data[0]), model(data[0]), atol=1e-5)
    assert [layer.name for layer in wrapped.layers][1] == "backbone"


def test_a_subclassed_model_is_refused():
    class Subclassed(keras.Model):
        pass

    with pytest.raises(ValueError, match="unctional"):
        prune_magnitude(Subclassed(), 0.5, end=1)


def test_unknown_layers_and_impossible_values_are_named():
    model = branching_model()
    known = "layers to prune must be among conv, .*, transpose, logits. Received: "
    for unknown in ({"sparsity": {"bn": 0.5}}, {"sparsity": 0.5, "exclude": ["bn"]}):
        with pytest.raises(ValueError, match=f"{known}bn"):
            prune_magnitude(model, **unknown, end=4)
    for sparsity in (1.0, -0.1, {"conv": 2}, float("nan")):
        with pytest.raises(ValueError, match=r"sparsity must be in \[0, 1\)"):
            prune_magnitude(model, sparsity, end=4)
    with pytest.raises(ValueError, match="'constant'. Received: 'linear'"):
        prune_magnitude(model, 0.5, schedule="linear", end=4)
    for steps in ({"begin": 5, "end": 4}, {"end": 0}, {"end": 4, "frequency": 0}):
        with pytest.raises(ValueError, match="expected 0 <= begin <= end"):
            prune_magnitude(model, 0.5, **steps)
    for beta in (0.0, 1.0, -1):
        with pytest.raises(ValueError, match=r"relative_threshold must be in \(0, 1\)"):
            sparsity_below(model, beta)


# --- What is pruned of layers that are no plain convolutions, and what is said ---


def mobile_model():
    """A separable, a transposed and a depthwise convolution, 3,632 weights in kernels.

    Of which 27 + 144 are depthwise, 4.7 %.
    """
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 3))
    x = layers.SeparableConv2D(16, 3, padding="same", name="separable")(image)
    x = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    x = layers.Conv2DTranspose(12, 4, strides=2, padding="same", name="up")(x)
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(x))
    return keras.Model(image, layers.Dense(28, name="logits")(layers.Dense(1)(x)))


def zeros_in(model, name, weight="kernel"):
    return float(np.mean(getattr(model.get_layer(name), weight).numpy() == 0))


def test_pointwise_and_transposed_kernels_reach_the_sparsity_and_depthwise_are_named(
    data, caplog
):
    model = mobile_model()
    total = sum(w.shape.num_elements() for w in model.weights if w.shape.rank > 1)
    wrapped = prune_magnitude(model, 0.8, schedule="constant", end=1)
    (message,) = [r.getMessage() for r in caplog.records]
    share = 100 * (27 + 144) / total
    assert message.startswith(f"pruning leaves out {share:.1f} % of the weights in ker")
    assert f"SeparableConv2D depthwise_kernel {27 / total:.1%} (separable)" in message
    assert f"DepthwiseConv2D depthwise_kernel {144 / total:.1%} (depthwise)" in message
    caplog.clear()
    pruned = strip_pruning(train(wrapped, data, 2))
    assert not caplog.records
    assert zeros_in(pruned, "separable", "pointwise_kernel") == pytest.approx(
        0.8, abs=0.02
    )
    assert zeros_in(pruned, "up") == pytest.approx(0.8, abs=0.001)
    assert zeros_in(pruned, "separable", "depthwise_kernel") == 0
    assert zeros_in(pruned, "depthwise", "depthwise_kernel") == 0
    figures = sparsity_figures(pruned, 0.8)
    assert figures["found"] == pytest.approx(0.8, abs=0.002)
    assert figures["of_all_kernels"] == pytest.approx(
        0.8 * (1 - share / 100), abs=0.002
    )
    assert figures["left_out"] == {
        "separable/depthwise_kernel": 27 / total,
        "depthwise/depthwise_kernel": 144 / total,
    }


def test_a_depthwise_kernel_is_pruned_where_it_is_named(data, tmp_path):
    model = mobile_model()
    wrapped = prune_magnitude(
        model, {"depthwise": 0.5, "up": 0.25}, schedule="constant", end=1
    )
    save_model(strip_pruning(train(wrapped, data, 2)), tmp_path / "m.keras")
    pruned = load_model(tmp_path / "m.keras")
    assert layer_sparsity(pruned)["depthwise"] == 0.5
    assert layer_sparsity(pruned)["up"] == 0.25
    assert layer_sparsity(pruned)["logits"] == 0


def test_all_ways_to_prune_take_the_same_kernels(caplog):
    model = mobile_model()
    names = ["separable", "up", "dense", "logits"]
    assert [n.partition("_")[0] for n in lamp_sparsity(model, 0.5)] == names
    assert [n.partition("_")[0] for n in sparsity_below(model, 0.1)] == names
    masks = weight_masks(model, relative_threshold=0.5)
    assert [name.partition("_")[0] for name in masks][1:3] == ["up/kernel", "dense"]
    assert next(iter(masks)) == "separable/pointwise_kernel"
    assert len({r.getMessage() for r in caplog.records}) == 1
    assert len(caplog.records) == 3
    pruned = strip_masks(apply_masks(model, masks))
    check_masks(pruned, masks)
    kept = apply_masks(pruned)  # All zeros that it has.
    assert zeros_in(kept, "separable", "pointwise_kernel") > 0.2
    constraint = kept.get_layer("separable").pointwise_constraint
    np.testing.assert_array_equal(constraint.mask, masks["separable/pointwise_kernel"])


def test_a_plain_network_leaves_nothing_out(caplog):
    prune_magnitude(wide_model(), 0.5, end=1)
    prune_magnitude(branching_model(), {"conv": 0.5}, end=1)
    assert not caplog.records


def test_where_nothing_is_left_to_prune_one_line_says_so():
    image = keras.Input((8, 8, 3))
    depthwise = keras.Model(image, layers.DepthwiseConv2D(3, name="only")(image))
    message = r"nothing of model .* is left to prune: .* layers of DepthwiseConv2D, Inp"
    for attempt in (
        lambda: prune_magnitude(depthwise, 0.5, end=1),
        lambda: lamp_sparsity(depthwise, 0.5),
        lambda: sparsity_below(depthwise, 0.5),
        lambda: weight_masks(depthwise, 0.5),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            attempt()
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="left to prune: .*exclude=.'first', 'second'"):
        names = ["first", "second", "wide", "logits"]
        prune_magnitude(wide_model(), 0.5, end=1, exclude=names)


def test_layers_inside_a_nested_model_are_no_layers_below_a_threshold():
    inner = keras.Sequential([layers.Conv2D(4, 3)], name="backbone")
    image = keras.Input((8, 8, 3))
    model = keras.Model(
        image, layers.Dense(4, name="d")(layers.Flatten()(inner(image)))
    )
    with pytest.raises(ValueError, match="nested model can't be .* backbone; exclude"):
        sparsity_below(model, 0.1)
    assert list(sparsity_below(model, 0.1, exclude=["backbone"])) == ["d"]
    assert [*layer_sparsity(model)][0].startswith("backbone/conv2d")


def test_a_sparsity_that_was_missed_is_named(data, caplog):
    wrapped = prune_magnitude(wide_model(), 0.8, end=100, frequency=1)
    strip_pruning(train(wrapped, data, 2))
    (message,) = [r.getMessage() for r in caplog.records]
    assert "asked for and not reached: first 80.0% asked, " in message
    assert "logits 80.0% asked, " in message and "\n" not in message
    caplog.clear()
    wrapped = prune_magnitude(
        wide_model(), 0.5, schedule="constant", end=1, pattern="2:4"
    )
    strip_pruning(train(wrapped, data, 1))
    (message,) = [r.getMessage() for r in caplog.records]
    assert "first 50.0% asked, 33.3% found" in message and "second" not in message


def test_a_pattern_along_inputs_is_not_for_kernels_that_have_none_there():
    constant = {"schedule": "constant", "end": 1, "pattern": "2:4"}
    with pytest.raises(ValueError, match="pointwise kernels. Received: up; exclude"):
        prune_magnitude(mobile_model(), 0.5, **constant)
    wrapped = prune_magnitude(mobile_model(), 0.5, **constant, exclude=["up"])
    assert "prune_low_magnitude_separable" in [layer.name for layer in wrapped.layers]
