"""Images and labels from one file of arrays."""

import zipfile

import numpy as np
import pytest

from kdprune.data import load_dataset, npz

rng = np.random.default_rng(0)
BYTES = rng.integers(0, 256, (40, 6, 5, 3), np.uint8)
DECIBELS = rng.uniform(-80, 0, (40, 6, 5)).astype(np.float32)
LABELS = np.arange(40) % 4
BASE = {"x_train": BYTES, "y_train": LABELS}
TEST = {"x_test": BYTES[:12], "y_test": LABELS[:12]}


@pytest.fixture
def load(tmp_path):
    """Saves arrays and loads them."""

    def saved(arrays, validation=4, **options):
        np.savez(tmp_path / "set.npz", **arrays)
        path = str(tmp_path / "set.npz")
        return load_dataset(path, validation=validation, **options)

    return saved


@pytest.fixture
def refused(load):
    def check(arrays, fault, **options):
        with pytest.raises(ValueError, match=fault) as caught:
            _ = load(arrays, **options).test
        assert "\n" not in str(caught.value)

    return check


def test_bytes_are_taken_as_they_are(load):
    dataset = load({**BASE, **TEST})
    assert (dataset.name, dataset.image_shape) == ("set.npz", (6, 5, 3))
    assert dataset.classes == ("0", "1", "2", "3")
    sizes = {"train": 36, "validation": 4, "calibration": 36, "test": 12}
    assert dataset.description["sizes"] == sizes
    np.testing.assert_array_equal(dataset.test.images, BYTES[:12])
    np.testing.assert_array_equal(dataset.test.labels, LABELS[:12])
    assert dataset.description["source"] == "arrays of 'set.npz'"


@pytest.mark.parametrize(
    "names",
    [
        ("train_images", "train_labels", "val_images", "val_labels", "test_images"),
        ("X_train", "Y_train", "X_valid", "Y_valid", "X_test"),
        ("trainX", "trainY", "devX", "devY", "testX"),
        ("training_data", "training_target", "val_data", "val_target", "testing_data"),
    ],
)
def test_usual_names(load, names):
    values = (BYTES, LABELS[:, None], BYTES[:8], LABELS[:8], BYTES[:12])
    arrays = dict(zip(names, values, strict=True))
    test = names[4].replace("images", "labels").replace("X", "Y")
    arrays[test.replace("data", "target")] = LABELS[:12]
    dataset = load(arrays)
    np.testing.assert_array_equal(dataset.train.images, BYTES)
    np.testing.assert_array_equal(dataset.validation.labels, LABELS[:8])
    assert len(dataset.test) == 12


def test_arrays_without_splits_are_divided(load):
    dataset = load({"images": BYTES, "labels": LABELS, "notes": LABELS}, test=0.25)
    parts = (dataset.train, dataset.validation, dataset.test)
    assert [len(part) for part in parts] == [26, 4, 10]
    pixels = np.concatenate([part.images[:, 0, 0] for part in parts])
    assert len(np.unique(pixels, axis=0)) == len(np.unique(BYTES[:, 0, 0], axis=0))
    assert dataset.description["unread"] == {"array 'notes'": 1}


def test_values_of_a_range_become_256_steps(load):
    arrays = {"x_train": DECIBELS, "y_train": LABELS}
    arrays |= {"x_test": np.array(DECIBELS[:4], order="F"), "y_test": LABELS[:4]}
    dataset = load(arrays, range=[-80, 0])
    assert dataset.image_shape == (6, 5, 1)
    assert dataset.description["value_range"] == [-80, 0]
    back = dataset.test.images[..., 0] / 255 * 80 - 80
    np.testing.assert_allclose(back, DECIBELS[:4], atol=40 / 255 + 1e-4)
    assert (np.abs(back - DECIBELS[:4]) > 10 / 255).any()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([0, 1, 2, 3], np.int16), [0, 85, 170, 255]),
        (np.array([0, 1.5, 3], np.float16), [0, 128, 255]),
        (np.array([0, 1, 3], np.uint8), [0, 85, 255]),
    ],
)
def test_of_any_numbers(load, values, expected):
    images = np.resize(values, (40, 6, 5, 2))
    dataset = load({**BASE, "x_train": images}, range=[0, 3])
    assert sorted(set(dataset.train.images.ravel().tolist())) == expected


def test_large_arrays_are_read_in_parts(load, monkeypatch):
    whole = load({**BASE, "x_train": DECIBELS}, range=[-80, 0]).train.images
    monkeypatch.setattr(npz, "_CHUNK", 300)
    parts = load({**BASE, "x_train": DECIBELS}, range=[-80, 0]).train.images
    np.testing.assert_array_equal(parts, whole)


def test_names_of_classes(load):
    assert load(BASE, classes=list("abcd")).classes == tuple("abcd")
    named = {**BASE, "class_names": np.array(list("wxyz"))}
    assert load(named).classes == tuple("wxyz")
    assert load(named, classes=list("abcd")).classes == tuple("abcd")


def test_labels_may_be_names(load):
    names = np.array(["oak", "elm", "ash", "fir"])
    arrays = {"x_train": BYTES, "y_train": names[LABELS]}
    arrays |= {"x_test": BYTES[:4], "y_test": names[LABELS[:4]].astype("S")}
    dataset = load(arrays)
    assert dataset.classes == ("ash", "elm", "fir", "oak")
    assert dataset.test.labels.tolist() == [3, 1, 0, 2]


def test_the_file_may_be_a_path_of_its_own(load, tmp_path):
    name = load({**BASE, **TEST}).name
    for given in ({}, {"data_dir": tmp_path}):
        path = "set.npz" if given else tmp_path / "set.npz"
        dataset = load_dataset("npz", path=path, validation=4, **given)
        assert dataset.name == name and len(dataset.test) == 12
    with pytest.raises(ValueError, match="Expected options .*Received: 'path'"):
        load({**BASE, **TEST}, path="other.npz")


def test_one_hot_rows(load):
    dataset = load({**BASE, "y_train": np.eye(4)[LABELS]})
    assert np.bincount(dataset.train.labels).tolist() == [7, 7, 7, 7]


def test_bytes_next_to_black_are_told(load, caplog):
    load({**BASE, "x_train": BYTES % 2})
    assert "bytes up to 1 are next to black; give range: [0, 1]" in caplog.text


class TestBadInput:
    @pytest.mark.parametrize(
        ("arrays", "fault"),
        [
            ({}, "such as x_train and y_train, .* Received: none"),
            ({"x_train": BYTES}, "both of each split. Received: x_train"),
            ({**BASE, "x_test": BYTES}, "Received: x_train, y_train, x_test"),
            ({**BASE, "X_train": BYTES}, "both 'x_train' and 'X_train'"),
            ({**BASE, "x_train": BYTES.reshape(40, -1)}, "of shape .40, 90., 'x_train"),
            ({**BASE, "x_train": BYTES[:0]}, r"of numbers. .*\(0, 6, 5, 3\)"),
            (
                {**BASE, "x_train": np.zeros((40, 3, 8, 8), np.uint8)},
                r"channels last. .*save x_train.transpose\(0, 2, 3, 1\)",
            ),
            ({**BASE, "x_train": DECIBELS}, "float32 from -79.* give range: .low"),
            ({**BASE, "x_train": BYTES / 2.0}, "float64 from 0 to 127"),
            ({**BASE, "x_train": BYTES.astype(np.int16)}, "int16 from 0 to 255; give"),
            ({**BASE, "x_train": np.full((40, 6, 5), np.nan)}, r"nan at \(0, 0, 0, 0"),
            ({**BASE, "y_train": LABELS[1:]}, r"one label for each of 40 .*\(39,\)"),
            ({**BASE, "y_train": LABELS + 1}, "images of every class. .*none of 0"),
            ({**BASE, "y_train": LABELS - 1}, "Expected labels from 0. Received: -1"),
            ({**BASE, "y_train": LABELS / 2}, "whole numbers as training labels"),
            ({**BASE, "y_train": LABELS * 0}, "two or more distinct classes"),
            ({**BASE, **TEST, "y_test": LABELS[:12] + 1}, "test labels from 0 to 3"),
            ({**BASE, **TEST, "x_test": BYTES[:12, 1:]}, r"test images of .*\(5, 5, 3"),
            (
                {**BASE, "x_train": np.array([None, 1], object)},
                "'x_train.npy' holds Python objects, which are never unpickled",
            ),
        ],
    )
    def test_arrays(self, refused, arrays, fault):
        refused(arrays, fault)

    @pytest.mark.parametrize("given", [[0], [1, 0], "0", [0, float("inf")], ["a", 1]])
    def test_what_is_no_range(self, refused, given):
        refused(BASE, "Expected range as .low, high.", range=given)

    def test_values_outside_of_the_range(self, refused):
        arrays = {**BASE, "x_train": DECIBELS}
        refused(arrays, r"in \[-40, 0\]. Received: float32 from -79", range=[-40, 0])

    def test_a_class_too_few_is_named(self, refused):
        refused(BASE, "labels from 0 to 2, one for each", classes=list("abc"))

    def test_unknown_names_in_the_test_labels(self, refused):
        names = np.array(["oak", "elm"])[LABELS % 2]
        test = {"x_test": BYTES, "y_test": np.full(40, "fig")}
        fault = "test labels out of elm, oak. Received: fig"
        refused({**BASE, "y_train": names, **test}, fault)

    def test_a_missing_file(self):
        with pytest.raises(FileNotFoundError, match="file of arrays. Received: no.npz"):
            load_dataset("no.npz")

    @pytest.mark.parametrize("kept", [0, 10, 0.5, 0.95])
    def test_a_file_cut_short(self, tmp_path, kept):
        np.savez(tmp_path / "a.npz", **BASE)
        content = (tmp_path / "a.npz").read_bytes()
        size = kept if isinstance(kept, int) else int(kept * len(content))
        (tmp_path / "a.npz").write_bytes(content[:size])
        with pytest.raises(ValueError, match="a.npz, which cannot be read") as caught:
            load_dataset(str(tmp_path / "a.npz"))
        assert "\n" not in str(caught.value)

    def test_a_changed_byte(self, tmp_path):
        np.savez(tmp_path / "a.npz", **BASE)
        content = bytearray((tmp_path / "a.npz").read_bytes())
        content[content.index(BYTES[3].tobytes())] ^= 1
        (tmp_path / "a.npz").write_bytes(content)
        with pytest.raises(ValueError, match="cannot be read .Bad CRC-32"):
            load_dataset(str(tmp_path / "a.npz"))

    def test_a_header_that_claims_more_than_there_is(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
            with archive.open("x_train.npy", "w") as file:
                header = {"descr": "|u1", "fortran_order": False}
                shape = {"shape": (10**9, 100, 100, 3)}
                np.lib.format.write_array_header_1_0(file, {**header, **shape})
                file.write(bytes(1000))
        with pytest.raises(ValueError, match="is not of the size that it says"):
            load_dataset(str(tmp_path / "a.npz"))

    def test_a_bomb(self, tmp_path, monkeypatch):
        monkeypatch.setattr(npz, "MAX_EXPANSION", 100)
        images = np.zeros((40, 100, 100, 3), np.uint8)
        np.savez_compressed(tmp_path / "a.npz", x_train=images, y_train=LABELS)
        with pytest.raises(ValueError, match="'x_train.npy' unpacks to 1,200,"):
            load_dataset(str(tmp_path / "a.npz"))

    def test_more_than_memory(self, refused, monkeypatch):
        monkeypatch.setattr(npz, "_memory", lambda: 3000)
        refused(BASE, "fit into memory. Received: 3,600 bytes in 'x_train'")


@pytest.mark.parametrize("header", ["{'descr': [", "{'descr': '\\n", "{", "("])
def test_a_header_that_ends_too_early_is_told_in_a_line(load, tmp_path, header):
    load(BASE)
    text = f"{header:117}\n".encode()
    content = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text
    with zipfile.ZipFile(tmp_path / "set.npz", "a") as archive:
        archive.writestr("x_test.npy", content)
    with pytest.raises(ValueError, match=r"set.npz, which cannot be read \(") as caught:
        load_dataset(str(tmp_path / "set.npz"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("label", [40, 10**10, 2**62])
def test_a_label_beyond_all_images_takes_no_memory(refused, label):
    labels = LABELS.copy()
    labels[3] = label
    said = f"Expected labels from 0 to 39, .* Received: labels up to {label}"
    refused({**BASE, "y_train": labels}, said)
    said = f"Expected labels from 0 to 3, one for .* Received: labels up to {label}"
    refused({**BASE, "y_train": labels}, said, classes=list("abcd"))
