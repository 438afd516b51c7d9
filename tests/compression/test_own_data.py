"""Images as people have them, by the command: grey, uneven, corrupt, spectrograms."""

import colorsys

import numpy as np
import pytest
import tf_keras as keras
from PIL import Image

from kdprune import cli
from kdprune._io import read_json
from kdprune.models import save_model

pytestmark = pytest.mark.slow

layers = keras.layers


def train(path, images, labels, units, *, epochs, front=(), width=16):
    """Trains a small network on what it takes, `front` first, and saves it."""
    keras.utils.set_random_seed(0)
    net = keras.Sequential(
        [
            keras.Input(images.shape[1:]),
            *front,
            layers.Conv2D(width, 3, strides=2, activation="relu"),
            layers.Conv2D(width, 3, strides=2, activation="relu"),
            layers.Flatten(),
            layers.Dense(units, activation="softmax"),
        ]
    )
    net.compile(keras.optimizers.Adam(0.005), "sparse_categorical_crossentropy")
    net.fit(images.astype("float32"), labels, batch_size=50, epochs=epochs, verbose=0)
    save_model(net, path)


def compress(capsys, model, images, *more):
    """Runs the command; returns what it said and the measured models by name."""
    out = model.with_name("out")
    given = ["compress", model, "--images", images, "-o", out, *more]
    status = cli.main(list(map(str, given)))
    said = capsys.readouterr()
    assert status == 0, said.err + said.out[-3000:]
    metrics = read_json(out / "metrics.json")
    found = {entry["name"]: entry for entry in metrics["models"]}
    original, file = found["original"], found["int8_int8"]
    assert original["accuracy"] > 0.9
    assert file["accuracy"] > original["accuracy"] - 0.03
    assert "int8 file" in said.out and (out / "kit" / "net" / "selftest.py").is_file()
    return out, metrics


def test_grey_images_of_28_pixels(tmp_path, capsys):
    """A bar whose place is the class, in `train/` and `Testing/`."""
    random = np.random.default_rng(0)
    labels = np.arange(1000) % 4
    images = random.integers(0, 100, (1000, 28, 28, 1))
    for image, label in zip(images, labels, strict=True):
        image[7 * label : 7 * label + 7] += 120
    images = images.astype(np.uint8)
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        split = "train" if index < 800 else "Testing"
        folder = tmp_path / "photos" / split / f"bar{label}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).save(folder / f"{index}.png")
    path = tmp_path / "net.keras"
    train(path, images, labels, 4, epochs=3, front=[layers.Rescaling(1 / 255)])
    out, metrics = compress(capsys, path, tmp_path / "photos", "--max-drop", "0.03")
    assert metrics["dataset"]["image_shape"] == [28, 28, 1]
    assert "balanced" not in (out / "report.md").read_text().lower()


def test_37_uneven_classes_of_odd_sizes_of_which_some_are_corrupt(tmp_path, capsys):
    random = np.random.default_rng(0)
    photos, learned, labels = tmp_path / "photos", [], []
    for label in range(37):
        hue, bright = label % 13 / 13, (1.0, 0.66, 0.33)[label // 13]
        colour = 255 * np.array(colorsys.hsv_to_rgb(hue, 1, bright))
        folder = photos / f"kind {label}"
        folder.mkdir(parents=True)
        for index in range(6 + 2 * label):
            size = (*random.integers(17, 41, 2), 3)
            pixels = (colour + random.normal(scale=8, size=size)).clip(0, 255)
            image = Image.fromarray(pixels.astype(np.uint8))
            image.save(folder / f"{index}.{('png', 'jfif', 'bmp')[index % 3]}")
            learned.append(np.asarray(image.resize((24, 24))))
            labels.append(label)
    (photos / "kind 3" / "broken.jpg").write_bytes(b"no image")
    (photos / "kind 9" / "empty.png").write_bytes(b"")
    (photos / "kind 9" / "raw.heic").write_bytes(b"raw")
    deep = np.full((20, 20), 40_000, np.uint16)
    Image.fromarray(deep).save(photos / "kind 20" / "deep.png")
    path = tmp_path / "net.keras"
    front = [layers.Rescaling(1 / 255), layers.AveragePooling2D(2)]
    given = np.stack(learned), np.array(sorted(range(37), key=lambda n: f"kind {n}"))
    place = np.argsort(given[1])  # Folders are in the order of their names.
    train(path, given[0], place[labels], 37, epochs=25, front=front, width=32)
    arguments = ("--max-drop", "0.03", "--resize", "crop")
    assert (
        cli.main([*map(str, ("compress", path, "--images", photos, *arguments))]) == 2
    )
    assert "3 files that can't be used" in capsys.readouterr().err
    out, metrics = compress(capsys, path, photos, *arguments, "--on-error", "skip")
    data = metrics["dataset"]
    assert len(data["classes"]) == 37 and len(data["skipped"]) == 3
    assert data["unread"] == {".heic": 1} and data["resize"] == "crop"
    entry = metrics["models"][0]
    assert entry["balanced_accuracy"] > 0.9
    assert "balanced accuracy %" in (out / "report.md").read_text()
    assert "balanced %" in (out / "kit" / "net" / "MODEL_CARD.md").read_text()


def test_a_spectrogram_of_two_channels_in_decibels(tmp_path, capsys):
    """Values of -80 to 0: louder in one of three bands."""
    random = np.random.default_rng(0)
    labels = np.arange(900) % 3
    values = random.uniform(-80, -30, (900, 21, 16, 2))
    for value, label in zip(values, labels, strict=True):
        value[7 * label : 7 * label + 7] += 25
    values = values.astype(np.float32)
    splits = {"train": slice(700), "test": slice(700, None)}
    arrays = {f"x_{name}": values[part] for name, part in splits.items()}
    arrays |= {f"y_{name}": labels[part] for name, part in splits.items()}
    np.savez(tmp_path / "sounds.npz", **arrays, classes=["low", "mid", "high"])
    path = tmp_path / "net.keras"
    train(path, values, labels, 3, epochs=8, front=[layers.Rescaling(1 / 40, 1)])
    asked = ("--max-drop", "0.03", "--value-range=-80,0")
    out, metrics = compress(capsys, path, tmp_path / "sounds.npz", *asked)
    data = metrics["dataset"]
    assert data["image_shape"] == [21, 16, 2] and data["value_range"] == [-80, 0]
    assert data["classes"] == ["low", "mid", "high"]
    assert (out / "model_uint8.tflite").is_file()
