"""Measures kdprune's training speed against a plain float32 `model.fit`.

All train the same model on the same generated images with the same batch,
interleaved (A B C A B C), so that a change of the machine's load meets all: ours with
augmentation (crop, flip, cutout), ours without, and arrays fed to `fit`.

Usage:
    python scripts/bench_training.py [--models resnet8 resnet9] [--json OUT]
"""

import argparse
import functools
import statistics
import time

import numpy as np

import kdprune
from kdprune import records, training
from kdprune.data import Split, batches
from kdprune.models.precision import cast_model

SETTINGS = {
    "resnet8": {"batch": 128, "images": 12_800, "arguments": {}},
    "resnet9": {"batch": 512, "images": 2_048, "arguments": {"width": 64}},
    "whitened_cnn": {"batch": 512, "images": 4_096, "arguments": {"width": 64}},
    "article_student": {"batch": 64, "images": 25_600, "arguments": {}},
}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each (3)")
    parser.add_argument("--json", metavar="OUT", help="write the figures to a file")
    options = parser.parse_args()
    precision = training.resolve_precision("auto")
    print(f"{records.machine()['processor']}, {precision} against float32")
    results = {}
    print("images per second: ours augmented, ours not augmented, plain fit")
    for name in options.models:
        epochs = _epochs(name, precision)
        speeds = [[epoch() for epoch in epochs] for _ in range(options.rounds + 1)]
        # The first round traces and fills caches.
        medians = [
            statistics.median(column) for column in zip(*speeds[1:], strict=True)
        ]
        ours, bare, plain = medians
        results[name] = {
            "ours": ours,
            "ours_not_augmented": bare,
            "plain_fit": plain,
            "ratio": ours / plain,
            "augmented_epoch_costs": bare / ours,
        }
        print(
            f"{name:16} {ours:7.0f} {bare:7.0f} {plain:7.0f}   {ours / plain:.2f}x "
            f"plain fit; an augmented epoch costs {bare / ours:.2f} of one without",
            flush=True,
        )
    if options.json:
        content = {"command": records.command(), "precision": precision}
        content |= {"images_per_second": results, "machine": records.machine()}
        content["versions"] = records.versions()
        records.write_json(options.json, content)


def _epochs(name, precision):
    """Three functions, each training one epoch and returning images per second."""
    setting = SETTINGS[name]
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (setting["images"], 32, 32, 3), dtype=np.uint8)
    split = Split(images, random.integers(0, 10, setting["images"]))
    floats = images.astype("float32") / 255
    augment = {"crop": 4, "flip": True, "cutout": 8}

    def build(policy):
        model = kdprune.build_model(name, **setting["arguments"])
        if policy != "float32":
            model = cast_model(model, policy)
        optimizer = training.build_optimizer("sgd", 0.01, steps=10_000)
        model.compile(optimizer, loss=lambda y, z: training.cross_entropy(y, z))
        return model

    steps = batches.steps_per_epoch(split, setting["batch"])

    def timed(model, *arguments, **options):
        started = time.perf_counter()
        model.fit(*arguments, verbose=0, **options)
        return steps * setting["batch"] / (time.perf_counter() - started)

    def ours(augment):
        model = build(precision)
        stream = batches.training_batches(
            split, setting["batch"], epochs=10_000, seed=0, augment=augment
        )
        return functools.partial(timed, model, iter(stream), steps_per_epoch=steps)

    plain = functools.partial(
        timed, build("float32"), floats, split.labels, batch_size=setting["batch"]
    )
    return ours(augment), ours(None), plain


if __name__ == "__main__":
    main()
