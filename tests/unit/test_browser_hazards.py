"""Pages that attack, and credentials as browsers send them, on both ways in."""

from __future__ import annotations

import json
from base64 import b64encode, urlsafe_b64encode
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.auth.authority import Authority, Parts
from asyncplumber.errors import InvalidToken, TooManyRequests
from asyncplumber.grant import ALL_ACCOUNTS, Accounts, Action, Grant
from asyncplumber.testing import ClientResponse, MemoryServer, parse_responses
from harness.frames import CLOSE, TEXT, close_code, handshake_request, server_frames
from harness.http_text import error_code
from harness.mounted import MountedServer

APP = "https://app.example"
EVIL = "https://evil.example"
READER, WRITER, SECRET = "reader-token-of-this-test", "writer-token", "cookie-token"
GRANTS = {
    READER: Grant("r", subscribe=Accounts.parse(["a"])),
    WRITER: Grant("w", publish=ALL_ACCOUNTS),
    SECRET: Grant("c", subscribe=Accounts.parse(["a"]), publish=ALL_ACCOUNTS),
}


def b64(text: str) -> str:
    """Return the text in base64url without padding."""
    return urlsafe_b64encode(text.encode()).rstrip(b"=").decode()


class Tokens:
    """Tokens that are known by heart."""

    def grant(self, token: str, action: Action | None) -> Grant | Deferred[Grant]:
        """Return what the token allows."""
        if token == "busy":
            raise TooManyRequests(retry_after=7)
        if token not in GRANTS:
            raise InvalidToken("unknown")
        return GRANTS[token]


class HazardCase(SynchronousTestCase):
    """A server on one of the two ways in, whose log is searched for secrets after each test."""

    make_server: type[MemoryServer] = MemoryServer
    authority: Authority | None = Authority(Parts(tokens=Tokens(), cookie="plumber"))
    origins = (APP,)

    def setUp(self) -> None:
        self.server = self.make_server(
            plumber={"authority": self.authority, "origins": list(self.origins)}
        )
        log = capturedLogs()
        events = log.__enter__()
        self.addCleanup(self.check_log, events)
        self.addCleanup(log.__exit__, None, None, None)

    def check_log(self, events: Any) -> None:
        """No secret is in the log, in no spelling."""
        text = "\n".join(str(event) + str(formatEvent(event)) for event in events)
        for secret in (*GRANTS, *map(b64, GRANTS)):
            self.assertNotIn(secret, text)

    def ask(self, method: str, path: str, *lines: str) -> ClientResponse:
        """The response to a request with these headers."""
        headers = [tuple(line.split(": ", 1)) for line in lines]
        body = b"1" if method == "POST" else b""
        return self.server.request(method, path, headers, body)  # type: ignore[arg-type]

    def handshake(self, *lines: str) -> tuple[int, bytes, list[tuple[int, bytes]]]:
        """The status, the head and the frames that answer a handshake."""
        client = self.server.connect()
        client.send(handshake_request("/events/a", *lines))
        self.server.settle()
        head, _, rest = client.received().partition(b"\r\n\r\n")
        status = int(head.split(b" ")[1])
        return status, head, server_frames(rest) if status == 101 else []


class SubprotocolTests(HazardCase):
    """A token in ``Sec-WebSocket-Protocol``, where a browser can set nothing else."""

    def offer(self, *protocols: str, more: tuple[str, ...] = ()) -> tuple[int, bytes]:
        """The status and the head that answer a handshake with these subprotocols."""
        status, head, _ = self.handshake(f"Sec-WebSocket-Protocol: {', '.join(protocols)}", *more)
        return status, head

    def test_the_other_subprotocol_is_selected(self) -> None:
        """In any order.  The token is not repeated."""
        bearer = "plumber.bearer." + b64(READER)
        for protocols in (
            ("plumber.v1", bearer),
            (bearer, "plumber.v1"),
            ("x", bearer, "plumber.v1"),
        ):
            status, head = self.offer(*protocols)
            self.assertEqual(status, 101, protocols)
            self.assertEqual(head.count(b"Sec-WebSocket-Protocol: plumber.v1"), 1)
            self.assertNotIn(b"bearer", head)
            self.assertNotIn(b64(READER).encode(), head)

    def test_a_token_without_our_subprotocol_opens_no_stream_in_a_browser(self) -> None:
        """None of those that were offered is ours, so none is selected."""
        status, head = self.offer("x", "plumber.bearer." + b64(READER))
        self.assertEqual(status, 101)
        self.assertNotIn(b"Sec-WebSocket-Protocol", head)

    def test_what_is_not_one_token_is_a_bad_request(self) -> None:
        """Two, one alone, another encoding, and another credential beside it."""
        bearer = "plumber.bearer." + b64(READER)
        padded = "plumber.bearer." + b64encode(READER.encode() + b"?>").decode()
        authorization = (f"Authorization: Bearer {READER}",)
        for protocols, more in (
            (("plumber.v1", bearer, bearer), ()),
            ((bearer,), ()),
            (("plumber.v1", "plumber.bearer."), ()),
            (("plumber.v1", "plumber.bearer.a"), ()),
            (("plumber.v1", "plumber.bearer.$$$$"), ()),
            (("plumber.v1", "plumber.bearer._w"), ()),
            (("plumber.v1", padded + "="), ()),
            (("plumber.v1", bearer), authorization),
        ):
            for origin in ((), (f"Origin: {APP}",)):
                status, _ = self.offer(*protocols, more=(*more, *origin))
                self.assertEqual(status, 400, protocols)
        self.assertEqual(self.server.plumber.hub.accounts, [])

    def test_a_bad_token_is_told_by_a_close_code_to_pages_alone(self) -> None:
        """101 and 4401 with an Origin, 401 without."""
        offer = "Sec-WebSocket-Protocol: plumber.v1, plumber.bearer." + b64("bad")
        status, head, frames = self.handshake(offer, f"Origin: {APP}")
        self.assertEqual(status, 101)
        self.assertIn(b"Sec-WebSocket-Protocol: plumber.v1\r\n", head + b"\r\n")
        ((opcode, payload),) = frames
        self.assertEqual((opcode, close_code(payload)), (CLOSE, 4401))
        self.assertEqual(self.handshake(offer)[0], 401)

    def test_too_many_says_when_to_come_back(self) -> None:
        """A close frame has no Retry-After: ``plumber.bye`` comes before it."""
        offer = "Sec-WebSocket-Protocol: plumber.v1, plumber.bearer." + b64("busy")
        first, last = self.handshake(offer, f"Origin: {APP}")[2]
        bye = json.loads(first[1])
        self.assertEqual((first[0], bye["type"]), (TEXT, "plumber.bye"))
        self.assertEqual(bye["data"], {"reason": "too-many", "reconnect_after": 7})
        self.assertEqual((last[0], close_code(last[1])), (CLOSE, 4429))


class MountedSubprotocolTests(SubprotocolTests):
    """The same in a site of another application."""

    make_server = MountedServer


class CookieTests(HazardCase):
    """A cookie counts in requests of pages that are known, and only to subscribe."""

    COOKIE = f"Cookie: theme=dark; plumber={SECRET}"

    def test_a_websocket_needs_a_known_origin(self) -> None:
        """That of the server, or a named one.  A browser always sends it."""
        for lines, status in (
            ((f"Origin: {APP}",), 101),
            (("Origin: http://localhost",), 101),
            ((f"Origin: {EVIL}",), 403),
            (("Origin: null",), 403),
            ((), 403),
            (("Sec-Fetch-Site: same-origin",), 403),
        ):
            self.assertEqual(self.handshake(self.COOKIE, *lines)[0], status, lines)

    def test_a_get_needs_a_known_page(self) -> None:
        """An Origin that is allowed, or the browser's word that the page is ours."""
        for accept in ("text/event-stream", "application/json"):
            for lines, status in (
                ((f"Origin: {APP}", "Sec-Fetch-Site: cross-site"), 200),
                (("Sec-Fetch-Site: same-origin",), 200),
                ((), 403),
                (("Sec-Fetch-Site: none",), 403),
                (("Sec-Fetch-Site: same-site",), 403),
                (("Sec-Fetch-Site: cross-site",), 403),
                ((f"Origin: {EVIL}",), 403),
            ):
                client = self.server.connect()
                head = ["GET /events/a?wait=0 HTTP/1.1", "Host: localhost", f"Accept: {accept}"]
                client.send("\r\n".join([*head, self.COOKIE, *lines, "", ""]).encode())
                self.server.settle()
                self.assertEqual(int(client.received().split(b" ")[1]), status, lines)
                client.disconnect()

    def test_tasks_can_be_read_by_a_cookie(self) -> None:
        """By the same pages; and nobody starts or cancels one."""
        for lines, status in (
            ((f"Origin: {APP}", "Sec-Fetch-Site: cross-site"), 404),
            (("Sec-Fetch-Site: same-origin",), 404),
            ((), 403),
            (("Sec-Fetch-Site: none",), 403),
            (("Sec-Fetch-Site: cross-site",), 403),
            (("Sec-Fetch-Site: cross-site", f"Origin: {APP}", "Sec-Fetch-Mode: no-cors"), 403),
            ((f"Origin: {EVIL}",), 403),
        ):
            reply = self.ask("GET", "/tasks/a/x?wait=5", self.COOKIE, *lines)
            self.assertEqual(reply.status, status, lines)
            if status == 404:
                for method, path in (("PUT", "/tasks/a/x"), ("POST", "/tasks/a/x/cancel")):
                    reply = self.ask(method, path, self.COOKIE, *lines)
                    self.assertEqual(error_code(reply), (401, "unauthenticated"))

    def test_nobody_publishes_by_a_cookie(self) -> None:
        """Not even a page of our own, although the token in it would allow it."""
        for lines in ((), ("Sec-Fetch-Site: same-origin", "Origin: http://localhost")):
            for path in ("/hooks/a", "/hooks"):
                reply = self.ask("POST", path, self.COOKIE, *lines)
                self.assertEqual(error_code(reply), (401, "unauthenticated"))
        self.assertEqual(self.server.plumber.intake.accepted, 0)

    def test_it_is_ignored_beside_another_credential(self) -> None:
        """The other one decides alone."""
        good = f"Authorization: Bearer {READER}"
        self.assertEqual(self.ask("GET", "/events/a?wait=0", self.COOKIE, good).status, 200)
        bad = self.ask("GET", "/events/a?wait=0", self.COOKIE, "Authorization: Bearer bad")
        self.assertEqual(bad.status, 401)


class MountedCookieTests(CookieTests):
    """The same in a site of another application."""

    make_server = MountedServer


class ForeignPageTests(HazardCase):
    """What a page of another origin can make a browser send, with no authentication at all."""

    authority = None

    def test_a_form_of_another_site_is_refused(self) -> None:
        """It needs no preflight.  The body is not even read."""
        text = "Content-Type: text/plain"
        for lines in (
            (f"Origin: {EVIL}",),
            (f"Origin: {EVIL}", "Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: no-cors"),
            ("Origin: null", "Sec-Fetch-Site: cross-site"),
            ("Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate"),
            ("Sec-Fetch-Site: same-site",),
            ("Sec-Fetch-Site: anything-else",),
            ("Sec-Fetch-Site: ",),
            ("Sec-Fetch-Site: same-origin", "Sec-Fetch-Site: cross-site"),
            # The same host by another scheme: somebody in the network may have sent that page.
            ("Origin: http://localhost", "Sec-Fetch-Site: cross-site"),
        ):
            for path in ("/hooks/a", "/hooks", "/hooks/a?x=1"):
                self.assertEqual(
                    error_code(self.ask("POST", path, text, *lines)), (403, "forbidden"), lines
                )
        self.assertEqual(self.server.plumber.intake.accepted, 0)

    def test_elements_of_another_site_do_not_subscribe(self) -> None:
        """``<img>`` and links have no Origin; they leave no hook and no account."""
        for lines in (
            ("Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: no-cors", "Sec-Fetch-Dest: image"),
            ("Sec-Fetch-Site: same-site", "Sec-Fetch-Mode: no-cors"),
            ("Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate"),
            ("Sec-Fetch-Site: cross-site",),
            (f"Origin: {APP}", "Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: no-cors"),
        ):
            for path in ("/events/a?wait=0", "/events/a"):
                reply = self.ask("GET", path, *lines)
                self.assertEqual(error_code(reply), (403, "forbidden"), lines)
                self.assertIn(b"Sec-Fetch-Site", reply.headers[b"vary"])
        self.assertEqual(self.server.plumber.hub.accounts, [])

    def test_allowed_pages_and_programs_pass(self) -> None:
        """Those of a named origin, our own, an address that the user typed, and what is no page."""
        for lines in (
            (f"Origin: {APP}", "Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: cors"),
            ("Origin: http://localhost", "Sec-Fetch-Site: same-origin", "Sec-Fetch-Mode: cors"),
            ("Sec-Fetch-Site: none",),
            (),
        ):
            self.assertEqual(self.ask("POST", "/hooks/a", *lines).status, 202, lines)
            self.assertEqual(self.ask("GET", "/events/a?wait=0", *lines).status, 200, lines)
        own = ("Sec-Fetch-Site: same-origin", "Sec-Fetch-Mode: no-cors")
        self.assertEqual(self.ask("GET", "/events/a?wait=0", *own).status, 200)
        navigated = ("Sec-Fetch-Site: none", "Sec-Fetch-Mode: navigate")
        self.assertEqual(self.ask("GET", "/events/a?wait=0", *navigated).status, 200)

    def test_probes_and_static_files_are_for_all(self) -> None:
        """A link from another site may lead to the page."""
        foreign = ("Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate")
        for path in ("/", "/asyncplumber.js", "/healthz", "/readyz"):
            self.assertEqual(self.ask("GET", path, *foreign).status, 200, path)

    def test_a_refused_page_leaves_a_line_in_the_log(self) -> None:
        """Also one that the browser gives no name."""
        with capturedLogs() as events:
            self.ask("GET", "/events/a", "Sec-Fetch-Site: cross-site")
        (line,) = map(formatEvent, events)
        self.assertIn("'cross-site'", line)


class MountedForeignPageTests(ForeignPageTests):
    """The same in a site of another application."""

    make_server = MountedServer


class StarTests(HazardCase):
    """``--allow-origin *``."""

    authority = None
    origins = ("*",)

    def test_every_page_passes_but_one_that_has_no_origin(self) -> None:
        """``null``, and elements."""
        cross = "Sec-Fetch-Site: cross-site"
        self.assertEqual(self.ask("POST", "/hooks/a", f"Origin: {EVIL}", cross).status, 202)
        self.assertEqual(self.ask("GET", "/events/a?wait=0", f"Origin: {EVIL}", cross).status, 200)
        self.assertEqual(self.ask("POST", "/hooks/a", "Origin: null", cross).status, 403)
        self.assertEqual(self.ask("GET", "/events/a?wait=0", cross).status, 403)


class HeaderTests(HazardCase):
    """What protects a response in a browser."""

    def test_every_response_says_what_it_is(self) -> None:
        """Also refusals, streams, handshakes, what was no request, and what nobody has found."""
        reader, writer = f"Authorization: Bearer {READER}", f"Authorization: Bearer {WRITER}"
        length = "Content-Length: 1"
        requests = [
            ("GET /healthz", ()),
            ("GET /readyz", ()),
            ("GET /asyncplumber.js", ()),
            ("GET /favicon.svg", ()),
            ("HEAD /favicon.svg", ()),
            ("GET /", ()),
            ("GET /nothing", (reader,)),
            ("GET /events/a", (reader, "Accept: text/event-stream")),
            ("GET /events/a?wait=0", (reader,)),
            ("GET /events/a", ()),
            ("GET /events/b", (reader,)),
            ("GET /events/a", (f"Origin: {EVIL}",)),
            ("GET /events/a?wait=x", (reader,)),
            ("GET /accounts/a", (reader,)),
            ("GET /metrics", (reader,)),
            ("DELETE /hooks/a", (writer,)),
            ("POST /hooks/a", (writer, length)),
            ("POST /hooks", (writer, length)),
            ("POST /hooks/a", (length,)),
            ("POST /instances/x/events", (length,)),
            ("OPTIONS /hooks/a", (f"Origin: {APP}", "Access-Control-Request-Method: POST")),
            ("GET //", ()),
        ]
        # Elsewhere twisted.web answers these, or waits for the body.
        own = (
            ("BREW /", ()),
            ("GET /healthz", ("a b: c",)),
            ("POST /hooks/a", ("Content-Length: 999999",)),
            ("POST /hooks/a", (writer, "Content-Length: 99999999")),
        )
        for line, lines in (*requests, *(own if self.make_server is MemoryServer else ())):
            client = self.server.connect()
            asked = [f"{line} HTTP/1.1", "Host: localhost", *lines, "", ""]
            client.send("\r\n".join(asked).encode() + (b"1" if length in lines else b""))
            self.server.settle()
            answer = client.received().partition(b"\r\n\r\n")[0]
            found = answer.lower().split(b"\r\n")
            self.assertEqual(found.count(b"x-content-type-options: nosniff"), 1, (line, answer))
            policy = b"cross-origin" if line == "GET /asyncplumber.js" else b"same-origin"
            self.assertEqual(
                [each for each in found if each.startswith(b"cross-origin-resource-policy")],
                [b"cross-origin-resource-policy: " + policy],
                (line, answer),
            )
            client.disconnect()
        for more in ((reader,), (f"Origin: {APP}",)):
            status, head, _ = self.handshake(*more)
            self.assertEqual(status, 101)
            self.assertIn(b"X-Content-Type-Options: nosniff", head)

    def test_our_files_send_no_referrer(self) -> None:
        """A URL may have an account in it."""
        for path in ("/asyncplumber.js", "/favicon.svg"):
            headers = self.ask("GET", path).headers
            self.assertEqual(headers[b"referrer-policy"], b"no-referrer")
            self.assertIn(b"Origin", headers[b"vary"])

    def test_a_refusal_can_be_read_by_an_allowed_page(self) -> None:
        """With its status, its challenge and its Retry-After; before the body, too."""
        origin = f"Origin: {APP}"
        for token, status in (("bad", 401), (WRITER, 403), ("busy", 429)):
            for method, path in (("GET", "/events/a"), ("GET", "/accounts/b")):
                if (token, path) == (WRITER, "/accounts/b"):
                    continue
                reply = self.ask(method, path, origin, f"Authorization: Bearer {token}")
                self.assertEqual(reply.status, status)
                self.check_readable(reply)
        early = self.server.connect()
        early.send(
            f"POST /hooks/a HTTP/1.1\r\nHost: localhost\r\n{origin}\r\n"
            "Content-Length: 999999\r\n\r\n".encode()
        )
        if self.make_server is MountedServer:
            early.send(b"1" * 999999)
        (reply,) = parse_responses(early.received())
        self.assertEqual(reply.status, 401)
        self.check_readable(reply)

    def check_readable(self, reply: ClientResponse) -> None:
        """A page of the allowed origin can read this."""
        self.assertEqual(reply.headers[b"access-control-allow-origin"], APP.encode())
        exposed = reply.headers[b"access-control-expose-headers"]
        self.assertEqual(
            exposed,
            b"Age, Location, Preference-Applied, Retry-After, Task-Joined, Task-Run, Task-State, "
            b"WWW-Authenticate",
        )
        self.assertIn(b"Origin", reply.headers[b"vary"])

    def test_a_preflight_for_a_token_needs_none(self) -> None:
        """It allows the header, and may be kept."""
        asked = (
            "Access-Control-Request-Method: GET",
            "Access-Control-Request-Headers: authorization",
        )
        cross = "Sec-Fetch-Site: cross-site"
        reply = self.ask("OPTIONS", "/events/a", f"Origin: {APP}", cross, *asked)
        self.assertEqual((reply.status, reply.body), (200, b""))
        self.assertEqual(reply.headers[b"access-control-allow-headers"], b"authorization")
        self.assertEqual(self.ask("OPTIONS", "/events/a", f"Origin: {EVIL}", *asked).status, 403)


class MountedHeaderTests(HeaderTests):
    """The same in a site of another application."""

    make_server = MountedServer


class PageTests(SynchronousTestCase):
    """The page at ``/``."""

    def test_it_is_there_without_authentication_or_if_it_is_wanted(self) -> None:
        """A public page would teach users to type their tokens.  The client is always there."""
        authority = Authority(Parts(tokens=Tokens()))
        for make in (MemoryServer, MountedServer):
            for options, status in (
                ({}, 200),
                ({"authority": authority}, 404),
                ({"authority": authority, "page": True}, 200),
            ):
                server = make(plumber=options)
                for path in ("/", "/page.js", "/page.css"):
                    self.assertEqual(server.request("GET", path).status, status, (path, options))
                self.assertEqual(server.request("GET", "/asyncplumber.js").status, 200)
