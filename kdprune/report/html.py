"""The page as one HTML file that needs nothing else: no network, no other file.

The verdict comes first, then the blocks of `page.write_page`: tables that can be sorted
and scroll in their own box, plots inlined as data, a stage's details folded. Jinja
escapes all text, so that a name from a record stays a name.
"""

from __future__ import annotations

import base64
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import jinja2

from kdprune.report.document import (
    MISSING,
    Block,
    Command,
    Facts,
    Heading,
    Inline,
    Paragraph,
    Picture,
    Span,
    Table,
    plain,
    spans,
)
from kdprune.report.verdict import Verdict

_HERE = Path(__file__).parent
_PAGE, _STYLE, _SCRIPT = "page.html", "page.css", "page.js"
# A plot's pixels are those of 150 dots per inch, a page's those of 96.
_SCALE = 96 / 150
_NUMBER = re.compile(r"[+-]?\d[\d,]*\.?\d*(?:e[+-]?\d+)?")
_TIME = re.compile(r"(?:(\d+) h )?(?:(\d+) min ?)?(?:(\d+(?:\.\d+)?) s)?")


@dataclass
class _Image:
    """A plot as it is shown: `data:` address, caption, size on the page."""

    source: str
    caption: str
    width: int
    height: int


@dataclass
class _Cell:
    """A table's cell: its text and, where it is a number, what to sort it by."""

    text: Inline
    value: float | None
    missing: bool


@dataclass
class _Grid:
    """A table as it is shown: columns with whether they hold numbers, and rows."""

    columns: list[tuple[Inline, bool]]
    rows: list[list[_Cell]]


@dataclass
class _Part:
    """A heading with what follows it, and its parts."""

    title: Inline
    anchor: str
    blocks: list[Block | _Grid | list[_Image]] = field(default_factory=list)
    parts: list[_Part] = field(default_factory=list)


def to_html(
    blocks: Sequence[Block], pictures: Mapping[str, bytes], verdict: Verdict
) -> str:
    """Writes a page in HTML.

    Args:
        blocks: What `write_page` returns.
        pictures: The content of each plot's PNG by its name.
        verdict: What stands first.

    Returns:
        A whole document, the same for the same arguments.
    """
    page = _arrange(blocks, pictures)
    return _template().render(
        page=page,
        verdict=verdict,
        style=(_HERE / _STYLE).read_text(encoding="utf-8"),
        script=(_HERE / _SCRIPT).read_text(encoding="utf-8"),
    )


def sort_value(text: str) -> float | None:
    """Returns the number that a cell's text starts with, None if it has none.

    Example:
        >>> sort_value("88.30 ± 0.21 (n = 3)"), sort_value("98,496")
        (88.3, 98496.0)
        >>> sort_value("10 min 34 s"), sort_value("conv2d_1")
        (634.0, None)
    """
    text = text.strip()
    if (time := _TIME.fullmatch(text)) and text:
        hours, minutes, seconds = (float(part or 0) for part in time.groups())
        return 3600 * hours + 60 * minutes + seconds
    text = text.removeprefix("< ")
    number = _NUMBER.match(text)
    end = number.end() if number else 0
    # A name may start with a digit: "3x3_conv".
    if not number or text[end : end + 1] not in ("", " "):
        return None
    return float(number[0].replace(",", ""))


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"spans": _unbroken, "plain": plain}
    environment.tests |= {
        "paragraph": lambda block: isinstance(block, Paragraph),
        "facts": lambda block: isinstance(block, Facts),
        "command": lambda block: isinstance(block, Command),
        "grid": lambda block: isinstance(block, _Grid),
    }
    return environment.get_template(_PAGE)


def _unbroken(text: Inline) -> list[str | Span]:
    """The parts of a text, a percent sign kept on the line of its figure."""
    return [
        s.replace(" %", "\N{NO-BREAK SPACE}%") if isinstance(s, str) else s
        for s in spans(text)
    ]


def _arrange(blocks: Sequence[Block], pictures: Mapping[str, bytes]) -> _Part:
    """Nests the blocks by their headings, and joins plots that follow each other."""
    anchors = _anchors()
    page = _Part("kdprune report", "top")
    open_parts = [page]
    for block in blocks:
        match block:
            case Heading(1, text):
                page.title = text
            case Heading(level, text):
                part = _Part(text, anchors(plain(text)))
                del open_parts[level - 1 :]
                open_parts[-1].parts.append(part)
                open_parts.append(part)
            case Picture(name, caption):
                shown = open_parts[-1].blocks
                image = _show(pictures[name], caption)
                if shown and isinstance(shown[-1], list):
                    shown[-1].append(image)
                else:
                    shown.append([image])
            case Table():
                open_parts[-1].blocks.append(_lay_out(block))
            case _:
                open_parts[-1].blocks.append(block)
    return page


def _anchors() -> Callable[[str], str]:
    """A function that makes a name for a link of each heading, never the same."""
    taken: set[str] = set()

    def make(title: str) -> str:
        name = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "part"
        while name in taken:
            name += "-"
        taken.add(name)
        return name

    return make


def _lay_out(table: Table) -> _Grid:
    rows = [[_read_cell(text) for text in row] for row in table.rows]
    columns = list(zip(*rows, strict=True)) or [()] * len(table.columns)
    numeric = [_is_numeric(column) for column in columns]
    for column, numbers in zip(columns, numeric, strict=True):
        for cell in column:
            cell.value = cell.value if numbers else None
    return _Grid(list(zip(table.columns, numeric, strict=True)), rows)


def _read_cell(text: Inline) -> _Cell:
    words = plain(text)
    return _Cell(text, sort_value(words), words == MISSING)


def _is_numeric(column: Sequence[_Cell]) -> bool:
    """Whether most of a column's cells that hold anything hold a number."""
    told = [cell.value is not None for cell in column if not cell.missing]
    return 2 * sum(told) > len(told)


def _show(png: bytes, caption: str) -> _Image:
    width, height = struct.unpack(">II", png[16:24])
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return _Image(source, caption, round(_SCALE * width), round(_SCALE * height))
