"""The text of what was measured: tables that line up, one row for each file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def latency_table(entries: Sequence[Mapping[str, Any]]) -> str:
    """The table of what `measure_latencies` returned."""
    rows = [
        (
            entry["file"],
            entry["resolver"],
            _ms(entry["latency_ms_p50"]),
            " to ".join(map(_ms, entry["p50_interval_ms"])),
            _ratio(entry),
            _ms(entry["latency_ms_p90"]),
            _ms(entry["latency_ms_max"]),
            f"{entry['outliers']:,} of {entry['runs']:,}",
        )
        for entry in entries
    ]
    head = ("file", "kernels", "p50 ms", "95 % interval", "ratio", "p90 ms", "max ms")
    return _table((*head, "outliers"), rows)


def results_tables(results: Sequence[Mapping[str, Any]]) -> str:
    """The tables of other programs' results: their means, where no medians."""
    rows = [
        (
            entry["file"],
            entry["resolver"],
            "?" if entry["threads"] is None else str(entry["threads"]),
            *(_ms(entry[f"latency_ms_{name}"]) for name in ("p50", "mean")),
            _ratio(entry),
            *(_ms(entry[f"latency_ms_{name}"]) for name in ("p95", "max")),
            f"{len(entry['rounds_ms'])} x {entry['runs'] // len(entry['rounds_ms']):,}",
        )
        for entry in results
    ]
    head = ("file", "kernels", "threads", "p50 ms", "mean ms", "ratio", "p95 ms")
    texts = [_table((*head, "max ms", "rounds"), rows)]
    for entry in results:
        ops = [(op["op"], op["layer"], f"{op['us']:.1f}") for op in entry["ops"]]
        if ops:
            title = f"\n{entry['file']}, {entry['resolver']}: operators in their places"
            texts += [title, _table(("operator", "layer", "us"), ops)]
    return "\n".join(texts)


def profile_table(profile: Mapping[str, Any]) -> str:
    """The table of what `profile_file` returned, with its title."""
    whole = profile["whole_us"]
    rows = [
        (
            op["op"],
            op["layer"],
            "" if op["macs"] is None else f"{op['macs']:,}",
            f"{op['us']:.1f}",
            f"{100 * op['share']:.1f} %",
        )
        for op in profile["ops"]
    ]
    rest = profile["rest_us"]
    rows += [
        ("calls and hand-over", "", "", f"{rest:.1f}", f"{100 * rest / whole:.1f} %"),
        ("whole", "", "", f"{whole:.1f}", "100.0 %"),
    ]
    title = f"{profile['file']}, {profile['resolver']}; an empty call: "
    head = ("operator", "layer", "MACs", "us", "share")
    return f"{title}{profile['call_us']:.1f} us\n{_table(head, rows)}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lines up columns: the first two to the left, figures to the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place < 2 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (head, *rows)
    )


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}" if value < 1000 else f"{value:.0f}"


def _ratio(entry: Mapping[str, Any]) -> str:
    if entry["ratio"] is None or entry["ratio_interval"] == [1, 1]:
        return "-" if entry["ratio"] is None else "1"
    low, high = entry["ratio_interval"]
    return f"{entry['ratio']:.3f} ({low:.3f} to {high:.3f})"
