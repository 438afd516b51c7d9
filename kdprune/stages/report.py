"""Draws tables and plots."""

from __future__ import annotations

import pathlib
from typing import Any, Literal

import pydantic

from kdprune._log import logger
from kdprune.stages.base import MEASUREMENTS, SENSITIVITY, Node, Result, Run, Stage
from kdprune.stages.settings import Name


class Report(Stage):
    """Draws tables and plots from the measurements and sensitivities."""

    kind: Literal["report"]
    from_: Name | tuple[Name, ...] = pydantic.Field(alias="from")
    """The evaluate stage, and sensitivity stages to show."""

    accepts = {"from": (MEASUREMENTS, SENSITIVITY)}
    role = "report"
    gathers = True

    def check_recipe(self, name: str, recipe: Any) -> None:
        sources = self.parents()
        if all(recipe.stages[source].gives != MEASUREMENTS for source in sources):
            raise ValueError(
                f"stages.{name}.from: expected the evaluate stage among them, got "
                f"{', '.join(sources)}"
            )

    def execute(self, run: Run, node: Node, folder: pathlib.Path) -> Result:
        """Draws the page and the plots of the run."""
        from kdprune import report

        report.write_report(run.folder, into=folder)
        written = sorted(
            str(path.relative_to(folder))
            for path in folder.rglob("*")
            if path.is_file() and path.suffix in (".md", ".html", ".png", ".svg")
        )
        logger.info("report: %s", run.folder / "report.html")
        return Result({}, written, published={name: name for name in written})
