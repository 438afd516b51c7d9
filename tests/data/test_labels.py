"""Data of which several labels apply to an image, and of a single unit."""

import numpy as np
import pytest

from kdprune.data import Split, from_arrays, stratified_sample, stratified_split


def some(n=600, k=4):
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (n, 4, 4, 3)).astype(np.uint8)
    return images, (random.random((n, k)) < (0.05, 0.2, 0.5, 0.8)).astype(np.int64)


def test_rows_with_two_ones_are_labels():
    images, labels = some()
    dataset = from_arrays(images, labels, classes=("a", "b", "c", "d"))
    assert (dataset.task, dataset.head) == ("labels", "sigmoid")
    assert dataset.description["task"] == "labels"
    sizes = dataset.description["sizes"]
    assert sum(sizes[part] for part in ("train", "validation", "test")) == 600
    for split in (dataset.train, dataset.validation, dataset.test):
        assert split.labels.shape == (len(split), 4)
        # The rarest label keeps its share to within an image.
        assert abs(split.labels[:, 0].mean() - labels[:, 0].mean()) < 1.5 / len(split)
        assert abs(split.labels - labels.mean(axis=0)).mean(axis=0)[1] < 0.6


def test_one_hot_rows_stay_classes_unless_they_are_called_labels():
    images, _ = some(90)
    rows = np.eye(3, dtype=int)[np.arange(90) % 3]
    dataset = from_arrays(images, rows)
    assert (dataset.task, dataset.head) == ("classes", None)
    assert "task" not in dataset.description
    assert from_arrays(images, rows, task="labels").task == "labels"


def test_no_draw_shares_an_image_and_each_is_the_same_again():
    _, labels = some()
    kept, drawn = stratified_split(labels, 0.25, 3)
    assert len(drawn) == 150
    np.testing.assert_array_equal(np.sort(np.concatenate([kept, drawn])), range(600))
    np.testing.assert_array_equal(drawn, stratified_split(labels, 0.25, 3)[1])
    assert (drawn != stratified_split(labels, 0.25, 4)[1]).any()
    assert len(set(stratified_sample(labels, 600, 0))) == 600
    assert len(set(stratified_sample(labels, 100, 0))) == 100


def test_a_digest_tells_labels_of_one_form_from_those_of_another():
    images, labels = some(8, 4)
    wide = Split(np.concatenate([images] * 2), np.concatenate([labels] * 2))
    flat = Split(np.concatenate([images] * 2), wide.labels.reshape(16, 4)[::-1].copy())
    assert wide.sha256() != flat.sha256()


@pytest.mark.parametrize(
    "labels, arguments, message",
    [
        ((np.arange(60) % 3), {"task": "labels"}, r"zeros and ones as training labels"),
        ((np.arange(60) % 3), {"task": "binary"}, "two classes for task binary"),
        ((np.arange(60) % 3), {"task": "sounds"}, "a task out of classes, labels, bin"),
        (np.full((60, 3), 2), {"task": "labels"}, "from 2 to 2"),
        (np.tile([1, 1, 0], (60, 1)), {}, "training images of every class. .* of 2"),
        (
            np.eye(3, dtype=int)[np.arange(60) % 3] * (np.arange(60) > 3)[:, None],
            {},
            "give task='labels'",
        ),
        (np.tile([1, 1, 1], (60, 1)), {"task": "classes"}, "a single 1 in each"),
    ],
)
def test_what_does_not_fit_the_task_is_refused(labels, arguments, message):
    images = np.zeros((60, 4, 4, 3), np.uint8)
    with pytest.raises(ValueError, match=message) as caught:
        from_arrays(images, labels, **arguments)
    assert "\n" not in str(caught.value)


def test_two_classes_of_a_single_unit_are_told():
    images, labels = some(60)
    dataset = from_arrays(images, labels[:, 2], task="binary")
    assert (dataset.task, dataset.head) == ("binary", None)
    assert from_arrays(images, labels[:, 2]).task == "classes"
