"""What each kind of stage does: rooms put together, files written, figures returned.

Each function takes the run, its node and its folder, and returns `(results,
outputs)`: JSON-able figures for the record, and the names of the files written.
"""

import dataclasses
import functools
import itertools
import os
import pathlib

import numpy as np

from kdprune import data, distill, evaluate, export, prune, quantize, records, training
from kdprune.data import batches
from kdprune.models import (
    build_model,
    count_macs,
    count_parameters,
    load_model,
    save_model,
)
from kdprune.models.factories import check_model_arguments
from kdprune.models.precision import cast_model

MODEL = "model.keras"


def train(run, node, folder):
    """Trains a model on labels: a teacher, or a student alone."""
    trained, results = _fit(run, node, folder, lambda: _new_model(run, node))
    return _save(trained, folder, results)


def load(run, node, folder):
    """Takes a trained model, checked to fit the data."""
    model = load_model(node.settings.file)
    _check_fit(model, run.dataset(node.data), node.settings.file)
    scores = evaluate.predict(model, run.dataset(node.data).validation.images)
    labels = run.dataset(node.data).validation.labels
    accuracy = float(np.mean(scores.argmax(axis=1) == labels))
    return _save(model, folder, {"val_accuracy": accuracy, "file": node.settings.file})


def soft_labels(run, node, folder):
    """Stores the teacher's logits of every view of the training images."""
    settings = node.settings
    split = run.dataset(node.data).train
    teacher = _parent_model(run, node, "teacher")
    teacher = cast_model(teacher, training.resolve_precision(settings.precision))

    def read_view(view):
        return batches.view_batches(
            split, 500, view=view, seed=settings.seed, augment=_augment(settings)
        )

    distill.write_soft_labels(teacher, read_view, folder, views=settings.views)
    logits = distill.load_soft_labels(folder)
    right = (logits.argmax(axis=2) == split.labels).mean(axis=1)
    names = sorted(path.name for path in folder.glob("view-*.npy"))
    return {"train_accuracy_by_view": right.tolist()}, names


def distill_student(run, node, folder):
    """Trains a student on labels and on its teacher."""
    return train(run, node, folder)


def prune_weights(run, node, folder):
    """Zeroes the smallest weights step by step while training goes on."""
    settings = node.settings
    base = _parent_model(run, node, "from_")
    steps = settings.training.epochs * _steps(run, node)
    share = settings.sparsity
    if settings.beta is not None:
        share = prune.sparsity_below(base, settings.beta)

    def wrapped():
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
    fitted, results = _fit(run, node, folder, wrapped, callbacks, cast=False)
    model = prune.strip_pruning(fitted)
    _save(model, folder, {})
    # From the saved file, not from what was meant to be written.
    results["sparsity_by_layer"] = prune.layer_sparsity(load_model(folder / MODEL))
    return _describe(model, results), [MODEL, "history.csv"]


def quantize_student(run, node, folder):
    """Prepares int8: a plan for after training, or training that rounds already."""
    settings = node.settings
    base = _parent_model(run, node, "from_")
    if settings.method == "ptq":
        calibration = run.dataset(node.data).calibration
        account = {"images": len(calibration), "seed": node.data.seed}
        plan = quantize.save_quantized(base, folder, calibration=account)
        return {"method": "ptq"}, [*plan["files"], "plan.json"]
    sparse = settings.preserve_sparsity
    if sparse == "auto":
        # Networks have a few zeros by chance; pruned ones have many.
        sparse = max(prune.layer_sparsity(base).values(), default=0.0) > 0.05
    wrapped = functools.partial(
        quantize.quantize_model,
        base,
        preserve_sparsity=sparse,
        calibration=run.dataset(node.data).calibration.images,
    )
    fitted, results = _fit(run, node, folder, wrapped, cast=False)
    plan = quantize.save_quantized(fitted, folder)
    results |= {"method": "qat", "preserve_sparsity": bool(sparse)}
    return results, [*plan["files"], "plan.json", "history.csv"]


def export_files(run, node, folder):
    """Writes the `.tflite` files of every model, each past the gate."""
    validation = run.dataset(node.data).validation
    results, names = {}, []
    for parent in itertools.chain(*node.parents.values()):
        quantized = parent.kind == "quantize"
        model = _load_node(run, parent)
        scores = evaluate.predict(model, validation.images)
        for dtype in ("int8", "uint8") if quantized else ("float32",):
            calibration = None
            if quantized and parent.settings.method == "ptq":
                calibration = run.dataset(node.data).calibration.images
            name = f"{parent.stage}.{dtype}.tflite"
            print(f"writing {name}", flush=True)
            content = export.convert_tflite(model, dtype, calibration)
            try:
                partial = folder / f"partial.{name}"
                export.write_file(content, partial)
                figures = export.check_tflite(
                    content,
                    scores,
                    evaluate.predict(partial, validation.images),
                    validation.labels,
                    max_disagreement=node.settings.max_disagreement,
                    max_drop=node.settings.max_drop,
                )
            except ValueError as error:
                raise ValueError(f"{name} failed the export gate: {error}") from error
            partial.replace(folder / name)
            results[name] = figures
            names.append(name)
    return results, names


def evaluate_models(run, node, folder):
    """Scores every model and file on the test images; writes `metrics.json`."""
    test = run.dataset(node.data).test
    settings = node.settings
    entries, sources = [], {}
    parents = list(itertools.chain(*node.parents.values()))
    for parent in [p for p in parents if p.kind != "export"]:
        print(f"measuring {parent.name}", flush=True)
        entry, sources[parent.name] = _measure(
            run, parent, run.folder / parent.name / MODEL, parent.stage, test, settings
        )
        entries.append(entry)
    for parent in [p for p in parents if p.kind == "export"]:
        for source in itertools.chain(*parent.parents.values()):
            if source.name not in sources:
                model = _load_node(run, source)
                sources[source.name] = evaluate.predict(model, test.images)
            files = (run.folder / parent.name).glob(f"{source.stage}.*.tflite")
            for path in sorted(files):
                print(f"measuring {parent.name}/{path.name}", flush=True)
                name = path.stem.replace(".", "_")
                entry, _ = _measure(
                    run, source, path, name, test, settings, sources[source.name]
                )
                entries.append(entry)
    metrics = {
        "schema": records.SCHEMA,
        "recipe": run.recipe.name,
        "command": run.command,
        "dataset": {**run.dataset(node.data).description, "test_sha256": test.sha256()},
        "seed": run.recipe.seed,
        "baseline": run.recipe.baseline,
        "flagship": run.recipe.flagship and f"{run.recipe.flagship}_int8",
        "versions": records.versions(),
        "machine": records.machine(),
        "models": entries,
    }
    records.write_json(folder / "metrics.json", metrics)
    records.write_json(run.folder / "metrics.json", metrics)
    _ship(run, parents)
    return {e["path"]: e["accuracy"] for e in entries}, ["metrics.json"]


def write_report(run, node, folder):
    """Draws `report.md` and the plots of the run."""
    from kdprune import report

    path = report.write_report(run.folder)
    print(f"report: {path}", flush=True)
    return {}, []


STAGES = {
    "train": train,
    "load": load,
    "soft_labels": soft_labels,
    "distill": distill_student,
    "prune": prune_weights,
    "quantize": quantize_student,
    "export": export_files,
    "evaluate": evaluate_models,
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
    run.dataset(nodes[0].data)


# Multiply-accumulates a second for one core, forward and backward, as measured on
# small convolutional nets; the estimate is for planning an evening, no more.
_SPEED = {"float32": 25e9, "mixed_bfloat16": 50e9}


def estimate_seconds(node, run):
    """Guesses how long a node will take, from MACs, images and epochs."""
    settings = getattr(node.settings, "training", None)
    images = len(run.dataset(node.data).train)
    macs = _macs(node, run)
    if node.kind == "soft_labels":
        work = macs * images * node.settings.views
    elif settings is None or getattr(node.settings, "method", None) == "ptq":
        return 30.0
    else:
        # The backward pass takes twice the forward one; QAT three times in all.
        factor = 9 if node.kind == "quantize" else 3
        work = macs * images * settings.epochs * factor
        if getattr(node.settings, "teacher", None):
            work += _macs(_parent(node, "teacher"), run) * images * settings.epochs
    policy = training.resolve_precision(getattr(settings, "precision", "auto"))
    if node.kind in ("prune", "quantize"):
        policy = "float32"
    return work / (_SPEED.get(policy, 50e9) * (os.cpu_count() or 1))


def _macs(node, run):
    if node.kind == "load":
        return count_macs(load_model(node.settings.file))
    if getattr(node.settings, "model", None):
        return count_macs(_new_model(run, node))
    for key in ("from_", "teacher"):
        if isinstance(getattr(node.settings, key, None), str):
            return _macs(_parent(node, key), run)
    return 0


@dataclasses.dataclass(frozen=True)
class _Teaching:
    """What a stage learns from beside labels."""

    teacher: object = None
    logits: np.ndarray | None = None
    augment: dict | None = None

    @property
    def present(self):
        return self.teacher is not None or self.logits is not None


def _teaching(run, node):
    settings = node.settings
    if getattr(settings, "teacher", None):
        teacher = _parent_model(run, node, "teacher")
        precision = training.resolve_precision(settings.training.precision)
        return _Teaching(teacher=cast_model(teacher, precision))
    if getattr(settings, "soft_labels", None):
        store = node.parents[settings.soft_labels][0]
        logits = distill.load_soft_labels(run.folder / store.name)
        augment = _augment(store.settings)
        if augment:
            augment["seed"] = store.settings.seed
        return _Teaching(logits=logits, augment=augment)
    return _Teaching()


def _fit(run, node, folder, make_model, callbacks=(), cast=True):
    """Trains a model as the node's settings say; resumes what was half done.

    Args:
        run: The run.
        node: A node with `training` settings.
        folder: The node's folder.
        make_model: Builds the float32 model to train.
        callbacks: More Keras callbacks.
        cast: Whether the model may compute in the resolved precision; TFMOT's
            wrappers can't.

    Returns:
        `(model, results)`: the trained float32 model, and figures.
    """
    settings, dataset = node.settings.training, run.dataset(node.data)
    policy = training.resolve_precision(settings.precision) if cast else "float32"
    fitting = _Fitting(
        stage=node.settings,
        teaching=_teaching(run, node),
        validation=dataset.validation,
        policy=policy,
        make_model=make_model,
        callbacks=callbacks,
    )
    try:
        model, history = fitting(dataset.train, settings.epochs, folder)
        best = max(history, key=lambda row: row["val_accuracy"])
        chosen = best if settings.select == "best" else history[-1]
        if settings.refit:
            epochs = int(chosen["epoch"])
            print(f"again, on train + validation, for {epochs} epochs", flush=True)
            everything = _joined(dataset.train, dataset.validation)
            model, _ = fitting(everything, epochs, folder / "refit")
    except training.TrainingDiverged as error:
        raise training.TrainingDiverged(f"stage {node.name}: {error}") from error
    results = {
        "precision": policy,
        "epochs": len(history),
        "best_epoch": int(best["epoch"]),
        "val_accuracy": chosen["val_accuracy"],
        "val_loss": chosen["val_loss"],
        "training_seconds": round(sum(row["seconds"] for row in history), 1),
    }
    return model, results


@dataclasses.dataclass(frozen=True)
class _Fitting:
    """One stage's way of training, to be used on one or two sets of images."""

    stage: object
    teaching: _Teaching
    validation: data.Split
    policy: str
    make_model: object
    callbacks: tuple

    def __call__(self, split, epochs, folder):
        """Trains a new model; returns it, in float32, and its history."""
        folder.mkdir(exist_ok=True)
        settings, teaching = self.stage.training, self.teaching
        steps = batches.steps_per_epoch(split, settings.batch_size)
        training.seed_everything(self.stage.seed)
        with training.strategy().scope():
            model = self.make_model()
            if self.policy != "float32":
                model = cast_model(model, self.policy)
            compiled = self._compile(model, epochs * steps)

        def stream(start):
            return batches.training_batches(
                split,
                settings.batch_size,
                epochs=epochs,
                seed=self.stage.seed,
                start_epoch=start,
                augment=teaching.augment or _augment(settings),
                soft_labels=teaching.logits,
            )

        history = training.fit(
            compiled,
            stream,
            batches.evaluation_batches(self.validation),
            epochs=epochs,
            steps=steps,
            folder=folder,
            select=settings.select,
            patience=settings.patience,
            callbacks=self.callbacks,
        )
        if self.policy != "float32":
            model = cast_model(model, "float32")
        return model, history

    def _compile(self, model, steps):
        settings = self.stage.training
        optimizer = training.build_optimizer(
            settings.optimizer,
            settings.learning_rate,
            steps=steps,
            schedule=settings.schedule,
            warmup=settings.warmup,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            ema=settings.ema,
        )
        if self.teaching.present:
            distiller = distill.Distiller(model, self.teaching.teacher)
            distiller.compile(
                optimizer,
                temperature=self.stage.temperature,
                soft_weight=self.stage.soft_weight,
                label_smoothing=settings.label_smoothing,
            )
            return distiller
        loss = functools.partial(
            training.cross_entropy, label_smoothing=settings.label_smoothing
        )
        model.compile(optimizer, loss=lambda y, z: loss(y, z), metrics=["accuracy"])
        return model


def _measure(run, node, path, name, test, settings, source_scores=None):
    """One entry of `metrics.json`, and the scores it is made of."""
    measured = evaluate.evaluate_model(
        path,
        test.images,
        test.labels,
        name=name,
        stage=node.name,
        resolver=settings.resolver,
        threads=settings.threads,
        source_scores=source_scores,
        source_name=node.name,
        latency=settings.latency,
    )
    entry = measured.entry
    entry["path"] = str(pathlib.Path(path).relative_to(run.folder))
    return entry, measured.scores


def _ship(run, parents):
    """Copies what the recipe named beforehand to the run's top."""
    for name in run.recipe.keep:
        node = next((p for p in parents if p.stage == name), None)
        if node is not None:
            save_model(_load_node(run, node), run.folder / f"{name}.keras", half=True)
    flagship = run.recipe.flagship
    exports = [p for p in parents if p.kind == "export" and flagship in p.parents]
    for dtype in ("int8", "uint8") if exports else ():
        # The first cell of a matrix: chosen by the recipe, not by its score.
        source = run.folder / exports[0].name / f"{flagship}.{dtype}.tflite"
        export.write_file(source.read_bytes(), run.folder / f"model_{dtype}.tflite")


def _new_model(run, node):
    """The model a stage starts from: a factory's, or a file's with its weights."""
    dataset, model = run.dataset(node.data), node.settings.model
    if model.file:
        loaded = load_model(model.file)
        _check_fit(loaded, dataset, model.file)
        return loaded
    return build_model(
        model.name, dataset.image_shape, len(dataset.classes), **model.model_extra
    )


def _parent(node, key):
    return node.parents[getattr(node.settings, key)][0]


def _parent_model(run, node, key):
    return _load_node(run, _parent(node, key))


def _load_node(run, node):
    """The trained model of a node, quantization-aware if it is that."""
    folder = run.folder / node.name
    if node.kind == "quantize":
        return quantize.load_quantized(folder)
    return load_model(folder / MODEL)


def _check_fit(model, dataset, file):
    expected = (tuple(dataset.image_shape), len(dataset.classes))
    received = (tuple(model.input_shape[1:]), model.output_shape[-1])
    if received != expected:
        raise ValueError(
            f"{file}: expected a model from images {expected[0]} to {expected[1]} "
            f"classes, as {dataset.name} has. Received: from {received[0]} to "
            f"{received[1]} classes; use a model trained on this data."
        )


def _save(model, folder, results):
    save_model(model, folder / MODEL)
    names = [MODEL] + [n for n in ("history.csv",) if (folder / n).exists()]
    return _describe(model, results), names


def _describe(model, results):
    return {
        **results,
        "parameters": count_parameters(model),
        "macs": count_macs(model),
    }


def _steps(run, node):
    split = run.dataset(node.data).train
    return batches.steps_per_epoch(split, node.settings.training.batch_size)


def _augment(settings):
    return settings.augment.model_dump() if settings.augment else None


def _joined(first, second):
    return data.Split(
        np.concatenate([first.images, second.images]),
        np.concatenate([first.labels, second.labels]),
    )
