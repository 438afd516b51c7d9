"""What the report shows of the files that passed the export gate."""

import pytest

from kdprune.report.document import to_markdown
from kdprune.report.page import write_page


def markdown(run, plots=()):
    """The page in Markdown, with these plots embedded."""
    return to_markdown(write_page(run, dict(plots)))


def make_file(**changes):
    """Figures as the export stage records them."""
    convolution = {"op": "CONV_2D", "type": "int8", "count": 9}
    return {
        "ops": {"CONV_2D": 9, "SOFTMAX": 1},
        "float_ops": [],
        "operators": [
            {**convolution, "gpu": True, "micro": True},
            {"op": "UNIQUE", "type": "int8", "count": 1, "gpu": False, "micro": False},
        ],
        "peak_activation_bytes": 49_152,
        "input": {"dtype": "int8", "scale": 1 / 255, "zero_point": -128},
        "output": {"dtype": "int8", "scale": 1 / 256, "zero_point": -128},
        "float_layers": [],
        "images": 5000,
        "disagreement": 0.0048,
        "kernels": {
            "xnnpack": {"images": 5000, "largest_deviation": 0.0613},
            "reference": {"images": 100, "largest_deviation": 0.0521},
        },
        "xnnpack_leaves": ["SOFTMAX", "UNIQUE", "UNIQUE"],
        **changes,
    }


def section(records, **files):
    """The lines of the page on the run's only stage."""
    records.add_stage("files", kind="export", results={"files": files})
    return markdown(records.run()).split("### ")[1]


def test_each_file_has_a_row_of_what_the_gate_found(records):
    text = section(records, **{"small.int8.tflite": make_file()})
    assert (
        "| small.int8.tflite | int8, 1/255 | int8, 1/256 | none | 49,152 | not UNIQUE "
        "| not SOFTMAX, UNIQUE | not UNIQUE | 0.48 | 0.061 / – / 0.052 |"
    ) in text
    assert "Results" not in text


def test_files_of_the_same_operators_share_their_table(records):
    other = make_file(operators=[make_file()["operators"][0]])
    text = section(records, a=make_file(), b=other, c=make_file())
    assert "a, c:\n\n| operator" in text and "b:\n\n| operator" in text
    assert text.count("| CONV\\_2D | int8 | 9 | yes | yes |") == 2
    assert text.count("| UNIQUE | int8 | 1 | no | no |") == 1


def test_layers_in_float_are_named_without_the_conversions_around_them(records):
    rows = [
        {"op": op, "layer": layer, "tensor": ""}
        for op, layer in (("DEQUANTIZE", None), ("CONV_2D", "hard"), ("QUANTIZE", None))
    ]
    whole = [{**rows[1]} for _ in range(10)]
    text = section(records, a=make_file(float_ops=rows), b=make_file(float_ops=whole))
    assert "int8, 1/256 | hard | 49,152" in text
    assert "int8, 1/256 | all | 49,152" in text


def test_of_several_cells_the_first_is_shown_and_said_to_be(records):
    for seed, share in ((1, 0.01), (2, 0.02)):
        files = {"a": make_file(disagreement=share)}
        name = f"files--seed={seed}"
        records.add_stage(name, kind="export", results={"files": files})
    text = markdown(records.run()).split("### ")[1]
    assert "those of the first cell." in text
    assert text.count("| a | int8, 1/255") == 1 and "| 1.00 | 0.061" in text


def test_a_record_from_before_there_were_such_figures_is_shown(records):
    text = section(records, old={"ops": {"CONV_2D": 3}, "disagreement": 0.01})
    assert "| old | – | – | none | – | – | – | – | 1.00 | – |" in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"operators": [{"op": 3, "type": "int8"}]},
            r"a operators\[0\] op: expected",
        ),
        (
            {"operators": [{"op": "ADD", "type": "int8"}]},
            r"a operators\[0\] gpu: expected",
        ),
        (
            {"peak_activation_bytes": "much"},
            "a peak_activation_bytes: expected a",
        ),
        ({"kernels": {"xnnpack": 3}}, "files a kernels xnnpack: expected an object"),
    ],
)
def test_figures_of_the_wrong_type_are_named(records, changes, message):
    with pytest.raises(ValueError, match=message):
        section(records, a=make_file(**changes))


def test_files_that_are_a_list_are_named(records):
    records.add_stage("files", kind="export", results={"files": [make_file()]})
    with pytest.raises(ValueError, match="files: expected an object"):
        records.run()
