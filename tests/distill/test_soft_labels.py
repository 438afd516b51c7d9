"""Soft labels are stored whole, once, and are what the teacher says."""

import json
import resource

import numpy as np
import pytest
import tf_keras as keras

from kdprune.data.batches import training_batches, view_batches
from kdprune.distill import (
    Distiller,
    describe_soft_labels,
    load_soft_labels,
    store_key,
    write_soft_labels,
)
from kdprune.models.precision import cast_model

AUGMENT = {"crop": 2, "flip": True, "cutout": 4}


@pytest.fixture(scope="module")
def split(tiny_shapes):
    train = tiny_shapes.train
    return type(train)(train.images[:96], train.labels[:96])


def network(split, seed=0, activation="relu", name=None):
    keras.utils.set_random_seed(seed)
    layers = keras.layers
    image = keras.Input(split.images.shape[1:])
    x = layers.Conv2D(4, 3, strides=2)(image)
    x = layers.Activation(activation, name=name)(x)
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


def stop_half_way(teacher, read_view, folder):
    """Leaves two views of four."""

    def stops_at_two(view):
        if view == 2:
            raise KeyboardInterrupt
        return read_view(view)

    with pytest.raises(KeyboardInterrupt):
        write_soft_labels(teacher, stops_at_two, folder, views=4, key={})


def test_an_interrupted_store_goes_on_with_the_first_missing_view(split, tmp_path):
    teacher, asked = network(split), []
    read_view = views_of(split, asked)
    stop_half_way(teacher, read_view, tmp_path)
    before = {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    assert sorted(before) == ["store.json", "view-000.npy", "view-001.npy"]
    write_soft_labels(teacher, read_view, tmp_path, views=4, key={})
    assert asked == [0, 1, 2, 3]
    after = {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    assert sorted(after) == ["store.json", *(f"view-00{view}.npy" for view in range(4))]
    views = ("view-000.npy", "view-001.npy")
    assert [after[name] for name in views] == [before[name] for name in views]
    np.testing.assert_array_equal(
        load_soft_labels(tmp_path)[3],
        teacher.predict(read_view(3), verbose=0).astype(np.float16),
    )


@pytest.mark.parametrize("damage", ["byte", "sums", "cut"])
@pytest.mark.quick("byte")
def test_a_view_that_is_not_as_it_was_stored_is_stored_again(
    split, tmp_path, damage, caplog
):
    teacher, asked = network(split), []
    stop_half_way(teacher, views_of(split, asked), tmp_path)
    damaged, whole = tmp_path / "view-001.npy", (tmp_path / "view-001.npy").read_bytes()
    if damage == "sums":  # As in a store of an earlier version.
        store = json.loads((tmp_path / "store.json").read_text())
        del store["sha256"]["view-001.npy"]
        (tmp_path / "store.json").write_text(json.dumps(store))
    else:
        other = whole[:-1] + (b"" if damage == "cut" else bytes([whole[-1] ^ 1]))
        damaged.write_bytes(other)
    write_soft_labels(teacher, views_of(split, asked), tmp_path, views=4, key={})
    assert asked == [0, 1, 1, 2, 3]
    assert damaged.read_bytes() == whole
    assert "view 2 is stored again" in caplog.text


def test_a_half_written_view_is_not_taken_for_a_whole_one(split, tmp_path):
    (tmp_path / "view-000.partial").write_bytes(b"half")
    with pytest.raises(ValueError, match="no soft labels in"):
        load_soft_labels(tmp_path)
    write_soft_labels(network(split), views_of(split, []), tmp_path, views=1, key={})
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["store.json", "view-000.npy"]


def test_a_file_with_code_in_it_is_not_run(split, tmp_path):
    write_soft_labels(network(split), views_of(split, []), tmp_path, views=1, key={})
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
        "precision": key(cast_model(teacher, "mixed_bfloat16")),
        "images": key(teacher, images=darker),
        "augmentation": key(teacher, augment={"crop": 1}),
        "seed": key(teacher, seed=4),
    }
    for name, other in others.items():
        with pytest.raises(ValueError, match=f"got those of another {name};"):
            load_soft_labels(tmp_path, other)
        with pytest.raises(ValueError, match=f"got those of another {name};"):
            write_soft_labels(teacher, read_view, tmp_path, views=2, key=other)


def test_views_that_are_missing_are_not_passed_over(split, tmp_path):
    teacher, asked = network(split), []
    read_view = views_of(split, asked)
    write_soft_labels(teacher, read_view, tmp_path, views=3, key={})
    whole = [np.array(view) for view in load_soft_labels(tmp_path)]
    for missing in ([1], [0], [1, 2]):
        for view in missing:
            (tmp_path / f"view-00{view}.npy").unlink()
        with pytest.raises(ValueError, match=f"3 views .*, got {3 - len(missing)};"):
            load_soft_labels(tmp_path)
        asked.clear()
        write_soft_labels(teacher, read_view, tmp_path, views=3, key={})
        assert asked == missing
        np.testing.assert_array_equal(load_soft_labels(tmp_path), whole)


def test_a_store_that_stopped_half_way_is_not_taken_for_a_smaller_one(split, tmp_path):
    teacher, read_view = network(split), views_of(split, [])
    stop_half_way(teacher, read_view, tmp_path)
    with pytest.raises(ValueError, match="expected 4 views of soft labels, got 2"):
        load_soft_labels(tmp_path)
    # Fewer can be asked for, and more added.
    write_soft_labels(teacher, read_view, tmp_path, views=2, key={})
    assert len(load_soft_labels(tmp_path)) == 2
    write_soft_labels(teacher, read_view, tmp_path, views=3, key={})
    assert len(load_soft_labels(tmp_path)) == 3


@pytest.mark.parametrize("content", ["{}", "[]", "", '{"views": "2"}'])
def test_a_store_that_does_not_say_its_views_is_refused(split, tmp_path, content):
    write_soft_labels(network(split), views_of(split, []), tmp_path, views=2, key={})
    (tmp_path / "store.json").write_text(content)
    with pytest.raises(ValueError, match="store.json: expected the number of views"):
        load_soft_labels(tmp_path)


def test_a_store_of_no_views_is_refused(split, tmp_path):
    with pytest.raises(
        ValueError, match="views must be a whole number above 0. Received: 0"
    ):
        write_soft_labels(network(split), None, tmp_path, views=0, key={})


def test_the_key_is_of_all_that_a_teacher_computes(split):
    def key(*teachers):
        return store_key(teachers, split)["teacher"]

    image = keras.Input(split.images.shape[1:])
    model = network(split)
    rescaled = keras.Model(image, model(keras.layers.Rescaling(2.0)(image)))
    halved = keras.Model(image, model(keras.layers.Rescaling(0.5)(image)))
    others = [
        network(split, activation="tanh"),
        # Named after what it is, as layers often are.
        network(split, activation="relu", name="relu"),
        network(split, activation="tanh", name="tanh"),
        keras.Model(model.input, 2.0 * model.output),
        keras.Model(model.input, 3.0 * model.output),
        rescaled,
        halved,
    ]
    for other in others:
        for one, two in zip(model.get_weights(), other.get_weights(), strict=True):
            np.testing.assert_array_equal(one, two)
    keys = [key(model), *map(key, others)]
    # The name alone is none of it.
    assert keys.pop(2) == keys[0]
    assert keys.pop(2) == keys[1]
    assert len(set(keys)) == len(keys) == 6
    assert key(model, others[0]) != key(others[0], model)


def test_the_key_stays_for_a_teacher_that_is_built_saved_or_frozen(split, tmp_path):
    model = network(split)
    expected = store_key([model], split)
    assert store_key([network(split)], split) == expected
    model.save(tmp_path / "teacher.keras")
    loaded = keras.models.load_model(tmp_path / "teacher.keras", compile=False)
    assert store_key([loaded], split) == expected
    loaded.trainable = False
    loaded.compile("sgd", "mse")
    assert store_key([loaded], split) == expected


def test_teachers_without_a_graph_are_told_by_their_arguments(split, subclassed):
    teachers = [subclassed(10), subclassed(10), subclassed(10, activation="tanh")]
    for teacher in teachers:
        teacher(split.images[:1] / 255)
        teacher.set_weights(teachers[0].get_weights())
    keys = [store_key([teacher], split)["teacher"] for teacher in teachers]
    assert keys[0] == keys[1] != keys[2]


def test_a_view_that_is_cut_short_is_named(split, tmp_path):
    write_soft_labels(network(split), views_of(split, []), tmp_path, views=2, key={})
    path = tmp_path / "view-001.npy"
    whole = path.read_bytes()
    unended = whole.replace(b"}", b" ", 1)  # Its header is a Python literal.
    for content in (whole[:-1], whole[:40], b"", unended):
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


@pytest.mark.parametrize("teachers", ["teacher.keras", [], [None], [7]])
def test_teachers_are_models(split, tmp_path, teachers):
    with pytest.raises(ValueError, match="teachers must be keras.Model objects"):
        write_soft_labels(teachers, views_of(split, []), tmp_path, views=1, key={})
    with pytest.raises(ValueError, match="teachers must be keras.Model objects"):
        store_key(teachers if isinstance(teachers, list) else [teachers], split)
    assert not list(tmp_path.iterdir())


def test_folders_of_stores_may_be_strings(split, tmp_path, caplog):
    caplog.set_level("INFO", "kdprune")
    teacher, folder = network(split), str(tmp_path / "store")
    write_soft_labels(teacher, views_of(split, []), folder, views=2, key={})
    assert len(load_soft_labels(folder)) == 2
    starts = [message.rpartition(",")[0] for message in caplog.messages]
    assert starts == ["soft labels: view 1 of 2", "soft labels: view 2 of 2"]


def test_what_soft_labels_say_beyond_the_labels():
    """Against scipy's formulas, and nothing for a teacher that knows labels alone."""
    from scipy import special, stats

    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 200)
    logits = rng.normal(size=(200, 4)) + 4 * np.eye(4)[labels]
    found = describe_soft_labels(logits, labels, 2.0)
    p = special.softmax(logits / 2, axis=1)
    mean = np.stack([p[labels == c].mean(axis=0) for c in range(4)])[labels]
    assert found["entropy"] == pytest.approx(stats.entropy(p, axis=1).mean())
    assert found["beyond_labels"] == pytest.approx(
        stats.entropy(p, mean, axis=1).mean()
    )
    assert found["outside_top"] == pytest.approx(1 - p.max(axis=1).mean())
    assert found["agreement"] == (logits.argmax(axis=1) == labels).mean()
    smoothed = describe_soft_labels(3 * np.eye(4)[labels], labels, 1.0)
    assert smoothed["beyond_labels"] == pytest.approx(0, abs=1e-12)
    assert smoothed["entropy"] > 0.3 and smoothed["agreement"] == 1
