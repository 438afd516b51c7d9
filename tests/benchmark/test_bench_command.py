"""`kdprune bench`: what it prints and writes, and one clear line when wrong."""

import json
import os
import shlex

import pytest

from kdprune import cli
from kdprune.benchmark import latency
from kdprune.cli import app
from kdprune.cli import bench as bench_command


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch):
    """Ten rounds and no more, for the sake of time, however busy the machine is."""
    monkeypatch.setattr(latency, "MOST_ROUNDS", latency.ROUNDS)


@pytest.fixture
def idle(monkeypatch):
    """A machine that has nothing else to do, whatever it really does."""
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))


def test_the_kernels_of_the_command_are_those_of_the_interpreter():
    from kdprune.tflite import interpreter

    assert set(bench_command.RESOLVERS) == set(interpreter.RESOLVERS)


def bench(capsys, *arguments):
    assert cli.main(["bench", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def refused(capsys, *arguments):
    assert cli.main(["bench", *map(str, arguments)]) == 2
    lines = capsys.readouterr().err.strip().split("\n")
    assert len(lines) == 1 and lines[0].startswith("kdprune: "), lines
    return lines[0]


@pytest.mark.slow
def test_files_are_measured_recorded_and_drawn(tflites, tmp_path, capsys, idle):
    files = [tflites["float32"], tflites["int8"]]
    out, record = bench_and_record(capsys, tmp_path, *files)
    assert [(e["file"], e["resolver"]) for e in record["latencies"]] == [
        (str(path), resolver) for resolver in ("builtin", "xnnpack") for path in files
    ]
    for entry in record["latencies"]:
        start = [entry["file"], entry["resolver"]]
        row = next(line for line in out.splitlines() if line.split()[:2] == start)
        assert f"{entry['latency_ms_p50']:.4g}" in row
        assert f"{entry['outliers']:,} of {entry['runs']:,}" in row
    assert len(record["profiles"]) == 4
    assert "stem" in out and "calls and hand-over" in out
    assert record["load"] == {"before": 0.0, "after": 0.0} and not record["busy"]
    assert "warning" not in out
    assert record["machine"]["cores"] == len(os.sched_getaffinity(0))
    assert record["versions"]["ai-edge-litert"]
    assert record["command"].split()[0]
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")


def bench_and_record(capsys, folder, *files):
    out = bench(
        capsys,
        *files,
        *("--resolvers", "builtin", "xnnpack", "builtin", "--runs", 20, "--profile"),
        *("--json", folder / "bench.json", "--plot", folder / "bench.png"),
    )
    return out, json.loads((folder / "bench.json").read_text())


def test_a_busy_machine_is_warned_of(tflites, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (1.2, 0.0, 0.0))
    path = tmp_path / "bench.json"
    out = bench(capsys, tflites["int8"], "--runs", 10, "--json", path)
    # What is measured makes a load of 1 itself: 1.2 after it is no sign, before is.
    assert out.count("warning: the machine is busy (load average 1.20)") == 1
    assert json.loads(path.read_text())["busy"] is True


def test_without_a_phone_the_commands_to_run_are_printed(tflites, capsys, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    out = bench(
        capsys,
        "--adb",
        tflites["int8"],
        "--benchmark-model",
        "/data/bm",
        "--threads",
        2,
    )
    push, run, remove = (
        shlex.split(line) for line in out.splitlines() if line.startswith("adb ")
    )
    assert push == ["adb", "push", str(tflites["int8"]), "/data/local/tmp/int8.tflite"]
    assert run[:2] == ["adb", "shell"] and run[3:] == ["|", "tee", "-a", "phone.txt"]
    assert shlex.split(run[2])[0] == "/data/bm" and "--num_threads=2" in run[2]
    assert remove[2] == "rm /data/local/tmp/int8.tflite"
    assert "kdprune bench --import phone.txt" in out


def test_the_files_stay_on_the_phone_until_every_turn_is_run(
    tflites, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("PATH", "/nowhere")
    files = [tflites["int8"], tflites["float32"]]
    out = bench(capsys, "--adb", *files, "--resolvers", "xnnpack", "builtin")
    pushing, running, removing, *_ = out.split(":\n\n")[1:]
    commands = [
        [shlex.split(line)[1:] for line in part.splitlines() if line[:4] == "adb "]
        for part in (pushing, running, removing)
    ]
    kinds = [[command[0] for command in part] for part in commands]
    assert kinds == [["push"] * 2, ["shell"] * 4, ["shell"] * 2]
    assert all("--graph=" in command[1] for command in commands[1])
    assert [command[1] for command in commands[2]] == [
        "rm /data/local/tmp/int8.tflite",
        "rm /data/local/tmp/float32.tflite",
    ]
    assert (
        "three times, interleaved" in pushing and "kdprune bench --import" in removing
    )
    (tmp_path / "int8.tflite").write_bytes(tflites["int8"].read_bytes())
    line = refused(capsys, "--adb", tflites["int8"], tmp_path / "int8.tflite")
    assert "need different names" in line


def test_a_phone_s_log_is_shown_and_recorded(tmp_path, capsys):
    log = (
        "Log parameter values verbosely: [0]\nNum threads: [1]\nGraph: [/d/NAME]\n"
        "Use xnnpack: [1]\ncount=9 first=1 curr=1 min=1 max=9 avg=5 std=1 p5=1 "
        "median=5 p95=9\n\ncount=200 first=600 curr=600 min=500 max=900 avg=640 std=9 "
        "p5=510 median=MEDIAN p95=800\n\nInference timings in us: Init: 1\n"
    )
    a = log.replace("NAME", "a.tflite").replace("MEDIAN", "600")
    b = log.replace("NAME", "b.tflite").replace("MEDIAN", "450")
    (tmp_path / "phone.txt").write_text(a + b)
    out = bench(
        capsys,
        *("--import", tmp_path / "phone.txt", "--json", tmp_path / "phone.json"),
        *("--plot", tmp_path / "phone.svg"),
    )
    assert "b.tflite  xnnpack" in out and "0.45" in out and "0.750" in out
    record = json.loads((tmp_path / "phone.json").read_text())
    assert [entry["latency_ms_p50"] for entry in record["results"]] == [0.6, 0.45]
    # They were measured elsewhere: this machine is none of theirs.
    assert "machine" not in record
    assert "b.tflite, xnnpack" in (tmp_path / "phone.svg").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expects .tflite files, or --import RESULT"),
        (["absent.tflite"], "no model file at absent.tflite"),
        (["WORDS"], "words.tflite: not a .tflite model"),
        (["--adb", "WORDS"], "words.tflite: not a .tflite model"),
        (["FILE", "--runs", "0"], "expect a number >= 1. Received: 0"),
        (["FILE", "--threads", "0"], "expect a number >= 1"),
        (["FILE", "--resolvers", "gpu"], "Received: 'gpu'"),
        (["FILE", "--resolvers", "xnnpack", "FILE"], "files stand before --resolvers"),
        (["--adb", "FILE", "--resolvers", "reference"], "xnnpack or builtin"),
        (["FILE", "--json", "nowhere/out.json"], "its folder does not exist"),
        (["FILE", "--json", "."], "--json expects a file. Received: ., a folder"),
        (["FILE", "--plot", "out.pdf"], "--plot expects OUT.png or OUT.svg"),
        (["FILE", "--import", "WORDS"], "expects .tflite files, or --import"),
        (["--import", "WORDS"], "expected the output of benchmark_model"),
        (["--import", "absent.txt"], "no result at absent.txt"),
    ],
)
def test_bad_input_is_one_line(
    tflites, tmp_path, capsys, monkeypatch, arguments, message
):
    monkeypatch.setenv("PATH", "/nowhere")
    (tmp_path / "words.tflite").write_text("these are words, not a model")
    places = {"FILE": tflites["int8"], "WORDS": tmp_path / "words.tflite"}
    line = refused(capsys, *(places.get(part, part) for part in arguments))
    assert message in line


def test_the_help_teaches_by_examples_that_parse(capsys):
    lines = bench_command.DESCRIPTION.splitlines()
    examples = [line.strip() for line in lines if line.startswith("  kdprune bench ")]
    assert len(examples) >= 6
    for example in examples:
        options = app._parser().parse_args(shlex.split(example)[1:])
        assert options.function is bench_command.run
        assert set(options.resolvers) <= set(bench_command.RESOLVERS)
    with pytest.raises(SystemExit):
        cli.main(["bench", "--help"])
    assert all(example in capsys.readouterr().out for example in examples[:1])
