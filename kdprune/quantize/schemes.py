"""TFMOT's quantization schemes: plain, keeping zeros, keeping clusters, or both."""

from __future__ import annotations

from typing import Any

import tensorflow_model_optimization as tfmot
import tf_keras as keras
from tensorflow_model_optimization.python.core.clustering.keras import cluster_config
from tensorflow_model_optimization.python.core.quantization.keras import (
    quantize_aware_activation,
)
from tensorflow_model_optimization.python.core.quantization.keras import (
    utils as quantize_utils,
)
from tensorflow_model_optimization.python.core.quantization.keras.collab_opts import (
    cluster_preserve,
    prune_preserve,
)
from tensorflow_model_optimization.python.core.quantization.keras.default_8bit import (
    default_8bit_transforms as transforms,
)
from tensorflow_model_optimization.python.core.quantization.keras.graph_transformations import (  # noqa: E501
    model_transformer,
)
from tensorflow_model_optimization.python.core.quantization.keras.graph_transformations.transforms import (  # noqa: E501
    LayerPattern,
)

from kdprune._log import logger

_combine: Any = tfmot.experimental.combine
_SPARSITY: Any = prune_preserve.prune_preserve_quantize_registry
_SPARSITY_PRESERVING: Any = _combine.Default8BitPrunePreserveQuantizeScheme
_CLUSTER_PRESERVING: Any = _combine.Default8BitClusterPreserveQuantizeScheme


def new_scheme(preserve_sparsity: bool, preserve_clusters: bool) -> Any:
    """The scheme that `quantize_apply` takes, for one model."""
    if preserve_clusters:
        return _ClusterPreserving(preserve_sparsity)
    if preserve_sparsity:
        return _SparsityPreserving()
    return tfmot.quantization.keras.default_8bit.Default8BitQuantizeScheme()


def use_layout(scheme: Any, joins: bool) -> None:
    """Puts some of TFMOT's rules for layers in a row right, in one scheme.

    Args:
        scheme: What `new_scheme` returned.
        joins: Whether what a Concatenate reads is rounded behind it alone, as TFMOT
            does for all who read it.
    """
    scheme.get_layout_transformer = lambda: _Layout(joins)


def average_centroid_gradients(wrapper: Any) -> None:
    """Lets the centroids of a wrapped layer follow their weights' mean gradient.

    TFMOT fixes the sum in cluster-preserving training, by which the centroids of
    large kernels diverge at learning rates that suit all other weights.

    Args:
        wrapper: A `QuantizeWrapper`, built; one without centroids stays as it is.
    """
    key = cluster_preserve.cluster_preserve_quantize_registry.CLUSTERING_IMPL
    for _, _, variables in wrapper._weight_vars:
        if key in variables:
            average = cluster_config.GradientAggregation.AVG
            variables[key].cluster_gradient_aggregation = average


class _SparsityPreserving(_SPARSITY_PRESERVING):
    """TFMOT's, for transposed convolutions too."""

    def get_quantize_registry(self) -> Any:
        return _SparsityRegistry()


class _SparsityRegistry(_SPARSITY.Default8bitPrunePreserveQuantizeRegistry):
    _LAYERS_CONFIG_MAP = {
        **_SPARSITY.PrunePreserveQuantizeRegistry._LAYERS_CONFIG_MAP,
        keras.layers.Conv2DTranspose: _SPARSITY._PrunePreserveInfo(
            ["kernel"], ["Default8BitConvTransposeQuantizeConfig"]
        ),
    }

    def __init__(self) -> None:
        super().__init__()
        # One range for all of the kernel, as TFMOT has for these without zeros to keep.
        self._config_quantizer_map["Default8BitConvTransposeQuantizeConfig"] = (
            _SPARSITY.PrunePreserveDefault8BitWeightsQuantizer()
        )


class _ClusterPreserving(_CLUSTER_PRESERVING):
    """TFMOT's, with quantizers of its own for each layer.

    TFMOT's layers share two quantizers, which turn off sparsity preservation for
    good at the first layer without a zero.
    """

    def get_quantize_registry(self) -> Any:
        registry = super().get_quantize_registry()
        kind: Any = type(registry)
        preserve_sparsity = self.preserve_sparsity

        class Registry(kind):
            @classmethod
            def supports(cls, layer: Any) -> bool:
                return type(layer) is keras.layers.Conv2DTranspose or kind.supports(
                    layer
                )

            def get_quantize_config(self, layer: Any) -> Any:
                if type(layer) is not keras.layers.Conv2DTranspose:
                    return kind(preserve_sparsity).get_quantize_config(layer)
                logger.warning(
                    "training does not keep the clusters of the transposed convolution "
                    "%r",
                    layer.name,
                )
                scheme = new_scheme(preserve_sparsity, preserve_clusters=False)
                return scheme.get_quantize_registry().get_quantize_config(layer)

        return Registry(preserve_sparsity)


class _Layout:
    """TFMOT's order of rules, of which three are put right.

    The two for a ReLU behind a layer with weights leave the weights unrounded. The one
    for Concatenate takes the rounding off what it reads, for all that read it.
    """

    def __init__(self, joins: bool) -> None:
        self.joins = joins

    def apply(self, model: Any, layer_quantize_map: dict) -> Any:
        concatenations = [
            transforms.ConcatTransform6Inputs(),
            transforms.ConcatTransform5Inputs(),
            transforms.ConcatTransform4Inputs(),
            transforms.ConcatTransform3Inputs(),
            transforms.ConcatTransform(),
        ]
        rules = [
            transforms.InputLayerQuantize(),
            transforms.SeparableConv1DQuantize(),
            transforms.SeparableConvQuantize(),
            transforms.Conv2DReshapeBatchNormReLUQuantize(),
            transforms.Conv2DReshapeBatchNormActivationQuantize(),
            transforms.Conv2DBatchNormReLUQuantize(),
            transforms.Conv2DBatchNormActivationQuantize(),
            transforms.Conv2DReshapeBatchNormQuantize(),
            transforms.Conv2DBatchNormQuantize(),
            *(concatenations if self.joins else []),
            transforms.DenseBatchNormQuantize(),
            transforms.DenseBatchNormReLUQuantize(),
            transforms.DenseBatchNormActivationQuantize(),
            _WeightsReLU("ReLU", {}),
            _WeightsReLU("Activation", {"activation": "relu"}),
            _SumReLU("ReLU", {}),
            _SumReLU("Activation", {"activation": "relu"}),
        ]
        return model_transformer.ModelTransformer(
            model, rules, set(layer_quantize_map), layer_quantize_map
        ).transform()


_ReLURule: Any = transforms.LayerReLUQuantize


class _SumReLU(_ReLURule):
    """Rounds the ReLU behind a sum, and not the sum."""

    sources = "Add"

    def __init__(self, kind: str, config: dict) -> None:
        self.kind, self.config = kind, config

    def pattern(self) -> Any:
        source = LayerPattern(self.sources)
        return LayerPattern(self.kind, config=self.config, inputs=[source])


class _WeightsReLU(_SumReLU):
    """Rounds the ReLU behind a layer with weights, and of that layer the weights."""

    def pattern(self) -> Any:
        linear = {"activation": "linear"}
        source = LayerPattern("Conv2D|DepthwiseConv2D|Dense", config=linear)
        return LayerPattern(self.kind, config=self.config, inputs=[source])

    def replacement(self, match_layer: Any) -> Any:
        source = match_layer.input_layers[0]
        if source.metadata.get("quantize_config") is None:
            source.layer["config"]["activation"] = quantize_utils.serialize_activation(
                quantize_aware_activation.NoOpActivation(), use_legacy_format=True
            )
        return match_layer

    def custom_objects(self) -> dict:
        return {"NoOpActivation": quantize_aware_activation.NoOpActivation}
