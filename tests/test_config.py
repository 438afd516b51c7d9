"""Recipes: what is accepted, and how what is wrong is said."""

import pathlib

import pytest
import yaml

from kdprune.config import load_recipe, parse_recipe, set_key, stage_order

RECIPE = """
name: tried
data: {dataset: shapes}
stages:
  teacher: {kind: train, model: {name: resnet9, width: 16}, training: {epochs: 3}}
  soft: {kind: soft_labels, teacher: teacher}
  student: {kind: distill, soft_labels: soft, model: {name: resnet8}}
  pruned: {kind: prune, from: student, sparsity: 0.5, training: {epochs: 2}}
  int8: {kind: quantize, from: pruned}
  files: {kind: export, from: [student, int8]}
  measured: {kind: evaluate, from: [teacher, files]}
  page: {kind: report, from: measured}
"""
SLIM = {
    "spare": {"kind": "sensitivity", "from": "teacher"},
    "slim": {
        "kind": "prune_channels",
        "from": "student",
        "ratio": 0.5,
        "sensitivity": "spare",
        "training": {},
    },
}
CONFIGS = pathlib.Path(__file__).parents[1] / "configs"


def recipe(**changes):
    content = yaml.safe_load(RECIPE)
    for path, value in changes.items():
        set_key(content, path, value)
    return content


def error(path, value):
    with pytest.raises(ValueError) as caught:
        parse_recipe(recipe(**{path: value}))
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_defaults_are_filled_in():
    training = parse_recipe(recipe()).stages["teacher"].training
    assert (training.epochs, training.batch_size, training.select) == (3, 128, "last")


def test_stages_come_after_what_they_need():
    order = stage_order(parse_recipe(recipe()))
    assert order.index("teacher") < order.index("soft") < order.index("student")
    assert order[-1] == "page"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_recipe_that_is_shipped_is_valid(path):
    assert load_recipe(path).name == path.stem


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("stages.student.tempreature", 3,
         "stages.student.tempreature: unknown key; did you mean 'temperature'?"),
        ("stages.teacher.training.epoch", 3, "stages.teacher.training.epoch: unknown "
         "key; did you mean 'epochs'?"),
        ("stages.teacher.training.epochs", "many",
         "stages.teacher.training.epochs: expected a valid integer"),
        ("stages.teacher.training.epochs", 0,
         "stages.teacher.training.epochs: expected greater than or equal to 1, got 0"),
        ("stages.pruned.sparsity", 1.5, "stages.pruned.sparsity: expected less than 1"),
        ("stages.pruned.from", "studnt", "stages.pruned.from: expected a stage of kind "
         "train or load or distill or prune"),
        ("stages.pruned.from", "studnt", "got 'studnt'; did you mean 'student'?"),
        ("stages.page.from", "files", "stages.page.from: expected a stage of kind "
         "evaluate or sensitivity, got 'files', of kind export"),
        ("stages.teacher.kind", "trian", "stages.teacher.kind: expected one of train"),
        ("stages.student.teacher", "teacher", "expected one of `teacher` and "
         "`soft_labels`, got both"),
        ("stages.student.training.augment", {"crop": 2}, "stages.student: "
         "`training.augment` is set by the `soft_labels` stage"),
        ("stages.soft.views", 4, "stages.soft: several `views` need `augment`"),
        ("data.dataset", "cifar", "data.dataset: expected 'cifar10', 'folder' or "
         "'shapes', got 'cifar'; did you mean 'cifar10'?"),
        ("dta", 1, "dta: unknown key; did you mean 'data'?"),
        ("flagship", "student", "flagship: expected a stage of kind quantize"),
        ("seed", True, "seed: expected a valid integer"),
        ("stages.teacher.training.learning_rate", float("inf"), "expected a finite"),
        ("stages.pruned.training", {"select": "best"}, "stages.pruned: `training` of a "
         "prune stage expects select: last"),
        ("stages.int8.teacher", "teacher",
         "stages.int8: method ptq trains nothing, got `teacher`"),
        ("stages.int8.method", "qat", "stages.int8: method qat expects `training`"),
        ("stages.page2", {"kind": "report", "from": "measured"},
         "stages.page2: expected one stage of kind report"),
        ("keep", ["pruned"], "keep: expected a stage that the evaluate stage measures"),
        ("matrix", {"data.seed": [0, 1]},
         "matrix.data.seed: expected no key of `data`"),
        ("matrix", {"stages.studnt.seed": [0]}, "matrix.stages.studnt.seed: expected a "
         "stage of kind"),
        ("matrix", {"stages.measured.threads": [1]}, "of kind evaluate"),
        ("stages.teacher.from", "student", "stages.teacher: expected either `model`"),
        ("stages.student.from", "teacher", "stages.student: expected either `model`"),
        ("stages.teacher.training",
         {"images": "train+validation", "select": "best"}, "leaves none to choose"),
        ("stages.student.training.images", "train+validation",
         "stages.student: `training.images` beyond train need a live `teacher`"),
        ("seeds", {"studnt": 2}, "seeds.studnt: expected a stage of kind"),
        ("seeds", {"student": 2}, "seeds.student: expected a matrix of seeds"),
        ("stages.student.model", {"like": "soft"},
         "stages.student.model.like: expected a stage of kind train or"),
        ("stages.student.model", {"like": "soft", "width": 3}, "no more than `like`"),
        ("stages.student.model", {"like": "student"}, "stages: expected no circle"),
        ("stages.student.losses", [{"weight": 2}], "stages.student.losses"),
        ("stages.student.temperature", [[0, 4], [1, -1]], "stages.student.temperature"),
        ("stages.pruned.temperature", 2, "stages.pruned: `temperature` needs a `teac"),
        ("stages.pruned", {"kind": "prune_channels", "from": "student", "ratio": 0.5,
         "target_macs": 9, "training": {}}, "stages.pruned: expected one of ratio"),
        ("stages.slim", {"kind": "prune_channels", "from": "student", "ratio": 0.5,
         "sensitivity": "soft", "training": {}},
         "stages.slim.sensitivity: expected a stage of kind sensitivity, got 'soft'"),
        ("stages", {**yaml.safe_load(RECIPE)["stages"], **SLIM},
         "stages.slim.sensitivity: expected that of 'student', which is cut, got that "
         "of 'teacher'"),
        ("stages.slim", {**SLIM["slim"], "scope": "local"},
         "scope: global and a ratio or a target, got scope: local"),
        ("stages.slim", {"kind": "prune_channels", "from": "student", "threshold": 0.5,
         "scope": "per_cost", "training": {}}, "stages.slim: `threshold` limits no co"),
        ("stages.kit", {"kind": "kit", "from": "measured", "name": "k"},
         "stages.kit: a kit is the flagship's"),
        ("stages.pruned.threshold", 0.1, "stages.pruned: expected one of sparsity"),
        ("stages.pruned", {"kind": "prune", "from": "student", "beta": 0.1,
         "allocation": "lamp", "training": {}}, "stages.pruned: allocation: lamp"),
        ("stages.pruned.by", "taylor", "stages.pruned: `threshold` and `by` choose"),
        ("stages.pruned.schedule", "one_shot", "one_shot expects `threshold` or `be"),
        ("stages.int8.max_drop", 0.1, "stages.int8: method: auto and `max_drop`"),
        ("stages.int8.ranges", "minmx", "stages.int8.ranges: expected 'minmax', 'perc"),
        ("stages.int8", {"kind": "quantize", "from": "pruned", "method": "float16",
         "correct_bias": True}, "`correct_bias` is for method ptq, got float16"),
        ("stages.int8", {"kind": "quantize", "from": "pruned", "method": "float16",
         "calibration": 9}, "method float16 needs no images, got `calibration`"),
        ("seed", -1, "seed: expected greater than or equal to 0"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_path(path, value, expected):
    assert expected in error(path, value)


def test_a_circle_is_refused():
    content = recipe()
    content["stages"]["soft"]["teacher"] = "pruned"
    with pytest.raises(ValueError, match="no circle, got .*soft.*pruned.*student"):
        parse_recipe(content)


def test_a_missing_recipe_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent.yaml: none there"):
        load_recipe(tmp_path / "absent.yaml")


@pytest.mark.parametrize("text", ["a: [", "just words", "\xff"])
def test_what_is_not_a_recipe_is_said_so(tmp_path, text):
    path = tmp_path / "broken.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match="broken.yaml"):
        load_recipe(path)


def test_a_key_given_twice_is_refused(tmp_path):
    path = tmp_path / "twice.yaml"
    path.write_text(RECIPE + "  page: {kind: report, from: measured}\n")
    with pytest.raises(ValueError, match="the key 'page' is given twice"):
        load_recipe(path)


def test_overrides_take_yaml_values(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    changed = load_recipe(
        path,
        [
            "stages.teacher.training.epochs=7",
            "stages.teacher.training.augment={crop: 2}",
        ],
    )
    training = changed.stages["teacher"].training
    assert (training.epochs, training.augment.crop) == (7, 2)
    with pytest.raises(ValueError, match="--set expects key.path=value"):
        load_recipe(path, ["stages.teacher"])
    with pytest.raises(ValueError, match="name is a value and has no keys"):
        load_recipe(path, ["name.first=1"])


def test_an_override_leaves_what_shares_its_anchor_alone(tmp_path):
    path = tmp_path / "recipe.yaml"
    text = RECIPE.replace("{epochs: 3}", "&shared {epochs: 3}")
    path.write_text(
        text.replace("{name: resnet8}}", "{name: resnet8}, training: *shared}")
    )
    changed = load_recipe(path, ["stages.student.training.epochs=9"])
    assert changed.stages["student"].training.epochs == 9
    assert changed.stages["teacher"].training.epochs == 3


def test_an_override_leaves_a_stage_out(tmp_path):
    path = tmp_path / "tried.yaml"
    path.write_text(RECIPE)
    assert "page" not in load_recipe(path, ["stages.page=null"]).stages
    with pytest.raises(ValueError, match="got 'student'|expected a stage of kind"):
        load_recipe(path, ["stages.student=null"])


def test_one_stage_to_export_needs_no_brackets():
    one = parse_recipe(recipe(**{"stages.files.from": "int8"}))
    assert one == parse_recipe(recipe(**{"stages.files.from": ["int8"]}))
    with pytest.raises(ValueError, match="stages.files.from.*'Int 8'"):
        parse_recipe(recipe(**{"stages.files.from": "Int 8"}))
