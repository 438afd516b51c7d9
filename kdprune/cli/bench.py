"""`kdprune bench`: how long one image takes, where, and on which kernels."""

from __future__ import annotations

import argparse
import functools
import pathlib

from kdprune import _io, records
from kdprune.cli.options import check_output_file

DESCRIPTION = """Measures how long one image takes, several files interleaved.

  kdprune bench a.tflite b.tflite
      both on XNNPACK (what phones use), one thread; ratio to the first file
  kdprune bench a.tflite b.tflite --resolvers xnnpack builtin --profile
      on two sets of kernels, and the time of each operator
  kdprune bench a.tflite b.tflite --json bench.json --plot bench.png
      with a record of everything measured, the machine and the command; a picture
  kdprune bench a.tflite --litert-benchmark
      beside the figures of the runtime's own program
  kdprune bench --adb a.tflite b.tflite
      on the phone that adb reaches; without one, the commands to run there
  kdprune bench --import phone.txt
      what benchmark_model printed on a phone, or litert-benchmark's JSON

Compare medians (p50) and ratios. The interval beside a median says how well it is
known; a p90 or a maximum far above it, or many outliers, tell of a busy machine.
"""
RESOLVERS = ("xnnpack", "builtin", "reference")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `kdprune bench` to its parser."""
    parser.add_argument("files", nargs="*", metavar="FILE.tflite")
    parser.add_argument(
        "--resolvers",
        nargs="+",
        default=["xnnpack"],
        metavar="KERNELS",
        help=f"kernels: {', '.join(RESOLVERS)} (xnnpack); name the files first",
    )
    parser.add_argument(
        "--threads", type=int, default=1, metavar="N", help="threads of one call (1)"
    )
    parser.add_argument(
        "--runs",
        type=int,
        default=200,
        metavar="N",
        help="least number of timed runs of each (200); up to four times that until "
        "the medians are known within 1 %%",
    )
    parser.add_argument(
        "--profile", action="store_true", help="measure each operator by itself, too"
    )
    parser.add_argument(
        "--litert-benchmark",
        action="store_true",
        help="run litert-benchmark on the files, too",
    )
    parser.add_argument("--json", metavar="OUT", help="write all figures to a file")
    parser.add_argument("--plot", metavar="OUT", help="draw a picture (.png or .svg)")
    parser.add_argument(
        "--adb", action="store_true", help="measure on a phone, by benchmark_model"
    )
    parser.add_argument(
        "--benchmark-model",
        metavar="PLACE",
        help="where that program is on the phone (/data/local/tmp/benchmark_model)",
    )
    parser.add_argument(
        "--import",
        dest="results",
        nargs="+",
        default=[],
        metavar="RESULT",
        help="show what benchmark_model or litert-benchmark wrote",
    )


def run(options: argparse.Namespace) -> None:
    """Runs `kdprune bench`: measures, prints, and writes what was asked for.

    Raises:
        FileNotFoundError: If a file or the folder of an output is not there.
        ValueError: If options do not fit together, or a file cannot be measured.
    """
    _check(options)
    content = _measure(options, functools.partial(print, flush=True))
    if content is None:
        return
    record = {"schema": records.SCHEMA, "command": records.command(), **content}
    record["versions"] = records.versions()
    if options.json:
        records.write_json(options.json, record)
        print(f"written: {options.json}")
    if options.plot:
        from kdprune.report.bench_plot import draw_bench

        form = pathlib.Path(options.plot).suffix[1:]
        _io.write_file(options.plot, draw_bench(record, form))
        print(f"written: {options.plot}")


def _check(options):
    if bool(options.files) == bool(options.results):
        raise ValueError("bench expects .tflite files, or --import RESULT")
    options.resolvers = list(dict.fromkeys(options.resolvers))
    unknown = [name for name in options.resolvers if name not in RESOLVERS]
    if unknown:
        raise ValueError(
            f"--resolvers expects {', '.join(RESOLVERS)}. Received: {unknown[0]!r}; "
            "files stand before --resolvers"
        )
    if options.runs < 1 or options.threads < 1:
        raise ValueError(
            "--runs and --threads expect a number >= 1. "
            f"Received: {options.runs} and {options.threads}"
        )
    missing = [path for path in options.files if not pathlib.Path(path).is_file()]
    if missing:
        raise FileNotFoundError(f"no model file at {missing[0]}")
    for name in ("json", "plot"):
        check_output_file(f"--{name}", getattr(options, name))
    if options.plot and pathlib.Path(options.plot).suffix not in (".png", ".svg"):
        raise ValueError(f"--plot expects OUT.png or OUT.svg. Received: {options.plot}")


def _measure(options, say):
    """What the command measures or reads; None where it could only tell how."""
    from kdprune.benchmark import bench

    if options.results:
        return bench.import_results(options.results, say)
    settings = {"threads": options.threads, "runs": options.runs}
    if options.adb:
        settings |= {"profile": options.profile, "binary": options.benchmark_model}
        return bench.measure_on_phone(options.files, options.resolvers, say, **settings)
    return bench.measure_here(
        options.files,
        options.resolvers,
        say,
        litert_benchmark=options.litert_benchmark,
        profiles=options.profile,
        **settings,
    )
