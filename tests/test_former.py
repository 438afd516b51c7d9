"""Names that were changed: they still work, and say what they are called now."""

import inspect
import sys
import types

import pytest

from kdprune._former import former_arguments, former_names


@pytest.fixture
def module(monkeypatch):
    made = types.ModuleType("renamed_things")
    made.strip_masks = lambda model: model
    made.__getattr__ = former_names("renamed_things", {"release_masks": "strip_masks"})
    monkeypatch.setitem(sys.modules, "renamed_things", made)
    return made


def test_a_former_name_works_and_warns_where_it_is_used(module):
    with pytest.warns(
        DeprecationWarning, match="is now renamed_things.strip_masks"
    ) as w:
        assert module.release_masks is module.strip_masks
    assert w[0].filename == __file__
    with pytest.warns(DeprecationWarning):
        from renamed_things import release_masks
    assert release_masks is module.strip_masks


def test_an_unknown_name_is_an_attribute_error(module):
    with pytest.raises(AttributeError, match="no attribute 'relase_masks'"):
        module.relase_masks  # noqa: B018


@former_arguments(by="criterion", beta="relative_threshold")
def masks(model, *, criterion="magnitude", relative_threshold=None):
    return model, criterion, relative_threshold


def test_a_former_argument_works_and_warns_where_it_is_given():
    with pytest.warns(DeprecationWarning, match="'by' is now 'criterion'") as w:
        assert masks(1, by="taylor") == (1, "taylor", None)
    assert w[0].filename == __file__
    with pytest.warns(DeprecationWarning, match="masks: the argument 'beta' is now"):
        assert masks(1, criterion="taylor", beta=0.5) == (1, "taylor", 0.5)
    assert list(inspect.signature(masks).parameters)[1] == "criterion"


def test_a_former_argument_beside_its_present_name_is_refused():
    with pytest.raises(TypeError, match="one of 'criterion' and 'by'.*Received: both"):
        masks(1, by="taylor", criterion="taylor")
    with pytest.raises(TypeError, match="bye"):
        masks(1, bye="taylor")


def test_arguments_that_were_renamed_are_taken_by_their_former_names():
    from kdprune.prune import weight_masks
    from kdprune.tflite import convert_tflite, layer_report

    for function, former in (
        (weight_masks, {"by": "tylor", "threshold": 1}),
        (weight_masks, {"beta": 2.0}),
        (convert_tflite, {"ranges": "max"}),
        (layer_report, {"ranges": "max", "calibration": None}),
    ):
        with pytest.warns(DeprecationWarning, match="is now"):
            with pytest.raises(ValueError):
                function(None, **former)


def test_a_former_name_of_a_subpackage_is_the_present_one():
    from kdprune import quantize

    with pytest.warns(DeprecationWarning, match="quantize.fold_batch_norms is now"):
        assert quantize.fold_batch_norms is quantize.fold_batch_norm
