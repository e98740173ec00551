"""Recent results stay, and can be replaced."""

from jaxrec.serving.live.recent import MAX_IDLE, Recent


def test_the_latest_results_are_kept_and_can_be_replaced():
    made = []

    def make(name):
        made.append(name)
        return [name]

    recent = Recent(make, 2)
    assert recent("a") is recent("a")
    recent("b"), recent("a"), recent("c")  # b is the oldest
    assert recent("a") == ["a"]
    assert made == ["a", "b", "c"]
    assert recent.idle.keys() == recent.results.keys()  # nothing stays of b
    recent.replace(lambda key, result: [*result, key[0], "new"])
    assert recent("a") == ["a", "a", "new"]
    assert recent("b") == ["b"]
    assert made == ["a", "b", "c", "b"]


def test_results_that_nobody_asks_for_end():
    recent = Recent(lambda name: name, 9)
    recent("a"), recent("b")
    for _ in range(MAX_IDLE):
        recent.replace(lambda key, result: result)
        recent("a")
    assert dict(recent.snapshot()) == {("a",): "a", ("b",): "b"}
    recent.replace(lambda key, result: result)
    assert dict(recent.snapshot()) == {("a",): "a"}
