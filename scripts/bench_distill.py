"""Measures what learning from a teacher costs, against training the student alone.

All train the same resnet8 with the same batches, interleaved (a b c d a b c d), so that
a change of the machine's load meets all:

    a  the student alone, on labels
    b  with kdprune's Distiller, from stored soft labels
    c  with kdprune's Distiller, the teacher (resnet9, width 64) in the loop
    d  with Keras 3's own keras.distillation.Distiller, on the same two networks

a, b and c compute in this machine's own precision and see augmented images; d is
Keras's default, float32 arrays in `fit`. The price of the store is counted too.

Usage:
    python scripts/bench_distill.py [--images N] [--rounds N] [--json OUT]
"""

import argparse
import pathlib
import statistics
import tempfile
import time

import keras as keras3
import numpy as np

import kdprune
from kdprune import distill, records, training
from kdprune.data import Split, batches
from kdprune.models.precision import cast_model

AUGMENT = {"crop": 4, "flip": True, "seed": 0}
EPOCHS = 10_000  # More than are run; the stream never ends while measured.


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=5120, help="an epoch (5120)")
    parser.add_argument("--batch", type=int, default=128, help="a step (128)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each (3)")
    parser.add_argument("--views", type=int, default=8, help="of the store (8)")
    parser.add_argument("--json", metavar="OUT", help="write the figures to a file")
    options = parser.parse_args()
    print(f"{records.machine()['processor']}, {training.resolve_precision('auto')}")
    with tempfile.TemporaryDirectory() as folder:
        result = measure(options, pathlib.Path(folder))
    if options.json:
        content = {"command": records.command(), **result}
        content["machine"] = records.machine()
        content["versions"] = {**records.versions(), "keras": keras3.__version__}
        records.write_json(options.json, content)


def measure(options, folder):
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (options.images, 32, 32, 3), dtype=np.uint8)
    split = Split(images, random.integers(0, 10, options.images))
    teacher = kdprune.build_model("resnet9", width=64)
    precision = training.resolve_precision("auto")
    quick_teacher = cast_model(teacher, precision)

    def read_view(view):
        return batches.view_batches(split, 500, view=view, seed=0, augment=AUGMENT)

    quick_teacher.predict(read_view(0).take(1), verbose=0)  # Traced before measured.
    started = time.perf_counter()
    distill.write_soft_labels(quick_teacher, read_view, folder, views=1, key={})
    view_seconds = time.perf_counter() - started
    methods = {
        "alone": _ours(split, options, precision),
        "stored": _ours(split, options, precision, distill.load_soft_labels(folder)),
        "online": _ours(split, options, precision, teacher=quick_teacher),
        "keras3": _keras3(split, options, teacher),
    }
    # The first round traces and fills caches.
    rounds = [{name: epoch() for name, epoch in methods.items()}]
    rounds += [
        {name: epoch() for name, epoch in methods.items()}
        for _ in range(options.rounds)
    ]
    seconds = {
        name: statistics.median(one[name] for one in rounds[1:]) for name in methods
    }
    store = options.views * view_seconds
    paid = store / (seconds["online"] - seconds["stored"])
    print(f"seconds for an epoch of {options.images:,} images, batch {options.batch}")
    for letter, name in zip("abcd", methods, strict=True):
        ratio = seconds[name] / seconds["alone"]
        print(f"  {letter} {name:8} {seconds[name]:8.2f}   {ratio:5.2f} x a")
    ratios = {
        "stored / alone": seconds["stored"] / seconds["alone"],
        "online / stored": seconds["online"] / seconds["stored"],
        "keras3 / stored": seconds["keras3"] / seconds["stored"],
    }
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:.2f}")
    print(
        f"the store of {options.views} views takes {store:.1f} s and has paid for "
        f"itself after {paid:.1f} epochs"
    )
    amortised = {
        epochs: seconds["stored"] + store / epochs for epochs in (10, 30, 60, 100)
    }
    for epochs, each in amortised.items():
        ratio = each / seconds["alone"]
        print(f"  over {epochs} epochs: {each:.2f} s an epoch, {ratio:.2f} x a")
    return {
        "images": options.images,
        "batch": options.batch,
        "precision": precision,
        "seconds_per_epoch": seconds,
        "ratios": ratios,
        "views": options.views,
        "store_seconds": store,
        "store_paid_after_epochs": paid,
        "seconds_per_epoch_with_store": amortised,
    }


def _ours(split, options, precision, stored=None, teacher=None):
    """A function that trains one epoch and returns its seconds."""
    model = cast_model(kdprune.build_model("resnet8"), precision)
    optimizer = training.build_optimizer("sgd", 0.01, steps=EPOCHS)
    if stored is None and teacher is None:
        model.compile(
            optimizer,
            loss=lambda y, z: training.cross_entropy(y, z),
            metrics=["accuracy"],
        )
    else:
        model = distill.Distiller(model, teacher)
        model.compile(optimizer)
    stream = iter(
        batches.training_batches(
            split,
            options.batch,
            epochs=EPOCHS,
            seed=0,
            augment=AUGMENT,
            soft_labels=stored,
        )
    )
    steps = batches.steps_per_epoch(split, options.batch)
    return lambda: _timed(model, stream, steps_per_epoch=steps)


def _keras3(split, options, teacher):
    images = split.images.astype("float32") / 255
    loss = keras3.distillation.LogitsDistillation(temperature=4.0)
    distiller = keras3.distillation.Distiller(
        teacher=as_keras3(teacher),
        student=as_keras3(kdprune.build_model("resnet8")),
        distillation_losses=[loss],
    )
    # Its default, XLA, is 2 to 3 times slower on a processor.
    distiller.compile(
        optimizer=keras3.optimizers.SGD(0.01, momentum=0.9, nesterov=True),
        loss=keras3.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=False,
    )
    return lambda: _timed(
        distiller, images, split.labels, batch_size=options.batch, shuffle=True
    )


def as_keras3(model):
    """The same network, with the same weights, made of Keras 3's layers."""
    tensors = {}
    for layer in model.layers:
        if type(layer).__name__ == "InputLayer":
            made = keras3.Input(layer.output.shape[1:])
        else:
            config = layer.get_config()
            kind = getattr(keras3.layers, type(layer).__name__)
            accepted = {
                key: value
                for key, value in config.items()
                if key not in ("dtype", "batch_input_shape")
                and not (isinstance(value, dict) and "class_name" in value)
            }
            if isinstance(accepted.get("axis"), list | tuple):
                (accepted["axis"],) = accepted["axis"]  # A list of one in Keras 2.
            inputs = layer.input if isinstance(layer.input, list) else [layer.input]
            given = [tensors[id(tensor)] for tensor in inputs]
            made = kind.from_config(accepted)(given if len(given) > 1 else given[0])
        tensors[id(layer.output)] = made
    first, last = (tensors[id(end[0])] for end in (model.inputs, model.outputs))
    copy = keras3.Model(first, last)
    copy.set_weights(model.get_weights())
    return copy


def _timed(model, *arguments, **options):
    started = time.perf_counter()
    model.fit(*arguments, verbose=0, **options)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
