"""A catalogue with new items: equal to one built at once, and unchanged for old items."""

import polars as pl
import pytest
from helpers.catalogs import ITEMS, TRIPLES, make_catalog, many_items, node_names
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrec.data.extend import Extension, extend_catalog
from jaxrec.data.graph import build_graph
from jaxrec.data.spec import TRIPLE_COLUMNS
from jaxrec.errors import DataError
from jaxrec.types import PADDING_MULTIPLE, Catalog, KnowledgeGraph


def table_of_triples(*rows: tuple[str, str, str, str, str]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=TRIPLE_COLUMNS, orient="row")


def named_edges(graph: KnowledgeGraph) -> list[tuple]:
    names = node_names(graph)
    return [
        (*names[head], graph.relations[relation], *names[tail])
        for head, relation, tail in zip(
            graph.heads.tolist(), graph.edge_relations, graph.tails.tolist(), strict=True
        )
    ]


def added_edges(catalog: Catalog, extension: Extension) -> list[tuple]:
    """The new edges, after checking that those of the old catalogue are unchanged."""
    before, after = named_edges(catalog.graph), named_edges(extension.catalog.graph)
    assert after[: len(before)] == before
    return after[len(before) :]


def entity_rows(catalog: Catalog, extension: Extension) -> dict[tuple, tuple]:
    """Names of extended entities and of their rows in the old table."""
    old, new = catalog.graph, extension.catalog.graph
    names = node_names(old)
    return {
        name: names[
            int(extension.entities[node - new.types[0].padded_size]) + old.types[0].padded_size
        ]
        for node, name in node_names(new).items()
        if node >= new.types[0].padded_size
    }


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return make_catalog(ITEMS, TRIPLES)


def test_old_items_keep_their_index_and_new_rows_follow_in_their_order(catalog):
    new = pl.DataFrame({"item_id": ["z", "d"], "price": [3.0, 4.0], "colour": ["red", None]})
    extension = extend_catalog(catalog, new)
    table = extension.catalog.items
    assert extension.num_old == 4
    assert table["item_id"].to_list() == [None, "a", "b", "c", "z", "d"]
    assert table.head(4).select(ITEMS.columns).equals(ITEMS)
    assert table["price"].to_list()[4:] == [3.0, 4.0]
    assert table["brand"].to_list()[4:] == [None, None]
    assert table["colour"].to_list() == [None] * 4 + ["red", None]
    assert extension.catalog.graph.types[0].ids.to_list() == table["item_id"].to_list()
    assert extension.notes == ()


def test_ids_and_category_paths_are_read_as_in_training(catalog):
    new = pl.DataFrame({"item_id": [7], "categories": ["Beauty > Hair"]})
    extension = extend_catalog(catalog, new)
    assert extension.catalog.item_ids[4] == "7"
    assert extension.catalog.items["categories"].to_list()[4] == ["Beauty", "Hair"]
    assert added_edges(catalog, extension) == [
        ("item", "7", "in_category", "category", "Beauty > Hair")
    ]


def test_columns_are_cast_to_the_type_of_training(catalog):
    for prices in ([3], ["3.0"]):
        table = extend_catalog(catalog, pl.DataFrame({"item_id": ["d"], "price": prices}))
        assert table.catalog.items["price"].to_list() == [None, 1.5, 2.0, None, 3.0]
    whole = make_catalog(ITEMS.with_columns(pl.col("price").cast(pl.Int64)))
    new = pl.DataFrame({"item_id": ["d", "e"], "price": [3.0, None]})
    assert extend_catalog(whole, new).catalog.items["price"].to_list()[4:] == [3, None]


def test_a_column_that_was_all_null_in_training_takes_the_new_type():
    empty = make_catalog(ITEMS.select("item_id", pl.lit(None).alias("colour")))
    extension = extend_catalog(empty, pl.DataFrame({"item_id": ["d"], "colour": ["red"]}))
    assert extension.catalog.items["colour"].to_list() == [None] * 4 + ["red"]


def test_todays_columns_replace_those_of_known_items(catalog):
    today = pl.DataFrame(
        {"item_id": ["a", "d", "c"], "brand": ["zeta", "zeta", None], "stock": [1, 2, None]}
    )
    extension = extend_catalog(catalog, today)
    table = extension.catalog.items
    assert table["item_id"].to_list() == [None, "a", "b", "c", "d"]
    assert table["brand"].to_list() == [None, "zeta", "zeta", None, "zeta"]
    assert table["stock"].to_list() == [None, 1, None, None, 2]
    for name in ("categories", "price"):  # which the table lacks
        assert table[name].head(4).equals(ITEMS[name])
    before, after = named_edges(catalog.graph), named_edges(extension.catalog.graph)
    brand = "has_brand", "brand"
    gone = [("item", item, *brand, "acme") for item in "ac"]
    assert after == [edge for edge in before if edge not in gone] + [
        ("item", "d", *brand, "zeta"),
        ("item", "a", *brand, "zeta"),
    ]
    assert extension.notes == (
        "new items: 1; 2 others are known, and the columns of the table replace theirs: brand, "
        "stock.",
    )


def test_a_day_without_new_items_is_a_normal_day(catalog):
    today = ITEMS.drop_nulls("item_id").with_columns(price=9.0)
    extension = extend_catalog(catalog, today)
    assert extension.num_old == len(extension.catalog.items) == 4
    assert extension.catalog.items["price"].to_list() == [None, 9, 9, 9]
    assert extension.catalog.graph is catalog.graph
    assert extension.notes[0].startswith("new items: 0; 3 others are known")


def test_todays_category_replaces_the_old_one(catalog):
    today = pl.DataFrame({"item_id": ["a"], "categories": ["Beauty > Nails"]})
    before, after = (
        set(named_edges(graph))
        for graph in (catalog.graph, extend_catalog(catalog, today).catalog.graph)
    )
    assert before - after == {("item", "a", "in_category", "category", "Beauty > Hair > Dye")}
    assert after - before == {
        ("item", "a", "in_category", "category", "Beauty > Nails"),
        ("category", "Beauty > Nails", "child_of", "category", "Beauty"),
    }


def test_rows_that_repeat_another_exactly_are_dropped_with_a_note(catalog):
    extension = extend_catalog(catalog, pl.DataFrame({"item_id": ["d", "d"], "price": [1, 1]}))
    assert extension.catalog.item_ids.to_list()[4:] == ["d"]
    assert extension.notes == (
        "new items: rows dropped because they repeat an item_id exactly: 1.",
    )


def test_new_entities_follow_the_old_ones_of_their_type(catalog):
    new = pl.DataFrame(
        {
            "item_id": ["d", "e"],
            "brand": ["nova", "zeta"],
            "categories": [["Beauty", "Hair", "Wax"], None],
        }
    )
    graph = extend_catalog(catalog, new).catalog.graph
    assert [t.name for t in graph.types] == [t.name for t in catalog.graph.types]
    assert graph.relations == catalog.graph.relations
    for old, block in zip(catalog.graph.types, graph.types, strict=True):
        assert block.ids.to_list()[: old.count] == old.ids.to_list()
    added = {t.name: t.ids.to_list()[catalog.graph.type(t.name).count :] for t in graph.types}
    assert added == {
        "item": ["d", "e"],
        "brand": ["nova"],
        "category": ["Beauty > Hair > Wax"],
        "entity": [],
    }


def test_edges_of_category_paths_that_exist_are_not_doubled(catalog):
    new = pl.DataFrame({"item_id": ["d"], "categories": [["Beauty", "Hair", "Wax"]]})
    assert set(added_edges(catalog, extend_catalog(catalog, new))) == {
        ("item", "d", "in_category", "category", "Beauty > Hair > Wax"),
        ("category", "Beauty > Hair > Wax", "child_of", "category", "Beauty > Hair"),
    }


def test_triples_may_start_at_old_and_new_items_and_entities(catalog):
    triples = [
        ("item", "a", "goes_with", "item", "d"),
        ("item", "d", "goes_with", "item", "b"),
        ("entity", "Oslo", "based_in", "entity", "Norway"),
    ]
    known = ("item", "b", "goes_with", "item", "a")
    extension = extend_catalog(
        catalog, pl.DataFrame({"item_id": ["d"]}), table_of_triples(*triples, known, triples[0])
    )
    assert added_edges(catalog, extension) == triples
    assert extension.notes == ()


def test_edges_of_unknown_relations_are_dropped_and_counted(catalog):
    triples = table_of_triples(
        ("item", "d", "made_in", "entity", "Oslo"),
        ("item", "d", "goes_with", "bundle", "gift"),
        ("person", "ann", "based_in", "entity", "Oslo"),
        ("item", "d", "goes_with", "item", "a"),
    )
    new = pl.DataFrame({"item_id": ["d"], "merchant": ["corner shop"]})
    extension = extend_catalog(catalog, new, triples)
    assert added_edges(catalog, extension) == [("item", "d", "goes_with", "item", "a")]
    (note,) = extension.notes
    assert note.endswith(": 4 (sold_by, made_in, goes_with, based_in).")
    assert extension.catalog.items["merchant"].to_list()[4:] == ["corner shop"]
    assert extension.catalog.graph.num_nodes == catalog.graph.num_nodes


def test_triples_of_unknown_items(catalog):
    new = pl.DataFrame({"item_id": ["d"]})
    extension = extend_catalog(
        catalog, new, table_of_triples(("item", "d", "goes_with", "item", "gone"))
    )
    assert added_edges(catalog, extension) == []
    assert extension.notes == (
        "new triples: triples dropped because their tail is an unknown item: 1.",
    )
    with pytest.raises(DataError, match=r"new triples.*unknown items \(row 1: 'gone'\)"):
        extend_catalog(catalog, new, table_of_triples(("item", "gone", "goes_with", "item", "a")))


def test_a_catalogue_without_a_graph_stays_without_one():
    bare = make_catalog(ITEMS.select("item_id"))
    extension = extend_catalog(bare, pl.DataFrame({"item_id": ["d"], "brand": ["acme"]}))
    graph = extension.catalog.graph
    assert [t.name for t in graph.types] == ["item"]
    assert (graph.relations, len(graph.heads), len(extension.entities)) == ((), 0, 0)
    assert graph.types[0].ids.to_list() == [None, "a", "b", "c", "d"]


def test_old_entities_keep_their_row_of_the_table_and_new_ones_take_the_unknown(catalog):
    extension = extend_catalog(catalog, pl.DataFrame({"item_id": ["d"], "brand": ["nova"]}))
    rows = entity_rows(catalog, extension)
    assert rows.pop(("brand", "nova")) == ("brand", None)
    assert set(rows) == {name for name in node_names(catalog.graph).values() if name[0] != "item"}
    assert all(name == row for name, row in rows.items())


def test_unused_rows_are_rows_of_their_own_type(catalog):
    extension = extend_catalog(catalog, pl.DataFrame({"item_id": ["d"], "brand": ["nova"]}))
    graph, items = extension.catalog.graph, extension.catalog.graph.types[0].padded_size
    assert len(extension.entities) == graph.num_nodes - items
    for block in graph.types[1:]:
        rows = extension.entities[block.offset - items : block.offset - items + block.padded_size]
        old = catalog.graph.type(block.name)
        places = rows + catalog.graph.types[0].padded_size - old.offset
        assert places.min() == 0 and places.max() < old.count


def test_names_and_edges_stay_right_when_blocks_outgrow_their_capacity(catalog):
    new = many_items(PADDING_MULTIPLE)
    extension = extend_catalog(catalog, new)
    old, graph = catalog.graph, extension.catalog.graph
    grown = {t.name for t in graph.types if t.padded_size > old.type(t.name).padded_size}
    assert grown == {"item", "brand", "category"}
    ends = [t.offset + t.padded_size for t in graph.types]
    assert [t.offset for t in graph.types] == [0, *ends[:-1]]
    shifts = [graph.type(t.name).offset - t.offset for t in old.types]
    assert len(set(shifts)) == 3  # by the items alone, and by an entity block too
    named = {"brand": new["brand"].to_list(), "category": new["categories"].to_list()}
    assert added_edges(catalog, extension) == [
        ("item", item, relation, event_type, name)
        for relation, event_type in (("has_brand", "brand"), ("in_category", "category"))
        for item, name in zip(new["item_id"], named[event_type], strict=True)
    ]
    for (event_type, name), row in entity_rows(catalog, extension).items():
        assert row == (event_type, None if name in named.get(event_type, ()) else name)


item_rows = st.lists(
    st.fixed_dictionaries(
        {
            "brand": st.none() | st.sampled_from("xyz"),
            "categories": st.none() | st.lists(st.sampled_from("AB"), max_size=3),
        }
    ),
    min_size=1,
    max_size=5,
)


pairs = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=5)


def item_table(rows: list[dict], first: int) -> pl.DataFrame:
    ids = [{"item_id": f"i{first + number}"} for number in range(len(rows))]
    schema = {"item_id": pl.String, "brand": pl.String, "categories": pl.List(pl.String)}
    return pl.DataFrame([one | row for one, row in zip(ids, rows, strict=True)], schema=schema)


@given(old=item_rows, new=item_rows, old_pairs=pairs, new_pairs=pairs)
@settings(deadline=None, max_examples=30)
def test_extending_gives_the_known_relations_of_the_whole_graph(old, new, old_pairs, new_pairs):
    def triples(pairs, items):
        return table_of_triples(
            *(
                ("item", f"i{head % items}", "goes_with", "item", f"i{tail % items}")
                for head, tail in pairs
            )
        )

    unknown = pl.DataFrame({"item_id": [None]}, schema={"item_id": pl.String})
    before, fresh = item_table(old, 0), item_table(new, len(old))
    given_before = triples(old_pairs, len(old)).cast(pl.String)
    given_after = triples(new_pairs, len(old) + len(new)).cast(pl.String)
    catalog = make_catalog(pl.concat([unknown, before], how="diagonal"), given_before)
    extension = extend_catalog(catalog, fresh, given_after if len(given_after) else None)

    whole = pl.concat([unknown, before, fresh], how="diagonal")
    assert extension.catalog.items.equals(whole)
    expected = named_edges(build_graph(whole, pl.concat([given_before, given_after])))
    relations, types = catalog.graph.relations, [t.name for t in catalog.graph.types]
    result = named_edges(extension.catalog.graph)
    assert len(result) == len(set(result))
    assert set(result) == {
        edge for edge in expected if edge[2] in relations and {edge[0], edge[3]} <= set(types)
    }
    added_edges(catalog, extension)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ({"item_id": []}, "new items: the table has no rows"),
        ({"id": ["d"]}, "new items: no column 'item_id'; it has id"),
        ({"item_id": ["d", None]}, r"new items, column 'item_id'.*null or empty \(row 2"),
        ({"item_id": ["d", "d"], "price": [1, 2]}, "new items.*several different rows.*'d'"),
        ({"item_id": ["d"], "price": ["dear"]}, "column 'price': String.*Float64.*dear.*Convert"),
        ({"item_id": ["d"], "brand": [["acme"]]}, r"column 'brand': List\(String\).*String"),
    ],
)
def test_tables_that_cannot_be_used(catalog, items, message):
    with pytest.raises(DataError, match=message):
        extend_catalog(catalog, pl.DataFrame(items))


def test_prices_with_a_fraction_are_not_truncated():
    whole = make_catalog(ITEMS.with_columns(pl.col("price").cast(pl.Int64)))
    new = pl.DataFrame({"item_id": ["d", "a"], "price": [9.99, 3.0]})
    prices = extend_catalog(whole, new).catalog.items["price"]
    assert prices.to_list() == [None, 3.0, 2.0, None, 9.99]


def test_the_first_column_that_cannot_be_cast_is_named(catalog):
    new = pl.DataFrame({"item_id": ["d"], "price": ["dear"], "brand": [["acme"]]})
    with pytest.raises(DataError, match="column 'price'"):
        extend_catalog(catalog, new)
