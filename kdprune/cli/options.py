"""Options that several commands take."""

from __future__ import annotations

import argparse
import os
import pathlib


def add_debug(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--debug", action="store_true", help="show Python's traceback of an error"
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", metavar="OUT", help="write all figures to a file")


def check_json(path: str | None) -> None:
    """Finds out before an hour of measuring that the figures can't be written."""
    check_output_file("--json", path)


def check_output_file(option: str, path: str | os.PathLike | None) -> None:
    """Raises an error for what can't become a file: see `check_json`.

    Raises:
        FileNotFoundError: If its folder does not exist.
        ValueError: If it is a folder.
        PermissionError: If nothing may be written there.
    """
    if not path:
        return
    folder = pathlib.Path(path).absolute().parent
    if not folder.is_dir():
        raise FileNotFoundError(f"{option} {path}: its folder does not exist; make it")
    if pathlib.Path(path).is_dir():
        raise ValueError(f"{option} expects a file. Received: {path}, a folder")
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{option} {path}: its folder can't be written to")
