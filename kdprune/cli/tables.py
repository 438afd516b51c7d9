"""Tables: drawn on a terminal, aligned plain text elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from kdprune._log import align, logger


def show_table(
    header: Sequence[str], rows: Iterable[Sequence[str]], right: Iterable[int] = ()
) -> None:
    """Shows a table.

    Args:
        header: The columns' names.
        rows: Their cells.
        right: The columns that are aligned to the right.
    """
    cells, right = [list(map(str, row)) for row in rows], set(right)
    if sys.stdout.isatty():
        _draw(header, cells, right)
        return
    for line in align([list(header), *cells], right):
        logger.info("%s", line)


def _draw(header: Sequence[str], rows: list[list[str]], right: set[int]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for i, name in enumerate(header):
        table.add_column(name, justify="right" if i in right else "left")
    for row in rows:
        table.add_row(*(cell.replace("[", "\\[") for cell in row))
    Console().print(table)
