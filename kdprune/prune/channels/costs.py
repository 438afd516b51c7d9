"""What is left of a model's costs without some of its channels, by arithmetic."""

import math
from functools import cached_property

from kdprune.models.counts import count_parameters, kernels, layer_macs
from kdprune.prune.channels.surgery import Kept, remove_channels


class Costs:
    """Foretells the costs of a model once channels are removed.

    Args:
        graph: The `ChannelGraph` of the model.
        measure_bytes: `measure_bytes(model)`, the size of its converted file.
    """

    def __init__(self, graph, measure_bytes=None):
        self.graph = graph
        self.measure_bytes = measure_bytes

    @cached_property
    def _parameters(self):
        return count_parameters(self.graph.model)

    @cached_property
    def _macs(self):
        return layer_macs(self.graph.model)

    def parameters(self, removed=()):
        """The number that `count_parameters` will give."""
        kept = Kept(self.graph, removed)
        weights = [w for f in self.graph.followed.values() for w in f.trace.weights]
        saved = (
            math.prod(w.variable.shape) - math.prod(kept.shape(w)) for w in weights
        )
        return self._parameters - sum(saved)

    def macs(self, removed=()):
        """The number that `count_macs` will give.

        Raises:
            ValueError: If the model's multiplications cannot be counted.
        """
        kept = Kept(self.graph, removed)
        saved = 0
        for followed in self.graph.followed.values():
            multiplied = {id(kernel) for kernel in kernels(followed.layer)}
            cut = [w for w in followed.trace.weights if id(w.variable) in multiplied]
            if cut:
                before = sum(math.prod(w.variable.shape) for w in cut)
                after = sum(math.prod(kept.shape(w)) for w in cut)
                saved += self._macs[followed.path] // before * (before - after)
        return sum(self._macs.values()) - saved

    def bytes(self, removed=()):
        """The size of the smaller model's file, really converted."""
        if self.measure_bytes is None:
            raise ValueError(
                "target_bytes is checked by converting: give measure_bytes, e.g. "
                "lambda m: len(kdprune.convert_tflite(m, 'int8', images)). "
                "Received: None"
            )
        return self.measure_bytes(remove_channels(self.graph, removed))
