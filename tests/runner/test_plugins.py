"""A kind of stage of the user's own, named in a recipe, run as any other."""

import json
import pathlib
import re
import shutil
import subprocess
import sys
from typing import Literal

import numpy as np
import pytest

from kdprune import cli, data, register_stage, stages
from kdprune.config import load_recipe
from kdprune.distill import loss_spec
from kdprune.models import load_model
from kdprune.models.factories import MODELS
from kdprune.prune import IMPORTANCES
from kdprune.runner import run as runner
from kdprune.stages import KINDS, Stage

PLUGIN = pathlib.Path(__file__).parent / "plugin"


REGISTRIES = (KINDS, data.DATASETS, MODELS, loss_spec.LOGIT_LOSSES, IMPORTANCES)


@pytest.fixture(autouse=True)
def nothing_stays(monkeypatch):
    """Forgets the plugins and what they registered."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = [dict(registry) for registry in REGISTRIES]
    yield
    for registry, entries in zip(REGISTRIES, before, strict=True):
        registry.clear()
        registry.update(entries)
    for name in ("clipping", "own"):
        sys.modules.pop(name, None)


@pytest.fixture
def recipe(tmp_path):
    """A recipe with its plugin beside it, to be changed."""
    return shutil.copytree(PLUGIN, tmp_path / "plugin") / "recipe.yaml"


def states(recipe, folder):
    lines = runner.preview(recipe, folder).splitlines()
    found = [line.strip().partition("): ") for line in lines if "): " in line]
    return {name.split(" (")[0]: state for name, _, state in found}


@pytest.mark.slow
def test_it_is_run_by_the_command_with_workers_of_their_own(recipe, tmp_path, capsys):
    output = tmp_path / "run"
    arguments = ["run", str(recipe), "--output", str(output), "--jobs", "2"]
    # In a process of its own, whose workers have to find the plugin, too.
    ended = subprocess.run(
        [sys.executable, "-m", "kdprune", *arguments, "--until", "clipped"],
        capture_output=True,
        text=True,
        timeout=500,
        cwd=tmp_path,
        env=environment(),
    )
    assert ended.returncode == 0, ended.stderr
    assert "== clipped (clip) ==" in ended.stdout
    assert cli.main(arguments[:4]) == 0
    record = json.loads((output / "clipped" / "record.json").read_text())
    assert record["kind"] == "clip" and record["results"]["clipped"] > 100
    before, after = (load_model(output / n / "model.keras") for n in ("net", "clipped"))
    for old, new in zip(before.get_weights(), after.get_weights(), strict=True):
        if old.ndim > 1:
            assert abs(new).max() == pytest.approx(1.5 * old.std(), rel=1e-5)
    # It draws nothing: both seeds share it, and differ where they train on.
    folders = {path.parent.name for path in output.glob("*/record.json")}
    assert {"clipped", "further--seed=1", "further--seed=2", "files"} <= folders
    metrics = json.loads((output / "metrics.json").read_text())
    assert "clipped" in {model["name"] for model in metrics["models"]}
    assert "clipped" in (output / "report.md").read_text()

    assert cli.main(["run", str(recipe), "--output", str(output), "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"clipped \(clip\): done\n    clips \d+ of \d+ weights", text)
    assert "to do" not in text
    # What the module does may have changed: nothing counts as done.
    plugin = recipe.parent / "clipping.py"
    plugin.write_text(plugin.read_text() + "\n# another\n")
    assert states(load_recipe(recipe), output)["net"].startswith("to do")


def environment():
    import os

    root = str(pathlib.Path(stages.__file__).parents[2])
    return {**os.environ, "PYTHONPATH": root}


def test_a_dry_run_tells_its_plan_and_how_long(recipe, tmp_path):
    found = states(load_recipe(recipe), tmp_path / "run")
    assert found["clipped"] == "to do, about 2 s"
    text = runner.preview(load_recipe(recipe), tmp_path / "run")
    assert "plan available after stage `net`" in text


def test_its_settings_and_checks_are_the_recipes(recipe, tmp_path):
    with pytest.raises(ValueError, match="clipped.deviation: unknown key; did you me"):
        load_recipe(recipe, ["stages.clipped.deviation=2"])
    with pytest.raises(
        ValueError, match="clipped.from: expected a stage of kind train"
    ):
        load_recipe(recipe, ["stages.clipped.from=files"])
    wrong = load_recipe(recipe, ["stages.clipped.deviations=11"])
    with pytest.raises(ValueError, match="clipped.deviations: nothing is beyond 10"):
        runner.preview(wrong, tmp_path / "run")
    without = load_recipe(recipe, ["stages.clipped.deviations=3"]).stages["clipped"]
    assert without.deviations == 3.0


def test_a_command_runs_the_kinds_of_its_role(recipe):
    from kdprune.cli.recipes import wanted

    loaded = load_recipe(recipe)
    accepts = wanted("quantize")
    assert {n for n in loaded.stages if accepts(loaded, n)} == {"clipped", "int8"}


@pytest.mark.slow
def test_a_data_set_a_network_a_loss_and_an_importance_of_a_plugin(tmp_path):
    path = PLUGIN / "own.yaml"
    runner.run(load_recipe(path), tmp_path / "run")
    records = {
        name: json.loads((tmp_path / "run" / name / "record.json").read_text())
        for name in ("teacher", "student", "slim")
    }
    assert records["teacher"]["data"]["source"] == "stripes of period 6"
    assert set(sys.modules["own"].scales) == {0.5}
    student, slim = (
        load_model(tmp_path / "run" / name / "model.keras")
        for name in ("student", "slim")
    )
    # Of each layer the first channels are left: as the importance says.
    kept = student.get_layer("first").get_weights()[0][..., :4]
    np.testing.assert_allclose(
        slim.get_layer("first").get_weights()[0], kept, atol=1e-4
    )


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("data.dataset=strips", "data.dataset: expected one of .*did you mean 'strip"),
        ("data.options={perod: 6}", "perod"),
        ("stages.teacher.model.name=two_convolution", "two_convolutions"),
        ("stages.teacher.model.filtrs=4", "teacher.model: .*filtrs"),
        ("stages.student.losses=[{name: squared_logit}]", "squared_logits"),
        ("stages.student.losses=[{name: squared_logits, scle: 1}]", "scle"),
        ("stages.slim.importance=last_frst", "did you mean 'last_first'"),
    ],
)
def test_what_is_misspelt_of_a_plugin_is_named(tmp_path, override, says):
    with pytest.raises(ValueError, match=says):
        runner.preview(load_recipe(PLUGIN / "own.yaml", [override]), tmp_path / "run")


class Quiet(Stage):
    kind: Literal["quiet"]


class Silent(Stage):
    def execute(self, run, node, folder):
        raise NotImplementedError


class Astray(Stage):
    kind: Literal["astray"]
    accepts = {"frm": ("float model",)}

    def execute(self, run, node, folder):
        raise NotImplementedError


@pytest.mark.parametrize(
    ("cls", "says"),
    [
        (Quiet, "Quiet expects a method `execute`"),
        (Silent, "Silent expects its kind as a field"),
        (Astray, "Astray.accepts: 'frm' is not one of its settings"),
        (dict, "expected a subclass of kdprune.stages.Stage"),
    ],
)
def test_what_is_no_kind_of_stage_is_refused(cls, says):
    with pytest.raises(ValueError, match=says):
        register_stage(cls)


def test_a_kind_that_is_there_is_replaced_only_if_told_so():
    class Load(Stage):
        kind: Literal["load"]

        def execute(self, run, node, folder):
            raise NotImplementedError

    with pytest.raises(ValueError, match="there is a kind of stage 'load' already"):
        register_stage(Load)
    assert register_stage(replace=True)(Load) is KINDS["load"] is Load
