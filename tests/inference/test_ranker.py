from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from helpers.histories import new_user_of_brand
from helpers.shop import HELD_OUT, corrected

import jaxrec
from jaxrec.data.dataset import prepare
from jaxrec.evaluation.calibration import Correction
from jaxrec.inference.encoding import encode_queries
from jaxrec.ranking.adjustments import mask_adjustments
from jaxrec.ranking.top_k import EvalQueries, best_items, rank_queries
from jaxrec.training.fit import fit
from jaxrec.types import ANY_EVENT_TYPE


@pytest.mark.slow
def test_a_run_without_a_mask_reproduces_its_evaluation(model, known_shop, tmp_path):
    """With the repeat bias of training, corrected on validation."""
    config = replace(
        model.config,
        evaluation=replace(model.config.evaluation, mask=("none",)),
        train=replace(model.config.train, epochs=3),
    )
    fit(config, tmp_path / "run", tables=known_shop)
    unmasked = jaxrec.load(tmp_path / "run")
    bias = unmasked.ranker.history_bias[unmasked.encoder.target_event_type]
    assert unmasked.correction != Correction() and bias.repeats.any()
    dataset = prepare(config, known_shop)
    log, queries = dataset.split.log, dataset.split.test["last"]
    eval_queries = EvalQueries(
        unmasked.encoder.vectors_at(log, queries),
        log.items[queries.positions],
        bias.adjustments(log, queries),
    )
    ranking = rank_queries(eval_queries, unmasked.index.items)
    written = pl.read_parquet(tmp_path / "run" / "ranks.parquet").filter(queries="test")
    np.testing.assert_array_equal(ranking.ranks, written["rank"])


def test_popularity_is_corrected_in_every_score(model, shop):
    """The correction is a weight of log(1 + training events); it is 0 for a new item."""
    known = model.catalog.num_items - 1
    new = shop.items.filter(~pl.col("item_id").is_in(model.catalog.item_ids.to_list()))
    plain, less_popular = (corrected(model, weight).with_items(new) for weight in (0.0, -2.0))
    expected = np.append(-2 * np.log1p(model.artifacts.counts[1:]), np.zeros(len(new)))
    user = new_user_of_brand(1)
    scores, moved = (
        m.recommend(user, k=known + len(new), mask=("none",)).sort("item_id")["score"]
        for m in (plain, less_popular)
    )
    ids = plain.catalog.item_ids.to_list()[1:]
    np.testing.assert_allclose(moved - scores, expected[np.argsort(ids)], atol=1e-4)
    assert plain.similar("item:i03").equals(less_popular.similar("item:i03"))
    assert plain.version == less_popular.version


def test_scores_equal_those_of_the_evaluation(model, known_shop):
    """The histories are read from events instead of the prepared data set."""
    dataset = prepare(model.config, known_shop)
    log, queries = dataset.split.log, dataset.split.test["last"]
    vectors = encode_queries(
        model.model,
        model.index.items.vectors,
        log,
        queries,
        users=16,
        target_event_type=ANY_EVENT_TYPE,
    )
    pairs = mask_adjustments(log, queries, ("seen",))
    expected = best_items(vectors, model.index.items, 5, pairs)

    kept = np.ones(len(log.items), bool)
    kept[queries.positions] = False
    history = pl.DataFrame(
        {
            "user_id": log.user_ids.gather(np.repeat(np.arange(log.num_users), log.lengths)),
            "item_id": model.catalog.item_ids.gather(log.items),
            "timestamp": log.times,
            "event": [log.event_type_names[event_type] for event_type in log.event_types],
        }
    ).filter(kept)
    result = model.recommend(history, k=5)

    assert result["user_id"].unique(maintain_order=True).to_list() == log.user_ids.to_list()
    ids = model.catalog.item_ids.gather(expected.items.ravel())
    assert result["item_id"].to_list() == ids.to_list()
    np.testing.assert_allclose(result["score"], expected.scores.ravel(), rtol=1e-6)


def test_a_new_user_gets_other_items_of_their_brand(model):
    for brand in (0, 2, 3):
        best = model.recommend(new_user_of_brand(brand), k=6)
        assert set(best["item_id"]) == {f"i{10 * brand + item:02}" for item in range(4, 10)}


def test_any_type_of_node_is_ranked(model):
    brands = model.recommend(new_user_of_brand(2), k=4, target="brand")
    assert brands.columns == ["user_id", "rank", "brand", "score"]
    assert brands["brand"][0] == "brand2"
    assert brands["score"].is_sorted(descending=True)
    with pytest.raises(ValueError, match="no node type 'shop'"):
        model.recommend(new_user_of_brand(2), k=1, target="shop")
    with pytest.raises(ValueError, match="rules act on items only"):
        model.recommend(new_user_of_brand(2), k=1, target="brand", where="brand = 'brand1'")


def test_rules_hold_in_full_lists(model, events):
    seen = set(events.select("user_id", "item_id").iter_rows())
    where = "brand <> 'brand0' AND price < 50"
    ranked = model.recommend(events, k=4, where=where, caps={"brand": 2})
    assert set(ranked.group_by("user_id").len()["len"]) == {4}
    assert not seen & set(ranked.select("user_id", "item_id").iter_rows())
    known = ranked.join(model.catalog.items, on="item_id")
    assert "brand0" not in known["brand"].to_list() and known["price"].max() < 50
    assert known.group_by("user_id", "brand").len()["len"].max() == 2


def test_lists_shorter_than_k_are_not_padded(model, events):
    ranked = model.recommend(events, k=6, only=("i01", "i02"), mask=("none",))
    assert set(ranked["item_id"]) == {"i01", "i02"}
    assert set(ranked.group_by("user_id").len()["len"]) == {2}
    assert model.recommend(events, k=6, where="brand = 'unknown'").is_empty()


def test_exploration_adds_new_items(model, shop, events):
    extended = model.with_items(shop.items.filter(pl.col("item_id") == HELD_OUT))
    ranked = extended.recommend(events, k=5, explore=0.2)
    shown = ranked.filter(pl.col("item_id") == HELD_OUT)["user_id"]
    assert shown.n_unique() == events["user_id"].n_unique()


def test_similar_nodes_do_not_hold_the_node_itself(model):
    result = model.similar("item:i03", k=8)
    assert result.columns == ["rank", "item_id", "cosine", "title"]
    assert "i03" not in result["item_id"].to_list()
    assert result["cosine"].is_sorted(descending=True) and result["cosine"].max() <= 1 + 1e-6
    units = np.asarray(model.index.items.vectors)[1:40]
    units = units / np.linalg.norm(units, axis=1, keepdims=True)
    places = model.catalog.item_ids.to_list()
    cosine = units[places.index("i03") - 1] @ units[places.index(result["item_id"][0]) - 1]
    assert result["cosine"][0] == pytest.approx(cosine, abs=1e-5)
    assert model.similar("brand:brand1", k=2).columns == ["rank", "brand", "cosine"]
    for wrong, message in (("i03", "TYPE:ID"), ("item:x", "no item 'x'"), ("shop:1", "node type")):
        with pytest.raises(ValueError, match=message):
            model.similar(wrong)
