"""Exact ranking of the whole catalogue, in blocks of queries: top-k, rank of the target, log Z.

The scores of a block lie on a mesh as [users, items]. Every device ranks its own part of the
catalogue, and only small results (k items, sums, counts) are merged.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from jaxrec.ranking.adjustments import AdjustmentBlocks, ScoreAdjustments, no_adjustments, scale
from jaxrec.ranking.codes import CodedRows, coded_products
from jaxrec.ranking.item_table import ItemTable, PreparedItems, prepare
from jaxrec.ranking.shard import LEFT_OUT, BlockInputs, RankOptions, compiled_ranking
from jaxrec.runtime import target_platform
from jaxrec.sharding import USERS, single_device_mesh
from jaxrec.types import NEG_INF

# below 32 MiB: the system maps a larger block page by page every time
MAX_BLOCK_SCORES = 2**23 - 2**10
MAX_ACCELERATOR_SCORES = 2**26
MIN_BLOCK_ROWS = 8  # of tables so large that no more rows fit
MIN_PAIRS = 8  # score adjustments of a block
CANDIDATES = 4  # items to score exactly for one in the list, where codes are searched
MAX_CANDIDATE_FLOATS = 2**23  # of their vectors at a time
WORKERS = 2  # blocks in flight: one is multiplied while the other is searched


@dataclass(frozen=True)
class EvalQueries:
    """Queries with known answers."""

    vectors: Float[Array | np.ndarray, "Q F"]  # user vectors
    targets: Int[np.ndarray, " Q"]  # the item to find the rank of; 0 where there is none
    adjustments: AdjustmentBlocks = no_adjustments


@dataclass(frozen=True)
class Ranking:
    """The result of a full ranking, one row a query."""

    ranks: Float[np.ndarray, " Q"]  # of the target, from 0; ties count half
    items: Int[np.ndarray, "Q K"]  # best first; 0 where no item is left
    scores: Float[np.ndarray, "Q K"]  # -inf where no item is left


@dataclass(frozen=True)
class TopItems:
    """The best items of every query; fields as in `Ranking`."""

    items: Int[np.ndarray, "Q K"]
    scores: Float[np.ndarray, "Q K"]
    log_z: Float[np.ndarray, " Q"] | None  # log p(item | query) = score - log_z; None: not asked


def rank_queries(
    queries: EvalQueries,
    items: ItemTable | PreparedItems,
    k: int = 10,
    mesh: Mesh | None = None,
) -> Ranking:
    """Rank all items by <query, item> + bias, in blocks of queries.

    Queries lie along the axis `users` of the mesh, items along `items`. `rank_shard` documents
    ties, unknown targets and items that are left out.

    Args:
        mesh: as in `prepare`; prepared items bring their own.

    Raises:
        ValueError: lengths differ, a target is no row of the table, or a score is not finite.
    """
    prepared = prepare(items, mesh)
    check_targets(len(queries.vectors), queries.targets, np.asarray(prepared.valid))
    vectors, targets = np.asarray(queries.vectors), queries.targets
    fields = _rank_vectors(vectors, prepared, queries.adjustments, RankOptions(k), targets=targets)
    _require_finite(np.all(fields["scores"] < np.inf, axis=1))
    return Ranking(**fields)


def best_items(
    vectors: Float[Array | np.ndarray, "Q F"],
    items: ItemTable | PreparedItems,
    k: int,
    adjustments: AdjustmentBlocks = no_adjustments,
    *,
    with_log_z: bool = False,
    approximate: bool = False,
    inverse_temperature: float = 1.0,
) -> TopItems:
    """The k best items by <query, item> + bias; among equals the smaller item first.

    Args:
        items: a table is ranked where `prepare` lays it out, prepared items on their mesh. Coded
            items may miss one; see `ItemTable`.
        inverse_temperature: multiplies the scores, adjustments included.
        approximate: use `lax.approx_max_k`, which is faster on a TPU (arXiv:2206.14286) and misses
            about one in twenty of the items there.

    Raises:
        ValueError: a score is not finite.
    """
    prepared = prepare(items)
    is_coded = isinstance(prepared.rows, CodedRows)
    length = max(k, min(CANDIDATES * k, len(prepared))) if is_coded else k
    options = RankOptions(length, with_log_z, approximate)
    if inverse_temperature != 1:
        adjustments = scale(adjustments, inverse_temperature)
    fields = _rank_vectors(vectors, prepared, adjustments, options, factor=inverse_temperature)
    _require_finite(np.all(fields["scores"] < np.inf, axis=1))
    if is_coded:
        fields |= _ranked_exactly(inverse_temperature * np.asarray(vectors), prepared, fields, k)
    return TopItems(fields["items"], fields["scores"], fields.get("log_z"))


def _ranked_exactly(
    queries: Float[np.ndarray, "Q F"], items: PreparedItems, found: dict[str, np.ndarray], k: int
) -> dict[str, np.ndarray]:
    """The k best of the candidates that codes have found, by exact scores."""
    candidates, scores = found["items"], found["scores"].copy()
    vectors = np.asarray(items.vectors)
    step = max(MAX_CANDIDATE_FLOATS // (candidates.shape[1] * vectors.shape[1]), 1)
    for start in range(0, len(queries), step):
        part = slice(start, start + step)
        exact = np.einsum("qf,qcf->qc", queries[part], vectors[candidates[part]], optimize=True)
        scores[part] += exact - coded_products(queries[part], items.rows, candidates[part])
    order = np.lexsort((candidates, -scores))[:, :k]
    return {
        "items": np.take_along_axis(candidates, order, axis=1),
        "scores": np.take_along_axis(scores, order, axis=1),
    }


def log_probabilities(
    vectors: Float[Array | np.ndarray, "Q F"],
    items: ItemTable | PreparedItems,
    columns: Int[np.ndarray, "Q K"],
    adjustments: AdjustmentBlocks = no_adjustments,
    *,
    inverse_temperature: float,
) -> Float[np.ndarray, "Q K"]:
    """log p(item | query) = b score - log Z of the items in `columns`, in nats.

    b is the inverse temperature. Z sums exp(b score) over all valid items that are not left out;
    the others have -inf.

    Raises:
        ValueError: lengths differ, a column is no row of the table, no item is valid, or a score is
            not finite.
    """
    prepared = prepare(items)
    check_targets(len(vectors), columns, np.asarray(prepared.valid))
    fields = _rank_vectors(
        vectors,
        prepared,
        scale(adjustments, inverse_temperature),
        RankOptions(0, with_log_z=True),
        factor=inverse_temperature,
        columns=columns,
    )
    scores, log_z = fields["column_scores"], fields["log_z"][:, None]
    _require_finite(np.all(np.isfinite(scores) & np.isfinite(log_z), axis=1))
    # rounding may bring the probability of a certain item above 1
    return np.where(scores < LEFT_OUT, -np.inf, np.minimum(scores - log_z, 0)).astype(np.float32)


def rank_host_scores(
    score_block: Callable[[int, int], Float[np.ndarray, "Q I"]],
    targets: Int[np.ndarray, " Q"],
    adjustments: AdjustmentBlocks,
    valid: Bool[np.ndarray, " I"],
    k: int = 10,
    block: int | None = None,
) -> Ranking:
    """Rank all items by scores that the host computes, `score_block(start, stop)` at a time.

    Other arguments and errors as in `rank_queries`; `block` is the most queries at a time.
    """
    check_targets(len(targets), targets, valid)
    mesh = single_device_mesh()
    rank = compiled_ranking(mesh, RankOptions(k), from_vectors=False)
    size = block_rows(len(targets), len(valid), mesh, None)
    size = size if block is None else min(size, block_rows(len(targets), len(valid), mesh, block))
    unused = np.zeros(len(valid), np.float32)

    def rank_block(start: int, stop: int, adjustments: ScoreAdjustments) -> dict:
        scores = score_block(start, stop)
        if scores.shape != (stop - start, len(valid)):
            raise ValueError(
                f"scores of queries [{start}, {stop}) have shape {scores.shape}: "
                f"return one row a query with {len(valid)} items"
            )
        left = padded(np.where(valid, scores, NEG_INF).astype(np.float32), size)
        inputs = BlockInputs(adjustments, targets=padded(targets[start:stop], size))
        return rank(left, unused, valid, inputs)

    fields = _rank_blocks(rank_block, len(targets), adjustments, size)
    _require_finite(np.all(fields["scores"] < np.inf, axis=1))
    return Ranking(**fields)


def check_targets(
    num_queries: int, targets: Int[np.ndarray, "Q *K"], valid: Bool[np.ndarray, " I"]
) -> None:
    """Raise a ValueError unless every query has its targets, all of them rows of a table."""
    if num_queries != len(targets):
        raise ValueError(
            f"{num_queries} queries and {len(targets)} targets: give every query one, or 0"
        )
    if np.any((targets < 0) | (targets >= len(valid))):
        raise ValueError(f"targets outside [0, {len(valid)}): use 0 for an unknown item")
    if not np.any(valid):
        raise ValueError("no item is valid")


def _rank_vectors(
    vectors: Float[Array | np.ndarray, "Q F"],
    items: PreparedItems,
    adjustments: AdjustmentBlocks,
    options: RankOptions,
    *,
    factor: float = 1.0,
    **numbers: Int[np.ndarray, "Q *K"],
) -> dict[str, np.ndarray]:
    """Fields of `rank_shard` for all queries.

    Args:
        factor: scales the vectors and the bias of the items, but not the adjustments.
        numbers: `targets` or `columns` of `BlockInputs`.
    """
    rank = compiled_ranking(items.mesh, options)
    size = block_rows(len(vectors), len(items), items.mesh, items.block)

    def rank_block(start: int, stop: int, adjustments: ScoreAdjustments) -> dict[str, Array]:
        left = _with_one(vectors[start:stop], size)
        if factor != 1:
            left *= factor
        inputs = {name: padded(values[start:stop], size) for name, values in numbers.items()}
        return rank(left, items.rows, items.valid, BlockInputs(adjustments, **inputs))

    return _rank_blocks(rank_block, len(vectors), adjustments, size)


def _rank_blocks(
    rank_block: Callable[[int, int, ScoreAdjustments], dict[str, Array]],
    num_queries: int,
    adjustments: AdjustmentBlocks,
    size: int,
) -> dict[str, np.ndarray]:
    """Concatenated fields of fixed-size blocks; without queries, one block of padding."""

    def one(start: int) -> dict[str, np.ndarray]:
        stop = min(start + size, num_queries)
        block = adjustments(start, stop)
        fields = rank_block(
            start, stop, pad_adjustments(block, power_of_two(len(block.rows), MIN_PAIRS), size)
        )
        return {name: np.asarray(field)[: stop - start] for name, field in fields.items()}

    starts = range(0, max(num_queries, 1), size)
    if len(starts) == 1:
        return one(0)
    with ThreadPoolExecutor(WORKERS) as workers:
        blocks = list(workers.map(one, starts))
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def _require_finite(is_finite: Bool[np.ndarray, " Q"]) -> None:
    """Comparisons with NaN are false, which would put every target of a diverged model first."""
    if not is_finite.all():
        raise ValueError(f"scores of query {is_finite.argmin()} are not finite")


def block_rows(num_queries: int, num_items: int, mesh: Mesh, block: int | None) -> int:
    """Rows of a block: `block`, or a power of two; a multiple of the devices along `users`."""
    if block is not None and block < 1:
        raise ValueError(f"block must be at least 1, not {block}")
    on_cpu = target_platform(mesh.devices.flat[0].platform) == "cpu"
    limit = MAX_BLOCK_SCORES if on_cpu else MAX_ACCELERATOR_SCORES
    most = max(limit // num_items // MIN_BLOCK_ROWS, 1) * MIN_BLOCK_ROWS
    rows = block or min(most, power_of_two(num_queries))
    shards = mesh.shape[USERS]
    return -(-rows // shards) * shards


def power_of_two(size: int, least: int = 1) -> int:
    """The smallest power of two that holds `size`, at least `least`."""
    return max(1 << max(size - 1, 0).bit_length(), least)


def at_least(size: int, sizes: Sequence[int]) -> int:
    """The smallest of the sizes that holds `size`; `size` itself if none does."""
    return next((s for s in sizes if s >= size), size)


def padded(values: np.ndarray, size: int, fill: int = 0) -> np.ndarray:
    """`values` followed by rows of `fill`, so that few distinct shapes are compiled."""
    result = np.full((size, *values.shape[1:]), fill, values.dtype)  # np.pad takes 20 times as long
    result[: len(values)] = values
    return result


def pad_adjustments(adjustments: ScoreAdjustments, count: int, outside: int) -> ScoreAdjustments:
    """`count` adjustments; those of the padding have the row `outside`, which no block has."""
    rows, items, amounts = adjustments
    return ScoreAdjustments(
        padded(rows, count, fill=outside), padded(items, count), padded(amounts, count)
    )


def _with_one(
    vectors: Float[Array | np.ndarray, "q F"], size: int
) -> Float[np.ndarray, "{size} F+1"]:
    """Padded queries that end in 1, which meets the bias of the items."""
    queries = np.zeros((size, vectors.shape[1] + 1), np.float32)
    queries[: len(vectors), :-1] = vectors
    queries[:, -1] = 1
    return queries
