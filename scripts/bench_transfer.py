"""Transfer learning from plain Keras 3 through all of kdprune, to a verified kit.

A base of `keras.applications` inside a model (`plain_keras_transfer.py`) learns ten
generated shapes. Then a recipe takes its file as it is: int8 after training and by
quantization-aware training, a third of the multiply-accumulates removed as channels and
that in int8, all of them scored on test images, and a kit.

Usage:
    python scripts/bench_transfer.py [--work DIR] [--json OUT] [NETWORK…]

Takes about twenty minutes on two cores. With --work, what is done there is taken up.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import yaml
from plain_keras_transfer import NETWORKS

import kdprune
from kdprune import _io, records
from kdprune.data import load_dataset

TRAIN, VALIDATION, TEST = 2000, 500, 1000
SCRIPT = pathlib.Path(__file__).with_name("plain_keras_transfer.py")
# What makes the whole record, whichever networks it was last renewed for.
COMMAND = "python scripts/bench_transfer.py --json results/your_own/transfer.json"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--work", type=pathlib.Path, help="where to keep all of it")
    parser.add_argument("--json", type=pathlib.Path, metavar="OUT")
    options = parser.parse_args()
    if unknown := set(options.networks) - set(NETWORKS):
        parser.error(f"expected {', '.join(NETWORKS)}. Received: {unknown}")
    found = {}
    if options.json and options.json.exists():
        found = _io.read_json(options.json)["networks"]
    with tempfile.TemporaryDirectory() as folder:
        for name in options.networks:
            found[name] = bench(name, (options.work or pathlib.Path(folder)) / name)
            found[name]["machine"] = records.machine()
            found[name]["versions"] = records.versions()
            print(name, found[name], flush=True)
            if options.json:
                ordered = {key: found[key] for key in NETWORKS if key in found}
                content = {"command": COMMAND, "networks": ordered}
                content |= {"images": {"train": TRAIN, "test": TEST}}
                _io.write_json(options.json, content)


def bench(name, folder):
    """The figures of one network; its run is in the folder."""
    size = NETWORKS[name][2]
    folder.mkdir(parents=True, exist_ok=True)
    if not (model := folder / "model.keras").exists():
        data = data_for(size)
        train = load_dataset(data.pop("dataset"), **data).train
        np.savez(folder / "arrays.npz", images=train.images, labels=train.labels)
        environment = {**os.environ, "KERAS_BACKEND": "tensorflow"}
        environment.pop("TF_USE_LEGACY_KERAS", None)
        command = [sys.executable, SCRIPT, name, folder / "arrays.npz", model]
        subprocess.run([*map(str, command)], env=environment, check=True)
    macs = kdprune.count_macs(kdprune.take_model(model).model)
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(recipe_for(model, size, macs), sort_keys=False))
    run = [sys.executable, "-m", "kdprune", "run", recipe, "--output", folder / "run"]
    subprocess.run([*map(str, run)], check=True)
    return read(folder / "run")


def read(run):
    """What a finished run says of its models and files, and what is in its kit."""
    kept = "accuracy against_baseline agreement macs parameters bytes".split()
    models = {
        f"{row['name']} {row['dtype']}": {key: row.get(key) for key in kept}
        for row in _io.read_json(run / "metrics.json")["models"]
    }
    kit = sorted(path.name for path in (run / "kit" / "shapes").iterdir())
    return {"models": models, "kit": kit}


def data_for(size):
    """The images; the original learns from what the recipe trains on."""
    images = {"train_images": TRAIN + VALIDATION, "test_images": TEST}
    return {
        "dataset": "shapes",
        "image_size": size,
        **images,
        "validation": VALIDATION,
    }


def recipe_for(model, size, macs):
    """What is run, as a mapping."""
    learn = {"optimizer": "adam", "batch_size": 32}
    under = {"teacher": "original", "temperature": 2}
    return {
        "name": "transfer",
        "seed": 1,
        "data": data_for(size),
        "baseline": "original",
        "flagship": "aware",
        "stages": {
            "original": {"kind": "load", "file": str(model.resolve())},
            "int8": {"kind": "quantize", "from": "original", "method": "ptq"},
            "aware": {
                "kind": "quantize",
                "from": "original",
                "method": "qat",
                "training": {**learn, "epochs": 2, "learning_rate": 0.0001},
                **under,
            },
            "smaller": {
                "kind": "prune_channels",
                "from": "original",
                "target_macs": int(macs * 2 / 3),
                "training": {**learn, "epochs": 5, "learning_rate": 0.001},
                **under,
            },
            "smaller_int8": {"kind": "quantize", "from": "smaller", "method": "ptq"},
            "export": {"kind": "export", "from": ["int8", "aware", "smaller_int8"]},
            "evaluate": {
                "kind": "evaluate",
                "from": ["original", "smaller", "export"],
                "latency": False,
            },
            "kit": {"kind": "kit", "from": "evaluate", "name": "shapes"},
            "report": {"kind": "report", "from": "evaluate"},
        },
    }


if __name__ == "__main__":
    main()
