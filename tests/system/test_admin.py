"""The admin page in a real Chromium: one process, several workers, and a cluster."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import time
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from twisted.trial.unittest import SynchronousTestCase

from harness.browser import Browser, browser, missing
from harness.mongod import fresh_uri
from harness.processes import Process, Server, start_server

PRIVATE = ("--private-listen", "0")
KEY = "an-admin-key-of-some-length"
MOUNTED = """
import sys
from twisted.internet import reactor
from twisted.web.resource import Resource
from twisted.web.server import Site
from asyncplumber import Plumber
from asyncplumber.auth.authority import Authority, Parts
from asyncplumber.auth.keys import Keys, digest
from asyncplumber.grant import Grant

root = Resource()
admin = Grant("key:ops", mechanism="key", is_admin=True)
plumber = Plumber(authority=Authority(Parts(keys=Keys({digest(sys.argv[1]): admin}))))
root.putChild(b"pipes", plumber.resource())
plumber.startService()
port = reactor.listenTCP(0, Site(root), interface="127.0.0.1")
print(f"port {port.getHost().port}", flush=True)
reactor.run()
"""
# Set to a folder, to keep pictures of the page for the documentation.
PICTURES = os.environ.get("ASYNCPLUMBER_PICTURES")
ROWS = "return [...document.querySelectorAll('#' + args[0] + ' tr')].map((row) => row.innerText)"


def admin_url(server: Server) -> str:
    """Return the URL of the admin page, without its path."""
    return server.wait_for(r"the admin page is at (\S+)/admin/")[1]


def status(url: str, *headers: tuple[str, str], data: bytes | None = None) -> int:
    """Return the status of a response."""
    try:
        with urlopen(Request(url, data, dict(headers))) as answer:
            return int(answer.status)
    except HTTPError as error:
        with error:
            return error.code


class AdminCase(SynchronousTestCase):
    """Servers, and the page of one of them."""

    skip = missing()

    def serve(self, *options: str) -> Server:
        server = start_server(*options)
        self.addCleanup(server.stop)
        return server

    def visit(self, url: str) -> Browser:
        page = browser()
        page.errors()  # those of the tests before
        page.go(f"{url}/admin/")
        self.addCleanup(page.go, "about:blank")
        return page

    def rows(self, page: Browser, table: str, pattern: str, count: int = 1) -> list[str]:
        """Wait until so many rows of a table match, and return all of its rows."""
        page.until(
            "const rows = [...document.querySelectorAll('#' + args[0] + ' tr')];"
            "const matching = rows.filter((row) => new RegExp(args[1]).test(row.innerText));"
            "return matching.length === args[2]",
            table,
            pattern,
            count,
        )
        found: list[str] = page.run(ROWS, table)
        return found

    def fill(self, page: Browser, **values: str) -> None:
        """Type into fields, by their ids with underscores for hyphens."""
        for name, value in values.items():
            id = name.replace("_", "-")
            page.run("document.getElementById(args[0]).value = args[1]", id, value)

    def publish(self, page: Browser, account: str, type: str, body: str) -> str:
        """Publish a test event by the form, and return what the page says about it."""
        self.fill(page, account=account, type=type, body=body)
        page.run("document.getElementById('receipt').textContent = ''")
        page.click("publish")
        return str(page.until("return document.getElementById('receipt').textContent"))

    def watched(self, page: Browser, count: int) -> list[Any]:
        """Wait for so many events in the live view; return type and data, the oldest first."""
        page.until("return document.querySelectorAll('#results .data').length >= args[0]", count)
        found: list[Any] = page.run(
            "return [...document.querySelectorAll('#results .result')].map((row) =>"
            " [row.querySelector('.type').innerText, row.querySelector('.data').innerText])"
        )
        return [(type, json.loads(data)) for type, data in reversed(found)]

    def watch(self, page: Browser, account: str, transport: str = "") -> None:
        self.fill(page, account=account, transport=transport)
        page.click("watch")
        page.until("return document.getElementById('live-state').dataset.state === 'open'")

    def post(self, url: str, account: str, data: Any) -> None:
        self.assertIn(status(f"{url}/hooks/{account}", data=json.dumps(data).encode()), (201, 202))

    def picture(self, page: Browser, name: str, height: int = 1000) -> None:
        if PICTURES:
            page.resize(1180, height)
            page.run("scrollTo(0, 0)")
            page.screenshot(Path(PICTURES) / f"{name}.png")


class OneProcessTests(AdminCase):
    """One process, with a private port."""

    def test_events_are_published_and_watched(self) -> None:
        """What is kept is replayed first; the type and the body are one's own."""
        server = self.serve(*PRIVATE)
        self.post(server.url, "crew", {"kept": 1})
        for transport in ("websocket", "sse", "longpoll"):
            page = self.visit(admin_url(server))
            self.watch(page, "crew", transport)
            self.assertEqual(self.watched(page, 1)[0], ("result", {"kept": 1}))
            before = len(self.watched(page, 1))
            said = self.publish(page, "crew", f"report.{transport}", '{"from": ["the", "page"]}')
            self.assertRegex(said, r"^Accepted as \w+\.\d+; subscribers: \d\.$")
            last = self.watched(page, before + 1)[-1]
            self.assertEqual(last, (f"report.{transport}", {"from": ["the", "page"]}))
            self.post(server.url, "crew", ["from outside"])
            self.assertEqual(self.watched(page, before + 2)[-1], ("result", ["from outside"]))
            self.assertEqual(page.errors(), [])

    def test_an_event_that_is_refused_is_explained(self) -> None:
        """With the words of the server."""
        page = self.visit(admin_url(self.serve(*PRIVATE)))
        said = self.publish(page, "crew", "plumber.open", "1")
        self.assertRegex(said, r"^400: .*plumber\.")

    def test_accounts_and_refusals_are_shown(self) -> None:
        """A click on an account watches it."""
        server = self.serve(*PRIVATE)
        page = self.visit(admin_url(server))
        self.post(server.url, "crew", 1)
        self.assertEqual(status(f"{server.url}/admin/"), 404)
        foreign = ("Origin", "https://evil.example")
        self.assertEqual(status(f"{server.url}/hooks/crew?token=s3cret", foreign, data=b"1"), 403)
        rows = self.rows(page, "refusal-rows", "foreign origin")
        self.assertRegex(rows[0], r"403\s+foreign origin\s+POST /hooks/crew\s+127\.0\.0\.1")
        self.assertNotIn("s3cret", "".join(rows))
        self.fill(page, account_search="crew")
        page.run("document.getElementById('account-form').requestSubmit()")
        self.rows(page, "account-rows", r"crew\s+0\s+\w+\.1")
        page.run("document.querySelector('#account-rows button').click()")
        self.assertEqual(self.watched(page, 1), [("result", 1)])
        self.rows(page, "account-rows", r"crew\s+1\s+\w+\.1\s+\w+: 1, \w+\.1")
        page.click("stop")
        page.until("return document.getElementById('live-state').dataset.state === 'closed'")
        self.rows(page, "account-rows", r"crew\s+0\s+")

    def test_the_private_port_is_a_file(self) -> None:
        """A UNIX socket serves as well; a proxy or ssh brings the browser there."""
        path = Path(self.mktemp()).absolute()
        server = self.serve("--private-listen", f"unix:{path.name}", "--store", "memory:")
        self.assertIn(f"the admin page is at unix:{path.name}", server.output)
        self.assertEqual(status(f"{server.url}/metrics"), 404)


class KeyTests(AdminCase):
    """Without a private port: an admin key."""

    def serve_with_key(self) -> str:
        """Return the URL of a server that knows the key."""
        path = Path(self.mktemp())
        digest = sha256(KEY.encode()).hexdigest()
        path.write_text(f'[[key]]\nname = "ops"\nadmin = true\nsha256 = "{digest}"\n')
        return self.serve("--auth", str(path.absolute())).url

    def serve_mounted(self) -> str:
        """Return the URL of a plumber with the key, below a path of another site."""
        process = Process([sys.executable, "-c", MOUNTED, KEY])
        self.addCleanup(process.stop)
        return f"http://127.0.0.1:{process.wait_for(r'port ([0-9]+)')[1]}/pipes"

    def sign_in(self, page: Browser, key: str) -> None:
        page.until("return !document.getElementById('login').hidden")
        self.fill(page, key=key)
        page.run("document.getElementById('login-form').requestSubmit()")

    def check_key(self, url: str) -> None:
        page = self.visit(url)
        self.sign_in(page, "wrong")
        page.until("return /refused/.test(document.getElementById('login-message').textContent)")
        self.sign_in(page, KEY)
        self.rows(page, "instance-rows", "running")
        page.errors()  # of the refused key
        for number, transport in enumerate(("websocket", "sse", "longpoll"), 1):
            self.watch(page, "crew", transport)
            self.publish(page, "crew", "test", str(number))
            self.assertEqual(self.watched(page, number)[-1], ("test", number))
        kept = page.run(
            "return JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie,"
            " location.href, performance.getEntries().map((entry) => entry.name)])"
        )
        self.assertNotIn(KEY, kept)
        self.assertEqual(page.errors(), [])
        page.go(f"{url}/admin/")
        page.until("return !document.getElementById('login').hidden")

    def test_the_page_asks_for_the_key(self) -> None:
        """It is in no URL and in no storage; a wrong one is refused with a sentence."""
        self.check_key(self.serve_with_key())

    def test_the_page_works_below_a_path_of_another_site(self) -> None:
        """With the key of an authority that the application has made."""
        self.check_key(self.serve_mounted())

    def test_a_subject_is_revoked(self) -> None:
        """And shown in the list."""
        page = self.visit(self.serve_mounted())
        self.sign_in(page, KEY)
        self.rows(page, "revocation-rows", "Nothing is revoked")
        self.fill(page, revoke_value="user-42")
        page.click("revoke")
        self.rows(page, "revocation-rows", r"subject\s+user-42\s+\d")


class WorkerTests(AdminCase):
    """Workers, which share the private port."""

    def serve_workers(self, private: str = "0") -> Server:
        store = Path(self.mktemp()).absolute()
        options = ("--store", f"sqlite:{store}", "--lease", "3s", "--private-listen", private)
        return self.serve("--workers", "2", *options)

    def workers(self, page: Browser) -> dict[str, int]:
        """Wait until both run, and return the process of each."""
        rows = self.rows(page, "instance-rows", r"worker [12][\s\S]*running", 2)
        found = [re.search(r"worker (\d)[\s\S]*pid (\d+)", row) for row in rows]
        return {match[1]: int(match[2]) for match in found if match}

    def test_the_page_shows_all_workers(self) -> None:
        """Whichever one answers; also after one of them was restarted."""
        server = self.serve_workers()
        private = admin_url(server)
        page = self.visit(private)
        before = self.workers(page)
        self.assertEqual(sorted(before), ["1", "2"])
        self.watch(page, "crew")
        for number in range(5):
            self.post(server.url, "crew", number)
        self.assertEqual([data for _, data in self.watched(page, 5)], list(range(5)))
        self.publish(page, "crew", "test", "5")
        self.assertEqual(self.watched(page, 6)[-1], ("test", 5))
        page.until("return /[1-9]/.test(document.querySelector('#totals dd').innerText)")
        page.run("document.getElementById('hook-form').requestSubmit()")
        self.rows(page, "hook-rows", "^crew")
        self.picture(page, "admin")
        os.kill(before["1"], signal.SIGKILL)
        page.until(
            "return [...document.querySelectorAll('#instance-rows tr')].every("
            "(row) => !new RegExp(args[0]).test(row.innerText))",
            rf"pid {before['1']},",
        )
        after = self.workers(page)
        self.assertEqual(sorted(after), ["1", "2"])
        self.assertEqual(after["2"], before["2"])

    def test_the_ports_have_their_paths(self) -> None:
        """The private one has the figures of all workers; each worker's own port has its hooks."""
        server = self.serve_workers()
        private = admin_url(server)
        for path in ("/metrics", "/admin/", "/instances/x/status", "/revocations"):
            self.assertEqual(status(server.url + path), 404)
        for path in ("/metrics", "/admin/", "/readyz"):
            self.assertEqual(status(private + path), 200)
        with urlopen(f"{private}/admin/cluster", timeout=20) as answer:
            instances = json.load(answer)["instances"]
        for instance in instances:
            own = instance["status"]["url"]
            self.assertEqual(status(f"{instance['url']}/status"), 403)  # it is not signed
            for path in ("/metrics", "/admin/", "/revocations"):
                self.assertEqual(status(own + path), 404)

    def states(self, path: Path) -> list[str]:
        """Ask at a UNIX socket for the states of all instances."""
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(20)
            client.connect(str(path))
            client.sendall(b"GET /admin/cluster HTTP/1.0\r\n\r\n")
            answer = b"".join(iter(lambda: client.recv(65536), b""))
        instances = json.loads(answer.partition(b"\r\n\r\n")[2])["instances"]
        return [each["status"]["state"] for each in instances]

    def test_workers_share_a_unix_socket(self) -> None:
        """Its file goes when the server stops."""
        path = Path(tempfile.mkdtemp()) / "admin"
        self.addCleanup(shutil.rmtree, path.parent)
        server = self.serve_workers(f"unix:{path}")
        states: list[str] = []
        deadline = time.monotonic() + 20
        while len(states) < 2:  # a worker that has just started is not in the registry yet
            self.assertLess(time.monotonic(), deadline)
            states = self.states(path)
        self.assertEqual(states, ["running", "running"])
        server.stop()
        self.assertFalse(path.exists())


class ClusterTests(AdminCase):
    """Two servers on one store."""

    def check_cluster(self, store: str) -> None:
        options = ("--store", store, "--lease", "3s", *PRIVATE)
        first, second = self.serve(*options), self.serve(*options)
        page = self.visit(admin_url(first))
        self.rows(page, "instance-rows", "running", 2)
        self.watch(page, "crew")
        self.post(second.url, "crew", ["from the other"])
        self.assertEqual(self.watched(page, 1), [("result", ["from the other"])])
        page.run("document.getElementById('hook-form').requestSubmit()")
        # The other instances come in where operators do.
        self.rows(page, "hook-rows", f"{admin_url(first)}/instances/[0-9a-f]+/hooks/crew$")
        other = self.visit(admin_url(second))
        self.rows(other, "instance-rows", "running", 2)
        self.watch(other, "crew")
        self.publish(other, "crew", "test", "7")
        self.assertEqual(self.watched(other, 2)[-1], ("test", 7))
        first.kill()
        self.rows(other, "instance-rows", "does not answer|gone")
        self.rows(other, "instance-rows", "running", 1)
        other.until("return document.querySelectorAll('#instance-rows tr').length === 1")

    def test_the_page_shows_both(self) -> None:
        """Also the one that does not answer any more, until its lease ends."""
        self.check_cluster(f"sqlite:{Path(self.mktemp()).absolute()}")

    def test_the_page_shows_both_on_mongodb(self) -> None:
        """With the leases by the clock of the server."""
        self.check_cluster(fresh_uri())
