"""Why a model recommends an item to a user, as data and as one sentence."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxrec.data.behaviour import IMPRESSION, PAST_TENSE
from jaxrec.data.graph import ITEM
from jaxrec.data.item_columns import CATEGORY_SEPARATOR

NAMED_EVENTS = 2  # of a sentence


@dataclass(frozen=True)
class EventContribution:
    """What an event does to an item's lead over the average item."""

    item_id: str | None  # None: an item that the catalogue lacks
    title: str | None
    event_type: str
    time: int  # seconds since 1970, or a position
    amount: float  # by how much the lead falls without the event; see `Explanation.events_by`
    share: float  # of all that speaks for the item (above 0) or against it (below 0)


@dataclass(frozen=True)
class PartContribution:
    """What a part of the model adds to the score."""

    group: str  # the expert, `strategy` for a step, or empty
    part: str
    amount: float


@dataclass(frozen=True)
class GraphPath:
    """item of the history - relation - node - relation - recommended item."""

    item_id: str
    title: str | None
    relation: str
    node_type: str  # empty: the edge goes from item to item
    node: str
    last_relation: str
    degree: int  # number of edges at the node


@dataclass(frozen=True)
class WordContribution:
    """A word of the item's text."""

    word: str
    amount: float


@dataclass(frozen=True)
class Explanation:
    """Why an item is recommended to a user.

    Attributes:
        score: what the ranking gives to the item; the amounts of the parts add up to it.
        events_by: how the amounts of events are computed: `leave_one_out` or
            `integrated_gradients`.
        events: in time order. Their shares, means over the amounts and `event_scores`, order them
            more faithfully than the amounts alone.
        paths: the strongest first.
        words_by: `leave_one_out`: by how much the text vector turns without the word (1 - cosine);
            `shared`: words that the history shares, by log(items / items with the word).
        words: the strongest first.
    """

    user_id: str
    item_id: str
    title: str | None
    score: float
    sentence: str
    events_by: str
    events: tuple[EventContribution, ...]
    parts: tuple[PartContribution, ...]
    paths: tuple[GraphPath, ...]
    words_by: str
    words: tuple[WordContribution, ...]


def sentence(
    events: Sequence[EventContribution],
    paths: Sequence[GraphPath],
    negative: Sequence[str] = (),
) -> str:
    """The strongest events and the strongest path as one sentence.

    An example is "Recommended because you bought Nail file and viewed Red lipstick; same brand
    Essie."

    Args:
        negative: event types, such as returns, that are no reason.
    """
    if not events:
        reason = "as a first suggestion"
    elif named := _strongest(events, (IMPRESSION, *negative)):
        verbs: dict[str, list[str]] = {}
        for event in named:
            verb = PAST_TENSE.get(event.event_type, event.event_type.replace("_", " "))
            verbs.setdefault(verb, []).append(event.title or event.item_id or "")
        clauses = [f"{verb} {' and '.join(titles)}" for verb, titles in verbs.items()]
        reason = f"because you {' and '.join(clauses)}"
    else:
        reason = "although no single event speaks for it"
    return f"Recommended {'; '.join([reason, *map(_in_words, paths[:1])])}."


def _strongest(
    events: Sequence[EventContribution], silent: Sequence[str]
) -> list[EventContribution]:
    """The events that speak most for the item, one of an item, without `silent` event types."""
    named: dict[str | None, EventContribution] = {}
    for event in sorted(events, key=lambda event: -event.share):
        is_action = event.item_id is not None and event.event_type not in silent
        if is_action and event.share > 0 and event.amount > 0:
            named.setdefault(event.item_id, event)
    return list(named.values())[:NAMED_EVENTS]


def _in_words(path: GraphPath) -> str:
    if not path.node_type:
        return f"{path.relation.replace('_', ' ')} {path.title or path.item_id}"
    kind = "linked item" if path.node_type == ITEM else path.node_type.replace("_", " ")
    return f"same {kind} {path.node.rpartition(CATEGORY_SEPARATOR)[2]}"
