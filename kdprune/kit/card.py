"""The model card: what the model is, how well it does, and how to use it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from kdprune.kit import snippets
from kdprune.kit.facts import Facts
from kdprune.kit.fits import check_fit

_CLASSES_SHOWN = 50

# The figures of a table: title, key of an entry, key of its interval.
_MEASURES: dict[str, list[tuple[str, ...]]] = {
    "classes": [("accuracy %", "accuracy", "accuracy_ci")],
    "binary": [("accuracy %", "accuracy", "accuracy_ci"), ("AUC %", "auc")],
    "labels": [
        ("macro F1 %", "macro_f1", "macro_f1_ci"),
        ("mAP %", "mean_average_precision"),
        ("accuracy %", "accuracy", "accuracy_ci"),
    ],
}
_COSTS = ("bytes", "gzip", "MACs", "p50 / p90 ms")
_NOTES = {
    "binary": "AUC: area under the receiver operating characteristic. ",
    "labels": "Macro F1: mean of the labels' F1 scores at one half. mAP: mean of their "
    "average precisions. Accuracy: share of all labels that are right. ",
}
_USES = {
    "model_uint8.tflite": "the model for Android and for Python: bytes in, bytes out",
    "model_int8.tflite": "the same for microcontrollers: bytes minus 128, in and out",
    "labels.txt": "the classes' names, one per line, in the order of the outputs",
    "model.h": "the int8 model's C++ declaration",
    "model.cc": "the int8 model as an array, without metadata, 16-byte aligned",
    "golden.npz": "generated images and the scores they must get",
    "selftest.py": "checks every file and both models",
}


_SCALED = {"stretch": "scaled", "crop": "cut and scaled", "pad": "scaled and padded"}
# How images came to the model's size, which a device must do in the same way.
_RESIZED = {
    "stretch": "In training and measuring, images were scaled to {height} x {width} "
    "pixels without keeping their proportions.",
    "crop": "In training and measuring, the largest centered part of the proportions "
    "{height} : {width} was cut out of each image and scaled to {height} x {width} "
    "pixels.",
    "pad": "In training and measuring, images were scaled to fit into {height} x "
    "{width} pixels, centered, with black at both sides.",
}


def write_card(facts: Facts) -> str:
    """Writes `MODEL_CARD.md`.

    Args:
        facts: A `Facts`.

    Returns:
        The page, in GitHub's Markdown.
    """
    height, width, channels = facts.image_shape
    kind = {1: "Gray", 3: "RGB"}.get(channels, f"{channels}-channel")
    parts = [
        f"# {facts.name}",
        f"Version {escape(facts.version)}. An image classifier: {kind} images of "
        f"{height} x {width} pixels in, {_describe_scores(facts)} out. "
        f"{_describe_computing(facts)}",
        _describe_classes(facts),
        "## Files",
        _files_table(facts),
        "## Input and output",
        _ends_table(facts),
        _describe_values(facts),
        "## Operators",
        *_describe_operators(facts),
        "## Figures",
        *_describe_figures(facts),
        "## Memory",
        _describe_memory(facts),
        "## Boards and phones",
        *_describe_fits(facts),
        "## Known limits",
        "\n".join(f"- {limit}" for limit in _known_limits(facts)),
        *snippets.write_snippets(facts),
        "## Check this kit",
        snippets.fence("sh", "pip install numpy ai-edge-litert\npython selftest.py"),
        f"Compares every file with `manifest.json`, and the scores of {facts.golden} "
        "generated images with those in `golden.npz`.",
    ]
    return "\n\n".join(parts) + "\n"


def escape(text: object) -> str:
    """Text that Markdown shows as it is."""
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", str(text))


def table(header: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _describe_values(facts):
    """What a byte stands for, and what brings an image to the model's size."""
    parts = [f"A pixel's byte {_describe_bytes(facts)}."]
    if facts.value_range:
        low, high = facts.value_range
        parts.append(
            f"Bytes were made of values: 0 stands for {low:g} and 255 stands for "
            f"{high:g}, in equal steps."
        )
    height, width, _ = facts.image_shape
    if facts.resize:
        parts.append(_RESIZED[facts.resize].format(height=height, width=width))
    parts.append("Scores are probabilities in steps of 1/256.")
    return " ".join(parts)


def _describe_scores(facts):
    count = len(facts.classes)
    if facts.task == "binary":
        yes, no = escape(facts.classes[1]), escape(facts.classes[0])
        return f"the probability of {yes}, against {no},"
    if facts.task == "labels":
        return f"the probabilities of {count} labels, of which several may apply,"
    return f"the probabilities of {count} classes"


def _describe_computing(facts):
    if not facts.float_layers:
        return "It computes in 8-bit integers throughout."
    return (
        "It computes in 8-bit integers, except for its most sensitive layers, in "
        f"float: {escape(', '.join(facts.float_layers))}."
    )


def _describe_classes(facts):
    shown = ", ".join(escape(label) for label in facts.classes[:_CLASSES_SHOWN])
    more = len(facts.classes) - _CLASSES_SHOWN
    what = "Labels" if facts.task == "labels" else "Classes"
    return f"{what}: {shown}" + (
        f", and {more} more in `labels.txt`." if more > 0 else "."
    )


def _files_table(facts):
    rows = [(f"`{name}`", f"{facts.sizes[name]:,}", use) for name, use in _USES.items()]
    return table(("file", "bytes", "what it is"), rows)


def _ends_table(facts):
    rows = []
    for dtype in ("uint8", "int8"):
        for end in ("input", "output"):
            tensor = facts.ends[dtype][end]
            scale = _fraction(tensor["scale"])
            shape = " x ".join(map(str, tensor["shape"]))
            row = (tensor["dtype"], shape, scale, tensor["zero_point"])
            rows.append((f"`model_{dtype}.tflite`", end, f"`{tensor['name']}`", *row))
    header = ("file", "", "tensor", "type", "shape", "scale", "zero point")
    return table(header, rows)


def _fraction(scale):
    """A scale as people write it: 1/255 rather than 0.00392157."""
    for top in (1, 2):
        for bottom in (1, 255, 256):
            if abs(scale - top / bottom) < 1e-6 * scale:
                return f"{top}/{bottom}" if bottom > 1 else str(top)
    return f"{scale:.6g}"


def _describe_bytes(facts):
    """What the bytes of an image, which go in as they are, stand for."""
    tensor = facts.ends["uint8"]["input"]
    scale, zero = tensor["scale"], tensor["zero_point"]
    if (_fraction(scale), zero) == ("1/255", 0):
        return "stands for byte / 255, without mean and deviation"
    if (_fraction(scale), zero) == ("1", 0):
        return "stands for itself, 0 to 255"
    low, high = -zero * scale, (255 - zero) * scale
    said = f"stands for (byte - {zero}) x {_fraction(scale)}, {low:.3f} to {high:.3f}"
    if _fraction(scale) == "2/255":
        return (
            f"{said}: [-1, 1] moved by half a gray level, since 0 must be one of the "
            "steps"
        )
    return said


def _describe_operators(facts):
    """Which operators the files have, and who runs them."""
    parts = []
    for dtype in ("uint8", "int8"):
        rows = [
            (
                row["op"],
                row["type"],
                row["count"],
                *map(_yes, (row["gpu"], row["micro"])),
            )
            for row in facts.ends[dtype]["operators"]
        ]
        peak = facts.ends[dtype]["peak_activation_bytes"]
        header = ("operator", "type", "number", "GPU delegate", "TFLite Micro")
        parts += [
            f"`model_{dtype}.tflite`, peak activation memory {peak:,} bytes:",
            table(header, rows),
        ]
    note = (
        "Support by operator name and type, as listed in the sources of both. The GPU "
        "delegate runs 8-bit types if quantized inference is enabled; what it does not "
        "support runs on the CPU."
    )
    return [*parts, note]


def _yes(known):
    return "yes" if known else "no"


def _describe_figures(facts):
    metrics = facts.metrics
    if not metrics.get("models"):
        return ["Not measured."]
    data, machine = metrics.get("dataset", {}), metrics.get("machine", {})
    parts = []
    if facts.flagship:
        parts.append(f"This kit is `{facts.flagship['name']}`.")
    sizes = data.get("sizes", {})
    counts = ", ".join(f"{count:,} {split}" for split, count in sizes.items())
    parts.append(
        f"Data: {escape(data.get('source', 'unknown'))}"
        + (f" ({counts} images)." if counts else ".")
    )
    measured = list(_MEASURES[facts.task])
    if any("balanced_accuracy" in entry for entry in metrics["models"]):
        measured.append(("balanced %", "balanced_accuracy"))
    header = ("model", "type", *(title for title, *_ in measured), *_COSTS)
    rows = [_figures_row(entry, measured) for entry in metrics["models"]]
    parts.append(table(header, rows))
    timed = next((e for e in metrics["models"] if e.get("latency_ms_p50")), None)
    note = "Accuracy in brackets: its 95 % interval. gzip is what a download costs."
    note = _NOTES.get(facts.task, "") + note
    if ("balanced %", "balanced_accuracy") in measured:
        note += " Balanced: mean of the accuracies on each class, which are uneven."
    if timed:
        threads = timed.get("threads", 1)
        note += (
            " Latency: one image, wall time of the interpreter's invoke(), "
            f"{threads} thread{'' if threads == 1 else 's'}, "
            f"{timed.get('resolver')} kernels, on "
            f"{escape(machine.get('processor', 'an unknown machine'))}."
        )
    parts.append(note)
    if metrics.get("command"):
        parts.append(f"Made and measured by `{metrics['command']}`.")
    return parts


def _figures_row(entry, measured):
    shown = [_figure(entry, *keys) for _, *keys in measured]
    p50, p90 = entry.get("latency_ms_p50"), entry.get("latency_ms_p90")
    latency = f"{p50:.3f} / {p90:.3f}" if p50 and p90 else "–"
    counts = [
        f"{entry[key]:,}" if entry.get(key) is not None else "–"
        for key in ("bytes", "bytes_gzip", "macs")
    ]
    return (
        escape(entry.get("name")),
        entry.get("dtype", "–"),
        *shown,
        *counts,
        latency,
    )


def _figure(entry, key, interval=None):
    share, bounds = entry.get(key), entry.get(interval)
    text = "–" if share is None else f"{100 * share:.2f}"
    if bounds:
        text += " ({:.2f}, {:.2f})".format(*(100 * end for end in bounds))
    return text


def _describe_memory(facts):
    if facts.refusal:
        return escape(facts.refusal)
    text = f"On a microcontroller the weights take {facts.flash:,} bytes of flash. "
    if facts.arena is None:
        return text + "The tensor arena (RAM) was not measured."
    return text + (
        f"The tensor arena (RAM) takes {facts.arena:,} bytes, measured with TFLite "
        "Micro on a 64-bit machine; with 32-bit pointers it is somewhat less, and "
        "optimized kernels may need more for their own buffers."
    )


def _describe_fits(facts):
    """What the int8 file fits; phones take the uint8 file, which is as large."""
    rows = [
        (
            escape(fit.board),
            _yes(fit.fits),
            f"{fit.flash / 1024:,.0f} of {fit.flash_of / 1024:,.0f}",
            f"{fit.ram / 1024:,.0f} of {fit.ram_of / 1024:,.0f}",
            escape("; ".join(fit.reasons)),
        )
        for fit in check_fit(facts.needs)
    ]
    note = (
        "Flash: the file and an allowance for the application with the runtime's code. "
        "RAM: the arena "
        f"({'measured' if facts.arena is not None else 'planned, not measured'}), an "
        "upper bound of what the board's optimized kernels take beside it, and an "
        "allowance for the application."
    )
    return [table(("board", "fits", "flash, KiB", "RAM, KiB", ""), rows), note]


def _describe_answer(facts):
    if facts.task == "labels":
        return (
            "A label applies where its probability is above one half: any number of "
            f"the {len(facts.classes)}, or none; for fewer false alarms take a higher "
            "limit."
        )
    if facts.task == "binary":
        no, yes = map(escape, facts.classes)
        return (
            f"Every image is taken for {yes} where the probability is above one half, "
            f"else for {no}, whatever it shows."
        )
    return (
        f"Every image is assigned one of the {len(facts.classes)} classes, whatever it "
        "shows."
    )


def _known_limits(facts):
    height, width, _ = facts.image_shape
    limits = [
        _describe_answer(facts),
        f"Images are {_SCALED[facts.resize or 'stretch']} to {height} x {width} "
        "pixels: pass them whole and upright.",
        "The accuracy is that of images like those it was trained on; other cameras, "
        "light and subjects lower it.",
        "Processors round differently: scores of the default and of the reference "
        f"kernels differ by up to {facts.deviation}/256 on the golden images.",
    ]
    labels = facts.task == "labels"
    shares = facts.flagship.get("f1_by_label" if labels else "per_class") or []
    known = [
        (share, label)
        for share, label in zip(shares, facts.classes, strict=False)
        if share is not None
    ]
    if known:
        share, label = min(known)
        limits.append(
            f"Weakest label: {escape(label)}, of an F1 score of {share:.2f}."
            if labels
            else f"Weakest class: {escape(label)}, {share:.1%} of its images right."
        )
    error = facts.flagship.get("ece")
    if error is not None:
        limits.append(
            "As a probability of being right, a score is off by "
            f"{100 * error:.1f} points on average (expected calibration error)."
        )
    if facts.flagship.get("latency_ms_p50"):
        limits.append("The latency is that of the machine above, not of a phone.")
    return limits
