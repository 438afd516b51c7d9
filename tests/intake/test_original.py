"""Outputs of rebuilt models are compared with those that the file's own Keras says."""

import json
import zipfile

import h5py
import numpy as np
import pytest
import tf_keras as keras

from kdprune.intake.comparison import (
    LIMIT,
    ROUNDING_LIMIT,
    compare_outputs,
    random_images,
)
from kdprune.intake.plain import plain_config
from kdprune.models import load_model, save_model, take_model
from kdprune.models.io import read_config
from kdprune.models.original import Original, allow_rounding, outputs_of
from kdprune.models.taking import values_for

layers = keras.layers


def network(activation=None):
    return keras.Sequential(
        [
            keras.Input((12, 12, 3)),
            layers.Conv2D(4, 3, activation="relu", name="conv"),
            layers.BatchNormalization(),
            layers.GlobalAveragePooling2D(),
            layers.Dense(3, activation, name="scores"),
        ]
    )


# --- Figures ---


def test_the_deviation_is_a_share_of_the_largest_output():
    a = np.array([[1.0, -4.0], [0.0, 2.0]])
    found = compare_outputs("Keras 3", [a], [a + [[0, 0], [0.0002, 0]]])
    assert found.deviation == pytest.approx(0.00005) and found.images == 2
    assert not found.agrees and found.limit == LIMIT
    with pytest.raises(ValueError, match="mine.keras: .* differ .* by 5e-05 of the"):
        found.check("mine.keras")
    assert compare_outputs("Keras 3", [a], [a]).agrees


@pytest.mark.parametrize(
    "found", [[], [np.zeros((2, 3))], [np.array([[np.nan, 0], [0, 0]])]]
)
def test_outputs_of_another_form_never_agree(found):
    assert not compare_outputs("Keras 3", [np.ones((2, 2))], found).agrees


def test_a_network_that_amplifies_roundings_may_deviate_by_what_they_do():
    model = network()
    conv, norm = model.layers[0], model.layers[1]
    # What the images tell is a thousandth of what is rounded, and grows from there.
    conv.set_weights([0.01 * conv.get_weights()[0], np.full(4, 5.0)])
    norm.set_weights([np.ones(4), np.zeros(4), np.full(4, 5.0), np.full(4, 1e-6)])
    norm.epsilon = 1e-9
    values = values_for(model)
    weights, found = model.get_weights(), outputs_of(model, values)
    conv.bias.assign(np.nextafter(weights[1], np.float32(9)))
    expected = outputs_of(model, values)
    model.set_weights(weights)
    other = compare_outputs("Keras 3", expected, found)
    assert LIMIT < other.deviation < ROUNDING_LIMIT and not other.agrees
    allowed = allow_rounding(other, model, values)
    assert allowed.agrees and allowed.limit <= ROUNDING_LIMIT
    kept = zip(weights, model.get_weights(), strict=True)
    assert all((before == after).all() for before, after in kept)
    # A difference that is none of roundings is no more allowed than before.
    wrong = compare_outputs("Keras 3", [1.01 * one for one in expected], found)
    assert allow_rounding(wrong, model, values) == wrong and not wrong.agrees
    # Nor is a small one, where the model amplifies nothing.
    plain = network()
    expected = [1.0001 * one for one in outputs_of(plain, values)]
    wrong = compare_outputs("Keras 3", expected, outputs_of(plain, values))
    assert not allow_rounding(wrong, plain, values).agrees


def test_noise_has_coarse_and_fine_parts():
    images = random_images((16, 16, 3))
    assert images.dtype == np.uint8 and images.shape == (8, 16, 16, 3)
    steps = (
        np.abs(np.diff(images.astype(int), axis=1)).astype(bool).mean(axis=(1, 2, 3))
    )
    assert (steps[::2] < 0.3).all() and (steps[1::2] > 0.9).all()


# --- What is handed to Keras ---


def tampered(**changes):
    conv = {"class_name": "Conv2D", "module": "keras.layers", "registered_name": None}
    config = {"name": "conv", "filters": 4, "dtype": "float16"} | changes
    return {
        "class_name": "Sequential",
        "config": {"layers": [{**conv, "config": config}]},
    }


def test_a_plain_configuration_is_copied_and_computes_in_float32():
    config = tampered() | {"compile_config": {"loss": "evil"}}
    policy = {"class_name": "DTypePolicy", "config": {"name": "mixed_float16"}}
    for dtype in ("float16", {**policy, "module": "keras"}):
        config["config"]["layers"][0]["config"]["dtype"] = dtype
        copy = plain_config(config)
        assert "compile_config" not in copy
        assert copy["config"]["layers"][0]["config"]["dtype"] == "float32"


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"x": {"class_name": "Conv2D", "module": "os", "config": {}}},
            "names os.Conv",
        ),
        ({"x": {"class_name": "Lambda", "config": {}}}, "holds 'Lambda'"),
        ({"x": [{"class_name": "__typespec__", "config": {}}]}, "holds '__typespec__'"),
        (
            {"activation": {"class_name": "function", "config": "system"}},
            "names the function 'system'",
        ),
        (
            {
                "activation": {
                    "class_name": "function",
                    "config": "relu",
                    "registered_name": "theirs>relu",
                }
            },
            "registered as 'theirs>relu'",
        ),
        ({"function": "io.write_file"}, "calls 'io.write_file'"),
        ({"function": {"class_name": "function"}}, "calls .*function"),
        ({"function": None}, "calls 'None'"),
    ],
)
def test_what_keras_would_look_up_is_known_or_nothing_is_compared(change, message):
    with pytest.raises(ValueError, match=message):
        plain_config(tampered(**change))


# --- The originals ---


@pytest.mark.parametrize(
    "name",
    [
        "nested.keras",
        # Each takes a process of several seconds.
        *(
            pytest.param(f"tutorial.{x}", marks=pytest.mark.slow)
            for x in ("h5", "keras")
        ),
    ],
)
def test_a_keras_3_file_is_compared_with_keras_3(keras3_files, name):
    path = keras3_files / name
    model = load_model(path)
    found = Original(path).compare(model, values_for(model))
    assert found.original == "Keras 3" and found.images == 8, found
    assert found.deviation <= LIMIT


@pytest.mark.slow
def test_half_precision_is_compared_in_float32(keras3_files):
    model = load_model(keras3_files / "half.keras")
    found = Original(keras3_files / "half.keras").compare(model, values_for(model))
    assert found.deviation <= LIMIT


@pytest.mark.slow
def test_a_tf_keras_file_is_compared_with_tf_keras_unless_it_is_ours(tmp_path):
    model = network("softmax")
    model.save(tmp_path / "theirs.keras")
    save_model(model, tmp_path / "ours.keras")
    taken = take_model(tmp_path / "theirs.keras", compare=True)
    assert taken.comparison.original == "tf_keras" and taken.comparison.agrees
    assert taken.comparison.deviation is not None
    assert "within" in taken.notes[-1] and "of those of tf_keras" in taken.notes[-1]
    taken = take_model(tmp_path / "ours.keras", compare=True)
    assert taken.comparison.why_not == "it was saved by kdprune"
    assert take_model(tmp_path / "ours.keras").comparison is None


def test_a_file_is_ours_if_it_says_so_not_if_it_has_no_date(tmp_path):
    network().save(tmp_path / "theirs.keras")
    with (
        zipfile.ZipFile(tmp_path / "theirs.keras") as source,
        zipfile.ZipFile(tmp_path / "dateless.keras", "w") as target,
    ):
        for name in source.namelist():
            content = source.read(name)
            if name == "metadata.json":
                content = json.dumps({"keras_version": "2.21.0"})
            target.writestr(name, content)
    assert not read_config(tmp_path / "dateless.keras").ours
    taken = take_model(tmp_path / "dateless.keras")
    assert taken.comparison.original == "tf_keras"
    assert "not compared with tf_keras: it was not asked for" in taken.notes[-1]


def test_a_rebuilt_model_that_says_something_else_is_refused(tmp_path):
    model, path = network(), tmp_path / "theirs.keras"
    model.save(path)
    original = Original(path)
    kernel = model.get_layer("scores").kernel
    kernel.assign(kernel * 1.001)
    found = original.compare(model, values_for(model))
    assert not found.agrees
    with pytest.raises(ValueError, match="differ from those of tf_keras") as e:
        found.check(path)
    assert "\n" not in str(e.value)


def test_no_module_that_a_file_names_is_imported_for_the_comparison(
    tmp_path, monkeypatch
):
    """The file is rebuilt without harm; Keras itself would import the module."""
    monkeypatch.chdir(tmp_path)
    trace, path = tmp_path / "imported", tmp_path / "model.keras"
    (tmp_path / "evil_canary.py").write_text(f"open({str(trace)!r}, 'w').close()")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}")
    network().save(path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(members["config.json"])
    config["config"]["layers"][1]["module"] = "evil_canary"
    members["config.json"] = json.dumps(config).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    model = load_model(path)
    found = Original(path).compare(model, values_for(model))
    assert found.why_not == "it names evil_canary.Conv2D" and found.agrees
    assert not trace.exists()


@pytest.mark.slow
def test_a_file_that_its_keras_does_not_run_is_said_not_to_be_compared(tmp_path):
    model, path = network(), tmp_path / "model.h5"
    with pytest.warns(UserWarning, match="HDF5"):
        model.save(path)
    with h5py.File(path, "r+") as file:
        del file["model_weights"]["conv"]
    assert not read_config(path).ours
    found = Original(path).compare(model, values_for(model))
    assert found.deviation is None and "does not run the file" in found.why_not
    assert "were not compared with tf_keras" in str(found) and "\n" not in str(found)


@pytest.mark.soak
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_inception_resnet_which_has_a_layer_of_its_own_is_rebuilt(suffix, tmp_path):
    factory = keras.applications.InceptionResNetV2
    model = factory(input_shape=(75, 75, 3), weights=None, classes=4)
    model.save(tmp_path / f"theirs{suffix}")
    found = take_model(tmp_path / f"theirs{suffix}", compare=True).comparison
    assert found.original == "tf_keras" and found.deviation <= LIMIT, found
