"""What the report shows of channel groups, channels and blocks that were cut."""

import numpy as np
import pytest
from matplotlib.colors import rgb_to_hsv, to_rgb

from kdprune.report import write_report
from kdprune.report.document import to_markdown
from kdprune.report.page import write_page
from kdprune.report.pruning import (
    draw_channels,
    draw_sensitivity,
    read_sensitivity,
    read_widths,
)
from kdprune.report.read import read_run

RATIOS = [0.125, 0.25, 0.5, 0.75]
SENSITIVITY = {
    "importance": "l2",
    "ratios": RATIOS,
    "whole": 0.8712,
    "groups": ["conv", "conv_1", "conv_4"],
    "layers": [["conv", "conv_2", "conv_3"], ["conv_1"], ["conv_4"]],
    "channels": [16, 16, 64],
    "left": [[16, 12, 8, 4], [16, 12, 8, 4], [56, 48, 32, 16]],
    "scores": [
        [0.8712, 0.8102, 0.5210, 0.2304],
        [0.8712, 0.8690, 0.8544, 0.7916],
        [0.8722, 0.8708, 0.8601, 0.8212],
    ],
}
WIDTHS = {"conv": [16, 12], "conv_1": [16, 8], "conv_4": [64, 40]}
BLOCKS = [
    {"name": "add_2", "score": 0.41234, "removed": True, "layers": 5},
    {"name": "add", "score": 0.6, "removed": False, "layers": 4},
]


def markdown(run, plots=()):
    """The page in Markdown, with these plots embedded."""
    return to_markdown(write_page(run, dict(plots)))


def draw(stage):
    """The plots of a stage of either kind."""
    return draw_sensitivity(stage) | draw_channels(stage)


def add_sensitivity(records, folder="spare", **changes):
    results = {**SENSITIVITY, **changes}
    settings = {"importance": "l2"}
    return records.add_stage(
        folder, kind="sensitivity", settings=settings, results=results
    )


def only_stage(run):
    (stage,) = run.stages
    return stage


def section(run, plots=()):
    """The part of the page on the run's only stage."""
    captions = {name: plot.caption for name, plot in dict(plots).items()}
    return markdown(run, captions).split("### ")[1]


def tables_of(text):
    """Every table's header and rows, without the one of folders."""
    blocks = [block for block in text.split("\n\n") if block.startswith("|")]
    cells = [
        [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
        for lines in (block.splitlines() for block in blocks)
    ]
    return [(rows[0], rows[2:]) for rows in cells if rows[0][0] != "folder"]


def results_line(text):
    return next((x for x in text.splitlines() if x.startswith("Results")), None)


def heat_map(run):
    """The axes with the heat map, and its texts by (row, column)."""
    (plot,) = draw(only_stage(run)).values()
    axes = plot.figure.axes[0]
    places = {t.get_position()[::-1]: t for t in axes.texts}
    return axes, places


def test_the_table_holds_the_changes_in_points_and_what_is_left(records):
    ((header, rows),) = tables_of(section(add_sensitivity(records).run()))
    assert header[:3] == ["group", "coupled with", "channels"]
    assert header[3:] == [f"{r} % removed" for r in ("12.5", "25", "50", "75")]
    rest = ["unchanged", "-6.10 (12)", "-35.02 (8)", "-64.08 (4)"]
    assert rows[0] == ["conv", "conv\\_2, conv\\_3", "16", *rest]
    rest = ["+0.10 (56)", "-0.04 (48)", "-1.11 (32)", "-5.00 (16)"]
    assert rows[2] == ["conv\\_4", "–", "64", *rest]


def test_a_sentence_says_what_was_measured_and_how(records):
    text = section(add_sensitivity(records).run())
    (sentence,) = [line for line in text.splitlines() if "pruned alone" in line]
    for part in (
        "each coupled group of channels is pruned alone by importance l2",
        "batch normalization recalibrated and nothing trained",
        "on the validation images, in points against the 87.12 % of the whole model",
        '"unchanged" where rounding leaves no channel to remove',
    ):
        assert part in sentence
    assert sentence.endswith(".") and ". " not in sentence


def test_unchanged_is_explained_only_where_it_occurs(records):
    left = [[14, 12, 8, 4], [14, 12, 8, 4], [56, 48, 32, 16]]
    assert "unchanged" not in section(add_sensitivity(records, left=left).run())


def test_raw_lists_are_not_written_out(records):
    text = section(add_sensitivity(records).run())
    assert results_line(text) == "Results: `importance` l2, `whole` 0.8712."


def test_a_group_of_many_layers_names_some_and_counts_the_others(records):
    layers = [["conv", *(f"conv{i}" for i in range(9))], ["conv_1"], ["conv_4"]]
    ((_, rows),) = tables_of(section(add_sensitivity(records, layers=layers).run()))
    assert rows[0][1] == "conv0, conv1, conv2 and 6 more"


def test_the_heat_map_writes_each_change(records):
    axes, texts = heat_map(add_sensitivity(records).run())
    changes = 100 * (np.array(SENSITIVITY["scores"]) - SENSITIVITY["whole"])
    assert len(texts) == 12
    for (row, column), text in texts.items():
        unchanged = row < 2 and column == 0
        assert text.get_text() == (
            "unchanged" if unchanged else f"{changes[row, column]:+.2f}"
        )
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["conv (16)", "conv_1 (16)", "conv_4 (64)"]
    columns = [label.get_text() for label in axes.get_xticklabels()]
    assert columns == ["12.5 %", "25 %", "50 %", "75 %"]


def test_the_heat_map_darkens_steadily_and_its_texts_stand_out(
    records, luminance, contrast
):
    axes, texts = heat_map(add_sensitivity(records, **make_large()).run())
    (image,) = axes.images
    losses = np.linspace(0, 60, 40)
    greys = luminance(image.cmap(image.norm(-losses)))
    assert (np.diff(greys) < 0).all()
    assert greys[0] > 0.9 and greys[-1] < 0.1
    shades = luminance(image.to_rgba(image.get_array()))
    for place, text in texts.items():
        ink = luminance(to_rgb(text.get_color()))
        assert contrast(ink, shades[place]) > 4.5, place


def test_a_loss_of_a_point_is_seen_beside_one_of_sixty(records):
    axes, _ = heat_map(add_sensitivity(records).run())
    (image,) = axes.images
    none, one = (rgb_to_hsv(image.cmap(image.norm(-loss))[:3])[1] for loss in (0, 1))
    assert one - none > 0.05


def test_without_any_loss_the_heat_map_is_drawn(records, text_faults):
    scores = [[0.8712] * 4] * 3
    (plot,) = draw(only_stage(add_sensitivity(records, scores=scores).run())).values()
    assert text_faults(plot.figure) == []


def test_seeds_are_averaged_each_against_its_own_whole_model(records):
    shifts = (0.0, 0.02, 0.04)
    for seed, shift in enumerate(shifts, 1):
        scores = (np.array(SENSITIVITY["scores"]) - shift).tolist()
        scores[1][2] -= 0.003 * seed
        whole = SENSITIVITY["whole"] - shift
        add_sensitivity(records, f"spare--seed={seed}", whole=whole, scores=scores)
    run = records.run()
    found = read_sensitivity(only_stage(run))
    assert found.seeds == 3
    assert found.whole == pytest.approx(0.8512)
    assert found.groups[1].reductions[2].change == pytest.approx(
        0.8544 - 0.8712 - 0.006
    )
    text = section(run)
    ((_, rows),) = tables_of(text)
    assert rows[0][4] == "-6.10 (12)"
    assert "85.12 % of the whole model (means over 3 seeds)" in text
    assert "scores" not in "".join(x for x in text.splitlines() if "Results" in x)


def test_a_missing_score_is_a_dash(records):
    scores = [[None, *row[1:]] for row in SENSITIVITY["scores"]]
    run = add_sensitivity(records, scores=scores).run()
    ((_, rows),) = tables_of(section(run))
    assert rows[2][3] == "– (56)"
    assert heat_map(run)[1][2, 0].get_text() == "–"


def test_a_stage_without_figures_has_neither_table_nor_plot(records):
    for kind in ("sensitivity", "prune_channels", "prune_blocks"):
        records.add_stage(kind, kind=kind, results={})
    records.add_stage("odd", kind="sensitivity", results=[1, 2])
    records.add_stage("other", kind="train", results=SENSITIVITY)
    run = records.run()
    assert tables_of(markdown(run).split("## Stages")[1]) == []
    assert all(draw(stage) == {} for stage in run.stages)


def test_channels_are_drawn_filled_within_the_outline_of_what_was_there(records):
    results = {"val_accuracy": 0.86, "channels_by_layer": WIDTHS}
    records.add_stage("slim", kind="prune_channels", results=results)
    plots = draw(only_stage(records.run()))
    axes = plots["channels-slim"].figure.axes[0]
    after, before = axes.containers
    assert [bar.get_width() for bar in before] == [16, 16, 64]
    assert [bar.get_width() for bar in after] == [12, 8, 40]
    assert all(bar.get_facecolor()[3] == 0 for bar in before)
    assert all(bar.get_facecolor()[3] == 1 for bar in after)
    assert [t.get_text() for t in axes.texts] == ["16 → 12", "16 → 8", "64 → 40"]
    text = section(records.run(), plots)
    assert results_line(text) == "Results: `val_accuracy` 0.86."
    assert "Of 96 channels in the 3 layers that were pruned, 60 are left." in text
    assert "(plots/channels-slim.png)" in text


def test_a_layer_that_one_seed_did_not_cut_counts_as_whole_there(records):
    for seed, widths in enumerate(({"conv": [16, 8]}, {"conv_1": [32, 24]}), 1):
        results = {"channels_by_layer": widths}
        records.add_stage(f"slim--seed={seed}", kind="prune_channels", results=results)
    run = records.run()
    assert read_widths(only_stage(run)) == {"conv": (16, 12), "conv_1": (32, 28)}
    assert "40 are left (means over 2 seeds)." in section(run)


@pytest.mark.parametrize(
    ("rank", "heading", "meaning"),
    [
        ("loss", "loss without it", "validation loss of the model without it"),
        ("angle", "angle", "as a share of a half turn"),
    ],
)
def test_blocks_are_a_table_in_their_rank(records, rank, heading, meaning):
    results = {"val_accuracy": 0.86, "rank": rank, "blocks": BLOCKS}
    text = section(records.add_stage("b", kind="prune_blocks", results=results).run())
    ((header, rows),) = tables_of(text)
    assert header == ["block", "layers", heading, "outcome"]
    assert rows == [
        ["add\\_2", "5", "0.4123", "removed"],
        ["add", "4", "0.6", "kept"],
    ]
    assert meaning in text
    assert results_line(text) == "Results: `val_accuracy` 0.86."


def test_each_seed_has_its_own_table_of_blocks(records):
    for seed in (1, 2):
        results = {"rank": "loss", "blocks": BLOCKS[::seed]}
        records.add_stage(f"b--seed={seed}", kind="prune_blocks", results=results)
    text = section(records.run())
    assert [len(rows) for _, rows in tables_of(text)] == [2, 1]
    assert "Residual blocks of b--seed=2," in text


WRONG = [
    ("sensitivity", {"scores": [[0.8] * 4] * 2}, "expected scores of 3 groups at 4"),
    ("sensitivity", {"left": [[8] * 3] * 3}, "expected left of 3 groups at 4 ratios"),
    ("sensitivity", {"layers": None}, "expected layers of 3 groups"),
    ("sensitivity", {"scores": [[87.0] * 4] * 3}, "a share in [0, 1]"),
    (
        "sensitivity",
        {"channels": [16, 16, None]},
        "channels[2]: expected a finite",
    ),
    ("prune_channels", {"channels_by_layer": {"conv": 8}}, "conv: expected a list"),
    (
        "prune_channels",
        {"channels_by_layer": [8]},
        "by_layer: expected an object",
    ),
    ("prune_blocks", {"blocks": [{"score": 1}]}, "blocks[0] name: expected a value"),
    (
        "prune_blocks",
        {"blocks": [{"name": "a", "score": "b"}]},
        "'a' score: expected",
    ),
]


@pytest.mark.parametrize(("kind", "changes", "message"), WRONG)
def test_a_wrong_record_gives_one_clear_line(records, kind, changes, message):
    base = SENSITIVITY if kind == "sensitivity" else {}
    records.add_stage("wrong", kind=kind, results={**base, **changes})
    with pytest.raises(ValueError) as caught:
        records.run()
    assert message in str(caught.value)
    assert str(records.folder / "wrong" / "record.json") in str(caught.value)
    assert "\n" not in str(caught.value)


def make_large(groups=36):
    """A sensitivity of a deep network with long names."""
    random = np.random.default_rng(0)
    names = [
        f"stage{i // 6}_block{i % 6}_a_rather_long_name_conv" for i in range(groups)
    ]
    loss = np.sort(random.uniform(0, 0.85, (groups, 4)) ** 3, axis=1)
    return {
        "groups": names,
        "layers": [[name] for name in names],
        "channels": [32] * groups,
        "left": [[28, 24, 16, 8]] * groups,
        "scores": (0.8712 - loss).tolist(),
    }


@pytest.mark.parametrize("size", ["one", "few", "many"])
def test_texts_of_the_plots_do_not_touch(records, text_faults, size):
    changes, widths = {}, WIDTHS
    if size == "many":
        changes = make_large()
        widths = {name: [128, 8 + i] for i, name in enumerate(changes["groups"])}
    elif size == "one":
        changes = {"groups": ["conv"], "ratios": [0.5], "channels": [16]}
        changes |= {"layers": [["conv"]], "left": [[8]], "scores": [[0.5]]}
        widths = {"conv": [1024, 8]}
    add_sensitivity(records, "spare_of_a_rather_long_named_student", **changes)
    results = {"channels_by_layer": widths}
    records.add_stage(
        "slim_of_a_rather_long_named_student--target_macs=4167000",
        kind="prune_channels",
        results=results,
    )
    plots = [p for s in records.run().stages for p in draw(s).items()]
    assert len(plots) == 2
    for name, plot in plots:
        assert text_faults(plot.figure) == [], name


def test_the_report_draws_and_embeds_the_plots_in_their_stages(records):
    add_sensitivity(records)
    results = {"channels_by_layer": WIDTHS}
    records.add_stage("slim", kind="prune_channels", results=results).run()
    page = write_report(records.folder).read_text()
    before, after = page.split("## Stages")
    for name in ("sensitivity-spare", "channels-slim"):
        assert f"(plots/{name}.png)" in after and f"(plots/{name}.png)" not in before
        assert (records.folder / f"plots/{name}.png").is_file()
    assert read_run(records.folder).models == ()
