"""Stages that prepare a model for fewer bits, within a budget if asked."""

import dataclasses
import functools
import itertools

from kdprune import evaluate, prune, quantize, tflite
from kdprune.data.splits import stratified_sample
from kdprune.fitting import MODEL, fit_stage, load_node, parent_of
from kdprune.models import load_model
from kdprune.stages.learn import save_outputs
from kdprune.stages.sources import origin_of, source_of, untrained_model

# The types whose ranges come from images, if the model was not trained with its own.
_CALIBRATED = ("int8", "uint8", "int16x8")
# What is tried under a budget before anything is trained, the cheapest first.
_AFTER_TRAINING = [
    {"ranges": ranges, "correct_bias": corrected}
    for corrected, ranges in itertools.product(
        (False, True), ("minmax", "percentile", "mse")
    )
]
# How many times as many calibration images are tried, where there are that many.
_MORE_IMAGES = 4
# How many of the most sensitive layers are then left in float: at most half of those
# that have weights, since the rest would not be worth the conversions.
_IN_FLOAT = (1, 2, 4)


@dataclasses.dataclass(frozen=True)
class _Made:
    """What an attempt made: the file, and what it is made of once more.

    `images` is the number of calibration images, None of quantization-aware training.
    """

    content: bytes
    model: object
    conversion: dict
    images: int | None


def check_quantization(nodes, run):
    """Raises `ValueError` for a quantize stage that can't end well.

    That is an accuracy budget that no result could prove to be met, and a layer that
    quantization-aware training refuses, where the recipe tells the model's layers.
    """
    tried = set()
    for node in [node for node in nodes if node.kind == "quantize"]:
        settings, key = node.settings, f"stages.{node.stage}"
        if settings.method == "auto":
            _check_provable(f"{key}.max_drop", settings.max_drop, run.dataset)
        if settings.method != "qat":
            continue
        source = source_of(parent_of(node, "from_"))
        # Cells of a matrix that differ in other settings have the same layers.
        if source is None or repr(origin_of(source)) in tried:
            continue
        tried.add(repr(origin_of(source)))
        try:
            quantize.quantize_model(untrained_model(run, source))
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from error


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
        results["layers"] = tflite.layer_report(base, images, ranges=settings.ranges)
    calibrated = settings.method in ("ptq", *_CALIBRATED)
    count = len(_calibration(run, node)) if calibrated else None
    return results, _save(run, node, folder, base, conversion, count)


def conversions(run, node):
    """Yields `(dtype, arguments)` of `convert_tflite` for each of a node's files."""
    if node.kind != "quantize":
        yield "float32", {}
        return
    plan = quantize.read_plan(run.folder / node.name)
    options = dict(plan["conversion"])
    for dtype in options.pop("dtypes"):
        images = None
        if plan["method"] == "ptq" and dtype in _CALIBRATED:
            images = _calibration(run, node, plan["calibration"]["images"])
        yield dtype, {"calibration": images, **options}


def _within_budget(run, node, folder, base):
    """Tries what is cheap first, until the accuracy it costs is within bounds."""
    settings, validation = node.settings, run.dataset.validation
    calibration = _calibration(run, node)
    expected = evaluate.predict(base, validation.images)
    layers = tflite.layer_report(base, calibration)

    def calibrated(options, count):
        images = _calibration(run, node, count)
        content = tflite.convert_tflite(base, "int8", images, **options)
        return _Made(content, base, options, count)

    def trained(node, folder):
        model, _ = _train_quantized(run, node, folder, base)
        return _Made(tflite.convert_tflite(model, "int8"), model, {}, None)

    attempts = [
        quantize.Attempt(name, functools.partial(calibrated, options, count))
        for name, options, count in _after_training(
            layers, len(calibration), len(run.dataset.train)
        )
    ]
    attempts += [
        quantize.Attempt(name, functools.partial(trained, *how))
        for name, *how in _by_training(node, folder)
    ]

    def judge(made):
        path = folder / "attempt.tflite"
        tflite.write_file(made.content, path)
        scores = evaluate.predict(path, validation.images)
        path.unlink()
        figures = tflite.paired_drop(expected, scores, validation.labels)
        found, asked = tflite.inspect_tflite(made.content), made.conversion
        kept, _ = tflite.float_layers_of(found, asked.get("float_layers", ()))
        return {**figures, "bytes": len(made.content), "float_layers": kept}

    outcome = quantize.meet_budget(attempts, judge, settings.max_drop)
    print(outcome.message, flush=True)
    if outcome.best is None:
        raise ValueError(outcome.message)
    best = outcome.best
    results = {
        "layers": layers,
        "method": "auto",
        "chosen": outcome.name,
        "met": outcome.met,
        "message": outcome.message,
        "attempts": _with_float_bytes(outcome.attempts),
    }
    return results, _save(run, node, folder, best.model, best.conversion, best.images)


def _after_training(layers, images, available):
    """What is tried before anything is trained, the cheapest first.

    Args:
        layers: What `tflite.layer_report` returned.
        images: The number of calibration images.
        available: The number of training images, to calibrate with more.

    Yields:
        An attempt's name, arguments of `convert_tflite`, the number of calibration
        images.
    """
    first, *others = _AFTER_TRAINING
    yield _describe(first), first, images
    more = _MORE_IMAGES * images
    if more <= available:
        yield f"{_describe(first)}, {more:,} images", first, more
    for options in [*others, *_some_in_float(layers)]:
        yield _describe(options), options, images


def _by_training(node, folder):
    """Lists name, node and folder of each training: on labels, then under a teacher."""
    if "training" not in node.settings.model_fields_set:
        return []
    if not node.taught:
        return [("QAT", node, folder)]
    # In a folder of its own, where its checkpoint is not taken for the other's.
    untaught = ("QAT", _untaught(node), folder / "labels")
    return [untaught, ("QAT with distillation", node, folder)]


def _untaught(node):
    """The node without its teacher, on images changed as those it is taught by."""
    settings = node.settings
    changes = {"teacher": None, "soft_labels": None}
    if settings.soft_labels:
        augment = parent_of(node, "soft_labels").settings.augment
        changes["training"] = settings.training.model_copy(update={"augment": augment})
    return dataclasses.replace(node, settings=settings.model_copy(update=changes))


def _some_in_float(layers):
    """Options that leave the layers of the largest error in float, few first."""
    weighted = {row["layer"] for row in layers if row["weight_low"] is not None}
    counts = [count for count in _IN_FLOAT if count <= len(weighted) / 2]
    # Fewer layers than that may have an error at all.
    found = {tuple(tflite.sensitive_layers(layers, count)): None for count in counts}
    return [
        {"ranges": "minmax", "correct_bias": True, "float_layers": list(names)}
        for names in found
        if names
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
    clustered = _is_clustered(base, settings.preserve_clusters)

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


def _is_clustered(model, asked):
    if asked != "auto":
        return asked
    # One kernel is enough: others may have been left out.
    return bool(quantize.clustered_layers(model))


def _calibration(run, node, count=None):
    """Training images that set ranges: the recipe's, or a draw of the stage's own.

    `count` is how many, if not as many as usual.
    """
    own, usual = node.settings.calibration, run.dataset.calibration.images
    if own is None and count in (None, len(usual)):
        return usual
    split, seed = run.dataset.train, _calibration_seed(run, node)
    drawn = stratified_sample(split.labels, count or own, (seed, 2))
    return split.images[drawn]


def _calibration_seed(run, node):
    # Stages that draw no number of their own are shared by all seeds.
    own = node.settings.calibration is not None
    return node.settings.seed if own else run.recipe.data.seed


def _check_provable(key, max_drop, dataset):
    given, needed = len(dataset.validation), tflite.images_to_prove(max_drop)
    if given < needed:
        raise ValueError(
            f"{key}: expected at least {needed:,} validation images, without which not "
            f"even a file that changes nothing is proven to lose at most "
            f"{100 * max_drop:g} points. Received: {given:,}; give more images or a "
            "larger data.validation, or allow a larger drop"
        )


def _save(run, node, folder, model, conversion=None, images=None):
    """Saves the artifact; returns the names of its files."""
    account = None
    if images is not None:
        account = {"images": images, "seed": _calibration_seed(run, node)}
    plan = quantize.save_quantized(model, folder, account, conversion)
    return [*plan["files"], "plan.json"]
