"""Damages files of others and opens them; a program.

    damage_files.py KIND FOLDER FIRST COUNT

Each number from FIRST on is the seed of a file. Prints how many files were accepted
and how many refused in one line, by an error that the command shows as that line and
exit status 2. Anything else (another error, ten seconds of computing, memory beyond
4 GiB, an accepted file that is not what it should be) is told by its seed on standard
error and ends the program with status 1; a crash of a library by its signal.
"""

import copy
import io
import json
import random
import resource
import shutil
import signal
import struct
import sys
import traceback
import zipfile
from pathlib import Path

import numpy as np
import yaml

import kdprune  # noqa: F401  # It comes before TensorFlow.

ROOT = Path(__file__).parents[1]
MEMORY = 4 << 30
SECONDS = 10.0


class TooLong(BaseException):
    """Nothing that the package could take for an error of the file."""


def too_long(*_):
    raise TooLong(f"more than {SECONDS:.0f} s of computing")


# --- What is changed ---

ODD = [
    None, True, -1, 0, 0.5, 1e308, 10**30, float("nan"), float("inf"), "", "x", "8",
    "../..", "a" * 5000, "\0", "\u202e", [], {}, [[]], [1, 2], {"name": "x"}, {1: 2},
    {"kind": "train"}, "teacher", "train", "cifar10", "[1, 2",
]  # fmt: skip
YAML = [
    "&a [*a]", "{", "]", "- ", ": ", "<<: *x", "!!timestamp abc", "!!int x", "%TAG",
    "---", "\t", "#", "|", ">", "'", '"', "\\", "? ", "? [a]: b", "!!binary ====",
    "2020-01-01", "!!python/name:os.system", "!!set {a}", "1e400", ".inf",
    ".nan", "0x", "1_000", "~", "*training", "\ufeff",
]  # fmt: skip


def change_bytes(content, rng):
    """Some bytes of others' values, a part left out, twice, or cut off."""
    content = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 5, 30])):
        place = rng.randrange(max(1, len(content)))
        end = place + rng.choice([1, 2, 4, 8, 100])
        kind = rng.random()
        if kind < 0.6:
            odd = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
            content[place : place + 1] = bytes([odd])
        elif kind < 0.7:
            size = rng.choice([2, 4, 8])
            content[place : place + size] = rng.choice([b"\xff", b"\0", b"\x7f"]) * size
        elif kind < 0.8:
            del content[place:end]
        elif kind < 0.9:
            content[place:place] = content[place:end]
        elif kind < 0.95:
            content[place:place] = rng.randbytes(rng.choice([1, 4, 64]))
        else:
            del content[place:]
    return bytes(content)


def change_value(value, rng):
    """One value of nested lists and dictionaries is another, gone or moved."""
    value = copy.deepcopy(value)
    places = []

    def walk(item):
        if isinstance(item, dict | list):
            keys = list(item) if isinstance(item, dict) else range(len(item))
            for key in keys:
                places.append((item, key))
                walk(item[key])

    walk(value)
    for _ in range(rng.choice([1, 1, 2, 4])):
        item, key = rng.choice(places)
        kind = rng.random()
        try:
            if kind < 0.6:
                item[key] = rng.choice(ODD)
            elif kind < 0.75:
                del item[key]
            elif kind < 0.9:
                other, place = rng.choice(places)
                item[key] = copy.deepcopy(other[place])
            elif isinstance(item, dict):
                item[str(rng.choice(ODD))[:50]] = item.pop(key)
        except (KeyError, IndexError):
            pass  # What was there is gone.
    return value


def change_text(text, rng):
    """Lines are left out, doubled, moved and indented; marks of YAML are put in."""
    lines = text.splitlines()
    for _ in range(rng.choice([1, 1, 2, 4])):
        place = rng.randrange(len(lines))
        line, kind = lines[place], rng.randrange(6)
        at = rng.randrange(len(line) + 1)
        if kind == 0:
            lines[place] = line[:at] + rng.choice(YAML) + line[at:]
        elif kind == 1:
            lines[place] = line.split(":")[0] + ": " + rng.choice(YAML)
        elif kind == 2:
            lines.insert(rng.randrange(len(lines)), line)
        elif kind == 3:
            lines[place] = " " * rng.choice([1, 2, 9]) + line
        elif kind == 4:
            lines[place] = line.lstrip()
        elif len(lines) > 1:
            del lines[place]
    return "\n".join(lines) + "\n"


# --- What is opened: each makes a file by its seed and opens it ---


class Recipes:
    """Those that are shipped, damaged as text, as values or by `--set`."""

    def __init__(self, folder):
        self.path = folder / "recipe.yaml"
        self.texts = [path.read_text() for path in sorted((ROOT / "configs").iterdir())]

    def open(self, rng):
        from kdprune.config import load_recipe, parse_recipe
        from kdprune.runner.graph import plan

        text, overrides = rng.choice(self.texts), []
        kind = rng.randrange(4)
        if kind == 0:
            changed = change_bytes(text.encode(), rng)
        elif kind == 1:
            changed = change_text(text, rng).encode(errors="replace")
        elif kind == 2:
            value = change_value(yaml.safe_load(text), rng)
            changed = yaml.safe_dump(value, allow_unicode=True).encode()
        else:
            changed = text.encode()
            overrides = [self.override(yaml.safe_load(text), rng) for _ in range(2)]
        self.path.write_bytes(changed)
        recipe = load_recipe(self.path, overrides)
        nodes = plan(recipe)
        shown = recipe.model_dump(mode="json", by_alias=True, exclude_unset=True)
        again = parse_recipe(shown)
        assert again == recipe, "its own values make another recipe"
        assert [node.name for node in plan(again)] == [node.name for node in nodes]

    def override(self, content, rng):
        keys = []
        while isinstance(content, dict) and content and rng.random() < 0.9:
            keys.append(rng.choice(list(content)))
            content = content[keys[-1]]
        if rng.random() < 0.2:
            keys.append(rng.choice(["0", "", "x", "-1", "a" * 300]))
        value = rng.choice([*YAML, *map(str, ODD), "null", "{a: 1, a: 2}", "[" * 50])
        return ".".join(map(str, keys)) + rng.choice(["=", "=", "=", "", ":"]) + value


class Pickles:
    """The batches of CIFAR-10."""

    def __init__(self, folder):
        from kdprune.data import cifar10

        cifar10.IMAGES_PER_BATCH = 20
        cifar10.URL = "http://127.0.0.1:9/none"
        self.home = folder / "data"
        batches = self.home / "cifar-10-batches-py"
        batches.mkdir(parents=True)
        draw = np.random.default_rng(0)
        for name in (*cifar10.TRAIN_BATCHES, cifar10.TEST_BATCH):
            pixels = draw.integers(0, 256, (20, 3072), np.uint8)
            (batches / name).write_bytes(python2_pickle(pixels))
        self.batch = batches / "data_batch_2"
        self.whole = self.batch.read_bytes()
        # Of 61,440 bytes of pixels few are left: what is about them is damaged.
        size = struct.pack("<i", 61440)
        self.start = self.whole.index(b"T" + size) + 1 + len(size)

    def open(self, rng):
        from kdprune.data import load_dataset

        head, tail = self.whole[: self.start], self.whole[self.start + 61440 :]
        body = self.whole[self.start : self.start + 61440]
        part = rng.randrange(4)
        if part == 0:
            content = change_bytes(self.whole, rng)
        elif part < 3:
            content = change_bytes(head, rng) + body + tail
        else:
            content = head + body + change_bytes(tail, rng)
        self.batch.write_bytes(content)
        found = load_dataset(
            "cifar10", data_dir=self.home, validation=10, calibration=10
        )
        check_split(found.train, 90, (32, 32, 3), 10)
        check_split(found.test, 20, (32, 32, 3), 10)


def python2_pickle(pixels):
    """A batch as the official ones are: protocol 2, written by Python 2."""
    labels = b"".join(b"K" + bytes([number % 10]) for number in range(len(pixels)))
    shape = b"".join(b"M" + struct.pack("<H", side) for side in pixels.shape)
    content = pixels.tobytes()
    return (
        b"\x80\x02}(U\x04datacnumpy.core.multiarray\n_reconstruct\n"
        b"cnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01" + shape + b"\x86"
        b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNN"
        b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        b"T"
        + struct.pack("<i", len(content))
        + content
        + b"tbU\x06labels]("
        + labels
        + b"eu."
    )


class Images:
    """A folder of images of all forms that are read."""

    def __init__(self, folder):
        from PIL import Image

        self.home, self.whole = folder / "images", {}
        draw = np.random.default_rng(0)
        for label in ("cat", "dog"):
            (self.home / label).mkdir(parents=True)
            for number in range(10):
                suffix = ("png", "jpg", "bmp", "gif", "webp")[number % 5]
                pixels = draw.integers(0, 256, (12, 12, 3), np.uint8)
                file = self.home / label / f"{number}.{suffix}"
                Image.fromarray(pixels).save(file)
                self.whole[file] = file.read_bytes()

    def open(self, rng):
        from kdprune.data import load_dataset

        file = rng.choice(list(self.whole))
        content = self.whole[file]
        if rng.random() < 0.3:  # What says how large it is.
            content = change_bytes(content[:60], rng) + content[60:]
        else:
            content = change_bytes(content, rng)
        file.write_bytes(content)
        try:
            found = load_dataset(
                "folder", data_dir=self.home, validation=2, calibration=4, test=4
            )
            height, width, depth = found.image_shape
            sizes = [check_split(found.train, None, (height, width, depth), 2)]
            sizes.append(check_split(found.test, None, (height, width, depth), 2))
            assert sum(sizes) == 18, sizes
        finally:
            file.write_bytes(self.whole[file])


class Arrays:
    """A file of arrays."""

    def __init__(self, folder):
        self.path = folder / "set.npz"
        draw = np.random.default_rng(0)
        arrays = {
            "x_train": draw.integers(0, 256, (40, 6, 5, 3), np.uint8),
            "y_train": np.arange(40) % 4,
            "x_test": draw.integers(0, 256, (12, 6, 5, 3), np.uint8),
            "y_test": np.arange(12) % 4,
        }
        np.savez(self.path, **arrays)
        self.whole = self.path.read_bytes()
        with zipfile.ZipFile(self.path) as archive:
            self.members = {name: archive.read(name) for name in archive.namelist()}

    def open(self, rng):
        from kdprune.data import load_dataset

        if rng.random() < 0.4:
            self.path.write_bytes(change_bytes(self.whole, rng))
        else:  # The checksums are right, what they are of is not.
            members = dict(self.members)
            name = rng.choice(list(members))
            head, body = members[name][:128], members[name][128:]
            if rng.random() < 0.5:
                head = change_bytes(head, rng)
            elif rng.random() < 0.8:
                place = rng.randrange(len(body))
                body = body[:place] + rng.randbytes(1) + body[place + 1 :]
            else:
                body = change_bytes(body, rng)
            members[name] = head + body
            if rng.random() < 0.2:
                members[rng.choice(["x.npy", "y_train", "../a.npy"])] = members[name]
            made = io.BytesIO()
            method = rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
            with zipfile.ZipFile(made, "w", method) as archive:
                for name, content in members.items():
                    archive.writestr(name, content)
            self.path.write_bytes(made.getvalue())
        found = load_dataset(str(self.path), validation=4)
        check_split(found.train, None, found.image_shape, len(found.classes))
        check_split(found.test, None, found.image_shape, len(found.classes))


def check_split(split, count, shape, classes):
    images, labels = np.asarray(split.images), np.asarray(split.labels)
    assert images.shape[1:] == tuple(shape), images.shape
    assert images.dtype == np.uint8 or np.isfinite(images).all()
    assert len(images) == len(labels) and (count is None or len(images) == count)
    assert labels.min() >= 0 and labels.max() < classes
    return len(images)


class Benchmarks:
    """What `bench --import` reads: JSON and logs."""

    def __init__(self, folder):
        self.path = folder / "result.txt"
        latency = {"median_ms": 0.08, "p95_ms": 0.1, "avg_ms": 0.09, "max_ms": 0.2}
        self.content = {
            "model": "/tmp/model.tflite",
            "num_threads": 1,
            "latency": {"num_runs": 200, **latency},
        }
        self.log = (
            "INFO: Log parameter values verbosely: [0]\nINFO: Num threads: [1]\n"
            "INFO: Graph: [/data/local/tmp/a.tflite]\nINFO: Use xnnpack: [1]\n"
            "INFO: count=812 first=1034 curr=601 min=580 max=1034 avg=613.5 std=31\n"
            "INFO: count=1630 first=602 curr=607 min=579 max=2310 avg=611.2 std=55 "
            "p5=584 median=601 p95=668\n"
            "INFO: Inference timings in us: Init: 2125, Inference (avg): 611.2\n"
        )

    def open(self, rng):
        from kdprune.benchmark.phone import read_results

        kind = rng.randrange(3)
        if kind == 0:
            text = json.dumps(change_value(self.content, rng)).encode()
        else:
            text = (json.dumps(self.content), self.log)[kind - 1].encode()
            text = change_bytes(text, rng)
        self.path.write_bytes(text)
        for result in read_results([self.path]):
            json.dumps(result, allow_nan=False)


class Models:
    """Model files of both Keras, damaged below what a configuration says."""

    def __init__(self, folder):
        import keras as keras3
        import tf_keras

        self.whole = []
        for number, keras in enumerate((tf_keras, keras3)):
            image = keras.Input((8, 8, 3))
            x = keras.layers.Conv2D(4, 3, name="conv")(image)
            x = keras.layers.BatchNormalization(name="bn")(x)
            x = keras.layers.GlobalAveragePooling2D(name="pool")(keras.layers.ReLU()(x))
            model = keras.Model(image, keras.layers.Dense(3, name="out")(x))
            for suffix in ("keras", "h5"):
                path = folder / f"model{number}.{suffix}"
                model.save(path)
                self.whole.append((suffix, path.read_bytes()))
        self.folder = folder

    def open(self, rng):
        from kdprune.models import load_model

        suffix, content = rng.choice(self.whole)
        if suffix == "keras" and rng.random() < 0.7:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                members = {name: archive.read(name) for name in archive.namelist()}
            name = rng.choice(list(members))
            members[name] = change_bytes(members[name], rng)
            made = io.BytesIO()
            with zipfile.ZipFile(made, "w") as archive:
                for name, one in members.items():
                    archive.writestr(name, one)
            content = made.getvalue()
        else:
            content = change_bytes(content, rng)
        path = self.folder / f"damaged.{suffix}"
        path.write_bytes(content)
        model = load_model(path)
        assert len(model.outputs) >= 1


KINDS = {
    "recipes": Recipes,
    "pickles": Pickles,
    "images": Images,
    "arrays": Arrays,
    "benchmarks": Benchmarks,
    "models": Models,
}


def main():
    from kdprune.runner.errors import explain

    kind, folder, first, count = sys.argv[1:]
    folder = Path(folder) / kind
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    opened = KINDS[kind](folder)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * 4096
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    signal.signal(signal.SIGPROF, too_long)
    found, wrong = {"accepted": 0, "a_line": 0}, 0
    for seed in range(int(first), int(first) + int(count)):
        (folder / "seed").write_text(str(seed))  # For a crash.
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            opened.open(random.Random(seed))
            found["accepted"] += 1
        except (Exception, TooLong) as error:
            signal.setitimer(signal.ITIMER_PROF, 0)
            lines = explain(error)
            if isinstance(error, AssertionError) or not lines or not all(lines):
                wrong += 1
                print(f"{kind} {seed}:\n{traceback.format_exc()}", file=sys.stderr)
            else:
                found["a_line"] += 1
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
    print(json.dumps(found))
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
