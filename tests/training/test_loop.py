"""The steps of a training, on small tables."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from helpers.paths import GOLDEN
from helpers.training import config, first_steps

import jaxrec
from jaxrec.data.dataset import prepare
from jaxrec.errors import Diverged
from jaxrec.training.context import make_context
from jaxrec.training.fit import fit
from jaxrec.training.loop import make_train_step, refresh_text
from jaxrec.training.prefetch import prefetch
from jaxrec.training.state import initial_state


def test_the_step_is_compiled_once(tables):
    _, step = first_steps(make_context(config(), prepare(config(), tables)))
    assert step._cache_size() == 1


@pytest.mark.slow
def test_bf16_trains_close_to_float32(tables):
    dataset = prepare(config(), tables)
    options = {"model.num_layers": 2}
    full, _ = first_steps(make_context(config(**options), dataset))
    half, _ = first_steps(make_context(config(**options, **{"train.bf16": True}), dataset))
    np.testing.assert_allclose(half, full, rtol=0.02)


@pytest.mark.slow
def test_divergence_is_an_error(tables, tmp_path):
    broken = replace(config(), train=replace(config().train, learning_rate=1e30, clip=1e30))
    with jax.debug_nans(False), pytest.raises(Diverged, match="learning_rate"):
        fit(broken, tmp_path / "run", tables=tables)


@pytest.fixture
def nan_passes():
    """No error for NaN, in worker threads either."""
    jax.config.update("jax_debug_nans", False)
    yield
    jax.config.update("jax_debug_nans", True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{"train.learning_rate": 1e30}, {"train.weight_decay": 1e38, "train.learning_rate": 1.0}],
    ids=str,
)
def test_a_last_step_that_diverges_is_an_error(tables, tmp_path, nan_passes, options):
    one_step = {"train.batch_size": 64, "train.epochs": 1, "train.warmup_steps": 0}
    with pytest.raises(Diverged, match=r"finite .* train\.learning_rate"):
        fit(config(**one_step, **options), tmp_path / "run", tables=tables)


@pytest.mark.slow
@pytest.mark.parametrize(
    "encoder", [GOLDEN / "tiny_bert", GOLDEN / "tiny_gpt"], ids=["bert", "gpt"]
)
def test_finetuning_changes_the_text_layers_and_refreshes_the_vectors(tables, tmp_path, encoder):
    options = {
        "model.experts": ["text"],
        "text.mode": "finetune",
        "text.pretrained": str(encoder),
        "text.finetune_items": 8,
    }
    context = make_context(config(**options), prepare(config(**options), tables))
    state = refresh_text(context, initial_state(context))
    tower = jax.tree.map(np.array, state.params["text_tower"])
    text = np.array(state.text)
    step = make_train_step(context)
    for batch, _ in prefetch(context, 0, range(3)):
        state, _ = step(state, context.arrays, batch)
    changed = jax.tree.map(lambda a, b: not np.array_equal(a, b), tower, state.params["text_tower"])
    assert any(jax.tree.leaves(changed))
    refreshed = refresh_text(context, state)
    assert refreshed.text.shape == text.shape
    assert not np.array_equal(refreshed.text[1:5], text[1:5])
    fit(config(**options), tmp_path / "run", tables=tables)
    assert len(jaxrec.load(tmp_path / "run").recommend(tables.events, k=3))
