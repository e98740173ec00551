"""Overfitting: on one batch, a tiny model reaches a next-item loss near zero."""

import pytest
from helpers.encoders import values_of
from helpers.training import config

from jaxrec.data.dataset import prepare
from jaxrec.training.context import make_context
from jaxrec.training.loop import make_train_step
from jaxrec.training.prefetch import prefetch
from jaxrec.training.state import initial_state


def next_item_losses(tables, steps, **options):
    """Losses of both experts at every step on the first batch, without dropout."""
    options |= {"model.dropout": 0.0, "model.id_dropout": 0.0, "train.learning_rate": 0.02}
    context = make_context(config(**options), prepare(config(), tables))
    state = initial_state(context)
    step = make_train_step(context)
    batch, _ = next(prefetch(context, 0, range(1)))
    losses = []
    for _ in range(steps):
        state, metrics = step(state, context.arrays, batch)
        losses.append((float(metrics["next_item/0"]), float(metrics["next_item/1"])))
    return losses


@pytest.mark.thorough
@pytest.mark.parametrize(
    "sequence",
    ["lstm", *(pytest.param(s, marks=pytest.mark.slow) for s in values_of("sequence")[1:])],
)
def test_a_tiny_model_overfits_one_batch(tables, sequence):
    options = {"model.sequence": sequence, "train.auxiliary": []}
    losses = [loss for loss, _ in next_item_losses(tables, steps=60, **options)]
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.slow
def test_a_wider_model_reaches_a_loss_near_zero(tables):
    losses = next_item_losses(tables, steps=120, **{"model.hidden_size": 32})
    assert min(losses[0]) > 1
    assert max(losses[-1]) < 0.01
