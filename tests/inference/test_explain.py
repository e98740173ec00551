"""Explanations of recommendations: events, parts, paths, words."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest
from helpers.histories import new_user_of_brand, with_purchases
from helpers.shop import HELD_OUT, corrected

from jaxrec.artifacts.run_directory import COOCCURRENCE, SIMILAR_TEXT
from jaxrec.errors import InputError
from jaxrec.inference import explain, word_influence
from jaxrec.inference.event_scores import ADDED, DECAY
from jaxrec.inference.explain import (
    MOST_LEFT_OUT,
    gradient_amounts,
    user_of,
    without_each,
)
from jaxrec.inference.explanation import EventContribution, GraphPath, sentence
from jaxrec.inference.graph_paths import Neighbours
from jaxrec.inference.text_features import encode_texts
from jaxrec.inference.word_influence import MAX_WORDS, WORD
from jaxrec.ranking.steps import Boost, Feedback, Popularity, Session
from jaxrec.types import ANY_EVENT_TYPE, KnowledgeGraph, NodeType

LIKES = pl.DataFrame(
    {"user_id": "fan3", "item_id": "i34", "timestamp": 1_704_153_600, "event": "like"}
)


@pytest.fixture(scope="module")
def fan():
    return new_user_of_brand(3)


@pytest.fixture(scope="module")
def biased(model):
    return corrected(model)


def vector_without(model, events, place):
    """The user vector after all events but one, by the public way."""
    numbers = [n for n in range(len(events)) if n != place]
    return model.user_batch(model.encoder.event_log(events[numbers])).vectors[0]


def test_parts_add_up_to_the_score_of_the_list(biased, fan):
    names, events = set[tuple[str, str]](), with_purchases(fan)
    raised = ["i21", "i32"]  # by the last purchase
    listed = biased.recommend(events, k=39).filter(
        (pl.col("rank") <= 3) | pl.col("item_id").is_in(raised)
    )
    for item, score in listed.select("item_id", "score").iter_rows():
        made = biased.explain(events, item)
        assert made.score == pytest.approx(score, abs=1e-4)
        assert sum(part.amount for part in made.parts) == pytest.approx(score, abs=1e-4)
        own = {(part.group, part.part) for part in made.parts}
        assert own >= {
            *((e, p) for e in ("id+graph", "text+graph") for p in ("graph", "item_memory")),
            ("", "average"),
            ("", "popularity"),
        }
        names |= own
    assert names >= {("", "repeat_bias"), ("", COOCCURRENCE), ("", SIMILAR_TEXT)}


def test_the_steps_of_a_strategy_are_parts_of_the_score(biased, fan):
    strategy = [Session(weight=0.4), Boost(where="price > 20", by=0.7), Popularity(0.5), Feedback()]
    events = pl.concat([fan, LIKES])
    listed = biased.recommend(events, k=6, strategy=strategy)
    for item, score in listed.select("item_id", "score").iter_rows():
        made = biased.explain(events, item, strategy=strategy)
        assert sum(part.amount for part in made.parts) == pytest.approx(score, abs=1e-4)
    made = biased.explain(events, "i34", strategy=strategy)
    steps = {part.part: part.amount for part in made.parts if part.group == "strategy"}
    assert list(steps) == ["session", "boost", "popularity", "feedback"]
    assert steps["boost"] == pytest.approx(0.7, abs=1e-6)
    assert steps["feedback"] > 0


def test_an_event_adds_what_the_history_without_it_lacks(model, fan):
    made = model.explain(fan, "i35")
    assert made.events_by == "leave_one_out"
    assert [event.item_id for event in made.events] == fan["item_id"].to_list()
    vectors = np.asarray(model.index.items.vectors)
    (row,) = (model.catalog.item_ids == "i35").arg_true()
    lead = vectors[row] - vectors[model.index.items.valid].mean(0)
    whole = model.user_batch(model.encoder.event_log(fan)).vectors[0]
    for place, event in enumerate(made.events):
        expected = lead @ (whole - vector_without(model, fan, place))
        assert event.amount == pytest.approx(expected, abs=1e-4)
    assert made.sentence.startswith("Recommended because you viewed brand z item")
    assert made.sentence.endswith("; same brand brand3.")


def test_a_removed_event_is_absent_from_the_repeat_bias_too(biased, fan):
    """With vectors of zeros, the score is the repeat bias alone, which is known by hand."""
    nothing = jnp.zeros_like(biased.index.vectors)
    toy = replace(biased, index=replace(biased.index, vectors=nothing))
    events = pl.concat([fan[[0]], fan[[1]], fan[[0]]]).with_columns(
        pl.Series("timestamp", [1, 2, 3]) + 1_704_067_200
    )
    made = toy.explain(events, "i30")
    view = toy.encoder.event_type_names.index("view")
    now, before, earlier = toy.ranker.history_bias[toy.encoder.target_event_type].repeats[view, :3]
    # i30, i31, i30: the events of i30 are 2 and 0 events old
    expected = [earlier, (earlier + now) - (before + now), (earlier + now) - before]
    assert [event.amount for event in made.events] == pytest.approx(expected, abs=1e-5)


def test_shares_follow_amounts_similarities_and_neighbours(biased, fan):
    events, row = with_purchases(fan), biased.index.find("item:i35")[1]
    made, log = biased.explain(events, "i35"), biased.encoder.event_log(events)
    vectors = np.asarray(biased.index.items.vectors)
    leads = vectors - biased.explainer.average_item
    units = leads / np.linalg.norm(leads, axis=1, keepdims=True).clip(1e-12)
    similar = np.maximum(units[log.items] @ units[row], 0) * DECAY ** np.arange(len(fan))[::-1]
    bias = biased.ranker.history_bias[biased.encoder.target_event_type]
    amounts = np.array([event.amount for event in made.events])
    added = bias.of_events(log, np.array([row]))[:, 0]
    scores = similar + ADDED * added
    expected = [part / np.abs(part).sum() for part in (amounts, scores)]
    shares = [event.share for event in made.events]
    assert shares == pytest.approx(np.mean(expected, 0).tolist(), abs=1e-5)


def test_each_history_lacks_one_event(model, fan):
    log = model.encoder.event_log(fan)
    read = without_each(log)
    whole = log.items.tolist()
    assert user_of(read, 0).items.tolist() == whole
    for place in range(len(whole)):
        assert user_of(read, place + 1).items.tolist() == whole[:place] + whole[place + 1 :]


def test_long_histories_get_integrated_gradients(biased, fan, monkeypatch):
    long = pl.concat([fan] * 20).with_columns(pl.Series("timestamp", np.arange(80)) + 1_704_067_200)
    assert len(long) > MOST_LEFT_OUT
    made = biased.explain(long, "i35")
    assert made.events_by == "integrated_gradients"
    assert len(made.events) == 80
    model, log = biased, biased.encoder.event_log(long)
    vectors = np.asarray(model.index.items.vectors)
    lead = vectors[model.index.find("item:i35")[1]] - model.explainer.average_item
    amounts = gradient_amounts(model, log, lead[None])[:, 0]
    assert [event.amount for event in made.events] == pytest.approx(amounts.tolist(), abs=1e-6)
    silent = gradient_amounts(model, log, np.zeros_like(lead)[None])
    assert not silent.any()
    monkeypatch.setattr(explain, "MOST_GRADIENTS", 64)
    newest = gradient_amounts(model, log, lead[None])[:, 0]
    assert not newest[:16].any()
    assert newest[16:].all()


@pytest.mark.thorough
def test_gradients_add_up_to_the_lead_that_the_event_vectors_make(model, fan):
    log = model.encoder.event_log(fan)
    lead = np.asarray(model.index.items.vectors)[model.index.find("item:i35")[1]]
    recommender = model.model.merge()
    silence = jnp.zeros((1, len(fan), 16))
    states = [
        expert.sequence.scan(state, silence)[1]
        for expert, state in zip(recommender.experts, recommender.initial_state(1), strict=True)
    ]
    outputs = recommender.last_outputs(tuple(states))
    before = np.asarray(recommender.user_vectors(outputs, jnp.full(1, ANY_EVENT_TYPE)))[0]
    after = model.user_batch(log).vectors[0]
    amounts = gradient_amounts(model, log, lead[None])
    assert amounts.sum() == pytest.approx(float(lead @ (after - before)), rel=0.01)


def test_paths_lead_over_shared_entities_the_rare_ones_first(model, fan):
    made = model.explain(fan, "i35")
    assert [path.node_type for path in made.paths].count("brand") == 4
    assert {path.node for path in made.paths if path.node_type == "brand"} == {"brand3"}
    degrees = [path.degree for path in made.paths]
    assert degrees == sorted(degrees)
    other = model.explain(fan, "i05")
    assert "brand" not in {path.node_type for path in other.paths}


def test_a_path_of_a_made_graph_is_found():
    items = NodeType("item", pl.Series([None, "a", "b", "c"], dtype=pl.String), 0)
    brands = NodeType("brand", pl.Series([None, "big", "rare"], dtype=pl.String), 256)
    edges = [(1, 0, 257), (2, 0, 257), (3, 0, 257), (1, 0, 258), (2, 0, 258), (3, 1, 2)]
    heads, relations, tails = np.array(edges, np.int32).T
    graph = KnowledgeGraph((items, brands), ("has_brand", "bought_with"), heads, relations, tails)
    found = Neighbours(graph).paths([1, 3, 0, 1], 2, 10)
    assert [(path.item, path.node, path.degree) for path in found] == [
        (3, 0, 0),
        (1, 258, 2),
        (1, 257, 3),
        (3, 257, 3),
    ]
    assert found[0].relation == 1


def test_words_come_from_the_text_encoder_or_from_the_history(model, fan, monkeypatch):
    made = model.explain(fan, "i35")
    assert made.words_by == "leave_one_out"
    text = model.explainer.word_influence.texts[model.index.find("item:i35")[1]]
    assert {word.word for word in made.words} <= set(WORD.findall(text))
    amounts = [word.amount for word in made.words]
    assert amounts == sorted(amounts, reverse=True)
    assert amounts[0] > 1e-3
    monkeypatch.setattr(type(model.explainer.word_influence), "left_out", lambda *_: None)
    shared = model.explain(fan, "i35")
    assert shared.words_by == "shared"


def test_words_of_several_texts_are_those_of_each_alone(model, monkeypatch):
    # batches of other sizes round otherwise, and whitening the vectors of a tiny encoder makes a
    # thousand times as much of it
    monkeypatch.setattr(
        word_influence,
        "whitened_vectors",
        lambda tokens, is_text, whitening, tower, encoder: encode_texts(encoder, tokens),
    )
    influence = replace(model.explainer.word_influence)
    texts = [text for text in influence.texts if text][:12]
    assert sum(1 + len(WORD.findall(text)) for text in texts) > MAX_WORDS + 1
    together = influence.left_out(texts)
    for text, turns in zip(texts, together, strict=True):
        [alone] = replace(influence).left_out([text])
        assert dict(turns) == pytest.approx(dict(alone), abs=1e-5)
        assert turns[0][1] > 1e-4  # ten times what may differ
    assert influence.left_out([texts[0], texts[0]]) == [together[0]] * 2


def test_an_item_that_training_has_not_seen_is_explained_as_a_whole(model, fan, shop):
    today = model.with_items(shop.items)
    made = today.explain(fan, HELD_OUT)
    (score,) = today.recommend(fan, k=40, mask=("none",)).filter(item_id=HELD_OUT)["score"]
    assert sum(part.amount for part in made.parts) == pytest.approx(score, abs=1e-4)
    assert ("id+graph", "item") in {(part.group, part.part) for part in made.parts}


def test_sentences_name_the_largest_shares_and_the_strongest_path():
    def event(item, event_type, share, amount=0.1):
        return EventContribution(item, f"Title {item}", event_type, 0, amount, share)

    path = GraphPath("a", "Title a", "in_category", "category", "Beauty > Nails", "in_category", 2)
    events = [event("a", "view", 0.2, 0.3), event("b", "buy", 0.7), event("c", "view", -1)]
    events.append(event("d", "buy", 0.9, -0.1))  # the lead rises without it
    expected = "Recommended because you bought Title b and viewed Title a; same category Nails."
    assert sentence(events, [path]) == expected
    assert sentence([], []) == "Recommended as a first suggestion."
    returned = [event("a", "return", 0.9), event("b", "buy", 0.1)]
    assert sentence(returned, [], ("return",)) == "Recommended because you bought Title b."
    assert (
        sentence([event("c", "view", -1)], [])
        == "Recommended although no single event speaks for it."
    )


def test_bad_requests_name_the_fix(model, fan):
    both = pl.concat([fan, fan.with_columns(user_id=pl.lit("x"))])
    with pytest.raises(InputError, match="name one as user"):
        model.explain(both, "i35")
    assert model.explain(both, "i35", user="x").user_id == "x"
    with pytest.raises(InputError, match="no user 'y'"):
        model.explain(both, "i35", user="y")
    with pytest.raises(InputError, match="no item 'nothing'"):
        model.explain(fan, "nothing")
    with pytest.raises(InputError, match="keep item i35 out"):
        model.explain(fan, "i35", where="price < 1")
