"""Stages that write files, measure them, and show and ship what came of it."""

import itertools
import shutil

import numpy as np

from kdprune import benchmark, evaluate, kit, records, tflite
from kdprune.data import shapes
from kdprune.fitting import MODEL, load_node
from kdprune.models import save_model
from kdprune.stages.quantize import conversions
from kdprune.tflite.convert import is_quantization_aware

# Scored on the kernels that are slow: those of reference take a tenth of a second
# for an image and a model of 12 M multiplications.
_KERNEL_IMAGES = 100
# Of the generated shapes among a kit's golden images, each class twice.
_SHAPES, _SHAPES_SIZE = 20, 32


def export_files(run, node, folder):
    """Writes the `.tflite` files of every model, each past the gate."""
    results = {}
    for parent in itertools.chain(*node.parents.values()):
        model = load_node(run, parent)
        scores = evaluate.predict(model, run.dataset.validation.images)
        for dtype, arguments in conversions(run, parent):
            name = f"{parent.stage}.{dtype}.tflite"
            print(f"writing {name}", flush=True)
            content = tflite.convert_tflite(model, dtype, **arguments)
            results[name] = _pass_gate(
                run,
                node,
                folder / name,
                content,
                scores,
                float_layers=arguments.get("float_layers", ()),
                strict=is_quantization_aware(model),
            )
    return {"files": results}, list(results)


def evaluate_models(run, node, folder):
    """Scores every model and file on the test images; writes `metrics.json`."""
    test, scores, entries = run.dataset.test, {}, []
    parents = list(itertools.chain(*node.parents.values()))
    for parent in [p for p in parents if p.kind != "export"]:
        path = run.folder / parent.name / MODEL
        entry, scores[parent.name] = _measure(run, node, path, parent, parent.stage)
        entries.append(entry)
    for path, source in _exported(run, parents):
        if source.name not in scores:
            model = load_node(run, source)
            scores[source.name] = evaluate.predict(model, test.images)
        called = path.stem.replace(".", "_")
        entry, _ = _measure(run, node, path, source, called, scores[source.name])
        entries.append(entry)
    if node.settings.latency:
        _time_in_turns(run, node.settings, entries)
    metrics = {
        "schema": records.SCHEMA,
        "recipe": run.recipe.name,
        "command": run.command,
        "dataset": {**run.dataset.description, "test_sha256": test.sha256()},
        "seed": run.recipe.seed,
        "baseline": run.recipe.baseline,
        "flagship": run.recipe.flagship and f"{run.recipe.flagship}_int8",
        "stages": [other.name for other in run.nodes],
        "versions": records.versions(),
        "machine": records.machine(),
        "models": entries,
    }
    records.write_json(run.folder / "metrics.json", metrics)
    outputs = ["../metrics.json", *_ship(run, parents)]
    return {entry["path"]: entry["accuracy"] for entry in entries}, outputs


def write_kit(run, node, folder):
    """Writes the flagship's ship kit, with what was measured of it."""
    for left in [path for path in folder.iterdir() if path.is_dir()]:
        shutil.rmtree(left)
    content = {
        dtype: (run.folder / f"model_{dtype}.tflite").read_bytes()
        for dtype in ("int8", "uint8")
    }
    place = folder / node.settings.name
    kit.write_kit(
        place,
        **content,
        classes=run.dataset.classes,
        name=node.settings.name,
        version=node.settings.version,
        images=_generate_shapes(run.dataset.image_shape),
        metrics=records.read_json(run.folder / "metrics.json"),
    )
    print(f"kit: {place}", flush=True)
    return {}, sorted(f"{place.name}/{path.name}" for path in place.iterdir())


def write_report(run, node, folder):
    """Draws `report.md` and the plots of the run."""
    from kdprune import report

    path = report.write_report(run.folder)
    print(f"report: {path}", flush=True)
    return {}, ["../report.md"]


def _generate_shapes(image_shape):
    """Generated shapes, uint8, in the size and the channels (1 or 3) of the images."""
    height, width, channels = image_shape
    images = shapes.generate(_SHAPES, _SHAPES_SIZE, 0, shapes.TEST).images
    rows, columns = (np.arange(n) * _SHAPES_SIZE // n for n in (height, width))
    images = images[:, rows[:, None], columns]
    if channels == 1:
        images = np.rint(images.mean(axis=-1, keepdims=True)).astype(np.uint8)
    return images


def _pass_gate(run, node, path, content, keras_scores, **asked):
    """Puts a file in its place if it passes the gate; returns the gate's figures."""
    validation, settings = run.dataset.validation, node.settings
    partial = path.with_name(f"partial.{path.name}")
    tflite.write_file(content, partial)

    def score(resolver, count=None):
        return evaluate.predict(partial, validation.images[:count], resolver=resolver)

    try:
        scores = {"xnnpack": score("xnnpack")}
        figures = tflite.check_tflite(
            content,
            keras_scores,
            scores["xnnpack"],
            validation.labels,
            max_disagreement=settings.max_disagreement,
            max_drop=settings.max_drop,
            **asked,
        )
        slow = ("builtin", "reference")
        scores |= {name: score(name, _KERNEL_IMAGES) for name in slow}
        figures["kernels"] = tflite.compare_kernels(
            keras_scores, scores, settings.max_disagreement
        )
        figures["xnnpack_leaves"] = tflite.xnnpack_leaves(content)
    except ValueError as error:
        partial.unlink()
        raise ValueError(f"{path.name} failed the export gate: {error}") from error
    partial.replace(path)
    return figures


def _exported(run, parents):
    """`(path, node)` of each file of the export stages and of what it was made of.

    Cells of an export stage that have one of their models in common write the same
    file of it: the first stands for all.
    """
    found = {}
    for parent in [p for p in parents if p.kind == "export"]:
        names = run.record(parent)["outputs"]
        for source in itertools.chain(*parent.parents.values()):
            for name in [n for n in names if n.startswith(f"{source.stage}.")]:
                path = run.folder / parent.name / name
                found.setdefault((source.name, name), (path, source))
    return list(found.values())


def _measure(run, node, path, source, name, scores=None):
    """One entry of `metrics.json`, and the scores it is made of.

    A file is held against the scores of the node that it was made from.
    """
    print(f"measuring {path.relative_to(run.folder)}", flush=True)
    measured = evaluate.evaluate_model(
        path,
        run.dataset.test.images,
        run.dataset.test.labels,
        source=None if scores is None else (source.name, scores),
        resolver=node.settings.resolver,
        threads=node.settings.threads,
        latency=False,  # Of all files at the end, in turns.
    )
    named = {"name": name, "stage": source.name}
    named["path"] = str(path.relative_to(run.folder))
    return {**measured.entry, **named}, measured.scores


def _time_in_turns(run, settings, entries):
    """Adds latencies of the files, which take turns: what disturbs one meets all."""
    files = [entry for entry in entries if entry["format"] == "tflite"]
    if not files:
        return
    print(f"timing {len(files)} files in turns", flush=True)
    timed = benchmark.measure_latencies(
        [run.folder / entry["path"] for entry in files],
        [settings.resolver],
        threads=settings.threads,
        settle=False,
    )
    for entry, times in zip(files, timed, strict=True):
        for key in ("latency_ms_p50", "latency_ms_p90"):
            entry[key] = times[key]


def _ship(run, parents):
    """Copies what the recipe named beforehand to the run's top; returns the names."""
    names = []
    for kept in run.recipe.keep:
        # Of a matrix the first cell: chosen by the recipe, not by its score.
        node = next(parent for parent in parents if parent.stage == kept)
        names.append(f"{kept}.keras")
        save_model(load_node(run, node), run.folder / names[-1], half=True)
    flagship = run.recipe.flagship
    exports = [p for p in parents if p.kind == "export" and flagship in p.parents]
    for dtype in ("int8", "uint8") if exports else ():
        source = run.folder / exports[0].name / f"{flagship}.{dtype}.tflite"
        names.append(f"model_{dtype}.tflite")
        tflite.write_file(source.read_bytes(), run.folder / names[-1])
    return [f"../{name}" for name in names]
