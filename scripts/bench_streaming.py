"""Measures what images that stay on a disk cost, against images held in memory.

Writes a folder of generated images, and then, each in a process of its own:

    memory  the peak of anonymous memory (RssAnon: mapped pages are not it) of a whole
            run, train, quantize, export and evaluate, with images held in memory and
            mapped, and with a fifth of them
    speed   batches a second of both, interleaved (held, mapped, held, mapped), as the
            ratio of mapped to held in each round: batches as they are, augmented,
            in evaluation, and through training steps of a small network

Usage:
    python scripts/bench_streaming.py small|large [--only memory|speed] [--json OUT]

small are 30,000 PNG files of 32x32, large 5,000 JPEG files of 224x224. The user's cache
is not touched.
"""

import argparse
import json
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np
from PIL import Image

CASES = {"small": (30_000, 32, "png"), "large": (5_000, 224, "jpg")}
AUGMENT = {"crop": 4, "flip": True, "cutout": 8}
CLASSES, BATCH, WARM = 10, 64, 6
# Batches of one measurement, by the images' size.
BATCHES = {32: 400, 224: 30}


def main():
    if sys.argv[1:2] == ["--child"]:
        return print(json.dumps(child(*sys.argv[2:])))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--images", type=int, help="files (30000, 5000)")
    parser.add_argument("--rounds", type=int, default=5, help="of speed (5)")
    parser.add_argument("--only", choices=("memory", "speed"), help="one of the two")
    parser.add_argument("--json", metavar="OUT", help="write the figures to a file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        result = measure(options, pathlib.Path(place))
    if options.json:
        from kdprune import records

        content = {"command": records.command(), **result}
        content |= {"machine": records.machine(), "versions": records.versions()}
        records.write_json(options.json, content)
    return None


def measure(options, place):
    count, size, suffix = CASES[options.case]
    count = options.images or count
    folders = {}
    numbers = (count,) if options.only == "speed" else (count, count // 5)
    for number in numbers:
        folders[number] = write_images(place / str(number), number, size, suffix)
    result = {"images": count, "size": size, "rss_anon_mib": {}, "seconds": {}}
    for number, folder in folders.items() if options.only != "speed" else ():
        for kind in ("held", "mapped"):
            name = f"{kind}, {number:,} images"
            found = start("memory", folder, place / "cache", kind, size)
            result["rss_anon_mib"][name] = found["peak"]
            result["seconds"][name] = found["seconds"]
            said = f"RssAnon {found['peak']:.0f} MiB, {found['seconds']:.0f} s"
            print(f"{name}: {said}", flush=True)
    if options.only == "memory":
        return result
    result["ratios"] = start(
        "speed", folders[count], place / "cache", options.rounds, size
    )
    for name, ratios in result["ratios"].items():
        listed = " ".join(f"{ratio:.3f}" for ratio in ratios)
        print(f"{name}: mapped / held {statistics.median(ratios):.3f} of {listed}")
    return result


def write_images(folder, count, size, suffix):
    """Smooth noise: a few grey fields, blown up, and a hue for the class."""
    random = np.random.default_rng(0)
    for index in range(count):
        label = index % CLASSES
        coarse = random.integers(0, 200, (size // 8, size // 8, 3), np.uint8)
        coarse[..., label % 3] += np.uint8(5 * label)
        image = Image.fromarray(coarse).resize((size, size), Image.Resampling.BILINEAR)
        part = "test" if index // CLASSES % 10 == 0 else "train"
        path = folder / part / str(label) / f"{index}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    return folder


def start(*arguments):
    command = [sys.executable, __file__, "--child", *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        sys.exit(run.stderr)
    return json.loads(run.stdout.splitlines()[-1])


def child(what, folder, cache_dir, argument, size):
    if what == "speed":
        return speed(folder, cache_dir, int(argument), int(size))
    return memory(folder, cache_dir, argument, int(size))


def network(size):
    import tf_keras as keras

    image = keras.Input((size, size, 3))
    stride = max(2, size // 28)
    x = keras.layers.Conv2D(16, 3, stride, "same", activation="relu")(image)
    x = keras.layers.Conv2D(32, 3, 2, "same", activation="relu")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    # Zeros, lest chance make it right more often on pixels of another range.
    x = keras.layers.Dense(CLASSES, kernel_initializer="zeros")(x)
    return keras.Model(image, x, name="net")


def memory(folder, cache_dir, kind, size):
    """The peak of RssAnon, MiB, in a whole run, and how long it took."""
    import os

    from kdprune import models
    from kdprune.config import parse_recipe
    from kdprune.data import decode
    from kdprune.runner import run as runner

    decode.IN_MEMORY = 2**60 if kind == "held" else 0
    os.environ["KDPRUNE_CACHE_DIR"] = cache_dir
    training = {"epochs": 1, "batch_size": BATCH, "precision": "float32"}
    training["augment"] = {**AUGMENT}
    ended, peaks = threading.Event(), [0]
    watch = threading.Thread(target=_watch, args=(ended, peaks))
    with tempfile.TemporaryDirectory() as place:
        net = pathlib.Path(place) / "net.keras"
        models.save_model(network(size), net)
        own = {"file": str(net), "input_range": [0, 1]}
        kept = {"max_disagreement": 0.9, "max_drop": 0.9, "on_refusal": "keep"}
        recipe = {
            "name": "streaming",
            "data": {"dataset": "folder", "path": folder, "image_size": size},
            "stages": {
                "net": {"kind": "train", "model": own, "training": training},
                "int8": {"kind": "quantize", "from": "net"},
                "files": {"kind": "export", "from": ["int8"], **kept},
                "measured": {"kind": "evaluate", "from": ["files"], "latency": False},
            },
        }
        watch.start()
        began = time.perf_counter()
        runner.run(parse_recipe(recipe), pathlib.Path(place) / "run")
        seconds = time.perf_counter() - began
    ended.set()
    watch.join()
    return {"peak": peaks[0] / 1024, "seconds": seconds}


def _watch(ended, peaks):
    while not ended.wait(0.02):
        status = pathlib.Path("/proc/self/status").read_text()
        peaks[0] = max(peaks[0], int(re.search(r"RssAnon:\s+(\d+)", status)[1]))


def speed(folder, cache_dir, rounds, size):
    """The ratios mapped / held of batches a second, a round each, by what is done."""
    import tf_keras as keras

    from kdprune.data import Split, decode, load_dataset
    from kdprune.data.batches import evaluation_batches, training_batches

    decode.IN_MEMORY = 0
    data = load_dataset("folder", path=folder, image_size=size, cache_dir=cache_dir)
    mapped = data.train
    held = Split(np.asarray(mapped.images), mapped.labels)
    model = network(size)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss)
    step = model.make_train_function()

    def drawn(split, augment):
        return training_batches(split, BATCH, epochs=100, seed=0, augment=augment)

    def read(batches):
        next(batches)

    kinds = {
        "as they are": (lambda split: drawn(split, None), read),
        "augmented": (lambda split: drawn(split, AUGMENT), read),
        "evaluation": (lambda split: evaluation_batches(split, BATCH).repeat(), read),
        "training steps": (lambda split: drawn(split, AUGMENT), step),
    }
    return {
        name: [_ratio(make, use, held, mapped, BATCHES[size]) for _ in range(rounds)]
        for name, (make, use) in kinds.items()
    }


def _ratio(make, use, held, mapped, count):
    seconds = []
    for split in (held, mapped):
        batches = iter(make(split))
        for _ in range(WARM):
            use(batches)
        began = time.perf_counter()
        for _ in range(count):
            use(batches)
        seconds.append(time.perf_counter() - began)
    return seconds[0] / seconds[1]


if __name__ == "__main__":
    main()
