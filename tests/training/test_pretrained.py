"""A training that begins with the parameters of another run."""

import jax
import numpy as np
import polars as pl
import pytest
from helpers.paths import GOLDEN
from helpers.training import config, scalars, untrained_run

import jaxrec
from jaxrec.artifacts import run_directory
from jaxrec.cli import train as command
from jaxrec.data.dataset import prepare
from jaxrec.data.tables import validate_tables
from jaxrec.errors import ConfigError, RunError
from jaxrec.models.graph import link_sampling
from jaxrec.training import pretrained
from jaxrec.training.context import make_context
from jaxrec.training.fit import fit
from jaxrec.training.state import initial_state


@pytest.fixture(scope="module")
def reordered(tables):
    """The same shop with its items in another order, one of them new."""
    new = pl.DataFrame({"item_id": ["a new"], "title": ["Soap"], "brand": ["brand1"]})
    items = pl.concat([new, tables.items.reverse()], how="diagonal")
    return validate_tables(tables.events.with_columns(pl.col("timestamp") // 1000), items, None)


def started(tables, **options):
    """The states before and after parameters are taken, and the notes."""
    options = config(**options)
    init = pretrained.open_pretrained(options)
    context = make_context(options, prepare(options, tables), text_of=init.text)
    state, notes = pretrained.start(context)
    before, after = (leaves(s.params) for s in (initial_state(context), state))
    changed = {name for name in after if (before[name] != after[name]).any()}
    return context, state, after, changed, "\n".join(notes)


def leaves(params):
    """Leaves by path, whether they are variables or arrays."""
    return {name.removesuffix(".value"): a for name, a in pretrained.leaves(params).items()}


def saved_params(run):
    return leaves(jaxrec.load(run).model.params)


@pytest.mark.thorough
def test_rows_move_by_id_into_a_model_with_a_new_optimiser(whole_run, reordered):
    context, state, after, _, notes = started(reordered, **{"train.init": str(whole_run)})
    ids = context.dataset.catalog.item_ids.to_list()
    old_ids = run_directory.read_artifacts(whole_run).catalog.item_ids.to_list()
    saved = saved_params(whole_run)
    (name,) = (name for name in after if "'experts'][0]" in name and "item_table" in name)
    row, old_row = ids.index("i05"), old_ids.index("i05")
    assert row != old_row
    np.testing.assert_array_equal(after[name][row], saved[name][old_row])
    np.testing.assert_array_equal(after[name][ids.index("a new")], saved[name][0])
    assert all(not leaf.any() for leaf in jax.tree.leaves(state.opt_state))
    assert int(state.step) == 0
    assert "30 of the items" in notes and "anew" not in notes
    assert "item without a match: 1 new here (a new)" in notes


@pytest.mark.thorough
def test_what_does_not_fit_is_named_and_begins_anew(whole_run, tables):
    options = {"model.experts": ["id+graph"], "model.sequence": "gru", "train.link_weight": 0.1}
    options["train.init"] = str(whole_run)
    after, changed, notes = started(tables, **options)[2:]
    saved = saved_params(whole_run)
    tables = [name for name in changed if name.endswith(("item_table']", "entity_table']"))]
    assert len(tables) == 2  # their rows beyond the ids are random
    assert all((after[name] == saved[name]).all() for name in changed - set(tables))
    assert any("graph_encoder" in name for name in changed)
    assert "experts.0.links" in notes and "has no such part" in notes
    assert "experts.0.sequence" in notes
    assert f"these of {whole_run} have no place here: " in notes and "the expert id (" in notes


@pytest.mark.thorough
def test_rows_and_parts_without_a_match_are_listed(tables, tmp_path):
    options = {"model.experts": ["id+graph"], "train.masked_item_weight": 0.1}
    first = untrained_run(tmp_path / "first", tables, **options, **{"train.link_weight": 0.1})
    kept = pl.col("item_id") < "i24"
    brand = pl.col("brand").replace("brand0", "new brand")
    items = tables.items.filter(kept).with_columns(brand).drop("categories")
    edge = {"head": "i01", "relation": "made_by", "tail": "Ann"}
    triples = pl.DataFrame([edge | {"head_type": "item", "tail_type": "maker"}])
    events = tables.events.filter(kept).with_columns(
        pl.col("timestamp") // 1000, pl.col("event").replace("buy", "order")
    )
    fewer = validate_tables(events, items, triples)
    notes = started(fewer, **{"model.experts": ["id+graph"], "train.init": str(first)})[-1]
    assert "experts.0.masked_items" in notes and "experts.0.links" in notes
    assert f"item without a match: 6 only in {first}" in notes
    assert f"brand without a match: 1 new here (new brand), 1 only in {first} (brand0)" in notes
    assert "maker without a match: 1 new here (Ann)" in notes
    assert f"category without a match: 10 only in {first}" in notes
    gone = f"2 only in {first} (in_category, child_of)"
    assert f"relation without a match: 1 new here (made_by), {gone}" in notes
    assert f"event type without a match: 1 new here (order), 1 only in {first} (buy)" in notes


TEXT = {"model.experts": ["text"], "text.pretrained": str(GOLDEN / "tiny_bert")}


@pytest.fixture(scope="module")
def tuned_run(tables, tmp_path_factory):
    run = tmp_path_factory.mktemp("tuned") / "run"
    return untrained_run(run, tables, **TEXT, **{"text.mode": "finetune"})


@pytest.mark.thorough
@pytest.mark.parametrize(
    "options",
    [{"text.pooling": "last"}, {"text.mode": "finetune", "text.finetune_layers": 2}],
    ids=["pooling", "layers"],
)
def test_texts_that_are_read_otherwise_are_fitted_anew(tuned_run, options):
    init = {"train.init": str(tuned_run)}
    taken = pretrained.open_pretrained(config(**TEXT, **init, **options))
    assert taken.text is None and "text" not in taken.parts
    assert list(options)[-1] in taken.notes[0] and "is not taken" in taken.notes[0]
    same = pretrained.open_pretrained(config(**TEXT, **init, **{"text.pooling": "mean"}))
    assert same.text is not None and not same.notes  # `auto` of BERT is its mean


@pytest.mark.thorough
def test_fine_tuned_layers_that_a_frozen_encoder_leaves_out_are_listed(tuned_run, tables):
    notes = started(tables, **TEXT, **{"train.init": str(tuned_run)})[-1]
    assert "have no place here: text_tower" in notes


@pytest.mark.thorough
def test_only_the_parts_that_are_named_are_taken(whole_run, tables):
    options = {"train.init": str(whole_run), "train.init_parts": ["ids"]}
    changed, notes = started(tables, **options)[3:]
    assert len(changed) == 2 and all("item_table" in name for name in changed)
    assert "anew" not in notes
    with pytest.raises(ConfigError, match=r"no parameter of .* fits this model"):
        started(tables, **options | {"train.init_parts": ["text"]})


@pytest.mark.slow
def test_a_pretraining_on_links_and_a_training_that_begins_with_it(tables, tmp_path, monkeypatch):
    monkeypatch.setattr(link_sampling, "HELD_OUT_SHARE", 0.1)  # of 69 edges
    first, second = tmp_path / "links", tmp_path / "items"
    only_links = {"train.next_item_weight": 0.0, "train.auxiliary_weight": 0.0}
    options = {"model.experts": ["id+graph"], "train.epochs": 2, "train.learning_rate": 0.02}
    results = fit(
        config(**options, **only_links, **{"train.link_weight": 1.0}), first, tables=tables
    )
    assert 0 < results["selected"]["links/mrr"] <= 1
    losses = [row["link_prediction/0"] for row in scalars(first) if "loss" in row]
    assert losses[-1] < losses[0]
    fit(config(**options, **{"train.init": str(first)}), second, tables=tables)
    model = jaxrec.load(second)
    assert model.recommend(tables.events, k=1).height == 40
    losses = [row for row in scalars(second) if "loss" in row]
    assert "next_item/0" in losses[0] and "link_prediction/0" not in losses[0]


def test_the_command_line_names_the_run_and_its_parts(monkeypatch, tmp_path):
    given = {}
    monkeypatch.setattr(command.api, "fit", lambda recipe, **options: given.update(options))
    command.run(["--init", "runs/first", "--init-parts", "text", "graph", "--train.epochs", "2"])
    config = jaxrec.configure(arguments=given["arguments"])
    assert (config.train.init, config.train.epochs) == ("runs/first", 2)
    assert config.train.init_parts == ("text", "graph")
    with pytest.raises(ConfigError, match="--init-parts needs --init RUN"):
        command.run(["--init-parts", "text"])
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("train: {init: runs/first}")
    for named in (["--config", str(recipe)], ["--train.init=runs/first"]):
        command.run(["--init-parts", "text", *named])
    with pytest.raises(ConfigError, match="give only one"):
        jaxrec.configure(overrides={"train.init": "a", "warm_start.base": "b"})


def test_a_text_encoder_is_no_run(tables):
    encoder = GOLDEN / "tiny_bert"
    with pytest.raises(RunError, match=rf"is a text encoder.* --text.pretrained {encoder}"):
        pretrained.open_pretrained(config(**{"train.init": str(encoder)}))
