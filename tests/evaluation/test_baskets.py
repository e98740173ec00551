import numpy as np

from jaxrec.evaluation.baskets import basket_recall, distinct, future_baskets


def test_a_basket_holds_the_distinct_items_of_the_next_counted_events():
    items = np.array([5, 1, 2, 2, 3, 0, 4])
    counted = np.array([True] * 4 + [False] + [True] * 2)
    baskets = future_baskets(items, np.array([1, 4]), 3, counted)
    np.testing.assert_array_equal(baskets.rows, [0, 0, 1])
    np.testing.assert_array_equal(baskets.items, [1, 2, 4])


def test_recall_is_the_share_of_the_basket_in_the_list():
    baskets = distinct(np.array([0, 0, 0, 2]), np.array([1, 2, 2, 7]))
    recall = basket_recall(np.array([[2, 9, 0], [1, 2, 3], [7, 1, 2]]), baskets)
    np.testing.assert_array_equal(recall, [0.5, np.nan, 1.0])
