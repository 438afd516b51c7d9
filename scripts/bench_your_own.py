"""Five classifiers of plain Keras 3, by `kdprune compress` with no option.

Each is trained, saved and made int8 by TensorFlow's converter and by litert-quantizer
in a process that knows nothing of kdprune (`plain_keras.py`), then `kdprune compress
MODEL --images IMAGES` is run as a user would, and the files are compared on the same
test images of CIFAR-10. The last two have a sigmoid: five labels that may apply at once
(macro F1), and animals against vehicles (AUC).

Usage:
    python scripts/bench_your_own.py --data-dir DIR [--work DIR] [--json OUT] [NAME ...]

Takes some twenty minutes on two cores. Nothing of CIFAR-10 is kept but in --work.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np
from PIL import Image

import kdprune
from kdprune import _io, records
from kdprune.evaluate import predict

PLAIN = pathlib.Path(__file__).with_name("plain_keras.py")
NAMES = ("tutorial", "mobilenet", "raw_bytes", "several_labels", "one_unit")
LABELS = ("animal", "flies", "swims", "hoofed", "of metal")
# Of airplane, automobile, bird, cat, deer, dog, frog, horse, ship, truck.
APPLY = np.array(
    [
        [0, 1, 0, 0, 1],
        [0, 0, 0, 0, 1],
        [1, 1, 0, 0, 0],
        [1, 0, 0, 0, 0],
        [1, 0, 0, 1, 0],
        [1, 0, 0, 0, 0],
        [1, 0, 1, 0, 0],
        [1, 0, 0, 1, 0],
        [0, 0, 1, 0, 1],
        [0, 0, 0, 0, 1],
    ],
    np.uint8,
)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", default=NAMES, metavar="NAME")
    parser.add_argument("--data-dir", metavar="DIR")
    parser.add_argument("--work", type=pathlib.Path, help="where to keep all of it")
    parser.add_argument("--epochs", type=int, default=6, help="of the originals (6)")
    parser.add_argument(
        "--images",
        type=int,
        nargs=3,
        default=(10_000, 1_500, 4_000),
        metavar="N",
        help="images to train, validate and test on (10000 1500 4000)",
    )
    parser.add_argument("--json", metavar="OUT", help="write the figures to a file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = options.work or pathlib.Path(folder)
        splits = draw(options)
        found = {name: bench(name, splits, work, options) for name in options.names}
    if options.json:
        content = {"command": records.command(), "models": found}
        content |= {"images": list(options.images)}
        content |= {"machine": records.machine(), "versions": records.versions()}
        _io.write_json(options.json, content)


def draw(options):
    """`{split: (images, classes)}` of CIFAR-10, the test images among the test's."""
    data = kdprune.load_dataset("cifar10", data_dir=options.data_dir)
    counts = dict(zip(("train", "validation", "test"), options.images, strict=True))
    return {
        name: (getattr(data, name).images[:count], getattr(data, name).labels[:count])
        for name, count in counts.items()
    }


def bench(name, splits, work, options):
    """The figures of one model, its original's and all its files'."""
    folder = work / name
    folder.mkdir(parents=True, exist_ok=True)
    targets = {
        split: targets_of(name, classes) for split, (_, classes) in splits.items()
    }
    arrays = {}
    for split, (images, _) in splits.items():
        arrays |= {f"x_{split}": images, f"y_{split}": targets[split]}
    np.savez(folder / "arrays.npz", **arrays)
    if not (folder / "scores.npz").exists():
        command = [sys.executable, PLAIN, name, folder / "arrays.npz", folder]
        command += ["--epochs", options.epochs]
        environment = {**os.environ, "KERAS_BACKEND": "tensorflow"}
        environment.pop("TF_USE_LEGACY_KERAS", None)
        subprocess.run([*map(str, command)], env=environment, check=True)
    images = folder / "arrays.npz"
    if name != "several_labels":
        images = folder / "images"
        write_images(images, splits, targets, kdprune_classes(name))
    made = folder / "made"
    command = [sys.executable, "-m", "kdprune", "compress", folder / "model.keras"]
    command += ["--images", images, "-o", made]
    started = time.perf_counter()
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    seconds = time.perf_counter() - started
    print(done.stdout[-3000:], done.stderr[-2000:], sep="\n")
    scores = dict(np.load(folder / "scores.npz"))
    scores.pop("seconds")
    rows = {}
    for label, file in (("converter", "converter.tflite"), ("litert", "litert.tflite")):
        if label in scores:
            rows[label] = {"bytes": (folder / file).stat().st_size}
    rows["original"] = {"bytes": (folder / "model.keras").stat().st_size}
    small = made / "model_uint8.tflite"
    if small.exists():
        predicted = predict(small, splits["test"][0])
        scores["kdprune"] = predicted
        rows["kdprune"] = {"bytes": small.stat().st_size}
    for label, values in scores.items():
        rows[label] |= figure(name, values, targets["test"])
        print(f"{name:15} {label:10}", rows[label], flush=True)
    return {"status": done.returncode, "seconds": round(seconds, 1), "files": rows}


def targets_of(name, classes):
    if name == "several_labels":
        return APPLY[classes]
    return APPLY[classes, 4].astype(np.int64) if name == "one_unit" else classes


def kdprune_classes(name):
    if name == "one_unit":
        return ("animal", "vehicle")
    return tuple("airplane automobile bird cat deer dog frog horse ship truck".split())


def write_images(folder, splits, targets, classes):
    """Class folders of PNG files, as users have them."""
    if folder.exists():
        return
    for split, (images, _) in splits.items():
        for number, (image, target) in enumerate(
            zip(images, targets[split], strict=True)
        ):
            place = folder / split / classes[int(target)]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(place / f"{number:05d}.png")


def figure(name, scores, targets):
    """Accuracy, macro F1 of several labels, or AUC of one unit, in percent."""
    if name == "several_labels":
        said = scores > 0.5
        both = (said & (targets == 1)).sum(axis=0)
        f1 = 2 * both / (said.sum(axis=0) + targets.sum(axis=0))
        return {"macro_f1": 100 * float(f1.mean())}
    if name == "one_unit":
        order = np.unique(scores[:, 0], return_inverse=True)[1]
        counts = np.bincount(order)
        ranks = (np.cumsum(counts) - (counts - 1) / 2)[order]  # Ties share a rank.
        ones = targets == 1
        most = ones.sum() * (~ones).sum()
        area = (ranks[ones].sum() - ones.sum() * (ones.sum() + 1) / 2) / most
        return {"auc": 100 * float(area)}
    return {"accuracy": 100 * float((scores.argmax(axis=1) == targets).mean())}


if __name__ == "__main__":
    main()
