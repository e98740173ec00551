"""What a trained model consists of, and what its methods share."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial

import numpy as np
import polars as pl
from jax.sharding import Mesh
from jaxtyping import Shaped

from jaxrec.artifacts.run_directory import RunArtifacts
from jaxrec.config import Config
from jaxrec.data.columns import as_ids, require
from jaxrec.data.id_types import IdType, fitting_type, id_type, with_id_types
from jaxrec.errors import InputError
from jaxrec.evaluation.calibration import Correction
from jaxrec.inference.catalog_index import CatalogIndex
from jaxrec.inference.explainer import Explainer
from jaxrec.inference.item_features import catalog_features
from jaxrec.inference.ranker import Ranker, UserBatch
from jaxrec.inference.user_encoder import UserEncoder, collected
from jaxrec.inference.word_search import WordSearch
from jaxrec.models.recommender import Model
from jaxrec.models.sequence.decoder import Decoder
from jaxrec.ranking.history_bias import ItemNeighbours
from jaxrec.runtime import personal
from jaxrec.types import Catalog, EventLog


@dataclass(frozen=True)
class ModelCore:
    """The parts of a trained model: its weights, its catalogue, and what reads users and ranks."""

    config: Config
    step: int  # of training
    artifacts: RunArtifacts
    model: Model
    index: CatalogIndex  # the catalogue to rank: that of training, or a larger one
    inverse_temperature: float  # scale of the scores, for probabilities
    correction: Correction
    mesh: Mesh
    neighbours: Mapping[str, ItemNeighbours] = field(default_factory=dict)  # of items of training
    notes: tuple[str, ...] = ()  # what the user should know of today's items
    decoder: Decoder | None = None  # of a forecast, if the run has one
    id_key: bytes = field(default=b"", repr=False)  # of the user ids; empty: they stay as they are

    @cached_property
    def version(self) -> str:
        """A hash of the item vectors: states of another version do not fit this model."""
        vectors = np.ascontiguousarray(self.index.vectors)
        return hashlib.sha256(vectors.data.cast("B")).hexdigest()

    @cached_property
    def features(self) -> dict[str, Shaped[np.ndarray, "n ..."]]:
        """What the model reads of the vectors and numbers of the items, by column."""
        maps, parts = self.artifacts.features, dict[str, Shaped[np.ndarray, "n ..."]]()

        def computed(name: str) -> np.ndarray:
            if not parts:
                parts.update(catalog_features(self.catalog.items, maps))
            return parts[name]

        names = (*maps.vectors, *maps.numbers)
        return {
            name: self.index.derived(f"feature_{number}", partial(computed, name))
            for number, name in enumerate(names)
        }

    @property
    def catalog(self) -> Catalog:
        """The items that are ranked, with their graph and texts."""
        return self.index.catalog

    @cached_property
    def item_id_type(self) -> IdType:
        """The type of item ids in tables: that of training if it holds all ids, else text."""
        wanted = getattr(pl, self.artifacts.item_id_type)()
        return fitting_type(self.catalog.item_ids, wanted)

    def with_id_types(
        self, table: pl.DataFrame, events: pl.DataFrame | pl.LazyFrame | None = None
    ) -> pl.DataFrame:
        """A table whose ids have the types that they came in: in training, and in `events`."""
        types = {"item_id": self.item_id_type}
        if events is not None and not self.id_key:
            types["user_id"] = id_type(events.lazy().collect_schema()["user_id"])
        return with_id_types(table, types)

    def refuse_several_shops(self) -> None:
        """Raise an InputError if the catalogue holds several shops, which no ranking may mix."""
        if shops := self.artifacts.shops:
            raise InputError(
                f"the run was trained on the shops {', '.join(shops)}; each has a run directory of "
                f"its own inside it, such as shops/{shops[0]}: name that one"
            )

    @cached_property
    def encoder(self) -> UserEncoder:
        """Reads users' events; raises an InputError if the catalogue holds several shops."""
        self.refuse_several_shops()
        return UserEncoder(
            self.config,
            self.model,
            self.artifacts.event_type_names,
            self.catalog.item_ids,
            self.index.items.vectors,
            self.id_key,
        )

    @cached_property
    def ranker(self) -> Ranker:
        """Makes lists."""
        return Ranker(
            self.config, self.index, self.encoder, self.correction, self.mesh, self.neighbours
        )

    @cached_property
    def explainer(self) -> Explainer:
        """What explanations read."""
        return Explainer(self)

    @cached_property
    def words(self) -> WordSearch:
        """Steers lists by words."""
        trained = self.artifacts
        return WordSearch(
            self.config, self.index, self.model, trained.whitening, trained.text_encoder
        )

    @property
    def profiled_types(self) -> tuple[str, ...]:
        """The node types, beside items, that training learned to predict."""
        present = {node_type.name for node_type in self.catalog.graph.types}
        return tuple(name for name in self.config.train.auxiliary if name in present)

    def user_batch(self, histories: EventLog) -> UserBatch:
        """The users of a log with their vectors after all their events."""
        log = self.encoder.known_events(histories)
        return UserBatch(log, self.encoder.vectors(self.encoder.states(log)), histories)

    def log_of(self, events: pl.DataFrame | pl.LazyFrame, user: str) -> EventLog:
        """The events of one user as a log; raises an InputError if there is no such user."""
        return self.encoder.event_log(self.events_of(events, user))

    def events_of(self, events: pl.DataFrame | pl.LazyFrame, user: str) -> pl.DataFrame:
        """The events of one user; raises an InputError if there is no such user."""
        events = collected(events, "events")
        own = events.filter(as_ids(require(events, "user_id", "events"), "events") == str(user))
        if own.is_empty():
            raise InputError(f"the events hold no user {personal(user)}")
        return own
