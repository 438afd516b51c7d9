"""Stages that give a model: trained, loaded, distilled; and what teaches."""

import sys

import numpy as np

from kdprune import distill, evaluate
from kdprune.data import batches
from kdprune.fitting import (
    MODEL,
    augment_of,
    cast_teachers,
    fit_stage,
    load_fitting,
    load_node,
    new_model,
    parents_of,
)
from kdprune.models import count_macs, count_parameters, save_model


def train(run, node, folder):
    """Trains a model on labels, and on a teacher if the node has one."""
    model, results = fit_stage(run, node, folder, lambda steps: new_model(run, node))
    return save_outputs(model, folder, results)


def load(run, node, folder):
    """Takes a trained model, checked to fit the data."""
    model = load_fitting(node.settings.file, run.dataset)
    validation = run.dataset.validation
    scores = evaluate.predict(model, validation.images)
    accuracy = float(np.mean(scores.argmax(axis=1) == validation.labels))
    chance = 1 / len(run.dataset.classes)
    if accuracy < chance + 0.1 * (1 - chance):
        print(
            f"warning: {node.settings.file} is right on {100 * accuracy:.1f} % of the "
            f"validation images, near the {100 * chance:.1f} % of chance: are its "
            "inputs pixels in [0, 1] (else put a Rescaling layer in front), and its "
            f"outputs in the order {', '.join(map(str, run.dataset.classes[:3]))}, …?",
            file=sys.stderr,
        )
    return save_outputs(model, folder, {"val_accuracy": accuracy})


def soft_labels(run, node, folder):
    """Stores the teacher's logits of every view of the images it is to teach."""
    settings, split = node.settings, run.dataset.shown
    teachers = [load_node(run, parent) for parent in parents_of(node, "teacher")]
    teachers = cast_teachers(teachers, settings.precision)
    key = distill.store_key(
        teachers, split, augment=augment_of(settings), seed=settings.seed
    )

    def read_view(view):
        return batches.view_batches(
            split, 500, view=view, seed=settings.seed, augment=augment_of(settings)
        )

    distill.write_soft_labels(
        teachers, read_view, folder, views=settings.views, key=key
    )
    views = distill.load_soft_labels(folder, key)
    labels = run.dataset.train.labels  # The first rows: the others have none.
    right = [float((v[: len(labels)].argmax(1) == labels).mean()) for v in views]
    names = sorted(path.name for path in folder.glob("view-*.npy"))
    return {"train_accuracy_by_view": right}, ["store.json", *names]


def save_outputs(model, folder, results):
    save_model(model, folder / MODEL)
    parameters, macs = count_parameters(model), count_macs(model)
    return {**results, "parameters": parameters, "macs": macs}, [MODEL]
