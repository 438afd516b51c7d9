"""Channel pruning of the smallest member of every family that Keras ships."""

import time

import pytest
import tf_keras as keras

from kdprune.prune import plan_channels

apps = keras.applications

# The smallest member, and the smallest images that it takes.
FAMILIES = {
    "convnext": (apps.convnext.ConvNeXtTiny, 32),
    "densenet": (apps.DenseNet121, 32),
    "efficientnet": (apps.EfficientNetB0, 32),
    "efficientnet_v2": (apps.EfficientNetV2B0, 32),
    "inception": (apps.InceptionV3, 75),
    "inception_resnet": (apps.InceptionResNetV2, 75),
    "mobilenet": (apps.MobileNet, 32),
    "mobilenet_v2": (apps.MobileNetV2, 32),
    "mobilenet_v3": (apps.MobileNetV3Small, 32),
    "nasnet": (apps.NASNetMobile, 32),
    "regnet_x": (apps.regnet.RegNetX002, 32),
    "regnet_y": (apps.regnet.RegNetY002, 32),
    "resnet": (apps.ResNet50, 32),
    "resnet_rs": (apps.resnet_rs.ResNetRS50, 32),
    "resnet_v2": (apps.ResNet50V2, 32),
    "vgg": (apps.VGG16, 32),
    "xception": (apps.Xception, 71),
}
# The largest, and those whose layers are those of another family.
SOAK = ("efficientnet_v2", "inception_resnet", "nasnet", "regnet_x", "resnet_rs")


def build(family):
    factory, size = FAMILIES[family]
    arguments = {"minimalistic": False} if family == "mobilenet_v3" else {}
    return factory(
        input_shape=(size, size, 3),
        weights=None,
        classes=10,
        classifier_activation=None,
        **arguments,
    )


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(
            family, marks=pytest.mark.soak if family in SOAK else pytest.mark.slow
        )
        for family in FAMILIES
    ],
)
def test_every_family_is_cut_without_another_change(family, check_invariant):
    plan, pruned = check_invariant(build(family), 0.3, scope="local", scale=255.0)
    before, after = plan.macs
    # ConvNeXt's normalization over channels keeps its residual stream whole.
    assert after < (0.95 if family == "convnext" else 0.75) * before


@pytest.mark.slow
def test_resnet50_is_analysed_and_cut_in_seconds():
    model = apps.ResNet50(weights=None)
    start = time.process_time()
    plan_channels(model, 0.5).apply()
    assert time.process_time() - start < 10
