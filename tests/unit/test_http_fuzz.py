"""
Bytes that no client should send, and mutations of them.

``tests/corpus/http`` has a file for each idea: put into it what a fuzzer or a stranger found.
"""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.auth.authority import Authority, Parts
from asyncplumber.auth.keys import Keys, digest
from asyncplumber.grant import Accounts, Grant
from asyncplumber.testing import MemoryServer
from harness.mounted import MountedServer

CORPUS = Path(__file__).resolve().parent.parent / "corpus" / "http"
FILES = {path.stem: path.read_bytes() for path in sorted(CORPUS.glob("*.http"))}
_ONE = Accounts.parse(["a"])
_LENGTH = re.compile(rb"\r\ncontent-length: ?([0-9]+)\r\n", re.IGNORECASE)
_PIECES = [
    b"\r\n",
    b"\r",
    b"\n",
    b"\x00",
    b" ",
    b":",
    b"%",
    b"0",
    b"0\r\n\r\n",
    b"Host: localhost\r\n",
    b"Content-Length: 1\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Authorization: Bearer reader-0123456789\r\n",
    b"Connection: Upgrade\r\nUpgrade: websocket\r\n",
    b"Origin: http://localhost\r\n",
    b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n",
]
# Where to cut: a place, how much to leave out, and what to put there.
_edits = st.lists(
    st.tuples(
        st.floats(0, 1), st.integers(0, 12), st.sampled_from(_PIECES) | st.binary(max_size=4)
    ),
    min_size=1,
    max_size=5,
)


def responses(data: bytes) -> list[tuple[int, bytes]]:
    """
    Return status and bytes of each response, without its Date.

    A stream ends the list.  Raises ValueError for what is no response.
    """
    found = []
    while data:
        head, blank, rest = data.partition(b"\r\n\r\n")
        match = re.match(rb"HTTP/1\.[01] ([0-9]{3}) ", head)
        if match is None or not blank:
            raise ValueError(f"this is no response: {data[:60]!r}")
        status = int(match[1])
        length = _LENGTH.search(head + b"\r\n")
        if status == 100:  # a client that has sent its body at once is not asked for it
            data = rest
            continue
        if length is None:
            found.append((status, b""))
            break
        size = int(length[1])
        text = re.sub(rb"\r\nDate: [^\r]*", b"", head) + rest[:size]
        found.append((status, text))
        data = rest[size:]
    return found


def without_receipt(response: tuple[int, bytes]) -> tuple[int, bytes]:
    """Return the response without what is another for each event: ids, its cursor, lengths."""
    status, text = response
    return status, re.sub(rb'"(id|cursor|run)": ?"[^"]*"|Content-Length: [0-9]*', b"", text)


class FuzzCase(SynchronousTestCase):
    """A server that must survive."""

    make_server: type[MemoryServer] = MemoryServer

    def setUp(self) -> None:
        keys = {
            digest("writer-0123456789"): Grant("w", publish=_ONE),
            digest("reader-0123456789"): Grant("r", subscribe=_ONE),
        }
        authority = Authority(Parts(keys=Keys(keys), cookie="__Host-plumber"))
        self.server = self.make_server(plumber={"authority": authority})

    def exchange(self, pieces: list[bytes]) -> bytes:
        """Send these pieces on a new connection, leave, and return what was received."""
        client = self.server.connect()
        for piece in pieces:
            client.send(piece)
        self.server.settle()
        received = client.received()
        client.disconnect()
        self.server.settle()
        return received

    def feed(self, pieces: list[bytes]) -> list[tuple[int, bytes]]:
        """Return the responses to these pieces."""
        received = self.exchange(pieces)
        return [] if received.startswith(b"HTTP/1.1 200 OK\r\n\r\n") else responses(received)

    def check_alive(self, found: list[tuple[int, bytes]], data: bytes) -> None:
        """The server has answered without a bug, and serves the next client."""
        self.assertEqual(self.flushLoggedErrors(), [], data)
        self.assertNotIn(500, [status for status, _ in found], data)
        self.assertEqual(self.server.request("GET", "/healthz").status, 200, data)


class CorpusTests(FuzzCase):
    """Each file of the corpus."""

    def test_each_file_is_answered_without_a_bug(self) -> None:
        """Whole, and byte by byte."""
        for name, data in FILES.items():
            self.check_alive(self.feed([data]), name.encode())
            self.check_alive(self.feed([data[i : i + 1] for i in range(len(data))]), name.encode())

    def test_only_what_has_a_credential_is_taken_in(self) -> None:
        """Of the whole corpus."""
        for name, data in FILES.items():
            before = self.server.plumber.intake.accepted
            self.feed([data])
            if b"Bearer writer" not in data:
                self.assertEqual(self.server.plumber.intake.accepted, before, name)

    def test_the_corpus_is_there(self) -> None:
        """A wrong path would test nothing."""
        self.assertGreater(len(FILES), 50)


class MountedCorpusTests(CorpusTests):
    """The same through a site of twisted.web, whose own logs and answers come with it."""

    make_server = MountedServer

    def feed(self, pieces: list[bytes]) -> list[tuple[int, bytes]]:
        """Send these pieces; what twisted.web itself answers is not judged here."""
        received = self.exchange(pieces)
        return [(500, received)] if b" 500 " in received[:13] else []


class SegmentTests(FuzzCase):
    """How the network cuts the bytes changes nothing."""

    def test_the_responses_are_the_same_in_any_pieces(self) -> None:
        """Whole, and in pieces of several sizes."""
        for name, data in FILES.items():
            whole = self.feed([data])
            for size in (1, 2, 7, 64, 1000):
                pieces = [data[i : i + size] for i in range(0, len(data), size)]
                self.assertEqual(
                    [without_receipt(each) for each in self.feed(pieces)],
                    [without_receipt(each) for each in whole],
                    f"{name} by {size}",
                )


class MutationTests(FuzzCase):
    """Mutations of the corpus."""

    @given(st.sampled_from(sorted(FILES)), _edits, st.lists(st.floats(0, 1), max_size=3))
    def test_a_mutation_is_answered_without_a_bug(
        self, name: str, edits: list[tuple[float, int, bytes]], cuts: list[float]
    ) -> None:
        """Edits at some places, sent in a few pieces."""
        data = FILES[name]
        for place, left_out, piece in edits:
            at = round(place * len(data))
            data = data[:at] + piece + data[at + left_out :]
        places = [0, *sorted(round(cut * len(data)) for cut in cuts), len(data)]
        pieces = [data[a:b] for a, b in pairwise(places)]
        self.check_alive(self.feed(pieces), data)

    @given(st.binary(max_size=200))
    def test_any_bytes_are_answered_without_a_bug(self, data: bytes) -> None:
        """What looks like no request at all."""
        self.check_alive(self.feed([data]), data)
