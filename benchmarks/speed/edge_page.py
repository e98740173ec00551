"""Export a run with its page, and measure the page in headless Chromium.

    python benchmarks/speed/edge_page.py runs/ml-100k [--item-precision int16] [--repeats 7]
        [--events 500] [--screenshot docs/edge.png --search alien]

Needs npm or `--page-runtime`, playwright, and `chromium` on the PATH. Each repeat is a new browser
without a cache. Figures are medians over the repeats:

* mb, runtime_mb: millions of bytes of the directory that the page loads: of the page and the model,
  and of the runtime. Nothing is compressed.
* start_ms: from the request for the page, at a server on this machine, to its first list.
* event_ms, list_ms: an event, and a list of 10, one after the other for `--events` random items of
  one user; each the median of its repeat.
* events_per_second: the same events without lists.

A row is added to `benchmarks/results/edge.jsonl`. `--screenshot` writes a picture of the page after
`--search` and some clicks.
"""

import argparse
import http.server
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np
from edge_rows import about, add, megabytes
from playwright.sync_api import Browser, expect, sync_playwright

from jaxrec.inference.edge.directory import VectorPrecision, write_directory
from jaxrec.inference.edge.page import PACKAGE, RUNTIME
from jaxrec.inference.loading import load

FIRST_LIST = """new MutationObserver((_, observer) => {
    if (!document.querySelector("#list li")) return;
    window.firstList = performance.now();
    observer.disconnect();
}).observe(document, {childList: true, subtree: true});"""
TIMES = """async ([places, k]) => {
    const {EdgeModel} = await import("./model.js");
    const model = await EdgeModel.load();
    const type = model.manifest.event_types[0];
    const timed = async (call) => {
        const start = performance.now();
        return [await call(), performance.now() - start];
    };
    const events = places.map((place, time) => ({
        item: model.ids[1 + Math.floor(place * (model.ids.length - 1))], type, time,
    }));
    const median = (values) => values.sort((a, b) => a - b)[Math.floor(values.length / 2)];
    let shopper = model.newShopper(), took;
    const read = [], listed = [];
    for (const event of events) {
        [shopper, took] = await timed(() => model.read(shopper, event));
        read.push(took);
        [, took] = await timed(() => model.recommend(shopper, k));
        listed.push(took);
    }
    shopper = model.newShopper();
    const [, all] = await timed(async () => {
        for (const event of events) shopper = await model.read(shopper, event);
    });
    return {
        event_ms: median(read),
        list_ms: median(listed),
        events_per_second: 1000 * events.length / all,
    };
}"""
K, CLICKS = 10, 8
SLOW = 120_000  # milliseconds after which a page is given up


class Files(http.server.SimpleHTTPRequestHandler):
    """Serves a directory."""

    def end_headers(self) -> None:
        """Isolate the page, so that its clock has steps of 5 microseconds instead of 100."""
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()

    def log_message(self, *_: object) -> None:
        """Print nothing."""


def main() -> None:
    """Measure the page of one run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    choices = get_args(VectorPrecision)
    parser.add_argument("--item-precision", choices=choices, default="int16")
    parser.add_argument("--page-runtime", type=Path, help="as in `jaxrec export`")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--events", type=int, default=500)
    parser.add_argument("--screenshot", type=Path, metavar="FILE.png")
    parser.add_argument("--search", default="", help="words of the screenshot")
    options = parser.parse_args()
    chromium = shutil.which("chromium") or sys.exit("install Chromium; the PATH has none")
    expect.set_options(timeout=SLOW)
    trained = load(options.run)
    row = about(options.run, trained, "page", options.item_precision)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as browsers:
        directory = Path(folder, "edge")
        formats = ["onnx", "page"]
        write_directory(trained, directory, formats, options.item_precision, options.page_runtime)
        runtime = megabytes(directory / RUNTIME)
        row |= {"mb": round(megabytes(directory) - runtime, 2), "runtime_mb": runtime}
        arguments = ["--no-sandbox", "--disable-background-networking"]
        launch = partial(browsers.chromium.launch, executable_path=chromium, args=arguments)
        repeats = []
        with served(directory) as address:
            for _ in range(options.repeats):
                with launch() as browser:
                    row |= {"runtime": PACKAGE, "browser": f"Chromium {browser.version}"}
                    repeats.append(measured(browser, address, options.events))
            if options.screenshot:
                with launch() as browser:
                    take_picture(browser, address, options)
    medians = {name: round(float(np.median([r[name] for r in repeats])), 3) for name in repeats[0]}
    add(row | medians | {"events": options.events, "repeats": repeats})


@contextmanager
def served(directory: Path) -> Iterator[str]:
    """The address of a server of files while the context lasts."""
    handler = partial(Files, directory=str(directory))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def measured(browser: Browser, address: str, events: int) -> dict[str, float]:
    """The figures of one repeat."""
    page = browser.new_page()
    page.add_init_script(FIRST_LIST)
    page.goto(address)
    expect(page.locator("#list li")).to_have_count(K)
    places = np.random.default_rng(0).random(events).tolist()
    figures = {"start_ms": page.evaluate("window.firstList")}
    figures |= page.evaluate(TIMES, [places, K])
    page.close()
    return {name: round(value, 3) for name, value in figures.items()}


def take_picture(browser: Browser, address: str, options: argparse.Namespace) -> None:
    """Write a picture of the page after a search and clicks on what the page finds and lists."""
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.goto(address)
    page.get_by_role("searchbox").fill(options.search)
    expect(page.locator("#list li")).to_have_count(K)
    for click in range(CLICKS):
        found = page.locator("#found li")
        items = found if click % 2 == 0 and found.count() else page.locator("#list li")
        items.nth(click // 2 % items.count()).get_by_role("button").first.click()
        expect(page.locator("#events li")).to_have_count(click + 1)
    page.screenshot(path=options.screenshot, full_page=True)


if __name__ == "__main__":
    main()
