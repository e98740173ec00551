"""Exact ranking of the whole catalogue, in blocks of queries: top-k, rank of the target, log Z.

The scores of a block lie on a mesh as [users, items]: every device ranks its own part of the
catalogue, and only what is left of it (k items, sums, counts) is merged.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from jaxrec.sharding import ITEMS, USERS, single_device_mesh

# on a CPU a block of 32 MiB or more would be mapped anew, page by page, every time
MAX_BLOCK_SCORES = 2**23 - 2**10
MAX_ACCELERATOR_SCORES = 2**26
MIN_BLOCK_ROWS = 8
CHUNK = 32
# what an item without a score counts as; finite, as full precision on a TPU is made of parts
# of a number, and infinity less infinity is none
NEG_INF = -1e30
WORKERS = 2  # blocks in flight: one is multiplied while the other is searched


class ScoreAdjustments(NamedTuple):
    """Items of queries, and what is added to their scores."""

    rows: Int[np.ndarray, " X"]  # of the queries
    items: Int[np.ndarray, " X"]
    amounts: Float[np.ndarray, " X"]  # NEG_INF leaves an item out


AdjustmentBlocks = Callable[[int, int], ScoreAdjustments]
"""The pairs of the queries [start, stop); rows count from start."""


def masked_items(rows: Int[np.ndarray, " X"], items: Int[np.ndarray, " X"]) -> ScoreAdjustments:
    """ScoreAdjustments that leave items out."""
    return ScoreAdjustments(rows, items, np.full(len(rows), NEG_INF, np.float32))


def select_adjustments(
    pairs: AdjustmentBlocks, chosen: Int[np.ndarray, " q"], num_queries: int
) -> AdjustmentBlocks:
    """The pairs of some queries, in ascending order, out of `num_queries`."""
    rows, items, amounts = pairs(0, num_queries)
    place = np.full(num_queries, -1)
    place[chosen] = np.arange(len(chosen))
    kept = place[rows] >= 0
    return as_blocks(ScoreAdjustments(place[rows[kept]], items[kept], amounts[kept]))


def no_adjustments(start: int, stop: int) -> ScoreAdjustments:
    """`AdjustmentBlocks` that change nothing."""
    return masked_items(np.zeros(0, np.int64), np.zeros(0, np.int64))


def combined(*parts: AdjustmentBlocks) -> AdjustmentBlocks:
    """The pairs of several, with ascending rows."""

    def block(start: int, stop: int) -> ScoreAdjustments:
        fields = zip(*(part(start, stop) for part in parts), strict=True)
        rows, items, amounts = map(np.concatenate, fields)
        order = np.argsort(rows, kind="stable")
        return ScoreAdjustments(rows[order], items[order], amounts[order])

    return block


def scaled(pairs: AdjustmentBlocks, factor: float) -> AdjustmentBlocks:
    """The pairs where all scores are times a factor."""

    def block(start: int, stop: int) -> ScoreAdjustments:
        some = pairs(start, stop)
        out = some.amounts == NEG_INF
        return some._replace(amounts=np.where(out, some.amounts, factor * some.amounts))

    return block


def as_blocks(pairs: ScoreAdjustments) -> AdjustmentBlocks:
    """`AdjustmentBlocks` of the pairs of all queries, whose rows ascend."""

    def block(start: int, stop: int) -> ScoreAdjustments:
        here = slice(*np.searchsorted(pairs.rows, [start, stop]))
        return ScoreAdjustments(pairs.rows[here] - start, pairs.items[here], pairs.amounts[here])

    return block


@dataclass(frozen=True)
class Ranking:
    """What a full ranking leaves of every query's scores."""

    ranks: Float[np.ndarray, " Q"]  # of the target, from 0, ties at half
    items: Int[np.ndarray, "Q K"]  # best first; 0 where no item is left
    scores: Float[np.ndarray, "Q K"]  # -inf where no item is left


@dataclass(frozen=True)
class TopItems:
    """The best items of every query; fields as in `Ranking`."""

    items: Int[np.ndarray, "Q K"]
    scores: Float[np.ndarray, "Q K"]
    # log p(item | query) = score - log_z, of scores and bias; None if not asked for
    log_z: Float[np.ndarray, " Q"] | None


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


def rank_shard(
    scores: Float[Array, "q i"],
    valid: Bool[Array, " i"],
    pairs: ScoreAdjustments,
    targets: Int[Array, " q"] | None,
    *,
    k: int,
    with_log_z: bool,
    approximate: bool,
    item_shards: int,
) -> dict[str, Array]:
    """One device's part of a block, inside `shard_map`; the fields of `Ranking` by name.

    With h items scored strictly higher than the target and t others tied with it, the rank is
    h + t / 2. A target that is not valid (unknown to the catalogue) ranks behind all valid
    items, whose scores alone are not `NEG_INF`. What pairs, numbered over the whole block, leave out
    is out of the ranking and of log_z, except a query's own target. A pair whose row lies outside
    is padding.
    """
    num_queries, num_items = scores.shape
    first_row, first_item = lax.axis_index(USERS) * num_queries, lax.axis_index(ITEMS) * num_items
    fields = {}

    def local(numbers: Int[Array, " n"], first: Array, count: int) -> Int[Array, " n"]:
        """Numbers on this device; `count`, which scatters drop, for those of other devices."""
        return jnp.where((numbers >= first) & (numbers < first + count), numbers - first, count)

    rows, columns, amounts = map(jnp.asarray, pairs)
    rows = local(rows, first_row, num_queries)
    if targets is not None:
        # never out, a target is read behind the scatter and the scores are not copied
        is_target = columns == targets.at[rows].get(mode="fill", fill_value=-1)
        rows = jnp.where(is_target & (amounts == NEG_INF), num_queries, rows)
    columns = local(columns, first_item, num_items)
    scores = scores.at[rows, columns].add(amounts, mode="drop")
    if targets is not None:
        columns = local(targets, first_item, num_items)
        own = scores.at[jnp.arange(num_queries), columns].get(mode="fill", fill_value=0)
        own = lax.psum(own, ITEMS)[:, None]
        # 2 h + t + 1 in one pass over the scores, as the target ties with itself
        above = (scores > own).astype(jnp.int8) + (scores >= own).astype(jnp.int8)
        twice = lax.psum(_row_sums(above), ITEMS) - 1
        known = valid.at[columns].get(mode="fill", fill_value=False)
        known = lax.psum(known.astype(jnp.int32), ITEMS) > 0
        fields["ranks"] = jnp.where(known, twice / 2, lax.psum(valid.sum(), ITEMS))

    if with_log_z:
        highest = lax.pmax(scores.max(1), ITEMS)
        total = lax.psum(jnp.exp(scores - highest[:, None]).sum(1), ITEMS)
        fields["log_z"] = highest + jnp.log(total)
    missing = max(k - num_items, 0)
    scores = jnp.pad(scores, ((0, 0), (0, missing)), constant_values=NEG_INF)
    best, items = lax.approx_max_k(scores, k) if approximate else top_k(scores, k)
    items += first_item
    if item_shards > 1:
        # shards stand in item order, so that among equals the smaller item still comes first
        best = lax.all_gather(best, ITEMS, axis=1, tiled=True)
        items = lax.all_gather(items, ITEMS, axis=1, tiled=True)
        best, places = lax.top_k(best, k)
        items = jnp.take_along_axis(items, places, axis=1)
    gone = best < NEG_INF / 2
    return fields | {"items": jnp.where(gone, 0, items), "scores": jnp.where(gone, -jnp.inf, best)}


def _row_sums(counts: Int[Array, "q i"]) -> Int[Array, " q"]:
    """Sums over rows of int8 of at most 2, first of `CHUNK` in int8: .16 s where int32 took .25
    for 22,363 rows of 12,288, the product that makes the scores included."""
    counts = jnp.pad(counts, ((0, 0), (0, -counts.shape[1] % CHUNK)))
    parts = counts.reshape(len(counts), CHUNK, -1).sum(1, dtype=jnp.int8)
    return parts.sum(1, dtype=jnp.int32)


@lru_cache(maxsize=64)
def _ranker(
    mesh: Mesh, from_vectors: bool, with_targets: bool, **options: Any
) -> Callable[..., dict[str, Array]]:
    """The jitted `rank_shard` on a mesh, of query and item vectors or of scores."""
    by_user, by_item, whole = (PartitionSpec(axis) for axis in (USERS, ITEMS, None))

    def rank(left, right, valid, pairs, targets):
        scores = left
        if from_vectors:
            # Full precision and float32 sums: rounded scores would tie items that differ.
            scores = jnp.einsum(
                "qd,id->qi",
                jnp.pad(left, ((0, 0), (0, 1)), constant_values=1),
                right,
                precision=lax.Precision.HIGHEST,
                preferred_element_type=jnp.float32,
            )
        return rank_shard(scores, valid, pairs, targets, item_shards=mesh.shape[ITEMS], **options)

    return jax.jit(
        jax.shard_map(
            rank,
            mesh=mesh,
            in_specs=(
                by_user if from_vectors else PartitionSpec(USERS, ITEMS),
                by_item,
                by_item,
                whole,
                by_user,
            ),
            out_specs=by_user,
            check_vma=False,  # the merged lists are equal on all item shards
        )
    )


@jax.jit
def _with_bias(
    items: Float[Array, "I D"], bias: Float[Array, " I"], valid: Bool[Array, " I"]
) -> Float[Array, "I D+1"]:
    """Items whose products with queries that end in 1 are scores, bias and all.

    Added to the scores, the bias would cost as much as the product that makes them.
    """
    bias = jnp.where(valid & (bias > -jnp.inf), bias, NEG_INF)
    return jnp.concatenate([items, bias[:, None].astype(items.dtype)], axis=1)


@dataclass(frozen=True)
class Candidates:
    """Items made ready for `best_items`, for who ranks them again and again."""

    rows: Float[Array, "I D+1"]
    valid: Bool[Array, " I"]
    mesh: Mesh


def candidates(
    items: Float[np.ndarray, "I D"] | Float[Array, "I D"],
    valid: Bool[np.ndarray, " I"],
    bias: Float[np.ndarray, " I"] | None = None,
    mesh: Mesh | None = None,
) -> Candidates:
    """Items with their bias on a mesh; arguments as in `best_items`."""
    mesh = mesh or single_device_mesh()
    bias = np.zeros(len(valid), np.float32) if bias is None else bias
    rows, is_valid = _sharded((_with_bias(items, bias, valid), valid), mesh)
    return Candidates(rows, is_valid, mesh)


def rank_queries(
    queries: Float[np.ndarray, "Q D"] | Float[Array, "Q D"],
    items: Float[np.ndarray, "I D"] | Float[Array, "I D"],
    targets: Int[np.ndarray, " Q"],
    pairs: AdjustmentBlocks,
    valid: Bool[np.ndarray, " I"],
    k: int = 10,
    *,
    block: int | None = None,
    mesh: Mesh | None = None,
) -> Ranking:
    """Rank all items by <query, item>; at most [block, I] scores exist at a time.

    Targets are items to find the rank of, 0 where there is none. `pairs(start, stop)` gives
    what to add to some scores, `valid` the rows of `items` that are items: neither item 0, the
    unknown one, nor unused capacity. Semantics: `rank_shard`. Queries lie along the axis `users`
    of the mesh, items along `items` (one device by default).

    Raises `ValueError` when lengths differ, a target is no row of `items`, or a score is not
    finite.
    """
    if len(queries) != len(targets):
        raise ValueError(
            f"{len(queries)} queries and {len(targets)} targets: give every query one target, "
            "0 where there is none"
        )
    mesh = mesh or single_device_mesh()
    rank = _ranker(mesh, True, True, k=k, with_log_z=False, approximate=False)
    unbiased = np.zeros(len(valid), np.float32)
    item_rows, is_valid = _sharded((_with_bias(items, unbiased, valid), valid), mesh)
    query_rows, size = np.asarray(queries), _block_rows(len(targets), len(valid), mesh, block)

    def rank_block(start: int, stop: int, some: ScoreAdjustments) -> dict:
        left, chosen = (padded(part[start:stop], size) for part in (query_rows, targets))
        return rank(left, item_rows, is_valid, some, chosen)

    return _checked(_rank_blocks(rank_block, len(targets), pairs, size), targets, valid)


def best_items(
    queries: Float[np.ndarray, "Q D"],
    items: Float[np.ndarray, "I D"] | Float[Array, "I D"] | Candidates,
    pairs: AdjustmentBlocks,
    valid: Bool[np.ndarray, " I"],
    k: int,
    *,
    bias: Float[np.ndarray, " I"] | None = None,
    with_log_z: bool = True,
    approximate: bool = False,
    block: int | None = None,
    mesh: Mesh | None = None,
) -> TopItems:
    """The k best items by <query, item> + bias; among equals the smaller item first.

    Arguments as in `rank_queries`, and:
        items: or `Candidates`, whose bias and mesh hold then.
        bias: what to add to the score of an item, for log_z as well; -inf keeps it out.
        approximate: find them by `lax.approx_max_k`, which is faster on a TPU (arXiv:2206.14286)
            and misses about one in twenty of the items there.

    Raises `ValueError` when a score is not finite.
    """
    if not isinstance(items, Candidates):
        items = candidates(items, valid, bias, mesh)
    rank = _ranker(items.mesh, True, False, k=k, with_log_z=with_log_z, approximate=approximate)
    size = _block_rows(len(queries), len(valid), items.mesh, block)

    def rank_block(start: int, stop: int, some: ScoreAdjustments) -> dict:
        left = padded(queries[start:stop], size)
        return rank(left, items.rows, items.valid, some, None)

    fields = _rank_blocks(rank_block, len(queries), pairs, size)
    _reject_infinite(fields["scores"])
    return TopItems(fields["items"], fields["scores"], fields.get("log_z"))


def rank_host_scores(
    score_block: Callable[[int, int], Float[np.ndarray, "b I"]],
    targets: Int[np.ndarray, " Q"],
    pairs: AdjustmentBlocks,
    valid: Bool[np.ndarray, " I"],
    k: int = 10,
    block: int | None = None,
) -> Ranking:
    """Rank all items by scores computed on the host, `score_block(start, stop)` at a time.

    Arguments and errors as in `rank_queries`.
    """
    mesh = single_device_mesh()
    rank = _ranker(mesh, False, True, k=k, with_log_z=False, approximate=False)
    size = _block_rows(len(targets), len(valid), mesh, block)
    unused = np.zeros(len(valid), np.float32)

    def rank_block(start: int, stop: int, some: ScoreAdjustments) -> dict:
        scores = score_block(start, stop)
        if scores.shape != (stop - start, len(valid)):
            raise ValueError(
                f"scores of queries [{start}, {stop}) have shape {scores.shape}: "
                f"return one row a query with {len(valid)} items"
            )
        left = padded(np.where(valid, scores, NEG_INF).astype(np.float32), size)
        return rank(left, unused, valid, some, padded(targets[start:stop], size))

    return _checked(_rank_blocks(rank_block, len(targets), pairs, size), targets, valid)


def _rank_blocks(
    rank_block: Callable[[int, int, ScoreAdjustments], dict[str, Array]],
    num_queries: int,
    pairs: AdjustmentBlocks,
    size: int,
) -> dict[str, np.ndarray]:
    """Concatenated fields of fixed-size blocks; no queries are one block of padding."""

    def one(start: int) -> dict[str, np.ndarray]:
        stop = min(start + size, num_queries)
        some = pairs(start, stop)
        padding = padded_adjustments(some, power_of_two(len(some.rows)), size)
        fields = rank_block(start, stop, padding)
        return {name: np.asarray(field)[: stop - start] for name, field in fields.items()}

    starts = range(0, max(num_queries, 1), size)
    if len(starts) == 1:
        return one(0)
    with ThreadPoolExecutor(WORKERS) as workers:
        blocks = list(workers.map(one, starts))
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def _checked(
    fields: dict[str, np.ndarray], targets: Int[np.ndarray, " Q"], valid: Bool[np.ndarray, " I"]
) -> Ranking:
    if np.any((targets < 0) | (targets >= len(valid))):
        raise ValueError(f"targets outside [0, {len(valid)}): use 0 for an unknown item")
    if not np.any(valid):
        raise ValueError("no item is valid")
    _reject_infinite(fields["scores"])
    return Ranking(**fields)


def _reject_infinite(best: Float[np.ndarray, "Q K"]) -> None:
    """Comparisons with NaN are false, which would put every target of a diverged model first."""
    bad = np.isnan(best) | (best == np.inf)
    if bad.any():
        raise ValueError(f"scores of query {np.nonzero(bad)[0][0]} are not finite")


def _sharded(tree: Any, mesh: Mesh) -> Any:
    """Arrays with one row an item on the mesh."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec(ITEMS)))


def _block_rows(num_queries: int, num_items: int, mesh: Mesh, block: int | None) -> int:
    """Rows of a block: a multiple of `MIN_BLOCK_ROWS` and of the devices along `users`, enough
    for all queries at most (unless given)."""
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    limit = MAX_BLOCK_SCORES if on_cpu else MAX_ACCELERATOR_SCORES
    most = max(limit // num_items // MIN_BLOCK_ROWS, 1) * MIN_BLOCK_ROWS
    rows = block or min(most, power_of_two(num_queries))
    shards = mesh.shape[USERS]
    return -(-rows // shards) * shards


def power_of_two(size: int) -> int:
    """The smallest power of two that holds `size`, at least `MIN_BLOCK_ROWS`."""
    return max(1 << max(size - 1, 0).bit_length(), MIN_BLOCK_ROWS)


def at_least(size: int, sizes: Sequence[int]) -> int:
    """The smallest of the sizes that holds `size`; itself if none does."""
    return next((s for s in sizes if s >= size), size)


def padded(values: np.ndarray, size: int, fill: int = 0) -> np.ndarray:
    """`values` with rows of `fill` behind, so that few distinct shapes are compiled."""
    result = np.full((size, *values.shape[1:]), fill, values.dtype)  # np.pad takes 20 times as long
    result[: len(values)] = values
    return result


def padded_adjustments(pairs: ScoreAdjustments, count: int, outside: int) -> ScoreAdjustments:
    """`count` pairs, those behind in a row that lies `outside` of the block."""
    rows, items, amounts = pairs
    return ScoreAdjustments(
        padded(rows, count, fill=outside), padded(items, count), padded(amounts, count)
    )
