"""`kdprune bench`: how long one image takes, where, and on which kernels."""

import os
import pathlib
import shlex

from kdprune import records

DESCRIPTION = """Measures how long one image takes, several files in turns (A B A B).

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
BUSY = 0.5  # Load average (processes that run or wait) of what is not ours.
_REST = (
    "Calls and hand-over: what the operators leave of the whole; below 0 where running "
    "them together gains."
)


def add_options(parser):
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


def run(options):
    """Runs `kdprune bench`: measures, prints, and writes what was asked for.

    Raises:
        FileNotFoundError: If a file or the folder of an output is not there.
        ValueError: If options do not fit together, or a file cannot be measured.
    """
    _check(options)
    if options.results:
        content = _import_results(options)
    elif options.adb:
        content = _measure_on_phone(options)
    else:
        content = _measure_here(options)
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
        pathlib.Path(options.plot).write_bytes(draw_bench(record, form))
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
        path = getattr(options, name)
        if path and not pathlib.Path(path).absolute().parent.is_dir():
            raise FileNotFoundError(
                f"--{name} {path}: its folder does not exist; make it"
            )
    if options.plot and pathlib.Path(options.plot).suffix not in (".png", ".svg"):
        raise ValueError(f"--plot expects OUT.png or OUT.svg. Received: {options.plot}")


def _measure_here(options):
    from kdprune.benchmark import latency, phone

    machine, before, threads = records.machine(), _load(), options.threads
    print(_machine_line(machine, before, threads), flush=True)
    busy = _warn_if_busy(before, BUSY)
    entries = latency.measure_latencies(
        options.files, options.resolvers, threads=threads, runs=options.runs
    )
    load = {"before": before, "after": _load()}
    print(f"turns A B A B; {entries[0]['method']}; load after: {load['after']:.2f}")
    print(f"ratio: to {entries[0]['file']} on the same kernels\n")
    print(_latency_table(entries))
    unsettled = sum(not entry["settled"] for entry in entries)
    if unsettled:
        print(f"{unsettled} of {len(entries)} medians are not known within 1 %")
    busy = _warn_if_busy(load["after"], threads + BUSY) or busy
    content = {"machine": machine, "load": load, "busy": busy, "latencies": entries}
    if options.litert_benchmark:
        content["results"] = phone.run_litert_benchmark(
            options.files, threads=threads, runs=options.runs
        )
        print(f"\nlitert-benchmark, rounded to 0.01 ms by it\n{_results(content)}")
    if options.profile:
        content["profiles"] = _profile(options)
    return content


def _profile(options):
    from kdprune.benchmark import profile

    print(f"\n{profile.METHOD}. {_REST}")
    found = []
    for resolver in options.resolvers:
        for path in options.files:
            found.append(
                profile.profile_file(path, resolver=resolver, threads=options.threads)
            )
            print(f"\n{_profile_text(found[-1])}", flush=True)
    return found


def _measure_on_phone(options):
    from kdprune.benchmark import phone

    settings = {
        "threads": options.threads,
        "runs": options.runs,
        "profile": options.profile,
        "binary": options.benchmark_model,
    }
    if not phone.phone_is_there():
        phone.check_phone_files(options.files)
        print(_what_to_run(options, settings))
        return None
    found = phone.describe_phone()
    content = {
        "phone": found,
        "results": phone.run_on_phone(options.files, options.resolvers, **settings),
    }
    print(f"{found['model']} ({found['soc']}), Android {found['android']}")
    print(_results(content))
    return content


def _what_to_run(options, settings):
    from kdprune.benchmark import phone

    cases = [
        phone.phone_commands(path, resolver=resolver, **settings)
        for resolver in options.resolvers
        for path in options.files
    ]
    files = cases[: len(options.files)]  # The others are of the same files.
    place = settings["binary"] or phone.BENCHMARK_MODEL
    lines = [
        "No phone: adb is not installed, or finds none (`adb get-state`).",
        "Where there is one, with TFLite's benchmark_model on it, push the files:",
        "",
        *(shlex.join(push) for push, _, _ in files),
        "",
        "Run these lines three times in turns, since phones grow hot:",
        "",
        *(f"{shlex.join(run)} | tee -a phone.txt" for _, run, _ in cases),
        "",
        "Look at the figures, and only then remove the files:",
        "",
        "kdprune bench --import phone.txt",
        *(shlex.join(remove) for _, _, remove in files),
        "",
        f"The program itself: adb push benchmark_model {place}; "
        f"adb shell chmod +x {place}",
        "(built as the README of tflite/tools/benchmark in google-ai-edge/LiteRT says)",
    ]
    return "\n".join(lines)


def _import_results(options):
    from kdprune.benchmark import phone

    content = {"results": phone.read_results(options.results)}
    print(_results(content))
    return content


def _load():
    return round(os.getloadavg()[0], 2)


def _warn_if_busy(load, limit):
    """Says so when more waits for the processor than is measured."""
    if load > limit:
        print(
            f"warning: the machine is busy (load average {load:.2f}): trust no figure "
            "but the ratios, and those little; measure again when it is idle",
            flush=True,
        )
    return load > limit


def _machine_line(machine, load, threads):
    features = " ".join(machine["features"]) or "no features that matter"
    return (
        f"{machine['processor']}, {machine['cores']} cores, {features}; load average "
        f"{load:.2f}; measuring on {threads} thread{'s' * (threads > 1)}"
    )


def _latency_table(entries):
    rows = [
        (
            entry["file"],
            entry["resolver"],
            _ms(entry["latency_ms_p50"]),
            " to ".join(map(_ms, entry["p50_interval_ms"])),
            _ratio(entry),
            _ms(entry["latency_ms_p90"]),
            _ms(entry["latency_ms_max"]),
            f"{entry['outliers']:,} of {entry['runs']:,}",
        )
        for entry in entries
    ]
    head = ("file", "kernels", "p50 ms", "95 % interval", "ratio", "p90 ms", "max ms")
    return _table((*head, "outliers"), rows)


def _results(content):
    """The tables of other programs' results: their means, where no medians."""
    rows = [
        (
            entry["file"],
            entry["resolver"],
            "?" if entry["threads"] is None else str(entry["threads"]),
            *(_ms(entry[f"latency_ms_{name}"]) for name in ("p50", "mean")),
            _ratio(entry),
            *(_ms(entry[f"latency_ms_{name}"]) for name in ("p95", "max")),
            f"{len(entry['turns_ms'])} x {entry['runs'] // len(entry['turns_ms']):,}",
        )
        for entry in content["results"]
    ]
    head = ("file", "kernels", "threads", "p50 ms", "mean ms", "ratio", "p95 ms")
    texts = [_table((*head, "max ms", "turns"), rows)]
    for entry in content["results"]:
        ops = [(op["op"], op["layer"], f"{op['us']:.1f}") for op in entry["ops"]]
        if ops:
            title = f"\n{entry['file']}, {entry['resolver']}: operators in their places"
            texts += [title, _table(("operator", "layer", "us"), ops)]
    return "\n".join(texts)


def _profile_text(profile):
    whole = profile["whole_us"]
    rows = [
        (
            op["op"],
            op["layer"],
            "" if op["macs"] is None else f"{op['macs']:,}",
            f"{op['us']:.1f}",
            f"{100 * op['share']:.1f} %",
        )
        for op in profile["ops"]
    ]
    rest = profile["rest_us"]
    rows += [
        ("calls and hand-over", "", "", f"{rest:.1f}", f"{100 * rest / whole:.1f} %"),
        ("whole", "", "", f"{whole:.1f}", "100.0 %"),
    ]
    title = f"{profile['file']}, {profile['resolver']}; an empty call: "
    head = ("operator", "layer", "MACs", "us", "share")
    return f"{title}{profile['call_us']:.1f} us\n{_table(head, rows)}"


def _table(head, rows):
    """Lines up columns: the first two to the left, figures to the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place < 2 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (head, *rows)
    )


def _ms(value):
    return "-" if value is None else f"{value:.4g}" if value < 1000 else f"{value:.0f}"


def _ratio(entry):
    if entry["ratio"] is None or entry["ratio_interval"] == [1, 1]:
        return "-" if entry["ratio"] is None else "1"
    low, high = entry["ratio_interval"]
    return f"{entry['ratio']:.3f} ({low:.3f} to {high:.3f})"
