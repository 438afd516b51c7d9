"""What data says about channels: gradients and activations, measured when asked."""

from functools import cached_property

import numpy as np
import tensorflow as tf

from kdprune.prune.inference import batches, label_loss, run_layers


class Evidence:
    """Measures a model on data for the importances that need it.

    Args:
        graph: The `ChannelGraph` of the model.
        data: Images, or `(images, labels)`, as `kdprune.prune.inference.batches`
            takes them; `None` serves importances that look at weights alone.
    """

    def __init__(self, graph, data=None):
        self.graph = graph
        self.data = data

    def gradient(self, member):
        """The mean size of the loss's gradient by each weight, `(channels,)`."""
        gradient, _ = self._gradients[id(member.weight.variable)]
        return gradient[member.index].mean(axis=1)

    def taylor(self, member):
        """The squared first-order change of the loss by removal, `(channels,)`."""
        _, taylor = self._gradients[id(member.weight.variable)]
        return taylor[member.index].sum(axis=1)

    def activation_rate(self, member):
        """The share of a layer's inputs that are not zero, `(channels,)`."""
        return self._activations[id(member.followed.layer)][0][member.index].mean(
            axis=1
        )

    def activation_mean(self, member):
        """The mean size of a layer's inputs, `(channels,)`."""
        return self._activations[id(member.followed.layer)][1][member.index].mean(
            axis=1
        )

    @cached_property
    def _gradients(self):
        """`{id(variable): (mean |g|, mean squared sum of g * w)}` by filter."""
        weights = self._weights("makes")
        variables = [weight.variable for weight in weights]

        @tf.function(reduce_retracing=True)
        def step(images, labels):
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(variables)
                loss = tf.reduce_mean(label_loss(self.graph.model, images, labels))
            sums = []
            for weight, gradient in zip(
                weights, tape.gradient(loss, variables, None, "zero"), strict=True
            ):
                rest = [i for i in range(gradient.shape.rank) if i != weight.makes]
                change = tf.reduce_sum(gradient * weight.variable, rest)
                sums.append((tf.reduce_mean(tf.abs(gradient), rest), change**2))
            return sums

        means = self._averaged(lambda images, labels: step(images, labels), True)
        return {id(v): pair for v, pair in zip(variables, means, strict=True)}

    @cached_property
    def _activations(self):
        """`{id(layer): (share not zero, mean size)}` by input channel."""
        layers = [f.layer for f in self._users()]

        @tf.function(reduce_retracing=True)
        def step(images):
            seen = {}

            def call_layer(layer, args, kwargs):
                if any(layer is one for one in layers):
                    inputs = tf.nest.flatten((args, kwargs))[0]
                    seen.setdefault(id(layer), []).append(_statistics(inputs))
                return layer(*args, **kwargs)

            run_layers(self.graph.model, images, call_layer)
            # A shared layer counts by the mean of its calls.
            return [tf.reduce_mean(seen[id(layer)], axis=0) for layer in layers]

        means = self._averaged(lambda images, _: step(images), False)
        return {id(layer): pair for layer, pair in zip(layers, means, strict=True)}

    def _averaged(self, step, labelled):
        """Averages what `step` returns over the batches of the data."""
        if self.data is None:
            wanted = "data=(images, labels)" if labelled else "data=images"
            raise ValueError(
                f"this importance is measured on images: give {wanted}. Received: None"
            )
        totals, count = None, 0
        for images, labels in batches(self.data, labelled):
            size = len(tf.nest.flatten(images)[0])
            new = [np.stack(pair) * size for pair in step(images, labels)]
            totals = new if totals is None else list(map(np.add, totals, new))
            count += size
        return [total / count for total in totals]

    def _weights(self, role):
        followed = self.graph.followed.values()
        every = [weight for one in followed for weight in one.trace.weights]
        return [weight for weight in every if getattr(weight, role) is not None]

    def _users(self):
        return [
            one
            for one in self.graph.followed.values()
            if any(weight.uses is not None for weight in one.trace.weights)
        ]


def _statistics(inputs):
    axes = list(range(inputs.shape.rank - 1))
    rate = tf.reduce_mean(tf.cast(inputs != 0, tf.float32), axes)
    return tf.stack([rate, tf.reduce_mean(tf.abs(tf.cast(inputs, tf.float32)), axes)])
