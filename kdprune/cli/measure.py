"""`kdprune evaluate` and `kdprune compare`: model files on a data set's test images."""

from __future__ import annotations

import argparse
import pathlib
from typing import TYPE_CHECKING, Any

from kdprune import _io, records
from kdprune._log import logger
from kdprune.cli.options import (
    add_cache,
    add_debug,
    add_json,
    add_labels,
    check_json,
    parse_pixels,
)
from kdprune.cli.quiet import import_tensorflow_quietly

if TYPE_CHECKING:
    from kdprune.data import Split

EVALUATE = """Measures model files on the test images of a data set.

  kdprune evaluate model.tflite --dataset cifar10 --data-dir DIR
  kdprune evaluate model.keras model.tflite --dataset folder --data-path IMAGES
  kdprune evaluate model.tflite --dataset shapes --json figures.json --no-latency

A FILE may be .tflite, .keras, .h5 or a SavedModel's folder. Of a Keras
file of another program the outputs are compared with those of the Keras that saved it.

Prints accuracy with its 95 % interval (of several labels macro F1, mean average
precision and the share of right labels; of a single unit AUC as well), calibration
error, bytes, parameters, MACs and latency. Models whose inputs are raw pixels need
--input-range 0,255.
"""

COMPARE = """Compares two model files on the test images of a data set.

  kdprune compare a.tflite b.tflite --dataset cifar10 --data-dir DIR

Prints the difference in accuracy with its 95 % interval, whether it is more than
chance (McNemar's test), and the classes that differ most.
"""


def add_evaluate(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "evaluate",
        help="measure model files",
        description=EVALUATE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="+", metavar="FILE", type=pathlib.Path)
    parser.add_argument("--no-latency", action="store_true", help="don't time them")
    _add_data_options(parser)
    parser.set_defaults(function=evaluate_files)


def add_compare(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "compare",
        help="compare two model files",
        description=COMPARE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("a", metavar="A", type=pathlib.Path)
    parser.add_argument("b", metavar="B", type=pathlib.Path)
    _add_data_options(parser)
    parser.set_defaults(function=compare_files)


def _add_data_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dataset",
        required=True,
        help="whose test images: cifar10, shapes, folder or FILE.npz",
    )
    parser.add_argument("--data-dir", metavar="DIR", help="where the data set is")
    add_cache(parser)
    parser.add_argument(
        "--data-path", metavar="DIR", help="needed with --dataset folder: the images"
    )
    parser.add_argument(
        "--image-size", type=int, metavar="PIXELS", help="resize images of a folder"
    )
    parser.add_argument(
        "--resize",
        choices=("stretch", "crop", "pad"),
        help="how images of other proportions come to that size (stretch)",
    )
    parser.add_argument(
        "--channels", type=int, choices=(1, 3), help="of a folder's images (3)"
    )
    parser.add_argument(
        "--on-error",
        choices=("stop", "skip"),
        help="what to do about images of a folder that can't be used (stop)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="the seed that the data is split by (0)"
    )
    parser.add_argument(
        "--input-range",
        metavar="LOW,HIGH",
        help="what black and white are to the model, such as 0,255; imagenet or caffe "
        "(default: as the file says, else 0,1)",
    )
    add_labels(parser, default=" (the file's own)")
    parser.add_argument(
        "--resolver",
        default="xnnpack",
        choices=("xnnpack", "builtin", "reference"),
        help="the runtime's kernels",
    )
    parser.add_argument(
        "--threads", type=int, default=1, help="threads of one call (1)"
    )
    add_json(parser)
    add_debug(parser)


def evaluate_files(options: argparse.Namespace) -> None:
    check_json(options.json)
    _check_files(options.files)
    input_range = parse_pixels(options.input_range)
    test, description = _test_images(options)
    import_tensorflow_quietly()
    from kdprune import evaluate
    from kdprune.models.taking import compare_file

    entries = []
    orders = _orders(options, options.files, description)
    for path, order in zip(options.files, orders, strict=True):
        entry = evaluate.evaluate_model(
            path,
            test.images,
            test.labels,
            input_range=input_range,
            resolver=options.resolver,
            threads=options.threads,
            latency=not options.no_latency,
            order=order,
            classes=len(description["classes"]),
        ).entry
        entries.append(entry)
        logger.info("%s", _summary(entry))
        if path.suffix in (".keras", ".h5", ".hdf5"):
            compared = compare_file(path, input_range, test.images)
            if compared is not None:
                entry["comparison"] = compared.to_json()
                logger.info("    %s", compared)
    if options.json:
        _write(options, {"dataset": description, "models": entries})


def compare_files(options: argparse.Namespace) -> None:
    check_json(options.json)
    _check_files([options.a, options.b])
    input_range = parse_pixels(options.input_range)
    test, description = _test_images(options)
    import_tensorflow_quietly()
    from kdprune import evaluate

    orders = _orders(options, [options.a, options.b], description)
    given = (
        evaluate.predict_for_labels(
            path,
            test.images,
            test.labels,
            input_range=input_range,
            resolver=options.resolver,
            threads=options.threads,
        )[0]
        for path in (options.a, options.b)
    )
    found = []
    for path, scores, order in zip((options.a, options.b), given, orders, strict=True):
        evaluate.check_outputs(scores.shape[1], len(description["classes"]), str(path))
        if order is not None:
            scores = evaluate.reorder_scores(scores, order)
        found.append(scores)
    a, b = found
    result = evaluate.compare_predictions(a, b, test.labels)
    logger.info("%s", evaluate.describe_comparison(result, description["classes"]))
    if options.json:
        _write(options, {"dataset": description, "comparison": result})


def _check_files(paths: list[pathlib.Path]) -> None:
    """Finds out before images are read that a model is not there."""
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"no model file at {path}")


def _orders(
    options: argparse.Namespace, files: list[pathlib.Path], description: dict[str, Any]
) -> list[tuple[int, ...] | None]:
    """Where in the outputs of each file the classes of the data are."""
    from kdprune.intake.labels import find_order

    orders = []
    for path in files:
        orders.append(find_order(path, description["classes"], options.labels))
        if orders[-1]:
            logger.info("%s: its outputs are in another order than the classes", path)
    return orders


def _test_images(options: argparse.Namespace) -> tuple[Split, dict[str, Any]]:
    from kdprune.data import load_dataset

    keys = ("image_size", "resize", "channels", "on_error")
    extra = {"path": options.data_path, **{key: getattr(options, key) for key in keys}}
    extra = {key: value for key, value in extra.items() if value is not None}
    dataset = load_dataset(
        options.dataset, data_dir=options.data_dir, seed=options.seed, **extra
    )
    return dataset.test, dataset.description


def _summary(entry: dict[str, Any]) -> str:
    task = entry.get("task")
    key, of = "accuracy", "% of"
    if task == "labels":
        key, of = "macro_f1", "% macro F1 on"
    low, high = (100 * bound for bound in entry[f"{key}_ci"])
    parts = [
        f"{entry['path']}: {100 * entry[key]:.2f} {of} {entry['test_images']} "
        f"test images (95 % interval {low:.2f} to {high:.2f})",
    ]
    if task == "labels":
        parts += [
            f"mean average precision {100 * entry['mean_average_precision']:.2f} %",
            f"{100 * entry['accuracy']:.2f} % of all labels right",
        ]
    elif task == "binary":
        auc = entry["auc"]
        parts.append(f"AUC {'–' if auc is None else f'{100 * auc:.2f} %'}")
    if "balanced_accuracy" in entry:
        balanced = 100 * entry["balanced_accuracy"]
        parts.append(f"balanced accuracy (mean over the classes) {balanced:.2f} %")
    parts += [
        f"ECE {entry['ece']:.3f}",
        f"{entry['bytes']:,} bytes ({entry['bytes_gzip']:,} gzip)",
        f"{entry['parameters']:,} parameters "
        f"({entry['nonzero_parameters']:,} non-zero)",
        f"{(entry['macs'] or 0) / 1e6:.2f} M MACs",
    ]
    if entry["latency_ms_p50"] is not None:
        parts.append(
            f"{entry['latency_ms_p50']:.3f} ms p50, "
            f"{entry['latency_ms_p90']:.3f} ms p90 "
            f"(threads: {entry['threads']}, {entry['resolver']})"
        )
    return "\n    ".join(parts)


def _write(options: argparse.Namespace, content: dict[str, Any]) -> None:
    content = {"schema": records.SCHEMA, "command": records.command(), **content}
    content |= {"versions": records.versions(), "machine": records.machine()}
    _io.write_json(options.json, content)
    logger.info("written: %s", options.json)
