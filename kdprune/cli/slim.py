"""`kdprune slim`: the same `.tflite` file in fewer bytes."""

from __future__ import annotations

import argparse
import pathlib

from kdprune._io import write_file
from kdprune._log import logger
from kdprune.cli.options import add_debug
from kdprune.cli.quiet import import_tensorflow_quietly

DESCRIPTION = """Makes .tflite files of any maker smaller; their outputs stay the same.

  kdprune slim model.tflite                 in place
  kdprune slim model.tflite -o small.tflite
  kdprune slim *.tflite -o slimmed/

Content that is equal is stored once, and debug names are dropped. The outputs of both
files are compared on random inputs, on XNNPACK, builtin and reference kernels; where a
single bit differs, the file stays as it is.
"""


def add_slim(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "slim",
        help="make .tflite files smaller, bit for bit the same",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="+", metavar="FILE", type=pathlib.Path)
    parser.add_argument(
        "-o",
        "--output",
        metavar="OUT",
        type=pathlib.Path,
        help="where to write: a file, or a folder for several (in place)",
    )
    add_debug(parser)
    parser.set_defaults(function=slim_files)


def slim_files(options: argparse.Namespace) -> None:
    """Slims each file; what cannot be read stops before anything is written."""
    targets = _targets(options.files, options.output)
    import_tensorflow_quietly()
    from kdprune.tflite import slim_tflite

    slimmed = [slim_tflite(path) for path in options.files]
    for path, target, result in zip(options.files, targets, slimmed, strict=True):
        if result.reason is None or target != path:
            write_file(target, result.content)
        if result.reason is not None:
            logger.info("%s: kept as it is, %s", path, result.reason)
            continue
        proof = ", ".join(f"{count} on {name}" for name, count in result.proof.items())
        logger.info(
            "%s: %s to %s bytes (%.1f %% less); bit-equal for random inputs, %s",
            target,
            f"{result.before:,}",
            f"{result.after:,}",
            100 * (1 - result.after / result.before),
            proof,
        )


def _targets(
    files: list[pathlib.Path], output: pathlib.Path | None
) -> list[pathlib.Path]:
    if output is None:
        return files
    if output.is_dir():
        targets = [output / path.name for path in files]
        if len(set(targets)) < len(targets):
            raise ValueError(f"two of the files have the same name, in {output}")
        return targets
    if len(files) > 1:
        raise ValueError(
            f"--output expects an existing folder for {len(files)} files. "
            f"Received: {output}"
        )
    if not output.absolute().parent.is_dir():
        raise FileNotFoundError(
            f"--output {output}: its folder does not exist; make it"
        )
    return [output]
