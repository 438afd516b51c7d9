"""Block pruning: residual blocks that a model can do without are removed whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kdprune._graph import check_float_model, nodes, rebuild
from kdprune._registry import suggesting
from kdprune.intake.inline import one_graph
from kdprune.models.counts import count_macs, count_parameters
from kdprune.prune.inference import batches
from kdprune.prune.recalibrate import recalibrate_after
from kdprune.tflite.memory import peak_activations


@dataclass(frozen=True)
class Block:
    """A residual branch and the addition that ends it.

    Attributes:
        name: The name of the layer that adds.
        layers: The names of the branch's layers.
        entry: The tensor that branches off and is added again.
        end: The call of the layer that adds.
        branch: The calls of the branch's layers.
    """

    name: str
    layers: tuple[str, ...]
    entry: Any
    end: Any
    branch: tuple


@dataclass(frozen=True)
class BlockPlan:
    """Which blocks go; printed, it is the dry run.

    Attributes:
        model: The model.
        blocks: All its blocks, the least important first.
        scores: Their importances, in the same order.
        count: How many of them go.
    """

    model: keras.Model
    blocks: tuple[Block, ...]
    scores: tuple[float, ...]
    count: int

    @cached_property
    def pruned(self) -> keras.Model:
        """The smaller model, built once."""
        return remove_blocks(self.model, [b.name for b in self.blocks[: self.count]])

    @property
    def macs(self) -> tuple[int, int]:
        """The multiplications before and after."""
        return count_macs(self.model), count_macs(self.pruned)

    @property
    def parameters(self) -> tuple[int, int]:
        """The parameters before and after."""
        return count_parameters(self.model), count_parameters(self.pruned)

    @property
    def memory(self) -> tuple[int, int]:
        """Peak activation memory in bytes (int8), before and after."""
        return peak_activations(self.model), peak_activations(self.pruned)

    def apply(self) -> keras.Model:
        """Returns the smaller model."""
        return self.pruned

    def __str__(self) -> str:
        lines = []
        for place, block in enumerate(self.blocks):
            what = "removed" if place < self.count else "kept"
            size = f"{len(block.layers)} layers"
            lines.append(f"{what:>9}  {self.scores[place]:.4g}  {block.name} ({size})")
        costs = {
            "MACs": self.macs,
            "parameters": self.parameters,
            "bytes of peak activation memory (int8)": self.memory,
        }
        for name, (before, after) in costs.items():
            lines.append(f"{before:,} -> {after:,} ({after / before:.0%}) {name}")
        return "\n".join(lines)


def find_blocks(model: keras.Model) -> list[Block]:
    """Finds the residual blocks whose removal keeps all shapes.

    A block is an addition of a tensor and of what is computed from that tensor
    alone and used nowhere else. Blocks inside nested models are found in a copy of
    one graph (`kdprune.intake.inline.one_graph`), whose tensors are the blocks' own.

    Args:
        model: A built Functional or Sequential model.

    Returns:
        The list of `Block`s in the order of execution.
    """
    check_float_model(model)
    model = one_graph(model)
    calls = nodes(model)
    makers = {id(t): node for node in calls for t in tf.nest.flatten(node.outputs)}
    uses = _uses(model, calls)
    found = []
    for node in calls:
        if not _adds_two(node):
            continue
        for entry, last in (node.keras_inputs, node.keras_inputs[::-1]):
            branch = _branch(entry, last, makers)
            if branch and _unused_elsewhere(branch, node, uses):
                names = tuple(call.layer.name for call in branch)
                found.append(Block(node.layer.name, names, entry, node, branch))
                break
    return found


@suggesting
def remove_blocks(model: keras.Model, names: Iterable[str]) -> keras.Model:
    """Rebuilds the model without some residual blocks, weights carried over.

    Args:
        model: A built Functional model; left as it is.
        names: The names of `Block`s, those of the layers that add.

    Returns:
        A new `keras.Model` that computes what the old one would if those branches
        gave zero; models inside are part of its graph.

    Raises:
        ValueError: If there is no such block.
    """
    names = list(names)
    check_float_model(model)
    model = one_graph(model)
    blocks = {block.name: block for block in find_blocks(model)}
    unknown = sorted(set(names) - set(blocks))
    if unknown:
        raise ValueError(
            f"blocks of this model are {', '.join(blocks) or 'none'}. "
            f"Received: {', '.join(unknown)}"
        )
    chosen = [blocks[name] for name in names]
    return rebuild(model, bypass={block.end: block.entry for block in chosen})


def angular_distances(
    model: keras.Model, blocks: Sequence[Block], data: Any
) -> np.ndarray:
    """Measures how much each block turns its input, as a fraction of pi.

    Reference: Gromov et al., 2024, https://arxiv.org/abs/2403.17887, section 3.2.

    Args:
        model: The model.
        blocks: Its `Block`s.
        data: Images as the model takes them; see `recalibrate_batch_norm`.

    Returns:
        One mean over the images for each block, in [0, 1].
    """
    tensors = [(block.entry, block.end.outputs) for block in blocks]
    seen = keras.Model(model.inputs, tensors)
    totals, count = np.zeros(len(blocks)), 0
    for images, _ in batches(data):
        pairs = seen(images, training=False)
        totals += [float(tf.reduce_sum(_angles(*pair))) for pair in pairs]
        count += len(tf.nest.flatten(images)[0])
    return totals / count


def losses_without(
    model: keras.Model,
    blocks: Sequence[Block],
    data: Any,
    loss: Callable[[keras.Model], float],
) -> np.ndarray:
    """Measures what the model loses without each block.

    Args:
        model: The model.
        blocks: Its `Block`s.
        data: Images to recalibrate batch normalization on after each removal.
        loss: `loss(model)`, such as the validation loss; the smaller the better.

    Returns:
        One loss for each block.
    """
    losses = []
    for block in blocks:
        smaller = remove_blocks(model, [block.name])
        recalibrate_after(model, smaller, data)
        losses.append(float(loss(smaller)))
    return np.array(losses)


def plan_blocks(
    model: keras.Model,
    count: int,
    data: Any,
    loss: Callable[[keras.Model], float] | None = None,
) -> BlockPlan:
    """Plans which residual blocks to remove.

    Args:
        model: A built Functional model.
        count: How many blocks to remove.
        data: Images as the model takes them.
        loss: Rank blocks by `loss(model)` without each of them, after
            recalibration; by angular distance if not given.

    Returns:
        A `BlockPlan`; `recalibrate_batch_norm` after `apply()` is worth it.

    Raises:
        ValueError: If there are not that many blocks.
    """
    check_float_model(model)
    model = one_graph(model)
    blocks = find_blocks(model)
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(f"count is a whole number, at least 1. Received: {count!r}")
    if count > len(blocks):
        raise ValueError(
            f"this model has {len(blocks)} residual blocks that can be removed. "
            f"Received: count={count}"
        )
    if loss is None:
        scores = angular_distances(model, blocks, data)
    else:
        scores = losses_without(model, blocks, data, loss)
    order = np.argsort(scores, kind="stable").tolist()
    ordered = tuple(blocks[place] for place in order)
    return BlockPlan(model, ordered, tuple(scores[order].tolist()), count)


def _adds_two(node):
    layer, tensors = node.layer, node.keras_inputs
    adds = type(layer) is keras.layers.Add or getattr(layer, "symbol", None) in (
        "__operators__.add",
        "math.add",
    )
    arguments = tf.nest.flatten((node.call_args, node.call_kwargs))
    return (
        adds
        and len(tensors) == 2
        and sum(argument is not None for argument in arguments) == 2
        and tensors[0].shape == tensors[1].shape == node.outputs.shape
    )


def _branch(entry, last, makers):
    """The calls between two tensors if `last` comes from `entry` alone, or None."""
    branch, pending = {}, [last]
    while pending:
        tensor = pending.pop()
        if tensor is entry:
            continue
        node = makers.get(id(tensor))
        if node is None:  # An input of the model.
            return None
        if id(node) not in branch:
            branch[id(node)] = node
            pending.extend(node.keras_inputs)
    return tuple(branch.values())


def _uses(model, calls):
    """`{id(tensor): [calls that take it]}`; an output is used by the model."""
    uses = {id(tensor): [model] for tensor in model.outputs}
    for node in calls:
        for tensor in node.keras_inputs:
            uses.setdefault(id(tensor), []).append(node)
    return uses


def _unused_elsewhere(branch, end, uses):
    inside = {id(node) for node in (*branch, end)}
    tensors = [t for node in branch for t in tf.nest.flatten(node.outputs)]
    return all(id(user) in inside for t in tensors for user in uses.get(id(t), ()))


def _angles(before, after):
    one = tf.reshape(tf.cast(before, tf.float32), (len(before), -1))
    other = tf.reshape(tf.cast(after, tf.float32), (len(after), -1))
    cosine = tf.reduce_sum(
        tf.math.l2_normalize(one, 1) * tf.math.l2_normalize(other, 1), axis=1
    )
    return tf.acos(tf.clip_by_value(cosine, -1.0, 1.0)) / np.pi
