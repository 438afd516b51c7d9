"""Runs on what people have: uneven folders with damaged files, spectrograms."""

import numpy as np
import pytest
import tf_keras as keras
from PIL import Image

from kdprune._io import read_json
from kdprune.config import parse_recipe
from kdprune.data import load_dataset
from kdprune.models import save_model
from kdprune.runner import run as runner


def save_trees(root, split, counts, seed):
    """Images of classes that differ in hue and stripes, of odd and uneven sizes."""
    rng = np.random.default_rng(seed)
    for label, count in enumerate(counts):
        folder = root / split / f"tree {label:02d}"
        folder.mkdir(parents=True)
        for index in range(count):
            height, width = rng.integers(17, 60, 2)
            stripes = np.arange(width) * (label % 6 + 1) // 8 % 2
            pixels = np.zeros((height, width, 3))
            pixels[..., label % 3] = 60 + 30 * (label // 6)
            pixels[..., (label + 1) % 3] = 120 * stripes
            noise = rng.normal(0, 12, pixels.shape)
            image = Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8))
            image.save(folder / f"{index}.{'jpg' if index % 2 else 'png'}")


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    """37 classes of 4 to 40 images, some files damaged."""
    root = tmp_path_factory.mktemp("trees")
    save_trees(root, "Training", [4 + label for label in range(37)], 0)
    save_trees(root, "testing", [3 + label % 4 for label in range(37)], 1)
    for name in ("Training/tree 05/1.jpg", "Training/tree 30/4.png"):
        content = (root / name).read_bytes()
        (root / name).write_bytes(content[: len(content) // 2])
    (root / "testing" / "tree 02" / "0.png").write_text("not an image")
    (root / "Training" / "tree 07" / "phone.HEIC").write_bytes(b"\0")
    return root


def test_uneven_classes_of_odd_sizes_are_read(trees, caplog):
    caplog.set_level("INFO", "kdprune")
    with pytest.raises(ValueError, match=r"3 files .*05/1.jpg .*, Training/tree 30/4"):
        load_dataset("folder", path=trees, image_size=24)
    dataset = load_dataset(
        "folder",
        path=trees,
        image_size=24,
        resize="crop",
        on_error="skip",
        validation=74,
    )
    assert len(dataset.classes) == 37 and dataset.image_shape == (24, 24, 3)
    everything = sum(4 + label for label in range(37)) - 2
    sizes = dataset.description["sizes"]
    assert sizes["train"] + sizes["validation"] == everything
    assert sizes["validation"] == 74
    assert "1 .heic" in caplog.text and "skipped: 2, Training/tree 05/1.jpg" in (
        caplog.text
    )
    assert len(dataset.test) == sum(3 + label % 4 for label in range(37)) - 1
    assert len(dataset.description["skipped"]) == 3


def test_a_missing_model_is_told_before_images_are_read(trees, tmp_path, monkeypatch):
    def never(*_, **__):
        raise AssertionError("images were read")

    monkeypatch.setattr("kdprune.data.decode.Reader.read", never)
    stages = {
        "net": {"kind": "load", "file": str(tmp_path / "no.keras")},
        "new": {"kind": "train", "model": {"name": "resnet8", "widht": 3}},
        "bad": {"kind": "load", "file": str(tmp_path / "text.keras")},
    }
    (tmp_path / "text.keras").write_text("no model")
    recipe = {"name": "trees", "data": {"dataset": "folder", "path": str(trees)}}
    with pytest.raises(ValueError, match="model not found") as caught:
        runner.run(parse_recipe({**recipe, "stages": stages}), tmp_path / "run")
    assert len(str(caught.value).splitlines()) == 3
    for told in ("stages.new.model: ", "widht", "text.keras"):
        assert told in str(caught.value)


def spectrograms(count, seed):
    """Sounds as decibels over 20 bands and 24 times: one of four moving tones."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 4
    bands, times = np.arange(20)[:, None], np.arange(24)
    slope = np.array([-0.5, 0.0, 0.5, 0.0])[labels]
    start = rng.uniform(6, 14, count)
    tone = start[:, None, None] + slope[:, None, None] * (times - 12)
    level = 50 * np.exp(-((bands - tone) ** 2) / 4)
    beat = (labels == 3)[:, None, None] * 40.0 * (times // 3 % 2)
    sound = -70 + np.maximum(level - beat, 0) + rng.normal(0, 3, level.shape)
    return np.clip(sound, -80, 0).astype(np.float32), labels


@pytest.mark.slow
def test_spectrograms_become_a_file(tmp_path):
    x, y = spectrograms(800, 0)
    x_test, y_test = spectrograms(200, 1)
    np.savez(
        tmp_path / "sounds.npz", x_train=x, y_train=y, x_test=x_test, y_test=y_test
    )
    training = {"epochs": 4, "batch_size": 40, "optimizer": "adam"}
    training |= {"learning_rate": 0.005, "precision": "float32"}
    recipe = {
        "name": "sounds",
        "data": {
            "dataset": str(tmp_path / "sounds.npz"),
            "range": [-80, 0],
            "classes": ["down", "flat", "up", "beat"],
        },
        "flagship": "int8",
        "stages": {
            "net": {
                "kind": "train",
                "model": {"name": "resnet8"},
                "training": training,
            },
            "int8": {"kind": "quantize", "from": "net", "method": "ptq"},
            "files": {"kind": "export", "from": ["int8"]},
            "measured": {"kind": "evaluate", "from": ["net", "files"]},
            "kit": {"kind": "kit", "from": "measured", "name": "sounds"},
        },
    }
    runner.run(parse_recipe(recipe), tmp_path / "run")
    metrics = read_json(tmp_path / "run" / "metrics.json")
    assert metrics["dataset"]["value_range"] == [-80, 0]
    scored = {entry["name"]: entry["accuracy"] for entry in metrics["models"]}
    assert scored["net"] > 0.8
    assert scored["int8_int8"] > scored["net"] - 0.03
    card = (tmp_path / "run" / "kit" / "sounds" / "MODEL_CARD.md").read_text()
    assert "1-channel" in card or "Gray" in card
    assert "stands for -80" in card


@pytest.mark.slow
def test_a_rare_class_is_found_where_the_loss_is_weighted(tmp_path):
    """One image in twenty is of the brighter class, which overlaps with the other."""
    rng = np.random.default_rng(0)
    y = (np.arange(1600) % 20 == 0).astype(int)
    bright = rng.normal(110 + 50 * y, 30)[:, None, None, None]
    x = (bright + rng.normal(scale=20, size=(1600, 4, 4, 3))).clip(0, 255)
    np.savez(tmp_path / "few.npz", x_train=x.astype(np.uint8), y_train=y)
    keras.utils.set_random_seed(0)
    image = keras.Input((4, 4, 3))
    scores = keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(image))
    save_model(keras.Model(image, scores), tmp_path / "net.keras")
    model = {"file": str(tmp_path / "net.keras"), "input_range": [0, 1]}
    training = {"epochs": 12, "batch_size": 40, "optimizer": "adam"}
    training |= {"learning_rate": 0.1, "precision": "float32"}
    weighted = training | {"class_weight": "balanced"}
    stages = {
        name: {"kind": "train", "model": model, "training": given}
        for name, given in (("plain", training), ("weighted", weighted))
    }
    stages["measured"] = {"kind": "evaluate", "from": ["plain", "weighted"]}
    data = {"dataset": str(tmp_path / "few.npz")}
    recipe = {"name": "few", "data": data, "stages": stages, "baseline": "plain"}
    runner.run(parse_recipe(recipe), tmp_path / "run")
    entries = read_json(tmp_path / "run" / "metrics.json")["models"]
    plain, given = entries
    assert plain["per_class"][1] < 0.4 < 0.6 < given["per_class"][1]
    assert plain["balanced_accuracy"] < given["balanced_accuracy"] - 0.1
    assert plain["accuracy"] > given["accuracy"]
