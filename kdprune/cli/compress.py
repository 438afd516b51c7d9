"""`kdprune compress` and `kdprune init`: a small verified file of a model."""

from __future__ import annotations

import argparse
import pathlib
import sys

from kdprune._log import logger
from kdprune.cli.options import (
    add_cache,
    add_debug,
    add_outputs,
    parse_bounds,
    parse_pixels,
)
from kdprune.cli.quiet import import_tensorflow_quietly
from kdprune.compression.request import DEVICES, Request, command_of

NOT_MET = 1  # Exit status: files are there, but none is within the drop.

COMPRESS = """Makes a small int8 file of a trained image classifier, and proves it.

  kdprune compress mine.keras --images photos/
      int8, at most 1 point less accurate: photos/train/CLASS/*, photos/test/CLASS/*,
      or photos/CLASS/*, of which a fifth is held out
  kdprune compress mine.keras --images photos/ --max-drop 0.02 --target-macs 6e6
      channels are removed first, and the rest learns from the original
  kdprune compress mine.h5 --images data.npz -o small/ --for micro
  kdprune compress mine.keras --images cifar10 --data-dir DIR --ratio 0.5 --epochs 10

The model is a .keras or .h5 file of Keras 3 or tf_keras. What its pixels and outputs
mean is found out on labelled images and checked. Without a target nothing is trained
unless int8 after training loses too much.

All goes into a folder (-o): the files, a kit for Android and microcontrollers, a
report, and recipe.yaml, which is what is run. The same command goes on after an
interruption; `kdprune run FOLDER/recipe.yaml --output FOLDER` after a change to it.

Exit status: 0 the int8 file is within --max-drop, proven on validation images and
measured on test images; 1 it is not, or something failed on the way: the table of what
there is says why; 2 something given is wrong, said before anything is trained.
"""

INIT = """Writes the recipe that `kdprune compress` would run, and runs nothing.

  kdprune init mine.keras --images photos/ -o small/
  kdprune run small/recipe.yaml --output small --dry-run
  kdprune run small/recipe.yaml --output small

Every stage and setting stands in it, with what it is for. The options are those of
`kdprune compress`.
"""


def add_compress(commands: argparse._SubParsersAction) -> None:
    """Adds `kdprune compress` and `kdprune init`."""
    for name, text, about, function in (
        ("compress", COMPRESS, "make a small verified file of a model", compress),
        ("init", INIT, "write the recipe of `compress`, without running it", init),
    ):
        parser = commands.add_parser(
            name,
            help=about,
            description=text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        _add_options(parser)
        parser.set_defaults(function=function)


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", metavar="MODEL", type=pathlib.Path, help="a .keras or .h5 file"
    )
    parser.add_argument(
        "--images",
        required=True,
        metavar="DIR|NPZ|NAME",
        help="a folder of class folders, an .npz file, or cifar10 or shapes",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="DIR",
        type=pathlib.Path,
        help="the folder for all that is made (default: MODEL-compressed beside it)",
    )
    parser.add_argument(
        "--max-drop",
        type=float,
        default=0.01,
        metavar="SHARE",
        help="accuracy that may be lost, as a share of images (0.01: one point)",
    )
    target = parser.add_mutually_exclusive_group()
    target.add_argument(
        "--target-macs",
        type=_number,
        metavar="N",
        help="remove channels until one image takes at most N multiply-accumulates",
    )
    target.add_argument(
        "--target-bytes",
        type=_number,
        metavar="N",
        help="remove channels until the int8 file has at most N bytes",
    )
    target.add_argument(
        "--ratio", type=float, metavar="SHARE", help="remove this share of channels"
    )
    parser.add_argument(
        "--teacher",
        metavar="MODEL",
        type=pathlib.Path,
        help="what teaches, where something is trained (default: the original)",
    )
    parser.add_argument(
        "--epochs",
        type=int,
        metavar="N",
        help="epochs of training, where there is any (default: by the images)",
    )
    parser.add_argument(
        "--input-range",
        metavar="LOW,HIGH",
        help="what black and white are to the model, such as 0,255 or =-1,1, or "
        "imagenet or caffe (default: found out)",
    )
    add_outputs(parser)
    parser.add_argument(
        "--on-error",
        choices=("stop", "skip"),
        default="stop",
        help="at image files that can't be used: name them all and stop, or go on "
        "without them (stop)",
    )
    parser.add_argument(
        "--resize",
        choices=("stretch", "crop", "pad"),
        default="stretch",
        help="how images of other proportions come to the model's size (stretch)",
    )
    parser.add_argument(
        "--value-range",
        metavar="LOW,HIGH",
        help="what the values of an .npz file lie in, if not 0,1 or bytes",
    )
    parser.add_argument(
        "--for",
        dest="devices",
        choices=DEVICES,
        default="both",
        help="what the file must be fit for (both)",
    )
    parser.add_argument(
        "--data-dir", metavar="DIR", help="where cifar10 is, or what --images is in"
    )
    add_cache(parser)
    add_debug(parser)


def compress(options: argparse.Namespace) -> int:
    """Makes the file; the exit status tells whether it is good enough."""
    request = _checked(options)
    from kdprune.compression import compress_request

    made = compress_request(request)
    logger.info("\n%s", made)
    return 0 if made.met else NOT_MET


def init(options: argparse.Namespace) -> None:
    """Writes the recipe."""
    request = _checked(options)
    from kdprune.compression import initialize

    path = initialize(request)
    logger.info("written: %s", path)
    logger.info("run it: kdprune run %s --output %s", path, path.parent)


def _checked(options: argparse.Namespace) -> Request:
    """What the options ask for, checked before TensorFlow is imported."""
    request = Request(
        model=options.model.expanduser().absolute(),
        images=options.images,
        output=options.output,
        max_drop=options.max_drop,
        target_macs=options.target_macs,
        target_bytes=options.target_bytes,
        ratio=options.ratio,
        teacher=options.teacher,
        epochs=options.epochs,
        input_range=parse_pixels(options.input_range),
        model_output=options.model_output,
        labels=options.labels,
        on_error=options.on_error,
        resize=options.resize,
        value_range=parse_bounds(options.value_range, "--value-range"),
        devices=options.devices,
        data_dir=options.data_dir,
        command=command_of(sys.argv[1:]),
    )
    request.check()
    import_tensorflow_quietly()
    return request


def _number(text: str) -> int:
    """A whole number, also as 6e6."""
    try:
        value = float(text)
        if value == int(value):
            return int(value)
    except (ValueError, OverflowError):
        pass
    raise argparse.ArgumentTypeError(
        f"expected a whole number, such as 6e6. Received: {text!r}"
    )
