"""Stages that make a model smaller: weights, channels, blocks, bits."""

import functools

import numpy as np

from kdprune import prune, records, tflite, training
from kdprune.data import to_float
from kdprune.fitting import MODEL, fit_stage, load_node, parent_of
from kdprune.models import load_model
from kdprune.stages.learn import save_outputs

SENSITIVITY = "sensitivity.json"
# Training images by which channels are judged and normalization is measured anew.
_EVIDENCE = 2048


def prune_weights(run, node, folder):
    """Zeroes weights, which stay zero while the others recover."""
    base = load_node(run, parent_of(node, "from_"))
    masks = {}
    if node.settings.schedule == "one_shot":
        masks = _masks(run, node, base)
        fitted, results = fit_stage(
            run, node, folder, lambda _: prune.hold_masks(base, masks)
        )
        fitted = prune.release_masks(fitted)
    else:
        fitted, results = _prune_in_steps(run, node, folder, base)
    results, outputs = save_outputs(fitted, folder, results)
    # From the saved file, not from what was meant to be written.
    saved = load_model(folder / MODEL)
    prune.check_masks(saved, masks)
    results["sparsity_by_layer"] = prune.layer_sparsity(saved)
    return results, outputs


def _masks(run, node, base):
    """Masks of what scores below a threshold."""
    settings, (images, labels) = node.settings, _evidence(run, node)
    if settings.by == "activation":
        return prune.activation_masks(
            base, settings.threshold, images, ignore=settings.exclude
        )
    return prune.weight_masks(
        base,
        settings.threshold,
        beta=settings.beta,
        by=settings.by,
        data=(images, labels),
        exclude=settings.exclude,
    )


def _prune_in_steps(run, node, folder, base):
    """Zeroes the smallest weights step by step while training goes on."""
    settings = node.settings
    share = settings.sparsity
    if settings.beta is not None:
        share = prune.sparsity_below(base, settings.beta)
    elif settings.allocation == "lamp":
        share = prune.lamp_sparsity(base, share, settings.exclude)

    def wrapped(steps):
        return prune.prune_magnitude(
            base,
            share,
            schedule=settings.schedule,
            begin=int(settings.begin * steps),
            end=max(int(settings.end * steps), 1),
            frequency=settings.frequency,
            exclude=settings.exclude,
            pattern=settings.pattern,
        )

    callbacks = prune.pruning_callbacks()
    fitted, results = fit_stage(run, node, folder, wrapped, callbacks, cast=False)
    return prune.strip_pruning(fitted), results


def prune_channels(run, node, folder):
    """Removes channels in steps, training what is left after each."""
    earlier = []

    def fine_tune(model):
        # Each step's training resumes by itself, in a folder of its own.
        step = folder / f"step-{len(earlier) + 1}"
        fitted, results = fit_stage(run, node, step, lambda _: model)
        earlier.append(results)
        model.set_weights(fitted.get_weights())

    base, arguments = _cut_arguments(run, node)
    steps = node.settings.steps
    smaller = prune.prune_channels(base, steps=steps, fine_tune=fine_tune, **arguments)
    cut_accuracy = _validation_accuracy(run)(smaller)
    fitted, results = fit_stage(run, node, folder, lambda _: smaller)
    for key in ("epochs", "training_seconds"):
        results[key] += sum(step[key] for step in earlier)
    results["val_accuracy_cut"] = cut_accuracy  # Before what is left recovers.
    results, outputs = save_outputs(fitted, folder, results)
    results["channels_by_layer"] = _widths(base, load_model(folder / MODEL))
    return results, outputs


def prune_blocks(run, node, folder):
    """Removes the residual blocks that matter least; the rest recovers."""
    plan = plan_blocks(run, node)
    smaller = plan.apply()
    prune.recalibrate_batch_norm(smaller, _evidence(run, node)[0])
    cut_accuracy = _validation_accuracy(run)(smaller)
    fitted, results = fit_stage(run, node, folder, lambda _: smaller)
    results["val_accuracy_cut"] = cut_accuracy
    results, outputs = save_outputs(fitted, folder, results)
    results["rank"] = node.settings.rank
    results["blocks"] = [
        {
            "name": block.name,
            "score": score,
            "removed": place < plan.count,
            "layers": len(block.layers),
        }
        for place, (block, score) in enumerate(
            zip(plan.blocks, plan.scores, strict=True)
        )
    ]
    return results, outputs


def measure_sensitivity(run, node, folder):
    """Scores the model on validation with each group of channels cut alone."""
    settings, score = node.settings, _validation_accuracy(run)

    def accuracy(model):
        print(".", end="", flush=True)
        return score(model)

    found = prune.sensitivity(
        load_node(run, parent_of(node, "from_")),
        settings.ratios,
        accuracy,
        importance=_importance(settings),
        round_to=settings.round_to,
        ignore=settings.ignore,
        data=_evidence(run, node),
    )
    print(f"\n{found}", flush=True)
    records.write_json(folder / SENSITIVITY, found.as_dict())
    return {"importance": importance_of(settings)[0], **found.as_dict()}, [SENSITIVITY]


def plan_channels(run, node):
    """The `prune.ChannelPlan` of a node, all its steps in one, for a dry run."""
    base, arguments = _cut_arguments(run, node)
    return prune.plan_channels(base, **arguments)


def plan_blocks(run, node):
    """The `prune.BlockPlan` of a node: its blocks are ranked, nothing is trained."""
    settings = node.settings
    base = load_node(run, parent_of(node, "from_"))
    images, _ = _evidence(run, node)
    loss = _validation_loss(run) if settings.rank == "loss" else None
    return prune.plan_blocks(base, settings.count, images, loss)


def _cut_arguments(run, node):
    """The model that a node cuts, and how, for `prune.prune_channels`."""
    settings = node.settings

    def measure_bytes(model):
        calibration = run.dataset.calibration.images
        return len(tflite.convert_tflite(model, "int8", calibration))

    table = None
    if settings.sensitivity:
        path = run.folder / parent_of(node, "sensitivity").name / SENSITIVITY
        table = prune.Sensitivity.from_dict(records.read_json(path))
    return load_node(run, parent_of(node, "from_")), {
        **settings.target(),
        "sensitivity": table,
        "importance": _importance(settings),
        "scope": settings.scope,
        "round_to": settings.round_to,
        "ignore": settings.ignore,
        "data": _evidence(run, node),
        "measure_bytes": measure_bytes,
    }


def _importance(settings):
    """The function that ranks channels; random ones are drawn by the stage's seed."""
    name, options = importance_of(settings)
    if name == "random":
        options["seed"] = settings.seed
    return functools.partial(prune.IMPORTANCES[name], **options)


def importance_of(settings):
    """The name of an importance and what its function takes beside, as settings say."""
    chosen = settings.importance
    return (chosen, {}) if isinstance(chosen, str) else (chosen.name, chosen.options)


def _evidence(run, node):
    """Some training images, in [0, 1], and their labels."""
    train = run.dataset.train
    order = np.random.default_rng(node.settings.seed).permutation(len(train))
    chosen = order[:_EVIDENCE]
    return to_float(train.images[chosen]), train.labels[chosen]


def _validation_loss(run):
    return _validation_mean(run, training.cross_entropy)


def _validation_accuracy(run):
    return _validation_mean(run, lambda labels, logits: labels == logits.argmax(axis=1))


def _validation_mean(run, figure):
    """A function of a model: the mean of a figure over the validation images."""
    validation = run.dataset.validation
    images = to_float(validation.images)

    def mean(model):
        logits = model.predict(images, batch_size=500, verbose=0)
        return float(np.mean(figure(validation.labels, logits)))

    return mean


def _widths(before, after):
    """`{layer: [filters before, filters after]}` of the layers that were cut."""
    was, now = _filters(before), _filters(after)
    return {name: [was[name], now[name]] for name in now if now[name] != was[name]}


def _filters(model):
    """What each layer says it makes: convolutions `filters`, dense layers `units`."""
    found = {}
    for layer in model._flatten_layers(include_self=False):
        count = getattr(layer, "filters", None) or getattr(layer, "units", None)
        if count:
            found[layer.name] = int(count)
    return found
