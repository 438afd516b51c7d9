"""Measures a training step in float32 and in bfloat16, for nets of several widths.

They are timed interleaved on one batch. A processor's bfloat16 kernels take 16
channels at a time: nets of other widths, such as channel pruning leaves, can be slower
in bfloat16 than in float32. `precision: auto` times both once for a network, and goes
by the widths where they are equals. Depthwise convolutions with strides stay in float32
within a bfloat16 net; "everywhere" is the net without that exception.

Usage:
    python scripts/bench_precision.py [--filters 16,32,64 12,24,48]
        [--networks inverted_residual] [--json OUT]
"""

import argparse
import statistics
import time

import numpy as np
import tf_keras as keras

import kdprune
from kdprune import records, training
from kdprune._graph import rebuild
from kdprune.models.precision import cast_model

PRECISIONS = ("float32", "mixed_bfloat16", "everywhere")
NETWORKS = ("inverted_residual", "bsconv_resnet")
WIDTHS = (
    (16, 32, 64),
    (16, 24, 64),
    (24, 48, 96),
    (20, 36, 64),
    (12, 24, 48),
    (8, 16, 32),
)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--filters",
        nargs="+",
        default=WIDTHS,
        type=_widths,
        metavar="A,B,C",
        help="filters of the three stages of a resnet of depth 8 (several)",
    )
    parser.add_argument(
        "--networks",
        nargs="*",
        default=NETWORKS,
        metavar="NAME",
        help=f"other networks, by name ({', '.join(NETWORKS)})",
    )
    parser.add_argument("--batch", type=int, default=128, help="images a step (128)")
    parser.add_argument("--steps", type=int, default=20, help="steps of each (20)")
    parser.add_argument("--json", metavar="OUT", help="write the figures to a file")
    options = parser.parse_args()
    print(
        "milliseconds a step: float32, bfloat16, bfloat16 everywhere; the second in "
        "terms of the first; what auto takes"
    )
    results = {}
    nets = {",".join(map(str, f)): ("resnet", _resnet8(f)) for f in options.filters}
    nets |= {name: (name, {}) for name in options.networks}
    for label, (name, arguments) in nets.items():
        model = kdprune.build_model(name, (32, 32, 3), 10, **arguments)
        times = _measure(model, options.batch, options.steps)
        chosen = training.resolve_precision("auto", model, options.batch)
        ratio = times["mixed_bfloat16"] / times["float32"]
        results[label] = {**times, "ratio": ratio, "auto": chosen}
        milliseconds = " ".join(f"{1e3 * times[key]:7.1f}" for key in PRECISIONS)
        print(f"{label:18} {milliseconds}   {ratio:.2f}   {chosen}", flush=True)
    if options.json:
        content = {"command": records.command(), "seconds_per_step": results}
        content |= {"machine": records.machine(), "versions": records.versions()}
        records.write_json(options.json, content)


def _resnet8(filters):
    return {"depth": 8, "filters": list(filters)}


def _widths(text):
    """Three whole numbers above 0, from "16,32,64"."""
    try:
        widths = tuple(int(number) for number in text.split(","))
    except ValueError:
        widths = ()
    if len(widths) != 3 or min(widths) < 1:
        raise argparse.ArgumentTypeError(
            f"expected three whole numbers, as 16,32,64; received {text!r}"
        )
    return widths


def _measure(model, batch, steps):
    """Median seconds of a training step by precision, the two interleaved."""
    random = np.random.default_rng(0)
    images = random.random((batch, 32, 32, 3), np.float32)
    labels = random.integers(0, 10, batch)
    models = {}
    for precision in PRECISIONS:
        models[precision] = _cast(model, precision)
        models[precision].compile(
            "sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        )
    seconds = {precision: [] for precision in PRECISIONS}
    for _ in range(steps + 2):
        for precision, cast in models.items():
            start = time.perf_counter()
            cast.train_on_batch(images, labels)
            seconds[precision].append(time.perf_counter() - start)
    # The first two steps trace and fill caches.
    return {key: statistics.median(values[2:]) for key, values in seconds.items()}


def _cast(model, precision):
    if precision != "everywhere":
        return cast_model(model, precision)
    last = model.layers[-1]
    return rebuild(
        model,
        config=lambda layer: None if layer is last else {"dtype": "mixed_bfloat16"},
    )


if __name__ == "__main__":
    main()
