"""Post-training quantizers on real files: types, ranges, float layers, the report."""

import json

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from ai_edge_litert.interpreter import Interpreter

from kdprune.evaluate import predict
from kdprune.quantize import Attempt, meet_budget, quantize_model
from kdprune.tflite import (
    Calibration,
    convert,
    convert_tflite,
    inspect_tflite,
    layer_report,
    paired_drop,
    read_tflite,
    sensitive_layers,
)
from kdprune.tflite import calibration as steps
from kdprune.tflite.gate import RefusedFile
from kdprune.tflite.interpreter import open_content

layers = keras.layers


@pytest.fixture(scope="module")
def data(quadrants):
    return quadrants(120, 12)


@pytest.fixture(scope="module")
def model(data):
    """Conv-BN-ReLU, a convolution that 8 bits do not suit, and a dense layer.

    The last channel of `first` is always 0, and `hard` has large weights for it:
    they change nothing in float, and leave few steps for the other weights in int8.
    """
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((12, 12, 3))
    x = layers.Conv2D(12, 3, padding="same", use_bias=False, name="first")(x)
    x = layers.ReLU()(layers.BatchNormalization(momentum=0.8, name="norm")(x))
    x = layers.Conv2D(12, 3, 2, padding="same", activation="relu", name="hard")(x)
    x = layers.Conv2D(12, 3, 2, padding="same", activation="relu", name="last")(x)
    x = layers.Flatten(name="flatten")(x)
    model = keras.Model(inputs, layers.Dense(4, name="logits")(x))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.005), loss)
    model.fit(data[0] / np.float32(255), data[1], batch_size=40, epochs=8, verbose=0)
    gamma, beta, *moments = model.get_layer("norm").get_weights()
    gamma[-1], beta[-1] = 0.0, -1.0
    model.get_layer("norm").set_weights([gamma, beta, *moments])
    kernel, bias = model.get_layer("hard").get_weights()
    kernel[:, :, -1] = 30.0
    model.get_layer("hard").set_weights([kernel, bias])
    # Scores near 0 and 1 would hide the errors.
    logits = model.get_layer("logits")
    logits.set_weights([0.05 * weight for weight in logits.get_weights()])
    return model


@pytest.fixture(scope="module")
def files(model, data):
    images = data[0][:40]
    return {
        "float32": convert_tflite(model),
        "float16": convert_tflite(model, "float16"),
        "dynamic": convert_tflite(model, "dynamic"),
        "int16x8": convert_tflite(model, "int16x8", images),
        "int8": convert_tflite(model, "int8", images),
        "percentile": convert_tflite(model, "uint8", images, range_method="percentile"),
        "mse": convert_tflite(model, "int8", images, range_method="mse"),
        "hard in float": convert_tflite(model, "int8", images, float_layers=["hard"]),
        "uint8, hard in float": convert_tflite(
            model, "uint8", images, float_layers=["hard"]
        ),
        "corrected": convert_tflite(model, "int8", images, correct_bias=True),
    }


@pytest.fixture(scope="module")
def scores(files, model, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    found = {"keras": predict(model, data[0])}
    for name, content in files.items():
        path = folder / f"{name}.tflite"
        path.write_bytes(content)
        found[name] = predict(path, data[0])
    return found


@pytest.fixture(scope="module")
def report(model, data):
    return layer_report(model, data[0][:40])


def tensors(content):
    interpreter = Interpreter(model_content=content)
    return {detail["name"]: detail for detail in interpreter.get_tensor_details()}


def deviation(scores, name):
    return np.abs(scores[name] - scores["keras"]).mean()


@pytest.mark.parametrize(
    ("name", "ends", "limit"),
    [
        ("float32", "float32", 1e-6),
        ("float16", "float32", 1e-3),
        ("dynamic", "float32", 0.2),
        ("int16x8", "int16", 0.2),
        ("hard in float", "int8", 0.02),
        ("uint8, hard in float", "uint8", 0.02),
    ],
)
def test_the_interpreter_runs_every_type(files, scores, name, ends, limit):
    found = inspect_tflite(files[name])
    assert (found["input"]["dtype"], found["output"]["dtype"]) == (ends, ends)
    assert deviation(scores, name) < limit


def test_weights_are_stored_as_the_type_says(files):
    kinds = {
        "float32": np.float32,
        "float16": np.float16,
        "dynamic": np.int8,
        "int16x8": np.int8,
        "int8": np.int8,
    }
    for name, kind in kinds.items():
        stored = [
            t for t in tensors(files[name]).values() if "hard/Conv2D" in t["name"]
        ]
        sizes = {tuple(t["shape"]): t["dtype"] for t in stored if len(t["shape"]) == 4}
        found = [t["dtype"] for t in stored if tuple(t["shape"]) == (12, 3, 3, 12)]
        assert kind in found, (name, sizes)
    assert len(files["float16"]) < 0.75 * len(files["float32"])
    assert len(files["int8"]) < 0.6 * len(files["float32"])


def test_sixteen_bits_compute_in_integers_throughout(files):
    found = inspect_tflite(files["int16x8"])
    assert found["float_ops"] == []
    assert found["input"]["scale"] == pytest.approx(1 / 32767)
    assert found["output"]["scale"] == 1 / 32768
    assert found["input"]["zero_point"] == found["output"]["zero_point"] == 0


def test_the_two_steps_give_the_converters_own_file(files, model, data):
    images = np.float32(data[0][:40]) / 255
    converter = convert._new_converter(model, "softmax")
    calibrated = steps.observe(converter, images, (0.0, 1.0))
    content = steps.quantize_calibrated(calibrated, "int8")
    opened = [
        open_content(bytes(file), "builtin", keep_all=True)
        for file in (files["int8"], content)
    ]
    for interpreter in opened:
        interpreter.allocate_tensors()
    details = [interpreter.get_tensor_details() for interpreter in opened]
    for one, other in zip(*details, strict=True):
        for key in ("name", "quantization"):
            assert one[key] == other[key]
    for image in data[0][:5].astype(int) - 128:
        for interpreter in opened:
            index = interpreter.get_input_details()[0]["index"]
            interpreter.set_tensor(index, image[None].astype(np.int8))
            interpreter.invoke()
        for detail in opened[0].get_output_details():
            outputs = [i.get_tensor(detail["index"]) for i in opened]
            np.testing.assert_array_equal(*outputs)


def moving_network():
    """What only moves or averages pixels stands before the first convolution."""
    keras.utils.set_random_seed(0)
    image = keras.Input((12, 12, 3))
    x = layers.AveragePooling2D()(layers.ZeroPadding2D(2)(image))
    x = layers.Concatenate()([x, layers.Cropping2D(2)(layers.MaxPooling2D(1)(image))])
    x = layers.Reshape((8, 8, 6))(x)
    x = layers.Conv2D(8, 3, activation="relu", name="first")(x)
    x = layers.Flatten()(layers.Conv2D(8, 3, 2, activation="relu", name="second")(x))
    return keras.Model(image, layers.Dense(4)(x))


@pytest.mark.quick("minmax-1", "mse-255")
@pytest.mark.parametrize("factor", [1, 255])
@pytest.mark.parametrize("method", steps.RANGE_METHODS)
def test_the_input_spans_all_bytes_and_what_is_behind_it_what_images_show(
    data, method, factor, tmp_path
):
    model = moving_network()
    if factor != 1:
        image = keras.Input((12, 12, 3))
        model = keras.Model(image, model(layers.Rescaling(factor)(image)))
    gray = data[0][:40] // 4 + 90  # Far from black and from white.
    shown = Calibration(model, gray)
    content = shown.convert("int8", range_method=method)
    graph = read_tflite(content)
    assert "QUANTIZE" not in [op.name for op in graph.ops]
    before = [op.outputs[0] for op in graph.ops[: _first(graph)]]
    assert len(before) >= 4
    for index in (*graph.inputs, *before):
        found = graph.tensors[index]
        assert found.scale[0] == pytest.approx(factor / 255)
        assert found.zero_point[0] == -128
    calibrated = read_tflite(shown.with_ranges(method))
    highest = calibrated.tensors[calibrated.ops[_first(calibrated)].outputs[0]].high[0]
    most = first_activations(model, gray, factor).max()
    black, white = np.zeros((1, 12, 12, 3)), np.full((1, 12, 12, 3), 255)
    ends = first_activations(model, np.concatenate([black, white]), factor).max()
    assert ends > 1.5 * most
    assert 0.5 * most < highest <= most * 1.001
    wide = read_tflite(convert_tflite(model, "int16x8", gray))
    assert wide.tensors[wide.inputs[0]].scale[0] == pytest.approx(1 / 32767)
    (path := tmp_path / "model.tflite").write_bytes(content)
    scores, expected = predict(path, gray), predict(model, gray)
    assert np.abs(scores - expected).max() < 0.02 < np.ptp(expected)


@pytest.mark.parametrize("factor", [0.5, 20])
def test_what_is_joined_with_pixels_keeps_its_range_or_is_refused(data, factor):
    """One scale for both, which is the input's: it can't be made larger."""
    keras.utils.set_random_seed(0)
    image = keras.Input((12, 12, 3))
    x = layers.Conv2D(4, 3, padding="same", activation="relu")(image)
    x = layers.Concatenate(name="both")([image, layers.Rescaling(factor)(x)])
    x = layers.Flatten()(layers.Conv2D(4, 3, 4)(x))
    model = keras.Model(image, layers.Dense(4)(x))
    gray = data[0][:40] // 4 + 90
    both = keras.Model(image, model.get_layer("both").output)
    highest = both(gray / np.float32(255)).numpy().max()
    calibrated = Calibration(model, gray)
    graph = read_tflite(calibrated.with_ranges("minmax"))
    (joined,) = [op.outputs[0] for op in graph.ops if op.name == "CONCATENATION"]
    found = graph.tensors[joined].high[0]
    assert found == pytest.approx(max(1.0, highest), rel=1e-4)
    if factor < 1:
        assert found == 1
        assert inspect_tflite(calibrated.convert())["float_ops"] == []
        return
    assert found > 2
    with pytest.raises(RefusedFile, match="the file's input is int8 with scale"):
        calibrated.convert()


CHOSEN = {
    "clip": lambda x: tf.clip_by_value(x, 0.1, 0.95),
    "stack": lambda x: tf.stack(tf.unstack(x, axis=-1)[::-1], axis=-1),
    "where": lambda x: tf.where(x > 0.5, x, x[:, ::-1]),
    "reduce": lambda x: x - tf.reduce_max(x, axis=(1, 2), keepdims=True),
}


@pytest.mark.quick("clip")
@pytest.mark.parametrize("kind", CHOSEN)
def test_what_is_chosen_among_pixels_spans_all_bytes(kind, data):
    keras.utils.set_random_seed(0)
    image = keras.Input((12, 12, 3))
    x = layers.Conv2D(4, 3, 4)(CHOSEN[kind](image))
    model = keras.Model(image, layers.Dense(4)(layers.Flatten()(x)))
    gray = data[0][:40] // 4 + 90
    # A comparison has no 16-bit form.
    for dtype in ("int8",) if kind == "where" else ("int8", "int16x8"):
        graph = read_tflite(convert_tflite(model, dtype, gray))
        assert "QUANTIZE" not in [op.name for op in graph.ops]
        steps_in_range = {"int8": 255, "int16x8": 32767}[dtype]
        found = graph.tensors[graph.inputs[0]]
        assert found.scale[0] == pytest.approx(1 / steps_in_range)


def _first(graph):
    return next(i for i, op in enumerate(graph.ops) if op.name == "CONV_2D")


def first_activations(model, images, factor):
    inner = model if factor == 1 else model.layers[-1]
    first = keras.Model(inner.input, inner.get_layer("first").output)
    return first(np.float32(images) / np.float32(255) * np.float32(factor)).numpy()


def test_narrowed_ranges_have_finer_steps_and_leave_the_ends_alone(files):
    plain = tensors(files["int8"])
    for name in ("percentile", "mse"):
        narrowed = tensors(files[name])
        scales = {
            key: (plain[key]["quantization"][0], narrowed[key]["quantization"][0])
            for key in plain
            if "Relu" in key and plain[key]["quantization"][0] > 0
        }
        assert len(scales) == 3
        assert all(new <= old for old, new in scales.values())
        assert any(new < 0.985 * old for old, new in scales.values())
        ends = inspect_tflite(files[name])
        assert ends["float_ops"] == []
        assert ends["input"]["scale"] == float(np.float32(1 / 255))
        assert ends["output"]["scale"] == 1 / 256


def test_a_long_tail_is_clipped_and_an_even_spread_is_not():
    values = np.random.default_rng(0).normal(0, 1, 200_000)
    low, high = values.min(), values.max()
    assert low < -4.2 and high > 4.2
    least, most = steps._least_squares(values, low, high)
    # What is known for a normal distribution and 8 bits: about 3.9 deviations.
    assert 3.6 < most < 4.2 and least / low == pytest.approx(most / high)
    even = np.linspace(0, 1, 1000)
    assert steps._least_squares(even, 0.0, 1.0) == (0.0, pytest.approx(1, abs=0.03))
    assert steps._least_squares(even * 0, 0.0, 0.0) == (0.0, 0.0)
    least, most = steps._percentile(values, low, high)
    assert 3.5 < most < 3.9 and -3.9 < least < -3.5
    assert steps._percentile(np.append(even, 30.0), 0.0, 30.0)[0] == 0.0


def test_the_report_names_the_layer_to_blame(report):
    rows = {row["layer"]: row for row in report if row["weight_low"] is not None}
    assert list(rows) == ["first", "hard", "last", "logits"]
    assert rows["hard"]["weight_high"] == pytest.approx(30)
    assert rows["hard"]["sqnr_db"] < 15
    assert rows["hard"]["rmse_over_scale"] > 2
    for name in ("first", "last", "logits"):
        assert rows[name]["sqnr_db"] > 30
        assert rows[name]["weight_sqnr_db"] > 35
        # Those behind the one to blame get values that calibration did not show.
        assert rows[name]["rmse_over_scale"] < 0.2 * rows["hard"]["rmse_over_scale"]
        assert rows[name]["saturation"] < 0.1
    assert 0.2 < rows["first"]["rmse_over_scale"] < 0.8
    assert rows["first"]["seen_low"] >= rows["first"]["low"]
    assert rows["first"]["saturation"] < 0.02
    assert sensitive_layers(report, 1) == ["hard"]
    assert len(sensitive_layers(report, 99)) >= 4
    json.dumps(report, allow_nan=False)


def test_the_layer_to_blame_in_float_mends_the_file(files, scores):
    found = inspect_tflite(files["hard in float"])
    assert [op["op"] for op in found["float_ops"]].count("CONV_2D") == 1
    assert found["ops"]["CONV_2D"] == 3
    assert deviation(scores, "hard in float") < 0.3 * deviation(scores, "int8")


def test_images_beyond_the_calibration_show_as_saturation(model, data):
    dark, bright = data[0][:20] // 8, data[0][20:40]
    rows = layer_report(model, dark, images=bright)
    assert max(row["saturation"] for row in rows) > 0.001
    assert any(row["seen_high"] > row["high"] for row in rows)


def test_corrected_biases_take_the_mean_error_away(files, scores):
    def mean_error(name):
        return np.abs((scores[name] - scores["keras"]).mean(axis=0)).max()

    assert mean_error("corrected") < 0.7 * mean_error("int8")
    plain, corrected = (tensors(files[name]) for name in ("int8", "corrected"))
    assert plain.keys() == corrected.keys()
    assert inspect_tflite(files["corrected"])["float_ops"] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dtype": "int16x8"}, "needs calibration images to become int16x8"),
        ({"dtype": "dynamic", "calibration": True}, "an integer dtype"),
        ({"dtype": "int4"}, "dtype must be one of"),
        (
            {"dtype": "int8", "calibration": True, "range_method": "max"},
            "range_method must",
        ),
        (
            {"dtype": "int16x8", "calibration": True, "range_method": "mse"},
            "an 8-bit dtype",
        ),
        ({"dtype": "float16", "correct_bias": True}, "an 8-bit dtype"),
        ({"calibration": True, "dtype": "int8", "float_layers": "hard"}, "a list of"),
        (
            {"calibration": True, "dtype": "int8", "float_layers": ["hrad"]},
            "first, .*hard.*, logits. Received: hrad",
        ),
    ],
)
def test_what_does_not_fit_is_an_error(model, data, arguments, message):
    if "calibration" in arguments:
        arguments = {**arguments, "calibration": data[0][:4]}
    with pytest.raises(ValueError, match=message):
        convert_tflite(model, **arguments)


@pytest.mark.parametrize("step", ["observe", "quantize_calibrated"])
def test_either_step_of_the_conversion_may_fail_and_ends_one_attempt(
    model, data, monkeypatch, step
):
    def fail(*args, **options):
        raise RuntimeError("somewhere.cc:12: error: no such kernel\nmore of it")

    monkeypatch.setattr(convert, step, fail)
    images = data[0][:4]
    outcome = meet_budget(
        [
            Attempt(
                "mse", lambda: convert_tflite(model, "int8", images, range_method="mse")
            ),
            Attempt("float", lambda: convert_tflite(model)),
        ],
        lambda made: {"drop": 0.0, "drop_bound": 0.001},
        max_drop=0.01,
    )
    assert outcome.met and outcome.name == "float"
    message = f"model {model.name!r} does not convert to int8: no such kernel"
    assert outcome.attempts[0]["error"] == message


def test_a_budget_is_met_by_the_worst_layer_in_float(model, data, report, tmp_path):
    images, labels = data

    def file_with(**arguments):
        return lambda: convert_tflite(model, "int8", images[:40], **arguments)

    def judge(content):
        (tmp_path / "file.tflite").write_bytes(content)
        found = predict(tmp_path / "file.tflite", images)
        figures = paired_drop(predict(model, images), found, labels)
        # Too few images for a proof by accuracy: the scores stand in for it.
        deviation = float(np.abs(found - predict(model, images)).mean())
        return {**figures, "drop_bound": deviation}

    outcome = meet_budget(
        [
            Attempt("int8", file_with()),
            Attempt("mse", file_with(range_method="mse")),
            Attempt("corrected", file_with(correct_bias=True)),
            Attempt("float", file_with(float_layers=sensitive_layers(report, 1))),
            Attempt("never made", lambda: 1 / 0),
        ],
        judge,
        max_drop=0.003,
    )
    assert outcome.met and outcome.name == "float"
    bounds = {row["name"]: row["drop_bound"] for row in outcome.attempts}
    assert list(bounds) == ["int8", "mse", "corrected", "float"]
    assert bounds["float"] < bounds["corrected"] < bounds["int8"]
    assert all(row["bytes"] == len(outcome.best) for row in outcome.attempts[-1:])


@pytest.mark.slow
def test_one_calibration_makes_the_files_that_single_conversions_make(model, data):
    images = data[0][:40]
    calibration = Calibration(model, images)
    for options in (
        {},
        {"range_method": "mse", "correct_bias": True},
        {"range_method": "percentile"},
        {"correct_bias": True},
    ):
        assert calibration.convert("uint8", **options) == convert_tflite(
            model, "uint8", images, **options
        )
    assert calibration.report() == layer_report(model, images)
    with pytest.raises(ValueError, match="range_method must be one of"):
        calibration.convert(range_method="best")
    with pytest.raises(ValueError, match="a float model needs calibration images"):
        Calibration(model, None)


def test_channels_of_depthwise_kernels_have_the_steps_of_the_file():
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 3))
    x = keras.layers.DepthwiseConv2D(3, use_bias=False, name="each")(image)
    x = keras.layers.ReLU()(keras.layers.BatchNormalization(name="norm")(x))
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(image, keras.layers.Dense(2)(x))
    (kernel,) = model.get_layer("each").get_weights()
    unequal = np.array([1, 0.1, 0.01], np.float32)[:, None]
    model.get_layer("each").set_weights([kernel * unequal])
    model.get_layer("norm").gamma.assign([3.0, 0.2, -1.0])
    images = np.random.default_rng(0).random((20, 8, 8, 3), np.float32)
    aware = quantize_model(model, calibration=images)
    graph = read_tflite(convert_tflite(aware, "int8"))
    (op,) = [op for op in graph.ops if op.name == "DEPTHWISE_CONV_2D"]
    found = graph.tensors[op.inputs[1]]
    np.testing.assert_array_equal(np.abs(found.data).max(axis=(0, 1, 2)), 127)
    ((weight, quantizer, ranges),) = aware.get_layer("quant_each")._weight_vars
    rounded = quantizer(weight, training=False, weights=ranges).numpy()[..., 0]
    norm = np.array([3.0, 0.2, -1.0]) / np.sqrt(1.001)
    np.testing.assert_allclose(
        (found.data * found.scale)[0], rounded * norm, rtol=1e-5, atol=1e-9
    )
