"""What the parts of `accelerator.py` share: sizes, inputs, rows with a time budget, the table.

Neither JAX nor torch is imported here, as each part needs only one of them.
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from accelerator_files import read

INPUTS, BATCH, PACKAGES = "inputs.npz", "batch.npz", "packages"
NO_TIME = "not measured: no time left"


@dataclass(frozen=True)
class Sizes:
    """What is measured. 664 is the block of users that jaxrec chooses for 100,000 items."""

    product: int = 8192  # rows and columns
    copy: int = 2**29  # float32 numbers
    lstm: tuple[tuple[int, int], ...] = ((256, 64), (1024, 200))  # rows and time steps
    widths: tuple[int, ...] = (128, 256, 512)
    batch_sizes: tuple[int, ...] = (16, 64, 256, 1024)
    users: int = 1_000_000
    chunk: int = 65_536  # users of a call
    items: int = 100_096  # a multiple of 256
    rank_widths: tuple[int, ...] = (128, 384)
    k: int = 100
    blocks: tuple[int, ...] = (664, 8192)  # users at a time
    repeats: int = 7
    epochs: int = 100  # at most those of the recipe


TINY = Sizes(
    product=64,
    copy=4096,
    lstm=((4, 6),),
    widths=(16,),
    batch_sizes=(4,),
    users=200,
    chunk=100,
    items=512,
    rank_widths=(8,),
    k=5,
    blocks=(40,),
    repeats=2,
    epochs=1,
)


@dataclass(frozen=True, eq=False)
class Inputs:
    """What a machine without the data readers needs to train and validate; arrays are NumPy's.

    Attributes:
        config: the options of the run, with the experts that the data have a source for.
        sizes: the `Sizes` of the model.
        log: all events, without the ids of the users.
        train_lengths: the first events of every user that train.
        weights: target weight of every event.
        queries: of validation.
        target_event_type: that evaluation predicts.
        arrays: the `TrainArrays`, with text vectors in float16.
    """

    config: Any
    sizes: Any
    log: Any
    train_lengths: np.ndarray
    weights: np.ndarray
    queries: Any
    target_event_type: int
    arrays: Any


def read_inputs(directory: Path) -> Inputs:
    """The inputs that `accelerator_inputs.py` wrote."""
    return read(directory / INPUTS)


@dataclass
class Rows:
    """Writes the rows of one part, each at once, until the time is up."""

    path: Path
    part: str
    seconds: float
    fixed: dict[str, str]  # card, versions and commit
    start: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        """Seconds that the part may still take."""
        return self.seconds - (time.monotonic() - self.start)

    def measured(self, cases: list[tuple[str, ...]]) -> Iterator[tuple[str, ...]]:
        """The cases, (case, system, ...), one after another; those without time get a row."""
        for case in cases:
            if self.left > 0:
                yield case
            else:
                self.add(case[0], case[1], note=NO_TIME)

    def add(self, case: str, system: str, times: list[float] | None = None, **figures) -> None:
        """Write a row; `times` are the seconds of every repetition."""
        row: dict[str, Any] = {"part": self.part, "case": case, "system": system}
        if times:
            row |= {"seconds": float(np.median(times)), "fastest": min(times)}
            row |= {"slowest": max(times), "repeats": len(times)}
        with self.path.open("a") as file:
            file.write(json.dumps(row | figures | self.fixed) + "\n")


def time_of(
    run: Callable[[], Any], wait: Callable[[Any], Any], repeats: int, inner: int = 1
) -> list[float]:
    """Seconds of a call, in every repetition; two calls before warm up.

    Args:
        wait: returns when the device has finished a result.
        inner: calls of a repetition, for short ones.
    """
    for _ in range(2):
        wait(run())
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(inner):
            result = run()
        wait(result)
        times.append((time.perf_counter() - start) / inner)
    return times


def relative_error(values: Any, reference: Any) -> float:
    """|values - reference| / |reference|; NaN if a value is not finite."""
    wide = [np.asarray(part, np.float64).ravel() for part in (values, reference)]
    return float(np.linalg.norm(wide[0] - wide[1]) / np.linalg.norm(wide[1]))


def lstm_arrays(batch_size: int, length: int, width: int) -> dict[str, np.ndarray]:
    """Random parameters, inputs and cotangents, the same for all systems."""
    random = np.random.default_rng(width)

    def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
        return random.standard_normal(shape, np.float32) * np.float32(scale)

    return {
        "input": normal(width, 4 * width, scale=width**-0.5),
        "recurrent": normal(width, 4 * width, scale=width**-0.5),
        "bias": normal(4 * width),
        "x": normal(batch_size, length, width),
        "cotangent": normal(batch_size, length, width),
    }


def lstm_flops(batch_size: int, length: int, width: int) -> int:
    """FLOPs of the matrix products, forward and backward."""
    return 3 * 2 * batch_size * length * 2 * width * 4 * width


def lstm_cases(sizes: Sizes, *systems: str) -> list[tuple]:
    """(case, system, rows, steps, width) of all sizes."""
    return [
        (f"[{rows}, {steps}, {width}]", system, rows, steps, width)
        for rows, steps in sizes.lstm
        for width in sizes.widths
        for system in systems
    ]


def ranking_vectors(sizes: Sizes, width: int) -> tuple[np.ndarray, np.ndarray]:
    """A chunk of users and all items, the same for all systems."""
    random = np.random.default_rng(width)
    users = random.standard_normal((sizes.chunk, width), np.float32)
    return users, random.standard_normal((sizes.items, width), np.float32)


def ranking_errors(
    users: np.ndarray, items: np.ndarray, best: np.ndarray, scores: np.ndarray
) -> dict[str, float]:
    """Errors of lists of the first users, beside float64: of scores, and of the items."""
    exact = users.astype(np.float64) @ items.T.astype(np.float64)
    order = np.argsort(-exact, axis=1)[:, : best.shape[1]]
    kept = [len(np.intersect1d(*pair)) for pair in zip(best, order, strict=True)]
    return {
        "error": relative_error(scores, np.take_along_axis(exact, order, 1)),
        "recall": float(np.mean(kept) / best.shape[1]),
    }


def rank_all(rank: Callable[[], Any], sizes: Sizes, rows: Rows, share: float) -> dict[str, float]:
    """Rank chunks up to all users, or until `share` of the time that is left is over."""
    until, start, users = rows.left * (1 - share), time.perf_counter(), 0
    while users < sizes.users and (not users or rows.left > until):
        rank()
        users += sizes.chunk
    seconds = time.perf_counter() - start
    return {"users": users, "users_per_second": users / seconds, "ranking_seconds": seconds}
