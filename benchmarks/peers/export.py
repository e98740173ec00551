"""Write the histories of a data set for all compared systems.

    python benchmarks/peers/export.py FOLDER --config beauty --data path/to/amazon_beauty

Options of `train.py` may follow. FOLDER gets `histories.npz` (see `protocol.py`) and the same
events as tables of jaxrec. Users with fewer than three events are left out.
"""

import argparse
from pathlib import Path

import numpy as np
import polars as pl

from jaxrec.api import configure
from jaxrec.config import Config
from jaxrec.data.dataset import prepare

MIN_EVENTS = 3  # one for each of training, validation and test


def main() -> None:
    """Export the histories of the data set that the command line names."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--config", help="a YAML recipe or the name of a shipped one")
    parser.add_argument("--data", help="short for --data.source")
    options, arguments = parser.parse_known_args()
    export(configure(options.config, options.data, arguments=arguments), options.folder)


def export(config: Config, folder: Path) -> None:
    """Histories of users with three events or more, as arrays and as tables of jaxrec."""
    dataset = prepare(config)
    log = dataset.split.log
    is_long = log.lengths >= MIN_EVENTS
    lengths, items = log.lengths[is_long], log.items[np.repeat(is_long, log.lengths)]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    num_items = dataset.catalog.num_items - 1
    np.savez(
        folder / "histories.npz",
        user_ids=log.user_ids.filter(is_long).to_numpy().astype(str),
        offsets=offsets,
        items=items,
        num_items=num_items,
    )
    positions = np.arange(len(items)) - np.repeat(offsets[:-1], lengths)
    users = np.repeat(np.arange(len(lengths)), lengths)
    events = {"user_id": users.astype(str), "item_id": items.astype(str), "timestamp": positions}
    pl.DataFrame(events).write_parquet(folder / "events.parquet")
    ids = np.arange(1, num_items + 1).astype(str)
    pl.DataFrame({"item_id": ids}).write_parquet(folder / "items.parquet")


if __name__ == "__main__":
    main()
