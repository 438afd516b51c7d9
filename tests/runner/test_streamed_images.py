"""A whole run on images that stay on a disk is that on images in memory."""

import json

import pytest
import yaml
from PIL import Image

from kdprune.config import parse_recipe
from kdprune.data import decode, shapes
from kdprune.runner import run as runner
from tests.conftest import eager_functions

RECIPE = """
name: streamed
flagship: int8
data: {dataset: folder, image_size: 32, validation: 40, calibration: 30}
stages:
  teacher:
    kind: train
    model: &net {name: article_student}
    training: &t {epochs: 1, batch_size: 32, precision: float32, augment: {flip: true}}
  given: {kind: load, file: FILE, input_range: [0, 1]}
  soft: {kind: soft_labels, teacher: teacher, images: train+validation, views: 2,
    augment: {crop: 2, flip: alternating, cutout: 4}}
  student: {kind: distill, model: *net, soft_labels: soft,
    training: {epochs: 1, batch_size: 32, precision: float32, images: train+validation}}
  smaller: {kind: prune_channels, from: teacher, ratio: 0.3, training: *t}
  int8: {kind: quantize, from: smaller, method: auto, max_drop: 0.5}
  files: {kind: export, from: [int8], max_disagreement: 0.9, max_drop: 0.9,
    max_deviation: 0.9, on_refusal: keep}
  measured: {kind: evaluate, from: [teacher, given, student, files], latency: false}
"""


def without_seconds(content):
    if isinstance(content, dict):
        return {
            key: without_seconds(value)
            for key, value in content.items()
            if "seconds" not in key and key not in ("command", "began", "ended")
        }
    if isinstance(content, list):
        return [without_seconds(value) for value in content]
    return content


@pytest.mark.slow
def test_all_figures_of_a_run_are_those_of_images_in_memory(tmp_path, monkeypatch):
    from kdprune.models import build_model, save_model

    for part, count in (("train", 140), ("test", 40)):
        split = shapes.generate(count, 32, 0, part == "test")
        for index, (image, label) in enumerate(
            zip(split.images, split.labels, strict=True)
        ):
            path = tmp_path / "images" / part / f"c{label}" / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    net = build_model("article_student", input_shape=(32, 32, 3))
    save_model(net, tmp_path / "net.keras")
    recipe = yaml.safe_load(RECIPE)
    recipe["data"]["path"] = str(tmp_path / "images")
    recipe["stages"]["given"]["file"] = str(tmp_path / "net.keras")
    monkeypatch.setenv("KDPRUNE_CACHE_DIR", str(tmp_path / "cache"))
    with eager_functions():
        runner.run(parse_recipe(recipe), tmp_path / "held")
        assert not (tmp_path / "cache").exists()
        monkeypatch.setattr(decode, "IN_MEMORY", 0)
        runner.run(parse_recipe(recipe), tmp_path / "streamed")
    assert len(list(tmp_path.glob("cache/images-*/index.json"))) == 2
    for stage in recipe["stages"]:
        records = [
            json.loads((tmp_path / run / stage / "record.json").read_text())
            for run in ("held", "streamed")
        ]
        held, streamed = map(without_seconds, records)
        assert held["results"] == streamed["results"], stage
        assert held["fingerprint"] == streamed["fingerprint"], stage
    # Of the same fingerprints: each is done for the other.
    monkeypatch.setattr(decode, "IN_MEMORY", 2**27)
    shown = runner.preview(parse_recipe(recipe), tmp_path / "streamed")
    assert "to do" not in shown, shown
