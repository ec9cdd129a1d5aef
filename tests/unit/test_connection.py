"""One HTTP connection: requests are answered as HTTP wants it, in order and within limits."""

from __future__ import annotations

import json

from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.http.connection import LINGER, MAX_BACKLOG
from asyncplumber.testing import MemoryClient, MemoryServer, parse_responses
from harness.http_text import EVENT_STREAM, GET, POLL, error_code, post

ODD_BYTES = b"\x0b\x0c\x1c\x1d\x1e\x85"


class RequestTests(SynchronousTestCase):
    """Well-formed requests."""

    def setUp(self) -> None:
        self.server = MemoryServer(body_limit=1000)

    def test_a_receipt_says_what_became_of_the_event(self) -> None:
        """202 and no subscriber; its id, and the cursor to find it by."""
        reply = self.server.post("a", b"{}", ("Webhook-Id", "e1"))
        receipt = json.loads(reply.body)
        self.assertEqual(reply.status, 202)
        self.assertEqual(reply.headers[b"content-type"], b"application/json")
        self.assertRegex(receipt.pop("cursor"), r"^[0-9a-z]+\.1$")
        expected = {
            "status": "ok",
            "id": "e1",
            "duplicate": False,
            "subscribers": 0,
            "instances": {"ok": 0, "failed": 0},
        }
        self.assertEqual(receipt, expected)

    def test_somebody_got_it(self) -> None:
        """201, and how many."""
        for _ in range(2):
            self.server.connect().send(EVENT_STREAM)
        reply = self.server.post("a", b"{}")
        self.assertEqual((reply.status, json.loads(reply.body)["subscribers"]), (201, 2))

    def test_the_same_id_is_the_same_event(self) -> None:
        """By either header; the second answer is the first one's receipt, marked."""
        for name in ("Webhook-Id", "Idempotency-Key"):
            first, second = [
                json.loads(self.server.post("a", body, (name, name)).body) for body in (b"1", b"2")
            ]
            self.assertEqual({**first, "duplicate": True}, second)

    def test_pipelined_requests_are_answered_in_order(self) -> None:
        """Slow ones and quick ones, errors between them."""
        requests = [
            post(b"1"),
            GET,
            post(b"nope", b"/hooks/a", b"Content-Type: application/json"),
            post(b"3"),
            GET,
        ]
        found = self.server.exchange(b"".join(requests))
        self.assertEqual([reply.status for reply in found], [202, 200, 400, 202, 200])
        self.assertTrue(json.loads(found[3].body)["cursor"].endswith(".2"))

    def test_requests_may_arrive_byte_by_byte(self) -> None:
        """Two of them, with nothing between."""
        client = self.server.connect()
        for byte in post(b'{"n":1}') + GET:
            client.send(bytes([byte]))
        self.assertEqual([reply.status for reply in parse_responses(client.received())], [202, 200])

    def test_thousands_of_pipelined_requests_do_not_nest(self) -> None:
        """Nor do those that ask for HTTP/2."""
        for request in (
            GET,
            GET[:-2] + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
            GET.replace(b"healthz", b"events/%00"),
        ):
            found = self.server.exchange(request * 2000)
            self.assertEqual(len(found), 2000)
        self.assertEqual({reply.status for reply in found}, {400})

    def test_a_connection_is_kept_or_closed_as_the_client_wants(self) -> None:
        """HTTP/1.1 keeps it unless told otherwise; HTTP/1.0 does not."""
        for lines, kept in (
            (b"HTTP/1.1\r\nHost: localhost", True),
            (b"HTTP/1.1\r\nHost: localhost\r\nConnection: close", False),
            (b"HTTP/1.0", False),
        ):
            for path in (b"/healthz", b"/events/%00"):
                client = self.server.connect()
                client.send(b"GET %b %b\r\n\r\n" % (path, lines))
                reply = parse_responses(client.received())[0]
                self.assertEqual(client.ended is None, kept, (path, lines))
                self.assertEqual(reply.headers.get(b"connection"), None if kept else b"close")

    def test_a_client_that_closes_is_answered_first(self) -> None:
        """What comes after the last request is not read, and spoils nothing."""
        self.assertEqual(
            [
                reply.status
                for reply in self.server.exchange(
                    post(b"1", b"/hooks/a", b"Connection: close") + GET
                )
            ],
            [202],
        )

    def test_a_client_may_ask_before_it_sends_its_body(self) -> None:
        """Expect: 100-continue; HTTP/1.0 does not know of it."""
        client = self.server.connect()
        head, body = post(b"12", b"/hooks/a", b"Expect: 100-continue").split(b"\r\n\r\n")
        client.send(head + b"\r\n\r\n")
        self.assertEqual(client.received(), b"HTTP/1.1 100 Continue\r\n\r\n")
        client.send(body)
        self.assertEqual(parse_responses(client.received())[0].status, 202)
        client = self.server.connect()
        client.send(head.replace(b"HTTP/1.1", b"HTTP/1.0") + b"\r\n\r\n")
        self.assertEqual(client.received(), b"")

    def test_a_body_too_large_is_refused_before_it_is_asked_for(self) -> None:
        """No 100 comes before the 413."""
        head = post(b"x" * 1001, b"/hooks/a", b"Expect: 100-continue").partition(b"\r\n\r\n")[0]
        self.assertEqual(
            error_code(self.server.exchange(head + b"\r\n\r\n")[0]), (413, "too-large")
        )

    def test_head_has_no_body(self) -> None:
        """By either way; what follows on the connection is not disturbed."""
        for path in (b"/healthz", b"/hooks/a", b"/events/a", b"/nope"):
            head = b"HEAD %b HTTP/1.1\r\nHost: localhost\r\n\r\n" % path
            client = self.server.connect()
            client.send(head)
            alone = client.received()
            self.assertTrue(alone.endswith(b"\r\n\r\n"), path)
            client.send(GET)
            self.assertEqual(parse_responses(client.received())[0].status, 200)

    def test_bodies_may_come_in_chunks(self) -> None:
        """With extensions; trailers are not taken for headers."""
        head = (
            b"POST /hooks/a HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        chunks = b"3;x=y\r\nabc\r\n2\r\nde\r\n0\r\nWebhook-Id: forged\r\n\r\n"
        client = self.server.connect()
        for start in range(0, len(head + chunks), 7):
            client.send((head + chunks)[start : start + 7])
        receipt = json.loads(parse_responses(client.received())[0].body)
        self.assertNotEqual(receipt["id"], "forged")
        events = self.server.request("GET", "/events/a?after=earliest")
        self.assertEqual(json.loads(events.body)["events"][0]["data"], "abcde")

    def test_an_account_may_have_any_name(self) -> None:
        """Percent-encoded, also with a slash in it."""
        for path, account in (
            ("a%2Fb", "a/b"),
            ("%C3%A9", "é"),
            ("a%20b", "a b"),
            ("..", ".."),
            ("%2525", "%25"),
            ("a+b", "a+b"),
        ):
            self.assertEqual(self.server.post(path, b"1").status, 202)
            told = self.server.request("GET", f"/accounts/{path}")
            self.assertEqual(json.loads(told.body)["account"], account)
            self.assertNotEqual(json.loads(told.body)["cursor"], None)

    def test_a_target_may_be_a_whole_url(self) -> None:
        """As a proxy sends it (RFC 9112, 3.2.2)."""
        request = post(b"1").replace(b" /hooks/a ", b" http://localhost/hooks/a ")
        self.assertEqual(
            self.server.exchange(request + GET.replace(b" /", b" http://localhost/"))[0].status, 202
        )

    def test_another_protocol_is_not_needed(self) -> None:
        """An upgrade to HTTP/2 is ignored, and the body is not lost (RFC 9110, 7.8)."""
        upgrade = (
            b"Connection: Upgrade, HTTP2-Settings",
            b"Upgrade: h2c",
            b"HTTP2-Settings: AAMAAABk",
        )
        found = self.server.exchange(post(b'"kept"', b"/hooks/a", *upgrade) + GET)
        self.assertEqual([reply.status for reply in found], [202, 200])
        self.assertIn(b'"data":"kept"', self.server.request("GET", "/events/a?after=earliest").body)

    def test_an_empty_header_is_a_header(self) -> None:
        """And spaces around a value are not part of it."""
        self.assertEqual(
            error_code(self.server.post("a", b"1", ("Webhook-Id", ""))), (400, "bad-request")
        )
        self.assertEqual(
            json.loads(self.server.post("a", b"1", ("Webhook-Id", " x \t")).body)["id"], "x"
        )


class BadRequestTests(SynchronousTestCase):
    """What is wrong gets a clear answer, and nothing half-done."""

    def setUp(self) -> None:
        self.server = MemoryServer(
            body_limit=1000, head_limit=2000, request_timeout=10.0, idle_timeout=20.0
        )

    def refused(self, data: bytes) -> tuple[int, str]:
        """The last answer to these bytes; the connection is closed after it."""
        client = self.server.connect()
        client.send(data)
        self.server.advance(LINGER + 2)
        self.assertIsNot(client.ended, None)
        reply = parse_responses(client.received())[-1]
        self.assertEqual(reply.headers[b"connection"], b"close")
        return error_code(reply)

    def test_a_body_at_the_limit_is_taken(self) -> None:
        """And one byte more is not, however it comes."""
        head = b"POST /hooks/a HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        self.assertEqual(self.server.exchange(post(b"x" * 1000))[0].status, 202)
        self.assertEqual(
            self.server.exchange(head + b"3e8\r\n%b\r\n0\r\n\r\n" % (b"x" * 1000))[0].status, 202
        )
        self.assertEqual(self.refused(post(b"x" * 1001)), (413, "too-large"))
        self.assertEqual(
            self.refused(head + b"3e9\r\n%b\r\n0\r\n\r\n" % (b"x" * 1001)), (413, "too-large")
        )

    def test_a_body_is_refused_before_it_comes(self) -> None:
        """By its announced length."""
        head = post(b"").replace(b"Content-Length: 0", b"Content-Length: 1000000000")
        self.assertEqual(self.refused(head)[0], 413)

    def test_chunks_of_nothing_but_words_end(self) -> None:
        """Extensions and trailers are no way around the limit."""
        head = b"POST /hooks/a HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        for beginning in (b"1;", b"0\r\nX: "):
            client = self.server.connect()
            client.send(head + beginning)
            for _ in range(20):
                client.send(b"x" * 1000)
            self.assertEqual(parse_responses(client.received())[0].status, 413)

    def test_a_head_beyond_the_limit(self) -> None:
        """In one line or many, whole or never ending, in the path or in a header."""
        self.assertEqual(self.refused(b"GET /%b HTTP/1.1\r\n" % (b"x" * 2000))[0], 431)
        self.assertEqual(
            self.refused(GET[:-2] + b"X: %b\r\n\r\n" % (b"x" * 2000)), (431, "headers-too-large")
        )
        self.assertEqual(self.refused(GET[:-2] + b"X: y\r\n" * 100 + b"\r\n")[0], 431)
        client = self.server.connect()
        client.send(GET[:-2] + b"X: ")
        for _ in range(3):
            client.send(b"x" * 1000)
        self.assertEqual(parse_responses(client.received())[0].status, 431)

    def test_bytes_that_servers_read_differently(self) -> None:
        """In a header or in the path, by either way."""
        for byte in [bytes([odd]) for odd in ODD_BYTES] + [b"\x00", b"\x7f"]:
            for path in (b"/hooks/a", b"/hooks", b"/events/a", b"/healthz"):
                self.assertEqual(
                    self.refused(post(b"1", path, b"X: a" + byte + b"b")),
                    (400, "bad-request"),
                    (byte, path),
                )
                self.assertEqual(
                    self.refused(post(b"1", path + byte)), (400, "bad-request"), (byte, path)
                )

    def test_requests_that_are_none(self) -> None:
        """Whatever it is, it is answered once and closed."""
        for data in (
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"GET /\r\n\r\n",
            b"GET / HTTP/2.0\r\nHost: localhost\r\n\r\n",
            b"GET / HTTP/1.1\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: b\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: localhost\r\nX: a\r\n b\r\n\r\n",
            b"CONNECT a:1 HTTP/1.1\r\nHost: localhost\r\n\r\n",
            b"nonsense nonsense nonsense\r\n",
            post(b"123").replace(b"Content-Length: 3", b"Content-Length: -3"),
            post(b"123").replace(b"Content-Length: 3", b"Content-Length: 3, 3"),
            post(b"123", b"/hooks/a", b"Content-Length: 4"),
            post(b"3\r\nabc\r\n0\r\n\r\n", b"/hooks/a", b"Transfer-Encoding: chunked"),
        ):
            self.assertEqual(self.refused(data), (400, "bad-request"), data)

    def test_what_came_before_the_nonsense_is_answered(self) -> None:
        """In order, although the event is kept only later."""
        client = self.server.connect()
        client.send(post(b"1") + b"nonsense\r\n\r\n")
        self.assertEqual([reply.status for reply in parse_responses(client.received())], [202, 400])

    def test_a_refused_client_can_read_the_answer_although_it_is_still_sending(self) -> None:
        """What it sends is dropped for a while, and then its connection is cut off."""
        client = self.server.connect()
        client.send(post(b"x" * 2000))
        for _ in range(3):
            client.send(b"x" * 100_000)
        self.assertEqual(
            [error_code(reply) for reply in parse_responses(client.received())],
            [(413, "too-large")],
        )

    def test_accounts_that_cannot_be(self) -> None:
        """Empty, with a control character, in another encoding, too long, or of two segments."""
        for path in (b"", b"%00", b"%0A", b"%ff", b"%C2%85", b"x" * 257, b"a/b", b"/a", b"a/"):
            for way in (b"/hooks/", b"/events/", b"/accounts/"):
                request = (
                    post(b"1", way + path)
                    if way == b"/hooks/"
                    else GET.replace(b"/healthz", way + path)
                )
                self.assertEqual(
                    error_code(self.server.exchange(request)[0]), (400, "bad-account"), request
                )

    def test_unknown_paths(self) -> None:
        """404, whatever the method, with a body of JSON."""
        for path in (
            "/nope",
            "/hooks2/x",
            "/events",
            "/instances",
            "/static/../x",
            "/%68ealthz",
            "/favicon.svg/x",
        ):
            for method in ("GET", "POST", "DELETE"):
                self.assertEqual(
                    error_code(self.server.request(method, path)),
                    (404, "not-found"),
                    (method, path),
                )

    def test_wrong_methods(self) -> None:
        """405, and which method would do."""
        posted, got = b"POST", b"GET, HEAD"
        for path, allowed in {
            "/hooks/x": posted,
            "/hooks": posted,
            "/instances/i/hooks/x": posted,
            "/instances/i/events": posted,
            "/events/x": b"GET",
            "/accounts/x": got,
            "/healthz": got,
            "/readyz": got,
            "/metrics": got,
            "/": got,
            "/page.js": got,
        }.items():
            for method in {"GET", "POST", "PUT", "OPTIONS"} - set(allowed.decode().split(", ")):
                reply = self.server.request(method, path)
                self.assertEqual(error_code(reply), (405, "method-not-allowed"), (method, path))
                self.assertEqual(reply.headers[b"allow"], allowed)

    def test_queries_that_say_nothing(self) -> None:
        """Cursors that no history gave out, waits that are none."""
        for query in (
            "after=x",
            "after=1.2.3",
            "after=e.-1",
            "last_event_id=%00",
            "after=a.%D9%A1",
        ):
            self.assertEqual(
                error_code(self.server.request("GET", f"/events/a?{query}")),
                (400, "bad-cursor"),
                query,
            )
        for wait in ("-1", "121", "nan", "inf", "x", ""):
            self.assertEqual(
                error_code(self.server.request("GET", f"/events/a?wait={wait}")),
                (400, "bad-request"),
                wait,
            )
        self.assertEqual(
            error_code(self.server.request("GET", "/events/a", [("Last-Event-ID", "é")])),
            (400, "bad-cursor"),
        )


class DetailTests(SynchronousTestCase):
    """What RFC 9110 and RFC 9112 ask beside the usual."""

    def setUp(self) -> None:
        self.server = MemoryServer(body_limit=1000)

    def test_an_account_with_a_malformed_escape_is_refused(self) -> None:
        """``%zz`` is no character, and is not taken for itself (RFC 3986, 2.1)."""
        for path in ("/hooks/a%zz", "/hooks/a%", "/hooks/%4", "/hooks/%%34"):
            reply = self.server.request("POST", path, body=b"1")
            self.assertEqual(error_code(reply), (400, "bad-account"), path)
        self.assertEqual(
            error_code(self.server.request("GET", "/events/a%zz?wait=0")), (400, "bad-account")
        )
        self.assertEqual(
            error_code(self.server.request("GET", "/accounts/a%zz")), (400, "bad-account")
        )

    def test_only_chunked_is_a_known_transfer_coding(self) -> None:
        """Any other one would be kept as if it were the result."""
        request = (
            b"POST /hooks/a HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: %b\r\n\r\n"
            b"1\r\n1\r\n0\r\n\r\n"
        )
        for coding in (b"gzip, chunked", b"identity, chunked"):
            self.assertEqual(self.server.exchange(request % coding)[0].status, 501, coding)
        self.assertEqual(self.server.exchange(request % b"Chunked")[0].status, 202)

    def test_a_compressed_body_is_refused(self) -> None:
        """Browsers would get it without its encoding; identity is no encoding."""
        for encoding in ("gzip", "br", "identity, gzip"):
            reply = self.server.post("a", b"1", ("Content-Encoding", encoding))
            self.assertEqual(error_code(reply), (415, "unsupported-media-type"), encoding)
        self.assertEqual(self.server.post("a", b"1", ("Content-Encoding", "Identity")).status, 202)

    def test_an_unknown_method_is_not_implemented(self) -> None:
        """A method that is known and not for this path is 405."""
        for method in ("FOO", "PROPFIND", "M-SEARCH"):
            self.assertEqual(
                error_code(self.server.request(method, "/hooks/a")),
                (501, "not-implemented"),
                method,
            )
        self.assertEqual(self.server.request("DELETE", "/hooks/a").status, 405)

    def test_each_answer_has_a_date_and_names_no_software(self) -> None:
        """By the fast path and by the full path; and no browser guesses what it is."""
        for reply in (
            self.server.post("a", b"1"),
            self.server.request("GET", "/healthz"),
            self.server.request("GET", "/"),
        ):
            self.assertRegex(
                reply.headers[b"date"],
                rb"^[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT$",
            )
            self.assertEqual(reply.headers[b"x-content-type-options"], b"nosniff")
            self.assertNotIn(b"server", reply.headers)
        client = self.server.connect()
        client.send(EVENT_STREAM)
        self.assertIn(b"\r\nDate: ", client.received())

    def test_a_client_that_waits_behind_another_request_is_told_to_continue(self) -> None:
        """When the request before it is answered (RFC 9110, 10.1.1)."""
        for before in (post(b"1"), GET):
            client = self.server.connect()
            head, _, _ = post(b"22", b"/hooks/b", b"Expect: 100-continue").rpartition(b"22")
            client.send(before + head)
            heard = client.received()
            self.assertTrue(heard.endswith(b"HTTP/1.1 100 Continue\r\n\r\n"), heard)
            client.send(b"22")
            self.assertEqual(parse_responses(client.received())[0].status, 202)

    def test_a_half_closed_request_is_answered(self) -> None:
        """The client has said all it has to say, and waits for the answers."""
        client = self.server.connect()
        client.protocol.dataReceived(post(b"1") + post(b"2") + GET)
        client.protocol.readConnectionLost()
        self.server.settle()
        self.assertEqual(
            [reply.status for reply in parse_responses(client.received())], [202, 202, 200]
        )
        self.assertIs(client.ended, ConnectionDone)
        self.assertEqual(self.server.listener.connections, set())

    def test_half_of_a_half_closed_request_is_nothing(self) -> None:
        """Its rest will not come: the connection is closed at once."""
        for begun in (b"", post(b"1234")[:-2]):
            client = self.server.connect()
            client.send(begun)
            client.protocol.readConnectionLost()
            self.server.settle()
            self.assertEqual((client.received(), client.ended), (b"", ConnectionDone))

    def test_a_half_closed_long_poll_has_gone(self) -> None:
        """A client that went away looks the same, and must not be counted as a subscriber."""
        client = self.server.connect()
        client.send(POLL)
        self.assertEqual(self.server.plumber.hub.count("a"), 1)
        client.protocol.readConnectionLost()
        self.server.settle()
        self.assertEqual(self.server.plumber.hub.count("a"), 0)

    def test_a_half_closed_client_cannot_subscribe(self) -> None:
        """
        Behind other requests: nothing would tell when it disconnects. What it posted before is
        answered.
        """
        for accept in (b"*/*", b"text/event-stream"):
            client = self.server.connect()
            subscribe = b"GET /events/a HTTP/1.1\r\nHost: localhost\r\nAccept: %b\r\n\r\n" % accept
            client.protocol.dataReceived(post(b"1") + subscribe)
            client.protocol.readConnectionLost()
            self.server.settle()
            self.assertEqual([reply.status for reply in parse_responses(client.received())], [202])
            self.assertEqual(
                (self.server.plumber.hub.count("a"), client.ended), (0, ConnectionDone)
            )

    def test_a_receipt_is_not_reset_by_the_end_of_a_long_poll(self) -> None:
        """The client goes while it polls, with the receipt of its POST still on the way."""
        client = self.server.connect()
        client.send(post(b"1") + POLL)
        client.protocol.readConnectionLost()
        self.server.settle()
        self.assertEqual([reply.status for reply in parse_responses(client.received())], [202])
        self.assertIs(client.ended, ConnectionDone)

    def test_an_unknown_method_may_follow_another_request(self) -> None:
        """In one packet: each is answered by what it is."""
        found = self.server.exchange(post(b"1") + b"BREW /pot HTTP/1.1\r\nHost: localhost\r\n\r\n")
        self.assertEqual([reply.status for reply in found], [202, 501])

    def test_compressed_bodies_are_refused_everywhere(self) -> None:
        """skyhooks' clients as well, and the answer names what would do (RFC 9110, 15.5.16)."""
        for path in ("/hooks/a", "/hooks"):
            reply = self.server.request("POST", path, [("Content-Encoding", "gzip")], b"\x1f\x8b")
            self.assertEqual(
                (error_code(reply), reply.headers[b"accept-encoding"]),
                ((415, "unsupported-media-type"), b"identity"),
            )

    def test_malformed_escapes_in_a_query_are_refused(self) -> None:
        """In the values that are read."""
        for query in (
            "after=%zz",
            "after=e.%",
            "last_event_id=%a",
            "lastEventId=%%",
            "wait=%zz",
            "wait=1%",
        ):
            self.assertEqual(self.server.request("GET", f"/events/a?{query}").status, 400, query)


class TimeoutTests(SynchronousTestCase):
    """A slow client has time, but not for ever."""

    def setUp(self) -> None:
        self.server = MemoryServer(request_timeout=10.0, idle_timeout=20.0)

    def stalled(self, data: bytes, seconds: float) -> MemoryClient:
        """A client that says this, and then nothing."""
        client = self.server.connect()
        client.send(data)
        self.server.advance(seconds)
        return client

    def test_a_stalled_request_is_ended(self) -> None:
        """In its head or in its body, after the time that it has for either."""
        for data, patience in ((b"G", 9), (GET[:-2], 9), (post(b"1" * 10)[:-1], 4)):
            self.assertEqual(self.stalled(data, patience).received(), b"")
            client = self.stalled(data, patience + 3)
            self.assertEqual(
                error_code(parse_responses(client.received())[0]), (408, "too-slow"), data
            )

    def test_a_trickle_is_no_request(self) -> None:
        """Neither blank lines nor a byte now and then prolong it."""
        for beginning, drop in ((b"", b"\r\n"), (b"GET /", b"x")):
            client = self.stalled(beginning, 0)
            for _ in range(25):
                client.send(drop)
                self.server.advance(1)
            self.assertIsNot(client.ended, None, beginning)

    def test_an_idle_connection_is_closed(self) -> None:
        """Without a response, as it sent no request: new or used."""
        for data, answers in ((b"", 0), (GET, 1)):
            client = self.stalled(data, 19)
            self.assertIs(client.ended, None)
            self.server.advance(3)
            self.assertEqual(
                (client.ended, len(parse_responses(client.received()))), (ConnectionDone, answers)
            )

    def test_a_refused_client_that_stays_is_hung_up_on(self) -> None:
        """It has `LINGER` seconds."""
        client = self.server.connect()
        client.loseWriteConnection = lambda: None  # type: ignore[attr-defined]
        client.send(b"nonsense\r\n\r\n")
        self.assertIs(client.ended, None)
        self.server.advance(LINGER + 2)
        self.assertIs(client.ended, ConnectionAborted)

    def test_a_client_that_does_not_read_is_not_read_from(self) -> None:
        """
        Responses do not pile up: a client that takes none is not read from, and loses its
        connection in the end.
        """
        client = self.server.connect()
        client.reading = False
        for _ in range(10):
            client.send(post(b"1") * 100)
        self.assertLess(self.server.plumber.intake.accepted, 3)
        client.resume_reading()
        self.assertEqual(self.server.plumber.intake.accepted, 1000)
        self.assertEqual(len(parse_responses(client.value())), 1000)

    def test_a_client_that_never_reads_again_is_cut_off(self) -> None:
        """An answer that is not taken keeps no connection alive."""
        client = self.server.connect()
        client.reading = False
        client.send(GET * 2)
        self.server.advance(35)
        self.assertIs(client.ended, ConnectionAborted)

    def test_what_comes_while_an_answer_is_awaited_is_bounded(self) -> None:
        """The rest stays in the kernel, and comes later."""
        client = self.server.connect()
        client.send(b"GET /events/a?wait=5 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        paused: list[str] = []
        client.pauseProducing = lambda: paused.append("pause")  # type: ignore[method-assign]
        client.resumeProducing = lambda: paused.append("resume")  # type: ignore[method-assign]
        for _ in range(3):
            client.send(GET * (MAX_BACKLOG // len(GET) - 1))
        self.assertEqual(paused, ["pause"])
        self.server.advance(6)
        self.assertEqual(paused, ["pause", "resume"])
        self.assertGreater(len(parse_responses(client.received())), 3000)

    def test_a_client_that_leaves_before_its_turn_leaves_nothing(self) -> None:
        """Its POST is kept; the stream that it asked for behind it never begins."""
        client = self.server.connect()
        client.protocol.dataReceived(post(b"1") + EVENT_STREAM)
        client.disconnect()
        self.server.settle()
        self.assertEqual((self.server.plumber.hub.subscribers, len(self.server.clients)), (0, 0))
        self.assertEqual(self.server.plumber.intake.accepted, 1)


class StoppingTests(SynchronousTestCase):
    """A server that stops still sends the responses that are due."""

    def test_long_polls_are_answered_and_connections_closed(self) -> None:
        """A long-poll gets its empty answer at once, an idle connection a plain close."""
        server = MemoryServer()
        idle, used, poll = [server.connect() for _ in range(3)]
        used.send(GET)
        poll.send(POLL)
        stopped = server.stop()
        server.advance(30)
        self.successResultOf(stopped)
        self.assertEqual([idle.ended, used.ended, poll.ended], [ConnectionDone] * 3)
        reply = parse_responses(poll.received())[0]
        self.assertEqual((reply.status, reply.headers[b"connection"]), (200, b"close"))
        self.assertEqual(json.loads(reply.body)["events"], [])
        self.assertEqual(server.clock.getDelayedCalls(), [])
