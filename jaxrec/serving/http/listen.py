"""Listens on an address: uvicorn with limits on connections and on the time of their headers."""

import asyncio
import errno
import socket
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.config import STARTUP_FAILURE
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from jaxrec.errors import ConfigError
from jaxrec.ranking.context import Step
from jaxrec.serving.console import note
from jaxrec.serving.http.app import create_app
from jaxrec.serving.http.workers import supervise, worker_app
from jaxrec.serving.options import LiveOptions

HEADER_SECONDS = 10.0  # to receive the headers of a request, from the first byte or connection
KEEP_ALIVE_SECONDS = 65  # longer than a proxy's, so that the proxy closes first
SHUTDOWN_SECONDS = 10  # to answer the requests already received
WORKER_SECONDS = 120  # for a worker to import the libraries and, when it replaces one, to load
MAX_CONNECTIONS = 2048  # of one process
LOOPBACK = ("localhost", "127.0.0.1", "::1", "[::1]")


class HeaderTimeout(HttpToolsProtocol):
    """Closes a connection whose request headers are not complete in time."""

    timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Start the clock of the first request."""
        super().connection_made(transport)
        self._start_clock()

    def on_message_begin(self) -> None:
        """Start the clock of a further request."""
        if self.timer is None:
            self._start_clock()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Stop the clock."""
        self._stop_clock()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self._stop_clock()
        super().connection_lost(exc)

    def _start_clock(self) -> None:
        self.timer = self.loop.call_later(HEADER_SECONDS, self.transport.close)

    def _stop_clock(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


def parse_address(options: LiveOptions) -> tuple[str, int]:
    """Host and port to listen on.

    Without a key, other machines are let in only where `options.open` says so.

    Raises:
        ConfigError: the address is not HOST:PORT, or it is open to other machines without a key.
    """
    host, separator, port = options.http.rpartition(":")
    if not separator or not port.isdigit() or int(port) > 65_535:
        raise ConfigError(f"--http {options.http}: write HOST:PORT, such as :8080")
    guarded = options.has_keys or options.open
    if not host:
        if not guarded:
            note("without a key the service listens on this machine only; set a key, or --open")
        return ("0.0.0.0" if guarded else "127.0.0.1"), int(port)
    if host not in LOOPBACK and not guarded:
        raise ConfigError(
            f"--http {options.http} lets other machines in without a key. Set JAXREC_API_KEY, or "
            "say --open"
        )
    return host.strip("[]"), int(port)


def check_address(options: LiveOptions) -> None:
    """Stop a service now that could not listen once it is prepared.

    Raises:
        ConfigError: see `parse_address`; or the address is in use, unknown or not allowed.
    """
    host, port = parse_address(options)
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        tried = [_failure(family, address) for family, *_, address in addresses]
        failures = [error for error in tried if error]
    except OSError as error:  # no address of this name
        addresses, failures = [], [error]
    # a name may also have an address of a kind that this machine lacks
    serious = [error for error in failures if error.errno != errno.EADDRNOTAVAIL]
    if serious or len(failures) == len(addresses):
        reason = (serious or failures)[0].strerror
        raise ConfigError(f"--http {options.http}: {reason}. Name another address or port")


def _failure(family: int, address: Any) -> OSError | None:
    """Why nothing can listen on an address now."""
    try:
        with socket.socket(family, socket.SOCK_STREAM) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as uvicorn does
            tried.bind(address)
    except OSError as error:
        return error
    return None


def listen(run: Path, options: LiveOptions, strategy: Sequence[Step]) -> None:
    """Serve until SIGTERM or SIGINT, then answer the requests already received.

    Raises:
        ConfigError: see `parse_address`.
        Interrupted: a signal has stopped several workers.
        SystemExit: the server or a worker cannot start; the log says why.
    """
    try:
        if options.workers > 1:
            supervise(server_config(partial(worker_app, run, options, strategy), options))
        else:
            uvicorn.Server(server_config(create_app(run, options, strategy), options)).run()
    except SystemExit as stop:
        if stop.code == STARTUP_FAILURE:  # 3, which means a warning on our command line
            sys.exit(1)
        raise


def server_config(app: FastAPI | Callable[[], FastAPI], options: LiveOptions) -> uvicorn.Config:
    """How to listen.

    Args:
        app: the application, or a function that makes it in the process that answers.
    """
    host, port = parse_address(options)
    return uvicorn.Config(
        app,
        factory=not isinstance(app, FastAPI),
        workers=options.workers,
        timeout_worker_healthcheck=WORKER_SECONDS,
        host=host,
        port=port,
        http=HeaderTimeout,
        ws="none",
        access_log=False,
        server_header=False,
        proxy_headers=bool(options.trusted_proxies),
        forwarded_allow_ips=list(options.trusted_proxies),
        limit_concurrency=MAX_CONNECTIONS,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
