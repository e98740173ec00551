"""States that are rebuilt from documents."""

import numpy as np
from helpers.live import DAY, assert_as_in_batch, event, rescaled

from jaxrec.inference import encoding
from jaxrec.serving.live import state_updater
from jaxrec.serving.live.engine import LiveEngine
from jaxrec.serving.live.recorder import UserEvent
from jaxrec.serving.live.state_updater import Update


def test_another_model_rebuilds_states_and_marks_approximate_ones(engine, model):
    few = [UserEvent("few", event(n * DAY, f"i{n:02}")) for n in range(4)]
    many = [UserEvent("many", event(n * DAY, f"i{n:02}")) for n in range(20)]
    engine.record([*few, *many])
    other = rescaled(model)
    renewed = LiveEngine(other, engine.store, window=3)
    exact, rebuilt = renewed.recommend(["few", "many"], k=3)
    assert (exact.approximate, rebuilt.approximate) == (False, True)
    assert rebuilt.events == 20
    renewed.record(
        [UserEvent("few", event(30 * DAY, "i20")), UserEvent("many", event(30 * DAY, "i20"))]
    )
    few.append(UserEvent("few", event(30 * DAY, "i20")))
    assert_as_in_batch(renewed, few)
    assert renewed.recommend(["many"], k=3)[0].approximate


def test_a_rebuilt_state_equals_its_document_despite_late_events(engine, model):
    engine.record([UserEvent("u", event(n * DAY, f"i{n:02}")) for n in range(20)])
    other = LiveEngine(rescaled(model), engine.store, window=3)
    assert other.record([UserEvent("u", event(19 * DAY - 60, "i33"))]) == ["accepted"]
    for number in range(8):
        document = other.document("u")
        [expected] = other.updater.apply([Update(*document.base_state, document.events_after_base)])
        np.testing.assert_allclose(document.state, expected, atol=1e-5)
        other.record([UserEvent("u", event((20 + number) * DAY, f"i{number:02}"))])
    assert other.document("u").base is not None


def test_an_event_takes_the_vector_of_its_item_alone(engine, monkeypatch):
    shapes = []

    def update_states(model, states, items, *rest):
        shapes.append(items.shape)
        return encoding.update_states(model, states, items, *rest)

    monkeypatch.setattr(state_updater, "update_states", update_states)
    engine.record([UserEvent("u", event(0, "i03"))])
    engine.record([UserEvent("v", event(0, "i04")), UserEvent("w", event(0, "unknown"))])
    assert [rows for rows, _ in shapes] == [1, 8]  # the batch sizes, not the catalogue
