"""The parts of `accelerator.py` that run on JAX, beside training."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from accelerator_forms import in_form, variants
from accelerator_rows import (
    Rows,
    Sizes,
    lstm_arrays,
    lstm_cases,
    lstm_flops,
    rank_all,
    ranking_errors,
    ranking_vectors,
    relative_error,
    time_of,
)

from jaxrec.models.sequence.blocks import Masks
from jaxrec.models.sequence.lstm import scan_rows
from jaxrec.models.sequence.lstm_scan import Weights
from jaxrec.ranking.item_table import ItemTable, prepare
from jaxrec.ranking.top_k import best_items

CHECKED_ROWS = 8
DTYPES = {"bf16": jnp.bfloat16, "float32": jnp.float32}


def ceilings(rows: Rows, sizes: Sizes) -> None:
    """What the card reaches: matrix products, and a copy with its bytes read and written."""
    n = sizes.product
    highest = partial(jnp.matmul, precision="highest")
    products = {"bf16": jnp.matmul, "float32": jnp.matmul, "float32, highest precision": highest}
    for case, system in rows.measured([(f"[{n}, {n}] product", name) for name in products]):
        dtype = DTYPES[system.partition(",")[0]]
        left, right = jax.random.normal(jax.random.key(0), (2, n, n), dtype)
        multiply = jax.jit(products[system])
        exact = np.asarray(left[:CHECKED_ROWS], np.float64) @ np.asarray(right, np.float64)
        error = relative_error(multiply(left, right)[:CHECKED_ROWS], exact)
        times = time_of(partial(multiply, left, right), jax.block_until_ready, sizes.repeats, 10)
        rows.add(case, system, times, flops=2 * n**3, error=error)
    for case, system in rows.measured([(f"copy of {4 * sizes.copy / 2**20:,.0f} MiB", "float32")]):
        values = jax.random.normal(jax.random.key(1), (sizes.copy,))
        times = time_of(partial(jax.jit(jnp.copy), values), jax.block_until_ready, sizes.repeats, 5)
        rows.add(case, system, times, moved=2 * values.nbytes)


def lstm(rows: Rows, sizes: Sizes) -> None:
    """One LSTM layer, forward and backward; errors are beside a plain scan in float32."""
    arrays: dict[str, np.ndarray] = {}
    exact: list[np.ndarray] = []
    known = ""
    forms = variants("products_behind_scan", "lstm_kernel")
    cases = lstm_cases(sizes, *(f"jaxrec {dtype}{form}" for form in forms for dtype in DTYPES))
    for case, system, batch_size, length, width in rows.measured(cases):
        if case != known:
            known, arrays = case, lstm_arrays(batch_size, length, width)
            with jax.default_matmul_precision("highest"):
                exact = checked(lstm_gradients(plain_scan)(arrays))
        dtype, comma, form = system.removeprefix("jaxrec ").partition(",")
        cast = {name: jnp.asarray(a, DTYPES[dtype]) for name, a in arrays.items()}
        run = jax.jit(in_form(forms[comma + form], lstm_gradients(own_scan)))
        error = max(map(relative_error, checked(run(cast)), exact))
        times = time_of(partial(run, cast), jax.block_until_ready, sizes.repeats)
        rows.add(case, system, times, flops=lstm_flops(batch_size, length, width), error=error)


def checked(results: list[jax.Array]) -> list[np.ndarray]:
    """Outputs and input gradients of the first rows, and all gradients of the parameters."""
    outputs, inputs, *parameters = results
    parts = [outputs[:CHECKED_ROWS], inputs[:CHECKED_ROWS], *parameters]
    return [np.asarray(part, np.float32) for part in parts]


def lstm_gradients(scan: Callable) -> Callable:
    """Outputs, and gradients of the input, of both kernels and of the bias, as one program."""

    @jax.jit
    def run(arrays: dict[str, jax.Array]) -> list[jax.Array]:
        names = ("x", "input", "recurrent", "bias")
        cotangent = jnp.asarray(arrays["cotangent"])
        outputs, pullback = jax.vjp(scan, *(jnp.asarray(arrays[name]) for name in names))
        return [outputs, *pullback(cotangent.astype(outputs.dtype))]

    return run


def own_scan(x: jax.Array, inward: jax.Array, recurrent: jax.Array, bias: jax.Array) -> jax.Array:
    """The LSTM of jaxrec, [B, T, D] to [B, T, D], without resets."""
    zeros = jnp.zeros_like(x[:, 0])
    weights = Weights(jnp.concatenate([inward, recurrent]), bias)
    masks = Masks(jnp.zeros(x.shape[1::-1], bool), None)
    return scan_rows(weights, x, masks, (zeros, zeros))[0]


def plain_scan(x: jax.Array, inward: jax.Array, recurrent: jax.Array, bias: jax.Array) -> jax.Array:
    """The same by `lax.scan` and JAX's own gradient."""
    zeros = jnp.zeros_like(x[:, 0])

    def step(state, inputs):
        hidden, cell = state
        gates = jnp.split(inputs + hidden @ recurrent, 4, axis=-1)
        entered, kept, shown = (jax.nn.sigmoid(gates[number]) for number in (0, 1, 3))
        cell = kept * cell + entered * jnp.tanh(gates[2])
        hidden = shown * jnp.tanh(cell)
        return (hidden, cell), hidden

    _, outputs = jax.lax.scan(
        step, (zeros, zeros), jnp.swapaxes(x @ inward + bias[None, None], 0, 1)
    )
    return jnp.swapaxes(outputs, 0, 1)


def ranking(rows: Rows, sizes: Sizes) -> None:
    """Top-k of all items, from users on the host to lists on the host, in blocks of users."""
    cases = [
        (f"D={width}, {block} users at a time", "jaxrec", width, block)
        for width in sizes.rank_widths
        for block in sizes.blocks
    ]
    for number, (case, system, width, block) in enumerate(rows.measured(cases)):
        users, items = ranking_vectors(sizes, width)
        prepared = prepare(ItemTable(items, np.ones(len(items), bool)), block=block)
        top = best_items(users[:64], prepared, sizes.k)
        errors = ranking_errors(users[:64], items, top.items, top.scores)
        run = partial(best_items, users, prepared, sizes.k)
        figures = rank_all(run, sizes, rows, 1 / (len(cases) - number))
        flops = 2 * sizes.items * width * figures["users"]
        rows.add(case, system, [figures.pop("ranking_seconds")], flops=flops, **figures, **errors)
