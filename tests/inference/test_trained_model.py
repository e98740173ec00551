import numpy as np
import polars as pl
import pytest
from helpers.histories import new_user_of_brand

import jaxrec
from jaxrec.errors import DataError, RunError


def test_an_audience_holds_the_users_most_likely_to_choose_the_entity(model):
    users = pl.concat(new_user_of_brand(brand) for brand in range(4))
    audience = model.audience(users, "brand:brand3", size=3, bid=2.0)
    assert audience["user_id"][0] == "fan3"
    assert len(audience) == 3
    np.testing.assert_allclose(audience["ecpm"], audience["probability"] * 2 * 1000)
    audiences = [model.audience(users, f"brand:brand{brand}", size=9) for brand in range(4)]
    total = pl.concat(audiences).group_by("user_id").agg(pl.col("probability").sum())
    # every item has one brand, so the brands share all of a user's next choice
    np.testing.assert_allclose(total["probability"], 1, atol=1e-4)
    again = model.audience(users, "item:i30", size=9, mask=("none",))
    assert "fan3" in again["user_id"].to_list()
    new = model.audience(users, "item:i30", size=9)  # as the run was evaluated
    assert "fan3" not in new["user_id"].to_list()


def test_a_profile_shows_interests_and_their_change(model, tmp_path):
    moved = pl.concat([new_user_of_brand(0), new_user_of_brand(3, later=86_400)])
    moved = moved.with_columns(user_id=pl.lit("mover"))
    profile = model.profile(moved, last=4, top=4)
    brands = profile.filter(pl.col("type") == "brand")
    assert brands["id"][0] == "brand3"
    assert brands["weight"].sum() == pytest.approx(1, abs=1e-4)
    assert brands["change"][0] > 0
    np.testing.assert_allclose(brands["change"], brands["weight"] - brands["before"])
    earlier = model.profile(moved.head(4), last=4, top=1).filter(pl.col("type") == "brand")
    assert earlier["id"][0] == "brand0"
    before = brands.filter(pl.col("id") == "brand0")["before"]
    assert before[0] == pytest.approx(earlier["weight"][0], abs=1e-5)
    assert set(profile["type"]) == {"category", "brand", "item"}
    model.plot_profile(moved, "mover", tmp_path / "mover.png", last=6)
    assert (tmp_path / "mover.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="no user 'x'"):
        model.plot_profile(moved, "x", tmp_path / "x.png")


def test_bad_requests_say_what_is_wrong(model, events, trained_run, tmp_path):
    for k in (0, 40):
        with pytest.raises(ValueError, match=f"k={k}: give a number from 1 to 39"):
            model.recommend(events, k=k)
    with pytest.raises(DataError, match="does not know: steal"):
        model.recommend(events.with_columns(event=pl.lit("steal")))
    with pytest.raises(DataError, match="timestamp"):
        model.recommend(events.drop("timestamp"))
    with pytest.raises(ValueError, match="mask"):
        model.recommend(events, mask=("steal",))
    with pytest.raises(RunError, match="not a run directory"):
        jaxrec.load(tmp_path)
