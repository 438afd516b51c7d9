"""What `kdprune bench` does: files measured here or on a phone, step by step."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kdprune import records
from kdprune.benchmark import latency, phone, profile
from kdprune.benchmark.tables import latency_table, profile_table, results_tables

BUSY = 0.5  # Load average (processes that run or wait) of what is not ours.
_REST = (
    "Calls and hand-over: what the operators leave of the whole; below 0 where running "
    "them together gains."
)

Say = Callable[[str], Any]


def measure_here(
    files: Sequence[str],
    resolvers: Sequence[str],
    say: Say,
    *,
    threads: int = 1,
    runs: int = 200,
    litert_benchmark: bool = False,
    profiles: bool = False,
) -> dict[str, Any]:
    """Measures files on this machine, and tells each step as it is done.

    Args:
        files: `.tflite` files.
        resolvers: Kernels to run each of them on.
        say: Takes the text of each step.
        threads: Threads of the runtime.
        runs: Least number of timed runs of each.
        litert_benchmark: Whether to run `litert-benchmark` on them, too.
        profiles: Whether to measure each operator by itself, too.

    Returns:
        A JSON-able dictionary: `machine`, `load` before and after, `busy`,
        `latencies`; `results` and `profiles` where they were asked for.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a file cannot be measured.
    """
    machine, before = records.machine(), _load()
    say(_machine_line(machine, before, threads))
    busy = _warn_if_busy(before, BUSY, say)
    entries = latency.measure_latencies(files, resolvers, threads=threads, runs=runs)
    load = {"before": before, "after": _load()}
    say(f"interleaved; {entries[0]['method']}; load after: {load['after']:.2f}")
    say(f"ratio: to {entries[0]['file']} on the same kernels\n")
    say(latency_table(entries))
    unsettled = sum(not entry["settled"] for entry in entries)
    if unsettled:
        say(f"{unsettled} of {len(entries)} medians are not known within 1 %")
    busy = _warn_if_busy(load["after"], threads + BUSY, say) or busy
    content: dict[str, Any] = {"machine": machine, "load": load, "busy": busy}
    content["latencies"] = entries
    if litert_benchmark:
        found = phone.run_litert_benchmark(files, threads=threads, runs=runs)
        content["results"] = found
        say(f"\nlitert-benchmark, rounded to 0.01 ms by it\n{results_tables(found)}")
    if profiles:
        say(f"\n{profile.METHOD}. {_REST}")
        content["profiles"] = []
        for resolver in resolvers:
            for path in files:
                made = profile.profile_file(path, resolver=resolver, threads=threads)
                content["profiles"].append(made)
                say(f"\n{profile_table(made)}")
    return content


def measure_on_phone(
    files: Sequence[str], resolvers: Sequence[str], say: Say, **options: Any
) -> dict[str, Any] | None:
    """Measures files on the phone that `adb` reaches.

    Args:
        files: `.tflite` files.
        resolvers: Kernels to run each of them on.
        say: Takes the text of the tables; without a phone that of the commands to
            run where there is one.
        **options: As of `phone.phone_commands`.

    Returns:
        A JSON-able dictionary of `phone` and `results`; None without a phone.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a file is no `.tflite`, or the phone does not run it.
    """
    if not phone.phone_is_there():
        phone.check_phone_files(files)
        say(_what_to_run(files, resolvers, options))
        return None
    found = phone.describe_phone()
    results = phone.run_on_phone(files, resolvers, **options)
    say(f"{found['model']} ({found['soc']}), Android {found['android']}")
    say(results_tables(results))
    return {"phone": found, "results": results}


def import_results(paths: Sequence[str], say: Say) -> dict[str, Any]:
    """Reads what other programs wrote; see `phone.read_results`."""
    results = phone.read_results(paths)
    say(results_tables(results))
    return {"results": results}


def _what_to_run(
    files: Sequence[str], resolvers: Sequence[str], options: Mapping[str, Any]
) -> str:
    cases = [
        phone.phone_commands(path, resolver=resolver, **options)
        for resolver in resolvers
        for path in files
    ]
    of_files = cases[: len(files)]  # The others are of the same files.
    place = options.get("binary") or phone.BENCHMARK_MODEL
    lines = [
        "No phone: adb is not installed, or finds none (`adb get-state`).",
        "Where there is one, with TFLite's benchmark_model on it, push the files:",
        "",
        *(shlex.join(push) for push, _, _ in of_files),
        "",
        "Run these lines three times, interleaved, since phones grow hot:",
        "",
        *(f"{shlex.join(run)} | tee -a phone.txt" for _, run, _ in cases),
        "",
        "Look at the figures, and only then remove the files:",
        "",
        "kdprune bench --import phone.txt",
        *(shlex.join(remove) for _, _, remove in of_files),
        "",
        f"The program itself: adb push benchmark_model {place}; "
        f"adb shell chmod +x {place}",
        "(built as the README of tflite/tools/benchmark in google-ai-edge/LiteRT says)",
    ]
    return "\n".join(lines)


def _load() -> float:
    return round(os.getloadavg()[0], 2)


def _warn_if_busy(load: float, limit: float, say: Say) -> bool:
    """Says so when more waits for the processor than is measured."""
    if load > limit:
        say(
            f"warning: the machine is busy (load average {load:.2f}): trust no figure "
            "but the ratios, and those little; measure again when it is idle"
        )
    return load > limit


def _machine_line(machine: Mapping[str, Any], load: float, threads: int) -> str:
    features = " ".join(machine["features"]) or "no features that matter"
    return (
        f"{machine['processor']}, {machine['cores']} cores, {features}; load average "
        f"{load:.2f}; measuring on {threads} thread{'s' * (threads > 1)}"
    )
