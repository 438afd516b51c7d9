"""A diagnosis: all that was found of a model, and as text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from kdprune._log import align
from kdprune.doctor.findings import LayerRow, Obstacle
from kdprune.intake.comparison import Comparison

OK, WARNS, FAILS = 0, 3, 4

COLUMNS = (
    *("layer", "what it is", "MACs", "parameters", "channels", "weights"),
    *("int8", "QAT", "XNNPACK", "GPU", "Micro"),
)
RIGHT = (2, 3, 4, 5)
_LEGEND = (
    "channels: those that can be removed, of all; weights: those that can be set to "
    "zero; int8: after post-training quantization; QAT: takes part in "
    "quantization-aware training; XNNPACK, GPU delegate, TFLite Micro: run its int8 "
    "operators; –: none of its own"
)


@dataclass(frozen=True)
class Diagnosis:
    """What was found of a model; printed, it is the report.

    Attributes:
        model: Its file or name.
        obstacles: All that is in the way, the fatal first.
        rows: A `LayerRow` for each layer; empty if the model can't be loaded.
        rewrites: What is done to the model before anything else, a line each.
        proof: How far outputs are from the original's after that; None if it was not
            compared.
        facts: Input, head, pixel range, labels and images, in words.
        file: Of the int8 file made of it, untrained as it is: `bytes`, `ops`,
            `float_layers`, `peak_activation_bytes`, `xnnpack_leaves`, `not_on_gpu`,
            `not_on_micro`; empty if there is none.
        estimate: About what a `compress` takes: `post_training_seconds`,
            `epoch_seconds` (of recovery under a teacher), `qat_epoch_seconds`,
            `memory_bytes`, `disk_bytes`, and `images`, for how many; empty if unknown.
    """

    model: str
    obstacles: tuple[Obstacle, ...] = ()
    rows: tuple[LayerRow, ...] = ()
    rewrites: tuple[str, ...] = ()
    proof: Comparison | None = None
    facts: dict[str, str] = field(default_factory=dict)
    file: dict[str, Any] = field(default_factory=dict)
    estimate: dict[str, float] = field(default_factory=dict)

    @property
    def status(self) -> int:
        """0: nothing is in the way; 3: warnings; 4: a `compress` will fail."""
        if any(obstacle.fatal for obstacle in self.obstacles):
            return FAILS
        return WARNS if self.obstacles else OK

    def to_json(self) -> dict[str, Any]:
        """The same as a JSON-able dict."""
        return {**asdict(self), "status": self.status}

    def __str__(self) -> str:
        return describe(self)


def describe(found: Diagnosis) -> str:
    """The whole of it as plain text."""
    table = [list(COLUMNS), *map(cells, found.rows)] if found.rows else []
    return "\n".join([*before(found), *align(table, RIGHT), *after(found)])


def before(found: Diagnosis) -> list[str]:
    """The lines above the table of layers."""
    lines = [f"{found.model}: {verdict(found)}"]
    lines += [f"  {obstacle_line(one)}" for one in found.obstacles]
    lines += [f"{key}: {text}" for key, text in found.facts.items()]
    if found.rewrites:
        lines.append("what is done to it first:")
        lines += [f"  {note}" for note in found.rewrites]
    if found.proof:
        lines.append(
            f"outputs afterwards: within {found.proof.deviation:.1g} of those of "
            f"{found.proof.original}, as a share of the largest, on "
            f"{found.proof.images} images"
        )
    return [*lines, ""] if found.rows else lines


def after(found: Diagnosis) -> list[str]:
    """The lines below the table of layers."""
    lines = ["", _LEGEND] if found.rows else []
    if found.rows:
        lines.append(_totals(found.rows))
    if found.file:
        lines += _file(found)
    if found.estimate:
        lines.append(_estimate(found))
    return lines


def verdict(found: Diagnosis) -> str:
    """In one line, with the exit status."""
    fatal = sum(one.fatal for one in found.obstacles)
    warnings = len(found.obstacles) - fatal
    if found.status == FAILS:
        text = f"will fail, for {_count(fatal, 'reason')}"
    elif found.status == WARNS:
        text = f"can be compressed, with {_count(warnings, 'warning')}"
    else:
        text = "nothing stands in the way"
    return f"{text} (status {found.status})"


def obstacle_line(one: Obstacle) -> str:
    """One obstacle as a line."""
    return f"{'FAILS' if one.fatal else 'warning'}: {one}"


def cells(row: LayerRow) -> list[str]:
    """A row of the table as text."""
    return [
        row.name,
        row.kind,
        f"{row.macs:,}" if row.macs else "–",
        f"{row.parameters:,}" if row.parameters else "–",
        "–" if row.channels is None else "{} of {}".format(*row.channels),
        f"{row.weights:,}" if row.weights else "–",
        row.int8 or "?",
        *map(_yes, (row.qat, row.xnnpack, row.gpu, row.micro)),
    ]


def _yes(known: bool | None) -> str:
    return "–" if known is None else "yes" if known else "NO"


def _totals(rows: tuple[LayerRow, ...]) -> str:
    def total(figure: Callable[[LayerRow], int]) -> str:
        return f"{sum(map(figure, rows)):,}"

    free = total(lambda row: row.channels[0] if row.channels else 0)
    every = total(lambda row: row.channels[1] if row.channels else 0)
    return (
        f"in all: {total(lambda row: row.macs)} MACs, "
        f"{total(lambda row: row.parameters)} parameters; {free} of {every} channels "
        f"can be removed, {total(lambda row: row.weights)} weights set to zero"
    )


def _file(found: Diagnosis) -> list[str]:
    file = found.file
    lines = [
        f"int8 file (as it is, not to be used): {file['bytes']:,} bytes, peak "
        f"activation memory {file['peak_activation_bytes']:,} bytes"
    ]
    for key, name in (
        ("float_layers", "in float"),
        ("xnnpack_leaves", "left by XNNPACK to the plain kernels"),
        ("not_on_gpu", "not run by the GPU delegate"),
        ("not_on_micro", "not run by TFLite Micro"),
    ):
        if file[key]:
            lines.append(f"  {name}: {', '.join(dict.fromkeys(file[key]))}")
    return lines


def _estimate(found: Diagnosis) -> str:
    figures = found.estimate
    after_training, epoch, aware = (
        duration(figures[f"{key}_seconds"])
        for key in ("post_training", "epoch", "qat_epoch")
    )
    return (
        f"compress with {figures['images']:,.0f} images, roughly: post-training int8 "
        f"{after_training}; an epoch of recovery under the original {epoch}, of "
        f"quantization-aware training {aware}; memory "
        f"{figures['memory_bytes'] / 2**30:.1f} GiB; disk "
        f"{figures['disk_bytes'] / 2**20:,.0f} MiB"
    )


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 100:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
