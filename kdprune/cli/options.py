"""Options that several commands take."""

from __future__ import annotations

import argparse
import pathlib


def add_debug(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--debug", action="store_true", help="show Python's traceback of an error"
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", metavar="OUT", help="write all figures to a file")


def check_json(path: str | None) -> None:
    """Finds out before an hour of measuring that the figures can't be written."""
    if path and not pathlib.Path(path).absolute().parent.is_dir():
        raise FileNotFoundError(f"--json {path}: its folder does not exist; make it")
