"""How long random tests run, and what ends one that hangs."""

import faulthandler
import os
import time
from contextlib import contextmanager

SEED = int(os.environ.get("JAXREC_FUZZ_SEED", "0"))
COUNT = int(os.environ.get("JAXREC_FUZZ_COUNT", "100000"))  # inputs of each slow test
SLOW, HANGS = 1.0, 20.0  # seconds: of an input that is tried again, of one that ends the process


@contextmanager
def ends_a_hang():
    """End the process with its stack if the block takes too long; the engine cannot prevent it."""
    faulthandler.dump_traceback_later(HANGS, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def in_time(function, *arguments):
    """The result of a function that takes no second, not even when other work slows it once."""
    for _ in range(3):
        start = time.perf_counter()
        with ends_a_hang():
            result = function(*arguments)
        if time.perf_counter() - start < SLOW:
            return result
    raise TimeoutError(f"{function.__name__} takes longer than {SLOW:g} s for {arguments!r:.5000}")


def mutated(random, content):
    """The bytes with some of them changed, removed, repeated or moved."""
    content = bytearray(content)
    for _ in range(random.randint(1, 4)):
        start, length = random.randrange(len(content) + 1), random.choice([1, 1, 2, 8, 64])
        part = content[start : start + length]
        match random.randrange(4):
            case 0:
                content[start : start + length] = random.randbytes(len(part))
            case 1:
                del content[start : start + length]
            case 2:
                content[start:start] = part * random.choice([1, 2, 50])
            case 3:
                place = random.randrange(len(content) + 1)
                content[place:place] = part
    return bytes(content)
