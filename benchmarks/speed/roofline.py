"""Where the time of a training step goes, part by part, beside what the machine could do.

    python benchmarks/roofline.py [--config beauty] [--data path] [--repeats 5] [--out roofline.png]
    python benchmarks/roofline.py --config ml100k --train.batch_size 32     # any option of a recipe

Every part is compiled and timed alone, forward and backward, at the shapes and on the data of the
recipe. A repetition runs two measures of the machine, all parts in turn and some steps of the real
loop; times are medians. FLOPs are those of the matrix products, two a multiply-add, without what
is recomputed. Bytes are the least that must move: parameters, inputs, outputs and the gradients of
these, once each. A part far below both roofs is bound by neither, but by what goes entry by entry
or edge by edge. The loss of first items is left out: it is one row of logits.
"""

# ruff: noqa: E402
from jaxrec.runtime import keep_freed_memory

# before any import starts threads: what they have allocated from is not given up, and grows anew
keep_freed_memory()

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter
from rich.box import SIMPLE_HEAD
from rich.table import Table

from jaxrec.config import parse, read_recipe
from jaxrec.data.dataset import prepare
from jaxrec.models.inputs import Events, Nodes
from jaxrec.models.items.encoder import ItemEncoder
from jaxrec.models.items.text import TextSource
from jaxrec.models.recommender import Expert, cast_products
from jaxrec.models.sequence.lstm import LSTM
from jaxrec.training import loop as training
from jaxrec.training.logging import console
from jaxrec.training.losses.full_softmax import blocked_cross_entropy, positions_per_block
from jaxrec.training.state import TrainContext, TrainState, initial_state, make_context
from jaxrec.training.tasks.next_entity import NextEntity
from jaxrec.types import Batch

WARM_UP = 3  # repetitions until the allocator keeps what all parts need
STEPS = 4  # of the real loop in a repetition
PRODUCT_SIZE, TRIAD_SIZE = 2048, 2**25  # entries: 128 MiB an array, beyond the caches
ENCODING, GRAPH, EVENTS = "item encoding", "graph", "event vectors"
RECURRENCE, BLOCKS = "LSTM", "rest of the blocks"
LOSS, AUXILIARY, OPTIMISER = "loss", "auxiliary losses", "optimiser"
INPUT, SUM, STEP = "input, beside the step", "sum without input", "whole step"


@dataclass(frozen=True)
class Work:
    """Something to time, and what it is worth."""

    part: str
    run: Callable[[], object]
    flops: float = 0
    moved: float = 0  # bytes


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    part: str
    seconds: float
    flops: float
    moved: float


@dataclass(frozen=True)
class Roofs:
    """What the machine does in a second."""

    flops: float
    moved: float


class NoLSTM(nnx.Module):
    """Stands in a block for its LSTM, so that the rest can be timed."""

    def scan(self, x, starts, valid, hidden, cell):
        return x, hidden, cell


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--config", default="beauty", help="a YAML recipe or a shipped one's name")
    parser.add_argument("--data", help="short for --data.source")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("roofline.png"))
    options, overrides = parser.parse_known_args()
    source = ["--data.source", options.data] if options.data else []
    config = parse([*source, *overrides], [read_recipe(options.config)])
    if config.text.mode == "finetune":
        parser.error("the trained layers of a text encoder are no part here: use text.mode=frozen")
    context = make_context(config, prepare(config, None))
    rows, roofs, loop = measure(context, options.repeats)
    console.print(table(rows, roofs, f"a training step of {options.config}"))
    describe(rows[-1], roofs, loop, context.packing.fill)
    plot(options.out, rows, roofs, f"A training step of {options.config}")


def measure(context: TrainContext, repeats: int) -> tuple[list[Row], Roofs, np.ndarray]:
    """The table, the machine, and of every step of the loop: wait, seconds and targets."""
    state, step = initial_state(context), training.make_train_step(context)
    product, triad = matrix_product(), scaled_sum()
    works = step_work(context, initial_state(context))  # the loop donates its own state
    seconds: dict[str, list[float]] = {}
    loop: list[tuple[float, float, int]] = []
    for number in range(WARM_UP + repeats):
        taken: dict[str, float] = {}
        for work in (product, triad, *works):
            taken[work.part] = taken.get(work.part, 0) + timed(work.run)
        state, steps = train_some(context, step, state, epoch=number)
        if number >= WARM_UP:
            loop += steps
            for part, value in taken.items():
                seconds.setdefault(part, []).append(value)
    roofs = Roofs(
        product.flops / min(seconds.pop(product.part)), triad.moved / min(seconds.pop(triad.part))
    )
    measured = np.array(loop)
    return rows_of(works, seconds, float(np.median(measured[:, 1]))), roofs, measured


def matrix_product() -> Work:
    matrix = jnp.ones((PRODUCT_SIZE, PRODUCT_SIZE))
    return Work("product", partial(jax.jit(jnp.matmul), matrix, matrix), flops=2 * PRODUCT_SIZE**3)


def scaled_sum() -> Work:
    """a * 2 + b, into b: a new array would measure how the kernel hands out pages."""
    a, b = jnp.ones(TRIAD_SIZE), jnp.ones(TRIAD_SIZE)
    compiled = jax.jit(lambda b, a: a * 2 + b, donate_argnums=0)
    return Work("triad", in_place(compiled, b, a), moved=3 * a.nbytes)


def in_place(update: Callable, changed, constant) -> Callable[[], object]:
    """Runs `changed = update(changed, constant)`, as a training step that donates its state."""

    def run() -> object:
        nonlocal changed
        changed = update(changed, constant)
        return changed

    return run


def train_some(context: TrainContext, step: Callable, state: TrainState, epoch: int):
    """The state after some steps and, of all but the first, wait, seconds and targets."""
    steps = []
    batches = training.prefetch(
        context, epoch, range(min(STEPS + 1, context.packing.steps_per_epoch))
    )
    began = time.perf_counter()
    for batch, targets in batches:
        ready = time.perf_counter()
        state, metrics = step(state, context.arrays, batch)
        jax.block_until_ready(metrics)
        done = time.perf_counter()
        steps.append((ready - began, done - ready, targets))
        began = done
    return state, steps[1:] or steps  # nothing ran while the first batch was made


def step_work(context: TrainContext, state: TrainState) -> list[Work]:
    """All parts of a step; those of several experts and layers bear the same names."""
    batch, _ = next(training.prefetch(context, 0, range(1)))
    dtype = jnp.bfloat16 if context.config.train.bf16 else jnp.float32
    params = cast_products(state.params, dtype)
    nodes = replace(context.arrays.catalog.nodes, text=state.text)
    works = []
    for expert in context.definition.merge(params).experts:
        key = jax.random.key(0)
        vectors = expert.encode_nodes(nodes, context.arrays.catalog.graph, key)
        items = vectors[: len(nodes.items)]
        events = expert.event_vectors(items, events_of(batch), key)
        before = expert.sequence.initial_state(len(events))
        outputs, _ = expert.sequence.scan(before, events, starts=batch.starts, key=key)
        users = expert.user_vectors(outputs, batch.target_event_types)
        works += [
            *node_work(context, expert, nodes, vectors, key),
            *event_work(expert, items, events, batch, key),
            *loss_work(context, expert, users, vectors, batch),
        ]
    make_input = Work(INPUT, lambda: list(training.prefetch(context, 0, range(1))))
    return [*works, optimiser_work(context, state), make_input]


def gradient_work(
    part: str,
    call: Callable,
    module: nnx.Module,
    own: tuple[str, ...],
    inputs: tuple,
    constants: tuple,
    *,
    rows: int = 0,
    flops: float = 0,
    unread: float = 0,
) -> Work:
    """`call(module, *inputs, *constants)` and its gradient for the inputs and `own` attributes.

    `rows` meet every matrix of `own`, in three products; `flops` come on top. `unread` are bytes
    of the inputs that the forward pass does not need; gradients are dense.
    """
    graphdef, params, rest = nnx.split(module, lambda path, _: path[0] in own, ...)

    def forward(trained, constants):
        params, inputs = trained
        return call(nnx.merge(graphdef, params, rest), *inputs, *constants)

    @jax.jit
    def both(trained, constants, cotangents):
        outputs, pullback = jax.vjp(lambda t: forward(t, constants), trained)
        return outputs, pullback(cotangents)

    trained = (params, inputs)
    outputs = jax.eval_shape(forward, trained, constants)
    cotangents = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), outputs)
    moved = 2 * num_bytes(trained) + num_bytes(constants) + 2 * num_bytes(outputs) - unread
    flops += 6 * rows * matrix_entries(params)
    return Work(part, partial(both, trained, constants, cotangents), flops, moved)


def node_work(
    context: TrainContext, expert: Expert, nodes: Nodes, vectors: Array, key: Array
) -> Iterator[Work]:
    """Item encoding without the graph, and the graph."""
    rows, graph = len(nodes.items), context.arrays.catalog.graph
    encoder = expert.item_encoder
    alone = nnx.clone(encoder)
    alone.graph_encoder = None
    own = ("sources", "entity_table")
    # the vectors of texts get no gradient
    texts = [source for source in encoder.sources if isinstance(source, TextSource)]
    spared = sum(2 * rows * source.hidden.kernel[...].size for source in texts)
    known = nodes if spared else replace(nodes, text=nodes.text[:, :0])

    def encode(encoder: ItemEncoder, nodes: Nodes, key: Array) -> Array:
        return encoder(nodes, graph, key)

    def pass_messages(encoder: ItemEncoder, features: Array, graph) -> Array:
        return encoder.graph_encoder(features, graph)

    constants = (known, key)
    yield gradient_work(ENCODING, encode, alone, own, (), constants, rows=rows, flops=-spared)
    if encoder.graph_encoder is not None:
        own, inputs, rows = ("graph_encoder",), (vectors,), len(vectors)
        yield gradient_work(GRAPH, pass_messages, encoder, own, inputs, (graph,), rows=rows)


def event_work(
    expert: Expert, items: Array, events: Array, batch: Batch, key: Array
) -> Iterator[Work]:
    """Event vectors, the LSTMs, and the blocks without them up to the users' vectors."""
    unread = (len(items) - len(np.unique(batch.items))) * items[0].nbytes
    own, call, constants = (
        ("event_type_table", "gap_table"),
        Expert.event_vectors,
        (events_of(batch), key),
    )
    yield gradient_work(EVENTS, call, expert, own, (items,), constants, unread=unread)

    def scan(lstm: LSTM, x: Array, starts: Array) -> Array:
        zeros = jnp.zeros_like(x[:, 0])
        return lstm.scan(x, starts, None, zeros, zeros)[0]

    own, constants, rows = ("input", "recurrent"), (batch.starts,), batch.items.size
    for block in expert.sequence.layers:
        inputs = (block.lstm_norm(events),)
        yield gradient_work(RECURRENCE, scan, block.lstm, own, inputs, constants, rows=rows)

    def encode_users(expert: Expert, events: Array, starts: Array, targets: Array, key: Array):
        before = expert.sequence.initial_state(len(events))
        outputs, _ = expert.sequence.scan(before, events, starts=starts, key=key)
        return expert.user_vectors(outputs, targets)

    rest = nnx.clone(expert)
    for block in rest.sequence.layers:
        block.lstm = NoLSTM()
    own = ("sequence", "target_type_table", "user_norm", "user_output", "log_scale")
    constants = (batch.starts, batch.target_event_types, key)
    yield gradient_work(BLOCKS, encode_users, rest, own, (events,), constants, rows=rows)


def loss_work(
    context: TrainContext, expert: Expert, users: Array, vectors: Array, batch: Batch
) -> Iterator[Work]:
    """The loss of next items and those of their entities."""
    arrays, logits = context.arrays, context.config.train.loss_logits
    labels = (batch.targets, batch.weights)

    def of_items(_, users, items, targets, weights, valid):
        block = positions_per_block(len(items), logits)
        total = blocked_cross_entropy(users, items, targets, weights, valid, block)
        return total / jnp.maximum(weights.sum(), 1e-9)

    def of_entities(_, users, vectors, targets, weights, task):
        entities = task.entity_of_item[targets]
        rows, weights = vectors[task.nodes], weights * (entities > 0)
        return of_items(None, users, rows, entities, weights, task.valid)

    def work(part: str, call: Callable, vectors: Array, constant, candidates: int) -> Work:
        counts = {
            "flops": 6 * users.size * candidates,
            "unread": (len(vectors) - candidates) * vectors[0].nbytes,
        }
        return gradient_work(
            part, call, expert, (), (users, vectors), (*labels, constant), **counts
        )

    count = len(arrays.candidates)
    yield work(LOSS, of_items, vectors[:count], arrays.candidates, count)
    for task in arrays.tasks:
        if isinstance(task, NextEntity):
            yield work(AUXILIARY, of_entities, vectors, task, len(task.nodes))


def optimiser_work(context: TrainContext, state: TrainState) -> Work:
    changed = jax.tree.map(jnp.copy, (state.params, state.opt_state))

    @partial(jax.jit, donate_argnums=0)
    def update(changed, gradients):
        params, opt_state = changed
        updates, opt_state = context.optimizer.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    moved = 2 * num_bytes(changed) + num_bytes(state.params)
    return Work(OPTIMISER, in_place(update, changed, state.params), moved=moved)


def events_of(batch: Batch) -> Events:
    return Events(batch.items, batch.event_types, batch.gaps)


def matrix_entries(params: nnx.State) -> int:
    """Entries of all matrices that positions or nodes are multiplied with."""
    matrices = ("kernel", "recurrent")
    return sum(leaf[...].size for path, leaf in nnx.to_flat_state(params) if path[-1] in matrices)


def num_bytes(tree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def rows_of(works: list[Work], seconds: dict[str, list[float]], step: float) -> list[Row]:
    """Parts, their sum and the whole step, whose FLOPs and bytes are those of the parts."""
    rows = []
    for part, times in seconds.items():
        own = [work for work in works if work.part == part]
        flops, moved = sum(work.flops for work in own), sum(work.moved for work in own)
        rows.append(Row(part, statistics.median(times), flops, moved))
    flops, moved = sum(row.flops for row in rows), sum(row.moved for row in rows)
    rounds = zip(*(times for part, times in seconds.items() if part != INPUT), strict=True)
    together = statistics.median(map(sum, rounds))
    return [*rows, Row(SUM, together, flops, moved), Row(STEP, step, flops, moved)]


def table(rows: list[Row], roofs: Roofs, title: str) -> Table:
    result = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    result.add_column("", no_wrap=True)
    for heading in ("ms", "GFLOP", "MB", "GFLOP/s", "of peak", "of bandwidth", "bound by"):
        result.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        if row.part == SUM:
            result.add_section()
        result.add_row(row.part, f"{row.seconds * 1e3:.1f}", *cells(row, roofs))
    return result


def cells(row: Row, roofs: Roofs) -> list[str]:
    if not row.moved:
        return [""] * 5 + ["host"]
    flop = speed = share = ""
    if row.flops:
        rate = row.flops / row.seconds
        flop, speed, share = (
            f"{row.flops / 1e9:.2f}",
            f"{rate / 1e9:.0f}",
            f"{rate / roofs.flops:.0%}",
        )
    bandwidth = f"{row.moved / row.seconds / roofs.moved:.1%}"
    bound = "products" if row.flops / roofs.flops > row.moved / roofs.moved else "memory"
    return [flop, f"{row.moved / 1e6:.1f}", speed, share, bandwidth, bound]


def describe(step: Row, roofs: Roofs, loop: np.ndarray, fill: float) -> None:
    waits, steps, targets = loop.sum(0)
    console.print(
        f"matrix products {roofs.flops / 1e9:.0f} GFLOP/s, memory {roofs.moved / 1e9:.0f} GB/s, "
        f"ridge {roofs.flops / roofs.moved:.1f} FLOP/byte\n"
        f"model-FLOPs utilisation {step.flops / step.seconds / roofs.flops:.1%}; "
        f"waiting for input {waits / (waits + steps):.2%} of the loop\n"
        f"packing fill {fill:.1%}; {targets / (waits + steps):,.0f} targets/s"
    )


def plot(path: Path, rows: list[Row], roofs: Roofs, title: str) -> None:
    """Speed over arithmetic intensity, and times beside the least that the roofs allow."""
    figure = Figure(figsize=(13, 5.5), layout="constrained", dpi=120)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    plot_roofline(left, [row for row in rows if row.flops and row.part != SUM], roofs)
    plot_times(right, [row for row in rows if row.moved], roofs)
    figure.suptitle(title)
    figure.savefig(path)


def plot_roofline(axes: Axes, rows: list[Row], roofs: Roofs) -> None:
    peak, ridge = roofs.flops / 1e9, roofs.flops / roofs.moved
    right = max(row.flops / row.moved for row in rows)
    reach = np.array([ridge / 8, ridge, right * 40])
    axes.loglog(reach, np.minimum(reach / ridge, 1) * peak, color="black")
    axes.text(ridge * 2, peak * 1.05, f"matrix products, {peak:.0f} GFLOP/s")
    axes.text(ridge / 3, peak / 2, f"memory,\n{roofs.moved / 1e9:.0f} GB/s", ha="right")
    bottom = min(peak / 8, *(row.flops / row.seconds / 1e9 for row in rows)) / 1.6
    axes.set_ylim(bottom, peak * 1.5)
    spacing, height = (peak * 1.5 / bottom) ** (1 / 20), peak
    for number, row in enumerate(sorted(rows, key=lambda row: -row.flops / row.seconds)):
        point, color = (row.flops / row.moved, row.flops / row.seconds / 1e9), f"C{number}"
        height = min(height / spacing, point[1])  # so that no label covers the one above
        marker, weight = ("*", "bold") if row.part == STEP else ("o", "normal")
        axes.plot(*point, marker, color=color, markersize=9)
        line = {"arrowstyle": "-", "color": color, "lw": 0.7}
        place = {"xytext": (right * 2.5, height), "va": "center", "arrowprops": line}
        axes.annotate(row.part, point, color=color, weight=weight, **place)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set(xlabel="arithmetic intensity, FLOP/byte", ylabel="GFLOP/s")
    axes.grid(alpha=0.3)


def plot_times(axes: Axes, rows: list[Row], roofs: Roofs) -> None:
    places = np.arange(len(rows))
    least = [1e3 * max(row.flops / roofs.flops, row.moved / roofs.moved) for row in rows]
    bars = axes.barh(places - 0.2, [1e3 * row.seconds for row in rows], 0.4, label="measured")
    axes.barh(places + 0.2, least, 0.4, label="least that the roofs allow", color="0.6")
    axes.bar_label(bars, fmt="%.1f", padding=3, fontsize=9)
    axes.set_yticks(places, [row.part for row in rows])
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set(xlabel="ms")
    axes.grid(alpha=0.3, axis="x")
    axes.legend()


if __name__ == "__main__":
    main()
