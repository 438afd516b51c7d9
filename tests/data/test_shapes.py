"""The generated dataset."""

import json

import numpy as np
import pytest

from kdprune.data import load_dataset
from kdprune.data.shapes import CLASSES, TRAIN, generate

SMALL = {"train_images": 600, "test_images": 50}


@pytest.fixture(scope="module")
def small():
    return load_dataset("shapes", **SMALL)


def test_equal_seeds_give_equal_bytes(small):
    again = load_dataset("shapes", **SMALL)
    assert again.description == small.description
    assert again.test.sha256() == small.test.sha256()


def test_another_seed_gives_other_images(small):
    other = load_dataset("shapes", seed=1, **SMALL)
    assert other.description["sha256"] != small.description["sha256"]
    assert other.test.sha256() != small.test.sha256()


def test_test_images_do_not_depend_on_the_number_of_training_images(small):
    other = load_dataset("shapes", train_images=100, test_images=50)
    assert other.test.sha256() == small.test.sha256()


def test_more_images_change_none():
    few, many = generate(30, 32, 0, TRAIN), generate(520, 32, 0, TRAIN)
    assert np.array_equal(few.images, many.images[:30])
    assert np.array_equal(few.labels, many.labels[:30])


def test_images_without_labels_follow_the_training_images(small):
    parted = load_dataset(
        "shapes", train_images=600, unlabelled_images=70, test_images=50
    )
    more = generate(670, 32, 0, TRAIN)
    assert np.array_equal(parted.unlabelled.images, more.images[600:])
    assert set(parted.unlabelled.labels) == {-1}
    assert parted.description["sha256"] == small.description["sha256"]
    assert parted.description["sizes"]["unlabelled"] == 70
    assert len(parted.shown) == len(parted.train) + 70


def test_training_and_test_images_are_different(small):
    train = {image.tobytes() for image in generate(600, 32, 0, TRAIN).images}
    assert len(train) == 600
    assert train.isdisjoint(image.tobytes() for image in small.test.images)


def test_test_images_are_generated_at_first_access_and_once(monkeypatch):
    calls = []

    def counted(*arguments):
        calls.append(arguments)
        return generate(*arguments)

    monkeypatch.setattr("kdprune.data.shapes.generate", counted)
    dataset = load_dataset("shapes", **SMALL)
    assert len(calls) == 1
    assert dataset.test is dataset.test
    assert len(calls) == 2


def test_classes_are_balanced_and_shapes_as_asked():
    dataset = load_dataset("shapes", train_images=200, test_images=20, image_size=48)
    assert dataset.classes == CLASSES == tuple(sorted(CLASSES))
    assert dataset.image_shape == (48, 48, 3)
    assert np.bincount(dataset.train.labels).tolist() == [18] * 10
    assert np.bincount(dataset.validation.labels).tolist() == [2] * 10
    assert np.bincount(dataset.test.labels).tolist() == [2] * 10


def test_images_span_the_range_of_pixels(small):
    images = small.train.images
    assert images.min() == 0 and images.max() == 255
    assert 100 < images.mean() < 155 and images.std() > 40


def test_the_description_is_json_and_tells_sizes(small):
    description = json.loads(json.dumps(small.description))
    assert description["source"] == "shapes (generated, seed 0)"
    assert description["sizes"] == {
        "train": 540,
        "validation": 60,
        "calibration": 500,
        "test": 50,
    }


@pytest.mark.parametrize(
    "option, value",
    [("train_images", 19), ("test_images", 2.5), ("image_size", 8)],
)
def test_a_size_too_small_or_not_whole_is_refused(option, value):
    with pytest.raises(ValueError, match=f"{option} to be a whole number >= .*{value}"):
        load_dataset("shapes", **{option: value})
