"""Prints the tables of benchmarks/your-own.md and families.md and of the README.

python docs/tools/your_own.py
"""

import json
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
RECORD = ROOT / "results" / "your_own" / "five.json"
STRANGERS = RECORD.with_name("strangers.json")
FAMILIES = RECORD.with_name("families.json")
CALLED = {"accuracy": "accuracy", "macro_f1": "macro F1", "auc": "AUC"}
_NONE = "–"


def table(models):
    """A row for each model: the figure of each file, and what kdprune's is worth."""
    rows = []
    for name, found in models.items():
        measure = found["measure"]
        figures = [
            f"{found['files'][label][measure]:.2f}"
            if label in found["files"]
            else _NONE
            for label in ("original", "converter", "litert", "kdprune")
        ]
        against = [
            _difference(found.get(f"against_{label}"))
            for label in ("original", "converter")
        ]
        attempts = len(found["attempts"])
        took = f"{found['seconds']:.0f} ({found['processor_seconds']:.0f})"
        what = f"`{name}`, {CALLED[measure]}"
        images = f"{found['images'][-1]:,}"
        row = [what, images, *figures, *against, str(attempts), took]
        rows.append(f"| {' | '.join(row)} |")
    return rows


def steps(found):
    """A row for each way: lines, minutes without and with the installation, and %."""
    rows = []
    called = {"kdprune": "kdprune", "converter": "plain converter"}
    for name, way in found.items():
        without = sum(way["seconds"].values())
        row = [called[name], str(way["lines"])]
        row += [f"{value / 60:.1f}" for value in (without, without + way["install"])]
        row.append(f"{way['accuracy']:.2f}")
        rows.append(f"| {' | '.join(row)} |")
    return rows


def readme():
    """What the README says: the rows of both ways, and the original's accuracy."""
    content = json.loads(RECORD.read_text())
    original = content["models"]["tutorial"]["files"]["original"]["accuracy"]
    return [*steps(content["first_steps"]), f"right on {original:.2f} %"]


def strangers(models):
    """A row for each model of others: how its files agree, or why it is not taken."""
    rows = []
    for name, found in models.items():
        row = [f"`{name}`, {found['package']}", found["form"]]
        if "int8" in found:
            taken, small = found["proof"], found["int8"]
            images, _, units = found["facts"]["input"].partition(" pixels, ")
            row += [
                f"{images.removeprefix('images of ')} x {units.partition(' ')[0]}, "
                f"{found['facts']['output'].replace('one of ', '')}",
                f"{found['macs'] / 1e6:.1f} M",
                f"{taken['deviation']:.0e}",
                f"{found['float32']['largest_deviation']:.0e}",
                f"{100 * small['same_class']:.1f}",
                f"{small['mean_deviation']:.4f}",
                f"{small['bytes']:,}",
                _arena(found["micro"]),
            ]
        elif "obstacles" in found:
            row.append(f"refused: {_short(found['obstacles'][-1])}")
            row += [_NONE] * 7
        else:
            row += ["read: what it holds and needs", f"{found['macs'] / 1e6:.1f} M"]
            row += [_NONE] * 4 + [f"{found['bytes']:,}", _arena(found["micro"])]
        rows.append(f"| {' | '.join(row)} |")
    return rows


def families(found):
    """A row for each family: how its files and its pruned network agree."""
    rows = []
    for one in found.values():
        files, pruned = one["files"], one["pruned"]
        small, smaller = files["int8"], files["pruned_int8"]
        row = [
            one["network"],
            f"{one['macs'] / 1e6:.1f} M",
            f"{100 * one['accuracy']:.1f}",
            str(one["doctor"]["status"]),
            f"{files['float32']['largest_deviation']:.0e}",
            f"{100 * small['same_class']:.1f}",
            f"{small['mean_deviation']:.3f}",
            str(small["float_layers"] or _NONE),
            f"{100 * pruned['macs'] / one['macs']:.0f} %",
            f"{pruned['deviation_from_masked']:.0e}",
            f"{100 * pruned['accuracy']:.1f}",
            f"{100 * smaller['same_class']:.1f}",
            f"{smaller['mean_deviation']:.3f}",
        ]
        rows.append(f"| {' | '.join(row)} |")
    return rows


def _arena(micro):
    return "lacks operators" if micro["missing"] else f"{micro['arena_bytes']:,}"


def _short(obstacle):
    return obstacle.removeprefix("loading: ").partition(";")[0]


def _difference(against):
    if against is None:
        return _NONE
    low, high = against["interval"]
    return f"{against['points']:+.2f} ({low:+.2f} to {high:+.2f})"


def lines():
    """All rows of the page of own models."""
    content = json.loads(RECORD.read_text())
    others = json.loads(STRANGERS.read_text())
    return [
        *table(content["models"]),
        *steps(content.get("first_steps", {})),
        *strangers(others["models"]),
    ]


def lines_of_families():
    """All rows of the page of families."""
    return families(json.loads(FAMILIES.read_text())["families"])


if __name__ == "__main__":
    sys.stdout.write("\n".join([*lines(), *readme(), *lines_of_families()]) + "\n")
