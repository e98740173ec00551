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
    """The trained model, its encoder (items to states) and its last layer (states to scores)."""
    inputs = keras.Input((options.history,), dtype="int32")
    x = keras.layers.Embedding(num_items + 1, options.hidden_size)(inputs)
    x = keras.layers.Dropout(options.dropout)(x)
    for _ in range(options.num_layers):
        x = keras.layers.GRU(options.hidden_size, return_sequences=True)(x)
    scorer = keras.layers.Dense(num_items + 1)
    model, encoder = keras.Model(inputs, scorer(x)), keras.Model(inputs, x)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss)
    return model, encoder, scorer


def windows(histories: Histories, length: int) -> tuple[np.ndarray, np.ndarray]:
    """All training events as rows of `length` inputs, and their next items."""
    inputs, outputs = [], []
    for items in histories.train():
        for begin in range(0, len(items) - 1, length):
            inputs.append(items[begin : begin + length][: len(items) - 1 - begin])
            outputs.append(items[begin + 1 : begin + 1 + length])
    return padded(inputs, length), padded(outputs, length)


def top_items(
    encoder: keras.Model, scorer: keras.layers.Dense, options: Options, histories: Histories
) -> np.ndarray:
    """The ten best unseen items of every user."""
    seen = histories.train()
    rows = padded(seen, options.history)
    last = np.minimum([len(items) for items in seen], options.history) - 1
    ranked = []
    for begin in range(0, len(seen), options.batch_size):
        part = slice(begin, begin + options.batch_size)
        states = encoder.predict_on_batch(rows[part])
        scores = np.asarray(scorer(states[np.arange(len(states)), last[part]]))
        ranked.append(best_unseen(scores, seen[part]))
    return np.concatenate(ranked)


def main() -> None:
    """Measure training time, ranking time and NDCG@10 of Keras, epoch by epoch."""
    options = read_options()
    histories = read_histories(options)
    inputs, outputs = windows(histories, options.history)
    if options.batches:
        inputs, outputs = (
            part[: options.batches * options.batch_size] for part in (inputs, outputs)
        )
    weights = (outputs > 0).astype(np.float32)
    (model, encoder, scorer), reporter = build(options, histories.num_items), Reporter(options)

    def epoch() -> None:
        model.fit(
            inputs,
            outputs,
            sample_weight=weights,
            batch_size=options.batch_size,
            epochs=1,
            verbose=0,
        )

    while reporter.wants_more():
        _, seconds = timed(epoch)
        ranked, ranking = timed(top_items, encoder, scorer, options, histories)
        score = ndcg(ranked, histories.validation_targets())
        reporter.report(seconds, int(weights.sum()), inputs.size, score, ranking)


if __name__ == "__main__":
    main()
