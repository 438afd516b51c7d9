"""CIFAR-10 from every place it may be in, and damaged in every way."""

import hashlib
import os
import pickle
import struct
import tarfile

import numpy as np
import pytest
from PIL import Image

from kdprune.data import cifar10, load_dataset

COUNT = 20
BATCHES = (*cifar10.TRAIN_BATCHES, cifar10.TEST_BATCH)


def python2_pickle(pixels, labels):
    """Pickles a batch as the official ones are: protocol 2, written by Python 2."""

    def string(value):
        return b"T" + struct.pack("<i", len(value)) + value

    items = b"".join(b"K" + bytes([label]) for label in labels)
    shape = b"".join(b"M" + struct.pack("<H", side) for side in pixels.shape)
    return (
        b"\x80\x02}(U\x04datacnumpy.core.multiarray\n_reconstruct\n"
        b"cnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01" + shape + b"\x86"
        b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNN"
        b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        + string(pixels.tobytes())
        + b"tbU\x06labels]("
        + items
        + b"eu."
    )


def pixels_of(number):
    rng = np.random.default_rng(number)
    return rng.integers(0, 256, (COUNT, 3072), dtype=np.uint8)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A folder of small batches; no environment, an empty cache, no network."""
    monkeypatch.setattr(cifar10, "IMAGES_PER_BATCH", COUNT)
    monkeypatch.setattr(cifar10, "URL", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.delenv("KDPRUNE_DATA_DIR", raising=False)
    batches = tmp_path / "data" / "cifar-10-batches-py"
    batches.mkdir(parents=True)
    for number, name in enumerate(BATCHES):
        content = python2_pickle(pixels_of(number), np.arange(COUNT) % 10)
        (batches / name).write_bytes(content)
    return tmp_path / "data"


@pytest.fixture
def archive(home, monkeypatch):
    """The same batches as an archive with the right checksum."""
    file = home.parent / "cifar-10-python.tar.gz"
    with tarfile.open(file, "w:gz") as tar:
        tar.add(home / "cifar-10-batches-py", "cifar-10-batches-py")
        tar.add(__file__, "../escaped.py")
    digest = hashlib.md5(file.read_bytes()).hexdigest()
    monkeypatch.setattr(cifar10, "ARCHIVE_MD5", digest)
    return file


def load(data_dir=None):
    return load_dataset("cifar10", data_dir=data_dir, validation=10, calibration=10)


def refused(data_dir, fault, error=ValueError):
    with pytest.raises(error, match=fault) as caught:
        load(data_dir)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rewrite(home, name="data_batch_2", **changes):
    batch = {"data": pixels_of(1), "labels": [0] * COUNT, **changes}
    (home / "cifar-10-batches-py" / name).write_bytes(pickle.dumps(batch))


class TestRealData:
    def test_is_cifar10(self, cifar10_dir):
        dataset = load_dataset("cifar10", data_dir=cifar10_dir)
        assert dataset.description["sizes"] == {
            "train": 45_000,
            "validation": 5_000,
            "calibration": 500,
            "test": 10_000,
        }
        assert dataset.image_shape == (32, 32, 3)
        assert np.bincount(dataset.train.labels).tolist() == [4_500] * 10
        assert np.bincount(dataset.validation.labels).tolist() == [500] * 10
        assert np.bincount(dataset.calibration.labels).tolist() == [50] * 10
        assert np.bincount(dataset.test.labels).tolist() == [1_000] * 10
        totals = [
            part.images.sum((0, 1, 2), dtype=np.uint64)
            for part in (dataset.train, dataset.validation)
        ]
        means = sum(totals) / (50_000 * 32 * 32 * 255)
        assert means == pytest.approx([0.4914, 0.4822, 0.4465], abs=5e-5)


class TestPlaces:
    def check(self, dataset):
        pixels = pixels_of(5).reshape(COUNT, 3, 32, 32).transpose(0, 2, 3, 1)
        assert np.array_equal(dataset.test.images, pixels)
        assert np.array_equal(dataset.test.labels, np.arange(COUNT) % 10)
        assert len(dataset.train) == 90 and len(dataset.validation) == 10
        assert dataset.description["source"] == "CIFAR-10 (python batches)"

    def test_the_folder_that_holds_the_batches(self, home):
        self.check(load(home))

    def test_the_folder_of_batches(self, home):
        self.check(load(home / "cifar-10-batches-py"))

    def test_batches_pickled_by_python_3(self, home):
        for number, name in enumerate(BATCHES):
            rewrite(home, name, data=pixels_of(number), labels=[*range(10)] * 2)
        self.check(load(home))
        for number, name in enumerate(BATCHES):
            batch = {b"data": pixels_of(number), b"labels": [*range(10)] * 2}
            content = pickle.dumps(batch, protocol=2)
            (home / "cifar-10-batches-py" / name).write_bytes(content)
        self.check(load(home))

    def test_the_archive_which_is_not_unpacked(self, archive):
        before = sorted(archive.parent.parent.rglob("*"))
        self.check(load(archive))
        assert sorted(archive.parent.parent.rglob("*")) == before

    def test_the_environment(self, home, monkeypatch):
        monkeypatch.setenv("KDPRUNE_DATA_DIR", str(home))
        self.check(load())

    def test_data_dir_goes_before_the_environment(self, home, monkeypatch):
        monkeypatch.setenv("KDPRUNE_DATA_DIR", "/nowhere")
        self.check(load(home))

    @pytest.mark.parametrize("folder", ["", "cifar-10-batches-py-target"])
    def test_the_keras_cache(self, home, folder):
        cache = home.parent / "keras" / "datasets" / folder
        cache.parent.mkdir(parents=True, exist_ok=True)
        home.rename(cache)
        self.check(load())

    def test_a_download_into_the_cache(self, archive, monkeypatch, caplog):
        monkeypatch.setattr(cifar10, "URL", archive.as_uri())
        caplog.set_level("INFO", "kdprune")
        self.check(load())
        assert caplog.messages[0].startswith("downloading CIFAR-10 (170 MB)")
        caplog.clear()
        cached = [f.name for f in (archive.parent / "keras" / "datasets").iterdir()]
        assert cached == ["cifar-10-batches-py.tar.gz"]
        self.check(load())
        assert "downloading" not in caplog.text

    def test_images_in_folders(self, home, caplog):
        pixels = pixels_of(0).reshape(COUNT, 32, 32, 3)
        for part in ("train", "test"):
            for i in range(COUNT):
                file = home / "png" / part / cifar10.CLASSES[i % 10] / f"{i}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels[i]).save(file)
        dataset = load(home / "png")
        assert dataset.classes == cifar10.CLASSES
        assert np.array_equal(np.sort(dataset.test.images, 0), np.sort(pixels, 0))
        assert dataset.description["source"] == "CIFAR-10 (image files)"
        assert "holds 20 training and 20 test images" in caplog.text

    def test_the_test_batch_is_not_opened_before_it_is_asked_for(self, home):
        (home / "cifar-10-batches-py" / "test_batch").write_bytes(b"")
        dataset = load(home)
        assert dataset.description["sizes"]["test"] == COUNT
        with pytest.raises(ValueError, match="test_batch, which cannot be read"):
            _ = dataset.test


class TestMissing:
    def test_offline_lists_every_way_to_give_it(self, home):
        message = refused(None, "on this machine or at http.*refused", OSError)
        for way in ("--data-dir", "KDPRUNE_DATA_DIR", "cifar-10-batches-py"):
            assert way in message
        for way in ("cifar-10-python.tar.gz", "train/<class>", "keras/datasets"):
            assert way in message
        assert not list((home.parent / "keras" / "datasets").iterdir())

    def test_a_damaged_download_is_not_kept(self, home, tmp_path, monkeypatch):
        (tmp_path / "half.tar.gz").write_bytes(b"half")
        monkeypatch.setattr(cifar10, "URL", (tmp_path / "half.tar.gz").as_uri())
        refused(None, "wrong MD5 [0-9a-f]{32}", OSError)
        assert not list((home.parent / "keras" / "datasets").iterdir())

    @pytest.mark.parametrize("by", ["argument", "environment"])
    def test_a_wrong_place_is_an_error_not_a_download(self, tmp_path, by, monkeypatch):
        if by == "environment":
            monkeypatch.setenv("KDPRUNE_DATA_DIR", str(tmp_path))
        place = tmp_path if by == "argument" else None
        refused(place, "which does not hold it. Please give", FileNotFoundError)

    def test_a_place_that_does_not_exist(self, tmp_path):
        refused(tmp_path / "no", "no, which does not exist", FileNotFoundError)

    def test_a_missing_batch_is_named(self, home):
        (home / "cifar-10-batches-py" / "data_batch_4").unlink()
        refused(home, "Received: no data_batch_4", FileNotFoundError)


class TestDamaged:
    @pytest.mark.parametrize(
        "array",
        [
            b"K\x05",
            b"cnumpy\nndarray\n",
            b"cnumpy\nndarray\n)\x81",
            # Its content no bytes, or too few.
            b"cnumpy\nndarray\n)\x81(K\x01(K\x14M\x00\x0ctNK\x00Ntb",
            b"cnumpy\nndarray\n)\x81(K\x01(K\x14M\x00\x0ctNK\x00U\x03abctb",
            b"cnumpy.core.multiarray\n_reconstruct\n(NNNtRK\x05b",
            # A state given to a function or a class, which stays changed.
            b"cnumpy.core.multiarray\n_reconstruct\n(NU\x01xU\x01yd}tb",
            b"cnumpy\nndarray\n}U\x01aK\x01sb",
            # Memory for 2 GB of zeros, and for a memo of a thousand million entries.
            b"cnumpy.core.numeric\n_frombuffer\n(J\xff\xff\xff\x7fNNU\x01CtR",
            b"]r\xff\xff\xff\x3f",
            b"U\x02\xff\xff",
        ],
    )
    def test_an_array_that_is_none_is_told_in_a_line(self, home, array):
        batch = b"\x80\x02}(U\x04data" + array + b"U\x06labels]u."
        (home / "cifar-10-batches-py" / "data_batch_1").write_bytes(batch)
        with pytest.raises(ValueError, match=r"^Expected .*data_batch_1") as caught:
            load_dataset("cifar10", data_dir=home)
        assert "\n" not in str(caught.value)

    def test_a_pickle_that_runs_a_command_is_refused(self, home, tmp_path):
        class Attack:
            def __reduce__(self):
                return os.system, (f"touch {tmp_path}/attacked",)

        rewrite(home, data=Attack())
        refused(home, r"data_batch_2, which .* asks for (posix|nt).system, not allowed")
        assert not (tmp_path / "attacked").exists()

    @pytest.mark.parametrize("name", ["eval", "getattr", "__import__"])
    def test_builtins_are_refused(self, home, name):
        content = b"cbuiltins\n" + name.encode() + b"\n(S'1'\ntR."
        (home / "cifar-10-batches-py" / "data_batch_1").write_bytes(content)
        refused(home, f"asks for builtins.{name}, not allowed")

    @pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.999])
    def test_a_truncated_batch_is_named(self, home, share):
        file = home / "cifar-10-batches-py" / "data_batch_3"
        content = file.read_bytes()
        file.write_bytes(content[: int(share * len(content))])
        refused(home, "data_batch_3, which cannot be read .* Unpack the archive")

    @pytest.mark.parametrize(
        "changes, fault",
        [
            ({"data": pixels_of(1)[:, :99]}, r"\(20, 3072\) .*batch_2.*\(20, 99\)"),
            ({"data": pixels_of(1)[:9]}, r"\(20, 3072\) .*batch_2.*\(9, 3072\)"),
            ({"data": [1, 2]}, "batch_2. Received: list"),
            ({"data": pixels_of(1).astype(float)}, "batch_2.*an array of 'f8'"),
            ({"labels": [0] * 9}, "20 labels in .*batch_2. Received: 9"),
            ({"labels": 3}, "20 labels in .*batch_2. Received: int"),
            ({"labels": [0, 10, -1] + [0] * 17}, "0 to 9 .*: 2 others, .* 10 at 1"),
            ({"labels": [None] * 20}, "0 to 9 .*: 20 others, .* None at 0"),
        ],
    )
    def test_contents_that_are_not_those_of_a_batch(self, home, changes, fault):
        rewrite(home, **changes)
        refused(home, fault)

    def test_an_array_shorter_than_it_says(self, home):
        file = home / "cifar-10-batches-py" / "data_batch_1"
        content = file.read_bytes().replace(b"M\x00\x0c", b"M\x01\x0c")
        file.write_bytes(content)
        refused(home, r"\(20, 3072\) .*batch_1. Received: \(20, 3073\)")

    def test_an_archive_with_another_checksum(self, archive):
        with archive.open("ab") as file:
            file.write(b"more")
        refused(
            archive, "the official .* MD5 .*Received: .*cifar-10-python.tar.gz, MD5"
        )

    def test_images_of_other_classes(self, home):
        for part in ("train", "test"):
            for name in ("cat", "dog"):
                (home / "png" / part / name).mkdir(parents=True)
        refused(home / "png", "train/ and test/ with the classes airplane.*: cat, dog")
