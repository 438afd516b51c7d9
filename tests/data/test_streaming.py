"""Images that stay on a disk give what images in memory give."""

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from kdprune.data import (
    Split,
    cache,
    decode,
    from_arrays,
    from_batches,
    join_splits,
    load_dataset,
)
from kdprune.images import Rows, parts
from tests.conftest import disk_of

COUNT = 24  # Of each of two classes, to train on; as many again to test.


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Noise of odd sizes in two classes, and images without labels."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for part in ("train/ash", "train/elm", "test/ash", "test/elm", "unlabelled"):
        (root / part).mkdir(parents=True)
        for index in range(COUNT if "train" in part else 5):
            height, width = rng.integers(10, 30, 2)
            pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
            Image.fromarray(pixels).save(root / part / f"{index:02d}.png")
    return root


@pytest.fixture
def folder(tmp_path, photos):
    """A copy of the photos that may be changed."""
    return shutil.copytree(photos, tmp_path / "photos")


@pytest.fixture
def streamed(monkeypatch):
    """Images are many from the first on, and blocks of the cache are small."""
    monkeypatch.setattr(decode, "IN_MEMORY", 0)
    monkeypatch.setattr(cache, "_BLOCK", 10 * 12 * 14 * 3)


def load(path, cache_dir=None, **options):
    return load_dataset(
        "folder", path=path, image_size=(12, 14), cache_dir=cache_dir, **options
    )


def sets(cache_dir):
    return sorted(cache_dir.glob("images-*"))


def everything(dataset):
    """All that a training draws from a data set, as arrays."""
    from kdprune.data.batches import evaluation_batches, training_batches, view_batches

    augment = {"crop": 2, "flip": "alternating", "cutout": 4}
    split = join_splits(dataset.shown, dataset.validation)
    logits = np.random.default_rng(0).normal(size=(2, len(split), 3))
    logits = logits.astype(np.float16)
    given = {"epochs": 3, "seed": 5, "start_epoch": 1}
    streams = [
        training_batches(split, 7, **given),
        training_batches(split, 7, **given, augment=augment),
        training_batches(split, 7, **given, augment={"flip": True}),
        training_batches(split, 7, **given, augment=augment, soft_labels=logits),
        view_batches(split, 10, view=1, seed=5, augment=augment),
        view_batches(split, 10, view=1, seed=5),
        evaluation_batches(dataset.validation, 4),
        evaluation_batches(dataset.test, 4),
    ]
    return [list(stream.as_numpy_iterator()) for stream in streams]


def assert_equal(one, two):
    if isinstance(one, list | tuple):
        assert len(one) == len(two)
        for first, second in zip(one, two, strict=True):
            assert_equal(first, second)
    else:
        assert one.dtype == two.dtype
        np.testing.assert_array_equal(one, two)


class TestEquality:
    @pytest.mark.parametrize("limit", [1, 0])
    @pytest.mark.quick("0")
    def test_all_that_is_drawn_is_bit_equal_to_images_in_memory(
        self, photos, tmp_path, monkeypatch, limit
    ):
        held = load(photos)
        assert isinstance(held.train.images, np.ndarray)
        monkeypatch.setattr(decode, "IN_MEMORY", 0)
        mapped = load(photos, tmp_path, cache_limit=limit)
        for split in (mapped.shown, mapped.validation, mapped.calibration, mapped.test):
            assert isinstance(split.images, Rows)
        assert mapped.description == held.description
        assert mapped.test.sha256() == held.test.sha256()
        assert_equal(everything(mapped), everything(held))
        # Above the limit, nothing is written.
        assert len(sets(tmp_path)) == (2 if limit else 0)

    def test_soft_labels_are_stored_under_the_same_key(
        self, photos, tmp_path, streamed
    ):
        import tf_keras as keras

        from kdprune.distill import store_key

        teacher = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(2)])
        teacher.build((None, 12, 14, 3))
        mapped = load(photos, tmp_path).train
        held = Split(np.asarray(mapped.images), mapped.labels)
        assert store_key([teacher], mapped) == store_key([teacher], held)

    def test_models_and_files_score_them_the_same(self, photos, tmp_path, streamed):
        import tf_keras as keras

        from kdprune.evaluate import evaluate_model, predict
        from kdprune.models.taking import take_model
        from kdprune.prune.inference import batches

        model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(2)])
        model.build((None, 12, 14, 3))
        split = load(photos, tmp_path).train
        held = np.asarray(split.images)
        np.testing.assert_array_equal(
            predict(model, split.images), predict(model, held)
        )
        entries = [
            evaluate_model(model, images, split.labels, check_range=False).entry
            for images in (split.images, held)
        ]
        assert entries[0] == entries[1]
        taken = take_model(
            model, images=split.images, labels=split.labels, input_range=(0, 1)
        )
        assert taken.found.images == len(split)
        assert_equal(
            *(
                [x.numpy() if hasattr(x, "numpy") else x for x, _ in batches(i)]
                for i in (split.images, held)
            )
        )

    def test_grey_images_and_those_of_one_size_are_mapped_too(self, tmp_path, streamed):
        for name in ("ash/1", "ash/2", "ash/3", "elm/1", "elm/2", "elm/3"):
            (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
            Image.new("L", (5, 4), len(name)).save(tmp_path / f"{name}.png")
        options = {"path": tmp_path, "channels": 1, "cache_dir": tmp_path / ".cache"}
        dataset = load_dataset("folder", **options, test=2, validation=2)
        assert dataset.train.images.shape == (2, 4, 5, 1)
        Image.new("L", (4, 5)).save(tmp_path / "elm" / "4.png")
        with pytest.raises(ValueError, match="one size, 4x5 .*: 1 image .* 5x4 in elm"):
            load_dataset("folder", **options, test=2, validation=2)


class TestRows:
    """What `Rows` give is what the array gives that they stand for."""

    @pytest.fixture
    def both(self, tmp_path):
        rng = np.random.default_rng(0)
        array = rng.integers(0, 256, (11, 3, 4, 2), np.uint8)
        array.tofile(tmp_path / "pixels")
        mapped = np.memmap(tmp_path / "pixels", np.uint8, "r", shape=array.shape)
        return Rows(mapped), array

    @pytest.mark.parametrize(
        "key",
        [
            0,
            -1,
            np.int64(3),
            slice(None),
            slice(2, 9, 3),
            slice(9, None),
            slice(20, None),
            [4, 1, 1],
            np.array([10, 0]),
            np.arange(11) % 2 == 0,
            np.array([], np.int64),
        ],
    )
    def test_images_are_chosen_as_of_an_array(self, both, key):
        rows, array = both
        np.testing.assert_array_equal(rows[key], array[key])
        assert type(rows[key]) is np.ndarray
        turned = np.arange(11)[::-1]
        np.testing.assert_array_equal(rows.select(turned)[key], array[turned][key])

    def test_places_beyond_the_last_are_refused(self, both):
        for key in (11, [3, 11], -12):
            with pytest.raises(IndexError):
                both[0][key]

    def test_they_have_the_form_of_an_array(self, both):
        rows, array = both
        assert (rows.shape, rows.dtype, rows.ndim, rows.size, len(rows)) == (
            (array.shape, array.dtype, array.ndim, array.size, len(array))
        )
        np.testing.assert_array_equal(np.asarray(rows), array)
        np.testing.assert_array_equal(np.asarray(rows, np.float32), array)
        np.testing.assert_array_equal(list(rows), array)

    def test_several_are_joined_without_being_read(self, both):
        rows, array = both
        some = rows.select([3, 5])
        splits = [Split(images, np.arange(len(images))) for images in (some, array)]
        joined = join_splits(*splits, splits[0]).images
        assert isinstance(joined, Rows)
        expected = np.concatenate([array[[3, 5]], array, array[[3, 5]]])
        np.testing.assert_array_equal(joined, expected)
        order = np.random.default_rng(1).permutation(len(expected))
        np.testing.assert_array_equal(joined[order], expected[order])

    def test_parts_are_small_and_all(self, both, monkeypatch):
        monkeypatch.setattr("kdprune.images._PART", 3 * 3 * 4 * 2)
        for images in both:
            found = list(parts(images))
            assert [len(part) for part in found] == [3, 3, 3, 2]
            np.testing.assert_array_equal(np.concatenate(found), both[1])


# Loads the folder given in small blocks, as in these tests.
LOAD = """
import sys
from kdprune import _log
from kdprune.data import cache, decode, load_dataset
_log.show()
decode.IN_MEMORY, cache._BLOCK = 0, 10 * 12 * 14 * 3
path, cache_dir = sys.argv[1:3]
data = load_dataset("folder", path=path, image_size=(12, 14), cache_dir=cache_dir)
print(data.description["sha256"])
"""


def start(path, cache_dir, **arguments):
    return subprocess.Popen(
        [sys.executable, "-c", LOAD, path, cache_dir],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **arguments,
    )


class TestInterruptions:
    def test_after_a_kill_it_goes_on_with_the_next_block(
        self, photos, tmp_path, streamed, caplog, monkeypatch
    ):
        root = tmp_path / "many"
        for part in ("train/ash", "train/elm", "test/ash", "test/elm"):
            (root / part).mkdir(parents=True)
            for index in range(400 if "train" in part else 1):
                source = photos / "train" / part[-3:] / f"{index % COUNT:02d}.png"
                os.link(source, root / part / f"{index}.png")
        process = start(root, tmp_path / "cache")
        journal = None
        while not (journal and journal.read_text().count("\n") >= 3):
            assert process.poll() is None, process.stdout.read()
            found = list(tmp_path.glob("cache/*/blocks.json"))
            journal = found[0] if found else None
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        process.stdout.close()
        (kept,) = sets(tmp_path / "cache")
        assert not (kept / "index.json").exists()
        # As a crash may leave it: a line cut short, and pixels without a line.
        whole = journal.read_text().rpartition("\n")[0]
        journal.write_text(whole + '\n{"rows": [')
        with open(kept / "pixels", "ab") as file:
            file.write(b"\1" * 500)
        done = json.loads(whole.splitlines()[-1])["rows"][1]
        assert 30 <= done < 800
        read = []
        monkeypatch.setattr(
            decode.Reader,
            "_read_sized",
            lambda self, file, of=decode.Reader._read_sized: (
                read.append(file.name),
                of(self, file),
            )[1],
        )
        caplog.set_level("INFO", "kdprune")
        dataset = load(root, tmp_path / "cache")
        assert f"going on after {done}" in caplog.text
        assert len(read) == 800 - done
        assert not (kept / "blocks.json").exists()
        monkeypatch.setattr(decode, "IN_MEMORY", 2**27)
        assert dataset.description == load(root).description

    def test_a_block_that_is_not_what_was_written_is_decoded_again(
        self, photos, tmp_path, streamed, caplog
    ):
        expected = load(photos, tmp_path).description
        (kept,) = sets(tmp_path)
        index = json.loads((kept / "index.json").read_text())
        lines = [json.dumps(block) + "\n" for block in index["blocks"]]
        (kept / "index.json").unlink()
        (kept / "blocks.json").write_text("".join(lines))
        with open(kept / "pixels", "r+b") as file:
            file.seek(12 * 14 * 3 * 25)  # In the third block of ten.
            file.write(b"other")
        caplog.set_level("INFO", "kdprune")
        assert load(photos, tmp_path).description == expected
        assert "going on after 20" in caplog.text

    def test_two_processes_decode_once(self, photos, tmp_path, streamed):
        processes = [start(photos, tmp_path / "cache") for _ in range(2)]
        said = [process.communicate(timeout=60)[0] for process in processes]
        assert [process.returncode for process in processes] == [0, 0], said
        assert len({text.splitlines()[-1] for text in said}) == 1
        # The other waited for it, or came when it was done.
        assert sum("caching 53 images" in text for text in said) == 1


class TestStaleness:
    def test_a_file_that_the_system_could_not_read_is_read_the_next_time(
        self, folder, tmp_path, streamed, monkeypatch
    ):
        opened = decode.Image.open

        def one_fails(file, **arguments):
            if file.name == sorted((folder / "train/elm").iterdir())[3].name:
                raise OSError(errno.EMFILE, "Too many open files")
            return opened(file, **arguments)

        with monkeypatch.context() as patched:
            patched.setattr(decode.Image, "open", one_fails)
            first = load(folder, tmp_path / "cache", on_error="skip")
        second = load(folder, tmp_path / "cache", on_error="skip")
        assert len(first.train) < len(second.train)
        # What the bytes say is kept.
        monkeypatch.setattr(decode.Image, "open", None)
        assert len(load(folder, tmp_path / "cache").train) == len(second.train)

    def test_what_is_cached_is_decoded_once(self, folder, tmp_path, streamed, caplog):
        caplog.set_level("INFO", "kdprune")
        first = load(folder, tmp_path / "cache")
        assert "caching 53 images" in caplog.text
        caplog.clear()
        # Wherever the folder is.
        folder.rename(tmp_path / "photos2")
        again = load(tmp_path / "photos2", tmp_path / "cache")
        assert "caching" not in caplog.text
        assert again.train.sha256() == first.train.sha256()

    @pytest.mark.parametrize("limit", [1, 0])
    def test_an_image_of_the_same_size_and_date_is_seen(
        self, folder, tmp_path, streamed, limit
    ):
        before = load(folder, tmp_path / "cache", cache_limit=limit)
        path = folder / "train" / "ash" / "00.png"
        stat = path.stat()
        content = bytearray(path.read_bytes())
        # Another image: the place of the blocks of an uncompressed one.
        pixels = 255 - np.asarray(Image.open(path))
        Image.fromarray(pixels).save(path)
        other = path.read_bytes()[: len(content)]
        path.write_bytes(other.ljust(len(content), b"\0"))
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        assert path.stat().st_size == stat.st_size
        assert path.stat().st_mtime_ns == stat.st_mtime_ns
        after = load(folder, tmp_path / "cache", cache_limit=limit)
        assert after.description["sha256"] != before.description["sha256"]
        if not limit:
            with pytest.raises(ValueError, match=r"stay as they are .*00.png, which"):
                before.train.sha256()
                before.validation.sha256()

    def test_an_image_that_changes_meanwhile_is_refused(
        self, folder, tmp_path, streamed, monkeypatch
    ):
        read = decode.Reader._read_sized

        def touch(self, file):
            found = read(self, file)
            if file.name == "07.png":
                file.write_bytes(file.read_bytes())
            return found

        monkeypatch.setattr(decode.Reader, "_read_sized", touch)
        with pytest.raises(ValueError, match=r"Received: .*07.png, which has changed"):
            load(folder, tmp_path / "cache")

    @pytest.mark.parametrize(
        "options", [{"resize": "crop"}, {"channels": 1}, {"seed": 1}]
    )
    def test_what_changes_pixels_has_its_own_set(
        self, photos, tmp_path, streamed, options
    ):
        load(photos, tmp_path)
        load(photos, tmp_path, **options)
        # Another seed draws other splits of the same files.
        assert len(sets(tmp_path)) == (1 if "seed" in options else 2)


def refused(fault, *arguments, error=ValueError, **options):
    with pytest.raises(error, match=fault) as caught:
        load(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def disk(tmp_path):
    """A small disk of its own."""
    with disk_of("1m", tmp_path / "disk") as place:
        yield place


def make_read_only(place):
    """Of a folder of ours; root may write whatever the mode, but on such a disk."""
    if os.geteuid():
        place.chmod(0o555)
        return
    mount = ["mount", "-o", "remount,ro", str(place)]
    subprocess.run(mount, check=True)


class TestBadCaches:
    def test_a_folder_that_is_read_only(
        self, photos, disk, streamed, monkeypatch, caplog
    ):
        monkeypatch.setattr(cache, "_LEAVE", 0)
        (disk / "full").mkdir()
        whole = load(photos, disk / "full")
        make_read_only(disk)
        refused(
            r"can be written. Received: .*disk/new/.*(R|r)ead-only.*--cache-dir.*"
            "--cache-limit 0",
            photos,
            disk / "new",
        )
        # What is whole is read.
        assert load(photos, disk / "full").description == whole.description
        # One that nobody named is done without.
        monkeypatch.setenv("XDG_CACHE_HOME", str(disk))
        assert load(photos).description == whole.description
        assert "decoded each time they are used" in caplog.text

    def test_a_disk_with_too_little_room_is_told_beforehand(
        self, photos, disk, streamed
    ):
        refused(r"0.0 GiB free, of 0.3 GiB needed; name a folder", photos, disk)
        assert not list(disk.glob("*/pixels"))

    def test_a_disk_that_becomes_full_keeps_what_is_written(
        self, photos, disk, streamed, monkeypatch, caplog
    ):
        monkeypatch.setattr(cache, "_LEAVE", -(2**30))  # Somebody else fills it.
        (disk / "other").write_bytes(bytes(1_024_000))
        said = refused(
            r"cannot cache images: No space left on device; the first \d0 of 53 are "
            "kept. Free some room and run again",
            photos,
            disk,
            error=OSError,
        )
        done = int(said.partition("the first ")[2].split()[0])
        (disk / "other").unlink()
        caplog.set_level("INFO", "kdprune")
        load(photos, disk)
        assert done and f"going on after {done}" in caplog.text

    def test_one_that_nobody_named_is_done_without_where_it_becomes_full(
        self, photos, disk, streamed, monkeypatch, caplog
    ):
        expected = load(photos, disk.parent / "whole").description
        monkeypatch.setattr(cache, "_LEAVE", -(2**30))  # A quota is not seen before.
        monkeypatch.setenv("XDG_CACHE_HOME", str(disk))
        (disk / "other").write_bytes(bytes(1_024_000))
        caplog.set_level("INFO", "kdprune")
        for tried in (True, False):  # Another process does not try within the hour.
            caplog.clear()
            assert load(photos).description == expected
            said = [one.getMessage() for one in caplog.records]
            assert any("caching" in text for text in said) == tried
            warned = [one for one in caplog.records if one.levelname == "WARNING"]
            (told,) = {one.getMessage() for one in warned}
            assert "decoded each time they are used" in told
            assert "\n" not in told and "--cache-limit 0" in told
        assert not list(disk.glob("kdprune/*/pixels"))

    def test_a_file_that_may_not_grow(self, photos, tmp_path, streamed):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, before[1]))
        try:
            refused(
                "File too large; the first 10 of 53", photos, tmp_path, error=OSError
            )
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        load(photos, tmp_path)

    def test_a_folder_of_other_images_is_refused(
        self, photos, folder, tmp_path, streamed
    ):
        load(photos, tmp_path / "cache")
        (mine,) = sets(tmp_path / "cache")
        load(folder, tmp_path / "cache")
        (other,) = [found for found in sets(tmp_path / "cache") if found != mine]
        shutil.rmtree(mine)
        other.rename(mine)
        refused(
            f"these images in {mine}. Received: the cache of others",
            photos,
            tmp_path / "cache",
        )

    def test_a_copied_one_is_checked_and_taken_a_damaged_one_decoded_again(
        self, photos, tmp_path, streamed, caplog
    ):
        expected = load(photos, tmp_path / "one").description
        shutil.copytree(tmp_path / "one", tmp_path / "two", copy_function=shutil.copy)
        caplog.set_level("INFO", "kdprune")
        assert load(photos, tmp_path / "two").description == expected
        assert "caching" not in caplog.text
        (kept,) = sets(tmp_path / "two")
        content = bytearray((kept / "pixels").read_bytes())
        for damaged in (content[:-1], content[:99] + b"no" + content[101:], b""):
            caplog.clear()
            (kept / "pixels").write_bytes(damaged)
            assert load(photos, tmp_path / "two").description == expected
            assert caplog.text.count("is damaged") == 1  # It is read through once.
            assert "is damaged; its images are decoded again" in caplog.text
        index = json.loads((kept / "index.json").read_text())
        for broken in ({}, {"blocks": [{}]}, {"blocks": 7}, {"stamp": None}):
            (kept / "index.json").write_text(json.dumps({**index, **broken}))
            assert load(photos, tmp_path / "two").description == expected
        (kept / "index.json").write_text("{")
        assert load(photos, tmp_path / "two").description == expected

    def test_a_file_in_its_place(self, photos, tmp_path, streamed):
        (tmp_path / "file").write_text("")
        refused(
            "can be written. Received: .*(File exists|Not a dir)",
            photos,
            tmp_path / "file",
        )

    @pytest.mark.parametrize("limit", [-1, float("nan"), "much"])
    def test_a_limit_that_is_none(self, photos, tmp_path, limit):
        refused(
            "number of GiB, 0 or more.* Received: ", photos, tmp_path, cache_limit=limit
        )

    def test_damaged_images_are_named_and_skipped_as_ever(
        self, folder, tmp_path, streamed, caplog
    ):
        (folder / "train" / "elm" / "03.png").write_bytes(b"no image")
        (folder / "test" / "elm" / "03.png").write_bytes(b"")
        refused(
            "2 files .*: train/elm/03.png .*, test/elm/03.png .empty",
            folder,
            tmp_path / "cache",
        )
        caplog.set_level("INFO", "kdprune")
        for limit in (1, 1, 0):
            data = load(folder, tmp_path / "cache", cache_limit=limit, on_error="skip")
            # What was decoded before the refusal is not decoded again.
            assert "caching" not in caplog.text
            assert data.description["sizes"]["train"] == 43 - 1
            assert "train/elm/03.png" in data.description["skipped"][0]
            assert data.train.images[:].any(axis=(1, 2, 3)).all()


class TestArrays:
    def test_a_mapped_array_is_never_held(self, tmp_path):
        """60 MB of images as bytes, in a process of its own."""
        code = """
import re, sys, numpy as np
from kdprune.data import from_arrays
def held():
    return int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1])
np.lib.format.open_memmap(sys.argv[1], "w+", sys.argv[2], (300, 256, 256, 3))
x = np.load(sys.argv[1], mmap_mode="r")
before = held()
data = from_arrays(x, np.arange(300) % 5)
assert len(data.train.images[3:7]) == 4
data.test.sha256()
print(held() - before)
"""
        for dtype in ("uint8", "float32"):
            command = [sys.executable, "-c", code, str(tmp_path / "x.npy"), dtype]
            run = subprocess.run(command, capture_output=True, text=True)
            assert run.returncode == 0, run.stderr
            assert int(run.stdout) < 45_000  # kB

    @pytest.mark.parametrize("dtype", ["uint8", "float32"])
    def test_it_is_the_data_set_of_the_array(self, tmp_path, dtype):
        rng = np.random.default_rng(0)
        x = rng.integers(0, 256, (40, 5, 4), np.uint8)
        if dtype != "uint8":
            x = (x / 255).astype(dtype)
        y = np.arange(40) % 4
        np.save(tmp_path / "x.npy", x)
        mapped = from_arrays(np.load(tmp_path / "x.npy", mmap_mode="r"), y)
        assert isinstance(mapped.train.images, Rows)
        assert mapped.description == from_arrays(x, y).description
        bad = np.load(tmp_path / "x.npy", mmap_mode="r+")
        if dtype != "uint8":
            bad[7, 1, 2] = np.nan
            with pytest.raises(ValueError, match=r"nan at \(7, 1, 2, 0\)"):
                from_arrays(bad, y)

    def test_a_loader_may_give_a_mapped_array(self, tmp_path):
        np.save(tmp_path / "x.npy", np.ones((6, 2, 2, 1), np.uint8))
        x = np.load(tmp_path / "x.npy", mmap_mode="r")
        assert isinstance(Split(x, np.zeros(6, np.int64)).images, Rows)

    def test_a_stream_is_the_data_set_of_its_arrays(self, tmp_path):
        import tensorflow as tf

        rng = np.random.default_rng(0)
        x, y = rng.integers(0, 256, (40, 5, 4, 3), np.uint8), np.arange(40) % 4
        stream = tf.data.Dataset.from_tensor_slices((x, y)).batch(7)
        arrays = (x[:8], y[:8])
        made = from_batches(
            stream, test=[arrays], cache_dir=tmp_path / "c", name="mine", validation=8
        )
        expected = from_arrays(x, y, test=arrays, name="mine", validation=8)
        assert isinstance(made.train.images, Rows)
        assert made.description == expected.description
        assert made.test.sha256() == expected.test.sha256()
        assert not list((tmp_path / "c").iterdir())  # Its file has no name.

    @pytest.mark.parametrize(
        ("batches", "fault"),
        [
            ([], "Expected training batches. Received: none"),
            ([np.zeros((2, 4, 4, 3), np.uint8)], "of .images, labels.. .* ndarray"),
            (
                [(np.zeros((2, 4, 4, 3), np.uint8), [0])],
                r"as many labels. Received: \(2, 4, 4, 3\) and \(1,\)",
            ),
            (
                [(np.zeros((1, n, 4, 3), np.uint8), [0]) for n in (4, 5)],
                r"of images \(4, 4, 3\) .* Received: \(1, 5, 4, 3\)",
            ),
            ([(np.full((1, 4, 4, 3), 7.0), [0])], r"floats in \[0, 1\]"),
        ],
    )
    def test_a_stream_of_something_else(self, tmp_path, batches, fault):
        with pytest.raises(ValueError, match=fault) as caught:
            from_batches(batches, cache_dir=tmp_path)
        assert "\n" not in str(caught.value)

    def test_a_stream_larger_than_the_disk(self, disk):
        batch = np.zeros((100, 30, 30, 3), np.uint8), np.arange(100) % 4
        with pytest.raises(ValueError, match="Received: .*disk, No space left"):
            from_batches([batch] * 5, cache_dir=disk)
