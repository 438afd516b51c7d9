"""A study in the report: what is tested against what, and how it is shown."""

import itertools
import json
import math

import numpy as np
import pytest
import scipy.stats
from matplotlib.colors import to_rgb

from kdprune.report import write_report
from kdprune.report.grid import find_grids
from kdprune.report.plots import draw_plots
from kdprune.report.read import read_run
from kdprune.report.study import HELPS, HURTS, NOISE, UNTESTED, compare
from kdprune.report.study_plots import VERDICTS, draw_study
from kdprune.report.tables import write_page

HEADING = "## Against the baseline"
SCORES = {
    "alone": (0.8700, 0.8721, 0.8689, 0.8712, 0.8695),
    "kl": (0.8790, 0.8811, 0.8799, 0.8802, 0.8784),
    "dist": (0.8721, 0.8690, 0.8719),
    "hints": (0.8630, 0.8642, 0.8621),
}


class Records:
    """Writes a run's records as the pipeline does, as far as a study needs them."""

    def __init__(self, folder):
        self.folder, self.entries = folder, []

    def add(self, name, accuracies, *, axes="", stage=None, entry=(), **record):
        """A model of one or several seeds; a single number for one without seed."""
        single = not isinstance(accuracies, tuple)
        for seed, accuracy in enumerate((accuracies,) if single else accuracies, 1):
            folder = f"{stage or name}{axes}" + ("" if single else f"--seed={seed}")
            self.entries.append(
                {
                    "name": name,
                    "stage": folder,
                    "format": "keras",
                    "dtype": "float32",
                    "accuracy": accuracy,
                    "parameters": 77_706,
                    **dict(entry),
                }
            )
            validation = None if accuracy is None else accuracy + 0.01
            content = {"kind": "distill", "results": {"val_accuracy": validation}}
            (self.folder / folder).mkdir(exist_ok=True)
            path = self.folder / folder / "record.json"
            path.write_text(json.dumps({**content, **record}))
        return self

    def run(self, baseline="alone"):
        content = {"schema": 1, "baseline": baseline, "models": self.entries}
        (self.folder / "metrics.json").write_text(json.dumps(content))
        return read_run(self.folder)


@pytest.fixture
def records(tmp_path):
    return Records(tmp_path)


def add_scores(records):
    for name, accuracies in SCORES.items():
        records.add(name, accuracies)
    return records


def section(run):
    page = write_page(run, {})
    return page.split(HEADING)[1].split("## ")[0] if HEADING in page else None


def rows_of(text):
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return {row[0].replace("\\", ""): row[1:] for row in cells[2:]}


def verdicts(run):
    return {c.model.label: c.verdict for c in compare(run).rows}


def test_rows_hold_the_figures_that_scipy_finds(records):
    rows = rows_of(section(add_scores(records).run()))
    assert list(rows) == list(SCORES)
    tests = {
        name: scipy.stats.ttest_ind(SCORES[name], SCORES["alone"], equal_var=False)
        for name in SCORES
        if name != "alone"
    }
    ranked = sorted(tests, key=lambda name: tests[name].pvalue)
    assert ranked[-1] == "dist"
    for step, name in enumerate(ranked):
        low, high = tests[name].confidence_interval(1 - 0.05 / (3 - step))
        values = 100 * np.array(SCORES[name])
        change = values.mean() - 100 * np.mean(SCORES["alone"])
        p = (3 - step) * tests[name].pvalue
        assert rows[name] == [
            str(len(values)),
            f"{values.mean() + 1:.2f} ± {values.std(ddof=1):.2f}",
            f"{values.mean():.2f} ± {values.std(ddof=1):.2f}",
            f"{change:+.2f}",
            f"{100 * low:+.2f} to {100 * high:+.2f}",
            "< 0.001" if p < 0.001 else f"{p:.3f}",
            {"kl": HELPS, "dist": NOISE, "hints": HURTS}[name],
        ]
    assert rows["alone"] == ["5", "88.03 ± 0.13", "87.03 ± 0.13", *"–––", "baseline"]


def test_the_method_is_one_sentence_with_the_seeds(records):
    text = section(add_scores(records).run())
    method = next(line for line in text.splitlines() if "Welch" in line)
    assert "against alone (5 seeds)" in method
    assert "over 3 to 5 seeds per row" in method
    assert "the 3 tests are adjusted by Holm's step-down" in method
    assert method.count(". ") == 0


def test_one_comparison_needs_no_correction(records):
    records.add("alone", SCORES["alone"]).add("kl", SCORES["kl"])
    run = records.run()
    assert "Holm's" not in section(run)
    (row,) = compare(run).rows
    assert row.outcome.level == 0.95
    expected = scipy.stats.ttest_ind(SCORES["kl"], SCORES["alone"], equal_var=False)
    assert row.outcome.p == pytest.approx(expected.pvalue)


def test_more_tests_make_each_p_larger_and_each_interval_wider(records):
    add_scores(records)
    alone = compare(records.run()).rows
    for number in range(12):
        records.add(f"other_{number}", SCORES["alone"][:3])
    among = compare(records.run()).rows
    for one, other in zip(alone, among, strict=False):
        assert one.outcome.p < other.outcome.p or other.outcome.p == 1.0
        assert one.outcome.interval[1] < other.outcome.interval[1]


def test_models_of_another_size_or_kind_or_one_seed_are_left_out(records):
    int8 = {"format": "tflite", "dtype": "int8"}
    add_scores(records)
    records.add("teacher", 0.93, entry={"parameters": 6_580_000})
    records.add("slim", (0.85, 0.86), entry={"parameters": 40_000})
    records.add("kl_int8", (0.85, 0.86), stage="quantized", entry=int8)
    records.add("once", 0.875)
    run = records.run()
    assert set(verdicts(run)) == {"kl", "dist", "hints"}
    assert (
        "Not tested: teacher, slim (another number of parameters); kl\\_int8 (the "
        "baseline has no such file); once (fewer than two seeds)."
    ) in section(run)


@pytest.mark.parametrize("method", ["ptq", "qat"])
def test_a_file_is_held_against_the_baselines_own_of_its_method(records, method):
    int8 = {"format": "tflite", "dtype": "int8", "resolver": "xnnpack"}
    add_scores(records)
    for source, other, shift in (("alone", "ptq", 0.0), ("kl", method, 0.009)):
        settings = {"from": source, "method": other}
        scores = tuple(score - 0.002 + shift for score in SCORES["alone"])
        stage = f"{source}_quantized"
        quantized = {"kind": "quantize", "settings": settings}
        records.add(f"{stage}_int8", scores, stage=stage, entry=int8, **quantized)
    run = records.run()
    found = {c.model.name: c.baseline.name for c in compare(run).rows}
    assert found.pop("kl_quantized_int8", None) == (
        "alone_quantized_int8" if method == "ptq" else None
    )
    assert set(found.values()) == {"alone"}
    if method == "ptq":
        assert list(rows_of(section(run)))[-2:] == [
            "alone_quantized_int8",
            "kl_quantized_int8",
        ]
        assert "(5 seeds) and alone\\_quantized\\_int8 (5 seeds)" in section(run)


def test_a_baseline_of_several_cells_is_met_in_its_own_cell(records):
    for width, shift in (("8", 0.0), ("16", 0.03)):
        for name in ("alone", "kl"):
            scores = tuple(score + shift for score in SCORES[name])
            records.add(name, scores, axes=f"--width={width}")
    for row in compare(records.run()).rows:
        assert row.model.axes == row.baseline.axes
        assert row.difference == pytest.approx(
            np.mean(SCORES["kl"]) - np.mean(SCORES["alone"])
        )


@pytest.mark.parametrize("baseline", [None, "other"])
def test_without_a_measured_baseline_there_is_no_study(records, baseline):
    run = add_scores(records).run(baseline)
    assert compare(run) is None
    assert section(run) is None
    assert draw_study(run) == {}


def test_without_seeds_there_is_no_section(records):
    run = records.add("alone", 0.87).add("kl", 0.88).run()
    assert section(run) is None
    assert draw_study(run) == {}


def test_one_seed_of_the_baseline_is_said_and_tests_nothing(records):
    run = records.add("alone", 0.87).add("kl", (0.88, 0.881)).run()
    text = section(run)
    assert "kl (fewer than two seeds of the baseline)" in text
    assert rows_of(text) == {}
    assert draw_study(run) == {}


def test_without_spread_nothing_is_tested_nor_counted(records):
    records.add("alone", (0.87, 0.87)).add("same", (0.87, 0.87))
    records.add("above", (0.88, 0.88)).add("kl", (0.8801, 0.8799, 0.88))
    run = records.run()
    expected = {"same": UNTESTED, "above": UNTESTED, "kl": HELPS}
    assert verdicts(run) == expected
    rows = rows_of(section(run))
    assert rows["above"][3:] == ["+1.00", "–", "–", UNTESTED]
    assert compare(run).rows[2].outcome.level == 0.95
    draw_study(run)["study"].figure.draw_without_rendering()


def test_missing_accuracies_are_not_seeds(records):
    records.add("alone", (0.87, math.nan, 0.872, 0.869))
    records.add("kl", (0.88, None, 0.879)).add("dead", (math.nan, math.nan))
    records.add("left", (0.88, math.nan))
    run = records.run()
    rows = rows_of(section(run))
    assert [row[0] for row in rows.values()] == ["3", "2"]
    assert rows["alone"][1] == "88.03 ± 0.15"
    expected = scipy.stats.ttest_ind(
        [0.88, 0.879], [0.87, 0.872, 0.869], equal_var=False
    )
    assert compare(run).rows[0].outcome.p == pytest.approx(expected.pvalue)
    assert "Not tested: left (fewer than two seeds)." in section(run)


def test_validation_is_a_dash_where_no_record_has_it(records):
    records.add("alone", (0.87, 0.871), results={})
    records.add("kl", (0.88, 0.881), results={"val_accuracy": math.nan})
    rows = rows_of(section(records.run()))
    assert [row[1] for row in rows.values()] == ["–", "–"]


def test_a_wrong_validation_accuracy_names_its_record(records):
    records.add("alone", 0.87, results={"val_accuracy": 87.0})
    with pytest.raises(ValueError, match=r"alone.record\.json: expected val_accuracy"):
        records.run()


def test_a_p_value_is_not_rounded_over_the_limit(records):
    # Any two samples of two: shift until p is just below 0.05.
    baseline = (0.87, 0.872)
    shift = next(
        shift
        for shift in np.arange(0.004, 0.008, 1e-7)
        if 0.0495
        < scipy.stats.ttest_ind(
            (0.87 + shift, 0.872 + shift), baseline, equal_var=False
        ).pvalue
        < 0.05
    )
    records.add("alone", baseline)
    records.add("kl", (0.87 + shift, 0.872 + shift))
    assert rows_of(section(records.run()))["kl"][5:] == ["< 0.05", HELPS]


TEMPERATURES, WEIGHTS = ("1", "4", "10"), ("0.5", "1.0")


def grid_score(temperature, weight):
    return 0.64 + 0.002 * (float(temperature) - 3) * float(weight)


def add_grid(records, seeds=3, name="student", settings=True, cells=None):
    """Cells in the order of their names, which is not that of their numbers."""
    records.add("alone", (0.640, 0.642, 0.641)[:seeds] if seeds > 1 else 0.641)
    for temperature, weight in cells or itertools.product(
        sorted(TEMPERATURES), WEIGHTS
    ):
        at = grid_score(temperature, weight)
        scores = tuple(at + 0.0005 * seed for seed in range(seeds))
        own = {"temperature": float(temperature), "soft_weight": float(weight)}
        records.add(
            name,
            scores if seeds > 1 else at,
            axes=f"--temperature={temperature}--soft_weight={weight}",
            settings={**own, "training": {"epochs": 3}} if settings else {},
        )
    return records


def only_grid(run):
    (grid,) = find_grids(compare(run), run)
    return grid


def test_a_grid_has_its_axes_in_the_order_of_their_numbers(records):
    grid = only_grid(add_grid(records).run())
    assert (grid.rows.key, grid.columns.key) == ("temperature", "soft_weight")
    assert grid.rows.values == TEMPERATURES
    assert grid.columns.values == WEIGHTS
    assert grid.columns.texts == ("0.5", "1")
    for cell, comparison in grid.cells.items():
        expected = grid_score(*cell) + 0.0005 - 0.641
        assert comparison.difference == pytest.approx(expected)


def test_the_heat_map_is_centred_on_zero_and_writes_each_cell(records):
    plot = draw_study(add_grid(records).run())["study-student"]
    axes = plot.figure.axes[0]
    (image,) = axes.images
    low, high = image.get_clim()
    assert low == -high
    assert high == pytest.approx(100 * (grid_score("10", "1.0") + 0.0005 - 0.641))
    assert to_rgb(image.cmap(0.5)) == pytest.approx((1, 1, 1), abs=0.02)
    texts = {text.get_position(): text.get_text() for text in axes.texts}
    assert len(texts) == 6
    assert texts[1, 2] == f"{high:+.2f}\n± 0.05"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["1", "4", "10"]


def test_cells_beyond_noise_are_bold(records):
    run = add_grid(records).run()
    grid = only_grid(run)
    axes = draw_study(run)["study-student"].figure.axes[0]
    for text in axes.texts:
        column, row = text.get_position()
        cell = grid.cells[TEMPERATURES[row], WEIGHTS[column]]
        assert (text.get_weight() == "bold") == (cell.verdict in (HELPS, HURTS))
    assert len({text.get_weight() for text in axes.texts}) == 2


def test_a_grid_of_one_seed_is_drawn_without_tests(records):
    run = add_grid(records, seeds=1).run()
    plots = draw_study(run)
    assert list(plots) == ["study-student"]
    texts = plots["study-student"].figure.axes[0].texts
    assert not any("±" in text.get_text() for text in texts)
    page = write_page(run, {name: plot.caption for name, plot in plots.items()})
    text = page.split(HEADING)[1]
    assert "Not tested: student, 6 cells (fewer than two seeds)." in text
    assert "plots/study-student.png" in text


def test_a_missing_cell_of_a_grid_stays_empty(records):
    cells = [("1", "0.5"), ("4", "0.5"), ("4", "1.0")]
    plot = draw_study(add_grid(records, cells=cells).run())["study-student"]
    axes = plot.figure.axes[0]
    assert len(axes.texts) == 3
    assert axes.images[0].get_array().mask.sum() == 1


def test_values_unfit_for_a_folders_name_are_read_from_the_records(records):
    records.add("alone", (0.64, 0.641))
    ramps = {"_0_4_1_1_-0a1b2c": [[0, 4.0], [1, 1.0]], "4": 4.0}
    for (folder, ramp), loss in itertools.product(ramps.items(), ("kl", "dkd")):
        settings = {"temperature": ramp, "losses": [{"name": loss, "weight": 1.0}]}
        axes = f"--temperature={folder}--losses={loss}"
        records.add("student", (0.65, 0.652), axes=axes, settings=settings)
    grid = only_grid(records.run())
    assert grid.rows.texts == ("[[0, 4], [1, 1]]", "4")
    assert grid.columns.texts == ("[name kl, weight 1]", "[name dkd, weight 1]")


def test_a_later_stages_own_setting_is_not_taken_for_the_axis(records):
    records.add("alone", (0.64, 0.641))
    for temperature, weight in itertools.product(("1", "4"), WEIGHTS):
        axes = f"--temperature={temperature}--soft_weight={weight}"
        own = {"temperature": 2.0, "soft_weight": 0.9}
        records.add("pruned", (0.63, 0.632), axes=axes, settings=own)
    grid = only_grid(records.run())
    assert grid.rows.texts == ("1", "4")
    assert grid.columns.texts == WEIGHTS


@pytest.mark.parametrize("axes", ["--a=1", "--a=1--b=2--c=3"])
def test_one_axis_or_three_make_no_grid(records, axes):
    records.add("alone", (0.64, 0.641)).add("student", (0.65, 0.652), axes=axes)
    run = records.run()
    assert find_grids(compare(run), run) == []


def test_the_forest_tells_verdicts_by_place_shape_and_filling(records):
    run = add_scores(records).run()
    axes = draw_study(run)["study"].figure.axes[0]
    drawn = {
        round(float(line.get_xdata()[0]), 6): line
        for line in axes.lines
        if line.get_marker() in {look[0] for look in VERDICTS.values()}
    }
    assert len(drawn) == 3
    for comparison in compare(run).rows:
        line = drawn[round(100 * comparison.difference, 6)]
        marker, _, filling = VERDICTS[comparison.verdict]
        assert line.get_marker() == marker
        assert line.get_markerfacecolor() == filling
    assert len({marker for marker, *_ in VERDICTS.values()}) == len(VERDICTS)


def test_an_interval_too_wide_to_draw_ends_in_an_arrow(records):
    add_scores(records).add("twice", (0.861, 0.881))
    axes = draw_study(records.run())["study"].figure.axes[0]
    low, high = axes.get_xlim()
    arrows = [line for line in axes.lines if line.get_marker() in "<>"]
    assert [float(line.get_xdata()[0]) for line in arrows] == [low, high]
    assert high - low < 10


def test_texts_of_the_plots_do_not_touch(records, text_faults):
    add_grid(records, name="student_with_a_long_name")
    records.add("twice", (0.63, 0.65)).add("same", (0.640, 0.642, 0.641))
    plots = draw_study(records.run())
    assert len(plots) == 2
    for name, plot in plots.items():
        assert text_faults(plot.figure) == [], name
    labels = plots["study"].figure.axes[0].get_yticklabels()
    assert len({label.get_text() for label in labels}) == 9


def test_many_cells_can_be_told_apart_or_are_counted_in_the_other_plots(records):
    for temperature, weight in itertools.product(TEMPERATURES, WEIGHTS):
        axes = f"--temperature={temperature}--soft_weight={weight}"
        size = {"bytes": 318_144, "bytes_gzip": 290_000}
        records.add("student", 0.64, axes=axes, entry=size)
    records.add("alone", 0.6, entry=size)
    plots = draw_plots(records.run())
    labels = plots["accuracy"].figure.axes[0].get_yticklabels()
    assert len({label.get_text() for label in labels}) == 7
    named = {text.get_text() for text in plots["size"].figure.axes[0].texts}
    assert {"student, 6 cells", "alone"} <= named


def test_the_report_embeds_the_plots_in_the_section(records):
    add_grid(records).run()
    page = write_report(records.folder).read_text()
    before, after = page.split(HEADING)
    for name in ("study", "study-student"):
        assert f"(plots/{name}.png)" in after and f"(plots/{name}.png)" not in before
        for form in ("png", "svg"):
            assert (records.folder / f"plots/{name}.{form}").is_file()
