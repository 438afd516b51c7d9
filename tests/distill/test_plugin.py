"""Losses and images of a user's own module, named in a recipe."""

import csv
import json
import pathlib
import shutil
import sys

import pytest

from kdprune import cli
from kdprune.config import load_recipe
from kdprune.data import DATASETS
from kdprune.distill import FEATURE_LOSSES, LOGIT_LOSSES
from kdprune.runner import run as runner

PLUGIN = pathlib.Path(__file__).parent / "plugin"


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """A recipe with its plugin beside it; what that registers is gone afterwards."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    tables = DATASETS, LOGIT_LOSSES, FEATURE_LOSSES
    before = [dict(table) for table in tables]
    yield shutil.copytree(PLUGIN, tmp_path / "plugin") / "recipe.yaml"
    for table, content in zip(tables, before, strict=True):
        table.clear()
        table.update(content)
    sys.modules.pop("own_parts", None)


@pytest.mark.slow
def test_a_recipe_trains_by_losses_and_on_images_of_its_own(recipe, tmp_path, capsys):
    output = tmp_path / "run"
    assert cli.main(["run", str(recipe), "--output", str(output)]) == 0
    assert "epoch 1 of 1 - " in capsys.readouterr().out
    with open(output / "student" / "history.csv") as file:
        (row,) = csv.DictReader(file)
    parts = [float(row[f"{name}_loss"]) for name in ("kl", "squared_logits")]
    parts.append(float(row["channel_means_loss"]))
    assert all(part > 0 for part in parts)
    assert float(row["soft_loss"]) == pytest.approx(sum(parts), rel=1e-4)
    models = json.loads((output / "metrics.json").read_text())["models"]
    accuracy = {model["name"]: model["accuracy"] for model in models}
    assert accuracy["teacher"] > 0.9


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("scael", "unknown argument 'scael'; it takes scale; did you mean 'scale'"),
        ("scale", "squared_logits: scale must be a number"),
    ],
)
def test_a_loss_of_its_own_is_checked_before_its_teacher_trains(
    recipe, tmp_path, change, says
):
    text = recipe.read_text().replace("scale: 2.0", f"{change}: high")
    recipe.write_text(text)
    with pytest.raises(ValueError, match=f"stages.student.losses: .*{says}"):
        runner.preview(load_recipe(recipe), tmp_path / "run")


def test_a_loss_that_can_not_teach_is_refused_before_its_teacher_trains(
    recipe, tmp_path
):
    module = recipe.parent / "own_parts.py"
    text = module.read_text()
    module.write_text(text.replace("student_logits) ** 2, axis=1)", "teacher_logits))"))
    with pytest.raises(ValueError, match="stages.student.losses: .*one number per ex"):
        runner.preview(load_recipe(recipe), tmp_path / "run")
