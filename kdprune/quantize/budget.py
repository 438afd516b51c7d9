"""Quantizing within an accuracy budget: try, measure, and go on if it cost too much."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Attempt:
    """A quantization method to try.

    Attributes:
        name: What the record calls it.
        make: Takes nothing and returns the quantized model in whatever form `judge`
            takes, such as a `.tflite` file's content; raises `ValueError` if the
            method does not apply to the model.
    """

    name: str
    make: Callable[[], Any]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of the attempts.

    Attributes:
        met: Whether the last attempt met the budget.
        best: What the attempt of that name made: the one that met the budget, or
            else the one of the lowest bound; None if all of them failed.
        name: The name of the attempt that made `best`, or None.
        attempts: One dict for each attempt made, JSON-able: `name`, `met`, `seconds`
            (to make), `bytes` (of a file's content) and what `judge` returned; or
            `name`, `met`, `seconds` and `error`.
        message: All of it in one line for a person.
    """

    met: bool
    best: Any
    name: str | None
    attempts: list[dict[str, Any]]
    message: str


def meet_budget(
    attempts: Iterable[Attempt],
    judge: Callable[[Any], Mapping[str, Any]],
    max_drop: float,
) -> Outcome:
    """Makes one attempt after the other until one is proven to be within the budget.

    An attempt is within it when the upper 95 % confidence bound of its paired
    accuracy drop is: the measured drop of a file is by chance too low as often as
    too high. That takes images: a file that classifies all of n images as its model
    does has the bound 2.3 / n, so that half a point needs 500 of them (ask
    `kdprune.tflite.images_to_prove` before trying what can't succeed); a file that
    classifies 2 % otherwise, right as often as before, needs some 2,200. Each attempt
    is another chance to pass by luck, at most one in twenty; take the accuracy that
    is reported from other images.

    Example:
        ```python
        images = dataset.calibration.images
        convert = functools.partial(convert_tflite, model, "int8", images)
        worst = sensitive_layers(layer_report(model, images), 2)

        def judge(content):
            scores = predict_tflite(content, validation.images)
            return paired_drop(float_scores, scores, validation.labels)

        outcome = meet_budget(
            [
                Attempt("PTQ", convert),
                Attempt("PTQ, mse ranges", lambda: convert(range_method="mse")),
                Attempt("PTQ, corrected", lambda: convert(correct_bias=True)),
                Attempt("worst in float", lambda: convert(float_layers=worst)),
                Attempt("QAT", lambda: convert_tflite(train_qat(), "int8")),
            ],
            judge,
            max_drop=0.005,
        )
        ```

    Args:
        attempts: `Attempt`s, the cheapest first; those after the one that meets the
            budget are not made. Of a generator, each is asked for when those before it
            have been judged, so that it can depend on them.
        judge: `judge(made)` measures on validation images and returns a JSON-able
            dict with `drop` and `drop_bound`, as `kdprune.tflite.paired_drop` does,
            and may say by `at_chance` that there was no accuracy to lose: no budget
            is met then, and the first attempt is the last.
        max_drop: Largest accuracy to lose, as a share of images, in (0, 1).

    Returns:
        `Outcome`. A budget that no attempt meets is one of the outcomes, not an
        error.

    Raises:
        ValueError: If there are no attempts, two have one name, `max_drop` is out of
            range, or `judge` gives no drop; and what `judge` raises.
    """
    if isinstance(attempts, Sequence):
        _check_attempts(attempts)
    if not callable(judge):
        raise ValueError(f"judge must be a function. Received: {judge!r}")
    if not 0 < max_drop < 1:
        raise ValueError(
            "max_drop is a share of images in (0, 1), 0.005 for half a point. "
            f"Received: {max_drop}"
        )
    rows: list[dict[str, Any]] = []
    best, name, lowest = None, None, float("inf")
    made_so_far: list[Attempt] = []
    for attempt in attempts:
        made_so_far.append(attempt)
        _check_attempts(made_so_far)
        made, row = _make(attempt)
        rows.append(row)
        if "error" in row:
            continue
        judged = judge(made)
        missing = [key for key in ("drop", "drop_bound") if key not in judged]
        if missing:
            raise ValueError(
                "judge must return a dict with `drop` and `drop_bound`, as "
                f"kdprune.tflite.paired_drop does. Received: no {missing[0]!r}"
            )
        row |= judged
        # What is right by chance has nothing to lose, whatever is done to it.
        nothing = bool(row.get("at_chance"))
        row["met"] = bool(row["drop_bound"] <= max_drop) and not nothing
        if row["met"] or row["drop_bound"] < lowest:
            best, name, lowest = made, attempt.name, row["drop_bound"]
        if row["met"] or nothing:
            break
    _check_attempts(made_so_far)
    met = rows[-1]["met"]
    return Outcome(met, best, name, rows, _describe(rows, name, max_drop))


def _check_attempts(attempts: Sequence[Any]) -> None:
    for attempt in attempts:
        if not isinstance(attempt, Attempt):
            raise ValueError(f"expected Attempt objects. Received: {attempt!r}")
    names = [attempt.name for attempt in attempts]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"expected attempts of different names. Received: {names}")


def _make(attempt: Attempt) -> tuple[Any, dict[str, Any]]:
    """What an attempt made, or None, and the first part of its row."""
    started = time.perf_counter()
    made: Any = None
    row: dict[str, Any] = {"name": attempt.name, "met": False}
    try:
        made = attempt.make()
    except ValueError as error:
        row["error"] = str(error)
    row["seconds"] = time.perf_counter() - started
    if isinstance(made, bytes):
        row["bytes"] = len(made)
    return made, row


def _describe(rows: list[dict[str, Any]], name: str | None, max_drop: float) -> str:
    limit, seconds = 100 * max_drop, sum(row["seconds"] for row in rows)
    tried = f"{len(rows)} attempt(s) in {seconds:.0f} s"
    if name is None:
        return f"no attempt of {tried} worked; first: {rows[0]['error']}"
    row = next(row for row in rows if row["name"] == name)
    lost = (
        f"{name!r} loses {100 * row['drop']:.2f} points, at most "
        f"{100 * row['drop_bound']:.2f} with 95 % confidence"
    )
    if row["met"]:
        return f"the budget of {limit:.2f} points is met after {tried}: {lost}"
    if row.get("at_chance"):
        return (
            f"the budget of {limit:.2f} points can't be judged, after {tried}: the "
            "model that is quantized is right no more often than by always naming the "
            "commonest class; check its pixel range and the order of the labels, or "
            f"train it ({name!r} is kept)"
        )
    # Within by what was measured, so that it is the proof that is missing.
    few = row["drop"] <= max_drop
    advice = "more validation images might prove it" if few else "train a better model"
    return (
        f"the budget of {limit:.2f} points can't be met: the best of {tried}, {lost}; "
        f"{advice}, or allow a larger drop"
    )
