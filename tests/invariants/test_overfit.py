"""Overfitting: a tiny model learns one batch by heart."""

from helpers.training import config

from jaxrec.data.dataset import prepare
from jaxrec.training import loop as training
from jaxrec.training.state import initial_state, make_context


def test_training_overfits_one_batch(tables):
    options = {"model.dropout": 0.0, "model.id_dropout": 0.0, "train.learning_rate": 0.02}
    context = make_context(config(**options), prepare(config(), tables))
    state = initial_state(context)
    step = training.make_train_step(context)
    batch, _ = next(training.prefetch(context, 0, range(1)))
    losses = []
    for _ in range(60):
        state, metrics = step(state, context.arrays, batch)
        losses.append(float(metrics["next_item/0"]))
    assert losses[-1] < 0.3 * losses[0]
