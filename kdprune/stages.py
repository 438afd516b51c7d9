"""What each kind of stage does: rooms put together, files written, figures returned.

Each function takes the run, its node and its folder, and returns `(results,
outputs)`: JSON-able figures for the record, and the files that others build on,
relative to the folder.
"""

import functools
import itertools
import pathlib
import shutil

import numpy as np

from kdprune import distill, evaluate, export, prune, quantize, records, training
from kdprune.data import batches, to_float
from kdprune.fitting import (
    MODEL,
    augment_of,
    fit_stage,
    load_fitting,
    load_node,
    new_model,
    parent_of,
    parents_of,
    soft_losses_of,
)
from kdprune.models import count_macs, count_parameters, load_model, save_model
from kdprune.models.factories import check_model_arguments
from kdprune.models.precision import cast_model

# Training images by which channels are judged and normalization is measured anew.
_EVIDENCE = 2048


def train(run, node, folder):
    """Trains a model on labels, and on a teacher if the node has one."""
    model, results = fit_stage(run, node, folder, lambda steps: new_model(run, node))
    return _save(model, folder, results)


def load(run, node, folder):
    """Takes a trained model, checked to fit the data."""
    model = load_fitting(node.settings.file, run.dataset)
    validation = run.dataset.validation
    scores = evaluate.predict(model, validation.images)
    accuracy = float(np.mean(scores.argmax(axis=1) == validation.labels))
    return _save(model, folder, {"val_accuracy": accuracy})


def soft_labels(run, node, folder):
    """Stores the teacher's logits of every view of the training images."""
    settings, split = node.settings, run.dataset.train
    precision = training.resolve_precision(settings.precision)
    teachers = [load_node(run, parent) for parent in parents_of(node, "teacher")]
    key = distill.store_key(
        teachers, split, augment=augment_of(settings), seed=settings.seed
    )
    teachers = [cast_model(teacher, precision) for teacher in teachers]

    def read_view(view):
        return batches.view_batches(
            split, 500, view=view, seed=settings.seed, augment=augment_of(settings)
        )

    distill.write_soft_labels(
        teachers, read_view, folder, views=settings.views, key=key
    )
    views = distill.load_soft_labels(folder, key)
    right = [float((view.argmax(axis=1) == split.labels).mean()) for view in views]
    names = sorted(path.name for path in folder.glob("view-*.npy"))
    return {"train_accuracy_by_view": right}, ["store.json", *names]


def prune_weights(run, node, folder):
    """Zeroes the smallest weights step by step while training goes on."""
    settings = node.settings
    base = load_node(run, parent_of(node, "from_"))
    share = settings.sparsity
    if settings.beta is not None:
        share = prune.sparsity_below(base, settings.beta)

    def wrapped(steps):
        return prune.prune_magnitude(
            base,
            share,
            schedule=settings.schedule,
            begin=int(settings.begin * steps),
            end=max(int(settings.end * steps), 1),
            frequency=settings.frequency,
            exclude=settings.exclude,
        )

    callbacks = prune.pruning_callbacks()
    fitted, results = fit_stage(run, node, folder, wrapped, callbacks, cast=False)
    results, outputs = _save(prune.strip_pruning(fitted), folder, results)
    # From the saved file, not from what was meant to be written.
    results["sparsity_by_layer"] = prune.layer_sparsity(load_model(folder / MODEL))
    return results, outputs


def prune_channels(run, node, folder):
    """Removes channels in steps, training what is left after each."""
    step = itertools.count(1)

    def fine_tune(model):
        # Each step's training resumes by itself, in a folder of its own.
        fitted, _ = fit_stage(run, node, folder / f"step-{next(step)}", lambda _: model)
        model.set_weights(fitted.get_weights())

    base, arguments = _cut_arguments(run, node)
    steps = node.settings.steps
    smaller = prune.prune_channels(base, steps=steps, fine_tune=fine_tune, **arguments)
    fitted, results = fit_stage(run, node, folder, lambda _: smaller)
    results, outputs = _save(fitted, folder, results)
    results["channels_by_layer"] = _widths(base, load_model(folder / MODEL))
    return results, outputs


def plan_channels(run, node):
    """The `prune.ChannelPlan` of a node's first step, for a dry run."""
    base, arguments = _cut_arguments(run, node)
    return prune.plan_channels(base, **arguments)


def _cut_arguments(run, node):
    """The model that a node cuts, and how, for `prune.prune_channels`."""
    settings = node.settings
    train = run.dataset.train
    chosen = np.random.default_rng(settings.seed).permutation(len(train))[:_EVIDENCE]
    images = to_float(train.images[chosen])

    def measure_bytes(model):
        calibration = run.dataset.calibration.images
        return len(export.convert_tflite(model, "int8", calibration))

    return load_node(run, parent_of(node, "from_")), {
        **settings.target(),
        "importance": settings.importance,
        "scope": settings.scope,
        "round_to": settings.round_to,
        "ignore": settings.ignore,
        "data": (images, train.labels[chosen]),
        "measure_bytes": measure_bytes,
    }


def _widths(before, after):
    """`{layer: [filters before, filters after]}` of the layers that were cut."""
    widths = {}
    for layer in after.layers:
        kernel = getattr(layer, "kernel", None)
        if kernel is not None:
            was = before.get_layer(layer.name).kernel.shape[-1]
            if kernel.shape[-1] != was:
                widths[layer.name] = [int(was), int(kernel.shape[-1])]
    return widths


def quantize_model(run, node, folder):
    """Prepares int8: a plan for after training, or training that rounds already."""
    settings, calibration = node.settings, run.dataset.calibration
    base = load_node(run, parent_of(node, "from_"))
    if settings.method == "ptq":
        account = {"images": len(calibration), "seed": run.recipe.data.seed}
        plan = quantize.save_quantized(base, folder, calibration=account)
        return {"method": "ptq"}, [*plan["files"], "plan.json"]
    sparse = settings.preserve_sparsity
    if sparse == "auto":
        # Networks have a few zeros by chance; pruned ones have many.
        sparse = max(prune.layer_sparsity(base).values(), default=0.0) > 0.05
    wrap = functools.partial(
        quantize.quantize_model,
        base,
        preserve_sparsity=sparse,
        calibration=calibration.images,
    )
    fitted, results = fit_stage(run, node, folder, lambda steps: wrap(), cast=False)
    if settings.training.ema:
        # The ranges are those of the last steps, the weights an average.
        quantize.calibrate_ranges(fitted, calibration.images)
    plan = quantize.save_quantized(fitted, folder)
    results |= {"method": "qat", "preserve_sparsity": bool(sparse)}
    return results, [*plan["files"], "plan.json"]


def export_files(run, node, folder):
    """Writes the `.tflite` files of every model, each past the gate."""
    results = {}
    for parent in itertools.chain(*node.parents.values()):
        model = load_node(run, parent)
        scores = evaluate.predict(model, run.dataset.validation.images)
        for dtype in ("int8", "uint8") if parent.kind == "quantize" else ("float32",):
            calibration = None
            if getattr(parent.settings, "method", None) == "ptq":
                calibration = run.dataset.calibration.images
            name = f"{parent.stage}.{dtype}.tflite"
            print(f"writing {name}", flush=True)
            content = export.convert_tflite(model, dtype, calibration)
            results[name] = _pass_gate(run, node, folder / name, content, scores)
    return results, list(results)


def evaluate_models(run, node, folder):
    """Scores every model and file on the test images; writes `metrics.json`."""
    test, scores, entries = run.dataset.test, {}, []
    parents = list(itertools.chain(*node.parents.values()))
    for parent in [p for p in parents if p.kind != "export"]:
        path = run.folder / parent.name / MODEL
        entry, scores[parent.name] = _measure(run, node, path, parent, parent.stage)
        entries.append(entry)
    for parent in [p for p in parents if p.kind == "export"]:
        names = run.record(parent)["outputs"]
        for source in itertools.chain(*parent.parents.values()):
            if source.name not in scores:
                model = load_node(run, source)
                scores[source.name] = evaluate.predict(model, test.images)
            for name in names:
                if name.startswith(f"{source.stage}."):
                    path = run.folder / parent.name / name
                    called = path.stem.replace(".", "_")
                    entries.append(
                        _measure(run, node, path, source, called, scores[source.name])[
                            0
                        ]
                    )
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
    kit = folder / node.settings.name
    export.write_kit(
        kit,
        **content,
        classes=run.dataset.classes,
        name=node.settings.name,
        version=node.settings.version,
        metrics=records.read_json(run.folder / "metrics.json"),
    )
    print(f"kit: {kit}", flush=True)
    return {}, sorted(f"{kit.name}/{path.name}" for path in kit.iterdir())


def write_report(run, node, folder):
    """Draws `report.md` and the plots of the run."""
    from kdprune import report

    path = report.write_report(run.folder)
    print(f"report: {path}", flush=True)
    return {}, ["../report.md"]


STAGES = {
    "train": train,
    "load": load,
    "soft_labels": soft_labels,
    "distill": train,
    "prune": prune_weights,
    "prune_channels": prune_channels,
    "quantize": quantize_model,
    "export": export_files,
    "evaluate": evaluate_models,
    "kit": write_kit,
    "report": write_report,
}


def check(nodes, run):
    """Raises `ValueError` for what would fail later, before anything is trained."""
    for node in nodes:
        key = f"stages.{node.stage}"
        model = getattr(node.settings, "model", None)
        if model is not None and model.name:
            try:
                check_model_arguments(model.name, model.model_extra)
            except ValueError as error:
                raise ValueError(f"{key}.model: {error}") from error
        for path in node.settings.files():
            if not pathlib.Path(path).is_file():
                raise FileNotFoundError(
                    f"{key}: expected a model at {path}: none there"
                )
            load_fitting(path, run.dataset)
        importance = getattr(node.settings, "importance", None)
        if importance is not None and importance not in prune.IMPORTANCES:
            raise ValueError(
                f"{key}.importance: expected one of {', '.join(prune.IMPORTANCES)}, "
                f"got {importance!r}"
            )
        try:
            losses = distill.as_soft_losses(soft_losses_of(node.settings))
        except ValueError as error:
            raise ValueError(f"{key}.losses: {error}") from error
        teachers = getattr(node.settings, "teacher", None)
        if any(loss.of_features for loss in losses) and not isinstance(teachers, str):
            raise ValueError(
                f"{key}.losses: losses of features need one `teacher` in the loop, "
                f"since only logits are averaged or stored, got {teachers or 'none'}"
            )


def _pass_gate(run, node, path, content, keras_scores):
    """Puts a file in its place if it passes the gate; returns the gate's figures."""
    validation = run.dataset.validation
    partial = path.with_name(f"partial.{path.name}")
    export.write_file(content, partial)
    try:
        figures = export.check_tflite(
            content,
            keras_scores,
            evaluate.predict(partial, validation.images),
            validation.labels,
            max_disagreement=node.settings.max_disagreement,
            max_drop=node.settings.max_drop,
        )
    except ValueError as error:
        partial.unlink()
        raise ValueError(f"{path.name} failed the export gate: {error}") from error
    partial.replace(path)
    return figures


def _measure(run, node, path, source, name, source_scores=None):
    """One entry of `metrics.json`, and the scores it is made of."""
    print(f"measuring {path.relative_to(run.folder)}", flush=True)
    measured = evaluate.evaluate_model(
        path,
        run.dataset.test.images,
        run.dataset.test.labels,
        name=name,
        stage=source.name,
        resolver=node.settings.resolver,
        threads=node.settings.threads,
        source_scores=source_scores,
        source_name=source.name,
        latency=node.settings.latency,
    )
    entry = {**measured.entry, "path": str(path.relative_to(run.folder))}
    return entry, measured.scores


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
        export.write_file(source.read_bytes(), run.folder / names[-1])
    return [f"../{name}" for name in names]


def _save(model, folder, results):
    save_model(model, folder / MODEL)
    parameters, macs = count_parameters(model), count_macs(model)
    return {**results, "parameters": parameters, "macs": macs}, [MODEL]
