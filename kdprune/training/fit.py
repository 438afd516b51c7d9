"""Fitting a compiled model: validation, selection, early stop, resume."""

from __future__ import annotations

import csv
import math
import sys
import time
from collections.abc import Callable, Generator, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kdprune import _io
from kdprune._graph import check_trains
from kdprune._log import logger, progress
from kdprune.training.checkpoints import Checkpoints
from kdprune.training.optimizers import averaged_weights, build_variables


class TrainingDiverged(ValueError):
    """The loss became NaN or infinite."""


def fit(
    model: keras.Model,
    batches: Callable[[int], Any],
    validation: Any,
    *,
    epochs: int,
    steps: int,
    validation_steps: int | None = None,
    folder: Path | None = None,
    select: str = "last",
    patience: int | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    verbose: bool = True,
) -> list[dict[str, float]]:
    """Trains a compiled model, and goes on where an earlier call was stopped.

    After each epoch the model is validated (with its averaged weights, if its
    optimizer keeps an average) and, with a `folder`, one checkpoint is written
    that holds weights, optimizer, average, selection and history. Called again
    with the same arguments, training resumes after the last whole epoch and ends
    with the weights of an uninterrupted run.

    Args:
        model: A compiled `keras.Model` that reports "accuracy"; built after
            `seed_everything` if it has Dropout.
        batches: Function of the first epoch to train, giving the stream of all
            batches from there on, `steps` for each epoch.
        validation: Batches of `(images, labels)` to choose by, or None to train
            without: the history then has no "val_" values.
        epochs: Number of epochs in all.
        steps: Batches in an epoch.
        validation_steps: Batches of `validation`, where that is distributed and can't
            be asked.
        folder: `pathlib.Path` for checkpoints, `history.csv` and TensorBoard
            logs; None to keep nothing.
        select: "last", or "best" for the weights of the epoch with the highest
            validation accuracy (the earliest of equals).
        patience: Stop when that many epochs brought no better validation
            accuracy; None to train all epochs.
        callbacks: More Keras callbacks.
        verbose: Whether to log a line for each epoch (logger `kdprune`, level INFO),
            and to show a progress bar where the standard output is a terminal.

    Returns:
        The history, a list with one dict per epoch: losses and accuracies as
        fractions, "learning_rate", "seconds".

    Raises:
        ValueError: If `epochs`, `steps` or `patience` is no whole number above 0, if
            `select` is neither, if there is nothing to choose by, or if the model is
            not compiled or is frozen altogether.
        ForeignCheckpoint: A `ValueError`: the checkpoint in `folder` is of another
            model or optimizer.
        TrainingDiverged: If the loss is not finite. The last checkpoint stays.
        OSError: If a checkpoint can't be written. The last one stays.
    """
    for name, number in (("epochs", epochs), ("steps", steps), ("patience", patience)):
        if number is not None and (not isinstance(number, Integral) or number < 1):
            raise ValueError(
                f"{name} must be a whole number above 0. Received: {number!r}"
            )
    if getattr(model, "optimizer", None) is None:
        raise ValueError(
            "fit needs a compiled model: call model.compile first. Received: "
            f"{getattr(model, 'name', model)!r}, not compiled"
        )
    if select not in ("last", "best"):
        raise ValueError(f"select must be 'last' or 'best'. Received: {select!r}")
    if validation is None and (select == "best" or patience):
        raise ValueError(
            "select='best' and patience need validation images. Received: None; give "
            "them, or train for a fixed number of epochs."
        )
    check_trains(model)
    build_variables(model)
    if _over_hosts(model):
        # Keras sums metrics over workers that were summed already.
        model.distribute_reduction_method = "first"
    keeper = _EpochKeeper(validation, validation_steps, folder, select, patience)
    done = keeper.restore(model)
    if done < epochs and not keeper.out_of_patience():
        if done and verbose:
            logger.info("resuming after epoch %d of %d", done, epochs)
        logs: list = [] if folder is None else [_tensorboard(folder)]
        shown = _Progress(epochs, steps)
        if verbose:
            logs.append(shown)
        try:
            model.fit(
                batches(done),
                epochs=epochs,
                initial_epoch=done,
                steps_per_epoch=steps,
                callbacks=[_StopOnNaN(), keeper, *logs, *callbacks],
                verbose=0,
            )
        finally:
            shown.close()
    keeper.finish(model)
    return keeper.history


def _tensorboard(folder: Path) -> keras.callbacks.Callback:
    return keras.callbacks.TensorBoard(str(folder / "logs"), write_graph=False)


class _Progress(keras.callbacks.Callback):
    """Logs a line for each epoch; on a terminal, a progress bar shows its steps."""

    def __init__(self, epochs: int, steps: int) -> None:
        super().__init__()
        self._epochs, self._steps = epochs, steps
        self._bar: Generator | None = None

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._started = time.perf_counter()
        self._shown = 0
        if sys.stdout.isatty():
            what = f"epoch {epoch + 1} of {self._epochs}"
            self._bar = _stepwise(self._steps, what)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._ended = time.perf_counter()
        while self._bar is not None and self._shown <= batch:
            self._shown += 1  # Several steps may have been computed in one go.
            next(self._bar, None)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.close()
        seconds = self._ended - self._started  # Validation is not part of it.
        values = " - ".join(f"{name}: {value:.4f}" for name, value in logs.items())
        logger.info(
            "epoch %d of %d - %.0f s - %.0f ms/step - %s",
            epoch + 1,
            self._epochs,
            seconds,
            1000 * seconds / self._steps,
            values,
        )

    def close(self) -> None:
        """Takes the bar off the terminal."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _stepwise(steps: int, what: str) -> Generator:
    """A bar of progress that moves on each `next`."""
    yield from progress(range(steps), what)


class _StopOnNaN(keras.callbacks.Callback):
    """Stops once a step's loss is not finite, before it is saved.

    Where several steps are computed in one go, their last shows it: "loss" is a mean
    over the epoch so far.
    """

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if math.isfinite(logs["loss"]):
            return
        raise _diverged("loss", logs["loss"], self.model.optimizer)


class _EpochKeeper(keras.callbacks.Callback):
    """Validates, selects, records and saves at the end of each epoch."""

    def __init__(
        self,
        validation: Any,
        validation_steps: int | None,
        folder: Path | None,
        select: str,
        patience: int | None,
    ) -> None:
        super().__init__()
        self.history: list[dict[str, float]] = []
        self._validation = validation
        self._validation_steps = validation_steps
        self._folder = folder
        self._select = select
        self._patience = patience
        # Weights at the best epoch, if the best is selected.
        self._best: list | None = None
        self._checkpoints: Checkpoints | None = None

    def restore(self, model: keras.Model) -> int:
        """Loads the newest checkpoint; returns how many epochs are done."""
        if self._folder is None:
            return 0
        self._checkpoints = Checkpoints(
            self._folder / "checkpoints",
            model=model,
            optimizer=model.optimizer,
            random=_random_states(model),
        )
        found = self._checkpoints.restore()
        if found is None:
            return 0
        done, self.history, self._best = found
        return done

    def out_of_patience(self) -> bool:
        if self._patience is None or not self.history:
            return False
        return len(self.history) - 1 - self._best_epoch() >= self._patience

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._started = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        optimizer = self.model.optimizer
        # Measured before validation, which is not part of training's speed.
        seconds = time.perf_counter() - self._started
        _agree_on_statistics(self.model)
        with averaged_weights(self.model):
            logs.update(self._validate(optimizer))
            rate = _learning_rate(optimizer, _steps_done(optimizer) - 1)
            row = {name: float(value) for name, value in logs.items()}
            row |= {"epoch": epoch + 1, "learning_rate": rate, "seconds": seconds}
            self.history.append(row)
            if self._select == "best" and self._best_epoch() == epoch:
                self._best = self.model.get_weights()
        if self._folder is not None and self._checkpoints is not None:
            # The table first: a run stopped in between writes this epoch again.
            write_history(self._folder / "history.csv", self.history)
            self._checkpoints.save(epoch + 1, self.history, self._best)
        if self.out_of_patience():
            self.model.stop_training = True

    def _validate(self, optimizer: Any) -> dict[str, float]:
        # The last step of an epoch may have ruined the weights unseen.
        if self._validation is None:
            for variable in self.model.trainable_variables:
                if not np.isfinite(variable.numpy()).all():
                    raise _diverged(f"weight {variable.name}", "infinite", optimizer)
            return {}
        values = self.model.evaluate(
            self._validation,
            steps=self._validation_steps,
            verbose=0,
            return_dict=True,
        )
        if not math.isfinite(values["loss"]):
            raise _diverged("validation loss", values["loss"], optimizer)
        return {f"val_{name}": value for name, value in values.items()}

    def finish(self, model: keras.Model) -> None:
        """Leaves the model with the weights that were asked for."""
        if self._best is not None:
            model.set_weights(self._best)
        elif getattr(model.optimizer, "use_ema", False):
            model.optimizer.finalize_variable_values(model.trainable_variables)

    def _best_epoch(self) -> int:
        accuracies = [row["val_accuracy"] for row in self.history]
        return accuracies.index(max(accuracies))


def _agree_on_statistics(model: keras.Model) -> None:
    """Gives all workers the mean of their normalizations' statistics, as is saved.

    A run that is resumed goes on from that mean, and so does one that goes on.
    """
    for variable in model.non_trainable_variables if _over_hosts(model) else ():
        if variable.synchronization == tf.VariableSynchronization.ON_READ:
            variable.assign(variable.read_value())


def _over_hosts(model: keras.Model) -> bool:
    strategy = model.distribute_strategy
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


def _random_states(model: keras.Model) -> list:
    """The generators of Dropout and the like, which Keras keeps from checkpoints."""
    states = [getattr(layer, "_random_generator", None) for layer in model.submodules]
    generators = [getattr(state, "_generator", None) for state in states]
    return [generator for generator in generators if generator is not None]


def write_history(path: Path, history: Sequence[dict[str, float]]) -> None:
    """Writes one CSV row per epoch, atomically, "epoch" first."""
    names = ["epoch", *(name for name in history[0] if name != "epoch")]
    try:
        with _io.writing(path) as partial, open(partial, "w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(history)
    except OSError as error:
        raise OSError(
            f"{path} could not be written: {error.strerror}. The last checkpoint is "
            "kept; free some space and run the same command again."
        ) from error


def _diverged(what: str, value: Any, optimizer: Any) -> TrainingDiverged:
    step = _steps_done(optimizer)
    return TrainingDiverged(
        f"the {what} became {value} by step {step}, with learning rate "
        f"{_learning_rate(optimizer, step - 1):.3g}. The last good checkpoint is kept; "
        "lower the learning rate or lengthen the warm-up."
    )


def _steps_done(optimizer: Any) -> int:
    return int(keras.backend.get_value(optimizer.iterations))


def _learning_rate(optimizer: Any, step: int) -> float:
    """The rate used at a step; Keras shows only the next one."""
    rate = optimizer._learning_rate
    if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
        return float(rate(tf.constant(step, tf.int64)))
    return float(optimizer.learning_rate)
