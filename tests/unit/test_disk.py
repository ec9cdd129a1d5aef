"""A disk that is nearly full makes an instance of SQLite not ready."""

from __future__ import annotations

import os
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.errors import Unavailable
from asyncplumber.stores.sqlite.disk import INTERVAL, Disk


def state(blocks: int, free: int, available: int) -> os.statvfs_result:
    """The state of a file system of so many blocks."""
    return os.statvfs_result((4096, 4096, blocks, free, available, 0, 0, 0, 0, 255))


class DiskTests(SynchronousTestCase):
    """A file system whose state the test decides."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.asked: list[str] = []
        self.state: Any = state(1000, 1000, 1000)
        self.disk = Disk("data/store.db", self.clock, self.statvfs)

    def statvfs(self, folder: str) -> os.statvfs_result:
        """Stand in for `os.statvfs`."""
        self.asked.append(folder)
        if isinstance(self.state, Exception):
            raise self.state
        result: os.statvfs_result = self.state
        return result

    def is_full(self, state: Any) -> bool:
        """Whether the disk counts as full at the next look."""
        self.state = state
        self.clock.advance(INTERVAL)
        try:
            self.disk.check()
        except Unavailable:
            return True
        return False

    def test_the_edge_is_at_95_percent(self) -> None:
        """The blocks that only root may use are no room, and are not counted."""
        self.assertFalse(self.is_full(state(1000, 51, 51)))
        self.assertTrue(self.is_full(state(1000, 50, 50)))
        self.assertFalse(self.is_full(state(1000, 150, 50)))
        self.assertTrue(self.is_full(state(1000, 140, 40)))
        self.assertTrue(self.is_full(state(1000, 0, 0)))

    def test_the_message_says_how_full_it_is(self) -> None:
        """In plain words, and no path."""
        self.state = state(1000, 30, 30)
        with self.assertRaises(Unavailable) as caught:
            self.disk.check()
        self.assertEqual(caught.exception.message, "the disk of the store is 97 % full")

    def test_it_looks_every_few_seconds(self) -> None:
        """However often it is asked, also while the disk is full."""
        self.disk.check()
        self.state = state(1000, 0, 0)
        self.clock.advance(INTERVAL - 0.1)
        self.disk.check()
        self.clock.advance(0.1)
        for _ in range(3):
            with self.assertRaises(Unavailable):
                self.disk.check()
        self.assertEqual(self.asked, ["data", "data"])

    def test_what_cannot_be_asked_is_not_full(self) -> None:
        """Nor is a file system that does not say how large it is."""
        self.assertFalse(self.is_full(OSError("no such folder")))
        self.assertFalse(self.is_full(state(0, 0, 0)))

    def test_a_file_without_a_folder_is_in_the_current_one(self) -> None:
        """The default store is one."""
        Disk("store.db", self.clock, self.statvfs).check()
        self.assertEqual(self.asked, ["."])
