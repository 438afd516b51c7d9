"""Soft labels are stored whole, once, and are what the teacher says."""

import resource

import numpy as np
import pytest
import tf_keras as keras

from kdprune.data.batches import training_batches, view_batches
from kdprune.distill import (
    Distiller,
    load_soft_labels,
    store_key,
    write_soft_labels,
)

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
    write_soft_labels(teacher, read_view, tmp_path / "labels", views=2, key={})
    stored = load_soft_labels(tmp_path / "labels")
    assert [view.shape for view in stored] == [(96, 10)] * 2
    assert stored[0].dtype == np.float16 and isinstance(stored[0], np.memmap)
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
        write_soft_labels(teacher, stops_at_two, tmp_path, views=4, key={})
    before = {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    assert sorted(before) == ["store.json", "view-000.npy", "view-001.npy"]
    write_soft_labels(teacher, read_view, tmp_path, views=4, key={})
    assert asked == [0, 1, 2, 3]
    after = {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    assert sorted(after) == ["store.json", *(f"view-00{view}.npy" for view in range(4))]
    assert {name: after[name] for name in before} == before
    np.testing.assert_array_equal(
        load_soft_labels(tmp_path)[3],
        teacher.predict(read_view(3), verbose=0).astype(np.float16),
    )


def test_a_half_written_view_is_not_taken_for_a_whole_one(split, tmp_path):
    (tmp_path / "view-000.partial").write_bytes(b"half")
    with pytest.raises(ValueError, match="expected soft labels"):
        load_soft_labels(tmp_path)
    write_soft_labels(network(split), views_of(split, []), tmp_path, views=1, key={})
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["store.json", "view-000.npy"]


def test_a_file_with_code_in_it_is_not_run(tmp_path):
    objects = np.array([{"anything": print}], dtype=object)
    np.save(tmp_path / "view-000.npy", objects, allow_pickle=True)
    with pytest.raises(ValueError, match="Python objects in dtype"):
        load_soft_labels(tmp_path)


def test_replayed_labels_give_the_loss_of_the_teacher_on_the_same_pixels(
    split, tmp_path
):
    teacher = network(split)
    write_soft_labels(teacher, views_of(split, []), tmp_path, views=2, key={})
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


def test_a_store_of_anything_else_is_refused(split, tmp_path):
    def key(teacher, images=split, augment=AUGMENT, seed=3):
        return store_key([teacher], images, augment=augment, seed=seed)

    teacher = network(split)
    own, read_view = key(teacher), views_of(split, [])
    write_soft_labels(teacher, read_view, tmp_path, views=1, key=own)
    assert len(load_soft_labels(tmp_path, own)) == 1
    darker = type(split)(split.images // 2, split.labels)
    others = {
        "teacher": key(network(split, seed=1)),
        "images": key(teacher, images=darker),
        "augmentation": key(teacher, augment={"crop": 1}),
        "seed": key(teacher, seed=4),
    }
    for name, other in others.items():
        with pytest.raises(ValueError, match=f"got those of another {name};"):
            load_soft_labels(tmp_path, other)
        with pytest.raises(ValueError, match=f"got those of another {name};"):
            write_soft_labels(teacher, read_view, tmp_path, views=2, key=other)


def test_a_view_that_is_cut_short_is_named(split, tmp_path):
    write_soft_labels(network(split), views_of(split, []), tmp_path, views=2, key={})
    path = tmp_path / "view-001.npy"
    whole = path.read_bytes()
    for content in (whole[:-1], whole[:40], b""):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="view-001.npy: expected a whole view"):
            load_soft_labels(tmp_path)
    path.unlink()
    np.save(path, np.zeros((5, 10), np.float16))
    with pytest.raises(ValueError, match="expected views of one shape"):
        load_soft_labels(tmp_path)


def test_a_disk_that_fills_keeps_the_views_before(split, tmp_path):
    teacher, read_view = network(split), views_of(split, [])
    write_soft_labels(teacher, read_view, tmp_path, views=1, key={})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # A real limit of the system: writing beyond it fails as on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, before[1]))
    try:
        with pytest.raises(OSError, match="view-001.npy could not be written.*free"):
            write_soft_labels(teacher, read_view, tmp_path, views=2, key={})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["store.json", "view-000.npy"]
    write_soft_labels(teacher, read_view, tmp_path, views=2, key={})
    assert len(load_soft_labels(tmp_path)) == 2


def test_several_teachers_are_stored_by_their_mean(split, tmp_path):
    teachers = [network(split), network(split, seed=1)]
    read_view = views_of(split, [])
    write_soft_labels(teachers, read_view, tmp_path, views=1, key={})
    scores = [teacher.predict(read_view(0), verbose=0) for teacher in teachers]
    (stored,) = load_soft_labels(tmp_path)
    np.testing.assert_allclose(stored, np.mean(scores, axis=0), atol=1e-3)


@pytest.mark.parametrize("kind", ["probabilities", "huge"])
def test_what_cannot_be_logits_is_refused(split, tmp_path, kind):
    teacher = network(split)
    if kind == "huge":
        output, message = teacher.output * 1e6, "between -65,504"
    else:
        output = keras.layers.Softmax()(teacher.output)
        message = "gives logits. Received: probabilities"
    changed = keras.Model(teacher.input, output)
    with pytest.raises(ValueError, match=message):
        write_soft_labels(changed, views_of(split, []), tmp_path, views=1, key={})
    assert not list(tmp_path.glob("view-*"))
