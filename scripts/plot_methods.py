"""Draws methods of making small files as lines of accuracy against compressed bytes.

For runs whose stages are named SIZE_METHOD, such as small_distilled and
tiny_distilled: each METHOD is a line over its sizes, float32 files on the left, int8
files on the right, with the deviation over the seeds. Prints the figures as a table.

Usage:
    python scripts/plot_methods.py RUN --sizes small tiny --out plots/methods.png
"""

import argparse
import pathlib

import matplotlib

from kdprune.report.plots import render
from kdprune.report.read import read_run
from kdprune.report.study_plots import LINE_COLOURS, LINE_MARKERS
from kdprune.report.style import STYLE, new_figure

TYPES = ("float32", "int8")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="a run's folder, with its metrics.json")
    parser.add_argument("--sizes", nargs="+", required=True, metavar="SIZE")
    parser.add_argument("--out", required=True, help="a .png or .svg file")
    options = parser.parse_args()
    out = pathlib.Path(options.out)
    if out.suffix not in (".png", ".svg"):
        parser.error(f"--out expects a .png or .svg file, got {out}")
    methods = find_methods(read_run(options.run), options.sizes)
    if not methods:
        parser.error(f"no stage of {options.run} is named SIZE_METHOD with these sizes")
    with matplotlib.rc_context(STYLE):
        figure = draw(methods)
        out.write_bytes(render(figure, out.suffix[1:]))
    for dtype in TYPES:
        for method, models in methods.items():
            for model in models[dtype]:
                print(describe(dtype, method, model))


def find_methods(run, sizes):
    """`{method: {type: models}}` of the files whose stage is a size and a method."""
    methods = {}
    for model in run.shipped:
        size, _, method = model.folder.split("--")[0].partition("_")
        if size not in sizes or model.get("format") != "tflite":
            continue
        dtype = model.get("dtype")
        method = method.removesuffix(f"_{dtype}").replace("_", ", ")
        found = methods.setdefault(method, {name: [] for name in TYPES})
        found[dtype].append(model)
    return methods


def draw(methods):
    """A panel for each type of file, a line for each method."""
    figure, _ = new_figure(8.6, 4.2, empty=True)
    panels = figure.subplots(1, len(TYPES), sharey=True)
    for axes, dtype in zip(panels, TYPES, strict=True):
        for number, (method, models) in enumerate(methods.items()):
            line = sorted(models[dtype], key=lambda model: model.mean("bytes_gzip"))
            axes.errorbar(
                [model.mean("bytes_gzip") / 1e3 for model in line],
                [100 * model.mean("accuracy") for model in line],
                [100 * (model.deviation("accuracy") or 0) for model in line],
                color=LINE_COLOURS[number % len(LINE_COLOURS)],
                marker=LINE_MARKERS[number % len(LINE_MARKERS)],
                ms=5,
                lw=1.3,
                elinewidth=0.9,
                capsize=2,
                label=method,
            )
        axes.set_title(f"{dtype} files")
        axes.set_xlabel("bytes in gzip (thousands)")
    panels[0].set_ylabel("accuracy on the test images (%)")
    handles, texts = panels[0].get_legend_handles_labels()
    figure.legend(
        handles, texts, loc="outside lower left", ncols=len(texts), frameon=False
    )
    return figure


def describe(dtype, method, model):
    """A row of the table in Markdown."""
    accuracy = f"{100 * model.mean('accuracy'):.2f}"
    if model.deviation("accuracy") is not None:
        accuracy += f" ± {100 * model.deviation('accuracy'):.2f}"
    latency = model.mean("latency_ms_p50")
    cells = [
        dtype,
        method,
        accuracy,
        f"{model.mean('bytes'):,.0f}",
        f"{model.mean('bytes_gzip'):,.0f}",
        "–" if latency is None else f"{latency:.3f}",
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
