"""The whole pipeline on a subset of the real CIFAR-10, by way of class folders."""

import json

import numpy as np
import pytest
import yaml
from PIL import Image

from kdprune.config import parse_recipe
from kdprune.data import load_dataset
from kdprune.runner import run as runner

RECIPE = """
name: subset
data: {dataset: cifar10, calibration: 100}
baseline: teacher
flagship: int8
keep: [teacher]
stages:
  teacher:
    kind: train
    model: {name: article_teacher}
    training: &training
      epochs: 6
      batch_size: 50
      optimizer: adam
      learning_rate: 0.002
      augment: {crop: 2, flip: alternating}
  soft: {kind: soft_labels, teacher: teacher, views: 2, augment: {crop: 2, flip: true}}
  student:
    kind: distill
    model: {name: resnet8}
    soft_labels: soft
    training: {<<: *training, augment: null}
  int8: {kind: quantize, from: student}
  files: {kind: export, from: [student, int8], max_disagreement: 0.2, max_drop: 0.1}
  measured: {kind: evaluate, from: [teacher, student, files]}
  page: {kind: report, from: measured}
"""


@pytest.fixture(scope="module")
def run(cifar10_dir, tmp_path_factory):
    dataset = load_dataset("cifar10", data_dir=cifar10_dir)
    folder = tmp_path_factory.mktemp("subset")
    parts = (("train", dataset.train, 200), ("test", dataset.test, 50))
    for part, split, count in parts:
        for label, name in enumerate(dataset.classes):
            (folder / part / name).mkdir(parents=True)
            for index in np.flatnonzero(split.labels == label)[:count]:
                path = folder / part / name / f"{index}.png"
                Image.fromarray(split.images[index]).save(path)
    output = tmp_path_factory.mktemp("run")
    recipe = parse_recipe(yaml.safe_load(RECIPE))
    runner.run(recipe, output, data_dir=str(folder))
    return output


@pytest.mark.slow
def test_models_learn_real_images_and_files_agree_with_them(run):
    metrics = json.loads((run / "metrics.json").read_text())
    models = {model["name"]: model for model in metrics["models"]}
    assert metrics["dataset"]["name"] == "cifar10"
    assert models["teacher"]["test_images"] == 500
    # Ten classes; 1,800 training images for six epochs lift all well above chance.
    assert models["teacher"]["accuracy"] > 0.3
    assert models["student"]["accuracy"] > 0.2
    assert models["student_float32"]["agreement"] == 1.0
    assert models["int8_int8"]["agreement"] > 0.8
    assert models["int8_int8"]["accuracy"] == models["int8_uint8"]["accuracy"]
    assert models["int8_int8"]["bytes"] < models["student_float32"]["bytes"] / 3


@pytest.mark.slow
def test_a_kept_teacher_starts_another_run(run, cifar10_dir, tmp_path):
    kept = run / "teacher.keras"
    assert kept.stat().st_size < 0.6 * (run / "teacher" / "model.keras").stat().st_size
    recipe = parse_recipe(
        {
            "name": "again",
            "data": {"dataset": "cifar10"},
            "stages": {"teacher": {"kind": "load", "file": str(kept)}},
        }
    )
    runner.run(recipe, tmp_path, data_dir=str(cifar10_dir))
    record = json.loads((tmp_path / "teacher" / "record.json").read_text())
    assert record["results"]["val_accuracy"] > 0.3
