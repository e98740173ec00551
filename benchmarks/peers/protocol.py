"""What every compared system gets and what it reports.

It needs only numpy, because the peers run in environments of their own.
"""

import argparse
import json
import resource
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

K = 10
PATIENCE = 5  # epochs without a better score, where the best epoch's ranks are written


@dataclass(frozen=True)
class Histories:
    """Events of U users in time order, items from 1 to `num_items`."""

    user_ids: np.ndarray
    offsets: np.ndarray  # [U + 1]
    items: np.ndarray
    num_items: int

    def train(self, held_out: int = 2) -> list[np.ndarray]:
        """The items of every user without the last two, which validate and test."""
        return [
            self.items[begin : end - held_out]
            for begin, end in zip(self.offsets[:-1], self.offsets[1:], strict=True)
        ]

    def validation_targets(self) -> np.ndarray:
        """The item that validates every user."""
        return self.items[self.offsets[1:] - 2]

    def test_targets(self) -> np.ndarray:
        """The item that tests every user."""
        return self.items[self.offsets[1:] - 1]


@dataclass(frozen=True)
class Options:
    """The sizes that all systems share."""

    data: Path  # a folder that `export.py` wrote
    hidden_size: int
    num_layers: int
    history: int  # newest events that a system reads
    dropout: float
    batch_size: int  # users of a step
    epochs: int
    seconds: float  # of training after which no further epoch starts
    batches: int  # of an epoch at most, 0 for all
    ranks: Path | None = None  # file for the ranks of the test items


def read_options() -> Options:
    """The options of the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--ranks", type=Path)
    for name, option_type in Options.__annotations__.items():
        if name != "ranks":
            flag = "--" + name.replace("_", "-")
            parser.add_argument(flag, type=option_type, required=True)
    return Options(**vars(parser.parse_args()))


def read_histories(options: Options) -> Histories:
    """The histories that `export.py` wrote."""
    with np.load(options.data / "histories.npz") as arrays:
        return Histories(**{**arrays, "num_items": int(arrays["num_items"])})


def ndcg(ranked: np.ndarray, targets: np.ndarray) -> float:
    """NDCG@10 of [U, 10] lists with one target each."""
    _, places = np.nonzero(ranked == targets[:, None])
    return float((1 / np.log2(places + 2)).sum() / len(targets))


def ranks(ranked: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Rank of the target in [U, 10] lists, from 0; 10 if it is not in the list."""
    is_target = ranked == targets[:, None]
    return np.where(is_target.any(1), is_target.argmax(1), K)


def best_unseen(scores: np.ndarray, seen: list[np.ndarray]) -> np.ndarray:
    """[U, 10] columns with the best scores, without column 0 and the seen items."""
    scores = scores.copy()
    scores[:, 0] = -np.inf
    for row, items in zip(scores, seen, strict=True):
        row[items] = -np.inf
    best = np.argpartition(-scores, K, axis=1)[:, :K]
    order = np.argsort(-np.take_along_axis(scores, best, 1), axis=1, kind="stable")
    return np.take_along_axis(best, order, 1)


def padded(sequences: list[np.ndarray], length: int) -> np.ndarray:
    """The last `length` items of every sequence, followed by zeros."""
    rows = np.zeros((len(sequences), length), np.int32)
    for row, items in zip(rows, sequences, strict=True):
        items = items[-length:]
        row[: len(items)] = items
    return rows


class Reporter:
    """Prints a `RESULT` line after every epoch, and decides when to stop."""

    def __init__(self, options: Options):
        self.options = options
        self.trained = 0.0
        self.epoch = 0
        self.best = (0.0, 0)  # score and epoch

    def wants_more(self) -> bool:
        """Whether another epoch should be trained."""
        stale = self.options.ranks and self.epoch - self.best[1] >= PATIENCE
        more = self.epoch < self.options.epochs and self.trained < self.options.seconds
        return more and not stale

    def report(
        self, seconds: float, targets: int, slots: int, score: float, ranking: float
    ) -> None:
        """Print an epoch.

        Args:
            seconds: training time of the epoch.
            targets: trained targets, without padding.
            slots: time steps that the sequence model computed, with padding.
            score: validation NDCG@10.
            ranking: seconds from the histories of all users to the ids of their ten best unseen
                items.
        """
        self.epoch += 1
        self.trained += seconds
        self.best = max(self.best, (score, self.epoch), key=lambda best: best[0])
        line = {
            "epoch": self.epoch,
            "seconds": seconds,
            "trained": self.trained,
            "targets": targets,
            "slots": slots,
            "ndcg": score,
            "ranking": ranking,
            "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }
        print("RESULT", json.dumps(line), flush=True)


def timed(function, *arguments):
    """The result of `function`, and its seconds."""
    start = time.perf_counter()
    result = function(*arguments)
    return result, time.perf_counter() - start
