"""What a page is made of, and the page in Markdown (`html` writes the other form).

Text is plain and is escaped by what writes the page; only a `Span` is marked up. A
name from a record can therefore not be read as Markdown or HTML.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kdprune.report.read import Model, difference


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


# --- Figures as text; a missing one is a dash ---

MISSING = "–"


def accuracy_text(model: Model) -> str:
    """Writes "88.30 (87.65 to 88.92)", or "88.30 ± 0.21 (n = 3)" for seeds."""
    text = percent(model.mean("accuracy"))
    spread = model.deviation("accuracy")
    if spread is not None:
        return f"{text} ± {percent(spread)} (n = {len(model.values('accuracy'))})"
    if model.interval and text != MISSING:
        return f"{text} ({percent(model.interval[0])} to {percent(model.interval[1])})"
    return text


def difference_text(model: Model, baseline: Model | None) -> str:
    """Writes "+1.80", in percentage points, or "baseline" for the baseline itself."""
    if model is baseline:
        return "baseline"
    found = difference(model, baseline) if baseline else None
    if found is None:
        return MISSING
    change, spread = found
    text = points(change)
    return text if spread is None else f"{text} ± {percent(spread)}"


def percent(share: float | None) -> str:
    """Writes a share in [0, 1] as a percentage with two decimals."""
    return MISSING if share is None else f"{100 * share:.2f}"


def share_label(share: float) -> str:
    """Writes a share that someone chose, with no more digits than it has: "12.5 %"."""
    return f"{100 * share:g} %"


def points(share: float) -> str:
    """Writes a difference of shares in percentage points, with its sign."""
    return f"{100 * share:+.2f}"


def count(value: float | None) -> str:
    """Writes a whole number with thousands separated."""
    return MISSING if value is None else f"{round(value):,}"


def millions(value: float | None) -> str:
    """Writes a count of operations in millions."""
    return MISSING if value is None else f"{value / 1e6:.2f} M"


def milliseconds(value: float | None) -> str:
    """Writes a latency with three significant digits, so that 0.012 is not 0.01."""
    if value is None:
        return MISSING
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def timing(model: Model) -> str:
    """Writes how a latency was measured: "1 thread, xnnpack"."""
    threads, resolver = model.get("threads"), model.get("resolver")
    parts = [] if threads is None else [f"{threads} thread" + "s" * (threads != 1)]
    parts += [] if resolver is None else [str(resolver)]
    return ", ".join(parts) or MISSING


def decibels(value: float | None) -> str:
    """Writes a ratio in decibels, whose second decimal says nothing."""
    return MISSING if value is None else f"{value:.1f}"


def duration(seconds: Any) -> str:
    """Writes a time in the two units that fit it."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        return MISSING
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def list_some(names: Sequence[str], most: int = 4) -> str:
    """Writes names in a row; where there are more than `most`, counts the others."""
    named = names if len(names) <= most else names[: most - 1]
    more = len(names) - len(named)
    text = ", ".join(named) or MISSING
    return f"{text} and {more} more" if more else text


def over_seeds(seeds: int) -> str:
    """Says, where there are several seeds, that figures are means."""
    return f" (means over {seeds} seeds)" if seeds > 1 else ""


def slug(name: str) -> str:
    """Makes a file name of a stage's or a model's name."""
    return "".join(c if c.isalnum() or c in "-_=." else "_" for c in name)


def brief(value: Any) -> Inline:
    """Writes settings or results in one line: `epochs` 30, `optimizer.name` sgd."""
    return join(", ", [(code(key), f" {scalar(item)}") for key, item in flatten(value)])


def flatten(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Pairs each setting or result with its whole name: `optimizer.name`, "sgd"."""
    if not isinstance(value, Mapping):
        return [(prefix or "value", value)]
    return [
        pair
        for key, item in value.items()
        if item not in ({}, [], None)
        for pair in flatten(item, f"{prefix}.{key}" if prefix else str(key))
    ]


def scalar(value: Any) -> str:
    """Writes one value of a setting in at most 60 characters."""
    text = _plain(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_plain, value)) + "]"
    return str(value)
