"""Text vectors of a catalogue: encoded once by a frozen encoder, cached on disk, whitened."""

import hashlib
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
from flax import nnx
from jaxtyping import Array, Bool, Float, Float16, Int

from jaxrec.config import Config
from jaxrec.data.text import (
    Tokens,
    checkpoint_digest,
    files_digest,
    item_texts,
    resolve_pretrained,
    tokenize,
)
from jaxrec.errors import RunError
from jaxrec.models.text.build import load_text_encoder
from jaxrec.models.text.encoder import TextEncoder
from jaxrec.models.text.finetuned import FinetunedText, TextTower, encode_finetuned_rows
from jaxrec.models.text.layers import PoolingOption
from jaxrec.models.text.whitening import Whitening, fit_whitening
from jaxrec.runtime import atomic_path, cache_dir

BATCH_SIZE = 128
TEXTS_PER_FILE = 4096  # of the cache
# Few shapes, so few compilations, and little padding (about a tenth for product titles).
LENGTH_BUCKETS = (16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 192, 256, 384, 512)


@dataclass(frozen=True)
class ItemText:
    """The text of a catalogue, as the model takes it."""

    vectors: Float[np.ndarray, "I text"]  # whitened
    whitening: Whitening | None  # None: the model reads no text
    tower: TextTower | None = None  # the layers to fine-tune
    finetuned: FinetunedText | None = None  # their input
    encoder: str = ""  # digest of the files of the pretrained encoder; empty: no text is read


def item_text(
    items: pl.DataFrame, config: Config, digest: str = "", whitening: Whitening | None = None
) -> ItemText:
    """The text of an item table, whose row 0 is the unknown item.

    Without a text expert, or without two items of different text vectors, all vectors are zero and
    of width 1.

    Args:
        digest: of the text encoder, as `trained_encoder` demands it.
        whitening: of the run that goes on; None: fit it to these items.

    Raises:
        RunError: the encoder has another digest.
    """
    if "text" not in config.model.sources:
        return _no_text(len(items))
    texts, known = known_texts(items, config)
    if whitening is None and len(set(texts) - {""}) < 2:
        return _no_text(len(items))
    directory = trained_encoder(config.text.pretrained, digest)
    vectors = text_vectors(texts, str(directory), config.text.max_tokens, config.text.pooling)
    whitening = whitening or fit_whitening(vectors, known, config.text.whiten)
    if whitening is None:
        return _no_text(len(items))
    whitened = whitening.apply(vectors, known).astype(np.float32)
    digest = checkpoint_digest(directory)
    if config.text.mode == "frozen":
        return ItemText(whitened, whitening, encoder=digest)
    encoder = load_text_encoder(directory, config.text.pooling)
    tower = TextTower(encoder, config.text.finetune_layers)
    tokens = tokenize(texts, directory, config.text.max_tokens)
    finetuned = _finetuned_text(tokens, known, whitening, tower, encoder)
    return ItemText(whitened, whitening, tower, finetuned, digest)


def new_item_text(
    items: pl.DataFrame,
    config: Config,
    whitening: Whitening | None,
    tower: TextTower | None,
    digest: str = "",
    encoder: TextEncoder | None = None,
) -> Float[np.ndarray, "n text"]:
    """Text vectors of items that are new since training, whitened like the trained catalogue.

    Args:
        whitening: None if the model reads no text.
        tower: the fine-tuned layers, if any.
        digest: of the text encoder, as `trained_encoder` demands it, unless that is in memory.
        encoder: the text encoder, if it is in memory; the cache on disk is then not used.

    Raises:
        RunError: the encoder has another digest.
    """
    if whitening is None:
        return _no_text(len(items)).vectors
    texts, known = known_texts(items, config)
    directory = trained_encoder(config.text.pretrained, digest if encoder is None else "")
    max_tokens, pooling = config.text.max_tokens, config.text.pooling
    if encoder is None and tower is None:
        vectors = text_vectors(texts, str(directory), max_tokens, pooling)
        return whitening.apply(vectors, known).astype(np.float32)
    tokens = tokenize(texts, directory, max_tokens)
    loaded = encoder or load_text_encoder(directory, pooling)
    return whitened_vectors(tokens, known, whitening, tower, loaded, cached=encoder is None)


def whitened_vectors(
    tokens: Tokens,
    known: Bool[np.ndarray, " n"],
    whitening: Whitening,
    tower: TextTower | None,
    encoder: TextEncoder,
    cached: bool = False,
) -> Float[np.ndarray, "n text"]:
    """Whitened vectors of texts by an encoder in memory; zero where `known` is False.

    Args:
        tower: the fine-tuned layers in place of the encoder's last ones, if any.
        cached: whether the outputs of the layers below them are kept on disk.
    """
    if tower is None:
        return whitening.apply(encode_texts(encoder, tokens), known).astype(np.float32)
    finetuned = _finetuned_text(tokens, known, whitening, tower, encoder, cached)
    return np.asarray(encode_finetuned_text(tower, finetuned))


def trained_encoder(pretrained: str, digest: str) -> Path:
    """Directory of the text encoder that a run was trained with.

    Args:
        pretrained: a checkpoint, as `resolve_pretrained` takes it.
        digest: SHA-256 of its files in training; empty if it is not known.

    Raises:
        RunError: the files have another digest.
        FetchError: the checkpoint cannot be fetched.
    """
    directory = resolve_pretrained(pretrained)
    if digest and checkpoint_digest(directory) != digest:
        raise RunError(
            f"the text encoder {pretrained!r} is not the one that the run was trained with: the "
            f"files in {directory} have another SHA-256. Name the original revision "
            "(org/model@REVISION) or directory as text.pretrained in the run's config.yaml, or "
            "train again"
        )
    return directory


def known_texts(items: pl.DataFrame, config: Config) -> tuple[list[str], Bool[np.ndarray, " I"]]:
    """The text of every item, and which items have a text."""
    columns = tuple(name for name in config.data.text_columns if name in items.columns)
    texts = item_texts(items, columns) if columns else [""] * len(items)
    return texts, np.array([bool(text) for text in texts], bool)


def _finetuned_text(
    tokens: Tokens,
    known: Bool[np.ndarray, " I"],
    whitening: Whitening,
    tower: TextTower,
    encoder: TextEncoder,
    cached: bool = True,
) -> FinetunedText:
    frozen = len(encoder.blocks) - len(tower.blocks)
    if cached:
        hidden = hidden_states(encoder, tokens, frozen)
    else:
        hidden = np.zeros((*tokens.ids.shape, encoder.hidden_size), np.float16)
        _fill_hidden(hidden, encoder, tokens, frozen)
    return FinetunedText(
        hidden=jnp.asarray(hidden),
        mask=jnp.asarray(tokens.mask & known[:, None]),  # even BERT's empty text has two tokens
        mean=jnp.asarray(whitening.mean),
        projection=jnp.asarray(whitening.projection),
    )


def encode_finetuned_text(tower: TextTower, text: FinetunedText) -> Float[Array, "I text"]:
    """`encode_finetuned_rows` of the whole catalogue, a batch at a time."""
    graphdef, params = nnx.split(tower)
    rows = np.resize(np.arange(len(text.mask)), -(-len(text.mask) // BATCH_SIZE) * BATCH_SIZE)
    batches = [
        _finetuned_batch(graphdef, params, text, part) for part in rows.reshape(-1, BATCH_SIZE)
    ]
    return jnp.concatenate(batches)[: len(text.mask)]


@partial(jax.jit, static_argnames="graphdef")
def _finetuned_batch(graphdef, params, text, rows):
    return encode_finetuned_rows(nnx.merge(graphdef, params), text, rows)


def _no_text(num_items: int) -> ItemText:
    return ItemText(np.zeros((num_items, 1), np.float32), None)


def text_vectors(
    texts: Sequence[str],
    pretrained: str,
    max_tokens: int,
    pooling: PoolingOption = "auto",
) -> Float[np.ndarray, "I D"]:
    """The encoder's vector of each text, from the cache or encoded now and cached.

    Args:
        texts: equal texts are encoded once.
        pretrained: a checkpoint, as `resolve_pretrained` takes it.
        max_tokens: longer texts are cut.
        pooling: as `build_text_encoder` takes it.

    Raises:
        FetchError: the checkpoint cannot be fetched.
        CheckpointError: it is not supported, or cannot be read.
    """
    directory = resolve_pretrained(pretrained)
    key = json.dumps([*vector_options(max_tokens, pooling), files_digest(directory)]).encode()
    column = pl.Series(texts, dtype=pl.String)
    unique = column.unique().sort().to_list()
    encoder = cache(lambda: load_text_encoder(directory, pooling))  # loaded on first use

    def cached_vectors(members: Int[np.ndarray, " n"]) -> Float[np.ndarray, "n D"]:
        kept = [unique[member] for member in members]
        path = _cache_path("vectors", key, json.dumps(kept).encode())
        if not path.exists():
            with atomic_path(path) as draft:
                np.save(draft, encode_texts(encoder(), tokenize(kept, directory, max_tokens)))
        return np.load(path, allow_pickle=False)

    files = _cache_files(unique)
    vectors = np.concatenate([cached_vectors(members) for members in files])
    place = np.argsort(np.concatenate(files))
    return vectors[place[column.rank("dense").to_numpy() - 1]]


def vector_options(max_tokens: int, pooling: PoolingOption) -> list[int | str]:
    """The options that decide the vector of a text, for keys of stored vectors.

    The default pooling is left out, so vectors that older versions stored stay valid.
    """
    return [max_tokens] if pooling == "auto" else [max_tokens, pooling]


def _cache_files(texts: Sequence[str]) -> list[Int[np.ndarray, " n"]]:
    """Numbers of the texts, split into the files of the cache by hash.

    So a changed text changes few files, and an interruption loses at most one.
    """
    hashes = np.array([zlib.crc32(text.encode()) for text in texts])
    file_number = hashes % (1 << (len(texts) // TEXTS_PER_FILE).bit_length())
    return [np.flatnonzero(file_number == number) for number in np.unique(file_number)]


def encode_texts(
    encoder: TextEncoder, tokens: Tokens, batch_size: int = BATCH_SIZE
) -> Float[np.ndarray, "I D"]:
    """The encoder's vector of each text, in float32."""
    graphdef, params = nnx.split(encoder)
    vectors = np.empty((len(tokens.ids), encoder.hidden_size), np.float32)
    for rows, ids, mask in _batches(tokens, batch_size):
        vectors[rows] = np.asarray(_pooled(graphdef, params, ids, mask))[: len(rows)]
    return vectors


def hidden_states(
    encoder: TextEncoder, tokens: Tokens, stop_layer: int, batch_size: int = BATCH_SIZE
) -> Float16[np.ndarray, "I L D"]:
    """Inputs of layer `stop_layer`: the outputs of the frozen layers below it.

    The cache, whose key holds the weights and tokens, is memory-mapped. Padding is zero.
    """
    arrays = [tokens.ids, tokens.mask, *_weights_below(encoder, stop_layer)]
    dtype = jax.eval_shape(encoder.embed, tokens.ids[:1]).dtype.name
    described = json.dumps([type(encoder).__name__, dtype, stop_layer, tokens.ids.shape])
    path = _cache_path("hidden", described.encode(), *(np.asarray(a).tobytes() for a in arrays))
    if not path.exists():
        shape = (*tokens.ids.shape, encoder.hidden_size)
        with atomic_path(path) as draft:
            hidden = np.lib.format.open_memmap(draft, "w+", np.float16, shape)
            _fill_hidden(hidden, encoder, tokens, stop_layer, batch_size)
            hidden.flush()
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _weights_below(encoder: TextEncoder, stop_layer: int) -> list[Array]:
    """The weights that the input of a layer depends on."""
    above = {("blocks", layer) for layer in range(stop_layer, len(encoder.blocks))}
    return [
        weight[...]
        for path, weight in nnx.to_flat_state(nnx.state(encoder))
        if path[0] != "final_norm" and path[:2] not in above
    ]


def _fill_hidden(
    hidden: Float16[np.ndarray, "I L D"],
    encoder: TextEncoder,
    tokens: Tokens,
    stop_layer: int,
    batch_size: int = BATCH_SIZE,
) -> None:
    graphdef, params = nnx.split(encoder)
    for rows, ids, mask in _batches(tokens, batch_size):
        batch = np.asarray(_hidden(graphdef, stop_layer, params, ids, mask))[: len(rows)]
        hidden[rows, : ids.shape[1]] = np.where(mask[: len(rows), :, None], batch, 0)


@partial(jax.jit, static_argnames="graphdef")
def _pooled(graphdef, params, ids, mask):
    encoder = nnx.merge(graphdef, params)
    return encoder.pool(encoder(ids, mask), mask)


@partial(jax.jit, static_argnames=("graphdef", "stop_layer"))
def _hidden(graphdef, stop_layer, params, ids, mask):
    encoder = nnx.merge(graphdef, params)
    return encoder.layers(encoder.embed(ids), mask, stop=stop_layer).astype(np.float16)


def _batches(
    tokens: Tokens, batch_size: int
) -> Iterator[tuple[Int[np.ndarray, " rows"], Int[np.ndarray, "B L"], Bool[np.ndarray, "B L"]]]:
    """Row numbers, ids and mask of batches of texts of similar length, the longest first.

    Every batch has the same number of rows; the last one repeats its rows.
    """
    batch_size = min(batch_size, len(tokens.ids))
    lengths = tokens.lengths
    longest_first = np.argsort(-lengths, kind="stable")
    for start in range(0, len(longest_first), batch_size):
        rows = longest_first[start : start + batch_size]
        bucket = min((b for b in LENGTH_BUCKETS if b >= lengths[rows[0]]), default=None)
        filled = np.resize(rows, batch_size)
        yield rows, tokens.ids[filled, :bucket], tokens.mask[filled, :bucket]


def _cache_path(name: str, *contents: bytes) -> Path:
    digest = hashlib.sha256()
    for content in contents:
        digest.update(content)
    return cache_dir() / "text" / f"{name}-{digest.hexdigest()[:32]}.npy"
