"""How long one image takes."""

import time
from pathlib import Path

import numpy as np

from kdprune.evaluate.tflite import open_interpreter

MINIMUM_SECONDS = 0.5
METHOD = "batch 1, random input, wall time of the Python interpreter's invoke()"


def measure_latency(path, *, threads=1, resolver="xnnpack", runs=200, warmup=20):
    """Measures the time a `.tflite` file takes for one image on this machine.

    Runs at least `runs` times and at least half a second, so that a fast model
    is not judged by a moment's disturbance. The median is the figure to compare;
    a 90th percentile far above it tells of a busy machine.

    Args:
        path: A `.tflite` file.
        threads: Threads of the runtime. One is comparable; small nets gain
            nothing from more.
        resolver: `"xnnpack"`, `"builtin"` or `"reference"`.
        runs: Least number of timed runs, at least 1.
        warmup: Untimed runs before them.

    Returns:
        `{"latency_ms_p50", "latency_ms_p90", "runs", "threads", "resolver",
        "method"}`, times in milliseconds, or `None` for a Keras file: Python's
        share of its time would say nothing about a device.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be run, or an argument is not valid.
    """
    if runs < 1 or warmup < 0:
        raise ValueError(
            f"runs must be >= 1 and warmup >= 0. Received: {runs} and {warmup}"
        )
    if Path(path).suffix != ".tflite":
        return None
    interpreter = open_interpreter(path, resolver, threads)
    _feed_random(interpreter)
    for _ in range(warmup):
        interpreter.invoke()
    seconds = []
    end = time.perf_counter() + MINIMUM_SECONDS
    while len(seconds) < runs or time.perf_counter() < end:
        start = time.perf_counter()
        interpreter.invoke()
        seconds.append(time.perf_counter() - start)
    p50, p90 = np.percentile(seconds, [50, 90]) * 1000
    return {
        "latency_ms_p50": float(p50),
        "latency_ms_p90": float(p90),
        "runs": len(seconds),
        "threads": threads,
        "resolver": resolver,
        "method": METHOD,
    }


def _feed_random(interpreter):
    """Fills the input: zeros could meet shortcuts that no photograph does."""
    detail = interpreter.get_input_details()[0]
    random = np.random.default_rng(0)
    if np.issubdtype(detail["dtype"], np.integer):
        limits = np.iinfo(detail["dtype"])
        values = random.integers(limits.min, limits.max, detail["shape"], endpoint=True)
    else:
        values = random.random(detail["shape"])
    interpreter.set_tensor(detail["index"], values.astype(detail["dtype"]))
