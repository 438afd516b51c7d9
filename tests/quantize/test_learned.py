"""Int8 files do what their quantization-aware models do, of networks that learned."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tf_keras as keras

from kdprune import tflite
from kdprune._graph import rebuild
from kdprune.data import shapes
from kdprune.intake import take_model
from kdprune.models import load_model
from kdprune.prune import recalibrate_batch_norm
from kdprune.quantize import calibrate_ranges, quantize_model

SCRIPT = Path(__file__).parent / "keras3_networks.py"
# Name and arguments, pixel range, epochs, images, learning rate.
NETWORKS = {
    "a tutorial's network": ("tutorial:32", [0, 255], 8, 3000, 0.003),
    "bottlenecks of ResNet50's form": ("bottlenecks:32:8", [0, 1], 5, 2000, 0.004),
    "squeeze and excite": ("squeeze_excite:32", [0, 255], 6, 2000, 0.004),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with all networks, as plain Keras 3 saves them."""
    folder = tmp_path_factory.mktemp("networks")
    environment = dict(os.environ, KERAS_BACKEND="tensorflow")
    environment.pop("TF_USE_LEGACY_KERAS", None)
    names = [network[0] for network in NETWORKS.values()]
    run = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder), *names],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return folder


LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def prepared(file, input_range):
    """The network of a Keras 3 file, whose statistics follow a short training."""
    model = take_model(load_model(file), input_range=input_range).model
    return rebuild(
        model,
        config=lambda layer: (
            {"momentum": 0.9}
            if isinstance(layer, keras.layers.BatchNormalization)
            else None
        ),
    )


def fit(model, data, epochs, rate):
    images, labels = data
    keras.utils.set_random_seed(0)
    model.compile(keras.optimizers.Adam(rate), LOSS, metrics=["accuracy"])
    pixels = images.astype("float32") / np.float32(255)
    model.fit(pixels, labels, batch_size=50, epochs=epochs, verbose=0)


def prove(model, train, validation, epochs, rate=0.002, aware_epochs=1):
    """Trains a network, then quantization-aware, and compares it with its file.

    Returns:
        Dict of `float` and `aware` accuracy; `steps` (99 % of the file's logits are
        within so many steps of the fake-quantized model's), `agreement` of the best
        class, `spread` of the logits (standard deviation, in steps), `float_ops` and
        `float_layers`.
    """
    fit(model, train, epochs, rate)
    recalibrate_batch_norm(model, train[0][:500])
    aware = quantize_model(model, calibration=train[0][:200])
    fit(aware, [part[:1000] for part in train], aware_epochs, rate / 20)
    calibrate_ranges(aware, train[0][:200])
    images, labels = validation
    pixels = images.astype("float32") / np.float32(255)
    content = tflite.convert_tflite(aware, "int8")
    figures = tflite.inspect_tflite(content)
    logits, scale = logits_of(content, images)
    expected = aware.predict(pixels, verbose=0)
    steps = np.abs(logits - expected) / scale
    best = expected.argmax(axis=1)
    kinds = ("QUANTIZE", "DEQUANTIZE")
    return {
        "float": accuracy(model.predict(pixels, verbose=0), labels),
        "aware": accuracy(expected, labels),
        "file": accuracy(logits, labels),
        "steps": float(np.quantile(steps, 0.99)),
        "most_steps": float(steps.max()),
        "agreement": float((logits.argmax(axis=1) == best).mean()),
        "spread": float(expected.std() / scale),
        "float_ops": [r["op"] for r in figures["float_ops"] if r["op"] not in kinds],
        "float_layers": aware.quantized_from.float_layers,
        "changes": len(aware.quantized_from.changes),
        "parameters": model.count_params(),
    }


def accuracy(scores, labels):
    return float((scores.argmax(axis=1) == labels).mean())


def logits_of(content, images):
    """What a file's softmax takes, in real numbers, and the step of it."""
    interpreter = tflite.open_interpreter(content, "builtin", keep_all=True)
    source = interpreter.get_input_details()[0]["index"]
    (softmax,) = [
        op for op in interpreter._get_ops_details() if op["op_name"] == "SOFTMAX"
    ]
    index = int(softmax["inputs"][0])
    details = {int(d["index"]): d for d in interpreter.get_tensor_details()}
    scale, zero_point = details[index]["quantization"]
    found = []
    for image in images:
        interpreter.set_tensor(source, (image.astype(int) - 128).astype(np.int8)[None])
        interpreter.invoke()
        found.append(interpreter.get_tensor(index)[0].astype(int) - zero_point)
    return np.array(found) * scale, scale


@pytest.mark.slow
@pytest.mark.parametrize("case", NETWORKS)
def test_a_network_that_learned_and_its_file_agree(case, files, record_property):
    name, input_range, epochs, count, rate = NETWORKS[case]
    model = prepared(files / f"{name.replace(':', '_')}.keras", input_range)
    train = shapes.generate(count, 32, 0, shapes.TRAIN)
    validation = shapes.generate(500, 32, 0, shapes.TEST)
    figures = prove(
        model,
        (train.images, train.labels),
        (validation.images, validation.labels),
        epochs,
        rate,
    )
    for key in ("float", "aware", "file", "steps", "agreement", "spread"):
        record_property(key, figures[key])
    assert figures["float"] >= 0.3  # Three times chance.
    assert figures["steps"] <= 2.001
    assert figures["agreement"] >= 0.98
    assert figures["spread"] > 10
    assert (figures["float_ops"], figures["float_layers"]) == ([], ())
