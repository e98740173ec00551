"""The pre-training tasks of a data set: a new task is one file beside this one, and one line here.

Only events and items that training reads are examples, so nothing that is held out is learned.
"""

from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Bool, Float, Int

from jaxrec.config import Config
from jaxrec.data.behaviour import behaviour_texts
from jaxrec.data.dataset import Dataset
from jaxrec.data.events import some_events
from jaxrec.data.text import Tokens, mask_token, special_tokens, tokenize
from jaxrec.errors import DataError
from jaxrec.inference.text_features import known_texts
from jaxrec.training.pretraining.base import Examples, PretrainingTask, split_examples
from jaxrec.training.pretraining.contrast import (
    MOST_ITEMS,
    ItemContrast,
    following_items,
    sharing_items,
)
from jaxrec.training.pretraining.options import PretrainOptions
from jaxrec.training.pretraining.tokens import MaskedTokens, NextTokens


def build_tasks(
    config: Config, options: PretrainOptions, dataset: Dataset, source: Path, *, causal: bool
) -> tuple[PretrainingTask, ...]:
    """The tasks that have a weight.

    Args:
        config: of `jaxrec train`; its data, split and text sections are read.
        source: directory of the checkpoint, for its tokenizer.
        causal: the encoder predicts next tokens, not masked ones.

    Raises:
        DataError: the items have no text, or a task has fewer than two examples.
        CheckpointError: the tokenizer has no mask token.
    """
    weights, limit = options.tasks, config.text.max_tokens
    texts, known = known_texts(dataset.catalog.items, config)
    known &= dataset.trained
    if not known.any():
        raise DataError(
            "no item that occurs in training has a text; name its columns in data.text_columns"
        )
    tokens = tokenize(np.where(known, texts, "").tolist(), source, limit)
    tasks: list[PretrainingTask] = []
    if weights.contrast:
        tasks.append(item_contrast(options, dataset, tokens, known))
    if weights.graph:
        tasks.append(graph_contrast(options, dataset, tokens, known))
    if weights.tokens:
        rows = np.flatnonzero(known)
        own = Tokens(tokens.ids[rows], tokens.mask[rows])
        tasks.append(token_task("tokens", weights.tokens, own, options, source, causal))
    if weights.behaviour:
        histories = history_texts(dataset, options.behaviour_events)
        own = tokenize(histories or [""], source, limit, cut="left")
        tasks.append(token_task("behaviour", weights.behaviour, own, options, source, causal))
    return tuple(tasks)


def token_task(
    name: str, weight: float, tokens: Tokens, options: PretrainOptions, source: Path, causal: bool
) -> PretrainingTask:
    """The prediction of tokens that fits the encoder."""
    groups = np.arange(len(tokens.ids))
    examples = split_examples(groups, options.held_out, options.seed, f"texts for tasks.{name}")
    if causal:
        return NextTokens(name, weight, examples, tokens)
    special = tuple(sorted(special_tokens(source)))
    return MaskedTokens(name, weight, examples, tokens, mask_token(source), special)


def item_contrast(
    options: PretrainOptions, dataset: Dataset, tokens: Tokens, known: Bool[np.ndarray, " I"]
) -> ItemContrast:
    """The contrast of items that follow one another in training."""
    log = dataset.split.log
    usable = dataset.split.in_training & dataset.positives & known[log.items]
    pairs, users = following_items(log, usable)
    examples = split_examples(users, options.held_out, options.seed, "users for tasks.contrast")
    log_shares = log_shares_of(pairs, examples, len(known))
    return ItemContrast("contrast", options.tasks.contrast, examples, tokens, pairs, log_shares)


def graph_contrast(
    options: PretrainOptions, dataset: Dataset, tokens: Tokens, known: Bool[np.ndarray, " I"]
) -> ItemContrast:
    """The contrast of items that share an entity of the graph; a share of entities is held out."""
    pairs, entities = sharing_items(dataset.catalog.graph, known, options.seed)
    if (count := len(np.unique(entities))) < 2:
        raise DataError(
            f"tasks.graph needs two entities that 2 to {MOST_ITEMS} items with a text share, and "
            f"the items of training have {count}. Give them columns such as brand, category or "
            "categories, or set tasks.graph to 0"
        )
    examples = split_examples(entities, options.held_out, options.seed, "entities for tasks.graph")
    log_shares = log_shares_of(pairs, examples, len(known))
    return ItemContrast("graph", options.tasks.graph, examples, tokens, pairs, log_shares)


def log_shares_of(
    pairs: Int[np.ndarray, "n two"], examples: Examples, num_items: int
) -> Float[np.ndarray, " I"]:
    """Log of the share of every item among the second ones of the pairs that train."""
    counts = np.bincount(pairs[examples.train, 1], minlength=num_items)
    shares = np.maximum(counts, 1) / len(examples.train)  # an item that is only held out: 1
    return np.log(shares).astype(np.float32)


def history_texts(dataset: Dataset, last: int) -> list[str]:
    """The training histories of all users as text, those of fewer than two events left out."""
    split, items = dataset.split, dataset.catalog.items
    log = some_events(split.log, split.in_training)
    titles = items["title"] if "title" in items.columns else items["item_id"]
    labels = pl.select(pl.coalesce(titles.cast(pl.String), items["item_id"].cast(pl.String)))
    texts = behaviour_texts(log, labels.to_series(), last)
    return [text for text, length in zip(texts, log.lengths, strict=True) if text and length > 1]
