"""Event files for streaming."""

import polars as pl

from jaxrec.data.stream import open_events

SECOND = 1_700_000_000
GROUPED = ["07", "07", "b", "é", "é", "é", "é", "é", "c", "007", "007", "d"]
SCATTERED = ["b", "07", "b", "é", "d", "07", "é", "é", "b", "007", "d", "007"]


def events_of(users):
    """One event a row; items, event types and sessions differ between rows."""
    numbers = range(len(users))
    return pl.DataFrame(
        {
            "user_id": users,
            "item_id": [f"{number:03}" for number in numbers],
            "timestamp": [SECOND + number for number in numbers],
            "event": ["buy" if number % 3 else "view" for number in numbers],
            "session_id": [None if number % 4 else f"s{number}" for number in numbers],
        },
        schema_overrides={"user_id": pl.String, "item_id": pl.String, "session_id": pl.String},
    )


def write(frame, path):
    match path.suffix:
        case ".parquet":
            frame.write_parquet(path)
        case ".csv":
            frame.write_csv(path)
        case ".jsonl":
            frame.write_ndjson(path)
        case ".inter":
            types = {"timestamp": "float"}
            header = {name: f"{name}:{types.get(name, 'token')}" for name in frame.columns}
            frame.rename(header).write_csv(path, separator="\t")
    return path


def written(directory, users, suffix=".parquet"):
    return write(events_of(users), directory / f"events{suffix}")


def as_blocks(path, size, **options):
    return list(open_events(path, size, **options).blocks())


def rows_by_user(frame):
    return {user: rows.rows() for (user,), rows in frame.group_by("user_id", maintain_order=True)}


def users_of(block):
    return block["user_id"].unique(maintain_order=True).to_list()
