"""The live service of a run: its store is prepared, then HTTP requests are answered."""

from collections.abc import Sequence
from contextlib import closing, suppress

import jax

from jaxrec.artifacts import run_directory
from jaxrec.errors import ConfigError, DataError, RunError
from jaxrec.inference import loading
from jaxrec.ranking.context import Step
from jaxrec.ranking.pipeline import build_pipeline
from jaxrec.ranking.steps import Feedback
from jaxrec.ranking.strategy import read_strategy
from jaxrec.runtime import (
    call_in_process,
    compute_in_calling_thread,
    enable_compilation_cache,
)
from jaxrec.serving.console import note
from jaxrec.serving.forgetting import check_lists
from jaxrec.serving.inputs import open_user_events
from jaxrec.serving.live.engine import LiveEngine, check_live_run
from jaxrec.serving.options import ServeOptions
from jaxrec.serving.states import read_states
from jaxrec.serving.stores.opening import check_redis, open_store
from jaxrec.serving.stores.sqlite import MEMORY


def serve(options: ServeOptions) -> None:
    """Serve over HTTP until the process is stopped.

    Raises:
        RunError, StoreError: the run, the states or the store cannot be used.
        InputError: the events or an option cannot be used.
    """
    try:
        from jaxrec.serving.http.listen import check_address, listen
        from jaxrec.serving.http.stream import parse_stream
    except ImportError as error:
        raise ConfigError(f"serving needs more: pip install -e '.[serve]' ({error})") from error

    live = options.live
    check_address(live)
    if live.consume:
        parse_stream(live.consume)
        check_redis(live.consume)
    strategy = (Feedback(),) if options.strategy is None else read_strategy(options.strategy)
    if live.workers > 1:
        # the supervisor of the workers stays small, and starts no JAX
        call_in_process(prepare_workers, options, strategy)
    else:
        prepare(options, strategy)
    listen(options.run, live, strategy)


def prepare(options: ServeOptions, strategy: Sequence[Step]) -> None:
    """Stop the service now if it cannot answer, and bring its store up to date.

    Raises:
        RunError, StoreError, InputError: as in `serve`.
    """
    enable_compilation_cache()
    compute_in_calling_thread()
    config = run_directory.read_config(options.run)
    check_live_run(config)
    check_lists(options.live.places_of(config))
    served = run_directory.served(options.run)
    run_directory.read_id_key(served, options.live.id_key)
    trained = run_directory.read_artifacts(served)
    items = trained.catalog.graph.types[0]
    # a strategy that does not fit stops the service now, not each request
    try:
        build_pipeline(strategy, trained.catalog, trained.counts, items.valid)
    except DataError:
        with closing(open_store(options.live.store_of(options.run))) as store:
            if not store.items.count():  # its items may have the columns that the run lacks
                raise
    if options.events is not None or options.live.load_states:
        prepare_store(options, strategy)


def prepare_workers(options: ServeOptions, strategy: Sequence[Step]) -> None:
    """`prepare`, and write what the workers share.

    Raises:
        ConfigError: workers cannot share the store or the device.
        RunError, StoreError, InputError: as in `serve`.
    """
    workers, address = options.live.workers, options.live.store_of(options.run)
    if address == MEMORY:
        raise ConfigError(f"--workers {workers} cannot share --store {MEMORY}; name a file")
    if jax.default_backend() != "cpu":
        raise ConfigError(
            f"--workers {workers} is for CPUs: one process uses the whole "
            f"{jax.default_backend()}. Leave it out, or set JAX_PLATFORMS=cpu"
        )
    prepare(options, strategy)
    open_store(address).close()
    with suppress(RunError):  # the run may have no checkpoint yet; the workers wait for it
        loading.load(options.run, shared=True, id_key=options.live.id_key)


def prepare_store(options: ServeOptions, strategy: Sequence[Step]) -> None:
    """Add the missing users of an events file, and load the states of a batch job."""
    live = options.live
    model = loading.load(options.run, id_key=live.id_key)
    with closing(open_store(live.store_of(options.run))) as store:
        engine = LiveEngine(
            model, store, window=live.window, strategy=strategy, precision=live.state_precision
        )
        if live.load_states:
            loaded = engine.recorder.load_states(read_states(model, live.load_states))
            note(f"{loaded:,} users of the store have the states of {live.load_states}")
        if options.events is not None:
            blocks = open_user_events(model, options.events, options.block).blocks()
            added = sum(engine.recorder.import_users(block) for block in blocks)
            note(f"{added:,} users were added to the store with their events")
