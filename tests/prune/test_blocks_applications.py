"""Residual blocks of Keras's own networks are removed without another change."""

import numpy as np
import pytest
import tf_keras as keras

from kdprune.intake.inline import one_graph
from kdprune.models import count_macs
from kdprune.prune.blocks import find_blocks, remove_blocks

apps = keras.applications

# How many blocks keep their shapes: the others change width or resolution.
FAMILIES = {
    "convnext": (apps.convnext.ConvNeXtTiny, 18),
    "efficientnet": (apps.EfficientNetB0, 9),
    "mobilenet_v2": (apps.MobileNetV2, 10),
    "regnet_y": (apps.regnet.RegNetY002, 9),
    "resnet": (apps.ResNet50, 12),
    "resnet_v2": (apps.ResNet50V2, 9),
}
# Blocks of the others are of the same make; small ones are in `test_blocks.py`.
SLOW = ("convnext", "efficientnet", "resnet")


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(name, marks=pytest.mark.slow if name in SLOW else pytest.mark.soak)
        for name in FAMILIES
    ],
)
def test_without_its_blocks_a_net_is_as_if_their_branches_gave_zero(family, randomized):
    factory, count = FAMILIES[family]
    model, images = randomized(
        factory(input_shape=(32, 32, 3), weights=None, classifier_activation=None),
        scale=255.0,
    )
    pruned = remove_blocks(model, [block.name for block in find_blocks(model)[::2]])
    # Of a model with models inside, blocks are those of the graph without.
    model = one_graph(model)
    blocks = find_blocks(model)
    assert len(blocks) == count
    chosen = blocks[::2]
    # Step by step: what enters a chosen block goes on where the block ends.
    tensor, expected = model.input, images
    for block in chosen:
        if block.entry is not tensor:
            expected = keras.Model(tensor, block.entry)(expected)
        tensor = block.end.outputs
    expected = keras.Model(tensor, model.output)(expected).numpy()
    spread = float(np.std(expected, axis=0).max())
    assert np.abs(pruned(images) - expected).max() <= 1e-4 * spread
    assert np.abs(model(images) - expected).max() > 1e-3 * spread
    gone = {name for block in chosen for name in block.layers}
    assert not gone & {layer.name for layer in pruned.layers}
    assert count_macs(pruned) < count_macs(model)
