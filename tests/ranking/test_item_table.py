import numpy as np

from jaxrec.ranking.item_table import ItemTable, prepare
from jaxrec.types import NEG_INF

VECTORS = np.arange(8, dtype=np.float32).reshape(4, 2)
VALID = np.array([False, True, True, False])


def test_biases_are_zero_by_default_and_add_up():
    table = ItemTable(VECTORS, VALID)
    np.testing.assert_array_equal(table.biases, np.zeros(4))
    biased = table.add_bias(np.array([0.0, 1, 2, 3])).add_bias(np.array([0, 1, -np.inf, 0]))
    np.testing.assert_array_equal(biased.biases, [0, 2, -np.inf, 3])
    assert biased.biases.dtype == np.float32


def test_the_prepared_bias_is_a_column_that_masks_invalid_items():
    bias = np.array([5, 1, -np.inf, 5], np.float32)
    rows = np.asarray(prepare(ItemTable(VECTORS, VALID, bias)).rows)
    np.testing.assert_array_equal(rows[:, :2], VECTORS)
    np.testing.assert_array_equal(rows[:, 2], np.float32([NEG_INF, 1, NEG_INF, NEG_INF]))
