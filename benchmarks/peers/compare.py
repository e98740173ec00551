"""Compare a run of jaxrec with RecTools' SASRec and eSASRec, trained on the same histories.

    python benchmarks/peers/compare.py runs/quality/KEY --history 50 --python python3.11

The run must be split by leave-one-out. Printed are NDCG@10 and recall@10 of each peer at its best
validation epoch, and the 95 % interval of jaxrec's figure minus the peer's (bootstrap over users).
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import polars as pl
from export import export
from rich.console import Console
from rich.table import Table

from jaxrec.artifacts.run_directory import read_config
from jaxrec.config import Config
from jaxrec.evaluation import metrics
from jaxrec.runtime import cache_dir

PEERS = ("RecTools SASRec", "RecTools eSASRec")
RUN = Path(__file__).parent / "run.py"
SECONDS = 7200  # of training at most


def main() -> None:
    """Measure NDCG@10 and recall@10 of RecTools' models and their differences to a run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--history", type=int, default=50, help="events that a peer reads")
    parser.add_argument("--epochs", type=int, default=60, help="of a peer at most")
    parser.add_argument("--environments", type=Path, default=cache_dir() / "peers")
    parser.add_argument("--python", default=sys.executable, help="creates the environments")
    options = parser.parse_args()
    config = read_config(options.run)
    if config.split.scheme != "leave_one_out":
        sys.exit(f"{options.run} is split by {config.split.scheme}; give a leave_one_out run")
    table = Table(title=f"{options.run}: jaxrec minus RecTools, 95 % interval")
    for heading in ("", "N@10", "R@10", "difference of N@10", "of R@10"):
        table.add_column(heading, justify="right" if heading else "left")
    jaxrec_ranks = test_ranks(options.run)
    with tempfile.TemporaryDirectory() as folder:
        export(config, Path(folder))
        for peer in PEERS:
            ranks = peer_ranks(peer, Path(folder), config, options)
            table.add_row(peer, *figures(jaxrec_ranks, ranks))
    Console(width=120).print(table)


def test_ranks(run: Path) -> pl.DataFrame:
    """The ranks of a run's test items by user."""
    ranks = pl.read_parquet(run / "ranks.parquet")
    return ranks.filter(pl.col("queries") == "test").select("user_id", "rank")


def peer_ranks(
    peer: str, folder: Path, config: Config, options: argparse.Namespace
) -> pl.DataFrame:
    """Ranks of the test items in the peer's lists of ten, at its best validation epoch."""
    path = folder / "ranks.npz"
    arguments = {
        "environments": options.environments,
        "python": options.python,
        "data": folder,
        "hidden-size": config.model.hidden_size,
        "num-layers": config.model.num_layers,
        "history": options.history,
        "dropout": config.model.dropout,
        "batch-size": 128,
        "epochs": options.epochs,
        "seconds": SECONDS,
        "batches": 0,
        "ranks": path,
    }
    flags = [part for name, value in arguments.items() for part in (f"--{name}", str(value))]
    result = subprocess.run(
        [sys.executable, str(RUN), peer, *flags], capture_output=True, text=True
    )
    if result.returncode:
        sys.exit(f"{peer} failed:\n{result.stderr[-3000:]}")
    with np.load(path) as arrays:
        return pl.DataFrame({"user_id": arrays["user_ids"], "rank": arrays["ranks"]})


def figures(jaxrec_ranks: pl.DataFrame, peer_ranks: pl.DataFrame) -> list[str]:
    """The peer's two metrics, and the intervals of jaxrec's minus the peer's."""
    joined = jaxrec_ranks.join(peer_ranks, on="user_id", suffix="_peer", validate="1:1")
    assert len(joined) == len(jaxrec_ranks), "the peer ranks other users"
    ranks, ranks_of_peer = joined["rank"].to_numpy(), joined["rank_peer"].to_numpy()
    means, intervals = [], []
    for metric in (metrics.ndcg, metrics.recall):
        values, peer_values = metric(ranks, 10), metric(ranks_of_peer, 10)
        low, high = metrics.bootstrap_interval(values, peer_values, samples=2000, seed=0)
        means.append(f"{peer_values.mean():.4f}")
        intervals.append(f"{low:+.4f} to {high:+.4f}")
    return [*means, *intervals]


if __name__ == "__main__":
    main()
