"""Conversion to .tflite and the export gate, on real files and the interpreter."""

import os
import re
import threading

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from kdprune.models import build_model
from kdprune.quantize import quantize_model
from kdprune.tflite import (
    RefusedFile,
    check_tflite,
    compare_kernels,
    convert_tflite,
    inspect_tflite,
    paired_drop,
)

layers = keras.layers
ONE_255TH = float(np.float32(1 / 255))


@pytest.fixture(scope="module")
def data():
    """Noise, brighter in the quadrant that is the class; no black, no white."""
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 4
    images = rng.integers(40, 100, (200, 16, 16, 3))
    for image, label in zip(images, labels, strict=True):
        row, column = divmod(label, 2)
        image[8 * row : 8 * row + 8, 8 * column : 8 * column + 8] += 60
    return images.astype(np.uint8), labels


def to_float(images):
    return images.astype("float32") / np.float32(255)


def small_model():
    """Conv-BN-ReLU, a Conv-BN that ends in Add, and a 1x1 shortcut without BN."""
    x = inputs = keras.Input((16, 16, 3))
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="conv1")(x)
    x = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))
    y = layers.Conv2D(12, 3, 2, padding="same", use_bias=False, name="conv2")(x)
    y = layers.BatchNormalization(momentum=0.9)(y)
    x = layers.Add()([y, layers.Conv2D(12, 1, 2, padding="same", name="shortcut")(x)])
    x = layers.Flatten()(layers.ReLU()(x))
    return keras.Model(inputs, layers.Dense(4, name="logits")(x))


def train(model, data, epochs, **options):
    images, labels = data
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.003), loss, **options)
    model.fit(to_float(images), labels, batch_size=50, epochs=epochs, verbose=0)
    return model


@pytest.fixture(scope="module")
def model(data):
    keras.utils.set_random_seed(0)
    return train(small_model(), data, epochs=8)


@pytest.fixture(scope="module")
def aware(model, data):
    """Pruned to half, then trained with prune-preserving QAT."""
    pruned = keras.models.clone_model(model)
    pruned.set_weights(model.get_weights())
    for name in ("conv1", "conv2", "shortcut", "logits"):
        kernel = pruned.get_layer(name).kernel
        small = np.abs(kernel) < np.median(np.abs(kernel))
        kernel.assign(np.where(small, 0, kernel))
    quantized = quantize_model(pruned, preserve_sparsity=True, calibration=data[0])
    # Tracing all that is wrapped would take far longer than twelve steps.
    return train(quantized, data, epochs=3, run_eagerly=True)


@pytest.fixture(scope="module")
def files(model, aware, data):
    return {
        "float": convert_tflite(model),
        "ptq int8": convert_tflite(model, "int8", data[0]),
        "ptq uint8": convert_tflite(model, "uint8", data[0]),
        "qat int8": convert_tflite(aware, "int8"),
        "qat uint8": convert_tflite(aware, "uint8"),
    }


def run(data, images, resolver=OpResolverType.AUTO):
    """The file's raw outputs for uint8 images, as the file's own dtype."""
    interpreter = Interpreter(
        model_content=data, num_threads=1, experimental_op_resolver_type=resolver
    )
    interpreter.allocate_tensors()
    (taken,), (given,) = (
        interpreter.get_input_details(),
        interpreter.get_output_details(),
    )
    if taken["dtype"] == np.int8:
        images = (images.astype(np.int16) - 128).astype(np.int8)
    elif taken["dtype"] == np.float32:
        images = to_float(images)
    scores = []
    for image in images:
        interpreter.set_tensor(taken["index"], image[None])
        interpreter.invoke()
        scores.append(interpreter.get_tensor(given["index"])[0])
    return np.array(scores)


def kernels(data):
    """The file's int8 weights: name to array, from its buffers."""
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))
    found = {}
    for tensor in model.subgraphs[0].tensors:
        content = model.buffers[tensor.buffer].data
        if tensor.type == schema.TensorType.INT8 and content is not None:
            found[tensor.name.decode()] = np.frombuffer(bytes(content), np.int8)
    return found


def softmax(logits):
    return tf.nn.softmax(logits).numpy()


def test_a_float_file_gives_the_models_probabilities(files, model, data):
    expected = softmax(model(to_float(data[0])).numpy())
    np.testing.assert_allclose(run(files["float"], data[0]), expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["ptq", "qat"])
def test_eight_bit_files_take_bytes_and_give_256ths(files, kind):
    for dtype, zero_point in (("int8", -128), ("uint8", 0)):
        found = inspect_tflite(files[f"{kind} {dtype}"])
        assert found["float_ops"] == []
        assert found["input"] == {
            "dtype": dtype,
            "shape": [1, 16, 16, 3],
            "scale": ONE_255TH,
            "zero_point": zero_point,
        }
        assert found["output"] == {
            "dtype": dtype,
            "shape": [1, 4],
            "scale": 1 / 256,
            "zero_point": zero_point,
        }


@pytest.mark.parametrize("kind", ["float", "ptq int8", "qat int8"])
def test_batch_norm_relu_and_fake_quantization_are_folded_away(files, kind):
    assert inspect_tflite(files[kind])["ops"] == {
        "CONV_2D": 3,
        "ADD": 1,
        "RESHAPE": 1,
        "FULLY_CONNECTED": 1,
        "SOFTMAX": 1,
    }


@pytest.mark.parametrize("resolver", ["AUTO", "BUILTIN_REF"])
@pytest.mark.parametrize("kind", ["ptq", "qat"])
def test_int8_and_uint8_files_are_the_same_model(files, data, kind, resolver):
    resolver = OpResolverType[resolver]
    signed = run(files[f"{kind} int8"], data[0], resolver)
    unsigned = run(files[f"{kind} uint8"], data[0], resolver)
    np.testing.assert_array_equal(signed.astype(int) + 128, unsigned.astype(int))
    signed, unsigned = (kernels(files[f"{kind} {d}"]) for d in ("int8", "uint8"))
    assert len(signed) == 4
    for one, other in zip(signed.values(), unsigned.values(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_zeros_reach_the_file_in_convolutions_and_dense_layers(files, aware):
    shares = {
        layer.name: np.mean(layer.kernel.numpy() == 0)
        for layer in aware.quantized_from.base.layers
        if hasattr(layer, "kernel")
    }
    found = {}
    for name, values in kernels(files["qat int8"]).items():
        (layer,) = [layer for layer in shares if layer in name]
        found[layer] = np.mean(values == 0)
    assert found.keys() == shares.keys()
    for layer, share in shares.items():
        assert 0.49 < share <= found[layer] < 0.6


def test_conversion_keeps_the_predictions(files, model, aware, data):
    images, labels = data
    for kind, source in (("ptq", model), ("qat", aware)):
        logits = source(to_float(images)).numpy()
        scores = run(files[f"{kind} uint8"], images)
        figures = check_tflite(files[f"{kind} uint8"], logits, scores, labels)
        assert figures["images"] == 200
        assert figures["keras_accuracy"] > 0.95
        assert abs(figures["drop"]) <= 0.01
        assert figures["disagreement"] <= 0.01
        assert np.abs(softmax(logits) - scores / 256).max() < 0.05


def ending(name):
    x = layers.Flatten()(inputs := keras.Input((4, 4, 1)))
    if name == "logits":
        outputs = layers.Dense(3)(x)
    elif name == "Dense softmax":
        outputs = layers.Dense(3, activation="softmax")(x)
    elif name == "Activation softmax":
        outputs = layers.Activation("softmax")(layers.Dense(3)(x))
    elif name == "Softmax":
        outputs = layers.Softmax()(layers.Dense(3)(x))
    else:
        return keras.Sequential([inputs, ending("Softmax")])
    return keras.Model(inputs, outputs)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("logits", "float32"),
        ("Dense softmax", "float32"),
        ("Activation softmax", "float32"),
        ("Softmax", "float32"),
        ("nested", "float32"),
        ("Dense softmax", "int8"),
        ("Softmax", "int8"),
    ],
)
def test_softmax_is_applied_once(name, dtype):
    model = ending(name)
    images = np.random.default_rng(0).integers(0, 256, (20, 4, 4, 1), np.uint8)
    if dtype == "int8":
        model = quantize_model(model, calibration=images)
    content = convert_tflite(model, dtype)
    assert inspect_tflite(content)["ops"]["SOFTMAX"] == 1
    expected = model(to_float(images)).numpy()
    expected = softmax(expected) if name == "logits" else expected
    scores = run(content, images).astype(float)
    scores = (scores + 128) / 256 if dtype == "int8" else scores
    np.testing.assert_allclose(scores, expected, atol=0.01)


def test_float16_weights_halve_the_file(model, files, data):
    content = convert_tflite(model, "float16")
    assert len(content) < len(files["float"])
    np.testing.assert_allclose(
        run(content, data[0]), run(files["float"], data[0]), atol=0.01
    )


def test_conversion_leaves_no_files_and_lets_others_speak(
    model, data, tmp_path, monkeypatch, capfd
):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.chdir(tmp_path)
    done, said = threading.Event(), []

    def speak():
        while not done.wait(0.002):
            said.append(f"<{len(said)}>")
            os.write(2, said[-1].encode())

    other = threading.Thread(target=speak)
    other.start()
    try:
        convert_tflite(model, "int8", data[0][:10])
    finally:
        done.set()
        other.join()
    assert list(tmp_path.iterdir()) == []
    out, err = capfd.readouterr()
    assert out == "" and len(said) > 10
    assert re.findall(r"<\d+>", err) == said
    # The converter's C++ has one line of its own, which nothing turns off.
    assert len(re.sub(r"<\d+>", "", err).splitlines()) <= 1


def test_conversion_works_under_a_mixed_policy(model, files, data):
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        content = convert_tflite(model, "uint8", data[0])
        mixed = ending("logits")
    finally:
        keras.mixed_precision.set_global_policy("float32")
    np.testing.assert_array_equal(
        run(content, data[0]), run(files["ptq uint8"], data[0])
    )
    with pytest.raises(ValueError, match="cast_model.* in bfloat16"):
        convert_tflite(mixed)
    image = keras.Input(mixed.input_shape[1:])
    inside = keras.Model(image, mixed(image))
    with pytest.raises(ValueError, match=f"layer '{mixed.name}/.*' in bfloat16"):
        convert_tflite(inside)


def test_arguments_that_do_not_fit_are_refused(model, aware, data):
    images = data[0]
    for arguments, message in (
        ((model, "int4"), "must be one of float32, float16, .*int8, uint8.*'int4'"),
        ((model, "int8"), "needs calibration images to become int8"),
        ((model, "float32", images), "a float model, dtype='float32'"),
        ((aware, "int8", images), "a quantization-aware model, dtype='int8'"),
        ((aware, "float32"), "converts to int8 and uint8"),
        ((model, "int8", images[:, :8]), r"\(n, 16, 16, 3\).*\(200, 8, 16, 3\)"),
        ((model, "int8", images[:0]), "n > 0"),
        ((model, "int8", images.astype("float32")), r"float32 in \[40, 159\]"),
        (
            (model, "int8", np.where(images > 150, np.nan, 0.5)),
            r"nan at \(0, 0, 0, 0\)",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            convert_tflite(*arguments)


def test_what_does_not_convert_is_one_line_naming_the_model():
    inputs = keras.Input((4, 4, 1))
    outputs = layers.Dense(3)(tf.math.bessel_i0(layers.Flatten()(inputs)))
    with pytest.raises(ValueError, match="^model 'odd' does not convert to float32: "):
        convert_tflite(keras.Model(inputs, outputs, name="odd"))


def test_the_gate_names_an_op_left_in_float(data):
    x = layers.Flatten()(inputs := keras.Input((16, 16, 3)))
    x = layers.Dense(4, activation="swish", name="swishing")(x)
    model = quantize_model(
        keras.Model(inputs, layers.Dense(4)(x)),
        calibration=data[0],
        float_layers=["swishing"],
    )
    content = convert_tflite(model, "int8")
    scores = np.eye(4)[data[1]]
    with pytest.raises(
        ValueError, match=r"compute in float, first FULLY_CONNECTED \(.*swishing"
    ):
        check_tflite(content, scores, scores, data[1])


def without_the_gray_ends(model, images):
    """Post-training quantization as it is usually written."""
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.uint8
    converter.representative_dataset = lambda: ([i[None]] for i in to_float(images))
    return converter.convert()


@pytest.mark.filterwarnings("ignore:Statistics for quantized inputs")
def test_the_gate_refuses_an_input_scale_that_came_from_the_images(model, data):
    inputs = keras.Input((16, 16, 3), batch_size=1)
    whole = keras.Model(inputs, layers.Softmax()(model(inputs)))
    content = without_the_gray_ends(whole, data[0][:50])
    scores = np.eye(4)[data[1]]
    assert inspect_tflite(content)["input"]["scale"] < 0.9 / 255
    with pytest.raises(ValueError, match=f"input is uint8 with scale .*{ONE_255TH}"):
        check_tflite(content, scores, scores, data[1])


@pytest.mark.filterwarnings("ignore:Statistics for quantized inputs")
def test_the_gate_refuses_an_output_without_softmax(model, data):
    content = without_the_gray_ends(
        model, np.concatenate([data[0][:9], data[0][:1] * 0, data[0][:1] * 0 + 255])
    )
    scores = np.eye(4)[data[1]]
    with pytest.raises(ValueError, match="output is uint8 with scale .*0.00390625"):
        check_tflite(content, scores, scores, data[1])


def sixteen_bits(model, images):
    """An int16x8 file of the converter, which may fall back to floats."""
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.target_spec.supported_ops = [
        tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8,
        tf.lite.OpsSet.TFLITE_BUILTINS,
    ]
    converter.inference_input_type = converter.inference_output_type = tf.int16
    converter.representative_dataset = lambda: ([i[None]] for i in images)
    return converter.convert()


@pytest.mark.filterwarnings("ignore:Statistics for quantized inputs")
def test_a_file_of_16_bits_is_held_to_integers_as_well(data):
    images = np.concatenate([to_float(data[0][:20]), np.ones((1, 16, 16, 3), "f4")])
    scores = np.eye(4)[data[1]]

    def ending(activation):
        inputs = keras.Input((16, 16, 3), batch_size=1)
        x = layers.Conv2D(4, 3, 4, activation=activation, name="first")(inputs)
        return keras.Model(inputs, layers.Dense(4, "softmax")(layers.Flatten()(x)))

    def check(content):
        return check_tflite(content, scores, scores, data[1])

    assert check(sixteen_bits(ending("relu"), images))["float_layers"] == []
    message = (
        r"1 op\(s\) of the int16 file compute in float, first ELU .*int16 supports"
    )
    with pytest.raises(ValueError, match=message):
        check(sixteen_bits(ending("elu"), images))
    # Without a white image the scale is that of the images.
    with pytest.raises(
        ValueError, match="input is int16 with scale .*; expected int16"
    ):
        check(sixteen_bits(ending("relu"), images[:-1]))


def test_the_gate_refuses_a_file_of_another_model(files, data):
    images, labels = data
    keras.utils.set_random_seed(5)
    other = small_model()(to_float(images)).numpy()
    scores = run(files["ptq uint8"], images)
    with pytest.raises(ValueError, match=r"disagree on \d+\.\d% of 200 images"):
        check_tflite(files["ptq uint8"], other, scores, labels)


def test_the_gate_refuses_a_file_that_lost_accuracy(model, files, data):
    images, labels = data
    damaged = keras.models.clone_model(model)
    damaged.set_weights(model.get_weights())
    bias = damaged.get_layer("logits").bias
    logits = model(to_float(images)).numpy()
    margin = np.sort(logits - logits[:, :1], axis=1)[:, -1]
    bias.assign_add([float(np.median(margin[margin > 0])), 0, 0, 0])
    content = convert_tflite(damaged, "uint8", images)
    message = r"loses \d+\.\d\d points .* limit 2\.00"
    with pytest.raises(ValueError, match=message):
        check_tflite(content, logits, run(content, images), labels, max_disagreement=1)


def scores_with(n, lost, gained=0):
    """Two-class scores: all right before; afterwards `lost` wrong, as labelled."""
    labels = np.arange(n) % 2
    before, after = np.eye(2)[labels], np.eye(2)[labels]
    after[:lost] = 1 - after[:lost]
    before[n - gained :] = 1 - before[n - gained :]
    return before, after, labels


def test_the_drop_is_judged_by_its_lower_confidence_bound(files):
    """The figures of check_tflite's docstring: 5,000 images, 2.5 % differ."""

    def figures(drop_points, limit=0.01):
        net = round(50 * drop_points)
        gained = (125 - net) // 2
        arguments = scores_with(5000, gained + net, gained)
        return check_tflite(files["ptq int8"], *arguments, max_drop=limit)

    passing = figures(1.3)
    assert passing["disagreement"] == pytest.approx(0.025, abs=2e-4)
    assert passing["drop"] == pytest.approx(0.013)
    deviation = np.sqrt((0.025 - 0.013**2) / 5000)
    assert passing["drop_interval"] == pytest.approx(
        [0.013 - 1.645 * deviation, 0.013 + 1.645 * deviation], abs=1e-5
    )
    with pytest.raises(ValueError, match=r"loses 1\.40 points.*at least 1\.04.*1\.00"):
        figures(1.4)


def test_disagreement_beyond_its_share_is_refused(files):
    assert check_tflite(files["ptq int8"], *scores_with(100, 5))["disagreement"] == 0.05
    with pytest.raises(ValueError, match="disagree on 6.0% of 100 images"):
        check_tflite(files["ptq int8"], *scores_with(100, 6))


def test_a_file_is_held_strictly_against_the_graph_it_was_trained_as(files):
    """0.4 of the limit, and what chance makes of it: 2.65 % of 1,000 images."""

    def check(lost):
        arguments = scores_with(1000, lost)
        return check_tflite(files["qat int8"], *arguments, max_drop=1, strict=True)

    assert check(26)["disagreement"] == 0.026
    with pytest.raises(ValueError, match=r"disagree on 2\.8% of 1000 images .*2\.7%"):
        check(28)
    loose = scores_with(1000, 28)
    assert check_tflite(files["qat int8"], *loose, max_drop=1)["float_layers"] == []
    # On few images chance is all there is, and the plain limit holds.
    with pytest.raises(ValueError, match=r"limit 5\.0%"):
        check_tflite(files["qat int8"], *scores_with(20, 2), max_drop=1, strict=True)


def unsure_scores(n, flipped):
    """Two-class scores of a model that is never sure, right before; some flipped."""
    before = np.tile([0.51, 0.49], (n, 1))
    after = before.copy()
    after[:flipped] = [0.49, 0.51]
    return before, after


def test_a_weak_model_may_change_its_mind_where_it_was_not_sure(files):
    before, after = unsure_scores(1000, 300)
    # Right as often as before: what it loses it gains.
    labels = np.repeat([0, 1, 0], [150, 150, 700])
    figures = check_tflite(files["ptq int8"], before, after, labels, strict=True)
    assert figures["disagreement"] == 0.3 and figures["drop"] == 0
    assert figures["deviation"] == pytest.approx(0.3 * 0.02)
    assert compare_kernels(before, {"reference": after})
    # Logits are compared as probabilities.
    logits = np.log(before) + 5
    figures = check_tflite(files["ptq int8"], logits, after, labels)
    assert figures["deviation"] == pytest.approx(0.3 * 0.02)


def test_scores_that_deviate_are_refused_where_the_best_classes_agree(files):
    """As a second softmax does, which changes no class."""
    before, _, labels = scores_with(100, 0)
    twice = np.exp(before) / np.exp(before).sum(axis=1, keepdims=True)
    with pytest.raises(RefusedFile, match=r"deviate .* by 0\.269 .*max_deviation"):
        check_tflite(files["ptq int8"], before, twice, labels)
    assert check_tflite(files["ptq int8"], before, twice, labels, max_deviation=0.3)
    with pytest.raises(RefusedFile, match="by nan"):
        check_tflite(files["ptq int8"], before, np.full_like(before, np.nan), labels)


def test_all_that_is_wrong_is_said_with_what_allows_it(files):
    with pytest.raises(RefusedFile) as raised:
        check_tflite(files["ptq int8"], *scores_with(100, 20))
    first, second = raised.value.reasons
    assert first.endswith("allow it by max_disagreement")
    assert second.endswith("allow it by max_drop")
    assert str(raised.value) == f"{first}; {second}"
    assert raised.value.figures["tflite_accuracy"] == 0.8


def test_a_model_at_chance_has_nothing_to_lose():
    labels = np.arange(1000) % 4
    right, constant = np.eye(4)[labels], np.tile(np.eye(4)[0], (1000, 1))
    assert not paired_drop(right, constant, labels)["at_chance"]
    assert paired_drop(constant, right, labels)["at_chance"]
    # Of uneven classes chance is the commonest one's share.
    uneven = np.where(labels == 1, 1, 0)
    assert paired_drop(constant, right, uneven)["at_chance"]


def test_kernels_are_compared_with_the_keras_model_on_as_many_images():
    expected = np.tile([0.7, 0.3], (200, 1))
    near, other = expected + [-0.05, 0.05], expected[:, ::-1]
    mixed = np.concatenate([other[:4], near[:96]])
    found = compare_kernels(expected, {"xnnpack": near, "reference": mixed})
    assert found == {
        "xnnpack": {
            "images": 200,
            "disagreement": 0.0,
            "largest_deviation": pytest.approx(0.05),
        },
        "reference": {
            "images": 100,
            "disagreement": 0.04,
            "largest_deviation": pytest.approx(0.4),
        },
    }
    broken = np.concatenate([other[:9], expected[:91] + [-0.1, 0.1]])
    message = r"on the reference kernels .* 9\.0% of 100 images \(limit 8\.6%\)"
    with pytest.raises(ValueError, match=message):
        compare_kernels(expected, {"xnnpack": near, "reference": broken})
    # Kernels that are wrong of all images, though not in their best class.
    flat = {"builtin": np.tile([0.55, 0.45], (100, 1))}
    with pytest.raises(ValueError, match=r"builtin kernels .* deviate .* by 0\.150"):
        compare_kernels(expected, flat)
    assert compare_kernels(expected, flat, max_deviation=0.2)
    with pytest.raises(ValueError, match="reference kernels .* not finite"):
        compare_kernels(expected, {"reference": np.full_like(expected, np.nan)})


def test_a_perfect_file_has_a_record_of_plain_numbers(files):
    import json

    figures = check_tflite(files["ptq int8"], *scores_with(50, 0))
    assert figures["drop_interval"] == [0, 0]
    assert figures["disagreement"] == 0
    assert json.loads(json.dumps(figures)) == figures


def test_the_gate_refuses_scores_and_files_it_can_not_read(files, tmp_path):
    before, after, labels = scores_with(10, 0)
    for arguments in ((before, after[:5], labels), (before, after, labels[:5])):
        with pytest.raises(ValueError, match=r"shape \(n, classes\)"):
            check_tflite(files["ptq int8"], *arguments)
    with pytest.raises(ValueError, match="not a .tflite model"):
        inspect_tflite(b"not a model at all")
    path = tmp_path / "m.tflite"
    path.write_bytes(files["ptq int8"])
    assert inspect_tflite(path) == inspect_tflite(files["ptq int8"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["article_student", "resnet8", "dscnn", "resnet9"])
def test_the_packages_own_models_convert_to_integers_alone(name):
    arguments = {"width": 8} if name == "resnet9" else {}
    model = build_model(name, **arguments)
    images = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), np.uint8)
    aware = quantize_model(model, preserve_sparsity=True, calibration=images)
    labels = np.arange(20) % 10
    for source, calibration in ((model, images), (aware, None)):
        content = convert_tflite(source, "uint8", calibration)
        scores = run(content, images)
        check_tflite(content, scores, scores, labels)
