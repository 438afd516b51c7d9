"""What a page is made of, and the page in Markdown (`html` writes the other form).

Text is plain and is escaped by what writes the page; only a `Span` is marked up. A
name from a record can therefore not be read as Markdown or HTML.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Span:
    """Text that is set apart: `style` is "strong", "code" or "link"."""

    text: str
    style: str
    url: str = ""


# Plain text, marked text, or several of both in a row.
Inline = str | Span | tuple["Inline", ...]


@dataclass(frozen=True)
class Heading:
    """A heading of level 1 (the page's), 2 (a part's) or 3 (a stage's)."""

    level: int
    text: Inline


@dataclass(frozen=True)
class Paragraph:
    """Sentences."""

    text: Inline


@dataclass(frozen=True)
class Facts:
    """A list of names and what they are."""

    items: Mapping[str, Inline]


@dataclass(frozen=True)
class Command:
    """What to type in a shell."""

    text: str


@dataclass(frozen=True)
class Table:
    """A table; its first column is aligned left, the others right."""

    columns: Sequence[Inline]
    rows: Sequence[Sequence[Inline]]


@dataclass(frozen=True)
class Picture:
    """The plot `plots/<name>.png`, and a sentence that stands for it."""

    name: str
    caption: str


Block = Heading | Paragraph | Facts | Command | Table | Picture


def strong(text: str) -> Span:
    """Sets text in bold."""
    return Span(text, "strong")


def code(text: str) -> Span:
    """Sets a key of a record apart."""
    return Span(text, "code")


def join(separator: str, parts: Sequence[Inline]) -> Inline:
    """Joins texts as `str.join` does."""
    joined: list[Inline] = []
    for part in parts:
        joined += [separator, part] if joined else [part]
    return tuple(joined)


def spans(text: Inline) -> Iterator[str | Span]:
    """Walks through a text's plain and marked parts."""
    if isinstance(text, tuple):
        for part in text:
            yield from spans(part)
    else:
        yield text


def plain(text: Inline) -> str:
    """Returns a text without its marks."""
    return "".join(s if isinstance(s, str) else s.text for s in spans(text))


def to_markdown(blocks: Sequence[Block]) -> str:
    """Writes a page in GitHub's Markdown."""
    return "\n\n".join(map(_write_block, blocks)) + "\n"


def escape(text: str) -> str:
    """Keeps a text from being read as Markdown, HTML or a table's border."""
    for sign in "\\`*_|[]":
        text = text.replace(sign, "\\" + sign)
    # A sign before a space or a digit ("< 0.001") opens no tag.
    text = re.sub(r"<(?=[^\s\d])", "&lt;", text.replace("&", "&amp;"))
    return text.replace("\n", " ").replace("\r", " ")


def _write_block(block: Block) -> str:
    match block:
        case Heading(level, text):
            return f"{'#' * level} {_write(text)}"
        case Paragraph(text):
            return _write(text)
        case Facts(items):
            return "\n".join(
                f"- {name}: {_write(text)}" for name, text in items.items()
            )
        case Command(text):
            fence = "```"
            while fence in text:
                fence += "`"
            return f"{fence}sh\n{text}\n{fence}"
        case Table(columns, rows):
            rule = ["---", *["---:"] * (len(columns) - 1)]
            lines = [map(_write, columns), rule, *(map(_write, row) for row in rows)]
            return "\n".join(f"| {' | '.join(line)} |" for line in lines)
        case Picture(name, caption):
            return f"![{escape(caption)}](plots/{name}.png)"


def _write(text: Inline) -> str:
    return "".join(map(_write_span, spans(text)))


def _write_span(span: str | Span) -> str:
    if isinstance(span, str):
        return escape(span)
    match span.style:
        case "strong":
            return f"**{escape(span.text)}**"
        case "code":
            return f"`{span.text}`" if "`" not in span.text else escape(span.text)
        case "link":
            return f"[{escape(span.text)}]({span.url})"
    raise ValueError(f"unknown style of text: {span.style!r}")
