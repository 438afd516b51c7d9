"""Class-per-folder image sets."""

import numpy as np
import pytest
from PIL import Image

from kdprune.data import decode, load_dataset


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
        with pytest.raises(ValueError, match=r"1 file that .*: test/cat/0.png \(not"):
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
        (parted / "train").rename(parted / "more")
        refused(parted, "Expected train/<class>/ beside .*test/")

    def test_two_validation_folders_are_refused(self, parted):
        fill(parted / "validation", count=2)
        refused(parted, "both val/ and validation/")

    @pytest.mark.parametrize(
        "names",
        [
            ("Training", "Validation", "Testing"),
            ("TRAIN", "valid", "TEST"),
            ("train", "Dev", "test"),
        ],
    )
    def test_splits_may_be_called_in_several_ways(self, parted, names):
        for before, now in zip(("train", "val", "test"), names, strict=True):
            # By a third name, for file systems to which both are one.
            (parted / before).rename(parted / "moved").rename(parted / now)
        parts = [getattr(load(parted), part) for part in ("train", "validation")]
        assert [len(part) for part in parts] == [8, 8]
        assert load(parted).description["sizes"]["test"] == 8

    def test_a_number_of_images_may_be_held_out(self, flat):
        sizes = load(flat, test=4, validation=6).description["sizes"]
        assert sizes == {"train": 10, "validation": 6, "calibration": 10, "test": 4}

    def test_splits_without_classes_are_refused(self, tmp_path):
        for split in ("train", "test"):
            save(tmp_path / split / "0.png")
        refused(tmp_path, "classes in .*, which is called like a split. .*test, train")

    def test_a_split_without_classes_beside_others_is_refused(self, parted):
        (parted / "test").rename(parted / "other")
        save(parted / "test" / "0.png")
        refused(parted, "Expected folders of classes in .*test. Received: none")

    def test_an_empty_split_is_refused(self, parted):
        for file in (parted / "val").glob("*/*.png"):
            file.unlink()
        refused(parted, "images of class 'cat' in .*val/cat. Received: none")

    def test_a_test_folder_among_classes_is_refused(self, flat):
        save(flat / "test" / "0.png")
        refused(flat, "called like a split. Received: none in test beside cat, dog")

    def test_a_train_may_be_a_class(self, flat):
        fill(flat, ["train"])
        assert load(flat).classes == ("cat", "dog", "train")
        (flat / "train" / "0.png").rename(flat / "0.png")
        save(flat / "train" / "steam" / "0.png")
        refused(flat, "Received: train/, which holds folders, beside cat, dog")

    def test_one_level_more_is_told(self, tmp_path, caplog):
        for year in ("2019", "2020"):
            fill(tmp_path / "all" / year)
        refused(tmp_path, "Received: all. Give the path .*/all if")
        assert load(tmp_path / "all").classes == ("2019", "2020")
        assert "classes 2019, 2020 holds the same folders cat, dog and" in caplog.text


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

    @pytest.mark.parametrize(
        ("resize", "expected"), [("stretch", 32), ("crop", 64), ("pad", 16)]
    )
    def test_proportions_are_stretched_cut_or_padded(self, tmp_path, resize, expected):
        wide = np.zeros((16, 32, 3), np.uint8)
        wide[:, 8:24] = 200  # The middle half of the width, 16 by 16.
        for name in ("a/0.png", "a/1.png", "b/0.png", "b/1.png"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            Image.fromarray(wide).save(tmp_path / name)
        options = {"image_size": 8, "resize": resize, "test": 1e-9, "validation": 1e-9}
        (tmp_path / "b" / "2.png").write_bytes((tmp_path / "b" / "0.png").read_bytes())
        (tmp_path / "a" / "2.png").write_bytes((tmp_path / "a" / "0.png").read_bytes())
        dataset = load(tmp_path, **options)
        bright = (dataset.train.images[0, :, :, 0] > 100).sum()
        assert bright == expected
        assert dataset.description["resize"] == resize

    def test_resizing_needs_a_size(self, flat):
        refused(flat, "image_size=.height, width. with resize 'crop'", resize="crop")
        refused(flat, "resize to be one of stretch, crop, pad", resize="squeeze")

    @pytest.mark.parametrize(
        ("suffix", "mode"),
        [
            (".jfif", "RGB"),
            (".avif", "RGB"),
            (".jpg", "CMYK"),
            (".png", "RGBA"),
            (".png", "LA"),
            (".png", "1"),
            (".tiff", "LAB"),
            (".webp", "RGBA"),
        ],
    )
    def test_formats_and_modes(self, flat, suffix, mode):
        form = {".jfif": "JPEG"}.get(suffix)
        colour = (200, 40, 40)
        for file in flat.glob("*/*.png"):
            image = Image.new("RGB", (32, 32), colour)
            if mode == "LAB":
                image = Image.new("LAB", (32, 32), (128, 128, 128))
            file.unlink()
            image.convert(mode).save(file.with_suffix(suffix), format=form)
        dataset = load(flat)
        assert len(dataset.train) == 14
        mean = dataset.train.images.mean(axis=(0, 1, 2))
        if mode in ("RGB", "RGBA", "CMYK"):
            np.testing.assert_allclose(mean, colour, atol=6)

    def test_avif_without_its_library_is_told(self, parted, monkeypatch):
        monkeypatch.setattr(decode.features, "check", lambda name: False)
        (parted / "train" / "cat" / "0.avif").write_bytes(b"no image")
        refused(parted, "train/cat/0.avif .AVIF, which needs Pillow 11.3")

    def test_what_there_is_is_told_in_one_line(self, parted, caplog):
        caplog.set_level("INFO", "kdprune")
        save(parted / "train" / "dog" / "more.png", colour=(1, 9, 9))
        (parted / "train" / "cat" / "0.HEIC").write_bytes(b"")
        (parted / "test" / "cat" / "notes.txt").write_text("not an image")
        (parted / "extra").mkdir()
        dataset = load(parted)
        assert caplog.messages == [
            "images that are not read: 1 .heic; convert them to JPEG or PNG",
            "folder: 2 classes of 4x6x3: 9 training images (4 of cat to 5 of dog), 8 "
            "validation, 9 calibration, 8 test; not read: 1 .heic, 1 .txt, 1 folder "
            "extra/",
        ]
        unread = {".heic": 1, ".txt": 1, "folder extra/": 1}
        assert dataset.description["unread"] == unread

    def test_progress_is_told_of_big_sets_only(self, flat, caplog, monkeypatch):
        caplog.set_level("INFO", "kdprune")
        load(flat)
        assert "reading" not in caplog.text
        monkeypatch.setattr(decode, "PROGRESS_FROM", 5)
        load(flat)
        assert "reading 16 images" in caplog.messages


class TestSkipping:
    @pytest.fixture
    def damaged(self, parted):
        for name in ("train/cat/1.png", "train/dog/0.png", "val/cat/2.png"):
            (parted / name).write_bytes(b"no image")
        return parted

    def test_all_bad_files_are_named_at_once(self, damaged):
        refused(
            damaged,
            r"Received: 3 files that can't be used: train/cat/1.png \(not one of .*\), "
            r"train/dog/0.png .*, val/cat/2.png .*on_error: skip",
        )

    def test_of_many_the_first_are_named(self, parted):
        for file in (parted / "train").glob("*/*.png"):
            file.write_bytes(b"")
        refused(parted, r"8 files that .*train/cat/0.png \(empty\), .* and 3 more\.")

    def test_they_can_be_left_out(self, damaged):
        dataset = load(damaged, on_error="skip")
        assert [len(dataset.train), len(dataset.validation)] == [6, 7]
        assert dataset.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
        assert dataset.train.images[:, 0, 0, 1].tolist() == [0, 2, 3, 1, 2, 3]
        names = [text.split(" (")[0] for text in dataset.description["skipped"]]
        assert names == ["train/cat/1.png", "train/dog/0.png", "val/cat/2.png"]
        assert "; skipped: 3, train/cat/1.png (not one of" in dataset.summary

    def test_of_the_test_images_they_are_found_when_those_are_read(
        self, parted, caplog
    ):
        (parted / "test" / "dog" / "3.png").write_bytes(b"no image")
        dataset = load(parted, on_error="skip")
        assert "skipped" not in dataset.description
        assert len(dataset.test) == dataset.description["sizes"]["test"] == 7
        assert dataset.test.labels.tolist() == [0, 0, 0, 0, 1, 1, 1]
        assert "1 of the test images could not be used" in caplog.text
        assert dataset.description["skipped"][0].startswith("test/dog/3.png (")

    def test_a_class_must_have_an_image_left(self, parted):
        for file in (parted / "train" / "cat").glob("*.png"):
            file.write_bytes(b"no image")
        fault = "a training image beside train/cat/0.png .*none, after 4 were skipped"
        refused(parted, fault, on_error="skip")

    def test_what_is_no_way_to_treat_errors(self, flat):
        refused(flat, "on_error to be one of stop, skip", on_error="ignore")


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
        refused(flat, "images of class 'eel'.*Received: 1 .txt .*are read")

    def test_an_unreadable_image_is_named(self, flat):
        (flat / "dog" / "3.png").write_bytes(b"GIF89a, but no more")
        refused(flat, r"dog/3.png \((cannot be read|not one of)", test=1e-9)

    def test_a_truncated_image_is_named(self, tmp_path):
        noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            for i in range(2):
                Image.fromarray(noise).save(tmp_path / name / f"{i}.jpg")
                content = (tmp_path / name / f"{i}.jpg").read_bytes()
                (tmp_path / name / f"{i}.jpg").write_bytes(content[:-200])
        refused(tmp_path, r"4 files .*[ab]/[01].jpg \(cannot be read: .*truncated")

    def test_postscript_by_another_name_is_not_run(self, flat):
        script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 4\nshowpage\n"
        for file in flat.glob("*/*.png"):
            file.write_bytes(script)
        refused(flat, "20 files .*cat/.*png .not one of AVIF, BMP, ")

    def test_sizes_that_differ_need_image_size(self, flat):
        for i in range(10):
            save(flat / "dog" / f"{i}.png", size=(9, 5))
        refused(
            flat, r"one size, 4x6 .*Received: 8 images of .* 5x9 in dog.*image_size"
        )
        assert load(flat, image_size=[4, 6]).image_shape == (4, 6, 3)

    def test_a_test_image_of_another_size(self, parted):
        save(parted / "test" / "cat" / "0.png", size=(9, 5))
        with pytest.raises(ValueError, match="4x6 .*1 image .*: 5x9 in test/cat/0.png"):
            _ = load(parted).test

    def test_a_decompression_bomb(self, flat, monkeypatch):
        monkeypatch.setattr(decode, "MAX_PIXELS", 23)
        refused(flat, "20 files .*png .more than 23 pixels")

    def test_a_bomb_that_pillow_refuses(self, flat, monkeypatch):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5)
        refused(flat, "20 files .*png .more than 100,000,000 pixels")

    def test_sixteen_bits(self, flat):
        for file in flat.glob("*/*.png"):
            Image.fromarray(np.full((4, 6), 40_000, np.uint16)).save(file)
        refused(flat, "png .more than 8 bits for each channel, mode I;16")

    def test_floats_with_nan(self, flat):
        pixels = np.zeros((4, 6), np.float32)
        pixels[1, 2] = np.nan
        for file in flat.glob("*/*.png"):
            Image.fromarray(pixels).save(file.with_suffix(".tiff"))
            file.unlink()
        refused(flat, "tiff .more than 8 bits for each channel, mode F")

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

    def test_links_that_lead_nowhere(self, flat):
        (flat / "cat" / "gone.png").symlink_to(flat / "cat" / "nowhere.png")
        refused(flat, "gone.png, a symbolic link that leads nowhere")
        (flat / "cat" / "gone.png").unlink()
        (flat / "cat" / "loop.png").symlink_to(flat / "cat" / "loop.png")
        refused(flat, "loop.png, a symbolic link that leads nowhere")
        (flat / "cat" / "loop.png").unlink()
        (flat / "fox").symlink_to(flat / "fox")
        refused(flat, "fox, a symbolic link that leads nowhere")

    def test_classes_that_differ_in_case_alone(self, flat):
        fill(flat, ["Cat"])
        if len(list(flat.iterdir())) < 3:
            pytest.skip("a file system to which they are one")
        refused(flat, "Received: Cat/ and cat/, which differ in case")

    def test_one_class(self, flat):
        (flat / "dog").rename(flat / ".dog")
        refused(flat, "two or more class folders in .*Received: cat. Put the images")

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
