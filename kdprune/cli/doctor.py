"""`kdprune doctor`: what keeps a model from becoming a small int8 file."""

from __future__ import annotations

import argparse
import pathlib

from kdprune import _io, records
from kdprune._log import logger
from kdprune.cli.options import (
    add_debug,
    add_json,
    add_outputs,
    check_json,
    parse_pixels,
)
from kdprune.cli.quiet import import_tensorflow_quietly
from kdprune.cli.tables import show_table

DESCRIPTION = """Finds all that keeps a model from becoming a small int8 file.

  kdprune doctor mine.keras
  kdprune doctor mine.keras --images photos/        with its pixel range and classes
  kdprune doctor mine.keras --input-range 0,255 --json diagnosis.json

MODEL is a .keras or .h5 file of Keras 3 or tf_keras. Nothing is trained, and nothing of
the model's code runs. Shown are: every obstacle at once, each with what to do; what is
done to the model before anything else, and how far outputs are from the original's
then; a row for each layer; the operators of an int8 file made of the model as it is;
about how long a compress takes, and how much memory and disk.

With --images, a folder of class folders or an .npz file, the pixel range is found on up
to 500 of them and the classes are compared.

Exit status: 0 if nothing stands in the way, 3 with warnings, 4 if a compress will fail,
2 for a wrong call.
"""


def add_doctor(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "doctor",
        help="what keeps a model from becoming a small int8 file",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", type=pathlib.Path)
    parser.add_argument(
        "--images",
        metavar="DIR",
        help="its images: a folder of class folders, an .npz file, or cifar10",
    )
    parser.add_argument("--data-dir", metavar="DIR", help="where cifar10 is")
    parser.add_argument(
        "--input-range",
        metavar="RANGE",
        help="what the model takes for black and white: 0,255 or -1,1; or imagenet, "
        "caffe (default: found on the images, or read off the model)",
    )
    add_outputs(parser, "--output")
    add_json(parser)
    add_debug(parser)
    parser.set_defaults(function=diagnose_model)


def diagnose_model(options: argparse.Namespace) -> int:
    """Shows the diagnosis; returns its exit status."""
    check_json(options.json)
    input_range = parse_pixels(options.input_range)
    import_tensorflow_quietly()
    from kdprune import doctor
    from kdprune.doctor import report
    from kdprune.intake.labels import read_labels

    labels = options.labels and read_labels(options.labels)

    found = doctor.diagnose(
        options.model,
        options.images,
        input_range=input_range,
        output=options.model_output,
        labels=labels,
        data_dir=options.data_dir,
    )
    for line in report.before(found):
        logger.info("%s", line)
    if found.rows:
        show_table(report.COLUMNS, map(report.cells, found.rows), report.RIGHT)
    for line in report.after(found):
        logger.info("%s", line)
    if options.json:
        _io.write_json(options.json, {"schema": records.SCHEMA, **found.to_json()})
        logger.info("written: %s", options.json)
    return found.status
