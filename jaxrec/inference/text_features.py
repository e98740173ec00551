"""Text vectors of a catalogue: encoded once by a frozen BERT, cached on disk, whitened."""

import hashlib
import json
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
from jaxrec.data.text import Tokens, item_texts, resolve_pretrained, tokenize
from jaxrec.models.items.build import expert_sources
from jaxrec.models.text.bert import Bert, load_bert, mean_pool
from jaxrec.models.text.finetuned import TextTower
from jaxrec.models.text.whitening import Whitening, fit_whitening
from jaxrec.runtime import cache_dir

BATCH_SIZE = 128
SHELF_TEXTS = 4096  # texts whose vectors lie in one file of the cache
# Few shapes, so few compilations, and little padding (about a tenth for product titles).
LENGTH_BUCKETS = (16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 192, 256, 384, 512)
CHECKPOINT_PATTERNS = ("config.json", "*.safetensors", "tokenizer*.json", "vocab.txt")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FinetunedText:
    """What finetuned layers read: outputs of the frozen ones, and the whitening behind them."""

    hidden: Float16[Array, "I L Dh"]
    mask: Bool[Array, "I L"]
    mean: Float[Array, " Dh"]
    projection: Float[Array, "Dh Dt"]


@dataclass(frozen=True)
class ItemText:
    """The text of a catalogue as the model takes it; the last two only to finetune."""

    vectors: Float[np.ndarray, "I Dt"]  # whitened
    whitening: Whitening | None  # None where no text is known or wanted
    tower: TextTower | None = None
    live: FinetunedText | None = None


def item_text(items: pl.DataFrame, config: Config) -> ItemText:
    """Text of an item table (row 0 the unknown item), encoded as `config` says.

    Without a text expert, or without two items whose texts differ to the encoder, all vectors are
    zero and of width 1.
    """
    if not any("text" in expert_sources(name) for name in config.model.experts):
        return _no_text(len(items))
    texts, known = _texts(items, config)
    if len(set(texts) - {""}) < 2:
        return _no_text(len(items))
    vectors = text_vectors(texts, config.text.pretrained, config.text.max_tokens)
    whitening = fit_whitening(vectors, known, config.text.whiten)
    if whitening is None:
        return _no_text(len(items))
    whitened = whitening.apply(vectors, known).astype(np.float32)
    if config.text.mode == "frozen":
        return ItemText(whitened, whitening)
    bert = load_bert(resolve_pretrained(config.text.pretrained))
    tower = TextTower(bert, config.text.finetune_layers)
    return ItemText(
        whitened, whitening, tower, _finetuned_text(texts, known, config, whitening, bert)
    )


def new_item_text(
    items: pl.DataFrame,
    config: Config,
    whitening: Whitening | None,
    tower: TextTower | None,
    bert: Bert | None = None,
) -> Float[np.ndarray, "n Dt"]:
    """Text vectors of items that come after training, whitened as the trained catalogue was.

    Args:
        whitening: that of training; None if the model reads no text.
        tower: the finetuned layers, if there are any.
        bert: the pretrained encoder, if it is in memory; the cache on disk is left alone then.
    """
    if whitening is None:
        return _no_text(len(items)).vectors
    texts, known = _texts(items, config)
    directory = resolve_pretrained(config.text.pretrained)
    if tower is None:
        if bert is None:
            vectors = text_vectors(texts, config.text.pretrained, config.text.max_tokens)
        else:
            tokens = tokenize(texts, directory, config.text.max_tokens)
            vectors = encode_texts(bert, tokens, min(len(texts), BATCH_SIZE))
        return whitening.apply(vectors, known).astype(np.float32)
    live = _finetuned_text(
        texts, known, config, whitening, bert or load_bert(directory), bert is None
    )
    return np.asarray(encode_finetuned_text(tower, live))


def _texts(items: pl.DataFrame, config: Config) -> tuple[list[str], Bool[np.ndarray, " I"]]:
    """The text of every item, and which items have any."""
    columns = [name for name in config.data.text_columns if name in items.columns]
    texts = item_texts(items, tuple(columns)) if columns else [""] * len(items)
    return texts, np.array([bool(text) for text in texts])


def _finetuned_text(
    texts: Sequence[str],
    known: Bool[np.ndarray, " I"],
    config: Config,
    whitening: Whitening,
    bert: Bert,
    cached: bool = True,
) -> FinetunedText:
    tokens = tokenize(texts, resolve_pretrained(config.text.pretrained), config.text.max_tokens)
    frozen = len(bert.blocks) - config.text.finetune_layers
    if cached:
        hidden = hidden_states(bert, tokens, frozen)
    else:
        hidden = np.zeros((*tokens.ids.shape, bert.config.hidden_size), np.float16)
        _fill_hidden(hidden, bert, tokens, frozen)
    return FinetunedText(
        hidden=jnp.asarray(hidden),
        mask=jnp.asarray(tokens.mask & known[:, None]),  # even the empty text has [CLS] and [SEP]
        mean=jnp.asarray(whitening.mean),
        projection=jnp.asarray(whitening.projection),
    )


def encode_finetuned_rows(
    tower: TextTower, live: FinetunedText, rows: Int[Array, " K"]
) -> Float[Array, "K Dt"]:
    """Whitened vectors of some items through the finetuned layers; zero without text."""
    mask = live.mask[rows]
    hidden = live.hidden[rows].astype(live.mean.dtype)
    vectors = (tower(hidden, mask) - live.mean[None]) @ live.projection
    return jnp.where(mask.any(1, keepdims=True), vectors, 0)


def encode_finetuned_text(tower: TextTower, live: FinetunedText) -> Float[Array, "I Dt"]:
    """`encode_finetuned_rows` of the whole catalogue, a batch at a time."""
    graphdef, params = nnx.split(tower)
    rows = np.resize(np.arange(len(live.mask)), -(-len(live.mask) // BATCH_SIZE) * BATCH_SIZE)
    batches = [
        _finetuned_batch(graphdef, params, live, part) for part in rows.reshape(-1, BATCH_SIZE)
    ]
    return jnp.concatenate(batches)[: len(live.mask)]


@partial(jax.jit, static_argnames="graphdef")
def _finetuned_batch(graphdef, params, live, rows):
    return encode_finetuned_rows(nnx.merge(graphdef, params), live, rows)


def _no_text(num_items: int) -> ItemText:
    return ItemText(np.zeros((num_items, 1), np.float32), None)


def text_vectors(
    texts: Sequence[str], pretrained: str, max_tokens: int
) -> Float[np.ndarray, "I D"]:
    """Mean-pooled BERT vector of each text, from the cache or encoded now and kept there.

    Args:
        texts: I texts; equal ones are encoded once.
        pretrained: a checkpoint, as `resolve_pretrained` takes it.
        max_tokens: longer texts are cut.

    Raises:
        FetchError: the checkpoint cannot be fetched.
        CheckpointError: it is not a BERT that can be read.
    """
    directory = resolve_pretrained(pretrained)
    encoder = json.dumps([max_tokens, _files_digest(directory)]).encode()
    column = pl.Series(texts, dtype=pl.String)
    unique = column.unique().sort().to_list()
    bert = cache(lambda: load_bert(directory))  # read only if something is to be encoded

    def on_shelf(members: Int[np.ndarray, " n"]) -> Float[np.ndarray, "n D"]:
        kept = [unique[member] for member in members]
        path = _cache_path("vectors", encoder, json.dumps(kept).encode())
        if not path.exists():
            with _written_atomically(path) as unfinished:
                np.save(unfinished, encode_texts(bert(), tokenize(kept, directory, max_tokens)))
        return np.load(path, allow_pickle=False)

    shelves = _shelves(unique)
    vectors = np.concatenate([on_shelf(members) for members in shelves])
    place = np.argsort(np.concatenate(shelves))
    return vectors[place[column.rank("dense").to_numpy() - 1]]


def _shelves(texts: Sequence[str]) -> list[Int[np.ndarray, " n"]]:
    """Numbers of the texts in parts that are kept apart, so that a text more or less has only its
    part encoded anew, and an interruption loses one."""
    hashes = np.array([zlib.crc32(text.encode()) for text in texts])
    shelf = hashes % (1 << (len(texts) // SHELF_TEXTS).bit_length())
    return [np.flatnonzero(shelf == number) for number in np.unique(shelf)]


def encode_texts(
    bert: Bert, tokens: Tokens, batch_size: int = BATCH_SIZE
) -> Float[np.ndarray, "I D"]:
    """Mean of a text's last hidden states, in float32."""
    graphdef, params = nnx.split(bert)
    vectors = np.empty((len(tokens.ids), bert.config.hidden_size), np.float32)
    for rows, ids, mask in _batches(tokens, batch_size):
        vectors[rows] = np.asarray(_pooled(graphdef, params, ids, mask))[: len(rows)]
    return vectors


def hidden_states(
    bert: Bert, tokens: Tokens, stop_layer: int, batch_size: int = BATCH_SIZE
) -> Float16[np.ndarray, "I L D"]:
    """Inputs of layer `stop_layer`: what the frozen layers below a fine-tuned one give.

    Memory-mapped from the cache, where they are kept under the weights and tokens that made
    them. Padding is zero.
    """
    lower = (bert.word, bert.position, bert.token_type, bert.norm, *bert.blocks[:stop_layer])
    arrays = [tokens.ids, tokens.mask, *jax.tree.leaves([nnx.state(module) for module in lower])]
    described = json.dumps([stop_layer, tokens.ids.shape, np.dtype(bert.word.dtype).name])
    path = _cache_path("hidden", described.encode(), *(np.asarray(a).tobytes() for a in arrays))
    if not path.exists():
        shape = (*tokens.ids.shape, bert.config.hidden_size)
        with _written_atomically(path) as unfinished:
            hidden = np.lib.format.open_memmap(unfinished, "w+", np.float16, shape)
            _fill_hidden(hidden, bert, tokens, stop_layer, batch_size)
            hidden.flush()
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _fill_hidden(
    hidden: Float16[np.ndarray, "I L D"],
    bert: Bert,
    tokens: Tokens,
    stop_layer: int,
    batch_size: int = BATCH_SIZE,
) -> None:
    graphdef, params = nnx.split(bert)
    for rows, ids, mask in _batches(tokens, batch_size):
        batch = np.asarray(_hidden(graphdef, stop_layer, params, ids, mask))[: len(rows)]
        hidden[rows, : ids.shape[1]] = np.where(mask[: len(rows), :, None], batch, 0)


@partial(jax.jit, static_argnames="graphdef")
def _pooled(
    graphdef: nnx.GraphDef[Bert],
    params: nnx.State,
    ids: Int[Array, "B L"],
    mask: Bool[Array, "B L"],
) -> Float[Array, "B D"]:
    return mean_pool(nnx.merge(graphdef, params)(ids, mask), mask)


@partial(jax.jit, static_argnames=("graphdef", "stop_layer"))
def _hidden(
    graphdef: nnx.GraphDef[Bert],
    stop_layer: int,
    params: nnx.State,
    ids: Int[Array, "B L"],
    mask: Bool[Array, "B L"],
) -> Float16[Array, "B L D"]:
    bert = nnx.merge(graphdef, params)
    return bert.layers(bert.embed(ids), mask, stop=stop_layer).astype(np.float16)


def _batches(
    tokens: Tokens, batch_size: int
) -> Iterator[tuple[Int[np.ndarray, " rows"], Int[np.ndarray, "B L"], Bool[np.ndarray, "B L"]]]:
    """Row numbers, ids and mask of batches of texts of similar length, the longest first.

    Every batch has the same number of rows: the last, which is the cheapest, is filled up by
    repeating its rows.
    """
    batch_size = min(batch_size, len(tokens.ids))
    lengths = tokens.lengths
    longest_first = np.argsort(-lengths, kind="stable")
    for start in range(0, len(longest_first), batch_size):
        rows = longest_first[start : start + batch_size]
        bucket = min((b for b in LENGTH_BUCKETS if b >= lengths[rows[0]]), default=None)
        filled = np.resize(rows, batch_size)
        yield rows, tokens.ids[filled, :bucket], tokens.mask[filled, :bucket]


def _cache_path(event_type: str, *contents: bytes) -> Path:
    digest = hashlib.sha256()
    for content in contents:
        digest.update(content)
    return cache_dir() / "text" / f"{event_type}-{digest.hexdigest()[:32]}.npy"


def _files_digest(directory: Path) -> list[tuple[str, str]]:
    """Names and contents of a checkpoint's files, wherever they lie."""
    paths = sorted(p for pattern in CHECKPOINT_PATTERNS for p in directory.glob(pattern))
    return [(p.name, hashlib.sha256(p.read_bytes()).hexdigest()) for p in paths]


@contextmanager
def _written_atomically(path: Path) -> Iterator[Path]:
    """A place to write to, moved to `path` at the end: nobody reads an unfinished file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as scratch:
        unfinished = Path(scratch, path.name)
        yield unfinished
        unfinished.replace(path)
