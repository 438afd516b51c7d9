"""Holds the models of a study against its baseline, seed by seed: help or noise?

One seed proves nothing: training the same student again moves its accuracy by as
much as many a method claims. So a difference is called one only if it is large
beside the spread over the seeds, with a correction for how many were looked at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from kdprune.report.read import Model, Run
from kdprune.report.significance import ALPHA, Welch, holm, welch

HELPS, NOISE, HURTS = "helps", "not distinguishable from noise", "hurts"
UNTESTED = "not tested: no spread over the seeds"
NO_PEER = "the baseline has no such file"
LARGER = "more parameters than the baseline"
FEW_SEEDS = "fewer than two seeds"
FEW_BASELINE_SEEDS = "fewer than two seeds of the baseline"


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


def compare(run: Run) -> Study | None:
    """Holds every model that is of the baseline's kind, and no larger, against it.

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
        if not reason:
            difference = model.mean("accuracy") - peer.mean("accuracy")
            comparisons.append(Comparison(model, peer, difference))
            reason = _too_few_seeds(model, peer)
        if reason:
            left_out.setdefault(reason, []).append(model.label)
    if not comparisons:
        return None
    comparisons.sort(key=lambda comparison: baselines.index(comparison.baseline))
    return Study(_test(comparisons), left_out)


def _test(comparisons: list[Comparison]) -> tuple[Comparison, ...]:
    """Tests all that have seeds, as one family."""
    tests = [
        welch(c.model.values("accuracy"), c.baseline.values("accuracy"))
        if c.seeded
        else None
        for c in comparisons
    ]
    adjusted = iter(holm([test.p for test in tests if test]))
    outcomes = [_outcome(test, *next(adjusted)) if test else None for test in tests]
    return tuple(
        replace(comparison, outcome=outcome)
        for comparison, outcome in zip(comparisons, outcomes, strict=True)
    )


def _outcome(test: Welch, p: float, share: float) -> Outcome:
    return Outcome(p, 1 - share, test.interval(share))


def _is_baseline(model: Model, run: Run) -> bool:
    """Whether it is the baseline, a file of it, or one of it quantized."""
    named = run.metrics.get("baseline")
    record = run.record(model.folder)
    stages = {model.name, model.folder.split("--")[0]}
    if record.get("kind") == "quantize":
        stages.add((record.get("settings") or {}).get("from"))
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
