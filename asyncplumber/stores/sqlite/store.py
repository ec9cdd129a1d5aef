"""
History and registry in one SQLite file: the embedded default, for one machine.

Several processes may share the file, on a local disk.  What is accepted survives the death of any
process; with ``?synchronous=full`` it survives a power cut as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic
from typing import Any
from urllib.parse import parse_qsl

from twisted.internet.defer import Deferred, fail, succeed
from twisted.python.failure import Failure
from zope.interface import implementer

from asyncplumber.clocks import TimeSource, WallClock
from asyncplumber.errors import PlumberError
from asyncplumber.event import Draft, Instance, Stored
from asyncplumber.interfaces import LEASE, Appended, IStore
from asyncplumber.stores.retention import Retention
from asyncplumber.stores.sqlite.appender import probe
from asyncplumber.stores.sqlite.file import Connection, SqliteFile
from asyncplumber.stores.sqlite.history import SqliteHistory
from asyncplumber.stores.sqlite.registry import SqliteRegistry, kept_secret, wanted

# seconds for which a ping need not write again: whoever asks all the time must not keep the disk
# busy
FRESH = 1.0


def _parsed(uri: str) -> tuple[str, str]:
    """The path, and what `synchronous` is to be.  Raises ValueError."""
    path, _, query = uri.removeprefix("sqlite:").partition("?")
    if not path or path == ":memory:":
        raise ValueError(
            "sqlite: wants the path of a file; for a store that does not last, say memory:"
        )
    options = dict(parse_qsl(query, keep_blank_values=True))
    synchronous = options.pop("synchronous", "normal")
    if options or synchronous not in ("normal", "full"):
        raise ValueError(
            "after the path of a sqlite: store comes nothing, or ?synchronous=normal, or ?synchronous=full"
        )
    return path, synchronous


@implementer(IStore)
class SqliteStore:
    """History and registry in one file."""

    shared = True

    def __init__(
        self,
        uri: str,
        retention: Retention,
        reactor: Any,
        wall: TimeSource = WallClock,
        *,
        lease: float = LEASE,
    ) -> None:
        """
        `wall.seconds()` is the time of day.

        Raises ValueError if `uri` is not ``sqlite:PATH``, with or without ``?synchronous=full``.
        """
        path, synchronous = _parsed(uri)
        self._clock = wall
        self._written = -FRESH  # when a probe last went well, in seconds of the monotonic clock
        self._file = SqliteFile(path, synchronous, reactor)
        self.history = SqliteHistory(self._file, retention, wall)
        self.registry = SqliteRegistry(self._file, lease, wall)

    def append(self, drafts: Sequence[Draft]) -> Deferred[Appended]:
        now = self._clock.seconds()

        def work(
            connection: Connection,
        ) -> tuple[list[Stored | PlumberError], dict[str, list[Instance]] | Failure | None]:
            results = self.history.appender.append(connection, drafts, now)
            accounts = {result.event.account for result in results if isinstance(result, Stored)}
            try:
                return results, wanted(connection, accounts, now) if accounts else None
            except Exception:
                return results, Failure()

        return self._file.run(work).addCallback(self._appended)

    def _appended(
        self, answer: tuple[list[Stored | PlumberError], dict[str, list[Instance]] | Failure | None]
    ) -> Appended:
        results, found = answer
        if found is None:
            return Appended(results, None)
        if isinstance(found, Failure):
            return Appended(results, fail(self._file.translated(found)))
        return Appended(results, succeed(found))

    def secret(self) -> Deferred[bytes]:
        return self._file.run(kept_secret)

    def start(self) -> Deferred[None]:
        """
        Open the file.  Unlike a server it does not come by itself later: fails with ValueError if
        it cannot be used.
        """
        return Deferred.fromCoroutine(self._file.open())

    def stop(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self._file.close())

    def ping(self) -> Deferred[None]:
        """
        A write, because on a full disk all else goes well.  One that went well counts for `FRESH`
        seconds.
        """
        if monotonic() - self._written < FRESH:
            return succeed(None)
        now = self._clock.seconds()
        return self._file.run(lambda connection: probe(connection, now)).addCallback(self._probed)

    def _probed(self, _: None) -> None:
        self._written = monotonic()
