"""With a key, no file of jaxrec holds an id of a user; without the key, nothing is scored."""

import re
import shutil

import polars as pl
import pytest
from helpers.jobs import BLOCK, holding, read
from helpers.training import TINY

import jaxrec
from jaxrec.cli import main
from jaxrec.config import parse
from jaxrec.data.pseudonyms import read_key
from jaxrec.errors import ConfigError, DataError, RunError
from jaxrec.inference import loading
from jaxrec.serving.states import read_states
from jaxrec.training.fit import fit

KEY = b"0123456789abcdef0123456789abcdef"
RAW = re.compile(r"shopper-\d\d")


@pytest.fixture(scope="module")
def place(tables, tmp_path_factory):
    """A shop whose users have distinctive ids, keys, and a run that was trained with one."""
    place = tmp_path_factory.mktemp("pseudonyms")
    for name, key in (("id", KEY), ("other", KEY[::-1])):
        (place / f"{name}.key").touch(0o600)
        (place / f"{name}.key").write_bytes(key + b"\n")
    (place / "shop").mkdir()
    users = pl.col("user_id").str.replace("u", "shopper-")
    tables.events.with_columns(users).write_parquet(place / "shop" / "events.parquet")
    tables.items.write_parquet(place / "shop" / "items.parquet")
    options = {**TINY, "model.experts": ["id"], "train.epochs": 1}
    options |= {"data.source": str(place / "shop"), "data.id_key": str(place / "id.key")}
    fit(parse(layers=[options]), place / "run")
    return place


@pytest.fixture
def run(place):
    return place / "run"


@pytest.fixture
def events(place):
    return place / "shop" / "events.parquet"


@pytest.mark.thorough
def test_no_file_holds_an_id(place, run, events, tmp_path):
    out, states = tmp_path / "out", tmp_path / "states"
    lists = ["--out", str(out), "--states", str(states), "--k", "2", "--quiet", *BLOCK]
    main(["recommend", str(run), "--events", str(events), *lists])
    for directory in (run, out, states):
        assert holding(directory, "shopper-") == set()
    users = pl.read_parquet(events)["user_id"].unique()
    named = read(out).with_columns(pl.col("user_id").alias("pseudonym"))
    shop = pl.DataFrame({"user_id": users, "pseudonym": jaxrec.pseudonym(KEY, users)})
    assert len(shop.join(named, on="pseudonym")) == 2 * len(users)
    assert set(read_states(loading.load(run), states)["user_id"]) == set(shop["pseudonym"])


def test_a_user_is_named_by_the_id(run, events, tmp_path):
    known = jaxrec.load(run).recommend(pl.read_parquet(events), k=2)
    out, scored = tmp_path / "out", ["--events", str(events)]
    main(["recommend", str(run), *scored, "--out", str(out), "--k", "2", "--users", "shopper-03"])
    user = jaxrec.pseudonym(KEY, "shopper-03")
    assert holding(out, "shopper-") == set()
    assert holding(out, user) == {"part-00000.parquet", "_manifest.parquet"}
    assert read(out)["user_id"].to_list() == [user, user]
    assert read(out)["item_id"].equals(known.filter(pl.col("user_id") == user)["item_id"])


@pytest.mark.slow
def test_reports_take_ids(run, events, tmp_path):
    scored = ["--events", str(events)]
    main(["explain", str(run), "shopper-03", *scored, "--out", str(tmp_path / "why.json")])
    assert jaxrec.pseudonym(KEY, "shopper-03") in (tmp_path / "why.json").read_text()
    main(["plot", str(run), "shopper-03", *scored, "--out", str(tmp_path / "plot.png")])
    main(["replay", str(run), *scored])


def test_a_run_with_a_key_refuses_to_score_without_it(place, run, tmp_path, capsys):
    moved = shutil.copytree(place / "run", tmp_path / "run")
    text = (moved / "config.yaml").read_text()
    (moved / "config.yaml").write_text(text.replace("id.key", "lost.key"))
    with pytest.raises(
        ConfigError, match=r"lost\.key: no key can be read .* put its file back there"
    ):
        loading.load(moved)
    loading.load(moved, id_key=place / "id.key")
    with pytest.raises(ConfigError, match=r"other\.key holds another key than the one that"):
        loading.load(moved, id_key=place / "other.key")
    for command in (["similar", str(moved), "item:i01"], ["serve", str(moved), "--http", ":0"]):
        with pytest.raises(SystemExit) as stop:
            main(command)
        assert stop.value.code == 2
        assert "was trained with a key of user ids" in capsys.readouterr().err
    with pytest.raises(RunError, match=r"other data .*key of user ids"):
        options = {**TINY, "model.experts": ["id"], "data.source": str(place / "shop")}
        fit(parse(layers=[options]), moved, resume=True)


def test_a_run_without_a_key_takes_none(trained_run, place):
    with pytest.raises(ConfigError, match="was trained without a key of user ids"):
        loading.load(trained_run, id_key=place / "id.key")


def test_a_key_that_cannot_be_used_is_refused(tmp_path):
    key = tmp_path / "id.key"
    with pytest.raises(ConfigError, match=r"No such file or directory.*openssl rand -hex 32 >"):
        read_key(key)
    key.touch(0o600)
    key.write_bytes(KEY[:31] + b"\n")
    with pytest.raises(ConfigError, match="31 bytes are too short for a key of 32"):
        read_key(key)
    key.write_bytes(KEY + b"\n")
    assert read_key(key) == KEY
    key.chmod(0o604)
    with pytest.raises(ConfigError, match="everybody on this machine may read the key; run chmod"):
        read_key(key)
    with pytest.raises(ConfigError, match="too short"):
        jaxrec.pseudonym(b"short", "u")


def test_pseudonyms_are_equal_wherever_they_are_made(tmp_path):
    made = jaxrec.pseudonym(KEY, "7")
    assert re.fullmatch("[a-z2-7]{32}", made)
    (tmp_path / "id.key").touch(0o600)
    (tmp_path / "id.key").write_bytes(KEY)
    assert jaxrec.pseudonym(tmp_path / "id.key", 7) == made
    assert jaxrec.pseudonym(KEY, pl.Series("u", [7, None, 8])).to_list()[:2] == [made, None]
    assert jaxrec.pseudonym(KEY[::-1], "7") != made


@pytest.mark.parametrize("value", [None, "", 1.5, True, ["a"]], ids=str)
def test_only_text_and_whole_numbers_are_ids(unchecked, value):
    with pytest.raises(DataError, match="is no user id"):
        jaxrec.pseudonym(b"k" * 64, value)
    whole = jaxrec.pseudonym(b"k" * 64, pl.Series([7.0, None]))
    assert whole.to_list() == [jaxrec.pseudonym(b"k" * 64, 7), None]
    with pytest.raises(DataError, match="not whole"):
        jaxrec.pseudonym(b"k" * 64, pl.Series([7.5]))
