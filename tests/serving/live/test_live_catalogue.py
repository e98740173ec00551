"""Items that change while they are served: in lists, conditions, caps, names and histories."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from helpers.live import DAY, change, event, rescaled
from helpers.shop import HELD_OUT

from jaxrec.errors import DataError, InputError, LimitError
from jaxrec.inference import live_index, loading
from jaxrec.ranking.steps import Caps, Diversity, Explore, Feedback, Only, Popularity, Where
from jaxrec.serving.live.engine import LiveEngine
from jaxrec.serving.live.item_recorder import ItemChange, ItemRecorder
from jaxrec.serving.live.reasons import strongest_items
from jaxrec.serving.live.recorder import UserEvent
from jaxrec.serving.stores.items import ItemDocument
from jaxrec.serving.stores.sqlite import SQLiteStore

NEW = {"title": "brand x item k", "brand": "brand1", "price": 12.5, "categories": ["Beauty"]}

ROUNDING = 2e-3  # whitening amplifies that of the tiny text encoder


def recorder(engine, limit=1000):
    return ItemRecorder(engine.catalogue, engine.store.items, limit)


def put(engine, **items):
    outcomes = change(recorder(engine), "put", items)
    engine.follow()
    return outcomes


def patch(engine, **items):
    outcomes = change(recorder(engine), "patch", items)
    engine.follow()
    return outcomes


def listed(engine, k=30, user="nobody", **options):
    return [item.id for item in engine.recommend([user], k=k, **options)[0].items]


def visit(engine, user, *items):
    engine.record([UserEvent(user, event(n * DAY, item)) for n, item in enumerate(items)])


def columns_of(shop, item):
    [row] = shop.items.filter(pl.col("item_id") == item).to_dicts()
    return {name: value for name, value in row.items() if name != "item_id"}


def test_lists_equal_those_of_a_batch_model_with_the_same_items(model, shop, tmp_path):
    """New items, and new columns of an item of the run, under a strategy that uses both."""
    strategy = (Where("price < 50"), Popularity(0.5), Caps({"brand": 2}), Diversity(0.3))
    engine = LiveEngine(model, SQLiteStore(tmp_path / "store.db"), strategy=strategy)
    engine.recommend(["u"], where="price > 3")  # a ranking that is prepared before the changes
    new = {HELD_OUT: columns_of(shop, HELD_OUT), "new": NEW}
    assert put(engine, **new) == ["created", "created"]
    table = pl.DataFrame([{"item_id": item, **columns} for item, columns in new.items()])
    batch = model.with_items(table)
    rows = [engine.updater.item_number[item] for item in new]
    np.testing.assert_allclose(
        engine.index.rows.vectors[rows],
        np.asarray(batch.index.items.vectors)[[40, 41]],
        atol=ROUNDING,
    )
    user_events = [UserEvent("u", event(n * DAY, item)) for n, item in enumerate(("i12", HELD_OUT))]
    engine.record(user_events)
    events = pl.DataFrame(
        {
            "user_id": "u",
            "item_id": ["i12", HELD_OUT],
            "timestamp": [u.event.time for u in user_events],
            "event": "view",
        }
    )
    for where in ("", "price > 3"):
        steps = (Where(where), *strategy) if where else strategy
        expected = batch.recommend(events, k=8, strategy=steps)
        [live] = engine.recommend(["u"], k=8, where=where)
        assert [item.id for item in live.items] == expected["item_id"].to_list()
        scores = np.array([item.score for item in live.items])
        np.testing.assert_allclose(
            np.diff(scores), np.diff(expected["score"].to_numpy()), atol=10 * ROUNDING
        )


def test_reasons_and_forecasts_read_the_vectors_of_new_items(engine):
    put(engine, new=NEW)
    visit(engine, "u", "i12")
    number = engine.updater.item_number
    vectors = engine.index.host_vectors("item")
    np.testing.assert_array_equal(vectors[number["new"]], engine.index.rows.vectors[number["new"]])
    lists, documents = np.array([[number["new"]]]), [engine.document("u")]
    bias = engine.builder.bias()
    assert strongest_items(engine.updater, "item", lists, documents, bias) == [number["i12"]]


def test_prices_and_stock_of_known_items_decide_at_once(engine):
    assert "i05" not in listed(engine, where="price < 0.5")
    assert patch(engine, i05={"price": 0.25, "stock": 3, "title": "Sale"}) == ["updated"]
    assert listed(engine, where="price < 0.5 AND title = 'Sale'") == ["i05"]
    assert listed(engine, where="stock > 0") == ["i05"]
    assert patch(engine, i05={"stock": 0}, i06={"stock": 2.5}) == ["updated"] * 2
    assert listed(engine, where="stock > 0") == ["i06"]
    [answer] = engine.recommend(["nobody"], where="price < 0.5 AND stock = 0")
    assert [(item.id, item.title) for item in answer.items] == [("i05", "Sale")]
    assert engine.shop_items.details_of([engine.updater.item_number["i05"]])[0]["price"] == 0.25
    assert engine.shop_items.search("sale", 5) == [engine.updater.item_number["i05"]]


def test_an_unchanged_vector_stays_as_it_was(engine):
    before = engine.index.rows.vectors.copy()
    version = engine.model.version
    patch(engine, i05={"price": 0.25})
    np.testing.assert_array_equal(engine.index.rows.vectors, before)
    patch(engine, i05={"title": "Another title"})
    moved = np.flatnonzero((engine.index.rows.vectors != before).any(1))
    assert moved.tolist() == [engine.updater.item_number["i05"]]
    assert engine.model.version == version  # states of users stay


def test_a_known_item_is_encoded_as_in_training(engine, known_shop):
    before = engine.index.rows.vectors.copy()
    original = columns_of(known_shop, "i05")
    patch(engine, i05={"title": "Another title", "brand": "brand3"})
    put(engine, i05=original)
    np.testing.assert_allclose(engine.index.rows.vectors, before, atol=ROUNDING)


def test_a_removed_item_is_in_no_list_but_in_histories(engine):
    visit(engine, "u", "i12", "i15")
    state = engine.document("u").state
    assert change(recorder(engine), "remove", {"i13": {}}) == ["updated"]
    assert change(recorder(engine), "remove", {"i15": {}}) == ["updated"]
    engine.follow()
    assert not {"i13", "i15"} & {*listed(engine), *listed(engine, user="u", where="price > 0")}
    assert not {"i13", "i15"} & {*listed(engine, words="item d", strength=0.9)}
    assert engine.shop_items.search("i13", 5) == []
    numbers = [engine.updater.item_number[item] for item in ("i13", "i15")]
    assert not set(numbers) & set(engine.shop_items.popular(99))
    similar = engine.model.similar("item:i12", k=30)["item_id"].to_list()
    assert not {"i13", "i15"} & set(similar)
    with pytest.raises(InputError, match="was removed"):
        engine.model.similar("item:i13")
    assert not {"i13", "i15"} & set(engine.profile(engine.document("u"), top=30)["id"])
    np.testing.assert_array_equal(engine.document("u").state, state)
    visit(engine, "v", "i15")
    assert not np.array_equal(engine.document("v").state, engine.updater.new_user)
    assert engine.num_items == 37
    assert put(engine, i13={"title": "back"}) == ["created"]
    assert "i13" in listed(engine)


def test_caps_count_items_of_a_new_brand(model, tmp_path):
    engine = LiveEngine(model, SQLiteStore(tmp_path / "s.db"), strategy=(Caps({"brand": 1}),))
    items = {f"n{n}": {**NEW, "brand": "never seen", "season": "new"} for n in range(3)}
    put(engine, **items)
    assert len(listed(engine, k=3, where="season = 'new'")) == 1
    patch(engine, n1={"brand": "also new"})
    assert len(listed(engine, k=3, where="season = 'new'")) == 2


def test_a_cap_of_an_unknown_type_is_refused(model, tmp_path):
    with pytest.raises(InputError, match="no node type 'colour'"):
        LiveEngine(model, SQLiteStore(tmp_path / "s.db"), strategy=(Caps({"colour": 1}),))


def test_feedback_reaches_items_of_the_same_brand(model, tmp_path):
    engine = LiveEngine(model, SQLiteStore(tmp_path / "s.db"), strategy=(Feedback(neighbours=0.9),))
    put(engine, a={**NEW, "brand": "own"}, b={**NEW, "brand": "own"}, c=NEW)
    visit(engine, "u", "i12")

    def scores():
        [answer] = engine.recommend(["u"], k=3, where="title = 'brand x item k'")
        return {item.id: item.score for item in answer.items}

    before = scores()
    engine.record([UserEvent("u", event(9 * DAY, "a", "dislike"))])
    after = scores()
    assert after["a"] < before["a"] - 0.01
    assert after["b"] < after["c"]


def test_explore_and_only_know_new_items(model, tmp_path):
    strategy = (Only(["i01", "i02", "late"]), Explore(1.0))
    engine = LiveEngine(model, SQLiteStore(tmp_path / "s.db"), strategy=strategy)
    assert set(listed(engine, k=2)) == {"i01", "i02"}
    put(engine, late=NEW)
    assert listed(engine, k=1) == ["late"]


def test_codes_of_changed_items_are_searched(model, tmp_path):
    engine = LiveEngine(model, SQLiteStore(tmp_path / "s.db"), item_precision="int8")
    plain = LiveEngine(model, engine.store)
    for one in (engine, plain):
        one.recommend(["u"], where="price < 20")
    change(
        recorder(engine), "put", {"n": NEW, "i03": {"title": "brand x item k", "brand": "brand1"}}
    )
    engine.follow(), plain.follow()
    visit(engine, "u", "i12", "n")
    assert listed(engine, user="u", k=20) == listed(plain, user="u", k=20)
    assert listed(engine, user="u", where="price < 20") == listed(
        plain, user="u", where="price < 20"
    )


def test_another_engine_of_the_store_has_the_same_items(model, engine):
    put(engine, n=NEW, i07={"title": "brand z item q"})
    change(recorder(engine), "remove", {"i08": {}})
    engine.follow()
    other = LiveEngine(model, engine.store)
    assert set(listed(other)) == set(listed(engine)) >= {"n", "i07"}
    np.testing.assert_array_equal(other.index.rows.vectors, engine.index.rows.vectors)
    newer = LiveEngine(rescaled(model), engine.store)  # of another checkpoint
    assert set(listed(newer)) == set(listed(engine))


def test_a_removed_new_item_keeps_its_vector_for_histories(model, engine):
    put(engine, n=NEW)
    vector = engine.index.rows.vectors[engine.updater.item_number["n"]].copy()
    change(recorder(engine), "remove", {"n": {}})
    other = LiveEngine(model, engine.store)
    np.testing.assert_allclose(
        other.index.rows.vectors[other.updater.item_number["n"]], vector, atol=1e-6
    )
    assert "n" not in listed(other)


def test_texts_are_encoded_once_for_all_workers(model, engine, monkeypatch):
    change(recorder(engine), "put", {f"n{n}": {**NEW, "title": f"title {n}"} for n in range(9)})
    change(
        recorder(engine),
        "put",
        {"n3": {**NEW, "title": "title 4"}, "same": {**NEW, "title": "title 3"}},
    )
    change(
        recorder(engine),
        "put",
        {"n4": {**NEW, "title": "title 4", "price": 1}, "too": {**NEW, "title": "title 4"}},
    )
    monkeypatch.setattr("jaxrec.inference.live_text.encode_texts", None)
    other = LiveEngine(model, engine.store)
    assert other.num_items == 50
    assert patch(engine, n1={"price": 3}) == ["updated"]  # the same text


def test_a_put_twice_changes_nothing(engine):
    assert put(engine, n=NEW, i05={"price": 3}) == ["created", "updated"]
    sequence = engine.catalogue.sequence
    assert put(engine, n=NEW, i05={"price": 3}) == ["unchanged", "unchanged"]
    assert patch(engine, n={"price": 12.5}, nobody={"price": 1}) == ["unchanged", "unknown"]
    assert engine.catalogue.sequence == sequence
    assert recorder(engine).get("n") == {"item_id": "n", **NEW}
    assert recorder(engine).get("i05") == {"item_id": "i05", "price": 3}
    assert recorder(engine).get("i06")["brand"] == "brand0"
    assert recorder(engine).get("nobody") is None
    patch(engine, n={"price": None}, i06={"brand": None})
    assert "price" not in recorder(engine).get("n")
    assert "brand" not in recorder(engine).get("i06")
    assert "n" in listed(engine, where="price IS NULL")


def test_values_must_fit_their_columns(engine):
    for wrong in ({"price": "cheap"}, {"title": ["a", 1]}, {"Price": 3}, {"x": [1, [2]]}):
        with pytest.raises(DataError, match="items"):
            put(engine, n=NEW, m={**NEW, **wrong})
    assert engine.store.items.count() == 0
    put(engine, n={"stock": 1})
    with pytest.raises(DataError, match="stock"):
        put(engine, m={"stock": "many"})


def test_an_item_that_no_longer_fits_harms_no_other(model, engine, caplog):
    engine.store.items.save(
        [ItemDocument("a", NEW), ItemDocument("b", {"price": "cheap"}), ItemDocument("c", NEW)]
    )
    assert engine.follow() == 1
    assert {"a", "c"} <= set(listed(engine))
    assert change(recorder(engine), "remove", {"b": {}}) == ["updated"]
    assert "'b' stays as it was" in caplog.text


def test_the_first_value_of_a_new_column_has_its_type(engine, caplog):
    """Requests that were recorded one after another, and come into effect together."""
    for item, size in (("a", "large"), ("b", 3), ("c", "small"), ("d", ["small"])):
        change(recorder(engine), "put", {item: {**NEW, "size": size}})
    assert engine.follow() == 2
    assert {"a", "c"} <= set(listed(engine))
    assert listed(engine, where="size = 'large'") == ["a"]
    assert "'b' stays as it was" in caplog.text and "'d' stays as it was" in caplog.text


def test_the_number_of_items_is_bounded(engine):
    small = recorder(engine, limit=2)
    change(small, "put", {"a": NEW, "b": NEW})
    with pytest.raises(LimitError, match="2 changed items"):
        change(small, "put", {"c": NEW})
    assert change(small, "put", {"a": {"price": 1}}) == ["updated"]
    change(small, "remove", {"a": {}})
    assert small.forget(before=0) == 0
    assert small.forget(before=4e9) == 1
    assert change(small, "put", {"c": NEW}) == ["created"]


def test_changes_of_several_requests_are_written_together(engine, monkeypatch):
    """In the order of the requests; one that fails harms no other."""
    known = engine.model.catalog.item_ids[1]
    changes = [
        ItemChange("put", {"new": {**NEW, "price": 1.0}}),
        ItemChange("patch", {known: {"price": 2.0}, "nobody": {"price": 2.0}}),
        ItemChange("put", {"other": {**NEW, "price": "cheap"}}),
        ItemChange("patch", {"new": {"price": 3.0}}),
        ItemChange("remove", {known: {}}),
    ]
    own, saved = recorder(engine), []
    save = own.store.save

    def counted(documents):
        saved.append([document.item_id for document in documents])
        return save(documents)

    monkeypatch.setattr(own.store, "save", counted)
    *results, removed = own.record(changes)
    assert isinstance(results.pop(2), DataError)
    assert [*results, removed] == [["created"], ["updated", "unknown"], ["updated"], ["updated"]]
    assert own.get("new")["price"] == 3 and own.get(known) is None
    saved.clear()
    own.record([ItemChange("put", {str(n): NEW}) for n in range(5)])
    assert saved == [["0", "1", "2", "3", "4"]]


def test_removed_items_of_the_run_are_never_forgotten(engine):
    change(recorder(engine), "remove", {"i05": {}})
    assert recorder(engine).forget(before=4e9) == 0
    assert recorder(engine).get("i05") is None


def test_items_without_room_wait_for_a_larger_engine(model, engine, monkeypatch):
    monkeypatch.setattr(live_index, "FIRST_ROOM", 4)
    monkeypatch.setattr(live_index, "SMALLEST_REST", 2)
    tight = LiveEngine(model, engine.store)
    assert not tight.needs_room
    change(recorder(tight), "put", {f"n{n}": {"size": n} for n in range(300)})
    change(recorder(tight), "patch", {"i05": {"price": 0.25}})
    tight.follow()
    assert tight.needs_room
    assert "i05" in listed(tight, k=5, where="price < 0.5")
    assert tight.num_items < 339
    larger = LiveEngine(model, engine.store)
    assert larger.num_items == 339
    assert not larger.needs_room


def test_processes_share_the_tables_before_any_change(trained_run, engine, tmp_path, monkeypatch):
    monkeypatch.setenv("JAXREC_CACHE", str(tmp_path / "cache"))
    shared = loading.load(trained_run, shared=True)
    first = LiveEngine(shared, engine.store, item_precision="int8")
    put(first, n=NEW, i05={"title": "brand x item k"})
    other = LiveEngine(shared, SQLiteStore(tmp_path / "empty.db"), item_precision="int8")
    np.testing.assert_array_equal(other.index.rows.vectors, engine.index.rows.vectors)
    assert set(listed(first)) >= {"n", "i05"}
    assert "n" not in listed(other)
    assert listed(other) == listed(LiveEngine(shared, other.store))
    engine.follow()
    for words in ("", "brand x item k"):
        assert listed(first, words=words) == listed(engine, words=words)


def test_a_store_with_a_column_serves_a_strategy_that_needs_it(model, engine, tmp_path):
    with pytest.raises(DataError, match="stock"):
        LiveEngine(model, SQLiteStore(tmp_path / "empty.db"), strategy=(Where("stock > 0"),))
    put(engine, i05={"stock": 1})
    other = LiveEngine(model, engine.store, strategy=(Where("stock > 0"),))
    assert listed(other) == ["i05"]


def test_a_graph_of_two_layers_takes_new_items(model, engine):
    """Beyond one layer the neighbours of neighbours count; they are those of training."""
    encoder = engine.catalogue.encoder
    deep = replace(encoder, config=replace(encoder.config, num_graph_layers=2))
    rows = np.array([3, 4])
    text = np.asarray(model.index.text)[rows]
    edges = deep.edges_to(rows)._replace
    messages = edges(receivers=deep.edges_to(rows).receivers - 3)
    np.testing.assert_allclose(  # this model has one layer, so more surroundings change nothing
        deep.encode(rows, text, messages), encoder.encode(rows, text, messages), atol=1e-6
    )
    nodes, inner = deep._surroundings(np.unique(messages.senders))
    assert len(inner.senders) > 10
    assert set(inner.senders.tolist()) <= set(nodes.tolist())
