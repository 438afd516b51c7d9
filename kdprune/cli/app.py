"""The `kdprune` command: parses, calls, prints."""

import argparse
import contextlib
import importlib
import os
import pathlib
import signal
import sys
import tempfile

import kdprune
from kdprune import config, records
from kdprune.cli import bench

# What each stage command runs: the stages it accepts, with what they need.
_ROLES = {
    "train_teacher": "the stages that teach others",
    "train_student": "the students trained alone (the baselines)",
    "distill": "the stages that distill a student",
    "prune": "the stages that prune",
    "sensitivity": "the stages that measure what channels can be spared",
    "quantize": "the stages that cluster and quantize",
    "export": "the stages that write .tflite files and the ship kit",
    "evaluate": "the stages that measure on the test images",
    "report": "the stages that draw tables and plots (or redraw a run's folder)",
}

# The kinds of stages, where a role is not one kind of its own name.
_KINDS = {
    "prune": ("prune", "prune_channels", "prune_blocks"),
    "quantize": ("cluster", "quantize"),
    "export": ("export", "kit"),
}

_DESCRIPTION = """Makes image classifiers small: distills, prunes, quantizes, proves.

  kdprune run configs/quickstart.yaml             everything, on generated images
  kdprune run RECIPE.yaml --dry-run               what would be done, and how long
  kdprune run RECIPE.yaml --set stages.student.training.epochs=5
  kdprune evaluate model.tflite --dataset cifar10 --data-dir DIR
  kdprune compare a.tflite b.tflite --dataset cifar10 --data-dir DIR
  kdprune bench a.tflite b.tflite --profile
"""


def main(arguments=None):
    """Runs the command line; returns the exit status."""
    options = _parser().parse_args(arguments)
    return _guarded(options.function, options)


def run_stage(role, description=None):
    """The whole of a script in `scripts/`: one role's stages of a recipe."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    _add_run_options(parser, until=False)
    options = parser.parse_args()
    options.role = role
    sys.exit(_guarded(_run, options))


def _parser():
    parser = argparse.ArgumentParser(
        prog="kdprune",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--version", action="version", version=f"kdprune {kdprune.__version__}"
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    run = commands.add_parser("run", help="run a recipe, skipping what is done")
    _add_run_options(run, until=True)
    run.set_defaults(function=_run, role=None)
    for role, what in _ROLES.items():
        if role == "evaluate":
            continue  # `kdprune evaluate` measures files; the script runs the stage.
        command = commands.add_parser(
            role.replace("_", "-"), help=f"run {what} of a recipe, and what they need"
        )
        _add_run_options(command, until=False)
        command.set_defaults(function=_run, role=role)
    evaluate = commands.add_parser("evaluate", help="measure model files")
    evaluate.add_argument("files", nargs="+", metavar="FILE", type=pathlib.Path)
    evaluate.add_argument("--no-latency", action="store_true", help="don't time them")
    evaluate.add_argument("--json", metavar="OUT", help="write all figures to a file")
    _add_data_options(evaluate)
    evaluate.set_defaults(function=_evaluate)
    compare = commands.add_parser("compare", help="compare two model files")
    compare.add_argument("a", metavar="A", type=pathlib.Path)
    compare.add_argument("b", metavar="B", type=pathlib.Path)
    compare.add_argument("--json", metavar="OUT", help="write all figures to a file")
    _add_data_options(compare)
    compare.set_defaults(function=_compare)
    bench_parser = commands.add_parser(
        "bench",
        help="measure how long one image takes, here or on a phone",
        description=bench.DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    bench.add_options(bench_parser)
    _add_debug(bench_parser)
    bench_parser.set_defaults(function=bench.run)
    return parser


def _add_run_options(parser, until):
    parser.add_argument(
        "recipe", metavar="RECIPE.yaml", help="the recipe; see configs/ for examples"
    )
    parser.add_argument(
        "--output", metavar="DIR", help="the run's folder (default: runs/NAME)"
    )
    parser.add_argument("--data-dir", metavar="DIR", help="where the data set is")
    parser.add_argument(
        "--set",
        dest="overrides",
        metavar="KEY.PATH=VALUE",
        action="append",
        default=[],
        help="override a key of the recipe; may be given several times",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=1,
        metavar="N",
        help="stages run at once, each on its share of the cores (1); for small "
        "networks one job per core is quickest",
    )
    if until:
        parser.add_argument("--until", metavar="STAGE", help="stop after this stage")
    parser.add_argument(
        "--dry-run", action="store_true", help="print what would be done, and stop"
    )
    _add_debug(parser)


def _add_data_options(parser):
    parser.add_argument(
        "--dataset", required=True, help="whose test images: cifar10, shapes or folder"
    )
    parser.add_argument("--data-dir", metavar="DIR", help="where the data set is")
    parser.add_argument(
        "--data-path", metavar="DIR", help="needed with --dataset folder: the images"
    )
    parser.add_argument(
        "--image-size", type=int, metavar="PIXELS", help="resize images of a folder"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="the seed that the data is split by (0)"
    )
    parser.add_argument(
        "--input-range",
        default="0,1",
        metavar="LOW,HIGH",
        help="what black and white are to the model (default: 0,1; raw pixels: 0,255)",
    )
    parser.add_argument(
        "--resolver",
        default="xnnpack",
        choices=("xnnpack", "builtin", "reference"),
        help="the runtime's kernels",
    )
    parser.add_argument(
        "--threads", type=int, default=1, help="threads of one call (1)"
    )
    _add_debug(parser)


def _add_debug(parser):
    parser.add_argument("--debug", action="store_true", help="show Python's traceback")


def _guarded(function, options):
    """Calls a command; a user's error becomes one line and exit status 2."""
    before = signal.signal(signal.SIGINT, _stop)
    try:
        function(options)
        return 0
    except Exception as error:
        line = explain(error)
        if options.debug or line is None:
            raise
        print(f"kdprune: {line}", file=sys.stderr)
        return 2
    finally:
        signal.signal(signal.SIGINT, before)


def explain(error):
    """The line that tells a user what is wrong; None for what is no user's error."""
    # TensorFlow's own errors (no memory, no space) are neither of the two.
    told = isinstance(error, (ValueError, OSError)) or (
        type(error).__module__.startswith("tensorflow.")
    )
    return " ".join(str(error).split()) if told else None


def _stop(*_):
    """Ends the process at Ctrl-C, at once.

    Nothing is lost, as nothing is by SIGKILL. A KeyboardInterrupt instead would be
    swallowed where TensorFlow calls back into Python.
    """
    message = "\nstopped; run the same command again to go on from here\n"
    os.write(sys.stderr.fileno(), message.encode())
    os._exit(130)


def _import_tensorflow_quietly():
    """Keeps the notices that TensorFlow's libraries print on import from the user."""
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as notices:
        os.dup2(notices.fileno(), 2)
        try:
            importlib.import_module("tensorflow")
        except BaseException:
            notices.seek(0)
            os.write(stderr, notices.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


def _run(options):
    if options.role == "report" and pathlib.Path(options.recipe).is_dir():
        from kdprune import report

        print(f"report: {report.write_report(options.recipe)}")
        return
    recipe = config.load_recipe(options.recipe, options.overrides)
    folder = pathlib.Path(options.output or f"runs/{recipe.name}")
    wanted = _wanted(options.role) if options.role else None
    until = getattr(options, "until", None)
    _import_tensorflow_quietly()
    from kdprune.runner import run as runner

    if options.dry_run:
        print(runner.preview(recipe, folder, options.data_dir, until, wanted))
        return
    runner.run(
        recipe,
        folder,
        data_dir=options.data_dir,
        until=until,
        wanted=wanted,
        command=records.command(),
        jobs=options.jobs,
    )


def _wanted(role):
    """Which stages of a recipe a role stands for."""

    def accepts(recipe, name):
        kind = recipe.stages[name].kind
        teachers = {
            name
            for stage in recipe.stages.values()
            for name in config.names(getattr(stage, "teacher", None))
        }
        if role == "train_teacher":
            return name in teachers and kind in ("train", "load")
        if role == "train_student":
            return name not in teachers and kind == "train"
        return kind in _KINDS.get(role, (role,))

    return accepts


def _evaluate(options):
    _check_json(options.json)
    test, description = _test_images(options)
    _import_tensorflow_quietly()
    from kdprune import evaluate

    entries = []
    for path in options.files:
        entry = evaluate.evaluate_model(
            path,
            test.images,
            test.labels,
            input_range=_input_range(options.input_range),
            resolver=options.resolver,
            threads=options.threads,
            latency=not options.no_latency,
        ).entry
        entries.append(entry)
        print(_summary(entry), flush=True)
    if options.json:
        _write(options, {"dataset": description, "models": entries})


def _compare(options):
    _check_json(options.json)
    test, description = _test_images(options)
    _import_tensorflow_quietly()
    from kdprune import evaluate

    scores = [
        evaluate.predict(
            path,
            test.images,
            input_range=_input_range(options.input_range),
            resolver=options.resolver,
            threads=options.threads,
        )
        for path in (options.a, options.b)
    ]
    result = evaluate.compare_predictions(*scores, test.labels)
    print(evaluate.describe_comparison(result, description["classes"]))
    if options.json:
        _write(options, {"dataset": description, "comparison": result})


def _test_images(options):
    from kdprune.data import load_dataset

    extra = {"path": options.data_path, "image_size": options.image_size}
    extra = {key: value for key, value in extra.items() if value is not None}
    dataset = load_dataset(
        options.dataset, data_dir=options.data_dir, seed=options.seed, **extra
    )
    return dataset.test, dataset.description


def _input_range(text):
    low, separator, high = text.partition(",")
    with contextlib.suppress(ValueError):
        if separator and float(low) < float(high):
            return float(low), float(high)
    raise ValueError(
        f"--input-range expects LOW,HIGH such as 0,255. Received: {text!r}"
    )


def _summary(entry):
    low, high = (100 * bound for bound in entry["accuracy_ci"])
    parts = [
        f"{entry['path']}: {100 * entry['accuracy']:.2f} % of {entry['test_images']} "
        f"test images (95 % interval {low:.2f} to {high:.2f})",
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


def _check_json(path):
    """Finds out before an hour of measuring that the figures can't be written."""
    if path and not pathlib.Path(path).absolute().parent.is_dir():
        raise FileNotFoundError(f"--json {path}: its folder does not exist; make it")


def _write(options, content):
    content = {"schema": records.SCHEMA, "command": records.command(), **content}
    content |= {"versions": records.versions(), "machine": records.machine()}
    records.write_json(options.json, content)
    print(f"written: {options.json}")
