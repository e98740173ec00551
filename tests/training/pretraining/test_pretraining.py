"""Continued pre-training of tiny encoders on a small shop."""

import signal
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest
from helpers.paths import GOLDEN
from helpers.shop import NUM_BRANDS, make_tables

from jaxrec import configure
from jaxrec.cli import pretrain as command
from jaxrec.config import parse
from jaxrec.data.dataset import prepare
from jaxrec.data.graph import build_graph
from jaxrec.data.text import resolve_pretrained
from jaxrec.errors import CheckpointError, ConfigError, DataError, Interrupted, RunError
from jaxrec.inference.text_features import text_vectors
from jaxrec.models.text.build import load_text_encoder
from jaxrec.models.text.checkpoint import checkpoint_entries
from jaxrec.models.text.language_model import HEAD, load_language_model
from jaxrec.training.pretraining import loop
from jaxrec.training.pretraining.base import Examples, PretrainingTask, split_examples
from jaxrec.training.pretraining.build import build_tasks
from jaxrec.training.pretraining.contrast import MOST_PARTNERS, in_batch_loss, sharing_items
from jaxrec.training.pretraining.options import PretrainOptions, TaskWeights
from jaxrec.training.pretraining.tokens import masked_positions

ALL = TaskWeights(contrast=1.0, graph=1.0, tokens=1.0, behaviour=1.0)
OPTIONS = PretrainOptions(ALL, epochs=6, batch_size=16, layers=1, learning_rate=1e-2, held_out=0.1)


def configured(name, **options):
    checkpoint = {"text.pretrained": str(GOLDEN / name), "text.max_tokens": 32}
    checkpoint |= {"data.text_columns": ["brand", "title"]}
    return parse(layers=[{"split.scheme": "leave_one_out", **checkpoint, **options}])


def pretrain(name, out, options=OPTIONS, tables=None, **config):
    tables = tables or make_tables()
    return loop.pretrain(configured(name, **config), options, out, tables=tables)


def saved(directory):
    return checkpoint_entries(directory)


def assert_equal_weights(first, second):
    assert first.keys() == second.keys()
    for name, weight in first.items():
        np.testing.assert_array_equal(weight, second[name], err_msg=name)


@pytest.fixture(
    scope="module", params=["tiny_bert", pytest.param("tiny_gpt", marks=pytest.mark.slow)]
)
def trained(request, tmp_path_factory):
    """The name of a checkpoint, the directory after its pre-training, and the losses."""
    out = tmp_path_factory.mktemp(request.param) / "out"
    return request.param, out, pretrain(request.param, out)


@pytest.mark.thorough
def test_held_out_losses_of_tokens_fall(trained):
    _, _, history = trained
    assert len(history) == 1 + OPTIONS.epochs
    assert history[-1]["tokens"] < history[0]["tokens"] - 0.2
    assert history[-1]["behaviour"] < history[0]["behaviour"] - 0.1
    assert 0 < history[-1]["graph"] < np.inf


def test_texts_of_items_that_follow_one_another_agree():
    """The contrast is learned on one batch: held-out users are too few here."""
    config, options = configured("tiny_bert"), replace(OPTIONS, tasks=TaskWeights(), epochs=20)
    config = replace(config, data=replace(config.data, text_columns=("title",)))
    source = GOLDEN / "tiny_bert"
    tables = make_tables()  # users stay with a brand, which is the only letter of these titles
    letters = [chr(97 + int(item[1:]) % NUM_BRANDS) for item in tables.items["item_id"]]
    tables = replace(tables, items=tables.items.with_columns(title=pl.Series(letters)))
    dataset = prepare(config, tables)
    tasks = build_tasks(config, options, dataset, source, causal=False)
    model = load_language_model(source, "auto", with_head=False)
    context, state = loop.prepare_training(model, tasks, options, num_items=30)
    step, batches, losses = loop.make_step(context), context.batches(0), []
    for _ in range(30):
        state, loss = step(state, context.frozen, batches)
        losses.append(float(loss))
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.thorough
def test_the_last_layer_alone_changes_and_the_checkpoint_is_complete(trained):
    name, out, _ = trained
    assert not (out / "progress.npz").exists()
    before, after = load_text_encoder(GOLDEN / name), load_text_encoder(out)
    ids, mask = jnp.array([[5, 6, 7, 8]]), jnp.ones((1, 4), bool)
    below = len(before.blocks) - 1
    lower = [model.layers(model.embed(ids), mask, stop=below) for model in (before, after)]
    np.testing.assert_array_equal(*lower)
    upper = [model.layers(model.embed(ids), mask) for model in (before, after)]
    assert np.abs(upper[0] - upper[1]).max() > 1e-3
    assert np.isfinite(text_vectors(["nails care"], str(out), 32)).all()


@pytest.mark.thorough
def test_pretraining_goes_on_from_its_own_checkpoint(trained, tmp_path):
    """The head of masked tokens is saved, so the loss begins where it ended."""
    name, out, history = trained
    config, once = replace_pretrained(name, out), replace(OPTIONS, epochs=1)
    again = loop.pretrain(config, once, tmp_path / "b", tables=make_tables())
    for task, loss in again[0].items():
        np.testing.assert_allclose(loss, history[-1][task], rtol=1e-4)
    assert any(entry.startswith(HEAD) for entry in saved(out)) == (name == "tiny_bert")


def replace_pretrained(name, out):
    config = configured(name)
    return replace(config, text=replace(config.text, pretrained=str(out)))


@pytest.mark.thorough
def test_a_stopped_pretraining_resumes_to_the_same_weights(trained, tmp_path, monkeypatch):
    name, out, history = trained
    if name == "tiny_gpt":
        pytest.skip("the loop is the same")
    batches, calls = loop.Pretraining.batches, []

    def stop_once(self, step):
        calls.append(step)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)
        return batches(self, step)

    monkeypatch.setattr(loop.Pretraining, "batches", stop_once)
    resumed = tmp_path / "resumed"
    with pytest.raises(Interrupted) as stop:
        pretrain(name, resumed)
    assert stop.value.code == 130
    assert calls == [0, 1, 2]
    with pytest.raises(RunError, match="other options"):
        pretrain(name, resumed, replace(OPTIONS, learning_rate=1e-3))
    assert pretrain(name, resumed) == history
    assert calls[3] == 3
    assert_equal_weights(saved(resumed), saved(out))
    with pytest.raises(RunError, match="holds a checkpoint"):
        pretrain(name, resumed)


@pytest.mark.thorough
def test_a_killed_pretraining_goes_on_from_its_last_save(tmp_path, monkeypatch):
    """A death in the second epoch, one step after the save of its third step."""
    options = replace(OPTIONS, tasks=TaskWeights(), epochs=2, batch_size=8, checkpoint_steps=3)
    history = pretrain("tiny_bert", tmp_path / "whole", options)
    batches, calls = loop.Pretraining.batches, []

    def die_once(self, step):
        calls.append(step)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return batches(self, step)

    monkeypatch.setattr(loop.Pretraining, "batches", die_once)
    (tmp_path / "killed" / ".progress.npz.abc").mkdir(parents=True)  # of a save that was cut off
    with pytest.raises(KeyboardInterrupt):
        pretrain("tiny_bert", tmp_path / "killed", options)
    assert pretrain("tiny_bert", tmp_path / "killed", options) == history
    assert calls == [0, 1, 2, 3, 4, 5, 6, 7, 6, 7]
    assert_equal_weights(saved(tmp_path / "killed"), saved(tmp_path / "whole"))


def test_nothing_that_is_held_out_is_an_example():
    """Other items and events in the held-out part leave all batches as they are."""
    tables, config = make_tables(), configured("tiny_bert")
    source = resolve_pretrained(config.text.pretrained)

    def examples(tables):
        dataset = prepare(config, tables)
        tasks = build_tasks(config, OPTIONS, dataset, source, causal=False)
        return dataset, {task.name: task for task in tasks}

    dataset, tasks = examples(tables)
    log, split = dataset.split.log, dataset.split
    held_out = np.flatnonzero(~split.in_training)
    changed = pl.DataFrame(
        {
            "user_id": log.user_ids.gather(log.users_at(held_out)),
            "timestamp": log.times[held_out],
            "secret": True,
        }
    )
    events = tables.events.join(changed, on=["user_id", "timestamp"], how="left")
    secret = tables.items[:1].with_columns(item_id=pl.lit("secret"), title=pl.lit("zzz qqq"))
    other = replace(
        tables,
        events=events.with_columns(
            item_id=pl.when("secret").then(pl.lit("secret")).otherwise("item_id")
        ).drop("secret"),
        items=pl.concat([tables.items, secret]),
    )
    _, secret_tasks = examples(other)
    for name, task in tasks.items():
        numbers = task.examples.train[:16]
        assert_batches_equal(task.batch(numbers), secret_tasks[name].batch(numbers))
        assert isinstance(task, PretrainingTask)


def assert_batches_equal(first, second):
    for one, two in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(one, two)


def test_every_pass_has_each_example_once_in_another_order():
    examples = Examples(np.arange(10, 17), np.array([3]), seed=0)
    rows = np.concatenate([examples.at(step, 5) for step in range(7)]).reshape(5, 7)
    assert (np.sort(rows) == np.arange(10, 17)).all()
    assert len(np.unique(rows, axis=0)) == 5
    assert next(iter(examples.held_out_batches(2))).tolist() == [3, 3]


def test_groups_are_held_out_whole():
    groups = np.repeat(np.arange(20), 3)
    examples = split_examples(groups, 0.2, 0, "users")
    assert len(np.unique(groups[examples.held_out])) == 4
    assert not set(groups[examples.train]) & set(groups[examples.held_out])


def test_fifteen_percent_of_the_candidates_are_masked():
    candidates = jnp.arange(40)[None] < jnp.array([[40], [20], [1], [0]])
    positions, picked = masked_positions(jax.random.key(0), candidates)
    assert picked.sum(1).tolist() == [6, 3, 1, 0]
    assert jnp.take_along_axis(candidates, positions, 1)[picked].all()


def test_contrast_corrects_for_frequency_and_leaves_out_equal_items():
    logits = jnp.array([[1.0, 2.0, 5.0], [0.0, 1.0, 0.0], [3.0, 0.0, 1.0]])
    shares = jnp.log(jnp.array([0.5, 0.25, 0.5]))
    loss = in_batch_loss(logits, jnp.array([7, 8, 7]), shares)
    corrected = np.exp(np.asarray(logits - shares[None]))
    corrected[0, 2] = corrected[2, 0] = 0
    np.testing.assert_allclose(
        loss, -np.log(np.diagonal(corrected) / corrected.sum(1)).mean(), rtol=1e-5
    )


def test_items_that_share_a_small_entity_are_pairs():
    ids = [None, *"abcdefgh", *(f"x{n}" for n in range(60))]
    brands = [None, *"AABBB", "C", "D", "D", *60 * ["large"]]
    graph = build_graph(pl.DataFrame({"item_id": ids, "brand": brands}), None)
    usable = np.arange(len(ids)) != ids.index("e")
    pairs, entities = sharing_items(graph, usable, seed=0)
    named = {(ids[first], ids[second]) for first, second in pairs}
    assert named == {("a", "b"), ("b", "a"), ("c", "d"), ("d", "c"), ("g", "h"), ("h", "g")}
    assert len(pairs) == 6 and len(np.unique(entities)) == 3
    pairs, _ = sharing_items(graph, np.arange(len(ids)) < len(ids) - 20, seed=0)
    partners = [len({*pairs[pairs[:, 0] == n, 1]}) for n in range(9, 49)]
    assert partners == 40 * [MOST_PARTNERS] and (pairs[:, 0] != pairs[:, 1]).all()


def test_a_graph_without_pairs_is_refused(tmp_path):
    tables = make_tables()
    tables = replace(tables, items=tables.items.drop("brand", "categories"))
    options = replace(OPTIONS, tasks=TaskWeights(contrast=0, graph=1))
    with pytest.raises(DataError, match=r"2 to 50 items with a text share, and .* have 0"):
        pretrain("tiny_bert", tmp_path / "a", options, tables)


def test_a_fresh_head_has_the_same_encoder_and_bf16_keeps_float32_weights():
    model = load_language_model(GOLDEN / "tiny_bert", "auto", with_head=True, dtype=jnp.bfloat16)
    assert model.hidden(jnp.array([[5, 6]]), jnp.ones((1, 2), bool)).dtype == jnp.bfloat16
    assert model.head.transform.kernel[...].dtype == jnp.float32


def test_a_recipe_may_name_the_data(monkeypatch, tmp_path):
    given = {}
    monkeypatch.setattr(command.api, "pretrain", lambda out, options, **more: given.update(more))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("data: {source: my-shop}")
    command.run(["--config", str(recipe), "--out", str(tmp_path / "out")])
    assert given["data"] is None
    assert configure(given["recipe"], given["data"]).data.source == "my-shop"
    command.run(["--data", "other", "--out", str(tmp_path / "out")])
    assert given["data"] == "other"


def test_clear_errors(tmp_path):
    with pytest.raises(ConfigError, match="all weights are 0"):
        TaskWeights(contrast=0)
    with pytest.raises(ConfigError, match="layers=9, but the encoder has 2 layers"):
        pretrain("tiny_bert", tmp_path / "a", replace(OPTIONS, layers=9))
    several = {"data.shops": {"a": "x", "b": "y"}, "model.experts": ["text"]}
    with pytest.raises(ConfigError, match="one shop"):
        pretrain("tiny_bert", tmp_path / "a", **several)
    with pytest.raises(DataError, match="text"):
        pretrain("tiny_bert", tmp_path / "b", **{"data.text_columns": ["description"]})
    (tmp_path / "file").touch()
    nowhere = {"data.source": str(tmp_path / "nowhere")}  # the output is refused before any reading
    with pytest.raises(RunError, match="not empty"):
        loop.pretrain(configured("tiny_bert", **nowhere), OPTIONS, tmp_path)
    with pytest.raises(RunError, match="is a file"):
        loop.pretrain(configured("tiny_bert", **nowhere), OPTIONS, tmp_path / "file")
    with pytest.raises(RunError, match="is a file, not a directory"):
        loop.pretrain(configured("tiny_bert", **nowhere), OPTIONS, tmp_path / "file" / "below")
    with pytest.raises(RunError, match="is a URL"):
        loop.pretrain(configured("tiny_bert", **nowhere), OPTIONS, Path("s3://bucket/encoder"))
    with pytest.raises(ConfigError, match="one shop; give one --data"):
        command.run(["--data", "first", "--data=second", "--out", str(tmp_path / "d")])
    with pytest.raises(ConfigError, match=r"tasks\.contrast must be 0 or more"):
        TaskWeights(contrast=-1)
    with pytest.raises(CheckpointError, match="config"):
        loop.pretrain(
            replace_pretrained("tiny_bert", tmp_path), OPTIONS, tmp_path / "c", tables=make_tables()
        )
