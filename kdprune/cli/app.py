"""The `kdprune` command: its parser, and what becomes of errors."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

import kdprune
from kdprune import _log
from kdprune.cli import bench, compress, doctor, fits, measure, recipes, slim
from kdprune.cli.options import add_debug, cache_told
from kdprune.runner.errors import explain

_DESCRIPTION = """Makes image classifiers small: distills, prunes, quantizes, proves.

  kdprune compress mine.keras --images photos/    a model of yours, in one command
  kdprune run configs/quickstart.yaml             everything, on generated images
  kdprune run RECIPE.yaml --dry-run               what would be done, and how long
  kdprune run RECIPE.yaml --set stages.student.training.epochs=5
  kdprune evaluate model.tflite --dataset cifar10 --data-dir DIR
  kdprune compare a.tflite b.tflite --dataset cifar10 --data-dir DIR
  kdprune bench a.tflite b.tflite --profile
  kdprune slim model.tflite
  kdprune doctor mine.keras --images photos/      what stands in a model's way
  kdprune fits model.tflite --board "Raspberry Pi Pico"

`kdprune COMMAND --help` tells more of a command.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    options = _parser().parse_args(arguments)
    return _guarded(options.function, options)


def run_stage(role: str, description: str | None = None) -> None:
    """The whole of a script in `scripts/`: one role's stages of a recipe."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    recipes.add_run_options(parser, until=False)
    options = parser.parse_args()
    options.role = role
    sys.exit(_guarded(recipes.run_recipe, options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kdprune",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--version", action="version", version=f"kdprune {kdprune.__version__}"
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    compress.add_compress(commands)
    recipes.add_run(commands)
    measure.add_evaluate(commands)
    measure.add_compare(commands)
    slim.add_slim(commands)
    doctor.add_doctor(commands)
    fits.add_fits(commands)
    bench_parser = commands.add_parser(
        "bench",
        help="measure how long one image takes, here or on a phone",
        description=bench.DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    bench.add_options(bench_parser)
    add_debug(bench_parser)
    bench_parser.set_defaults(function=bench.run)
    return parser


def _guarded(
    function: Callable[[argparse.Namespace], int | None], options: argparse.Namespace
) -> int:
    """Calls a command, whose exit status is 0 unless it returns another.

    A user's errors become a line each and exit status 2.
    """
    try:
        with _log.shown(), cache_told(options):
            return function(options) or 0
    except Exception as error:
        lines = explain(error)
        if options.debug or not lines:
            raise
        for line in lines:
            print(f"kdprune: {line}", file=sys.stderr)
        return 2
