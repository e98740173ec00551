"""The benchmark of one request times methods that exist."""

import sys

from helpers.paths import ROOT

sys.path.insert(0, str(ROOT / "benchmarks" / "speed"))

import serving_parts


def test_every_part_of_the_engine_is_there():
    for parts in serving_parts.ENGINE.values():
        assert all(callable(getattr(owner, name)) for owner, name in parts.values())
