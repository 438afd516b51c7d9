"""Every family of `keras.applications` through doctor, channel pruning and int8.

Each learns ten kinds of images for a few steps and is saved by plain Keras 3 in a
process of its own (`plain_keras_families.py`), which leaves what it says of 200 other
images. Then kdprune takes the file as any other: the diagnosis; float32 and int8 files
after training; three channels in ten removed, which must equal the original with these
channels at zero; and an int8 file of that, once it has learned for as many steps as the
original. Every file's scores are compared with those of Keras 3, or of the pruned model
it was made from.

Usage:
    python scripts/bench_families.py [--work DIR] [--json OUT] [FAMILY ...]

Takes about half an hour on two cores. With --json the figures of families that were
not named stay as they are.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np
import plain_keras_families as plain
import tf_keras as keras

import kdprune
from kdprune import _io, doctor, records
from kdprune.evaluate import predict
from kdprune.prune.channels.surgery import with_zeros

RATIO = 0.3
# What makes the whole record, whichever families it was last renewed for.
COMMAND = "python scripts/bench_families.py --json results/your_own/families.json"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("families", nargs="*", default=plain.FAMILIES, metavar="FAMILY")
    parser.add_argument("--work", type=pathlib.Path, help="where to keep the models")
    parser.add_argument("--json", type=pathlib.Path, metavar="OUT")
    options = parser.parse_args()
    found = {}
    if options.json and options.json.exists():
        found = _io.read_json(options.json)["families"]
    if unknown := set(options.families) - set(plain.FAMILIES):
        known = ", ".join(plain.FAMILIES)
        parser.error(f"expected families out of {known}. Received: {unknown}")
    with tempfile.TemporaryDirectory() as folder:
        for family in options.families:
            try:
                found[family] = bench(family, (options.work or pathlib.Path(folder)))
            except ValueError as error:
                print(f"{family} is refused: {error}", flush=True)
                continue
            print(family, found[family], flush=True)
            if options.json:
                content = {"command": COMMAND, "families": ordered(found)}
                content |= {"pruning_ratio": RATIO, "machine": records.machine()}
                content["versions"] = records.versions()
                _io.write_json(options.json, content)


def bench(family, work):
    """The figures of one family."""
    folder = work / family
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "arrays.npz").exists():
        environment = {**os.environ, "KERAS_BACKEND": "tensorflow"}
        environment.pop("TF_USE_LEGACY_KERAS", None)
        command = [sys.executable, plain.__file__, family, folder]
        subprocess.run([*map(str, command)], env=environment, check=True)
    arrays = dict(np.load(folder / "arrays.npz"))
    given = tuple(map(int, arrays["input_range"]))
    right = arrays["scores"].argmax(axis=1) == arrays["labels"]
    path = folder / "model.keras"

    started = time.process_time()
    diagnosis = doctor.diagnose(path, input_range=given)
    figures = {
        "network": plain.FAMILIES[family][0],
        "parameters": sum(row.parameters for row in diagnosis.rows),
        "macs": sum(row.macs for row in diagnosis.rows),
        "accuracy": float(right.mean()),
        "doctor": {
            "status": diagnosis.status,
            "obstacles": [str(one) for one in diagnosis.obstacles],
            "cpu_seconds": round(time.process_time() - started, 1),
            "deviation": diagnosis.proof and diagnosis.proof.deviation,
        },
    }
    in_float = diagnosis.file.get("float_layers", [])
    model = kdprune.take_model(path, input_range=given).model
    compared = {"float32": (model, (), arrays["scores"])}
    compared["int8"] = (model, in_float, arrays["scores"])

    plan = kdprune.plan_channels(model, RATIO, scope="local")
    pruned = plan.apply()
    unit = arrays["images"].astype(np.float32) / np.float32(255)
    masked = np.asarray(with_zeros(plan.graph, plan.removed, [unit[:20]])[0])
    spread = float(masked.std(axis=0).max())
    deviation = np.abs(pruned.predict(unit[:20], verbose=0) - masked).max() / spread
    figures["pruned"] = {
        "macs": plan.macs[1],
        "parameters": plan.parameters[1],
        "deviation_from_masked": float(deviation),
    }
    # What is left has to learn again: without, a rounding decides what it says.
    learned = arrays["learned"].astype(np.float32) / np.float32(255)
    labels = np.arange(len(learned)) % plain.CLASSES
    plain.train(keras, pruned, learned, labels, gives_logits=True)
    kdprune.recalibrate_batch_norm(pruned, arrays["learned"])
    plain.fit_last(keras, pruned, learned, labels)
    scores = predict(pruned, arrays["images"])
    right = scores.argmax(axis=1) == arrays["labels"]
    figures["pruned"]["accuracy"] = float(right.mean())
    compared["pruned_int8"] = (pruned, in_float, scores)

    files = {}
    for name, (source, kept, expected) in compared.items():
        dtype = name.removeprefix("pruned_")
        calibration = None if dtype == "float32" else arrays["calibration"]
        content = kdprune.convert_tflite(source, dtype, calibration, float_layers=kept)
        file = folder / f"{name}.tflite"
        _io.write_file(file, content)
        files[name] = compare(predict(file, arrays["images"]), expected)
        files[name] |= {"bytes": len(content), "float_layers": len(kept)}
    return {**figures, "files": files}


def ordered(found):
    """The record's families in the script's order, whenever each was measured."""
    return {name: found[name] for name in plain.FAMILIES if name in found}


def compare(scores, expected):
    """How far probabilities are from those that they should be."""
    largest = np.abs(scores - expected).max(axis=1)
    return {
        "same_class": float((scores.argmax(axis=1) == expected.argmax(axis=1)).mean()),
        "mean_deviation": float(largest.mean()),
        "largest_deviation": float(largest.max()),
        "classes_predicted": len(set(expected.argmax(axis=1).tolist())),
    }


if __name__ == "__main__":
    main()
