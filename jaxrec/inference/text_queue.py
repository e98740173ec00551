"""Encodes the texts of several threads together, so that they do not compete for the cores."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import numpy as np
from jaxtyping import Float

BATCH = 8  # texts at a time, so that lists do not wait long for the cores

Vector = Float[np.ndarray, " hidden"]


class TextQueue:
    """Texts that wait for the encoder. A thread that waits encodes the next batch itself.

    Args:
        encode: maps up to `BATCH` texts to their vectors; called by one thread at a time.
    """

    def __init__(self, encode: Callable[[Sequence[str]], Float[np.ndarray, "n hidden"]]):
        self.encode = encode
        self.waiting: deque[tuple[str, Future[Vector]]] = deque()
        self.lock = threading.Lock()

    def vectors(self, texts: Sequence[str]) -> list[Vector]:
        """The vectors of texts. Many texts take turns with those of other threads."""
        result = list[Vector]()
        for start in range(0, len(texts), BATCH):
            own = [(text, Future[Vector]()) for text in texts[start : start + BATCH]]
            self.waiting.extend(own)
            for _, future in own:
                while not future.done():
                    self._encode_next(future)
            result += [future.result() for _, future in own]
        return result

    def _encode_next(self, awaited: Future) -> None:
        """Encode one batch, unless another thread has done what is awaited."""
        with self.lock:
            if awaited.done():
                return
            batch = [self.waiting.popleft() for _ in range(min(BATCH, len(self.waiting)))]
            try:
                vectors = self.encode([text for text, _ in batch])
            except Exception as error:
                for _, future in batch:
                    future.set_exception(error)
            else:
                for (_, future), vector in zip(batch, vectors, strict=True):
                    future.set_result(vector)
