"""Documents as bytes, and their events."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrec.errors import StoreError
from jaxrec.serving.stores.base import MAX_POSITIVES, MAX_UNKNOWN, LiveEvent, UserDocument
from jaxrec.serving.stores.documents import FORMAT, decode, encode, with_events

names = st.text(max_size=8)
events = st.builds(LiveEvent, st.integers(0, 2**33), names, names, st.none() | names)
states = st.none() | st.lists(st.floats(width=32), min_size=4, max_size=4).map(
    lambda numbers: np.array(numbers, np.float32)
)
documents = st.builds(
    UserDocument,
    names,
    st.lists(events, max_size=4).map(tuple),
    states,
    states,
    st.integers(-1, 2**33),
    st.frozensets(names, max_size=3),
    st.integers(0, 4),
    st.integers(0, 9),
    st.booleans(),
    st.dictionaries(names, st.lists(names, max_size=3, unique=True).map(tuple), max_size=3),
    st.lists(events, max_size=4).map(tuple),
    names,
    st.integers(1, 9),
)


def assert_same(left, right):
    for name in ("state", "base"):
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name))
    others = [n for n in UserDocument.__dataclass_fields__ if n not in ("state", "base")]
    assert [getattr(left, n) for n in others] == [getattr(right, n) for n in others]


@settings(deadline=None)
@given(documents)
def test_a_decoded_document_equals_the_encoded_one(document):
    assert_same(decode(document.user_id, document.version, encode(document)), document)


@settings(deadline=None)
@given(documents, st.data())
def test_a_damaged_document_is_decoded_or_raises_a_store_error(document, data):
    content = bytearray(encode(document))
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(content) - 1))
        content[position : position + 1] = data.draw(st.binary(max_size=2)) or b" "
    try:
        decode("u", 1, bytes(content))
    except StoreError as error:
        assert "cannot be read" in str(error)


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_other_bytes_raise_a_store_error(content):
    with pytest.raises(StoreError, match="cannot be read"):
        decode("u", 1, content)


def test_documents_of_the_first_format_are_decoded():
    """That format has no number and other names for three fields."""
    state = np.arange(4, dtype=np.float32)
    content = (
        b'{"events":[[7,"i1","view","e1"],[9,"i2","buy",null]],"feedback":[[8,"i3","like",null]],'
        b'"has_state":true,"has_base":true,"base_time":7,"base_ids":["e0"],"folded":1,'
        b'"forgotten":3,"approximate":false,"chosen":{"view":["i0","i1"]},"model":"m"}\n'
    ) + np.concatenate([state, 2 * state]).astype("<f4").tobytes()
    expected = UserDocument(
        "u",
        events=(LiveEvent(7, "i1", "view", "e1"), LiveEvent(9, "i2", "buy")),
        state=state,
        base=2 * state,
        base_time=7,
        base_ids=frozenset({"e0"}),
        num_in_base=1,
        truncated=3,
        positives={"view": ("i0", "i1")},
        feedback=(LiveEvent(8, "i3", "like"),),
        model="m",
        version=5,
    )
    assert_same(decode("u", 5, content), expected)


def test_a_document_of_a_newer_format_is_refused():
    newer = bytes([FORMAT + 1]) + encode(UserDocument("u"))[1:]
    with pytest.raises(StoreError, match="newer jaxrec wrote it in format 4; update jaxrec"):
        decode("u", 1, newer)


def test_events_in_the_base_stay_before_all_others():
    """For any order of equal times; the newest time is that of the base."""
    a, b, c = (LiveEvent(time, item, "view") for time, item in ((1, "a"), (2, "b"), (2, "c")))
    base = np.zeros(4, np.float32)
    document = UserDocument("u", (a, c), base=base, base_time=5, num_in_base=2)
    assert document.last_time == 5
    after = with_events(document, [b], (), lambda event: (event.time, event.item_id))
    assert (after.events, after.events_after_base) == ((a, c, b), (b,))


def test_documents_of_the_second_format_are_decoded():
    """That format is uncompressed and knows no precision."""
    content = (
        b'{"format":2,"events":[[7,"i1","view","e1"]],"feedback":[],"has_state":true,'
        b'"has_base":false,"base_time":-1,"base_ids":[],"num_in_base":0,"truncated":0,'
        b'"approximate":false,"positives":{"view":["i1"]},"model":"m"}\n'
    ) + np.arange(4).astype("<f4").tobytes()
    expected = UserDocument(
        "u",
        events=(LiveEvent(7, "i1", "view", "e1"),),
        state=np.arange(4, dtype=np.float32),
        positives={"view": ("i1",)},
        model="m",
        version=5,
    )
    assert_same(decode("u", 5, content), expected)


def test_states_in_float16_take_half_the_bytes():
    state = np.linspace(-3, 3, 1000, dtype=np.float16)
    halved = encode(UserDocument("u", state=state, base=state))
    whole = encode(UserDocument("u", state=state, base=state.astype(np.float32)))
    assert len(whole) - len(halved) == pytest.approx(4000, abs=20)
    for content in (halved, whole):
        decoded = decode("u", 1, content)
        np.testing.assert_array_equal(decoded.state, state)
        np.testing.assert_array_equal(decoded.base, state)


def test_positives_keep_the_newest_items_of_the_catalogue_and_the_newest_others():
    def events(names):
        return [LiveEvent(0, name, "view") for name in names]

    catalog = {f"i{n}" for n in range(MAX_POSITIVES + 2)}
    document = with_events(UserDocument("u"), events(sorted(catalog)), catalog)
    unknown = [f"x{n}" for n in range(20_000)]
    document = with_events(document, events([*unknown, "i0", "x9999"]), catalog)
    kept = document.positives["view"]
    assert len(kept) == len(set(kept)) == MAX_POSITIVES + MAX_UNKNOWN
    assert kept[-3:] == ("x19999", "i0", "x9999")  # a repeated item is among the newest again
    assert [i for i in kept if i in catalog][:-1] == sorted(catalog)[3:]
    assert set(kept) - catalog == {"x9999", *unknown[1 - MAX_UNKNOWN :]}
