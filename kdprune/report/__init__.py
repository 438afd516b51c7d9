"""The report: a page of tables and plots, made from a run's records alone.

It reads `metrics.json` and each stage's `record.json` and `history.csv`, or all
records from one `records.json`, never a model, so that it needs no TensorFlow and can
be made again wherever the records are.
"""

from __future__ import annotations

from pathlib import Path

from kdprune._io import write_file
from kdprune.report.document import to_markdown
from kdprune.report.gather import HTML, MARKDOWN, gather_results
from kdprune.report.html import to_html
from kdprune.report.page import Section, register_section, write_page
from kdprune.report.plots import draw_plots, render
from kdprune.report.read import read_run
from kdprune.report.verdict import find_verdict

__all__ = ["Section", "gather_results", "register_section", "write_report"]


def write_report(
    run_folder: str | Path,
    *,
    references: bool = True,
    into: str | Path | None = None,
) -> Path:
    """Writes `report.md`, its plots (`plots/*.png`) and `report.html` into a run.

    `report.html` is one page with all of it, which needs no other file. Each file
    replaces its former version in one step, the pages last; other files are left
    alone. The same records give the same bytes.

    Args:
        run_folder: A run's folder, with `metrics.json` and a folder per stage or
            `records.json`.
        references: Whether a CIFAR-10 run is set beside the MLPerf Tiny models.
        into: The folder to write to; the run's by default.

    Returns:
        The path of `report.md`.

    Raises:
        ValueError: If `metrics.json` is missing, or a record is not what its
            schema says.

    Example:
        >>> write_report("runs/cifar10")  # doctest: +SKIP
        PosixPath('runs/cifar10/report.md')
    """
    run = read_run(Path(run_folder))
    folder = Path(run_folder if into is None else into)
    plots = draw_plots(run, references=references)
    (folder / "plots").mkdir(exist_ok=True)
    pictures = {name: render(plot.figure, "png") for name, plot in plots.items()}
    for name, picture in pictures.items():
        write_file(folder / "plots" / f"{name}.png", picture)
    captions = {name: plot.caption for name, plot in plots.items()}
    blocks = write_page(run, captions, references=references)
    write_file(folder / HTML, to_html(blocks, pictures, find_verdict(run)))
    write_file(folder / MARKDOWN, to_markdown(blocks))
    return folder / MARKDOWN
