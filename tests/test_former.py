"""Names that were changed: they still work, and say what they are called now."""

import sys
import types

import pytest

from kdprune._former import former_names


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
