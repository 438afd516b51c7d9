"""Zeroes weights (unstructured sparsity)."""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pydantic

from kdprune.stages.base import MODEL, Node, Result, Run
from kdprune.stages.settings import Count, Positive, Ratio, Share, Training
from kdprune.stages.trained import Compressed

if TYPE_CHECKING:
    import tf_keras as keras


class Prune(Compressed):
    """Zeroes weights (unstructured sparsity): while training, or in one shot."""

    kind: Literal["prune"]
    sparsity: Share | None = None
    """Share of weights that become zero, in all kernels but depthwise and frozen ones.
    Give this, `relative_threshold` or `threshold`."""
    relative_threshold: Ratio | None = None
    """Weights below this share of their layer's largest become zero."""
    threshold: Positive | None = None
    """Weights that score below this become zero."""
    criterion: Literal["magnitude", "gradient", "taylor", "activation"] = "magnitude"
    """What scores a weight; all but `magnitude` need `schedule: one_shot`."""
    allocation: Literal["uniform", "lamp"] = "uniform"
    """`uniform`: the same sparsity in each layer. `lamp`: allocated per layer by
    the LAMP score."""
    pattern: str | None = None
    """`"2:4"`: two of four weights stay. `"4x1"`: blocks of weights become zero
    (dense layers)."""
    schedule: Literal["polynomial", "constant", "one_shot"] = "polynomial"
    """`polynomial`: rises from `begin` to `end`. `constant`: all at `begin`.
    `one_shot`: before training."""
    begin: Share = 0.0
    """Share of the training after which weights start to become zero."""
    end: Annotated[float, pydantic.Field(gt=0.0, le=1.0)] = 0.5
    """Share of the training at which the sparsity is reached."""
    frequency: Count = 50
    """Steps between two updates of the masks."""
    exclude: tuple[str, ...] = ()
    """Names of layers to leave alone."""
    training: Training
    """How the weights that are left train meanwhile and after."""

    omit_if_default = ("allocation",)
    renamed = {"by": "criterion", "beta": "relative_threshold"}
    role = "prune"
    keeps_layers = True
    in_float32 = True

    @pydantic.model_validator(mode="after")
    def _one_target(self) -> Prune:
        targets = ("sparsity", "relative_threshold", "threshold")
        given = [name for name in targets if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"expected one of {', '.join(targets)}, got "
                f"{', '.join(given) or 'none'}"
            )
        at_once = self.threshold is not None or self.criterion != "magnitude"
        if at_once and self.schedule != "one_shot":
            raise ValueError(
                "`threshold` and `criterion` choose weights once, before training: "
                f"expected schedule: one_shot, got {self.schedule}"
            )
        if self.schedule == "one_shot" and (self.sparsity or self.pattern):
            raise ValueError(
                "schedule: one_shot expects `threshold` or `relative_threshold`, and "
                "no `pattern`"
            )
        if self.allocation != "uniform" and (self.sparsity is None or self.pattern):
            raise ValueError(
                f"allocation: {self.allocation} gives each layer its part of a "
                "`sparsity`: expected `sparsity`, and no `pattern`, which sets that of "
                "each layer"
            )
        if self.criterion == "activation" and self.threshold is None:
            raise ValueError(
                "criterion: activation expects `threshold`, a rate in (0, 1]"
            )
        chosen = self.training
        if chosen.select == "best" or chosen.patience:
            # An epoch chosen for its accuracy is one before the zeros are there.
            raise ValueError(
                "`training` of a prune stage expects select: last and no patience"
            )
        if self.end <= self.begin:
            raise ValueError(f"expected begin < end, got {self.begin} and {self.end}")
        return self

    def execute(self, run: Run, node: Node, folder: pathlib.Path) -> Result:
        """Zeroes weights, which stay zero while the others recover."""
        from kdprune import prune
        from kdprune.models import load_model
        from kdprune.stages import fitting

        base = fitting.load_node(run, node.parent_of("from"))
        masks: dict[str, Any] = {}
        if self.schedule == "one_shot":
            masks = self._masks(run, base)
            if run.workers and self.together():
                # Scores are rounded by each processor in its own way.
                agreed = run.workers.agree_on_arrays(list(masks.values()))
                masks = dict(zip(masks, agreed, strict=True))
            fitted, figures = fitting.fit_stage(
                run, node, folder, lambda _: prune.apply_masks(base, masks)
            )
            fitted = prune.strip_masks(fitted)
        else:
            fitted, figures = self._in_steps(run, node, folder, base)
        result = fitting.save_outputs(fitted, folder, figures)
        # From the saved file, not from what was meant to be written.
        saved = load_model(folder / MODEL)
        prune.check_masks(saved, masks)
        result.figures["sparsity_by_layer"] = prune.layer_sparsity(saved)
        if self.sparsity is not None:
            result.figures["sparsity"] = prune.sparsity_figures(
                saved, self.sparsity, self.exclude
            )
        return result

    def _masks(self, run: Run, base: keras.Model) -> dict[str, Any]:
        """Masks of what scores below a threshold."""
        from kdprune import prune
        from kdprune.stages.validation import ranking_images

        images, labels = ranking_images(run, self.own_seed)
        if self.criterion == "activation":
            assert self.threshold is not None  # It is checked with the settings.
            return prune.activation_masks(
                base, self.threshold, images, ignore=self.exclude
            )
        return prune.weight_masks(
            base,
            self.threshold,
            relative_threshold=self.relative_threshold,
            criterion=self.criterion,
            data=(images, labels),
            exclude=self.exclude,
        )

    def _in_steps(
        self, run: Run, node: Node, folder: pathlib.Path, base: keras.Model
    ) -> tuple[keras.Model, dict[str, Any]]:
        """Zeroes the smallest weights step by step while training goes on."""
        from kdprune import prune
        from kdprune.stages import fitting

        share: float | dict[str, float]
        if self.relative_threshold is not None:
            share = prune.sparsity_below(base, self.relative_threshold, self.exclude)
        else:
            assert self.sparsity is not None  # One of the two is given.
            share = self.sparsity
            if self.allocation == "lamp":
                share = prune.lamp_sparsity(base, share, self.exclude)

        def wrapped(steps):
            return prune.prune_magnitude(
                base,
                share,
                schedule=self.schedule,
                begin=int(self.begin * steps),
                end=max(int(self.end * steps), 1),
                frequency=self.frequency,
                exclude=self.exclude,
                pattern=self.pattern,
            )

        callbacks = prune.pruning_callbacks()
        fitted, figures = fitting.fit_stage(
            run, node, folder, wrapped, callbacks, cast=False
        )
        return prune.strip_pruning(fitted), figures
