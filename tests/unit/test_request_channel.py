"""
Resources of twisted.web with producers, behind our connections: as fast as the client reads, and no
faster.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from twisted.internet.error import ConnectionAborted
from twisted.internet.interfaces import IPullProducer, IPushProducer
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site
from twisted.web.static import File
from zope.interface import implementer

from asyncplumber.http.listener import REQUEST_TIMEOUT
from asyncplumber.testing import MemoryServer, parse_responses
from harness.mounted import quiet

GET = b"GET /%b HTTP/1.1\r\nHost: localhost\r\n%b\r\n"


@implementer(IPushProducer)
class Ticker(Resource):
    """Sends a piece of its answer each second, unless it is told to pause."""

    isLeaf = True

    def __init__(self, clock: Any) -> None:
        super().__init__()
        self.clock = clock
        self.told: list[str] = []
        self.is_paused = False
        self.sent = 0

    def render_GET(self, request: Any) -> int:
        self.request = request
        request.notifyFinish().addErrback(lambda failure: self.told.append("lost"))
        request.setHeader(b"content-length", b"100")
        request.registerProducer(self, True)
        self.tick()
        return NOT_DONE_YET

    def tick(self) -> None:
        if "lost" in self.told:
            return
        if not self.is_paused:
            self.sent += 1
            self.request.write(b"x" * 10)
            if self.sent == 10:
                self.request.unregisterProducer()
                self.request.finish()
                return
        self.clock.callLater(1, self.tick)

    def pauseProducing(self) -> None:
        self.told.append("pause")
        self.is_paused = True

    def resumeProducing(self) -> None:
        self.told.append("resume")
        self.is_paused = False

    def stopProducing(self) -> None:
        self.told.append("stop")


class RequestChannelTests(SynchronousTestCase):
    """Any site behind our listener, in the place of our own."""

    def setUp(self) -> None:
        self.server = MemoryServer()

    def serve(self, resource: Resource) -> None:
        """Have this resource behind the listener."""
        self.server.listener.site = quiet(Site(resource, reactor=self.server.clock))

    def folder(self, size: int) -> bytes:
        """A folder with a file of so many bytes in it."""
        data = os.urandom(size)
        path = Path(self.mktemp())
        path.mkdir()
        (path / "file").write_bytes(data)
        self.serve(File(str(path)))
        return data

    def test_a_file_is_answered(self) -> None:
        """
        Whole, in a range, in several, and one that is not there; the next request on the connection
        too.
        """
        data = self.folder(1_000_000)
        for line, status, body in (
            (b"", 200, data),
            (b"Range: bytes=10-19\r\n", 206, data[10:20]),
            (b"Range: bytes=-5\r\n", 206, data[-5:]),
            (b"Range: bytes=9999999-\r\n", 416, b""),
        ):
            client = self.server.connect()
            client.send(GET % (b"file", line) + GET % (b"none", b""))
            answer, after = parse_responses(client.received())
            self.assertEqual((answer.status, answer.body, after.status), (status, body, 404))
        client = self.server.connect()
        client.send(GET % (b"file", b"Range: bytes=0-9,500000-500009\r\n"))
        (answer,) = parse_responses(client.received())
        self.assertEqual(answer.status, 206)
        self.assertIn(data[:10], answer.body)
        self.assertIn(data[500_000:500_010], answer.body)

    def test_a_file_is_read_no_faster_than_the_client_reads(self) -> None:
        """Of a large one little is sent to a client that does not read; then all of it."""
        data = self.folder(1_000_000)
        client = self.server.connect()
        client.reading = False
        client.send(GET % (b"file", b""))
        heard = client.received()
        self.assertLess(len(heard), 200_000)
        client.resume_reading()
        self.assertEqual(parse_responses(heard + client.received())[0].body, data)

    def test_a_producer_that_pushes_is_told_to_pause(self) -> None:
        """Once, and to go on when there is room."""
        ticker = Ticker(self.server.clock)
        self.serve(ticker)
        client = self.server.connect()
        client.send(GET % (b"", b""))
        self.server.advance(2)
        client.reading = False
        self.server.advance(20)
        self.assertEqual((ticker.told, ticker.sent), (["pause"], 4))
        client.resume_reading()
        self.server.advance(20)
        self.assertEqual(ticker.told, ["pause", "resume"])
        self.assertEqual(parse_responses(client.received())[0].body, b"x" * 100)

    def test_a_producer_is_stopped_when_the_client_leaves(self) -> None:
        """While it is paused, and while it is not; nothing is left to be done."""
        quiet = len(self.server.clock.getDelayedCalls())
        for reading in (True, False):
            ticker = Ticker(self.server.clock)
            self.serve(ticker)
            client = self.server.connect()
            client.reading = reading
            client.send(GET % (b"", b""))
            self.server.advance(2)
            client.disconnect()
            self.server.advance(2)
            # No resume comes before the stop, although there is room in what nobody reads.
            self.assertEqual(ticker.told, [*([] if reading else ["pause"]), "stop", "lost"])
        self.folder(1_000_000)
        client = self.server.connect()
        client.reading = False
        client.send(GET % (b"file", b""))
        client.disconnect()
        self.server.settle()
        self.assertEqual(len(self.server.clock.getDelayedCalls()), quiet)

    def test_a_producer_that_raises_ends_its_connection(self) -> None:
        """The rest of its response will never come; the failure is logged."""

        @implementer(IPullProducer)
        class Broken(Resource):
            isLeaf = True

            def render_GET(self, request: Any) -> int:
                request.setHeader(b"content-length", b"100")
                request.write(b"x")
                request.registerProducer(self, False)
                return NOT_DONE_YET

            def resumeProducing(self) -> None:
                raise RuntimeError("the disk is on fire")

            def stopProducing(self) -> None:
                """Do nothing."""

        self.serve(Broken())
        client = self.server.connect()
        client.send(GET % (b"", b""))
        self.assertIs(client.ended, ConnectionAborted)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.assertEqual(self.server.listener.connections, set())

    def test_a_response_that_nobody_reads_ends(self) -> None:
        """The request time-out holds for each piece, so a slow reader gets all of it."""
        data = self.folder(1_000_000)
        client = self.server.connect()
        client.reading = False
        client.send(GET % (b"file", b""))
        self.server.advance(2 * REQUEST_TIMEOUT + 5)
        self.assertIsNot(client.ended, None)
        client = self.server.connect()
        client.reading = False
        client.send(GET % (b"file", b""))
        heard = client.received()
        for _ in range(20):
            self.server.advance(REQUEST_TIMEOUT - 2)
            client.resume_reading()
            client.reading = False
            heard += client.received()
        self.assertEqual(parse_responses(heard)[0].body, data)

    def test_a_second_producer_is_refused(self) -> None:
        """As by twisted.web's own channel."""
        ticker = Ticker(self.server.clock)
        self.serve(ticker)
        client = self.server.connect()
        client.send(GET % (b"", b""))
        self.assertRaises(RuntimeError, ticker.request.channel.registerProducer, ticker, True)
