"""The exported programs of every sequence encoder, and packages that are not installed."""

import sys
from dataclasses import replace

import jax
import numpy as np
import pytest
from flax import nnx
from helpers.encoders import CONFIG, SIZES, values_of

from jaxrec.errors import ConfigError
from jaxrec.inference.edge.onnx_model import check_supported
from jaxrec.inference.edge.programs import export_programs
from jaxrec.inference.encoding import initial_states, update_states, user_vectors
from jaxrec.models.inputs import Events
from jaxrec.models.recommender import Model, Recommender, split


@pytest.fixture
def make_model():
    def make(sequence):
        config = replace(CONFIG, sequence=sequence, experts=("id",))
        return Model(*split(Recommender(config, SIZES, nnx.Rngs(0))))

    return make


@pytest.mark.parametrize("sequence", values_of("sequence"))
def test_exported_programs_equal_those_of_the_service(make_model, sequence):
    """For one user and for three, over as many events as fill a window of attention."""
    model = make_model(sequence)
    states = np.asarray(initial_states(model, 3))
    content = export_programs(model, states.shape[1], CONFIG.hidden_size)
    update, user_vector = (
        jax.export.deserialize(bytearray(content[name])) for name in ("update", "user_vector")
    )
    vectors = jax.random.normal(jax.random.key(0), (5, 3, CONFIG.hidden_size))
    zeros, places = np.zeros(3, np.int32), np.arange(3, dtype=np.int32)[:, None]
    expected = states
    for items in np.asarray(vectors):
        gaps = np.array([-1, 0, 99], np.int32)
        states = np.asarray(update.call(states, items, zeros, gaps))
        events = Events(places, zeros[:, None], gaps[:, None])
        expected = update_states(model, expected, items, events, np.ones((3, 1), bool))
        np.testing.assert_allclose(states, expected, atol=1e-5)
    one = user_vector.call(states[:1], zeros[:1] - 1, zeros[:1])
    np.testing.assert_allclose(one, user_vectors(model, expected, -1, 0)[:1], atol=1e-5)


@pytest.mark.parametrize("package", ["flatbuffers", "onnx"])
def test_a_missing_package_is_named_with_the_command_that_installs_it(
    make_model, monkeypatch, package
):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, "jaxrec.inference.edge.onnx_graph", raising=False)
    with pytest.raises(ConfigError, match=rf"{package} is not installed.*jaxrec\[export\]"):
        if package == "onnx":
            import jaxrec.inference.edge.onnx_graph  # noqa: F401
        else:
            export_programs(make_model("lstm"), 1, 1)


def test_onnx_names_the_encoders_that_it_lacks():
    check_supported(replace(CONFIG, sequence="lstm"))
    with pytest.raises(ConfigError, match="not gru; export with --formats jax"):
        check_supported(replace(CONFIG, sequence="gru"))
