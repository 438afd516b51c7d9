"""What fails after a model is taken is an answer: a table, the reasons, status 1."""

import pathlib

import numpy as np
import pytest
import tf_keras as keras
import yaml

from kdprune import cli, config
from kdprune._io import read_json
from kdprune.compression import Request
from kdprune.compression.outcome import without
from kdprune.compression.page import Counts, write_page
from kdprune.models import save_model
from kdprune.stages.quantize import Quantize


def recipe(**asked):
    request = Request(pathlib.Path("net.keras"), "photos.npz", **asked)
    return yaml.safe_load(write_page(request, (8, 8, 3), Counts(900, None, 300, 0.01)))


@pytest.mark.parametrize(
    ("failed", "asked", "left"),
    [
        ("int8", {}, ["original", "files", "measured", "report"]),
        ("smaller", {"ratio": 0.5}, ["original", "files", "measured", "report"]),
        (
            "int8",
            {"ratio": 0.5},
            ["original", "smaller", "files", "measured", "report"],
        ),
        ("files", {}, ["original", "int8", "measured", "report"]),
        ("kit", {}, ["original", "int8", "files", "measured", "report"]),
    ],
)
def test_what_does_not_need_a_failed_stage_is_left(failed, asked, left):
    content = without(recipe(**asked), failed)
    assert list(content["stages"]) == left
    found = config.parse_recipe(content)
    assert (found.flagship is None) == (failed != "kit")


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A network with a layer that int8 has no operator for, and its images."""
    root = tmp_path_factory.mktemp("given")
    random = np.random.default_rng(0)
    labels = np.arange(900) % 2
    images = random.uniform(0, 150, (900, 8, 8, 3)) + 100 * labels[:, None, None, None]
    images = images.astype(np.uint8)
    np.savez(root / "images.npz", x_train=images, y_train=labels)
    keras.utils.set_random_seed(0)
    layers = keras.layers
    net = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(8, 3),
            layers.ELU(name="elu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(2),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    net.compile(keras.optimizers.Adam(0.02), loss)
    net.fit(images / np.float32(255), labels, batch_size=50, epochs=3, verbose=0)
    save_model(net, root / "net.keras")
    return root


def run(given, out, capsys):
    arguments = ["compress", given / "net.keras", "--images", given / "images.npz"]
    arguments += ["-o", out, "--max-drop", "0.02", "--input-range", "0,1"]
    status = cli.main(list(map(str, arguments)))
    said = capsys.readouterr()
    assert "kdprune: " not in said.err, said.err
    return status, said.out


@pytest.mark.slow
def test_a_refused_file_stands_in_the_table_with_its_reasons(given, tmp_path, capsys):
    out = tmp_path / "out"
    status, said = run(given, out, capsys)
    assert status == 1
    assert "Not within 2 points:" in said and "compute in float" in said
    for row in ("original  ", "original as float32 file", "int8 file, REFUSED"):
        assert f"\n{row}" in said, said
    kept = out / "files" / "int8.int8.rejected.tflite"
    assert kept.is_file() and f"do not ship {kept}" in said
    assert f"kdprune doctor {given / 'net.keras'}" in said
    entries = {e["name"]: e for e in read_json(out / "metrics.json")["models"]}
    assert entries["int8_int8_rejected"]["accuracy"] > 0.9
    assert (out / "report.html").is_file()
    # Nothing to ship lies at the top, and no kit.
    assert not list(out.glob("*.tflite")) and not (out / "kit").exists()
    # Again, the same is said of what is done.
    again, repeated = run(given, out, capsys)
    assert again == 1 and "==" not in repeated
    assert repeated[repeated.index("On 180 test") :] in said


@pytest.mark.slow
def test_a_stage_that_fails_leaves_the_table_of_the_others(
    given, tmp_path, capsys, monkeypatch
):
    def fail(*_):
        raise ValueError("the loss is not finite")

    monkeypatch.setattr(Quantize, "execute", fail)
    status, said = run(given, tmp_path / "out", capsys)
    assert status == 1
    assert "- stage int8 failed: the loss is not finite" in said
    assert "\noriginal as float32 file" in said and "int8 file" not in said
    # The recipe is whole, to go on from.
    content = yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text())
    assert "int8" in content["stages"] and content["flagship"] == "int8"
