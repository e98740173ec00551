"""The address, and clients that never finish a request, against a real server."""

import signal
import socket
import sys
import time

import pytest
import uvicorn
from helpers.servers import Service, payload
from uvicorn.config import STARTUP_FAILURE

from jaxrec.errors import ConfigError
from jaxrec.serving.http import listen
from jaxrec.serving.options import LiveOptions


@pytest.mark.parametrize("address", ["8080", "host:", ":http", ":99999"])
def test_invalid_addresses_are_refused(address):
    with pytest.raises(ConfigError, match="HOST:PORT"):
        listen.parse_address(LiveOptions(http=address))


def test_other_machines_come_in_with_a_key_or_where_the_service_is_open(monkeypatch, capsys):
    monkeypatch.delenv("JAXREC_API_KEY", raising=False)
    assert listen.parse_address(LiveOptions(http=":8080")) == ("127.0.0.1", 8080)
    assert "this machine only" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="without a key"):
        listen.parse_address(LiveOptions(http="0.0.0.0:8080"))
    assert listen.parse_address(LiveOptions(http="[::1]:80")) == ("::1", 80)
    for options in ({"api_key": "a"}, {"read_key": "b"}, {"open": True}):
        assert listen.parse_address(LiveOptions(http=":8080", **options)) == ("0.0.0.0", 8080)
    monkeypatch.setenv("JAXREC_WRITE_KEY", "c")
    assert listen.parse_address(LiveOptions(http="shop:8080")) == ("shop", 8080)


def test_an_address_that_cannot_be_used_stops_the_service_at_once(serve, refused):
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        assert f"--http {address}: Address already in use. Name another" in refused(
            serve, "--http", address
        )
        assert "already in use" in refused(serve, "--http", address, "--workers", 2)
    assert "--http nowhere.invalid:80: " in refused(serve, "--http", "nowhere.invalid:80", "--open")


def test_a_server_that_cannot_start_after_all_exits_with_1(monkeypatch, trained_run):
    monkeypatch.setattr(uvicorn.Server, "run", lambda _: sys.exit(STARTUP_FAILURE))
    with pytest.raises(SystemExit) as stop:
        listen.listen(trained_run, LiveOptions(http="127.0.0.1:0", store=":memory:"), ())
    assert stop.value.code == 1


@pytest.mark.slow
def test_unfinished_requests_are_closed_and_do_not_hold_up_the_end(trained_run, tmp_path):
    server = Service(trained_run, tmp_path / "store.db")
    host, port = server.client.base_url.host, server.client.base_url.port
    beginnings = {
        "nothing": b"",
        "headers": b"GET /health/live HTTP/1.1\r\nHost: x\r\n",
        "a second request": b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\nGET /he",
        "body": b"POST /events HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: 1000\r\n\r\n[",
    }
    connections = {name: socket.create_connection((host, port), 30) for name in beginnings}
    for name, connection in connections.items():
        connection.sendall(beginnings[name])
    answers = {}
    for name, connection in connections.items():
        with connection:
            answers[name] = b"".join(iter(lambda: connection.recv(65_536), b""))  # noqa: B023
    assert answers["nothing"] == answers["headers"] == b""
    assert answers["a second request"].startswith(b"HTTP/1.1 200 OK")
    assert b" 408 " in answers["body"]
    assert server.client.post("/events", json=payload("u", 0)).status_code == 200
    with socket.create_connection((host, port), 30) as late:
        late.sendall(beginnings["body"])
        time.sleep(0.5)  # the server reads the beginning
        assert server.stop() == 128 + signal.SIGTERM
