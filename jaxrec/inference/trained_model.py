"""A trained model that makes recommendations, audiences and profiles from raw events."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float

from jaxrec.data.graph import ITEM
from jaxrec.errors import InputError
from jaxrec.inference.audiences import (
    EMPTY_AUDIENCE,
    audience_table,
    check_bid,
    choice_log_probability,
    entity_items,
    likeliest,
)
from jaxrec.inference.behaviour import behaviour_table
from jaxrec.inference.catalog_update import with_todays_items
from jaxrec.inference.contributions import contributions, plot_contributions_of
from jaxrec.inference.explain import explain_items
from jaxrec.inference.explanation import Explanation
from jaxrec.inference.forecast import SAMPLES, checked_options, forecast_users
from jaxrec.inference.model_core import ModelCore
from jaxrec.inference.other_shop import for_shop
from jaxrec.inference.profiles import plot_user, profile_users
from jaxrec.inference.ranker import ListOptions
from jaxrec.inference.user_encoder import collected
from jaxrec.ranking.context import Step
from jaxrec.ranking.option_types import check_counts
from jaxrec.ranking.steps import feedback_types
from jaxrec.ranking.strategy import Rules
from jaxrec.sharding import refuse_fork
from jaxrec.types import EventLog


@dataclass(frozen=True)
class TrainedModel(ModelCore):
    """The best checkpoint of a run. Users need not have been in training."""

    def with_items(
        self,
        items: pl.DataFrame | pl.LazyFrame,
        triples: pl.DataFrame | pl.LazyFrame | None = None,
    ) -> "TrainedModel":
        """The same model over today's catalogue.

        New items are encoded from text and graph only. The columns of `items` replace those of
        known items, for rules and lists as for text and graph. Items that the table lacks stay.

        Raises:
            DataError: the tables cannot be used; see `extend_catalog`.
            InputError: this model has today's items already, or the items of several shops.
            RunError: the text encoder is not the one that the model was trained with.
        """
        refuse_fork()
        self.refuse_several_shops()
        edges = None if triples is None else collected(triples, "new triples")
        return with_todays_items(self, collected(items, "new items"), edges)

    def for_shop(
        self,
        items: pl.DataFrame | pl.LazyFrame,
        triples: pl.DataFrame | pl.LazyFrame | None = None,
    ) -> "TrainedModel":
        """The same model over the catalogue of another shop, without training.

        Items are encoded from what is known beside their ids: text, graph, vectors, numbers. The
        items of training are not ranked, and an equal id is another item. Brands, categories and
        other entities of the same name keep what training learned of them.

        Raises:
            DataError: the tables cannot be used.
            InputError: the model knows items by their ids alone.
            RunError: the text encoder is not the one that the model was trained with.
        """
        refuse_fork()
        edges = None if triples is None else collected(triples, "triples")
        return for_shop(self, collected(items, "items"), edges)

    def recommend(
        self,
        events: pl.DataFrame | pl.LazyFrame,
        k: int | None = None,
        *,
        target: str = ITEM,
        approximate: bool = False,
        strategy: str | Path | Sequence[Step] = (),
        **rules: Any,
    ) -> pl.DataFrame:
        """The k best items for every user of `events`.

        Args:
            events: `user_id`, `item_id`, `timestamp` and, where the model knows several event
                types, `event`. Items that the catalogue lacks are read as unknown items.
            k: by default 10, or all if there are fewer.
            target: any node type of the graph, such as `brand`, in place of items.
            approximate: search approximately; see `best_items`.
            strategy: a YAML file, or steps in their order, in place of rules.
            rules: fields of `Rules`, such as `where="price < 50"`.

        Returns:
            `user_id`, `rank` (from 1), `item_id` (or the type's name), `score`, and `title` where
            items have one. A user with fewer than k items left gets fewer rows.

        Raises:
            DataError: the events or a rule cannot be used; the message says which and why.
            InputError: k or another option does not fit.
        """
        refuse_fork()
        given = Rules(**rules)
        pipeline = self.ranker.pipeline(strategy, given)
        k = self.ranker.check_request(k, target, reranks=bool(pipeline.steps or given.mask))
        histories = self.encoder.event_log(events, feedback_types(pipeline.steps))
        users = self.user_batch(histories)
        options = ListOptions(k, target, given.mask, approximate)
        return self.with_id_types(self.ranker.recommend(users, pipeline, options).table, events)

    def similar(self, entity: str, k: int | None = None) -> pl.DataFrame:
        """The nodes of the same type that are most like one: `similar("item:B00IJ9")`.

        Args:
            k: by default 10, or all if there are fewer.

        Returns:
            `rank`, `item_id` (or the type's name), `cosine` (the mean over the experts), `title`.

        Raises:
            InputError: there is no such type or node, or k does not fit.
        """
        refuse_fork()
        return self.with_id_types(self.ranker.similar(entity, k))

    def audience(
        self,
        events: pl.DataFrame | pl.LazyFrame,
        entity: str,
        size: int = 1000,
        *,
        bid: float | None = None,
        mask: tuple[str, ...] = (),
    ) -> pl.DataFrame:
        """The users of `events` who most likely choose an item, or an item of an entity, next.

        Args:
            entity: `item:ID`, `brand:NAME` and so on.
            size: the most users to return.
            bid: price of a choice, 0 or more; adds `ecpm`, the expected revenue of a thousand
                impressions.
            mask: what of a user's history to leave out; by default as in the run's evaluation.

        Returns:
            `rank`, `user_id`, `probability`, and `ecpm` with a bid; the likeliest first.

        Raises:
            InputError: the events or an option cannot be used.
        """
        refuse_fork()
        check_counts(size=size)
        check_bid(bid)
        given = Rules(mask=mask)
        log = self.encoder.event_log(events)
        vectors = self.encoder.vectors(self.encoder.states(log))
        log_p = self.choice_log_probability(log, vectors, entity, given.mask)
        table = audience_table(likeliest(EMPTY_AUDIENCE, log.user_ids, log_p, size), bid)
        return self.with_id_types(table, events)

    def choice_log_probability(
        self,
        log: EventLog,
        vectors: Float[np.ndarray, "U F"],
        entity: str,
        mask: tuple[str, ...] = (),
    ) -> Float[np.ndarray, " U"]:
        """Log of the probability that each user of a log chooses an entity next; see `audience`."""
        name, node = self.index.find(entity)
        node += self.index.node_type(name).offset
        members = entity_items(self.catalog.graph, node)
        if not len(members):
            raise InputError(f"{entity} has no items, so nobody can choose one")
        adjustments = self.ranker.adjustments(log, mask)(np.arange(log.num_users))
        return choice_log_probability(
            vectors, self.index.items, members, adjustments, self.inverse_temperature
        )

    def profile(
        self, events: pl.DataFrame | pl.LazyFrame, *, last: int = 10, top: int = 5
    ) -> pl.DataFrame:
        """What every user of `events` is interested in now, and how that changed.

        Args:
            last: number of events over which the change is measured.
            top: nodes of a type.

        Returns:
            `user_id`, `type` (each node type that training predicts, then `item`), `rank`, `id`,
            `weight` (the share of the user's interest in that type), `before` (its weight `last`
            events ago), `change`, and `title` for items that have one. Items that the run's mask
            leaves out of a user's ranking are left out here.

        Raises:
            InputError: the events or an option cannot be used.
        """
        refuse_fork()
        check_counts(last=last, top=top)
        users = self.user_batch(self.encoder.event_log(events))
        return self.with_id_types(profile_users(self, users, last, top), events)

    def behaviour_vectors(
        self, events: pl.DataFrame | pl.LazyFrame, *, last: int = 20
    ) -> pl.DataFrame:
        """What every user of `events` did lately, as text and as the vector of that text.

        The text encoder of the run makes the vector, as it makes those of item texts
        (`index.text`), so products with them are comparable. A user needs no training for it.

        Args:
            last: the most events of a user. A text that exceeds the positions of the encoder
                loses its oldest tokens.

        Returns:
            `user_id`, `text` (such as "viewed Red lipstick; bought Nail file", the newest last)
            and `vector`, whitened and at length 1; zero for an empty text.

        Raises:
            InputError: the model reads no text, or the events or `last` cannot be used.
            RunError: the text encoder is not the one that the model was trained with.
        """
        refuse_fork()
        check_counts(last=last)
        table = behaviour_table(self, self.encoder.event_log(events), last)
        return self.with_id_types(table, events)

    def forecast(
        self,
        events: pl.DataFrame | pl.LazyFrame,
        steps: int | None = None,
        *,
        target: str = ITEM,
        k: int | None = None,
        samples: int = SAMPLES,
        seed: int = 0,
    ) -> pl.DataFrame:
        """What every user of `events` is likely to be interested in at each of the next events.

        The first step is what the model predicts now. For each further one, a decoder reads an item
        that is drawn by its probability, as if it had happened.

        Args:
            steps: number of next events, at most `forecast.steps` of the run's options; by default
                5, or as many as that.
            target: any node type of the graph, such as `category`, in place of items.
            k: nodes of a step, by default 10, or all if there are fewer.
            samples: roll-outs of a user, which differ by chance; 0: one, which reads the expected
                item vector in place of a drawn item.
            seed: of the draws.

        Returns:
            `user_id`, `step` (from 1), `rank` (from 1), `item_id` (or the type's name), `weight`
            (its share of the user's interest at that event, the mean of the roll-outs), `low`,
            `median` and `high` (the 10, 50 and 90 % quantiles of the roll-outs), and `title` where
            items have one. Items that the run's mask leaves out of a ranking are left out here.

        Raises:
            InputError: the run has no decoder, the events cannot be used, or an option does not
                fit.
        """
        refuse_fork()
        options = checked_options(self, steps, target, k, samples, seed)
        users = self.user_batch(self.encoder.event_log(events))
        return self.with_id_types(forecast_users(self, users, options), events)

    def plot_profile(
        self,
        events: pl.DataFrame | pl.LazyFrame,
        user: str,
        path: str | Path,
        *,
        last: int = 20,
        top: int = 6,
    ) -> None:
        """Draw how a user's interest in the first profiled node type changed, as a PNG file.

        Raises:
            InputError: `events` holds no such user, the file is no .png, or an option does not fit.
        """
        refuse_fork()
        check_counts(last=last, top=top)
        log = self.log_of(events, user)
        plot_user(self, log, _png(path), last=last, top=top)

    def explain(
        self,
        events: pl.DataFrame | pl.LazyFrame,
        item: str,
        *,
        user: str | None = None,
        strategy: str | Path | Sequence[Step] = (),
        **rules: Any,
    ) -> Explanation:
        """Why an item is recommended to a user.

        Each event is left out in turn: the amount of an event is exact. For a history of more than
        63 events, integrated gradients over the event vectors take its place. The sentence names
        the events with the largest shares, of which amounts are one half; see `event_shares`. What
        the user's mask leaves out is explained as if it were not masked.

        Args:
            item: an id of the catalogue.
            user: whose list; needed if `events` holds several users.
            strategy, rules: as in `recommend`.

        Raises:
            DataError: the events or a rule cannot be used.
            InputError: there is no such user or item, or an option does not fit.
        """
        refuse_fork()
        _, row = self.index.find(f"{ITEM}:{item}")
        pipeline = self.ranker.pipeline(strategy, Rules(**rules))
        if np.isneginf(pipeline.bias[row]):
            raise InputError(f"the rules keep item {item} out of every list; loosen them")
        own = events if user is None else self.events_of(events, user)
        histories = self.encoder.event_log(own, feedback_types(pipeline.steps))
        if histories.num_users != 1:
            raise InputError(f"the events hold {histories.num_users} users; name one as user")
        [explanation] = explain_items(self, histories, np.array([row]), pipeline)
        return explanation

    def contributions(
        self, events: pl.DataFrame | pl.LazyFrame, user: str, k: int | None = None
    ) -> pl.DataFrame:
        """What each part of the model adds to the scores of the k best items of a user.

        Args:
            k: by default 10, or all if there are fewer.

        Returns:
            `rank`, `item_id`, `title` of items that have one, `score`, and the parts that add up to
            it: `average`, the score of the average item, and what sets the item apart from it:
            `id`, `text`, `graph` and the other sources of item vectors, `item_memory`,
            `repeat_bias`, `cooccurrence`, `similar_text` and `popularity`, as far as the model has
            them.

        Raises:
            InputError: `events` holds no such user, k does not fit, or `with_items` made the model.
        """
        refuse_fork()
        k = self.ranker.check_request(k, ITEM)
        return self.with_id_types(contributions(self, self.log_of(events, user), k))

    def plot_contributions(
        self, events: pl.DataFrame | pl.LazyFrame, user: str, path: str | Path, k: int | None = None
    ) -> None:
        """Draw `contributions` as a PNG file; arguments and errors as there."""
        refuse_fork()
        k = self.ranker.check_request(k, ITEM)
        plot_contributions_of(self, self.log_of(events, user), _png(path), k)


def _png(path: str | Path) -> Path:
    if Path(path).suffix != ".png":
        raise InputError(f"{path}: name a file ending in .png")
    return Path(path)
