"""One of two processes that evaluate together: `python evaluating.py NUMBER HOST:PORT OUT`."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import jax
import numpy as np

from helpers.shop import make_tables
from helpers.training import config
from jaxrec import processes
from jaxrec.data.dataset import prepare
from jaxrec.evaluation.calibration import Correction
from jaxrec.sharding import ROWS_BY_ITEM
from jaxrec.training.context import make_context
from jaxrec.training.evaluator import calibrate, test, validate
from jaxrec.training.state import EncodedState, initial_state, process_local

OPTIONS = {"train.item_shards": 4, "train.link_weight": 0.5, "train.masked_item_weight": 0.5}


def evaluated() -> dict:
    """Validation, calibration and ranks of test items, of the state before the first step."""
    recipe = config(**OPTIONS)
    context = make_context(recipe, prepare(recipe, make_tables()))
    own, state = process_local(context, initial_state(context))
    if jax.process_count() > 1:
        check_memory(own, state)
    validation = validate(own, state)
    fields = processes.from_first(lambda: asdict(calibrate(own, state)[0].correction))
    correction = Correction.of(fields)
    results, ranks = test(own, state, correction)
    return {
        "validation": validation,
        "correction": [correction.popularity, correction.repeat_shift],
        "model": results["test"]["model"] if processes.is_first() else {},
        "ranks": ranks["rank"].to_list() if processes.is_first() else [],
    }


def check_memory(context, state) -> None:
    """This process holds no table and no edge, and each of its devices half of the vectors."""
    assert isinstance(state, EncodedState)
    leaves, _ = jax.tree_util.tree_flatten_with_path((state.params, state.text, context.arrays))
    rows = [
        np.asarray(leaf).shape[0]
        for path, leaf in leaves
        if ROWS_BY_ITEM.search(jax.tree_util.keystr(path))
    ]
    assert rows and not any(rows)
    parts = state.vectors.addressable_shards
    assert {len(part.data) for part in parts} == {context.sizes.num_items // 2}


if __name__ == "__main__":
    number, coordinator, out = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    processes.join(coordinator, 2, number)
    if results := evaluated():
        (out / f"{number}.json").write_text(json.dumps(results))
