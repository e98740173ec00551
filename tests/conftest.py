"""Four CPU devices, strict flags, checked annotations (see `helpers`), and a small shop."""

import os
import shutil
from importlib.metadata import version

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAXREC_DEBUG"] = "1"  # messages show ids of users; tests of privacy turn it off
# programs this small cost more to optimise than to run
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0 "
    "--xla_llvm_disable_expensive_passes=true --xla_cpu_parallel_codegen_split_count=1"
    # compiles in a third less time; later versions do not know the flag
    + (" --xla_cpu_use_fusion_emitters=false" if version("jax") < "0.11" else "")
)


from pathlib import Path

import jax
import jaxtyping
import polars as pl
import pytest
from filelock import FileLock
from helpers.paths import GOLDEN
from helpers.shop import HELD_OUT, make_shop, make_tables

from jaxrec.config import ForecastConfig, parse
from jaxrec.data.tables import Tables, validate_tables
from jaxrec.runtime import enable_compilation_cache
from jaxrec.training.add_forecast import add_forecast
from jaxrec.training.fit import fit

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_nans", True)
enable_compilation_cache()


@pytest.fixture
def unchecked(monkeypatch) -> None:
    """Turn the check of annotations off, for arguments that they forbid."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture(scope="session")
def tables() -> Tables:
    """Forty users of 5 to 11 events in 2024; most step to the next item of one brand."""
    return make_tables()


@pytest.fixture(scope="session")
def shop() -> Tables:
    """120 users who choose seven of the ten items of one of four brands, in any order."""
    return make_shop()


@pytest.fixture(scope="session")
def known_shop(shop) -> Tables:
    """The shop before one of its items is on sale."""
    known = pl.col("item_id") != HELD_OUT
    return validate_tables(shop.events.filter(known), shop.items.filter(known), None)


@pytest.fixture(scope="session")
def trained_run(known_shop, tmp_path_factory, worker_id) -> Path:
    """A run that has learned to whom the items of the shop go, trained once for all processes."""
    options = {
        "split.scheme": "leave_one_out",
        "model.experts": ["id+graph", "text+graph"],
        "model.hidden_size": 16,
        "model.num_layers": 1,
        "model.id_dropout": 0.3,
        # whether so few users choose neighbours depends on rounding
        "model.cooccurrence": False,
        "model.similar_text": False,
        "text.pretrained": str(GOLDEN / "tiny_bert"),
        "train.batch_size": 8,
        "train.sequence_length": 16,
        "train.epochs": 20,
        "train.patience": 20,
        "train.learning_rate": 0.01,
        "train.auxiliary_weight": 0.5,
    }
    own = tmp_path_factory.getbasetemp()
    run = (own if worker_id == "master" else own.parent) / "shop"
    with FileLock(run.with_suffix(".lock")):
        if not run.exists():
            fit(parse(layers=[options]), run, tables=known_shop)
    return run


@pytest.fixture(scope="session")
def forecast_run(trained_run, known_shop, tmp_path_factory, worker_id) -> Path:
    """The same run with a decoder of four steps."""
    own = tmp_path_factory.getbasetemp()
    run = (own if worker_id == "master" else own.parent) / "forecast"
    with FileLock(run.with_suffix(".lock")):
        if not run.exists():
            draft = run.with_suffix(".draft")
            shutil.copytree(trained_run, draft, ignore=shutil.ignore_patterns("shoppers.db*"))
            add_forecast(draft, ForecastConfig(4, 3, 0.01), tables=known_shop)
            draft.rename(run)
    return run
