"""How words change lists, measured on a run's own held-out events.

    python benchmarks/quality/steering.py runs/beauty --type category

A sampled user searches for the name of a node (category, brand ...) that the user's next item
belongs to. There are two figures for each strength of the words: NDCG@10 of the next item among all
items, and the share of the best ten items that belong to the node. All strengths are measured on
validation. On test events, only three are: no words, the default strength, and words alone. These
are a row of `benchmarks/results/steering.jsonl`. Item texts contain these names, so words that no
item text contains are not measured.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rows import BENCHMARKS, append_row, commit

import jaxrec
from jaxrec.data.dataset import prepare as prepare_data
from jaxrec.data.graph_arrays import first_neighbours
from jaxrec.evaluation import metrics
from jaxrec.inference.trained_model import TrainedModel
from jaxrec.ranking.adjustments import AdjustmentBlocks, scale
from jaxrec.ranking.history_bias import history_adjustments
from jaxrec.ranking.item_table import prepare
from jaxrec.ranking.top_k import EvalQueries, rank_queries

RESULTS = BENCHMARKS / "results" / "steering.jsonl"
STRENGTHS = {"validation": (0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0), "test": (0.0, 0.5, 1.0)}


@dataclass(frozen=True)
class Searches:
    """Q users who search for a node of their next item."""

    node_of_item: np.ndarray  # [I]
    nodes: np.ndarray  # [Q], the nodes that users search for
    targets: np.ndarray  # [Q], their next items
    vectors: np.ndarray  # [Q, F], without words
    adjustments: AdjustmentBlocks


def main() -> None:
    """Measure how the strength of the words changes NDCG@10 and the share of the node."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--type", default="category", help="node type that users search for")
    parser.add_argument("--users", type=int, default=2000)
    options = parser.parse_args()
    commit()
    model = jaxrec.load(options.run)
    figures = {part: dict(steered_figures(model, part, options)) for part in STRENGTHS}
    about = {"data": Path(model.config.data.source).name, "type": options.type}
    about |= {"code": commit(), "date": datetime.now(UTC).date().isoformat()}
    append_row(RESULTS, about | figures)
    table = Table(box=SIMPLE_HEAD, title=f"users search for a {options.type}")
    for heading in ("strength of the words", "", "N@10 of the next item", "share of ten"):
        table.add_column(heading, justify="right")
    for part, of_part in figures.items():
        for strength, row in of_part.items():
            table.add_row(strength, part, f"{row['ndcg@10']:.4f}", f"{row['share']:.3f}")
    Console().print(table)


def steered_figures(
    model: TrainedModel, part: str, options: argparse.Namespace
) -> Iterator[tuple[str, dict[str, float]]]:
    """Figures of the validation or test queries by strength."""
    searches = sample_searches(model, part, options.type, options.users)
    unsteered, steered = search_vectors(model, searches, options.type)
    items = prepare(model.words.items, model.mesh)
    for strength in STRENGTHS[part]:
        vectors = (1 - strength) * unsteered + strength * steered
        adjustments = scale(searches.adjustments, 1 - strength)
        ranking = rank_queries(EvalQueries(vectors, searches.targets, adjustments), items)
        share = (searches.node_of_item[ranking.items] == searches.nodes[:, None]).mean()
        yield (
            f"{strength:g}",
            {
                "users": len(steered),
                "ndcg@10": round(float(metrics.ndcg(ranking.ranks, 10).mean()), 5),
                "share": round(float(share), 5),
            },
        )


def sample_searches(model: TrainedModel, part: str, type_name: str, users: int) -> Searches:
    """Random users of a part of the split whose next item has a node of the type."""
    split = prepare_data(model.config).split
    node_of_item = first_neighbours(model.catalog.graph, type_name)
    queries = split.validation if part == "validation" else split.test["last"]
    candidates = np.flatnonzero(node_of_item[split.log.items[queries.positions]])
    random = np.random.default_rng(0)
    sampled = random.choice(candidates, min(users, len(candidates)), replace=False)
    queries = queries[np.sort(sampled)]
    targets = split.log.items[queries.positions]
    bias = model.ranker.history_bias[model.encoder.target_event_type]
    mask = model.config.evaluation.mask
    return Searches(
        node_of_item,
        node_of_item[targets],
        targets,
        model.encoder.vectors_at(split.log, queries),
        history_adjustments(split.log, queries, mask, bias),
    )


def search_vectors(
    model: TrainedModel, searches: Searches, type_name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Vectors for `model.words.items` at strength 0 and at strength 1."""
    words, vectors, nodes = node_words(model, type_name), searches.vectors, searches.nodes
    width = model.words.items.vectors.shape[1]
    unsteered = np.zeros((len(vectors), width), np.float32)
    unsteered[:, : vectors.shape[1]] = vectors
    unsteered[:, -1] = 1  # the last column holds the popularity bias
    steered = np.zeros_like(unsteered)
    for node in np.unique(nodes):
        steered[nodes == node] = model.words.steer(vectors[nodes == node], words[node], 1.0)
    return unsteered, steered


def node_words(model: TrainedModel, type_name: str) -> list[str]:
    """The names of a type's nodes; of a path only the last part."""
    rows = np.arange(model.index.node_type(type_name).count)
    names = model.index.names(type_name, rows).to_series(0)
    return [(name or "").split(" > ")[-1] for name in names]


if __name__ == "__main__":
    main()
