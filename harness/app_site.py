"""The site of an application: pages on an origin of their own, and tokens for their scripts."""

from __future__ import annotations

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class AppSite(ThreadingHTTPServer):
    """
    Serves a page at ``/``, and a new token at a path of its own.

    Attributes:
        mint: Makes a token.  A test may replace it.
        path: Where tokens are.
        minted: How many were given out.
        cookie: The value of ``Set-Cookie`` of each response; None for no such header.
        page: The text of the page.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, mint: Callable[[], str], path: str = "/token") -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.mint = mint
        self.path = path
        self.minted = 0
        self.cookie: str | None = None
        self.page = "<!doctype html><title>an application</title><p id=shown></p>"
        self.port = int(self.server_address[1])
        #: Its origin.  Chromium resolves all names below ``localhost`` to this machine.
        self.origin = f"http://app.localhost:{self.port}"
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        """Accept no more connections."""
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: AppSite
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        kind, text = "text/html; charset=utf-8", self.server.page
        if self.path == self.server.path:
            self.server.minted += 1
            kind, text = "text/plain", self.server.mint()
        body = text.encode()
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if self.server.cookie is not None:
            self.send_header("Set-Cookie", self.server.cookie)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        """Log nothing."""
