"""What a recipe teaches by is checked before the teacher is trained."""

import pytest

from kdprune import stages
from kdprune.config import parse_recipe
from kdprune.runner import run as runner
from kdprune.stages import Started

TRAINING = {"epochs": 1, "batch_size": 60}
HINT = {"name": "hint", "teacher_layers": ["conv1"], "student_layers": ["conv1"]}


def checked(tmp_path, student=None, **changes):
    """Checks a recipe of a teacher, a student and what is pruned of it."""
    taught = {"teacher": "teacher", "training": TRAINING}
    student = {"model": {"name": "article_student"}, **(student or {})}
    content = {
        "name": "taught",
        "data": {"dataset": "shapes", "train_images": 100, "test_images": 100},
        "stages": {
            "teacher": {
                "kind": "train",
                "model": {"name": "article_teacher"},
                "training": TRAINING,
            },
            "student": {"kind": "distill", **taught, **student},
            "pruned": {
                "kind": "prune",
                "from": "student",
                "sparsity": 0.5,
                **taught,
                **changes.pop("pruned", {}),
            },
            **changes.pop("stages", {}),
        },
        **changes,
    }
    run = runner.Run(parse_recipe(content), tmp_path)
    stages.check(run.nodes, run)


@pytest.mark.parametrize(
    ("loss", "says"),
    [
        ({"name": "kl", "temperature": 0}, "kl: temperature must be .*Received: 0"),
        ({"name": "kl", "temperature": "hot"}, "kl: temperature must be a number"),
        ({"name": "dkd", "alpha": -1}, "dkd: alpha must be finite and at least 0"),
        ({"name": "contrastive", "temperature": -1}, "contrastive: temperature must"),
        (
            {"name": "relational", "distance_weight": 0, "angle_weight": 0},
            "relational: one of distance_weight, angle_weight must be above 0",
        ),
        ({**HINT, "student_layers": None}, "both teacher_layers and student_layers"),
        ({**HINT, "student_layers": ["conv9"]}, "no layer 'conv9'. Did you mean 'conv"),
        ({**HINT, "teacher_layers": ["hidden"]}, "'hidden' .*gives no feature map"),
    ],
)
def test_losses_that_would_fail_later_are_refused(tmp_path, loss, says):
    with pytest.raises(ValueError, match=f"^stages.student.losses: .*{says}"):
        checked(tmp_path, {"losses": [loss]})
    with pytest.raises(ValueError, match=f"^stages.pruned.losses: .*{says}"):
        checked(tmp_path, pruned={"losses": [loss]})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "losses", [[], [{"name": "articles_contrastive"}], [HINT, {"name": "relational"}]]
)
def test_losses_that_fit_pass(tmp_path, losses):
    checked(tmp_path, {"losses": losses}, pruned={"losses": losses})


@pytest.mark.parametrize("key", ["temperature", "soft_weight"])
def test_points_out_of_order_are_refused(tmp_path, key):
    points = [[0.5, 1], [0.2, 1]]
    with pytest.raises(ValueError, match=f"^stages.student.{key}: .*shares rising"):
        checked(tmp_path, {key: points})


def test_layers_that_only_a_stage_can_tell_are_left_to_it(tmp_path):
    shorter = {
        "kind": "prune_blocks",
        "from": "teacher",
        "count": 1,
        "training": TRAINING,
    }
    taught = {"teacher": "shorter", "losses": [{**HINT, "teacher_layers": ["any"]}]}
    checked(tmp_path, taught, stages={"shorter": shorter})


def test_models_are_built_once_for_all_cells(tmp_path, monkeypatch):
    built = []
    original = Started.untrained_model

    def counted(self, run, node):
        built.append(node.name)
        return original(self, run, node)

    monkeypatch.setattr(Started, "untrained_model", counted)
    checked(tmp_path, {"losses": [HINT]}, matrix={"seed": [1, 2, 3]})
    assert sorted(built) == ["student--seed=1", "teacher--seed=1"]
