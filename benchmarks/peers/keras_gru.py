"""GRU layers with a softmax over all items in Keras, on JAX."""

import os

os.environ["KERAS_BACKEND"] = "jax"

import keras
import numpy as np
from protocol import (
    Histories,
    Options,
    Reporter,
    best_unseen,
    ndcg,
    padded,
    read_histories,
    read_options,
    timed,
)


def build(options: Options, num_items: int) -> tuple[keras.Model, keras.Model, keras.layers.Dense]:
    """The model that is trained, its part up to the states, and its layer from states to scores."""
    inputs = keras.Input((options.history,), dtype="int32")
    x = keras.layers.Embedding(num_items + 1, options.width)(inputs)
    x = keras.layers.Dropout(options.dropout)(x)
    for _ in range(options.blocks):
        x = keras.layers.GRU(options.width, return_sequences=True)(x)
    scorer = keras.layers.Dense(num_items + 1)
    model, encoder = keras.Model(inputs, scorer(x)), keras.Model(inputs, x)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss)
    return model, encoder, scorer


def windows(histories: Histories, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and their next items, all of them, in rows of `length`."""
    inputs, outputs = [], []
    for items in histories.train():
        for begin in range(0, len(items) - 1, length):
            inputs.append(items[begin : begin + length][: len(items) - 1 - begin])
            outputs.append(items[begin + 1 : begin + 1 + length])
    return padded(inputs, length), padded(outputs, length)


def top_items(
    encoder: keras.Model, scorer: keras.layers.Dense, options: Options, histories: Histories
) -> np.ndarray:
    seen = histories.train()
    rows = padded(seen, options.history)
    last = np.minimum([len(items) for items in seen], options.history) - 1
    found = []
    for begin in range(0, len(seen), options.batch):
        part = slice(begin, begin + options.batch)
        states = encoder.predict_on_batch(rows[part])
        scores = np.asarray(scorer(states[np.arange(len(states)), last[part]]))
        found.append(best_unseen(scores, seen[part]))
    return np.concatenate(found)


def main() -> None:
    options = read_options()
    histories = read_histories(options)
    inputs, outputs = windows(histories, options.history)
    if options.batches:
        inputs, outputs = (part[: options.batches * options.batch] for part in (inputs, outputs))
    weights = (outputs > 0).astype(np.float32)
    (model, encoder, scorer), reporter = build(options, histories.num_items), Reporter(options)

    def epoch() -> None:
        model.fit(
            inputs, outputs, sample_weight=weights, batch_size=options.batch, epochs=1, verbose=0
        )

    while reporter.wants_more():
        _, seconds = timed(epoch)
        ranked, evaluation = timed(top_items, encoder, scorer, options, histories)
        score = ndcg(ranked, histories.targets())
        reporter.report(seconds, int(weights.sum()), score, evaluation)


if __name__ == "__main__":
    main()
