"""The report: its figures, its files, and how well its plots can be read."""

import csv
import json
import math
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.text import Annotation

from kdprune.report import write_report
from kdprune.report.document import scalar, to_markdown
from kdprune.report.page import write_page
from kdprune.report.plots import draw_plots, render
from kdprune.report.read import read_run, split_cell
from kdprune.report.tradeoffs import MLPERF_TINY

ROOT = Path(__file__).parents[2]
LAYERS = ["conv", "conv_1", "conv_2", "shortcut", "conv_3", "conv_4", "dense"]
MODELS = {
    # name: (accuracy, bytes, gzip, parameters, non-zero, MACs, p50, p90)
    "teacher": (0.9402, 26_400_000, 24_300_000, 6_580_000, 6_580_000, 1.5e9, 9.1, 9.9),
    "student_alone": (0.8650, 318_144, 291_000, 77_706, 77_706, 12.5e6, 0.24, 0.27),
    "student": (0.8860, 318_144, 291_400, 77_706, 77_706, 12.5e6, 0.24, 0.26),
    "pruned": (0.8810, 318_144, 128_000, 77_706, 31_900, 12.5e6, 0.24, 0.28),
    "student_int8": (0.8830, 98_496, 81_200, 77_706, 77_706, 12.5e6, 0.16, 0.17),
    "student_uint8": (0.8829, 98_704, 81_300, 77_706, 77_706, 12.5e6, 0.16, 0.18),
    "pruned_int8": (0.8795, 98_496, 52_300, 77_706, 32_100, 12.5e6, 0.16, 0.17),
}


def make_entry(name, seed=None, shift=0.0):
    accuracy, size, packed, weights, nonzero, macs, p50, p90 = MODELS[name]
    accuracy += shift
    form = name.rpartition("_")[2]
    dtype = form if form in ("int8", "uint8") else "float32"
    half = 1.96 * math.sqrt(accuracy * (1 - accuracy) / 10_000)
    stage = name.replace("uint8", "int8")
    stage = stage if seed is None else f"{stage}--seed={seed}"
    zeros = 1 - nonzero / weights
    return {
        "name": name,
        "stage": stage,
        "format": "keras" if name == "teacher" else "tflite",
        "dtype": dtype,
        "path": f"{stage}/model.tflite",
        "accuracy": accuracy,
        "accuracy_ci": [accuracy - half, accuracy + half],
        "test_images": 10_000,
        "bytes": size,
        "bytes_gzip": packed,
        "parameters": weights,
        "nonzero_parameters": nonzero,
        "macs": int(macs),
        "latency_ms_p50": p50,
        "latency_ms_p90": p90,
        "threads": 1,
        "resolver": "xnnpack",
        "agreement": 0.9754 if dtype != "float32" else None,
        "agreement_with": name.rpartition("_")[0] if dtype != "float32" else None,
        "confusion": make_confusion(accuracy),
        "sparsity_by_layer": {
            layer: round(zeros * (0.4 + 0.2 * i) if i else 0.0, 3)
            for i, layer in enumerate(LAYERS)
        },
    }


def make_confusion(accuracy):
    random = np.random.default_rng(0)
    closeness = random.dirichlet(np.full(10, 0.4), size=10)
    closeness[3, 5] += 1.0  # cats are taken for dogs
    closeness[5, 3] += 0.8
    np.fill_diagonal(closeness, 0)
    wrong = closeness / closeness.sum(axis=1, keepdims=True) * 1000 * (1 - accuracy)
    counts = np.rint(wrong).astype(int)
    np.fill_diagonal(counts, 1000 - counts.sum(axis=1))
    return counts.tolist()


def write_stage(folder, name, *, kind="train", epochs=30, started=0, final=0.88):
    (folder / name).mkdir(parents=True)
    record = {
        "schema": 1,
        "stage": name,
        "kind": kind,
        "settings": {
            "model": "resnet8",
            "epochs": epochs,
            "optimizer": {"name": "sgd", "momentum": 0.9},
            "seed": started,
        },
        "seed": 1,
        "data": {"name": "cifar10", "sizes": {"train": 45_000, "test": 10_000}},
        "started": f"2026-11-21T08:{started:02d}:00Z",
        "seconds": 634.2,
        "results": {"val_accuracy": final},
    }
    (folder / name / "record.json").write_text(json.dumps(record))
    random = np.random.default_rng(started)
    with (folder / name / "history.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow("epoch loss accuracy val_loss val_accuracy lr".split())
        for epoch in range(1, epochs + 1):
            done = 1 - math.exp(-6 * epoch / epochs)
            noise = random.normal(0, 0.015 * (1 - epoch / epochs))
            train, validation = 0.95 * done, final * done + noise
            rate = 0.1 * 0.5 * (1 + math.cos(math.pi * epoch / epochs))
            losses = 2.3 * (1 - train) + 0.05, 2.3 * (1 - validation) + 0.1
            table.writerow([epoch, losses[0], train, losses[1], validation, rate])


def write_metrics(folder, entries, **changes):
    metrics = {
        "schema": 1,
        "recipe": "cifar10",
        "dataset": "cifar10",
        "seed": 1,
        "baseline": "student_alone",
        "flagship": "student_int8",
        "command": "kdprune run configs/cifar10.yaml --set seed=1",
        "versions": {"kdprune": "0.1.0", "tensorflow": "2.21.0"},
        "machine": {"processor": "x86-64, AMX", "cores": 2},
        "models": entries,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text(json.dumps({**metrics, **changes}))


def write_run(folder):
    """A whole run as the pipeline leaves it, without the models themselves."""
    for i, name in enumerate(["teacher", "student_alone", "student", "pruned"]):
        kind = "distill" if name == "student" else "train"
        write_stage(folder, name, kind=kind, started=i, final=MODELS[name][0])
    write_metrics(folder, [make_entry(name) for name in MODELS])
    return folder


SHIFTS = {"student_alone": (0.001, -0.003, 0.002), "student": (0.0, 0.004, -0.001)}


def write_seeds(folder):
    """A matrix of three seeds of two stages, from one teacher."""
    entries = [make_entry("teacher")]
    write_stage(folder, "teacher", final=0.94)
    for name, shifts in SHIFTS.items():
        for seed, shift in enumerate(shifts, start=1):
            entries.append(make_entry(name, seed, shift))
            final = MODELS[name][0] + shift
            write_stage(folder, f"{name}--seed={seed}", started=seed, final=final)
    write_metrics(folder, entries, flagship="student")
    return folder


def read_table(page, heading):
    """Rows of the first table after a heading, as {first cell: [cells]}."""
    lines = page.split(heading, 1)[1].splitlines()
    rows = [line for line in lines if line.startswith("|")]
    end = next((i for i, row in enumerate(rows) if i and "| ---" in row[:6]), 0)
    block = []
    started = False
    for line in lines:
        if line.startswith("|"):
            started = True
            block.append([cell.strip() for cell in line.strip("|").split(" | ")])
        elif started:
            break
    assert end == 1
    return {row[0].replace("\\", ""): row[1:] for row in block[2:]}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A written report: its folder and its page."""
    folder = write_run(tmp_path_factory.mktemp("run"))
    page = write_report(folder)
    return folder, page.read_text()


def all_text(folder, name):
    """All words of a run's plot."""
    svg = render(draw_plots(read_run(folder))[name].figure, "svg")
    return " ".join(
        "".join(text.itertext())
        for text in ElementTree.fromstring(svg).iter()
        if text.tag.endswith("}text")
    )


def page_of(folder):
    """The page without the plots, which most tests of figures need not draw."""
    return to_markdown(write_page(read_run(folder), {}))


def test_main_table_holds_the_measured_figures(report):
    row = read_table(report[1], "## Models")["**student_int8** (flagship)"]
    assert row == [
        "tflite int8",
        "88.30 (87.67 to 88.93)",
        "+1.80",
        "98,496",
        "81,200",
        "–",
        "77,706",
        "77,706",
        "12.50 M",
        "0.16 / 0.17",
        "1 thread, xnnpack",
        "97.54 with student",
    ]


def test_balanced_accuracy_stands_beside_where_classes_are_uneven(tmp_path, report):
    assert "alanced accuracy" not in report[1]
    entries = [make_entry(name) for name in MODELS]
    entries[0]["balanced_accuracy"] = 0.7123
    write_metrics(tmp_path, entries)
    page = page_of(tmp_path)
    assert "| accuracy % | balanced accuracy % | difference |" in page
    rows = read_table(page, "## Models")
    assert rows["teacher"][2] == "71.23" and rows["pruned"][2] == "–"
    assert "Balanced accuracy: the mean of the accuracies on each class." in page


@pytest.mark.slow
def test_of_several_labels_all_plots_say_label_accuracy(tmp_path):
    labels = {"task": "labels", "macro_f1": 0.8, "mean_average_precision": 0.9}
    write_metrics(tmp_path, [make_entry(name) | labels for name in MODELS])
    write_stage(tmp_path, "student")
    assert "| label accuracy % | macro F1 % | mAP % | difference |" in page_of(tmp_path)
    for name in ("accuracy", "size", "latency", "training-student"):
        text = all_text(tmp_path, name).lower()
        assert text.count("label accuracy") == text.count("accuracy") > 0, name


def test_every_model_has_a_row_and_the_baseline_is_named(report):
    rows = read_table(report[1], "## Models")
    assert len(rows) == len(MODELS)
    assert rows["student_alone"][2] == "baseline"
    assert rows["teacher"][2] == "+7.52"
    assert rows["pruned"][7] == "31,900"


def test_page_says_what_was_run(report):
    page = report[1]
    assert page.startswith("# cifar10\n")
    assert "```sh\nkdprune run configs/cifar10.yaml --set seed=1\n```" in page
    assert "x86-64, AMX" in page
    assert "Unstructured sparsity reduces the download size only" in page
    assert "88.30 (87.67 to 88.93) % in 98,496 bytes, +1.80 points" in page


def test_each_stage_has_its_settings_time_and_best_epoch(report):
    section = report[1].split("### student (distill)")[1].split("###")[0]
    assert "`optimizer.name` sgd" in section
    text = (report[0] / "student/history.csv").read_text()
    history = list(csv.DictReader(text.splitlines()))
    best = max(history, key=lambda row: float(row["val_accuracy"]))
    row = read_table(report[1], "### student (distill)")["student"]
    accuracy = f"{100 * float(best['val_accuracy']):.2f}"
    assert row == ["1", "10 min 34 s", "30", best["epoch"], accuracy]
    assert report[1].index("### teacher") < report[1].index("### student\\_alone")


def test_plots_are_written_and_embedded(report):
    folder, page = report
    embedded = re.findall(r"!\[.*\]\((plots/.*\.png)\)", page)
    expected = {"accuracy", "size", "latency", "sparsity"}
    expected |= {"confusion-student_int8", "confusion-teacher"}
    expected |= {f"training-{n}" for n in list(MODELS)[:4]}
    assert {Path(path).stem for path in embedded} == expected
    for path in embedded:
        assert (folder / path).read_bytes().startswith(b"\x89PNG")
    files = {path.name for path in (folder / "plots").iterdir()}
    assert files == {f"{name}.png" for name in expected}


@pytest.mark.parametrize("plot", ["accuracy", "size", "latency"])
def test_svg_names_every_distinct_model_as_text(report, plot):
    text = all_text(report[0], plot)
    # An int8 file's uint8 twin would lie on top of it.
    assert [name for name in MODELS if name not in text] == ["student_uint8"]


def test_svg_names_references_classes_and_layers(report):
    text = all_text(report[0], "size")
    assert [r.name for r in MLPERF_TINY if r.name not in text] == []
    # What was timed on another machine is not drawn beside what was timed on this one.
    assert "MLPerf" not in all_text(report[0], "latency")
    assert "automobile" in all_text(report[0], "confusion-teacher")
    assert all(layer in all_text(report[0], "sparsity") for layer in LAYERS)


def test_sparsity_shows_only_models_that_have_zeros(report):
    text = all_text(report[0], "sparsity")
    assert "pruned_int8" in text and "student" not in text


def test_layers_of_long_names_can_be_told_apart(tmp_path):
    path = "functional/resnet/a_rather_long_name_of_a_stage"
    layers = {f"{path}{i // 9}_conv{i % 9}/Conv2D": 0.5 for i in range(55)}
    entry = {**make_entry("pruned"), "sparsity_by_layer": layers}
    write_metrics(tmp_path, [entry])
    axes = draw_plots(read_run(tmp_path))["sparsity"].figure.axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert len(set(names)) == 55
    assert names[-1].startswith("a_rather") and names[-1].endswith("stage6_conv0")


def test_one_epoch_is_drawn_on_whole_epochs(tmp_path, text_faults):
    write_stage(tmp_path, "student", epochs=1)
    write_metrics(tmp_path, [])
    figure = draw_plots(read_run(tmp_path))["training-student"].figure
    figure.draw_without_rendering()
    for axes in figure.axes:
        low, high = axes.get_xlim()
        assert [tick for tick in axes.get_xticks() if low <= tick <= high] == [1]
    assert text_faults(figure) == []


def test_a_students_loss_on_labels_is_held_against_validation(tmp_path, text_faults):
    write_stage(tmp_path, "student")
    history = tmp_path / "student/history.csv"
    header = "epoch,loss,soft_loss,hard_loss,val_loss,learning_rate"
    history.write_text(f"{header}\n1,0.4,0.3,2.5,2.4,0.1\n2,0.3,0.2,2.2,2.3,0.1\n")
    write_metrics(tmp_path, [])
    figure = draw_plots(read_run(tmp_path))["training-student"].figure
    loss, rate = figure.axes
    assert loss.get_title(loc="left") == "loss on the labels (nats)"
    assert sorted(line.get_ydata()[0] for line in loss.lines) == [2.4, 2.5]
    assert rate.get_ylim()[0] == 0
    assert text_faults(figure) == []


def test_a_stage_that_trains_nothing_has_no_columns_of_training(tmp_path):
    write_stage(tmp_path, "student")
    (tmp_path / "student/history.csv").unlink()
    write_metrics(tmp_path, [])
    page = write_report(tmp_path).read_text()
    assert "| folder | seed | time |\n" in page and "best epoch" not in page


def test_lists_are_written_with_few_digits():
    assert scalar(["avx512_bf16", 2.50001]) == "[avx512_bf16, 2.5]"


def test_a_history_without_values_is_drawn_empty(tmp_path):
    write_stage(tmp_path, "student")
    (tmp_path / "student/history.csv").write_text("epoch,loss,val_accuracy\n1,,nan\n")
    write_metrics(tmp_path, [])
    page = write_report(tmp_path).read_text()
    assert read_table(page, "### student")["student"][2:] == ["1", "–", "–"]


@pytest.mark.slow
def test_references_are_left_out_where_they_do_not_belong(tmp_path):
    write_metrics(tmp_path, [make_entry("student_alone")], dataset="shapes")
    page = write_report(tmp_path).read_text()
    assert "MLPerf" not in page
    assert "MLPerf" not in all_text(tmp_path, "size")
    write_metrics(tmp_path, [make_entry("student_alone")])
    assert "MLPerf" in page_of(tmp_path)
    assert "MLPerf" not in write_report(tmp_path, references=False).read_text()


def test_reference_table_gives_the_source(report):
    rows = read_table(report[1], "## References")
    assert rows["MLPerf large int8"] == [
        "91.31",
        "512,024",
        "480,330",
        "76.47 M",
    ]
    assert "github.com/mlcommons/tiny" in report[1]


def test_seeds_become_a_mean_and_a_sample_deviation(tmp_path):
    rows = read_table(page_of(write_seeds(tmp_path)), "## Models")
    scores = {n: MODELS[n][0] + np.array(s) for n, s in SHIFTS.items()}
    assert len(rows) == 3
    for name, label in (("student", "**student** (flagship)"), ("student_alone",) * 2):
        mean, deviation = 100 * scores[name].mean(), 100 * scores[name].std(ddof=1)
        assert rows[label][1] == f"{mean:.2f} ± {deviation:.2f} (n = 3)"
    change = 100 * (scores["student"] - scores["student_alone"])
    expected = f"{change.mean():+.2f} ± {change.std(ddof=1):.2f}"
    assert rows["**student** (flagship)"][2] == expected
    assert rows["teacher"][1] == "94.02 (93.56 to 94.48)"


@pytest.mark.slow
def test_seeds_share_a_section_with_a_row_for_each(tmp_path):
    page = write_report(write_seeds(tmp_path)).read_text()
    rows = read_table(page, "### student (train)")
    assert [row[0] for row in rows.values()] == ["1", "2", "3"]
    assert page.count("plots/training-student.png") == 1
    assert "88.70 ± 0.26 (n = 3)" in all_text(tmp_path, "accuracy")


def test_confusion_of_seeds_is_their_sum(tmp_path):
    student = read_run(write_seeds(tmp_path)).find("flagship")
    parts = [make_confusion(0.8860 + shift) for shift in SHIFTS["student"]]
    np.testing.assert_array_equal(student.confusion, np.sum(parts, axis=0))


def test_other_axes_of_a_matrix_stay_apart(tmp_path):
    entries = []
    for loss in ("kd", "dkd"):
        for seed in (1, 2):
            stage = f"student--loss={loss}--seed={seed}"
            entries.append({**make_entry("student"), "stage": stage})
    write_metrics(tmp_path, entries)
    labels = [(m.label, len(m.entries)) for m in read_run(tmp_path).models]
    assert labels == [("student--loss=kd", 2), ("student--loss=dkd", 2)]


def test_same_model_measured_in_two_ways_has_two_labels(tmp_path):
    one = make_entry("student_int8")
    write_metrics(tmp_path, [one, {**one, "resolver": "builtin"}])
    labels = [model.label for model in read_run(tmp_path).models]
    assert labels == [
        "student_int8 (resolver xnnpack)",
        "student_int8 (resolver builtin)",
    ]


def test_cell_names_are_split_at_the_seed():
    assert split_cell("student--seed=3") == ("student", "3")
    assert split_cell("student--seed=3--loss=kd") == ("student--loss=kd", "3")
    assert split_cell("teacher") == ("teacher", None)


@pytest.mark.parametrize("value", [None, "absent"])
def test_missing_figures_are_dashes(tmp_path, value):
    entry = make_entry("student_int8")
    for field in set(entry) - {"name", "stage"}:
        if value is None:
            entry[field] = None
        else:
            del entry[field]
    write_metrics(tmp_path, [entry, {"name": "student_alone"}])
    page = write_report(tmp_path).read_text()
    assert read_table(page, "## Models")["**student_int8** (flagship)"] == ["–"] * 12
    assert list((tmp_path / "plots").iterdir()) == []


def test_missing_top_level_fields_are_dashes(tmp_path):
    (tmp_path / "metrics.json").write_text('{"schema": 1, "models": []}')
    page = page_of(tmp_path)
    assert "- data: –\n- seed: –\n- machine: –\n- versions: –" in page
    assert "Made by" not in page


def test_a_stage_without_history_or_settings_is_shown(tmp_path):
    write_metrics(tmp_path, [make_entry("student_alone")])
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported/record.json").write_text("{}")
    (tmp_path / "running").mkdir()  # no record: the stage is not complete
    page = page_of(tmp_path)
    assert read_table(page, "### exported")["exported"] == ["–"] * 2
    assert "running" not in page


def test_an_unmeasured_flagship_is_said(tmp_path):
    write_metrics(tmp_path, [make_entry("student_alone")], flagship="tiny_int8")
    page = page_of(tmp_path)
    assert "The flagship, tiny\\_int8, has not been measured." in page


BROKEN = {
    "{": "expected JSON",
    "[]": "expected a JSON object",
    '{"schema": 2, "models": []}': "expected schema 1; received 2",
    '{"schema": 1}': "models: expected a value",
    '{"schema": 1, "models": [{}]}': "models[0] name: expected a value",
    '{"schema": 1, "models": [{"name": "a", "accuracy": 88.3}]}': "a share in [0, 1]",
    '{"schema": 1, "models": [{"name": "a", "bytes": "big"}]}': "bytes: expected a num",
    '{"schema": 1, "models": [{"name": "a", "confusion": [[1, 2]]}]}': "square table",
    '{"schema": 1, "models": [{"name": "a", "accuracy_ci": 1}]}': "[low, high]",
    '{"schema": 1, "models": [{"name": "a"}, {"name": "a"}]}': "received two",
}  # fmt: skip


@pytest.mark.parametrize(("content", "message"), BROKEN.items())
def test_broken_metrics_give_one_clear_line(tmp_path, content, message):
    path = tmp_path / "metrics.json"
    path.write_text(content)
    with pytest.raises(ValueError) as caught:
        write_report(tmp_path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.json"]


def test_missing_metrics_say_what_to_run(tmp_path):
    with pytest.raises(ValueError, match="metrics.json, which the evaluate stage"):
        write_report(tmp_path)


def test_broken_history_names_its_file(tmp_path):
    write_run(tmp_path)
    (tmp_path / "student/history.csv").write_text("epoch,loss\n1,much\n")
    with pytest.raises(ValueError, match=r"student.history\.csv: expected a number"):
        write_report(tmp_path)


def test_nan_is_a_missing_figure(tmp_path):
    write_metrics(tmp_path, [{**make_entry("teacher"), "latency_ms_p90": math.nan}])
    rows = read_table(page_of(tmp_path), "## Models")
    assert rows["teacher"][9] == "9.1 / –"


@pytest.mark.slow
def test_writing_again_gives_the_same_bytes(tmp_path):
    write_seeds(tmp_path)
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots/mine.txt").write_text("kept")
    contents = []
    for _ in range(2):
        write_report(tmp_path)
        files = [tmp_path / "report.md", *sorted((tmp_path / "plots").iterdir())]
        contents.append({file.name: file.read_bytes() for file in files})
    assert contents[0] == contents[1]
    assert contents[0]["mine.txt"] == b"kept"


def test_a_failed_write_leaves_the_old_report(tmp_path, monkeypatch):
    write_metrics(tmp_path, [make_entry("student_alone")])
    (tmp_path / "report.md").write_text("old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_report(tmp_path)
    assert (tmp_path / "report.md").read_text() == "old"
    assert list((tmp_path / "plots").iterdir()) == []


def test_names_cannot_break_the_page_or_leave_the_folder(tmp_path):
    name = "../a|b <i>$x_1$"
    write_metrics(tmp_path, [{**make_entry("student"), "name": name}], flagship=name)
    page = write_report(tmp_path).read_text()
    assert "<i>" not in page
    assert "../a\\|b" in page
    assert {p.parent for p in tmp_path.rglob("*.png")} == {tmp_path / "plots"}
    assert "$x_1$" in all_text(tmp_path, "accuracy")


@pytest.mark.parametrize("write", [write_run, write_seeds], ids=["run", "seeds"])
@pytest.mark.quick("run")
def test_no_text_of_a_plot_covers_another_or_leaves_it(tmp_path, write, text_faults):
    for name, plot in draw_plots(read_run(write(tmp_path))).items():
        assert text_faults(plot.figure) == [], name


def test_oblique_class_names_are_a_line_apart(tmp_path):
    write_metrics(tmp_path, [make_entry("student_int8")])
    figure = draw_plots(read_run(tmp_path))["confusion-student_int8"].figure
    figure.draw_without_rendering()
    axes = figure.axes[0]
    columns = axes.transData.transform([(0, 0), (1, 0)])
    apart = (columns[1, 0] - columns[0, 0]) * math.sin(math.radians(45))
    label = axes.get_xticklabels()[0]
    assert label.get_rotation() == 45
    assert apart > 1.5 * label.get_fontsize() * figure.dpi / 72


@pytest.mark.slow
def test_labels_stay_apart_where_points_crowd(tmp_path, text_faults):
    random = np.random.default_rng(0)
    entries = []
    for i in range(14):
        entry = make_entry("student_int8", shift=float(random.normal(0, 0.004)))
        size = int(98_496 * random.uniform(0.8, 1.2))
        names = {"name": f"pruned_{i}_int8", "stage": f"pruned_{i}"}
        latency = {"latency_ms_p50": random.uniform(0.14, 0.2), "latency_ms_p90": 0.21}
        packed = {"bytes": size, "bytes_gzip": int(0.8 * size)}
        entries.append({**entry, **names, **latency, **packed})
    write_metrics(tmp_path, [make_entry("teacher"), *entries])
    plots = draw_plots(read_run(tmp_path))
    for name in ("size", "latency", "accuracy"):
        assert text_faults(plots[name].figure) == [], name
    labels = [t for t in plots["size"].figure.findobj(Annotation) if t.get_text()]
    named = "\n".join(label.get_text() for label in labels)
    assert all(f"pruned_{i}_int8" in named for i in range(14))


@pytest.mark.slow
def test_report_needs_no_tensorflow_and_no_pyplot(tmp_path):
    write_seeds(tmp_path)
    code = (
        "import sys; from kdprune.report import write_report; "
        "write_report(sys.argv[1]); "
        "loaded = {name.partition('.')[0] for name in sys.modules}; "
        "print(sorted(loaded & {'tensorflow', 'tf_keras', 'keras', 'ai_edge_litert'}), "
        "'matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert done.stdout.split() == ["[]", "False"]


def test_global_settings_of_matplotlib_are_left_alone(tmp_path):
    before = dict(matplotlib.rcParams)
    write_metrics(tmp_path, [make_entry("student_alone")])
    write_report(tmp_path)
    assert dict(matplotlib.rcParams) == before
