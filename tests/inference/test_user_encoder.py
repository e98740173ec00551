import numpy as np

from jaxrec.types import Queries


def test_vectors_of_states_equal_vectors_after_the_last_event(model, events):
    encoder = model.encoder
    log = encoder.event_log(events)
    ends = Queries(np.arange(log.num_users), log.offsets[1:])
    vectors = encoder.vectors(encoder.states(log))
    np.testing.assert_allclose(vectors, encoder.vectors_at(log, ends), atol=1e-4)
