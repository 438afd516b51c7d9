"""Prepares a model for fewer bits."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pydantic

from kdprune.stages.base import QUANTIZED_MODEL, Node, Result, Run
from kdprune.stages.settings import Count, Ratio
from kdprune.stages.trained import Compressed

if TYPE_CHECKING:
    import tf_keras as keras

# The types whose ranges come from images, if the model was not trained with its own.
_CALIBRATED = ("int8", "uint8", "int16x8")


class Quantize(Compressed):
    """Quantizes a model: after training, or by quantization-aware training."""

    kind: Literal["quantize"]
    method: Literal["ptq", "qat", "auto", "float16", "dynamic", "int16x8"] = "ptq"
    """See [Quantization](quantization.md)."""
    calibration: Count | None = None
    """Images of a calibration draw of its own, by this stage's seed; the data's if
    left out."""
    range_method: Literal["minmax", "percentile", "mse"] = "minmax"
    """`ptq`: `minmax` spans the observed range, `percentile` leaves out the outer
    0.01 %, `mse` clips to the least squared error."""
    correct_bias: bool = False
    """`ptq`: take each channel's mean error off its bias."""
    equalize: bool = False
    """`ptq`: give the channels that share a scale like ranges first, which changes
    nothing in float."""
    max_drop: Ratio | None = None
    """`auto`: accuracy that may be lost, as a share of images; of several labels,
    macro F1."""
    float_layers: list[str] = []
    """`ptq`, `qat`: names of layers to leave in float, in a file that is int8
    otherwise."""
    preserve_sparsity: bool | Literal["auto"] = "auto"
    """`qat`: keep zero weights at zero; `auto` does where the model is pruned."""
    preserve_clusters: bool | Literal["auto"] = "auto"
    """`qat`: keep each kernel's distinct weights; `auto` does where the model is
    clustered."""

    omit_if_default = ("equalize", "float_layers")
    renamed = {"ranges": "range_method"}
    gives = QUANTIZED_MODEL
    role = "quantize"
    # Fake quantization costs three times as much again.
    passes = 9
    in_float32 = True

    @pydantic.model_validator(mode="after")
    def _fits_the_method(self) -> Quantize:
        given = {"training", "teacher", "soft_labels"} & self.model_fields_set
        if self.method not in ("qat", "auto") and given:
            raise ValueError(
                f"method {self.method} trains nothing, got `{sorted(given)[0]}`; "
                "remove it, or set method: qat"
            )
        if self.method == "qat" and "training" not in given:
            raise ValueError(
                "method qat expects `training`, with a learning rate about a hundredth "
                "of the one the model was trained with"
            )
        if self.method == "auto" and given and "training" not in given:
            raise ValueError(
                "method auto learns from a teacher in quantization-aware training: "
                "expected `training` as well"
            )
        chosen = {"range_method", "correct_bias", "equalize"} & self.model_fields_set
        if self.method != "ptq" and chosen:
            raise ValueError(
                f"`{sorted(chosen)[0]}` is for method ptq, got {self.method}"
            )
        if self.method not in ("ptq", "qat") and self.float_layers:
            raise ValueError(
                f"`float_layers` is for methods ptq and qat, got {self.method}"
            )
        if self.method in ("float16", "dynamic") and self.calibration:
            raise ValueError(
                f"method {self.method} needs no images, got `calibration`; remove it"
            )
        if (self.method == "auto") != (self.max_drop is not None):
            raise ValueError(
                "`max_drop`, the accuracy that may be lost, is for method auto, which "
                "needs it"
            )
        return self

    def draws(self) -> bool:
        return bool({"training", "calibration"} & self.model_fields_set)

    def trains(self) -> bool:
        return "training" in self.model_fields_set

    def together(self) -> bool:
        # What `auto` trains depends on files that are measured on one machine.
        return self.trains() and self.method == "qat"

    def writes_int8(self) -> bool:
        return self.method in ("ptq", "qat", "auto")

    def load_model(self, run: Run, node: Node) -> keras.Model:
        from kdprune import quantize

        return quantize.load_quantized(run.folder / node.name)

    def check(self, run: Run, node: Node) -> None:
        """Refuses a stage that can't end well.

        That is an accuracy budget that no result could prove to be met, and a layer
        that quantization-aware training refuses, where the recipe tells the model's
        layers.
        """
        from kdprune import quantize
        from kdprune.stages.budget import check_provable

        super().check(run, node)
        key = f"stages.{node.stage}"
        available = len(run.dataset.train)
        if self.calibration is not None and self.calibration > available:
            raise ValueError(
                f"{key}.calibration: expected at most {available} (the training "
                f"images), got {self.calibration}"
            )
        if self.max_drop is not None:
            check_provable(f"{key}.max_drop", self.max_drop, run.dataset)
        source = node.parent_of("from").source()
        # Cells of a matrix that differ in other settings have the same layers.
        if (
            self.method == "qat"
            and source is not None
            and run.first_time(f"quantized {source.settings.origin()!r}")
        ):
            try:
                untrained = source.settings.untrained_model(run, source)
                quantize.quantize_model(untrained, float_layers=self.float_layers)
            except ValueError as error:
                raise ValueError(f"{key}: {error}") from error

    def execute(self, run: Run, node: Node, folder: pathlib.Path) -> Result:
        """Hands on a model and the plan of its files, as the method says."""
        from kdprune import quantize, tflite
        from kdprune.stages import budget, fitting

        base = fitting.load_node(run, node.parent_of("from"))
        if self.method == "auto":
            return budget.within_budget(self, run, node, folder, base)
        if self.method == "qat":
            fitted, trained = self.train_quantized(run, node, folder, base)
            return Result(trained, self.save(run, folder, fitted))
        figures: dict[str, Any] = {"method": self.method}
        conversion: dict[str, Any] = {"dtypes": [self.method]}
        if self.method == "ptq":
            chosen = self.range_method
            conversion = {"range_method": chosen, "correct_bias": self.correct_bias}
            if self.float_layers:
                conversion["float_layers"] = list(self.float_layers)
            images = self.calibration_images(run)
            if self.equalize:
                base = quantize.equalize_channels(base, images)
            figures["layers"] = tflite.layer_report(
                base, images, range_method=chosen, head=run.dataset.head
            )
        calibrated = self.method in ("ptq", *_CALIBRATED)
        count = len(self.calibration_images(run)) if calibrated else None
        return Result(figures, self.save(run, folder, base, conversion, count))

    def conversions(self, run: Run, node: Node) -> Iterator[tuple[str, dict[str, Any]]]:
        from kdprune import quantize

        plan = quantize.read_plan(run.folder / node.name)
        options = dict(plan["conversion"])
        if "ranges" in options:  # As earlier versions have written it.
            options["range_method"] = options.pop("ranges")
        for dtype in options.pop("dtypes"):
            images = None
            if plan["method"] == "ptq" and dtype in _CALIBRATED:
                count = (plan["calibration"] or {}).get("images")
                if type(count) is not int or not 0 < count <= len(run.dataset.train):
                    raise ValueError(
                        f"{run.folder / node.name / 'plan.json'}: calibration.images: "
                        f"expected a number of images. Received: {count!r}; run the "
                        "quantizing stage again"
                    )
                images = self.calibration_images(run, count)
            yield dtype, {"calibration": images, **options}

    def train_quantized(
        self, run: Run, node: Node, folder: pathlib.Path, base: keras.Model
    ) -> tuple[keras.Model, dict[str, Any]]:
        """Quantization-aware training that keeps zeros and clusters.

        `node` is this stage's, or one of the same stage with other settings.
        """
        from kdprune import quantize
        from kdprune.stages import fitting

        calibration = self.calibration_images(run)
        sparse = fitting.is_sparse(base, self.preserve_sparsity)
        clustered = fitting.is_clustered(base, self.preserve_clusters)

        def wrapped(steps):
            return quantize.quantize_model(
                base,
                preserve_sparsity=sparse,
                calibration=calibration,
                preserve_clusters=clustered,
                float_layers=self.float_layers,
            )

        fitted, figures = fitting.fit_stage(run, node, folder, wrapped, cast=False)
        if self.training.ema or clustered:
            # Ranges and centroids are those of the last steps; the weights are not.
            quantize.calibrate_ranges(fitted, calibration)
        kept = {"preserve_sparsity": bool(sparse), "preserve_clusters": bool(clustered)}
        if fitted.quantized_from.float_layers:
            figures["float_layers"] = list(fitted.quantized_from.float_layers)
        return fitted, {**figures, "method": "qat", **kept}

    def calibration_images(self, run: Run, count: int | None = None) -> np.ndarray:
        """Training images that set ranges: the recipe's, or a draw of the stage's own.

        `count` is how many, if not as many as usual.
        """
        from kdprune.data import stratified_sample

        usual = np.asarray(run.dataset.calibration.images)
        number = count or self.calibration or len(usual)
        if self.calibration is None and number == len(usual):
            return usual
        split, seed = run.dataset.train, self._calibration_seed(run)
        drawn = stratified_sample(split.labels, number, (seed, 2))
        return split.images[drawn]

    def _calibration_seed(self, run: Run) -> int:
        # Stages that draw no number of their own are shared by all seeds.
        own = self.calibration is not None
        return self.own_seed if own else run.recipe.data.seed

    def save(
        self,
        run: Run,
        folder: pathlib.Path,
        model: keras.Model,
        conversion: dict[str, Any] | None = None,
        images: int | None = None,
    ) -> list[str]:
        """Saves model and plan; returns the names of the files.

        Args:
            images: The number of calibration images; None of quantization-aware
                training.
        """
        from kdprune import quantize

        account = None
        if images is not None:
            account = {"images": images, "seed": self._calibration_seed(run)}
        plan = quantize.save_quantized(model, folder, account, conversion)
        return [*plan["files"], "plan.json"]
