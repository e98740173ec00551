"""Requests that are answered together."""

import asyncio
import threading

from helpers.servers import payload

from jaxrec.serving.http import batching
from jaxrec.serving.http.metrics import Metrics


class PanicError(BaseException):
    """What a Rust library may raise."""


def test_a_bad_request_does_not_affect_others_of_its_batch(client):
    status_codes = {}

    def ask(name, where):
        params = {"where": where, "k": 3}
        status_codes[name] = client.get("/users/eve/recommendations", params=params).status_code

    threads = [
        threading.Thread(target=ask, args=(n, "price < 30" if n % 2 else "bad ( condition"))
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert status_codes == {n: 200 if n % 2 else 422 for n in range(8)}


def test_requests_beyond_the_queue_limit_are_refused(client, monkeypatch):
    monkeypatch.setattr(batching, "MAX_WAITING", 0)
    response = client.post("/events", json=payload("eve", 0))
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")


def test_requests_that_arrive_meanwhile_are_computed_together():
    batches, begun, released = [], threading.Event(), threading.Event()

    def process(requests):
        batches.append(requests)
        begun.set()
        released.wait(60)
        if 9 in requests:
            raise PanicError
        return [ValueError("odd") if request == 3 else 2 * request for request in requests]

    async def send():
        first = asyncio.create_task(batcher.submit(1))
        await asyncio.to_thread(begun.wait, 60)
        others = [asyncio.create_task(batcher.submit(n)) for n in (2, 3, 4, 5)]
        await asyncio.sleep(0)
        others[2].cancel()  # nobody waits for it any more
        await asyncio.sleep(0)
        released.set()
        results = await asyncio.gather(first, *others, return_exceptions=True)
        panic = await asyncio.gather(batcher.submit(9), return_exceptions=True)
        batcher.close()
        return results, panic

    metrics = Metrics()
    batcher = batching.RequestBatcher(
        "test", process, 8, metrics.batch_size, metrics.total("waiting", "")
    )
    results, [panic] = asyncio.run(send())
    assert [results[0], results[1], results[4]] == [2, 4, 10]
    assert isinstance(results[2], ValueError)
    assert isinstance(results[3], asyncio.CancelledError)
    assert isinstance(panic, RuntimeError)
    assert batches == [[1], [2, 3, 5], [9]]
    assert not batcher.thread.is_alive()
