"""The recipe that `compress` runs: written for a person who goes on from it."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from typing import Any

from kdprune.compression.request import (
    FILES,
    INT8,
    MEASURED,
    NAMED,
    ORIGINAL,
    RECIPE,
    SMALLER,
    TEACHER,
    Request,
    command_of,
)

# How many images recovery, and quantization-aware training, get to see in all, and how
# many epochs that is at least and at most.
_RECOVERY = (250_000, 3, 30)
_QUANTIZED = (60_000, 1, 6)
# Below this many training images small batches make more steps of them.
_FEW = 10_000


@dataclasses.dataclass(frozen=True)
class Counts:
    """How many images there are.

    Attributes:
        train: Those to train on, validation images that are drawn from them included.
        validation: Those that the data comes with for validation, or None.
        held_out: How many of `train` are held out where it comes with none.
        provable: The least drop that the validation images can prove.
    """

    train: int
    validation: int | None
    held_out: int
    provable: float

    @property
    def trained_on(self) -> int:
        return self.train - (0 if self.validation else self.held_out)

    @property
    def validated_on(self) -> int:
        return self.validation or self.held_out


def write_page(
    request: Request,
    shape: tuple[int, int, int],
    counts: Counts,
    task: str | None = None,
) -> str:
    """The recipe's text.

    Args:
        request: What was asked.
        shape: Height, width and channels of the model's images.
        counts: The images.
        task: What labels mean, if their form does not tell: "binary" of a model of a
            single unit.

    Returns:
        YAML with comments. The same arguments give the same text.
    """
    return "\n".join(
        [
            *_head(request),
            "",
            *_data(request, shape, counts, task),
            "",
            f"baseline: {ORIGINAL}  # what the others are compared with",
            f"flagship: {INT8}  # whose files are shown at the run's top",
            "",
            "stages:",
            *_stages(request, counts),
            "",
        ]
    )


def _head(request: Request) -> list[str]:
    folder = request.folder.absolute()
    again = ["run", str(folder / RECIPE), "--output", str(folder)]
    if request.data_dir and request.dataset in NAMED:
        again += ["--data-dir", str(request.data_dir)]
    return [
        "# Written by",
        f"#   {request.command}",
        "# To go on from what is done, or after a change in here:",
        f"#   {command_of(again)}",
        "# Every key: docs/recipe-reference.md. A stage that is done is skipped until "
        "its",
        "# settings, the images or the model change.",
        f"name: {request.name}",
    ]


def _data(
    request: Request,
    shape: tuple[int, int, int],
    counts: Counts,
    task: str | None,
) -> list[str]:
    height, width, channels = shape
    kind = request.dataset
    named = _text(request.path) if kind == "npz" else kind
    lines = ["data:", f"  dataset: {named}"]
    if kind == "folder":
        lines.append(f"  path: {_text(request.path)}")
        lines.append(
            f"  image_size: [{height}, {width}]  # what the model takes; images are "
            "resized to it"
        )
        lines.append(f"  channels: {channels}")
        if request.resize != "stretch":
            lines.append(f"  resize: {request.resize}")
        if request.on_error != "stop":
            lines.append(
                f"  on_error: {request.on_error}  # image files that can't be used are "
                "listed in the records"
            )
    if request.value_range:
        lines.append(f"  range: {_text(request.value_range)}  # that values lie in")
    if kind == "shapes":
        lines.append(f"  image_size: {height}")
    if task:
        lines.append(f"  task: {task}  # one unit tells the second class of the two")
    if counts.validation:
        lines.append(
            f"  # {counts.validation:,} validation images: choices are made on them."
        )
    else:
        lines += [
            f"  # {counts.held_out:,} of {counts.train:,} training images are held "
            "out: choices are made on them.",
            f"  validation: {counts.held_out}",
        ]
    lines.append(
        f"  # They can prove that a file loses at most {100 * counts.provable:.2g} "
        "points, if it loses nothing."
    )
    lines.append("  calibration: 500  # training images that set the ranges of int8")
    return lines


def _stages(request: Request, counts: Counts) -> list[str]:
    teacher = TEACHER if request.teacher else ORIGINAL
    lines = [
        "  # Your model: its pixel range and its outputs are found out and checked.",
        *_stage(ORIGINAL, "load", file=request.model.absolute(), **_told(request)),
    ]
    if request.teacher:
        lines += [
            "  # What teaches: it must know the same classes.",
            *_stage(TEACHER, "load", file=request.teacher.absolute()),
        ]
    start = ORIGINAL
    if request.target:
        lines += [
            "  # Channels are removed, the least important first, and what is left",
            f"  # learns from `{teacher}` to do as well again.",
            *_stage(
                SMALLER,
                "prune_channels",
                **{"from": ORIGINAL},
                **request.target,
                teacher=teacher,
                training=_training(request.epochs, _RECOVERY, counts, 1e-3),
            ),
        ]
        start = SMALLER
    epochs = request.epochs
    if epochs and request.target:
        epochs = max(1, round(epochs / 5))
    lines += [
        "  # Int8: after training first, the cheapest way first; then by",
        f"  # quantization-aware training under `{teacher}`. The first that provably",
        "  # loses no more than max_drop, a share of images, is taken.",
        *_stage(
            INT8,
            "quantize",
            **{"from": start},
            method="auto",
            max_drop=request.max_drop,
            teacher=teacher,
            training=_training(epochs, _QUANTIZED, counts, 1e-4),
        ),
    ]
    measured = [ORIGINAL, *([SMALLER] if request.target else []), FILES]
    lines += [
        "  # Files, each checked: this gate refuses what is broken, which is kept as",
        "  # NAME.rejected.tflite and measured, but goes into no kit. Whether a file",
        "  # is good enough is told by max_drop above, and by the test images.",
        *_stage(
            FILES,
            "export",
            **{"from": [ORIGINAL, INT8]},
            max_drop=max(0.1, min(0.9, 2 * request.max_drop)),
            max_disagreement=0.3,
            on_refusal="keep",
        ),
        "  # The only stage that sees the test images.",
        *_stage(MEASURED, "evaluate", **{"from": measured}),
        "  # For Android and microcontrollers: files, code, labels, a self-test.",
        *_stage("kit", "kit", **{"from": MEASURED}, name=request.name),
        *_stage("report", "report", **{"from": MEASURED}),
    ]
    return lines


def _told(request: Request) -> dict[str, Any]:
    """What a user has said of the model, for its `load` stage."""
    labels = request.labels and request.labels.absolute()
    told = {
        "input_range": request.input_range or request.value_range,
        "labels": labels,
        "output": request.model_output and json.dumps(request.model_output),
    }
    return {key: value for key, value in told.items() if value is not None}


def _training(
    epochs: int | None, usual: tuple[int, int, int], counts: Counts, rate: float
) -> dict[str, Any]:
    seen, least, most = usual
    images = counts.trained_on
    usually = min(most, max(least, math.ceil(seen / images)))
    return {
        "epochs": epochs or usually,
        "batch_size": 64 if images < _FEW else 128,
        "optimizer": "adam",
        "learning_rate": rate,
    }


def _stage(called: str, kind: str, /, **keys: Any) -> list[str]:
    lines = [f"  {called}:", f"    kind: {kind}"]
    return lines + [f"    {key}: {_text(value)}" for key, value in keys.items()]


def _text(value: Any) -> str:
    """A value in YAML's flow style."""
    if isinstance(value, dict):
        inner = (f"{key}: {_text(item)}" for key, item in value.items())
        return "{" + ", ".join(inner) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_text, value)) + "]"
    if isinstance(value, pathlib.Path):
        return json.dumps(str(value), ensure_ascii=False)
    if isinstance(value, float):
        written = repr(float(value))  # YAML takes 1e-05 for a word.
        return f"{value:.12f}".rstrip("0") if "e" in written else written
    return str(value)
