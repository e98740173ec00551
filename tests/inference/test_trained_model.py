import shutil
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from helpers.shop import HELD_OUT, corrected

import jaxrec
from jaxrec.artifacts import run_directory as checkpoint
from jaxrec.data.dataset import prepare
from jaxrec.errors import DataError, RunError
from jaxrec.evaluation.calibration import Correction
from jaxrec.inference.encoding import encode_queries
from jaxrec.ranking.adjustments import mask_adjustments, repeat_adjustments
from jaxrec.ranking.top_k import EvalQueries, best_items, rank_queries
from jaxrec.training import loop as training
from jaxrec.types import ANY_EVENT_TYPE


@pytest.fixture(scope="module")
def model(trained_run):
    return jaxrec.load(trained_run)


@pytest.fixture(scope="module")
def events(known_shop):
    return known_shop.events


def fan(brand, items=(0, 1, 2, 3), later=0):
    """Somebody new who chooses items of one brand."""
    return pl.DataFrame(
        {
            "user_id": [f"fan{brand}"] * len(items),
            "item_id": [f"i{10 * brand + item:02}" for item in items],
            "timestamp": [1_704_067_200 + later + 3600 * place for place in range(len(items))],
            "event": ["view"] * len(items),
        }
    )


def test_a_run_that_masks_nothing_ranks_as_it_was_evaluated(model, known_shop, tmp_path):
    """With what is familiar, as training has learned it and validation has corrected it."""
    config = replace(
        model.config,
        evaluation=replace(model.config.evaluation, mask=("none",)),
        train=replace(model.config.train, epochs=3),
    )
    training.fit(config, tmp_path / "run", tables=known_shop)
    unmasked = jaxrec.load(tmp_path / "run")
    repeat_bias = unmasked.ranker.repeat_bias(unmasked.encoder.target_event_type)
    assert unmasked.correction != Correction() and repeat_bias.any()
    dataset = prepare(config, known_shop)
    log, queries = dataset.split.log, dataset.split.test["last"]
    eval_queries = EvalQueries(
        unmasked.encoder.vectors_at(log, queries),
        log.items[queries.positions],
        repeat_adjustments(log, queries, repeat_bias),
    )
    ranking = rank_queries(eval_queries, unmasked.index.items)
    written = pl.read_parquet(tmp_path / "run" / "ranks.parquet").filter(queries="test")
    np.testing.assert_array_equal(ranking.ranks, written["rank"])


def test_popularity_is_corrected_in_every_score(model, shop):
    """By a weight of log(1 + training events), which a new item has none of."""
    known = model.index.catalog.num_items - 1
    new = shop.items.filter(~pl.col("item_id").is_in(model.index.catalog.item_ids.to_list()))
    plain, less_popular = (corrected(model, weight).with_items(new) for weight in (0.0, -2.0))
    expected = np.append(-2 * np.log1p(model.artifacts.counts[1:]), np.zeros(len(new)))
    scores, moved = (
        m.recommend(fan(1), k=known + len(new), mask=("none",)).sort("item_id")["score"]
        for m in (plain, less_popular)
    )
    ids = plain.index.catalog.item_ids.to_list()[1:]
    np.testing.assert_allclose(moved - scores, expected[np.argsort(ids)], atol=1e-4)
    assert plain.similar("item:i03").equals(less_popular.similar("item:i03"))
    assert plain.version == less_popular.version


def test_scores_are_those_of_the_evaluation_loop(model, known_shop):
    """The same histories, read from the events of the users alone, in another company."""
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
            "item_id": model.index.catalog.item_ids.gather(log.items),
            "timestamp": log.times,
            "event": [log.event_type_names[event_type] for event_type in log.event_types],
        }
    ).filter(kept)
    found = model.recommend(history, k=5)

    assert found["user_id"].unique(maintain_order=True).to_list() == log.user_ids.to_list()
    ids = model.index.catalog.item_ids.gather(expected.items.ravel())
    assert found["item_id"].to_list() == ids.to_list()
    np.testing.assert_allclose(found["score"], expected.scores.ravel(), rtol=1e-6)


def test_somebody_new_is_offered_what_else_their_brand_has(model):
    for brand in (0, 2, 3):
        best = model.recommend(fan(brand), k=6)
        assert set(best["item_id"]) == {f"i{10 * brand + item:02}" for item in range(4, 10)}


def test_an_item_that_training_never_saw_is_found_by_those_who_went_on_to_choose_it(model, shop):
    is_new = pl.col("item_id") == HELD_OUT
    extended = model.with_items(shop.items.filter(is_new))
    assert extended.index.catalog.num_items == model.index.catalog.num_items + 1
    when = shop.events.filter(is_new).select("user_id", pl.col("timestamp").alias("when"))
    before = shop.events.join(when, on="user_id").filter(pl.col("timestamp") < pl.col("when"))
    ranked = extended.recommend(before.drop("when"), k=40, mask=("none",))
    ranks = ranked.filter(is_new)["rank"]
    assert len(ranks) >= 10
    # popularity is even told how often the item would come to be chosen
    by_popularity = shop.events["item_id"].value_counts(sort=True)["item_id"].to_list()
    chance = 41 / 2
    assert ranks.mean() < 0.5 * min(by_popularity.index(HELD_OUT) + 1, chance)


def test_words_find_the_items_whose_texts_they_are_old_and_new(model, shop, events):
    extended = model.with_items(shop.items.filter(pl.col("item_id") == HELD_OUT))
    users = model.encoder.vectors(model.encoder.states(model.encoder.event_log(events)))
    ids, items = extended.index.catalog.item_ids.to_list(), extended.words.items
    for item in ("i05", HELD_OUT):
        number = int(item[1:])
        words = f"brand {'wxyz'[number // 10]} item {'abcdefghij'[number % 10]}. "
        words += f"brand{number // 10}. Beauty > Shelf {number % 3}"
        scores = extended.words.steer(users, words, 1.0) @ items.vectors.T
        best = np.where(items.valid, scores, -np.inf).argmax(1)
        assert {ids[row] for row in best} == {item}
    unmoved = extended.words.steer(users, words, 0.0) @ items.vectors.T
    table = extended.index.items
    np.testing.assert_allclose(unmoved, users @ table.vectors.T + table.biases, atol=1e-4)


def test_new_items_leave_the_others_where_they_were(model, shop, events):
    extended = model.with_items(shop.items.filter(pl.col("item_id") == HELD_OUT))
    before = model.recommend(events, k=39, mask=("none",))
    after = extended.recommend(events, k=40, mask=("none",))
    after = after.filter(pl.col("item_id") != HELD_OUT).sort("user_id", "item_id")
    np.testing.assert_allclose(
        after["score"], before.sort("user_id", "item_id")["score"], atol=1e-4
    )
    with pytest.raises(ValueError, match="one table"):
        extended.with_items(pl.DataFrame({"item_id": ["another"]}))


def test_any_type_of_node_is_ranked(model):
    brands = model.recommend(fan(2), k=4, target="brand")
    assert brands.columns == ["user_id", "rank", "brand", "score"]
    assert brands["brand"][0] == "brand2"
    assert brands["score"].is_sorted(descending=True)
    with pytest.raises(ValueError, match="no node type 'shop'"):
        model.recommend(fan(2), k=1, target="shop")
    with pytest.raises(ValueError, match="rules act on items only"):
        model.recommend(fan(2), k=1, target="brand", where="brand = 'brand1'")


def test_rules_hold_in_full_lists(model, events):
    seen = set(events.select("user_id", "item_id").iter_rows())
    where = "brand <> 'brand0' AND price < 50"
    ranked = model.recommend(events, k=4, where=where, caps={"brand": 2})
    assert set(ranked.group_by("user_id").len()["len"]) == {4}
    assert not seen & set(ranked.select("user_id", "item_id").iter_rows())
    known = ranked.join(model.index.catalog.items, on="item_id")
    assert "brand0" not in known["brand"].to_list() and known["price"].max() < 50
    assert known.group_by("user_id", "brand").len()["len"].max() == 2


def test_fewer_items_than_asked_for_are_never_padded(model, events):
    ranked = model.recommend(events, k=6, only=("i01", "i02"), mask=("none",))
    assert set(ranked["item_id"]) == {"i01", "i02"}
    assert set(ranked.group_by("user_id").len()["len"]) == {2}
    assert model.recommend(events, k=6, where="brand = 'nobody'").is_empty()


def test_exploration_brings_new_items_in(model, shop, events):
    extended = model.with_items(shop.items.filter(pl.col("item_id") == HELD_OUT))
    ranked = extended.recommend(events, k=5, explore=0.2)
    shown = ranked.filter(pl.col("item_id") == HELD_OUT)["user_id"]
    assert shown.n_unique() == events["user_id"].n_unique()


def test_similar_nodes_do_not_hold_the_node_itself(model):
    found = model.similar("item:i03", k=8)
    assert found.columns == ["rank", "item_id", "cosine", "title"]
    assert "i03" not in found["item_id"].to_list()
    assert found["cosine"].is_sorted(descending=True) and found["cosine"].max() <= 1 + 1e-6
    units = np.asarray(model.index.items.vectors)[1:40]
    units = units / np.linalg.norm(units, axis=1, keepdims=True)
    places = model.index.catalog.item_ids.to_list()
    cosine = units[places.index("i03") - 1] @ units[places.index(found["item_id"][0]) - 1]
    assert found["cosine"][0] == pytest.approx(cosine, abs=1e-5)
    assert model.similar("brand:brand1", k=2).columns == ["rank", "brand", "cosine"]
    for wrong, message in (("i03", "TYPE:ID"), ("item:x", "no item 'x'"), ("shop:1", "node type")):
        with pytest.raises(ValueError, match=message):
            model.similar(wrong)


def test_an_audience_are_those_whose_next_item_it_may_be(model):
    people = pl.concat(fan(brand) for brand in range(4))
    audience = model.audience(people, "brand:brand3", size=3, bid=2.0)
    assert audience["user_id"][0] == "fan3"
    assert len(audience) == 3
    np.testing.assert_allclose(audience["ecpm"], audience["probability"] * 2 * 1000)
    everyone = [model.audience(people, f"brand:brand{brand}", size=9) for brand in range(4)]
    total = pl.concat(everyone).group_by("user_id").agg(pl.col("probability").sum())
    # every item has one brand, so the brands share all of a user's next choice
    np.testing.assert_allclose(total["probability"], 1, atol=1e-4)
    again = model.audience(people, "item:i30", size=9, mask=("none",))
    assert "fan3" in again["user_id"].to_list()
    new = model.audience(people, "item:i30", size=9)  # as the run was evaluated
    assert "fan3" not in new["user_id"].to_list()


def test_a_profile_tells_what_somebody_is_interested_in_and_how_it_moved(model, tmp_path):
    moved = pl.concat([fan(0), fan(3, later=86_400)]).with_columns(user_id=pl.lit("mover"))
    profile = model.profile(moved, last=4, top=4)
    brands = profile.filter(pl.col("type") == "brand")
    assert brands["id"][0] == "brand3"
    assert brands["weight"].sum() == pytest.approx(1, abs=1e-4)
    assert brands["change"][0] > 0
    np.testing.assert_allclose(brands["change"], brands["weight"] - brands["before"])
    earlier = model.profile(moved.head(4), last=4, top=1).filter(pl.col("type") == "brand")
    assert earlier["id"][0] == "brand0"
    before = brands.filter(pl.col("id") == "brand0")["before"]
    assert before[0] == pytest.approx(earlier["weight"][0], abs=1e-5)
    assert set(profile["type"]) == {"category", "brand", "item"}
    model.plot_profile(moved, "mover", tmp_path / "mover.png", last=6)
    assert (tmp_path / "mover.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="no user 'x'"):
        model.plot_profile(moved, "x", tmp_path / "x.png")


def test_bad_requests_say_what_is_wrong(model, events, trained_run, tmp_path):
    for k in (0, 40):
        with pytest.raises(ValueError, match=f"k={k}: give a number from 1 to 39"):
            model.recommend(events, k=k)
    with pytest.raises(DataError, match="does not know: steal"):
        model.recommend(events.with_columns(event=pl.lit("steal")))
    with pytest.raises(DataError, match="timestamp"):
        model.recommend(events.drop("timestamp"))
    with pytest.raises(ValueError, match="mask"):
        model.recommend(events, mask=("steal",))
    with pytest.raises(RunError, match="not a run directory"):
        jaxrec.load(tmp_path)


def test_a_run_that_is_incomplete_or_of_another_version_is_refused(trained_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    step = jaxrec.load(run).step
    for data in (run / "checkpoints" / str(step) / "params").rglob("d/*"):
        data.unlink()
    with pytest.raises(RunError, match=f"step {step} in .* cannot be read"):
        jaxrec.load(run)
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").mkdir()
    with pytest.raises(RunError, match="no validated checkpoint"):
        jaxrec.load(run)
    layout = run / "catalog" / "layout.json"
    layout.write_text(layout.read_text().replace(f'"format": {checkpoint.FORMAT}', '"format": 0'))
    with pytest.raises(RunError, match="has format 0"):
        jaxrec.load(run)
    layout.unlink()
    with pytest.raises(RunError, match=r"no catalog/layout\.json"):
        jaxrec.load(run)


@pytest.mark.parametrize("item_shards", [2, 4])
def test_lists_do_not_depend_on_the_mesh(trained_run, model, events, item_shards):
    other = jaxrec.load(trained_run, item_shards).recommend(events, k=7)
    mine = model.recommend(events, k=7)
    np.testing.assert_allclose(other["score"], mine["score"], atol=1e-5)
    assert (other["item_id"] == mine["item_id"]).mean() > 0.98
