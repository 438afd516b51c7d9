"""Stages that prepare a model for fewer bits, within a budget if asked."""

import functools
import itertools

from kdprune import evaluate, export, prune, quantize
from kdprune.data.splits import stratified_sample
from kdprune.fitting import MODEL, fit_stage, load_node, parent_of
from kdprune.models import load_model
from kdprune.stages.learn import save_outputs

# What is tried under a budget before anything is trained, the cheapest first.
_AFTER_TRAINING = [
    {"ranges": ranges, "correct_bias": corrected}
    for corrected, ranges in itertools.product(
        (False, True), ("minmax", "percentile", "mse")
    )
]
# How many of the most sensitive layers are then left in float: at most half of those
# that have weights, since the rest would not be worth the conversions.
_IN_FLOAT = (1, 2, 4)


def cluster_weights(run, node, folder):
    """Gives each kernel a few distinct weights, and trains those."""
    settings = node.settings
    base = load_node(run, parent_of(node, "from_"))
    sparse = _is_sparse(base, settings.preserve_sparsity)

    def wrapped(steps):
        return quantize.cluster_weights(
            base, settings.clusters, preserve_sparsity=sparse, exclude=settings.exclude
        )

    fitted, results = fit_stage(run, node, folder, wrapped, cast=False)
    results, outputs = save_outputs(quantize.strip_clustering(fitted), folder, results)
    saved = load_model(folder / MODEL)
    results["clusters_by_layer"] = quantize.count_clusters(saved)
    results["sparsity_by_layer"] = prune.layer_sparsity(saved)
    return results, outputs


def quantize_model(run, node, folder):
    """Hands on a model and the plan of its files, as the method says."""
    settings = node.settings
    base = load_node(run, parent_of(node, "from_"))
    if settings.method == "auto":
        return _within_budget(run, node, folder, base)
    if settings.method == "qat":
        fitted, results = _train_quantized(run, node, folder, base)
        return results, _save(run, node, folder, fitted)
    results = {"method": settings.method}
    conversion = {"dtypes": [settings.method]}
    if settings.method == "ptq":
        conversion = {"ranges": settings.ranges, "correct_bias": settings.correct_bias}
        images = _calibration(run, node)
        results["layers"] = export.layer_report(base, images, ranges=settings.ranges)
    return results, _save(run, node, folder, base, conversion)


def conversions(run, node):
    """Yields `(dtype, arguments)` of `convert_tflite` for each of a node's files."""
    if node.kind != "quantize":
        yield "float32", {}
        return
    plan = quantize.read_plan(run.folder / node.name)
    options = dict(plan["conversion"])
    for dtype in options.pop("dtypes"):
        needed = plan["method"] == "ptq" and dtype in ("int8", "uint8", "int16x8")
        images = _calibration(run, node) if needed else None
        yield dtype, {"calibration": images, **options}


def _within_budget(run, node, folder, base):
    """Tries what is cheap first, until the accuracy it costs is within bounds."""
    settings, validation = node.settings, run.dataset.validation
    calibration = _calibration(run, node)
    expected = evaluate.predict(base, validation.images)
    layers = export.layer_report(base, calibration)

    def converted(model, options):
        images = calibration if options else None
        return model, options, export.convert_tflite(model, "int8", images, **options)

    attempts = [
        quantize.Attempt(
            _describe(options), functools.partial(converted, base, options)
        )
        for options in [*_AFTER_TRAINING, *_some_in_float(layers)]
    ]
    if "training" in settings.model_fields_set:
        taught = settings.teacher or settings.soft_labels
        name = "QAT with distillation" if taught else "QAT"
        attempts.append(
            quantize.Attempt(
                name,
                lambda: converted(_train_quantized(run, node, folder, base)[0], {}),
            )
        )

    def judge(made):
        _, options, content = made
        path = folder / "attempt.tflite"
        export.write_file(content, path)
        scores = evaluate.predict(path, validation.images)
        path.unlink()
        figures = export.paired_drop(expected, scores, validation.labels)
        found = export.inspect_tflite(content)
        kept, _ = export.float_layers_of(found, options.get("float_layers", ()))
        return {**figures, "bytes": len(content), "float_layers": kept}

    outcome = quantize.meet_budget(attempts, judge, settings.max_drop)
    print(outcome.message, flush=True)
    if outcome.best is None:
        raise ValueError(outcome.message)
    model, options, _ = outcome.best
    results = {
        "layers": layers,
        "method": "auto",
        "chosen": outcome.name,
        "met": outcome.met,
        "message": outcome.message,
        "attempts": _with_float_bytes(outcome.attempts),
    }
    return results, _save(run, node, folder, model, options)


def _some_in_float(layers):
    """Options that leave the layers of the largest error in float, few first."""
    weighted = {row["layer"] for row in layers if row["weight_low"] is not None}
    counts = [count for count in _IN_FLOAT if count <= len(weighted) / 2]
    # Fewer layers than that may have an error at all.
    found = {tuple(export.sensitive_layers(layers, count)): None for count in counts}
    return [
        {**_AFTER_TRAINING[0], "float_layers": list(names)} for names in found if names
    ]


def _with_float_bytes(attempts):
    """The attempts, with the bytes that layers in float cost against none of them."""
    plain = next((row["bytes"] for row in attempts if "bytes" in row), 0)
    return [
        {**row, "float_bytes": row["bytes"] - plain} if row.get("float_layers") else row
        for row in attempts
    ]


def _describe(options):
    corrected = ", biases corrected" if options["correct_bias"] else ""
    left = ", ".join(options.get("float_layers", ()))
    in_float = f", in float: {left}" if left else ""
    return f"PTQ, {options['ranges']} ranges{corrected}{in_float}"


def _train_quantized(run, node, folder, base):
    """Quantization-aware training that keeps zeros and clusters."""
    settings, calibration = node.settings, _calibration(run, node)
    sparse = _is_sparse(base, settings.preserve_sparsity)
    clustered = settings.preserve_clusters
    if clustered == "auto":
        # Any kernel of some size has more distinct weights than that by itself.
        clustered = max(quantize.count_clusters(base).values(), default=257) <= 256

    def wrapped(steps):
        return quantize.quantize_model(
            base,
            preserve_sparsity=sparse,
            calibration=calibration,
            preserve_clusters=clustered,
        )

    fitted, results = fit_stage(run, node, folder, wrapped, cast=False)
    if settings.training.ema or clustered:
        # Ranges and centroids are those of the last steps; the weights are not.
        quantize.calibrate_ranges(fitted, calibration)
    kept = {"preserve_sparsity": bool(sparse), "preserve_clusters": bool(clustered)}
    return fitted, {**results, "method": "qat", **kept}


def _is_sparse(model, asked):
    if asked != "auto":
        return asked
    # Networks have a few zeros by chance; pruned ones have many.
    return max(prune.layer_sparsity(model).values(), default=0.0) > 0.05


def _calibration(run, node):
    """Training images that set ranges: the recipe's, or a draw of the stage's own."""
    count, split = node.settings.calibration, run.dataset.train
    if count is None:
        return run.dataset.calibration.images
    drawn = stratified_sample(split.labels, count, (node.settings.seed, 2))
    return split.images[drawn]


def _save(run, node, folder, model, conversion=None):
    """Saves the artifact; returns the names of its files."""
    account = None
    if not hasattr(model, "quantized_from"):
        own = node.settings.calibration is not None
        seed = node.settings.seed if own else run.recipe.data.seed
        account = {"images": len(_calibration(run, node)), "seed": seed}
    plan = quantize.save_quantized(model, folder, account, conversion)
    return [*plan["files"], "plan.json"]
