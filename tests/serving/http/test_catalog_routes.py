"""The search for items, and who may see ids of users."""

import pytest
from fastapi.testclient import TestClient
from helpers.servers import payload, wait_until_ready

from jaxrec.errors import ConfigError
from jaxrec.serving.http.app import create_app
from jaxrec.serving.http.catalog_routes import may_list_users
from jaxrec.serving.options import LiveOptions


def test_items_are_found_by_title_and_id(client):
    found = client.get("/items", params={"q": "Y item C"}).json()["items"]
    assert found == [
        {
            "id": "i22",
            "title": "brand y item c",
            "price": 33.0,
            "brand": "brand2",
            "category": "Shelf 1",
            "image_url": None,
        }
    ]
    assert [item["id"] for item in client.get("/items", params={"q": "I05"}).json()["items"]] == [
        "i05"
    ]
    assert client.get("/items", params={"q": "i", "k": 50}).json()["items"][49:] == []


def test_without_words_the_most_popular_items_come(client, known_shop):
    found = [item["id"] for item in client.get("/items").json()["items"]]
    assert len(found) == 10
    chosen = dict(known_shop.events["item_id"].value_counts().rows())
    typical = sorted(chosen.values())[len(chosen) // 2]
    assert chosen[found[0]] >= typical


@pytest.mark.parametrize(
    "query",
    [{"q": "x" * 201}, {"k": 0}, {"k": 51}, {"k": "many"}],
)
def test_a_search_is_bounded(client, query):
    assert client.get("/items", params=query).status_code == 422


@pytest.mark.parametrize(
    "words", ["q " * 100, "(" * 200, ".*" * 100, "\\p{L}" * 40, "%_' --", "\x00", "\ud7ff"]
)
def test_a_search_takes_any_text(client, words):
    assert client.get("/items", params={"q": words}).json() == {"items": []}


def test_lists_show_what_a_shop_shows(client):
    client.post("/events", json=[payload("una", n) for n in range(3)])
    item = client.get("/users/una/recommendations").json()["items"][0]
    number = int(item["id"][1:])
    assert item["brand"] == f"brand{number // 10}"
    assert item["price"] == 1.5 * number
    assert item["category"] == f"Shelf {number % 3}"
    assert item["image_url"] is None
    path = "/users/una/recommendations?target=brand&k=2"
    assert client.get(path).json()["items"][0]["price"] is None


@pytest.mark.parametrize(
    ("options", "host", "expected"),
    [
        ({}, "127.0.0.1", True),
        ({}, "localhost", True),
        ({}, "LOCALHOST:8080", True),
        ({}, "[::1]:8080", True),
        ({}, "rebound.example", False),  # a foreign page that makes its name mean this machine
        ({}, "my_rebound.example", False),  # not a host name for the framework
        ({}, "localhost.example", False),
        ({}, "localhost@example", False),
        ({}, "", False),
        ({"open": True}, "localhost", False),
        ({"trusted_proxies": ("10.0.0.1",)}, "localhost", False),
        ({"api_key": "k"}, "localhost", False),
        ({"write_key": "k"}, "localhost", False),
        ({"api_key": "k", "example_users": True}, "shop.example", True),
    ],
)
def test_users_are_listed_on_this_machine_or_where_an_option_says_so(options, host, expected):
    assert may_list_users(LiveOptions(**options), host) is expected


def test_example_users_have_events_and_need_the_key(trained_run, tmp_path):
    options = LiveOptions(store=str(tmp_path / "store.db"), api_key="secret", example_users=True)
    with TestClient(create_app(trained_run, options)) as client:
        wait_until_ready(client)
        for path in ("/users", "/items"):
            assert client.get(path).status_code == 401
        client.headers["X-API-Key"] = "secret"
        assert client.get("/users").json() == {"users": []}
        sent = [payload(f"user{n:02}", event) for n in range(25) for event in range(1 + n % 3)]
        client.post("/events", json=sent)
        client.post("/events", json=payload("user00", 9, event_type="dislike"))
        users = client.get("/users").json()["users"]
        assert len(users) == 20
        assert [user["events"] for user in users[:9]] == [3] * 8 + [2]
        client.delete(f"/users/{users[0]['user_id']}")
        left = [user["user_id"] for user in client.get("/users").json()["users"]]
        assert users[0]["user_id"] not in left


def test_the_shared_client_has_no_local_name_so_it_sees_no_users(client):
    client.post("/events", json=payload("vic", 0))
    assert client.get("/users").json() == {"users": []}
    local = client.get("/users", headers={"Host": "localhost:8080"}).json()["users"]
    assert "vic" in [user["user_id"] for user in local] or len(local) == 20


@pytest.mark.parametrize(
    "host", ["", "*", "a.com; script-src *", "'unsafe-inline'", "data:", "a b", "a.com/x", "\n"]
)
def test_an_image_host_that_is_none_is_refused(host):
    with pytest.raises(ConfigError, match="image-hosts"):
        LiveOptions(image_hosts=(host,))
