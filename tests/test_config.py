"""Recipes: what is accepted, and how what is wrong is said."""

import pathlib
import re
import sys
import time

import pytest
import yaml

from kdprune.config import (
    InvalidRecipe,
    load_recipe,
    parse_recipe,
    set_key,
    stage_order,
)
from kdprune.runner.graph import plan

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
def test_every_recipe_that_is_shipped_is_valid(path, caplog):
    assert load_recipe(path).name == path.stem
    assert not caplog.records, "a recipe of ours uses former keys"


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
         "sensitivity or evaluate, got 'files', of kind export"),
        ("stages.teacher.kind", "trian", "stages.teacher.kind: expected one of train"),
        ("stages.student.teacher", "teacher", "expected one of `teacher` and "
         "`soft_labels`, got both"),
        ("stages.student.training.augment", {"crop": 2}, "stages.student: "
         "`training.augment` is set by the `soft_labels` stage"),
        ("stages.soft.views", 4, "stages.soft: several `views` need `augment`"),
        ("data.dataset", "cifar", "data.dataset: expected one of cifar10, folder, "
         "npz, shapes or FILE.npz, got 'cifar'; did you mean 'cifar10'?"),
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
        ("save_models", ["pruned"],
         "save_models: expected a stage that the evaluate stage measures"),
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
         "stages.student.training.images: expected train, of which 'soft' stores"),
        ("seeds", {"studnt": 2}, "seeds.studnt: expected a stage of kind"),
        ("seeds", {"student": 2}, "seeds.student: expected a matrix of seeds"),
        ("stages.student.model", {"architecture_of": "soft"},
         "stages.student.model.architecture_of: expected a stage of kind train or"),
        ("stages.student.model", {"architecture_of": "soft", "width": 3},
         "no more than `architecture_of`"),
        ("stages.student.model", {"architecture_of": "student"},
         "stages: dependency cycle: student -> student"),
        ("stages.student.losses", [{"weight": 2}], "stages.student.losses"),
        ("stages.student.temperature", [[0, 4], [1, -1]],
         "stages.student.temperature.1.1: expected greater than 0, got -1"),
        ("stages.pruned.temperature", 2, "stages.pruned: `temperature` needs a `teac"),
        ("stages.pruned", {"kind": "prune_channels", "from": "student", "ratio": 0.5,
         "target_macs": 9, "training": {}}, "stages.pruned: expected one of ratio"),
        ("stages.slim", {"kind": "prune_channels", "from": "student", "ratio": 0.5,
         "sensitivity": "soft", "training": {}},
         "stages.slim.sensitivity: expected a stage of kind sensitivity, got 'soft'"),
        ("stages", {**yaml.safe_load(RECIPE)["stages"], **SLIM},
         "stages.slim.sensitivity: expected that of 'student', which is pruned, got "
         "that of 'teacher'"),
        ("stages.slim", {**SLIM["slim"], "scope": "local"},
         "scope: global and a ratio or a target, got scope: local"),
        ("stages.slim", {"kind": "prune_channels", "from": "student", "threshold": 0.5,
         "scope": "per_cost", "training": {}}, "stages.slim: `threshold` limits no co"),
        ("stages.kit", {"kind": "kit", "from": "measured", "name": "k"},
         "stages.kit: a kit is the flagship's"),
        ("stages.pruned.threshold", 0.1, "stages.pruned: expected one of sparsity"),
        ("stages.pruned", {"kind": "prune", "from": "student",
         "relative_threshold": 0.1, "allocation": "lamp", "training": {}},
         "stages.pruned: allocation: lamp"),
        ("stages.pruned.criterion", "taylor",
         "stages.pruned: `threshold` and `criterion` choose"),
        ("stages.pruned.schedule", "one_shot", "one_shot expects `threshold` or `rel"),
        ("stages.int8.max_drop", 0.1, "stages.int8: `max_drop`, the accuracy that may "
         "be lost, is for method auto"),
        ("stages.int8.range_method", "minmx",
         "stages.int8.range_method: expected 'minmax', 'percentile' or 'mse', got "
         "'minmx'; did you mean 'minmax'?"),
        ("stages.int8", {"kind": "quantize", "from": "pruned", "method": "float16",
         "correct_bias": True}, "`correct_bias` is for method ptq, got float16"),
        ("stages.int8", {"kind": "quantize", "from": "pruned", "method": "float16",
         "calibration": 9}, "method float16 needs no images, got `calibration`"),
        ("seed", -1, "seed: expected greater than or equal to 0"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_path(path, value, expected):
    assert expected in error(path, value)


def test_a_cycle_is_refused():
    content = recipe()
    content["stages"]["soft"]["teacher"] = "pruned"
    with pytest.raises(ValueError, match="dependency cycle: .*soft.*pruned.*student"):
        parse_recipe(content)


def test_a_missing_recipe_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="recipe not found: .*absent.yaml"):
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


LAUGHS = "a: &a [x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
HOSTILE = [
    (LAUGHS, "expected at most 20,000 values, aliases written out"),
    ("m: &m {<<: *m}", "an alias stands inside of what it names"),
    ("m: &m [*m]", "an alias stands inside of what it names"),
    ("m: " + "[" * 900 + "]" * 900, "expected at most 20 levels"),
    ("m: !!timestamp abc", "expected text, a number, .* !!timestamp"),
    ("m: !!bool maybe", "expected a value of type bool, got 'maybe'"),
    ("m: !!int abc", "expected a value of type int, got 'abc'"),
    ("m: !!map [abc]", "got !!map"),
    (
        "m: !!python/object/apply:os.system [echo]",
        "got !!python/object/apply:os.system",
    ),
    ("? [a]\n: 1", "expected a key that is text, got a list; put it in quotes"),
    ("1: 1", "expected a key that is text, got '1'"),
    ("m: " + "9" * 5000, "expected a value of type int"),
    (
        "".join(f"k{index}: 1\n" for index in range(30_000)),
        "at most 200,000 characters",
    ),
    ("m: {k: 1, k: 2}", "the key 'k' is given twice"),
]


@pytest.mark.parametrize("by_override", [False, True])
@pytest.mark.parametrize(("text", "said"), HOSTILE, ids=range(len(HOSTILE)))
def test_yaml_that_is_no_recipe_is_one_line(tmp_path, text, said, by_override):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE if by_override else f"{RECIPE}{text}\n")
    overrides = [f"data.options={text}"] if by_override else []
    with pytest.raises(
        ValueError, match=rf", line \d+, column \d+: {said}|{said}"
    ) as e:
        load_recipe(path, overrides)
    assert "\n" not in str(e.value)


def test_a_date_is_the_text_that_it_is(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    with pytest.raises(InvalidRecipe, match=r"^2020-01-01: unknown key"):
        load_recipe(path, ["2020-01-01=2"])


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("stages.student.losses", [{"name": "dkd", "beta": float("nan")}],
         "stages.student.losses.0.beta: expected a finite number, got nan"),
        ("stages.teacher.model.width", float("inf"), "a finite number, got inf"),
        ("stages.teacher.training.epochs", 10**500, "at most 64 bits, got 1661 bits"),
        ("data.options", {"x": {1, 2}}, "expected text, a number, true, .* got {1, 2}"),
        ("data.options", {1: 2}, "expected keys that are text, got 1"),
        ("data.options", {f"k{n}": 1 for n in range(30_000)}, "at most 20,000 values"),
        ("matrix", {"seed": list(range(9_000))}, "most 20,000 stages in all, got 8 in"),
        ("stages", "abc", "stages: expected a valid dictionary"),
    ],
)  # fmt: skip
def test_values_beyond_what_a_recipe_holds_are_refused(path, value, said):
    assert re.search(said, error(path, value))


def test_many_problems_are_told_by_the_first_twenty():
    with pytest.raises(InvalidRecipe) as caught:
        parse_recipe({**recipe(), **{f"key{index}": 1 for index in range(9_000)}})
    assert len(caught.value.problems) == 21
    assert caught.value.problems[-1] == "and more"


def test_a_long_chain_of_stages_is_planned_in_no_time():
    content = {**recipe(), "stages": {"s0": recipe()["stages"]["teacher"]}}
    for index in range(1, 200):
        content["stages"][f"s{index}"] = {"kind": "train", "from": f"s{index - 1}"}
    started = time.process_time()
    assert len(plan(parse_recipe(content))) == 200
    assert time.process_time() - started < 5
    content["stages"]["more"] = {"kind": "train", "from": "s0"}
    with pytest.raises(InvalidRecipe, match="^stages: expected at most 200, got 201$"):
        parse_recipe(content)


def test_no_stage_is_called_as_a_folder_of_the_run():
    content = recipe()
    content["stages"]["plots"] = {"kind": "train", "from": "teacher"}
    with pytest.raises(InvalidRecipe, match=r"^stages.plots: .* the run's own folders"):
        parse_recipe(content)


def test_a_stage_is_left_out_only_where_there_are_stages(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("name: x\nstages: 5\n")
    with pytest.raises(ValueError, match="stages is a value and has no keys"):
        load_recipe(path, ["stages.a=null"])
    with pytest.raises(ValueError, match="a path of at most 20 keys"):
        load_recipe(path, [".".join("a" * 3000) + "=1"])


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


def test_all_that_is_wrong_is_said_at_once():
    content = recipe(**{"stages.teacher.training.epochs": 0, "stages.soft.viws": 2})
    with pytest.raises(InvalidRecipe) as caught:
        parse_recipe(content)
    assert [problem.split(": ")[0] for problem in caught.value.problems] == [
        "stages.teacher.training.epochs",
        "stages.soft.viws",
    ]
    content = recipe(**{"stages.files.from": "intt8", "stages.page.from": "measurd"})
    with pytest.raises(InvalidRecipe) as caught:
        parse_recipe(content)
    assert [problem.split(": ")[0] for problem in caught.value.problems] == [
        "stages.files.from",
        "stages.page.from",
    ]


FORMER = """
name: former
data: {dataset: shapes}
baseline: student
keep: [pruned]
matrix: {stages.pruned.by: [taylor, magnitude], seed: [1, 2]}
stages:
  student: {kind: train, model: {name: resnet8}, training: {slimming: 0.001}}
  pruned: {kind: prune, from: student, by: taylor, beta: 0.1, schedule: one_shot,
    training: {}}
  again: {kind: train, model: {like: pruned}}
  int8: {kind: quantize, from: pruned, ranges: mse}
  files: {kind: export, from: int8}
  measured: {kind: evaluate, from: [student, pruned, files]}
"""
RENAMED = {
    "keep": "save_models",
    "stages.student.training.slimming": "bn_l1",
    "stages.pruned.by": "criterion",
    "stages.pruned.beta": "relative_threshold",
    "stages.again.model.like": "architecture_of",
    "stages.int8.ranges": "range_method",
}


def test_former_keys_are_taken_with_a_line_for_each(caplog):
    parsed = parse_recipe(yaml.safe_load(FORMER))
    lines = [record.getMessage() for record in caplog.records]
    # The axis of the matrix as well.
    assert sorted(lines) == sorted(
        f"{former} is now {present}"
        for former, present in [*RENAMED.items(), ("stages.pruned.by", "criterion")]
    )
    text = FORMER
    for former, present in RENAMED.items():
        text = text.replace(f"{former.split('.')[-1]}:", f"{present}:")
    caplog.clear()
    assert parse_recipe(yaml.safe_load(text)) == parsed
    assert [plain.name for plain in plan(parsed)] == [
        node.name for node in plan(parse_recipe(yaml.safe_load(text)))
    ]
    assert not caplog.records
    # The folders of earlier runs stay theirs.
    assert "pruned--by=taylor--seed=1" in {node.name for node in plan(parsed)}


def test_settings_are_hashed_by_the_names_they_first_had():
    stages = parse_recipe(yaml.safe_load(FORMER)).stages
    assert stages["pruned"].hashed()["beta"] == 0.1
    assert "relative_threshold" not in stages["pruned"].hashed()
    assert stages["student"].hashed()["training"]["slimming"] == 0.001
    assert stages["again"].hashed()["model"]["like"] == "pruned"
    shown = stages["pruned"].model_dump(mode="json", by_alias=True)
    assert shown["relative_threshold"] == 0.1 and "beta" not in shown


def test_a_key_by_both_its_names_is_refused():
    content = yaml.safe_load(FORMER)
    content["stages"]["pruned"]["criterion"] = "taylor"
    with pytest.raises(InvalidRecipe, match="pruned.by is now criterion: got both"):
        parse_recipe(content)


def test_an_override_may_use_a_former_key(tmp_path):
    path = tmp_path / "former.yaml"
    path.write_text(FORMER)
    changed = load_recipe(path, ["stages.int8.ranges=percentile", "keep=[student]"])
    assert changed.stages["int8"].range_method == "percentile"
    assert changed.save_models == ("student",)


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """Writes a module beside a recipe; it is forgotten afterwards."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    names = []

    def write(name, text):
        (tmp_path / f"{name}.py").write_text(text)
        names.append(name)
        path = tmp_path / "recipe.yaml"
        path.write_text(f"plugins: [{name}]\n{RECIPE}")
        return path

    yield write
    for name in names:
        sys.modules.pop(name, None)


def test_a_plugin_beside_the_recipe_is_imported_before_it_is_checked(plugin):
    path = plugin("quiet_plugin", "LOADED = True")
    assert load_recipe(path).plugins == ("quiet_plugin",)
    assert sys.modules["quiet_plugin"].LOADED


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("1 / 0", "plugins: importing bad_plugin raised ZeroDivisionError: division"),
        ("import absent_module", "plugins: bad_plugin needs a module: .*absent_module"),
        ("def f(:", "plugins: importing bad_plugin raised SyntaxError"),
    ],
)
def test_a_plugin_that_fails_is_one_line(plugin, text, says):
    with pytest.raises(InvalidRecipe, match=says) as caught:
        load_recipe(plugin("bad_plugin", text))
    assert len(caught.value.problems) == 1


def test_a_plugin_that_is_not_there_is_named():
    with pytest.raises(InvalidRecipe, match="module not found: my_package.my_losses"):
        parse_recipe({**recipe(), "plugins": ["my_package.my_losses"]})
    with pytest.raises(InvalidRecipe, match="plugins: expected a valid tuple"):
        parse_recipe({**recipe(), "plugins": "os"})
