"""Compares the models of a study with its baseline, seed by seed: help or noise?

One seed proves nothing: training the same student again moves its accuracy by as
much as many a method claims. So a difference is called one only if it is large
compared with the spread over the seeds, with a correction for how many were looked at.
"""

from __future__ import annotations

import math
import re
import statistics
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from kdprune.report.document import (
    MISSING,
    Block,
    Heading,
    Inline,
    Paragraph,
    Table,
    percent,
    points,
)
from kdprune.report.pruning import pictures
from kdprune.report.read import Model, Run
from kdprune.report.schema import RENAMED

if TYPE_CHECKING:
    from scipy.stats._result_classes import TtestResult

ALPHA = 0.05
# Accuracies are counts over images: a smaller error is rounding, not spread.
NO_SPREAD = 1e-9
# A number as a folder's name has it: 4, 0.5, 1e-05.
NUMBER = re.compile(r"-?\d+(\.\d+)?(e[+-]?\d+)?")

HELPS, NOISE, HURTS = "helps", "not distinguishable from noise", "hurts"
UNTESTED = "not tested: no spread over the seeds"
NO_PEER = "the baseline has no such file"
LARGER = "more parameters than the baseline"
FEW_SEEDS = "fewer than two seeds"
FEW_BASELINE_SEEDS = "fewer than two seeds of the baseline"
COLUMNS = (
    "model",
    "seeds",
    "validation %",
    "test %",
    "difference",
    "95 % interval (Holm)",
    "p (Holm)",
    "verdict",
)
CAUTION = (
    f"Only the spread over the seeds is tested: all models are scored on the same test "
    f"images. A row that is {NOISE} may still differ by as much as its interval says. "
    "± is the sample deviation over the seeds; validation is that of the stage's Keras "
    "model, and what choices are to be made by."
)


@dataclass(frozen=True)
class Outcome:
    """A comparison's test, corrected for the others of its study.

    Attributes:
        p: Two-sided p-value, adjusted by Holm's step-down.
        level: Level of the interval, that of the comparison's Holm step.
        interval: Confidence interval of the difference, as shares.
    """

    p: float
    level: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Comparison:
    """A model beside the baseline of its kind.

    Attributes:
        model: The model.
        baseline: The baseline's file of the same kind.
        difference: Mean test accuracy above the baseline's, as a share.
        outcome: The test; None with fewer than two seeds or without spread.
    """

    model: Model
    baseline: Model
    difference: float
    outcome: Outcome | None = None

    @property
    def seeded(self) -> bool:
        """Whether there are two seeds on both sides."""
        return not _too_few_seeds(self.model, self.baseline)

    @property
    def verdict(self) -> str:
        """What the test says in words."""
        if self.outcome is None:
            return UNTESTED
        if self.outcome.p >= ALPHA:
            return NOISE
        return HELPS if self.difference > 0 else HURTS


@dataclass(frozen=True)
class Study:
    """The models that can be compared with the baseline.

    Attributes:
        comparisons: A comparison for each, those of one baseline together.
        left_out: Labels of the models that are not tested, by the reason.
    """

    comparisons: tuple[Comparison, ...]
    left_out: Mapping[str, Sequence[str]]

    @property
    def rows(self) -> list[Comparison]:
        """The comparisons with seeds enough for a test."""
        return [comparison for comparison in self.comparisons if comparison.seeded]

    @property
    def repeated(self) -> bool:
        """Whether any of the models was run with several seeds."""
        models = [m for c in self.comparisons for m in (c.model, c.baseline)]
        return any(len(model.values("accuracy")) > 1 for model in models)


@dataclass(frozen=True)
class Axis:
    """One axis of a grid: its key, its values in order, and how to write them."""

    key: str
    values: tuple[str, ...]
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Grid:
    """A model whose cells differ in two axes of the matrix.

    Attributes:
        name: The model's name.
        rows: The first axis.
        columns: The second axis.
        cells: Comparisons by (row's value, column's value); some may be missing.
    """

    name: str
    rows: Axis
    columns: Axis
    cells: Mapping[tuple[str, str], Comparison]


def compare(run: Run) -> Study | None:
    """Compares every model of the baseline's kind, and no larger, with it.

    A Keras model is compared with the baseline itself, a `.tflite` file with the
    baseline's own of the same number format and method, where there is one. Where
    the baseline was run in several cells of the matrix, the cell must be the same.

    Args:
        run: What was read from the run folder.

    Returns:
        The study; None where there is nothing to compare.
    """
    baselines = [
        m for m in run.distinct if m.values("accuracy") and _is_baseline(m, run)
    ]
    comparisons: list[Comparison] = []
    left_out: dict[str, list[str]] = {}
    for model in run.distinct:
        if model in baselines or not model.values("accuracy"):
            continue
        peer = next((b for b in baselines if _same_kind(model, b, run)), None)
        reason = _incomparable(model, peer)
        if peer and not reason:
            difference = model.known("accuracy") - peer.known("accuracy")
            comparisons.append(Comparison(model, peer, difference))
            reason = _too_few_seeds(model, peer)
        if reason:
            left_out.setdefault(reason, []).append(model.label)
    if not comparisons:
        return None
    comparisons.sort(key=lambda comparison: baselines.index(comparison.baseline))
    return Study(_test(comparisons), left_out)


def find_grids(study: Study, run: Run) -> list[Grid]:
    """Finds the models whose cells differ in exactly two axes besides the seed.

    Args:
        study: The comparisons with the baseline, with or without seeds.
        run: What was read from the run folder.

    Returns:
        A grid for each such model; none for a model with fewer or more axes.
    """
    groups: dict[tuple, list[Comparison]] = {}
    for comparison in study.comparisons:
        model = comparison.model
        how = (model.get(key) for key in ("format", "dtype", "resolver", "threads"))
        groups.setdefault((model.name, *how), []).append(comparison)
    found = []
    for (name, *_), members in groups.items():
        keys = {tuple(key for key, _ in member.model.axes) for member in members}
        if [*map(len, keys)] == [2]:
            rows, columns = (_make_axis(members, place, run) for place in (0, 1))
            cells = {(m.model.axes[0][1], m.model.axes[1][1]): m for m in members}
            found.append(Grid(name, rows, columns, cells))
    return found


def welch(ours: Sequence[float], theirs: Sequence[float]) -> TtestResult | None:
    """Tests whether two samples have the same mean; their variances may differ.

    Reference: Welch, 1947, Biometrika 34, 28-35; scipy's implementation.

    Args:
        ours: At least two values.
        theirs: At least two values.

    Returns:
        The test, with `pvalue` (two-sided) and `confidence_interval`; None where
        neither sample has any spread, which leaves nothing to measure the
        difference by.
    """
    from scipy.stats import ttest_ind  # takes a second, and few reports need it

    parts = [statistics.variance(values) / len(values) for values in (ours, theirs)]
    if math.sqrt(sum(parts)) < NO_SPREAD:
        return None
    with warnings.catch_warnings():
        # Equal values in one of the samples: its variance of zero is exact.
        warnings.filterwarnings("ignore", "Precision loss", RuntimeWarning)
        return ttest_ind(ours, theirs, equal_var=False)


def holm(p_values: Sequence[float], alpha: float = ALPHA) -> list[tuple[float, float]]:
    """Adjusts p-values for their number, from the smallest up.

    The smallest of m is held against `alpha / m`, the next against
    `alpha / (m - 1)`, until one is too large: that one and all larger ones are not
    significant. The chance of any false verdict in the whole family is at most
    `alpha`. Intervals at the returned levels leave out zero exactly where the
    adjusted p-value is below `alpha`; that all of them cover at once is not promised.

    Reference: Holm, 1979, Scandinavian Journal of Statistics 6, 65-70.

    Args:
        p_values: Unadjusted p-values, in any order.
        alpha: The chance of a false verdict that is allowed.

    Returns:
        For each, its adjusted p-value and the share of `alpha` at its step; for
        those after the step that stops, the share of that step.
    """
    adjusted = [(1.0, alpha)] * len(p_values)
    highest, share = 0.0, alpha
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    for step, index in enumerate(order):
        remaining = len(p_values) - step
        if highest < alpha:
            share = alpha / remaining
        highest = min(1.0, max(highest, remaining * p_values[index]))
        adjusted[index] = (highest, share)
    return adjusted


def write_study(run: Run, plots: Mapping[str, str]) -> list[Block]:
    """Writes the part 'Against the baseline'.

    Args:
        run: What was read from the run folder.
        plots: Caption of each plot of the study by its name.

    Returns:
        The part's blocks; none where there are neither seeds nor a grid.
    """
    study = compare(run)
    if study is None or not (study.repeated or find_grids(study, run)):
        return []
    parts: list[Block] = [Heading(2, "Against the baseline")]
    if study.rows:
        parts += [_write_table(study.rows), _write_method(study.rows)]
        parts.append(Paragraph(CAUTION))
    return [*parts, *_write_left_out(study), *pictures(plots, *plots)]


def _test(comparisons: list[Comparison]) -> tuple[Comparison, ...]:
    """Tests all that have seeds, as one family."""
    tests = [
        welch(c.model.values("accuracy"), c.baseline.values("accuracy"))
        if c.seeded
        else None
        for c in comparisons
    ]
    adjusted = iter(holm([float(test.pvalue) for test in tests if test]))
    outcomes = [_outcome(test, *next(adjusted)) if test else None for test in tests]
    return tuple(
        replace(comparison, outcome=outcome)
        for comparison, outcome in zip(comparisons, outcomes, strict=True)
    )


def _outcome(test: TtestResult, p: float, share: float) -> Outcome:
    low, high = test.confidence_interval(1 - share)
    return Outcome(p, 1 - share, (float(low), float(high)))


def _is_baseline(model: Model, run: Run) -> bool:
    """Whether it is the baseline, a file of it, or one of it quantized."""
    named = run.metrics.get("baseline")
    record = run.record(model.folder)
    stages = {model.name, model.folder.split("--")[0]}
    if record.get("kind") == "quantize":
        stages.add(str((record.get("settings") or {}).get("from")))
    return named is not None and named in stages


def _kind(model: Model, run: Run) -> tuple:
    """What a fair comparison holds fixed: format, numbers, runtime, quantization."""
    record = run.record(model.folder)
    quantized = record.get("kind") == "quantize"
    method = (record.get("settings") or {}).get("method") if quantized else None
    return (*(model.get(key) for key in ("format", "dtype", "resolver")), method)


def _same_kind(model: Model, baseline: Model, run: Run) -> bool:
    same = _kind(model, run) == _kind(baseline, run)
    return same and set(baseline.axes) <= set(model.axes)


def _incomparable(model: Model, peer: Model | None) -> str | None:
    if peer is None:
        return NO_PEER
    sizes = (model.get("parameters"), peer.get("parameters"))
    return LARGER if None not in sizes and sizes[0] > sizes[1] else None


def _too_few_seeds(model: Model, peer: Model) -> str | None:
    if len(model.values("accuracy")) < 2:
        return FEW_SEEDS
    return FEW_BASELINE_SEEDS if len(peer.values("accuracy")) < 2 else None


def _write_table(rows: Sequence[Comparison]) -> Table:
    """Each baseline, then the rows that are compared with it."""
    lines: list[list[Inline]] = []
    last = None
    for row in rows:
        if row.baseline is not last:
            last = row.baseline
            lines.append([*_scores(last), *[MISSING] * 3, "baseline"])
        lines.append([*_scores(row.model), *_tested(row)])
    return Table(COLUMNS, lines)


def _scores(model: Model) -> list[str]:
    seeds = str(len(model.values("accuracy")))
    scores = [_spread(model, field) for field in ("val_accuracy", "accuracy")]
    return [model.label, seeds, *scores]


def _spread(model: Model, field: str) -> str:
    deviation = model.deviation(field)
    text = percent(model.mean(field))
    return text if deviation is None else f"{text} ± {percent(deviation)}"


def _tested(row: Comparison) -> list[str]:
    interval, p = MISSING, MISSING
    if row.outcome:
        interval = " to ".join(points(end) for end in row.outcome.interval)
        p = _write_p(row.outcome.p)
    return [points(row.difference), interval, p, row.verdict]


def _write_p(p: float) -> str:
    if p < 0.001:
        return "< 0.001"
    rounded = f"{p:.3f}"
    return f"< {ALPHA}" if p < ALPHA <= float(rounded) else rounded


def _write_method(rows: Sequence[Comparison]) -> Paragraph:
    """Says in a sentence what was tested, by what, and from how many seeds."""
    baselines = {row.baseline.label: row.baseline for row in rows}
    against = " and ".join(
        f"{label} ({len(model.values('accuracy'))} seeds)"
        for label, model in baselines.items()
    )
    counts = [len(row.model.values("accuracy")) for row in rows]
    seeds = f"{min(counts)} to {max(counts)}" if len({*counts}) > 1 else str(counts[0])
    tested = sum(row.outcome is not None for row in rows)
    many = (
        f", the p-values of the {tested} tests are adjusted by Holm's step-down and "
        "each interval is at the level of its own step (95 % at the last one, wider "
        "before)"
        if tested > 1
        else ""
    )
    return Paragraph(
        f"Test accuracies are compared with {against} by Welch's two-sided t-test over "
        f"{seeds} seeds per row{many}; an interval excludes zero exactly where p is "
        f"below {ALPHA}."
    )


def _write_left_out(study: Study) -> list[Block]:
    """Names what is not tested, and why."""
    if not study.left_out:
        return []
    parts = [
        f"{', '.join(_count_cells(labels))} ({reason})"
        for reason, labels in study.left_out.items()
    ]
    return [Paragraph(f"Not tested: {'; '.join(parts)}.")]


def _count_cells(labels: Sequence[str]) -> list[str]:
    """Joins the cells of a model: "student, 12 cells"."""
    cells: dict[str, list[str]] = {}
    for label in labels:
        cells.setdefault(label.partition("--")[0], []).append(label)
    return [
        found[0] if len(found) == 1 else f"{name}, {len(found)} cells"
        for name, found in cells.items()
    ]


def _make_axis(members: Sequence[Comparison], place: int, run: Run) -> Axis:
    """One of the two axes; numbers in their order, others in the recipe's."""
    key = members[0].model.axes[place][0]
    texts: dict[str, set[str]] = {}
    for member in members:
        settings = run.record(member.model.folder).get("settings") or {}
        found = {_write(value) for value in _look_up(settings, RENAMED.get(key, key))}
        texts.setdefault(member.model.axes[place][1], set()).update(found)
    values = list(texts)
    if all(NUMBER.fullmatch(value) for value in values):
        values.sort(key=float)
    written = [next(iter(texts[value]), value) for value in values]
    # What is the same in several cells is a stage's own setting of that name, not
    # the one that was varied before it: the folder's name has that.
    clear = all(len(found) == 1 for found in texts.values())
    clear = clear and len(set(written)) == len(values)
    return Axis(key, tuple(values), tuple(written if clear else values))


def _look_up(settings: Any, key: str) -> list[Any]:
    """Returns the values of a key at any depth of a stage's settings."""
    if not isinstance(settings, Mapping):
        return []
    found = [settings[key]] if key in settings else []
    for nested in settings.values():
        found += _look_up(nested, key)
    return found


def _write(value: Any) -> str:
    if isinstance(value, Mapping):
        items = ((k, v) for k, v in value.items() if v not in (None, [], {}))
        return ", ".join(f"{k} {_write(v)}" for k, v in items)
    if isinstance(value, list):
        return "[" + ", ".join(map(_write, value)) + "]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
