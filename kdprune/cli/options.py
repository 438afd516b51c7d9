"""Options that several commands take."""

from __future__ import annotations

import argparse
import contextlib
import os
import pathlib
from collections.abc import Iterator, Sequence

# The ranges of pixels that have names.
PIXELS = ("imagenet", "caffe")


def add_debug(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--debug", action="store_true", help="show Python's traceback of an error"
    )


def add_cache(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cache-dir",
        metavar="DIR",
        help="where the decoded images of a large folder are kept "
        "(KDPRUNE_CACHE_DIR, else ~/.cache/kdprune)",
    )
    parser.add_argument(
        "--cache-limit",
        metavar="GIB",
        help="above so many GiB, images are decoded each time they are used (200)",
    )


@contextlib.contextmanager
def cache_told(options: argparse.Namespace) -> Iterator[None]:
    """Tells this process, and those it starts, where decoded images are kept."""
    given = {
        "KDPRUNE_CACHE_DIR": getattr(options, "cache_dir", None),
        "KDPRUNE_CACHE_LIMIT": getattr(options, "cache_limit", None),
    }
    before = {name: os.environ.get(name) for name in given}
    os.environ.update({name: value for name, value in given.items() if value})
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def add_outputs(parser: argparse.ArgumentParser, *names: str) -> None:
    """Adds what tells a model's outputs: which of several, and of which classes.

    Args:
        parser: A command's.
        names: More names of the option that takes an output.
    """
    parser.add_argument(
        "--model-output",
        *names,
        metavar="NAME",
        help="of a model of several outputs, the layer whose output counts",
    )
    add_labels(parser)


def add_labels(parser: argparse.ArgumentParser, default: str = "") -> None:
    parser.add_argument(
        "--labels",
        metavar="FILE",
        type=pathlib.Path,
        help=f"the classes in the order of the model's outputs, one in a line{default}",
    )


def parse_pixels(text: str | None) -> tuple[float, float] | str | None:
    """What `--input-range` says: two bounds, or the name of a range.

    Raises:
        ValueError: If it is neither.
    """
    named = text in (None, *PIXELS)
    return text if named else parse_bounds(text, "--input-range", PIXELS)


def parse_bounds(
    text: str | None, option: str, others: Sequence[str] = ()
) -> tuple[float, float] | None:
    """The numbers of "LOW,HIGH", the lower one first.

    Args:
        text: What the option was given; None if it was not.
        option: Its name, for errors.
        others: What else it may be given.

    Raises:
        ValueError: If it is something else.
    """
    if text is None:
        return None
    with contextlib.suppress(ValueError):
        low, high = map(float, text.split(","))
        if low < high:
            return low, high
    known = " or ".join(["LOW,HIGH such as 0,255", *others])
    raise ValueError(f"{option} expects {known}. Received: {text!r}")


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
