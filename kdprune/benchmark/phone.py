"""The runtime's own benchmark programs: run, on this machine or a phone, and read.

`benchmark_model` is TFLite's program for phones. It writes no JSON: its figures are
lines of its log (`count=… median=… p95=…`, older versions without percentiles), and
with `--enable_op_profiling=true` a table of the operators. Its `--result_file_path`
and `--op_profiling_output_file` write binary protocol buffers or CSV with the same
figures, so the log is what is kept and read, of the command and of the Android app
(`adb logcat -s tflite`) alike.
Reference: https://github.com/google-ai-edge/LiteRT/tree/main/tflite/tools/benchmark

`litert-benchmark` comes with ai-edge-litert and writes JSON (`--result_json`), rounded
to 0.01 ms.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import pydantic

from kdprune._io import first_line
from kdprune.benchmark.latency import add_ratios
from kdprune.tflite.format import read_tflite

# Interleaved rounds of each file: a phone that grows hot slows down all alike.
ROUNDS = 3
PHONE_FOLDER = "/data/local/tmp"
BENCHMARK_MODEL = f"{PHONE_FOLDER}/benchmark_model"
_DELEGATE = {"xnnpack": "true", "builtin": "false"}

# A run's log begins with its parameters; the timed runs' statistics are the last
# before the summary, after the untimed ones'. The profile follows.
_BEGIN = "Log parameter values verbosely"
_SUMMARY = "Inference timings in us"
_STATISTICS = re.compile(r"\bcount=(\d+)((?: \w+=\S+)+)")
_PARAMETER = re.compile(r"(Graph|Num threads|Use xnnpack): \[(.*?)\]")
_PROFILE = "Operator-wise Profiling Info for Regular Benchmark Runs"
_TABLE = re.compile(r"=+ Run Order =+[ \t]*\n(.*?)(?:\n[^\n]*=====|\Z)", re.DOTALL)
_TIMES = ("avg", "curr", "median", "p95", "max")
_MOST_BYTES = 2**26

_Ms = Annotated[float, pydantic.Field(ge=0, le=1e9, allow_inf_nan=False)]
_Count = Annotated[int, pydantic.Field(ge=1, le=10**9)]
_MS, _COUNT = pydantic.TypeAdapter(_Ms), pydantic.TypeAdapter(_Count)


class _Latency(pydantic.BaseModel, strict=True):
    num_runs: _Count
    median_ms: _Ms
    p95_ms: _Ms
    avg_ms: _Ms
    max_ms: _Ms


class _Litert(pydantic.BaseModel, strict=True):
    """What `litert-benchmark` writes, of which more is not read."""

    model: str
    num_threads: _Count
    latency: _Latency


def run_litert_benchmark(
    paths: Sequence[str | PathLike],
    *,
    threads: int = 1,
    runs: int = 200,
    warmup: int = 20,
) -> list[dict[str, Any]]:
    """Times `.tflite` files by `litert-benchmark`, interleaved.

    Args:
        paths: The files.
        threads: Threads of the runtime.
        runs: Least number of timed runs of each.
        warmup: Untimed runs at the start of each round.

    Returns:
        A dictionary for each file, as `read_results` gives it.

    Raises:
        ValueError: If the program fails on a file.
    """
    results = []
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "result.json"
        for path in [*paths] * ROUNDS:
            module = "ai_edge_litert.tools.benchmark_litert_model"
            options = {
                "model": path,
                "num_threads": threads,
                "num_runs": -(-runs // ROUNDS),
                "warmup_runs": warmup,
                "result_json": target,
            }
            command = [sys.executable, "-m", module]
            command += [f"--{name}={value}" for name, value in options.items()]
            _run(command, f"litert-benchmark on {path}")
            results.append(_read_litert_benchmark(json.loads(target.read_text())))
    return _merge(results)


def phone_commands(
    path: str | PathLike,
    *,
    resolver: str = "xnnpack",
    threads: int = 1,
    runs: int = 200,
    profile: bool = False,
    binary: str | None = None,
) -> tuple[list[str], list[str], list[str]]:
    """The commands that time a `.tflite` file on a phone by `benchmark_model`.

    Args:
        path: The file.
        resolver: `"xnnpack"` or `"builtin"`.
        threads: Threads of the runtime.
        runs: Least number of timed runs; a second of them at least.
        profile: Whether to measure each operator too, which slows the whole a little.
        binary: Where `benchmark_model` is on the phone; `BENCHMARK_MODEL` unless given.

    Returns:
        Three lists of arguments: pushing the file, running (its output is the
        result), and removing the file.

    Raises:
        ValueError: If the resolver is not one that phones have.
    """
    if resolver not in _DELEGATE:
        raise ValueError(
            f"benchmark_model runs on {' or '.join(_DELEGATE)} kernels. "
            f"Received: {resolver!r}"
        )
    place = f"{PHONE_FOLDER}/{Path(path).name}"
    options = {
        "graph": place,
        "num_threads": threads,
        "num_runs": runs,
        "use_xnnpack": _DELEGATE[resolver],
    }
    if profile:
        options["enable_op_profiling"] = "true"
    run = [binary or BENCHMARK_MODEL]
    run += [f"--{name}={value}" for name, value in options.items()]
    return (
        ["adb", "push", str(path), place],
        # The phone's shell reads its line again; the log is on both of its streams.
        ["adb", "shell", f"{shlex.join(run)} 2>&1"],
        ["adb", "shell", shlex.join(["rm", place])],
    )


def check_phone_files(paths: Sequence[str | PathLike]) -> None:
    """Raises an error for files that can't be timed on one phone.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a file is no `.tflite`, or two have one name.
    """
    for path in paths:
        read_tflite(path)
    if len({Path(path).name for path in paths}) < len(paths):
        raise ValueError("files on one phone need different names; rename one of them")


def phone_is_there() -> bool:
    """Whether `adb` is installed and reaches a phone."""
    if shutil.which("adb") is None:
        return False
    state = subprocess.run(["adb", "get-state"], capture_output=True, text=True)
    return state.returncode == 0 and state.stdout.strip() == "device"


def describe_phone() -> dict[str, str]:
    """What a phone says of itself: `model`, `soc`, `android` and `load`."""
    ask = {
        "model": "getprop ro.product.model",
        "soc": "getprop ro.soc.model",
        "android": "getprop ro.build.version.release",
        "load": "cat /proc/loadavg",
    }
    return {
        name: _run(["adb", "shell", line], "adb").strip() for name, line in ask.items()
    }


def run_on_phone(
    paths: Sequence[str | PathLike],
    resolvers: Sequence[str] = ("xnnpack",),
    **options: Any,
) -> list[dict[str, Any]]:
    """Times `.tflite` files on a phone by `benchmark_model`, interleaved.

    Args:
        paths: The files, of different names.
        resolvers: Kernels to run each of them on.
        **options: As of `phone_commands`.

    Returns:
        A dictionary for each file and resolver, as `read_results` gives it.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a file is no `.tflite`, or the phone does not run it.
    """
    check_phone_files(paths)
    cases = [
        phone_commands(path, resolver=resolver, **options)
        for resolver in resolvers
        for path in paths
    ]
    logs = []
    try:
        for push, _, _ in cases[: len(paths)]:  # The others are of the same files.
            _run(push, "adb push")
        for _, run, _ in cases * ROUNDS:
            logs.append(_run(run, "benchmark_model on the phone"))
    finally:
        for *_, remove in cases[: len(paths)]:
            subprocess.run(remove, capture_output=True)
    return _merge([_read_log(log, "the phone's output") for log in logs])


def read_results(paths: Sequence[str | PathLike]) -> list[dict[str, Any]]:
    """Reads what `benchmark_model` or `litert-benchmark` wrote.

    Args:
        paths: Files: logs of `benchmark_model`, of one or several runs each, or JSON
            of `litert-benchmark`. Results of the same file, kernels and threads are
            rounds of one measurement.

    Returns:
        A dictionary for each file and kernels: `file`, `resolver` (the program's name
        where it does not tell), `threads`, `tool`, `runs`; in milliseconds, each the
        median over the rounds, `latency_ms_p50`, `latency_ms_p95` (`None` of old
        versions), `latency_ms_mean`, `latency_ms_max` (the greatest), `rounds_ms`;
        `ratio` and `ratio_interval` to the first file, `None` where its time is
        rounded to 0; `ops`, the operators (`op`, `layer`, `us`) where they were
        measured, else empty.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a file is neither.
    """
    results = []
    for path in paths:
        if not Path(path).is_file():
            raise FileNotFoundError(f"no result at {path}")
        if (size := Path(path).stat().st_size) > _MOST_BYTES:
            raise ValueError(
                f"{path}: expected a log or JSON of at most {_MOST_BYTES:,} bytes. "
                f"Received: {size:,}"
            )
        text = Path(path).read_text(errors="replace").replace("\r", "")
        if text.lstrip().startswith("{"):
            results.append(_parse_litert_benchmark(text, path))
            continue
        before, *runs = text.split(_BEGIN)
        results += [_read_log(run, path) for run in runs or [before]]
    return _merge(results)


def _parse_litert_benchmark(text: str, path: str | PathLike) -> dict[str, Any]:
    try:
        return _read_litert_benchmark(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path}: expected the JSON of litert-benchmark (--result_json). Received "
            f"something else: {_why(error)}"
        ) from error


def _why(error: Exception) -> str:
    if not isinstance(error, pydantic.ValidationError):
        return first_line(error)
    first = error.errors()[0]
    place = ".".join(map(str, first["loc"])) or "the whole"
    return f"{place}: {first['msg']}, got {first['input']!r:.60}"


def _read_litert_benchmark(content: Any) -> dict[str, Any]:
    found = _Litert.model_validate(content)
    times = found.latency
    return {
        "file": found.model,
        "resolver": "litert-benchmark",
        "threads": found.num_threads,
        "tool": "litert-benchmark",
        "runs": times.num_runs,
        "latency_ms_p50": times.median_ms,
        "latency_ms_p95": times.p95_ms,
        "latency_ms_mean": times.avg_ms,
        "latency_ms_max": times.max_ms,
        "ops": [],
    }


def _read_log(text: str, path: str | PathLike) -> dict[str, Any]:
    head, found, profile = text.partition(_SUMMARY)
    found_statistics = _STATISTICS.findall(head.replace("(all same)", ""))
    if not found or not found_statistics:
        raise ValueError(
            f"{path}: expected the output of benchmark_model, with a line "
            f"'count=... avg=...' and then '{_SUMMARY}'. Received: "
            f"{' '.join(text[-100:].split()) or 'nothing'!r}"
        )
    runs, rest = found_statistics[-1]
    try:
        return _read_figures(head, runs, rest, profile, path)
    except (ValueError, LookupError) as error:
        raise ValueError(
            f"{path}: expected the figures of benchmark_model, finite and above 0. "
            f"Received: {_why(error)}"
        ) from error


def _read_figures(
    head: str, runs: str, rest: str, profile: str, path: str | PathLike
) -> dict[str, Any]:
    pairs = (pair.partition("=") for pair in rest.split())
    times = {
        name: _MS.validate_python(value) / 1000
        for name, _, value in pairs
        if name in _TIMES
    }
    # One value where all are the same.
    mean = times["avg"] if "avg" in times else times["curr"]
    parameters = dict(_PARAMETER.findall(head))
    threads = parameters.get("Num threads")
    delegate = {"1": "xnnpack", "0": "builtin"}
    return {
        "file": PurePosixPath(parameters.get("Graph", str(path))).name,
        "resolver": delegate.get(parameters.get("Use xnnpack", ""), "benchmark_model"),
        "threads": None if threads is None else _COUNT.validate_python(threads),
        "tool": "benchmark_model",
        "runs": _COUNT.validate_python(runs),
        "latency_ms_p50": times.get("median"),
        "latency_ms_p95": times.get("p95"),
        "latency_ms_mean": mean,
        "latency_ms_max": times.get("max", mean),
        "ops": _read_ops(profile),
    }


def _read_ops(profile: str) -> list[dict[str, Any]]:
    """Reads the tables of operators: the graph's, then that of a delegate's own."""
    ops: list[dict] = []
    tables = _TABLE.findall(profile.partition(_PROFILE)[2])
    for table in tables:
        head, *rows = (re.split(r"\s*\t\s*", line) for line in table.split("\n"))
        head = [column.strip("[]") for column in head]
        for cells in rows:
            row = dict(zip(head, cells, strict=False))
            if "Name" in row:
                us = 1000 * _MS.validate_python(row["avg ms"])
                ops.append({"op": row["node type"], "layer": row["Name"], "us": us})
    if len(tables) > 1:  # the delegate's operators stand for its row
        ops = [op for op in ops if not op["op"].endswith("Delegate")]
    return ops


def _merge(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Makes one entry of the rounds of each file."""
    rounds: dict[tuple, list] = {}
    for result in results:
        key = (result["file"], result["resolver"], result["threads"])
        rounds.setdefault(key, []).append(result)
    entries = []
    for group in rounds.values():
        entry = dict(group[0])
        for name in ("latency_ms_p50", "latency_ms_p95", "latency_ms_mean"):
            values = [result[name] for result in group]
            entry[name] = None if None in values else statistics.median(values)
        entry["latency_ms_max"] = max(result["latency_ms_max"] for result in group)
        entry["runs"] = sum(result["runs"] for result in group)
        told = "mean" if entry["latency_ms_p50"] is None else "p50"
        entry["rounds_ms"] = [result[f"latency_ms_{told}"] for result in group]
        entries.append(entry)
    add_ratios(entries)
    return entries


def _run(command: Sequence[str], what: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines() or ["silent"]
        raise ValueError(f"{what} failed with status {done.returncode}: {lines[-1]}")
    return done.stdout
