"""A plumber in an application of one's own, with the files of the options."""

from __future__ import annotations

import os
from pathlib import Path

from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from asyncplumber import authority_from_files
from asyncplumber.auth.tokens.mint import mint
from asyncplumber.testing import NOW
from harness.mounted import MountedServer

SECRET = "5d2e8c1f0a9b47368e1d2c3b4a59687f"
KEY = "k3y-0f-a-publisher-9f8e7d"


class OwnAuthorityTests(SynchronousTestCase):
    """Files that a test has written."""

    def setUp(self) -> None:
        self.folder = Path(self.mktemp())
        self.folder.mkdir()
        self.clock = MemoryReactorClock()
        self.clock.rightNow = NOW

    def write(self, name: str, text: str) -> str:
        """The path of a file that only its owner can read."""
        path = self.folder / name
        path.write_text(text)
        os.chmod(path, 0o600)
        return str(path)

    def test_the_files_say_who_may_do_what(self) -> None:
        """A key may publish, a token may subscribe, and nobody else may do anything."""
        authority = authority_from_files(
            jwt_secret_file=self.write("jwt", SECRET),
            publisher_key_file=self.write("keys", KEY),
            reactor=self.clock,
            wall=self.clock,
        )
        server = MountedServer(clock=self.clock, plumber={"authority": authority})
        token = mint(SECRET.encode(), "u", subscribe=["a"], expires_in=60, now=NOW)
        for path, credential, status in (
            ("/events/a?wait=0", token, 200),
            ("/events/b?wait=0", token, 403),
            ("/events/a?wait=0", KEY, 403),
            ("/events/a?wait=0", "another-key-of-somebody", 401),
        ):
            reply = server.request("GET", path, [("Authorization", f"Bearer {credential}")])
            self.assertEqual(reply.status, status, path)
        self.assertEqual(server.request("GET", "/events/a?wait=0").status, 401)
        self.assertEqual(server.post("a", b"1", ("Authorization", f"Bearer {KEY}")).status, 202)

    def test_no_file_is_an_error(self) -> None:
        """It would look like authentication, and be none."""
        with self.assertRaises(ValueError):
            authority_from_files(reactor=self.clock)

    def test_a_wrong_file_is_an_error_without_its_secret(self) -> None:
        """The sentence names the file."""
        for text in ("", "too-short-4711"):
            path = self.write("keys", text)
            with self.assertRaises(ValueError) as raised:
                authority_from_files(publisher_key_file=path, reactor=self.clock)
            self.assertIn(path, str(raised.exception))
            self.assertNotIn("4711", str(raised.exception))
