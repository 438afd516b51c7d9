"""A study in the report: what is tested against what, and how it is shown."""

import math

import numpy as np
import pytest
import scipy.stats

from kdprune.report.document import to_markdown
from kdprune.report.page import write_page
from kdprune.report.study import HELPS, HURTS, NOISE, UNTESTED, compare
from kdprune.report.study_plots import VERDICTS, draw_study

HEADING = "## Against the baseline"
SCORES = {
    "alone": (0.8700, 0.8721, 0.8689, 0.8712, 0.8695),
    "kl": (0.8790, 0.8811, 0.8799, 0.8802, 0.8784),
    "dist": (0.8721, 0.8690, 0.8719),
    "hints": (0.8630, 0.8642, 0.8621),
}


def markdown(run, plots=()):
    """The page in Markdown, with these plots embedded."""
    return to_markdown(write_page(run, dict(plots)))


def add_scores(records):
    for name, accuracies in SCORES.items():
        records.add(name, accuracies)
    return records


def section(run):
    page = markdown(run)
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
    assert "compared with alone (5 seeds)" in method
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


def test_models_that_are_larger_of_another_kind_or_one_seed_are_left_out(records):
    int8 = {"format": "tflite", "dtype": "int8"}
    add_scores(records)
    records.add("teacher", 0.93, entry={"parameters": 6_580_000})
    records.add("slim", (0.85, 0.851, 0.852), entry={"parameters": 40_000})
    records.add("kl_int8", (0.85, 0.86), stage="quantized", entry=int8)
    records.add("once", 0.875)
    run = records.run()
    assert set(verdicts(run)) == {"kl", "dist", "hints", "slim"}
    assert verdicts(run)["slim"] == HURTS  # A cut one may, and shall, be held to it.
    assert (
        "Not tested: teacher (more parameters than the baseline); kl\\_int8 (the "
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


def test_an_int8_files_uint8_twin_is_not_one_more_test(records):
    add_scores(records)
    for stage in ("alone", "kl"):
        for dtype in ("int8", "uint8"):
            entry = {"format": "tflite", "dtype": dtype, "resolver": "xnnpack"}
            name = f"{stage}_{dtype}"
            records.add(name, SCORES[stage], stage=stage, entry=entry, kind="distill")
    records.add("only_uint8", (0.86, 0.861), entry={**entry, "dtype": "uint8"})
    run = records.run()
    drawn = [model.name for model in run.distinct]
    assert "kl_int8" in drawn and "kl_uint8" not in drawn and "only_uint8" in drawn
    assert "kl_uint8" in [model.name for model in run.models]
    assert set(verdicts(run)) == {"kl", "dist", "hints", "kl_int8"}


def test_a_keras_models_float32_file_is_its_twin(records):
    add_scores(records)
    entry = {"format": "tflite", "dtype": "float32", "resolver": "xnnpack"}
    for stage in ("alone", "kl"):
        name = f"{stage}_float32"
        records.add(name, SCORES[stage], stage=stage, entry=entry, kind="distill")
    # It takes float32 images too, but has weights of its own.
    records.add("kl_float16", SCORES["kl"], stage="kl", entry=entry, kind="distill")
    run = records.run()
    drawn, shipped = ([m.name for m in ms] for ms in (run.distinct, run.shipped))
    assert "kl" in drawn and "kl_float32" not in drawn and "kl_float16" in drawn
    assert "kl_float32" in shipped and "kl" not in shipped and "dist" in shipped


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
    with pytest.raises(
        ValueError, match=r"alone.record\.json: results: val_accuracy: expected a share"
    ):
        records.run()


def test_a_p_value_is_not_rounded_over_the_limit(records):
    # Any two samples of two: shift until p is just below 0.05.
    baseline = (0.87, 0.872)
    shifts = np.arange(0.004, 0.008, 1e-6)
    others = np.stack([0.87 + shifts, 0.872 + shifts])
    found = scipy.stats.ttest_ind(others, np.transpose([baseline]), equal_var=False)
    shift = shifts[(found.pvalue > 0.0495) & (found.pvalue < 0.05)][0]
    records.add("alone", baseline)
    records.add("kl", (0.87 + shift, 0.872 + shift))
    assert rows_of(section(records.run()))["kl"][5:] == ["< 0.05", HELPS]


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
