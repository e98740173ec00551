"""Cost of long histories by sequence encoder: a training step, and one live update.

    python benchmarks/speed/long_histories.py [--lengths 64 256 1024 4096] [--events 4096]
        [--hidden-size 64] [--window 64] [--repeats 5] [--out FILE.jsonl]

A training step is forward and backward through the sequence encoder alone, without item vectors
and loss, over `--events` events in histories of one length. A live update reads one event into the
state of one user, as the live engine does, in a model of one expert. All encoders take turns in one
process; printed and written are medians, and their ratios to those of `lstm`. `transformer` attends
to `--window` events; `transformer, whole history` attends to all of them.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxrec.config import ModelConfig
from jaxrec.inference.encoding import initial_states, update_states
from jaxrec.models.inputs import Events, Sizes
from jaxrec.models.recommender import Model, Recommender, split
from jaxrec.models.sequence.build import build_sequence_encoder
from jaxrec.runtime import keep_freed_memory

ITEMS = 1024
UPDATES = 100  # in one measurement
ENCODERS = ("lstm", "gru", "rnn", "lru", "transformer")


def main() -> None:
    """Measure every encoder at every length."""
    keep_freed_memory()
    parser = argparse.ArgumentParser()
    parser.add_argument("--lengths", type=int, nargs="+", default=[64, 256, 1024, 4096])
    for name, default in (("events", 4096), ("hidden-size", 64), ("window", 64), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--out", type=Path, help="a file that the rows are added to")
    options = parser.parse_args()
    for length in options.lengths:
        for row in measure(options, length):
            print(
                f"{length:5} events  {row['encoder']:27}"
                f"training {row['train_us_per_event']:8.2f} us an event ({row['train_ratio']:5.2f})"
                f"   update {row['update_us']:8.0f} us ({row['update_ratio']:5.2f})"
                f"   state {row['state_numbers']:8,} numbers",
                flush=True,
            )
            if options.out:
                with options.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")


def measure(options: argparse.Namespace, length: int) -> list[dict]:
    """The rows of all encoders at one length; ratios are to the first encoder."""
    encoders = configs(options, length)
    rows = options.events // length
    calls = {
        **{(name, "train"): training_step(c, rows, length) for name, c in encoders.items()},
        **{(name, "update"): live_updates(c) for name, c in encoders.items()},
    }
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
    for _ in range(options.repeats + 1):  # the first repetition compiles
        for key, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            seconds[key].append(time.perf_counter() - start)
    medians = {key: float(np.median(times[1:])) for key, times in seconds.items()}
    first = next(iter(encoders))
    events = rows * length
    return [
        {
            "encoder": name,
            "events": length,
            "train_us_per_event": round(medians[name, "train"] / events * 1e6, 3),
            "train_ratio": round(medians[name, "train"] / medians[first, "train"], 3),
            "update_us": round(medians[name, "update"] / UPDATES * 1e6, 1),
            "update_ratio": round(medians[name, "update"] / medians[first, "update"], 3),
            "state_numbers": int(initial_states(bundled(config), 1).size),
            "settings": {
                "rows": rows,
                "hidden_size": config.hidden_size,
                "window": config.sequence_window,
                "updates": UPDATES,
                "device": jax.devices()[0].device_kind,
                "date": str(date.today()),
            },
        }
        for name, config in encoders.items()
    ]


def configs(options: argparse.Namespace, length: int) -> dict[str, ModelConfig]:
    """The encoders to compare."""
    base = ModelConfig(
        experts=("id",), hidden_size=options.hidden_size, sequence_window=options.window
    )
    encoders = {name: replace(base, sequence=name) for name in ENCODERS}
    if length > options.window:
        whole = replace(encoders["transformer"], sequence_window=length)
        encoders["transformer, whole history"] = whole
    return encoders


def training_step(config: ModelConfig, rows: int, length: int) -> Callable[[], object]:
    """Forward and backward of a sequence encoder over whole rows."""
    graphdef, params = nnx.split(build_sequence_encoder(config, nnx.Rngs(0)))
    events, cotangent = jax.random.normal(jax.random.key(0), (2, rows, length, config.hidden_size))
    cotangent = jnp.concatenate([cotangent, cotangent], -1)
    starts = jnp.zeros((rows, length), bool).at[:, 0].set(True)

    def loss(params: nnx.State, events: jax.Array, key: jax.Array) -> jax.Array:
        encoder = nnx.merge(graphdef, params)
        outputs, _ = encoder.scan(encoder.initial_state(rows), events, starts, key=key)
        return (outputs * cotangent).sum()

    gradient = jax.jit(jax.grad(loss, (0, 1)))
    return lambda: gradient(params, events, jax.random.key(1))


def live_updates(config: ModelConfig) -> Callable[[], object]:
    """One user's state after some more events, one at a time."""
    model = bundled(config)
    items = jax.random.normal(jax.random.key(0), (ITEMS, config.hidden_size))
    numbers = np.zeros((1, 1), np.int32)
    event, valid = Events(numbers, numbers, numbers), np.ones((1, 1), bool)
    new_user = np.asarray(initial_states(model, 1))

    def update() -> np.ndarray:
        state = new_user
        for _ in range(UPDATES):
            state = np.asarray(update_states(model, state, items, event, valid))
        return state

    return update


@cache
def bundled(config: ModelConfig) -> Model:
    """A model with one expert, as the live engine loads it.

    The same object for the same configuration: `jit` compares equal ones part by part in each call.
    """
    sizes = Sizes(ITEMS, ITEMS, num_relations=0, num_event_types=2, text_width=1)
    definition, params = split(Recommender(config, sizes, nnx.Rngs(0)))
    return Model(definition, nnx.to_pure_dict(params))


if __name__ == "__main__":
    main()
