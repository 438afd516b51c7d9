"""Tells a difference from noise: Welch's test, and Holm's correction for many."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import stdtr, stdtrit

ALPHA = 0.05
# Accuracies are counts over images: a smaller error is rounding, not spread.
NO_SPREAD = 1e-9


@dataclass(frozen=True)
class Welch:
    """What Welch's test says of two samples' means.

    Attributes:
        difference: Mean of the first sample less mean of the second.
        error: The standard error of the difference.
        freedom: Degrees of freedom, by Welch and Satterthwaite; not whole.
        p: Two-sided p-value.
    """

    difference: float
    error: float
    freedom: float
    p: float

    def interval(self, alpha: float) -> tuple[float, float]:
        """Returns the confidence interval of level `1 - alpha`."""
        reach = float(stdtrit(self.freedom, 1 - alpha / 2)) * self.error
        return self.difference - reach, self.difference + reach


def welch(ours: Sequence[float], theirs: Sequence[float]) -> Welch | None:
    """Tests whether two samples have the same mean; their variances may differ.

    Reference: Welch, 1947, Biometrika 34, 28-35.

    Args:
        ours: At least two values.
        theirs: At least two values.

    Returns:
        The test; None where neither sample has any spread, which leaves nothing
        to measure the difference by.
    """
    parts = [statistics.variance(values) / len(values) for values in (ours, theirs)]
    error = math.sqrt(sum(parts))
    difference = statistics.fmean(ours) - statistics.fmean(theirs)
    if error < NO_SPREAD:
        return None
    shares = [part / sum(parts) for part in parts]
    freedom = 1 / (
        shares[0] ** 2 / (len(ours) - 1) + shares[1] ** 2 / (len(theirs) - 1)
    )
    p = 2 * float(stdtr(freedom, -abs(difference) / error))
    return Welch(difference, error, freedom, p)


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
