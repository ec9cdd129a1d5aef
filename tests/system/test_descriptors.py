"""A server that has no file descriptors left serves those who are connected."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time

from twisted.trial.unittest import SynchronousTestCase

from harness.frames import PING, client_frame, handshake_request
from harness.processes import Server, start_server

HEAD = b"Host: localhost\r\nConnection: close\r\n"


def got(path: bytes) -> bytes:
    return b"GET %b HTTP/1.1\r\n%b\r\n" % (path, HEAD)


def posted(path: bytes, body: bytes, lines: bytes = b"") -> bytes:
    return b"POST %b HTTP/1.1\r\n%b%bContent-Length: %d\r\n\r\n%b" % (
        path,
        HEAD,
        lines,
        len(body),
        body,
    )


CLOUD = b'{"specversion":"1.0","id":"1","source":"s","type":"t","data":{"a":1}}'
LARGE = b'{"keys":{"account_id":"a"},"data":"%b"}' % (b"x" * 200_000)
REQUESTS = {
    got(b"/"): 200,
    got(b"/asyncplumber.js"): 200,
    got(b"/healthz"): 200,
    got(b"/readyz"): 200,
    got(b"/metrics"): 200,
    got(b"/accounts/a"): 200,
    got(b"/nope"): 404,
    got(b"/hooks/a"): 405,
    got(b"/events/a?wait=0"): 200,
    got(b"/healthz").replace(b"localhost", b"evil.example"): 200,
    got(b"/metrics").replace(b"localhost", b"evil.example"): 421,
    b"nonsense\r\n\r\n": 400,
    posted(b"/hooks/a", b"1"): 202,
    posted(
        b"/hooks/a", b"\xe9", b"Content-Type: text/plain; charset=utf-16\r\n"
    ): 503,  # a codec is a module
    posted(b"/hooks/a", CLOUD, b"Content-Type: application/cloudevents+json\r\n"): 202,
    posted(b"/hooks/a", b"1\n2", b"Content-Type: application/x-ndjson\r\n"): 202,
    posted(b"/hooks", LARGE): 202,
    posted(b"/instances/x/events", b"x" * 200_000): 410,
    handshake_request("/events/b") + client_frame(b"", PING): 101,
    got(b"/events/b")[:-2] + b"Accept: text/event-stream\r\n\r\n": 200,
}


def count_sockets(pid: int) -> int:
    """Return how many sockets a process has.  Files may come and go while it starts."""
    count = 0
    for entry in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            count += os.readlink(f"/proc/{pid}/fd/{entry}").startswith("socket:")
    return count


class ExhaustedTests(SynchronousTestCase):
    """RLIMIT_NOFILE of a running server is set below what it has open."""

    skip = None if sys.platform == "linux" else "prlimit and /proc are Linux's"

    def exhausted(self, *options: str) -> tuple[Server, list[socket.socket]]:
        """A server that can open nothing, and a connection for each request."""
        import resource

        server = start_server(*options)
        self.addCleanup(server.kill)
        clients = []
        before = len(os.listdir(f"/proc/{server.pid}/fd"))
        sockets = count_sockets(server.pid)
        for _ in REQUESTS:
            client = socket.create_connection(("127.0.0.1", server.port), 10)
            self.addCleanup(client.close)
            clients.append(client)
        deadline = time.monotonic() + 30
        while count_sockets(server.pid) < sockets + len(clients):  # it is about to accept them
            self.assertLess(time.monotonic(), deadline, "not all connections were accepted")
            time.sleep(0.01)
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (before, before))
        return server, clients

    def test_no_request_needs_a_file(self) -> None:
        """
        Each kind is the first of its kind, and nothing is imported or opened for it: no 500 and no
        traceback.
        """
        server, clients = self.exhausted()
        found = {}
        for client, request in zip(clients, REQUESTS, strict=True):
            client.sendall(request)
            answer = b""
            with contextlib.suppress(TimeoutError):
                while b"\r\n" not in answer and (data := client.recv(65536)):
                    answer += data
            self.assertIn(b"\r\n", answer, request)
            found[request] = int(answer.split()[1])
        self.assertEqual(found, REQUESTS)
        self.assertNotIn("Traceback", server.output)
        self.assertNotIn("Too many open files", server.output)
