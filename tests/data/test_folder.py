"""Class-per-folder image sets."""

import numpy as np
import pytest
from PIL import Image

from kdprune.data import folder, load_dataset


def save(path, size=(6, 4), colour=(10, 20, 30), **arguments):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **arguments)


def fill(root, classes=("cat", "dog"), count=10):
    for label, name in enumerate(classes):
        for i in range(count):
            save(root / name / f"{i}.png", colour=(label, i, len(root.name)))


@pytest.fixture
def flat(tmp_path):
    fill(tmp_path)
    return tmp_path


@pytest.fixture
def parted(tmp_path):
    for part in ("train", "val", "test"):
        fill(tmp_path / part, count=4)
    return tmp_path


def load(path, **options):
    return load_dataset("folder", path=path, **options)


def refused(path, fault, error=ValueError, **options):
    with pytest.raises(error, match=fault) as caught:
        load(path, **options)
    assert "\n" not in str(caught.value)


class TestSplits:
    def test_without_splits_a_stratified_share_is_held_out(self, flat):
        dataset = load(flat, test=0.2, validation=0.25)
        parts = (dataset.train, dataset.validation, dataset.test)
        assert [np.bincount(p.labels).tolist() for p in parts] == [
            [6, 6],
            [2, 2],
            [2, 2],
        ]
        pixels = np.concatenate([part.images[:, 0, 0] for part in parts])
        assert len({tuple(pixel) for pixel in pixels.tolist()}) == 20
        assert dataset.classes == ("cat", "dog")
        assert dataset.image_shape == (4, 6, 3)

    def test_given_splits_are_kept(self, parted):
        dataset = load(parted)
        parts = (dataset.train, dataset.validation, dataset.test)
        assert [len(part) for part in parts] == [8, 8, 8]
        assert [part.images[0, 0, 0, 2] for part in parts] == [5, 3, 4]

    def test_validation_is_drawn_where_it_is_not_given(self, parted):
        (parted / "val").rename(parted / "other")
        dataset = load(parted, validation=2)
        assert dataset.description["sizes"] == {
            "train": 6,
            "validation": 2,
            "calibration": 6,
            "test": 8,
        }

    def test_equal_seeds_give_equal_data(self, flat):
        digests = [load(flat, seed=s).description["sha256"] for s in (3, 3, 4)]
        assert digests[0] == digests[1] != digests[2]

    def test_test_images_are_not_opened_before_they_are_asked_for(self, parted):
        (parted / "test" / "cat" / "0.png").write_bytes(b"no image")
        dataset = load(parted)
        assert dataset.description["sizes"]["test"] == 8
        with pytest.raises(ValueError, match="test/cat/0.png, which cannot be read"):
            _ = dataset.test

    def test_path_is_relative_to_data_dir(self, flat):
        dataset = load(flat.name, data_dir=flat.parent)
        assert dataset.description["source"] == f"image folder {flat.name!r}"

    def test_images_below_a_class_folder_count_and_hidden_ones_do_not(self, flat):
        save(flat / "cat" / "images" / "more.JPEG")
        save(flat / "cat" / "._0.png")
        save(flat / ".cache" / "x.png")
        (flat / "cat" / "notes.txt").write_text("not an image")
        assert len(load(flat).train) + len(load(flat).validation) == 21 - 4

    def test_images_without_labels_are_shown_but_never_drawn(self, parted):
        without = load(parted).description
        save(parted / "unlabelled" / "camera" / "b.png", colour=(7, 7, 7))
        save(parted / "unlabelled" / "a.png", colour=(8, 8, 8))
        dataset = load(parted)
        assert dataset.shown.labels.tolist() == [0] * 4 + [1] * 4 + [-1, -1]
        assert dataset.shown.images[-2:, 0, 0, 0].tolist() == [8, 7]
        np.testing.assert_array_equal(dataset.shown.images[:8], dataset.train.images)
        for part in (dataset.train, dataset.validation, dataset.calibration):
            assert part.labels.min() == 0
        assert dataset.description["sizes"] == {**without["sizes"], "unlabelled": 2}
        assert dataset.description["sha256"] == without["sha256"]
        save(parted / "unlabelled" / "a.png", colour=(9, 9, 9))
        (parted / "unlabelled").rename(parted / "unlabeled")
        digests = {d.description["unlabelled_sha256"] for d in (dataset, load(parted))}
        assert len(digests) == 2 and "unlabelled_sha256" not in without

    def test_without_such_images_the_training_images_are_shown(self, parted):
        dataset = load(parted)
        assert dataset.shown is dataset.train

    def test_unlabelled_is_no_class(self, flat):
        save(flat / "unlabelled" / "0.png")
        refused(flat, "unlabelled/ among them. Put images .* beside train/")

    def test_an_empty_unlabelled_folder_is_refused(self, parted):
        (parted / "unlabelled").mkdir()
        refused(parted, "Expected images in .*unlabelled. Received: none")

    def test_unlabelled_images_must_be_of_the_same_size(self, parted):
        save(parted / "unlabelled" / "0.png", size=(5, 5))
        refused(parted, "Expected images of one size, 4x6")

    def test_different_classes_in_a_split_are_refused(self, parted):
        (parted / "test" / "dog").rename(parted / "test" / "fox")
        refused(
            parted, "same classes in .*test as in training.*dog missing; fox beyond"
        )

    def test_test_without_train_is_refused(self, parted):
        (parted / "train").rename(parted / "training")
        refused(parted, "Expected train/<class>/ beside .*test/")

    def test_two_validation_folders_are_refused(self, parted):
        fill(parted / "validation", count=2)
        refused(parted, "both val/ and validation/")


class TestPixels:
    def test_grey_images(self, flat):
        dataset = load(flat, channels=1)
        assert dataset.image_shape == (4, 6, 1)

    def test_resizing_averages_instead_of_skipping(self, tmp_path):
        board = np.indices((64, 64)).sum(0) % 2 * 255
        for name in ("a", "b"):
            for i in range(3):
                save(tmp_path / name / f"{i}.png")
                Image.fromarray(board.astype(np.uint8)).save(
                    tmp_path / name / f"{i}.png"
                )
        images = load(tmp_path, image_size=(8, 16)).train.images
        assert images.shape[1:] == (8, 16, 3)
        assert np.abs(images.astype(int) - 127).max() <= 16

    def test_images_are_turned_upright(self, flat):
        pixels = np.zeros((6, 4, 3), np.uint8)
        pixels[0] = 255
        exif = Image.Exif()
        exif[0x0112] = 6  # The top of the scene is at the right of the file's rows.
        for file in flat.glob("*/*.png"):
            Image.fromarray(pixels).save(file, exif=exif)
        dataset = load(flat)
        assert dataset.image_shape == (4, 6, 3)
        assert dataset.train.images[0, :, -1].min() == 255
        assert dataset.train.images[0, :, :-1].max() == 0

    def test_palette_images_become_rgb(self, flat):
        expected = load(flat).train.images
        for file in flat.glob("*/*.png"):
            image = Image.open(file).convert("P", palette=Image.Palette.ADAPTIVE)
            image.save(file)
        assert np.array_equal(load(flat).train.images, expected)

    def test_progress_is_told_of_big_sets_only(self, flat, caplog, monkeypatch):
        caplog.set_level("INFO", "kdprune")
        load(flat)
        assert caplog.messages == []
        monkeypatch.setattr(folder, "PROGRESS_FROM", 5)
        load(flat)
        assert caplog.messages == ["reading 16 images"]


class TestBadInput:
    def test_a_missing_folder(self, tmp_path):
        refused(tmp_path / "no", "folder of images.*no", FileNotFoundError)

    def test_no_path(self):
        refused(None, "Expected the option path")

    def test_no_classes(self, tmp_path):
        save(tmp_path / "1.png")
        refused(tmp_path, "two or more class folders in .* Received: none")

    def test_an_empty_class_is_named(self, flat):
        (flat / "eel").mkdir()
        (flat / "eel" / "readme.txt").write_text("soon")
        refused(flat, "images of class 'eel'.*Received: none")

    def test_an_unreadable_image_is_named(self, flat):
        (flat / "dog" / "3.png").write_bytes(b"GIF89a, but no more")
        refused(flat, "dog/3.png, which cannot be read", test=1e-9)

    def test_a_truncated_image_is_named(self, tmp_path):
        noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            for i in range(2):
                Image.fromarray(noise).save(tmp_path / name / f"{i}.jpg")
                content = (tmp_path / name / f"{i}.jpg").read_bytes()
                (tmp_path / name / f"{i}.jpg").write_bytes(content[:-200])
        refused(tmp_path, "[ab]/[01].jpg, which cannot be read .*truncated")

    def test_postscript_by_another_name_is_not_run(self, flat):
        script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 4\nshowpage\n"
        for file in flat.glob("*/*.png"):
            file.write_bytes(script)
        refused(flat, "cannot be read .cannot identify")

    def test_sizes_that_differ_need_image_size(self, flat):
        for i in range(10):
            save(flat / "dog" / f"{i}.png", size=(9, 5))
        refused(flat, r"one size, 4x6 .*Received: 5x9 in .*dog.*image_size=\(height")
        assert load(flat, image_size=[4, 6]).image_shape == (4, 6, 3)

    def test_a_test_image_of_another_size(self, parted):
        save(parted / "test" / "cat" / "0.png", size=(9, 5))
        with pytest.raises(ValueError, match="4x6 .*Received: 5x9 in .*test/cat/0.png"):
            _ = load(parted).test

    def test_a_decompression_bomb(self, flat, monkeypatch):
        monkeypatch.setattr(folder, "MAX_PIXELS", 23)
        refused(flat, "at most 23 pixels. Received: .*png, which has more")

    def test_a_bomb_that_pillow_refuses(self, flat, monkeypatch):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5)
        refused(flat, "at most .* pixels. Received: .*png, which has more")

    def test_sixteen_bits(self, flat):
        for file in flat.glob("*/*.png"):
            Image.fromarray(np.full((4, 6), 40_000, np.uint16)).save(file)
        refused(flat, "Expected 8 bits .*png of mode I;16 .uint16, 0 of 24 pixels NaN")

    def test_floats_with_nan(self, flat):
        pixels = np.zeros((4, 6), np.float32)
        pixels[1, 2] = np.nan
        for file in flat.glob("*/*.png"):
            Image.fromarray(pixels).save(file.with_suffix(".tiff"))
            file.unlink()
        refused(flat, "tiff of mode F .float32, 1 of 24 pixels NaN or infinite")

    def test_a_link_to_an_image_elsewhere(self, tmp_path):
        fill(tmp_path / "set")
        save(tmp_path / "secret.png")
        (tmp_path / "set" / "cat" / "link.png").symlink_to(tmp_path / "secret.png")
        refused(
            tmp_path / "set", "link.png, which a symbolic link takes to .*secret.png"
        )

    def test_a_class_folder_that_is_a_link_elsewhere(self, tmp_path):
        fill(tmp_path / "set")
        fill(tmp_path / "other")
        (tmp_path / "set" / "fox").symlink_to(tmp_path / "other" / "cat")
        refused(tmp_path / "set", "set/fox, which a symbolic link takes to .*other/cat")

    def test_a_link_to_a_folder_inside(self, flat):
        (flat / "cat" / "loop").symlink_to(flat / "cat")
        refused(flat, "Received: loop, a symbolic link to a folder")

    def test_a_link_to_an_image_inside_is_read(self, flat):
        (flat / "cat" / "again.png").symlink_to(flat / "cat" / "0.png")
        assert sum(load(flat).description["sizes"][k] for k in ("train", "test")) > 16

    @pytest.mark.parametrize("size", [0, (32,), (0, 32), (32.5, 32), "32"])
    def test_what_is_no_image_size(self, flat, size):
        fault = "one or \\(height, width\\). Received: "
        refused(flat, fault, image_size=size)

    def test_one_number_is_a_square(self, flat):
        assert load(flat, image_size=20).train.images.shape[1:] == (20, 20, 3)

    def test_what_is_no_number_of_channels(self, flat):
        refused(flat, "Expected channels 1 or 3. Received: 4", channels=4)
