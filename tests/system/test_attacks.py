"""Attacks that need real servers, files and connections; the others are in ``tests/unit``."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import select
import socket
import sqlite3
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from harness.mongod import fresh_uri
from harness.processes import Process, Server, start_server
from tests import signing

SECRET = "k1: a secret that only the application knows"
ADMIN = "plk_operator_0123456789abcdef"
PUBLISHER = "plk_publisher_0123456789abcdef"
SESSION = "s3cr3t-of-the-session"
MALLORY = "127.0.0.2"
TIMEOUT = 20.0  # seconds for a response
# An application that allows everybody, until it is told to refuse.
APPLICATION = """
import http.server

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args):
        pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print("listening at", server.server_port, flush=True)
server.serve_forever()
"""


class Answer:
    """A response, with the JSON of its body."""

    def __init__(self, status: int, body: bytes) -> None:
        self.status = status
        self.body = body

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class AttackCase(SynchronousTestCase):
    """Servers whose output must have no secret, and which must not answer 500."""

    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir()
        self.servers: list[Server] = []
        self.secrets = {SECRET, ADMIN, PUBLISHER, SESSION}
        self.statuses: set[int] = set()

    def file(self, name: str, text: str) -> str:
        """Return the path of a file that only we can read."""
        path = self.folder / name
        path.write_text(text, encoding="utf-8")
        path.chmod(0o600)
        return str(path)

    def start(self, toml: str, *options: str) -> Server:
        """Start a server with this ``--auth`` file beside a publisher's and an operator's key."""
        keys = f"""
            [[issuer]]
            iss = "https://app.example.com"
            secret_file = "{self.file("secret", SECRET)}"
            [[key]]
            name = "operator"
            file = "{self.file("operator", ADMIN)}"
            admin = true
            [[key]]
            name = "publisher"
            file = "{self.file("publisher", PUBLISHER)}"
            publish = [{{ all = true }}]
            subscribe = [{{ all = true }}]
        """
        auth = self.file("auth.toml", f"{keys}\n{toml}")
        server = start_server("--auth", auth, *options)
        self.addCleanup(server.kill)
        self.servers.append(server)
        return server

    def ask(
        self,
        server: Server,
        method: str,
        path: str,
        credential: str = "",
        body: bytes = b"",
        source: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Send a request on a new connection."""
        named = dict(headers or {})
        if credential:
            named["Authorization"] = f"Bearer {credential}"
        connection = http.client.HTTPConnection(
            "127.0.0.1",
            server.port,
            timeout=TIMEOUT,
            source_address=(source, 0) if source else None,
        )
        with closing(connection):
            connection.request(method, path, body or None, named)
            response = connection.getresponse()
            self.statuses.add(response.status)
            return Answer(response.status, response.read())

    def tearDown(self) -> None:
        """Assert what holds after each attack."""
        self.assertNotIn(500, self.statuses)
        for server in self.servers:
            output = server.output
            for secret in self.secrets:
                self.assertNotIn(secret, output)
            self.assertNotIn("Traceback", output)


class RowAttacks(AttackCase):
    """Rows 1 and 11: no credential, no row."""

    def test_01_11_refused_requests_leave_nothing_in_the_file(self) -> None:
        """Those of readers who are allowed leave nothing that stays."""
        path = self.folder / "events.sqlite"
        server = self.start("", "--store", f"sqlite:{path}")
        before = self.rows(path)
        for number in range(50):
            account = f"account-{number}"
            for credential in ("", "nonsense-token-0123456789"):
                self.secrets.add(credential or SECRET)
                for method, target in (
                    ("POST", f"/hooks/{account}"),
                    ("GET", f"/events/{account}?wait=0"),
                    ("GET", f"/accounts/{account}"),
                    ("POST", "/tickets"),
                    ("POST", "/revocations"),
                ):
                    source = f"127.0.1.{number + 1}"
                    answer = self.ask(server, method, target, credential, b"{}", source)
                    self.assertEqual(answer.status, 401, target)
        self.assertEqual(self.rows(path), before)
        for number in range(50):
            reading = f"/events/account-{number}?wait=0"
            self.assertEqual(self.ask(server, "GET", reading, PUBLISHER).status, 200)
        # A hook stands for the account as long as somebody is subscribed, and some seconds more.
        self.assertEqual(self.rows(path), {**before, "hooks": 50})
        self.assertEqual(self.ask(server, "POST", "/hooks/a", PUBLISHER, b"1").status, 202)
        self.assertNotEqual(self.rows(path), before)

    @staticmethod
    def rows(path: Path) -> dict[str, int]:
        """Return how many rows each table has that a client could make grow."""
        tables = ("accounts", "events", "hooks", "revocations", "tickets")
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            return {
                table: connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
                for table in tables
            }


class TicketAttacks(AttackCase):
    """Row 20, with processes that share a store."""

    def check_once(self, *servers: Server) -> None:
        """Each ticket counts once, however many connections show it at the same moment."""
        for number in range(5):
            made = self.ask(
                servers[number % len(servers)], "POST", "/tickets", PUBLISHER, b'{"account": "a"}'
            )
            self.assertEqual(made.status, 201)
            ticket = made.json["ticket"]
            self.secrets |= {ticket, ticket.rpartition(".")[2]}
            target = f"/events/a?wait=0&ticket={ticket}"
            with ThreadPoolExecutor(8) as threads:
                uses = [
                    threads.submit(self.ask, servers[use % len(servers)], "GET", target)
                    for use in range(8)
                ]
                found = sorted(use.result().status for use in uses)
            self.assertEqual(found, [200] + [401] * 7)

    def test_20_workers(self) -> None:
        """They share a file."""
        path = self.folder / "events.sqlite"
        self.check_once(self.start("", "--store", f"sqlite:{path}", "--workers", "2"))

    def test_20_instances(self) -> None:
        """They share a database."""
        store = fresh_uri()
        self.check_once(*(self.start("", "--store", store) for _ in range(2)))


class SenderAttacks(AttackCase):
    """Row 24, with workers: any of them may get the second copy."""

    def test_24_an_old_body_under_a_new_id(self) -> None:
        """It is a duplicate at each of them."""
        secret = "a secret of the sender"
        self.secrets.add(secret)
        sender = f"""
            [[sender]]
            name = "github"
            scheme = "github"
            secret_files = ["{self.file("github", secret)}"]
            accounts = ["ci"]
        """
        path = self.folder / "events.sqlite"
        server = self.start(sender, "--store", f"sqlite:{path}", "--workers", "2")
        for number in range(8):
            lines = dict(signing.github(secret, b"{}", f"delivery-{number}"))
            answer = self.ask(server, "POST", "/hooks/ci", body=b"{}", headers=lines)
            self.assertEqual((answer.status, answer.json["duplicate"]), (202, number > 0))
            foreign = self.ask(server, "POST", "/hooks/other", body=b"{}", headers=lines)
            self.assertEqual(foreign.status, 403)


class CallOutAttacks(AttackCase):
    """Row 21: a real application, which dies."""

    def test_21_the_application_dies(self) -> None:
        """New requests are answered with 503, and open streams stay for a while."""
        application = Process([sys.executable, "-c", APPLICATION])
        self.addCleanup(application.kill)
        port = application.wait_for(r"listening at (\d+)")[1]
        server = self.start(f"""
            [callout]
            url = "http://127.0.0.1:{port}/auth"
            forward = ["cookie"]
            recheck = 1
            grace = 4
            cache = 0
        """)
        page = {"Cookie": f"session={SESSION}", "Sec-Fetch-Site": "same-origin"}
        self.assertEqual(self.ask(server, "GET", "/events/a?wait=0", headers=page).status, 200)
        stream = http.client.HTTPConnection("127.0.0.1", server.port, timeout=TIMEOUT)
        self.addCleanup(stream.close)
        stream.request("GET", "/events/a", headers={**page, "Accept": "text/event-stream"})
        response = stream.getresponse()
        self.assertEqual(response.status, 200)
        died = time.monotonic()
        application.kill()
        self.assertEqual(self.ask(server, "GET", "/events/a?wait=0", headers=page).status, 503)
        with contextlib.suppress(http.client.IncompleteRead):
            response.read()  # until it ends
        self.assertTrue(2 < time.monotonic() - died < TIMEOUT)


class NumberAttacks(AttackCase):
    """Row 25: many connections, and many bad tokens."""

    def test_25_idle_connections_of_one_address(self) -> None:
        """Those beyond the limit are closed, and others are served."""
        server = self.start("", "--trusted-proxies", "none")
        connections = []
        reset = 0  # closed so early that the client sees it as a failure to connect
        for _ in range(1000):
            connection = socket.socket()
            self.addCleanup(connection.close)
            connection.settimeout(TIMEOUT)
            connection.bind((MALLORY, 0))
            try:
                connection.connect(("127.0.0.1", server.port))
            except ConnectionResetError:
                reset += 1
            else:
                connections.append(connection)
        self.assertEqual(self.ask(server, "POST", "/hooks/a", PUBLISHER, b"1").status, 202)
        poll = select.poll()
        for connection in connections:
            poll.register(connection, select.POLLIN | select.POLLRDHUP)
        deadline = time.monotonic() + TIMEOUT
        while len(closed := poll.poll(1000)) + reset < 800 and time.monotonic() < deadline:
            pass
        self.assertEqual(len(closed) + reset, 800)
        self.assertEqual(self.ask(server, "GET", "/healthz").status, 200)

    def test_25_a_flood_of_bad_tokens(self) -> None:
        """It does not delay the others."""
        server = self.start("", "--trusted-proxies", "none")
        self.refused = {401: 0, 429: 0}
        stop = threading.Event()
        flooding = threading.Thread(target=self.flood, args=(server, stop))
        flooding.start()
        try:
            times: list[float] = []
            while len(times) < 200 or sum(self.refused.values()) < 1000:
                began = time.perf_counter()
                answer = self.ask(server, "POST", "/hooks/a", PUBLISHER, b"1")
                times.append(time.perf_counter() - began)
                self.assertEqual(answer.status, 202)
        finally:
            stop.set()
            flooding.join()
        self.assertLess(self.refused[401], 100)
        times.sort()
        self.assertLess(times[int(len(times) * 0.99)], 1.0)  # seconds; some ms as a rule
        self.assertLess(len(server.output), 20_000)

    def flood(self, server: Server, stop: threading.Event) -> None:
        """Send bad tokens on one connection after the other, a thousand a second at most."""
        number = 0
        while not stop.is_set():
            connection = http.client.HTTPConnection(
                "127.0.0.1", server.port, timeout=TIMEOUT, source_address=(MALLORY, 0)
            )
            with closing(connection):
                for _ in range(50):
                    number += 1
                    named = {"Authorization": f"Bearer {os.urandom(12).hex()}.{number}.x"}
                    connection.request("POST", "/hooks/a", b"1", named)
                    response = connection.getresponse()
                    response.read()
                    self.refused[response.status] += 1
                    stop.wait(0.001)
