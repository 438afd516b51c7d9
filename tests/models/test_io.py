"""Models survive saving; files that hold anything but plain layers are refused."""

import functools
import gzip
import json
import os
import shutil
import sys
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from kdprune import _io
from kdprune.models import hdf5
from kdprune.models import io as model_io
from kdprune.models.io import load_model, save_model

layers = keras.layers


def small_model(dtype=None):
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, use_bias=False, dtype=dtype, name="conv")(image)
    x = layers.BatchNormalization(dtype=dtype, name="bn")(x)
    x = layers.Activation("relu", dtype=dtype)(x)
    x = layers.Add()([x, 2.0 * x])  # a TFOpLambda
    x = layers.GlobalAveragePooling2D()(x[:, 1:, 1:])  # a SlicingOpLambda
    logits = layers.Dense(
        3, kernel_regularizer=keras.regularizers.L2(1e-4), dtype="float32", name="out"
    )(x)
    return keras.Model(image, logits, name="small")


def nested_model():
    inner = keras.Sequential([layers.Conv2D(2, 3, activation="relu")], name="inner")
    image = keras.Input((8, 8, 3))
    x = layers.Flatten()(inner(image))
    return keras.Model(image, layers.Dense(3)(x))


def images(n=4):
    return np.random.default_rng(0).random((n, 8, 8, 3), np.float32)


def rewrite_config(path, change):
    """Changes the configuration inside a .keras file by a function of the dict."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(members["config.json"])
    change(config)
    members["config.json"] = json.dumps(config).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def layer(config, name):
    """The first layer whose name begins so (Keras numbers TensorFlow functions)."""
    found = config["config"]["layers"]
    return next(item for item in found if item["name"].startswith(name))


def set_in(name, **values):
    return lambda config: layer(config, name).update(values)


def configure(name, **values):
    return lambda config: layer(config, name)["config"].update(values)


@pytest.fixture
def saved(tmp_path):
    """A fresh copy of a saved small model."""
    path = tmp_path / "model.keras"
    save_model(small_model(), path)
    return path


@pytest.mark.parametrize("build", [small_model, nested_model])
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_saved_model_gives_identical_outputs(tmp_path, build, suffix):
    model, path = build(), tmp_path / f"model{suffix}"
    if suffix == ".keras":
        save_model(model, path)
    else:
        model.compile("adam", "mse")
        with pytest.warns(UserWarning, match="HDF5"):
            model.save(path)
    loaded = load_model(path)
    np.testing.assert_array_equal(model(images()), loaded(images()))
    assert not loaded._is_compiled


def test_a_file_saved_by_keras_itself_with_its_optimizer_loads(tmp_path):
    model = small_model()
    model.compile("adam", "mse")
    model.fit(images(), np.zeros((4, 3)), verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(model(images()), loaded(images()))


def test_saving_twice_gives_the_same_bytes_and_leaves_nothing_beside(tmp_path):
    model = small_model()
    save_model(model, tmp_path / "a" / "one.keras")
    save_model(model, tmp_path / "a" / "two.keras")
    contents = [p.read_bytes() for p in sorted((tmp_path / "a").iterdir())]
    assert len(contents) == 2
    assert contents[0] == contents[1]


def test_mixed_precision_is_saved_as_float32(tmp_path):
    model = small_model(dtype="mixed_bfloat16")
    save_model(model, tmp_path / "model.keras")
    loaded = load_model(tmp_path / "model.keras")
    assert {item.compute_dtype for item in loaded.layers} == {"float32"}
    for before, after in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)
    assert model.get_layer("conv").compute_dtype == "bfloat16"  # left as it was


def test_a_failed_save_keeps_the_old_file(saved, monkeypatch):
    before = saved.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        save_model(small_model(), saved)
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == ["model.keras"]


def test_how_a_model_was_compiled_is_no_matter(tmp_path):
    model = nested_model()
    weighing = functools.partial(tf.math.multiply, 2.0)
    for one in (model, model.get_layer("inner")):
        one.compile("sgd", loss=lambda labels, logits: weighing(logits - labels))
    expected = model(images()).numpy()
    save_model(model, tmp_path / "model.keras")
    loaded = load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(images()), expected)
    assert loaded.optimizer is None
    model.train_on_batch(images(), np.zeros((4, 3)))  # It is still compiled.


def test_what_could_not_be_loaded_again_is_not_saved(tmp_path):
    code = keras.Sequential([keras.Input((4,)), layers.Lambda(abs, name="code")])
    with pytest.raises(ValueError, match="'code' is a Lambda, which is code"):
        save_model(code, tmp_path / "model.keras")

    class Subclassed(keras.Model):
        pass

    with pytest.raises(ValueError, match="Received: Subclassed"):
        save_model(Subclassed(), tmp_path / "model.keras")
    with pytest.raises(ValueError, match="Received: 'model.h5'"):
        save_model(small_model(), tmp_path / "model.h5")
    assert list(tmp_path.iterdir()) == []


def test_own_registered_layers_load_and_foreign_ones_do_not(tmp_path):
    class Doubled(layers.Layer):
        def call(self, x):
            return 2 * x

    custom = keras.saving.get_custom_objects()
    image, path = keras.Input((4,)), tmp_path / "own.keras"
    try:
        keras.saving.register_keras_serializable("kdprune")(Doubled)
        save_model(keras.Model(image, Doubled(name="own")(image)), path)
        assert load_model(path).layers[1](3.0) == 6.0
        custom["theirs>Doubled"] = custom.pop("kdprune>Doubled")
        for name in ("theirs>Doubled", "Doubled"):
            rewrite_config(path, set_in("own", class_name=name))
            with pytest.raises(ValueError, match="layer 'own' is of the class .*Doub"):
                load_model(path)
    finally:
        custom.pop("kdprune>Doubled", None), custom.pop("theirs>Doubled", None)


def test_a_lambda_in_an_h5_file_is_not_run(tmp_path):
    trace = tmp_path / "trace"
    source = keras.Input((4,))

    def write(x, target=str(trace)):
        open(target, "w").close()
        return x

    model = keras.Model(source, layers.Lambda(write, name="evil")(source))
    with pytest.warns(UserWarning, match="HDF5"):
        model.save(tmp_path / "evil.h5")
    trace.unlink()
    with pytest.raises(ValueError, match="layer 'evil' is a Lambda, which is code"):
        load_model(tmp_path / "evil.h5")
    assert not trace.exists()
    # The file is dangerous indeed: Keras runs it, whatever its safe_mode says.
    keras.models.load_model(tmp_path / "evil.h5", safe_mode=True)
    assert trace.exists()


def test_a_module_named_in_a_keras_file_is_not_imported(saved, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    trace = tmp_path / "imported"
    (tmp_path / "evil_module.py").write_text(f"open({str(trace)!r}, 'w').close()")

    evil = {"module": "evil_module", "class_name": "Evil"}
    rewrite_config(saved, lambda config: config.update(evil))
    with pytest.raises(ValueError, match="Functional or Sequential model.*'Evil'"):
        load_model(saved)
    assert not trace.exists() and "evil_module" not in sys.modules
    with pytest.raises((TypeError, ValueError)):
        keras.models.load_model(saved)
    assert trace.exists()  # as Keras itself does


def test_the_name_of_a_class_of_ours_imports_no_module(saved, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    trace = tmp_path / "imported"
    (tmp_path / "canary_module.py").write_text(
        f"def act(x):\n    return x\nopen({str(trace)!r}, 'w').close()"
    )
    evil = {"class_name": "function", "config": "act", "module": "canary_module"}
    evil["registered_name"] = "kdprune>Dirac"
    rewrite_config(saved, configure("conv", activation=evil))
    with pytest.raises(ValueError, match="layer 'conv': 'act' is not an activation"):
        load_model(saved)
    assert not trace.exists() and "canary_module" not in sys.modules
    keras.models.load_model(saved)
    assert trace.exists()  # as Keras itself does
    del sys.modules["canary_module"]


_EVIL = {"module": "os", "class_name": "function", "config": "system"}
_OURS = {"registered_name": "kdprune>Dirac"}
_OWN = {
    "module": "builtins",
    "class_name": "function",
    "config": "kdprune>hard_silu",
    "registered_name": "function",
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_in("conv", class_name="TFSMLayer"), "'TFSMLayer', which cannot be read"),
        (set_in("conv", class_name="StringLookup"), "'StringLookup', which cannot"),
        (set_in("conv", class_name=["Conv2D"]), "has no class and settings"),
        (configure("conv", activation=_EVIL), "'system' is not an activation"),
        (configure("conv", activation="eval"), "'eval' is not an activation"),
        (configure("conv", kernel_initializer=_EVIL), "'function' is not a kernel_in"),
        (configure("out", kernel_regularizer=_EVIL), "'out': 'function' is not a ker"),
        (configure("bn", gamma_constraint=_EVIL), "'bn': 'function' is not a gamma_c"),
        (
            configure("tf.math.multiply", function="io.write_file"),
            "layer 'tf.math.multiply.*': calls 'io.write_file'",
        ),
        (
            configure("tf.math.multiply", function="py_function"),
            "calls 'py_function'",
        ),
        (
            configure("conv", activation={"class_name": "__lambda__", "config": {}}),
            "__lambda__.* is not an activation",
        ),
        (
            configure("conv", anything=[[{"class_name": "__typespec__"}]]),
            "Conv2D with anything=.*has no equivalent",
        ),
        # Under the registered name of a class of ours, which is not read.
        (configure("conv", activation={**_EVIL, **_OURS}), "'system' is not an activ"),
        (configure("conv", activation={**_OWN, "config": "system"}), "'system' is not"),
        (configure("conv", kernel_initializer=_OWN), "'function' is not a kernel_ini"),
        (
            configure("conv", activation={**_EVIL, **_OURS, "class_name": "Dirac"}),
            "Dirac.* is not an activation",
        ),
        # Of ours, and of another kind.
        (
            configure("conv", kernel_constraint={"class_name": "Dirac", "config": {}}),
            "'Dirac' is not a kernel_constraint",
        ),
        (set_in("conv", class_name="Dirac"), "of the class 'Dirac', which cannot"),
        (set_in("conv", class_name="StringLookup", module=None, **_OURS), "'StringLoo"),
        (set_in("conv", class_name="Lambda", module=None, **_OURS), "is a Lambda"),
        (set_in("conv", class_name="kdprune>Nothing"), "'kdprune>Nothing', which"),
        (configure("conv", filters=10**12), "need more than the .* numbers it holds"),
        (configure("conv", filters=-1), "Conv2D cannot be made"),
        (configure("out", units=4), "do not fit its layers|they need more"),
        (set_in("conv", config=None), "has no class and settings"),
        (set_in("conv", inbound_nodes=[[["out", 0, 0, {}]]]), "on what is never made"),
        (set_in("conv", inbound_nodes=[["x"]]), "in a form that is not known"),
        (set_in("conv", inbound_nodes={"a": 1}), "in a form that is not known"),
        (set_in("conv", inbound_nodes=[[["conv", 0, 0, _EVIL]]]), "never made|known"),
    ],
)
def test_a_tampered_configuration_is_refused(saved, change, message):
    rewrite_config(saved, change)
    with pytest.raises(ValueError, match=message) as caught:
        load_model(saved)
    assert "\n" not in str(caught.value)
    assert str(saved) in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        set_in("conv", module="another_canary"),
        set_in("conv", registered_name="theirs>Conv2D"),
        set_in("conv", module="keras.src.models"),
        configure("conv", activation={**_OWN, "module": "another_canary"}),
        configure("conv", kernel_constraint={"module": "another_canary", **_OURS}),
    ],
)
def test_where_a_class_is_said_to_live_is_not_read(
    saved, tmp_path, monkeypatch, change
):
    monkeypatch.syspath_prepend(tmp_path)
    trace = tmp_path / "imported"
    (tmp_path / "another_canary.py").write_text(f"open({str(trace)!r}, 'w').close()")
    rewrite_config(saved, change)
    try:
        assert type(load_model(saved).get_layer("conv")) is layers.Conv2D
    except ValueError as error:
        assert "is not a kernel_constraint" in str(error)
    assert not trace.exists() and "another_canary" not in sys.modules


@pytest.mark.parametrize("dtype", ["U400000000", "O", "(9,)f4", 3, None])
def test_constants_of_a_file_are_numbers(saved, dtype):
    constant = {"class_name": "__tensor__", "config": {"dtype": dtype, "value": [1]}}

    def change(config):
        added = next(
            one
            for one in config["config"]["layers"]
            if one["class_name"] == "TFOpLambda"
        )
        added["inbound_nodes"][0][3]["y"] = constant

    rewrite_config(saved, change)
    with pytest.raises(ValueError, match="a constant of type .* is not known"):
        load_model(saved)


def test_foreign_losses_and_optimizers_are_ignored(saved):
    def compile_it(config):
        config["compile_config"] = {"loss": _EVIL, "optimizer": _EVIL}

    rewrite_config(saved, compile_it)
    assert load_model(saved)(images()).shape == (4, 3)


def test_files_that_are_no_models_end_in_one_line(saved, tmp_path):
    whole = saved.read_bytes()
    with pytest.raises(FileNotFoundError, match="no model file at"):
        load_model(tmp_path / "absent.keras")
    text = tmp_path / "text.txt"
    text.write_text("hello")
    with pytest.raises(ValueError, match="must be a .keras or .h5 file"):
        load_model(text)
    for suffix in (".keras", ".h5"):
        path = tmp_path / f"bad{suffix}"
        for content in (b"", b"PK\x03\x04", b"\x89HDF\r\n\x1a\n", b"x" * 999):
            path.write_bytes(content)
            with pytest.raises(ValueError, match=f"is not a complete {suffix} file"):
                load_model(path)
    for cut in (100, len(whole) // 2, len(whole) - 1):
        saved.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match="is not a complete .keras file"):
            load_model(saved)


def test_a_truncated_h5_file_ends_in_one_line(tmp_path):
    path = tmp_path / "model.h5"
    with pytest.warns(UserWarning, match="HDF5"):
        small_model().save(path)
    whole = path.read_bytes()
    for share in (0.1, 0.5, 0.99):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(ValueError, match="is not a complete .h5 file"):
            load_model(path)


def test_an_h5_file_of_weights_alone_says_so(tmp_path):
    small_model().save_weights(tmp_path / "weights.h5")
    with pytest.raises(ValueError, match="holds no model, perhaps only weights"):
        load_model(tmp_path / "weights.h5")


def test_bombs_are_stopped_before_they_unpack(saved, tmp_path, monkeypatch):
    deep = tmp_path / "deep.keras"
    shutil.copy(saved, deep)
    with zipfile.ZipFile(saved) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["config.json"] = b"[" * 100_000
    with zipfile.ZipFile(deep, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(ValueError, match="nested more than 100 deep|is not a complete"):
        load_model(deep)
    members["config.json"] = b" " * (40 * 2**20)
    with zipfile.ZipFile(deep, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(ValueError, match="unpacks to more than 33,554,432 bytes"):
        load_model(deep)
    monkeypatch.setattr(model_io, "MAX_EXPANSION", 0)
    with pytest.raises(ValueError, match="model.weights.h5 unpacks to more than"):
        load_model(saved)


@pytest.mark.parametrize(
    "kind", ["external link", "soft link", "text", "outside", "pipe"]
)
def test_weights_may_only_be_numbers_in_the_file(tmp_path, kind):
    path = tmp_path / "model.h5"
    with pytest.warns(UserWarning, match="HDF5"):
        small_model().save(path)
    secret = tmp_path / "secret.bin"
    if kind == "pipe":  # Who opens it waits for ever.
        os.mkfifo(secret)
    else:
        secret.write_bytes(bytes(12))
    with h5py.File(path, "a") as file:
        if kind == "external link":
            file["model_weights/away"] = h5py.ExternalLink("/etc/passwd", "/")
        elif kind == "soft link":
            file["model_weights/away"] = h5py.SoftLink("/model_weights")
        elif kind == "text":
            file["model_weights/text"] = "hello"
        else:
            file.create_dataset(
                "model_weights/raw", (3,), "f4", external=[(str(secret), 0, 12)]
            )
    with pytest.raises(ValueError, match="is not a plain array of numbers"):
        load_model(path)


def nested_lists(count):
    return '{"config": ' + "[" * count + "]" * count + "}"


@pytest.mark.parametrize("version", ["2.21.0", "3.15.0"])
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (nested_lists(600), "is nested more than 100 deep"),
        (nested_lists(200_000), "is nested more than 100 deep"),
        ('{"config": [' + ",".join(["{}"] * 600_000) + "]}", "has 600,002 parts"),
    ],
    ids=["deep", "deeper", "many"],
)
def test_a_configuration_like_no_models_is_refused_at_once(
    tmp_path, version, text, reason
):
    """Walking through them would overflow the stack, or take minutes."""
    path = tmp_path / "model.keras"
    with h5py.File(tmp_path / "weights.h5", "w"):
        pass
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", json.dumps({"keras_version": version}))
        archive.writestr("config.json", text)
        archive.write(tmp_path / "weights.h5", "model.weights.h5")
    with pytest.raises(ValueError, match=reason) as e:
        load_model(path)
    assert "\n" not in str(e.value) and len(str(e.value)) < 300


@pytest.mark.parametrize(
    "suffix", ["h5", pytest.param("keras", marks=pytest.mark.slow)]
)
def test_a_file_in_which_hdf5_never_ends_is_told(tmp_path, monkeypatch, suffix):
    """Found by damaging files at random: the library loops, deaf to signals.

    A file that calls itself one of `save_model` is tried as any other.
    """
    monkeypatch.setattr(hdf5, "PATIENCE", 2)
    content = gzip.decompress(Path(__file__).with_name("endless.h5.gz").read_bytes())
    path = tmp_path / f"endless.{suffix}"
    path.write_bytes(content)
    if suffix == "keras":
        save_model(small_model(), tmp_path / "whole.keras")
        with zipfile.ZipFile(tmp_path / "whole.keras") as whole:
            config, metadata = (whole.read(f"{n}.json") for n in ("config", "metadata"))
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("metadata.json", metadata)
            archive.writestr("config.json", config)
            archive.writestr("model.weights.h5", content)
    with pytest.raises(ValueError, match=rf"endless.{suffix}: is not .* in 2 s\)$"):
        load_model(path)


@pytest.mark.parametrize("name", ["executable", "frozen"])
def test_hdf5_is_read_where_python_can_not_be_started(saved, monkeypatch, name):
    monkeypatch.setattr(_io, "_vouched", set())
    monkeypatch.setattr(sys, name, name == "frozen", raising=False)
    monkeypatch.delattr(hdf5.subprocess, "run")
    hdf5.check(saved, 0)


def test_a_name_in_hdf5_that_is_no_text_is_told(tmp_path):
    path = tmp_path / "named.keras"
    save_model(small_model(), tmp_path / "whole.keras")
    with zipfile.ZipFile(tmp_path / "whole.keras") as whole:
        config = whole.read("config.json")
    with h5py.File(tmp_path / "weights.h5", "w") as file:
        file[b"layers\xff"] = np.zeros(3)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", '{"keras_version": "2.15.0"}')
        archive.writestr("config.json", config)
        archive.write(tmp_path / "weights.h5", "model.weights.h5")
    with pytest.raises(ValueError, match="named.keras: ") as caught:
        load_model(path)
    assert "\n" not in str(caught.value)
