"""The decoder's targets and its training."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.encoders import SEQUENCE_ENCODERS
from helpers.encoding import make_log
from helpers.objective import CONFIG, CRITERION, SIZES, make_arrays
from helpers.training import config

from jaxrec.artifacts import run_directory
from jaxrec.artifacts.decoder_file import read_decoder, write_decoder
from jaxrec.artifacts.run_directory import DECODER
from jaxrec.data.packing import Packing, pack_windows
from jaxrec.errors import ConfigError, RunError
from jaxrec.models.recommender import Model, Recommender, split
from jaxrec.models.sequence.decoder import new_decoder
from jaxrec.training.fit import fit
from jaxrec.training.forecast import FrozenModel, first_decoder, forecast_loss, future_events
from jaxrec.types import ANY_EVENT_TYPE, Batch

STEPS = 4
ALL = jnp.array([True, True])


def batch_of(*rows):
    """A batch of rows, each of histories of items that take four time steps."""
    lengths = len(rows[0]) * STEPS
    items, targets, weights = np.zeros((3, len(rows), lengths), np.int64)
    starts = np.zeros((len(rows), lengths), bool)
    for row, histories in enumerate(rows):
        for number, history in enumerate(histories):
            begin, count = number * STEPS, len(history) - 1
            starts[row, begin] = True
            items[row, begin : begin + count] = history[:-1]
            targets[row, begin : begin + count] = history[1:]
            weights[row, begin : begin + count] = 1
    event_types = (items % 2).astype(np.int32)
    gaps = np.full_like(event_types, 60)
    return Batch(
        users=items,
        items=items,
        event_types=event_types,
        gaps=gaps,
        starts=starts,
        first_weights=np.zeros(items.shape, np.float32),
        targets=targets,
        target_event_types=(targets % 2).astype(np.int32),
        target_gaps=gaps,
        weights=weights.astype(np.float32),
    )


FIRST, SECOND = (1, 2, 3, 4, 5), (6, 5, 2)


def test_targets_are_the_next_events_of_the_same_history():
    futures = future_events(batch_of([FIRST, SECOND]), 1, STEPS, ALL)
    np.testing.assert_array_equal(futures.positions, [1, 5])
    # after event 2 the decoder reads 3 and 4 to predict 4 and 5
    np.testing.assert_array_equal(futures.weights[0], [[1, 1, 0], [0, 0, 0]])
    np.testing.assert_array_equal(futures.items[0, 0, :2], [3, 4])
    np.testing.assert_array_equal(futures.targets[0, 0, :2], [4, 5])
    only_odd = future_events(batch_of([FIRST, SECOND]), 1, STEPS, jnp.array([False, True]))
    np.testing.assert_array_equal(only_odd.weights[0, 0], [0, 1, 0])


def test_no_target_is_held_out():
    """The items are numbers of events, so that a target tells which event it is."""
    log = make_log()
    log = replace(log, items=np.arange(len(log.items), dtype=np.int32))
    train_lengths = log.lengths - np.array([0, 2, 3, 1, 1])
    weights = np.ones(len(log.items))
    packed = pack_windows(log, train_lengths, weights, 8, burn_in=2)
    packing = Packing(log, weights, packed, batch_size=2, sequence_length=8)
    seen = set()
    for step in range(packing.steps_per_epoch):
        batch = packing.batch(0, step)
        for first in range(STEPS):
            futures = future_events(batch, first, STEPS, ALL)
            counted = np.asarray(futures.weights) > 0
            seen |= set(np.asarray(futures.targets)[counted].tolist())
            behind = np.asarray(batch.items)[:, futures.positions, None] + np.arange(2, STEPS + 1)
            np.testing.assert_array_equal(np.asarray(futures.targets)[counted], behind[counted])
    ends = log.offsets[:-1] + train_lengths
    users = np.searchsorted(log.offsets, sorted(seen), side="right") - 1
    assert seen and (np.array(sorted(seen)) < ends[users]).all()


def make_frozen(sequence):
    model_config = replace(
        CONFIG.model, experts=("id", "id"), hidden_size=4, sequence=sequence, sequence_window=3
    )
    model = Model(*split(Recommender(model_config, SIZES, nnx.Rngs(0))))
    arrays, random = make_arrays(), np.random.default_rng(0)
    return FrozenModel(
        model,
        replace(arrays, masked_event_types=jnp.array([False, True])),
        jnp.asarray(random.normal(size=(SIZES.num_nodes, 8)), jnp.float32),
        0.5,
        jnp.asarray(random.normal(size=(2, 64)), jnp.float32),
        ALL,
        ANY_EVENT_TYPE,
        STEPS,
        CRITERION,
    )


def noisy_decoder():
    decoder, random = new_decoder(8, STEPS, 0), np.random.default_rng(0)
    noise = lambda p: p + 0.3 * jnp.asarray(random.normal(size=p.shape), p.dtype)  # noqa: E731
    return replace(decoder, params=jax.tree.map(noise, decoder.params))


@pytest.mark.parametrize("sequence", SEQUENCE_ENCODERS)
def test_packed_rows_have_the_loss_of_one_history_a_row(sequence):
    frozen, decoder = make_frozen(sequence), noisy_decoder()
    loss = jax.jit(forecast_loss)
    packed = loss(decoder, frozen, batch_of([FIRST, SECOND]), 0)
    nothing = (0,)
    alone = loss(decoder, frozen, batch_of([FIRST, nothing], [SECOND, nothing]), 0)
    assert float(packed) == pytest.approx(float(alone), rel=1e-4)
    # later events change what the decoder reads, and so do earlier ones what the encoder reads
    other = loss(decoder, frozen, batch_of([(3, *FIRST[1:]), SECOND]), 0)
    assert float(other) != pytest.approx(float(packed), rel=1e-4)


@pytest.mark.slow
def test_a_run_with_a_forecast_has_the_same_model(whole_run, tables, tmp_path):
    run = tmp_path / "run"
    options = {"forecast.steps": 3, "forecast.epochs": 2, "forecast.learning_rate": 0.01}
    fit(config(**options), run, tables=tables)
    assert not (whole_run / DECODER).exists()
    for name in ("ranks.parquet", "metrics.json", run_directory.CALIBRATION):
        assert (run / name).read_bytes() == (whole_run / name).read_bytes()
    with run_directory.open_checkpoints(run, read_only=True) as manager:
        step = manager.best_step()
    decoder = read_decoder(run, step, width=16)
    changed = decoder.params["output"]["kernel"]
    assert np.isfinite(changed).all() and np.abs(changed).max() > 0


def test_a_decoder_comes_back_from_its_file(tmp_path):
    decoder = noisy_decoder()
    write_decoder(tmp_path, decoder, 7)
    jax.tree.map(np.testing.assert_array_equal, read_decoder(tmp_path, 7, 8), decoder)
    with pytest.raises(RunError, match="belongs to another checkpoint"):
        read_decoder(tmp_path, 8, 8)
    with pytest.raises(RunError, match="belongs to another checkpoint"):
        read_decoder(tmp_path, 7, 12)
    (tmp_path / DECODER).write_bytes((tmp_path / DECODER).read_bytes()[:100])
    with pytest.raises(RunError, match="damaged"):
        read_decoder(tmp_path, 7, 8)


def test_a_warm_start_goes_on_with_the_decoder_of_its_base(tmp_path):
    options = config(**{"forecast.steps": 3, "warm_start.base": str(tmp_path)})
    assert first_decoder(options, 8).params["lstm"]["recurrent"].shape == (8, 32)  # a new one
    earlier = noisy_decoder()
    write_decoder(tmp_path, earlier, 7)
    decoder = first_decoder(options, 8)
    assert decoder.steps == 3
    jax.tree.map(np.testing.assert_array_equal, decoder.params, earlier.params)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"forecast.steps": 1}, "give 2 or more"),
        ({"forecast.steps": 99}, "forecast.steps 99 is above train.sequence_length 16"),
    ],
)
def test_a_number_of_steps_that_cannot_be_learned_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        config(**options)
