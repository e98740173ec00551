"""Training told as one story: `fit` prepares a run, trains it, selects by validation, reports."""

import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import polars as pl
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int
from orbax.checkpoint import CheckpointManager

from jaxrec import checkpoint, report
from jaxrec.calibration import (
    QUERIES,
    Calibration,
    Correction,
    Reliability,
    fit_familiar,
    fit_popularity,
    fit_temperature,
    likely_items_reliability,
    usable_queries,
    with_prior,
)
from jaxrec.checkpoint import Progress, Trained
from jaxrec.config import Config, TrainConfig
from jaxrec.data.columns import DataError
from jaxrec.data.dataset import Dataset, prepare
from jaxrec.data.graph import first_neighbours
from jaxrec.data.packing import Packing
from jaxrec.data.tables import Tables
from jaxrec.encoding import catalog_arrays, encode_catalog, familiarity, user_vectors
from jaxrec.evaluation import (
    evaluate,
    evaluate_baselines,
    masked_kinds,
    own_pairs,
    segment_masks,
    training_counts,
)
from jaxrec.metrics import segments
from jaxrec.models.recommender import (
    Definition,
    Recommender,
    Sizes,
    cast_products,
    expert_sources,
)
from jaxrec.objective import Auxiliary, TrainArrays, objective
from jaxrec.ranking import PairBlocks, Ranking, scaled
from jaxrec.sharding import host_rows, make_mesh, replicated, shard_batch, state_shardings
from jaxrec.text_features import ItemText, encode_live_text, item_text
from jaxrec.types import Batch, Catalog, Queries


class Interrupted(SystemExit):
    """Training was asked to stop and has saved its state."""


class Diverged(ValueError):
    """The loss is not finite."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything that training changes."""

    step: Int[Array, ""]
    params: nnx.State
    opt_state: optax.OptState
    text: Float[Array, "I Dt"]  # whitened vectors of the items


@dataclass(frozen=True)
class Setup:
    """Everything that training does not change."""

    config: Config
    dataset: Dataset
    text: ItemText
    mesh: Mesh
    packing: Packing
    definition: Definition
    optimizer: optax.GradientTransformation
    arrays: TrainArrays

    @property
    def valid(self) -> Bool[np.ndarray, " I"]:
        """Rows of the item block that are items."""
        return np.asarray(self.arrays.catalog.valid)

    @property
    def counts(self) -> Float[np.ndarray, " I"]:
        """Training events of the rows of the item block."""
        return training_counts(self.dataset.split, len(self.valid))


def fit(
    config: Config, run: Path, *, tables: Tables | None = None, resume: bool = False
) -> dict[str, Any]:
    """Train a recommender into the directory `run`; returns what its `metrics.json` holds.

    Args:
        config: every option; to resume, that of the run.
        tables: data in memory, in place of `config.data.source`.
        resume: continue the run from its last checkpoint.

    Raises:
        RunError: `run` exists, or, to resume, does not.
        DataError: the data are not usable.
        Interrupted: SIGTERM came; the run was saved and can be resumed.
        Diverged: the loss is not finite.
    """
    if not resume:
        checkpoint.refuse_existing(run)
    dataset = prepare(config, tables)
    report.describe(dataset)
    setup = set_up(config, dataset)
    if not resume:
        checkpoint.create_run(run, setup.config, what_is_trained(setup))
    with checkpoint.open_checkpoints(run) as manager:
        state, progress = begin(setup, manager)
        with report.RunLog(run, int(state.step)) as log:
            train(setup, state, progress, manager, log)
        best, _ = load(setup, manager, manager.best_step())
    calibration, reliability = calibrate(setup, best)
    report.write_calibration(run, calibration, reliability)
    results, ranks = test(setup, best, calibration.correction)
    report.write_results(run, results, ranks)
    return results


def set_up(config: Config, dataset: Dataset) -> Setup:
    """Everything that follows from the configuration and the data."""
    train = config.train
    mesh = make_mesh(train.item_shards)
    text = item_text(dataset.catalog.items, config)
    experts = live_experts(config, dataset, text)
    config = replace(config, model=replace(config.model, experts=experts))
    packing = make_packing(config, dataset)
    model = nnx.eval_shape(lambda: build_model(config, dataset, text))
    arrays = jax.device_put(train_arrays(config, dataset, text), replicated(mesh))
    optimizer = make_optimizer(train, packing.steps_per_epoch)
    return Setup(
        config, dataset, text, mesh, packing, Definition(nnx.graphdef(model)), optimizer, arrays
    )


def live_experts(config: Config, dataset: Dataset, text: ItemText) -> tuple[str, ...]:
    """The experts that the data have a source for; others would give every item the same score.

    Raises:
        DataError: there are none.
    """
    known = {"id"}
    if len(dataset.catalog.graph.heads):
        known.add("graph")
    if text.whitening is not None:
        known.add("text")
    experts = config.model.experts
    live = tuple(name for name in experts if known & set(expert_sources(name)))
    if not live:
        raise DataError(
            f"the data hold nothing for the experts {', '.join(experts)}; give items a text or "
            "columns for the graph, or add id to model.experts"
        )
    for name in experts:
        if name not in live:
            report.note(f"the data hold nothing for the expert {name}, so it is left out")
    return live


def make_packing(config: Config, dataset: Dataset) -> Packing:
    """The batches of the training events."""
    split, train = dataset.split, config.train
    return Packing(
        split.log,
        split.train_lengths,
        dataset.target_weights,
        rows=train.rows,
        slots=train.slots,
        burn_in=train.burn_in,
        seed=train.seed,
    )


def model_sizes(dataset: Dataset, text: ItemText) -> Sizes:
    """What the data decide of the model's shapes."""
    graph = dataset.catalog.graph
    return Sizes(
        num_items=graph.types[0].capacity,
        num_nodes=graph.num_nodes,
        num_relations=len(graph.relations),
        num_kinds=len(dataset.split.log.kind_names),
        text_width=text.vectors.shape[1],
    )


def what_is_trained(setup: Setup) -> Trained:
    """What a run keeps beside its parameters."""
    dataset = setup.dataset
    return Trained(
        catalog=dataset.catalog,
        counts=training_counts(dataset.split, dataset.catalog.num_items),
        kind_names=dataset.split.log.kind_names,
        sizes=model_sizes(dataset, setup.text),
        whitening=setup.text.whitening,
    )


def build_model(config: Config, dataset: Dataset, text: ItemText) -> Recommender:
    """A recommender with initial parameters."""
    rngs = nnx.Rngs(config.train.seed)
    return Recommender(config.model, model_sizes(dataset, text), rngs, text.tower)


def make_optimizer(config: TrainConfig, steps_per_epoch: int) -> optax.GradientTransformation:
    """AdamW with clipping, linear warm-up and cosine decay to the last epoch."""
    total = config.epochs * steps_per_epoch
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.learning_rate,
        warmup_steps=min(config.warmup_steps, total // 2),
        decay_steps=total,
        end_value=config.learning_rate * config.final_rate,
    )
    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.adamw(schedule, weight_decay=config.weight_decay),
    )


def train_arrays(config: Config, dataset: Dataset, text: ItemText) -> TrainArrays:
    """What a training step reads and does not change."""
    catalog = dataset.catalog
    trained = training_counts(dataset.split, catalog.num_items) > 0
    trained[0] = False
    arrays = catalog_arrays(catalog, text.vectors, trained)
    padding = catalog.graph.types[0].capacity - len(trained)
    present = {node_type.name for node_type in catalog.graph.types}
    masked = masked_kinds(config.evaluation.mask, dataset.split.log.kind_names)
    return TrainArrays(
        catalog=arrays,
        candidates=jnp.asarray(np.pad(trained, (0, padding))),
        auxiliary={
            name: _auxiliary(catalog, name, padding)
            for name in config.train.auxiliary
            if name in present
        },
        masked_kinds=jnp.asarray(masked),
        live_text=text.live,
        repeats=not masked.all(),
    )


def begin(setup: Setup, manager: CheckpointManager) -> tuple[TrainState, Progress]:
    """The state to train from: the last checkpoint's, or a new one."""
    last = manager.latest_step()
    if last is not None:
        return load(setup, manager, last)
    return initial_state(setup), Progress()


def load(setup: Setup, manager: CheckpointManager, step: int) -> tuple[TrainState, Progress]:
    """The state of a checkpoint, on this mesh whatever mesh it was saved from."""
    target = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        *_state_layout(setup),
    )
    sizes = model_sizes(setup.dataset, setup.text)
    saved = checkpoint.restore(
        manager,
        step,
        params=target.params,
        rest={"step": target.step, "opt_state": target.opt_state},
        vectors=checkpoint.vector_targets(setup.config, sizes, replicated(setup.mesh)),
    )
    state = TrainState(params=saved["params"], text=saved["vectors"]["text"], **saved["rest"])
    return state, checkpoint.restore_progress(manager, step)


def make_train_step(setup: Setup) -> Callable[[TrainState, TrainArrays, Batch], Any]:
    """The jitted step `(state, arrays, batch) -> (state, metrics)`; it donates the state.

    The batch and the number of the step decide all randomness.
    """
    config = setup.config.train
    dtype = jnp.bfloat16 if config.bf16 else jnp.float32

    def step(state: TrainState, arrays: TrainArrays, batch: Batch):
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)

        def loss_of(params: nnx.State):
            model = setup.definition.merge(cast_products(params, dtype))
            return objective(model, arrays, state.text, batch, setup.config, key)

        (loss, parts), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        updates, opt_state = setup.optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {"loss": loss, "gradient_norm": optax.tree.norm(gradients), **parts}
        return TrainState(state.step + 1, params, opt_state, state.text), metrics

    # outputs that lie as the inputs do, or the second step would be compiled anew
    return jax.jit(step, donate_argnums=0, out_shardings=(_state_layout(setup)[1], None))


def train(
    setup: Setup,
    state: TrainState,
    progress: Progress,
    manager: CheckpointManager,
    log: report.RunLog,
) -> None:
    """Train to the last epoch, or until validation no longer improves; every epoch is saved."""
    config = setup.config.train
    step = make_train_step(setup)
    with stop_signal() as stop:
        while progress.epoch < config.epochs and progress.epochs_since_best < config.patience:
            state, progress, speed = train_epoch(setup, step, state, progress, log, stop)
            if progress.step < setup.packing.steps_per_epoch:
                save(setup, manager, state, progress)
                raise Interrupted(128 + signal.SIGTERM)
            state = refresh_text(setup, state)
            scores = validate(setup, state)
            progress = Progress(progress.epoch + 1, 0, (*progress.history, scores))
            log.write(int(state.step), {f"validation/{name}": v for name, v in scores.items()})
            save(setup, manager, state, progress, scores)
            report.epoch_line(progress, speed)
            if stop.is_set():  # whole epochs are validated first, as a step is saved only once
                raise Interrupted(128 + signal.SIGTERM)


def train_epoch(
    setup: Setup,
    step: Callable[[TrainState, TrainArrays, Batch], Any],
    state: TrainState,
    progress: Progress,
    log: report.RunLog,
    stop: threading.Event,
) -> tuple[TrainState, Progress, float]:
    """The rest of an epoch, or what of it passes before `stop` is set; also its events/s."""
    steps = range(progress.step, setup.packing.steps_per_epoch)
    first = number = int(state.step)
    events, began = 0, time.perf_counter()
    computed: dict[str, Array] = {}
    with report.epoch_bar(progress.epoch, len(steps)) as bar:

        def note(number: int, events: int, metrics: dict[str, Array]) -> None:
            scalars = {name: float(value) for name, value in metrics.items()}
            if not np.isfinite(scalars["loss"]):
                raise Diverged(
                    f"the loss is {scalars['loss']} at step {number}; the last checkpoint is kept. "
                    "Lower train.learning_rate"
                )
            speed = events / (time.perf_counter() - began)
            log.write(number, {"epoch": progress.epoch, "events_per_second": speed, **scalars})
            bar.advance(scalars["loss"], speed)

        for batch, targets in prefetch(setup, progress.epoch, steps):
            state, metrics = step(state, setup.arrays, batch)
            if number > first:  # the step before is noted while the device computes this one
                note(number, events, computed)
            number, events, computed = number + 1, events + targets, metrics
            if stop.is_set():
                break
        if number > first:
            note(number, events, computed)
    done = progress.step + number - first
    return state, replace(progress, step=done), events / (time.perf_counter() - began)


def prefetch(setup: Setup, epoch: int, steps: range) -> Iterator[tuple[Batch, int]]:
    """Batches on the devices and their numbers of targets; the next is made while one is used."""
    rows = host_rows(setup.config.train.rows)

    def make(step: int) -> tuple[Batch, int]:
        batch = setup.packing.batch(epoch, step, rows)
        return shard_batch(batch, setup.mesh), int(np.count_nonzero(batch.weights))

    with ThreadPoolExecutor(1) as worker:
        ahead = deque([worker.submit(make, step) for step in steps[:1]])
        for step in steps:
            if step + 1 in steps:
                ahead.append(worker.submit(make, step + 1))
            yield ahead.popleft().result()


@contextmanager
def stop_signal() -> Iterator[threading.Event]:
    """An event that SIGTERM sets, so that the loop can save before it exits."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # signals reach the main thread alone
        return
    previous = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, previous)


def refresh_text(setup: Setup, state: TrainState) -> TrainState:
    """The state with all text vectors encoded by the finetuned layers, if there are any."""
    live = setup.arrays.live_text
    tower = setup.definition.merge(state.params).text_tower
    if live is None or tower is None:
        return state
    fresh = encode_live_text(tower, live)
    return replace(
        state, text=jax.device_put(state.text.at[: len(fresh)].set(fresh), state.text.sharding)
    )


def save(
    setup: Setup,
    manager: CheckpointManager,
    state: TrainState,
    progress: Progress,
    scores: dict[str, float] | None = None,
) -> None:
    """Save the state, its place in the data and the vectors of all nodes."""
    rest = {"step": state.step, "opt_state": state.opt_state}
    vectors = {"nodes": catalog_vectors(setup, state), "text": state.text}
    checkpoint.save(manager, int(state.step), state.params, rest, vectors, progress, scores)


def catalog_vectors(setup: Setup, state: TrainState) -> Float[Array, "N 1+ED"]:
    """Vectors of all nodes under a state."""
    nodes = replace(setup.arrays.catalog.nodes, text=state.text)
    return encode_catalog(
        setup.definition, state.params, replace(setup.arrays.catalog, nodes=nodes)
    )


def validate(setup: Setup, state: TrainState) -> dict[str, float]:
    """Metrics on the validation queries."""
    return _evaluate(setup, state, setup.dataset.split.validation, Correction())[0]


def _evaluate(
    setup: Setup, state: TrainState, queries: Queries, correction: Correction
) -> tuple[dict[str, float], Ranking]:
    items, users = query_vectors(setup, state, queries)
    items = with_prior(items, correction.prior(setup.counts))
    targets = setup.dataset.split.log.items[queries.positions]
    pairs = corrected_pairs(setup, state, queries, correction, targets)
    split, k = setup.dataset.split, setup.config.evaluation.k
    return evaluate(split, queries, pairs, setup.valid, users, items, k, setup.mesh)


def corrected_pairs(
    setup: Setup,
    state: TrainState,
    queries: Queries,
    correction: Correction,
    targets: Int[np.ndarray, " q"] | None,
) -> PairBlocks:
    """The `own_pairs` of queries under a correction; given targets are not left out."""
    log, mask = setup.dataset.split.log, setup.config.evaluation.mask
    learned = familiarity(setup.definition, state.params, setup.dataset.wanted_kind)
    counted = ~masked_kinds(mask, log.kind_names)
    return own_pairs(log, queries, mask, correction.familiarity(learned, counted), targets)


def query_vectors(
    setup: Setup, state: TrainState, queries: Queries
) -> tuple[Float[Array, "I 1+ED"], Float[np.ndarray, "Q 1+ED"]]:
    """Vectors of the items, and of the users at the moments of queries."""
    evaluation = setup.config.evaluation
    items = catalog_vectors(setup, state)[: len(setup.valid)]
    users = user_vectors(
        setup.definition,
        nnx.to_pure_dict(state.params),
        items,
        setup.dataset.split.log,
        queries,
        history=evaluation.history,
        users=evaluation.users,
        wanted_kind=setup.dataset.wanted_kind,
    )
    return items, users


def test(
    setup: Setup, state: TrainState, correction: Correction
) -> tuple[dict[str, Any], pl.DataFrame]:
    """Everything that `metrics.json` and `ranks.parquet` hold, for the selected state."""
    config, split = setup.config, setup.dataset.split
    names = {"test" if name == "last" else f"test_{name}": q for name, q in split.test.items()}
    results: dict[str, Any] = {
        "protocol": {
            "split": config.split.scheme,
            "mask": list(config.evaluation.mask),
            "history": config.evaluation.history or "all",
            "candidates": int(setup.valid.sum()),
            "queries": {name: len(q) for name, q in names.items()},
        },
        "validation": _evaluate(setup, state, split.validation, correction)[0],
    }
    ranks = []
    for name, queries in names.items():
        scores, ranking = _evaluate(setup, state, queries, correction)
        ranks.append(rank_table(name, setup.dataset, queries, ranking))
        baselines = evaluate_baselines(split, queries, config.evaluation, setup.valid)
        masks = segment_masks(split, queries, setup.counts)
        results[name] = {"model": scores, **baselines, "segments": segments(ranking.ranks, masks)}
    return results, pl.concat(ranks)


def rank_table(name: str, dataset: Dataset, queries: Queries, ranking: Ranking) -> pl.DataFrame:
    """A row a query: who chose what, and its rank (from 0) among all items."""
    log = dataset.split.log
    return pl.DataFrame(
        {
            "queries": pl.repeat(name, len(queries), eager=True),
            "user_id": log.user_ids[queries.users],
            "item_id": dataset.catalog.item_ids[log.items[queries.positions]],
            "rank": ranking.ranks,
        }
    )


def calibrate(setup: Setup, state: TrainState) -> tuple[Calibration, Reliability]:
    """What validation corrects, and how true the probabilities of test are then."""
    split, valid = setup.dataset.split, setup.valid
    targets, last = split.log.items[split.validation.positions], split.test["last"]
    some = usable_queries(targets, valid, QUERIES)
    queries, targets = split.validation[some], targets[some]
    items, users = query_vectors(setup, state, queries)

    def pairs_under(correction: Correction, chosen: Int[np.ndarray, " q"]) -> PairBlocks:
        return corrected_pairs(setup, state, queries[chosen], correction, targets[chosen])

    familiar = Correction()
    if setup.arrays.repeats:
        familiar = fit_familiar(users, items, targets, valid, pairs_under)
    pairs = corrected_pairs(setup, state, queries, familiar, targets)
    fitted = fit_temperature(users, items, targets, valid, pairs)
    popularity = fit_popularity(
        users,
        items,
        targets,
        valid,
        setup.counts,
        pairs,
        inverse_temperature=fitted.inverse_temperature,
    )
    correction = replace(familiar, popularity=popularity)
    items = with_prior(items, correction.prior(setup.counts))
    fitted = fit_temperature(users, items, targets, valid, pairs)
    scale = fitted.inverse_temperature
    _, users = query_vectors(setup, state, last)
    # as lists are made: a target that the mask leaves out is none of the likely items
    likely = scaled(corrected_pairs(setup, state, last, correction, None), scale)
    targets = split.log.items[last.positions]
    shown = likely_items_reliability(scale * users, items, targets, valid, pairs=likely)
    return replace(fitted, correction=correction), shown


def initial_state(setup: Setup) -> TrainState:
    """A new state, laid out on the mesh."""
    return jax.jit(lambda: _new_state(setup), out_shardings=_state_layout(setup)[1])()


def _state_layout(setup: Setup) -> tuple[TrainState, TrainState]:
    """Shapes and shardings of a train state."""
    shapes = jax.eval_shape(lambda: _new_state(setup))
    return shapes, state_shardings(shapes, setup.mesh)


def _new_state(setup: Setup) -> TrainState:
    params = nnx.state(build_model(setup.config, setup.dataset, setup.text))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=setup.optimizer.init(params),
        text=setup.arrays.catalog.nodes.text,
    )


def _auxiliary(catalog: Catalog, name: str, padding: int) -> Auxiliary:
    node_type = catalog.graph.type(name)
    return Auxiliary(
        of_item=jnp.asarray(np.pad(first_neighbours(catalog.graph, name), (0, padding))),
        nodes=jnp.asarray(node_type.offset + np.arange(node_type.capacity)),
        valid=jnp.asarray(node_type.valid),
    )
