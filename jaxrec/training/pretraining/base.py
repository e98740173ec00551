"""The seam of pre-training tasks, and the order of their examples."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxrec.data.text import Tokens
from jaxrec.errors import DataError
from jaxrec.models.text.language_model import LanguageModel

MAX_HELD_OUT = 1024  # examples; more would not make the loss much more certain


class TextBatch(NamedTuple):
    """Texts of a batch as tokens."""

    ids: Int[Array | np.ndarray, "B L"]
    mask: Bool[Array | np.ndarray, "B L"]


@runtime_checkable
class PretrainingTask(Protocol):
    """Something that a text encoder learns from texts.

    To add a task, write a class with these members in a file beside this one, and name it in
    `build_tasks`.
    """

    @property
    def name(self) -> str:
        """The name of the task's weight in the options."""

    @property
    def weight(self) -> float:
        """The factor of the loss."""

    @property
    def examples(self) -> "Examples":
        """The numbers of the examples, in training and held out."""

    def batch(self, numbers: Int[np.ndarray, " B"]) -> Any:
        """The arrays of some examples."""

    def loss(self, model: LanguageModel, batch: Any, key: Array) -> Float[Array, ""]:
        """The mean loss of a batch."""


@dataclass(frozen=True)
class Examples:
    """Numbers of the examples that train and of those that only measure the loss."""

    train: Int[np.ndarray, " n"]
    held_out: Int[np.ndarray, " m"]
    seed: int

    def at(self, step: int, size: int) -> Int[np.ndarray, " size"]:
        """The examples of a step: each one once in every pass, in a random order.

        A pure function of the seed and the step, so that a resumed training sees the same batches.
        """
        places = np.arange(step * size, (step + 1) * size)
        rounds, ranks = np.divmod(places, len(self.train))
        orders = [_order(len(self.train), self.seed, n) for n in range(rounds[0], rounds[-1] + 1)]
        return self.train[np.stack(orders)[rounds - rounds[0], ranks]]

    def held_out_batches(self, size: int) -> Iterator[Int[np.ndarray, " size"]]:
        """All examples that are held out; the last batch is filled up with the first ones."""
        for start in range(0, len(self.held_out), size):
            yield np.take(self.held_out, np.arange(start, start + size), mode="wrap")


@lru_cache(maxsize=8)
def _order(count: int, seed: int, number: int) -> Int[np.ndarray, " count"]:
    return np.random.default_rng((seed, number)).permutation(count)


def split_examples(groups: Int[np.ndarray, " n"], share: float, seed: int, what: str) -> Examples:
    """Examples of which a random share of the groups is held out.

    Args:
        groups: of each example, such as its user; all examples of a group go the same way.
        what: the examples, for errors.

    Raises:
        DataError: there are fewer than two groups.
    """
    names = np.unique(groups)
    if len(names) < 2:
        raise DataError(
            f"pre-training needs two {what} at least, and the training events give {len(names)}. "
            "Give more data, or set the weight of that task to 0"
        )
    count = min(max(round(share * len(names)), 1), MAX_HELD_OUT)
    held_out = np.isin(groups, np.random.default_rng(seed).permutation(names)[:count])
    numbers = np.arange(len(groups))
    return Examples(numbers[~held_out], numbers[held_out][:MAX_HELD_OUT], seed)


def text_batch(tokens: Tokens, rows: Int[np.ndarray, " B"]) -> TextBatch:
    """Some rows of a table of texts."""
    return TextBatch(tokens.ids[rows], tokens.mask[rows])
