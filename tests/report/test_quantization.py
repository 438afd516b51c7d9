"""What the report shows of quantized, clustered and zero weights."""

import pytest
from matplotlib.colors import to_rgb

from kdprune.report import write_report
from kdprune.report.document import to_markdown
from kdprune.report.page import write_page
from kdprune.report.quantization import draw_quantized, read_layers, worst_layers


def markdown(run, plots=()):
    """The page in Markdown, with these plots embedded."""
    return to_markdown(write_page(run, dict(plots)))


def make_layer(layer, sqnr_db, weight_sqnr_db=None, op="CONV_2D", **changes):
    """A row as `compare_layers` writes it."""
    weighted = weight_sqnr_db is not None
    return {
        "layer": layer,
        "op": op,
        "tensor": f"net/{layer}/Relu;net/{layer}/Conv2D",
        "sqnr_db": sqnr_db,
        "rmse": 0.01,
        "rmse_over_scale": 0.31,
        "low": -0.0,
        "high": 6.125,
        "seen_low": 0.0,
        "seen_high": 6.1489,
        "saturation": 0.00123,
        "weight_low": -1.5 if weighted else None,
        "weight_high": 0.75 if weighted else None,
        "weight_sqnr_db": weight_sqnr_db,
        "channel_errors": [0.001, -0.002, 0.003],
        **changes,
    }


LAYERS = [
    make_layer("conv2d", 38.24, 41.0),
    make_layer("conv2d_1", 12.31, 15.52),
    make_layer("conv2d_2", 35.71, 40.1),
    make_layer("add", 39.9, op="ADD"),
    make_layer("conv2d_3", 18.06, 41.3, saturation=0.0421),
    make_layer("conv2d_4", 33.0, 39.4),
    make_layer("conv2d_5", 36.6, 40.2),
    make_layer("add_1", 41.2, op="ADD"),
    make_layer("flatten", None, op="RESHAPE", rmse=0.0, rmse_over_scale=0.0),
    make_layer("dense", 30.5, 42.3, op="FULLY_CONNECTED"),
]
WORST = ["conv2d_1", "conv2d_3", "dense", "conv2d_4", "conv2d_2"]
ATTEMPTS = [
    {
        "name": "PTQ, minmax ranges",
        "met": False,
        "seconds": 2.51,
        "bytes": 98_240,
        "images": 5000,
        "disagreement": 0.031,
        "keras_accuracy": 0.88,
        "tflite_accuracy": 0.8702,
        "drop": 0.0098,
        "drop_interval": [0.007, 0.0126],
        "drop_bound": 0.0127,
    },
    {
        "name": "PTQ, mse ranges",
        "met": False,
        "seconds": 0.2,
        "error": "model 'net' does not convert:\n| op <X>",
    },
    {
        "name": "QAT",
        "met": True,
        "seconds": 725.4,
        "bytes": 98_112,
        "disagreement": 0.02,
        "drop": -0.001,
        "drop_bound": 0.0019,
    },
]
BUDGET = {
    "method": "auto",
    "layers": LAYERS,
    "attempts": ATTEMPTS,
    "chosen": "QAT",
    "met": True,
    "message": "the budget of 0.50 points is met after 3 attempt(s)",
}


def add_quantized(records, folder="small", **results):
    return records.add_stage(folder, kind="quantize", results=results)


def only_stage(run):
    (stage,) = run.stages
    return stage


def section(run):
    """The part of the page on the run's only stage."""
    return markdown(run).split("### ")[1]


def tables_of(text):
    """Every table's header and rows, without the one of folders."""
    blocks = [block for block in text.split("\n\n") if block.startswith("|")]
    cells = [
        [[cell.strip() for cell in line[1:-1].split(" | ")] for line in lines]
        for lines in (block.splitlines() for block in blocks)
    ]
    return [(rows[0], rows[2:]) for rows in cells if rows[0][0] != "folder"]


def results_lines(text):
    return [line for line in text.splitlines() if line.startswith("Results")]


def bars_of(plot):
    """The bars by the row that they are in."""
    return {
        round(b.get_y() + b.get_height() / 2): b for b in plot.figure.axes[0].patches
    }


def test_the_worst_five_layers_are_a_table_the_worst_first(records):
    ((header, rows),) = tables_of(section(add_quantized(records, layers=LAYERS).run()))
    assert header[:4] == ["layer", "operator", "SQNR dB", "weights' SQNR dB"]
    assert [row[0].replace("\\", "") for row in rows] == WORST
    assert rows[1] == [
        "conv2d\\_3",
        "CONV\\_2D",
        "18.1",
        "41.3",
        "0.31",
        "4.21",
        "0 to 6.12",
        "0 to 6.15",
        "-1.5 to 0.75",
    ]


def test_a_sentence_says_what_the_figures_of_layers_are(records):
    text = section(add_quantized(records, layers=LAYERS).run())
    (sentence,) = [line for line in text.splitlines() if "each layer by itself" in line]
    for part in ("post-training int8", "decibels", "2 of 10 here", "integer steps"):
        assert part in sentence
    assert sentence.endswith(".") and ". " not in sentence
    good = [row for row in LAYERS if (row["sqnr_db"] or 0) > 20]
    add_quantized(records, "good", layers=good)
    assert "none of 7 here" in markdown(records.run())


def test_raw_lists_are_not_written_out(records):
    text = section(add_quantized(records, **BUDGET, val_accuracy=0.87).run())
    assert results_lines(text) == ["Results: `method` auto, `val_accuracy` 0.87."]
    assert "channel_errors" not in text and "keras_accuracy" not in text


def test_attempts_are_a_table_in_their_order(records):
    text = section(add_quantized(records, **BUDGET).run())
    (header, rows), _ = tables_of(text)
    assert header[:3] == ["attempt", "drop (points)", "at most, 95 %"]
    assert rows[0] == [
        "PTQ, minmax ranges",
        "0.98",
        "1.27",
        "3.10",
        "98,240",
        "2.5 s",
        "not within",
    ]
    failed = "failed: model 'net' does not convert: \\| op &lt;X>"
    assert rows[1] == ["PTQ, mse ranges", "–", "–", "–", "–", "0.2 s", failed]
    rest = ["-0.10", "0.19", "2.00", "98,112", "12 min 5 s", "within"]
    assert rows[2] == ["**QAT** (chosen)", *rest]
    assert "Outcome: the budget of 0.50 points is met after 3 attempt(s)." in text


def test_the_best_of_attempts_that_all_cost_too_much_is_told_apart(records):
    chosen = "PTQ, minmax ranges"
    results = {"attempts": ATTEMPTS[:2], "chosen": chosen, "met": False}
    ((_, rows),) = tables_of(section(add_quantized(records, **results).run()))
    assert rows[0][0] == f"**{chosen}** (chosen)" and rows[0][-1] == "not within"
    assert rows[1][0] == "PTQ, mse ranges"


def test_a_long_error_is_cut(records):
    attempt = {"name": "a", "met": False, "seconds": 0.1, "error": "x" * 5000}
    ((_, rows),) = tables_of(section(add_quantized(records, attempts=[attempt]).run()))
    assert len(rows[0][-1]) < 250 and rows[0][-1].endswith("...")


def test_each_seed_has_its_own_attempts(records):
    for seed in (1, 2):
        results = {**BUDGET, "attempts": ATTEMPTS[seed:]}
        add_quantized(records, f"small--seed={seed}", **results)
    text = section(records.run())
    assert [len(rows) for _, rows in tables_of(text)] == [2, 1, 5]
    assert "Attempts of small--seed=2 to stay" in text
    assert "Outcome of small--seed=1: the budget" in text


def test_layers_are_means_over_seeds_in_the_order_of_execution(records):
    for seed, shift in enumerate((0.0, 3.0), 1):
        layers = [make_layer("b", 20 + shift), make_layer("a", 30, 40 - shift)]
        add_quantized(records, f"small--seed={seed}", layers=layers)
    run = records.run()
    found = read_layers(only_stage(run))
    assert [layer.name for layer in found] == ["b", "a"]
    assert found[0].sqnr_db == pytest.approx(21.5)
    assert found[1].weight_sqnr_db == pytest.approx(38.5)
    assert "(means over 2 seeds)." in section(run)


def test_several_operators_of_a_layer_keep_apart(records):
    layers = [
        make_layer("attention", 30.0, op="FULLY_CONNECTED"),
        make_layer("attention", 20.0, op="SOFTMAX"),
        make_layer("attention", 25.0, op="SOFTMAX"),
        make_layer(None, 10.0, op="MEAN"),
        make_layer("dense", float("nan"), op="FULLY_CONNECTED"),
    ]
    found = read_layers(only_stage(add_quantized(records, layers=layers).run()))
    assert [layer.name for layer in found] == [
        "attention (FULLY_CONNECTED)",
        "attention (SOFTMAX)",
        "attention (SOFTMAX)",
        "MEAN",
        "dense",
    ]
    assert [layer.sqnr_db for layer in worst_layers(found, 9)] == [10, 20, 25, 30]


def test_bars_are_in_the_order_of_execution_and_the_worst_stand_out(records):
    stage = only_stage(add_quantized(records, layers=LAYERS).run())
    plot = draw_quantized(stage)["layers-small"]
    axes, bars = plot.figure.axes[0], bars_of(plot)
    labels = axes.get_yticklabels()
    assert [label.get_text() for label in labels] == [row["layer"] for row in LAYERS]
    widths = {row: bar.get_width() for row, bar in bars.items()}
    known = enumerate(row["sqnr_db"] for row in LAYERS)
    assert widths == {place: value for place, value in known if value is not None}
    for row, bar in bars.items():
        marked = LAYERS[row]["layer"] in WORST[:3]
        red, green, blue = to_rgb(bar.get_facecolor()[:3])
        ink = bar.get_facecolor()[3] * (1 - (0.3 * red + 0.59 * green + 0.11 * blue))
        assert ink > 0.4 if marked else ink < 0.25  # apart in grey as well
        assert (labels[row].get_weight() == "bold") is marked
    assert axes.yaxis_inverted()


def test_weights_are_a_second_mark_and_figures_stand_beside(records):
    stage = only_stage(add_quantized(records, layers=LAYERS).run())
    (plot,) = draw_quantized(stage).values()
    axes = plot.figure.axes[0]
    diamonds = [line for line in axes.lines if line.get_marker() == "D"]
    assert [line.get_xdata()[0] for line in diamonds] == [
        row["weight_sqnr_db"] for row in LAYERS if row["weight_sqnr_db"] is not None
    ]
    texts = [text.get_text() for text in axes.texts]
    assert texts[:2] == ["38.2", "12.3"] and texts[8] == "exact"
    keys = [text.get_text() for text in plot.figure.legends[0].get_texts()]
    assert keys == ["most sensitive layers", "other layers", "weights alone"]


def test_what_is_nearly_exact_does_not_press_the_others_into_a_corner(records):
    layers = [make_layer("a", 30.0), make_layer("pool", 140.0), make_layer("b", -3.0)]
    (plot,) = draw_quantized(
        only_stage(add_quantized(records, layers=layers).run())
    ).values()
    low, high = plot.figure.axes[0].get_xlim()
    assert low < -3 and high == 60
    assert "140.0" in [text.get_text() for text in plot.figure.axes[0].texts]


def make_deep(count=70):
    return [
        make_layer(
            f"stage{i // 9}_block{i % 9}_a_rather_long_named_conv", 20 + i % 19, 40
        )
        for i in range(count)
    ]


@pytest.mark.parametrize("layers", [LAYERS[:1], LAYERS, make_deep()])
def test_texts_of_the_plot_do_not_touch(records, text_faults, layers):
    name = "small_of_a_rather_long_named_student"
    stage = only_stage(add_quantized(records, name, layers=layers).run())
    (plot,) = draw_quantized(stage).values()
    assert text_faults(plot.figure) == []


def test_a_stage_without_figures_has_neither_table_nor_plot(records):
    for kind in ("quantize", "cluster", "prune"):
        records.add_stage(kind, kind=kind, results={"layers": [], "attempts": []})
    records.add_stage("odd", kind="quantize", results=[1, 2])
    records.add_stage("other", kind="train", results={"layers": LAYERS})
    run = records.run()
    assert tables_of(markdown(run).split("## Stages")[1]) == []
    assert all(draw_quantized(stage) == {} for stage in run.stages)


def test_layers_without_an_error_have_no_plot(records):
    run = add_quantized(records, layers=[LAYERS[8]]).run()
    assert draw_quantized(only_stage(run)) == {}
    assert "SQNR" not in section(run)


def test_clusters_that_are_alike_are_a_sentence(records):
    results = {"val_accuracy": 0.86, "clusters_by_layer": {"conv": 16, "dense": 16}}
    text = section(records.add_stage("c", kind="cluster", results=results).run())
    assert "Each of the 2 layers has 16 distinct weights." in text
    assert results_lines(text) == ["Results: `val_accuracy` 0.86."]


def test_clusters_that_differ_are_a_table_by_number(records):
    counts = {"conv_1": 432, **{f"c{i}": 16 for i in range(6)}, "dense": 15}
    results = {"clusters_by_layer": counts, "sparsity_by_layer": {"conv_1": 0.0}}
    text = section(records.add_stage("c", kind="cluster", results=results).run())
    ((_, rows),) = tables_of(text)
    assert rows == [
        ["432", "1", "conv\\_1"],
        ["16", "6", "c0, c1, c2 and 3 more"],
        ["15", "1", "dense"],
    ]
    assert results_lines(text) == []


@pytest.mark.parametrize(
    ("shares", "text"),
    [
        (
            {"a": 0.0, "b": 0.8012, "c": 0.5},
            "the 3 layers that can be pruned: 0.00 to ",
        ),
        ({"a": 0.8, "b": 0.8}, "the 2 layers that can be pruned: 80.00 %."),
    ],
)
def test_zeros_by_layer_are_a_range(records, shares, text):
    results = {"val_accuracy": 0.86, "sparsity_by_layer": shares}
    found = section(records.add_stage("p", kind="prune", results=results).run())
    assert text in found
    assert results_lines(found) == ["Results: `val_accuracy` 0.86."]


def test_a_sparsity_that_was_asked_for_stands_beside_what_was_found(records):
    sparsity = {"asked": 0.8, "found": 0.799, "of_all_kernels": 0.7}
    left = {"left_out": {"dw/depthwise_kernel": 0.1, "other/w": 0.025}}
    results = {"sparsity_by_layer": {"a": 0.8}, "sparsity": {**sparsity, **left}}
    found = section(records.add_stage("p", kind="prune", results=results).run())
    assert "Asked for: 80.00 %; found: 79.90 % of the weights" in found
    assert "70.00 % of those in all kernels. Left out, 12.50 %: dw/depthw" in found
    assert results_lines(found) == []


WRONG = [
    ("quantize", {"layers": {"a": 1}}, "layers: expected a list"),
    ("quantize", {"layers": [{"layer": 3}]}, "layer: expected a string"),
    ("quantize", {"layers": [make_layer("a", "12")]}, "'a' sqnr_db: expected a number"),
    (
        "quantize",
        {"layers": [make_layer("a", 9.0, saturation=4)]},
        "saturation: expected",
    ),
    ("quantize", {"attempts": [{"met": True}]}, "attempts[0] name: expected a value"),
    (
        "quantize",
        {"attempts": [{"name": "a", "drop": "b"}]},
        "'a' drop: expected",
    ),
    ("cluster", {"clusters_by_layer": [16]}, "clusters_by_layer: expected an object"),
    (
        "cluster",
        {"clusters_by_layer": {"a": None}},
        "by_layer a: expected a finite",
    ),
    (
        "prune",
        {"sparsity_by_layer": {"a": 80}},
        "by_layer a: expected a share",
    ),
]


@pytest.mark.parametrize(("kind", "results", "message"), WRONG)
def test_a_wrong_record_gives_one_clear_line(records, kind, results, message):
    records.add_stage("wrong", kind=kind, results=results)
    with pytest.raises(ValueError) as caught:
        records.run()
    assert message in str(caught.value)
    assert str(records.folder / "wrong" / "record.json") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_report_draws_and_embeds_the_plot_in_its_stage(records):
    add_quantized(records, **BUDGET).run()
    page = write_report(records.folder).read_text()
    before, after = page.split("## Stages")
    assert "(plots/layers-small.png)" in after
    assert "(plots/layers-small.png)" not in before
    assert (records.folder / "plots/layers-small.png").is_file()
