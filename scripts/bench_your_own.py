"""Classifiers of plain Keras 3, by `kdprune compress` with no option.

Each is trained, saved and made int8 by TensorFlow's converter and by litert-quantizer,
where that is installed, in a process that knows nothing of kdprune (`plain_keras.py`).
Then `kdprune compress MODEL --images IMAGES` is run as a user would, and all files are
compared on the same test images of CIFAR-10, with intervals of the differences. With a
wrong pixel range, or with labels in a wrong order, it has to refuse the same model.

Five are different networks: a tutorial's, a MobileNetV2 (images of 64 x 64), one for
bytes, one of five labels that may apply at once (macro F1), and animals against
vehicles by one unit (AUC). `tutorial_*` are other forms of the first one, and `half` is
the first one with at most half of its MACs, within two points. `first_steps` counts the
seconds that the README's three commands take with the first one, from an environment
with nothing in it, and those of the plain converter's script.

Usage:
    python scripts/bench_your_own.py --data-dir DIR [--work DIR] [--json OUT] [NAME ...]

Takes about half an hour on two cores. Nothing of CIFAR-10 is kept but in --work, where
trained models are found again. What the record in OUT says of others is kept.
"""

import argparse
import os
import pathlib
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import venv

import numpy as np
from PIL import Image

import kdprune
from kdprune import _io, records
from kdprune.evaluate import predict

PLAIN = pathlib.Path(__file__).with_name("plain_keras.py")
FIVE = ("tutorial", "mobilenet", "raw_bytes", "several_labels", "one_unit")
FORMS = ("h5", "bytes", "signed", "standardized")
NAMES = (*FIVE, *(f"tutorial_{form}" for form in FORMS), "half", "first_steps")
ROOT = PLAIN.parents[1]
CONVERT = PLAIN.with_name("plain_keras_convert.py")
SIZES = {"mobilenet": 64}  # Height and width; of others, that of CIFAR-10.
EPOCHS = {"mobilenet": 12}
# What is not the range of a model: of the other usual ones.
WRONG = {
    "0,255": ("0,1", "-1,1"),
    "-1,1": ("0,255", "0,1"),
    "imagenet": ("0,255", "-1,1"),
}
RANGES = {
    "mobilenet": "-1,1",
    "tutorial_signed": "-1,1",
    "tutorial_standardized": "imagenet",
}
CLASSES = tuple("airplane automobile bird cat deer dog frog horse ship truck".split())
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
    parser.add_argument(
        "--images",
        type=int,
        nargs=3,
        default=(10_000, 1_500, 10_000),
        metavar="N",
        help="images to train, validate and test on (10000 1500 10000)",
    )
    parser.add_argument("--json", metavar="OUT", help="write the figures to a file")
    options = parser.parse_args()
    if unknown := set(options.names) - set(NAMES):
        parser.error(f"expected names out of {', '.join(NAMES)}. Received: {unknown}")
    with tempfile.TemporaryDirectory() as folder:
        work = options.work or pathlib.Path(folder)
        splits = draw(options)
        for name in options.names:
            steps = name == "first_steps"
            found = first_steps(splits, work) if steps else bench(name, splits, work)
            if options.json:
                write(options, name, found)


def write(options, name, found):
    """Puts what was found of a model into the record, beside what it says of others."""
    pathlib.Path(options.json).parent.mkdir(parents=True, exist_ok=True)
    content = _io.read_json(options.json) or {"models": {}}
    content["command"] = "python scripts/bench_your_own.py --data-dir DIR"
    if name == "first_steps":
        content[name] = found
    else:
        content["models"][name] = found | {"images": list(options.images)}
    models = content["models"]
    content["models"] = {name: models[name] for name in NAMES if name in models}
    content.pop("images", None)  # Each model says its own.
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


def bench(name, splits, work):
    """The figures of one model, its original's and all its files'."""
    source = "tutorial" if name == "half" else name
    folder = work / source
    model, images = prepare(source, splits, folder)
    made = folder / ("half" if name == "half" else "made")
    shutil.rmtree(made, ignore_errors=True)
    more = []
    if name == "half":
        macs = kdprune.count_macs(kdprune.take_model(model).model)
        more = ["--target-macs", macs // 2, "--max-drop", 0.02]
    found = compress(model, images, made, *more)
    found["options"] = [*map(str, more)]
    arrays = np.load(arrays_of(folder))
    test, targets = arrays["x_test"], arrays["y_test"]
    kept = np.load(folder / "scores.npz")
    scores = {"original": kept["original"]}
    files = {"original": {"bytes": model.stat().st_size}}
    for label in ("converter", "litert"):
        if label in kept and name != "half":
            path = folder / f"{label}.tflite"
            scores[label] = kept[label]
            files[label] = {"bytes": path.stat().st_size}
    small = made / "model_uint8.tflite"
    if small.exists():
        scores["kdprune"] = predict(small, test)
        files["kdprune"] = {"bytes": small.stat().st_size}
    for label, values in scores.items():
        files[label] |= {measure(name): figure(name, values, targets)}
        if label not in ("original", "kdprune") and small.exists():
            against = paired(name, values, scores["kdprune"], targets)
            found[f"against_{label}"] = against
    if small.exists():
        against = paired(name, scores["original"], scores["kdprune"], targets)
        found["against_original"] = against
    found |= {"measure": measure(name), "files": files}
    if name != "half":
        found["refused"] = refusals(name, model, images, folder / "refused")
    print(name, found, flush=True)
    return found


def first_steps(splits, work):
    """Seconds of both ways with the first model, and what is installed before."""
    model, images = prepare("tutorial", splits, work / "tutorial")
    folder = work / "first_steps"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    shutil.copy(model, folder / "my_model.keras")
    (folder / "photos").symlink_to(images.absolute())
    outside = {key: os.environ[key] for key in os.environ if key != "PYTHONPATH"}
    outside.pop("TF_USE_LEGACY_KERAS", None)

    def timed(*command, cwd=folder, environment="env"):
        path = f"{folder / environment / 'bin'}{os.pathsep}{outside['PATH']}"
        started = time.perf_counter()
        done = subprocess.run(
            [*map(str, command)],
            cwd=cwd,
            env={**outside, "PATH": path},
            capture_output=True,
            text=True,
        )
        seconds = round(time.perf_counter() - started, 1)
        print(done.stdout[-1500:], done.stderr[-1500:], sep="\n", flush=True)
        assert done.returncode == 0, command
        said.append(done.stdout)
        return seconds

    said: list[str] = []

    found = {}
    for name, steps in {
        "kdprune": {
            "install": "pip install . -c constraints.txt",
            "compress": "kdprune compress my_model.keras --images photos/",
            "selftest": "python my_model-compressed/kit/my_model/selftest.py",
        },
        "converter": {
            "install": "pip install tensorflow pillow -c constraints.txt",
            "convert": f"python {CONVERT} my_model.keras photos/ made.tflite",
        },
    }.items():
        venv.create(folder / name, with_pip=True)
        seconds = {
            step: timed(
                *command.split(),
                cwd=ROOT if step == "install" else folder,
                environment=name,
            )
            for step, command in steps.items()
        }
        install = seconds.pop("install")
        found[name] = {"lines": len(steps), "install": install, "seconds": seconds}
    found["converter"]["lines"] = code_lines(CONVERT)
    # As each way says it itself.
    scored = _io.read_json(folder / "my_model-compressed" / "metrics.json")["models"]
    (ours,) = (one for one in scored if one["name"] == "int8_int8")
    found["kdprune"]["accuracy"] = 100 * ours["accuracy"]
    (theirs,) = re.findall(r"int8 file ([\d.]+)%", said[-1])
    found["converter"]["accuracy"] = float(theirs)
    return found


def code_lines(path):
    """How many lines of a program are code: no docstring, comment or empty line."""
    text = path.read_text()
    lines = text[text.index("import") :].splitlines()
    return sum(bool(line.strip()) and line.strip()[0] != "#" for line in lines)


def prepare(name, splits, folder):
    """Trains a model by plain Keras 3; the paths of it and of its images."""
    folder.mkdir(parents=True, exist_ok=True)
    images = arrays_of(folder)
    if not images.exists():
        images.parent.mkdir(exist_ok=True)
        arrays = {}
        if name == "several_labels":
            arrays["classes"] = np.array(LABELS)
        for split, (pixels, classes) in splits.items():
            arrays[f"x_{split}"] = resized(pixels, SIZES.get(name))
            arrays[f"y_{split}"] = targets_of(name, classes)
        np.savez(images, **arrays)
    if not (folder / "scores.npz").exists():
        command = [sys.executable, PLAIN, name, images, folder]
        command += ["--epochs", EPOCHS.get(name, 6)]
        environment = {**os.environ, "KERAS_BACKEND": "tensorflow"}
        environment.pop("TF_USE_LEGACY_KERAS", None)
        subprocess.run([*map(str, command)], env=environment, check=True)
    if name != "several_labels":
        arrays, images = np.load(images), images.with_name("images")
        write_images(images, arrays, classes_of(name))
    (model,) = (path for path in folder.glob("model.*") if path.suffix != ".tflite")
    return model, images


def arrays_of(folder):
    """Where the images of a model are; those of the same network are shared."""
    name = "tutorial" if folder.name.startswith("tutorial") else folder.name
    return folder.with_name(name) / "arrays.npz"


def resized(images, size):
    if size is None:
        return images
    made = [Image.fromarray(image).resize((size, size)) for image in images]
    return np.stack([np.asarray(image) for image in made])


def compress(model, images, made, *more):
    """Runs the command as users do: its status, time, and what it chose."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    done = run(model, images, made, *more)
    seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(done.stdout[-3000:], done.stderr[-2000:], sep="\n", flush=True)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    found = {"status": done.returncode, "seconds": round(seconds, 1)}
    found["processor_seconds"] = round(used, 1)
    record = _io.read_json(made / "int8" / "record.json")
    if record:
        attempts = record["results"]["attempts"]
        found["chosen"] = record["results"]["chosen"]
        found["attempts"] = [
            {key: one.get(key) for key in ("name", "seconds", "drop", "drop_bound")}
            for one in attempts
        ]
    return found


def run(model, images, made, *more):
    command = [sys.executable, "-m", "kdprune", "compress", model, "--images", images]
    command += ["-o", made, *more]
    return subprocess.run([*map(str, command)], capture_output=True, text=True)


def refusals(name, model, images, folder):
    """What the command says where a pixel range or the labels' order is wrong."""
    labels = folder.with_name("labels.txt")
    first, *others = classes_of(name)
    labels.write_text("\n".join([others[-1], *others[:-1], first]) + "\n")
    wrong = [f"--input-range={one}" for one in WRONG[RANGES.get(name, "0,255")]]
    options = [*wrong, f"--labels={labels}"] if name in FIVE else wrong[:1]
    found = []
    for option in options:
        shutil.rmtree(folder, ignore_errors=True)
        done = run(model, images, folder, option)
        said = done.stderr.strip().replace(f"{model.parent}{os.sep}", "")
        option = option.replace(f"{labels.parent}{os.sep}", "")
        found.append({"option": option, "status": done.returncode, "said": said})
        assert not (folder / "model_int8.tflite").exists() or not done.returncode
    return found


def targets_of(name, classes):
    if name == "several_labels":
        return APPLY[classes]
    return APPLY[classes, 4].astype(np.int64) if name == "one_unit" else classes


def classes_of(name):
    if name == "several_labels":
        return LABELS
    return ("animal", "vehicle") if name == "one_unit" else CLASSES


def write_images(folder, arrays, classes):
    """Class folders of PNG files, as users have them."""
    if folder.exists():
        return
    for split in ("train", "validation", "test"):
        pairs = zip(arrays[f"x_{split}"], arrays[f"y_{split}"], strict=True)
        for number, (image, target) in enumerate(pairs):
            place = folder / split / classes[int(target)]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(place / f"{number:05d}.png")


def measure(name):
    return {"several_labels": "macro_f1", "one_unit": "auc"}.get(name, "accuracy")


def figure(name, scores, targets):
    """Accuracy, macro F1 of several labels, or AUC of one unit, in percent."""
    if name == "several_labels":
        said = scores > 0.5
        both = (said & (targets == 1)).sum(axis=0)
        f1 = 2 * both / (said.sum(axis=0) + targets.sum(axis=0))
        return 100 * float(f1.mean())
    if name == "one_unit":
        order = np.unique(scores[:, -1], return_inverse=True)[1]
        counts = np.bincount(order)
        ranks = (np.cumsum(counts) - (counts - 1) / 2)[order]  # Ties share a rank.
        ones = targets == 1
        most = ones.sum() * (~ones).sum()
        area = (ranks[ones].sum() - ones.sum() * (ones.sum() + 1) / 2) / most
        return 100 * float(area)
    return 100 * float((scores.argmax(axis=1) == targets).mean())


def paired(name, before, after, targets, draws=2_000):
    """How much better the second is, in points, with a 95 % interval by bootstrap."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(draws):
        of = rng.integers(0, len(targets), len(targets))
        one, other = (figure(name, s[of], targets[of]) for s in (before, after))
        found.append(other - one)
    low, high = np.percentile(found, [2.5, 97.5])
    difference = figure(name, after, targets) - figure(name, before, targets)
    return {"points": difference, "interval": [float(low), float(high)]}


if __name__ == "__main__":
    main()
