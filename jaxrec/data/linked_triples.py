"""Knowledge graphs of RecBole, whose entities are linked to items."""

from pathlib import Path

import polars as pl

from jaxrec.data.columns import require
from jaxrec.data.opener import read_table
from jaxrec.data.spec import TRIPLE_COLUMNS
from jaxrec.errors import DataError


def read_linked_triples(kg_path: Path, item_ids: pl.Series) -> pl.DataFrame:
    """Triples of a RecBole `.kg` file, with items linked by the `.link` file beside it.

    Raises a DataError if a file is missing, unreadable or lacks a column.
    """
    link_path = kg_path.with_suffix(".link")
    if not link_path.is_file():
        raise DataError(f"{kg_path}: needs {link_path.name} beside it, with the items' entities")
    kg, link = read_table(kg_path), read_table(link_path)
    names = ("head_id", "relation_id", "tail_id")
    kg = pl.DataFrame([require(kg, name, str(kg_path)) for name in names])
    link = pl.DataFrame([require(link, name, str(link_path)) for name in ("item_id", "entity_id")])
    return link_entities(kg, link.filter(pl.col("item_id").is_in(item_ids.implode())))


def link_entities(kg: pl.DataFrame, link: pl.DataFrame) -> pl.DataFrame:
    """Triples of a RecBole knowledge graph with items in place of their entities.

    Args:
        kg: head_id, relation_id, tail_id.
        link: item_id, entity_id. An entity of several items gives a triple for each of them. An
            entity without an item gets the type `entity`.
    """
    for end in ("head", "tail"):
        entity_id, end_type = f"{end}_id", f"{end}_type"
        items = link.select(
            pl.col("entity_id").alias(entity_id),
            pl.col("item_id").alias(end),
            pl.lit("item").alias(end_type),
        )
        kg = kg.join(items, on=entity_id, how="left", maintain_order="left").with_columns(
            pl.col(end).fill_null(pl.col(entity_id)), pl.col(end_type).fill_null("entity")
        )
    return kg.rename({"relation_id": "relation"}).select(TRIPLE_COLUMNS)
