"""Exact ranking of the whole catalogue, in blocks of queries: top-k, rank of the target, log Z."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

MAX_BLOCK_SCORES = 2**25
MIN_BLOCK_ROWS = 8
CHUNK = 32

Pairs = tuple[Int[np.ndarray, " X"], Int[np.ndarray, " X"]]
PairBlocks = Callable[[int, int], Pairs]
"""(query row, item) pairs of the queries [start, stop); rows count from start."""


@dataclass(frozen=True)
class Ranking:
    """What a full ranking leaves of every query's scores."""

    ranks: Float[np.ndarray, " Q"]  # of the target, from 0, ties at half
    items: Int[np.ndarray, "Q K"]  # best first; 0 where no item is left
    scores: Float[np.ndarray, "Q K"]  # -inf where no item is left
    log_z: Float[np.ndarray, " Q"]  # log p(item | query) = score - log_z


def top_k(scores: Float[Array, "Q I"], k: int) -> tuple[Float[Array, "Q K"], Int[Array, "Q K"]]:
    """The k best scores of every row and their columns; among equals the smaller column first.

    Exact: the k best of a wide row lie in the k chunks with the largest maxima.
    """
    num_chunks, rest = divmod(scores.shape[1], CHUNK)
    if rest or num_chunks < 4 * k:
        return lax.top_k(scores, k)
    chunks = scores.reshape(-1, num_chunks, CHUNK)
    _, best = lax.top_k(chunks.max(axis=2), k)
    # Back in column order, or ties would come out in the order of the chunks' maxima.
    best = jnp.sort(best, axis=1)
    candidates = jnp.take_along_axis(chunks, best[:, :, None], axis=1).reshape(-1, k * CHUNK)
    values, places = lax.top_k(candidates, k)
    columns = jnp.take_along_axis(best, places // CHUNK, axis=1) * CHUNK + places % CHUNK
    return values, columns


def rank_scores(
    scores: Float[Array, "Q I"],
    targets: Int[Array, " Q"],
    excluded_rows: Int[Array, " X"],
    excluded_items: Int[Array, " X"],
    valid: Bool[Array, " I"],
    k: int,
) -> tuple[Float[Array, " Q"], Int[Array, "Q K"], Float[Array, "Q K"], Float[Array, " Q"]]:
    """The fields of `Ranking` from dense scores.

    With h items scored strictly higher than the target and t others tied with it, the rank is
    h + t / 2. A target that is not valid (unknown to the catalogue) ranks behind all valid
    items. Excluded pairs are out of the ranking, except a query's own target, and within log_z,
    which normalises over all valid items. A pair whose row is Q is padding.
    """
    num_queries, num_items = scores.shape
    scores = jnp.where(valid[None, :], scores, -jnp.inf)
    log_z = jax.nn.logsumexp(scores, axis=1)

    target_scores = jnp.take_along_axis(scores, targets[:, None], axis=1)
    scores = scores.at[excluded_rows, excluded_items].set(-jnp.inf, mode="drop")
    scores = scores.at[jnp.arange(num_queries), targets].set(target_scores[:, 0])

    higher = jnp.sum(scores > target_scores, axis=1)
    tied = jnp.sum(scores == target_scores, axis=1) - 1
    ranks = jnp.where(valid[targets], higher + tied / 2, jnp.sum(valid))

    missing = max(k - num_items, 0)
    padded = jnp.pad(scores, ((0, 0), (0, missing)), constant_values=-jnp.inf)
    top_scores, top_items = top_k(padded, k)
    return ranks, jnp.where(top_scores > -jnp.inf, top_items, 0), top_scores, log_z


_rank_scores = jax.jit(rank_scores, static_argnames="k")


def rank_queries(
    queries: Float[np.ndarray, "Q D"] | Float[Array, "Q D"],
    items: Float[np.ndarray, "I D"] | Float[Array, "I D"],
    targets: Int[np.ndarray, " Q"],
    excluded: PairBlocks,
    valid: Bool[np.ndarray, " I"],
    k: int = 10,
    block: int | None = None,
) -> Ranking:
    """Rank all items by <query, item>; at most [block, I] scores exist at a time.

    Targets are items to find the rank of, 0 where there is none. `excluded(start, stop)` gives
    the pairs to leave out, `valid` the rows of `items` that are items: neither item 0, the
    unknown one, nor unused capacity. Semantics: `rank_scores`.

    Raises `ValueError` when lengths differ, a target is no row of `items`, or a score is not
    finite.
    """
    if len(queries) != len(targets):
        raise ValueError(
            f"{len(queries)} queries and {len(targets)} targets: give every query one target, "
            "0 where there is none"
        )
    size = block or _block_rows(len(targets), len(valid))
    query_rows, item_rows = np.asarray(queries), jnp.asarray(items)

    def score_block(start: int, stop: int) -> Float[Array, "block I"]:
        # Full precision and float32 sums: rounded scores would tie items that differ.
        return jnp.einsum(
            "qd,id->qi",
            _padded(query_rows[start:stop], size),
            item_rows,
            precision=lax.Precision.HIGHEST,
            preferred_element_type=jnp.float32,
        )

    return _rank_blocks(score_block, targets, excluded, valid, k, size)


def rank_host_scores(
    score_block: Callable[[int, int], Float[np.ndarray, "b I"]],
    targets: Int[np.ndarray, " Q"],
    excluded: PairBlocks,
    valid: Bool[np.ndarray, " I"],
    k: int = 10,
    block: int | None = None,
) -> Ranking:
    """Rank all items by scores computed on the host, `score_block(start, stop)` at a time.

    Arguments and errors as in `rank_queries`.
    """
    size = block or _block_rows(len(targets), len(valid))

    def padded_block(start: int, stop: int) -> Float[np.ndarray, "block I"]:
        scores = score_block(start, stop)
        if scores.shape != (stop - start, len(valid)):
            raise ValueError(
                f"scores of queries [{start}, {stop}) have shape {scores.shape}: "
                f"return one row a query with {len(valid)} items"
            )
        return _padded(scores.astype(np.float32), size)

    return _rank_blocks(padded_block, targets, excluded, valid, k, size)


def _rank_blocks(
    score_block: Callable[[int, int], Float[np.ndarray, "block I"] | Float[Array, "block I"]],
    targets: Int[np.ndarray, " Q"],
    excluded: PairBlocks,
    valid: Bool[np.ndarray, " I"],
    k: int,
    block: int,
) -> Ranking:
    """Concatenated rankings of fixed-size blocks; no queries are one block of padding."""
    if np.any((targets < 0) | (targets >= len(valid))):
        raise ValueError(f"targets outside [0, {len(valid)}): use 0 for an unknown item")
    blocks = []
    for start in range(0, max(len(targets), 1), block):
        stop = min(start + block, len(targets))
        rows, items = excluded(start, stop)
        num_pairs = _power_of_two(len(rows))
        fields = _rank_scores(
            score_block(start, stop),
            _padded(targets[start:stop], block),
            _padded(rows, num_pairs, fill=block),
            _padded(items, num_pairs),
            valid,
            k=k,
        )
        blocks.append([np.asarray(field)[: stop - start] for field in fields])
    ranking = Ranking(*(np.concatenate(parts) for parts in zip(*blocks, strict=True)))
    # Comparisons with NaN are false, which would put every target of a diverged model first.
    if not np.isfinite(ranking.log_z).all():
        query = np.flatnonzero(~np.isfinite(ranking.log_z))[0]
        raise ValueError(f"scores of query {query} are not finite, or no item is valid")
    return ranking


def _block_rows(num_queries: int, num_items: int) -> int:
    """A power of two, at most enough for all queries."""
    most = max(MAX_BLOCK_SCORES // num_items, MIN_BLOCK_ROWS)
    return min(1 << (most.bit_length() - 1), _power_of_two(num_queries))


def _power_of_two(size: int) -> int:
    """The smallest power of two that holds `size`, at least `MIN_BLOCK_ROWS`."""
    return max(1 << max(size - 1, 0).bit_length(), MIN_BLOCK_ROWS)


def _padded(values: np.ndarray, size: int, fill: int = 0) -> np.ndarray:
    """`values` with rows of `fill` behind, so that few distinct shapes are compiled."""
    widths = [(0, size - len(values))] + [(0, 0)] * (values.ndim - 1)
    return np.pad(values, widths, constant_values=fill)
