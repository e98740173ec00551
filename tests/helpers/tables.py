"""Small tables in every format."""

import polars as pl
import pytest

from jaxrec.data.sources import load_source
from jaxrec.errors import DataError

SECOND = 1_700_000_000
EVENTS = pl.DataFrame(
    {
        "user_id": ["02", "01", "02"],
        "item_id": ["007", "b", "b"],
        "timestamp": [SECOND * 1000 + 500, SECOND * 1000, SECOND * 1000 + 2000],
        "event": ["view", "buy", "view"],
        "event_id": ["1", "2", "3"],
        "session_id": ["s", None, "t"],
    }
)


ITEMS = pl.DataFrame(
    {
        "item_id": ["b", "007", "unsold"],
        "title": ["Red shoe", None, "Blue sock, left"],
        "price": [1.5, 2.0, None],
        "categories": [["Shoes", "Red"], ["Shoes"], ["Socks"]],
    }
)


TRIPLES = pl.DataFrame(
    [
        ("item", "b", "made_by", "entity", "acme"),
        ("entity", "acme", "based_in", "entity", "Oslo"),
        ("item", "b", "goes_with", "item", "007"),
    ],
    schema=["head_type", "head", "relation", "tail_type", "tail"],
    orient="row",
)


def write_parquet(directory):
    EVENTS.write_parquet(directory / "events.parquet")
    ITEMS.write_parquet(directory / "items.parquet")
    TRIPLES.write_parquet(directory / "triples.parquet")


def write_jsonl(directory):
    EVENTS.write_ndjson(directory / "events.jsonl")
    ITEMS.write_ndjson(directory / "items.jsonl")
    TRIPLES.write_ndjson(directory / "triples.jsonl")


def write_csv(directory):
    EVENTS.write_csv(directory / "events.csv")
    paths = ITEMS.with_columns(pl.col("categories").list.join(" > "))
    paths.write_csv(directory / "items.csv")
    TRIPLES.write_csv(directory / "triples.csv")


def write_atomic(directory):
    (directory / "shop.inter").write_text(
        "user_id:token\titem_id:token\ttimestamp:float\tevent:token\tevent_id:token"
        "\tsession_id:token\n"
        f"02\t007\t{SECOND}.5\tview\t1\ts\n"
        f"01\tb\t{SECOND}\tbuy\t2\t\n"
        f"02\tb\t{SECOND + 2}\tview\t3\tt\n"
    )
    (directory / "shop.item").write_text(
        "item_id:token\ttitle:token\tprice:float\tcategories:token_seq\n"
        "b\tRed shoe\t1.5\tShoes Red\n007\t\t2\tShoes\nunsold\tBlue sock, left\t\tSocks\n"
    )
    (directory / "shop.kg").write_text(
        "head_id:token\trelation_id:token\ttail_id:token\n"
        "m.b\tmade_by\tacme\nacme\tbased_in\tOslo\nm.b\tgoes_with\tm.7\n"
    )
    (directory / "shop.link").write_text(
        "item_id:token\tentity_id:token\nb\tm.b\n007\tm.7\nnot here\tacme\n"
    )


def message(directory, events=EVENTS, items=ITEMS, triples=TRIPLES, **options) -> str:
    """What reading these tables from Parquet raises."""
    for name, frame in {"events": events, "items": items, "triples": triples}.items():
        frame.write_parquet(directory / f"{name}.parquet")
    with pytest.raises(DataError) as caught:
        load_source(str(directory), **options)
    return str(caught.value)


def assert_names(text: str, *parts: str) -> None:
    for part in parts:
        assert part in text, f"{part!r} is not in {text!r}"
