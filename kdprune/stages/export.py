"""Writes `.tflite` files, each past the export gate."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pydantic

from kdprune import _io
from kdprune._log import logger
from kdprune.stages.base import (
    FILES,
    FLOAT_MODEL,
    QUANTIZED_MODEL,
    Node,
    Result,
    Run,
    Stage,
)
from kdprune.stages.settings import Names, Share

if TYPE_CHECKING:
    from kdprune import tflite

# Scored on the kernels that are slow: those of reference take a tenth of a second
# for an image and a model of 12 M multiplications.
_KERNEL_IMAGES = 100


class Export(Stage):
    """Writes and checks `.tflite` files."""

    kind: Literal["export"]
    from_: Names = pydantic.Field(alias="from")
    """The stages whose models become files."""
    max_disagreement: Share = 0.05
    """Share of validation images on which a file may predict another class than its
    Keras model, unless its probabilities deviate by less than that on the mean; of
    several labels, share of all answers."""
    max_drop: Share = 0.01
    """Accuracy that a file may lose, as a share of images: it is refused if it
    surely loses more. Of several labels, macro F1."""
    slim: bool = True
    """Store what is equal in a file once and its tensors' names beside it, if that is
    proven to change no output."""
    max_deviation: Share = 0.1
    """Mean deviation of a file's probabilities from its Keras model's; of each class's
    images twice as much, of QAT 0.4 of it."""

    on_refusal: Literal["stop", "keep"] = "stop"
    """Whether a file that the gate refuses, or that can't be made, ends the run when
    all others are made, or is told of. If there is one, it is kept as
    `NAME.rejected.tflite` in both cases, and measured beside the others."""

    omit_if_default = ("slim", "max_deviation", "on_refusal")
    accepts = {"from": (FLOAT_MODEL, QUANTIZED_MODEL)}
    gives = FILES
    role = "export"

    def draws(self) -> bool:
        return False

    def execute(self, run: Run, node: Node, folder: pathlib.Path) -> Result:
        """Writes the `.tflite` files of every model, each past the gate.

        What the gate refuses is kept as `NAME.rejected.tflite`, with the reasons in
        `NAME.rejected.json`, and ends the stage when all files are made, or stands in
        the record as `refused`. So does a file that can't be made, of which the reason
        is all that there is: others are of other types, or of other models.
        """
        from kdprune import evaluate, tflite
        from kdprune.stages import fitting
        from kdprune.tflite.convert import is_quantization_aware

        files: dict[str, dict[str, Any]] = {}
        written: list[str] = []
        refused: dict[str, dict[str, Any]] = {}
        for parent in node.all_parents():
            model = fitting.load_node(run, parent)
            head, images = run.dataset.head, run.dataset.validation.images
            scores = evaluate.predict(model, images, head=head)
            meant, scores_of_bytes = tflite.meant_by_bytes(model), scores
            if meant is not model:
                scores_of_bytes = evaluate.predict(meant, images, head=head)
            shown: tflite.Calibration | None = None
            for dtype, arguments in parent.settings.conversions(run, parent):
                name = f"{parent.stage}.{dtype}.tflite"
                logger.info("writing %s", name)
                _partial(folder / name).unlink(missing_ok=True)
                calibration = arguments.pop("calibration", None)
                try:
                    if calibration is not None and dtype in ("int8", "uint8"):
                        # What the images show is the same for both.
                        shown = shown or tflite.Calibration(
                            model, calibration, head=head
                        )
                        content = shown.convert(dtype, **arguments)
                    else:
                        content = tflite.convert_tflite(
                            model, dtype, calibration, head=head, **arguments
                        )
                    files[name] = self._pass_gate(
                        run,
                        folder / name,
                        content,
                        scores_of_bytes if dtype in ("int8", "uint8") else scores,
                        float_layers=arguments.get("float_layers", ()),
                        strict=is_quantization_aware(model),
                        input_range=tflite.input_range_of(model),
                    )
                except ValueError as error:
                    plain = functools.partial(
                        _plain_accuracy, run, parent, dtype, folder
                    )
                    refused[name] = _keep(folder / name, error, plain, node)
                    if "file" in refused[name]:
                        written += [path.name for path in rejected(folder / name)]
                    continue
                written.append(name)
                if self.slim:
                    figures = files[name]
                    figures["slimmed"], names = self._slim(folder / name)
                    written += names
        told = [one["message"] for one in refused.values()]
        if refused and self.on_refusal == "stop":
            raise ValueError("; ".join(told))
        for line in told:
            logger.warning("%s", line)
        return Result(
            {"files": files, **({"refused": refused} if refused else {})}, written
        )

    def _slim(self, path: pathlib.Path) -> tuple[dict[str, Any], list[str]]:
        """Makes a file smaller; returns what that was worth and the names' file."""
        from kdprune import tflite

        names = tflite.tensor_names(path)
        slimmed = tflite.slim_tflite(path)
        figures = {"bytes_before": slimmed.before, "bytes": slimmed.after}
        if slimmed.reason is not None:
            return {**figures, "kept": slimmed.reason}, []
        _io.write_file(path, slimmed.content)
        place = tflite.write_names(path, names)
        return {**figures, "equal_on_inputs": slimmed.proof}, [place.name]

    def _pass_gate(
        self,
        run: Run,
        path: pathlib.Path,
        content: bytes,
        keras_scores: np.ndarray,
        **asked: Any,
    ) -> dict[str, Any]:
        """Puts a file in its place if it passes the gate; returns the figures."""
        from kdprune import evaluate, images, tflite

        validation = run.dataset.validation
        partial = _partial(path)
        _io.write_file(partial, content)

        def score(resolver, chosen=slice(None)):
            return evaluate.predict(
                partial,
                validation.images[chosen],
                resolver=resolver,
                head=run.dataset.head,
            )

        scores = score("xnnpack")
        figures = tflite.check_tflite(
            content,
            keras_scores,
            scores,
            validation.labels,
            max_disagreement=self.max_disagreement,
            max_drop=self.max_drop,
            max_deviation=self.max_deviation,
            **asked,
        )
        few = images.spread(len(validation), _KERNEL_IMAGES)
        slow, lacking = {}, {}
        for name in ("builtin", "reference"):
            try:
                slow[name] = score(name, few)
            except ValueError as error:  # They have not every operator.
                lacking[name] = {"error": str(error)}
        several = run.dataset.task == "labels"
        limits = (self.max_disagreement, several, self.max_deviation)
        try:
            figures["kernels"] = {
                **tflite.compare_kernels(keras_scores, {"xnnpack": scores}, *limits),
                **tflite.compare_kernels(keras_scores[few], slow, *limits),
                **lacking,
            }
        except ValueError as error:
            raise tflite.RefusedFile([str(error)], figures) from error
        figures["xnnpack_leaves"] = tflite.xnnpack_leaves(content)
        for kept in rejected(path):
            kept.unlink(missing_ok=True)  # Of a run that was stricter.
        partial.replace(path)
        return figures


def rejected(path: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """Where a refused file is kept, and its record."""
    kept = path.with_name(f"{path.stem}.rejected.tflite")
    return kept, kept.with_suffix(".json")


def _partial(path: pathlib.Path) -> pathlib.Path:
    """Where a file is until it has passed the gate."""
    return path.with_name(f"partial.{path.name}")


def _keep(
    path: pathlib.Path,
    error: ValueError,
    plain_accuracy: Callable[[], float | None],
    node: Node,
) -> dict[str, Any]:
    """Keeps a refused file, if there is one, with its record; what to tell of it."""
    (kept, record), partial = rejected(path), _partial(path)
    content = getattr(error, "content", None)
    if content is not None:  # It was refused when it was made.
        _io.write_file(partial, content)
    reasons = getattr(error, "reasons", [str(error)])
    if not partial.exists():
        return {"reasons": reasons, "message": f"{path.name} can't be made: {error}"}
    plain = plain_accuracy()
    partial.replace(kept)
    figures = {**getattr(error, "figures", {}), "plain_accuracy": plain}
    _io.write_json(record, {"reasons": reasons, "figures": figures})
    beside = ""
    if plain is not None:
        beside = f"; the plain converter's file of the same model has {plain:.2%}"
    message = (
        f"{path.name} failed the export gate: {error}{beside}; it is kept as "
        f"{node.name}/{kept.name}"
    )
    return {"file": kept.name, "reasons": reasons, "message": message}


def _plain_accuracy(
    run: Run, parent: Node, dtype: str, folder: pathlib.Path
) -> float | None:
    """What the plain converter's file of the same float model scores, if any."""
    from kdprune import evaluate, tflite
    from kdprune.stages import fitting
    from kdprune.stages.quantize import Quantize

    settings, validation = parent.settings, run.dataset.validation
    if not isinstance(settings, Quantize) or not settings.writes_int8():
        return None
    base = fitting.load_node(run, parent.parent_of("from"))
    try:
        images = settings.calibration_images(run)
        content = tflite.content_of(
            lambda: tflite.convert_tflite(base, dtype, images, head=run.dataset.head)
        )
    except ValueError:
        return None
    path = folder / f"partial.plain.{dtype}.tflite"
    _io.write_file(path, content)
    try:
        scores = evaluate.predict(path, validation.images, head=run.dataset.head)
    except ValueError:  # It does not run: the other file's fault is to be told.
        return None
    finally:
        path.unlink()
    return tflite.paired_drop(scores, scores, validation.labels)["tflite_accuracy"]
