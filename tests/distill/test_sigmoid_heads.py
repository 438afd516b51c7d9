"""Students of several labels and of a single unit learn from both their teachers."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from kdprune.distill import Distiller, describe_soft_labels, write_soft_labels
from kdprune.distill.losses import binary_distillation_loss, distillation_loss
from kdprune.prune.inference import batches, label_loss
from kdprune.training import binary_cross_entropy, cross_entropy


def net(units, seed=0, activation=None):
    keras.utils.set_random_seed(seed)
    image = keras.Input((4, 4, 1))
    x = keras.layers.Dense(8, "relu")(keras.layers.Flatten()(image))
    return keras.Model(image, keras.layers.Dense(units, activation)(x))


def some(n=96, k=3):
    random = np.random.default_rng(0)
    images = random.random((n, 4, 4, 1), np.float32)
    labels = (images[:, 0, :k, 0] > 0.5).astype(np.int64)
    return images, labels


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_divergence_is_that_of_each_yes_or_no(temperature):
    random = np.random.default_rng(1)
    teacher, student = random.normal(0, 3, (2, 6, 5))
    p, q = sigmoid(teacher / temperature), sigmoid(student / temperature)
    each = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    expected = temperature**2 * each.mean(axis=1)
    found = binary_distillation_loss(teacher, student, temperature)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    # Of a single unit it is the divergence of two classes, one with the logit 0.
    pair = [np.stack([np.zeros(6), x[:, 0]], axis=1) for x in (teacher, student)]
    np.testing.assert_allclose(
        binary_distillation_loss(teacher[:, :1], student[:, :1], temperature),
        distillation_loss(*pair, temperature),
        rtol=1e-4,
    )


def test_the_divergence_stays_finite_however_sure_both_are():
    student = tf.Variable([[500.0, -500.0]])
    with tf.GradientTape() as tape:
        loss = binary_distillation_loss([[-500.0, 500.0]], student, 1.0)
    assert np.isfinite(loss).all() and np.isfinite(tape.gradient(loss, student)).all()


def test_the_hard_loss_is_the_mean_of_each_labels():
    random = np.random.default_rng(2)
    logits, labels = random.normal(0, 2, (6, 4)), random.integers(0, 2, (6, 4))
    p = sigmoid(logits)
    for smoothing in (0.0, 0.2):
        y = labels * (1 - smoothing) + smoothing / 2
        expected = -(y * np.log(p) + (1 - y) * np.log(1 - p)).mean(axis=1)
        found = binary_cross_entropy(labels, logits, smoothing)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    single = binary_cross_entropy(labels[:, 0], logits[:, :1])
    two = np.stack([np.zeros(6), logits[:, 0]], axis=1)
    np.testing.assert_allclose(single, cross_entropy(labels[:, 0], two), rtol=1e-5)
    with pytest.raises(ValueError, match="shape of the logits"):
        binary_cross_entropy(labels[:, :3], logits)


@pytest.mark.parametrize("units", [1, 3])
@pytest.mark.quick("1")
def test_a_student_learns_labels_and_its_teacher(units):
    images, labels = some()
    labels = labels if units == 3 else labels[:, 0]
    teacher, student = net(units, 1), net(units, 2)
    distiller = Distiller(student, teacher, head="sigmoid" if units == 3 else None)
    distiller.compile(keras.optimizers.SGD(0.0), temperature=2.0, soft_weight=0.5)
    found = distiller.fit(images, labels, batch_size=96, verbose=0).history
    z, t = student(images).numpy(), teacher(images).numpy()
    hard = np.mean(binary_cross_entropy(labels, z))
    soft = np.mean(binary_distillation_loss(t, z, 2.0))
    assert found["hard_loss"] == pytest.approx([hard], rel=1e-4)
    assert found["soft_loss"] == pytest.approx([soft], rel=1e-4)
    right = ((z > 0) == labels.reshape(len(z), -1)).mean()
    assert found["accuracy"] == pytest.approx([right])
    loss, accuracy = distiller.evaluate(images, labels, verbose=0)
    assert (loss, accuracy) == (pytest.approx(hard, rel=1e-4), pytest.approx(right))

    distiller.compile(keras.optimizers.Adam(0.02), temperature=2.0, soft_weight=0.2)
    distiller.fit(images, labels, epochs=60, verbose=0)
    assert distiller.evaluate(images, labels, verbose=0)[1] > 0.9


def test_images_without_labels_teach_by_the_teacher_alone():
    images, labels = some()
    labels[48:] = -1
    distiller = Distiller(net(3, 1), net(3, 2), head="sigmoid")
    distiller.compile("sgd", soft_weight=0.5)
    found = distiller.fit(images, labels, batch_size=96, verbose=0).history
    z = net(3, 1)(images).numpy()
    hard = np.mean(binary_cross_entropy(labels[:48], z[:48]))
    assert found["hard_loss"] == pytest.approx([hard], rel=1e-4)
    distiller.compile("sgd", soft_weight=1.0)
    distiller.fit(images, verbose=0)


@pytest.mark.usefixtures("eagerly")
def test_stored_logits_and_a_config_keep_the_head():
    images, labels = some()
    logits = net(3, 2)(images).numpy()
    distiller = Distiller(net(3, 1), head="sigmoid")
    distiller.compile("sgd")
    assert distiller.fit(images, (labels, logits), verbose=0)
    again = Distiller.from_config(distiller.get_config())
    again.compile_from_config(distiller.get_compile_config())
    assert again.fit(images, (labels, logits), verbose=0)
    assert "accuracy" in again.fit(images, (labels, logits), verbose=0).history


@pytest.mark.parametrize(
    "loss",
    [
        "dkd",
        "cross_entropy",
        "dist",
        "standardized",
        "articles",
        keras.losses.KLDivergence(),
    ],
)
def test_losses_of_one_of_several_classes_are_refused(loss):
    for units, head in ((3, "sigmoid"), (1, None)):
        with pytest.raises(ValueError, match="there are kl, the losses of") as caught:
            Distiller(net(units, 1), net(units, 2), [loss], head=head)
        assert "\n" not in str(caught.value)


def test_losses_of_features_and_ones_own_work_for_labels():
    images, labels = some()

    def squared(teacher_logits, student_logits, labels):
        return tf.reduce_mean((teacher_logits - student_logits) ** 2 * labels, axis=1)

    distiller = Distiller(net(3, 1), net(3, 2), ["kl", squared], head="sigmoid")
    distiller.compile("sgd")
    found = distiller.fit(images, labels, verbose=0).history
    assert np.isfinite(found["squared_loss"]).all()


@pytest.mark.parametrize(
    "labels, message",
    [
        (np.zeros(96, int), r"labels have the shape \(batch, 3\)"),
        (np.zeros((96, 4), int), r"labels have the shape \(batch, 3\)"),
        (np.full((96, 3), 2), "1 where one applies and 0 where not"),
        (np.full((96, 3), [-1, 0, 0]), "all -1 where they are missing"),
    ],
)
def test_labels_that_are_none_are_refused_in_arrays_and_streams(labels, message):
    images, _ = some()
    stream = tf.data.Dataset.from_tensor_slices((images, labels)).batch(32)
    for given in ((images, labels), (stream,)):
        distiller = Distiller(net(3, 1), net(3, 2), head="sigmoid")
        distiller.compile("sgd")
        with pytest.raises(ValueError, match=message) as caught:
            distiller.fit(*given, verbose=0)
        assert "\n" not in str(caught.value)


def test_rows_that_are_no_probabilities_say_how_to_train_on_labels():
    images, labels = some()
    distiller = Distiller(net(3, 1), net(3, 2))
    distiller.compile("sgd")
    with pytest.raises(ValueError, match=r"Distiller\(..., head='sigmoid'\)"):
        distiller.fit(images, labels, verbose=0)


def test_probabilities_of_a_sigmoid_are_not_stored(tmp_path):
    images, _ = some()
    teacher = net(3, 2, "sigmoid")
    with pytest.raises(ValueError, match="giving probabilities by sigmoid; take it"):
        write_soft_labels(teacher, lambda view: images, tmp_path, views=1, key={})
    with pytest.raises(ValueError, match="two classes at least, and classes"):
        describe_soft_labels(np.zeros((4, 1)), np.zeros(4, int), 1.0)


@pytest.mark.parametrize("activation", [None, "sigmoid"])
def test_gradients_for_pruning_are_of_the_loss_of_the_labels(activation):
    images, labels = some()
    model = net(3, 1, activation)
    logits = net(3, 1)(images).numpy()
    expected = binary_cross_entropy(labels, logits)
    (given, rows), *_ = batches((images, labels), model)
    assert rows.dtype == bool
    found = label_loss(model, given, tf.constant(rows))
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    single = label_loss(net(1, 1), given, tf.constant(labels[:, 0]))
    logits = net(1, 1)(images).numpy()
    np.testing.assert_allclose(
        single, binary_cross_entropy(labels[:, 0], logits), rtol=1e-4
    )


def test_rows_in_a_stream_say_by_their_type_what_they_are():
    images, labels = some()
    stream = [(images, labels.astype(np.float32))]
    with pytest.raises(ValueError, match="with the sum 1, .* give booleans"):
        list(batches(stream, net(3, 1)))
    assert len(list(batches([(images, labels == 1)], net(3, 1)))) == 1
