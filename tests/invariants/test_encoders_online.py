"""Every sequence encoder is trained, restored and served: live scores equal those of batches."""

import numpy as np
import pytest
from helpers.encoders import values_of
from helpers.live import DAY, assert_as_in_batch, event, table
from helpers.training import config

import jaxrec
from jaxrec.serving.live.engine import LiveEngine
from jaxrec.serving.live.recorder import UserEvent
from jaxrec.serving.stores.documents import decode, encode
from jaxrec.serving.stores.sqlite import SQLiteStore
from jaxrec.training.fit import fit

USER_EVENTS = [
    UserEvent(user, event(n * DAY, f"i{(7 * n + offset) % 30:02}", event_type))
    for n, event_type in enumerate(["view", "buy", "view", "view", "view"] * 3)
    for offset, user in enumerate("ab")
]


# most tests use the LSTM, so only the transformer, whose state has another form, is not slow
ENCODERS = [
    name if name == "transformer" else pytest.param(name, marks=pytest.mark.slow)
    for name in values_of("sequence")
]


@pytest.fixture(scope="module", params=ENCODERS)
def run(request, tables, tmp_path_factory):
    """A run of one epoch, whose attention reads fewer events than the users have."""
    options = {
        "model.sequence": request.param,
        "model.experts": ["id"],
        # item neighbours read more events than the windows of these tests hold
        "model.cooccurrence": False,
        "model.similar_text": False,
        "train.epochs": 1,
        "train.auxiliary": [],
    }
    directory = tmp_path_factory.mktemp("encoders") / request.param
    fit(config(**options), directory, tables=tables)
    return directory


@pytest.mark.thorough
def test_events_one_by_one_equal_batch_scoring_across_a_restart(run, tmp_path):
    """Also with a late event, which is read again from an older state."""
    late = USER_EVENTS[-3]
    for part in (USER_EVENTS[:14], [e for e in USER_EVENTS[14:] if e != late], [late]):
        engine = LiveEngine(jaxrec.load(run), SQLiteStore(tmp_path / "store.db"), window=3)
        for user_event in part:
            assert engine.record([user_event]) == ["accepted"]
    assert_as_in_batch(engine, USER_EVENTS)


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_states_pass_through_documents(run, tmp_path, precision):
    store = SQLiteStore(tmp_path / "store.db")
    engine = LiveEngine(jaxrec.load(run), store, window=3, precision=precision)
    engine.record(USER_EVENTS)
    document = engine.document("a")
    assert document.state.dtype == document.base.dtype == precision
    decoded = decode("a", document.version, encode(document))
    np.testing.assert_array_equal(decoded.state, document.state)
    np.testing.assert_array_equal(decoded.base, document.base)
    model = engine.model
    expected = model.encoder.vectors(
        model.encoder.states(model.encoder.event_log(table(USER_EVENTS)))
    )
    vectors = engine.updater.user_vectors(engine.updater.stack([document.state]))[:1]
    tolerance = 1e-5 if precision == "float32" else 5e-3
    scale = np.abs(expected).max()
    np.testing.assert_allclose(vectors / scale, expected[:1] / scale, atol=tolerance)
