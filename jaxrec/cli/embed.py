"""`jaxrec embed`: the images of items as a column of vectors."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TimeRemainingColumn

from jaxrec.artifacts.files import refuse_file_on_the_way, write_table
from jaxrec.config import parse_options
from jaxrec.config.ranges import Bounded, Count, Text
from jaxrec.data.features import MAX_WIDTH
from jaxrec.data.opener import open_table, read_table
from jaxrec.data.spec import SPEC_SUFFIXES, dataset_spec
from jaxrec.errors import ConfigError, DataError
from jaxrec.inference.image_encoder import load_image_encoder
from jaxrec.inference.image_vectors import encode_images, image_paths

SHOWN_NOTES = 20


@dataclass(frozen=True, kw_only=True)
class EmbedOptions(Bounded):
    """Encode the images of items with an image encoder in ONNX, and write the items table with a
    column of their vectors. Nothing is downloaded. An item without an image has no vector. Vectors
    are kept in the cache by the content of the image, so a command that was stopped continues, and
    the next one encodes new images alone. Needs `pip install 'jaxrec[images]'`."""

    data: Path
    """The items: a data set as `jaxrec train` reads it, or a file with the items table."""
    images: Path
    """Directory of the images: ITEM_ID.jpg, .jpeg, .png or .webp. An id may be a relative path such
    as `shoes/123`. An image in a subdirectory also counts for the id `123` if no other image has
    that name."""
    model: Path
    """Image encoder: an ONNX file or a directory that holds one. `preprocessor_config.json` beside
    it says how images are prepared; without it, images are cut to the size of the model's input and
    normalised as for ImageNet."""
    out: Path
    """File to write: the items table with the new column, .parquet."""
    layout: str = ""
    """What the files of the data set mean; see `data.layout` of `jaxrec train`."""
    column: Text = "image_vector"
    """Name of the new column; replaces one of the same name."""
    image_column: str = ""
    """Column of the items with paths relative to the directory, instead of the ids."""
    output: str = ""
    """Name of the model's output, if it has several with one vector for each image."""
    batch_size: Count = 32
    """Images to encode at a time."""

    def __post_init__(self) -> None:
        """Raise an error for a file that cannot be written."""
        super().__post_init__()
        if self.out.suffix != ".parquet":
            raise ConfigError(f"{self.out}: name a file ending in .parquet")
        if self.out.is_dir():
            raise ConfigError(f"{self.out} is a directory; name a file ending in .parquet")
        if self.column == "item_id":
            raise ConfigError("column: item_id holds the ids; give another name")
        refuse_file_on_the_way(self.out)


def run(arguments: Sequence[str]) -> None:
    """Encode as the arguments say."""
    options = parse_options(EmbedOptions, arguments, "jaxrec embed")
    console = Console(markup=False, highlight=False, soft_wrap=True)
    items = read_items(options)
    encoder = load_image_encoder(options.model, options.output)
    with _notes("items could have several images") as note:
        paths = image_paths(items, options.images, options.image_column, note)
    with _notes("images cannot be read") as note, _progress(console, len(paths)) as advance:
        vectors = encode_images(paths, encoder, options.batch_size, note, advance)
    column = vector_column(options.column, vectors)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_table(items.with_columns(column), options.out)
    console.print(f"{_summary(paths, vectors)}: {options.out}")


def _summary(paths: Sequence[Path | None], vectors: Sequence[np.ndarray | None]) -> str:
    """How many items have a vector, and why the others have none."""
    lengths = [len(vector) for vector in vectors if vector is not None]
    without = sum(path is None for path in paths)
    return (
        f"{len(lengths):,} of {len(paths):,} items have a vector of {lengths[0]:,} numbers "
        f"({without:,} without an image or with several, "
        f"{len(paths) - without - len(lengths):,} with one that cannot be read)"
    )


@contextmanager
def _notes(what: str) -> Iterator[Callable[[str], None]]:
    """Print the first notes, and count the others at the end."""
    console = Console(markup=False, highlight=False, soft_wrap=True, stderr=True)
    count = 0

    def note(text: str) -> None:
        nonlocal count
        count += 1
        if count <= SHOWN_NOTES:
            console.print(f"note: {text}")

    yield note
    if count > SHOWN_NOTES:
        console.print(f"note: {count - SHOWN_NOTES:,} more {what}")


def read_items(options: EmbedOptions) -> pl.DataFrame:
    """The items table as it is.

    Raises:
        DataError: there is none, or it has no item_id.
    """
    if options.data.is_file() and options.data.suffix not in SPEC_SUFFIXES:
        items = read_table(options.data)
    else:
        spec = dataset_spec(options.data, options.layout).items
        if spec is None:
            raise DataError(f"{options.data}: it has no items table; add one with a column item_id")
        items = open_table(spec).read()
    if "item_id" not in items.columns:
        raise DataError(f"{options.data}: no column 'item_id'; it has {', '.join(items.columns)}")
    return items


def vector_column(name: str, vectors: Sequence[np.ndarray | None]) -> pl.Series:
    """Vectors of one length as lists of float32; None is null.

    Raises:
        DataError: there is no vector, or they have too many numbers.
    """
    width = next((len(vector) for vector in vectors if vector is not None), 0)
    if not width:
        raise DataError("no image could be read, so there is nothing to write")
    if width > MAX_WIDTH:
        raise DataError(f"the model gives vectors of {width:,} numbers; {MAX_WIDTH:,} are the most")
    table = np.stack([np.zeros(width, np.float32) if v is None else v for v in vectors])
    missing = pl.Series([vector is None for vector in vectors])
    column = pl.Series(name, table).arr.to_list()
    return pl.select(pl.when(~missing).then(column).alias(name)).to_series()


@contextmanager
def _progress(console: Console, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal."""
    columns = ("images", BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    quiet = not console.is_terminal
    with Progress(*columns, console=console, disable=quiet, transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda count: bar.update(task, advance=count)
