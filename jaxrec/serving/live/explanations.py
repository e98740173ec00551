"""Why live lists hold their items: the kept events of a user are left out in turn."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from jaxrec.data.graph import ITEM
from jaxrec.errors import InputError
from jaxrec.inference.contributions import (
    POPULARITY,
    UserVectors,
    history_parts,
    vector_parts,
)
from jaxrec.inference.event_scores import event_leads, event_scores, event_shares
from jaxrec.inference.explain import (
    GRADIENTS,
    LEAVE_ONE_OUT,
    MOST_LEFT_OUT,
    SESSION,
    STRATEGY,
    Scored,
    event_amounts,
    explanations,
    gradient_amounts,
)
from jaxrec.inference.explanation import Explanation
from jaxrec.ranking.adjustments import amounts_of
from jaxrec.ranking.pipeline import RerankQueries
from jaxrec.serving.live.engine import LiveEngine
from jaxrec.serving.live.lists import ListRequest, RecommendationList
from jaxrec.serving.stores.base import UserDocument
from jaxrec.types import NO_GAP

MOST_EXPLAINED = 10  # items of a list


def explained_list(
    engine: LiveEngine, user_id: str, request: ListRequest, now: int | None = None
) -> tuple[RecommendationList, list[Explanation]]:
    """A list for a user, and why it holds each of its items; `now` as in `LiveEngine.recommend`.

    Events that are no longer kept are in the state, and are not explained.

    Raises:
        DataError: the condition cannot be used.
        InputError: an option does not fit the model, or the list is too long or not of items.
        StoreError: the store fails, or the document of the user cannot be read.
    """
    if request.target != ITEM or request.k > MOST_EXPLAINED:
        raise InputError(
            f"explain=full is for lists of at most {MOST_EXPLAINED} items; leave target out and "
            f"send k={MOST_EXPLAINED} or less"
        )
    engine.builder.check(request)
    document = engine.document(user_id)
    [made] = engine.builder.build([document], request, now)
    return made, explain(engine, document, made, request, now)


def explain(
    engine: LiveEngine,
    document: UserDocument,
    made: RecommendationList,
    request: ListRequest,
    now: int | None = None,
) -> list[Explanation]:
    """Why a list that was made of a document holds each of its items."""
    builder, updater, model = engine.builder, engine.updater, engine.trained
    items = np.array([updater.item_number[item.id] for item in made.items], np.int64)
    event_type = builder.event_type(request)
    log = updater.event_log([document.events_after_base])
    exact = len(log.items) <= MOST_LEFT_OUT
    changes = [(document, changed) for changed in without_each(engine, document)] if exact else []
    documents = [document, *updater.refresh(changes)]
    reranker = builder.reranker(request.where, False)
    vectors, mixed = builder.mixed_vectors(reranker, documents, request, now)
    own = np.asarray(updater.items)[items]
    leads = own - model.explainer.average_item
    bias = builder.bias(event_type)
    added = bias.of_events(log, items)
    if exact:
        changed = amounts_of(builder.history_bias(documents, event_type), len(documents), items)
        amounts = event_amounts(mixed[: len(documents)], changed, leads)
    else:
        base = document.base_state[0]
        amounts = gradient_amounts(engine.model, log, leads, base, event_type) + added
    events = event_leads(model, log, updater.items)
    shares = event_shares(amounts, event_scores(events, leads, added))
    seconds = updater.seconds_since([document], now)
    silent = engine.model.explainer.memoryless.vectors(
        updater.stack([document.state]), event_type, NO_GAP if seconds is None else seconds
    )
    parts = vector_parts(model, UserVectors(vectors[0], silent[0]), items, own)
    parts["", POPULARITY] = engine.index.items.biases[items].astype(np.float64)
    parts |= history_parts(bias, updater.event_log([document.events]), items)
    parts[STRATEGY, SESSION] = own.astype(np.float64) @ (mixed[0] - vectors[0])
    mask = request.mask or model.config.evaluation.mask
    queries = RerankQueries(
        mixed[:1],
        lambda _: builder.adjustments([document], mask, event_type),
        builder.feedback_log([document]),
    )
    for name, moved in reranker.step_amounts(queries, items).items():
        parts[STRATEGY, name] = moved
    scores = np.array([item.score for item in made.items])
    by = LEAVE_ONE_OUT if exact else GRADIENTS
    scored = Scored(document.user_id, log, items, scores, parts, amounts, shares, by)
    return list(explanations(model, engine.index, scored, words=True))


def without_each(engine: LiveEngine, document: UserDocument) -> Iterator[UserDocument]:
    """A document without each event that the model reads and that its base state has not seen."""
    for place in range(document.num_in_base, len(document.events)):
        if document.events[place].event_type in engine.updater.event_type_number:
            kept = document.events[:place] + document.events[place + 1 :]
            yield replace(document, events=kept)
