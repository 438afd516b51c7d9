"""The plot of methods by size, made by its script from a run's records."""

import pathlib
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).parents[2] / "scripts" / "plot_methods.py"


def run(*arguments):
    return subprocess.run(
        [sys.executable, SCRIPT, *arguments], capture_output=True, text=True
    )


@pytest.fixture
def folder(records):
    """Two methods at two sizes, float and int8, three seeds each."""
    records.add("large", (0.9, 0.91, 0.9))
    for size, kilobytes in (("small", 45), ("tiny", 20)):
        for method, gain in (("alone", 0.0), ("distilled_pruned", 0.01)):
            for dtype, factor in (("float32", 4), ("int8", 1)):
                stage = f"{size}_{method}" + ("_int8" if dtype == "int8" else "")
                packed = 1000 * kilobytes * factor
                entry = {"format": "tflite", "dtype": dtype, "resolver": "xnnpack"}
                entry |= {"bytes": packed + 9000, "bytes_gzip": packed}
                scores = tuple(
                    0.7 + gain + kilobytes / 500 + s for s in (0, 0.01, -0.01)
                )
                records.add(f"{stage}_{dtype}", scores, stage=stage, entry=entry)
                if dtype == "float32":  # its Keras model, which is no file to ship
                    records.add(stage, scores, entry={"bytes": 9, "bytes_gzip": 9})
    records.run(baseline="large")
    return records.folder


def test_each_method_is_a_line_and_a_row_for_each_size(folder, tmp_path):
    done = run(folder, "--sizes", "small", "tiny", "--out", tmp_path / "methods.svg")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "methods.svg").read_text()
    for words in ("float32 files", "int8 files", "alone", "distilled, pruned"):
        assert words in text
    rows = done.stdout.splitlines()
    assert len(rows) == 8
    assert "| int8 | distilled, pruned | 80.00 ± 1.00 | 54,000 | 45,000 | – |" in rows


def test_what_it_cannot_draw_gets_one_line(folder, tmp_path):
    for arguments, message in (
        (("--sizes", "huge", "--out", tmp_path / "methods.png"), "named SIZE_METHOD"),
        (
            ("--sizes", "small", "--out", tmp_path / "methods.pdf"),
            "a .png or .svg",
        ),
    ):
        done = run(folder, *arguments)
        assert done.returncode == 2 and message in done.stderr
