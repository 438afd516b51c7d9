"""Stratified draws, and datasets made of arrays."""

import subprocess
import sys

import numpy as np
import pytest

from kdprune.data import (
    Split,
    from_arrays,
    load_dataset,
    stratified_sample,
    stratified_split,
    to_float,
)

LABELS = np.repeat([0, 1, 2], [50, 30, 20])


def images_of(labels, value=7):
    return np.full((len(labels), 4, 4, 3), value, np.uint8)


class TestStratifiedSplit:
    def test_every_class_keeps_its_share(self):
        kept, drawn = stratified_split(LABELS, 0.2, seed=0)
        assert np.bincount(LABELS[drawn]).tolist() == [10, 6, 4]
        assert np.array_equal(np.sort(np.r_[kept, drawn]), np.arange(100))

    def test_a_count_is_met_exactly(self):
        for count in range(1, 98):
            assert len(stratified_split(LABELS, count, seed=0)[1]) == count

    def test_a_small_class_gives_and_keeps_one(self):
        labels = np.repeat([0, 1], [1000, 2])
        for share in (0.01, 0.99, 2, 1000):
            kept, drawn = stratified_split(labels, share, seed=0)
            assert (labels[kept] == 1).sum() == (labels[drawn] == 1).sum() == 1

    def test_equal_seeds_give_equal_draws_and_others_do_not(self):
        draws = [stratified_split(LABELS, 0.3, seed)[1].tolist() for seed in (4, 4, 5)]
        assert draws[0] == draws[1] != draws[2]

    def test_the_draw_of_a_seed_is_pinned(self):
        drawn = stratified_split(np.arange(20) % 2, 4, seed=0)[1]
        assert drawn.tolist() == [2, 3, 11, 18]

    @pytest.mark.parametrize("share", [0, 1.0, -0.1, 1.5, 0.0, -3, True, "0.1", np.nan])
    def test_what_is_no_share_is_refused(self, share):
        with pytest.raises(ValueError, match="share to be a fraction between 0 and 1"):
            stratified_split(LABELS, share, seed=0)

    def test_a_class_of_one_image_is_refused_by_name(self):
        with pytest.raises(ValueError, match="at least 2 .* Received: 1 of class 3"):
            stratified_split(np.r_[LABELS, 3], 0.1, seed=0)

    def test_a_draw_that_empties_a_class_is_refused(self):
        with pytest.raises(ValueError, match="at most 97 of 100 .* Received: 98"):
            stratified_split(LABELS, 98, seed=0)

    @pytest.mark.parametrize("labels", [np.zeros((3, 2)), np.zeros(3), []])
    def test_what_are_no_labels_is_refused(self, labels):
        with pytest.raises(ValueError, match="whole-number labels"):
            stratified_split(labels, 0.1, seed=0)


class TestStratifiedSample:
    def test_draws_in_proportion(self):
        drawn = stratified_sample(LABELS, 10, seed=1)
        assert np.bincount(LABELS[drawn]).tolist() == [5, 3, 2]

    def test_more_than_there_are_takes_all(self):
        assert stratified_sample(LABELS, 500, seed=0).tolist() == list(range(100))


class TestSplit:
    def test_float_images_are_refused(self):
        with pytest.raises(ValueError, match="uint8 images .* Received: float64"):
            Split(np.zeros((2, 4, 4, 3)), np.zeros(2, np.int64))

    def test_labels_of_another_length_are_refused(self):
        with pytest.raises(ValueError, match="each of 2 images.*shape \\(3,\\)"):
            Split(np.zeros((2, 4, 4, 3), np.uint8), np.zeros(3, np.int64))

    def test_the_digest_depends_on_pixels_and_labels(self):
        splits = [
            Split(images_of(LABELS, value), (LABELS + shift).astype(np.int64))
            for value, shift in ((7, 0), (8, 0), (7, 1), (7, 0))
        ]
        digests = [split.sha256() for split in splits]
        assert len(set(digests)) == 3 and digests[0] == digests[3]


class TestToFloat:
    def test_bytes_become_unit_floats(self):
        result = to_float(np.array([0, 51, 255], np.uint8).reshape(1, 1, 1, 3))
        assert result.dtype == np.float32
        assert result.ravel().tolist() == [0, np.float32(0.2), 1]

    def test_floats_stay_what_they_are(self):
        images = np.random.default_rng(0).random((2, 4, 4, 3), np.float32)
        assert to_float(images) is images

    @pytest.mark.parametrize(
        ("images", "fault"),
        [
            (np.zeros((2, 4, 4, 3), int), "array of uint8, or of floats.*int64"),
            (np.zeros((4, 4, 3)), "for a single image"),
            (np.full((2, 4, 4, 3), 255.0), "divide pixels by 255"),
            (np.full((2, 4, 4, 3), np.nan), "nan at"),
            (np.zeros((0, 4, 4, 3)), "n > 0"),
        ],
    )
    def test_what_are_no_images_is_refused(self, images, fault):
        with pytest.raises(ValueError, match=fault):
            to_float(images)


class TestFromArrays:
    def test_draws_disjoint_parts(self):
        images = images_of(LABELS)
        images[:, 0, 0, 0] = np.arange(100)
        dataset = from_arrays(images, LABELS, validation=0.25, calibration=12)
        parts = (dataset.train, dataset.validation, dataset.test)
        assert [len(part) for part in parts] == [60, 20, 20]
        ids = np.concatenate([part.images[:, 0, 0, 0] for part in parts])
        assert sorted(ids) == list(range(100))
        drawn = set(dataset.calibration.images[:, 0, 0, 0])
        assert len(drawn) == 12 and drawn <= set(dataset.train.images[:, 0, 0, 0])

    def test_the_calibration_images_are_drawn_by_the_seed(self):
        images = images_of(LABELS)
        images[:, 0, 0, 0] = np.arange(100)
        given = images[:5], LABELS[:5]  # So that nothing else is drawn.
        drawn = [
            from_arrays(
                images, LABELS, validation=given, test=given, calibration=12, seed=seed
            ).calibration.images[:, 0, 0, 0]
            for seed in (4, 4, 5)
        ]
        assert drawn[0].tolist() == drawn[1].tolist()
        assert set(drawn[0]) != set(drawn[2])

    def test_takes_given_sets_and_keras_labels_and_grey_floats(self):
        grey = np.linspace(0, 1, 100 * 16).reshape(100, 4, 4)
        given = (grey, LABELS[:, np.newaxis])
        dataset = from_arrays(*given, test=given, validation=given, classes="abc")
        assert dataset.image_shape == (4, 4, 1)
        assert dataset.classes == ("a", "b", "c")
        assert len(dataset.train) == len(dataset.test) == len(dataset.validation) == 100
        assert dataset.test.images.ravel()[[0, 1, -1]].tolist() == [0, 0, 255]

    @pytest.mark.parametrize(
        "form",
        [
            lambda y: np.eye(3)[y],
            lambda y: np.eye(3, dtype=bool)[y],
            lambda y: y.astype(np.float32),
            lambda y: y.tolist(),
        ],
        ids=["one-hot", "bool", "float", "list"],
    )
    def test_takes_labels_in_every_form(self, form):
        dataset = from_arrays(images_of(LABELS), form(LABELS))
        expected = from_arrays(images_of(LABELS), LABELS)
        assert dataset.description == expected.description
        assert np.array_equal(dataset.test.labels, expected.test.labels)

    @pytest.mark.parametrize(
        "value, fault",
        [
            (np.nan, "training images must be floats.*: nan at .3, 1, 2, 0."),
            (np.inf, "training images must be floats.*: inf at .3, 1, 2, 0."),
            (-0.5, r"training images must be uint8, or floats.* in \[-0.5, 0\]"),
            (255.0, r"in \[0, 255\]; divide pixels by 255"),
        ],
    )
    def test_a_bad_pixel_is_refused(self, value, fault):
        images = np.zeros((100, 4, 4, 3))
        images[3, 1, 2, 0] = value
        with pytest.raises(ValueError, match=fault):
            from_arrays(images, LABELS)

    @pytest.mark.parametrize(
        "images, labels, arguments, fault",
        [
            (
                images_of(LABELS).astype(int),
                LABELS,
                {},
                "of uint8, or of floats .*int64",
            ),
            (np.zeros((100, 4)), LABELS, {}, "training images must have .*100, 4"),
            (np.zeros((0, 4, 4, 3)), LABELS, {}, "training images .* n > 0"),
            (images_of(LABELS), LABELS[:9], {}, "each of 100 training images"),
            (images_of(LABELS), LABELS + 0.5, {}, "whole numbers as training labels"),
            (images_of(LABELS), LABELS * np.nan, {}, "whole numbers .* from nan"),
            (images_of(LABELS), LABELS.astype(str), {}, "one label .* <U"),
            (images_of(LABELS), np.eye(3)[LABELS] * 0.9, {}, "a single 1 in each"),
            (images_of(LABELS), np.zeros((100, 3)), {}, "a single 1 in each"),
            (images_of(LABELS), np.ones((100, 3, 1)), {}, "one label for each"),
            (images_of(LABELS), LABELS - 1, {}, "labels from 0. Received: -1"),
            (images_of(LABELS), LABELS, {"classes": "ab"}, "0 to 1.*up to 2"),
            (images_of(LABELS), LABELS, {"classes": "abcd"}, "every class.*none of d"),
            (images_of(LABELS), LABELS * 2, {}, "every class.*none of 1, 3"),
            (images_of(LABELS), LABELS * 0, {}, "two or more distinct classes"),
            (
                images_of(LABELS),
                LABELS,
                {"test": (images_of(LABELS)[:, :2], LABELS)},
                "test images of shape .4, 4, 3.*Received: .2, 4, 3",
            ),
            (
                images_of(LABELS),
                LABELS,
                {"test": (images_of(LABELS), LABELS + 1)},
                "test labels from 0 to 2.*from 1 to 3",
            ),
        ],
    )
    def test_what_does_not_fit_is_refused(self, images, labels, arguments, fault):
        with pytest.raises(ValueError, match=fault):
            from_arrays(images, labels, **arguments)


class TestLoadDataset:
    def test_an_unknown_name_is_refused(self):
        with pytest.raises(ValueError, match="cifar10, folder, npz, shapes.*'mnist'"):
            load_dataset("mnist")

    def test_an_unknown_option_is_refused(self):
        with pytest.raises(ValueError, match="train_images.*Received: 'images'"):
            load_dataset("shapes", images=3)

    @pytest.mark.parametrize("option", ["validation", "calibration"])
    def test_a_share_out_of_range_is_named(self, option):
        with pytest.raises(ValueError, match=f"Expected {option} to be .*Received: 0"):
            load_dataset("shapes", train_images=20, **{option: 0})

    @pytest.mark.parametrize("seed", [-1, 0.5, "0", True])
    def test_what_is_no_seed_is_refused(self, seed):
        with pytest.raises(ValueError, match="whole number >= 0 as seed"):
            load_dataset("shapes", seed=seed)

    def test_importing_the_room_imports_no_tensorflow(self):
        code = "import kdprune.data, sys; sys.exit('tensorflow' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code]).returncode == 0
