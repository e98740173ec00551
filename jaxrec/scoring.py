"""A trained run at work: raw events in, recommendations out, for users seen in training or not."""

import os
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import polars as pl
from flax import nnx
from jax.sharding import SingleDeviceSharding
from jaxtyping import Array, Float
from rich.console import Console

from jaxrec import checkpoint
from jaxrec.checkpoint import RunError
from jaxrec.config import Config, TextConfig
from jaxrec.data.events import build_event_log
from jaxrec.data.files import read_table
from jaxrec.data.tables import validate
from jaxrec.data.text import resolve_pretrained
from jaxrec.encoding import user_vectors
from jaxrec.evaluation import masked_pairs
from jaxrec.models.bert import Bert, BertConfig
from jaxrec.models.recommender import Recommender
from jaxrec.models.text_tower import TextTower
from jaxrec.ranking import rank_queries
from jaxrec.types import ANY_KIND, Catalog, Queries

PREVIEW_USERS = 3


@dataclass(frozen=True)
class TrainedModel:
    """The best checkpoint of a run, with all that scoring needs."""

    config: Config
    catalog: Catalog
    kind_names: tuple[str, ...]
    graphdef: nnx.GraphDef
    params: nnx.State
    vectors: Float[Array, "N ED"]  # of all nodes, items first

    @property
    def items(self) -> Float[Array, "I ED"]:
        """Vectors of the item block."""
        return self.vectors[: self.catalog.graph.types[0].capacity]

    def recommend(
        self, events: pl.DataFrame, k: int = 10, mask: tuple[str, ...] | None = None
    ) -> pl.DataFrame:
        """The k best items for every user of `events`, whether training has seen them or not.

        Args:
            events: `user_id`, `item_id`, `timestamp` and, where the model knows several kinds of
                event, `event`. Items that the catalogue lacks are read as unknown ones.
            mask: what to leave out of a user's list, as in `evaluation.mask`, which is the
                default.

        Returns:
            `user_id`, `rank` (from 1), `item_id`, `score`, and `title` where items have one. A
            user for whom fewer than k items are left gets fewer rows.

        Raises:
            DataError: the events cannot be used; the message says which and why.
            ValueError: k is not positive.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, not {k}")
        if "event" not in events.columns and len(self.kind_names) == 1:
            events = events.with_columns(pl.lit(self.kind_names[0]).alias("event"))
        data = self.config.data
        log = build_event_log(
            validate(events, None, None, time=data.time).events,
            self.catalog.item_ids,
            item_ties=data.ties == "item_id",
            has_time=data.time == "timestamp",
            kind_names=self.kind_names,
        )
        ends = Queries(np.arange(log.num_users), log.offsets[1:])
        evaluation = self.config.evaluation
        users = user_vectors(
            self.graphdef,
            self.params,
            self.items,
            log,
            ends,
            history=evaluation.history,
            users=evaluation.users,
            wanted_kind=self._wanted_kind(),
        )
        rows = np.arange(self.items.shape[0])
        ranking = rank_queries(
            users,
            self.items,
            np.zeros(log.num_users, np.int32),
            masked_pairs(log, ends, mask or evaluation.mask),
            (rows > 0) & (rows < self.catalog.num_items),
            min(k, self.catalog.num_items - 1),
        )
        return self._as_frame(log.user_ids, ranking.items, ranking.scores)

    def _wanted_kind(self) -> int:
        wanted = self.config.split.target_kinds
        return self.kind_names.index(wanted[0]) if len(wanted) == 1 else ANY_KIND

    def _as_frame(self, user_ids: pl.Series, items: np.ndarray, scores: np.ndarray) -> pl.DataFrame:
        users, places = np.nonzero(items > 0)
        chosen = items[users, places]
        columns = [c for c in ("item_id", "title") if c in self.catalog.items.columns]
        found = self.catalog.items.select(columns)[chosen]
        ranked = pl.DataFrame(
            {
                "user_id": user_ids.gather(users),
                "rank": (places + 1).astype(np.int32),
                "score": scores[users, places],
            }
        )
        order = ["user_id", "rank", "item_id", "score", *columns[1:]]
        return pl.concat([ranked, found], how="horizontal").select(order)


def load(run: str | Path) -> TrainedModel:
    """The best checkpoint of a run directory.

    Raises:
        RunError: not a run directory, or one without a finished checkpoint.
    """
    run = Path(run)
    config = checkpoint.read_config(run)
    catalog, kind_names, sizes = checkpoint.read_catalog(run)
    model = nnx.eval_shape(
        lambda: Recommender(config.model, sizes, nnx.Rngs(0), _tower(config.text))
    )
    graphdef, shapes = nnx.split(model)
    sharding = SingleDeviceSharding(jax.local_devices()[0])

    def place(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    width = config.model.width * len(config.model.experts)
    nodes = jax.ShapeDtypeStruct((sizes.num_nodes, width), np.float32, sharding=sharding)
    with checkpoint.open_checkpoints(run, read_only=True) as manager:
        best = manager.best_step()
        if best is None:
            raise RunError(f"{run} holds no validated checkpoint yet; train it with --resume {run}")
        saved = checkpoint.restore(
            manager, best, params=jax.tree.map(place, shapes), vectors={"nodes": nodes}
        )
    return TrainedModel(
        config, catalog, kind_names, graphdef, saved["params"], saved["vectors"]["nodes"]
    )


def score_file(run: Path, events: Path, out: Path, k: int) -> None:
    """Write the recommendations for every user of an events file to a Parquet file.

    Raises:
        RunError: `out` exists, or `run` is not a trained run.
        DataError: the events cannot be read or used.
    """
    if out.exists():
        raise RunError(f"{out} exists and is not overwritten; name another file")
    model = load(run)
    recommendations = model.recommend(read_table(events), k)
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = out.with_name(f".{out.name}.{os.getpid()}")
    recommendations.write_parquet(draft)
    draft.rename(out)
    console = Console()
    shown = "title" if "title" in recommendations.columns else "item_id"
    for user in recommendations["user_id"].unique(maintain_order=True)[:PREVIEW_USERS]:
        names = recommendations.filter(pl.col("user_id") == user)[shown].head(5)
        console.print(f"user {user}: {'; '.join(map(str, names))}", markup=False)
    console.print(
        f"{recommendations['user_id'].n_unique():,} users, {len(recommendations):,} rows in {out}"
    )


def _tower(config: TextConfig) -> TextTower | None:
    if config.mode == "frozen":
        return None
    bert = BertConfig.from_file(resolve_pretrained(config.pretrained))
    return TextTower(Bert(bert, rngs=nnx.Rngs(0)), config.finetune_layers)
