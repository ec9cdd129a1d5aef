"""A page of another origin in a real Chromium, with tokens that a real server verifies."""

from __future__ import annotations

import http.client
import sys
import time
from secrets import token_hex
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.auth.tokens.mint import mint
from harness.app_site import AppSite
from harness.browser import Browser, browser, missing
from harness.processes import Process

# A server with authentication: the secret of tokens, a key to publish, and the origins of pages.
SERVER = """
import os, sys, time
from twisted.internet import reactor
from twisted.internet.endpoints import serverFromString
from twisted.logger import globalLogBeginner, textFileLogObserver
from asyncplumber.auth.authority import Authority, Parts
from asyncplumber.auth.tokens.claims import Rules
from asyncplumber.auth.keys import Keys
from asyncplumber.auth.tokens.signing_keys import Secrets
from asyncplumber.auth.tokens.verifier import Issuer, Verifier
from asyncplumber.plumber import Plumber
from asyncplumber.server.service import Place, Server

globalLogBeginner.beginLoggingTo([textFileLogObserver(sys.stdout)])
secret, key = os.environ["SECRET"].encode(), os.environ["KEY"]
rules = Rules(audience="asyncplumber", types=frozenset({"at+jwt", "jwt", ""}))
tokens = Verifier({}, time.time, Issuer(rules, Secrets([secret])))
authority = Authority(Parts(tokens=tokens, keys=Keys.of_publishers([key]), cookie="plumber"))
plumber = Plumber(authority=authority, origins=sys.argv[1:], page=True)
endpoint = serverFromString(reactor, "tcp:0:interface=127.0.0.1")
server = Server(plumber, [Place(endpoint, "a port")], reactor)
server.privilegedStartService()
server.startService()
reactor.addSystemEventTrigger("before", "shutdown", server.stopService)
reactor.run()
"""
# ``open(account, transport)`` makes a client and notes what it reports in ``window.seen``.
OPEN = """
window.seen = {};
window.open = (name, account, transport, token) => {
  const mine = window.seen[name] = { events: [], states: [], opens: 0, refused: [] };
  const transports = transport ? [transport] : ["websocket", "sse", "longpoll"];
  const slowly = async (...request) => {
    await new Promise((resolve) => setTimeout(resolve, window.slow ?? 0));
    return fetch(...request);
  };
  const client = new Asyncplumber(args[0], { account, transports, token, fetch: slowly });
  client.on("event", ({ data }) => mine.events.push(data));
  client.on("state", ({ state, reason }) => {
    mine.states.push(reason ? `${state}: ${reason}` : state);
  });
  client.on("open", () => { mine.opens += 1; });
  client.on("refused", (facts) => mine.refused.push(facts));
  client.on("bye", ({ reason }) => mine.states.push(`bye: ${reason}`));
  mine.client = client;
};
window.fetchToken = async () => (await fetch("/token")).text();
const script = document.createElement("script");
script.src = args[0] + "/asyncplumber.js";
const loaded = new Promise((resolve, reject) => {
  [script.onload, script.onerror] = [resolve, reject];
});
document.head.append(script);
await loaded;
"""
TRANSPORTS = ("websocket", "sse", "longpoll")


class CredentialsTestCase(SynchronousTestCase):
    """A server that needs credentials, and the site of an application with another origin."""

    skip = missing()

    def setUp(self) -> None:
        self.secret, self.key = token_hex(32), token_hex(16)
        self.site = AppSite(lambda: self.mint(3600))
        self.addCleanup(self.site.stop)
        environ = {"SECRET": self.secret, "KEY": self.key}
        self.server = Process([sys.executable, "-c", SERVER, self.site.origin], environ)
        self.addCleanup(self.server.kill)
        self.port = int(self.server.wait_for(r"asyncplumber is ready at http://\S+?:(\d+)/")[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self.page = browser()
        self.page.errors()
        self.addCleanup(self.page.go, "about:blank")

    def mint(self, seconds: float) -> str:
        """Return a token for ``crew``."""
        return mint(self.secret.encode(), "user-42", subscribe=["crew"], expires_in=seconds)

    def visit(self) -> Browser:
        """Open the application's page, with the client of the server in it."""
        self.page.go(self.site.origin + "/")
        self.page.run(OPEN, self.url)
        return self.page

    def seen(self, name: str) -> Any:
        """Return what a client of the page has reported."""
        script = "const { client, ...facts } = window.seen[args[0]]; return facts"
        return self.page.run(script, name)

    def poster(self) -> http.client.HTTPConnection:
        """Return a connection to post by."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        self.addCleanup(connection.close)
        return connection

    def post(self, connection: http.client.HTTPConnection, data: int) -> None:
        """Post a number to ``crew``."""
        connection.request(
            "POST", "/hooks/crew", str(data), {"Authorization": f"Bearer {self.key}"}
        )
        response = connection.getresponse()
        response.read()
        self.assertIn(response.status, (201, 202))

    def check_no_secret(self) -> None:
        """No token is in a URL that the browser asked for, and no secret in the server's log."""
        urls = self.page.run(
            "return performance.getEntriesByType('resource').map(({ name }) => name).join(' ')"
        )
        for text in (urls, self.server.output):
            self.assertNotIn("eyJ", text)  # how a token begins
            self.assertNotIn(self.key, text)
            self.assertNotIn(self.secret, text)


class TokenTests(CredentialsTestCase):
    """Tokens on another origin."""

    def test_each_transport_receives_with_a_token(self) -> None:
        """The browser selects our subprotocol, and its preflights are answered."""
        page = self.visit()
        for transport in TRANSPORTS:
            page.run("open(args[0], 'crew', args[0], fetchToken)", transport)
        for transport in TRANSPORTS:
            page.until("return seen[args[0]].opens", transport)
        self.post(self.poster(), 7)
        for transport in TRANSPORTS:
            page.until("return seen[args[0]].events.length", transport)
            seen = self.seen(transport)
            self.assertEqual((seen["events"], seen["refused"]), ([7], []), transport)
        self.assertEqual(self.site.minted, 3)
        self.check_no_secret()
        self.assertEqual(page.errors(), [])

    def test_a_renewal_loses_and_doubles_nothing(self) -> None:
        """With an event every 10 ms, while tokens of a few seconds are renewed."""
        self.site.mint = lambda: self.mint(8)
        page = self.visit()
        page.run("window.slow = 100")  # ms, so that both connections bring the same events
        for transport in TRANSPORTS:
            page.run("open(args[0], 'crew', args[0], fetchToken)", transport)
            page.until("return seen[args[0]].opens", transport)
        poster, sent, end = self.poster(), 0, time.monotonic() + 60
        while True:
            sent += 1
            self.post(poster, sent)
            time.sleep(0.01)
            if sent % 50 == 0:
                opens = page.run("return [seen.websocket.opens, seen.sse.opens]")
                if min(opens) >= 3:  # two renewals of each
                    break
                self.assertLess(time.monotonic(), end, "no renewal in time")
        for transport in TRANSPORTS:
            page.until("return seen[args[0]].events.at(-1) === args[1]", transport, sent)
            seen = self.seen(transport)
            self.assertEqual(seen["events"], list(range(1, sent + 1)), transport)
            self.assertEqual(seen["refused"], [], transport)
            if transport != "longpoll":
                states = set(seen["states"])
                self.assertEqual(states, {"connecting", "open"}, transport)
                self.assertEqual(seen["states"].count("connecting"), 1, transport)
        self.check_no_secret()

    def test_a_refused_page_learns_why(self) -> None:
        """By each transport, at once, and without trying another one."""
        page = self.visit()
        for name, transport in (("ws", "websocket"), ("any", ""), ("sse", "sse")):
            page.run("open(args[0], 'crew', args[1], 'bad')", name, transport)
            page.until("return seen[args[0]].refused.length", name)
            (refused,) = self.seen(name)["refused"]
            found = (refused["code"], refused["status"], refused["retryIn"])
            self.assertEqual(found, (None, 401, None) if name == "sse" else (4401, None, None))
            self.assertEqual(page.run("return seen[args[0]].client.state", name), "closed")
        for name, transport in (("other-ws", ""), ("other-poll", "longpoll")):
            page.run("open(args[0], 'other', args[1], fetchToken)", name, transport)
            page.until("return seen[args[0]].refused.length", name)
            (refused,) = self.seen(name)["refused"]
            found = (refused["code"], refused["status"], refused["retryIn"])
            self.assertEqual(found, (4403, None, None) if transport == "" else (None, 403, None))
        page.errors()
        self.check_no_secret()

    def test_a_bad_token_is_replaced_once_and_then_rarely(self) -> None:
        """The page's function is told; later it gives a good one."""
        page = self.visit()
        page.run(
            "window.told = [];"
            "const token = async ({ refused }) => {"
            "  told.push(refused);"
            "  return told.length < 2 ? 'bad' : fetchToken();"
            "};"
            "open('ws', 'crew', 'websocket', token)"
        )
        page.until("return seen.ws.opens")
        self.assertEqual(page.run("return told"), [False, True])
        self.assertEqual(self.seen("ws")["states"], ["connecting", "connecting", "open"])

    def test_a_page_of_an_origin_that_is_not_allowed_learns_nothing(self) -> None:
        """Its good token does not help it."""
        page = self.visit()
        page.go(self.site.origin.replace("app.", "evil.") + "/")
        page.run(OPEN, self.url)
        page.run("open('any', 'crew', '', fetchToken)")
        page.until("return seen.any.states.some((state) => state.startsWith('waiting'))")
        self.assertEqual(page.run("return seen.any.opens + seen.any.refused.length"), 0)
        page.errors()


class CookieTests(CredentialsTestCase):
    """A cookie, of an application on the same site."""

    def setUp(self) -> None:
        super().setUp()
        # Cookies do not care for ports: one that 127.0.0.1:PORT sets is sent to our port as well.
        self.site.origin = f"http://127.0.0.1:{self.site.port}"
        self.site.cookie = f"plumber={self.mint(3600)}; HttpOnly; SameSite=Strict; Path=/"
        self.server.kill()
        environ = {"SECRET": self.secret, "KEY": self.key}
        self.server = Process([sys.executable, "-c", SERVER, self.site.origin], environ)
        self.addCleanup(self.server.kill)
        self.port = int(self.server.wait_for(r"asyncplumber is ready at http://\S+?:(\d+)/")[1])
        self.url = f"http://127.0.0.1:{self.port}"

    def test_a_page_of_the_same_site_needs_no_token(self) -> None:
        """Also the browser's own EventSource, which can send nothing else."""
        page = self.visit()
        page.run(
            "for (const transport of ['websocket', 'sse', 'longpoll']) {"
            "  seen[transport] = { events: [], opens: 0 };"
            "  const credentials = 'include', transports = [transport];"
            "  const options = { account: 'crew', transports, credentials };"
            "  const client = new Asyncplumber(args[0], options);"
            "  client.on('open', () => { seen[transport].opens += 1; });"
            "  client.on('event', ({ data }) => seen[transport].events.push(data));"
            "}"
            "const source = new EventSource(args[0] + '/events/crew', { withCredentials: true });"
            "seen.plain = { events: [], opens: 0 };"
            "source.addEventListener('plumber.open', () => { seen.plain.opens += 1; });"
            "source.addEventListener('result', ({ data }) => {"
            "  seen.plain.events.push(JSON.parse(data).data);"
            "});",
            self.url,
        )
        for name in (*TRANSPORTS, "plain"):
            page.until("return seen[args[0]].opens", name)
        self.post(self.poster(), 7)
        for name in (*TRANSPORTS, "plain"):
            page.until("return seen[args[0]].events.length", name)
            self.assertEqual(page.run("return seen[args[0]].events", name), [7])
        self.assertEqual(page.errors(), [])
        published = (
            "return await fetch(args[0] + '/hooks/crew', "
            "{ method: 'POST', body: '8', credentials: 'include' }).then(({ status }) => status)"
        )
        self.assertEqual(page.run(published, self.url), 401)

    def test_a_page_of_another_site_is_refused(self) -> None:
        """Its WebSocket fails, and so do its images; no account is opened."""
        page = self.visit()
        page.go(f"http://evil.localhost:{self.site.port}/")
        found = page.run(
            "const socket = new WebSocket(args[0].replace('http', 'ws') + '/events/crew');"
            "const closed = await new Promise((resolve) => { socket.onclose = resolve; });"
            "const image = new Image();"
            "const ended = new Promise((resolve) => {"
            "  image.onload = image.onerror = ({ type }) => resolve(type);"
            "});"
            "image.src = args[0] + '/events/crew';"
            "return [closed.code, await ended];",
            self.url,
        )
        self.assertEqual(found, [1006, "error"])
        page.errors()


class PageTests(CredentialsTestCase):
    """The page at ``/``, which asks for a token."""

    def test_it_asks_for_a_token_and_keeps_it_in_memory(self) -> None:
        """Then it is connected; its button can send with a token that may publish."""
        page = self.page
        page.go(f"{self.url}/#crew")
        page.until("return !document.getElementById('credential').hidden")
        page.until("return document.getElementById('state').innerText === 'a token is needed'")
        token = mint(self.secret.encode(), "me", subscribe=["crew"], publish=["crew"])
        page.run(
            "const field = document.getElementById('token'); field.value = args[0];"
            "field.dispatchEvent(new Event('change', { bubbles: true }))",
            token,
        )
        page.until("return document.querySelector('#state[data-state=open]')")
        page.click("send")
        page.until("return document.querySelectorAll('.data').length === 1")
        kept = page.run(
            "return JSON.stringify([location.href, document.cookie, {...localStorage},"
            " {...sessionStorage}, document.getElementById('curl').innerText])"
        )
        self.assertNotIn(token, kept)
        self.assertIn("Bearer $TOKEN", kept)
        self.check_no_secret()
