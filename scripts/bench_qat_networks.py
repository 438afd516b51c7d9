"""Whether int8 files do what their quantization-aware models do, of known networks.

Networks of `keras.applications` and others are made by plain Keras 3 in a process of
its own (`plain_keras_networks.py`), with their own input layers, trained on generated
shapes until they have learned (an untrained network proves nothing about int8), their
statistics recalibrated, trained quantization-aware and converted. On 500 images that
none was trained on, the logits of the file are held against the fake-quantized ones.
Where they differ, is an operator at fault, or have roundings grown? Each operator is
given the integers of the fake-quantized model, on ten images, as well.

Usage:
    python scripts/bench_qat_networks.py [NETWORK…] [--json OUT]

Networks that are in OUT already are left out. All together they take about an hour on
two cores.
"""

import argparse
import dataclasses
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np
import tf_keras as keras

from kdprune import _io, records, tflite
from kdprune._graph import rebuild
from kdprune.data import shapes, to_float
from kdprune.evaluate.operators import compare_operators
from kdprune.intake import take_model
from kdprune.models import load_model
from kdprune.prune import recalibrate_batch_norm
from kdprune.quantize import calibrate_ranges, quantize_model

MAKER = pathlib.Path(__file__).with_name("plain_keras_networks.py")
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
BYTES, UNIT = (0, 255), (0, 1)


@dataclasses.dataclass(frozen=True)
class Network:
    """What `plain_keras_networks.py` calls it, and how it is trained.

    Attributes:
        made: Name, size of images and width.
        input_range: What it takes for black and white.
        epochs: How long it is trained.
        images: On how many images.
        rate: Learning rate; a twentieth of it in quantization-aware training.
    """

    made: str
    input_range: tuple[float, float]
    epochs: int
    images: int
    rate: float

    @property
    def size(self):
        return int(self.made.split(":")[1])

    def file_in(self, folder):
        return folder / f"{self.made.replace(':', '_')}.keras"


NETWORKS = {
    "tutorial": Network("tutorial:32", BYTES, 12, 3000, 0.003),
    "bottlenecks": Network("bottlenecks:32:8", UNIT, 8, 2000, 0.004),
    "squeeze_excite": Network("squeeze_excite:32", BYTES, 16, 3000, 0.004),
    "MobileNetV3Small": Network("mobilenetv3:64:0.5", BYTES, 12, 2000, 0.003),
    "MobileNetV2": Network("mobilenetv2:64:0.35", BYTES, 10, 2000, 0.003),
    "EfficientNetB0": Network("efficientnet:64", BYTES, 5, 1500, 0.002),
    "ResNet50": Network("resnet50:64", UNIT, 5, 1200, 0.001),
}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--json", metavar="OUT", help="write the figures to a file")
    options = parser.parse_args()
    path = pathlib.Path(options.json) if options.json else None
    found = _io.read_json(path)["networks"] if path and path.exists() else {}
    missing = [name for name in options.networks if name not in found]
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        make_networks(folder, missing)
        for name in missing:
            network = NETWORKS[name]
            started = time.perf_counter()
            figures = compare(network, network.file_in(folder), *images_for(network))
            figures["seconds"] = round(time.perf_counter() - started)
            found[name] = {**dataclasses.asdict(network), **figures}
            print(name, figures, flush=True)
            if path:
                content = {"command": records.command(), "networks": found}
                content |= {
                    "machine": records.machine(),
                    "versions": records.versions(),
                }
                _io.write_json(path, content)


def make_networks(folder, names):
    """Saves untrained networks, in a process that knows nothing of kdprune."""
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow"}
    environment.pop("TF_USE_LEGACY_KERAS", None)
    command = [sys.executable, MAKER, folder, *(NETWORKS[name].made for name in names)]
    run = subprocess.run(
        [*map(str, command)], env=environment, capture_output=True, text=True
    )
    if run.returncode:
        raise SystemExit(run.stderr[-2000:])


def images_for(network):
    """Images to train on, and 500 to compare on, in ten classes."""
    train = shapes.generate(network.images, network.size, 0, shapes.TRAIN)
    return train, shapes.generate(500, network.size, 0, shapes.TEST)


def compare(network, file, train, validation, aware_images=1000):
    """Trains a network, then quantization-aware, and compares it with its file.

    Args:
        network: A `Network`.
        file: Its Keras 3 file.
        train: Images and labels to train on.
        validation: Images and labels to compare on.
        aware_images: On how many the quantization-aware epoch is.

    Returns:
        Dict of `float`, `aware` and `file` accuracy; `steps` (99 % of the file's logits
        are within so many steps of the fake-quantized model's) and `most_steps`;
        `agreement` of the best class; `spread` of the logits (standard deviation, in
        steps); `operators`, how far they are from their layers by themselves (see
        `compare_operators`), in the order of execution; `float_ops` and `float_layers`,
        those that do not compute in integers; `changes`, what was rewritten;
        `parameters`.
    """
    model = take_model(load_model(file), input_range=network.input_range).model
    model = rebuild(model, config=following)
    fit(model, train, network.epochs, network.rate)
    recalibrate_batch_norm(model, train.images[:500])
    aware = quantize_model(model, calibration=train.images[:200])
    fit(aware, train, 1, network.rate / 20, aware_images)
    calibrate_ranges(aware, train.images[:200])
    content = tflite.convert_tflite(aware, "int8")
    figures = tflite.inspect_tflite(content)
    pixels, labels = to_float(validation.images), validation.labels
    logits, scale = logits_of(content, validation.images)
    expected = aware.predict(pixels, verbose=0)
    steps = np.abs(logits - expected) / scale
    kinds = ("QUANTIZE", "DEQUANTIZE")
    return {
        "float": accuracy(model.predict(pixels, verbose=0), labels),
        "aware": accuracy(expected, labels),
        "file": accuracy(logits, labels),
        "steps": float(np.quantile(steps, 0.99)),
        "most_steps": float(steps.max()),
        "agreement": accuracy(logits, expected.argmax(axis=1)),
        "spread": float(expected.std() / scale),
        "operators": compare_operators(content, aware, validation.images[:10]),
        "float_ops": [r["op"] for r in figures["float_ops"] if r["op"] not in kinds],
        "float_layers": list(aware.quantized_from.float_layers),
        "changes": len(aware.quantized_from.changes),
        "parameters": model.count_params(),
        "bytes": len(content),
    }


def following(layer):
    """Lets statistics follow a training of few steps."""
    is_norm = isinstance(layer, keras.layers.BatchNormalization)
    return {"momentum": 0.9} if is_norm else None


def fit(model, split, epochs, rate, most=None):
    keras.utils.set_random_seed(0)
    model.compile(keras.optimizers.Adam(rate), LOSS, metrics=["accuracy"])
    images, labels = to_float(split.images[:most]), split.labels[:most]
    model.fit(images, labels, batch_size=50, epochs=epochs, verbose=0)


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


if __name__ == "__main__":
    main()
