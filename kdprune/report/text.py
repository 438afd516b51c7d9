"""How figures are written; a missing figure is a dash."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kdprune.report.document import Inline, code, join
from kdprune.report.read import Model, difference

MISSING = "–"


def accuracy_text(model: Model) -> str:
    """Writes "88.30 (87.65 to 88.92)", or "88.30 ± 0.21 (n = 3)" for seeds."""
    text = percent(model.mean("accuracy"))
    spread = model.deviation("accuracy")
    if spread is not None:
        return f"{text} ± {percent(spread)} (n = {len(model.values('accuracy'))})"
    if model.interval and text != MISSING:
        return f"{text} ({percent(model.interval[0])} to {percent(model.interval[1])})"
    return text


def difference_text(model: Model, baseline: Model | None) -> str:
    """Writes "+1.80", in percentage points, or "baseline" for the baseline itself."""
    if model is baseline:
        return "baseline"
    found = difference(model, baseline) if baseline else None
    if found is None:
        return MISSING
    change, spread = found
    text = points(change)
    return text if spread is None else f"{text} ± {percent(spread)}"


def percent(share: float | None) -> str:
    """Writes a share in [0, 1] as a percentage with two decimals."""
    return MISSING if share is None else f"{100 * share:.2f}"


def share_label(share: float) -> str:
    """Writes a share that someone chose, with no more digits than it has: "12.5 %"."""
    return f"{100 * share:g} %"


def points(share: float) -> str:
    """Writes a difference of shares in percentage points, with its sign."""
    return f"{100 * share:+.2f}"


def count(value: float | None) -> str:
    """Writes a whole number with thousands separated."""
    return MISSING if value is None else f"{round(value):,}"


def millions(value: float | None) -> str:
    """Writes a count of operations in millions."""
    return MISSING if value is None else f"{value / 1e6:.2f} M"


def milliseconds(value: float | None) -> str:
    """Writes a latency with three significant digits, so that 0.012 is not 0.01."""
    if value is None:
        return MISSING
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def timing(model: Model) -> str:
    """Writes how a latency was measured: "1 thread, xnnpack"."""
    threads, resolver = model.get("threads"), model.get("resolver")
    parts = [] if threads is None else [f"{threads} thread" + "s" * (threads != 1)]
    parts += [] if resolver is None else [str(resolver)]
    return ", ".join(parts) or MISSING


def decibels(value: float | None) -> str:
    """Writes a ratio in decibels, whose second decimal says nothing."""
    return MISSING if value is None else f"{value:.1f}"


def duration(seconds: Any) -> str:
    """Writes a time in the two units that fit it."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        return MISSING
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def list_some(names: Sequence[str], most: int = 4) -> str:
    """Writes names in a row; where there are more than `most`, counts the others."""
    named = names if len(names) <= most else names[: most - 1]
    more = len(names) - len(named)
    text = ", ".join(named) or MISSING
    return f"{text} and {more} more" if more else text


def over_seeds(seeds: int) -> str:
    """Says, where there are several seeds, that figures are means."""
    return f" (means over {seeds} seeds)" if seeds > 1 else ""


def slug(name: str) -> str:
    """Makes a file name of a stage's or a model's name."""
    return "".join(c if c.isalnum() or c in "-_=." else "_" for c in name)


def brief(value: Any) -> Inline:
    """Writes settings or results in one line: `epochs` 30, `optimizer.name` sgd."""
    return join(", ", [(code(key), f" {scalar(item)}") for key, item in flatten(value)])


def flatten(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Pairs each setting or result with its whole name: `optimizer.name`, "sgd"."""
    if not isinstance(value, Mapping):
        return [(prefix or "value", value)]
    return [
        pair
        for key, item in value.items()
        if item not in ({}, [], None)
        for pair in flatten(item, f"{prefix}.{key}" if prefix else str(key))
    ]


def scalar(value: Any) -> str:
    """Writes one value of a setting in at most 60 characters."""
    text = _plain(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_plain, value)) + "]"
    return str(value)
