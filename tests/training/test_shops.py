"""Training on two shops at once. Users, items and brands of both have the same ids and names."""

import json
from dataclasses import replace
from functools import partial

import jax
import numpy as np
import polars as pl
import pytest
from helpers.paths import GOLDEN
from helpers.shop import DAY, make_tables
from helpers.training import config

import jaxrec
from jaxrec.artifacts.run_directory import read_config
from jaxrec.cli import train as command
from jaxrec.config import ForecastConfig
from jaxrec.data.dataset import prepare
from jaxrec.data.tables import validate_tables
from jaxrec.errors import ConfigError, DataError, InputError
from jaxrec.training import cards, cost, shops
from jaxrec.training.add_forecast import add_forecast
from jaxrec.training.context import make_context
from jaxrec.training.evaluator import validate
from jaxrec.training.fit import fit
from jaxrec.training.objective import StepInputs, objective
from jaxrec.training.refit import refit
from jaxrec.training.state import initial_state

OPTIONS = {
    "model.experts": ["text+graph"],
    "model.dropout": 0.0,
    "text.pretrained": str(GOLDEN / "tiny_bert"),
    "text.max_tokens": 16,
    "data.shops": {"old": "memory", "new": "memory"},
    "train.epochs": 2,
}


def second_shop():
    """A smaller shop that ended years before: other goods under the same ids, other event types."""
    tables = make_tables()
    kept = pl.col("item_id") < "i20"
    brand = "brand" + (pl.col("item_id").str.slice(1).cast(pl.Int64) % 3 + 4).cast(pl.String)
    items = tables.items.filter(kept).with_columns(
        title="Tea number " + pl.col("item_id"), brand=brand, categories=None
    )
    events = tables.events.filter(kept).with_columns(
        pl.col("timestamp") // 1000 - 4000 * DAY, pl.col("event").replace("buy", "order")
    )
    return validate_tables(events, items.drop("categories"), None)


@pytest.fixture(scope="module")
def both():
    return {"old": second_shop(), "new": make_tables()}


def joint_context(both, **options):
    options = config(**OPTIONS | options)
    return shops.with_shops(make_context(options, prepare(options, both)))


@pytest.fixture(scope="module")
def context(both):
    return joint_context(both)


@pytest.fixture(scope="module")
def run(context, tmp_path_factory):
    """A run on both shops and its first parameters, with the run directories of the shops."""
    directory, first = tmp_path_factory.mktemp("runs") / "both", initial_state(context)
    shops.write_run(context, first, directory)
    for name, own in shops.shop_states(context, first).items():
        shops.write_run(context.shops[name], own, directory / "shops" / name)
    return directory


def local_batches(context, batch):
    """The part of a joint batch that each shop has, in the item numbers of the shop."""
    rows = shops.item_rows([own.dataset for own in context.shops.values()])
    for name, items in zip(context.shops, rows, strict=True):
        place = np.zeros(len(context.valid), np.int32)
        place[items] = np.arange(len(items))
        own = place[batch.items] > 0
        yield (
            name,
            replace(
                batch,
                items=place[batch.items],
                targets=place[batch.targets],
                weights=np.where(own, batch.weights, 0),
                first_weights=np.where(own, batch.first_weights, 0),
            ),
        )


@partial(jax.jit, static_argnums=0)
def losses(definition, params, arrays, text, batch):
    inputs = StepInputs(arrays, text, batch, jax.random.key(1))
    return objective(definition.merge(params), inputs)[1]


@pytest.mark.thorough
def test_a_mixed_batch_loses_the_sum_of_what_each_shop_loses_alone(context):
    first = initial_state(context)
    batch = context.packing.batch(0, 0)
    joint = losses(context.definition, first.params, context.arrays, first.text, batch)
    states, parts = shops.shop_states(context, first), list(local_batches(context, batch))
    assert all((part.weights > 0).any() for _, part in parts)  # the batch is mixed
    own = {}
    for name, part in parts:
        shop = context.shops[name]
        params, text = states[name].params, states[name].text
        own[name] = losses(shop.definition, params, shop.arrays, text, part)
    for task, weight_of in {
        "next_item/0": lambda part: part.weights.sum(),
        "first_item/0": lambda part: part.first_weights.sum(),
    }.items():
        weights = np.array([weight_of(part) for _, part in parts])
        alone = np.array([own[name][task] for name, _ in parts])
        assert joint[task] * weights.sum() == pytest.approx((weights * alone).sum(), rel=1e-5)
    assert joint["next_brand/0"] > 0


def test_no_item_or_brand_of_another_shop_is_a_candidate(context):
    first = initial_state(context)
    rows = shops.item_rows([own.dataset for own in context.shops.values()])
    batch = context.packing.batch(0, 0)

    def loss(text, batch):
        return sum(losses(context.definition, first.params, context.arrays, text, batch).values())

    gradient = jax.jit(jax.grad(loss))
    inside = np.isin(batch.items, rows[0][1:])
    only_old = replace(
        batch,
        weights=np.where(inside, batch.weights, 0),
        first_weights=np.where(inside, batch.first_weights, 0),
    )
    moved = np.abs(np.asarray(gradient(first.text, only_old))).max(1) > 0
    assert moved[rows[0][1:]].all() and not moved[rows[1][1:]].any()


def test_shops_have_their_own_users_items_and_moments_but_brands_share_what_is_learned(context):
    dataset = context.dataset
    old, new = dataset.shops.values()
    log = dataset.split.log
    assert log.num_users == old.split.log.num_users + new.split.log.num_users
    assert log.user_ids.is_unique().all()
    assert len(dataset.catalog.items) == 1 + 20 + 30
    assert log.event_type_names == ("buy", "order", "view") == old.split.log.event_type_names
    for shop in (old, new):  # by one moment for both, all events of the old shop would train
        assert len(shop.split.validation) and len(shop.split.test["last"])
    graph = dataset.catalog.graph
    brands = graph.type("brand")
    assert brands.ids.to_list()[1:] == [
        *(f"brand{n}" for n in (4, 5, 6)),
        *(f"brand{n}" for n in range(5)),
    ]
    entities = np.asarray(context.arrays.catalog.nodes.entities)
    first = brands.offset - graph.types[0].padded_size
    assert entities[first + 1] == entities[first + 8] == first + 1  # brand4 of both


@pytest.mark.slow
def test_a_validation_is_the_mean_over_the_queries_of_all_shops(context):
    first = initial_state(context)
    scores = shops.validate_shops(context, first)
    counts = [len(own.dataset.split.validation) for own in context.shops.values()]
    of_shops = [scores[f"{name}/ndcg@10"] for name in context.shops]
    assert scores["count"] == sum(counts) and of_shops[0] != of_shops[1]
    assert scores["ndcg@10"] == pytest.approx(np.average(of_shops, weights=counts))
    of_old = shops.shop_states(context, first)["old"]
    assert validate(context.shops["old"], of_old)["ndcg@10"] == of_shops[0]


@pytest.mark.thorough
def test_every_shop_and_a_third_one_are_served(run, both):
    joint = jaxrec.load(run)
    vectors = joint.index.host_vectors("item")
    for name, first, count in (("old", 1, 20), ("new", 21, 30)):
        model = jaxrec.load(run / "shops" / name)
        own = model.index.host_vectors("item")[1 : 1 + count]
        np.testing.assert_allclose(own, vectors[first : first + count], atol=1e-5)
        best = model.recommend(seconds(both[name]), k=5)
        assert set(best["item_id"]) <= set(both[name].items["item_id"])
    with pytest.raises(InputError, match="shops/old"):
        joint.recommend(both["new"].events)
    with pytest.raises(InputError, match="shops/old"):
        joint.with_items(both["new"].items)
    goods = pl.DataFrame({"item_id": ["a", "b"], "title": ["Tea", "Soap"]})
    third = joint.for_shop(goods.with_columns(brand=pl.Series(["brand6", "brand0"])))
    events = pl.DataFrame({"user_id": ["u"], "item_id": ["a"], "timestamp": [10**9]})
    events = events.with_columns(event=pl.lit("view"))
    assert third.recommend(events, k=1)["item_id"].to_list() == ["b"]
    assert any("2 of 2 brands" in note for note in third.notes)
    with pytest.raises(ConfigError, match="shops/old"):
        add_forecast(run, ForecastConfig(steps=2))


@pytest.mark.slow
def test_a_training_measures_and_writes_every_shop_and_so_does_its_refit(both, tmp_path):
    directory = tmp_path / "both"
    results = fit(config(**OPTIONS), directory, tables=both)
    assert json.loads((directory / "metrics.json").read_text()) == results
    for name, items in {"old": 20, "new": 30}.items():
        part = results["shops"][name]
        assert part["protocol"]["candidates"] == items
        assert part["test"]["model"]["recall@50"] == 1
        assert "popularity" in part["baselines"]
    ranks = pl.read_parquet(directory / "ranks.parquet")
    assert set(ranks["shop"]) == {"old", "new"} and "/" not in "".join(ranks["user_id"])
    card = (directory / "shops" / "old" / "model_card.md").read_text()
    assert "ranks 20 items" in card and "together with the data of new" in card
    joint_data = cards.joint_data_card(joint_context(both))
    assert (directory / cards.DATA_CARD).read_text() == joint_data
    assert "(shops/old/model_card.md)" in (directory / cards.MODEL_CARD).read_text()
    store = directory / "shops" / "old" / "shoppers.db"
    store.touch()  # of a live service
    resumed = fit(read_config(directory), directory, tables=both, resume=True)
    assert resumed["selected"] == results["selected"] and store.exists()
    assert refit(read_config(directory), directory, tables=both)["serves"] == "refit"
    model = jaxrec.load(directory / "shops" / "new")
    assert model.step == jaxrec.load(directory).step
    assert (directory / "shops" / "new" / "refit" / "calibration.json").exists()
    assert model.recommend(seconds(both["new"]), k=2).height == 80
    one = OPTIONS | {"data.shops": {}, "train.init": str(directory), "train.epochs": 1}
    fit(config(**one), tmp_path / "one", tables=both["new"])


def test_the_cards_of_a_run_on_several_shops_point_to_those_of_each_shop(context, both):
    users = {name: tables.events["user_id"].n_unique() for name, tables in both.items()}
    data = cards.joint_data_card(context)
    assert f"| [old](shops/old/data_card.md) | {users['old']} | 20 | " in data
    assert f"| [new](shops/new/data_card.md) | {users['new']} | 30 | " in data
    results = {"selected": {"epoch": 1, "old/ndcg@10": 0.5, "new/ndcg@10": 0.25}}
    model = cards.joint_model_card(context, results, [{"epoch": 0}], cost.Meter())
    assert "| epochs | 1 trained, 1 selected |" in model and "`model.dropout: 0.0`" in model
    assert "| [new](shops/new/model_card.md) | 0.2500 |" in model


def seconds(tables):
    """Events as a shop gives them, with times in seconds."""
    return tables.events.with_columns(pl.col("timestamp") // 1000)


def test_a_column_that_one_shop_lacks_is_missing_there(both):
    image = pl.Series("image", np.random.default_rng(0).normal(size=(30, 6)).tolist())
    tables = both | {"new": replace(both["new"], items=both["new"].items.with_columns(image))}
    context = joint_context(tables, **{"model.experts": ["text+image"]})
    flags = np.asarray(context.arrays.catalog.nodes.features["image"])[:, -1]
    assert flags[1:21].all() and not flags[21:51].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model.experts": ["id+text"]}, "ids say nothing"),
        ({"train.link_weight": 0.1}, "is for one shop"),
        ({"warm_start.base": "run"}, "goes on with one shop"),
        ({"data.shops": {"one": "path"}}, "two shops or more"),
        ({"data.shops": {"a/b": "path", "c": "path"}}, "name of a directory"),
    ],
)
def test_what_does_not_go_with_several_shops_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        config(**OPTIONS | options)


def test_errors_name_the_shop(both):
    titles = both["old"].items.with_columns(title=pl.concat_list("title"))
    with pytest.raises(DataError, match="write title"):
        joint_context(both | {"old": replace(both["old"], items=titles)})
    few = both["old"].events.head(3)
    with pytest.raises(DataError, match="shop old: "):
        joint_context(both | {"old": replace(both["old"], events=few)})


def test_the_command_line_takes_several_data_sets(monkeypatch, tmp_path):
    given = {}
    monkeypatch.setattr(command.api, "fit", lambda recipe, **options: given.update(options))
    command.run(["--data", "data/first", "--data", "data/second"])
    assert given["data"] == {"first": "data/first", "second": "data/second"}
    made = jaxrec.configure(data=given["data"])
    assert made.data.shops == given["data"] and made.model.experts == ("text+graph",)
    command.run(["--data", "data/first"])
    assert given["data"] == "data/first"
    with pytest.raises(ConfigError, match=r"--data\.shops first"):
        command.run(["--data", "a/shop", "--data", "b/shop"])
