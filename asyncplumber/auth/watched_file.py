"""Files of the configuration that are read again when they change."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from twisted.application.service import Service
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from asyncplumber.concurrency import PeriodicTask

INTERVAL = 10.0  # seconds between two looks


class _Version(NamedTuple):
    """What changes when a file is written, or replaced by another one."""

    modified: int
    size: int
    inode: int


def _version(path: str) -> _Version | None:
    """Return None for a file that is not there, or that this process may not look at."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return _Version(status.st_mtime_ns, status.st_size, status.st_ino)


class WatchedFiles(Service):
    """
    Reads files again when one of them has changed.

    What was read before stays in use while the new content is wrong: a typing error must not lock
    everybody out.  It is logged as an error, once for each change.
    """

    _log = Logger()

    def __init__(
        self,
        paths: Callable[[], Iterable[str]],
        read: Callable[[], None],
        clock: IReactorTime,
        interval: float = INTERVAL,
    ) -> None:
        """
        Watch files that were read just before this call.

        Args:
            paths: Returns the files.  It is asked after each reading, because one file may name
                others.
            read: Reads the files and puts the new content to use.  Raises ValueError, with a
                sentence for the operator that has no secret in it, or OSError.
            clock: Measures the interval.
            interval: Seconds between two looks.
        """
        self._paths = paths
        self._read = read
        self._seen = self._versions()
        self._task = PeriodicTask(self.look, interval, clock)

    def _versions(self) -> Mapping[str, _Version | None]:
        return {path: _version(path) for path in self._paths()}

    def startService(self) -> None:
        """Look from now on."""
        super().startService()
        self._task.start()

    def stopService(self) -> None:
        """Look no more."""
        self._task.stop()
        super().stopService()

    def look(self) -> None:
        """Read the files again if one has changed."""
        versions = self._versions()
        if versions == self._seen:
            return
        changed = ", ".join(
            path for path in versions if versions[path] != self._seen.get(path, None)
        )
        # Those from before the reading: a file that is written during it is read once more.
        self._seen = versions
        try:
            self._read()
        except (OSError, ValueError) as error:
            self._log.error(
                "{changed} changed and cannot be used; what was read before stays in use: {error}",
                changed=changed,
                error=str(error),
            )
            return
        self._log.info("{changed} changed and was read again", changed=changed)
        self._seen = {path: versions.get(path, _version(path)) for path in self._paths()}
