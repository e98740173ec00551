"""Requests that are answered without FastAPI, and those that are left to it."""

import pytest
from fastapi.routing import APIRoute
from helpers.servers import payload

from jaxrec.serving.http import routes
from jaxrec.serving.http.schemas import RecommendationsResponse

PATH = "/users/ned/recommendations"
QUERIES = ({}, {"k": 3, "where": "price < 30"}, {"k": 2, "target": "brand"}, {"context": "buy"})


@pytest.fixture
def without_direct_answers(monkeypatch):
    """FastAPI reads all requests."""
    monkeypatch.delattr(routes.record, "answer")
    monkeypatch.delattr(routes.recommend, "answer")


@pytest.fixture
def without_fastapi(monkeypatch):
    """FastAPI reads no request."""

    async def fail(*_):
        raise AssertionError("FastAPI was asked")

    monkeypatch.setattr(APIRoute, "handle", fail)


def answers(client):
    lists = [client.get(PATH, params=query) for query in QUERIES]
    return [(answer.json(), answer.headers) for answer in lists]


def test_well_formed_requests_do_without_fastapi(client, without_fastapi):
    one, two = payload("ned", 0), payload("ned", 1)
    assert client.post("/events", json=one).json() == {"outcomes": ["accepted"]}
    assert client.post("/events", json=[one, two]).json() == {"outcomes": ["duplicate", "accepted"]}
    for answer, _ in answers(client):
        assert RecommendationsResponse.model_validate(answer, strict=True, extra="forbid")
    assert client.get(PATH, params={"k": 3, "unknown": 1}).status_code == 200


def test_lists_are_the_same_without_direct_answers(client, monkeypatch, request):
    client.post("/events", json=[payload("ned", n) for n in range(3)])
    direct = answers(client)
    request.getfixturevalue("without_direct_answers")
    assert answers(client) == direct


@pytest.mark.parametrize(
    ("method", "path", "arguments"),
    [
        ("POST", "/events", {"content": b'{"user_id": "ned"'}),
        ("POST", "/events", {"content": b""}),
        ("POST", "/events", {"json": {"user_id": "ned"}}),
        ("POST", "/events", {"json": [payload("ned", 5), {"user_id": "a\nb"}]}),
        ("POST", "/events", {"content": '{"user_id": "\\ud800", "item_id": "i"}'}),
        ("POST", "/events", {"content": "{}", "headers": {"Content-Type": "text/plain"}}),
        ("PUT", "/events", {"json": payload("ned", 5)}),
        ("GET", PATH, {"params": {"k": "many"}}),
        ("GET", PATH, {"params": {"k": ""}}),
        ("GET", PATH, {"params": {"k": 0, "where": "x" * 5000}}),
        ("GET", "/users/a%0Ab/recommendations", {}),
    ],
)
def test_other_requests_are_refused_as_without_direct_answers(
    client, request, method, path, arguments
):
    direct = client.request(method, path, **arguments)
    request.getfixturevalue("without_direct_answers")
    expected = client.request(method, path, **arguments)
    assert direct.status_code >= 400
    assert (direct.status_code, direct.content) == (expected.status_code, expected.content)


def test_unusual_requests_reach_fastapi_with_their_bodies(client):
    """Such as JSON in UTF-16, and a content type with parameters."""
    body = '{"user_id": "ned", "item_id": "i01", "event": "view", "event_id": "unusual"}'
    for content, kind in (
        (body.encode("utf-16"), "application/json"),
        (body.encode(), "application/json; charset=utf-8"),
    ):
        answer = client.post("/events", content=content, headers={"Content-Type": kind})
        assert answer.status_code == 200
    assert answer.json() == {"outcomes": ["duplicate"]}
