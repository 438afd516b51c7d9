"""The order of a model's outputs: found, mapped by name, applied."""

import numpy as np
import pytest
import tf_keras as keras

from kdprune import _io
from kdprune.intake import labels
from kdprune.kit import label_file
from kdprune.tflite import convert_tflite

layers = keras.layers
CLASSES = ("ash", "elm", "oak")


@pytest.fixture
def write(tmp_path):
    def written(*lines):
        (tmp_path / "labels.txt").write_text("\n".join(lines), encoding="utf-8")
        return tmp_path / "labels.txt"

    return written


class TestNames:
    def test_a_line_is_a_class(self, write):
        assert labels.read_labels(write("oak ", "", "white ash")) == (
            "oak",
            "white ash",
        )

    def test_numbers_in_front_are_left_out(self, write):
        assert labels.read_labels(write("0 oak", "1 ash")) == ("oak", "ash")
        assert labels.read_labels(write("7 up", "0 fat")) == ("7 up", "0 fat")

    @pytest.mark.parametrize(
        ("lines", "fault"),
        [(("oak", "oak"), "'oak' twice"), (("", " "), "Received: none")],
    )
    def test_what_names_no_classes(self, write, lines, fault):
        with pytest.raises(ValueError, match=fault):
            labels.read_labels(write(*lines))

    def test_no_text(self, tmp_path):
        (tmp_path / "labels.txt").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(ValueError, match="as text in UTF-8"):
            labels.read_labels(tmp_path / "labels.txt")
        with pytest.raises(FileNotFoundError, match="labels file not found"):
            labels.read_labels(tmp_path / "no.txt")


class TestOrder:
    def test_classes_are_found_by_name(self, write):
        assert labels.find_order("m.h5", CLASSES, write("oak", "ash", "elm")) == (
            1,
            2,
            0,
        )
        assert labels.find_order("m.h5", CLASSES, list(CLASSES)) is None
        assert labels.find_order("m.h5", CLASSES) is None

    def test_case_and_spaces_do_not_matter(self):
        names = ["White_Oak", "ASH"]
        assert labels.find_order("m.h5", ["ash", "white oak"], names) == (1, 0)
        # Unless they tell classes apart.
        assert labels.find_order("m.h5", ["a", "A"], ["A", "a"]) == (1, 0)

    @pytest.mark.parametrize(
        "names", [["ash", "elm"], ["ash", "elm", "fir"], ["ash", "elm", "oak", "fir"]]
    )
    def test_other_names_are_refused_with_both_lists(self, names):
        fault = f"of the data, ash, elm, oak. Received: labels {', '.join(names)}; use"
        with pytest.raises(ValueError, match=fault) as caught:
            labels.find_order("m.h5", CLASSES, names)
        assert "\n" not in str(caught.value)

    def test_a_record_tells_the_classes_of_its_files(self, tmp_path):
        file = tmp_path / "run" / "student" / "model.keras"
        file.parent.mkdir(parents=True)
        file.write_bytes(b"weights")
        outputs = {"model.keras": {"sha256": _io.sha256(file)}}
        record = {"outputs": outputs, "data": {"classes": ["oak", "ash", "elm"]}}
        _io.write_json(file.parent / "record.json", record)
        assert labels.find_order(file, CLASSES) == (1, 2, 0)
        # What is shown at the run's top is the same file.
        (tmp_path / "run" / "student.keras").write_bytes(b"weights")
        shown = tmp_path / "run" / "student.keras"
        assert labels.find_order(shown, CLASSES) == (1, 2, 0)
        assert labels.find_order(shown, CLASSES, ["elm", "oak", "ash"]) == (2, 0, 1)
        # Data whose classes have no names has no order to compare.
        assert labels.find_order(shown, ["0", "1", "2"]) is None
        with pytest.raises(ValueError, match="Received: labels oak, ash, elm"):
            labels.find_order(shown, ["ash", "elm", "fir"])
        shown.write_bytes(b"others")
        assert labels.find_order(shown, CLASSES) is None

    def test_a_tflite_file_carries_its_own(self, tmp_path):
        model = keras.Sequential(
            [keras.Input((4, 4, 3)), layers.Flatten(), layers.Dense(3)]
        )
        content = convert_tflite(model, "float32")
        (tmp_path / "plain.tflite").write_bytes(content)
        assert labels.find_order(tmp_path / "plain.tflite", CLASSES) is None
        named = label_file(content, ["oak", "elm", "ash"], name="trees")
        (tmp_path / "named.tflite").write_bytes(named)
        assert labels.find_labels(tmp_path / "named.tflite") == ("oak", "elm", "ash")
        assert labels.find_order(tmp_path / "named.tflite", CLASSES) == (2, 1, 0)


def dense():
    inputs = keras.Input((4, 4, 2))
    return keras.Model(
        inputs, layers.Dense(3, activation="softmax")(layers.Flatten()(inputs))
    )


def convolution():
    inputs = keras.Input((4, 4, 2))
    maps = layers.BatchNormalization()(layers.Conv2D(3, 1)(inputs))
    model = keras.Model(inputs, layers.Softmax()(layers.GlobalMaxPooling2D()(maps)))
    norm = model.layers[2]
    norm.set_weights([w + np.arange(3) for w in norm.get_weights()])
    return model


def nested():
    inputs = keras.Input((4, 4, 2))
    head = keras.Sequential(
        [keras.Input((4, 4, 2)), layers.Conv2D(3, 4), layers.Reshape((3,))]
    )
    return keras.Model(inputs, head(layers.Dropout(0.5)(inputs)))


def augmented():
    """With a layer that changes images at random unless it is told not to."""
    return keras.Sequential(
        [keras.Input((4, 4, 2)), layers.RandomFlip(), layers.Flatten(), layers.Dense(3)]
    )


@pytest.mark.parametrize("make", [dense, convolution, nested, augmented])
def test_outputs_are_reordered(make):
    model = make()
    images = np.random.default_rng(1).random((5, 4, 4, 2), np.float32)
    before = model(images, training=False).numpy()
    changed = labels.reorder_outputs(model, (2, 0, 1))
    after = changed(images, training=False).numpy()
    np.testing.assert_allclose(after, before[:, [2, 0, 1]], rtol=1e-5)
    assert np.abs(after - before).max() > 1e-3
    np.testing.assert_array_equal(model(images, training=False).numpy(), before)


def test_a_single_unit_turns_its_sign():
    model = keras.Sequential(
        [keras.Input((4, 4, 2)), layers.Flatten(), layers.Dense(1)]
    )
    images = np.random.default_rng(1).random((5, 4, 4, 2), np.float32)
    after = labels.reorder_outputs(model, (1, 0))(images)
    np.testing.assert_allclose(after, -model(images), rtol=1e-5)


def test_outputs_of_several_layers_are_refused():
    inputs = keras.Input((4, 4, 2))
    flat = layers.Flatten()(inputs)
    model = keras.Model(inputs, layers.Add()([layers.Dense(3)(flat) for _ in "ab"]))
    with pytest.raises(ValueError, match="can't be given the data's order"):
        labels.reorder_outputs(model, (2, 0, 1))
    with pytest.raises(ValueError, match="an order of the model's 3 outputs"):
        labels.reorder_outputs(model, (2, 0))
