"""Where the time of one HTTP request goes, measured in a server in this process."""

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import uvicorn

from jaxrec.serving.http.app import create_app
from jaxrec.serving.http.batching import RequestBatcher
from jaxrec.serving.http.listen import server_config
from jaxrec.serving.live import recommendation_builder
from jaxrec.serving.live.recommendation_builder import RecommendationBuilder
from jaxrec.serving.live.recorder import EventRecorder
from jaxrec.serving.live.state_updater import StateUpdater
from jaxrec.serving.options import LiveOptions
from jaxrec.serving.stores.sqlite import SQLiteStore

# from one moment to the next
WHOLE = (
    "receiving",  # until the application gets it: the sockets, the HTTP parser
    "checking",  # rate, key, route, parameters, body
    "queue",
    "engine",
    "waking",  # of the thread that answers
    "answering",  # JSON, headers
    "sending",  # until the client has it
)
ENGINE = {
    "event": {
        "reading the document": (EventRecorder, "load"),
        "updating the state": (StateUpdater, "refresh"),
        "writing": (SQLiteStore, "save"),
    },
    "list": {
        "reading the document": (EventRecorder, "load"),
        "user vector": (RecommendationBuilder, "user_vectors"),
        "score adjustments": (RecommendationBuilder, "adjustments"),
        "ranking": (RecommendationBuilder, "_ranked_items"),
        "names and reasons": (RecommendationBuilder, "_entries"),
        "of these, reasons": (recommendation_builder, "strongest_items"),
    },
}
Send = Callable[[http.client.HTTPConnection, int], None]


class Stopwatch:
    """The moments of the present request, and the seconds of the engine's parts."""

    def __init__(self) -> None:
        self.moments, self.seconds = list[float](), dict[str, float]()

    def mark(self) -> None:
        """Note the present moment."""
        self.moments.append(time.perf_counter())

    def timed(self, name: str, method: Callable) -> Callable:
        """The method, whose seconds are added under a name."""

        def wrapper(*arguments: Any, **options: Any) -> Any:
            start = time.perf_counter()
            try:
                return method(*arguments, **options)
            finally:
                seconds = time.perf_counter() - start
                self.seconds[name] = self.seconds.get(name, 0) + seconds

        return wrapper

    def marked_submit(self, submit: Callable) -> Callable:
        """`RequestBatcher.submit` between two moments."""

        async def wrapper(batcher: RequestBatcher, request: Any) -> Any:
            self.mark()
            result = await submit(batcher, request)
            self.mark()
            return result

        return wrapper

    def marked_compute(self, compute: Callable) -> Callable:
        """`RequestBatcher._compute` between two moments."""

        def wrapper(batcher: RequestBatcher, batch: list) -> None:
            self.mark()
            process = batcher.process

            def marked(requests: list) -> Any:
                results = process(requests)
                self.mark()
                return results

            with patch.object(batcher, "process", marked):
                compute(batcher, batch)

        return wrapper

    def marked_app(self, app: Callable) -> Callable:
        """An ASGI application between two moments."""

        async def wrapper(scope: Any, receive: Any, send: Any) -> None:
            self.mark()
            await app(scope, receive, send)
            self.mark()

        return wrapper


def print_request_parts(run: Path, store: Path, items: np.ndarray, event_type: str) -> None:
    """Print the median milliseconds of an event and of lists, and of their parts."""

    def event(client: http.client.HTTPConnection, n: int) -> None:
        body = {"user_id": f"u{n}", "item_id": str(items[n]), "event": event_type}
        body["event_id"] = f"part-{time.time()}-{n}"
        client.request("POST", "/events", json.dumps(body), {"Content-Type": "application/json"})

    def ranked(client: http.client.HTTPConnection, n: int) -> None:
        client.request("GET", f"/users/u{n}/recommendations")

    def explained(client: http.client.HTTPConnection, n: int) -> None:
        client.request("GET", f"/users/u{n}/recommendations?explain=full")

    watch = Stopwatch()
    with serving(run, store, watch) as client:
        for name, send in {"event": event, "list": ranked}.items():
            print(_parts_of(watch, client, name, send))
        print(_whole_time(client, "explained list", explained))


def _parts_of(
    watch: Stopwatch, client: http.client.HTTPConnection, name: str, send: Send, repeats: int = 300
) -> str:
    """One line on one kind of request; the first third of the requests warms up."""
    rows = []
    with ExitStack() as patches:
        for part, (owner, method) in ENGINE[name].items():
            timed = watch.timed(part, getattr(owner, method))
            patches.enter_context(patch.object(owner, method, timed))
        for n in range(repeats):
            watch.moments, watch.seconds = [], {}
            watch.mark()
            send(client, n)
            client.getresponse().read()
            received = time.perf_counter()
            while len(watch.moments) < len(WHOLE):  # the application ends after its answer
                time.sleep(0.001)
            sent = min(watch.moments[-1], received)
            moments = [*watch.moments[:-1], sent, received]
            rows.append([*np.diff(moments), *(watch.seconds[part] for part in ENGINE[name])])
    medians = 1000 * np.median(rows[repeats // 3 :], axis=0)
    whole, engine = medians[: len(WHOLE)], medians[len(WHOLE) :]
    parts = [f"{part} {ms:.2f}" for part, ms in zip(ENGINE[name], engine, strict=True)]
    stages = [f"{stage} {ms:.2f}" for stage, ms in zip(WHOLE, whole, strict=True)]
    stages[WHOLE.index("engine")] += f" ({', '.join(parts)})"
    return f"{name} over HTTP, alone: {whole.sum():.2f} ms: {', '.join(stages)}"


def _whole_time(
    client: http.client.HTTPConnection, name: str, send: Send, repeats: int = 60
) -> str:
    """One line on requests that take long; the first third of them warms up."""
    milliseconds = []
    for n in range(repeats):
        start = time.perf_counter()
        send(client, n)
        answer = client.getresponse()
        if answer.status != HTTPStatus.OK:
            raise RuntimeError(f"{name}: {answer.status} {answer.read()[:200]!r}")
        answer.read()
        milliseconds.append(1000 * (time.perf_counter() - start))
    timed = milliseconds[repeats // 3 :]
    return f"{name} over HTTP, alone: {np.median(timed):.0f} ms, at most {max(timed):.0f} ms"


@contextmanager
def serving(run: Path, store: Path, watch: Stopwatch) -> Iterator[http.client.HTTPConnection]:
    """A client of a server in another thread that notes the moments of each request."""
    options = LiveOptions(store=str(store), http="127.0.0.1:0")
    app = create_app(run, options, load_first=True)
    config = server_config(app, options)
    config.load()
    config.loaded_app = watch.marked_app(config.loaded_app)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    batcher = RequestBatcher
    with (
        patch.object(batcher, "submit", watch.marked_submit(batcher.submit)),
        patch.object(batcher, "_compute", watch.marked_compute(batcher._compute)),
    ):
        thread.start()
        while not server.started:
            time.sleep(0.05)
        port = server.servers[0].sockets[0].getsockname()[1]
        try:
            yield http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        finally:
            server.should_exit = True
            thread.join()
