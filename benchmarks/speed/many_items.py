"""Training steps over many items: full softmax, sampled softmax, and lazy Adam beside it.

    python benchmarks/speed/many_items.py [--items 1000000] [--hidden-size 64] [--steps 5]
        [--negatives 1024] [--variants full sampled sparse] [--out FILE.jsonl]

The events are random: every item occurs, half of the events follow a power law. The model is one
expert of ids. Every variant trains in a process of its own. Printed are the median seconds of a
step after the first one, its events (targets) per second, the temporary memory of its program, and
the peak memory of the process. The last one holds the data, the tables and the moments of Adam.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

from jaxrec.runtime import keep_freed_memory

keep_freed_memory()  # before the imports, because it does not reach threads that run already

import jax  # noqa: E402
import numpy as np  # noqa: E402
import polars as pl  # noqa: E402
from loading import peak  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[1] / "quality"))
from rows import append_row, commit  # noqa: E402

from jaxrec.config import parse  # noqa: E402
from jaxrec.data.dataset import prepare  # noqa: E402
from jaxrec.data.tables import Tables, validate_tables  # noqa: E402
from jaxrec.training.context import TrainContext, make_context  # noqa: E402
from jaxrec.training.loop import make_train_step  # noqa: E402
from jaxrec.training.prefetch import prefetch  # noqa: E402
from jaxrec.training.state import initial_state  # noqa: E402

MIB = 2**20
EVENTS = 50  # of a user
VARIANTS = {
    "full": {"train.loss": "full_softmax"},
    "sampled": {"train.loss": "sampled_softmax"},
    "sparse": {"train.loss": "sampled_softmax", "train.sparse_rows": True},
}


def main() -> None:
    """Measure the variants."""
    parser = argparse.ArgumentParser()
    sizes = {"items": 1_000_000, "hidden_size": 64, "steps": 5, "negatives": 1024}
    for name, default in {**sizes, "batch_size": 32, "sequence_length": 64}.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    parser.add_argument("--variants", nargs="*", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--out", type=Path, help="a file that the rows are added to")
    parser.add_argument("--measure", choices=list(VARIANTS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options)))
        return
    if options.out:
        commit()
    for variant in options.variants:
        command = [sys.executable, *sys.argv, "--measure", variant]
        result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        row = json.loads(result.stdout.splitlines()[-1])
        print(
            f"{row['items']:>10,} items, {variant:8} {row['seconds']:8.3f} s a step, "
            f"{row['events_per_second']:8,.0f} events/s, {row['temporary_mib']:8,.0f} MiB "
            f"temporary, {row['peak_mib']:8,.0f} MiB at the peak",
            flush=True,
        )
        if options.out:
            append_row(options.out, row | {"code": commit()})


def measure(options: argparse.Namespace) -> dict:
    """Train some steps of a variant."""
    context = build(options)
    state, seconds, events = initial_state(context), [], []
    batches = prefetch(context, 0, range(options.steps + 1))
    batch, _ = next(batches)
    program = make_train_step(context).lower(state, context.arrays, batch).compile()
    state, _ = program(state, context.arrays, batch)
    jax.block_until_ready(state)
    for batch, targets in batches:
        start = time.perf_counter()
        state, _ = program(state, context.arrays, batch)
        jax.block_until_ready(state)
        seconds.append(time.perf_counter() - start)
        events.append(targets)
    sampler = context.arrays.item_sampler
    return {
        "variant": options.measure,
        "items": options.items,
        "seconds": round(statistics.median(seconds), 4),
        "events_per_second": round(sum(events) / sum(seconds)),
        "temporary_mib": round(program.memory_analysis().temp_size_in_bytes / MIB),
        "peak_mib": round(peak() / MIB),
        "scored_items": options.items if sampler is None else sampler.size,
        "settings": {
            name: getattr(options, name)
            for name in ("hidden_size", "batch_size", "sequence_length", "negatives", "steps")
        }
        | {"device": jax.default_backend(), "date": date.today().isoformat()},
    }


def build(options: argparse.Namespace) -> TrainContext:
    """A training context on random events."""
    layers = {
        "data.time": "order",
        "split.scheme": "leave_one_out",
        "model.experts": ["id"],
        "model.hidden_size": options.hidden_size,
        "train.auxiliary": [],
        "train.batch_size": options.batch_size,
        "train.sequence_length": options.sequence_length,
        "train.negatives": options.negatives,
    }
    config = parse(layers=[layers | VARIANTS[options.measure]])
    return make_context(config, prepare(config, random_tables(options.items)))


def random_tables(items: int) -> Tables:
    """Every item once, and as many events of a power law, in random order."""
    random = np.random.default_rng(0)
    popular = np.floor(items ** random.random(items)).astype(np.int64) - 1
    drawn = random.permutation(np.concatenate([np.arange(items), popular]))
    drawn = drawn[: len(drawn) // EVENTS * EVENTS]
    places = np.arange(len(drawn))
    events = pl.DataFrame(
        {"user_id": places // EVENTS, "item_id": drawn, "timestamp": places % EVENTS}
    ).cast({"user_id": pl.String, "item_id": pl.String})
    table = pl.DataFrame({"item_id": np.arange(items)}).cast(pl.String)
    return validate_tables(events, table, None, time="order")


if __name__ == "__main__":
    main()
