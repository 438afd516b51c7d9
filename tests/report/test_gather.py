"""Gathering a run: one file of all records, and the files that records name."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from kdprune._io import sha256
from kdprune.report import gather_results, write_report
from kdprune.report.read import read_run

SCRIPT = Path(__file__).parents[2] / "scripts" / "gather_results.py"


def describe(path):
    return {"sha256": sha256(path), "bytes": path.stat().st_size}


@pytest.fixture
def run(records):
    """A run with a history, two published models, a kit, a report and loose files."""
    folder = records.add("alone", (0.64, 0.65)).add("student", (0.7, 0.71)).folder
    (folder / "alone--seed=1/history.csv").write_text(
        "epoch,loss,val_accuracy\n1,0.123456789012,0.5\n2,nan,0.6\n"
    )
    records.run()
    kit = folder / "kit/box"
    kit.mkdir(parents=True)
    (kit / "model.h").write_text("int model;")
    (folder / "model_int8.tflite").write_bytes(b"small")
    (folder / "student.keras").write_bytes(b"large")
    (folder / "notes.txt").write_text("of the user's own")
    shown = {"student.keras": describe(folder / "student.keras")}
    for name, record in (
        (
            "evaluate",
            {
                "kind": "evaluate",
                "outputs": {
                    "../metrics.json": describe(folder / "metrics.json"),
                    "../model_int8.tflite": describe(folder / "model_int8.tflite"),
                },
            },
        ),
        ("ship", {"kind": "load", "outputs": shown, "published": list(shown)}),
        ("report", {"kind": "report", "outputs": {"../report.md": {"sha256": "0"}}}),
    ):
        (folder / name).mkdir()
        (folder / name / "record.json").write_text(json.dumps(record))
    outputs = {"box/model.h": describe(kit / "model.h")}
    record = {"kind": "kit", "outputs": outputs}
    (folder / "kit/record.json").write_text(json.dumps(record))
    return folder


def files_in(folder):
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def test_what_records_name_is_kept_and_nothing_else(run, tmp_path):
    target = tmp_path / "kept"
    gather_results(run, target)
    assert files_in(target) == {
        "records.json",
        "metrics.json",
        "model_int8.tflite",
        "student.keras",
        "kit/box/model.h",
    }
    content = json.loads((target / "records.json").read_text())
    assert content["files"]["kit/box/model.h"] == {
        **describe(run / "kit/box/model.h"),
        "stage": "kit",
        "name": "box/model.h",
    }
    assert set(content["files"]) == files_in(target) - {"records.json"}
    assert "report" not in content["stages"] and "ship" in content["stages"]
    assert (target / "metrics.json").read_bytes() == (run / "metrics.json").read_bytes()


def test_the_report_is_the_same_from_folders_and_from_one_file(run, tmp_path):
    target = tmp_path / "kept"
    gather_results(run, target, files=[])
    write_report(run)
    write_report(target)
    for name in files_in(target) - {"records.json"}:
        assert (target / name).read_bytes() == (run / name).read_bytes(), name
    assert "plots/training-alone.png" in files_in(target)


def test_histories_keep_their_figures(run, tmp_path):
    gather_results(run, tmp_path / "kept")
    (before, after) = (read_run(folder).stages for folder in (run, tmp_path / "kept"))
    for one, other in zip(before, after, strict=True):
        for cell, kept in zip(one.cells, other.cells, strict=True):
            assert cell.record == kept.record
            assert repr(cell.history) == repr(kept.history)
    losses = after[0].cells[0].history["loss"]
    assert losses[0] == 0.123456789012 and math.isnan(losses[1])


def test_gathering_again_or_in_place_gives_the_same_bytes(run, tmp_path):
    first, second = tmp_path / "one", tmp_path / "two"
    gather_results(run, first)
    gather_results(first, second)
    assert files_in(first) == files_in(second)
    before = (first / "records.json").read_bytes()
    assert (second / "records.json").read_bytes() == before
    gather_results(first, first)
    assert (first / "records.json").read_bytes() == before


def test_a_folder_counts_more_than_what_was_gathered(run):
    gather_results(run, run)
    path = run / "student--seed=1/record.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "results": {"val_accuracy": 0.125}}))
    student = next(m for m in read_run(run).models if m.name == "student")
    assert student.values("val_accuracy")[0] == 0.125


def test_a_file_that_no_record_names_is_refused(run, tmp_path):
    with pytest.raises(ValueError, match=r"notes.txt: no record of the run names"):
        gather_results(run, tmp_path / "kept", files=["notes.txt"])
    (run / "model_int8.tflite").write_bytes(b"of another run")
    with pytest.raises(ValueError, match=r"model_int8.tflite: no record"):
        gather_results(run, tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


def test_a_broken_file_of_records_gives_one_line(run, tmp_path):
    target = tmp_path / "kept"
    path = gather_results(run, target)
    content = json.loads(path.read_text())
    content["stages"]["alone--seed=1"]["history"]["loss"] = ["much"]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"records.json: stages.*loss.*a number") as e:
        read_run(target)
    assert "\n" not in str(e.value)


@pytest.mark.slow
def test_the_script_gathers_and_draws(run, tmp_path):
    target = tmp_path / "kept"
    done = subprocess.run(
        [sys.executable, SCRIPT, run, target, "--files", "student.keras"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{target / 'report.md'}\n"
    assert {"student.keras", "report.html"} <= files_in(target)
    assert "model_int8.tflite" not in files_in(target)
    done = subprocess.run(
        [sys.executable, SCRIPT, tmp_path / "nothing", target],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "metrics.json" in done.stderr.splitlines()[-1]


def test_settings_of_older_records_have_todays_names(records):
    settings = {"by": "l1", "training": {"slimming": 0.1}, "rules": [{"keep": 3}]}
    records.add("student", 0.7, settings=settings)
    run = records.run(baseline=None)
    (cell,) = run.stages[0].cells
    assert cell.record["settings"] == {
        "criterion": "l1",
        "training": {"bn_l1": 0.1},
        "rules": [{"save_models": 3}],
    }
    assert cell.original["settings"] == settings
