"""Sends random requests to a service in this process: send_requests.py RUN SEED COUNT FILE.

Requests go in groups, as a batch may compute them together. Each group holds one good request.
Printed are the answers by status. The process fails at the first answer that should not be; the
file holds the last group.
"""

import asyncio
import json
import sys
import time
from collections import Counter
from functools import partialmethod
from pathlib import Path
from random import Random
from urllib.parse import unquote

from helpers.fuzzing import SLOW, ends_a_hang
from helpers.requests import HTTPRequest, request
from jaxrec.serving.http.app import create_app
from jaxrec.serving.live.engine import LiveEngine
from jaxrec.serving.options import LiveOptions

GROUP = 8
GOOD = HTTPRequest("GET", b"/users/good/recommendations", b"k=5", [], None)
REASONS = (503, 507)  # server errors that say why


async def answer(app, sent: HTTPRequest) -> tuple[int, bytes]:
    """Status and content, as an ASGI server would hand the request over."""
    messages = [{"type": "http.request", "body": sent.body or b"", "more_body": False}]
    status, content = 0, b""

    async def receive():
        return messages.pop() if messages else await asyncio.Event().wait()

    async def send(message):
        nonlocal status, content
        status = message.get("status", status)
        content += message.get("body", b"")

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": sent.method,
        "scheme": "http",
        "path": unquote(sent.path.decode("ascii")),
        "raw_path": sent.path,
        "query_string": sent.query,
        "root_path": "",
        "headers": sent.headers,
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8080),
    }
    await app(scope, receive, send)
    return status, content


def check(sent: HTTPRequest, status: int, content: bytes) -> None:
    """Raise an AssertionError for an answer that blames the server without a reason."""
    is_fine = 200 <= status < 500 or (status in REASONS and json.loads(content)["detail"])
    assert is_fine, (status, content[:1000], sent)
    assert sent is not GOOD or (status == 200 and json.loads(content)["items"]), (status, content)


async def send_all(app, seed: int, count: int, last: Path) -> Counter:
    """Send `count` requests with bodies, and others between them; return answers by status."""
    random, statuses, bodies = Random(seed), Counter(), 0
    while bodies < count:
        group = [request(random) for _ in range(GROUP - 1)]
        bodies += sum(sent.body is not None for sent in group)
        group.append(GOOD)
        last.write_text("\n".join(f"{sent!r:.9000}" for sent in group))
        start = time.perf_counter()
        with ends_a_hang():
            answers = await asyncio.gather(*(answer(app, sent) for sent in group))
        if time.perf_counter() - start > SLOW:
            await check_time(app, group)
        for sent, (status, content) in zip(group, answers, strict=True):
            check(sent, status, content)
            statuses[f"{sent.method} {status}"] += 1
    return statuses


async def check_time(app, group: list[HTTPRequest]) -> None:
    """Raise a TimeoutError for a request that is slow each time."""
    for sent in group:
        seconds = []
        for _ in range(3):
            start = time.perf_counter()
            await answer(app, sent)
            seconds.append(time.perf_counter() - start)
        if min(seconds) > SLOW:
            raise TimeoutError(f"{seconds} s for {sent!r:.5000}")


async def main() -> None:
    """Run the service and the requests."""
    LiveEngine.warm_up = partialmethod(LiveEngine.warm_up, (1, 8))
    options = LiveOptions(store=":memory:", keep_items=200, list_timeout=60, example_users=True)
    app = create_app(Path(sys.argv[1]), options, load_first=True)
    async with app.router.lifespan_context(app):
        statuses = await send_all(app, int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
        healthy, _ = await answer(app, GOOD._replace(path=b"/health/ready", query=b""))
        assert healthy == 200
    print(json.dumps(statuses, sort_keys=True))


if __name__ == "__main__":
    asyncio.run(main())
