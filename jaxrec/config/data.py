"""Options of the data, and of the events that are held out."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from jaxrec.config.ranges import Amount, Bounded, NonNegative, Quantile, Text
from jaxrec.errors import ConfigError

SHOP_NAME = r"\w[\w .-]*"  # each shop has a directory of this name


@dataclass(frozen=True)
class DataConfig(Bounded, section="data"):
    """Where the events come from and which of them to use."""

    source: Text = "ml-100k"
    """`ml-100k`, `ml-1m`, a directory with the tables events, items and triples (or with a
    `dataset.yaml` that describes them), such a YAML file, a file or directory of events, or an
    invoice file in the columns of UCI Online Retail. `--data X` is short for `--data.source X`."""
    shops: dict[str, Text] = field(default_factory=dict)
    """Train on several shops at once, in place of `source`: the name of each shop, and its data in
    the forms of `source`. Users, items and candidates of different shops stay apart.
    `--data A --data B` is short for it; a shop then has the name of its directory."""
    layout: str = ""
    """What the files of the directory mean: a YAML file as `dataset.yaml`, or a shipped one:
    amazon2023, diginetica, ga4, hm, instacart, movielens, rees46, retailrocket, shopify, taobao,
    tmall, yoochoose."""
    memory_limit: str = ""
    """Memory of DuckDB while it reads files, such as `2GB`. Beyond it, queries of `dataset.yaml`
    sort and join on disk (see TMPDIR). Empty: as `dataset.yaml` says, or 80 % of the machine's."""
    time: Literal["timestamp", "order"] = "timestamp"
    """`order`: timestamps are only positions, so there are no time gaps and no split by time."""
    ties: Literal["file", "item_id"] = "file"
    """Order of a user's events with equal timestamps: as in the file, or as in the item table."""
    strict: bool = False
    """Raise an error for events of unknown items and the like, instead of repairing them."""
    id_key: str = ""
    """File with a key: user ids become keyed hashes wherever they are read, so that no file of
    jaxrec holds an id. `--id-key FILE` is short for `--data.id_key FILE`."""
    forgotten: str = ""
    """List of users that `jaxrec forget` wrote. Their events until then are left out, wherever
    files of events are read."""
    min_user_events: NonNegative = 0
    """k-core: leave out users with fewer events (0: keep all)."""
    min_item_events: NonNegative = 0
    """k-core: leave out items with fewer events (0: keep all)."""
    drop_repeats: bool = False
    """Leave out events of the same item as the user's previous event."""
    negative_event_types: tuple[str, ...] = ("cancel", "return", "dislike", "hide", "impression")
    """Event types that update the user's state and are never predicted."""
    event_weights: dict[str, Amount] = field(default_factory=dict)
    """Weight of each event type as a training target; 1 for types that are not named."""
    relations: tuple[str, ...] = ()
    """Relations of the graph to keep (empty: all)."""
    text_columns: tuple[str, ...] = (
        *("title", "brand", "genres", "category", "categories", "merchant", "description"),
    )
    """Item columns that form an item's text, in this order."""
    numeric_columns: tuple[str, ...] = ()
    """Item columns with numbers, such as price and rating, that the source `numbers` reads."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.shops) == 1:
            raise ConfigError("shops: give two shops or more, or name the data of one as source")
        if wrong := [name for name in self.shops if not re.fullmatch(SHOP_NAME, name)]:
            raise ConfigError(
                f"shops: {wrong[0]!r} cannot be the name of a directory; use letters and digits"
            )
        if self.forgotten and self.id_key:
            key = Path(self.forgotten).with_suffix(".key")
            if key.absolute() == Path(self.id_key).absolute():
                raise ConfigError(
                    f"forgotten: the key of the list would be {key}, which is id_key, so the list "
                    "would hold pseudonyms; give the list another name"
                )
        for event_type, weight in self.event_weights.items():
            if weight and event_type in self.negative_event_types:
                raise ConfigError(
                    f"event_weights: {event_type} is among negative_event_types; name it in only "
                    "one of the two"
                )


@dataclass(frozen=True)
class SplitConfig(Bounded, section="split"):
    """Which events are held out for validation and test."""

    scheme: Literal["leave_one_out", "global_time"] = "global_time"
    """`leave_one_out`: a user's last event tests, the one before validates. `global_time`: all
    events after a point in time test."""
    test_quantile: Quantile = 0.9
    """`global_time`: the test period begins after this quantile of all timestamps."""
    validation_quantile: Quantile = 0.9
    """`global_time`: the validation period begins after this quantile of the remaining
    timestamps."""
    target_event_types: tuple[str, ...] = ()
    """Event types to predict in evaluation (empty: all that training predicts)."""
