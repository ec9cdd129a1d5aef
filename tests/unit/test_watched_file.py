"""Files of the configuration are read again when they change."""

from __future__ import annotations

import os
from pathlib import Path

from twisted.internet.task import Clock
from twisted.logger import LogLevel, capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.auth.watched_file import INTERVAL, WatchedFiles


class WatchedFilesTests(SynchronousTestCase):
    """One file, which may name a second one."""

    def setUp(self) -> None:
        self.path = Path(self.mktemp())
        self.path.write_text("one")
        self.more: list[str] = []
        self.read: list[str] = []
        self.clock = Clock()
        self.watched = WatchedFiles(self.paths, self.reads, self.clock)
        self.watched.startService()
        self.addCleanup(self.watched.stopService)

    def paths(self) -> list[str]:
        return [str(self.path), *self.more]

    def reads(self) -> None:
        text = self.path.read_text()
        if text == "bad":
            raise ValueError("line 1 is bad")
        self.read.append(text)

    def write(self, text: str) -> None:
        """Replace the file by another one, as editors and Kubernetes do."""
        other = self.path.with_suffix(".new")
        other.write_text(text)
        os.replace(other, self.path)

    def pass_time(self) -> list[str]:
        """Let one interval pass, and return what was logged."""
        with capturedLogs() as events:
            self.clock.advance(INTERVAL)
        return [formatEvent(event) for event in events if event["log_level"] is LogLevel.error]

    def test_a_file_that_stays(self) -> None:
        """It is not read again."""
        self.pass_time()
        self.assertEqual(self.read, [])

    def test_a_file_that_changes(self) -> None:
        """Within ten seconds, once."""
        self.write("two")
        self.clock.advance(INTERVAL - 0.1)
        self.assertEqual(self.read, [])
        self.clock.advance(0.1)
        self.pass_time()
        self.assertEqual(self.read, ["two"])

    def test_a_file_that_is_written_in_place(self) -> None:
        """Also with as many bytes as before."""
        self.path.write_text("two")
        os.utime(self.path, ns=(1, 1))
        self.pass_time()
        self.assertEqual(self.read, ["two"])

    def test_a_file_that_becomes_wrong(self) -> None:
        """One line in the log, and the next good content is used."""
        self.write("bad")
        [line] = self.pass_time()
        self.assertIn("line 1 is bad", line)
        self.assertIn(str(self.path), line)
        self.assertEqual(self.pass_time(), [])
        self.write("good")
        self.assertEqual(self.pass_time(), [])
        self.assertEqual(self.read, ["good"])

    def test_a_file_that_disappears(self) -> None:
        """It is an error to log, and the file may come back."""
        self.path.unlink()
        [line] = self.pass_time()
        self.assertIn("No such file", line)
        self.assertEqual(self.pass_time(), [])
        self.write("back")
        self.pass_time()
        self.assertEqual(self.read, ["back"])

    def test_a_file_that_names_another(self) -> None:
        """The other one is watched as well, from then on."""
        other = self.path.with_suffix(".keys")
        other.write_text("k")
        self.more.append(str(other))
        self.write("names the other")
        self.pass_time()
        self.pass_time()
        other.write_text("longer")
        self.pass_time()
        self.assertEqual(self.read, ["names the other", "names the other"])

    def test_after_the_stop(self) -> None:
        """Nobody looks."""
        self.watched.stopService()
        self.write("two")
        self.pass_time()
        self.assertEqual(self.read, [])
        self.watched.startService()
        self.pass_time()
        self.assertEqual(self.read, ["two"])
