"""What someone puts into a finished stage's folder is told, carried rightly or refused.

A changed file or record is found by its checksum, and the stage is run again. Where the
record was made to fit, what is handed on is held against what stages make.
"""

import json
import shutil

import numpy as np
import pytest
import tf_keras as keras

from kdprune import _io, prune, quantize, records
from kdprune.config import parse_recipe
from kdprune.data import load_dataset
from kdprune.models import load_model, save_model
from kdprune.runner import run as runner
from kdprune.stages.loading import check_handed_on

layers = keras.layers
DATA = {"dataset": "shapes", "image_size": 16, "train_images": 100, "test_images": 20}
TRAINING = {"epochs": 1, "optimizer": "adam", "learning_rate": 1e-4}


def network(outputs=10, size=16, end=None, training=None, filters=8):
    image = keras.Input((size, size, 3))
    x = layers.Conv2D(filters, 3, use_bias=False, name="conv")(image)
    x = layers.ReLU()(layers.BatchNormalization(name="norm")(x))
    x = layers.Conv2D(8, 3, name="second")(x)
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(x))
    x = layers.Dropout(0.5)(x, training=training)
    return keras.Model(image, layers.Dense(outputs, activation=end, name="logits")(x))


def two_headed():
    model = network()
    return keras.Model(model.inputs, [model.output, model.layers[-2].output])


STRANGE = {
    "two outputs": (two_headed, "expected a model of one output"),
    "training": (lambda: network(training=True), "called with training=True"),
    "classes": (lambda: network(7), "expected 10 outputs by softmax or logits"),
    "probabilities": (lambda: network(end="softmax"), "expected logits. Received: a"),
    "size": (lambda: network(size=24), r"of images \(16, 16, 3\). Received: images"),
}


def recipe():
    stages = {
        "net": {"kind": "load", "file": "net.keras", "input_range": [0, 1]},
        "int8": {"kind": "quantize", "from": "net"},
        "files": {"kind": "export", "from": ["net", "int8"]},
        "measured": {"kind": "evaluate", "from": ["net", "files"], "latency": False},
        "spare": {"kind": "sensitivity", "from": "net", "ratios": [0.5],
                  "round_to": 4},
        "narrow": {"kind": "prune_channels", "from": "net", "ratio": 0.3,
                   "sensitivity": "spare", "round_to": 4, "training": TRAINING},
        "qat": {"kind": "quantize", "from": "net", "method": "qat",
                "training": TRAINING},
        "aware": {"kind": "export", "from": "qat"},
        "soft": {"kind": "soft_labels", "teacher": "net"},
        "taught": {"kind": "distill", "from": "net", "soft_labels": "soft",
                   "training": TRAINING},
    }  # fmt: skip
    for name in ("files", "aware"):
        stages[name] |= {"max_drop": 0.9, "max_disagreement": 0.9, "max_deviation": 0.9}
    return parse_recipe({"name": "edited", "data": DATA, "stages": stages})


@pytest.fixture(scope="module")
def run_until(tmp_path_factory):
    """`(folder, run)`: what a run made, and `run(folder, until)`, which goes on."""
    place = tmp_path_factory.mktemp("edited")
    keras.utils.set_random_seed(0)
    save_model(network(), place / "net.keras")

    def run(folder, until):
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(place)
            runner.run(recipe(), folder, until=until)

    run(place / "run", "int8")
    return place / "run", run


@pytest.fixture
def copied(run_until, tmp_path):
    shutil.copytree(run_until[0], tmp_path / "run")
    return tmp_path / "run"


def fits(folder, stage, **other):
    """Makes a record say what is in its stage's folder."""
    path = folder / stage / "record.json"
    record = {**_io.read_json(path), **other}
    record["outputs"] = records.describe_outputs(path.parent, record["outputs"])
    _io.write_json(path, records.sealed(record))


def assert_refused(run, folder, until, match):
    with pytest.raises(ValueError, match=match) as error:
        run(folder, until)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", STRANGE)
def test_a_model_that_no_stage_hands_on_is_refused(name):
    make, told = STRANGE[name]
    dataset = load_dataset("shapes", image_size=16, train_images=100, test_images=20)
    check_handed_on(network(), dataset, "net")
    check_handed_on(quantize.quantize_model(network()), dataset, "int8")
    named = f"stage 'net', whose folder holds another model than it made: .*{told}"
    with pytest.raises(ValueError, match=named) as error:
        check_handed_on(make(), dataset, "net")
    assert "\n" not in str(error.value)


def test_a_changed_file_is_told_and_its_stage_run_again(run_until, copied, caplog):
    before = {path: path.read_bytes() for path in copied.glob("*/*.keras")}
    save_model(network(7), copied / "net" / "model.keras")
    (copied / "int8" / "plan.json").unlink()
    run_until[1](copied, "int8")
    told = [line for line in caplog.messages if "run again" in line]
    assert told == [
        "net: model.keras changed or missing, the stage is run again",
        "int8: plan.json changed or missing, the stage is run again",
    ]
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("change", ["figure", "output", "seal", "cut"])
def test_a_record_that_was_changed_is_none(run_until, copied, caplog, change):
    path = copied / "net" / "record.json"
    record = json.loads(path.read_text())
    if change == "figure":
        record["results"]["val_accuracy"] = 1.0
    elif change == "output":
        record["outputs"] = {}
    elif change == "seal":
        record["sha256"] = 3
    path.write_text("{" if change == "cut" else json.dumps(record))
    run_until[1](copied, "net")
    line = "net: record.json changed or missing, the stage is run again"
    assert line in caplog.messages


def test_a_record_of_an_earlier_version_has_no_checksum(tmp_path):
    record = {"fingerprint": "1", "outputs": {}, "results": {"a": 1.5}}
    for content in (record, records.sealed(record)):
        _io.write_json(tmp_path / "record.json", content)
        assert records.read_record(tmp_path / "record.json") == content
    _io.write_json(tmp_path / "record.json", {**content, "seconds": 1})
    assert records.read_record(tmp_path / "record.json") is None


def test_a_record_of_numbers_as_keys_is_whole_when_it_is_read():
    record = records.sealed({"results": {9: 1.5, 10: [2]}})
    read = json.loads(json.dumps(record))
    assert records.sealed(read) == read


def test_a_model_whose_record_fits_is_refused_by_what_follows(run_until, copied):
    save_model(two_headed(), copied / "net" / "model.keras")
    fits(copied, "net")
    assert_refused(run_until[1], copied, "int8", "stage 'net', .* one output")


def test_another_model_of_these_classes_is_carried(run_until, copied):
    save_model(network(filters=4), copied / "net" / "model.keras")
    fits(copied, "net")
    run_until[1](copied, "int8")
    base = load_model(copied / "int8" / "base.keras")
    assert base.get_layer("conv").filters == 4


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"method": "other"}, "method must be one of qat, ptq"),
        ({"files": None}, "files: Input should be a valid dictionary"),
        ({"conversion": None}, "conversion: Input should be"),
        ({"conversion": {}}, "conversion.dtypes: Field required"),
        ({"conversion": {"dtypes": []}}, "conversion.dtypes: List should have"),
        ({"conversion": {"dtypes": "int8"}}, "conversion.dtypes: Input should be"),
        ({"conversion": {"dtypes": ["int8"], "heads": "x"}}, "conversion.heads: Extra"),
        ({"conversion": {"dtypes": ["int8"], "correct_bias": 3}}, "correct_bias: In"),
        ({"files": {"base.keras": "0"}}, "base.keras is not the file plan.json was"),
    ],
)
def test_a_plan_that_no_stage_writes_is_refused(copied, change, told):
    path = copied / "int8" / "plan.json"
    _io.write_json(path, {**_io.read_json(path), **change})
    with pytest.raises(ValueError, match=told) as error:
        quantize.read_plan(path.parent)
    assert "run the quantizing stage again" in str(error.value) or "method" in change
    assert "\n" not in str(error.value)


def test_weights_of_another_model_are_refused(tmp_path):
    quantize.save_quantized(quantize.quantize_model(network()), tmp_path)
    save_model(network(filters=4), tmp_path / "base.keras")
    plan = _io.read_json(tmp_path / "plan.json")
    plan["files"]["base.keras"] = _io.sha256(tmp_path / "base.keras")
    _io.write_json(tmp_path / "plan.json", plan)
    with pytest.raises(ValueError, match="weights do not fit the model of") as error:
        quantize.load_quantized(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        {"ratios": None},
        {"ratios": [2.0]},
        {"groups": []},
        {"scores": [["high"]]},
        {"left": [[0.5, 0.5]]},
        {"whole": "1"},
    ],
    ids=str,
)
def test_a_table_of_sensitivities_that_none_gives_is_refused(change):
    table = {
        **{"ratios": [0.5], "whole": 0.9, "groups": ["conv"], "layers": [["conv"]]},
        **{"channels": [8], "left": [[4]], "scores": [[0.8]]},
    }
    assert prune.Sensitivity.from_dict(table).as_dict() == table
    with pytest.raises(ValueError, match="expected a table as Sensitivity.as_dict"):
        prune.Sensitivity.from_dict({**table, **change})


def in_plan(**changes):
    def edit(folder):
        path = folder / "plan.json"
        plan = _io.read_json(path)
        plan["conversion"] |= changes.pop("conversion", {})
        _io.write_json(path, {**plan, **changes})

    return edit


def other_base(folder):
    save_model(network(7), folder / "base.keras")
    plan = _io.read_json(folder / "plan.json")
    plan["files"]["base.keras"] = _io.sha256(folder / "base.keras")
    _io.write_json(folder / "plan.json", plan)


def other_views(folder):
    for path in folder.glob("*.npy"):
        np.save(path, np.load(path)[:, :7])


def other_views_of_other_sums(folder):
    other_views(folder)
    content = _io.read_json(folder / "store.json")
    content["sha256"] = {one.name: _io.sha256(one) for one in folder.glob("*.npy")}
    _io.write_json(folder / "store.json", content)


def not_finite(folder):
    for path in folder.glob("*.npy"):
        np.save(path, np.full_like(np.load(path), np.nan))


EDITS = {
    "kinds": ("int8", in_plan(conversion={"dtypes": ["int9"]}), "files", "int9"),
    "ranges": (
        *("int8", in_plan(conversion={"range_method": "all"}), "files"),
        "range_method",
    ),
    "layers": (
        *("int8", in_plan(conversion={"float_layers": ["none"]}), "files"),
        "float_layers|none",
    ),
    "images": (
        *("int8", in_plan(calibration={"images": -3}), "files"),
        "calibration.images: expected a number",
    ),
    "account": ("int8", in_plan(calibration=None), "files", "calibration.images"),
    "base": ("int8", other_base, "files", "stage 'int8', .* expected 10 outputs"),
    "aware": ("qat", other_base, "aware", "weights do not fit|expected 10 outputs"),
    "table": (
        *("spare", lambda f: _io.write_json(f / "sensitivity.json", [1]), "narrow"),
        "expected a table as Sensitivity.as_dict gives",
    ),
    "views": ("soft", other_views, "taught", "expected the view as it was stored"),
    "sums": (
        *("soft", other_views_of_other_sums, "taught"),
        "expected soft labels of 10 outputs. Received: 7",
    ),
    "nan": ("soft", not_finite, "taught", "expected the view as it was stored"),
    **{
        f"{name} into {until}": (
            "net",
            lambda folder, make=make: save_model(make(), folder / "model.keras"),
            *(until, f"stage 'net', .*{told}"),
        )
        for name, (make, told) in STRANGE.items()
        for until in ("narrow", "qat", "soft", "measured")
    },
}


@pytest.fixture(scope="module")
def whole(run_until):
    for until in ("measured", "narrow", "aware", "taught"):
        run_until[1](run_until[0], until)
    return run_until[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", EDITS)
def test_what_an_edit_hands_on_is_refused_by_each_stage(
    name, whole, run_until, tmp_path
):
    stage, edit, until, told = EDITS[name]
    shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / until)  # Of a store, other content is no reason.
    edit(tmp_path / "run" / stage)
    fits(tmp_path / "run", stage)
    assert_refused(run_until[1], tmp_path / "run", until, told)
