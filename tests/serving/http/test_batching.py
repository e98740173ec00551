"""Requests that are answered together."""

import threading

from helpers.servers import payload

from jaxrec.serving.http import batching


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
