"""Peak activation memory: the bytes that a network holds at once while it runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from kdprune.tflite.format import Graph

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Step(Generic[Key]):
    """One operator: the activations that it takes and gives.

    Attributes:
        inputs: Activations it takes, without constants.
        outputs: What it gives.
        place: Where its output goes: "new" memory; the input's as "view" of it
            (a reshaped tensor); or the input's "in_place", if no other step takes it.
    """

    inputs: Sequence[Key]
    outputs: Sequence[Key]
    place: str = "new"


def peak_bytes(
    steps: Sequence[Step[Key]],
    sizes: Mapping[Key, int],
    inputs: Iterable[Key],
    outputs: Iterable[Key],
) -> int:
    """The most bytes of activations that are needed at once: no arena is smaller.

    Steps run one after another. A tensor is held from the step that makes it to the
    last that takes it, the inputs from the start and the outputs to the end. What
    kernels need for themselves, and gaps between tensors, come on top.

    Args:
        steps: The operators, in the order of execution.
        sizes: Bytes of each tensor.
        inputs: The network's inputs.
        outputs: Its outputs.

    Returns:
        Bytes.
    """
    outputs = list(outputs)
    uses = Counter(outputs)
    for step in steps:
        uses.update(step.inputs)
    holder: dict[Key, Key] = {}
    first = dict.fromkeys(inputs, 0)
    last = dict(first)
    for moment, step in enumerate(steps):
        for key in step.inputs:
            last[holder.get(key, key)] = moment
        for key in step.outputs:
            source = step.inputs[0] if step.inputs else None
            alone = source is not None and uses[source] == 1
            if step.place == "view" or (step.place == "in_place" and alone):
                holder[key] = holder.get(source, source)
            else:
                first[key] = last[key] = moment
    end = max(len(steps) - 1, 0)
    for key in outputs:
        last[holder.get(key, key)] = end
    return max(
        sum(sizes[key] for key in first if first[key] <= moment <= last[key])
        for moment in range(end + 1)
    )


def graph_peak_bytes(graph: Graph) -> int:
    """Peak activation memory of a `.tflite` file's graph.

    Args:
        graph: What `read_tflite` returned.

    Returns:
        Bytes, for one image.
    """
    constant = {i for i, tensor in enumerate(graph.tensors) if tensor.data is not None}
    steps = []
    for op in graph.ops:
        taken = [i for i in dict.fromkeys(op.inputs) if i >= 0 and i not in constant]
        if not taken:  # Made of constants once and for all.
            constant.update(op.outputs)
            continue
        place = "view" if op.name == "RESHAPE" else "new"
        steps.append(Step(taken, op.outputs, place))
    sizes = {i: tensor.bytes for i, tensor in enumerate(graph.tensors)}
    outputs = [i for i in graph.outputs if i not in constant]
    return peak_bytes(steps, sizes, graph.inputs, outputs)
