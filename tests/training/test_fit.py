"""Training selects, stops, resumes and fails as it promises."""

import csv
import io
import json
import resource
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tf_keras as keras

from kdprune.data import Split
from kdprune.data.batches import evaluation_batches, training_batches
from kdprune.distill import Distiller
from kdprune.models.precision import cast_model
from kdprune.prune import prune_magnitude, pruning_callbacks, strip_pruning
from kdprune.training import (
    TrainingDiverged,
    build_optimizer,
    cross_entropy,
    fit,
    seed_everything,
)

layers = keras.layers
STEPS = 4  # Steps in an epoch of 64 images.


def quadrants(count, seed):
    """Noise, brighter in the quadrant that is the class."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 150, (count, 8, 8, 3))
    labels = np.arange(count) % 4
    for image, label in zip(images, labels, strict=True):
        row, column = divmod(label, 2)
        image[4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 100
    return Split(images.astype(np.uint8), labels)


TRAIN, VALIDATION = quadrants(64, 0), quadrants(40, 1)


def small_model(width=4, dropout=0.0, batch_norm=True):
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(width, 3, padding="same", use_bias=False, name="conv")(image)
    if batch_norm:
        x = layers.BatchNormalization(momentum=0.9, name="bn")(x)
    x = layers.Flatten()(layers.AveragePooling2D(4)(layers.ReLU()(x)))
    if dropout:
        x = layers.Dropout(dropout)(x)
    return keras.Model(image, layers.Dense(4, name="logits")(x))


def compiled(model, optimizer, eager=False):
    """A model to train; eager where tracing would take longer than all its steps."""
    accuracy = keras.metrics.SparseCategoricalAccuracy("accuracy")
    model.compile(
        optimizer,
        loss=lambda y, z: cross_entropy(y, z),
        metrics=[accuracy],
        run_eagerly=eager,
    )
    return model


def quick(model, optimizer):
    return compiled(model, optimizer, eager=True)


def sgd(rate=0.1, **arguments):
    return build_optimizer("sgd", rate, steps=4 * STEPS, **arguments)


def stream(start):
    return training_batches(
        TRAIN, 16, epochs=9, seed=5, start_epoch=start, augment={"crop": 1}
    )


def train(model, epochs=4, **arguments):
    validation = evaluation_batches(VALIDATION, 16)
    return fit(model, stream, validation, epochs=epochs, steps=STEPS, **arguments)


def rates(boundary, *values):
    """A constant learning rate, and another one after so many steps."""
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay
    return keras.optimizers.SGD(schedule([boundary - 1], list(values)))


class StopAt(keras.callbacks.Callback):
    """Interrupts like Ctrl-C, in the middle of an epoch."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        self.now = epoch + 1 == self.epoch

    def on_train_batch_end(self, batch, logs=None):
        if self.now and batch == 1:
            raise KeyboardInterrupt


def without_seconds(history):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in history]


def checkpoints(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def assert_same(first, second):
    assert len(first) == len(second)
    for one, two in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, two)


def test_steps_computed_in_one_go_give_the_weights_of_single_ones(tmp_path):
    runs = {}
    for together in (1, 3):  # An epoch has four: a group, and one that is left.
        seed_everything(0)
        distiller = Distiller(small_model(dropout=0.2), small_model(6))
        distiller.compile(sgd(), steps_per_execution=together)
        folder = tmp_path / str(together)
        train(distiller, epochs=1, folder=folder)
        history = train(distiller, epochs=2, folder=folder)
        runs[together] = distiller.student.get_weights(), without_seconds(history)
    assert_same(runs[1][0], runs[3][0])
    assert runs[1][1] == runs[3][1]


def test_a_group_of_steps_that_diverges_is_not_saved(tmp_path):
    seed_everything(0)
    model = small_model()
    accuracy = keras.metrics.SparseCategoricalAccuracy("accuracy")
    model.compile(
        rates(5, 0.01, 1e30),
        loss=lambda y, z: cross_entropy(y, z),
        metrics=[accuracy],
        steps_per_execution=4,
    )
    with pytest.raises(TrainingDiverged, match=r"^the loss became nan by step 8"):
        train(model, folder=tmp_path)
    assert checkpoints(tmp_path) == ["epoch-1"]


@pytest.mark.parametrize("distilled", [False, True], ids=["plain", "distiller"])
def test_a_step_is_traced_once(distilled, monkeypatch):
    model = compiled(small_model(), sgd())
    if distilled:
        accuracy = keras.metrics.SparseCategoricalAccuracy("accuracy")
        model = Distiller(small_model(), small_model(6))
        model.compile(sgd(), metrics=[accuracy])
    traced, step = [], model.train_step
    monkeypatch.setattr(
        model, "train_step", lambda data: traced.append(1) or step(data)
    )
    train(model, epochs=2)
    assert len(traced) == 1


def test_the_last_epoch_is_kept_unless_the_best_is_asked_for():
    # Learns for two epochs, then the third one ruins it.
    results = {}
    for select in ("last", "best"):
        seed_everything(0)
        model = compiled(small_model(), rates(2 * STEPS, 0.2, 30.0))
        history = train(model, 3, select=select)
        accuracies = [row["val_accuracy"] for row in history]
        score = model.evaluate(evaluation_batches(VALIDATION), verbose=0)
        results[select] = accuracies, score[1]
    accuracies, last = results["last"]
    assert accuracies == results["best"][0]
    assert max(accuracies) > accuracies[-1] + 0.2
    assert last == pytest.approx(accuracies[-1], abs=1e-6)
    assert results["best"][1] == pytest.approx(max(accuracies), abs=1e-6)


def test_the_averaged_weights_are_validated_and_left_in_the_model():
    seed_everything(0)
    model = compiled(small_model(), sgd(ema=0.8))
    history = train(model, 2)
    loss, accuracy = model.evaluate(evaluation_batches(VALIDATION, 16), verbose=0)
    assert history[-1]["val_loss"] == pytest.approx(loss, rel=1e-6)
    assert history[-1]["val_accuracy"] == pytest.approx(accuracy)
    averages = model.optimizer._model_variables_moving_average
    for weight, average in zip(model.trainable_variables, averages, strict=True):
        np.testing.assert_array_equal(weight, average)


def test_history_has_a_row_for_each_epoch_here_and_in_the_file(tmp_path):
    seed_everything(0)
    history = train(quick(small_model(), sgd()), 3, folder=tmp_path)
    assert [row["epoch"] for row in history] == [1, 2, 3]
    # One cycle over 16 steps, at the last step of each epoch, counted from 0: the
    # first is still on the rise.
    expected = [0.1 * (0.2 + 0.8 * 3 / 3.2)]
    expected += [0.1 * (16 - step) / (16 - 3.2) for step in (7, 11)]
    assert [row["learning_rate"] for row in history] == pytest.approx(expected)
    with open(tmp_path / "history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert next(iter(rows[0])) == "epoch"
    assert [{k: float(v) for k, v in row.items()} for row in rows] == history
    assert checkpoints(tmp_path) == ["epoch-3"]
    assert list((tmp_path / "logs").rglob("events*"))


def test_patience_stops_and_a_stopped_run_does_not_go_on(tmp_path, caplog):
    caplog.set_level("INFO", "kdprune")
    seed_everything(0)

    def still():  # Nothing is learnt: the first of equal epochs is the best.
        optimizer = sgd(1e-12, schedule="constant")
        return quick(small_model(batch_norm=False), optimizer)

    model = still()
    history = train(model, 6, folder=tmp_path, patience=2)
    assert len(history) == 3
    weights = model.get_weights()
    seed_everything(1)
    model = still()
    assert train(model, 6, folder=tmp_path, patience=2) == history
    assert_same(model.get_weights(), weights)
    assert "resuming" not in caplog.text
    again = train(still(), 6, folder=tmp_path, patience=3)
    assert [row["epoch"] for row in again] == [1, 2, 3, 4]
    assert "resuming after epoch 3 of 6" in caplog.text


def plain():
    return compiled(small_model(), sgd(weight_decay=1e-3))


def averaged_best():
    return compiled(small_model(), sgd(ema=0.7))


def adam():
    optimizer = build_optimizer("adam", 0.01, steps=4 * STEPS, schedule="cosine")
    return compiled(small_model(), optimizer)


def with_dropout():
    return compiled(small_model(dropout=0.5), sgd())


def bfloat16():
    return compiled(cast_model(small_model(), "mixed_bfloat16"), sgd())


def pruned_distiller():
    teacher = small_model(6)
    teacher.set_weights([np.full(w.shape, 0.1) for w in teacher.get_weights()])
    student = prune_magnitude(small_model(), 0.5, end=3 * STEPS, frequency=3)
    distiller = Distiller(student, teacher)
    distiller.compile(sgd(ema=0.7))
    return distiller


@pytest.mark.parametrize(
    "make, select",
    [
        (averaged_best, "best"),
        (with_dropout, "last"),
        pytest.param(plain, "last", marks=pytest.mark.slow),
        pytest.param(adam, "last", marks=pytest.mark.slow),
        pytest.param(bfloat16, "last", marks=pytest.mark.slow),
        pytest.param(pruned_distiller, "last", marks=pytest.mark.slow),
        pytest.param(pruned_distiller, "best", marks=pytest.mark.slow),
    ],
)
def test_a_resumed_run_ends_bit_equal_to_an_uninterrupted_one(tmp_path, make, select):
    def run(seed, folder, *callbacks):
        seed_everything(seed)
        model = make()
        if make is pruned_distiller:
            callbacks = [*pruning_callbacks(), *callbacks]
        folder.mkdir(exist_ok=True)
        history = train(model, folder=folder, select=select, callbacks=callbacks)
        return model.get_weights(), without_seconds(history)

    weights, history = run(0, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(0, tmp_path / "broken", StopAt(epoch=3))
    assert checkpoints(tmp_path / "broken") == ["epoch-2"]
    # Another seed, so that all that counts must come from the checkpoint.
    resumed_weights, resumed_history = run(7, tmp_path / "broken")
    assert resumed_history == history
    assert_same(resumed_weights, weights)


@pytest.mark.slow
def test_a_pruned_student_is_sparse_after_averaging():
    seed_everything(0)
    distiller = pruned_distiller()
    train(distiller, callbacks=pruning_callbacks())
    loss = distiller.evaluate(evaluation_batches(VALIDATION), verbose=0)
    student = strip_pruning(distiller.student)
    for name, weights in (("conv", 108), ("logits", 64)):
        kernel = student.get_layer(name).kernel.numpy()
        assert (kernel == 0).sum() == weights // 2
    again = Distiller(student, distiller.teachers)
    again.compile()
    assert again.evaluate(evaluation_batches(VALIDATION), verbose=0) == pytest.approx(
        loss, rel=1e-5
    )


def test_a_loss_that_is_not_finite_names_step_and_rate_and_keeps_the_checkpoint(
    tmp_path,
):
    seed_everything(0)
    # The 6th step ruins the weights; the 7th, inside the second epoch, shows it.
    model = quick(small_model(), rates(5, 0.01, 1e30))
    with pytest.raises(TrainingDiverged, match=r"^the loss became nan by step 7") as e:
        train(model, folder=tmp_path)
    assert "learning rate 1e+30" in str(e.value) and "\n" not in str(e.value)
    assert checkpoints(tmp_path) == ["epoch-1"]
    history = train(quick(small_model(), rates(5, 0.01, 0.01)), 2, folder=tmp_path)
    assert [row["epoch"] for row in history] == [1, 2]
    assert np.isfinite([row["val_loss"] for row in history]).all()


def test_weights_ruined_by_the_last_step_of_an_epoch_do_not_replace_the_checkpoint(
    tmp_path,
):
    seed_everything(0)
    model = quick(small_model(), rates(2 * STEPS - 1, 0.01, 1e30))
    with pytest.raises(TrainingDiverged, match="validation loss became .* by step 8"):
        train(model, folder=tmp_path)
    assert checkpoints(tmp_path) == ["epoch-1"]


def test_without_validation_images_training_is_watched_all_the_same(tmp_path):
    seed_everything(0)

    def train_unseen(model, **arguments):
        return fit(model, stream, None, epochs=2, steps=STEPS, **arguments)

    history = train_unseen(quick(small_model(), sgd()))
    assert len(history) == 2 and not any("val_" in name for name in history[0])
    for choice in ({"select": "best"}, {"patience": 1}):
        with pytest.raises(ValueError, match="need validation images"):
            train_unseen(quick(small_model(), sgd()), **choice)
    ruined = quick(small_model(), rates(2 * STEPS - 1, 0.01, float("inf")))
    with pytest.raises(TrainingDiverged, match="the weight .* by step 8"):
        train_unseen(ruined, folder=tmp_path)
    assert checkpoints(tmp_path) == ["epoch-1"]


def damage_state(folder):
    history = json.loads((folder / "state.json").read_text())
    history[0]["val_accuracy"] = 0.99
    (folder / "state.json").write_text(json.dumps(history))


def flip_a_byte(folder):
    (variables,) = folder.glob("variables.data*")
    content = bytearray(variables.read_bytes())
    content[len(content) // 2] ^= 1
    variables.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (damage_state, "state.json was changed"),
        (flip_a_byte, "variables.data-00000-of-00001 was changed"),
        pytest.param(lambda folder: (folder / "state.json").unlink(),
                     "files are missing", marks=pytest.mark.slow),
        pytest.param(lambda folder: (folder / "sums.json").write_text("[]"),
                     "is of epoch None", marks=pytest.mark.slow),
        (lambda folder: shutil.copytree(folder, folder.with_name("epoch-999")),
         "it is of epoch 2"),
    ],
    ids=["edited", "flipped", "missing", "another form", "copied"],
)  # fmt: skip
def test_a_damaged_checkpoint_is_told_and_training_ends_as_without(
    tmp_path, damage, said, caplog
):
    def run(epochs, folder):
        seed_everything(0)
        return without_seconds(
            train(compiled(small_model(), sgd()), epochs, folder=folder)
        )

    whole = run(3, tmp_path / "whole")
    run(2, tmp_path / "half")
    damage(tmp_path / "half/checkpoints/epoch-2")
    assert run(3, tmp_path / "half") == whole
    assert said in caplog.text and "is removed" in caplog.text


def test_a_checkpoint_of_a_version_without_checksums_is_gone_on_from(tmp_path, caplog):
    seed_everything(0)
    train(compiled(small_model(), sgd()), 1, folder=tmp_path)
    saved = tmp_path / "checkpoints/epoch-1"
    (saved / "sums.json").unlink()
    shutil.copytree(saved, saved.with_name("epoch-7"))
    history = train(compiled(small_model(), sgd()), 2, folder=tmp_path)
    assert [row["epoch"] for row in history] == [1, 2]
    assert "it is of epoch 1" in caplog.text


def test_a_checkpoint_of_another_model_or_optimizer_is_refused_in_one_line(tmp_path):
    train(quick(small_model(), sgd()), 1, folder=tmp_path)
    others = {
        "shape": quick(small_model(width=5), sgd()),
        "optimizer": adam(),
        "average": quick(small_model(), sgd(ema=0.9)),
    }
    for model in others.values():
        with pytest.raises(ValueError, match="is not of this model and optim") as error:
            train(model, 2, folder=tmp_path)
        message = str(error.value)
        assert str(tmp_path / "checkpoints" / "epoch-1") in message
        assert "\n" not in message and len(message) < 400
    assert checkpoints(tmp_path) == ["epoch-1"]


class FullDisk(keras.callbacks.Callback):
    """Sets a real limit of the system: writing beyond it fails as on a full disk."""

    def __init__(self, size):
        super().__init__()
        self.size = size

    def on_train_batch_end(self, batch, logs=None):
        if batch == STEPS - 1:
            limit = (self.size, resource.RLIM_INFINITY)
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)


@pytest.fixture
def limit():
    """The limit on the size of a file, to be set back to."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield before
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


# history.csv is the first file to be written, the variables the first large one.
@pytest.mark.parametrize("size, file", [(100, "history.csv"), (2000, "checkpoints")])
def test_a_checkpoint_that_does_not_fit_leaves_the_one_before(
    tmp_path, limit, size, file
):
    width = 16
    train(quick(small_model(width), sgd()), 1, folder=tmp_path)
    before = (tmp_path / "history.csv").read_bytes()
    full = [FullDisk(size)]
    with pytest.raises(OSError, match="free some space") as e:
        train(quick(small_model(width), sgd()), 2, folder=tmp_path, callbacks=full)
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert str(tmp_path / file) in str(e.value)
    assert "File too" in str(e.value) and "{{" not in str(e.value)
    assert checkpoints(tmp_path) == ["epoch-1"]
    if file == "history.csv":
        assert (tmp_path / file).read_bytes() == before
    assert not list(tmp_path.glob("*.partial"))
    resumed = train(quick(small_model(width), sgd()), 2, folder=tmp_path)
    assert [row["epoch"] for row in resumed] == [1, 2]


def test_an_unknown_selection_is_refused():
    with pytest.raises(ValueError, match="'last' or 'best'. Received: 'first'"):
        train(compiled(small_model(), sgd()), select="first")


TWO_DEVICES = """
import json, pathlib, sys
import kdprune, numpy as np, tensorflow as tf, tf_keras as keras
from kdprune.data import Split
from kdprune.data.batches import evaluation_batches, training_batches
from kdprune.distill import Distiller
from kdprune.prune import layer_sparsity, prune_magnitude, pruning_callbacks
from kdprune.prune import strip_pruning
from kdprune.training import build_optimizer, cross_entropy, fit, seed_everything

device = tf.config.LogicalDeviceConfiguration()
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [device] * 2)
rng = np.random.default_rng(0)
split = Split(rng.integers(0, 256, (64, 8, 8, 3), np.uint8), np.arange(64) % 4)

def model():  # Without BatchNorm, whose statistics are each device's own.
    image = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, activation="relu", name="conv")(image)
    return keras.Model(image, keras.layers.Dense(4)(keras.layers.Flatten()(x)))

def train(strategy, distil, folder):
    folder.mkdir(parents=True)
    for epochs in (1, 3):  # The second call resumes.
        seed_everything(0)
        teacher = model()
        with strategy.scope():
            student = model()
            optimizer = build_optimizer(
                "sgd", 0.05, steps=12, ema=0.8, weight_decay=1e-2
            )
            if distil:
                student = prune_magnitude(student, 0.5, end=4, frequency=2)
                trained = Distiller(student, teacher)
                trained.compile(optimizer, soft_weight=0.5)
            else:
                trained = student
                loss = lambda y, z: cross_entropy(y, z)
                trained.compile(optimizer, loss, metrics=["accuracy"])
        history = fit(
            trained,
            lambda start: training_batches(
                split, 16, epochs=epochs, seed=0, start_epoch=start
            ),
            evaluation_batches(split, 24),
            epochs=epochs,
            steps=4,
            folder=folder,
            callbacks=pruning_callbacks() if distil else (),
        )
    plain = strip_pruning(student) if distil else student
    sparsity = layer_sparsity(plain)["conv"] if distil else 0.5
    logits = plain.predict(split.images[:4] / np.float32(255), verbose=0)
    return {"history": history, "sparsity": sparsity, "logits": logits.tolist()}

root = pathlib.Path(sys.argv[1])
strategies = {
    "one": tf.distribute.get_strategy(),
    "two": tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]),
}
results = {
    f"{name} {distil}": train(strategy, distil, root / f"{name}-{distil}")
    for distil in (False, True)
    for name, strategy in strategies.items()
}
(root / "results.json").write_text(json.dumps(results))
"""


@pytest.mark.soak
def test_two_devices_train_to_what_one_device_does(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", TWO_DEVICES, tmp_path], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads((tmp_path / "results.json").read_text())
    for distil in (False, True):
        one, two = results[f"one {distil}"], results[f"two {distil}"]
        assert [row["epoch"] for row in two["history"]] == [1, 2, 3]
        for first, second in zip(one["history"], two["history"], strict=True):
            for name in ("loss", "val_loss", "val_accuracy", "learning_rate"):
                assert second[name] == pytest.approx(first[name], rel=1e-3), name
        np.testing.assert_allclose(two["logits"], one["logits"], atol=1e-3)
        assert one["sparsity"] == two["sparsity"] == pytest.approx(0.5, abs=0.01)


def test_each_epoch_is_told_in_a_line(tmp_path, caplog, capfd):
    caplog.set_level("INFO", "kdprune")
    seed_everything(0)
    history = train(quick(small_model(), sgd(0.1)), 2, folder=tmp_path)
    assert len(caplog.messages) == 2
    for row, line in zip(history, caplog.messages, strict=True):
        assert line.startswith(f"epoch {row['epoch']:.0f} of 2 - ")
        for name in ("loss", "accuracy", "val_loss", "val_accuracy"):
            assert f" - {name}: {row[name]:.4f}" in line
        assert "ms/step" in line
    caplog.clear()
    train(quick(small_model(), sgd(0.1)), 3, folder=tmp_path, verbose=False)
    assert caplog.messages == []
    assert capfd.readouterr().out == ""


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_sees_a_bar(monkeypatch, caplog):
    shown = []

    def bar(items, what, total=None):
        shown.append(what)
        yield from items

    caplog.set_level("INFO", "kdprune")
    monkeypatch.setattr(sys.modules[fit.__module__], "progress", bar)
    monkeypatch.setattr(sys, "stdout", Terminal())
    seed_everything(0)
    train(quick(small_model(), sgd(0.1)), 2)
    assert shown == ["epoch 1 of 2", "epoch 2 of 2"]


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ({"epochs": 0}, "epochs must be a whole number above 0. Received: 0"),
        ({"epochs": 1.5}, "epochs must be a whole number above 0. Received: 1.5"),
        ({"steps": -1}, "steps must be a whole number above 0. Received: -1"),
        ({"patience": 0}, "patience must be a whole number above 0. Received: 0"),
    ],
)
def test_numbers_that_are_no_counts_are_refused(arguments, fault):
    arguments = {"epochs": 1, "steps": STEPS, **arguments}
    with pytest.raises(ValueError, match=fault):
        fit(compiled(small_model(), "sgd"), None, None, **arguments)


def test_a_model_that_is_not_compiled_is_refused():
    with pytest.raises(ValueError, match="call model.compile first"):
        fit(small_model(), None, None, epochs=1, steps=1)
    with pytest.raises(ValueError, match="call model.compile first.*'model.keras'"):
        fit("model.keras", None, None, epochs=1, steps=1)
