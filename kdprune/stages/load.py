"""Takes a model that is trained already."""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING, Literal

from kdprune._answers import share_right
from kdprune._log import logger
from kdprune.stages.base import FLOAT_MODEL, Node, Result, Run, Stage
from kdprune.stages.settings import InputRange

if TYPE_CHECKING:
    import tf_keras as keras


class Load(Stage):
    """Takes a trained model from a file."""

    kind: Literal["load"]
    file: str
    """The model, a `.keras` or `.h5` file of Keras 3 or tf_keras."""
    input_range: InputRange | None = None
    """What the model takes for black and white, `[0, 255]`, `[-1, 1]`, …; `imagenet`
    (mean and deviation taken off outside of it), `caffe` (BGR minus mean), or `{mean:
    […], std: […]}` of pixels in [0, 1]. Checked, or found, on validation images."""

    labels: str | tuple[str, ...] | None = None
    """The classes in the order of the model's outputs: a text file with one in a line,
    or a list. By default those in the record of the run that made the file, else the
    data's."""
    output: str | None = None
    """Of a model of several outputs, the name of the one to take."""

    omit_if_default = ("input_range", "labels", "output")
    gives = FLOAT_MODEL

    def draws(self) -> bool:
        return False

    def origin(self) -> object | None:
        return self.file

    def check_files(self, run: Run, node: Node) -> None:
        from kdprune.intake.labels import read_labels

        super().check_files(run, node)
        if isinstance(self.labels, str):
            read_labels(self.labels)

    def load_model(self, run: Run, node: Node) -> keras.Model:
        # A dry run plans with the file itself: it is there before its stage is done.
        if not run.record(node):
            return self.untrained_model(run, node)
        return super().load_model(run, node)

    def execute(self, run: Run, node: Node, folder: pathlib.Path) -> Result:
        """Takes the model, checked to fit the data; warns if it knows nothing of it."""
        import numpy as np

        from kdprune import evaluate
        from kdprune.intake import order
        from kdprune.stages import fitting, loading

        model, comparison = loading.load_in_range(
            self.file, run.dataset, self.input_range, self.labels, self.output
        )
        validation = run.dataset.validation
        scores = evaluate.predict(model, validation.images, head=run.dataset.head)
        try:
            order.check_order(scores, validation.labels, run.dataset.classes)
        except ValueError as error:
            raise ValueError(f"{self.file}: {error}") from error
        accuracy = float(share_right(scores, validation.labels).mean())
        chance = 1 / len(run.dataset.classes)
        if run.dataset.task == "labels":  # As of always giving the commoner answer.
            ones = validation.labels.mean(axis=0)
            chance = float(np.maximum(ones, 1 - ones).mean())
        if accuracy < chance + 0.1 * (1 - chance):
            logger.warning(
                "%s is right on %.1f %% of the validation images, near the %.1f %% of "
                "chance: are its outputs in the order %s, …?",
                self.file,
                100 * accuracy,
                100 * chance,
                ", ".join(map(str, run.dataset.classes[:3])),
            )
        figures = {
            "val_accuracy": accuracy,
            "chance": chance,
            "comparison": comparison.to_json(),
        }
        return fitting.save_outputs(model, folder, figures)
