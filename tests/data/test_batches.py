"""Batches are the same again from any epoch, and change images as they say."""

import numpy as np
import pytest
import tensorflow as tf

from kdprune.data import Split
from kdprune.data.batches import (
    evaluation_batches,
    evaluation_steps,
    steps_per_epoch,
    training_batches,
    view_batches,
)

COUNT, HEIGHT, WIDTH = 50, 9, 12


@pytest.fixture(scope="module")
def split():
    """Images without a repeated pixel, so that each can be told by its bytes."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (COUNT, HEIGHT, WIDTH, 3), np.uint8)
    return Split(images, np.arange(COUNT))  # Labels name the images.


def gathered(batches):
    """All images and labels of some batches, in their order."""
    images, labels = zip(*batches.as_numpy_iterator(), strict=True)
    return np.concatenate(images), np.concatenate(labels)


def epoch(split, number, **arguments):
    arguments = {"seed": 3, "batch_size": COUNT, **arguments}
    return gathered(
        training_batches(split, epochs=number + 1, start_epoch=number, **arguments)
    )


def by_image(images, labels):
    """The images of an epoch in the split's order."""
    order = np.argsort(labels)
    np.testing.assert_array_equal(labels[order], np.arange(len(labels)))
    return images[order]


def pixels(images):
    """What float32 images in [0, 1] were as bytes."""
    np.testing.assert_allclose(images * 255, np.rint(images * 255), atol=1e-4)
    return np.rint(images * 255).astype(np.uint8)


AUGMENT = {"crop": 2, "flip": True, "cutout": 4}


def test_the_same_seed_and_epoch_give_the_same_batches_from_any_start(split):
    whole = list(
        training_batches(
            split, 16, epochs=4, seed=3, augment=AUGMENT
        ).as_numpy_iterator()
    )
    assert len(whole) == 4 * 3
    for start in range(4):
        rest = training_batches(
            split, 16, epochs=4, seed=3, start_epoch=start, augment=AUGMENT
        )
        again = list(rest.as_numpy_iterator())
        assert len(again) == 3 * (4 - start)
        for one, two in zip(whole[3 * start :], again, strict=True):
            np.testing.assert_array_equal(one[0], two[0])
            np.testing.assert_array_equal(one[1], two[1])


def test_epochs_and_seeds_differ_in_order_and_in_augmentation(split):
    first = epoch(split, 0, augment=AUGMENT)
    for other in (
        epoch(split, 1, augment=AUGMENT),
        epoch(split, 0, augment=AUGMENT, seed=4),
    ):
        assert (first[1] == other[1]).mean() < 0.2
        same = (by_image(*first) == by_image(*other)).all(axis=(1, 2, 3))
        assert same.mean() < 0.2


def test_every_image_comes_once_in_an_epoch(split):
    for number in range(3):
        _, labels = epoch(split, number)
        np.testing.assert_array_equal(np.sort(labels), np.arange(COUNT))
        # What fills no batch is dropped, and is another rest each time.
        _, labels = epoch(split, number, batch_size=16)
        assert len(labels) == len(set(labels)) == 48
    rests = [
        set(range(COUNT)) - set(epoch(split, n, batch_size=16)[1]) for n in range(3)
    ]
    assert rests[0] != rests[1] != rests[2]


def test_plain_images_are_the_bytes_over_255_in_float32(split):
    images, labels = epoch(split, 0)
    assert images.dtype == np.float32 and labels.dtype == np.int64
    np.testing.assert_array_equal(images, split.images[labels] / np.float32(255))
    both = Split(np.array([[[[0], [255]]]], np.uint8), np.array([0]))
    image, _ = epoch(both, 0, batch_size=1)
    np.testing.assert_array_equal(image, [[[[0], [1]]]])


def crops_of(image, reach):
    """Every crop of an image that is padded by reflection, by its shift."""
    padded = np.pad(image, ((reach, reach), (reach, reach), (0, 0)), mode="reflect")
    return {
        (y, x): padded[y : y + HEIGHT, x : x + WIDTH]
        for y in range(2 * reach + 1)
        for x in range(2 * reach + 1)
    }


def test_a_crop_is_a_shift_of_the_image_padded_by_reflection(split):
    reach, shifts = 2, []
    for number in range(8):
        images, labels = epoch(split, number, augment={"crop": reach})
        for image, label in zip(pixels(images), labels, strict=True):
            crops = crops_of(split.images[label], reach)
            found = [s for s, crop in crops.items() if np.array_equal(crop, image)]
            assert len(found) == 1
            shifts += found
    # Each of the 25 shifts is as likely as any other: 16 of 400 expected.
    counts = np.unique(np.array(shifts) @ [5, 1], return_counts=True)[1]
    assert len(counts) == 25 and counts.min() >= 4 and counts.max() <= 36


def test_a_crop_may_reach_to_the_last_pixel_and_no_further(split):
    images, labels = epoch(split, 0, augment={"crop": HEIGHT - 1})
    for image, label in zip(pixels(images[:5]), labels[:5], strict=True):
        crops = crops_of(split.images[label], HEIGHT - 1).values()
        assert any(np.array_equal(crop, image) for crop in crops)
    for batches in (
        lambda augment: training_batches(split, 8, epochs=1, seed=0, augment=augment),
        lambda augment: view_batches(split, 8, view=0, seed=0, augment=augment),
    ):
        with pytest.raises(ValueError, match="crop must be below .* of 9 .* 9"):
            batches({"crop": HEIGHT})


def flipped(split, number, augment):
    """Which images an epoch shows mirrored; each must be the one or the other."""
    images = pixels(by_image(*epoch(split, number, augment=augment)))
    mirrored = (images == split.images[:, :, ::-1]).all(axis=(1, 2, 3))
    straight = (images == split.images).all(axis=(1, 2, 3))
    assert (mirrored ^ straight).all()
    return mirrored


def test_a_flip_is_an_exact_mirror_of_half_of_the_images(split):
    shares = [flipped(split, number, {"flip": True}) for number in range(8)]
    assert 0.4 < np.mean(shares) < 0.6
    assert all((a != b).any() for a, b in zip(shares, shares[1:], strict=False))
    assert not flipped(split, 0, {"flip": False}).any()


def test_alternating_flips_show_each_image_both_ways_in_two_epochs(split):
    shown = [flipped(split, number, {"flip": "alternating"}) for number in range(6)]
    assert 0.3 < shown[0].mean() < 0.7
    for one, two in zip(shown, shown[1:], strict=False):
        np.testing.assert_array_equal(one, ~two)


def test_cutout_is_one_grey_square_of_its_size_clipped_at_the_borders(split):
    size, areas, touched = 4, [], np.zeros((HEIGHT, WIDTH))
    for number in range(6):
        images = pixels(by_image(*epoch(split, number, augment={"cutout": size})))
        for image, original in zip(images, split.images, strict=True):
            inside = (image == 128).all(axis=-1)
            np.testing.assert_array_equal(image[~inside], original[~inside])
            rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
            for found, length in ((rows, HEIGHT), (columns, WIDTH)):
                assert (np.diff(found) == 1).all()
                whole = len(found) == size
                at_the_border = 0 in found or length - 1 in found
                assert whole or (at_the_border and size // 2 <= len(found) < size)
            assert inside.sum() == len(rows) * len(columns)
            areas.append(inside.sum())
            touched += inside
    assert max(areas) == 16 and (touched > 0).all()


def test_the_centre_of_a_cutout_lies_anywhere_from_border_to_border(split):
    """A square of two pixels: at either end all but one row or column is outside."""
    rows, columns = set(), set()
    for number in range(12):
        images = pixels(by_image(*epoch(split, number, augment={"cutout": 2})))
        for inside in (images == 128).all(axis=-1):
            rows.add(tuple(np.flatnonzero(inside.any(1))))
            columns.add(tuple(np.flatnonzero(inside.any(0))))
    for found, length in ((rows, HEIGHT), (columns, WIDTH)):
        inner = {(first, first + 1) for first in range(length - 1)}
        assert found == {(0,), *inner, (length - 1,)}


def test_all_changes_together_are_a_crop_then_a_flip_then_a_square(split):
    images = pixels(by_image(*epoch(split, 0, augment=AUGMENT)))
    for image, original in zip(images, split.images, strict=True):
        seen = ~(image == 128).all(axis=-1)
        candidates = list(crops_of(original, 2).values())
        candidates += [crop[:, ::-1] for crop in candidates]
        assert any(np.array_equal(c[seen], image[seen]) for c in candidates)


@pytest.mark.parametrize("flip", [True, "alternating"])
def test_a_view_has_the_pixels_of_its_epoch_image_by_image(split, flip):
    augment = {**AUGMENT, "flip": flip}
    for view in range(3):
        batches = view_batches(split, 16, view=view, seed=3, augment=augment)
        seen = list(batches.as_numpy_iterator())
        assert [len(batch) for batch in seen] == [16, 16, 16, 2]
        shown = by_image(*epoch(split, view, augment=augment))
        np.testing.assert_array_equal(np.concatenate(seen), shown)
    plain = view_batches(split, 16, view=5, seed=3)
    images = np.concatenate(list(plain.as_numpy_iterator()))
    np.testing.assert_array_equal(images, split.images / np.float32(255))


def test_soft_labels_stay_with_their_pixels_under_shuffling(split):
    views = 2
    # A logit that names its view and image: the "teacher" is looked up.
    stored = np.stack([1000 * view + np.arange(COUNT) for view in range(views)])
    stored = stored[..., None].astype(np.float16)
    shown = [
        np.concatenate(
            list(
                view_batches(
                    split, 16, view=view, seed=9, augment=AUGMENT
                ).as_numpy_iterator()
            )
        )
        for view in range(views)
    ]
    orders = []
    for number in range(5):
        batches = training_batches(
            split,
            16,
            epochs=number + 1,
            start_epoch=number,
            seed=3,
            augment={**AUGMENT, "seed": 9},
            soft_labels=stored,
        )
        for images, (labels, logits) in batches.as_numpy_iterator():
            assert logits.dtype == np.float32 and logits.shape == (16, 1)
            view = number % views
            np.testing.assert_array_equal(logits[:, 0], 1000 * view + labels)
            np.testing.assert_array_equal(images, shown[view][labels])
            orders.append(tuple(labels))
    # The pixels come round; the order never does.
    assert len(set(orders)) == len(orders) == 15


def test_soft_labels_of_other_data_are_refused(split):
    for count in (COUNT - 1, 2 * COUNT):
        with pytest.raises(ValueError, match=f"of the 50 train.*.{count}, 4.; store"):
            training_batches(
                split, 16, epochs=1, seed=0, soft_labels=np.zeros((1, count, 4))
            )


def test_a_batch_larger_than_the_data_holds_all_of_it(split):
    few = Split(split.images[:5], split.labels[:5])
    batches = training_batches(few, 64, epochs=2, seed=0, augment=AUGMENT)
    assert [len(labels) for _, labels in batches.as_numpy_iterator()] == [5, 5]
    assert steps_per_epoch(few, 64) == 1
    assert steps_per_epoch(split, 16) == 3


def test_one_channel_is_kept(split):
    grey = Split(split.images[..., :1], split.labels)
    colour = epoch(split, 1, augment=AUGMENT)
    images, labels = epoch(grey, 1, augment=AUGMENT)
    assert images.shape == (COUNT, HEIGHT, WIDTH, 1)
    np.testing.assert_array_equal(labels, colour[1])
    np.testing.assert_array_equal(images, colour[0][..., :1])


def test_evaluation_batches_keep_the_splits_order_and_its_rest(split):
    images, labels = gathered(evaluation_batches(split, 16))
    np.testing.assert_array_equal(labels, split.labels)
    np.testing.assert_array_equal(images, split.images / np.float32(255))


@pytest.mark.parametrize(
    "read",
    [
        lambda split, size: training_batches(split, size, epochs=1, seed=0),
        lambda split, size: view_batches(split, size, view=0, seed=0),
        evaluation_batches,
        steps_per_epoch,
    ],
    ids=["training", "view", "evaluation", "steps"],
)
def test_what_is_no_split_or_no_size_is_refused(read):
    images, labels = np.zeros((4, 8, 8, 3), np.uint8), np.arange(4)
    with pytest.raises(ValueError, match="such as dataset.train. Received: tuple"):
        read((images, labels), 2)
    for size in (0, -1, 2.5, None):
        with pytest.raises(ValueError, match="batch_size must be a whole number"):
            read(Split(images, labels), size)


@pytest.mark.parametrize("shares", [2, 3])
@pytest.mark.quick("2")
def test_workers_read_their_parts_of_the_same_batches(split, shares):
    """Together, the replicas' rows are the batch that one machine would train on."""
    options = {"epochs": 2, "seed": 3, "augment": {"crop": 2, "flip": True}}
    count = len(split.labels)
    logits = [np.random.default_rng(view).normal(size=(count, 10)) for view in (0, 1)]
    for stored in (None, logits):
        options["soft_labels"] = stored
        whole = training_batches(split, 6, **options)
        parts = [
            training_batches(split, 6, replicas=(range(i, i + 1), shares), **options)
            for i in range(shares)
        ]
        steps = 0
        for batch, *rows in zip(whole, *parts, strict=True):
            joined = tf.nest.map_structure(lambda *own: tf.concat(own, 0), *rows)
            tf.nest.map_structure(np.testing.assert_array_equal, joined, batch)
            steps += 1
        assert steps == 2 * (count // 6)


def test_a_host_of_several_devices_reads_a_batch_for_each(split):
    options = {"epochs": 1, "seed": 3}
    whole = next(iter(training_batches(split, 6, **options)))
    host = iter(training_batches(split, 6, replicas=(range(1, 3), 3), **options))
    for start in (2, 4):
        images, labels = next(host)
        np.testing.assert_array_equal(images, whole[0][start : start + 2])
        np.testing.assert_array_equal(labels, whole[1][start : start + 2])


@pytest.mark.parametrize("shares", [2, 3])
def test_workers_evaluate_each_image_once_in_as_many_steps(split, shares):
    """No worker waits for a batch that another one has not."""
    parts = [
        list(evaluation_batches(split, 4, replicas=(range(i, i + 1), shares)))
        for i in range(shares)
    ]
    steps = evaluation_steps(split, 4, shares)
    assert {len(part) for part in parts} == {steps}
    rows = [part[step] for step in range(steps) for part in parts]
    whole = list(evaluation_batches(split, 500))
    assert all(0 < len(images) <= 4 for images, _ in rows)
    for place in (0, 1):
        joined = np.concatenate([row[place] for row in rows])
        np.testing.assert_array_equal(joined, whole[0][place])


def test_a_batch_that_does_not_divide_is_refused(split):
    with pytest.raises(ValueError, match="must be a multiple of 4, the replicas that"):
        training_batches(split, 6, epochs=1, seed=0, replicas=(range(1), 4))
