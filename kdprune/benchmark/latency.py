"""How long one image takes, of several files, interleaved."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from kdprune._registry import suggesting
from kdprune.tflite.interpreter import feed_random, open_interpreter

METHOD = "batch 1, random input, wall time of the Python interpreter's invoke()"
# Rounds that each file takes. Where the median is to settle, more follow: those whose
# interval is within a hundredth of it, on either side, have.
ROUNDS, MOST_ROUNDS, SETTLED = 10, 40, 0.01
# Runs of a round, at least: one that something else broke into must not be its median.
ROUND_RUNS = 5
# Seconds of timed runs, at least, in the first `ROUNDS` rounds together: a fast model
# is not judged by a moment's disturbance.
SECONDS = 0.5
# Untimed runs at the start of a round: the others' rounds have used the caches.
REFRESH = 3


@suggesting
def measure_latency(
    path: str | PathLike,
    *,
    threads: int = 1,
    resolver: str = "xnnpack",
    runs: int = 200,
    warmup: int = 20,
) -> dict[str, Any] | None:
    """Measures the time a `.tflite` file takes for one image on this machine.

    Runs at least `runs` times and at least half a second, in ten rounds. The median
    is the figure to compare; a 90th percentile far above it tells of a busy machine.
    To compare files, `measure_latencies` interleaves them.

    Args:
        path: A `.tflite` file.
        threads: Threads of the runtime. One is comparable; small nets gain
            nothing from more.
        resolver: `"xnnpack"`, `"builtin"` or `"reference"`.
        runs: Least number of timed runs, at least 1.
        warmup: Untimed runs before them.

    Returns:
        The entry that `measure_latencies` gives for one file, or `None` for a Keras
        file: Python's share of its time would say nothing about a device.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be run, or an argument is not valid.
    """
    _check_runs(runs, warmup)
    if Path(path).suffix != ".tflite":
        return None
    return measure_latencies(
        [path], [resolver], threads=threads, runs=runs, warmup=warmup, settle=False
    )[0]


def measure_latencies(
    paths: Sequence[str | PathLike],
    resolvers: Sequence[str] = ("xnnpack",),
    *,
    threads: int = 1,
    runs: int = 200,
    warmup: int = 20,
    settle: bool = True,
) -> list[dict[str, Any]]:
    """Measures the time for one image of several files, interleaved.

    What disturbs the machine for a while, or heats it, meets all of them alike. Ten
    rounds each at first; with `settle` up to forty, until every median is known within
    1 %. The interval of a median is that of the rounds' medians (by their ranks,
    without an assumption on how they scatter): runs that follow each other are
    disturbed together and would promise too much. A ratio is taken round by round.

    Args:
        paths: `.tflite` files.
        resolvers: Kernels to run each of them on, see `open_interpreter`.
        threads: Threads of the runtime.
        runs: Least number of timed runs of each, at least 1.
        warmup: Untimed runs of each before the first round.
        settle: Whether to go on until the medians have settled.

    Returns:
        For each resolver and file a dictionary: `file`, `resolver`, `threads`,
        `method`, `runs`; in milliseconds `latency_ms_p50`, `latency_ms_p90`,
        `latency_ms_max`, `p50_interval_ms` (95 %, low and high) and `rounds_ms`, the
        median of each round; `settled`, whether the interval is within 1 %;
        `outliers`, the number of runs slower than the third quartile by 1.5 times
        the quartiles' distance; `ratio` to the first file on the same kernels, and
        `ratio_interval`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a file cannot be run, or an argument is not valid.
    """
    _check_runs(runs, warmup)
    cases = [(str(path), resolver) for resolver in resolvers for path in paths]
    calls = []
    for path, resolver in cases:
        interpreter = open_interpreter(path, resolver, threads)
        feed_random(interpreter)
        calls.append(interpreter.invoke)
    timings = time_interleaved(calls, runs=runs, warmup=warmup, settle=settle)
    about = {"threads": threads, "method": METHOD}
    entries = [
        {"file": path, "resolver": resolver, **about, **summarize(rounds)}
        for (path, resolver), rounds in zip(cases, timings, strict=True)
    ]
    add_ratios(entries)
    return entries


def time_interleaved(
    calls: Sequence[Callable[[], Any]],
    *,
    runs: int = 200,
    warmup: int = 20,
    seconds: float = SECONDS,
    settle: bool = False,
) -> list[list[NDArray]]:
    """Times several functions, interleaved.

    Args:
        calls: Functions without arguments.
        runs: Least number of timed runs of each.
        warmup: Untimed runs of each before the first round.
        seconds: Least time of each, in seconds, in the first ten rounds.
        settle: Whether to add rounds until every median has settled.

    Returns:
        For each function its rounds, each an array of the runs' seconds.
    """
    for call in calls:
        for _ in range(warmup):
            call()
    timings: list[list[NDArray]] = [[] for _ in calls]
    round_runs = max(math.ceil(runs / ROUNDS), ROUND_RUNS)
    for done in range(MOST_ROUNDS if settle else ROUNDS):
        if done >= ROUNDS and all(summarize(rounds)["settled"] for rounds in timings):
            break
        for call, rounds in zip(calls, timings, strict=True):
            rounds.append(_take_round(call, round_runs, seconds / ROUNDS))
    return timings


def _take_round(call: Callable[[], Any], runs: int, seconds: float) -> NDArray:
    for _ in range(REFRESH):
        call()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < runs or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return np.array(times)


def summarize(rounds: Sequence[NDArray]) -> dict[str, Any]:
    """Describes the rounds of one function, as `measure_latencies` does a file's.

    Args:
        rounds: A list of arrays of seconds.

    Returns:
        The figures of `measure_latencies` that need no second file.
    """
    times = np.concatenate(rounds) * 1000
    medians = [float(np.median(one)) * 1000 for one in rounds]
    p25, p50, p75, p90 = (float(p) for p in np.percentile(times, [25, 50, 75, 90]))
    low, high = rank_interval(medians)
    return {
        "latency_ms_p50": p50,
        "latency_ms_p90": p90,
        "latency_ms_max": float(times.max()),
        "p50_interval_ms": [low, high],
        "settled": high - low <= 2 * SETTLED * p50,
        "outliers": int((times > p75 + 1.5 * (p75 - p25)).sum()),
        "runs": len(times),
        "rounds_ms": medians,
    }


def add_ratios(entries: Sequence[dict[str, Any]]) -> None:
    """Adds to each entry its ratio to the first that ran on the same kernels.

    Args:
        entries: Dictionaries with `resolver` and `rounds_ms`; `ratio` and
            `ratio_interval` are added, of the rounds taken side by side. Where one
            took more rounds than the other the first of them are compared. Both are
            `None` where a program rounded the first one's time to 0.
    """
    first: dict = {}
    for entry in entries:
        base = first.setdefault(entry["resolver"], entry)["rounds_ms"]
        entry["ratio"] = entry["ratio_interval"] = None
        if all(base):
            pairs = zip(entry["rounds_ms"], base, strict=False)
            ratios = [own / other for own, other in pairs]
            entry["ratio"] = float(np.median(ratios))
            entry["ratio_interval"] = list(rank_interval(ratios))


def rank_interval(values: Sequence[float]) -> tuple[float, float]:
    """The values that a median lies between with 95 % confidence, by their ranks.

    Of five values or fewer these are the least and the greatest, with less
    confidence.
    """
    ordered = sorted(values)
    rank = max(int(binom.ppf(0.025, len(ordered), 0.5)) - 1, 0)
    return ordered[rank], ordered[-1 - rank]


def _check_runs(runs: int, warmup: int) -> None:
    if runs < 1 or warmup < 0:
        raise ValueError(
            f"runs must be >= 1 and warmup >= 0. Received: {runs} and {warmup}"
        )
