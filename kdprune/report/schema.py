"""What records must look like: a wrong figure stops the report by its name.

What is missing is no error: an older record lacks figures that a newer one has. A
figure that is not finite (a loss that overflowed) counts as missing.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    model_validator,
)

# Recipe keys that had other names when older records were written.
RENAMED = {
    "by": "criterion",
    "beta": "relative_threshold",
    "keep": "save_models",
    "like": "architecture_of",
    "ranges": "range_method",
    "slimming": "bn_l1",
}


def _number(value: Any) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("expected a number")
    return value


def _figure(value: Any) -> int | float | None:
    number = None if value is None else _number(value)
    return number if number is not None and math.isfinite(number) else None


def _known(value: Any) -> int | float:
    number = _figure(value)
    if number is None:
        raise ValueError("expected a finite number")
    return number


def _share(value: Any) -> int | float | None:
    share = _figure(value)
    if share is not None and not 0 <= share <= 1:
        raise ValueError("expected a share in [0, 1]; divide percentages by 100")
    return share


def _known_share(value: Any) -> int | float:
    return _known(_share(value))


Number = Annotated[float, PlainValidator(_known)]
Figure = Annotated[float | None, PlainValidator(_figure)]
Share = Annotated[float | None, PlainValidator(_share)]
KnownShare = Annotated[float, PlainValidator(_known_share)]
T = TypeVar("T", bound=BaseModel)


class _Schema(BaseModel):
    """Reads an object of a record; keys that no figure is taken from are kept."""

    model_config = ConfigDict(extra="allow", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _null_is_missing(cls, content: Any) -> Any:
        if not isinstance(content, dict):
            return content
        fields = cls.model_fields
        return {k: v for k, v in content.items() if v is not None or k not in fields}


def _interval(value: Any) -> list[float] | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError("expected [low, high]")
    ends = [end for end in map(_figure, value) if end is not None]
    return ends if len(ends) == 2 else None


def _square(value: Any) -> list[list[float]] | None:
    if not value:
        return None
    if not isinstance(value, list) or not all(
        isinstance(row, list) and len(row) == len(value) for row in value
    ):
        raise ValueError("expected a square table of counts")
    return [[_figure(count) or 0 for count in row] for row in value]


def _shares_by_layer(value: Any) -> dict[str, float]:
    if not isinstance(value or {}, dict):
        raise ValueError("expected an object of shares")
    shares = {layer: _share(share) for layer, share in (value or {}).items()}
    return {layer: share for layer, share in shares.items() if share is not None}


class Fit(_Schema):
    """Whether a file fits one board or phone."""

    board: str
    fits: bool
    place: str | None = None
    flash: Figure = None
    flash_of: Figure = None
    ram: Figure = None
    ram_of: Figure = None
    measured: bool = False
    reasons: list[str] = []


class Entry(_Schema):
    """One measured model or file in `metrics.json`."""

    name: str
    accuracy: Share = None
    agreement: Share = None
    accuracy_ci: Annotated[list[float] | None, PlainValidator(_interval)] = None
    balanced_accuracy: Share = None
    confusion: Annotated[list[list[float]] | None, PlainValidator(_square)] = None
    task: str | None = None
    auc: Share = None
    macro_f1: Share = None
    mean_average_precision: Share = None
    sparsity_by_layer: Annotated[
        dict[str, float], PlainValidator(_shares_by_layer)
    ] = {}
    test_images: Figure = None
    bytes: Figure = None
    bytes_gzip: Figure = None
    parameters: Figure = None
    nonzero_parameters: Figure = None
    macs: Figure = None
    latency_ms_p50: Figure = None
    latency_ms_p90: Figure = None
    arena_bytes: Figure = None
    peak_activation_bytes: Figure = None
    fits: list[Fit] = []


class Metrics(_Schema):
    """`metrics.json`: what the evaluate stage measured."""

    models: list[Entry]


class Results(_Schema):
    """The results of a stage of a kind that has no section of its own."""

    val_accuracy: Share = None


class SensitivityResults(Results):
    """Accuracy with one group of channels removed at a time: a row for a group."""

    importance: str | None = None
    ratios: list[Number] = []
    whole: Share = None
    groups: list[str] = []
    layers: list[list[str]] = []
    channels: list[Number] = []
    left: list[list[Number]] = []
    scores: list[list[Share]] = []

    @model_validator(mode="after")
    def _rectangular(self) -> SensitivityResults:
        rows, columns = len(self.groups), len(self.ratios)
        for key in ("layers", "channels", "left", "scores"):
            table = getattr(self, key)
            whole = len(table) == rows
            if key in ("left", "scores"):
                whole = whole and all(len(row) == columns for row in table)
            if self.scores and not whole:
                raise ValueError(f"expected {key} of {rows} groups at {columns} ratios")
        return self


class ChannelResults(Results):
    """Channels [before, after] of each layer that was pruned."""

    channels_by_layer: dict[str, tuple[Number, Number]] = {}


class Block(_Schema):
    """A residual block, and what the model loses without it."""

    name: str
    score: Figure = None
    layers: Figure = None
    removed: bool = False


class BlockResults(Results):
    """Residual blocks by their rank."""

    rank: str | None = None
    blocks: list[Block] = []


class Sparsity(_Schema):
    """A sparsity that was asked for, and what came of it."""

    asked: Share = None
    found: Share = None
    of_all_kernels: Share = None
    left_out: Annotated[dict[str, float], PlainValidator(_shares_by_layer)] = {}


class WeightResults(Results):
    """What the weights became by pruning or clustering."""

    sparsity: Sparsity | None = None
    sparsity_by_layer: dict[str, KnownShare] = {}
    clusters_by_layer: dict[str, Number] = {}


class LayerError(_Schema):
    """An operator of an integer file against its float form (`tflite.layers`)."""

    layer: str | None = None
    op: str | None = None
    sqnr_db: Figure = None
    weight_sqnr_db: Figure = None
    rmse_over_scale: Figure = None
    saturation: Share = None
    low: Figure = None
    high: Figure = None
    seen_low: Figure = None
    seen_high: Figure = None
    weight_low: Figure = None
    weight_high: Figure = None


class Attempt(_Schema):
    """A form tried to stay within an accuracy budget; `error` if it failed."""

    name: str
    met: bool = False
    error: str | None = None
    drop: Figure = None
    drop_bound: Figure = None
    disagreement: Figure = None
    bytes: Figure = None
    float_bytes: Figure = None
    float_layers: list[str] = []
    seconds: Figure = None


class QuantizeResults(Results):
    """What int8 costs each layer, and what was tried to stay within a budget."""

    layers: list[LayerError] = []
    attempts: list[Attempt] = []
    chosen: str | None = None
    message: str | None = None


class Operator(_Schema):
    """A kind of operator of a file, and which runtimes take it."""

    op: str
    type: str
    count: Figure = None
    gpu: bool
    micro: bool


class FloatOperator(_Schema):
    """An operator that an integer file computes in float."""

    op: str
    layer: str | None = None


class Tensor(_Schema):
    """An input or output of a file."""

    dtype: str | None = None
    scale: Figure = None


class Kernel(_Schema):
    """How far a file's probabilities are from the Keras model's on some kernels."""

    largest_deviation: Figure = None


class File(_Schema):
    """What the export gate found in a `.tflite` file."""

    input: Tensor = Tensor()
    output: Tensor = Tensor()
    operators: list[Operator] | None = None
    float_ops: list[FloatOperator] = []
    peak_activation_bytes: Figure = None
    arena_bytes: Figure = None
    xnnpack_leaves: list[str] | None = None
    disagreement: Figure = None
    kernels: dict[str, Kernel] = {}


class ExportResults(Results):
    """The files that passed the export gate, by name."""

    files: dict[str, File] = {}


# What a stage of each kind has recorded; other kinds are read as `Results`.
RESULTS: dict[str, type[Results]] = {
    "cluster": WeightResults,
    "export": ExportResults,
    "prune": WeightResults,
    "prune_blocks": BlockResults,
    "prune_channels": ChannelResults,
    "quantize": QuantizeResults,
    "sensitivity": SensitivityResults,
}


class CommittedFile(_Schema):
    """A file beside `records.json`, and the record that names the same content."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    bytes: int
    stage: str
    name: str


class GatheredStage(_Schema):
    """A stage's record, with its history by column: null where there is no value."""

    history: dict[str, list[Figure]] = {}


class Gathered(_Schema):
    """`records.json`: all records of a run in one file (`report.gather_results`)."""

    files: dict[str, CommittedFile] = {}
    stages: dict[str, GatheredStage]


def check(schema: type[T], content: Any, where: str, remedy: str) -> T:
    """Reads `content` as `schema`.

    Args:
        schema: What it has to be.
        content: What was found.
        where: Path of the file, for the error.
        remedy: What the user can do, as a sentence.

    Raises:
        ValueError: In one line, if it is something else.
    """
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = _place(content, first["loc"])
        text = _expected(first["type"], first["msg"])
        received = shorten(first["input"])
        if first["type"] == "missing":
            received = "nothing"
        elif isinstance(first["input"], dict) and first["type"] == "value_error":
            received = "another shape"
        raise ValueError(
            f"{where}: {place}{text}; received {received}. {remedy}"
        ) from None


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object; a ValueError names the file that holds something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of JSON, or of UTF-8
        raise ValueError(
            f"{path}: expected JSON; received something else ({error}). "
            "Run the stage that writes it again."
        ) from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{path}: expected a JSON object; received {shorten(content)}. "
            "Run the stage that writes it again."
        )
    return content


def rename_settings(settings: Any) -> Any:
    """Gives the settings of an older record today's names, at any depth."""
    if isinstance(settings, dict):
        return {RENAMED.get(k, k): rename_settings(v) for k, v in settings.items()}
    if isinstance(settings, list):
        return [rename_settings(value) for value in settings]
    return settings


def shorten(value: Any) -> str:
    """Writes a value for an error's one line."""
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _expected(kind: str, message: str) -> str:
    """Words pydantic's message as the other errors are."""
    if kind in ("dict_type", "model_type", "model_attributes_type"):
        return "expected an object"
    if kind == "missing":
        return "expected a value"
    text = message.removeprefix("Value error, ")
    text = text.replace("Input should be a valid ", "expected a ")
    return text.replace("Input should be ", "expected ").replace("a tuple", "a list")


def _place(content: Any, path: tuple[int | str, ...]) -> str:
    """Writes where in a record a figure is: `models[2] 'student' accuracy: `."""
    text = ""
    for key in path:
        if isinstance(key, int):
            text += f"[{key}]"
        else:
            text += f"{' ' if text else ''}{key}"
        try:
            content = content[key]
        except (KeyError, IndexError, TypeError):
            content = None
        if isinstance(key, int) and isinstance(content, dict):
            name = content.get("name") or content.get("layer")
            text += f" {name!r}" if isinstance(name, str) else ""
    return f"{text}: " if text else ""
