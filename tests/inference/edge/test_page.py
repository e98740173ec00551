"""The page of an exported model: its files, and its lists in a browser without a network."""

import functools
import http.server
import shutil
import threading

import pytest
from helpers.live import DAY, event

from jaxrec.cli import main
from jaxrec.errors import ConfigError, FetchError
from jaxrec.inference.edge import page
from jaxrec.serving.live.engine import LiveEngine
from jaxrec.serving.live.recorder import UserEvent
from jaxrec.serving.stores.sqlite import SQLiteStore

EVENTS = [
    event(n * n * DAY, item, event_type)
    for n, (item, event_type) in enumerate(
        [("i01", "view"), ("i07", "buy"), ("none", "view"), ("i07", "view"), ("i12", "view")]
    )
]
LIST = """async (events) => {
    const {EdgeModel} = await import("./model.js");
    const model = window.model ??= await EdgeModel.load();
    let shopper = model.newShopper();
    for (const event of events) shopper = await model.read(shopper, event);
    return await model.recommend(JSON.parse(JSON.stringify(shopper)), 10);
}"""


def runtime(directory, names=page.RUNTIME_FILES):
    for name in names:
        (directory / name).write_text(name)
    return directory


def test_the_page_lies_beside_its_runtime(tmp_path):
    (tmp_path / "dist").mkdir()
    target = tmp_path / "edge"
    target.mkdir()
    page.write_page(target, runtime(tmp_path / "dist"))
    found = {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()}
    assert found == {*page.PAGE_FILES, *(f"ort/{name}" for name in page.RUNTIME_FILES)}
    text = "".join((target / name).read_text() for name in page.PAGE_FILES)
    assert "http" not in text.replace("http-equiv", "")  # nothing from elsewhere


def test_a_missing_runtime_is_an_error_that_says_what_to_do(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"lacks .*\.wasm; give the directory `dist`"):
        page.write_page(tmp_path, runtime(tmp_path, page.RUNTIME_FILES[:2]))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(page, "cache_dir", lambda: tmp_path / "cache")
    with pytest.raises(FetchError, match=r"not installed; install it, or name .* --page-runtime"):
        page.fetch_runtime()


def test_another_package_is_not_taken(tmp_path, monkeypatch):
    npm = tmp_path / "npm"
    npm.write_text('#!/bin/sh\necho other > "$4/onnxruntime-web.tgz"\n')
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.setattr(page, "cache_dir", lambda: tmp_path / "cache")
    with pytest.raises(FetchError, match="checksum mismatch"):
        page.fetch_runtime()
    assert not (tmp_path / "cache").exists() or not list((tmp_path / "cache").iterdir())


def test_the_page_needs_the_programs_of_onnx(trained_run, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["export", str(trained_run), "--to", str(tmp_path / "edge"), "--formats", "page"])
    assert "the page runs the programs of onnx" in capsys.readouterr().err


# ---- in a browser, with the real runtime


@pytest.fixture(scope="module")
def ort():
    if not (shutil.which("npm") and shutil.which("chromium")):
        pytest.skip("needs npm and Chromium")
    return page.fetch_runtime()


@pytest.fixture(scope="module")
def browser_page(ort, run, tmp_path_factory):
    """The page, loaded; then the network goes away."""
    playwright = pytest.importorskip("playwright.sync_api")
    directory = tmp_path_factory.mktemp("page") / "edge"
    main(["export", str(run), "--to", str(directory), "--formats", "onnx", "page"])
    handler = functools.partial(Quiet, directory=str(directory))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with playwright.sync_playwright() as browsers:
        browser = browsers.chromium.launch(
            executable_path=shutil.which("chromium"),
            args=["--no-sandbox", "--disable-background-networking"],
        )
        shown = browser.new_page(viewport={"width": 390, "height": 844})
        shown.failures, shown.requests = [], []
        shown.context.on("request", lambda request: shown.requests.append(request))
        shown.on("pageerror", lambda error: shown.failures.append(str(error)))
        shown.on("console", lambda m: shown.failures.append(m.text) if m.type == "error" else None)
        shown.on("websocket", lambda socket: shown.failures.append(socket.url))
        shown.own = own_files(directory, f"http://127.0.0.1:{server.server_port}/")
        shown.goto(min(shown.own))
        playwright.expect(shown.locator("#list li")).to_have_count(10, timeout=60_000)
        shown.evaluate(LIST, [])  # the model of this test
        server.shutdown()
        server.server_close()
        shown.context.set_offline(True)
        yield shown
        assert shown.failures == []
        browser.close()


def own_files(directory, origin):
    """The addresses of the page and of its files."""
    paths = (path.relative_to(directory) for path in directory.rglob("*") if path.is_file())
    return {origin, *(origin + path.as_posix() for path in paths)}


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.mark.slow
def test_without_a_network_the_page_gives_the_lists_of_the_live_engine(browser_page, model):
    engine = LiveEngine(model, SQLiteStore(":memory:"), strategy=())
    engine.record([UserEvent("u", shown) for shown in EVENTS])
    own = [{"item": e.item_id, "type": e.event_type, "time": e.time} for e in EVENTS]
    for user, events in (("u", own), ("new", [])):
        expected = engine.recommend([user], k=10)[0].table
        found = browser_page.evaluate(LIST, events)
        scores = dict(zip(expected["item_id"], expected["score"], strict=True))
        assert {row["id"] for row in found} == scores.keys()
        for row in found:
            assert row["score"] == pytest.approx(scores[row["id"]], abs=1e-3)


@pytest.mark.slow
def test_a_click_changes_the_list_and_the_state_stays_in_the_browser(browser_page):
    from playwright.sync_api import expect

    items = browser_page.locator("#list li")
    ids = "rows => rows.map(row => row.dataset.item)"
    before = items.evaluate_all(ids)
    items.first.get_by_role("button").first.click()
    expect(browser_page.locator("#events li")).to_have_count(1)
    after = items.evaluate_all(ids)
    assert after != before
    assert '"events":[{"item":' in browser_page.evaluate("localStorage.getItem('jaxrec shopper')")
    browser_page.get_by_label("Title or id").fill("I12")
    expect(browser_page.locator("#found li")).to_have_attribute("data-item", "i12")
    expect(browser_page.get_by_role("status")).to_contain_text("event ")
    width = browser_page.evaluate("document.documentElement.scrollWidth")
    assert width <= 390
    browser_page.get_by_role("button", name="Forget my events").click()
    expect(browser_page.locator("#events li")).to_have_count(0)
    assert items.evaluate_all(ids) == before
    assert browser_page.evaluate("localStorage.getItem('jaxrec shopper')") is None


@pytest.mark.slow
def test_clicks_in_quick_succession_are_all_read(browser_page):
    from playwright.sync_api import expect

    items = browser_page.locator("#list li")
    first = items.first.get_by_role("button").first
    first.evaluate("button => { button.click(); button.click(); button.click(); }")
    expect(browser_page.locator("#events li")).to_have_count(3)
    browser_page.get_by_role("button", name="Forget my events").click()
    expect(browser_page.locator("#events li")).to_have_count(0)


@pytest.mark.slow
def test_the_page_reads_its_own_files_and_sends_nothing(browser_page):
    """Lost requests count too: there is no network, but the browser reports them."""
    from playwright.sync_api import expect

    loading = len(browser_page.requests)
    browser_page.locator("#list li").first.get_by_role("button").first.click()
    expect(browser_page.locator("#events li")).to_have_count(1)
    browser_page.get_by_label("Title or id").fill("I12")
    browser_page.locator("#found li").first.get_by_role("button").first.click()
    expect(browser_page.locator("#events li")).to_have_count(2)
    browser_page.get_by_role("button", name="Forget my events").click()
    expect(browser_page.locator("#events li")).to_have_count(0)
    assert {request.url for request in browser_page.requests} <= browser_page.own
    assert {request.method for request in browser_page.requests} == {"GET"}
    assert browser_page.requests[loading:] == []
