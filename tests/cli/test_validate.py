"""`jaxrec validate`."""

import numpy as np
import polars as pl
import pytest
from helpers.tables import SECOND

from jaxrec.cli import WARNED, main


def shop(directory, **columns):
    """120 users with five events each, of ten items with brands."""
    users = np.repeat(np.arange(120), 5)
    items = (users + np.tile(np.arange(5), 120)) % 10
    events = pl.DataFrame(
        {
            "user_id": users,
            "item_id": items,
            "timestamp": SECOND + 3600 * np.arange(600),
            "event": np.where(items < 2, "buy", "view"),
            "shelf": "unknown",
        }
    ).with_columns(**columns)
    events.write_csv(directory / "events.csv")
    pl.DataFrame({"item_id": range(12), "brand": "acme", "price": 1.5}).write_csv(
        directory / "items.csv"
    )
    return directory


def validated(capsys, *arguments) -> tuple[int, str]:
    """The exit code and what was printed."""
    code = 0
    try:
        main(["validate", *map(str, arguments)])
    except SystemExit as stop:
        code = int(stop.code or 0)
    return code, capsys.readouterr().out


def test_what_a_data_set_holds_is_printed(tmp_path, capsys):
    code, text = validated(capsys, "--data", shop(tmp_path), "--report", tmp_path / "report.html")
    assert code == 0
    for line in (
        "events: 600 rows",
        "  columns for events: user_id, item_id, timestamp, event",
        "  columns not used: shelf",
        "items: 12 rows",
        "  columns for text: brand",
        "  columns for graph: brand",
        "  columns for conditions: price",
        "matched: 600 of 600 events whose item is in the items table",
        "matched: 10 of 12 items with an event",
        "time: 2023-11-14 22:13:20+00:00 to 2023-12-09 21:13:20+00:00",
        "event types: 480 view, 120 buy",
        "repeats: 0.0% of the events",
        "no warnings",
    ):
        assert f"{line}\n" in text
    assert "GiB" in text and "minutes" in text
    report = (tmp_path / "report.html").read_text()
    assert "480" in report and report.count("data:image/png;base64,") == 2


@pytest.mark.parametrize(
    ("columns", "warning"),
    [
        ({"user_id": pl.lit("NULL")}, "600 times 'NULL'"),
        ({"item_id": pl.lit(1)}, "% of the events repeat an item of the user"),
        ({"timestamp": pl.col("timestamp") * (pl.col("user_id") > 0)}, "outside 1980 to tomorrow"),
        ({"item_id": pl.col("item_id") + 6}, "items that are not in"),
        ({"item_id": pl.lit(1), "timestamp": pl.lit(SECOND)}, "% of the events equal another one"),
        ({"timestamp": pl.lit(SECOND)}, "refuses these data: the global_time split leaves nothing"),
    ],
)
def test_a_warning_names_the_correction_and_the_exit_code_tells(tmp_path, capsys, columns, warning):
    code, text = validated(capsys, "--data", shop(tmp_path, **columns))
    assert code == WARNED
    assert any(warning in line for line in text.splitlines() if line.startswith("warning: "))


def test_data_that_cannot_be_used_exit_with_2(tmp_path, capsys):
    for column in (pl.lit("soon").alias("timestamp"), pl.col("timestamp").alias("event")):
        code, _ = validated(capsys, "--data", shop(tmp_path, **{column.meta.output_name(): column}))
        assert code == 2
    with pytest.raises(SystemExit, match="2"):
        main(["validate", "--data", str(tmp_path), "--reprot", "x"])
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        main(["validate", "--data", str(tmp_path), "--report", str(tmp_path)])
    assert f"--report {tmp_path} is a directory; name a file" in capsys.readouterr().err


def test_options_of_training_apply(tmp_path, capsys):
    arguments = ("--data", shop(tmp_path), "--data.min_item_events", "100")
    code, _ = validated(capsys, *arguments)
    assert code == 2  # no user is left


def test_vectors_and_numbers_are_described(tmp_path, capsys):
    shop(tmp_path)
    (tmp_path / "items.csv").unlink()
    vectors = [[0.5, n, 1.0] if n else None for n in range(12)]
    items = pl.DataFrame(
        {"item_id": range(12), "brand": "acme", "price": 1.5, "image": vectors, "audio": vectors}
    )
    items.write_parquet(tmp_path / "items.parquet")
    options = ("--model.experts", "id+graph", "id+image+numbers", "--data.numeric_columns", "price")
    code, text = validated(capsys, "--data", tmp_path, *options)
    assert code == 0
    for line in (
        "  columns for vectors: image (3 numbers, 8.3% missing)",
        "  columns for numbers: price",
        "  columns not used: audio (3 numbers, 8.3% missing)",
        "note: items: the vectors of audio are not used; add +audio to an expert of model.experts",
    ):
        assert f"{line}\n" in text
