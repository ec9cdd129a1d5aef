"""Large bodies have a bound in all, whatever they wait for, and their memory is given back."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.http.bodies import LARGE, QUIET, WORTH_RETURNING, Bodies
from asyncplumber.interfaces import Appended
from asyncplumber.stores.memory import MemoryStore
from asyncplumber.stores.retention import Retention
from asyncplumber.testing import MemoryClient, MemoryServer, parse_responses
from harness.http_text import post

LIMIT = 4 * LARGE


class LimitTests(SynchronousTestCase):
    """A server with room for four bodies of 64 KiB, whose store hangs when a test says so."""

    def setUp(self) -> None:
        self.appends: list[Deferred[Any]] = []
        self.hangs = False
        self.server = MemoryServer(store=self.make_store, body_limit=2 * LIMIT, bodies_limit=LIMIT)
        self.bodies = self.server.listener.bodies

    def make_store(self, clock: Any) -> MemoryStore:
        store = MemoryStore(Retention(), clock)
        append = store.append

        def perhaps(drafts: Any) -> Deferred[Any]:
            if not self.hangs:
                return append(drafts)
            self.appends.append(Deferred())
            return self.appends[-1]

        self.patch(store, "append", perhaps)
        return store

    def sent(self, data: bytes) -> MemoryClient:
        client = self.server.connect()
        client.send(data)
        return client

    def statuses(self, client: MemoryClient) -> list[int]:
        return [reply.status for reply in parse_responses(client.received())]

    def test_a_body_counts_while_it_is_received(self) -> None:
        """At the limit it is accepted; one byte more is 429.  A small body is always accepted."""
        whole = post(b"x" * (2 * LARGE))
        first = self.sent(whole[:-1])
        second = self.sent(whole[:-1])
        self.assertEqual(self.bodies.held, LIMIT - 2)
        first.send(whole[-1:])
        self.assertEqual(self.statuses(first), [202])
        self.assertEqual(self.bodies.held, 2 * LARGE - 1)
        third = self.sent(whole[:-1])
        second.send(b"xx")  # what is after the body is not of it
        self.assertEqual(self.statuses(second)[:1], [202])
        fourth, fifth = self.sent(whole[:-1]), self.sent(post(b"x" * (2 * LARGE)))
        [reply] = parse_responses(fifth.received())
        self.assertEqual((reply.status, reply.headers[b"retry-after"]), (429, b"1"))
        self.assertEqual(self.statuses(self.sent(post(b"x" * LARGE))), [202])
        for client in (third, fourth):
            client.disconnect()
        self.server.settle()
        self.assertEqual(self.bodies.held, 0)

    def test_a_body_counts_until_its_request_is_answered(self) -> None:
        """A store that hangs does not make memory grow."""
        self.hangs = True
        waiting = [self.sent(post(b"x" * (2 * LARGE))) for _ in range(2)]
        self.assertEqual(self.bodies.held, LIMIT)
        self.assertEqual(self.statuses(self.sent(post(b"x" * (LARGE + 1)))), [429])
        self.server.advance(5)
        self.assertEqual([self.statuses(client) for client in waiting], [[503], [503]])
        self.assertEqual(self.bodies.held, 0)
        self.hangs = False
        for append in self.appends:
            append.callback(Appended([], None))
        self.server.settle()
        self.assertEqual(self.statuses(self.sent(post(b"x" * (LARGE + 1)))), [202])

    def test_a_single_body_may_exceed_the_limit(self) -> None:
        """Its own limit is another one."""
        self.assertEqual(self.statuses(self.sent(post(b"x" * (2 * LIMIT)))), [202])
        self.assertEqual(self.statuses(self.sent(post(b"x" * (2 * LIMIT + 1)))), [413])
        self.assertEqual(self.bodies.held, 0)

    def test_chunks_count_as_they_come(self) -> None:
        """Their length need not be announced."""
        head = b"POST /hooks/a HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        chunk = b"%x\r\n%b\r\n" % (LARGE, b"x" * LARGE)
        other = self.sent(head + chunk * 2)
        client = self.sent(head + chunk)
        self.assertEqual(self.bodies.held, 2 * LARGE)
        client.send(chunk)
        self.assertEqual(self.bodies.held, LIMIT)
        client.send(chunk)
        self.assertEqual(self.statuses(client), [429])
        self.assertEqual(self.bodies.held, 2 * LARGE)
        other.send(b"0\r\n\r\n")
        self.assertEqual((self.statuses(other), self.bodies.held), ([202], 0))

    def test_a_body_that_came_in_pieces_is_whole(self) -> None:
        """In two, in three, and byte by byte."""
        body = bytes(range(32, 127)) * 3
        for step in (len(body) - 1, 100, 1):
            client = self.sent(post(body)[: -len(body)])
            for start in range(0, len(body), step):
                client.send(body[start : start + step])
            self.assertEqual(self.statuses(client), [202])
        history = self.server.plumber.store.history
        position = self.successResultOf(history.ensure("a"))
        events = self.successResultOf(history.read("a", position.cursor._replace(seq=0), None, 10))
        self.assertEqual(len({event.payload for event in events}), 1)


class GiveBackTests(SynchronousTestCase):
    """When freed memory goes back to the operating system."""

    def test_memory_is_returned_some_seconds_after_much_was_held(self) -> None:
        """Not while a body is held, not after little, and only once."""
        given: list[int] = []
        bodies = Bodies(10 * WORTH_RETURNING, return_memory=lambda: given.append(1))
        for _ in range(2 * QUIET):
            bodies.tick()
        bodies.has_room(WORTH_RETURNING, WORTH_RETURNING)
        bodies.release(WORTH_RETURNING)
        for _ in range(2 * QUIET):
            bodies.tick()
        self.assertEqual(given, [])
        bodies.has_room(WORTH_RETURNING + 1, WORTH_RETURNING + 1)
        for _ in range(2 * QUIET):
            bodies.tick()
        self.assertEqual(given, [])
        bodies.release(WORTH_RETURNING + 1)
        for _ in range(QUIET - 1):
            bodies.tick()
        self.assertEqual(given, [])
        for _ in range(2 * QUIET):
            bodies.tick()
        self.assertEqual(given, [1])
