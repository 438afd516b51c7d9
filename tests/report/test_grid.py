"""A study on a grid of two axes: its heat map, and many cells in the other plots."""

import itertools

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from kdprune.report import write_report
from kdprune.report.document import to_markdown
from kdprune.report.page import write_page
from kdprune.report.plots import draw_plots
from kdprune.report.study import HELPS, HURTS, compare, find_grids
from kdprune.report.study_plots import draw_study

HEADING = "## Against the baseline"
TEMPERATURES, WEIGHTS = ("1", "4", "10"), ("0.5", "1.0")


def markdown(run, plots=()):
    """The page in Markdown, with these plots embedded."""
    return to_markdown(write_page(run, dict(plots)))


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


def test_the_figures_of_a_dark_cell_are_white(records, luminance, contrast):
    axes = draw_study(add_grid(records).run())["study-student"].figure.axes[0]
    (image,) = axes.images
    for text in axes.texts:
        column, row = text.get_position()
        shade = to_rgb(image.cmap(image.norm(image.get_array()[row, column])))
        ink, paper = luminance(to_rgb(text.get_color())), luminance(shade)
        assert contrast(ink, paper) > 4.5
    assert {text.get_color() for text in axes.texts} == {"white", "black"}


@pytest.mark.parametrize(
    ("values", "order"),
    [
        (("10", "0.5", "1e-05"), ("1e-05", "0.5", "10")),
        (("sgd", "10", "adam"), ("sgd", "10", "adam")),
    ],
)
def test_only_numbers_are_sorted(records, values, order):
    records.add("alone", 0.641)
    for value, weight in itertools.product(values, WEIGHTS):
        records.add("student", 0.65, axes=f"--rate={value}--soft_weight={weight}")
    assert only_grid(records.run()).rows.values == order


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
    page = markdown(run, {name: plot.caption for name, plot in plots.items()})
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
        assert (records.folder / f"plots/{name}.png").is_file()


CRITERIA = ("random", "l1", "taylor")
TARGETS = (4_167_000, 6_250_000, 8_334_000)


def add_cuts(records, swapped=False):
    """Nine cells of nets of three sizes, and a net with zeros beside them."""
    whole = {"macs": 12_500_000, "bytes": 318_000, "bytes_gzip": 290_000}
    records.add("alone", (0.869, 0.871, 0.873), entry=whole)
    records.add("sparse", (0.86, 0.861, 0.862), entry={**whole, "bytes_gzip": 150_000})
    for importance, target in itertools.product(CRITERIA, TARGETS):
        share = target / whole["macs"]
        axes = (f"--importance={importance}", f"--target_macs={target}")
        score = 0.80 + 0.06 * share + 0.005 * CRITERIA.index(importance)
        records.add(
            "slim",
            (score - 0.002, score, score + 0.002),
            axes="".join(axes[::-1] if swapped else axes),
            entry={key: round(value * share) for key, value in whole.items()},
            kind="prune_channels",
            settings={"importance": importance, "target_macs": target},
            results={
                "val_accuracy": score,
                "val_accuracy_cut": 0.4,
                "macs": target,
                "epochs": target,
                **{f"figure_{n}": score + n for n in range(5)},
                "channels_by_layer": {"conv": [16, 8]},
            },
        )
    return records


@pytest.mark.parametrize("swapped", [False, True])
def test_cells_that_differ_in_size_make_a_line_for_each_way(
    records, text_faults, swapped
):
    figure = draw_study(add_cuts(records, swapped).run())["study-slim-curves"].figure
    assert [axes.get_xlabel() for axes in figure.axes] == [
        "multiply-adds (millions)",
        "bytes in gzip (thousands)",
    ]
    for axes, unit in zip(figure.axes, (12_500_000, 290_000), strict=True):
        lines = axes.containers[: len(CRITERIA)]
        assert tuple(line.get_label() for line in lines) == CRITERIA
        for row, line in enumerate(lines):
            sizes, scores = line.lines[0].get_data()
            shares = np.divide(sizes, unit)
            assert shares == pytest.approx(np.divide(TARGETS, 12_500_000), abs=1e-4)
            expected = 100 * (0.80 + 0.06 * shares + 0.005 * row)
            assert scores == pytest.approx(expected, abs=1e-2)
        assert {text.get_text() for text in axes.texts if text.get_text()} == {
            "alone",
            "sparse",
        }
    assert text_faults(figure) == []


def test_cells_of_about_one_size_make_no_lines(records):
    records.add("alone", 0.641)
    cells = enumerate(itertools.product(TEMPERATURES, WEIGHTS))
    for number, (temperature, weight) in cells:
        axes = f"--temperature={temperature}--soft_weight={weight}"
        size = {"macs": 12_500_000, "bytes_gzip": 290_000 + 2_000 * number}
        records.add("student", 0.64, axes=axes, entry=size)
    assert "study-student-curves" not in draw_study(records.run())


def test_a_missing_cell_makes_a_shorter_line(records):
    add_cuts(records)
    records.entries = [
        entry
        for entry in records.entries
        if "importance=l1--target_macs=4167000" not in entry["stage"]
    ]
    lines = draw_study(records.run())["study-slim-curves"].figure.axes[0].containers
    assert [len(line.lines[0].get_xdata()) for line in lines[:3]] == [3, 2, 3]


def test_a_cost_that_is_not_known_of_all_cells_has_no_panel(records):
    add_cuts(records)
    for entry in records.entries:
        if "importance=l1--target_macs=4167000" in entry["stage"]:
            del entry["macs"]
    axes = draw_study(records.run())["study-slim-curves"].figure.axes
    assert [a.get_xlabel() for a in axes] == ["bytes in gzip (thousands)"]


def test_too_many_cells_to_name_are_named_by_their_best(records):
    plots = draw_plots(add_cuts(records).run())
    named = {text.get_text() for text in plots["size"].figure.axes[0].texts}
    assert named - {""} == {"slim, best of 9 cells", "sparse", "alone"}


@pytest.mark.slow
def test_too_many_cells_to_tell_share_a_section_without_plots_of_each(records):
    page = write_report(add_cuts(records).run() and records.folder).read_text()
    assert page.count("### slim") == 1
    section = page.split("### slim")[1].split("### ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| slim--")]
    assert len(rows) == 9 * 3
    header = section.split("| ---")[0].strip()
    shown = ("val_accuracy", "macs", *(f"figure_{n}" for n in range(4)))
    assert header.endswith("| ".join(f"`{name}` " for name in shown) + "|")
    assert "Results in all cells: `val_accuracy_cut` 0.4." in section
    assert "Results of" not in section
    assert not list((records.folder / "plots").glob("training-slim*"))
