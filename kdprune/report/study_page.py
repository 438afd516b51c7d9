"""Writes the page's section on a study: its table, its method, what is left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kdprune.report.grid import find_grids
from kdprune.report.read import Model, Run
from kdprune.report.significance import ALPHA
from kdprune.report.study import NOISE, Comparison, Study, compare
from kdprune.report.text import MISSING, embed, escape, percent, points, table

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


def write_study(run: Run, plots: Mapping[str, str]) -> list[str]:
    """Writes the section 'Against the baseline'.

    Args:
        run: What was read from the run folder.
        plots: Caption of each plot of the study by its name.

    Returns:
        The section's parts; none where there are neither seeds nor a grid.
    """
    study = compare(run)
    if study is None or not (study.repeated or find_grids(study, run)):
        return []
    return [
        "## Against the baseline",
        *([_write_table(study.rows), _write_method(study.rows)] if study.rows else []),
        *([CAUTION] if study.rows else []),
        *_write_left_out(study),
        *(embed(name, caption) for name, caption in plots.items()),
    ]


def _write_table(rows: Sequence[Comparison]) -> str:
    """Each baseline, then the rows that are held against it."""
    lines, last = [], None
    for row in rows:
        if row.baseline is not last:
            last = row.baseline
            lines.append([*_scores(last), *[MISSING] * 3, "baseline"])
        lines.append([*_scores(row.model), *_tested(row)])
    return table(COLUMNS, lines)


def _scores(model: Model) -> list[str]:
    seeds = str(len(model.values("accuracy")))
    scores = [_spread(model, field) for field in ("val_accuracy", "accuracy")]
    return [escape(model.label), seeds, *scores]


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


def _write_method(rows: Sequence[Comparison]) -> str:
    """Says in a sentence what was tested, by what, and from how many seeds."""
    baselines = {row.baseline.label: row.baseline for row in rows}
    against = " and ".join(
        f"{escape(label)} ({len(model.values('accuracy'))} seeds)"
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
    return (
        f"Test accuracies are held against {against} by Welch's two-sided t-test over "
        f"{seeds} seeds per row{many}; an interval leaves out zero exactly where p is "
        f"below {ALPHA}."
    )


def _write_left_out(study: Study) -> list[str]:
    """Names what is not tested, and why."""
    if not study.left_out:
        return []
    parts = [
        f"{', '.join(_count_cells(labels))} ({reason})"
        for reason, labels in study.left_out.items()
    ]
    return [f"Not tested: {'; '.join(parts)}."]


def _count_cells(labels: Sequence[str]) -> list[str]:
    """Joins the cells of a model: "student, 12 cells"."""
    cells: dict[str, list[str]] = {}
    for label in labels:
        cells.setdefault(label.partition("--")[0], []).append(label)
    return [
        escape(found[0]) if len(found) == 1 else f"{escape(name)}, {len(found)} cells"
        for name, found in cells.items()
    ]
