from jaxrec.evaluation.tuning import climb


def test_the_climb_rates_each_point_once_and_stops_at_a_peak():
    grid = {"a": (0, 1, 2, 3, 4), "b": (False, True)}
    rated = []

    def rate(point):
        rated.append(tuple(point.values()))
        return -abs(point["a"] - 3) + point["b"]

    assert climb(grid, {"a": 1, "b": False}, rate) == {"a": 3, "b": True}
    assert len(rated) == len(set(rated)) < 10


def test_equal_ratings_keep_the_start():
    start = {"a": 2}
    assert climb({"a": (1, 2, 3)}, start, lambda point: 0.0) == start
