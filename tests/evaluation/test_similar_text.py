import numpy as np
import pytest

from jaxrec.evaluation import similar_text
from jaxrec.evaluation.neighbours import NeighbourFit
from jaxrec.evaluation.similar_text import similar_texts

VALID = np.arange(8) > 0
VALID[7] = False  # padding


@pytest.fixture
def vectors():
    """Of items 0 to 6; item 4 has no text, and items 1 and 2 have the same."""
    vectors = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
    vectors[4] = 0
    vectors[2] = 3 * vectors[1]
    return vectors


@pytest.mark.parametrize("most", [2, 20])
def test_neighbours_are_the_largest_cosines(vectors, most, monkeypatch):
    monkeypatch.setattr(similar_text, "MOST_NEIGHBOURS", most)
    table = similar_texts(vectors, VALID)
    known = [1, 2, 3, 5, 6]
    units = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    assert table.items.shape == table.amounts.shape == (8, min(most, 4))
    for item in range(8):
        if item not in known:
            assert not table.items[item].any() and not table.amounts[item].any()
            continue
        cosines = {other: units[item] @ units[other] for other in known if other != item}
        best = sorted(cosines, key=cosines.get, reverse=True)[:most]
        squares = np.array([max(cosines[other], 0) ** 2 for other in best])
        kept = squares > 0
        np.testing.assert_array_equal(table.items[item][: len(best)], np.where(kept, best, 0))
        np.testing.assert_allclose(table.amounts[item], squares / squares.sum(), atol=1e-5)
    assert table.items[1, 0] == 2 and table.items[2, 0] == 1


def test_texts_of_too_few_or_too_many_items_have_no_neighbours(vectors, monkeypatch):
    assert similar_texts(np.zeros((7, 5), np.float32), VALID) is None
    one = np.where(np.arange(7)[:, None] == 3, vectors, 0)
    assert similar_texts(one, VALID) is None
    monkeypatch.setattr(similar_text, "MAX_ITEMS", 4)
    assert similar_texts(vectors, VALID) is None


def test_the_strength_is_that_of_the_first_neighbour(vectors):
    table, types = similar_texts(vectors, VALID), np.array([True, False])
    fitted = table.fitted(NeighbourFit(half_life=3.0, strength=2.0), types)
    first = fitted.amounts[:, 0]
    assert first[first > 0].mean() == pytest.approx(2)
    assert fitted.half_life == 3 and fitted.event_types is types
