"""Random strategies are used, or refused with a message; none fails otherwise."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from random import Random

import numpy as np
import polars as pl
import pytest
import yaml
from helpers.conditions import condition, table
from helpers.fuzzing import COUNT, SEED, in_time, mutated

from jaxrec.data.graph import build_graph
from jaxrec.errors import InputError
from jaxrec.ranking.adjustments import no_adjustments
from jaxrec.ranking.item_table import ItemTable
from jaxrec.ranking.pipeline import Reranker, RerankQueries, build_pipeline
from jaxrec.ranking.steps import STEPS
from jaxrec.ranking.strategy import read_strategy
from jaxrec.types import Catalog

NUMBERS = [
    0,
    1,
    2,
    0.3,
    1.0,
    1.5,
    -1,
    30,
    1e6,
    1e7,
    1e308,
    float("nan"),
    float("inf"),
    2**31,
    2**64,
]
TEXTS = ["price < 50", "", "brand", "item", "i1", "1e-3", "\0", "é" * 500, "nowhere.csv", "/"]
OTHERS = [None, True, [], {}, ["i1", "i2"], [1, "i1", None], {"brand": 2}, {"brand": -1}, {1: {}}]
USUAL = {
    float: [0, 0.3, 1.0, 2],
    int: [1, 2, 50],
    str: ["price < 50", "title is not null"],
    Mapping[str, int]: [{"brand": 2}],
    Mapping[str, float]: [{"dislike": -1.0}],
    Path | str | Sequence[str | int]: [["i1", "i2"]],
}
ITEMS = 40


@pytest.fixture(scope="module")
def catalog():
    items = table(ITEMS).select("price", "title", "tags")
    brands = [None, *(f"b{item % 3}" for item in range(1, ITEMS))]
    ids = [None, *(f"i{item}" for item in range(1, ITEMS))]
    items = items.with_columns(item_id=pl.Series(ids), brand=pl.Series(brands))
    return Catalog(items, build_graph(items, None))


def value(random, kind=None):
    """A value of an option, mostly of its type."""
    if kind in USUAL and random.random() < 0.8:
        return random.choice(USUAL[kind])
    if random.random() < 0.2:
        return condition(random)
    return random.choice(random.choice([NUMBERS, NUMBERS, TEXTS, OTHERS]))


def strategy(random):
    """The bytes of a random YAML file; one of four is damaged."""
    steps = []
    for _ in range(random.randint(1, 3)):
        name = random.choice([*STEPS])
        known = fields(STEPS[name])
        chosen = random.sample(known, random.randint(len(known) // 2, len(known)))
        options = {option.name: value(random, option.type) for option in chosen}
        if random.random() < 0.05:
            options["k"] = value(random)
        name = name if random.random() < 0.95 else random.choice(["nothing", 1])
        only = value(random, known[0].type)
        steps.append(random.choice([name, {name: options}, {name: options}, {name: only}]))
    text = yaml.safe_dump(random.choice([steps] * 9 + [value(random)]), allow_unicode=True)
    content = text.encode(errors="surrogateescape")
    return mutated(random, content) if random.random() < 0.25 else content


def run(catalog, seed, count, file):
    """How many of `count` strategies are used."""
    rows = np.arange(catalog.graph.types[0].padded_size)
    valid = (rows > 0) & (rows < ITEMS)
    random, vectors = Random(seed), np.random.default_rng(0).normal(size=(len(rows), 4))
    items = ItemTable(vectors.astype(np.float32), valid)
    queries = RerankQueries(vectors[:2].astype(np.float32), lambda _: no_adjustments)

    def is_used(content):
        file.write_bytes(content)
        try:
            steps = read_strategy(file)
            pipeline = build_pipeline(steps, catalog, np.ones(ITEMS, np.float32), valid)
        except InputError:
            return False
        lists = Reranker(pipeline, items).rank(queries, 5).lists
        return np.isfinite(lists.scores[lists.items > 0]).all()

    return sum(in_time(is_used, strategy(random)) for _ in range(count))


def test_random_strategies_are_used_or_refused(catalog, tmp_path, unchecked):
    assert run(catalog, 0, 200, tmp_path / "strategy.yaml") > 10


@pytest.mark.slow
def test_very_many_random_strategies_are_used_or_refused(catalog, tmp_path, unchecked):
    run(catalog, SEED, COUNT // 10, tmp_path / "strategy.yaml")
