"""The report: a page of tables and plots, made from a run's records alone.

It reads `metrics.json` and each stage's `record.json` and `history.csv`, never a
model, so that it needs no TensorFlow and can be made again where the records are.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from kdprune.report.plots import draw_plots, render
from kdprune.report.read import read_run
from kdprune.report.tables import write_page

__all__ = ["write_report"]


def write_report(run_folder: str | Path, *, references: bool = True) -> Path:
    """Writes `report.md` and its plots (`plots/*.png`, `plots/*.svg`) into a run.

    Each file replaces its former version in one step, the page last; other
    files are left alone. The same records give the same bytes.

    Args:
        run_folder: A run's folder, with `metrics.json` and a folder per stage.
        references: Whether a CIFAR-10 run is set beside the MLPerf Tiny models.

    Returns:
        The path of `report.md`.

    Raises:
        ValueError: If `metrics.json` is missing, or a record is not what its
            schema says.

    Example:
        >>> write_report("runs/cifar10")  # doctest: +SKIP
        PosixPath('runs/cifar10/report.md')
    """
    folder = Path(run_folder)
    run = read_run(folder)
    plots = draw_plots(run, references=references)
    (folder / "plots").mkdir(exist_ok=True)
    for name, plot in plots.items():
        for form in ("png", "svg"):
            target = folder / "plots" / f"{name}.{form}"
            _replace(target, render(plot.figure, form))
    captions = {name: plot.caption for name, plot in plots.items()}
    page = write_page(run, captions, references=references)
    _replace(folder / "report.md", page.encode())
    return folder / "report.md"


def _replace(target: Path, content: bytes) -> None:
    """Writes beside the target and moves into place: a reader never sees a half."""
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise
