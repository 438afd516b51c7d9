"""Which boards and phones the flagship's file fits."""

from __future__ import annotations

from kdprune.report.document import MISSING, Block, Heading, Paragraph, Table, count
from kdprune.report.read import Run

NOTE = (
    "Flash: the file and an allowance for the application with the runtime's code. "
    "RAM: the tensor arena, an upper bound of what the board's optimized kernels take "
    "beside it, and an allowance for the application; of a phone, the file mapped and "
    "its weights packed."
)


def write_devices(run: Run) -> list[Block]:
    """A row for each board that the flagship's file was held against; none if none."""
    flagship = run.find("flagship")
    entries = flagship.entries if flagship else []
    fits: list[dict] = next(
        (entry["fits"] for entry in entries if entry.get("fits")), []
    )
    if not fits:
        return []
    measured = any(row.get("measured") for row in fits)
    rows = [
        [
            str(row.get("board")),
            "yes" if row.get("fits") else "no",
            _of(row, "flash"),
            _of(row, "ram"),
            "; ".join(row.get("reasons") or []) or MISSING,
        ]
        for row in fits
    ]
    how = "measured by TFLite Micro" if measured else "planned, not measured"
    titles = ["board or phone", "fits", "flash, KiB", "RAM, KiB", "why not"]
    if all(row[-1] == MISSING for row in rows):
        titles, rows = titles[:-1], [row[:-1] for row in rows]
    return [
        Heading(2, "Devices"),
        Table(titles, rows),
        Paragraph(f"{NOTE} The arena is {how}."),
    ]


def _of(row: dict, key: str) -> str:
    needed, there = (row.get(k) for k in (key, f"{key}_of"))
    if not needed or not there:
        return MISSING
    return f"{count(needed / 1024)} of {count(there / 1024)}"
