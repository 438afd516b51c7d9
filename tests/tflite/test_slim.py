"""A slimmed file computes the same, bit for bit, in fewer bytes."""

import importlib.util
import io
import json
import zipfile

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from kdprune import _io
from kdprune.kit.metadata import add_metadata
from kdprune.models import build_model
from kdprune.tflite import (
    convert_tflite,
    describe_file,
    read_tflite,
    slim,
    slim_tflite,
    tensor_names,
    write_names,
)
from kdprune.tflite.format import share_content

layers = keras.layers

TYPES = {"resnet": ("float32", "int8", "uint8"), "mobile": ("int8", "int16x8")}


@pytest.fixture(scope="module")
def files():
    """A small residual network and one of depthwise convolutions, by type."""
    keras.utils.set_random_seed(0)
    images = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3)).astype("uint8")
    models = {
        "resnet": build_model("resnet", (16, 16, 3), filters=(8, 16, 24)),
        "mobile": build_model(
            "inverted_residual", (16, 16, 3), stem=8, blocks=[[8, 16, 1], [8, 16, 1]]
        ),
    }
    return {
        (name, dtype): convert_tflite(
            model, dtype, None if dtype == "float32" else images
        )
        for name, model in models.items()
        for dtype in TYPES[name]
    }


@pytest.mark.parametrize(
    "name, dtype", [(name, dtype) for name in TYPES for dtype in TYPES[name]]
)
def test_all_kernels_say_the_same_bits(files, name, dtype):
    slimmed = slim_tflite(files[name, dtype])
    assert slimmed.reason is None
    assert slimmed.before == len(files[name, dtype])
    assert slimmed.after == len(slimmed.content) < slimmed.before
    assert set(slimmed.proof) == {"xnnpack", "builtin", "reference"}
    assert min(slimmed.proof.values()) >= 2


def test_a_tenth_or_more_of_a_small_integer_file_goes(files):
    slimmed = slim_tflite(files["mobile", "int8"])
    assert slimmed.after < 0.8 * slimmed.before


def test_constants_and_operators_stay_and_names_go(files):
    old = read_tflite(files["resnet", "int8"])
    new = read_tflite(share_content(files["resnet", "int8"]))
    assert new.ops == old.ops
    assert (new.inputs, new.outputs) == (old.inputs, old.outputs)
    ends = {*old.inputs, *old.outputs}
    for index, (a, b) in enumerate(zip(old.tensors, new.tensors, strict=True)):
        assert (a.shape, a.dtype, a.axis) == (b.shape, b.dtype, b.axis)
        assert (a.data is None) == (b.data is None)
        if a.data is not None:
            np.testing.assert_array_equal(a.data, b.data)
        np.testing.assert_array_equal(a.scale, b.scale)
        np.testing.assert_array_equal(a.zero_point, b.zero_point)
        assert b.name == (a.name if index in ends else "")


def test_a_second_time_nothing_is_left_to_do(files):
    once = slim_tflite(files["mobile", "int8"]).content
    again = slim_tflite(once)
    assert again.content == once and again.reason == "nothing in it is stored twice"


def test_metadata_and_signatures_stay(files):
    labels = [f"class {number}" for number in range(10)]
    told = {"name": "n", "description": "d", "version": "1", "scores": "s"}
    content = add_metadata(files["resnet", "uint8"], labels, **told)
    slimmed = slim_tflite(content)
    assert slimmed.after < slimmed.before
    old, new = (
        tf.lite.Interpreter(model_content=c) for c in (content, slimmed.content)
    )
    assert old.get_signature_list() == new.get_signature_list() != {}
    with zipfile.ZipFile(io.BytesIO(slimmed.content)) as archive:
        assert archive.read("labels.txt").decode().split("\n")[:10] == labels
    assert b"TFLITE_METADATA" in slimmed.content


def test_buffers_stay_aligned(files):
    content = slim_tflite(files["mobile", "int8"]).content
    for tensor in read_tflite(content).tensors:
        if tensor.data is not None and tensor.data.nbytes > 64:
            place = content.find(tensor.data.tobytes())
            assert place > 0 and place % 16 == 0


@pytest.mark.skipif(
    importlib.util.find_spec("tflite_micro") is None, reason="needs tflite-micro"
)
@pytest.mark.parametrize("name", ["resnet", "mobile"])
def test_the_microcontrollers_interpreter_says_the_same(files, name):
    from tflite_micro import runtime

    content = files[name, "int8"]
    shape = (1, 16, 16, 3)
    said = []
    for one in (content, slim_tflite(content).content):
        interpreter = runtime.Interpreter.from_bytes(one)
        rng = np.random.default_rng(3)
        for _ in range(5):
            interpreter.set_input(rng.integers(-128, 128, shape).astype(np.int8), 0)
            interpreter.invoke()
            said.append(interpreter.get_output(0).copy())
    np.testing.assert_array_equal(said[:5], said[5:])


def test_files_of_other_makers_are_slimmed(mlperf_dir):
    for path in sorted(mlperf_dir.glob("*.tflite")):
        slimmed = slim_tflite(path)
        assert slimmed.reason is None and slimmed.after < slimmed.before, path.name


def test_the_original_is_kept_where_anything_differs(files, monkeypatch):
    """A rewriting that spoils one weight is found out."""
    content = files["resnet", "int8"]

    def spoiled(file):
        new = bytearray(share_content(file))
        graph = read_tflite(bytes(new))
        kernel = max(
            (t.data for t in graph.tensors if t.data is not None), key=lambda d: d.size
        )
        place = bytes(new).find(kernel.tobytes())
        new[place + kernel.size // 2] ^= 0x7F
        return bytes(new)

    monkeypatch.setattr(slim, "share_content", spoiled)
    slimmed = slim_tflite(content)
    assert slimmed.content == content and slimmed.after == slimmed.before
    assert "outputs on xnnpack would change" in slimmed.reason


def test_a_file_that_nothing_runs_is_refused(files, monkeypatch):
    def refuse(*_):
        raise RuntimeError("cannot\nrun")

    monkeypatch.setattr(slim, "_outputs", refuse)
    with pytest.raises(
        ValueError, match=r"no kernels run the file.*\(xnnpack: cannot;"
    ):
        slim_tflite(files["resnet", "int8"])


def test_what_is_no_model_is_one_line(tmp_path):
    (tmp_path / "words.tflite").write_text("these are words, not a model")
    with pytest.raises(ValueError, match="words.tflite: not a .tflite model"):
        slim_tflite(tmp_path / "words.tflite")


def test_names_beside_a_file_tell_what_it_tells_no_more(files, tmp_path):
    old = files["mobile", "int8"]
    path = tmp_path / "model.tflite"
    path.write_bytes(share_content(old))
    bare = describe_file(path)["sparsity_by_layer"]
    write_names(path, tensor_names(old))
    assert [t.name for t in read_tflite(path).tensors] == [
        t.name for t in read_tflite(old).tensors
    ]
    named = describe_file(path)["sparsity_by_layer"]
    assert set(named) != set(bare) and "logits" in named
    # Names of another file are not taken.
    path.write_bytes(path.read_bytes() + b"\0" * 16)
    assert describe_file(path)["sparsity_by_layer"] == bare


def test_what_is_added_to_a_slim_file_leaves_it_slim(files):
    smaller = share_content(files["resnet", "int8"])
    labels = [f"class {number}" for number in range(10)]
    told = {"name": "n", "description": "d", "version": "1", "scores": "s"}
    added = add_metadata(smaller, labels, **told)
    # The graph within is no larger; the labels' archive and what is said are added.
    assert len(share_content(added)) == len(added)
    assert 0 < len(added) - len(smaller) < 2_500


@pytest.mark.parametrize("names", [5, [5], {"a": 1}, [["x"]], None])
def test_names_beside_a_file_that_are_none_are_not_taken(files, tmp_path, names):
    path = tmp_path / "model.tflite"
    path.write_bytes(share_content(files["mobile", "int8"]))
    content = {"sha256": _io.sha256(path), "names": names}
    path.with_suffix(".names.json").write_text(json.dumps(content))
    assert {t.name for t in read_tflite(path).tensors[1:-1]} == {""}
