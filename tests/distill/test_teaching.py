"""What a Distiller can learn from beside one teacher's logits and all labels."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from kdprune.distill import Distiller, distillation_loss
from kdprune.models.precision import cast_model
from kdprune.prune import prune_magnitude, pruning_callbacks
from kdprune.quantize import quantize_model
from kdprune.training import build_optimizer, cross_entropy, fit, seed_everything

layers = keras.layers


def network(width=4, classes=4, seed=0, activation=None):
    keras.utils.set_random_seed(seed)
    image = keras.Input((8, 8, 3))
    x = image
    for index in range(2):
        x = layers.Conv2D(width, 3, strides=2, padding="same", name=f"conv{index}")(x)
        x = layers.BatchNormalization(momentum=0.5, name=f"bn{index}")(x)
        x = layers.ReLU(name=f"relu{index}")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    logits = layers.Dense(classes, activation=activation, name="logits")(x)
    return keras.Model(image, logits)


def distiller(student=None, teacher=None, losses=None, **options):
    teacher = network(6, seed=1) if teacher is None else teacher
    made = Distiller(network() if student is None else student, teacher, losses)
    made.compile("sgd", **options)
    return made


def step(made, images, targets, **options):
    made.run_eagerly = True  # Tracing takes far longer than a step.
    return made.train_on_batch(images, targets, return_dict=True, **options)


def values(model):
    return [variable.numpy() for variable in model.variables]


def assert_same(first, second, **tolerance):
    assert len(first) == len(second)
    for one, two in zip(first, second, strict=True):
        np.testing.assert_allclose(one, two, **{"rtol": 0, "atol": 0, **tolerance})


def sure(model):
    """The model with logits far apart, so that a divergence is more than rounding."""
    kernel = model.get_layer("logits").kernel
    kernel.assign(30.0 * kernel)
    return model


def in_training(model, images, *names):
    """A copy's logits and features in training mode, with the batch's statistics."""
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    outputs = [copy.output, *(copy.get_layer(name).output for name in names)]
    found = keras.Model(copy.input, outputs)(images, training=True)
    return [np.asarray(one, np.float64) for one in tf.nest.flatten(found)]


def log_softmax(logits):
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def softened_divergence(teacher, student, temperature):
    """`distillation_loss`, averaged over the images, by NumPy."""
    taught = log_softmax(np.asarray(teacher, np.float64) / temperature)
    difference = taught - log_softmax(student / temperature)
    return temperature**2 * (np.exp(taught) * difference).sum(axis=1).mean()


def test_losses_add_up_with_their_weights(data):
    images, labels = data
    # As many channels as the student's: nothing is projected.
    student, teacher = network(), sure(network(seed=1))
    hint = {"teacher_layers": ["relu1"], "student_layers": ["relu1"]}
    losses = [
        {"name": "kl", "weight": 0.5},
        {"name": "hint", "weight": 3.0, **hint},
    ]
    made = distiller(student, teacher, losses, soft_weight=0.6, temperature=2.0)
    logits, features = in_training(student, images, "relu1")
    taught = keras.Model(teacher.input, teacher.get_layer("relu1").output)(images)
    kl = softened_divergence(teacher(images), logits, 2.0)
    squared = np.square(taught.numpy() - features).mean()
    hard = -log_softmax(logits)[np.arange(64), labels].mean()
    result = step(made, images, labels)
    assert result["kl_loss"] == pytest.approx(0.5 * kl, rel=1e-4)
    assert result["hint_loss"] == pytest.approx(3.0 * squared, rel=1e-4)
    assert result["soft_loss"] == pytest.approx(0.5 * kl + 3.0 * squared, rel=1e-4)
    assert result["hard_loss"] == pytest.approx(hard, rel=1e-4)
    total = 0.6 * (0.5 * kl + 3.0 * squared) + 0.4 * hard
    assert result["loss"] == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize(
    "name",
    [
        *("hint", "relational"),
        pytest.param("attention", marks=pytest.mark.slow),
        pytest.param("contrastive", marks=pytest.mark.slow),
    ],
)
@pytest.mark.quick("hint")
def test_each_loss_of_features_trains_the_student_alone(data, name):
    images, labels = data
    teacher = network(6, seed=1)
    before = values(teacher)
    made = distiller(teacher=teacher, losses=[name], soft_weight=1.0)
    # With hints a graph is trained where evaluation must change no variable.
    made.compile(keras.optimizers.Adam(0.01), soft_weight=1.0)
    made.run_eagerly = name == "hint"
    first = made.evaluate(images, labels, verbose=0, return_dict=True)
    history = made.fit(images, labels, 32, epochs=8, verbose=0).history
    assert history["soft_loss"][-1] < history["soft_loss"][0]
    assert_same(before, values(teacher))
    assert set(first) == {"loss", "accuracy"}
    # What the loss learns is trained, and no part of the student.
    learned = sum(len(loss.trainable_weights) for loss in made.feature_losses)
    assert (learned > 0) == (name in ("hint", "contrastive"))
    own = len(made.student.trainable_variables)
    assert len(made.trainable_variables) == own + learned
    assert made.predict(images, verbose=0).shape == (64, 4)


@pytest.mark.slow
def test_a_loss_of_features_takes_its_own_arguments(data):
    loss = {"name": "contrastive", "temperature": 0.5}
    warm, usual = (
        step(distiller(losses=[given], soft_weight=1.0), *data)["loss"]
        for given in (loss, "contrastive")
    )
    # The warmer, the less the images of a batch are told apart.
    chance = np.log(64)
    assert abs(warm - chance) < abs(usual - chance)


@pytest.mark.usefixtures("eagerly")
def test_what_a_hint_learns_is_not_saved_with_the_student(data, tmp_path):
    made = distiller(losses=["hint"])
    made.fit(*data, verbose=0)
    made.save(tmp_path / "student.keras")
    loaded = keras.models.load_model(tmp_path / "student.keras", compile=False)
    assert_same(loaded.get_weights(), made.student.get_weights())
    # By the same way: kernels round by the size of a batch.
    again = [model.predict(data[0], verbose=0) for model in (loaded, made)]
    np.testing.assert_array_equal(*again)


def test_layers_to_compare_can_be_named(data):
    loss = {"name": "hint", "teacher_layers": ["relu0"], "student_layers": ["bn0"]}
    assert step(distiller(losses=[loss]), *data)["soft_loss"] > 0
    with pytest.raises(ValueError, match="has no layer 'relu7'. Did you mean 'relu"):
        distiller(losses=[{**loss, "teacher_layers": ["relu7"]}])
    with pytest.raises(ValueError, match="both teacher_layers and student_layers"):
        distiller(losses=[{"name": "hint", "teacher_layers": ["relu0"]}])


@pytest.mark.slow
@pytest.mark.parametrize("wrap", ["prune", "qat", "bfloat16"])
def test_wrapped_students_learn_from_logits_and_features(data, wrap):
    images, labels = data
    student, callbacks = network(), []
    if wrap == "prune":
        student = prune_magnitude(student, 0.5, end=4, frequency=1)
        callbacks = pruning_callbacks()
    elif wrap == "qat":
        student = quantize_model(student, calibration=(images * 255).astype(np.uint8))
    else:
        student = cast_model(student, "mixed_bfloat16")
    made = distiller(student, losses=["kl", "hint", "attention"])
    made.compile(keras.optimizers.SGD(0.05), soft_weight=0.9)
    history = made.fit(
        images, labels, 16, epochs=3, verbose=0, callbacks=callbacks
    ).history
    assert history["loss"][-1] < history["loss"][0]
    assert np.isfinite(history["loss"]).all()


@pytest.mark.parametrize(
    "wrap",
    [
        *("features", "dropout"),
        pytest.param("prune", marks=pytest.mark.slow),
        pytest.param("qat", marks=pytest.mark.slow),
    ],
)
@pytest.mark.quick("dropout")
def test_evaluate_and_predict_change_no_variable_of_any_student(data, wrap):
    images, labels = data
    student, losses, callbacks = network(), ["kl"], []
    if wrap == "prune":
        student = prune_magnitude(student, 0.5, end=4, frequency=1)
        callbacks = pruning_callbacks()
    elif wrap == "qat":
        student = quantize_model(student, calibration=(images * 255).astype(np.uint8))
    elif wrap == "dropout":
        keras.backend.experimental.enable_tf_random_generator()
        dropped = layers.Dropout(0.5)(student.get_layer("pool").output)
        student = keras.Model(student.input, layers.Dense(4)(dropped))
    else:
        losses = ["kl", "hint", "contrastive"]
    made = distiller(student, losses=losses)
    made.fit(images, labels, 16, epochs=2, verbose=0, callbacks=callbacks)
    learned = [loss.variables for loss in made.feature_losses]
    assert any(learned) == (wrap == "features")

    def state():
        kept = (made.student, *made.teachers, *made.feature_losses)
        found = [variable for part in kept for variable in part.variables]
        found += made.optimizer.variables
        return [variable.numpy() for variable in found]

    before = state()
    made.evaluate(images, labels, verbose=0)
    made.predict(images, verbose=0)
    made(images)
    for old, new in zip(before, state(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_several_teachers_teach_by_the_mean_of_their_logits(data):
    images, labels = data
    teachers = [network(6, seed=1), network(5, seed=2)]
    mean = sum(teacher(images) for teacher in teachers) / 2
    result = step(distiller(teacher=teachers), images, labels)
    stored = Distiller(network())
    stored.compile("sgd")
    expected = step(stored, images, (labels, mean.numpy()))
    assert result["soft_loss"] == pytest.approx(expected["soft_loss"], rel=1e-5)
    with pytest.raises(ValueError, match="one teacher in the loop.*2 teachers"):
        distiller(teacher=teachers, losses=["hint"])


@pytest.mark.usefixtures("eagerly")
def test_images_without_labels_teach_by_the_soft_loss(data):
    images, labels = data
    made, usual = distiller(soft_weight=1.0), distiller(soft_weight=1.0)
    made.fit(images, batch_size=64, verbose=0)
    usual.fit(images, labels, 64, verbose=0)
    assert_same(values(made.student), values(usual.student))
    with pytest.raises(ValueError, match="soft_weight=1 only.*0.9"):
        distiller().fit(images, verbose=0)


def test_a_missing_label_leaves_the_hard_loss_out(data):
    images, labels = data
    partly = np.where(np.arange(64) < 16, labels, -1)
    student, teacher = network(), network(6, seed=1)
    copy = keras.models.clone_model(student)
    copy.set_weights(student.get_weights())
    logits = copy(images, training=True)
    soft = distillation_loss(teacher(images), logits, 4.0).numpy()
    hard = cross_entropy(np.maximum(partly, 0), logits).numpy() * (partly >= 0)
    right = (logits.numpy().argmax(1) == labels)[:16].mean()
    result = step(distiller(student, teacher, soft_weight=0.5), images, partly)
    expected = (0.5 * soft + 0.5 * hard).mean()
    assert result["loss"] == pytest.approx(expected, rel=1e-5)
    # The mean over the labelled ones is what is shown.
    assert result["hard_loss"] == pytest.approx(hard[:16].mean(), rel=1e-5)
    assert result["accuracy"] == pytest.approx(right)


@pytest.mark.usefixtures("eagerly")
def test_only_labelled_images_are_evaluated(data):
    images, labels = data
    partly = np.where(np.arange(64) % 3 == 0, labels, -1)
    weights = np.linspace(0, 2, 64).astype(np.float32)
    made = distiller(soft_weight=1.0)
    # The second batch of 32 has fewer labels than the first.
    partly[40:] = np.where(np.arange(24) < 3, partly[40:], -1)
    rows = partly >= 0
    for weight in (None, weights):
        few = None if weight is None else weight[rows]
        expected = made.evaluate(
            images[rows], labels[rows], sample_weight=few, verbose=0, return_dict=True
        )
        options = {"sample_weight": weight, "verbose": 0, "return_dict": True}
        found = made.evaluate(images, partly, 32, **options)
        assert found == pytest.approx(expected, rel=1e-5)
    # Labels in a column, beside stored logits, and none in a whole batch.
    stored = np.zeros((64, 4), np.float32)
    plain = made.evaluate(images[rows], labels[rows], verbose=0)
    for targets in (partly[:, None], (partly, stored)):
        assert made.evaluate(images, targets, verbose=0) == pytest.approx(plain)
    partly[:16] = -1
    found = made.evaluate(images, partly, 16, verbose=0)
    rows = partly >= 0
    plain = made.evaluate(images[rows], labels[rows], verbose=0)
    assert found == pytest.approx(plain, rel=1e-5)


@pytest.mark.slow
def test_partly_labelled_images_validate_while_training(data):
    images, labels = data
    partly = np.where(np.arange(64) < 48, labels, -1)
    options = {"epochs": 1, "verbose": 0, "validation_data": (images, partly)}
    made = distiller(soft_weight=0.5)
    history = made.fit(images, partly, **options).history
    right = made.student.predict(images[:48], verbose=0).argmax(1) == labels[:48]
    assert history["val_accuracy"] == pytest.approx([right.mean()])
    with pytest.raises(ValueError, match="an evaluation needs labels"):
        made.evaluate(images, verbose=0)


@pytest.mark.parametrize(
    "losses",
    [
        ["kl"],
        pytest.param(["dkd", "dist"], marks=pytest.mark.slow),
        ["relational", "hint"],
    ],
)
def test_a_batch_of_no_images_teaches_nothing(data, losses):
    # What a replica is given when the last batch is smaller than their number. Without
    # convolutions, since those of oneDNN take no empty batch.
    def pointwise():
        image = keras.Input((8, 8, 3))
        x = layers.ReLU()(layers.Dense(4)(image))
        return keras.Model(image, layers.Dense(4)(layers.Flatten()(x)))

    made = distiller(pointwise(), pointwise(), losses)
    images, labels = data
    step(made, images, labels)
    before = values(made.student)
    made.reset_metrics()
    result = made.train_step((tf.zeros((0, 8, 8, 3)), tf.zeros((0,), tf.int32)))
    assert all(float(value) == 0 for value in result.values())
    assert_same(before, values(made.student))
    assert np.isfinite(step(made, images, labels)["loss"])


def test_the_weight_changes_over_training(data):
    made = Distiller(network(), network(6, seed=1))
    made.compile("sgd", soft_weight=[(0, 1), (0.5, 1), (0.5, 0), (1, 0)], steps=4)
    shown = []
    for _ in range(4):
        made.reset_metrics()
        shown.append(step(made, *data))
    for result, part in zip(shown, ["soft", "soft", "hard", "hard"], strict=True):
        assert result["loss"] == pytest.approx(result[f"{part}_loss"], rel=1e-5)
        assert result["soft_loss"] != pytest.approx(result["hard_loss"], rel=1e-2)


def test_the_temperature_changes_over_training(data):
    images, labels = data
    student, teacher = network(), sure(network(6, seed=1))
    (logits,) = in_training(student, images)
    made = Distiller(student, teacher)
    # Nothing is learned: only the temperature changes.
    made.compile(keras.optimizers.SGD(0.0), temperature=[(0, 4), (1, 1)], steps=2)
    for temperature in (4.0, 2.5):
        made.reset_metrics()
        expected = softened_divergence(teacher(images), logits, temperature)
        found = step(made, images, labels)["soft_loss"]
        assert found == pytest.approx(expected, rel=1e-4)


def test_a_subclassed_teacher_and_student_learn_by_logits_only(data, subclassed):
    made = distiller(subclassed(), subclassed())
    made.teachers[0](data[0])
    assert step(made, *data)["soft_loss"] > 0
    with pytest.raises(ValueError, match="subclassed model hides in its Python code"):
        distiller(subclassed(), losses=["hint"])


@pytest.mark.parametrize("role", ["teacher", "student"])
@pytest.mark.parametrize("kind", ["graph", "subclassed"])
def test_probabilities_are_not_taken_for_logits(data, subclassed, role, kind):
    make = network if kind == "graph" else subclassed
    wrong = make(activation="softmax")
    with pytest.raises(ValueError, match="expected logits.*activation=None") as error:
        distiller(**{role: wrong}).fit(*data, verbose=0)
    assert "\n" not in str(error.value)


def hidden_softmax(kind, subclassed):
    """Models whose softmax the last layer of a graph does not show."""
    if kind == "function":
        model = network()
        return keras.Model(model.input, tf.nn.softmax(model.output))
    if kind == "then float32":
        model = network(activation="softmax")
        end = layers.Activation("linear", dtype="float32")
        return keras.Model(model.input, end(model.output))
    head = layers.Dense(4, activation="softmax")
    if kind == "not built":
        return keras.Sequential([layers.Flatten(), head])
    if kind == "by hand":
        model = network()
        scores = tf.exp(model.output)
        total = tf.reduce_sum(scores, axis=1, keepdims=True)
        return keras.Model(model.input, scores / total)
    within = subclassed(activation="softmax")
    if kind == "subclassed, not built":
        return keras.Sequential([within])
    return keras.Sequential([keras.Input((8, 8, 3)), within])


HIDDEN = [
    ("function", True),
    ("then float32", True),
    ("not built", True),
    # Only the outputs show these.
    ("by hand", False),
    ("subclassed, not built", False),
    # As one of several teachers below.
    pytest.param("subclassed in a graph", False, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("role", ["teacher", "student"])
@pytest.mark.parametrize(("kind", "at_once"), HIDDEN)
@pytest.mark.quick(
    "function-True-teacher",
    "function-True-student",
    "subclassed, not built-False-student",
)
def test_a_hidden_softmax_is_found(data, subclassed, role, kind, at_once):
    pair = {"student": network(2), "teacher": network(40, seed=1)}
    pair[role] = hidden_softmax(kind, subclassed)
    says = "expected logits.*activation=None"
    if at_once:
        with pytest.raises(ValueError, match=says):
            Distiller(**pair)
        return
    made = Distiller(**pair)
    made.compile("sgd")
    with pytest.raises(ValueError, match=says) as error:
        made.fit(*data, verbose=0)
    assert "\n" not in str(error.value)


def test_one_of_several_teachers_that_gives_probabilities_is_found(data, subclassed):
    teachers = [network(6, seed=1), hidden_softmax("subclassed in a graph", subclassed)]
    with pytest.raises(ValueError, match="expected logits"):
        distiller(teacher=teachers).fit(*data, verbose=0)


@pytest.mark.slow
def test_logits_of_one_image_that_add_up_to_one_are_logits(data):
    images, labels = data
    made = Distiller(network())
    made.compile("sgd")
    stored = np.array([[0.2, 0.5, 0.2, 0.1]], np.float32)
    history = made.fit(images[:1], (labels[:1], stored), verbose=0).history
    assert np.isfinite(history["loss"][0])


def test_stored_probabilities_are_not_taken_for_logits(data):
    images, labels = data
    made = Distiller(network())
    made.compile("sgd")
    stored = np.full((64, 4), 0.25, np.float32)
    with pytest.raises(ValueError, match="expected logits.*stored labels"):
        made.fit(images, (labels, stored), verbose=0)


def test_a_student_that_shares_weights_with_its_teacher_is_refused():
    teacher = network()
    body = keras.Model(teacher.input, teacher.get_layer("pool").output)
    student = keras.Sequential([keras.Input((8, 8, 3)), body, layers.Dense(4)])
    for shared in (teacher, student):
        with pytest.raises(ValueError, match="must not share weights"):
            Distiller(shared, teacher)


class Wrapped(keras.Model):
    """A model without a graph, of one that it is given."""

    def __init__(self, body):
        super().__init__()
        self.body = body

    def call(self, inputs, training=None):
        return self.body(inputs, training=training)


class Late(keras.Model):
    """A model without a graph that makes its layer at the first call."""

    def __init__(self, shelf):
        super().__init__()
        self.shelf, self.flatten = (lambda: shelf), layers.Flatten()

    def build(self, shape):
        self.head = self.shelf().setdefault("head", layers.Dense(4))
        super().build(shape)

    def call(self, inputs):
        return self.head(self.flatten(inputs))


def test_models_that_share_what_is_not_built_are_refused(subclassed):
    model = subclassed()
    not_built = keras.Sequential([layers.Flatten(), layers.Dense(4)])
    head = keras.Sequential([layers.Flatten(), not_built.layers[-1]])
    pairs = [(model, model), (Wrapped(model), model), (model, Wrapped(model))]
    pairs += [(not_built, not_built), (head, not_built)]
    for student, teacher in pairs:
        with pytest.raises(ValueError, match="must not share weights.*both have"):
            Distiller(student, teacher)
    Distiller(subclassed(), subclassed())
    Distiller(network(), keras.Sequential([layers.Flatten(), layers.Dense(4)]))


@pytest.mark.usefixtures("eagerly")
def test_weights_that_are_shared_once_they_are_built_are_refused(data):
    shelf = {}
    made = distiller(Late(shelf), Late(shelf))
    with pytest.raises(ValueError, match="must not share weights.*kernel"):
        made.fit(*data, verbose=0)
    apart = distiller(Late({}), Late({}))
    assert np.isfinite(apart.fit(*data, verbose=0).history["loss"][0])


def test_images_of_another_size_are_refused():
    image = keras.Input((16, 16, 3))
    big = keras.Model(image, layers.Dense(4)(layers.GlobalAveragePooling2D()(image)))
    with pytest.raises(ValueError, match="same images.*of 16, 16, 3.*of 8, 8, 3"):
        Distiller(network(), big)


def test_losses_of_features_need_the_teacher_in_the_loop(data):
    images, labels = data
    with pytest.raises(ValueError, match="one teacher in the loop.*0 teachers"):
        Distiller(network(), None, ["hint"])
    made = distiller(losses=["hint"])
    with pytest.raises(ValueError, match="Received: stored logits"):
        step(made, images, (labels, np.zeros((64, 4), np.float32)))


@pytest.mark.slow
def test_training_with_hints_resumes_bit_equal(data, tmp_path):
    images, labels = data

    def stream(start):
        return tf.data.Dataset.from_tensor_slices((images, labels)).batch(16).repeat()

    def trained(epochs, folder, length=4):
        seed_everything(0)
        made = Distiller(network(), network(6, seed=1), ["kl", "hint"])
        optimizer = build_optimizer("sgd", 0.1, steps=4 * length)
        made.compile(optimizer)
        validation = tf.data.Dataset.from_tensor_slices((images, labels)).batch(32)
        fit(made, stream, validation, epochs=epochs, steps=4, folder=folder)
        return values(made)

    whole = trained(4, tmp_path / "whole")
    trained(2, tmp_path / "parts")
    assert_same(whole, trained(4, tmp_path / "parts"))
