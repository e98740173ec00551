"""Why a model recommends items: events, parts of the model, paths of the graph, words."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
from jaxtyping import Array, Bool, Float, Int

from jaxrec.data.events import some_events
from jaxrec.data.graph import ITEM
from jaxrec.data.packing import event_gaps
from jaxrec.inference.catalog_index import CatalogIndex
from jaxrec.inference.contributions import Parts, UserVectors, history_amounts, score_parts
from jaxrec.inference.encoding import state_tree
from jaxrec.inference.event_scores import event_leads, event_scores, event_shares
from jaxrec.inference.explanation import (
    EventContribution,
    Explanation,
    GraphPath,
    PartContribution,
    WordContribution,
    sentence,
)
from jaxrec.inference.graph_paths import NodePath
from jaxrec.inference.word_influence import Turns
from jaxrec.models.inputs import Events
from jaxrec.models.recommender import Model
from jaxrec.ranking.pipeline import Reranker, RerankPipeline, RerankQueries
from jaxrec.ranking.steps import Session
from jaxrec.types import EventLog

if TYPE_CHECKING:
    from jaxrec.inference.model_core import ModelCore
    from jaxrec.inference.trained_model import TrainedModel  # whose method calls this

LEAVE_ONE_OUT, GRADIENTS, SHARED = "leave_one_out", "integrated_gradients", "shared"
MOST_LEFT_OUT = 63  # events; with the whole history, 64 histories to read at once
STEPS = 32  # of the integral, whose error is then a thousandth
MOST_GRADIENTS = 1024  # events; the steps of the integral take memory in proportion
EVENTS_PER_SHAPE = 64  # histories are padded to multiples, so that few shapes are compiled
MOST_PATHS, MOST_WORDS = 5, 5
STRATEGY, SESSION = "strategy", Session.name


def without_each(log: EventLog) -> EventLog:
    """The only history of a log, then the same history without each of its M events in turn."""
    count = len(log.items)
    numbers = np.concatenate([np.arange(count), np.nonzero(~np.eye(count, dtype=bool))[1]])
    lengths = np.array([count, *[count - 1] * count])
    return replace(
        log,
        user_ids=pl.Series([str(number) for number in range(count + 1)], dtype=pl.String),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        items=log.items[numbers],
        event_types=log.event_types[numbers],
        times=log.times[numbers],
    )


def event_amounts(
    vectors: Float[np.ndarray, "U F"],
    added: Float[np.ndarray, "U K"],
    leads: Float[np.ndarray, "K F"],
) -> Float[np.ndarray, "M K"]:
    """By how much the lead of each item falls without each event.

    Args:
        vectors: user vectors of the histories of `without_each`.
        added: what the history bias adds to the items there.
        leads: item vectors less the average one.
    """
    scores = vectors.astype(np.float64) @ leads.T + added
    return scores[0] - scores[1:]


def integration_nodes() -> tuple[Float[np.ndarray, " S"], Float[np.ndarray, " S"]]:
    """Nodes and weights of an integral from 0 to 1, most of them near 0.

    Norms make a score change fast between event vectors of zeros and small ones, so the nodes are
    cubes of Gauss-Legendre nodes. As many midpoints leave an error of 1 to 4 %.
    """
    nodes, weights = np.polynomial.legendre.leggauss(STEPS)
    roots = (nodes + 1) / 2
    return (roots**3).astype(np.float32), (1.5 * roots**2 * weights).astype(np.float32)


@jax.jit
def integrated_gradients(
    model: Model,
    state: Float[Array | np.ndarray, "1 S"],
    items: Float[Array | np.ndarray, "T F"],
    events: Events,
    valid: Bool[Array | np.ndarray, "1 T"],
    leads: Float[Array | np.ndarray, "K F"],
    target_event_type: Int[Array, ""] | int,
) -> Float[Array, "K T"]:
    """Integrated gradients of the leads of items over the event vectors (arXiv:1703.01365).

    The path goes from event vectors of zeros to the vectors as they are. The sum over the events
    is the difference of the lead between both ends.

    Args:
        state: before the events.
        items: the item vector of each event.
        leads: item vectors less the average one.
    """
    recommender = model.merge()
    experts = list(recommender.experts)
    own = [
        e.event_vectors(part, events)
        for e, part in zip(experts, jnp.split(jnp.asarray(items), len(experts), -1), strict=True)
    ]
    before = state_tree(recommender, jnp.repeat(jnp.asarray(state), STEPS, 0))
    shape = (STEPS, valid.shape[1])
    starts, is_event = jnp.zeros(shape, bool), jnp.broadcast_to(jnp.asarray(valid), shape)
    shares, weights = integration_nodes()

    def user(scaled: list[Array]) -> Float[Array, "steps F"]:
        after = tuple(state for _, state in recommender.scan(before, scaled, starts, is_event))
        targets = jnp.full(STEPS, target_event_type)
        return recommender.user_vectors(recommender.last_outputs(after), targets)

    vectors, gradients = jax.vjp(user, [shares.astype(x.dtype)[:, None, None] * x for x in own])

    def of(lead: Float[Array, " F"]) -> Float[Array, " T"]:
        (slopes,) = gradients(jnp.broadcast_to(lead, vectors.shape).astype(vectors.dtype))
        amounts = [
            (jnp.tensordot(weights, s, 1) * x[0]).sum(-1) for s, x in zip(slopes, own, strict=True)
        ]
        return jnp.stack(amounts).sum(0)

    return jax.lax.map(of, jnp.asarray(leads))


def gradient_amounts(
    model: "ModelCore",
    log: EventLog,
    leads: Float[np.ndarray, "K F"],
    state: Float[np.ndarray, " S"] | None = None,
    event_type: int | None = None,
) -> Float[np.ndarray, "M K"]:
    """`integrated_gradients` of the only user of a log, without the repeat bias.

    Events before the newest `MOST_GRADIENTS`, or before those that the run reads, get 0.

    Args:
        state: before the events; None: that of a new user.
        event_type: the event type to predict; by default the run's.
    """
    count = len(log.items)
    history = model.config.evaluation.history or count
    numbers = np.arange(max(count - min(history, MOST_GRADIENTS), 0), count)
    if state is None:
        order = np.arange(count)
        older = (order >= count - history) & (order < numbers[0])
        state = model.encoder.states(some_events(log, older))[0]
    size = -(-len(numbers) // EVENTS_PER_SHAPE) * EVENTS_PER_SHAPE
    padded = np.pad(numbers, (0, size - len(numbers)))[None]
    events = Events(
        items=np.arange(size, dtype=np.int32)[None],
        event_types=log.event_types[padded].astype(np.int32),
        gaps=event_gaps(log, padded, np.zeros_like(padded)),
    )
    amounts = np.zeros((count, len(leads)))
    of_events = integrated_gradients(
        model.model,
        state[None].astype(np.float32),
        np.asarray(model.encoder.items)[log.items[padded[0]]],
        events,
        np.arange(size)[None] < len(numbers),
        leads,
        model.encoder.target_event_type if event_type is None else event_type,
    )
    amounts[numbers] = np.asarray(of_events).T[: len(numbers)]
    return amounts


class Scored(NamedTuple):
    """What explanations of some items are made of."""

    user_id: str
    log: EventLog  # of this user alone: the events that are explained
    items: Int[np.ndarray, " K"]
    scores: Float[np.ndarray, " K"]
    parts: Parts
    amounts: Float[np.ndarray, "M K"]  # of the events
    shares: Float[np.ndarray, "M K"]
    events_by: str


def explain_items(
    model: "TrainedModel",
    histories: EventLog,
    items: Int[np.ndarray, " K"],
    pipeline: RerankPipeline,
    *,
    words: bool = True,
) -> list[Explanation]:
    """Explanations of items for the only user of a log, under a strategy."""
    log = model.encoder.known_events(histories)
    exact = len(log.items) <= MOST_LEFT_OUT
    read = without_each(log) if exact else log
    states = model.encoder.states(read)
    vectors = model.encoder.vectors(states)
    user = UserVectors(vectors[0], model.explainer.memoryless.vectors(states[:1])[0])
    mixed = model.ranker.with_session(read, vectors, pipeline)
    table = model.index.items
    own = np.asarray(table.vectors)[items]
    leads = own - model.explainer.average_item
    added = model.ranker.history_bias[model.encoder.target_event_type].of_events(log, items)
    if exact:
        amounts = event_amounts(mixed, history_amounts(model, read, items), leads)
    else:
        amounts = gradient_amounts(model, log, leads) + added
    events = event_leads(model, log, table.vectors)
    shares = event_shares(amounts, event_scores(events, leads, added))
    parts = score_parts(model, log, user, items)
    if pipeline.session:
        parts[STRATEGY, SESSION] = own.astype(np.float64) @ (mixed[0] - vectors[0])
    queries = RerankQueries(mixed[:1], model.ranker.adjustments(log), histories)
    steps = Reranker(pipeline, table, model.mesh).step_amounts(queries, items)
    parts |= {(STRATEGY, name): added for name, added in steps.items()}
    score = np.sum(list(parts.values()), axis=0)
    by = LEAVE_ONE_OUT if exact else GRADIENTS
    scored = Scored(log.user_ids[0], log, items, score, parts, amounts, shares, by)
    return list(explanations(model, model.index, scored, words=words))


def explanations(
    model: "ModelCore", index: CatalogIndex, scored: Scored, *, words: bool
) -> Iterator[Explanation]:
    """Explanations of items from what was computed of them.

    Args:
        model: that of training, whose graph and texts are read.
        index: names of the items now.
        words: whether to find the words of the items.
    """
    log, history = scored.log, _distinct(scored.log.items)
    names, listed = index.names(ITEM, log.items), index.names(ITEM, scored.items)
    event_types = [log.event_type_names[number] for number in log.event_types]
    old = model.catalog.num_items  # items that training has seen have lower numbers
    known = [item for item in history if item < old]
    seen = [item for item in scored.items.tolist() if item < old]
    words_of = _words(model, seen, known) if words else {}
    for place, item in enumerate(scored.items.tolist()):
        events = tuple(
            EventContribution(*naming, *event)
            for naming, *event in zip(
                _ids_and_titles(names),
                event_types,
                log.times.tolist(),
                scored.amounts[:, place].tolist(),
                scored.shares[:, place].tolist(),
                strict=True,
            )
        )
        parts = tuple(
            PartContribution(group, part, float(amounts[place]))
            for (group, part), amounts in scored.parts.items()
            if amounts[place]
        )
        node_paths = model.explainer.neighbours.paths(known, item, MOST_PATHS) if item < old else []
        paths = tuple(_named(model, path) for path in node_paths)
        words_by, weights = words_of.get(item, ("", []))
        item_id, title = next(_ids_and_titles(listed[place : place + 1]))
        yield Explanation(
            user_id=scored.user_id,
            item_id=item_id or "",
            title=title,
            score=float(scored.scores[place]),
            sentence=sentence(events, paths, model.config.data.negative_event_types),
            events_by=scored.events_by,
            events=events,
            parts=parts,
            paths=paths,
            words_by=words_by,
            words=tuple(WordContribution(*pair) for pair in weights[:MOST_WORDS]),
        )


def user_of(log: EventLog, user: int) -> EventLog:
    """One user of a log."""
    numbers = np.arange(len(log.items))
    own = (numbers >= log.offsets[user]) & (numbers < log.offsets[user + 1])
    kept = some_events(log, own)
    return replace(
        kept,
        user_ids=log.user_ids[user : user + 1],
        offsets=np.array([0, int(own.sum())], log.offsets.dtype),
    )


def _words(
    model: "ModelCore", items: Sequence[int], history: Sequence[int]
) -> dict[int, tuple[str, Turns]]:
    """By item, how the influence of its words was found, and the words."""
    influence = model.explainer.word_influence
    with_text = [item for item in items if influence.texts[item]]
    turns = influence.left_out([influence.texts[item] for item in with_text])
    turned = {} if turns is None else dict(zip(with_text, turns, strict=True))
    return {
        item: (LEAVE_ONE_OUT, turned[item])
        if item in turned
        else (SHARED, influence.shared(item, history))
        for item in items
    }


def _named(model: "ModelCore", path: NodePath) -> GraphPath:
    graph = model.catalog.graph
    node_type, node = "", ""
    if path.node:
        kind = next(t for t in graph.types if path.node < t.offset + t.padded_size)
        node_type, node = kind.name, kind.ids[path.node - kind.offset] or ""
    item_id, title = next(_ids_and_titles(model.index.names(ITEM, np.array([path.item]))))
    relation, last = graph.relations[path.relation], graph.relations[path.last_relation]
    return GraphPath(item_id or "", title, relation, node_type, node, last, path.degree)


def _ids_and_titles(names: pl.DataFrame) -> Iterator[tuple[str | None, str | None]]:
    return ((row[0], row[1] if len(row) > 1 else None) for row in names.iter_rows())


def _distinct(items: Int[np.ndarray, " M"]) -> list[int]:
    return [item for item in dict.fromkeys(items.tolist()) if item]
