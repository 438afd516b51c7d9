"""Post-training int8 of networks with unequal channels, by every combination.

Two networks are trained by plain Keras 3 in processes of their own (see
`plain_keras_unequal.py`), then made int8 by the plain converter, by kdprune's range
methods with and without corrected biases, of the model as it is, with its batch
normalization folded, and with its channels equalized; by litert-quantizer where that is
installed; and by quantization-aware training under the original. All are scored on the
test images. `auto` picks by the validation images alone, which the table shows.

Usage:
    python scripts/bench_ptq.py --data-dir DIR [--models DIR] [--json OUT]

Takes about half an hour on two cores, most of it training.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

import kdprune
from kdprune import _io, records
from kdprune.config import parse_recipe
from kdprune.data import to_float
from kdprune.evaluate import predict
from kdprune.intake import take_model
from kdprune.runner import run as runner
from kdprune.tflite import Calibration

TRAINER = pathlib.Path(__file__).with_name("plain_keras_unequal.py")
RANGES = ("minmax", "percentile", "mse")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("networks", nargs="*", default=["bytes", "strided"])
    parser.add_argument("--data-dir", metavar="DIR")
    parser.add_argument("--models", metavar="DIR", help="where to keep or find models")
    parser.add_argument("--epochs", type=int, default=8, help="of the networks (8)")
    parser.add_argument("--qat-epochs", type=int, default=1, help="none by 0 (1)")
    parser.add_argument("--json", metavar="OUT", help="write the figures to a file")
    options = parser.parse_args()
    data = kdprune.load_dataset("cifar10", data_dir=options.data_dir)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        models = pathlib.Path(options.models or folder)
        for name in options.networks:
            path = models / f"{name}.keras"
            if not path.exists():
                train(name, path, data, folder, options.epochs)
            found[name] = bench(name, path, data, folder, options)
    if options.json:
        content = {"command": records.command(), "networks": found}
        content |= {"machine": records.machine(), "versions": records.versions()}
        _io.write_json(options.json, content)


def train(name, path, data, folder, epochs):
    """Trains a network by plain Keras 3, in a process of its own."""
    images = folder / "images.npz"
    if not images.exists():
        arrays = {"train": data.train.images, "labels": data.train.labels}
        arrays |= {"test": data.test.images, "test_labels": data.test.labels}
        np.savez(images, **arrays)
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow"}
    environment.pop("TF_USE_LEGACY_KERAS", None)
    command = [sys.executable, TRAINER, images, name, path, epochs]
    subprocess.run([*map(str, command)], env=environment, check=True)


def bench(name, path, data, folder, options):
    """Rows of all files made of one network, and of the network itself."""
    validation = data.validation
    taken = take_model(
        kdprune.load_model(path), images=validation.images, labels=validation.labels
    )
    model = taken.model
    rows = []

    def add(label, made, **more):
        if isinstance(made, bytes):
            file = folder / "made.tflite"
            file.write_bytes(made)
            more, made = {"bytes": len(made), **more}, file
        for part in ("validation", "test"):
            images, labels = getattr(data, part).images, getattr(data, part).labels
            right = predict(made, images).argmax(axis=1) == labels
            more[part] = 100 * float(right.mean())
        rows.append({"name": label, **more})
        print(
            f"{name:8} {label:52} {more['validation']:.2f} {more['test']:.2f}",
            flush=True,
        )

    images = data.calibration.images
    add("float", model)
    add("plain converter", kdprune.convert_tflite(model, "int8", images))
    if (content := by_litert(model, images, folder)) is not None:
        add("litert-quantizer, static int8", content)
    forms = {
        "as it is": model,
        "folded": kdprune.fold_batch_norm(model),
        "equalized": kdprune.equalize_channels(model, images),
    }
    for form, changed in forms.items():
        calibration = Calibration(changed, images)
        for ranges in RANGES:
            for corrected in (False, True):
                more = ", biases corrected" if corrected else ""
                content = calibration.convert(
                    range_method=ranges, correct_bias=corrected
                )
                add(f"{form}, {ranges}{more}", content)
    for method in ("auto", "qat") if options.qat_epochs else ("auto",):
        content, chosen = by_recipe(method, forms, folder / f"{name}-{method}", options)
        add(f"method: {method}", content, chosen=chosen)
    return rows


def by_litert(model, images, folder):
    """The static int8 of Google's quantizer, its own default ranges; None without."""
    try:
        from litert_quantizer import quantizer, recipe
    except ImportError:
        return None
    path = folder / "float.tflite"
    path.write_bytes(kdprune.convert_tflite(model))
    tool = quantizer.Quantizer(str(path), recipe.static_wi8_ai8())
    interpreter = kdprune.tflite.open_interpreter(path)
    ((signature, ends),) = interpreter.get_signature_list().items()
    (given,) = ends["inputs"]
    samples = [{given: image[None]} for image in to_float(images)]
    statistics = tool.calibrate({signature: samples})
    return bytes(tool.quantize(statistics).quantized_model)


def by_recipe(method, forms, folder, options):
    """What a `quantize` stage hands over, and what `auto` chose for half a point.

    Quantization-aware training starts from the equalized model, under the original.
    """
    folder.mkdir()
    stages = {}
    for name, form in (("net", "as it is"), ("equalized", "equalized")):
        path = folder / f"{name}.keras"
        kdprune.save_model(forms[form], path)
        stages[name] = {"kind": "load", "file": str(path), "input_range": [0, 1]}
    int8 = {"kind": "quantize", "from": "net", "method": "auto", "max_drop": 0.005}
    if method == "qat":
        training = {"epochs": options.qat_epochs, "learning_rate": 0.0005}
        training |= {"optimizer": "adam", "augment": {"crop": 2}}
        int8 = {"kind": "quantize", "from": "equalized", "method": "qat"}
        int8 |= {"teacher": "net", "training": training}
    loose = {"max_drop": 0.9, "max_disagreement": 0.9, "max_deviation": 0.9}
    stages |= {"int8": int8, "files": {"kind": "export", "from": "int8", **loose}}
    recipe = {"name": "bench", "data": {"dataset": "cifar10"}, "stages": stages}
    runner.run(parse_recipe(recipe), folder / "run", data_dir=options.data_dir)
    record = _io.read_json(folder / "run" / "int8" / "record.json")
    content = (folder / "run" / "files" / "int8.int8.tflite").read_bytes()
    return content, record["results"].get("chosen")


if __name__ == "__main__":
    main()
