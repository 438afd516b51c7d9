"""A Distiller trains the student, and nothing else, like any Keras model."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from kdprune.distill import Distiller, distillation_loss
from kdprune.training import cross_entropy

layers = keras.layers


def network(width=4, classes=4, seed=0, regularizer=None, dropout=0.0):
    keras.utils.set_random_seed(seed)
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(width, 3, kernel_regularizer=regularizer)(image)
    x = layers.ReLU()(layers.BatchNormalization(momentum=0.5)(x))
    x = layers.Dropout(dropout)(layers.GlobalAveragePooling2D()(x))
    return keras.Model(image, layers.Dense(classes, name="logits")(x))


# For a single step, which tracing takes far longer than.
EAGER = {"run_eagerly": True}


def distiller(student=None, teacher=None, optimizer="sgd", **options):
    made = Distiller(student or network(), teacher or network(6, seed=1))
    made.compile(optimizer, **options)
    return made


def fit(model, images, targets, **options):
    options = {"batch_size": 16, "verbose": 0, "shuffle": False, **options}
    return model.fit(images, targets, **options).history


def values(model):
    """Copies of all variables: `get_weights` gives those of the moment."""
    return [variable.numpy() for variable in model.variables]


def assert_same(first, second, **tolerance):
    assert len(first) == len(second)
    for one, two in zip(first, second, strict=True):
        np.testing.assert_allclose(one, two, **{"rtol": 0, "atol": 0, **tolerance})


@pytest.mark.usefixtures("eagerly")
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.quick("0.0")
def test_soft_weight_zero_is_plain_training(data, label_smoothing):
    made = distiller(
        optimizer=keras.optimizers.SGD(0.1, momentum=0.9),
        soft_weight=0.0,
        label_smoothing=label_smoothing,
    )
    losses = fit(made, *data)
    plain = network()
    plain.compile(
        keras.optimizers.SGD(0.1, momentum=0.9),
        loss=lambda y, z: cross_entropy(y, z, label_smoothing),
        metrics=["accuracy"],
    )
    expected = fit(plain, *data)
    assert_same(values(made.student), values(plain), atol=1e-6)
    np.testing.assert_allclose(losses["loss"], expected["loss"], 1e-5)
    np.testing.assert_allclose(losses["accuracy"], expected["accuracy"])


@pytest.mark.usefixtures("eagerly")
def test_soft_weight_one_ignores_the_labels(data):
    images, labels = data
    results = []
    for targets in (labels, labels[::-1]):
        made = distiller(soft_weight=1.0)
        fit(made, images, targets.copy())
        results.append(values(made.student))
    assert_same(*results)


def test_the_loss_is_the_weighted_sum_of_its_parts(data):
    images, labels = data
    student, teacher = network(), network(6, seed=1)
    # BatchNorm uses the batch in training: its forward pass is made so here.
    logits = keras.models.clone_model(student)
    logits.set_weights(student.get_weights())
    logits = logits(images[:16], training=True)
    soft = distillation_loss(teacher(images[:16]), logits, 2.0).numpy().mean()
    hard = cross_entropy(labels[:16], logits).numpy().mean()
    made = distiller(student, teacher, temperature=2.0, soft_weight=0.7, **EAGER)
    result = made.train_on_batch(images[:16], labels[:16], return_dict=True)
    assert result["soft_loss"] == pytest.approx(soft, rel=1e-5)
    assert result["hard_loss"] == pytest.approx(hard, rel=1e-5)
    assert result["loss"] == pytest.approx(0.7 * soft + 0.3 * hard, rel=1e-5)


def test_training_leaves_the_teacher_alone(data):
    teacher = network(6, seed=1, dropout=0.5)
    teacher.layers[1].trainable = False
    flags = [layer.trainable for layer in teacher.layers]
    before = values(teacher)
    made = distiller(teacher=teacher, optimizer="adam")
    student = values(made.student)
    fit(made, *data, epochs=2)
    assert_same(before, values(teacher))
    assert [layer.trainable for layer in teacher.layers] == flags
    assert any(
        (a != b).any() for a, b in zip(student, values(made.student), strict=True)
    )
    # Two slots for each of the student's six, and the count of steps.
    assert len(made.optimizer.variables) == 2 * 6 + 1
    # Dropout is off: the same images give the same soft labels.
    results = []
    for _ in range(2):
        again = distiller(teacher=teacher, soft_weight=1.0, **EAGER)
        results.append(again.train_on_batch(*data, return_dict=True)["soft_loss"])
    assert results[0] == results[1]


def test_evaluate_and_predict_are_the_students(data):
    images, labels = data
    made = distiller()
    fit(made, images, labels)
    # 64 images in batches of 24: the last one is smaller and counts for less.
    result = made.evaluate(images, labels, 24, verbose=0, return_dict=True)
    logits = made.student.predict(images, verbose=0)
    assert set(result) == {"loss", "accuracy"}
    expected = cross_entropy(labels, logits).numpy().mean()
    assert result["loss"] == pytest.approx(expected, rel=1e-5)
    assert result["accuracy"] == pytest.approx((logits.argmax(1) == labels).mean())
    np.testing.assert_array_equal(made.predict(images, verbose=0), logits)


@pytest.mark.usefixtures("eagerly")
def test_only_the_student_is_saved(data, tmp_path):
    made = distiller(teacher=network(64, seed=1))
    fit(made, *data)
    assert_same(made.get_weights(), made.student.get_weights())
    assert made.count_params() == made.student.count_params()
    made.save(tmp_path / "student.keras")
    loaded = keras.models.load_model(tmp_path / "student.keras", compile=False)
    assert_same(loaded.get_weights(), made.student.get_weights())
    np.testing.assert_array_equal(loaded(data[0]), made.student(data[0]))
    tf.train.Checkpoint(model=made).write(str(tmp_path / "checkpoint"))
    names = [name for name, _ in tf.train.list_variables(str(tmp_path / "checkpoint"))]
    assert any("student" in name for name in names)
    assert not any("teacher" in name or "loss_means" in name for name in names)


def test_callbacks_work_as_with_any_model(data, tmp_path):
    made = distiller()
    stop = keras.callbacks.EarlyStopping("val_loss", min_delta=1e9, patience=2)
    path = str(tmp_path / "best.weights.h5")
    keep = keras.callbacks.ModelCheckpoint(
        path, "val_accuracy", save_best_only=True, save_weights_only=True
    )
    history = fit(made, *data, validation_data=data, epochs=9, callbacks=[stop, keep])
    assert len(history["loss"]) == 3
    expected = {"loss", "soft_loss", "hard_loss", "accuracy"}
    assert set(history) == expected | {"val_loss", "val_accuracy"}
    best = max(history["val_accuracy"])
    fresh = distiller(network(seed=5))
    fresh.load_weights(path)
    score = fresh.evaluate(*data, verbose=0, return_dict=True)
    assert score["accuracy"] == pytest.approx(best)


@pytest.mark.parametrize("kind", ["tuple", "dataset"])
@pytest.mark.quick("tuple")
def test_stored_logits_train_as_the_teacher_itself_does(data, kind):
    images, labels = data
    teacher = network(6, seed=1)
    stored = teacher.predict(images, verbose=0).astype(np.float16)
    eager = kind == "tuple"  # One of both is traced.
    online = distiller(teacher=teacher, run_eagerly=eager)
    expected = fit(online, images, labels, epochs=2)
    offline = Distiller(network())
    offline.compile("sgd", run_eagerly=eager)
    targets = labels, stored
    if kind == "tuple":
        history = fit(offline, images, targets, epochs=2)
    else:
        batches = tf.data.Dataset.from_tensor_slices((images, targets)).batch(16)
        history = offline.fit(batches, epochs=2, verbose=0).history
    for name in ("loss", "soft_loss", "hard_loss"):
        np.testing.assert_allclose(history[name], expected[name], 1e-3)
    assert_same(values(offline.student), values(online.student), atol=1e-4)
    # Both kinds of targets can be evaluated.
    plain = offline.evaluate(images, labels, verbose=0)
    assert offline.evaluate(images, targets, verbose=0) == pytest.approx(plain)


def test_labels_alone_need_a_teacher(data):
    made = Distiller(network())
    made.compile("sgd")
    with pytest.raises(ValueError, match="needs targets .labels, teacher_logits"):
        fit(made, *data)


def test_the_students_own_losses_are_included(data):
    plain = distiller(network(), **EAGER)
    strong = distiller(network(regularizer=keras.regularizers.L2(0.5)), **EAGER)
    kernel = strong.student.layers[1].kernel.numpy()
    first = plain.train_on_batch(*data, return_dict=True)
    second = strong.train_on_batch(*data, return_dict=True)
    penalty = 0.5 * (kernel**2).sum()
    assert second["loss"] - first["loss"] == pytest.approx(penalty, rel=1e-4)
    assert second["hard_loss"] == pytest.approx(first["hard_loss"], rel=1e-6)
    # The penalty's gradient, 2 * 0.5 * w, at the learning rate 0.01 of "sgd".
    difference = plain.student.layers[1].kernel - strong.student.layers[1].kernel
    np.testing.assert_allclose(difference, 0.01 * kernel, atol=1e-6)


@pytest.mark.slow
def test_sample_weights_weigh_as_in_keras(data):
    images, labels = data
    weights = np.linspace(0, 2, 64).astype(np.float32)
    made = distiller(soft_weight=0.0)
    fit(made, images, labels, sample_weight=weights)
    plain = network()
    plain.compile("sgd", loss=lambda y, z: cross_entropy(y, z))
    fit(plain, images, labels, sample_weight=weights)
    assert_same(values(made.student), values(plain), atol=1e-6)
    # Images of weight zero teach nothing, the teacher's part included.
    one, two = distiller(), distiller()
    half = (np.arange(64) % 2).astype(np.float32)
    changed = np.where(half == 0, (labels + 1) % 4, labels)
    one_loss = fit(one, images, labels, sample_weight=half)["loss"]
    assert fit(two, images, changed, sample_weight=half)["loss"] == one_loss


def test_sample_weights_weigh_the_losses(data):
    images, labels = data
    weights = np.linspace(0, 2, 64).astype(np.float32)
    made = distiller(soft_weight=0.0)
    hard = cross_entropy(labels, made.student(images, training=True)).numpy()
    weighted = (weights * hard).sum() / weights.sum()
    assert abs(weighted - hard.mean()) > 1e-3
    shown = made.train_on_batch(images, labels, weights, return_dict=True)
    assert shown["hard_loss"] == pytest.approx(weighted, rel=1e-5)
    # The one that is trained by is over the images, as in Keras.
    assert shown["loss"] == pytest.approx((weights * hard).mean(), rel=1e-5)
    scored = made.test_on_batch(images, labels, weights, return_dict=True)
    hard = cross_entropy(labels, made.student(images)).numpy()
    assert scored["loss"] == pytest.approx((weights * hard).mean(), rel=1e-5)


def test_a_subclassed_student_trains(data, subclassed):
    made = distiller(subclassed())
    history = fit(made, *data, epochs=3)
    assert history["loss"][-1] < history["loss"][0]
    assert made.predict(data[0], verbose=0).shape == (64, 4)
    wrong = distiller(subclassed(classes=5))
    with pytest.raises(ValueError, match="logits of one shape"):
        fit(wrong, *data)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="a teacher of 5 and a student of 4"):
        Distiller(network(), network(classes=5))
    made = Distiller(network(), network())
    with pytest.raises(ValueError, match=r"soft_weight must be in \[0, 1\].*1.5"):
        made.compile(soft_weight=1.5)
    with pytest.raises(ValueError, match="temperature must be above 0. Received: 0"):
        made.compile(temperature=0)
    with pytest.raises(ValueError, match="has its own losses"):
        made.compile(loss="mse")
