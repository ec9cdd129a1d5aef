"""The page and the browser client in a real Chromium, with a real server."""

from __future__ import annotations

import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from twisted.trial.unittest import SynchronousTestCase

from harness.browser import Browser, ProxyWithoutWebSockets, browser, missing
from harness.processes import Process, Server, start_server

# A site of another application, with a plumber below a path.
MOUNTED = """
import sys
from twisted.internet import reactor
from twisted.web.resource import Resource
from twisted.web.server import Site
from asyncplumber import Plumber

root = Resource()
plumber = Plumber()
root.putChild(b"pipes", plumber.resource())
plumber.startService()
port = reactor.listenTCP(0, Site(root), interface="127.0.0.1")
print(f"port {port.getHost().port}", flush=True)
reactor.run()
"""
IN_KLEIN = """
from klein import Klein
from twisted.internet import reactor
from twisted.web.server import Site
from asyncplumber import Plumber

app = Klein()
plumber = Plumber()
resource = plumber.resource()

@app.route("/an/application/pipes/", branch=True)
def pipes(request):
    return resource

plumber.startService()
port = reactor.listenTCP(0, Site(app.resource()), interface="127.0.0.1")
print(f"port {port.getHost().port}", flush=True)
reactor.run()
"""


class PageTests(SynchronousTestCase):
    """The page at ``/`` of a real server."""

    skip = missing()

    def serve(self, *options: str) -> Server:
        server = start_server(*options)
        self.addCleanup(server.stop)
        return server

    def visit(self, url: str, transport: str = "") -> Browser:
        """Open the page, and wait until it is connected."""
        page = browser()
        page.errors()  # those of the tests before
        page.go(f"{url}/#crew")
        self.addCleanup(page.go, "about:blank")
        if transport:
            choose = "const choice = document.getElementById('transport'); choice.value = args[0]; "
            page.run(choose + "choice.dispatchEvent(new Event('change'))", transport)
        page.until(
            "return document.querySelector('#state[data-state=open]')"
            "?.dataset.transport === args[0]",
            transport or "websocket",
        )
        return page

    def post(self, server: Server, data: Any) -> None:
        body = json.dumps(data).encode()
        with urlopen(
            Request(f"{server.url}/hooks/crew", body, {"Content-Type": "application/json"})
        ) as answer:
            self.assertIn(answer.status, (201, 202))

    def shown(self, page: Browser, count: int) -> list[Any]:
        """Wait for so many results, and return their data, the oldest first."""
        page.until("return document.querySelectorAll('.data').length >= args[0]", count)
        return [
            json.loads(text)
            for text in page.run(
                "return [...document.querySelectorAll('.data')].map((e) => e.innerText)"
            )
        ][::-1]

    def check_transport(self, transport: str) -> None:
        server = self.serve()
        page = self.visit(server.url, transport)
        self.post(server, {"n": 1})
        self.post(server, ["<b>", "ü"])
        self.assertEqual(self.shown(page, 2), [{"n": 1}, ["<b>", "ü"]])
        facts = page.run("return document.querySelector('.facts').innerText")
        self.assertRegex(facts, re.compile(r"\Aresult\s+\d+ ms\s+[0-9a-z]+\.2\s", re.S))
        self.assertEqual(page.errors(), [])

    def test_results_are_shown_over_a_websocket(self) -> None:
        """With data, latency and cursor; the browser logs no error."""
        self.check_transport("websocket")

    def test_results_are_shown_over_server_sent_events(self) -> None:
        """When the user chooses SSE."""
        self.check_transport("sse")

    def test_results_are_shown_over_long_polling(self) -> None:
        """When the user chooses long-polling."""
        self.check_transport("longpoll")

    def test_it_works_below_a_path_of_another_site(self) -> None:
        """``Plumber.resource`` has the page, the webhook and all transports of ``/events``."""
        self.check_mounted(MOUNTED, "/pipes")

    def test_it_works_in_a_klein_application(self) -> None:
        """Below any path of it."""
        self.check_mounted(IN_KLEIN, "/an/application/pipes")

    def check_mounted(self, script: str, path: str) -> None:
        """The page subscribes by each transport, and has all its files from below ``path``."""
        process = Process([sys.executable, "-c", script])
        self.addCleanup(process.stop)
        url = f"http://127.0.0.1:{process.wait_for(r'^port ([0-9]+)')[1]}{path}"
        for number, transport in enumerate(("websocket", "sse", "longpoll"), 1):
            page = self.visit(url, transport if number > 1 else "")
            page.click("send")
            (result,) = self.shown(page, 1)
            self.assertEqual(result, {"task": "test", "status": "done", "number": 1})
        links = page.run(
            "return [...document.querySelectorAll('a, link, script, img')]"
            ".map((e) => e.href || e.src)"
        )
        self.assertEqual([link for link in links if not link.startswith(url + "/")], [])
        self.assertEqual(page.errors(), [])

    def test_the_button_sends_a_result(self) -> None:
        """One click shows the first result; a command that does the same can be copied."""
        server = self.serve()
        page = self.visit(server.url)
        page.click("send")
        self.assertEqual(self.shown(page, 1), [{"task": "test", "status": "done", "number": 1}])
        receipt = page.until("return document.getElementById('receipt').innerText")
        self.assertRegex(receipt, r"^201: accepted as [0-9a-z]+\.1 in \d+ ms; subscribers: 1$")
        curl = page.run("return document.getElementById('curl').innerText")
        self.assertIn(f"'{server.url}/hooks/crew'", curl)

    def test_falls_back_where_websockets_are_refused(self) -> None:
        """Behind a proxy without WebSockets the page uses SSE."""
        server = self.serve()
        proxy = ProxyWithoutWebSockets(server.port)
        self.addCleanup(proxy.stop)
        page = browser()
        self.addCleanup(page.go, "about:blank")
        page.go(f"{proxy.url}/#crew")
        page.until(
            "return document.querySelector('#state[data-state=open]')?.dataset.transport === 'sse'"
        )
        self.assertEqual(proxy.refused, 1)
        self.post(server, "hello")
        page.until("return document.querySelector('.data')?.innerText === 'hello'")

    def test_nothing_is_lost_or_doubled_by_a_killed_server(self) -> None:
        """Results from before, during and after its absence are shown once, in order."""
        with tempfile.TemporaryDirectory() as folder:
            store = ["--store", f"sqlite:{Path(folder) / 'history.db'}"]
            first = self.serve(*store)
            page = self.visit(first.url)
            self.post(first, 1)
            self.shown(page, 1)
            first.kill()
            page.until(
                "return document.getElementById('state').innerText.startsWith('reconnecting')"
            )
            elsewhere = self.serve(*store)
            self.post(elsewhere, 2)
            self.post(elsewhere, 3)
            elsewhere.stop()
            again = self.serve(*store, "--port", str(first.port))
            self.assertEqual(self.shown(page, 3), [1, 2, 3])
            self.post(again, 4)
            self.assertEqual(self.shown(page, 4), [1, 2, 3, 4])
            again.stop()

    def test_the_browsers_own_event_source_comes_back_after_a_planned_stop(self) -> None:
        """The stream ends without its last chunk; the browser resumes with its last ID."""
        with tempfile.TemporaryDirectory() as folder:
            store = ["--store", f"sqlite:{Path(folder) / 'history.db'}"]
            first = self.serve(*store)
            page = browser()
            self.addCleanup(page.go, "about:blank")
            page.go(f"{first.url}/healthz")
            page.run(
                "window.got = []; window.stream = new EventSource('/events/crew');"
                "const on = (type, handler) => stream.addEventListener(type, handler);"
                "on('result', (event) => got.push(JSON.parse(event.data).data));"
                "on('plumber.bye', () => { window.bye = true; });"
                "await new Promise((resolve) => on('plumber.open', resolve))"
            )
            self.post(first, 1)
            page.until("return got.length === 1")
            first.stop()
            page.until("return window.bye && stream.readyState === EventSource.CONNECTING")
            again = self.serve(*store, "--port", str(first.port))
            self.post(again, 2)
            page.until("return got.length === 2")
            self.post(again, 3)
            page.until("return got.length === 3")
            self.assertEqual(page.run("stream.close(); return got"), [1, 2, 3])
            page.errors()  # that the connection was lost, and refused for a while
            again.stop()

    def test_pages_of_named_origins_may_send_cookies(self) -> None:
        """The browser lets them read the response; those that only ``*`` admits may not."""
        elsewhere = self.serve()
        origin = elsewhere.url.replace("127.0.0.1", "app.localhost")
        page = browser()
        self.addCleanup(page.go, "about:blank")
        page.go(f"{origin}/healthz")
        ask = (
            "return await fetch(args[0], {credentials: args[1]})"
            ".then((answer) => answer.status, () => 'refused')"
        )
        for allowed, include in (
            ("http://*.localhost:" + origin.rpartition(":")[2], 200),
            (origin, 200),
            ("*", "refused"),
        ):
            url = f"{self.serve('--allow-origin', allowed).url}/events/crew?wait=0"
            found = [page.run(ask, url, credentials) for credentials in ("include", "omit")]
            self.assertEqual(found, [include, 200], allowed)
        page.errors()

    def test_a_page_that_is_left_is_no_subscriber(self) -> None:
        """A browser keeps the page, and its connection unless the page closes it."""
        server = self.serve()
        for transport in ("websocket", "sse"):
            page = self.visit(server.url, transport)
            page.go(f"{server.url}/healthz")
            subscribers = (
                f"return (await (await fetch('{server.url}/accounts/crew')).json()).subscribers"
            )
            page.until(subscribers + " === 0", seconds=5)

    def test_a_gap_is_shown(self) -> None:
        """A server that has forgotten everything does not look like a quiet one."""
        first = self.serve()
        page = self.visit(first.url)
        self.post(first, 1)
        self.shown(page, 1)
        first.stop()
        second = self.serve("--port", str(first.port))
        page.until("return document.querySelector('.gap')?.innerText.includes('missed')")
        self.post(second, 2)
        self.assertEqual(self.shown(page, 2), [1, 2])

    def test_a_stopped_server_is_noticed(self) -> None:
        """The page says that it reconnects, and why a test result cannot be sent."""
        server = self.serve()
        page = self.visit(server.url)
        server.stop()
        page.until("return document.getElementById('state').innerText.startsWith('reconnecting')")
        page.click("send")
        page.until("return document.getElementById('receipt').innerText.startsWith('Not sent')")
