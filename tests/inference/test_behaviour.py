"""Text vectors of what users did."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from helpers.histories import new_user_of_brand
from helpers.training import untrained_run

import jaxrec
from jaxrec.data.text import tokenize
from jaxrec.errors import InputError


def test_the_vector_of_behaviour_lies_near_the_items_of_its_events(model):
    users = pl.concat(new_user_of_brand(brand) for brand in range(4))
    table = model.behaviour_vectors(users)
    assert table.columns == ["user_id", "text", "vector"]
    expected = "viewed brand w item a; viewed brand w item b; viewed brand w item c; "
    assert table.filter(user_id="fan0")["text"].item() == expected + "viewed brand w item d"
    vectors = table["vector"].to_numpy()
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    cosines = vectors @ np.asarray(model.index.text)[1 : model.catalog.num_items].T
    brands = model.catalog.items["brand"][1:].to_numpy()
    by_brand = np.stack([cosines[:, brands == f"brand{brand}"].mean(1) for brand in range(4)], 1)
    np.testing.assert_array_equal(by_brand.argmax(0), range(4))  # the nearest user of each brand


def test_a_user_alone_has_the_vector_of_the_batch(model, events):
    together = model.behaviour_vectors(events, last=5)
    user = together["user_id"][7]
    alone = model.behaviour_vectors(events.filter(user_id=user), last=5)
    assert alone["text"].item() == together["text"][7]
    np.testing.assert_allclose(
        alone["vector"].to_numpy()[0], together["vector"].to_numpy()[7], atol=1e-4
    )


def test_a_long_text_loses_its_oldest_tokens(model, events):
    """The encoder has 40 positions."""
    both = model.behaviour_vectors(events, last=6), model.behaviour_vectors(events, last=7)
    encoder = Path(model.config.text.pretrained)
    lengths = tokenize(both[0]["text"].to_list(), encoder, 400).lengths
    assert lengths.min() > 40
    vectors = [table["vector"].to_numpy() for table in both]
    assert (both[0]["text"] != both[1]["text"]).any()
    np.testing.assert_allclose(*vectors, atol=1e-5)


def test_a_user_without_known_items_has_the_zero_vector(model):
    events = new_user_of_brand(0).with_columns(item_id=pl.lit("nowhere"))
    table = model.behaviour_vectors(events)
    assert table["text"].item() == ""
    assert not table["vector"].to_numpy().any()


def test_bad_requests_say_what_is_wrong(model, events, known_shop, tmp_path):
    with pytest.raises(InputError, match="last=0"):
        model.behaviour_vectors(events, last=0)
    run = untrained_run(tmp_path / "run", known_shop, **{"model.experts": ["id"]})
    with pytest.raises(InputError, match="reads no text"):
        jaxrec.load(run).behaviour_vectors(events)
