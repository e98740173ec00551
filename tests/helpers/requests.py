"""Random HTTP requests to the service: most are almost valid, many hold what nobody should send."""

import json
from copy import deepcopy
from typing import NamedTuple
from urllib.parse import quote

from helpers.conditions import condition
from helpers.fuzzing import mutated

RAW = {  # texts that stand for what `json` does not write
    "@huge": "1e999",
    "@digits": "9" * 5000,
    "@deep": "[" * 5000 + "]" * 5000,
    "@deep object": '{"a":' * 3000 + "1" + "}" * 3000,
    "@same key": '{"price": 1, "price": "2", "price": null}',
}
NUMBERS = [0, -1, 1.5, -0.0, 1e308, 5e-324, float("nan"), float("inf"), 2**31, 2**33, 2**63, 2**64]
TEXTS = ["", " ", "\0", "a\nb", "\ud800", "\udc00\ud800", "..", ".", "/", "x" * 257, "x" * 30_000]
TEXTS += ["é" * 256, "\u202eabc", "\u2028", "'; DROP TABLE shoppers; --", "<script>", "%00", "💥"]
MOMENTS = ["9999-12-31T23:59:59Z", "0001-01-01T00:00:00+23:59", "2024-02-30", "1e3", "2024-01-01T"]
OTHERS = [None, True, False, [], {}, [[]], [None], [{}], {"": 1}, {"a": {"b": [1]}}, ["x"] * 2000]
HOSTILE = [*NUMBERS, *TEXTS, *MOMENTS, *OTHERS, *RAW]
WORDS = ["item", "price", "brand", "user_id", "item_id", "event", "timestamp", "where", "k", "own"]
TYPES = [b"application/json"] * 12 + [b"application/json; charset=utf-16", b"text/plain", b"", b"*"]
EVENT = {"user_id": "u1", "item_id": "i01", "event": "view", "timestamp": 1_704_067_200}
ITEM = {"item_id": "new1", "title": "brand x item", "brand": "brand1", "price": 9.5}
ITEM |= {"category": "Beauty > Shelf 0", "image_url": "https://x/y.jpg", "own": [1, 2.5]}
SEARCH = {"user_id": "u1", "words": "red lipstick", "k": 5, "strength": 0.5, "where": ""}


class HTTPRequest(NamedTuple):
    """What a client sends."""

    method: str
    path: bytes  # percent-encoded
    query: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes | None  # None: a request without a body


def request(random):
    """A random request; four of five have a body."""
    if random.random() < 0.2:
        return without_body(random)
    method, path, content = random.choice(
        [
            ("POST", "/events", [event(random) for _ in range(random.choice([1, 2, 3, 50]))]),
            ("POST", "/events", event(random)),
            ("POST", "/query", {**SEARCH, "where": condition(random)}),
            ("PUT", "/items", [item(random), item(random)]),
            ("PUT", "/items", item(random)),
            ("PATCH", "/items", [item(random), item(random)]),
            ("PATCH", f"/items/{identifier(random)}", item(random)),
        ]
    )
    for _ in range(random.randint(0, 3)):
        content = changed(random, content)
    body = written(random, content)
    if random.random() < 0.3:
        body = mutated(random, body)
    headers = [(b"content-type", random.choice(TYPES)), *headers_of(random)]
    return HTTPRequest(method, path.encode(), b"", headers, body)


def without_body(random):
    """A random request that reads or deletes."""
    user = f"/users/{identifier(random)}"
    method, path = random.choice(
        [
            ("GET", f"{user}/recommendations"),
            ("GET", f"{user}/profile"),
            ("DELETE", user),
            ("GET", "/items"),
            ("GET", f"/items/{identifier(random)}"),
            ("DELETE", f"/items/new{random.randint(0, 30)}"),
            ("GET", "/users"),
            ("GET", "/model"),
            ("GET", "/metrics"),
            ("GET", "/health/ready"),
            ("TRACE", f"/{identifier(random)}"),
        ]
    )
    if random.random() < 0.05:
        method = random.choice(["HEAD", "OPTIONS", "PUT", "PATCH", "POST", "get", "X" * 99])
    values = [1, 10, 64, 65, 0, "many", "brand", "view", "", "nail", *map(str, HOSTILE)]
    names = ["k", "k", "target", "context", "q", "last", "top", "other"]
    pairs = [(random.choice(names), random.choice(values)) for _ in range(random.randint(0, 3))]
    if random.random() < 0.4:
        pairs.append(("where", condition(random)))
    query = "&".join(f"{name}={encoded(value)}" for name, value in pairs).encode()
    if query and random.random() < 0.2:
        query = mutated(random, query)
    return HTTPRequest(method, path.encode(), query, headers_of(random), None)


def event(random):
    own = {"user_id": f"u{random.randint(0, 20)}", "item_id": f"i{random.randint(0, 45):02}"}
    own |= {"event": random.choice(["view", "buy", "dislike", "wish"])}
    own |= {"timestamp": EVENT["timestamp"] + random.randint(0, 10**6)}
    return EVENT | own | ({"event_id": str(random.random())} if random.random() < 0.5 else {})


def item(random):
    return ITEM | {"item_id": f"new{random.randint(0, 30)}", "price": random.random() * 100}


def identifier(random):
    """An id of a path, mostly of a user or item that exists."""
    if random.random() < 0.7:
        return random.choice(["u1", "u2", "i01", "i05", "new1", "new2"])
    others = ["a/b", "a//b", "../../etc/passwd", "u1/profile"]
    text = encoded(random.choice([*TEXTS, *MOMENTS, *others]))
    return text if random.random() < 0.7 else text.replace("%", random.choice(["%", "%%", "%FF%"]))


def encoded(value):
    return quote(str(value).encode(errors="surrogatepass"), safe="")


def headers_of(random):
    """Headers beside the type of the content."""
    given = [
        (b"host", b"localhost"),
        (b"host", b"\xff\x00"),
        (b"x-api-key", b"\xe9\xff"),
        (b"authorization", b"Bearer " + b"x" * 5000),
        (b"content-encoding", b"gzip"),
        (b"content-length", b"-1"),
        (b"accept", b"text/html"),
        (b"x-forwarded-for", b"1.2.3.4, \xff"),
        (b"content-type", b"multipart/form-data; boundary=\xff"),
    ]
    return random.sample(given, random.choice([0, 0, 1, 3]))


def changed(random, content):
    """The content with one hostile value, name or structure in a random place."""
    content = deepcopy(content)
    parent, places = random.choice(list(containers(content)))
    place = random.choice(places) if places else None
    match random.randrange(6):
        case 0 | 1 if place is not None:
            parent[place] = random.choice(HOSTILE)
        case 2 if place is not None:
            del parent[place]
        case 3 if place is not None:
            parent[place] = [parent[place]] * random.choice([1, 2, 300])
        case 4 if isinstance(parent, dict):
            parent[random.choice([*WORDS, *TEXTS])] = random.choice(HOSTILE)
        case 4:
            parent.append(random.choice(HOSTILE))
        case _:
            return random.choice([content, [content], *HOSTILE])
    return content


def containers(content):
    """All lists and objects of a content, each with its places."""
    if isinstance(content, dict | list):
        places = list(content) if isinstance(content, dict) else list(range(len(content)))
        yield content, places
        for place in places:
            yield from containers(content[place])
    else:
        yield [content], [0]


def written(random, content):
    """The content as JSON in some encoding."""
    text = json.dumps(content, ensure_ascii=random.random() < 0.8)
    for name, raw in RAW.items():
        text = text.replace(json.dumps(name), raw)
    if random.random() < 0.05:
        text = text.replace("{", '{"user_id": "u1", "user_id": "u2", "price": 1, ', 1)
    encoding = random.choice(["utf-8"] * 20 + ["utf-8-sig", "utf-16", "utf-32"])
    return text.encode(encoding, errors="surrogatepass")
