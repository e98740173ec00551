"""Top-k retrieval by jaxrec, faiss and RecTools.

    python benchmarks/speed/scoring.py [--users 20000] [--items 100000] [--width 64] [--k 100]
    python benchmarks/speed/scoring.py --full                     # a million users
    python benchmarks/speed/scoring.py --rectools path/to/python  # one that has rectools[torch]

Printed are, for every system, users/s, GFLOP/s, the share of the peak of a matrix product, and how
fast jaxrec is in comparison. All systems rank the same random vectors, in turn, `--repeats` times;
the figures are of medians. The peak memory of jaxrec is that above the vectors; it includes the
returned lists. faiss is left out if it is not installed.
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

from jaxrec.ranking.item_table import ItemTable, prepare
from jaxrec.ranking.top_k import best_items

BLOCK = 16_384  # users of a call, as in batch scoring
RECTOOLS_USERS = 20_000
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
    """Measure users/s and GFLOP/s of top-k retrieval by every system."""
    options = read_options()
    random = np.random.default_rng(0)
    padded_size = -(-options.items // 256) * 256
    users = random.normal(size=(options.users, options.width)).astype(np.float32)
    vectors = random.normal(size=(padded_size, options.width)).astype(np.float32)
    items = ItemTable(vectors, np.arange(padded_size) < options.items)
    before = psutil.Process().memory_info().rss

    def jaxrec() -> object:
        return rank_with_jaxrec(users, items, options.k)

    rank_with_jaxrec(users[:BLOCK], items, options.k)  # compiles
    seconds = {"jaxrec": [timed(jaxrec)]}
    peak_rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"jaxrec: peak memory above the vectors {(peak_rss - before) / MIB:,.0f} MiB")

    systems: dict[str, Callable[[], object]] = {"jaxrec": jaxrec}
    try:
        systems["faiss"] = make_faiss(users, vectors[: options.items], options.k)
    except ImportError:
        print("faiss-cpu is not installed, so it is left out")
    for number in range(options.repeats):
        for name, run in systems.items():
            if name != "jaxrec" or number:
                seconds.setdefault(name, []).append(timed(run))
    if options.rectools:
        # its time grows only with the users, so it ranks fewer of them
        sample = users[:RECTOOLS_USERS]
        for name, taken in rank_with_rectools(sample, vectors[: options.items], options).items():
            seconds[name] = [taken * len(users) / len(sample)]
    show(seconds, options)


def read_options() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser()
    sizes = {"users": 20_000, "items": 100_000, "width": 64, "k": 100, "repeats": 3}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--full", action="store_true", help="1,000,000 users, one repetition")
    parser.add_argument("--rectools", type=Path, help="a Python that has rectools[torch]")
    options = parser.parse_args()
    if options.full:
        options.users, options.repeats = 1_000_000, 1
    return options


def rank_with_jaxrec(users: np.ndarray, items: ItemTable, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Best items and their scores, [U, k] each."""
    ranked = np.empty((len(users), k), np.int32)
    scores = np.empty((len(users), k), np.float32)
    prepared = prepare(items)
    for start in range(0, len(users), BLOCK):
        block = slice(start, start + BLOCK)
        top = best_items(users[block], prepared, k)
        ranked[block], scores[block] = top.items, top.scores
    return ranked, scores


def show(seconds: dict[str, list[float]], options: argparse.Namespace) -> None:
    """Print the speed of every system, and how fast jaxrec is in comparison."""
    flops = 2 * options.users * options.items * options.width
    peak = matrix_product_peak()
    print(f"matrix-product peak {peak / 1e9:.0f} GFLOP/s")
    jaxrec = statistics.median(seconds["jaxrec"])
    for name, times in seconds.items():
        median = statistics.median(times)
        rate = flops / median
        print(
            f"{name:20} {options.users / median:>9,.0f} users/s  {rate / 1e9:5.0f} GFLOP/s "
            f"({rate / peak:4.0%} of the peak)  jaxrec is {median / jaxrec:.2f} times as fast"
        )


def make_faiss(users: np.ndarray, items: np.ndarray, k: int) -> Callable[[], object]:
    """A search of all users with an exact index, after a first call."""
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
    """Seconds by ranker."""
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder, "users.npy"), users)
        np.save(Path(folder, "items.npy"), items)
        output = subprocess.run(
            [str(options.rectools), "-c", RECTOOLS, folder, str(options.k)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    rows = [line.split("\t") for line in output.splitlines() if "\t" in line]
    return {name: float(taken) for name, taken in rows}


def matrix_product_peak(size: int = 2048, repeats: int = 5) -> float:
    """FLOP/s of the fastest of several products of square matrices."""
    matrix = jnp.ones((size, size))
    multiply = jax.jit(jnp.matmul)
    multiply(matrix, matrix).block_until_ready()
    best = min(timed(lambda: multiply(matrix, matrix).block_until_ready()) for _ in range(repeats))
    return 2 * size**3 / best


def timed(run: Callable[[], object]) -> float:
    """Seconds of a call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
