"""What every system is given and user_events. It needs numpy alone, as peers have own packages."""

import argparse
import json
import resource
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

K = 10
PATIENCE = 5  # epochs without a better score, where the best model is wanted


@dataclass(frozen=True)
class Histories:
    """Events of U users in time order, items from 1 to `num_items`."""

    user_ids: np.ndarray
    offsets: np.ndarray  # [U + 1]
    items: np.ndarray
    num_items: int

    def train(self, held_out: int = 2) -> list[np.ndarray]:
        """Every user's events but the last two, which validate and test."""
        return [
            self.items[begin : end - held_out]
            for begin, end in zip(self.offsets[:-1], self.offsets[1:], strict=True)
        ]

    def targets(self) -> np.ndarray:
        """The item that validates every user."""
        return self.items[self.offsets[1:] - 2]

    def test_targets(self) -> np.ndarray:
        """The item that tests every user."""
        return self.items[self.offsets[1:] - 1]


@dataclass(frozen=True)
class Options:
    """Sizes that all systems share."""

    data: Path
    width: int
    blocks: int
    history: int
    dropout: float
    batch: int  # sequences
    rows: int  # of a packed batch, which hold more events than sequences do
    epochs: int
    seconds: float  # no epoch begins after so many
    batches: int  # of an epoch at most, 0 for all
    ranks: Path | None = None  # where to write the ranks of the test items


def read_options() -> Options:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ranks", type=Path)
    for name, event_type in Options.__annotations__.items():
        if name != "ranks":
            parser.add_argument(f"--{name}", type=event_type, required=True)
    return Options(**vars(parser.parse_args()))


def read_histories(options: Options) -> Histories:
    with np.load(options.data / "histories.npz") as arrays:
        return Histories(**{**arrays, "num_items": int(arrays["num_items"])})


def ndcg(ranked: np.ndarray, targets: np.ndarray) -> float:
    """NDCG@10 of [U, 10] lists with one right item each."""
    _, places = np.nonzero(ranked == targets[:, None])
    return float((1 / np.log2(places + 2)).sum() / len(targets))


def ranks(ranked: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Place of the right item in [U, 10] lists, 10 where it is missing."""
    found = ranked == targets[:, None]
    return np.where(found.any(1), found.argmax(1), K)


def best_unseen(scores: np.ndarray, seen: list[np.ndarray]) -> np.ndarray:
    """[U, 10] columns of the best scores; column 0 and what was seen are left out."""
    scores = scores.copy()
    scores[:, 0] = -np.inf
    for row, items in zip(scores, seen, strict=True):
        row[items] = -np.inf
    best = np.argpartition(-scores, K, axis=1)[:, :K]
    order = np.argsort(-np.take_along_axis(scores, best, 1), axis=1, kind="stable")
    return np.take_along_axis(best, order, 1)


def padded(sequences: list[np.ndarray], length: int) -> np.ndarray:
    """The last `length` items of every sequence, zeros behind."""
    rows = np.zeros((len(sequences), length), np.int32)
    for row, items in zip(rows, sequences, strict=True):
        items = items[-length:]
        row[: len(items)] = items
    return rows


class Reporter:
    """Prints a line an epoch, and says when to stop."""

    def __init__(self, options: Options):
        self.options = options
        self.trained = 0.0
        self.epoch = 0
        self.best = (0.0, 0)  # score and epoch

    def wants_more(self) -> bool:
        stale = self.options.ranks and self.epoch - self.best[1] >= PATIENCE
        more = self.epoch < self.options.epochs and self.trained < self.options.seconds
        return more and not stale

    def report(self, seconds: float, targets: int, score: float, evaluation: float) -> None:
        self.epoch += 1
        self.trained += seconds
        self.best = max(self.best, (score, self.epoch), key=lambda best: best[0])
        line = {
            "epoch": self.epoch,
            "seconds": seconds,
            "trained": self.trained,
            "targets": targets,
            "ndcg": score,
            "evaluation": evaluation,
            "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }
        print("RESULT", json.dumps(line), flush=True)


def timed(function, *arguments):
    """What `function` returns, and its seconds."""
    began = time.perf_counter()
    result = function(*arguments)
    return result, time.perf_counter() - began
