"""The live service of a run: its store is prepared, then HTTP requests are answered."""

from collections.abc import Sequence

from jaxrec.artifacts import run_directory
from jaxrec.errors import ConfigError
from jaxrec.inference import loading
from jaxrec.ranking.context import Step
from jaxrec.ranking.pipeline import build_pipeline
from jaxrec.ranking.steps import Feedback
from jaxrec.ranking.strategy import read_strategy
from jaxrec.runtime import enable_compilation_cache
from jaxrec.serving.console import note
from jaxrec.serving.inputs import open_user_events
from jaxrec.serving.live.engine import LiveEngine, check_live_run
from jaxrec.serving.options import ServeOptions
from jaxrec.serving.states import read_states
from jaxrec.serving.stores.opening import open_store


def serve(options: ServeOptions) -> None:
    """Serve over HTTP until the process is stopped.

    Raises:
        RunError, StoreError: the run, the states or the store cannot be used.
        InputError: the events or an option cannot be used.
    """
    try:
        from jaxrec.serving.http.app import serve_http
    except ImportError as error:
        raise ConfigError(f"serving needs more: pip install -e '.[serve]' ({error})") from error

    enable_compilation_cache()
    check_live_run(run_directory.read_config(options.run))
    strategy = (Feedback(),) if options.strategy is None else read_strategy(options.strategy)
    trained = run_directory.read_artifacts(options.run)
    items = trained.catalog.graph.types[0]
    # a strategy that does not fit stops the service now, not each request
    build_pipeline(strategy, trained.catalog, trained.counts, items.valid)
    if options.events is not None or options.live.load_states is not None:
        prepare_store(options, strategy)
    serve_http(options.run, options.live, strategy)


def prepare_store(options: ServeOptions, strategy: Sequence[Step]) -> None:
    """Add the missing users of an events file, and load the states of a batch job."""
    model = loading.load(options.run)
    store = open_store(options.live.store_of(options.run))
    engine = LiveEngine(model, store, window=options.live.window, strategy=strategy)
    if options.live.load_states is not None:
        loaded = engine.recorder.load_states(read_states(model, options.live.load_states))
        note(f"{loaded:,} users of the store have the states of {options.live.load_states}")
    if options.events is not None:
        blocks = open_user_events(model, options.events, options.block).blocks()
        added = sum(engine.recorder.import_users(block) for block in blocks)
        note(f"{added:,} users were added to the store with their events")
    store.close()
