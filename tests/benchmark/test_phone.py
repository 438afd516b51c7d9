"""The runtime's own programs: litert-benchmark for real, a phone by its words.

No phone is here, nor a `benchmark_model` to run: the logs below have the form that
its sources print (benchmark_model.cc, stats_calculator.h and
profile_summary_formatter.cc of LiteRT), with figures made up for the test. The JSON
is recorded from litert-benchmark of ai-edge-litert 2.3. `adb` is a stand-in that
writes down what it is asked and answers such a log.
"""

import json
import stat

import pytest

from kdprune.benchmark import phone
from kdprune.benchmark.phone import (
    describe_phone,
    phone_commands,
    phone_is_there,
    read_results,
    run_litert_benchmark,
    run_on_phone,
)

LOG = """\
INFO: STARTING!
INFO: Log parameter values verbosely: [0]
INFO: Min num runs: [200]
INFO: Num threads: [1]
INFO: Graph: [/data/local/tmp/GRAPH]
INFO: Use xnnpack: [1]
INFO: Loaded model /data/local/tmp/GRAPH
INFO: Created TensorFlow Lite XNNPACK delegate for CPU.
INFO: The input model file size (MB): 0.095792
INFO: Initialized session in 2.125ms.
INFO: Running benchmark for at least 1 iterations and at least 0.5 seconds but \
terminate if exceeding 150 seconds.
INFO: count=812 first=1034 curr=601 min=580 max=1034 avg=613.5 std=31 p5=584 \
median=604 p95=671

INFO: Running benchmark for at least 200 iterations and at least 1 seconds but \
terminate if exceeding 150 seconds.
INFO: count=1630 first=602 curr=607 min=579 max=2310 avg=611.2 std=55 p5=583 \
median=MEDIAN p95=668

INFO: Inference timings in us: Init: 2125, First inference: 1034, Warmup (avg): \
613.5, Inference (avg): 611.2
INFO: Note: as the benchmark tool itself affects memory footprint, the following is \
only APPROXIMATE to the actual memory footprint of the model at runtime.
INFO: Memory footprint delta from the start of the tool (MB): init=1.5 overall=2.5
"""
HEAD = "\t[node type]\t  [first]\t [avg ms]\t     [%]\t  [cdf%]\t  [mem KB]\t"
HEAD += "[times called]\t[Name]\n"
TOP = "============================== Top by Computation Time ====================\n"
PROFILE = f"""\
INFO: Profiling Info for Benchmark Initialization:
============================== Run Order ==============================
{HEAD}\t  Allocate\t    0.102\t    0.102\t  9%\t9%\t 0.0\t1\tAllocate/0

{TOP}{HEAD}\t  Allocate\t    0.102\t    0.102\t  9%\t9%\t 0.0\t1\tAllocate/0

Timings (microseconds): count=1 curr=102
INFO: Operator-wise Profiling Info for Regular Benchmark Runs:
============================== Run Order ==============================
{HEAD}\t  TfLiteXNNPackDelegate\t 0.59\t 0.58\t 9%\t 9%\t 0.0\t1\t[logits]:15
\t         SOFTMAX\t    0.011\t    0.010\t  3%\t100%\t  0.0\t  1\t[Softmax]:14

{TOP}{HEAD}\t  TfLiteXNNPackDelegate\t 0.59\t 0.58\t 9%\t 9%\t 0.0\t1\t[logits]:15

Delegate internal:
============================== Run Order ==============================
{HEAD}\t  Convolution (NHWC, QC8) IGEMM\t 0.5\t 0.45\t 9%\t 9%\t 0.0\t1\tDelegate/Conv:0
\t  Add (ND, QS8)\t    0.120\t    0.125\t  22%\t100%\t  0.0\t  1\tDelegate/Add:1

Timings (microseconds): count=1630 first=590 curr=590 min=570 max=900 avg=590 std=9
"""
RECORDED = {
    "model": "results/cifar10/model_int8.tflite",
    "model_size_mb": 0.09,
    "accelerators": ["CPU"],
    "signature": "serving_default",
    "fully_accelerated": False,
    "num_threads": 1,
    "latency": {
        "init_ms": 55.93,
        "warmup_first_ms": 112.26,
        "warmup_avg_ms": 22.53,
        "num_warmup_runs": 5,
        "avg_ms": 2.28,
        "min_ms": 0.08,
        "max_ms": 65.89,
        "median_ms": 0.08,
        "std_ms": 12.02,
        "p5_ms": 0.08,
        "p95_ms": 0.12,
        "num_runs": 30,
    },
    "throughput_mb_s": 1.29,
}


def log(graph="a.tflite", median=600, profile=False):
    text = LOG.replace("GRAPH", graph).replace("MEDIAN", str(median))
    return text + PROFILE if profile else text


def read(tmp_path, *texts):
    paths = [tmp_path / f"result{i}.txt" for i in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text)
    return read_results(paths)


def test_a_log_tells_the_timed_runs_not_the_warm_up(tmp_path):
    (entry,) = read(tmp_path, log())
    assert (entry["file"], entry["resolver"]) == ("a.tflite", "xnnpack")
    assert (entry["threads"], entry["runs"]) == (1, 1630)
    assert entry["latency_ms_p50"] == 0.6
    assert entry["latency_ms_p95"] == 0.668
    assert entry["latency_ms_mean"] == pytest.approx(0.6112)
    assert entry["latency_ms_max"] == 2.31
    assert (entry["tool"], entry["ops"]) == ("benchmark_model", [])


def test_runs_of_the_same_file_are_rounds_and_ratios_go_round_by_round(tmp_path):
    # The phone becomes slower by half from round to round; b stays twice as fast.
    texts = [log("a.tflite", m) + log("b.tflite", m // 2) for m in (600, 900, 1300)]
    a, b = read(tmp_path, "".join(texts[:2]), texts[2])
    assert a["rounds_ms"] == [0.6, 0.9, 1.3] and a["latency_ms_p50"] == 0.9
    assert a["runs"] == 3 * 1630 and a["ratio"] == 1.0
    assert b["latency_ms_p50"] == 0.45
    assert (b["ratio"], b["ratio_interval"]) == (0.5, [0.5, 0.5])


def test_kernels_are_told_apart(tmp_path):
    builtin = log().replace("Use xnnpack: [1]", "Use xnnpack: [0]")
    untold = log().replace("INFO: Use xnnpack: [1]\n", "")
    entries = read(tmp_path, log(), builtin, untold)
    assert [e["resolver"] for e in entries] == ["xnnpack", "builtin", "benchmark_model"]
    assert [e["ratio"] for e in entries] == [1.0] * 3


def test_operators_are_read_and_a_delegate_not_counted_twice(tmp_path):
    (entry,) = read(tmp_path, log(profile=True))
    assert entry["latency_ms_p50"] == 0.6
    assert [(op["op"], op["layer"], op["us"]) for op in entry["ops"]] == [
        ("SOFTMAX", "[Softmax]:14", 10.0),
        ("Convolution (NHWC, QC8) IGEMM", "Delegate/Conv:0", 450.0),
        ("Add (ND, QS8)", "Delegate/Add:1", 125.0),
    ]


def test_a_log_of_an_android_app_is_read(tmp_path):
    lines = log(profile=True).replace("INFO: ", "").split("\n")
    text = "\r\n".join(f"07-14 13:14:52.097 22838 22838 I tflite  : {x}" for x in lines)
    assert read(tmp_path, text) == read(tmp_path, log(profile=True))


def test_versions_without_percentiles_give_a_mean_and_no_median(tmp_path):
    old = log().replace(" p5=583 median=600 p95=668", "")
    old = old.replace("avg=611.2", "avg=2.44949e+06")
    (entry,) = read(tmp_path, old)
    assert entry["latency_ms_p50"] is None and entry["latency_ms_p95"] is None
    assert entry["latency_ms_mean"] == 2449.49 and entry["rounds_ms"] == [2449.49]
    same = "count=50 curr=700(all same) p5=700 median=700 p95=700"
    start = log().index("count=1630")
    text = log()[:start] + same + log()[log().index("\n", start) :]
    (entry,) = read(tmp_path, text)
    assert entry["latency_ms_p50"] == entry["latency_ms_max"] == 0.7


def test_recorded_json_of_litert_benchmark_is_read(tmp_path):
    (entry,) = read(tmp_path, json.dumps(RECORDED))
    assert entry["file"] == "results/cifar10/model_int8.tflite"
    assert (entry["tool"], entry["threads"]) == ("litert-benchmark", 1)
    assert (entry["latency_ms_p50"], entry["latency_ms_p95"]) == (0.08, 0.12)
    assert (entry["latency_ms_mean"], entry["runs"]) == (2.28, 30)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected the output of benchmark_model"),
        ("count=3 avg=7 but no summary", "expected the output of benchmark_model"),
        (LOG[: LOG.index("count=812")], "expected the output of benchmark_model"),
        ('{"latency": {}}', "expected the JSON of litert-benchmark"),
        ("{ half", "expected the JSON of litert-benchmark"),
        *(
            (
                json.dumps({**RECORDED, "latency": {**RECORDED["latency"], **wrong}}),
                said,
            )
            for wrong, said in [
                ({"median_ms": "0.08"}, "latency.median_ms: .* got '0.08'"),
                ({"median_ms": -1}, "latency.median_ms: .* got -1"),
                ({"median_ms": float("nan")}, "latency.median_ms: .* got nan"),
                ({"p95_ms": 10**400}, "latency.p95_ms: .* got 1000"),
                ({"num_runs": 0}, "latency.num_runs: .* got 0"),
            ]
        ),
        (json.dumps(RECORDED).replace("0.08", "1e999"), "median_ms: .* got inf"),
        (json.dumps(RECORDED).replace("0.08", "9" * 5000), "Exceeds the limit"),
        ('{"a":' * 9_000 + "1" + "}" * 9_000, "expected the JSON of litert-benchmark"),
        (LOG.replace("avg=", "avg=-"), "expected the figures of benchmark_model"),
        (LOG.replace("avg=", "avg=1e400"), "expected the figures of benchmark_model"),
        (LOG.replace("count=", "count=" + "9" * 5000), "expected the figures of"),
        (LOG.replace("avg=", "arg="), "expected the figures of benchmark_model"),
    ],
)
def test_other_files_are_refused_by_name(tmp_path, text, message):
    with pytest.raises(ValueError, match=message) as caught:
        read(tmp_path, text)
    assert "result0.txt" in str(caught.value) and "\n" not in str(caught.value)


def test_a_result_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no result at"):
        read_results([tmp_path / "absent.txt"])


def test_litert_benchmark_really_runs(tflites, monkeypatch):
    monkeypatch.setattr(phone, "ROUNDS", 1)
    (entry,) = run_litert_benchmark([tflites["int8"]], runs=20, warmup=2)
    assert entry["file"] == str(tflites["int8"])
    assert (entry["runs"], entry["threads"]) == (20, 1)
    # It rounds to 0.01 ms, more than so small a net may take.
    assert entry["ratio"] == (None if entry["latency_ms_p50"] == 0 else 1.0)
    assert 0 <= entry["latency_ms_p50"] <= entry["latency_ms_max"]


def test_a_file_that_litert_benchmark_refuses_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(phone, "ROUNDS", 1)
    (tmp_path / "bad.tflite").write_bytes(b"\x1c\0\0\0TFL3" + bytes(30))
    with pytest.raises(ValueError, match=r"litert-benchmark on .*bad\.tflite failed"):
        run_litert_benchmark([tmp_path / "bad.tflite"])


def test_the_commands_for_a_phone_stand_quoting():
    push, run, remove = phone_commands(
        "kits/my model.tflite", resolver="builtin", runs=50, profile=True
    )
    place = "/data/local/tmp/my model.tflite"
    assert push == ["adb", "push", "kits/my model.tflite", place]
    assert run[:2] == ["adb", "shell"] and run[2].endswith(" 2>&1")
    assert run[2].startswith("/data/local/tmp/benchmark_model '--graph=/data/local/tmp")
    for option in ("num_threads=1", "num_runs=50", "use_xnnpack=false"):
        assert f"--{option}" in run[2]
    assert "--enable_op_profiling=true" in run[2]
    assert remove == ["adb", "shell", f"rm '{place}'"]
    with pytest.raises(ValueError, match="xnnpack or builtin kernels"):
        phone_commands("a.tflite", resolver="reference")


@pytest.fixture
def adb(tmp_path, monkeypatch):
    """A stand-in for adb, on the path; what it was asked is in `asked`."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "log").write_text(log("$1", 600))
    script = tmp_path / "bin" / "adb"
    script.write_text(
        f"""#!/bin/sh
echo "$*" >> {tmp_path}/asked
case "$*" in
  get-state) echo device ;;
  *benchmark_model*) name=${{2#*tmp/*tmp/}}
    sed "s/\\$1/${{name%% *}}/" {tmp_path}/log ;;
  *getprop*model) echo Pixel 9 ;;
esac
"""
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    return tmp_path / "asked"


def test_a_phone_is_measured_interleaved_and_left_clean(adb, tflites):
    assert phone_is_there()
    assert describe_phone()["model"] == "Pixel 9"
    adb.unlink()
    files = [tflites["float32"], tflites["int8"]]
    entries = run_on_phone(files, threads=2, runs=30)
    assert [entry["file"] for entry in entries] == [path.name for path in files]
    assert [len(entry["rounds_ms"]) for entry in entries] == [3, 3]
    asked = [line.split()[:2] for line in adb.read_text().splitlines()]
    round = [["shell", phone.BENCHMARK_MODEL]] * 2
    assert (
        asked
        == [["push", str(path)] for path in files] + round * 3 + [["shell", "rm"]] * 2
    )
    runs = [x for x in adb.read_text().splitlines() if "benchmark_model" in x]
    assert ["int8" in line for line in runs] == [False, True] * 3


def test_files_of_the_same_name_do_not_meet_on_a_phone(adb, tflites, tmp_path):
    duplicate = tmp_path / tflites["int8"].name
    duplicate.write_bytes(tflites["int8"].read_bytes())
    with pytest.raises(ValueError, match="need different names"):
        run_on_phone([tflites["int8"], duplicate])
    assert not adb.exists()


def test_a_phone_without_the_program_is_one_line(adb, tflites, tmp_path):
    (tmp_path / "bin" / "adb").write_text(
        '#!/bin/sh\ncase "$*" in *benchmark_model*) echo sh: not found; exit 127;; esac'
    )
    with pytest.raises(
        ValueError, match="on the phone failed with status 127: sh: not"
    ):
        run_on_phone([tflites["int8"]])


def test_no_adb_is_no_phone(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not phone_is_there()
