"""Forecasts: the interest after further events, by rolling the decoder out.

A roll-out draws an item by its probability, reads it as if it had happened, and goes on. The mean
and the quantiles of several roll-outs are the forecast. Only the nodes that are likeliest now are
followed one by one; the others together keep the share of exp(score) that they have now.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
from jaxtyping import Array, Float, Int, UInt32

from jaxrec.config.ranges import LARGEST
from jaxrec.data.graph import ITEM
from jaxrec.errors import InputError
from jaxrec.inference.ranker import UserBatch, list_length
from jaxrec.models.sequence.decoder import Decoder
from jaxrec.ranking.adjustments import AdjustmentBlocks, masked_event_types, no_adjustments
from jaxrec.ranking.history_bias import ItemNeighbours
from jaxrec.ranking.item_table import ItemTable, PreparedItems
from jaxrec.ranking.option_types import check_counts, is_whole
from jaxrec.ranking.top_k import best_items, padded
from jaxrec.types import NEG_INF, STATIC, EventLog, Queries

if TYPE_CHECKING:
    from jaxrec.inference.trained_model import TrainedModel  # whose methods call these

CANDIDATES = 256  # nodes that a forecast follows
SAMPLES = 32  # roll-outs of a user
DEFAULT_STEPS = 5
USERS = 32  # users to roll out at a time
QUANTILES = (0.1, 0.5, 0.9)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class NeighbourScores:
    """What item neighbours add to the scores of the candidates of U users; inside `vmap` of one."""

    now: Float[Array | np.ndarray, "U P"]  # by the events of the history
    by_event: Float[Array | np.ndarray, "U P P"]  # by an event of each candidate
    decay: Float[Array | np.ndarray, " U"]  # of both, at every further event


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FurtherEvents:
    """How further events change the scores of candidate items, beside the user vector.

    Attributes:
        neighbours: at the calibrated temperature.
        are_masked: whether their items are left out afterwards, as those of the history are.
    """

    neighbours: tuple[NeighbourScores, ...] = ()
    are_masked: bool = field(default=False, metadata=STATIC)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Candidates:
    """The nodes of one type that the forecasts of U users follow; inside `vmap` of one user."""

    rows: Int[Array | np.ndarray, "U P"]  # 0: none
    scores: Float[Array | np.ndarray, "U P"]  # now, at the calibrated temperature
    rest: Float[Array | np.ndarray, " U"]  # log of the sum of exp(score) over all other nodes
    further: FurtherEvents = field(default_factory=FurtherEvents)

    def part(self, start: int, size: int) -> "Candidates":
        """The candidates of `size` users; rows of padding follow the last user."""
        end = slice(start, start + size)
        return jax.tree.map(lambda rows: padded(rows[end], size), self)


class Histories(NamedTuple):
    """What the candidates of users follow: moments of a log, and the history to leave out."""

    log: EventLog
    queries: Queries
    mask: tuple[str, ...] = ()  # empty: as in the run's evaluation

    def part(self, start: int, size: int) -> "Histories":
        """Those of `size` users; rows of padding follow the last user."""
        rows = np.minimum(np.arange(start, start + size), len(self.queries) - 1)
        return self._replace(queries=self.queries[rows])


class Weights(NamedTuple):
    """Shares of interest at every step; 10, 50 and 90 % quantiles over the roll-outs."""

    mean: Float[Array | np.ndarray, "U steps P"]
    low: Float[Array | np.ndarray, "U steps P"]
    median: Float[Array | np.ndarray, "U steps P"]
    high: Float[Array | np.ndarray, "U steps P"]


@dataclass(frozen=True)
class ForecastOptions:
    """What to forecast.

    Args:
        steps: number of next events; the first one is what the model predicts now.
        target: the node type to report.
        k: length of the list of every step.
        samples: roll-outs of a user; 0: one, which reads the expected item in place of a drawn one.
        seed: of the draws, together with the id of the user.
    """

    steps: int = 5
    target: str = ITEM
    k: int = 10
    samples: int = SAMPLES
    seed: int = 0


def checked_options(
    model: "TrainedModel",
    steps: int | None,
    target: str,
    k: int | None,
    samples: int = SAMPLES,
    seed: int = 0,
) -> ForecastOptions:
    """The options of a forecast; raises an InputError for those that do not fit.

    Args:
        steps: None: 5, or as many as the decoder was trained for.
        k: None: 10, or all nodes if there are fewer.
    """
    if steps is None:
        steps = min(DEFAULT_STEPS, decoder_of(model).steps)
    check_counts(steps=steps)
    decoder_of(model, steps)
    for name, value in {"samples": samples, "seed": seed}.items():
        if not is_whole(value) or not 0 <= value < LARGEST:
            raise InputError(f"{name}={value!r}: give a whole number of 0 or more")
    count = min(int(model.index.node_type(target).valid.sum()), CANDIDATES)
    limit = f"the {target}s that a forecast follows"
    return ForecastOptions(steps, target, list_length(k, count, limit), samples, seed)


def decoder_of(model: "TrainedModel", steps: int = 1) -> Decoder:
    """The decoder of a model; raises an InputError if it cannot forecast that many steps."""
    if model.decoder is None:
        raise InputError(
            "the run has no decoder for a forecast; add one: jaxrec add-forecast RUN --steps 10"
        )
    if not 1 <= steps <= (trained := model.decoder.steps):
        raise InputError(f"steps={steps}: the decoder was trained for 1 to {trained} steps")
    return model.decoder


def find_candidates(
    nodes: ItemTable | PreparedItems,
    scale: float,
    users: Float[np.ndarray, "U F"],
    adjustments: AdjustmentBlocks = no_adjustments,
) -> Candidates:
    """The likeliest nodes of every user.

    Args:
        scale: of the scores: the calibrated inverse temperature.
        adjustments: of the scores before they are scaled.
    """
    best = best_items(
        users, nodes, CANDIDATES, adjustments, with_log_z=True, inverse_temperature=scale
    )
    assert best.log_z is not None
    scores = np.where(best.items > 0, best.scores, NEG_INF).astype(np.float32)
    return Candidates(best.items, scores, _log_rest(scores, best.log_z))


def with_further_events(
    items: Candidates, model: "TrainedModel", histories: Histories
) -> Candidates:
    """Candidate items, and how further events would change their scores."""
    log, queries, mask = histories
    encoder, scale = model.encoder, model.inverse_temperature
    names, target = encoder.event_type_names, encoder.target_event_type
    predicted = [encoder.is_predicted(name) for name in names]
    masked = masked_event_types(mask or model.config.evaluation.mask, names)
    neighbours = model.ranker.history_bias[target].neighbours.values()
    scores = tuple(
        neighbour_scores(of, np.asarray(items.rows), of.adjustments(log, queries), scale, predicted)
        for of in neighbours
    )
    return replace(items, further=FurtherEvents(scores, bool(masked[predicted].all())))


def neighbour_scores(
    neighbours: ItemNeighbours,
    rows: Int[np.ndarray, "U P"],
    adjustments: AdjustmentBlocks,
    scale: float,
    predicted: Sequence[bool],
) -> NeighbourScores:
    """The scores of one kind of neighbours; `predicted` marks the types of further events."""
    users, count = rows.shape
    size = max(int(rows.max(initial=0)) + 1, len(neighbours.items))
    places = np.arange(users)[:, None] * size + rows
    order = np.argsort(places, axis=None)
    ascending = places.ravel()[order]

    def place_of(user, item):
        """Where an item is among all candidates, and whether it is there."""
        wanted = user * size + item
        found = np.minimum(np.searchsorted(ascending, wanted), len(ascending) - 1)
        return order[found], (ascending[found] == wanted) & (item > 0)

    now, by_event = np.zeros(users * count), np.zeros((users, count, count), np.float32)
    added = adjustments(0, users)
    place, is_candidate = place_of(added.rows, added.items)
    np.add.at(now, place[is_candidate], added.amounts[is_candidate])
    if neighbours.event_types[list(predicted)].all():
        known = np.where(rows < len(neighbours.items), rows, 0)
        place, is_candidate = place_of(np.arange(users)[:, None, None], neighbours.items[known])
        amounts = neighbours.amounts[known]
        user, event, _ = np.nonzero(is_candidate)
        np.add.at(by_event, (user, event, place[is_candidate] % count), amounts[is_candidate])
    return NeighbourScores(
        now=(scale * now).astype(np.float32).reshape(users, count),
        by_event=scale * by_event,
        decay=np.full(users, 0.5 ** (1 / neighbours.half_life), np.float32),
    )


def with_nodes(
    candidates: Candidates,
    nodes: ItemTable,
    scale: float,
    user: Float[np.ndarray, " F"],
    rows: Int[np.ndarray, " K"],
) -> Candidates:
    """Candidates of one user, without adjustments, whose last ones make room for missing `rows`."""
    own = candidates.rows[0]
    log_z = np.logaddexp(candidates.rest, np.logaddexp.reduce(candidates.scores, 1))
    kept = np.concatenate([rows, own[~np.isin(own, rows)]])[: len(own)]
    scores = scale * (np.asarray(nodes.vectors)[kept] @ user + nodes.biases[kept])
    scores = np.where(kept > 0, scores, NEG_INF).astype(np.float32)[None]
    return Candidates(kept[None], scores, _log_rest(scores, log_z))


def _log_rest(
    scores: Float[np.ndarray, "U P"], log_z: Float[np.ndarray, " U"]
) -> Float[np.ndarray, " U"]:
    share = 1 - np.exp(scores - log_z[:, None]).sum(1)
    # a smaller share is rounding
    rest = np.where(share > 1e-5, log_z + np.log(np.maximum(share, 1e-5)), NEG_INF)
    return rest.astype(np.float32)


@partial(jax.jit, static_argnames=("steps", "samples"))
def roll_out(
    decoder: Decoder,
    users: Float[Array | np.ndarray, "U F"],
    scale: Float[Array, ""] | float,
    followed: Sequence[tuple[Candidates, Float[Array | np.ndarray, "U P F"]]],
    keys: UInt32[Array | np.ndarray, " U"],
    *,
    steps: int,
    samples: int,
) -> tuple[Weights, ...]:
    """The weights of items, and of nodes of other types, for the next events of users.

    Args:
        scale: as in `find_candidates`.
        followed: candidates and their vectors, first those of items.
        keys: seeds of the users' draws.
        samples: as in `ForecastOptions`.
    """

    def of_user(user, followed, key):
        items, *others = followed
        moved, added = _roll_out_user(decoder, user, scale, items, key, steps, samples)
        shares = [_log_shares(items, moved, added), *(_log_shares(n, moved) for n in others)]
        return tuple(_summary(jnp.exp(of)) for of in shares)

    return jax.vmap(of_user)(jnp.asarray(users), followed, jnp.asarray(keys))


def _roll_out_user(
    decoder: Decoder,
    user: Float[Array, " F"],
    scale: Float[Array, ""] | float,
    items: tuple[Candidates, Float[Array, "P F"]],
    key: UInt32[Array, ""],
    steps: int,
    samples: int,
) -> tuple[Float[Array, "steps samples F"], Float[Array, "steps samples P"]]:
    """How far the scaled user vector has moved from that of now, and what is added to the scores
    of the items, at every step of every roll-out."""
    module, (candidates, vectors) = decoder.merge(), items
    further = candidates.further
    users = jnp.tile(user, (max(samples, 1), 1))
    # draws belong to the items, so that their order does not matter
    item_keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(key)))(candidates.rows)

    def step(carry, number):
        moved, state, near, left_out = carry
        changes = [
            part - jnp.asarray(of.now)[None]
            for part, of in zip(near, further.neighbours, strict=True)
        ]
        added = sum(changes, left_out)
        log_shares = _log_shares(items, moved, added)
        if samples:
            keys = jax.vmap(lambda item_key: jax.random.fold_in(item_key, number))(item_keys)
            draws = jax.vmap(lambda draw: jax.random.gumbel(draw, (samples,)))(keys)
            read = jax.nn.one_hot(jnp.argmax(log_shares + draws.T, -1), len(vectors))
        else:
            read = jax.nn.softmax(log_shares)
        near = [
            of.decay * part + read @ of.by_event
            for part, of in zip(near, further.neighbours, strict=True)
        ]
        if further.are_masked:
            left_out += jnp.maximum(jnp.log1p(-read), NEG_INF)
        after, state = module.read(users, (read @ vectors)[:, None], state)
        return (scale * (after[:, 0] - users), state, near, left_out), (moved, added)

    none = jnp.zeros((len(users), len(vectors)))
    near = [none + jnp.asarray(of.now)[None] for of in further.neighbours]
    first = (jnp.zeros_like(users), module.start(users), near, none)
    return jax.lax.scan(step, first, jnp.arange(steps))[1]


def _log_shares(
    followed: tuple[Candidates, Float[Array, "P F"]],
    moved: Float[Array, "*shape F"],
    added: Float[Array, "*shape P"] | float = 0.0,
) -> Float[Array, "*shape P"]:
    """Log of the share of every candidate in the interest of a user whose vector has moved.

    Args:
        moved: how far the scaled vector has moved.
        added: to the scores.
    """
    candidates, vectors = followed
    changes = moved @ vectors.T + added
    scores = changes + jnp.broadcast_to(candidates.scores, changes.shape)
    log_z = jnp.logaddexp(jax.nn.logsumexp(scores, -1, keepdims=True), candidates.rest)
    return scores - log_z


def _summary(shares: Float[Array, "steps samples P"]) -> Weights:
    return Weights(shares.mean(1), *jnp.quantile(shares, jnp.array(QUANTILES), axis=1))


def forecast_weights(
    model: "TrainedModel",
    users: tuple[Sequence[str] | pl.Series, Float[np.ndarray, "U F"]],
    items: tuple[Candidates, Histories],
    options: ForecastOptions,
    nodes: tuple[str, Candidates] | None = None,
) -> tuple[Weights, Weights | None]:
    """The weights of items and of nodes of another type, some users at a time.

    Args:
        users: ids and vectors.
        items: candidates, and the histories that they follow.
        nodes: the name of a type, and candidates of it.
    """
    decoder, scale = decoder_of(model, options.steps), model.inverse_temperature
    candidates, histories = items
    followed = [(ITEM, candidates), *([] if nodes is None else [nodes])]
    tables = [model.index.host_vectors(name) for name, _ in followed]
    ids, vectors = users
    count = len(vectors)
    size = max(min(USERS, count), 1)
    keys = np.array([zlib.crc32(user.encode()) for user in ids], np.uint32)
    keys += np.uint32(options.seed)
    roll = partial(roll_out, steps=options.steps, samples=options.samples)
    parts = []
    for start in range(0, max(count, 1), size):
        chosen = [of.part(start, size) for _, of in followed]
        if count:  # some users at a time, as pairs of candidates are many
            own_past = histories.part(start, size)
            chosen[0] = with_further_events(chosen[0], model, own_past)
        given = [(c, table[c.rows]) for c, table in zip(chosen, tables, strict=True)]
        own, seeds = (padded(p[start : start + size], size) for p in (vectors, keys))
        parts.append(jax.tree.map(np.asarray, roll(decoder, own, scale, given, seeds)))
    weights = jax.tree.map(lambda *of: np.concatenate(of)[:count], *parts)
    return weights[0], weights[1] if nodes else None


def forecast_users(
    model: "TrainedModel", users: UserBatch, options: ForecastOptions, mask: tuple[str, ...] = ()
) -> pl.DataFrame:
    """`TrainedModel.forecast` for users whose vectors are known."""
    log, scale = users.log, model.inverse_temperature
    adjustments = model.ranker.adjustments(log, mask)(np.arange(log.num_users))
    items = find_candidates(model.index.items, scale, users.vectors, adjustments)
    nodes = None
    if options.target != ITEM:
        table = model.index.table(options.target)
        nodes = options.target, find_candidates(table, scale, users.vectors)
    own = log.user_ids, users.vectors
    past = Histories(log, Queries(np.arange(log.num_users), log.offsets[1:]), mask)
    item_weights, node_weights = forecast_weights(model, own, (items, past), options, nodes)
    if nodes is None or node_weights is None:
        return forecast_table(model, log.user_ids, options, items, item_weights)
    return forecast_table(model, log.user_ids, options, nodes[1], node_weights)


def forecast_table(
    model: "TrainedModel",
    user_ids: pl.Series,
    options: ForecastOptions,
    candidates: Candidates,
    weights: Weights,
) -> pl.DataFrame:
    """The k heaviest candidates of every step as rows; see `TrainedModel.forecast`."""
    mean = np.where(candidates.rows[:, None] > 0, weights.mean, -1)
    best = np.argsort(-mean, axis=2, kind="stable")[:, :, : options.k]
    rows = np.take_along_axis(candidates.rows[:, None], best, 2)
    users, steps, places = np.nonzero(rows > 0)
    own = users, steps, best[users, steps, places]
    names = model.index.names(options.target, rows[users, steps, places])
    identity, *title = names.iter_columns()
    return pl.DataFrame(
        {
            "user_id": user_ids.gather(users),
            "step": (steps + 1).astype(np.int32),
            "rank": (places + 1).astype(np.int32),
            identity.name: identity,
            "weight": weights.mean[own],
            "low": weights.low[own],
            "median": weights.median[own],
            "high": weights.high[own],
        }
    ).with_columns(*title)
