"""Measures what kdprune's training costs beside the bare step and plain Keras.

All train the same model on generated images with the same batch, interleaved
(A B C A B C), so that a change of the machine's load meets all: ours, with
augmentation (crop, flip, cutout), checks and groups of steps as in a stage; the bare
step, a compiled function of one batch that is already there, in the same precision;
and float32 arrays fed to plain `model.fit`. Run it while nothing else runs.

Usage:
    python scripts/bench_training.py [--models resnet8 inverted_residual] [--json OUT]
"""

import argparse
import functools
import statistics
import time

import numpy as np
import tensorflow as tf

import kdprune
from kdprune import records, training
from kdprune.data import Split, batches
from kdprune.models.precision import cast_model

SETTINGS = {
    "resnet8": {"batch": 128, "images": 25_600, "arguments": {}},
    "inverted_residual": {"batch": 128, "images": 3_840, "arguments": {}},
    "resnet9": {"batch": 512, "images": 2_048, "arguments": {"width": 64}},
    "whitened_cnn": {"batch": 512, "images": 4_096, "arguments": {"width": 64}},
    "article_student": {"batch": 64, "images": 102_400, "arguments": {}},
}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each (5)")
    parser.add_argument("--json", metavar="OUT", help="write the figures to a file")
    options = parser.parse_args()
    precision = training.resolve_precision("auto")
    print(f"{records.machine()['processor']}, {precision} against float32")
    results = {}
    print("images per second: ours, bare step, plain fit")
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
            "bare_step": bare,
            "plain_fit": plain,
            "of_bare_step": ours / bare,
            "of_plain_fit": ours / plain,
        }
        print(
            f"{name:18} {ours:7.0f} {bare:7.0f} {plain:7.0f}   "
            f"{ours / bare:.2f} of the bare step, {ours / plain:.2f}x plain fit",
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
    batch = setting["batch"]
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (setting["images"], 32, 32, 3), dtype=np.uint8)
    split = Split(images, random.integers(0, 10, setting["images"]))
    floats = images.astype("float32") / 255
    steps = batches.steps_per_epoch(split, batch)

    def build(policy):
        model = kdprune.build_model(name, **setting["arguments"])
        return model if policy == "float32" else cast_model(model, policy)

    def compiled(model, together=1):
        model.compile(
            training.build_optimizer("sgd", 0.01, steps=10_000),
            loss=lambda y, z: training.cross_entropy(y, z),
            metrics=[training.accuracy_metric("softmax")],
            steps_per_execution=together,
        )
        return model

    def timed(train):
        started = time.perf_counter()
        train()
        return steps * batch / (time.perf_counter() - started)

    model = build(precision)
    ours = compiled(model, training.steps_together(model, batch))
    augment = {"crop": 4, "flip": True, "cutout": 8}
    stream = iter(
        batches.training_batches(split, batch, epochs=10_000, seed=0, augment=augment)
    )
    pipeline = functools.partial(
        training.fit,
        ours,
        lambda _: stream,
        None,
        epochs=1,
        steps=steps,
        verbose=False,
    )
    step = bare_step(build(precision))
    one = tf.constant(floats[:batch]), tf.constant(split.labels[:batch])
    plain = compiled(build("float32"))
    return (
        lambda: timed(pipeline),
        lambda: timed(lambda: [step(*one) for _ in range(steps)][-1].numpy()),
        lambda: timed(
            lambda: plain.fit(floats, split.labels, batch_size=batch, verbose=0)
        ),
    )


def bare_step(model):
    """A compiled function of images and labels that trains, and nothing else."""
    optimizer = training.build_optimizer("sgd", 0.01, steps=10_000)
    optimizer.build(model.trainable_variables)

    @tf.function
    def step(images, labels):
        with tf.GradientTape() as tape:
            logits = tf.cast(model(images, training=True), tf.float32)
            loss = tf.reduce_mean(training.cross_entropy(labels, logits))
        optimizer.minimize(loss, model.trainable_variables, tape=tape)
        return loss

    return step


if __name__ == "__main__":
    main()
