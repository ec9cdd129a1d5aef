"""What clients are told while the store is away, or when the fault is ours."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.errors import Unavailable
from asyncplumber.stores.memory import MemoryStore
from asyncplumber.stores.retention import Retention
from asyncplumber.testing import MemoryServer
from harness.http_text import GET, error_code, post


class Broken:
    """A store whose history fails with an error."""

    shared = False

    def __init__(self, error: Exception) -> None:
        working = MemoryStore(Retention(), Clock())
        self.registry, self.start, self.stop = working.registry, working.start, working.stop
        self.history: Any = self
        self.size = working.history.size
        self.tasks, self.callback_urls = working.tasks, working.callback_urls
        self._error = error
        self.clock: Any = None

    def refuse(self, *words: Any) -> Deferred[Any]:
        """Fail in the next turn, whatever is asked."""
        refused: Deferred[Any] = Deferred()
        self.clock.callLater(0, refused.errback, self._error)
        return refused

    append = ensure = heads = read = sweep = ping = refuse


class OutageTests(SynchronousTestCase):
    """When the store is away, or we are at fault."""

    def broken(self, error: Exception) -> MemoryServer:
        """A server with such a store."""
        store = Broken(error)
        server = MemoryServer(store=store)  # type: ignore[arg-type]
        store.clock = server.clock
        return server

    def test_clients_are_told_to_come_back(self) -> None:
        """503 with Retry-After: POSTs, subscribers of each kind, and readiness."""
        server = self.broken(Unavailable())
        handshake = [
            ("Connection", "Upgrade"),
            ("Upgrade", "websocket"),
            ("Sec-WebSocket-Version", "13"),
        ]
        handshake.append(("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="))
        for reply in (
            server.post("a", b"1"),
            server.request("POST", "/hooks", body=b'{"keys":{"account_id":1},"data":2}'),
            server.request("GET", "/events/a"),
            server.request("GET", "/events/a", [("Accept", "text/event-stream")]),
            server.request("GET", "/events/a", handshake),
            server.request("GET", "/accounts/a"),
            server.request("GET", "/readyz"),
        ):
            self.assertEqual(error_code(reply), (503, "unavailable"))
            self.assertEqual(reply.headers[b"retry-after"], b"2")
        self.assertEqual(server.request("GET", "/healthz").status, 200)

    def test_a_bug_of_ours_is_logged_and_not_told(self) -> None:
        """500 for the client, the reason for the log; the connection lives on."""
        server = self.broken(RuntimeError("the password is 1234"))
        for request in (
            post(b"1"),
            GET.replace(b"healthz", b"events/a"),
            GET.replace(b"healthz", b"accounts/a"),
        ):
            found = server.exchange(request + GET)
            self.assertEqual([error_code(found[0]), found[1].status], [(500, "internal"), 200])
            self.assertNotIn(b"1234", found[0].body)
            self.assertEqual(
                [str(failure.value) for failure in self.flushLoggedErrors(RuntimeError)],
                ["the password is 1234"],
            )
