"""The alphabet of ids."""

import polars as pl
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jaxrec.errors import InputError
from jaxrec.serving.ids import PATTERN, check_id, is_id


@pytest.mark.parametrize(
    "text", ["a", " ", "日本", "session:1", "a/b", "x" * 256, "😀" * 256, "\xa0"]
)
def test_text_that_is_an_id(text):
    assert check_id(text) == text


@pytest.mark.parametrize(
    "text", ["", "x" * 257, "a\n", "\r", "\x00", "\x7f", "\x85", "\u2028", "\u2029", "\ud800"]
)
def test_text_that_is_no_id(text):
    with pytest.raises(InputError, match="is no id"):
        check_id(text)


def test_a_long_text_is_cut_in_the_message():
    with pytest.raises(InputError) as refused:
        check_id("x" * 100_000)
    assert len(str(refused.value)) < 300


@example([".", "..", "...", ".a", "a.", "..a", ".\n", "..\n", "." * 256, "." * 257])
@given(st.lists(st.text(max_size=300), max_size=20))
def test_tables_have_the_same_alphabet(texts):
    column = pl.Series(texts, dtype=pl.String)
    assert column.str.contains(PATTERN).to_list() == [is_id(text) for text in texts]
