"""Scales of files have a least size: for a bias to be an int32, for kernels to run."""

import numpy as np
import pytest
import tf_keras as keras

from kdprune import tflite
from kdprune._graph import unwrapped
from kdprune.quantize import calibrate_ranges, equalize_channels, quantize_model
from kdprune.tflite import Calibration, convert_tflite, read_tflite
from kdprune.tflite.format import Op
from kdprune.tflite.norms import _Norm, limit_norms

layers = keras.layers
GAMMAS = (
    *(1e-5, 0.0),
    *(pytest.param(gamma, marks=pytest.mark.slow) for gamma in (1e-3, 3e-5, 1e-8)),
)
RANGE_METHODS = ("minmax", "percentile", "mse")


def norm(x, name=None):
    return layers.BatchNormalization(momentum=0.8, name=name)(x)


def conv(x, filters=8, **arguments):
    arguments = {"padding": "same", "kernel_size": 3, **arguments}
    return layers.Conv2D(filters, **arguments)(x)


def network():
    """Normalization behind all that files fold it into, with ReLU and without."""
    image = keras.Input((16, 16, 3))
    x = layers.ReLU()(norm(conv(image, strides=2, use_bias=False), "first"))
    y = norm(conv(x), "linear")
    z = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x)
    z = layers.ReLU(6.0)(norm(z, "depthwise"))
    t = layers.Conv2DTranspose(8, 3, padding="same", use_bias=False)(x)
    t = layers.ReLU()(norm(t, "transposed"))
    x = layers.Add()([layers.Add()([y, z]), t])
    x = layers.Flatten()(conv(x, 4, strides=2, activation="relu", name="without"))
    return keras.Model(image, layers.Dense(4)(x))


def dead_network():
    """Branches that give 0 for every image, and what becomes of that behind them."""
    image = keras.Input((16, 16, 3))
    x = conv(image, strides=2, activation="relu")
    below = keras.initializers.Constant(-50)
    dead = conv(x, activation="relu", bias_initializer=below)
    y = layers.ReLU()(norm(conv(dead, use_bias=False)))
    y = conv(conv(y, use_bias=False), use_bias=False, activation="relu")
    y = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(y)
    z = layers.Multiply()([x, dead])
    z = layers.Subtract()([z, layers.UpSampling2D()(layers.MaxPooling2D()(dead))])
    x = layers.Concatenate()([x, layers.Add()([y, z])])
    x = layers.Flatten()(conv(x, strides=2, activation="relu"))
    aside = layers.Dense(4, use_bias=False)(layers.GlobalAveragePooling2D()(dead))
    return keras.Model(image, layers.Dense(4)(layers.Concatenate()([x, aside])))


def fit(model, images, labels, epochs=3):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.005), loss, metrics=["accuracy"])
    pixels = images.astype(np.float32) / 255
    return model.fit(pixels, labels, 50, epochs, verbose=0).history["accuracy"][-1]


@pytest.fixture(scope="module")
def data(quadrants):
    return quadrants(200, 16)


@pytest.fixture(scope="module")
def trained(data):
    keras.utils.set_random_seed(0)
    model = network()
    assert fit(model, *data) > 0.95
    return model


@pytest.fixture(scope="module")
def dead(data):
    keras.utils.set_random_seed(0)
    model = dead_network()
    assert fit(model, *data, epochs=6) > 0.95
    return model


def set_gamma(model, gamma):
    """Gives three channels of each normalization that gamma, and a bias."""
    for layer in map(unwrapped, model.layers):
        if isinstance(layer, layers.BatchNormalization):
            gammas, betas = layer.gamma.numpy(), layer.beta.numpy()
            gammas[:3], betas[:3] = (gamma, -gamma, gamma), (0.7, 1.3, -0.4)
            layer.gamma.assign(gammas)
            layer.beta.assign(betas)


def probabilities(model, images):
    scores = model(images.astype(np.float32) / np.float32(255))
    return keras.activations.softmax(scores).numpy()


def values(content, images, index=None):
    """The real values of a file's tensor, its output by default."""
    graph = read_tflite(content)
    index = graph.outputs[0] if index is None else index
    interpreter = tflite.open_interpreter(content, "builtin", keep_all=True)
    source = interpreter.get_input_details()[0]
    scale, zero = source["quantization"]
    found = []
    for image in images:
        steps = np.rint(image / 255 / scale) + zero
        interpreter.set_tensor(source["index"], steps.astype(source["dtype"])[None])
        interpreter.invoke()
        found.append(interpreter.get_tensor(index)[0])
    tensor = graph.tensors[index]
    return (np.array(found, float) - tensor.zero_point[0]) * tensor.scale[0]


def logits_apart(content, model, images, share=1.0):
    """How many steps a file's logits are from the model's, at most, in a share."""
    expected = model(images.astype(np.float32) / np.float32(255)).numpy()
    assert len(np.unique(expected.argmax(axis=1))) == 4
    graph = read_tflite(content)
    (head,) = [op for op in graph.ops if op.name == "SOFTMAX"]
    found = values(content, images, head.inputs[0])
    steps = np.abs(found - expected) / graph.tensors[head.inputs[0]].scale[0]
    return np.quantile(steps, share)


def check_runs(content):
    """That all kernels run it, and it computes in integers throughout."""
    assert not tflite.inspect_tflite(content)["float_ops"]
    for resolver in ("xnnpack", "builtin", "reference"):
        tflite.open_interpreter(content, resolver)
    for tensor in read_tflite(content).tensors:
        if tensor.dtype == "int32" and tensor.data is not None and len(tensor.scale):
            assert np.abs(tensor.data.astype(np.int64)).max() < 2**31 * 0.6


@pytest.fixture(scope="module")
def aware(trained):
    return quantize_model(trained)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.quick("1e-05")
def test_channels_of_a_tiny_gamma_keep_their_bias_in_a_trained_file(aware, data, gamma):
    images = data[0][:20]
    set_gamma(aware, gamma)
    # Neither has a channel of a convolution without normalization a kernel.
    kernel = aware.get_layer("quant_without")._weight_vars[0][0]
    kernel.assign(np.concatenate([gamma * kernel[..., :1], kernel[..., 1:]], -1))
    calibrate_ranges(aware, images)
    before = aware.get_weights()
    content = convert_tflite(aware, "int8")
    check_runs(content)
    assert logits_apart(content, aware, images) <= 2
    for old, new in zip(before, aware.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def dense_network():
    """Normalization behind Dense layers: of features, of maps, of the logits."""
    image = keras.Input((16, 16, 3))
    x = conv(image, strides=4, activation="relu")
    x = norm(layers.Dense(8, use_bias=False, name="maps")(x), "norm_of_maps")
    x = layers.Flatten()(layers.ReLU()(x))
    x = norm(layers.Dense(16, name="wide")(x), "norm_of_wide")
    x = layers.Activation("relu")(x)
    x = layers.BatchNormalization(scale=False)(layers.Dense(8, name="linear")(x))
    return keras.Model(image, norm(layers.Dense(4, name="logits")(x), "last"))


@pytest.mark.usefixtures("eagerly")
@pytest.mark.parametrize(
    "kept", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["plain", "cqat"]
)
@pytest.mark.slow
def test_normalization_behind_dense_layers_is_trained_in_int8(data, kept):
    images, labels = data
    keras.utils.set_random_seed(0)
    model = dense_network()
    fit(model, images, labels, epochs=4)
    aware = quantize_model(model, calibration=images, preserve_clusters=kept)
    pixels = images[:40].astype(np.float32) / 255
    rounded = np.abs(aware(pixels).numpy() - model(pixels).numpy()).max()
    assert rounded < 0.1 * np.ptp(model(pixels).numpy())
    assert fit(aware, images, labels, epochs=2) > 0.9
    calibrate_ranges(aware, images)
    content = convert_tflite(aware, "int8")
    check_runs(content)
    # Each of some ten operators may round up or down.
    assert logits_apart(content, aware, images, share=0.99) <= 2.001
    assert logits_apart(content, aware, images) <= 3.001
    # Where each unit's weights may be scaled, nothing is left of normalization.
    names = [op.name for op in read_tflite(content).ops]
    assert names.count("FULLY_CONNECTED") == 4
    assert names.count("DEPTHWISE_CONV_2D") == (4 if kept else 0)
    assert not {"MUL", "ADD", "SUB"} & set(names)
    told = [line for line in aware.quantized_from.changes if "part of" in line]
    assert len(told) == (0 if kept else 4)


@pytest.mark.slow
@pytest.mark.parametrize("gamma", (1e-5, 0.0))
def test_channels_of_a_tiny_gamma_keep_their_bias_after_training(trained, data, gamma):
    images = data[0][:40]
    set_gamma(trained, gamma)
    equal = equalize_channels(trained, images)
    expected = probabilities(trained, images)
    for model in (trained, equal):
        shown = Calibration(model, images)
        for method in RANGE_METHODS:
            for corrected in (False, True):
                content = shown.convert(range_method=method, correct_bias=corrected)
                check_runs(content)
                scores = values(content, images)
                assert np.abs(scores - expected).max() < 0.1
    content = convert_tflite(trained, "int16x8", images)
    assert np.abs(values(content, images) - expected).max() < 0.02


@pytest.mark.slow
def test_what_is_zero_for_all_images_has_a_scale_that_every_runtime_takes(dead, data):
    images = data[0][:12]
    shown = Calibration(dead, images)
    aware = quantize_model(dead, calibration=images)
    expected = probabilities(dead, images)
    files = [shown.convert(range_method=method) for method in RANGE_METHODS]
    files += [shown.convert(range_method="mse", correct_bias=True)]
    files += [convert_tflite(aware, "uint8"), convert_tflite(dead, "int16x8", images)]
    for content in files:
        check_runs(content)
        assert np.abs(values(content, images) - expected).max() < 0.05
        for tensor in read_tflite(content).tensors:
            if tensor.data is None:
                assert (tensor.scale > 1e-6).all(), tensor.name
    assert logits_apart(files[-2], aware, images) <= 2


@pytest.mark.parametrize("scale", [1.0, 1_000.0])
def test_features_of_any_size_are_normalized(scale, data):
    """What RSQRT makes is the smaller, the larger its input, and keeps its steps."""
    keras.utils.set_random_seed(0)
    image = keras.Input((16, 16, 3))
    biased = keras.initializers.RandomUniform(0, 2)
    x = conv(image, strides=4, activation="relu", bias_initializer=biased)
    x = layers.LayerNormalization(epsilon=1e-6)(x)
    model = keras.Model(image, layers.Dense(4)(layers.Flatten()(x)))
    kernel, bias, *others = model.get_weights()
    model.set_weights([kernel * scale, bias * scale, *others])
    expected = probabilities(model, data[0])
    assert np.ptp(expected, axis=0).max() > 0.1
    made = values(convert_tflite(model, "int8", data[0]), data[0])
    assert np.abs(made - expected).max(axis=1).mean() < 0.02


@pytest.mark.parametrize("behind", ["pixels", "convolution"])
def test_constant_images_leave_normalizations_their_steps(behind, data):
    """Of black and white, and of grey ones, 1 / deviation is a thousand."""
    images, _ = data
    keras.utils.set_random_seed(0)
    image = keras.Input((16, 16, 3))
    x = image if behind == "pixels" else conv(image, use_bias=False)
    x = layers.LayerNormalization(epsilon=1e-6, name="normed")(x)
    x = conv(x, strides=4, activation="relu")
    model = keras.Model(image, layers.Dense(4, name="out")(layers.Flatten()(x)))
    logits = model(images / np.float32(255)).numpy()
    kernel, bias = model.get_layer("out").get_weights()
    scale = 2 / logits.std(axis=0).mean()
    model.get_layer("out").set_weights([scale * kernel, -scale * logits.mean(axis=0)])
    expected = probabilities(model, images)
    assert np.ptp(expected, axis=0).min() > 0.5
    few = images[:40].copy()
    few[:3] = np.uint8([0, 90, 255])[:, None, None, None]
    shown = Calibration(model, few)
    for method in RANGE_METHODS:
        made = values(shown.convert(range_method=method), images[40:80])
        assert np.abs(made - expected[40:80]).max(axis=1).mean() < 0.08, method
    graph = read_tflite(shown.with_ranges("minmax"))
    (largest,) = [graph.tensors[op.outputs[0]].high[0] for op in graph.ops
                  if op.name == "RSQRT"]  # fmt: skip
    assert largest < 100


def test_a_relu_behind_a_normalization_is_part_of_what_it_makes():
    """The converter makes one operator of the two, on the way of what RSQRT makes."""
    image = keras.Input((8, 8, 3))
    x = layers.ReLU()(layers.UnitNormalization()(image))
    model = keras.Model(
        image, layers.Dense(4)(layers.Flatten()(layers.Rescaling(3)(x)))
    )
    graph = read_tflite(convert_tflite(model, "float32"))
    assert [op.fused for op in graph.ops if op.name == "MUL"].count("RELU") == 1
    ops = (Op("MUL", (2, 1), (3,), "RELU"), Op("MUL", (3, 4), (5,), "NONE"))
    norm = _Norm(0, 1, ops, 5, 0.1, 1.0, {}, (0.0, 6.0))
    values = {0: np.float32([4, 4]), 2: np.float32([-6, 6]), 4: np.float32([3, 3])}
    made = norm.compute(values.__getitem__, limit=1.0)
    np.testing.assert_allclose([made[3], made[5]], [[0, 3], [0, 9]])


def test_normalizations_that_are_fine_keep_their_ranges(data):
    keras.utils.set_random_seed(0)
    image = keras.Input((16, 16, 3))
    biased = keras.initializers.RandomUniform(0, 2)
    x = conv(image, strides=4, activation="relu", bias_initializer=biased)
    x = layers.LayerNormalization()(x)
    model = keras.Model(image, layers.Dense(4)(layers.Flatten()(x)))
    shown = Calibration(model, data[0][:20])
    observed = shown._observed
    assert limit_norms(observed, data[0][:20] / np.float32(255)) is observed
    plain = Calibration(network(), data[0][:8])._observed
    assert limit_norms(plain, data[0][:8] / np.float32(255)) is plain


@pytest.mark.parametrize("kind", [layers.Conv2D, layers.Conv2DTranspose])
def test_what_cancels_out_is_widened_in_both_convolutions(kind):
    """The first input of a transposed one is a shape, of numbers far above weights."""
    grey = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 1), np.uint8)
    images = np.repeat(grey, 3, axis=3)
    image = keras.Input((8, 8, 3))
    x = kind(1, 1, use_bias=False, name="cancels")(image)
    model = keras.Model(image, layers.Dense(4)(layers.Flatten()(x)))
    layer = model.get_layer("cancels")
    layer.kernel.assign(np.float32([1, -1, 1.5e-5]).reshape(layer.kernel.shape))
    made = values(convert_tflite(model, "int8", images), images)
    assert np.abs(made - probabilities(model, images)).max() < 0.05
