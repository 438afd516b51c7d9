"""Data sets from outside the package: a loader, by name once it is registered."""

import numpy as np
import pytest

from kdprune.data import DATASETS, Source, Split, load_dataset, register_dataset

read = []


def load_stripes(*, data_dir=None, seed=0, width=8, classes=("even", "odd")):
    """A user's own loader: bright columns at even or at odd places."""

    def split(part, count):
        read.append(part)
        rng = np.random.default_rng((seed, len(part)))
        labels = np.arange(count) % 2
        images = rng.integers(0, 99, (count, width, width, 1)).astype(np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[:, label::2] += 150
        return Split(images, labels)

    return Source(
        origin=f"stripes of {data_dir}",
        classes=tuple(classes),
        train=split("train", 40),
        read_test=lambda: split("test", 10),
        test_size=10,
    )


@pytest.fixture(autouse=True)
def registry():
    before = dict(DATASETS)
    read.clear()
    yield
    DATASETS.clear()
    DATASETS.update(before)


def test_a_registered_loader_goes_by_name():
    assert register_dataset("stripes", load_stripes) is load_stripes
    dataset = load_dataset(
        "stripes", data_dir="here", seed=3, width=6, validation=4, calibration=8
    )
    assert dataset.name == "stripes"
    assert dataset.classes == ("even", "odd")
    assert dataset.image_shape == (6, 6, 1)
    assert dataset.description["source"] == "stripes of here"
    assert [len(dataset.train), len(dataset.validation)] == [36, 4]
    # Its identity is known, the test images are not read for it.
    assert len(dataset.description["sha256"]) == 64
    assert dataset.description["sizes"]["test"] == 10
    assert read == ["train"]
    assert len(dataset.test) == 10
    assert read == ["train", "test"]


def test_a_loader_needs_no_name():
    dataset = load_dataset(load_stripes, validation=4)
    assert dataset.name == "load_stripes"
    assert len(dataset.train) == 36


def test_a_decorated_loader_may_take_neither_place_nor_seed():
    @register_dataset("plain")
    def plain(*, size=8):
        return load_stripes(width=size)

    assert load_dataset("plain", size=4, validation=4).image_shape == (4, 4, 1)


@pytest.mark.parametrize(
    ("name", "loader", "fault"),
    [
        ("cifar10", load_stripes, "there is a data set 'cifar10' already"),
        ("My Images", load_stripes, "lower-case letters"),
        ("stripes", "stripes.py", "must be callable"),
    ],
)
def test_names_that_are_taken_or_not_fit_are_refused(name, loader, fault):
    with pytest.raises(ValueError, match=fault):
        register_dataset(name, loader)


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ({"name": "strips"}, "out of cifar10, .*'strips'; did you mean 'stripes'"),
        ({"name": None}, "Expected a data set out of"),
        ({"name": "stripes", "widht": 4}, "width, classes.*did you mean 'width'"),
        ({"name": "stripes", "calibratoin": 4}, "did you mean 'calibration'"),
        ({"name": "stripes", "seed": -1}, "whole number >= 0 as seed. Received: -1"),
        ({"name": "stripes", "seed": True}, "as seed. Received: True"),
        ({"name": "stripes", "classes": ["a"]}, "labels from 0 to 0"),
        ({"name": lambda: 7}, "kdprune.data.Source from the loader.*Received: int"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(arguments, fault):
    register_dataset("stripes", load_stripes)
    with pytest.raises(ValueError, match=fault) as error:
        load_dataset(**arguments)
    assert "\n" not in str(error.value)
