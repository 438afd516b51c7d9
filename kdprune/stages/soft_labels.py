"""Stores a teacher's logits, so that students need not ask it again."""

from __future__ import annotations

import pathlib
from typing import Literal

import pydantic

from kdprune.stages.base import FLOAT_MODEL, SOFT_LABELS, Node, Result, Run, Stage
from kdprune.stages.settings import Augment, Count, Name


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
        from kdprune import distill
        from kdprune.data import batches
        from kdprune.stages import fitting

        split, augment = run.dataset.shown, fitting.augment_of(self)
        teachers = [fitting.load_node(run, one) for one in node.parents_of("teacher")]
        teachers = fitting.cast_teachers(teachers, self.precision)
        key = distill.store_key(teachers, split, augment=augment, seed=self.own_seed)

        def read_view(view):
            return batches.view_batches(
                split, 500, view=view, seed=self.own_seed, augment=augment
            )

        distill.write_soft_labels(
            teachers, read_view, folder, views=self.views, key=key
        )
        views = distill.load_soft_labels(folder, key)
        labels = run.dataset.train.labels  # The first rows: the others have none.
        right = [float((v[: len(labels)].argmax(1) == labels).mean()) for v in views]
        stored = sorted(path.name for path in folder.glob("view-*.npy"))
        return Result({"train_accuracy_by_view": right}, ["store.json", *stored])
