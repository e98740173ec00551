"""The compiled part of a ranking: one device's share of a block of scores."""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from jaxrec.ranking.adjustments import ScoreAdjustments
from jaxrec.ranking.codes import CodedRows, coded_scores
from jaxrec.sharding import ITEMS, USERS
from jaxrec.types import NEG_INF

CHUNK = 32
LEFT_OUT = NEG_INF / 1000  # scores below are those of items that are left out


class RankOptions(NamedTuple):
    """What a compiled ranking computes."""

    k: int  # length of the lists; 0: no lists
    with_log_z: bool = False
    approximate: bool = False


class BlockInputs(NamedTuple):
    """The queries of a block beside their vectors, and the items to look at."""

    adjustments: ScoreAdjustments  # a row outside of the block is padding
    targets: Int[Array | np.ndarray, " Q"] | None = None  # items to find the rank of
    columns: Int[Array | np.ndarray, "Q K"] | None = None  # items to read the scores of


def top_k(scores: Float[Array, "Q I"], k: int) -> tuple[Float[Array, "Q K"], Int[Array, "Q K"]]:
    """The k best scores of every row and their columns; among equals the smaller column first.

    Exact: the k best of a wide row lie in the k chunks with the largest maxima.
    """
    num_chunks, rest = divmod(scores.shape[1], CHUNK)
    if rest or num_chunks < 4 * k:
        values, columns = lax.top_k(scores, k)
        return values, columns
    chunks = scores.reshape(-1, num_chunks, CHUNK)
    _, best = lax.top_k(chunks.max(axis=2), k)
    # back in column order, or ties would come in the order of the chunks' maxima
    best = jnp.sort(best, axis=1)
    candidates = jnp.take_along_axis(chunks, best[:, :, None], axis=1).reshape(-1, k * CHUNK)
    values, places = lax.top_k(candidates, k)
    columns = jnp.take_along_axis(best, places // CHUNK, axis=1) * CHUNK + places % CHUNK
    return values, columns


def rank_shard(
    scores: Float[Array, "q i"],
    valid: Bool[Array, " i"],
    inputs: BlockInputs,
    *,
    options: RankOptions,
    item_shards: int,
) -> dict[str, Array]:
    """One device's part of a block, inside `shard_map`; the fields of `Ranking` by name.

    With h items scored strictly higher than the target and t others tied with it, the rank is
    h + t / 2. A target that is not valid (unknown to the catalogue) ranks behind all valid items.
    Adjustments that leave an item out act on the ranking and on log Z, except on the query's own
    target.
    """
    num_queries, num_items = scores.shape
    first_row, first_item = lax.axis_index(USERS) * num_queries, lax.axis_index(ITEMS) * num_items

    def local(numbers: Int[Array, "*n"], first: Array, count: int) -> Int[Array, "*n"]:
        """Numbers on this device; `count`, which scatters drop, for those of other devices."""
        return jnp.where((numbers >= first) & (numbers < first + count), numbers - first, count)

    rows, items, amounts = map(jnp.asarray, inputs.adjustments)
    rows = local(rows, first_row, num_queries)
    targets = None if inputs.targets is None else jnp.asarray(inputs.targets)
    if targets is not None:
        # the scatter never touches a target, so its score is read behind it without a copy
        is_target = items == targets.at[rows].get(mode="fill", fill_value=-1)
        rows = jnp.where(is_target & (amounts == NEG_INF), num_queries, rows)
    scores = scores.at[rows, local(items, first_item, num_items)].add(amounts, mode="drop")
    fields = {}
    if targets is not None:
        fields["ranks"] = _ranks(scores, valid, local(targets, first_item, num_items))
    if inputs.columns is not None:
        columns = local(jnp.asarray(inputs.columns), first_item, num_items)
        row_numbers = jnp.arange(num_queries)[:, None]
        own = scores.at[row_numbers, columns].get(mode="fill", fill_value=0)
        fields["column_scores"] = lax.psum(own, ITEMS)
    if options.with_log_z:
        highest = lax.pmax(scores.max(1), ITEMS)
        total = lax.psum(jnp.exp(scores - highest[:, None]).sum(1), ITEMS)
        fields["log_z"] = highest + jnp.log(total)
    if options.k:
        fields |= _best(scores, first_item, options, item_shards)
    return fields


def _ranks(
    scores: Float[Array, "q i"], valid: Bool[Array, " i"], columns: Int[Array, " q"]
) -> Float[Array, " q"]:
    own = scores.at[jnp.arange(len(scores)), columns].get(mode="fill", fill_value=0)
    own = lax.psum(own, ITEMS)[:, None]
    # 2 h + t + 1 in one pass over the scores, as the target ties with itself
    above = (scores > own).astype(jnp.int8) + (scores >= own).astype(jnp.int8)
    twice = lax.psum(_row_sums(above), ITEMS) - 1
    known = valid.at[columns].get(mode="fill", fill_value=False)
    known = lax.psum(known.astype(jnp.int32), ITEMS) > 0
    return jnp.where(known, twice / 2, lax.psum(valid.sum(), ITEMS))


def _best(
    scores: Float[Array, "q i"], first_item: Array, options: RankOptions, item_shards: int
) -> dict[str, Array]:
    k = options.k
    missing = max(k - scores.shape[1], 0)
    scores = jnp.pad(scores, ((0, 0), (0, missing)), constant_values=NEG_INF)
    best, items = lax.approx_max_k(scores, k) if options.approximate else top_k(scores, k)
    items += first_item
    if item_shards > 1:
        # shards stand in item order, so that among equals the smaller item still comes first
        best = lax.all_gather(best, ITEMS, axis=1, tiled=True)
        items = lax.all_gather(items, ITEMS, axis=1, tiled=True)
        best, places = lax.top_k(best, k)
        items = jnp.take_along_axis(items, places, axis=1)
    left_out = best < LEFT_OUT
    return {"items": jnp.where(left_out, 0, items), "scores": jnp.where(left_out, -jnp.inf, best)}


def _row_sums(counts: Int[Array, "q i"]) -> Int[Array, " q"]:
    """Row sums of int8 values of at most 2: sums of `CHUNK` values in int8, then in int32.

    With the product that makes the scores, 22,363 rows of 12,288 take .16 s, and .25 s if all sums
    are in int32.
    """
    counts = jnp.pad(counts, ((0, 0), (0, -counts.shape[1] % CHUNK)))
    parts = counts.reshape(len(counts), CHUNK, -1).sum(1, dtype=jnp.int8)
    return parts.sum(1, dtype=jnp.int32)


@lru_cache(maxsize=64)
def compiled_ranking(
    mesh: Mesh, options: RankOptions, from_vectors: bool = True
) -> Callable[..., dict[str, Array]]:
    """The jitted `rank_shard` on a mesh, of query vectors and item rows, or of scores."""
    by_user, by_item, whole = (PartitionSpec(axis) for axis in (USERS, ITEMS, None))

    def rank(left, right, valid, inputs):
        scores = left
        if isinstance(right, CodedRows):
            scores = coded_scores(left[:, :-1], right)
        elif from_vectors:
            # full precision and float32 sums: rounded scores would tie items that differ
            scores = jnp.einsum(
                "qf,if->qi",
                left,
                right,
                precision=lax.Precision.HIGHEST,
                preferred_element_type=jnp.float32,
            )
        shards = mesh.shape[ITEMS]
        return rank_shard(scores, valid, inputs, options=options, item_shards=shards)

    return jax.jit(
        jax.shard_map(
            rank,
            mesh=mesh,
            in_specs=(
                by_user if from_vectors else PartitionSpec(USERS, ITEMS),
                by_item,
                by_item,
                BlockInputs(whole, by_user, by_user),  # type: ignore[arg-type]
            ),
            out_specs=by_user,
            check_vma=False,  # the merged lists are equal on all item shards
        )
    )
