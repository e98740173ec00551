"""The exported programs of every sequence encoder, and packages that are not installed."""

import sys
from dataclasses import replace

import jax
import numpy as np
import onnxruntime
import pytest
from flax import nnx
from helpers.encoders import CONFIG, SIZES, values_of
from helpers.graph import randomised

from jaxrec.errors import ConfigError
from jaxrec.inference.edge.directory import VectorFile
from jaxrec.inference.edge.onnx_model import check_supported, recommend_model, update_model
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
    update, update_many, user_vector = (
        jax.export.deserialize(bytearray(content[name]))
        for name in ("update", "update_many", "user_vector")
    )
    vectors = jax.random.normal(jax.random.key(0), (5, 3, CONFIG.hidden_size))
    zeros, places = np.zeros(3, np.int32), np.arange(3, dtype=np.int32)[:, None]
    expected, gaps, after = states, np.array([-1, 0, 99], np.int32), [states]
    for items in np.asarray(vectors):
        states = np.asarray(update.call(states, items, zeros, gaps))
        events = Events(places, zeros[:, None], gaps[:, None])
        expected = update_states(model, expected, items, events, np.ones((3, 1), bool))
        np.testing.assert_allclose(states, expected, atol=1e-5)
        after.append(states)
    # all events of the first user, two of the second with places between them, none of the third
    valid = np.array([[1, 1, 1, 1, 1], [0, 1, 0, 1, 0], [0, 0, 0, 0, 0]], bool)
    inputs = [np.array(vectors.swapaxes(0, 1)), np.tile(zeros, (5, 1)).T, np.tile(gaps, (5, 1)).T]
    inputs[0][1, [1, 3]] = inputs[0][1, :2]
    many = update_many.call(after[0], *inputs, valid)
    np.testing.assert_allclose(many, [after[5][0], after[2][1], after[0][2]], atol=1e-6)
    many = update_many.call(after[0][:1], *(part[:1, :3] for part in inputs), valid[:1, :3])
    np.testing.assert_allclose(many, after[3][:1], atol=1e-6)
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


@pytest.mark.parametrize(
    "options", [{"memory_decays": 0, "time_gaps": False}, {"time_since_last": True}], ids=str
)
def test_onnx_equals_the_service_for_other_options(tmp_path, options):
    """With random parameters, as those of a new model are partly zero."""
    config = replace(CONFIG, sequence="lstm", experts=("id", "id"), **options)
    model = Model(*split(randomised(Recommender(config, SIZES, nnx.Rngs(0)))))
    recommender, width = model.merge(), 2 * CONFIG.hidden_size
    items = np.random.default_rng(0).normal(size=(5, width)).astype(np.float32)
    np.save(tmp_path / "items.npy", items)
    file = VectorFile(
        "items.npy", (tmp_path / "items.npy").stat().st_size - items.nbytes, items, 1.0
    )
    bias = np.linspace(0, 1, 5, dtype=np.float32)
    path = tmp_path / "recommend.onnx"
    path.write_bytes(recommend_model(recommender, config, file, bias, search_codes=False))
    ranking = onnxruntime.InferenceSession(path)
    update = onnxruntime.InferenceSession(update_model(recommender, config, width))
    state = expected = np.asarray(initial_states(model, 1))
    one, zero = np.ones(1, np.int64), np.zeros(1, np.int64)
    for item, gap in ((1, -1), (2, 0), (1, 1), (3, 2**31 - 1)):
        event = {"item_vector": items[[item]], "event_type": zero, "gap": gap * one}
        [state] = update.run(None, {"state": state, **event})
        events = Events(np.full((1, 1), item), np.zeros((1, 1), int), np.full((1, 1), gap))
        expected = update_states(model, expected, items, events, np.ones((1, 1), bool))
        np.testing.assert_allclose(state, expected, atol=1e-4)
    query = {"target_event_type": zero, "time_since_last": 7 * one, "k": 5 * one}
    adjusted = {"adjusted_items": np.array([2, 2]), "adjustments": np.ones(2, np.float32)}
    listed, scores = ranking.run(None, {"state": state, **query, **adjusted})
    exact = np.asarray(user_vectors(model, expected, 0, 7))[0] @ items.T + bias
    exact[2] += 2
    np.testing.assert_allclose(scores, exact[listed], rtol=1e-4, atol=1e-3)
    assert listed.tolist() == np.argsort(-exact).tolist()
