"""The ship kit: what is in it, that it proves itself, and what it refuses."""

import hashlib
import io
import json
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from kdprune.data.shapes import CLASSES
from kdprune.kit import fits as kit_module
from kdprune.kit import label_file, selftest, write_kit
from kdprune.kit.golden import golden_images
from kdprune.kit.metadata import add_metadata
from kdprune.tflite import inspect_tflite


@pytest.fixture
def copy(kit, tmp_path):
    """A kit to break."""
    return shutil.copytree(kit, tmp_path / "copy")


def attempt(folder, pair, **changes):
    given = {**pair, "classes": CLASSES, "name": "shapes", **changes}
    return write_kit(folder, **given)


def test_the_manifest_lists_every_file_with_its_digest(kit):
    manifest = json.loads((kit / "manifest.json").read_text())
    files = {path.name for path in kit.iterdir()} - {"manifest.json"}
    assert files == {
        "MODEL_CARD.md",
        "golden.npz",
        "labels.txt",
        "model.cc",
        "model.h",
        "model_int8.tflite",
        "model_uint8.tflite",
        "selftest.py",
    }
    assert set(manifest["files"]) == files
    for name, listed in manifest["files"].items():
        content = (kit / name).read_bytes()
        assert listed["sha256"] == hashlib.sha256(content).hexdigest()
        assert listed["bytes"] == len(content)


def test_the_labels_are_in_the_folder_and_in_both_models(kit):
    expected = "\n".join(CLASSES) + "\n"
    assert (kit / "labels.txt").read_text() == expected
    for dtype in ("int8", "uint8"):
        with zipfile.ZipFile(kit / f"model_{dtype}.tflite") as archive:
            assert archive.read("labels.txt").decode() == expected


def read_model(data):
    """The file's tree; arrays and nested tables are comparable lists and dicts."""

    def plain(value):
        if isinstance(value, np.ndarray):
            return value.tolist()
        if isinstance(value, list):
            return [plain(part) for part in value]
        if hasattr(value, "__dict__"):
            return {key: plain(part) for key, part in vars(value).items()}
        return value

    return plain(schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0)))


def test_metadata_adds_a_buffer_and_changes_nothing_else(pair, kit):
    before = read_model(pair["int8"])
    after = read_model((kit / "model_int8.tflite").read_bytes())
    assert bytes(after["buffers"].pop()["data"][4:8]) == b"M001"
    assert after["metadata"].pop()["name"] == b"TFLITE_METADATA"
    assert after == before


def test_buffers_are_aligned_to_16_bytes(kit):
    data = (kit / "model_int8.tflite").read_bytes()
    model = schema.Model.GetRootAs(data, 0)
    buffers = [model.Buffers(index) for index in range(model.BuffersLength())]
    places = [
        buffer._tab.Vector(buffer._tab.Offset(4))
        for buffer in buffers
        if buffer.DataLength() > 0
    ]
    assert len(places) > 20
    assert {place % 16 for place in places} == {0}


def test_metadata_written_again_replaces_the_old(pair):
    told = {"name": "a", "description": "b", "version": "1", "scores": "c"}
    first = add_metadata(pair["uint8"], ["old"] * 10, **told)
    again = add_metadata(first, CLASSES, **told)
    assert again == add_metadata(pair["uint8"], CLASSES, **told)
    assert zipfile.ZipFile(io.BytesIO(again)).namelist() == ["labels.txt"]


def test_the_same_kit_has_the_same_bytes(kit, pair, shape_images, metrics, tmp_path):
    changes = {"name": "shapes-8", "images": shape_images[:15], "metrics": metrics}
    attempt(tmp_path / "again", pair, **changes)
    again = (tmp_path / "again" / "manifest.json").read_text()
    assert again == (kit / "manifest.json").read_text()


def test_golden_images_are_gradients_noise_and_those_given(kit, shape_images):
    with np.load(kit / "golden.npz") as golden:
        images, scores = golden["images"], golden["scores"]
    assert images.dtype == scores.dtype == np.uint8
    assert len(images) >= 24 and scores.shape == (len(images), 10)
    np.testing.assert_array_equal(images[-15:], shape_images[:15])
    assert len(np.unique(images, axis=0)) == len(images)
    # Probabilities: they sum to 256 steps, up to rounding.
    assert np.abs(scores.astype(int).sum(axis=1) - 256).max() <= 5


@pytest.mark.parametrize("shape", [(1, 1, 1), (28, 28, 1), (9, 20, 3), (8, 8, 4)])
def test_golden_images_have_the_models_shape(shape):
    images = golden_images(shape)
    assert images.shape[1:] == shape and images.dtype == np.uint8


def test_the_self_test_passes_in_a_process_without_kdprune(kit):
    program = (
        "import runpy, sys\n"
        f"try:\n    runpy.run_path({str(kit / 'selftest.py')!r}, run_name='__main__')\n"
        "except SystemExit as stop:\n    assert not stop.code\n"
        "print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", program], cwd="/", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    *lines, modules = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["ok", "ok", "ok", "ok", "The"]
    assert "kit is whole" in lines[-1]
    assert not {"kdprune", "tensorflow", "tf_keras"} & set(modules.split())


def test_the_self_test_names_a_corrupted_file(copy):
    content = bytearray((copy / "model_uint8.tflite").read_bytes())
    content[len(content) // 2] ^= 1
    (copy / "model_uint8.tflite").write_bytes(content)
    (copy / "labels.txt").unlink()
    done = subprocess.run(
        [sys.executable, "-I", copy / "selftest.py"], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "FAILED  model_uint8.tflite: corrupted (SHA-256 is not the manifest's)",
        "FAILED  labels.txt: missing",
    ]


def test_one_changed_bit_in_any_file_is_found(copy):
    for path in sorted(copy.iterdir()):
        content = path.read_bytes()
        for place in (0, len(content) // 3, len(content) - 2):
            changed = bytearray(content)
            changed[place] ^= 1
            path.write_bytes(changed)
            (problem,) = selftest.find_damage(copy)
            assert problem.startswith(f"{path.name}: "), problem
        path.write_bytes(content)
    assert selftest.find_damage(copy) == []


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"files": 3, "sha256": ""}', None])
def test_a_manifest_that_is_none_is_named(copy, text):
    (copy / "manifest.json").unlink()
    if text is not None:
        (copy / "manifest.json").write_text(text)
    (problem,) = selftest.find_damage(copy)
    assert problem.startswith("manifest.json: ")


def test_models_that_score_otherwise_fail_the_self_test(copy):
    with np.load(copy / "golden.npz") as golden:
        images, scores = golden["images"], golden["scores"]
    scores[3] = 255 - scores[3]
    np.savez(copy / "golden.npz", images=images, scores=scores)
    results = selftest.check_scores(copy)
    assert [good for _, good in results] == [False] * 4
    assert results[0][0].startswith("model_int8.tflite: ")


def test_the_card_shows_figures_names_shapes_and_limits(kit, pair):
    card = (kit / "MODEL_CARD.md").read_text()
    size = f"{(kit / 'model_uint8.tflite').stat().st_size:,}"
    assert f"| `model_uint8.tflite` | {size} |" in card
    assert (
        "| student\\_int8 | int8 | 81.25 (79.00, 83.00) | 98,496 | 87,654 | – "
        "| 0.123 / 0.234 |"
    ) in card
    assert "| teacher | float32 | 90.00 | – | – | 12,345,678 | – |" in card
    assert "This kit is `student_int8`" in card
    assert "1 thread, xnnpack kernels, on A Processor" in card
    assert "shapes (generated, seed 0) (500 train images)" in card
    assert "`serving_default_image:0` | uint8 | 1 x 32 x 32 x 3 | 1/255 | 0 |" in card
    assert f"{len(pair['int8']):,} bytes of flash" in card
    assert "Weakest class: cross, 40.0% of its images right." in card
    assert "$" not in card


def test_a_card_without_figures_says_so(pair, tmp_path):
    attempt(tmp_path / "kit", pair)
    assert "Not measured." in (tmp_path / "kit" / "MODEL_CARD.md").read_text()


@pytest.mark.parametrize(
    ("resize", "told", "code"),
    [
        ("stretch", "scaled to 32 x 32 pixels without keeping", None),
        (
            "crop",
            "largest centered part of the proportions 32 : 32",
            "minOf(bitmap.wid",
        ),
        ("pad", "with black at both sides", "maxOf(bitmap.width / 32.0"),
    ],
)
def test_the_card_says_how_images_came_to_its_size(
    pair, metrics, tmp_path, resize, told, code
):
    dataset = {**metrics["dataset"], "resize": resize, "value_range": [-80, 0]}
    models = [{**entry, "balanced_accuracy": 0.625} for entry in metrics["models"]]
    given = {**metrics, "dataset": dataset, "models": models}
    attempt(tmp_path / "kit", pair, metrics=given)
    card = (tmp_path / "kit" / "MODEL_CARD.md").read_text()
    assert told in card and "0 stands for -80 and 255 stands for 0" in card
    assert "| balanced % |" in card and "62.50" in card
    assert ("fun fitted(" in card) == ("fitted(bitmap)" in card) == (code is not None)
    assert code is None or code in card


def test_class_names_do_not_break_the_card(pair, tmp_path):
    classes = ["a|b", "<b>", "`c`", "naïve", "日本", "it's", '"q"', "x y", "*", "#"]
    attempt(tmp_path / "kit", pair, classes=classes)
    card = (tmp_path / "kit" / "MODEL_CARD.md").read_text()
    assert "Classes: a\\|b, \\<b\\>, \\`c\\`, naïve, 日本, it's" in card
    assert (tmp_path / "kit" / "labels.txt").read_text().splitlines() == classes


@pytest.mark.parametrize(
    ("arena", "text"),
    [
        (None, "was not measured"),
        (20_000, "takes 20,000 bytes"),
        (ValueError("TFLite Micro does not run this model: no room"), "no room"),
    ],
)
def test_the_card_says_what_is_known_of_memory(
    pair, tmp_path, monkeypatch, arena, text
):
    def measure(data):
        if isinstance(arena, ValueError):
            raise arena
        return arena

    monkeypatch.setattr(kit_module, "measure_arena", measure)
    attempt(tmp_path / "kit", pair)
    card = (tmp_path / "kit" / "MODEL_CARD.md").read_text()
    assert text in card
    assert ("```cpp" in card) == (not isinstance(arena, ValueError))


def deviating_by(steps):
    """The self-test's `score`, default kernels off by so many steps on all images."""
    score = selftest.score

    def other(content, images, kernels="default"):
        scores = score(content, images, "reference")
        if kernels == "default":
            first = scores[:, 0]
            scores[:, 0] = np.where(first < 128, first + steps, first - steps)
        return scores

    return other


@pytest.mark.parametrize(("steps", "limit"), [(13, 26), (20, 40), (64, 128)])
def test_the_limit_of_other_kernels_grows_with_what_this_machines_differ_by(
    pair, tmp_path, monkeypatch, steps, limit
):
    monkeypatch.setattr(selftest, "score", deviating_by(steps))
    assert attempt(tmp_path / "kit", pair)["kernel_limit"] == limit


def test_kernels_that_no_limit_could_catch_make_no_kit(pair, tmp_path, monkeypatch):
    monkeypatch.setattr(selftest, "score", deviating_by(65))
    with pytest.raises(ValueError, match="within 64/256. Received: 65/256"):
        attempt(tmp_path / "kit", pair)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_exists_is_left_alone(pair, tmp_path):
    with pytest.raises(FileExistsError, match="exists: a kit goes into a new folder"):
        attempt(tmp_path, pair)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_runs_leftovers_do_not_matter(pair, tmp_path):
    (tmp_path / ".kit.partial").mkdir()
    (tmp_path / ".kit.partial" / "old").touch()
    attempt(tmp_path / "kit", pair)
    assert [path.name for path in tmp_path.iterdir()] == ["kit"]
    assert not (tmp_path / "kit" / "old").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": CLASSES[:9]}, "has 10 outputs: name as many.*Received: 9 classes"),
        ({"classes": ["two\nlines", *CLASSES[1:]]}, "one line each.*two"),
        ({"classes": ["", *CLASSES[1:]]}, "not empty"),
        ({"name": "../up"}, "name must start with a letter"),
        ({"int8": b"PK\3\4 something else"}, "the int8 model: not a .tflite model"),
        ({"uint8": b""}, "the uint8 model: not a .tflite model"),
        ({"images": np.zeros((2, 8, 8, 3), np.uint8)}, r"\(n, 32, 32, 3\)"),
        ({"images": np.full((2, 32, 32, 3), 9.0)}, r"in \[9, 9\]; divide pixels"),
    ],
)
def test_what_does_not_fit_is_refused(pair, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        attempt(tmp_path / "kit", pair, **changes)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_kits_models_are_what_label_file_makes(kit, pair, tmp_path):
    for dtype, content in pair.items():
        labelled = (kit / f"model_{dtype}.tflite").read_bytes()
        path = tmp_path / f"{dtype}.tflite"
        path.write_bytes(content)
        for file in (content, path, labelled):
            assert label_file(file, CLASSES, name="shapes-8") == labelled


def test_labels_change_neither_scores_nor_what_the_gate_sees(pair, shape_images):
    for content in pair.values():
        labelled = label_file(content, CLASSES, name="other", version="2.1")
        assert inspect_tflite(labelled) == inspect_tflite(content)
        for kernels in ("default", "reference"):
            before, after = (
                selftest.score(file, shape_images[:5], kernels)
                for file in (content, labelled)
            )
            np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (CLASSES[:9], "the model has 10 outputs: name as many classes. Received: 9"),
        ("airplane", "has 10 outputs.*Received: 1 classes"),
        (["", *CLASSES[1:]], "not empty"),
        (range(10), "Received: 0"),
    ],
)
def test_labels_that_do_not_fit_are_refused(pair, classes, message):
    with pytest.raises(ValueError, match=message):
        label_file(pair["uint8"], classes, name="shapes")


def test_files_that_are_exchanged_are_refused(pair, tmp_path):
    swapped = {"int8": pair["uint8"], "uint8": pair["int8"]}
    with pytest.raises(ValueError, match="int8 model's input must be int8 of scale"):
        attempt(tmp_path / "kit", swapped)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.9, 0.999])
def test_a_file_cut_short_is_refused(pair, tmp_path, share):
    half = pair["int8"][: int(share * len(pair["int8"]))]
    with pytest.raises(ValueError, match="the int8 model") as caught:
        attempt(tmp_path / "kit", pair, int8=half)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_files_of_two_models_are_refused(pair, tmp_path):
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(pair["int8"], 0))
    tensors = model.subgraphs[0].tensors
    bias = next(t for t in tensors if list(t.shape) == [10])
    data = bytearray(pair["int8"])
    content = bytes(model.buffers[bias.buffer].data)
    start = data.index(content)
    data[start : start + len(content)] = np.full(10, 9999, "<i4").tobytes()
    with pytest.raises(ValueError, match="must hold the same model"):
        attempt(tmp_path / "kit", pair, int8=bytes(data))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "scale, zero, given, says",
    [
        (1 / 255, 0, None, "byte / 255, without"),
        (1.0, 0, None, "stands for itself, 0 to 255"),
        (2 / 255, 128, None, "(byte - 128) x 2/255, -1.004 to 0.996: [-1, 1] moved by"),
        (2 / 255, 127, None, "(byte - 127) x 2/255"),
        (2.5 / 255, 51, (-0.5, 2), "(byte - 51) x 0.00980392"),
        (0.00372, 0, None, None),
        (2 / 255, 64, None, None),
        (2.5 / 255, 51, None, None),
    ],
)
def test_a_kit_says_what_bytes_mean_and_refuses_a_range_of_calibration_images(
    scale, zero, given, says
):
    from types import SimpleNamespace

    from kdprune.kit.build import _takes_bytes
    from kdprune.kit.card import _describe_bytes

    for dtype, shift in (("uint8", 0), ("int8", -128)):
        tensor = {"dtype": dtype, "scale": float(np.float32(scale))}
        tensor["zero_point"] = zero + shift
        assert _takes_bytes(tensor, dtype, given) == (says is not None)
    if says is not None:
        tensor = {"scale": float(np.float32(scale)), "zero_point": zero}
        facts = SimpleNamespace(ends={"uint8": {"input": tensor}})
        assert says in _describe_bytes(facts)


def test_images_on_which_kernels_disagree_are_left_out():
    from kdprune.kit.build import _steady

    kept = _steady(np.array([0, 100, 3, 2, 64]))
    assert kept.tolist() == [True, False, True, True, True]
    # Where it is most of them, the machine is at fault.
    assert _steady(np.array([100, 100, 3])).all()
