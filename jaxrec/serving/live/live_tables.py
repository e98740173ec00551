"""Brings changed items into what makes lists: names, tables and prepared rankings."""

from jaxrec.data.graph import ITEM
from jaxrec.inference.catalog_index import item_labels
from jaxrec.ranking.pipeline import Reranker, RerankPipeline
from jaxrec.serving.live.live_catalogue import CatalogueUpdate
from jaxrec.serving.live.recent import Arguments
from jaxrec.serving.live.recommendation_builder import RecommendationBuilder, text_array

Pipelines = dict[Arguments, tuple[RerankPipeline, RerankPipeline]]
"""The pipeline of a prepared ranking, before and after an update."""


def update_pipelines(builder: RecommendationBuilder, update: CatalogueUpdate) -> Pipelines:
    """The pipelines of the prepared rankings after an update; lists may be made meanwhile."""
    return {
        key: (reranker.pipeline, _pipeline(reranker, update))
        for key, reranker in builder.reranker.snapshot()
    }


def update_lists(
    builder: RecommendationBuilder, update: CatalogueUpdate, pipelines: Pipelines
) -> None:
    """Change the rows of an update, whose vectors are in effect already, in all tables."""
    rows, encoded = update.rows, update.encoded.rows
    if not len(rows):
        return
    for (with_words,), table in builder.item_table.results.items():
        words = builder.model.words
        table.write(encoded, words.rows(encoded) if with_words else update.encoded.vectors)
    builder.reason_labels[rows] = text_array(item_labels(update.names))
    for column, values in zip(builder.names(ITEM), update.names.iter_columns(), strict=False):
        column[rows] = text_array(values)

    def changed(key: Arguments, reranker: Reranker) -> Reranker:
        before, after = pipelines.get(key, (None, None))
        if after is None or before is not reranker.pipeline:  # prepared in the meantime
            after = _pipeline(reranker, update)
        return reranker.with_rows(after, rows)

    builder.reranker.replace(changed)


def _pipeline(reranker: Reranker, update: CatalogueUpdate) -> RerankPipeline:
    return reranker.pipeline.with_items(update.items, update.rows, update.listed)
