"""Top-k retrieval: users a second, share of the matrix-product peak, memory; faiss, RecTools.

    python benchmarks/scoring.py [--users 20000] [--items 100000] [--width 64] [--k 100]
    python benchmarks/scoring.py --full                          # a million users
    python benchmarks/scoring.py --rectools path/to/python       # one that has rectools[torch]

All systems rank the same random vectors, in turn, `--repeats` times; the ratios are of medians.
The peak memory of jaxrec counts from when the tables stand, and holds the lists it returns.
"""

import argparse
import resource
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import psutil

from jaxrec.ranking.top_k import best_items

BLOCK = 16_384  # users handed over at a time, as batch scoring does
MIB = 2**20

RECTOOLS = """
import sys, time
import numpy as np
import torch
from rectools.models.rank import Distance, ImplicitRanker, TorchRanker

folder, k = sys.argv[1], int(sys.argv[2])
users, items = np.load(folder + "/users.npy"), np.load(folder + "/items.npy")
ids = np.arange(len(users))
rankers = {
    "RecTools, implicit": ImplicitRanker(Distance.DOT, users, items),
    "RecTools, torch": TorchRanker(Distance.DOT, "cpu", users, items, batch_size=128),
}
for name, ranker in rankers.items():
    ranker.rank(ids[:256], k=k)
    start = time.perf_counter()
    ranker.rank(ids, k=k)
    print(name, time.perf_counter() - start, sep="\\t")
"""


def main() -> None:
    parser = argparse.ArgumentParser()
    sizes = (("users", 20_000), ("items", 100_000), ("width", 64), ("k", 100), ("repeats", 3))
    for name, default in sizes:
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--full", action="store_true", help="1,000,000 users, once")
    parser.add_argument("--rectools", type=Path, help="a Python that has rectools[torch]")
    options = parser.parse_args()
    if options.full:
        options.users, options.repeats = 1_000_000, 1
    random = np.random.default_rng(0)
    capacity = -(-options.items // 256) * 256
    users = random.normal(size=(options.users, options.width)).astype(np.float32)
    items = random.normal(size=(capacity, options.width)).astype(np.float32)
    valid = np.arange(capacity) < options.items

    before = psutil.Process().memory_info().rss

    def jaxrec() -> object:
        return rank_with_jaxrec(users, items, valid, options.k)

    rank_with_jaxrec(users[:BLOCK], items, valid, options.k)
    seconds = {"jaxrec": [timed(jaxrec)]}
    peak_rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"jaxrec: peak memory above the tables {(peak_rss - before) / MIB:,.0f} MiB")

    systems: dict[str, Callable[[], object]] = {"jaxrec": jaxrec}
    try:
        systems["faiss"] = make_faiss(users, items[: options.items], options.k)
    except ImportError:
        print("faiss-cpu is not installed, so it is left out")
    for number in range(options.repeats):
        for name, run in systems.items():
            if name != "jaxrec" or number:
                seconds.setdefault(name, []).append(timed(run))
    if options.rectools:
        # a subset of the users: it is the slowest, and its time grows with them alone
        some = users[: min(len(users), 20_000)]
        for name, taken in rank_with_rectools(some, items[: options.items], options).items():
            seconds[name] = [taken * len(users) / len(some)]
    flops = 2 * options.users * options.items * options.width
    peak = matrix_product_peak()
    print(f"matrix-product peak {peak / 1e9:.0f} GFLOP/s")
    own = statistics.median(seconds["jaxrec"])
    for name, times in seconds.items():
        median = statistics.median(times)
        rate = flops / median
        print(
            f"{name:20} {options.users / median:>9,.0f} users/s  {rate / 1e9:5.0f} GFLOP/s "
            f"({rate / peak:4.0%} of the peak)  jaxrec is {median / own:.2f} times as fast"
        )


def rank_with_jaxrec(
    users: np.ndarray, items: np.ndarray, valid: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    ranked = np.empty((len(users), k), np.int32)
    scores = np.empty((len(users), k), np.float32)
    nothing = (np.zeros(0, np.int64), np.zeros(0, np.int64))
    rows = jnp.asarray(items)
    for start in range(0, len(users), BLOCK):
        block = slice(start, start + BLOCK)
        top = best_items(users[block], rows, lambda *_: nothing, valid, k, with_log_z=False)
        ranked[block], scores[block] = top.items, top.scores
    return ranked, scores


def make_faiss(users: np.ndarray, items: np.ndarray, k: int) -> Callable[[], object]:
    import faiss

    index = faiss.IndexFlatIP(items.shape[1])
    index.add(items)

    def search() -> None:
        for start in range(0, len(users), BLOCK):
            index.search(users[start : start + BLOCK], k)

    index.search(users[:256], k)
    return search


def rank_with_rectools(
    users: np.ndarray, items: np.ndarray, options: argparse.Namespace
) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder, "users.npy"), users)
        np.save(Path(folder, "items.npy"), items)
        shown = subprocess.run(
            [str(options.rectools), "-c", RECTOOLS, folder, str(options.k)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    rows = [line.split("\t") for line in shown.splitlines() if "\t" in line]
    return {name: float(taken) for name, taken in rows}


def matrix_product_peak(size: int = 2048, repeats: int = 5) -> float:
    """FLOP/s of the best of some products of square matrices."""
    matrix = jnp.ones((size, size))
    multiply = jax.jit(jnp.matmul)
    multiply(matrix, matrix).block_until_ready()
    best = min(timed(lambda: multiply(matrix, matrix).block_until_ready()) for _ in range(repeats))
    return 2 * size**3 / best


def timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
