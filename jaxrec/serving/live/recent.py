"""The results of a function for its latest arguments."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Result = TypeVar("Result")
Arguments = tuple[Hashable, ...]
MAX_IDLE = 8  # replacements that a result outlives without being asked for


class Recent(Generic[Result]):
    """A function that keeps its latest results, as `functools.lru_cache`; they can be replaced.

    Args:
        size: the most results to keep.
    """

    def __init__(self, make: Callable[..., Result], size: int):
        self.make, self.size = make, size
        self.results: OrderedDict[Arguments, Result] = OrderedDict()
        self.idle: dict[Arguments, int] = {}  # replacements since a result was asked for

    def __call__(self, *arguments: Hashable) -> Result:
        """The result for these arguments."""
        if arguments not in self.results:
            made = self.make(*arguments)
            while len(self.results) >= self.size:
                oldest, _ = self.results.popitem(last=False)
                del self.idle[oldest]
            self.results[arguments] = made
        self.results.move_to_end(arguments)
        self.idle[arguments] = 0
        return self.results[arguments]

    def snapshot(self) -> list[tuple[Arguments, Result]]:
        """The kept results; another thread may ask for it."""
        return list(self.results.items())

    def replace(self, change: Callable[[Arguments, Result], Result]) -> None:
        """Replace every kept result; drop those that were not asked for lately."""
        kept = [key for key in self.results if self.idle[key] < MAX_IDLE]
        self.idle = {key: self.idle[key] + 1 for key in kept}
        self.results = OrderedDict((key, change(key, self.results[key])) for key in kept)
