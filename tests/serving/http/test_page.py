"""The page in a real browser. Elements are found by their labels, as users find them."""

import shutil
import signal

import pytest
from helpers.servers import Service, payload

from jaxrec.serving.http.page import PAGE, content_policy

playwright = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")
expect = playwright.expect
expect.set_options(timeout=30_000)  # ms; other tests may hold both cores

needs_browser = pytest.mark.skipif(
    not shutil.which("chromium"), reason="needs Chromium (Debian: chromium)"
)
PHONE, SMALL, DESKTOP = (
    {"width": width, "height": height} for width, height in ((390, 844), (320, 640), (1280, 900))
)
IDS = "rows => rows.map(row => row.dataset.item)"


@pytest.fixture(scope="module")
def server(forecast_run, tmp_path_factory):
    server = Service(forecast_run, tmp_path_factory.mktemp("page") / "store.db")
    server.client.post("/events", json=[payload("gus", n) for n in range(3)])
    yield server
    assert server.stop() == 128 + signal.SIGTERM


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as browsers:
        browser = browsers.chromium.launch(
            executable_path=shutil.which("chromium"),
            args=["--no-sandbox", "--disable-background-networking"],
        )
        yield browser
        browser.close()


@pytest.fixture
def failures():
    return []


@pytest.fixture
def open_page(server, browser, failures):
    """Open the page of a user; errors of its script and of its policy fail the test."""
    pages = []

    def open_page(user="", viewport=PHONE, prepare=lambda page: None, **options):
        page = browser.new_page(viewport=viewport, **options)
        pages.append(page)
        page.on("pageerror", lambda error: failures.append(str(error)))
        page.on("console", lambda m: failures.append(m.text) if m.type == "error" else None)
        prepare(page)
        page.goto(f"{server.client.base_url}#{f'user={user}' if user else ''}")
        return page

    yield open_page
    for page in pages:
        page.close()
    assert not failures


def button(page, name, row):
    return page.locator("#list li").nth(row).get_by_role("button", name=name)


def test_the_policy_allows_one_script_one_style_and_named_image_hosts(client):
    policy = client.get("/").headers["content-security-policy"]
    assert policy == content_policy(PAGE)
    assert "unsafe" not in policy
    assert policy.count("sha256-") == 2
    assert "img-src 'self' data:;" in policy
    assert "img-src 'self' data: img.shop.com;" in content_policy(PAGE, ["img.shop.com"])
    assert " style=" not in PAGE  # the policy forbids it
    assert " onclick=" not in PAGE


@needs_browser
def test_the_page_shows_the_list_change_after_a_click(open_page, tmp_path):
    """Look up a user, buy an item, search."""
    page = open_page()
    page.get_by_label("Shopper", exact=True).fill("gus")
    page.get_by_role("button", name="Show").click()
    expect(page.locator("#events li")).to_have_count(3)
    items = page.locator("#list li")
    before = items.evaluate_all(IDS)
    assert len(before) == 10
    assert page.get_by_role("img").get_attribute("aria-label").startswith("Share of interest")
    button(page, "buy", 4).click()
    expect(page.locator("#events li")).to_have_count(4)
    after = items.evaluate_all(IDS)
    assert after != before
    assert before[4] not in after
    expect(page.get_by_role("status")).to_contain_text("Recorded: buy brand")
    page.get_by_label("Search words").fill("brand x item f")
    page.get_by_role("button", name="Search").click()
    expect(page.locator("#matches li")).to_have_attribute("data-item", "i15")
    expect(items.first).not_to_have_attribute("data-item", after[0])
    expect(page.get_by_role("heading", name="Recommended for “brand x item f”")).to_be_visible()
    page.get_by_role("button", name="Clear").click()
    expect(items.first).to_have_attribute("data-item", after[0])
    expect(page.locator("#matches")).to_be_hidden()
    button(page, "Why", 0).click()
    expect(items.first.locator(".why")).to_contain_text("Recommended because you")
    page.screenshot(path=str(tmp_path / "page.png"), full_page=True)


@needs_browser
def test_the_details_of_a_reason_are_those_of_the_api(open_page, server, tmp_path):
    page = open_page("gus")
    button(page, "Why", 0).click()
    why = page.locator("#list li").first.locator(".why")
    expect(why.get_by_role("listitem").first).to_be_hidden()
    why.get_by_text("Details").click()
    path = "/users/gus/recommendations?explain=full&k=10"
    reason = server.client.get(path).json()["items"][0]["explanation"]

    events, parts, paths = (
        why.get_by_role("heading", name=name).locator("+ ul").get_by_role("listitem")
        for name in ("Events", "Parts of the score", "Paths in the graph")
    )
    strongest = max(reason["events"], key=lambda event: abs(event["share"]))
    expect(events).to_have_count(min(len(reason["events"]), 5))
    shown = f"{100 * strongest['share']:.0f}%; without it "
    expect(events.first).to_contain_text(strongest["title"])
    expect(events.first).to_contain_text(shown)
    texts = parts.locator("span:last-child").all_inner_texts()
    amounts = [float(text.replace("\N{MINUS SIGN}", "-")) for text in texts]
    assert sum(amounts) == pytest.approx(reason["score"], abs=0.005 * len(amounts))
    expect(parts).to_have_count(6)
    expect(parts.last).to_contain_text("other part")
    expect(paths).to_have_count(min(len(reason["paths"]), 5))
    expect(paths.first).to_contain_text(reason["paths"][0]["node"])
    why.screenshot(path=str(tmp_path / "why.png"))


@needs_browser
@pytest.mark.parametrize("viewport", [DESKTOP, SMALL], ids=["desktop", "small"])
def test_the_chart_goes_on_with_a_forecast_and_its_range(open_page, viewport, tmp_path):
    page = open_page("gus", viewport)
    chart = page.get_by_role("img").filter(has=page.locator("polyline.forecast"))
    expect(chart.locator("polyline.forecast")).to_have_count(4)  # one for each category
    expect(chart.locator("polygon.band")).to_have_count(4)
    expect(chart).to_contain_text("+2" if viewport == SMALL else "+3")  # the labels that fit
    described = chart.get_attribute("aria-label")
    assert "Forecast after 3 more events: " in described and "% to " in described
    expect(page.locator("#interest-about")).to_contain_text("forecast for the next 3 events")
    page.locator("#interest").screenshot(path=str(tmp_path / "chart.png"))


@needs_browser
def test_a_new_visitor_has_something_to_do(open_page, server):
    page = open_page()
    expect(page.get_by_role("heading", name="Popular items")).to_be_visible()
    popular = [item["id"] for item in server.client.get("/items").json()["items"]]
    assert page.locator("#list li").evaluate_all(IDS) == popular
    details = page.locator("#list li").first
    expect(details).to_contain_text("Shelf")
    expect(details).to_contain_text("brand")
    button(page, "view", 2).click()
    expect(page.get_by_role("heading", name="Recommended now")).to_be_visible()
    points = page.get_by_role("img").locator("circle")
    expect(points.first).to_be_visible()  # although one event makes no line
    visitor = page.get_by_label("Shopper", exact=True).input_value()
    page.reload()
    expect(page.locator("#events li")).to_have_count(1)
    page.get_by_role("link", name="gus").click()
    expect(page.get_by_label("Shopper", exact=True)).to_have_value("gus")
    page.go_back()
    expect(page.get_by_label("Shopper", exact=True)).to_have_value(visitor)
    page.get_by_role("button", name="New visitor").click()
    expect(page.get_by_role("heading", name="Popular items")).to_be_visible()


@needs_browser
def test_a_shop_without_events_has_no_popular_items(open_page):
    def without_events(route):
        route.fulfill(json=route.fetch().json() | {"popularity": False})

    page = open_page(prepare=lambda page: page.route("**/model", without_events))
    expect(page.get_by_role("heading", name="Items", exact=True)).to_be_visible()
    expect(page.locator("#list-about")).to_contain_text("no events of this shop yet")


@needs_browser
def test_the_page_works_with_the_keyboard_alone(open_page):
    page = open_page("kay")
    first = button(page, "view", 0)
    expect(first).to_be_visible()
    page.get_by_label("Search words").focus()
    for _ in range(10):
        page.keyboard.press("Tab")
        if first.evaluate("node => node === document.activeElement"):
            break
    expect(first).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#events li")).to_have_count(1)
    focused = page.evaluate_handle("document.activeElement").as_element()
    assert focused.evaluate("node => node.closest('section')?.querySelector('#list') !== null")
    page.keyboard.press("Tab")  # the next stop is in the list, not at the top of the page
    assert page.evaluate("document.activeElement.closest('#list') !== null")


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [DESKTOP, SMALL], ids=["desktop", "small"])
def test_nothing_is_inaccessible_or_too_wide(open_page, server, scheme, viewport):
    user = f"zoe-{scheme}-{viewport['width']}"
    page = open_page(user, viewport, color_scheme=scheme)
    expect(page.get_by_role("heading", name="Popular items")).to_be_visible()

    def check():
        found = axe.Axe().run(page)
        assert not found.violations_count, found.generate_report()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")

    check()
    server.client.post("/events", json=[payload(user, n) for n in range(3)])
    page.reload()
    expect(page.locator("#events li")).to_have_count(3)
    button(page, "dislike", 0).click()
    expect(page.locator("#events li")).to_have_count(4)
    button(page, "Why", 0).click()
    page.get_by_text("Details").click()
    check()
    page.get_by_label("Search words").fill("brand x")
    page.keyboard.press("Enter")
    expect(page.locator("#matches li")).to_have_count(5)
    check()


@needs_browser
def test_the_page_waits_for_the_model_and_asks_for_the_key(open_page, failures):
    def model(route):
        refused = 0 if "x-api-key" in route.request.headers else 401
        statuses.append(refused if statuses else 503)
        if statuses[-1]:
            detail = {503: "the model is still loading", 401: "send the key"}[statuses[-1]]
            route.fulfill(status=statuses[-1], json={"detail": detail})
        else:
            route.continue_()

    statuses = []
    page = open_page(prepare=lambda page: page.route("**/model", model))
    expect(page.get_by_role("status")).to_contain_text("still loading")
    page.get_by_label("Key of this service").fill("secret")
    page.get_by_role("button", name="Use key").click()
    expect(page.get_by_role("heading", name="Popular items")).to_be_visible()
    assert statuses == [503, 401, 0]
    assert "secret" not in page.url
    failures[:] = [text for text in failures if "status of" not in text]  # the two refusals


@needs_browser
def test_images_come_from_the_same_origin_alone_and_text_is_no_markup(open_page, failures):
    urls = ["/img/1.svg", "https://evil.example/x.svg", "javascript:alert(1)", "//[", None]
    hostile = "<img src=x onerror=alert(1)>"
    requested = []

    def with_images(route):
        content = route.fetch().json()
        for item, url in zip(content["items"], urls, strict=False):
            item.update(image_url=url, title=hostile, brand=hostile)
        route.fulfill(json=content)

    def image(route):
        requested.append(route.request.url)
        drawing = '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'
        route.fulfill(body=drawing, content_type="image/svg+xml")

    def prepare(page):
        page.route("**/recommendations", with_images)
        page.route("**/*.svg", image)

    page = open_page("gus", prepare=prepare)
    pictures = page.locator("#list .picture")
    expect(pictures).to_have_count(10)
    expect(pictures.nth(1)).to_have_text("<")  # the letter stands for a refused image
    expect(pictures.locator("img")).to_have_count(1)
    assert [url.rsplit("/", 2)[1:] for url in requested] == [["img", "1.svg"]]
    expect(page.locator("#list li").first).to_contain_text(hostile)
    failures[:] = [text for text in failures if "evil.example" not in text]  # as the policy says


@needs_browser
def test_times_are_local_and_say_so(open_page):
    page = open_page("gus", timezone_id="Asia/Tokyo")
    expect(page.locator("#events li").last).to_contain_text("1 Jan 2024, 09:00 GMT+9")
