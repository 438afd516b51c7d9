"""The plan: which cells of a matrix share a stage, and what each one starts from."""

import yaml

from kdprune.config import parse_recipe
from kdprune.runner.graph import plan

RECIPE = """
name: small
data: {dataset: shapes}
baseline: alone
flagship: int8
stages:
  teacher: {kind: train, seed: 5, model: &model {name: article_student}}
  alone: {kind: train, model: *model}
  soft: {kind: soft_labels, seed: 5, teacher: teacher}
  student: {kind: distill, model: *model, soft_labels: soft}
  int8: {kind: quantize, from: student}
  files: {kind: export, from: [int8]}
  measured: {kind: evaluate, from: [teacher, alone, student, files]}
  page: {kind: report, from: measured}
"""


def recipe(**changes):
    return parse_recipe({**yaml.safe_load(RECIPE), **changes})


def names(**changes):
    return [node.name for node in plan(recipe(**changes))]


def test_without_a_matrix_every_stage_is_one_node():
    assert sorted(names()) == sorted(yaml.safe_load(RECIPE)["stages"])


def test_cells_share_what_does_not_depend_on_their_axis():
    found = names(matrix={"seed": [1, 2]})
    assert "teacher" in found and "soft" in found
    assert {"student--seed=1", "student--seed=2", "alone--seed=2"} <= set(found)
    assert found[-2:] == ["measured", "page"]
    assert len(found) == len(set(found)) == 2 + 4 * 2 + 2


def test_a_stage_may_have_fewer_seeds_than_the_others():
    found = names(matrix={"seed": [7, 8, 9]}, seeds={"student": 2})
    assert {"student--seed=7", "student--seed=8", "alone--seed=9"} <= set(found)
    # What builds on it has no more either.
    assert {"student--seed=9", "int8--seed=9", "files--seed=9"}.isdisjoint(found)
    measured = plan(recipe(matrix={"seed": [7, 8, 9]}, seeds={"student": 2}))
    (measured,) = (node for node in measured if node.stage == "measured")
    assert [len(measured.parents[name]) for name in ("alone", "student")] == [3, 2]


def test_seeds_share_what_draws_nothing():
    content = yaml.safe_load(RECIPE)
    stages = content["stages"]
    stages["given"] = {"kind": "quantize", "from": "teacher"}
    stages["taught"] = {**stages["given"], "method": "qat"}
    stages["taught"]["training"] = {"epochs": 1}
    stages["drawn"] = {**stages["given"], "calibration": 20}
    stages["other"] = {"kind": "export", "from": ["given"]}
    stages["measured"]["from"] += ["other"]
    content["matrix"] = {"seed": [1, 2], "stages.student.temperature": [1, 4]}
    found = [node.name for node in plan(parse_recipe(content))]
    assert {"given", "other", "taught--seed=1", "taught--seed=2"} <= set(found)
    assert {"drawn--seed=1", "drawn--seed=2"} <= set(found)
    # Each has a model of its own to start from.
    assert "int8--seed=2--temperature=4" in found


def test_two_axes_name_only_those_a_stage_depends_on():
    found = names(matrix={"seed": [1, 2], "stages.student.temperature": [1, 4, 8]})
    assert "alone--seed=1" in found and "alone--seed=1--temperature=4" not in found
    assert sum(name.startswith("student") for name in found) == 6


def test_each_cell_learns_from_its_own_parents():
    nodes = {n.name: n for n in plan(recipe(matrix={"seed": [1, 2]}))}
    assert [p.name for p in nodes["int8--seed=2"].parents["student"]] == [
        "student--seed=2"
    ]
    assert [p.name for p in nodes["measured"].parents["student"]] == [
        "student--seed=1",
        "student--seed=2",
    ]
    assert nodes["student--seed=2"].settings.seed == 2


def test_an_axis_of_parents_orders_stages_by_all_of_them():
    content = yaml.safe_load(RECIPE)
    content["stages"]["other"] = {**content["stages"]["alone"], "seed": 9}
    content["matrix"] = {"stages.soft.teacher": ["teacher", "other"]}
    found = [node.name for node in plan(parse_recipe(content))]
    assert found.index("other") < found.index("soft--teacher=other")


def test_values_that_are_no_folder_names_stay_apart():
    arguments = [{"name": "dscnn", "width": 8}, {"name": "dscnn", "width": 16}]
    found = names(matrix={"stages.student.model": arguments})
    students = [name for name in found if name.startswith("student")]
    assert len(set(students)) == 2 and all("/" not in name for name in students)
