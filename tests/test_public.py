"""The names that `import kdprune` offers."""

import inspect

import pytest

import kdprune


@pytest.mark.parametrize("name", sorted(kdprune._PUBLIC))
def test_every_public_name_is_there_and_documented(name):
    found = getattr(kdprune, name)
    assert callable(found)
    assert len(inspect.getdoc(found).splitlines()) > 3


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="prune_chanels"):
        kdprune.prune_chanels  # noqa: B018
