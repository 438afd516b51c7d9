"""The picture of `kdprune bench`, drawn from its record alone."""

from kdprune.report.bench_plot import draw_bench


def entry(file, p50, p90, ratio, resolver="xnnpack"):
    return {
        "file": file,
        "resolver": resolver,
        "threads": 1,
        "latency_ms_p50": p50,
        "latency_ms_p90": p90,
        "rounds_ms": [p50, 1.01 * p50],
        "ratio": ratio,
    }


def profile(file, rest):
    ops = [("CONV_2D", 60.0), ("ADD", 30.0), ("SOFTMAX", 0.1)]
    whole = sum(us for _, us in ops) + rest
    return {
        "file": file,
        "resolver": "xnnpack",
        "whole_us": whole,
        "rest_us": rest,
        "ops": [{"op": op, "us": us, "share": us / whole} for op, us in ops],
    }


def test_latencies_ratios_and_operators_are_drawn():
    record = {
        "machine": {"processor": "A Processor"},
        "busy": True,
        "latencies": [
            entry("runs/a/model.tflite", 0.1, 0.11, 1.0),
            entry("runs/a/small$2.tflite", 0.05, 9.0, 0.5),
        ],
        "profiles": [
            profile("runs/a/model.tflite", 9.9),
            profile("runs/a/small$2.tflite", -5.0),
        ],
    }
    svg = draw_bench(record, "svg").decode()
    for text in ("small$2.tflite, xnnpack", "0.05 ms", "0.50", "1 thread; A Processor"):
        assert text in svg, text
    assert "runs/a" not in svg and "on a busy machine" in svg
    assert "p90 further right" in svg
    # What takes less than a hundredth everywhere is one of the others.
    assert "CONV_2D" in svg and "others" in svg and "SOFTMAX" not in svg
    assert draw_bench(record, "svg").decode() == svg
    assert draw_bench(record, "png").startswith(b"\x89PNG")


def test_files_of_the_same_name_keep_what_differs_of_their_folders():
    files = [f"a/long/way/{run}/m.tflite" for run in ("one", "two")]
    record = {"latencies": [entry(file, 0.1, 0.1, 1.0) for file in files]}
    svg = draw_bench(record, "svg").decode()
    assert "one/m.tflite, xnnpack" in svg and "two/m.tflite, xnnpack" in svg
    assert "way" not in svg


def test_results_of_other_programs_may_lack_medians_and_ratios():
    result = {
        "file": "a.tflite",
        "resolver": "benchmark_model",
        "threads": None,
        "latency_ms_p50": None,
        "latency_ms_p95": None,
        "latency_ms_mean": 0.2,
        "rounds_ms": [0.2],
        "ratio": None,
    }
    svg = draw_bench({"results": [result]}, "svg").decode()
    assert "0.2 ms" in svg and "p50 or mean" in svg
    assert "threads unknown" in svg and "up to p95" in svg
    zero = {"latency_ms_p50": 0.0, "latency_ms_mean": 0.0, "latency_ms_p95": 0.0}
    assert draw_bench({"results": [result | zero]}, "png")
