"""Stores a teacher's logits, so that students need not ask it again."""

from __future__ import annotations

import json
import pathlib
from typing import Literal

import numpy as np
import pydantic

from kdprune import records
from kdprune._log import logger
from kdprune.stages.base import FLOAT_MODEL, SOFT_LABELS, Node, Result, Run, Stage
from kdprune.stages.settings import Augment, Count, Name

# Nats that soft labels must say beyond the labels, not to be warned of. Of CIFAR-10
# the teachers that taught say 0.11 to 0.16 at temperatures 1 to 4; the one trained with
# label smoothing, whose students gained nothing, says 0.05, 0.03 and 0.01.
LEAST_BEYOND_LABELS = 0.08
_STORE, _VIEWS = "store.json", "view-*.npy"


class SoftLabels(Stage):
    """Stores a teacher's logits for augmentation views of the training images."""

    kind: Literal["soft_labels"]
    teacher: Name | tuple[Name, ...]
    """The stages whose logits are stored; of several the mean."""
    views: Count = 1
    """Augmented versions of each image to store logits of."""
    augment: Augment | None = None
    """The augmentation of the views, which students are trained on."""
    precision: Literal["auto", "float32", "mixed_bfloat16"] = "auto"
    """What the teacher computes in."""
    images: Literal["train", "train+validation"] = "train"
    """The images to store logits of: those that students train on."""

    omit_if_default = ("images",)
    accepts = {"teacher": (FLOAT_MODEL,)}
    gives = SOFT_LABELS

    @pydantic.model_validator(mode="after")
    def _views_differ(self) -> SoftLabels:
        if self.views > 1 and self.augment is None:
            raise ValueError("several `views` need `augment`, or they are all alike")
        return self

    def estimate(self, run: Run, node: Node) -> float:
        from kdprune.stages import fitting

        work = fitting.macs_of(run, node) * fitting.images_of(run, node) * self.views
        return fitting.seconds_for(work, self.precision)

    def execute(self, run: Run, node: Node, folder: pathlib.Path) -> Result:
        """Stores the logits of all views; warns of a teacher with little to say."""
        from kdprune import _io, distill
        from kdprune.data import batches
        from kdprune.stages import fitting
        from kdprune.stages.validation import right_by_logits

        split, augment = run.dataset.shown, fitting.augment_of(self)
        if self.images != "train":
            split = fitting.with_validation(run.dataset, split)
        teachers = [fitting.load_node(run, one) for one in node.parents_of("teacher")]
        teachers = fitting.cast_teachers(teachers, self.precision)
        key = distill.store_key(teachers, split, augment=augment, seed=self.own_seed)
        half_done = _io.read_object(folder / _STORE)
        told = {**json.loads(json.dumps(key)), "views": self.views}
        if (folder / _STORE).exists() and {**half_done, **told} != half_done:
            # Begun on a processor for which another precision is the fast one, or
            # changed since.
            for path in (folder / _STORE, *folder.glob(_VIEWS)):
                path.unlink()

        def read_view(view):
            return batches.view_batches(
                split, 500, view=view, seed=self.own_seed, augment=augment
            )

        distill.write_soft_labels(
            teachers, read_view, folder, views=self.views, key=key
        )
        views = distill.load_soft_labels(folder, key)
        labels = run.dataset.train.labels  # The first rows: the others may have none.
        right = [float(right_by_logits(labels, v[: len(labels)]).mean()) for v in views]
        first = views[0][: len(labels)]
        if first.shape[1] == 1:  # The logit of the second of two classes.
            first = np.concatenate([np.zeros_like(first), first], axis=1)
        # What is said beyond labels is told of one of several classes alone.
        said = {}
        if run.dataset.task != "labels":
            for t in sorted({1.0, 2.0, 4.0, *self._temperatures(run, node)}):
                said[f"{t:g}"] = distill.describe_soft_labels(first, labels, t)
        # Of images without labels all that the teacher gives is information.
        if said and run.dataset.unlabelled is None:
            self._warn_if_little(run, node, said)
        stored = sorted(path.name for path in folder.glob(_VIEWS))
        return Result(
            {"train_accuracy_by_view": right, "by_temperature": said},
            [_STORE, *stored],
            # Another processor rounds in other places, and may be faster in another
            # precision: what learned from the store stays done.
            identity=records.fingerprint(
                {
                    "views": self.views,
                    **{k: v for k, v in key.items() if k != "precision"},
                }
            ),
        )

    def _temperatures(self, run: Run, node: Node) -> set[float]:
        """The temperatures of the run's students of it; 4 if it has none yet."""
        given = {
            getattr(student.settings, "temperature", None)
            for student in run.nodes
            if node.name in [store.name for store in student.parents_of("soft_labels")]
        }
        return {float(one) for one in given if isinstance(one, int | float)} or {4.0}

    def _warn_if_little(
        self, run: Run, node: Node, said: dict[str, dict[str, float]]
    ) -> None:
        best = max(said, key=lambda one: said[one]["beyond_labels"])
        plain = said["1"]
        # A smoothed teacher is less sure than right; one that has memorized, surer.
        smoothed = plain["outside_top"] > 2 * (1 - plain["agreement"])
        for temperature in sorted(self._temperatures(run, node)):
            figures = said[f"{temperature:g}"]
            if figures["beyond_labels"] >= LEAST_BEYOND_LABELS:
                continue
            logger.warning(
                "%s: at temperature %g the soft labels hold next to nothing beyond the "
                "labels: %.3f nats, expected at least %g. The teacher is right on "
                "%.1f %% of these images and %s: train it %s%s",
                node.name,
                temperature,
                figures["beyond_labels"],
                LEAST_BEYOND_LABELS,
                100 * figures["agreement"],
                "equally unsure of all of them, as after label smoothing"
                if smoothed
                else "sure of nearly all of them, as if memorized",
                "without it"
                if smoothed
                else "for fewer epochs or on more varied views",
                f"; they hold most at temperature {best}"
                if float(best) != temperature
                else "",
            )
