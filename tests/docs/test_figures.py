"""Every pair of figures on the results page and in the README is one that a row holds."""

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
from helpers.paths import ROOT

ROWS = ROOT / "benchmarks" / "results"
PAGES = (ROOT / "docs" / "results" / "quality.md", ROOT / "README.md")
PAIR = re.compile(r"(?<![\d.])(\.\d{3,4}) / (\.\d{3,4})(?!\d)")
VARIED = ("case", "variant", "way", "share", "data", "setting", "system", "attack", "type")
MOST_SEEDS = 3
# by earlier versions, which wrote no rows
WITHOUT_ROWS = {
    (".0601", ".1198"),  # RecTools' SASRec, eSASRec, and jaxrec in that run
    (".0654", ".1357"),
    (".1335", ".2524"),
    (".0736", ".1270"),  # Beauty with also_bought
    (".0699", ".1164"),  # Beauty, one expert with co-occurrence
    (".1839", ".2341"),  # personal frequency on Taobao and Online Retail
    (".0832", ".1558"),
    # the trial of a refit: the selected model, one from scratch, and one trained on
    *((".0361", ".0622"), (".0496", ".0871"), (".0448", ".0795")),
    *((".0390", ".0694"), (".0692", ".1219"), (".0637", ".1116")),
    *((".0939", ".1415"), (".0938", ".1398")),
}


def test_a_row_holds_every_pair_of_figures():
    held = set(held_pairs()) | WITHOUT_ROWS
    missing = [
        f"{page.name}, line {number}: {' / '.join(pair)}"
        for page in PAGES
        for number, line in enumerate(page.read_text().splitlines(), start=1)
        for pair in PAIR.findall(plain(line))
        if pair not in held
    ]
    assert not missing, "\n".join(missing)


def plain(line: str) -> str:
    return re.sub(r" ± \.\d+", "", line).replace("<br>", " ").replace("**", "")


def held_pairs() -> Iterator[tuple[str, str]]:
    """The pairs of single rows, and the means over the seeds that a row's neighbours have."""
    groups = defaultdict(list)
    for path in ROWS.glob("*.jsonl"):
        for row in map(json.loads, path.read_text().splitlines()):
            name = (path.name, *(str(row.get(key)) for key in VARIED))
            for place, pair in pairs_of(row):
                groups[name, place].append(pair)
    for group in groups.values():
        for count in range(1, MOST_SEEDS + 1):
            for start in range(len(group) - count + 1):
                mean = np.mean(group[start : start + count], axis=0)
                for digits in (3, 4):
                    first, second = (f"{value:.{digits}f}".lstrip("0") for value in mean)
                    yield first, second


def pairs_of(values: Any, place: tuple = ()) -> Iterator[tuple[tuple, tuple[float, float]]]:
    """The pairs in a row and where they stand: NDCG@10 and recall@10, or the end of a list."""
    if isinstance(values, dict):
        if {"ndcg@10", "recall@10"} <= values.keys():
            yield place, (values["ndcg@10"], values["recall@10"])
        for name, value in values.items():
            yield from pairs_of(value, (*place, name))
    elif isinstance(values, list) and is_pair(values):
        yield place, (values[-2], values[-1])


def is_pair(values: list) -> bool:
    """Two figures, perhaps behind a count."""
    return len(values) in (2, 3) and all(isinstance(value, int | float) for value in values)
