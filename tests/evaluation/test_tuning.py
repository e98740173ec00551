from jaxrec.evaluation.tuning import ascend, climb


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


def test_the_ascent_passes_a_dip_that_stops_the_climb():
    grid, start = {"a": (0, 1, 2, 3, 4), "b": (0, 1)}, {"a": 1, "b": 0}
    ratings = {0: 0, 1: 2, 2: 1, 3: 5, 4: 3}

    def rate(point):
        return ratings[point["a"]] + (point["b"] if point["a"] == 3 else -point["b"])

    assert climb(grid, start, rate) == start
    assert ascend(grid, start, rate) == {"a": 3, "b": 1}
    assert ascend(grid, start, lambda point: 0.0) == {"a": 0, "b": 0}
