"""Item columns and triples to typed nodes, edges and a padded GraphsTuple."""

import numpy as np
import polars as pl
import pytest

from jaxrec.data.graph import build_graph, item_triples, node_ids
from jaxrec.data.graph_arrays import first_neighbours, graphs_tuple, node_degrees
from jaxrec.errors import DataError
from jaxrec.types import KnowledgeGraph

ITEMS = pl.DataFrame(
    {
        "item_id": [None, "a", "b", "c"],
        "brand": [None, "acme", None, "zeta"],
        "categories": [None, ["Beauty", "Hair", "Dye"], ["Beauty"], ["Beauty", "Hair"]],
        "genres": [None, ["x", "y"], [], None],
    }
)
TRIPLES = pl.DataFrame(
    [
        ("item", "b", "goes_with", "item", "a"),
        ("item", "a", "has_brand", "brand", "fake"),
        ("entity", "acme", "based_in", "entity", "Oslo"),
        ("item", "b", "goes_with", "item", "a"),
    ],
    schema=["head_type", "head", "relation", "tail_type", "tail"],
    orient="row",
)
DERIVED = {
    ("item", "a", "has_brand", "brand", "acme"),
    ("item", "c", "has_brand", "brand", "zeta"),
    ("item", "a", "in_category", "category", "Beauty > Hair > Dye"),
    ("item", "b", "in_category", "category", "Beauty"),
    ("item", "c", "in_category", "category", "Beauty > Hair"),
    ("category", "Beauty > Hair > Dye", "child_of", "category", "Beauty > Hair"),
    ("category", "Beauty > Hair", "child_of", "category", "Beauty"),
    ("item", "a", "has_genre", "genre", "x"),
    ("item", "a", "has_genre", "genre", "y"),
}


def named_edges(graph: KnowledgeGraph) -> list[tuple]:
    """The edges by the names of their nodes, read from the blocks of the types."""

    def name(node: int) -> tuple:
        (block,) = (t for t in graph.types if t.offset <= node < t.offset + t.count)
        return block.name, block.ids[int(node - block.offset)]

    return [
        (*name(head), graph.relations[relation], *name(tail))
        for head, relation, tail in zip(graph.heads, graph.edge_relations, graph.tails, strict=True)
    ]


def test_columns_become_triples_and_paths_link_leaf_and_parents():
    triples = item_triples(ITEMS.filter(pl.col("item_id").is_not_null()))
    assert len(triples) == len(DERIVED)
    assert set(triples.rows()) == DERIVED


def test_a_column_of_text_links_to_its_one_value():
    items = pl.DataFrame({"item_id": ["a", "b"], "category": ["Hair", None], "merchant": [7, 8]})
    assert set(item_triples(items).rows()) == {
        ("item", "a", "in_category", "category", "Hair"),
        ("item", "a", "sold_by", "merchant", "7"),
        ("item", "b", "sold_by", "merchant", "8"),
    }


@pytest.mark.parametrize("brand", [None, "", "  "])
def test_a_missing_or_blank_value_links_to_nothing(brand):
    items = pl.DataFrame({"item_id": ["a", "b"], "brand": ["acme", brand]})
    lists = items.with_columns(pl.concat_list("brand"))
    assert item_triples(items).rows() == [("item", "a", "has_brand", "brand", "acme")]
    assert item_triples(lists).rows() == item_triples(items).rows()


def test_columns_replace_relations_of_the_same_name_and_repeats_are_dropped():
    edges = named_edges(build_graph(ITEMS, TRIPLES))
    given = {tuple(row) for row in TRIPLES.rows() if row[2] != "has_brand"}
    assert len(edges) == len(set(edges))
    assert set(edges) == DERIVED | given


def test_items_are_the_first_nodes_and_every_type_starts_with_unknown():
    graph = build_graph(ITEMS, TRIPLES)
    assert graph.types[0].name == "item"
    assert graph.types[0].ids.to_list() == [None, "a", "b", "c"]
    assert graph.types[0].offset == 0
    ends = [t.offset + t.padded_size for t in graph.types]
    assert [t.offset for t in graph.types[1:]] == ends[:-1]
    assert graph.num_nodes == ends[-1]
    assert all(t.ids[0] is None and t.ids[1:].null_count() == 0 for t in graph.types)
    assert all(t.count < t.padded_size and t.padded_size % 256 == 0 for t in graph.types)


def test_only_named_relations_and_their_types_are_kept():
    graph = build_graph(ITEMS, TRIPLES, ["has_brand", "goes_with"])
    assert set(graph.relations) == {"has_brand", "goes_with"}
    assert {t.name for t in graph.types} == {"item", "brand"}
    assert {edge[2] for edge in named_edges(graph)} == {"has_brand", "goes_with"}


def test_a_relation_that_does_not_occur_is_an_error():
    with pytest.raises(DataError, match=r"\['made_by'\].*has_brand.*goes_with"):
        build_graph(ITEMS, TRIPLES, ["has_brand", "made_by"])


def test_a_graph_may_have_no_edges():
    graph = build_graph(ITEMS.select("item_id"), None)
    padded = graphs_tuple(graph)
    assert (graph.num_nodes, graph.relations) == (256, ())
    assert padded.n_edge.tolist() == [0, 256]
    assert set(padded.receivers) == {255}


def test_every_edge_has_a_reverse_and_edges_are_sorted_by_receiver():
    graph = build_graph(ITEMS, TRIPLES)
    count = len(graph.relations)
    padded = graphs_tuple(graph)
    real = int(padded.n_edge[0])
    edges = list(
        zip(
            padded.senders[:real].tolist(),
            padded.edges[:real].tolist(),
            padded.receivers[:real].tolist(),
            strict=True,
        )
    )
    forward = [edge for edge in edges if edge[1] < count]
    backward = [
        (head, relation - count, tail) for tail, relation, head in edges if relation >= count
    ]
    given = zip(
        graph.heads.tolist(), graph.edge_relations.tolist(), graph.tails.tolist(), strict=True
    )
    assert sorted(forward) == sorted(backward) == sorted(given)
    assert (np.diff(padded.receivers) >= 0).all()


def test_padding_edges_never_touch_a_real_node():
    graph = build_graph(ITEMS, TRIPLES)
    padded = graphs_tuple(graph)
    real = int(padded.n_edge[0])
    nodes = {t.offset + local for t in graph.types for local in range(t.count)}
    assert padded.n_edge[1] == len(padded.senders) - real > 0
    assert len(padded.senders) % 256 == 0
    assert nodes.isdisjoint(padded.senders[real:].tolist())
    assert nodes.isdisjoint(padded.receivers[real:].tolist())
    assert set(padded.edges[real:].tolist()) == {2 * len(graph.relations)}
    assert padded.n_node.sum() == graph.num_nodes


@pytest.mark.parametrize("num_items", [254, 255, 256])
def test_a_full_block_still_has_a_node_for_padding(num_items):
    ids = pl.Series("item_id", [None, *map(str, range(num_items))], dtype=pl.String)
    graph = build_graph(ids.to_frame(), None)
    assert graphs_tuple(graph).receivers.min() >= graph.types[0].count


def test_unknown_entities_get_the_unknown_node_of_their_type():
    graph = build_graph(ITEMS, TRIPLES)
    brand = graph.type("brand")
    types, ids = pl.Series(["brand", "item", "brand", "item"]), pl.Series(["zeta", "c", "?", "?"])
    expected = [brand.offset + brand.ids.to_list().index("zeta"), 3, brand.offset, 0]
    assert node_ids(graph.types, types, ids).tolist() == expected


def test_first_neighbours_are_local_ids_of_the_first_edge():
    graph = build_graph(ITEMS, TRIPLES)
    genres = graph.type("genre").ids.to_list()
    assert [genres[i] for i in first_neighbours(graph, "genre")] == [None, "x", None, None]
    brands = graph.type("brand").ids.to_list()
    assert [brands[i] for i in first_neighbours(graph, "brand")] == [None, "acme", None, "zeta"]
    with pytest.raises(ValueError, match="no node type 'merchant'"):
        first_neighbours(graph, "merchant")


def test_the_first_neighbour_is_found_at_either_end_of_an_edge():
    items = pl.DataFrame({"item_id": [None, "a", "b", "c"]})
    triples = pl.DataFrame(
        {
            "head_type": ["actor", "item", "actor"],
            "head": ["x", "b", "z"],
            "relation": ["acts_in", "stars", "acts_in"],
            "tail_type": ["item", "actor", "item"],
            "tail": ["a", "y", "b"],
        }
    )
    graph = build_graph(items, triples)
    names = graph.type("actor").ids.to_list()
    neighbours = [names[local] for local in first_neighbours(graph, "actor")]
    assert neighbours == [None, "x", "y", None]


def test_paths_that_are_not_there_make_no_edges():
    ids = {"item_id": ["a", "b"]}
    assert item_triples(pl.DataFrame({**ids, "categories": [None, None]})).is_empty()
    triples = item_triples(pl.DataFrame({**ids, "categories": [["Care", "Hair"], []]}))
    assert triples["tail"].to_list() == ["Care > Hair", "Care"]


@pytest.mark.parametrize("brand", [[["acme"]], {"name": "acme"}, b"acme"])
def test_nested_values_are_refused(brand):
    items = pl.DataFrame({"item_id": ["a"], "brand": [brand]})
    with pytest.raises(DataError, match=r"items, column 'brand': wrong type"):
        item_triples(items)


def test_of_the_edges_of_a_node_those_from_senders_with_few_edges_come_first():
    graph = build_graph(ITEMS, TRIPLES)
    padded, degrees = graphs_tuple(graph), node_degrees(graph)
    order = np.stack([padded.receivers, degrees[padded.senders]], 1)[: int(padded.n_edge[0])]
    assert order.tolist() == sorted(order.tolist())
    assert len(set(degrees[padded.senders[: len(order)]])) > 1
