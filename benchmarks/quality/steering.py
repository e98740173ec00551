"""What words do to a list, on the run's own held-out events.

    python benchmarks/steering.py runs/beauty --type category

Every sampled test user looks for the name of a node (category, brand ...) that their next item
belongs to. Printed are, for each strength of the words, NDCG@10 of that item among all items and
the share of the ten best that belong to the node. The names are in the items' texts, so words that
nobody has written are not measured.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

import jaxrec
from jaxrec.data.dataset import prepare
from jaxrec.data.graph import first_neighbours
from jaxrec.evaluation import metrics
from jaxrec.evaluation.protocol import history_adjustments
from jaxrec.inference.encoding import user_vectors
from jaxrec.inference.trained_model import TrainedModel
from jaxrec.ranking.top_k import Ranking, rank_queries, scaled

STRENGTHS = (0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--type", default="category", help="of node that users look for")
    parser.add_argument("--users", type=int, default=2000)
    options = parser.parse_args()
    model = jaxrec.load(options.run)
    split = prepare(model.config).split
    node_of_item = first_neighbours(model.index.catalog.graph, options.type)
    test = split.test["last"]
    wanted = node_of_item[split.log.items[test.positions]]
    chosen = np.flatnonzero(wanted)
    random = np.random.default_rng(0)
    chosen = np.sort(random.choice(chosen, min(options.users, len(chosen)), replace=False))
    queries = test[chosen]
    wanted = wanted[chosen]
    words = words_of(model, options.type)
    users = user_vectors(
        model.model.definition,
        model.model.params,
        model.index.items.vectors,
        split.log,
        queries,
        history=model.config.evaluation.history,
        target_event_type=model.encoder.target_event_type,
    )
    targets = split.log.items[queries.positions]
    repeat_bias = model.ranker.repeat_bias(model.encoder.target_event_type)
    pairs = history_adjustments(split.log, queries, model.config.evaluation.mask, repeat_bias)

    alone = np.zeros((len(users), model.words.items.shape[1]), np.float32)
    for node in np.unique(wanted):
        alone[wanted == node] = model.words.steer(users[wanted == node], words[node], 1.0)
    unmoved = np.pad(users, ((0, 0), (0, alone.shape[1] - users.shape[1])))

    def rankings() -> Iterator[tuple[str, Ranking]]:
        for strength in STRENGTHS:
            rows = (1 - strength) * unmoved + strength * alone
            found = rank_queries(
                rows,
                model.words.items,
                targets,
                scaled(pairs, 1 - strength),
                model.index.items.valid,
                mesh=model.mesh,
            )
            yield ("words alone" if strength == 1 else f"strength {strength:g}"), found

    table = Table(box=SIMPLE_HEAD, title=f"{len(queries):,} users look for a {options.type}")
    for heading in ("", "N@10 of the next item", "share of the ten that belong"):
        table.add_column(heading, justify="right" if heading else "left")
    for label, found in rankings():
        belong = (node_of_item[found.items] == wanted[:, None]).mean()
        table.add_row(label, f"{metrics.ndcg(found.ranks, 10).mean():.4f}", f"{belong:.3f}")
    Console().print(table)


def words_of(model: TrainedModel, type_name: str) -> list[str]:
    """What users call the nodes of a type: of a path its last part."""
    names = model.names(type_name, np.arange(model.index.node_type(type_name).count)).to_series(0)
    return [(name or "").split(" > ")[-1] for name in names]


if __name__ == "__main__":
    main()
