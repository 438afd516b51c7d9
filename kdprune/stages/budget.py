"""Int8 within an accuracy budget: what is cheap first, until it costs little enough."""

from __future__ import annotations

import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol, cast

from kdprune import _io, evaluate, quantize, tflite
from kdprune._log import logger
from kdprune.stages.base import Node, Result, Run
from kdprune.stages.trained import Taught

if TYPE_CHECKING:
    import tf_keras as keras

    from kdprune.data import Dataset

# How many times as many calibration images are tried, where there are that many.
_MORE_IMAGES = 4
# How many of the most sensitive layers are then left in float: at most half of those
# that have weights, since the rest would not be worth the conversions.
_IN_FLOAT = (1, 2, 4)


class Quantizes(Protocol):
    """What is asked of the stage that quantizes."""

    max_drop: float | None
    preserve_clusters: Any

    def calibration_images(self, run: Run, count: int | None = None) -> Any:
        """The calibration images, or as many others."""

    def save(
        self,
        run: Run,
        folder: pathlib.Path,
        model: Any,
        conversion: dict[str, Any] | None = None,
        images: int | None = None,
    ) -> list[str]:
        """Saves the model and the plan of its files."""


@dataclasses.dataclass(frozen=True)
class _Made:
    """What an attempt made: the file, and what it is made of once more.

    `images` is the number of calibration images, None of quantization-aware training.
    """

    name: str
    content: bytes
    model: object
    conversion: dict
    images: int | None


def within_budget(
    settings: Quantizes, run: Run, node: Node, folder: pathlib.Path, base: keras.Model
) -> Result:
    """Tries what is cheap first, until the accuracy it costs is within bounds."""
    from kdprune.stages import fitting

    validation = run.dataset.validation
    calibration = settings.calibration_images(run)
    head = run.dataset.head
    expected = evaluate.predict(base, validation.images, head=head)
    # The bound of each file, by its attempt; and the least one of the files without
    # layers in float, of the model as it is and of the equalized one.
    measured: dict[str, float] = {}
    bounds = {False: math.inf, True: math.inf}

    @functools.cache
    def equalized():
        return quantize.equalize_channels(base, calibration)

    @functools.cache
    def shown(equalize, count):
        images = settings.calibration_images(run, count)
        return tflite.Calibration(equalized() if equalize else base, images, head=head)

    def calibrated(name, options, count):
        conversion = dict(options)
        equalize = conversion.pop("equalize", False)
        convert = functools.partial(shown(equalize, count).convert, **conversion)
        content = tflite.content_of(convert)  # The export says why it is refused.
        made_of = equalized() if equalize else base
        return _Made(name, content, made_of, conversion, count)

    def trained(name, node, folder):
        # Equalized where that has been seen to help, and has no weights in common.
        helps = bounds[True] < bounds[False]
        clustered = fitting.is_clustered(base, settings.preserve_clusters)
        start = equalized() if helps and not clustered else base
        model, _ = node.settings.train_quantized(run, node, folder, start)
        in_float = list(model.quantized_from.float_layers)
        conversion = {"float_layers": in_float} if in_float else {}
        convert = functools.partial(tflite.convert_tflite, model, "int8", head=head)
        content = tflite.content_of(convert)
        return _Made(name, content, model, conversion, None)

    layers = shown(False, len(calibration)).report()

    def attempts():
        available = len(run.dataset.train)
        for name, *how in _after_training(
            layers, len(calibration), available, measured
        ):
            yield quantize.Attempt(name, functools.partial(calibrated, name, *how))
        for name, *how in _by_training(node, folder):
            yield quantize.Attempt(name, functools.partial(trained, name, *how))

    def judge(made):
        path = folder / "attempt.tflite"
        _io.write_file(path, made.content)
        scores = evaluate.predict(path, validation.images, head=head)
        path.unlink()
        figures = tflite.paired_drop(expected, scores, validation.labels)
        measured[made.name] = figures["drop_bound"]
        found, asked = tflite.inspect_tflite(made.content), made.conversion
        kept, _ = tflite.float_layers_of(found, asked.get("float_layers", ()))
        if made.images is not None and not kept:
            changed = made.model is not base
            bounds[changed] = min(bounds[changed], figures["drop_bound"])
        return {**figures, "bytes": len(made.content), "float_layers": kept}

    assert settings.max_drop is not None  # Method auto needs it.
    outcome = quantize.meet_budget(attempts(), judge, settings.max_drop)
    logger.info(outcome.message)
    if outcome.best is None:
        raise ValueError(outcome.message)
    best = outcome.best
    figures = {
        "layers": layers,
        "method": "auto",
        "chosen": outcome.name,
        "met": outcome.met,
        "message": outcome.message,
        "attempts": _with_float_bytes(outcome.attempts),
    }
    saved = settings.save(run, folder, best.model, best.conversion, best.images)
    return Result(figures, saved)


def _after_training(
    layers: list[dict[str, Any]],
    images: int,
    available: int,
    measured: Mapping[str, float],
) -> Iterator[tuple[str, dict[str, Any], int]]:
    """What is tried before anything is trained, the cheapest first.

    Each step starts from what was best so far: trying all of them with each other
    would take twice as many files, which differ by chance as often as not.

    Args:
        layers: What `tflite.layer_report` returned.
        images: The number of calibration images.
        available: The number of training images, to calibrate with more.
        measured: The bound of what an attempt costs, by its name: looked up when the
            next one is asked for.

    Yields:
        An attempt's name, arguments of `convert_tflite` and whether to equalize, the
        number of calibration images.
    """
    tried: list[dict[str, Any]] = []

    def best() -> dict[str, Any]:
        return min(tried, key=lambda one: measured.get(_describe(one), math.inf))

    plain = {"correct_bias": False, "equalize": False}
    steps: list[Callable[[], dict[str, Any]]] = [
        *(
            functools.partial(dict, plain, range_method=ranges)
            for ranges in ("minmax", "percentile", "mse")
        ),
        lambda: {**best(), "equalize": True},
        lambda: {**best(), "correct_bias": True},
    ]
    for step in steps:
        tried.append(step())
        yield _describe(tried[-1]), tried[-1], images
    options = best()
    # Images are shown once for all of the above, and cost most of their time.
    if (more := _MORE_IMAGES * images) <= available:
        yield f"{_describe(options)}, {more:,} images", options, more
    for in_float in _some_in_float(layers):
        yield _describe(in_float), in_float, images


def _by_training(
    node: Node, folder: pathlib.Path
) -> list[tuple[str, Node, pathlib.Path]]:
    """Lists name, node and folder of each training: on labels, then under a teacher."""
    settings = cast(Taught, node.settings)
    if not settings.trains():
        return []
    if not settings.taught:
        return [("QAT", node, folder)]
    # In a folder of its own, where its checkpoint is not taken for the other's.
    untaught = ("QAT", _untaught(node), folder / "labels")
    return [untaught, ("QAT with distillation", node, folder)]


def _untaught(node: Node) -> Node:
    """The node without its teacher, on images changed as those it is taught by."""
    settings = cast(Taught, node.settings)
    changes: dict[str, Any] = {"teacher": None, "soft_labels": None}
    if settings.soft_labels:
        store: Any = node.parent_of("soft_labels").settings
        augment = store.augment
        changes["training"] = settings.training.model_copy(update={"augment": augment})
    return dataclasses.replace(node, settings=settings.model_copy(update=changes))


def _some_in_float(layers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Options that leave the layers of the largest error in float, few first."""
    weighted = {row["layer"] for row in layers if row["weight_low"] is not None}
    counts = [count for count in _IN_FLOAT if count <= len(weighted) / 2]
    # Fewer layers than that may have an error at all.
    found = {tuple(tflite.sensitive_layers(layers, count)): None for count in counts}
    return [
        {"range_method": "minmax", "correct_bias": True, "float_layers": list(names)}
        for names in found
        if names
    ]


def _with_float_bytes(attempts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The attempts, with the bytes that layers in float cost against none of them."""
    plain = next((row["bytes"] for row in attempts if "bytes" in row), 0)
    return [
        {**row, "float_bytes": row["bytes"] - plain} if row.get("float_layers") else row
        for row in attempts
    ]


def _describe(options: dict[str, Any]) -> str:
    corrected = ", biases corrected" if options["correct_bias"] else ""
    left = ", ".join(options.get("float_layers", ()))
    in_float = f", in float: {left}" if left else ""
    first = "PTQ, channels equalized" if options.get("equalize") else "PTQ"
    return f"{first}, {options['range_method']} ranges{corrected}{in_float}"


def check_provable(key: str, max_drop: float, dataset: Dataset) -> None:
    """Raises `ValueError` for a budget that no result could be proven to meet."""
    labels = dataset.validation.labels
    given, needed = len(labels), tflite.images_to_prove(max_drop, labels)
    if given < needed:
        raise ValueError(
            f"{key}: expected at least {needed:,} validation images, without which not "
            f"even a file that changes nothing is proven to lose at most "
            f"{100 * max_drop:g} points. Received: {given:,}; give more images or a "
            "larger data.validation, or allow a larger drop"
        )
