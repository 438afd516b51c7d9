"""Latency: rounds, medians and their intervals, ratios, and what disturbs them."""

import math
import types

import numpy as np
import pytest

from kdprune.benchmark import latency, measure_latency
from kdprune.benchmark.latency import (
    add_ratios,
    measure_latencies,
    rank_interval,
    summarize,
    time_interleaved,
)


@pytest.fixture
def clock(monkeypatch):
    """A clock that only the timed functions move on, in seconds."""
    now = types.SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(
        latency, "time", types.SimpleNamespace(perf_counter=lambda: now.seconds)
    )
    return now


def test_functions_are_interleaved_after_all_are_warm(clock):
    order = []
    calls = [lambda name=name: order.append(name) for name in "AB"]
    timings = time_interleaved(calls, runs=70, warmup=4, seconds=0.0)
    runs = latency.REFRESH + 7
    assert "".join(order) == "AAAABBBB" + ("A" * runs + "B" * runs) * latency.ROUNDS
    assert [[len(one) for one in rounds] for rounds in timings] == [[7] * 10] * 2


def test_a_fast_function_is_run_for_as_long_as_was_asked(clock):
    def call():
        clock.seconds += 1e-3

    (rounds,) = time_interleaved([call], runs=1, warmup=0, seconds=0.5)
    assert 500 <= sum(map(len, rounds)) <= 520
    assert np.concatenate(rounds) == pytest.approx(1e-3)


def test_a_disturbance_that_lasts_meets_all_alike_and_leaves_the_ratio(clock):
    count = [0]

    def call(milliseconds):
        # Halfway the machine becomes three times as slow, and stays so.
        slow = 3 if count[0] > 5 * 2 * (latency.REFRESH + 20) else 1
        clock.seconds += slow * milliseconds / 1000
        count[0] += 1

    calls = [lambda: call(2.0), lambda: call(1.0)]
    timings = time_interleaved(calls, runs=200, warmup=0, seconds=0.0)
    entries = [{"resolver": "xnnpack", **summarize(rounds)} for rounds in timings]
    add_ratios(entries)
    assert entries[0]["ratio"] == 1.0
    assert entries[1]["ratio"] == pytest.approx(0.5)
    assert entries[1]["ratio_interval"] == pytest.approx([0.5, 0.5])
    low, high = entries[0]["p50_interval_ms"]
    assert (low, high) == pytest.approx((2, 6)) and not entries[0]["settled"]


@pytest.mark.parametrize(("spread", "rounds"), [(0.0, 10), (0.5, 40)])
def test_rounds_are_added_until_the_median_has_settled(clock, spread, rounds):
    random = np.random.default_rng(0)
    state = [0, 1.0]

    def call():
        if state[0] % (latency.REFRESH + latency.ROUND_RUNS) == 0:
            state[1] = random.uniform(1, 1 + spread)
        state[0] += 1
        clock.seconds += state[1] / 1000

    (timed,) = time_interleaved([call], runs=10, warmup=0, seconds=0.0, settle=True)
    assert len(timed) == rounds


def test_a_summary_counts_what_is_slower_than_chance():
    rounds = [np.full(20, 1e-3) + np.linspace(0, 1e-5, 20) for _ in range(10)]
    rounds[3][4] = rounds[7][9] = 5e-3
    summary = summarize(rounds)
    assert summary["latency_ms_p50"] == pytest.approx(1.005, abs=1e-3)
    assert summary["latency_ms_p90"] == pytest.approx(1.0095, abs=1e-3)
    assert summary["latency_ms_max"] == 5.0
    assert (summary["outliers"], summary["runs"]) == (2, 200)
    assert len(summary["rounds_ms"]) == 10 and summary["settled"] is True


@pytest.mark.parametrize(("rounds", "rank"), [(3, 1), (5, 1), (10, 2), (40, 14)])
def test_an_interval_holds_the_median_in_95_of_100_cases(rounds, rank):
    values = list(range(1, rounds + 1))[::-1]
    assert rank_interval(values) == (rank, rounds + 1 - rank)
    # The binomial distribution, summed by hand: each value is as likely below the
    # median as above it.
    outside = 2 * sum(math.comb(rounds, below) for below in range(rank)) / 2**rounds
    next_outside = outside + 2 * math.comb(rounds, rank) / 2**rounds
    assert next_outside > 0.05
    assert outside <= 0.05 or rank == 1


def test_files_and_kernels_are_measured_side_by_side(tflites):
    paths = [tflites["float32"], tflites["int8"]]
    entries = measure_latencies(
        paths, ["xnnpack", "builtin"], runs=50, warmup=2, settle=False
    )
    assert [(entry["file"], entry["resolver"]) for entry in entries] == [
        (str(path), resolver) for resolver in ("xnnpack", "builtin") for path in paths
    ]
    for entry in entries:
        p50, p90, most = (entry[f"latency_ms_{name}"] for name in ("p50", "p90", "max"))
        assert 0 < p50 <= p90 <= most
        assert entry["runs"] >= 50 and len(entry["rounds_ms"]) == 10
        assert 0 <= entry["outliers"] < entry["runs"] / 2
    assert [entry["ratio"] for entry in entries[::2]] == [1.0, 1.0]
    assert all(entry["ratio"] > 0 for entry in entries)


def test_one_file_is_measured_by_the_same_means(tflites):
    entry = measure_latency(tflites["int8"], runs=5, warmup=1, threads=1)
    assert set(entry) == set(
        measure_latencies([tflites["int8"]], runs=5, settle=False)[0]
    )
    assert entry["ratio"] == 1.0


def test_runs_below_one_and_unknown_kernels_are_refused(tflites):
    with pytest.raises(ValueError, match="runs must be >= 1"):
        measure_latencies([tflites["int8"]], runs=0)
    with pytest.raises(ValueError, match="resolver must be one of"):
        measure_latencies([tflites["int8"]], ["gpu"])
