"""The committed results are what their records say, and what users need of them."""

import json
import pathlib
import re
import subprocess

import numpy as np
import pytest

from kdprune import report
from kdprune._io import sha256
from kdprune.data import load_dataset
from kdprune.data.batches import view_batches
from kdprune.distill import describe_soft_labels
from kdprune.models import load_model
from kdprune.report.document import to_markdown
from kdprune.report.page import write_page
from kdprune.report.plots import draw_plots
from kdprune.report.read import read_gathered, read_run
from kdprune.stages.soft_labels import LEAST_BEYOND_LABELS

ROOT = pathlib.Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"
STUDIES = sorted(path.parent for path in RESULTS.rglob("records.json"))
# All of results/ but the teachers of CIFAR-10, in files and in bytes.
MOST_FILES, MOST_BYTES = 250, 15_000_000
MOST_BYTES_OF_TEACHERS = 10_000_000
# Drawn from the records, or measured outside a run: all else must be in an index.
OTHERS = ("report.md", "report.html", "plots/*.png", "records.json", "bench.json")


def name_of(study):
    return str(study.relative_to(RESULTS))


studies = pytest.mark.parametrize("study", STUDIES, ids=name_of)


@pytest.fixture(scope="module")
def committed():
    """The files of results/ that are tracked, or all where there is no repository."""
    done = subprocess.run(
        ["git", "ls-files", "-z", "results"], cwd=ROOT, capture_output=True, text=True
    )
    if done.returncode or not done.stdout:
        return [path for path in RESULTS.rglob("*") if path.is_file()]
    return [ROOT / name for name in done.stdout.rstrip("\0").split("\0")]


def files_of(study, committed):
    """The files below a study that do not belong to a study within it."""
    inner = [s for s in STUDIES if s != study and s.is_relative_to(study)]
    return [
        path
        for path in committed
        if path.is_relative_to(study) and not any(map(path.is_relative_to, inner))
    ]


def test_there_are_few_files_of_few_bytes(committed):
    assert len(STUDIES) >= 10
    assert len(committed) <= MOST_FILES
    teachers = {RESULTS / name / "teacher.keras" for name in ("cifar10", "teaching")}
    assert teachers <= set(committed)
    sizes = {path: path.stat().st_size for path in committed}
    assert sum(sizes.pop(path) for path in teachers) <= MOST_BYTES_OF_TEACHERS
    assert sum(sizes.values()) <= MOST_BYTES


@studies
def test_every_file_is_what_a_record_names(study, committed):
    gathered = read_gathered(study / "records.json")
    for name, file in gathered.files.items():
        assert sha256(study / name) == file.sha256, name
        assert (study / name).stat().st_size == file.bytes
        outputs = gathered.stages[file.stage].model_extra["outputs"]
        assert outputs[file.name] == {"sha256": file.sha256, "bytes": file.bytes}
    kept = {
        str(path.relative_to(study))
        for path in files_of(study, committed)
        if not any(path.relative_to(study).match(pattern) for pattern in OTHERS)
    }
    assert kept == set(gathered.files)
    assert "metrics.json" in kept


@studies
def test_a_record_names_no_committed_file_with_another_content(study):
    """Even where the index leaves a file out: `../model.tflite` is at the top."""
    for folder, stage in read_gathered(study / "records.json").stages.items():
        outputs = stage.model_extra.get("outputs", {})
        named = {study / folder / name: output for name, output in outputs.items()}
        published = stage.model_extra.get("published", ())
        named |= {study / name: outputs[name] for name in published}
        for path, output in named.items():
            if path.resolve().is_file():
                assert sha256(path.resolve()) == output["sha256"], path


@studies
def test_measured_accuracies_are_those_of_the_record(study):
    run = read_run(study)
    (cell,) = [
        cell for stage in run.stages for cell in stage.cells if cell.kind == "evaluate"
    ]
    found = {
        entry["path"]: entry["accuracy"] for m in run.models for entry in m.entries
    }
    assert found == cell.record["results"]


def drawn_page(study):
    """The report's text, with the plots that are committed."""
    run = read_run(study)
    captions = {name: plot.caption for name, plot in draw_plots(run).items()}
    committed = {path.stem for path in (study / "plots").glob("*.png")}
    # A study may have a plot of its own, made by a script.
    assert set(captions) <= committed
    assert len(committed - set(captions)) <= 1
    return to_markdown(write_page(run, captions))


QUICK = ("cifar10", "article_grid")


@pytest.mark.parametrize(
    "study",
    [
        pytest.param(s, marks=() if name_of(s) in QUICK else pytest.mark.slow)
        for s in STUDIES
    ],
    ids=name_of,
)
def test_the_report_is_drawn_from_the_committed_records(study):
    assert (study / "report.md").read_text() == drawn_page(study)


def test_every_model_that_recipes_and_scripts_start_from_is_there():
    texts = [
        p.read_text()
        for folder in ("configs", "scripts")
        for p in (ROOT / folder).glob("*.*")
    ]
    named = {
        name for text in texts for name in re.findall(r"results/[\w/]+\.keras", text)
    }
    assert "results/cifar10/teacher.keras" in named
    assert [name for name in named if not (ROOT / name).is_file()] == []


def test_gathering_again_changes_nothing(tmp_path):
    study = RESULTS / "cifar10"
    files = [name for name in read_gathered(study / "records.json").files]
    files.remove("metrics.json")
    report.gather_results(study, tmp_path, files=files)
    for name in ("records.json", "metrics.json", *files):
        assert (tmp_path / name).read_bytes() == (study / name).read_bytes(), name


def tflite_files():
    """Each committed `.tflite` of a study, and the entry of what was measured."""
    found = []
    for study in STUDIES:
        index = read_gathered(study / "records.json").files
        metrics = json.loads((study / "metrics.json").read_text())
        for name in index:
            if name.endswith(".tflite"):
                dtype = re.search(r"(u?int8|float32)\.tflite$", name)[1]
                flagship = metrics["flagship"].removesuffix("_int8")
                (entry,) = [
                    entry
                    for entry in metrics["models"]
                    if entry["name"] == f"{flagship}_{dtype}"
                ]
                found.append(pytest.param(study / name, entry, id=name))
    return found


def test_every_tflite_is_of_a_study_and_scored(committed):
    paths = {path for path in committed if path.suffix == ".tflite"}
    assert paths == {parameter.values[0] for parameter in tflite_files()}


@pytest.mark.slow
@pytest.mark.parametrize(("path", "entry"), tflite_files())
def test_a_tflite_file_scores_what_its_record_says(path, entry, cifar10_dir):
    from kdprune import evaluate

    test = load_dataset("cifar10", data_dir=cifar10_dir).test
    scores = evaluate.predict(str(path), test.images)
    accuracy = float(np.mean(scores.argmax(axis=1) == test.labels))
    assert len(test.labels) == entry["test_images"] == 10_000
    # Another processor's kernels may round a few images to another class.
    assert accuracy == pytest.approx(entry["accuracy"], abs=5e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "warned"), [("cifar10", True), ("teaching", False)])
def test_the_teacher_with_label_smoothing_is_warned_of(name, warned, cifar10_dir):
    split = load_dataset("cifar10", data_dir=cifar10_dir).train.take(np.arange(1_000))
    augment = {"crop": 4, "flip": "alternating"}
    (images,) = view_batches(split, 1_000, view=0, seed=1, augment=augment)
    logits = load_model(RESULTS / name / "teacher.keras")(images, training=False)
    for temperature in (1.0, 2.0, 4.0):
        said = describe_soft_labels(logits, split.labels, temperature)
        assert (said["beyond_labels"] < LEAST_BEYOND_LABELS) == warned
