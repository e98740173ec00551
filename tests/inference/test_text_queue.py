"""Texts of several threads share the batches of one encoder."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from jaxrec.inference.text_queue import BATCH, TextQueue


class Encoder:
    """Encodes a text as its number, and keeps the batches; it waits until it may begin."""

    def __init__(self):
        self.batches, self.may_begin, self.began = [], threading.Event(), threading.Event()

    def __call__(self, texts):
        self.began.set()
        self.may_begin.wait(10)
        self.batches.append(list(texts))
        return np.array([[float(text)] for text in texts])


def test_texts_that_wait_are_encoded_together():
    encoder = Encoder()
    queue = TextQueue(encoder)
    with ThreadPoolExecutor(8) as threads:
        first = threads.submit(queue.vectors, ["0"])
        encoder.began.wait(10)
        others = [threads.submit(queue.vectors, [str(n)]) for n in range(1, 6)]
        while len(queue.waiting) < 5:
            pass
        encoder.may_begin.set()
        results = [float(future.result()[0][0]) for future in (first, *others)]
    assert results == [0, 1, 2, 3, 4, 5]
    assert [len(batch) for batch in encoder.batches] == [1, 5]


def test_one_text_does_not_wait_behind_all_of_many():
    encoder = Encoder()
    queue = TextQueue(encoder)
    with ThreadPoolExecutor(2) as threads:
        many = threads.submit(queue.vectors, [str(n) for n in range(10 * BATCH)])
        encoder.began.wait(10)
        one = threads.submit(queue.vectors, ["1000"])
        while not queue.waiting:
            pass
        encoder.may_begin.set()
        assert one.result()[0] == [1000]
        assert [v[0] for v in many.result()] == list(range(10 * BATCH))
    place = next(n for n, batch in enumerate(encoder.batches) if "1000" in batch)
    assert place < 4


def test_a_failure_reaches_the_threads_of_its_batch_alone():
    def encode(texts):
        if "bad" in texts:
            raise ValueError("cannot be encoded")
        return np.zeros((len(texts), 1))

    queue = TextQueue(encode)
    with pytest.raises(ValueError, match="cannot be encoded"):
        queue.vectors(["bad"])
    assert len(queue.vectors(["good"])) == 1
