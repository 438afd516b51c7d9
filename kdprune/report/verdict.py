"""What stands first: accuracy, bytes, memory and milliseconds against the baseline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kdprune.report.document import (
    MISSING,
    Inline,
    accuracy_text,
    count,
    difference_text,
    milliseconds,
    percent,
    points,
    strong,
    timing,
)
from kdprune.report.read import Model, Run, difference
from kdprune.report.study import ALPHA, HELPS, HURTS, NOISE, Study, compare


@dataclass(frozen=True)
class Card:
    """One figure of the verdict.

    Attributes:
        title: What it is.
        value: The figure.
        unit: Its unit.
        detail: How sure it is, or how it was measured.
        change: What it is beside the baseline's.
        better: Whether that is better; None where it is neither.
    """

    title: str
    value: str
    unit: str = ""
    detail: str = ""
    change: str = ""
    better: bool | None = None


@dataclass(frozen=True)
class Verdict:
    """What a reader wants to know first, in sentences and in figures."""

    sentences: tuple[Inline, ...]
    cards: tuple[Card, ...]


def find_verdict(run: Run) -> Verdict:
    """Says what the flagship is, or of a study without one how many models help."""
    flagship, baseline = run.find("flagship"), run.find("baseline")
    sentences: list[Inline] = []
    cards: list[Card] = []
    if flagship:
        sentences.append(_describe(flagship, baseline))
        cards = [
            _accuracy(flagship, baseline),
            _size(flagship, baseline),
            _memory(flagship, _measured(run, flagship, lambda m: m.memory)),
            _latency(flagship, _measured(run, flagship, _median)),
        ]
    for role in ("flagship", "baseline"):
        named = run.metrics.get(role)
        if named is not None and run.find(role) is None:
            sentences.append(f"The {role}, {named}, has not been measured.")
    study = compare(run)
    if not flagship and study and study.rows:
        sentences.append(_conclude(study))
        cards = _count(study)
    return Verdict(tuple(sentences), tuple(cards))


def _describe(flagship: Model, baseline: Model | None) -> Inline:
    of = " label accuracy" if flagship.get("task") == "labels" else ""
    text = f": {accuracy_text(flagship)} %{of} in {count(flagship.mean('bytes'))} bytes"
    change = difference_text(flagship, baseline)
    if baseline and baseline is not flagship and change != MISSING:
        text += f", {change} points against {baseline.label}"
    return strong(flagship.label), f"{text}."


def _measured(
    run: Run, flagship: Model, figure: Callable[[Model], float | None]
) -> Model | None:
    """The baseline if it has a figure, else a float32 file as large as the flagship.

    A Keras baseline has neither an arena nor the latency of a device's runtime.
    """
    baseline = run.find("baseline")
    least = flagship.mean("parameters") or 0
    files = [
        model
        for model in run.models
        if (model.get("format"), model.get("dtype")) == ("tflite", "float32")
        and (model.mean("parameters") or 0) >= least
    ]
    known = [m for m in (baseline, *files) if m and figure(m) and m is not flagship]
    return known[0] if known else None


def _accuracy(flagship: Model, baseline: Model | None) -> Card:
    value = flagship.mean("accuracy")
    spread = flagship.deviation("accuracy")
    detail = ""
    if spread is not None:
        seeds = len(flagship.values("accuracy"))
        detail = f"± {percent(spread)} over {seeds} seeds"
    elif flagship.interval:
        low, high = map(percent, flagship.interval)
        detail = f"95 % interval {low} to {high}"
    change, better = "", None
    found = difference(flagship, baseline) if baseline else None
    if baseline and found and baseline is not flagship:
        change = (
            f"{points(found[0])} points against {baseline.label} "
            f"({percent(baseline.mean('accuracy'))} %)"
        )
        if _distinct(flagship, baseline, found[1]):
            better = found[0] > 0
        else:
            change += ", within the " + ("spread" if found[1] else "interval")
    several = flagship.get("task") == "labels"
    title = "Label accuracy" if several else "Accuracy"
    return Card(title, percent(value), "%", detail, change, better)


def _distinct(flagship: Model, baseline: Model, spread: float | None) -> bool:
    """Whether the baseline is outside the flagship's interval, or beyond the spread."""
    ours, theirs = flagship.mean("accuracy"), baseline.mean("accuracy")
    if ours is None or theirs is None:
        return False
    if spread is not None:
        return abs(ours - theirs) > 2 * spread
    interval = flagship.interval
    return interval is None or not interval[0] <= theirs <= interval[1]


def _size(flagship: Model, baseline: Model | None) -> Card:
    packed = flagship.mean("bytes_gzip")
    return Card(
        "Size of the file",
        count(flagship.mean("bytes")),
        "bytes",
        f"{count(packed)} in gzip" if packed else "",
        *_ratio(
            flagship,
            baseline,
            lambda model: model.mean("bytes"),
            ("smaller", "larger"),
            lambda value: f"{count(value)} bytes",
        ),
    )


def _memory(flagship: Model, other: Model | None) -> Card:
    arena = flagship.mean("arena_bytes") is not None
    known = "tensor arena" if arena else "peak activation memory"
    # An arena holds more than activations: like is compared with like.
    held = arena and other is not None and other.mean("arena_bytes") is not None
    key = "arena_bytes" if held else "peak_activation_bytes"
    what = "bytes of activations" if arena and not held else "bytes"
    return Card(
        "Memory",
        count(flagship.memory),
        "bytes" if flagship.memory else "",
        known if flagship.memory else "not measured",
        *_ratio(
            flagship,
            other,
            lambda model: model.mean(key),
            ("less", "more"),
            lambda value: f"{count(value)} {what}",
        ),
    )


def _latency(flagship: Model, other: Model | None) -> Card:
    value = _median(flagship)
    return Card(
        "Latency",
        milliseconds(value),
        "ms" if value else "",
        f"median of one image; {timing(flagship)}" if value else "not measured",
        *_ratio(
            flagship,
            other,
            _median,
            ("faster", "slower"),
            lambda value: f"{milliseconds(value)} ms",
        ),
    )


def _median(model: Model) -> float | None:
    return model.mean("latency_ms_p50")


def _ratio(
    ours: Model,
    theirs: Model | None,
    figure: Callable[[Model], float | None],
    words: tuple[str, str],
    write: Callable[[float], str],
) -> tuple[str, bool | None]:
    """Writes "4.3 times smaller than student (411,942 bytes)", and whether it is."""
    mine, other = figure(ours), figure(theirs) if theirs else None
    if not mine or not other or theirs is None or theirs is ours:
        return "", None
    ratio = other / mine
    less = ratio >= 1
    text = f"{ratio if less else 1 / ratio:.1f} times {words[not less]} than"
    if abs(ratio - 1) < 0.05:
        return f"as {theirs.label} ({write(other)})", None
    return f"{text} {theirs.label} ({write(other)})", less


def _conclude(study: Study) -> Inline:
    """Names the best of the models that are better than their baseline."""
    helping = [row for row in study.rows if row.verdict == HELPS]
    best = max(helping, key=lambda row: row.difference, default=None)
    if best is None or best.outcome is None:
        return f"No model is better than {study.rows[0].baseline.label} beyond noise."
    low, high = map(points, best.outcome.interval)
    return (
        strong(best.model.label),
        f": {points(best.difference)} points ({low} to {high}) against "
        f"{best.baseline.label}, the most of {len(study.rows)} models.",
    )


def _count(study: Study) -> list[Card]:
    """The baselines' accuracy, and how many models do what."""
    first = study.rows[0].baseline
    spread = first.deviation("accuracy")
    seeds = len(first.values("accuracy"))
    cards = [
        Card(
            f"Accuracy of {first.label}",
            percent(first.mean("accuracy")),
            "%",
            "" if spread is None else f"± {percent(spread)} over {seeds} seeds",
            "baseline",
        )
    ]
    tested = sum(row.outcome is not None for row in study.rows)
    for verdict, title in ((HELPS, "Help"), (HURTS, "Hurt"), (NOISE, "Neither")):
        found = sum(row.verdict == verdict for row in study.rows)
        how = f"p < {ALPHA}" if verdict != NOISE else "not distinguishable from noise"
        cards.append(
            Card(title, str(found), f"of {tested} models", f"{how}, Welch and Holm")
        )
    return cards
