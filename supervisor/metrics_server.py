"""Answers Prometheus over HTTP: one request at a time, with one database connection."""

from __future__ import annotations

import errno
import http.server
import logging
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from django.db import connections

logger = logging.getLogger("dbtasks")

Address = tuple[str, int]  # host ("" for all addresses) and port
CLIENT_PATIENCE = 5.0  # seconds for a client to say what it wants
BIND_PATIENCE = 10.0  # seconds; the server from before a reload may still be there


class Handler(http.server.BaseHTTPRequestHandler):
    """GET /metrics."""

    timeout = CLIENT_PATIENCE
    server: Server
    server_version, sys_version = "dbtasks", ""

    def do_GET(self) -> None:
        from dbtasks.metrics import exposition
        from dbtasks.views import TOKEN, has_token, metrics_token

        if self.path.partition("?")[0] != "/metrics":
            return self.answer(404, b"There is only /metrics.\n")
        if metrics_token() and not has_token(self.headers.get("Authorization", "")):
            return self.answer(401, f"The token that is set as {TOKEN} is missing.\n".encode())
        try:
            body, kind = exposition([self.server.backend], self.headers.get("Accept", ""))
        except Exception as error:
            logger.error("metrics cannot be collected", exc_info=error)
            return self.answer(500, b"The metrics cannot be collected; see the log.\n")
        return self.answer(200, body, kind)

    def answer(self, code: int, body: bytes, kind: str = "text/plain; charset=utf-8") -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if code == 401:
            self.send_header("WWW-Authenticate", "Bearer")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        logger.debug("metrics: %s", format % args)


class Server(http.server.HTTPServer):
    """Raises OSError if the address cannot be had."""

    def __init__(self, address: Address, backend: str) -> None:
        self.backend = backend
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is none of our business."""
        logger.debug("metrics: a request failed", exc_info=True)


def bind(address: Address, backend: str, given_up: Callable[[], bool]) -> Server:
    """Waits a while for an address that is in use. Raises OSError."""
    until = time.monotonic() + BIND_PATIENCE
    while True:
        try:
            return Server(address, backend)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() > until or given_up():
                raise
        time.sleep(0.2)


def serve_in_thread(address: Address, backend: str) -> None:
    """For --mode thread: until the process ends."""

    def serve() -> None:
        try:
            server = bind(address, backend, lambda: False)
        except OSError as error:
            logger.error("metrics cannot be served on port %d: %s", address[1], error)
            return
        logger.info("metrics are served on port %d", server.server_port)
        while True:
            server.handle_request()
            connections.close_all()

    threading.Thread(target=serve, name="dbtasks-metrics", daemon=True).start()
