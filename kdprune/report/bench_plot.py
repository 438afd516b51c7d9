"""Draws what `kdprune bench` measured: latencies, and how operators share them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from kdprune.report.document import MISSING, milliseconds
from kdprune.report.plots import render
from kdprune.report.style import (
    BLUE,
    GREEN,
    GREY,
    STYLE,
    VERMILLION,
    add_key,
    clip_all,
    head_columns,
    new_figure,
    room_for,
    write_beside,
)

# The kinds of operators that take most, if a hundredth anywhere; others are grey.
COLOURS = (BLUE, VERMILLION, GREEN, "#E69F00", "#CC79A7", "#56B4E9")
LEAST_SHARE, OTHERS, REST = 0.01, "0.6", "0.9"
# The axis ends at this many times the slowest median, should a busy machine's 90th
# percentiles lie beyond.
WIDEST = 1.6
COLUMNS = (10, 85)  # of figures right of the latencies, in points


def draw_bench(record: dict, form: str) -> bytes:
    """Draws a record of `kdprune bench`.

    A row for each file and its kernels: the median, a line up to the 90th percentile
    (of other programs' results the 95th), the rounds' medians, the ratio to the first
    file. Below, of the files with a profile, what the operators take.

    Args:
        record: What `kdprune bench --json` writes.
        form: "png" or "svg".

    Returns:
        The picture's content.
    """
    entries = [*record.get("latencies", []), *record.get("results", [])]
    profiles = record.get("profiles", [])
    names = _names(entries)
    with matplotlib.rc_context(STYLE):
        height = 1.5 + 0.34 * len(entries)
        if profiles:
            height += 1.2 + 0.34 * len(profiles)
        figure, _ = new_figure(8.6 + room_for(names, 34), height, empty=True)
        ratios = [len(entries) + 2, len(profiles) + 2] if profiles else None
        rows = figure.subplots(1 + bool(profiles), 1, height_ratios=ratios)
        top, bottom = rows if profiles else (rows, None)
        _draw_latencies(top, record, entries)
        if bottom is not None:
            _draw_profiles(bottom, profiles)
        add_key(figure, _latency_key(entries))
        return render(figure, form)


def _names(entries: Sequence[dict]) -> list[str]:
    """Names files with no more of their folders than tells them apart."""
    files = {entry["file"] for entry in entries}
    short = {file: Path(file).name for file in files}
    if len({*short.values()}) < len(files):
        common = os.path.commonpath([Path(file).absolute().parent for file in files])
        short = {file: os.path.relpath(file, common) for file in files}
    return clip_all([f"{short[e['file']]}, {e['resolver']}" for e in entries], 44)


def _draw_latencies(axes: Axes, record: dict, entries: Sequence[dict]) -> None:
    end = _axis_end(entries)
    for row, entry in enumerate(entries):
        middle, slow = _middle(entry), _slow(entry)
        axes.plot([middle, slow], [row, row], color=BLUE, linewidth=1.2, zorder=2)
        mark = (slow, "|") if slow < end else (end, ">")
        axes.plot(mark[0], row, mark[1], color=BLUE, ms=7, zorder=2, clip_on=False)
        rounds = entry["rounds_ms"]
        axes.plot(rounds, [row] * len(rounds), ".", color=GREY, ms=3, zorder=3)
        axes.plot(middle, row, "o", color=BLUE, ms=6, zorder=4)
        ratio = MISSING if entry["ratio"] is None else f"{entry['ratio']:.2f}"
        write_beside(axes, row, COLUMNS, (f"{milliseconds(middle)} ms", ratio))
    head_columns(axes, COLUMNS, (_told(entries), "ratio"))
    axes.set_yticks(range(len(entries)), _names(entries))
    axes.set_ylim(len(entries) - 0.4, -0.6)
    axes.set_xlim(0, min(end, axes.get_xlim()[1]))
    axes.grid(False, axis="y")
    where = record.get("phone", {}).get("model")
    where = where or record.get("machine", {}).get("processor")
    how = [_threads(entries[0]), where] if where else [_threads(entries[0])]
    axes.set_xlabel(f"milliseconds per image ({'; '.join(how)})")
    busy = ", on a busy machine" if record.get("busy") else ""
    axes.set_title(f"Latency, files interleaved{busy}", pad=18)


def _threads(entry: dict) -> str:
    """Writes with how many threads, where that is known: "1 thread"."""
    threads = entry["threads"]
    if threads is None:
        return "threads unknown"
    return f"{threads} thread{'s' * (threads > 1)}"


def _middle(entry: dict) -> float:
    """Returns the median, or of programs that do not tell it the mean."""
    median = entry["latency_ms_p50"]
    return entry["latency_ms_mean"] if median is None else median


def _told(entries: Sequence[dict]) -> str:
    medians = all(entry["latency_ms_p50"] is not None for entry in entries)
    return "p50" if medians else "p50 or mean"


def _slow(entry: dict) -> float:
    return entry.get("latency_ms_p90") or entry.get("latency_ms_p95") or _middle(entry)


def _axis_end(entries: Sequence[dict]) -> float:
    return WIDEST * max(map(_middle, entries)) or 1  # all rounded to 0


def _latency_key(entries: Sequence[dict]) -> list[Line2D]:
    told = {"p95" if "latency_ms_p95" in entry else "p90" for entry in entries}
    slow = " or ".join(sorted(told))
    key = [
        Line2D([], [], ls="", marker="o", color=BLUE, label=_told(entries)),
        Line2D([], [], color=BLUE, marker="|", markevery=[1], label=f"up to {slow}"),
        Line2D([], [], ls="", marker=">", color=BLUE, label=f"{slow} further right"),
        Line2D(
            [],
            [],
            ls="",
            marker=".",
            color=GREY,
            ms=4,
            label=f"{_told(entries)} of one round",
        ),
    ]
    if max(map(_slow, entries)) < _axis_end(entries):
        del key[2]
    return key


def _draw_profiles(axes: Axes, profiles: Sequence[dict]) -> None:
    """Stacks the operators of each file in their order, coloured by their kind."""
    most: dict[str, float] = {}
    for profile in profiles:
        sums: dict[str, float] = {}
        for op in profile["ops"]:
            sums[op["op"]] = sums.get(op["op"], 0) + op["share"]
        most |= {kind: max(share, most.get(kind, 0)) for kind, share in sums.items()}
    kinds = sorted(most, key=most.__getitem__, reverse=True)
    large = [kind for kind in kinds if most[kind] >= LEAST_SHARE]
    colours = dict(zip(large, COLOURS, strict=False))
    for row, profile in enumerate(profiles):
        left = 0.0
        bars = [(op["us"], colours.get(op["op"], OTHERS)) for op in profile["ops"]]
        for us, colour in [*bars, (max(profile["rest_us"], 0), REST)]:
            edge: dict[str, Any] = {"edgecolor": "white", "linewidth": 0.5}
            axes.barh(row, us / 1000, left=left / 1000, color=colour, **edge)
            left += us
        axes.plot(profile["whole_us"] / 1000, row, "|", color="black", ms=14, mew=1.5)
    axes.set_yticks(range(len(profiles)), _names(profiles))
    axes.set_ylim(len(profiles) - 0.4, -0.6)
    axes.set_xlim(left=0)
    axes.grid(False, axis="y")
    axes.set_xlabel("milliseconds per image, each operator alone")
    axes.set_title("Time by operator")
    key: list[Artist] = [Patch(color=c, label=kind) for kind, c in colours.items()]
    key += [Patch(color=OTHERS, label="others")] if len(kinds) > len(colours) else []
    key += [
        Patch(color=REST, label="overhead between operators"),
        Line2D([], [], ls="", marker="|", color="black", ms=10, label="whole model"),
    ]
    axes.legend(handles=key, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
