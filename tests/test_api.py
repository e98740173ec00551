"""The names that notebooks use."""

import pytest

import jaxrec


def test_public_names_are_lazy_and_real():
    assert {"fit", "load", "configure"} <= set(jaxrec.__all__)
    for name in jaxrec.__all__:
        assert getattr(jaxrec, name)
    with pytest.raises(AttributeError, match="nothing"):
        _ = jaxrec.nothing
