"""Soft labels are stored whole, once, and are what the teacher says."""

import numpy as np
import pytest
import tf_keras as keras

from kdprune.data.batches import training_batches, view_batches
from kdprune.distill import Distiller, load_soft_labels, write_soft_labels

AUGMENT = {"crop": 2, "flip": True, "cutout": 4}


@pytest.fixture(scope="module")
def split(tiny_shapes):
    train = tiny_shapes.train
    return type(train)(train.images[:96], train.labels[:96])


def network(split, seed=0):
    keras.utils.set_random_seed(seed)
    layers = keras.layers
    image = keras.Input(split.images.shape[1:])
    x = layers.Conv2D(4, 3, strides=2, activation="relu")(image)
    return keras.Model(image, layers.Dense(10)(layers.Flatten()(x)))


def views_of(split, asked):
    def read_view(view):
        asked.append(view)
        return view_batches(split, 40, view=view, seed=3, augment=AUGMENT)

    return read_view


def test_views_are_the_teachers_logits_in_the_splits_order(split, tmp_path):
    teacher = network(split)
    read_view = views_of(split, [])
    write_soft_labels(teacher, read_view, tmp_path / "labels", views=2)
    stored = load_soft_labels(tmp_path / "labels")
    assert stored.shape == (2, 96, 10) and stored.dtype == np.float16
    for view in range(2):
        expected = teacher.predict(read_view(view), verbose=0)
        np.testing.assert_allclose(stored[view], expected, rtol=1e-3, atol=1e-4)
    assert np.abs(stored[0] - stored[1]).max() > 0.01


def test_an_interrupted_store_goes_on_with_the_first_missing_view(split, tmp_path):
    teacher, asked = network(split), []
    read_view = views_of(split, asked)

    def stops_at_two(view):
        if view == 2:
            raise KeyboardInterrupt
        return read_view(view)

    with pytest.raises(KeyboardInterrupt):
        write_soft_labels(teacher, stops_at_two, tmp_path, views=4)
    before = {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    assert sorted(before) == ["view-000.npy", "view-001.npy"]
    write_soft_labels(teacher, read_view, tmp_path, views=4)
    assert asked == [0, 1, 2, 3]
    after = {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    assert sorted(after) == [f"view-00{view}.npy" for view in range(4)]
    assert {name: after[name] for name in before} == before
    np.testing.assert_array_equal(
        load_soft_labels(tmp_path)[3],
        teacher.predict(read_view(3), verbose=0).astype(np.float16),
    )


def test_a_half_written_view_is_not_taken_for_a_whole_one(split, tmp_path):
    (tmp_path / "view-000.partial").write_bytes(b"half")
    with pytest.raises(ValueError, match="expected soft labels"):
        load_soft_labels(tmp_path)
    write_soft_labels(network(split), views_of(split, []), tmp_path, views=1)
    assert [path.name for path in tmp_path.iterdir()] == ["view-000.npy"]


def test_a_file_with_code_in_it_is_not_run(tmp_path):
    objects = np.array([{"anything": print}], dtype=object)
    np.save(tmp_path / "view-000.npy", objects, allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle"):
        load_soft_labels(tmp_path)


def test_replayed_labels_give_the_loss_of_the_teacher_on_the_same_pixels(
    split, tmp_path
):
    teacher = network(split)
    write_soft_labels(teacher, views_of(split, []), tmp_path, views=2)
    augment = {**AUGMENT, "seed": 3}
    histories = []
    for stored in (None, load_soft_labels(tmp_path)):
        student = Distiller(network(split, seed=1), None if len(histories) else teacher)
        student.compile("sgd")
        # The views' draws are those of the epochs 0 and 1; the order is a seed's.
        batches = training_batches(
            split, 32, epochs=2, seed=8, augment=augment, soft_labels=stored
        )
        history = student.fit(batches, epochs=2, steps_per_epoch=3, verbose=0).history
        histories.append(history)
    for name in ("loss", "soft_loss", "hard_loss", "accuracy"):
        np.testing.assert_allclose(histories[1][name], histories[0][name], 1e-3)
