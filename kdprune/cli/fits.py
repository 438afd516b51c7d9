"""`kdprune fits`: does a file fit a board or a phone?"""

from __future__ import annotations

import argparse
import pathlib
from typing import Any

from kdprune import _io, records
from kdprune._log import logger
from kdprune.cli.options import add_debug, add_json, check_json
from kdprune.cli.quiet import import_tensorflow_quietly
from kdprune.cli.tables import show_table

DESCRIPTION = """Compares what .tflite files need with what boards and phones have.

  kdprune fits model_int8.tflite                    every board that is known
  kdprune fits model_int8.tflite --board "nano 33" --board nicla
  kdprune fits *.tflite --boards ours.yaml --board "our board"     in CI

Flash: the file's bytes and an allowance for the application with the runtime's code.
RAM: TFLite Micro's tensor arena, an allowance for the application, and what optimized
kernels may take beside. The arena is measured where tflite-micro is installed (pip
install "kdprune[micro]", Python 3.11 and 3.12), else planned: it is said which.
Operators that TFLite Micro lacks are named.

Exit status: 0 if every file fits every --board (without --board: at least one that is
known), 1 if one does not, 2 for a wrong call or a file that can't be read.

--boards FILE adds boards of your own:

  our board:
    core: Cortex-M33
    clock_mhz: 160
    flash: 1 MiB            or bytes; KiB, MiB, GiB
    ram: 256 KiB
    block: 192 KiB          optional: the most in one piece
    external_ram: 8 MiB     optional: beside the chip
    reserved_flash: 300 KiB optional: what your firmware takes beside (128 KiB)
    reserved_ram: 64 KiB    optional: likewise (32 KiB)
    kernels: cmsis-nn       or esp-nn, reference; litert for a device with a system
    source: https://...     where these figures are from
"""


def add_fits(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "fits",
        help="whether .tflite files fit boards and phones",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="+", metavar="FILE", type=pathlib.Path)
    parser.add_argument(
        "--board",
        action="append",
        default=[],
        metavar="NAME",
        help="a board to fit, or a part of its name; may be given several times",
    )
    parser.add_argument(
        "--boards", metavar="FILE", type=pathlib.Path, help="boards of your own, YAML"
    )
    add_json(parser)
    add_debug(parser)
    parser.set_defaults(function=check_files)


def check_files(options: argparse.Namespace) -> int:
    """Shows a table for each file; returns the exit status."""
    check_json(options.json)
    import_tensorflow_quietly()
    from kdprune.kit import check_fit, find_boards, find_needs, load_boards

    known = load_boards(options.boards)
    boards = find_boards(options.board, known) or list(known.values())
    found = [(path, find_needs(path)) for path in options.files]
    entries, good = [], True
    for path, needs in found:
        fits = check_fit(needs, boards)
        _show(path, needs, fits)
        good &= (all if options.board else any)(fit.fits for fit in fits)
        entries.append(
            {
                "path": str(path),
                "bytes": needs.model,
                "arena_bytes": needs.arena,
                "arena_measured": needs.measured,
                "peak_activation_bytes": needs.peak,
                "missing": list(needs.missing),
                "fits": [fit.to_json() for fit in fits],
            }
        )
    if options.json:
        content: dict[str, Any] = {
            "schema": records.SCHEMA,
            "command": records.command(),
            "files": entries,
            "versions": records.versions(),
        }
        _io.write_json(options.json, content)
        logger.info("written: %s", options.json)
    return 0 if good else 1


def _show(path: pathlib.Path, needs: Any, fits: list[Any]) -> None:
    how = "measured by TFLite Micro" if needs.measured else "planned, not measured"
    logger.info(
        "%s: %s bytes; arena %s bytes (%s)",
        path,
        f"{needs.model:,}",
        f"{needs.arena:,}",
        how,
    )
    if needs.missing:
        logger.info("TFLite Micro has no kernel for %s", ", ".join(needs.missing))
    elif needs.refusal:
        logger.info("%s", needs.refusal)
    rows = [
        (
            fit.board,
            "yes" if fit.fits else "NO",
            f"{_kib(fit.flash)} of {_kib(fit.flash_of)}",
            f"{_kib(fit.ram)} of {_kib(fit.ram_of)}",
            "; ".join(fit.reasons),
        )
        for fit in fits
    ]
    show_table(("board", "fits", "flash KiB", "RAM KiB", ""), rows, right=(2, 3))


def _kib(count: int) -> str:
    return f"{count / 1024:,.0f}"
