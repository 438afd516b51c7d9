"""Whether two models differ, judged image by image on the same images."""

import numpy as np
from scipy import stats

from kdprune.evaluate.metrics import Z95, check_predictions


def agreement(scores_a, scores_b):
    """Returns the share of images to which both models give the same class."""
    a, b = np.asarray(scores_a), np.asarray(scores_b)
    if a.shape != b.shape or a.ndim != 2 or not len(a):
        raise ValueError(
            "expected two sets of scores of one shape (n, classes). "
            f"Received: {a.shape} and {b.shape}"
        )
    return float((a.argmax(axis=1) == b.argmax(axis=1)).mean())


def compare_predictions(scores_a, scores_b, labels):
    """Compares model b with model a on the same images.

    Both see the same images, so that most of the chance in each accuracy is
    shared: the paired interval is much tighter than the two separate ones.

    Args:
        scores_a: Scores of the first model (the reference), `(n, classes)`.
        scores_b: Scores of the second model, same shape.
        labels: True classes, `(n,)`.

    Returns:
        A dictionary of plain Python values:
        `difference`: accuracy of b minus accuracy of a.
        `difference_ci`: its paired 95 % interval `[low, high]`, by the standard
        error of the per-image differences (-1, 0 or 1).
        `standard_error`: that standard error.
        `mcnemar_p`: two-sided exact p-value of McNemar's test, that is of the
        images only one of the two gets right splitting evenly.
        `disagreement`: share of images with different predictions.
        `right_to_wrong`, `wrong_to_right`: indices of images where b lost and
        where it gained.
        `per_class`: for each true class `{"gained", "lost", "images"}` counts.

    Raises:
        ValueError: If the shapes do not match or a label is not a class.
    """
    same = agreement(scores_a, scores_b)
    scores_a, labels = check_predictions(scores_a, labels)
    scores_b, _ = check_predictions(scores_b, labels)
    n, classes = scores_a.shape
    right_a = scores_a.argmax(axis=1) == labels
    right_b = scores_b.argmax(axis=1) == labels
    change = right_b.astype(int) - right_a
    lost, gained = np.flatnonzero(change < 0), np.flatnonzero(change > 0)
    difference = (len(gained) - len(lost)) / n
    error = float(change.std(ddof=1) / np.sqrt(n)) if n > 1 else float("nan")
    flips = len(lost) + len(gained)
    return {
        "difference": difference,
        "difference_ci": [difference - Z95 * error, difference + Z95 * error],
        "standard_error": error,
        "mcnemar_p": float(stats.binomtest(len(lost), flips).pvalue) if flips else 1.0,
        "disagreement": (n - round(same * n)) / n,
        "right_to_wrong": lost.tolist(),
        "wrong_to_right": gained.tolist(),
        "per_class": [
            {
                "gained": int((labels[gained] == k).sum()),
                "lost": int((labels[lost] == k).sum()),
                "images": int((labels == k).sum()),
            }
            for k in range(classes)
        ],
    }


def describe_comparison(result, classes):
    """Writes what `compare_predictions` returned as text for a person.

    Args:
        result: Its dictionary.
        classes: Names of the classes.

    Returns:
        A few lines: the difference with its interval, whether chance explains it,
        images that flipped, and the classes that gained or lost.
    """
    low, high = (100 * bound for bound in result["difference_ci"])
    lost, gained = result["right_to_wrong"], result["wrong_to_right"]
    chance = "not distinguishable from chance" if low <= 0 <= high else "beyond chance"
    lines = [
        f"B against A: {100 * result['difference']:+.2f} points "
        f"(95 % interval {low:+.2f} to {high:+.2f}, McNemar p = "
        f"{result['mcnemar_p']:.3g}): {chance}",
        f"{100 * result['disagreement']:.2f} % of the images are classified otherwise; "
        f"{len(lost)} became wrong, {len(gained)} became right",
    ]
    width = max(len(name) for name in classes)
    for name, counts in zip(classes, result["per_class"], strict=True):
        net = counts["gained"] - counts["lost"]
        lines.append(
            f"  {name:{width}}  {net:+d}  (+{counts['gained']} -{counts['lost']} of "
            f"{counts['images']})"
        )
    return "\n".join(lines)
