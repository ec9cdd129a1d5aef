"""
Server-Sent Events and long-poll: the contract of all subscribers, and what is these transports'
own.
"""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.http.connection import Connection
from asyncplumber.testing import parse_responses
from asyncplumber.transports.connected_clients import HEARTBEAT
from asyncplumber.transports.long_poll import MAX_RESPONSE_BYTES
from asyncplumber.transports.stream import CLOSE_TIMEOUT
from harness.http_text import EVENT_STREAM
from harness.memory_subscribers import MemoryEventSource
from tests.subscribers import ServerCase


class EventStreamTests(ServerCase, SynchronousTestCase):
    """Server-Sent Events."""

    exchange_type: type = Connection

    def test_the_head_forbids_proxies_to_buffer(self) -> None:
        """Neither caches nor buffers; and the browser is told how soon to come back."""
        source = MemoryEventSource(self.server)
        self.assertTrue(source.head.startswith(b"HTTP/1.1 200 OK\r\n"))
        for line in (
            b"Content-Type: text/event-stream",
            b"Cache-Control: no-store, no-transform",
            b"X-Accel-Buffering: no",
        ):
            self.assertIn(line, source.head.split(b"\r\n"))
        self.assertTrue(source.body().startswith(b"retry: 3000\n\n"))

    def test_a_record_has_id_type_and_envelope(self) -> None:
        """The type is the record's, the cursor its id, and the data one line of JSON."""
        source = MemoryEventSource(self.server)
        source.events()
        self.server.post("a", b"1", ("Event-Type", "progress"))
        heard = source.body()
        self.assertRegex(heard, rb"\Aid: [0-9a-z]+\.1\nevent: progress\ndata: \{.*\}\n\n\Z")

    def test_the_cursor_comes_first(self) -> None:
        """A client whose connection is lost at once can resume."""
        (opened,) = MemoryEventSource(self.server).events()
        self.assertEqual(opened["event"], "plumber.open")
        self.assertRegex(opened["id"], r"^[0-9a-z]+\.0$")

    def test_the_header_counts_more_than_the_query(self) -> None:
        """The query is that of the page's first connection."""
        self.post(1, 2)
        epoch = (
            MemoryEventSource(self.server, after="earliest").events()[-1]["id"].partition(".")[0]
        )
        source = MemoryEventSource(self.server, f"a?last_event_id={epoch}.0", f"{epoch}.1")
        self.assertEqual(self.data(source), [2])
        for name in ("lastEventId", "last_event_id", "lastEventID", "after"):
            self.assertEqual(
                self.data(MemoryEventSource(self.server, f"a?{name}={epoch}.1")), [2], name
            )

    def test_a_polyfill_resumes_by_its_own_parameter(self) -> None:
        """
        event-source-polyfill adds ``lastEventId`` to the URL of the page, whose ``after`` is of the
        first connection.
        """
        self.post(1, 2, 3)
        epoch = (
            MemoryEventSource(self.server, after="earliest").events()[-1]["id"].partition(".")[0]
        )
        self.assertEqual(
            self.data(MemoryEventSource(self.server, f"a?after=earliest&lastEventId={epoch}.2")),
            [3],
        )

    def test_an_empty_cursor_is_no_cursor(self) -> None:
        """In the header as in the query: the next place counts."""
        self.post(1, 2)
        self.assertEqual(
            self.data(MemoryEventSource(self.server, "a?after=earliest", "", "Last-Event-ID:")),
            [1, 2],
        )
        self.assertEqual(
            self.data(MemoryEventSource(self.server, "a?lastEventId=&after=earliest")), [1, 2]
        )

    def test_a_heartbeat_is_a_comment(self) -> None:
        """It is no event."""
        source = MemoryEventSource(self.server)
        source.events()
        self.server.advance(HEARTBEAT + 1)
        self.assertEqual(source.body(), b":\n\n")

    def test_http_1_0_is_served(self) -> None:
        """Without chunks: the end of the connection ends the response."""
        source = MemoryEventSource(self.server, version="1.0")
        self.post(1)
        self.assertEqual(self.data(source), [1])
        self.assertNotIn(b"chunked", source.head)

    def test_named_origins_can_read_it(self) -> None:
        """The head says so."""
        self.server = self.make_server(plumber={"origins": ["https://app.example"]})
        source = MemoryEventSource(self.server, "a", "", "Origin: https://app.example")
        self.assertIn(b"Access-Control-Allow-Origin: https://app.example", source.head)

    def test_an_earlier_response_is_not_overtaken(self) -> None:
        """A stream that is requested after a POST begins after its receipt."""
        client = self.server.connect()
        posted = b"POST /hooks/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\n1"
        client.send(
            posted
            + b"GET /events/a HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n"
        )
        receipt, _, stream = client.received().partition(b"}\n")
        self.assertTrue(receipt.startswith(b"HTTP/1.1 202"))
        self.assertTrue(stream.startswith(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream"))

    def test_a_planned_close_says_when_to_reconnect(self) -> None:
        """In ``plumber.bye`` and in ``retry``, which browsers heed; then the connection closes."""
        source = MemoryEventSource(self.server)
        source.events()
        stopped = self.server.stop()
        self.server.advance(1)
        self.successResultOf(stopped)
        (bye,) = source.events()
        wait = json.loads(bye["data"])["data"]["reconnect_after"]
        self.assertEqual((bye["event"], int(bye["retry"])), ("plumber.bye", int(1000 * wait)))
        self.assertIs(source.client.ended, ConnectionDone)

    def test_the_end_of_a_stream_is_no_clean_end(self) -> None:
        """
        No last chunk is sent: clients that take a clean end for the end of everything
        (fetch-event-source) come back.
        """
        drained, slow = MemoryEventSource(self.server), MemoryEventSource(self.server)
        self.assertIn(b"Transfer-Encoding: chunked", drained.head.split(b"\r\n"))
        self.assertNotIn(
            b"Connection: close", drained.head
        )  # after it Node takes any end for a clean one
        slow.events()
        slow.client.reading = False
        self.post(*["x" * 100_000] * 12)
        slow.client.resume_reading()
        drained.events()
        stopped = self.server.stop()
        self.server.advance(CLOSE_TIMEOUT + 1)
        self.successResultOf(stopped)
        self.assertEqual(drained.events()[-1]["event"], "plumber.bye")
        for source in (drained, slow):
            source.events()
            self.assertIsNotNone(source.client.ended)
            self.assertNotIn(b"\r\n0\r\n\r\n", source.client.value())

    def test_a_slow_reader_is_dropped_and_others_do_not_notice(self) -> None:
        """
        Its last words are whole records; it comes back with its cursor and has missed nothing.
        """
        self.server = self.make_server(plumber={"unsent_limit": 10_000})
        slow, quick = MemoryEventSource(self.server), MemoryEventSource(self.server)
        slow.events()
        slow.client.reading = False
        self.post(*["x" * 1000] * 30)
        self.assertEqual(len(self.data(quick)), 30)
        self.assertEqual(self.server.plumber.hub.count("a"), 1)
        got = len(self.data(slow))
        self.assertLess(0, got)
        self.server.advance(CLOSE_TIMEOUT + 1)
        self.assertIs(slow.client.ended, ConnectionAborted)
        self.assertEqual(
            got + len(self.data(MemoryEventSource(self.server, after=slow.cursor))), 30
        )

    def test_a_connection_that_cannot_be_taken_over_leaves_nothing(self) -> None:
        """The client is told that something went wrong here, and is no subscriber."""
        client = self.server.connect()

        def detach(exchange: object, protocol: object) -> None:
            raise RuntimeError("no")

        self.patch(self.exchange_type, "detach", detach)
        client.send(EVENT_STREAM)
        self.assertEqual(parse_responses(client.received())[0].status, 500)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        hub, clients = self.server.plumber.hub, self.server.clients
        self.assertEqual((hub.subscribers, len(clients)), (0, 0))


class LongPollTests(ServerCase, SynchronousTestCase):
    """Long-poll."""

    def get(self, query: str) -> dict[str, Any]:
        """Return the result of a poll that does not wait."""
        reply = self.server.request("GET", f"/events/a?{query}")
        self.assertEqual(reply.headers[b"cache-control"], b"no-store")
        answer: dict[str, Any] = json.loads(reply.body)
        return answer

    def test_the_response_is_empty_after_the_wait(self) -> None:
        """Not before, and not much later; it has the cursor."""
        client = self.server.connect()
        client.send(b"GET /events/a?wait=3 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        self.server.advance(2.5)
        self.assertEqual(client.received(), b"")
        self.server.advance(1)
        answer = json.loads(parse_responses(client.received())[0].body)
        self.assertEqual((answer["events"], answer["cursor"][-2:]), ([], ".0"))

    def test_a_poll_that_does_not_wait_is_answered_at_once(self) -> None:
        """With the events there are, or with none."""
        cursor = self.get("wait=0")["cursor"]
        self.post(1)
        self.assertEqual(
            [event["data"] for event in self.get(f"wait=0&after={cursor}")["events"]], [1]
        )
        self.assertEqual(self.get("wait=0")["events"], [])

    def test_an_event_ends_the_wait(self) -> None:
        """The connection stays open for the next request."""
        client = self.server.connect()
        for turn in range(3):
            client.send(b"GET /events/a HTTP/1.1\r\nHost: localhost\r\n\r\n")
            self.assertEqual(client.received(), b"")
            self.post(turn)
            self.assertEqual(
                json.loads(parse_responses(client.received())[0].body)["events"][0]["data"], turn
            )

    def test_one_response_is_bounded(self) -> None:
        """The rest comes with the next poll; an event that is larger than the bound comes alone."""
        sizes = [MAX_RESPONSE_BYTES // 3] * 4 + [MAX_RESPONSE_BYTES * 9 // 10]
        self.server = self.make_server(body_limit=2 * MAX_RESPONSE_BYTES)
        for size in (*sizes, MAX_RESPONSE_BYTES + 1000, 1):
            self.server.post("a", b'"%b"' % (b"x" * size))
        cursor, counts = "earliest", []
        while events := (answer := self.get(f"wait=0&after={cursor}"))["events"]:
            counts.append(len(events))
            cursor = answer["cursor"]
        self.assertEqual(counts, [2, 2, 1, 1, 1])
