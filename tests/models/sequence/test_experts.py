"""Experts whose events one scan reads give what they give apart."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.encoders import CONFIG, random_events

from jaxrec.models.forms import BY_PLATFORM, chosen_forms, traced_with
from jaxrec.models.sequence.build import build_sequence_encoder
from jaxrec.models.sequence.experts import scan_experts
from jaxrec.runtime import compiling_for

EXPERTS, BATCH, STEPS = 3, 2, 7
APART = BY_PLATFORM["cpu"]
AS_ONE = APART._replace(experts_as_one=True)


@pytest.fixture(
    scope="module", params=["lstm", pytest.param("transformer", marks=pytest.mark.thorough)]
)
def encoders(request):
    config = replace(CONFIG, sequence=request.param, num_layers=1)
    made = [build_sequence_encoder(config, nnx.Rngs(seed)) for seed in range(EXPERTS)]
    for number, encoder in enumerate(made):  # the memory has an effect, as after some training
        shape = encoder.memory.weights[...].shape
        encoder.memory.weights[...] = jax.random.normal(jax.random.key(number), shape)
    return made


def test_outputs_states_and_gradients_equal_those_of_experts_apart(encoders):
    """With dropout, several sequences in a row, and steps without events."""
    events = [(number + 1) * random_events(BATCH, STEPS) for number in range(EXPERTS)]
    starts = jnp.zeros((BATCH, STEPS), bool).at[:, [0, 3]].set(True)
    valid = jnp.arange(STEPS)[None] < jnp.array([[STEPS], [4]])
    keys = list(jax.random.split(jax.random.key(1), EXPERTS))
    definitions, params = zip(*map(nnx.split, encoders), strict=True)

    def loss(params, events):
        merged = [nnx.merge(*pair) for pair in zip(definitions, params, strict=True)]
        states = [encoder.initial_state(BATCH) for encoder in merged]
        scans = scan_experts(merged, states, events, starts, valid, keys)
        outputs, after = zip(*scans, strict=True)
        return sum((out**2).sum() for out in outputs), (outputs, after)

    def results(forms):
        with traced_with(forms):
            return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, events)

    ones, apart = (jax.tree.leaves(results(forms)) for forms in (AS_ONE, APART))
    assert len(ones) == len(apart)
    for one, expected in zip(ones, apart, strict=True):
        np.testing.assert_allclose(one, expected, rtol=1e-4, atol=1e-4)


def test_one_scan_reads_the_events_of_all(encoders):
    events = [random_events(BATCH, STEPS)] * EXPERTS
    states = [encoder.initial_state(BATCH) for encoder in encoders]

    def products(forms):
        def scan(events):  # a new function, as JAX keeps what it has traced
            return scan_experts(encoders, states, events)

        with traced_with(forms):
            return str(jax.make_jaxpr(scan)(events)).count("dot_general")

    assert products(APART) == EXPERTS * products(AS_ONE)


def test_the_platform_chooses_the_forms():
    for platform, forms in BY_PLATFORM.items():
        with compiling_for(platform):
            assert chosen_forms() == forms
    with compiling_for("another accelerator"):
        assert chosen_forms() == BY_PLATFORM["gpu"]
    with compiling_for("tpu"), traced_with(APART):
        assert chosen_forms() == APART
