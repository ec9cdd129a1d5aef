"""
All that a store keeps, in one SQLite file: the embedded default, for one machine.

Several processes may share the file, on a local disk.  Accepted events survive the death of any
process; with ``?synchronous=full`` they also survive a power cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import parse_qsl

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IReactorFromThreads
from twisted.python.failure import Failure
from zope.interface import implementer

from asyncplumber.clocks import SteadyClock, TimeSource, WallClock
from asyncplumber.errors import PlumberError
from asyncplumber.event import Draft, Instance, Stored
from asyncplumber.interfaces import LEASE, Appended, IStore
from asyncplumber.stores.retention import Retention
from asyncplumber.stores.sqlite.appender import probe
from asyncplumber.stores.sqlite.callback_urls import SqliteCallbackUrls
from asyncplumber.stores.sqlite.connect import Connection
from asyncplumber.stores.sqlite.disk import Disk
from asyncplumber.stores.sqlite.file import SqliteFile
from asyncplumber.stores.sqlite.history import SqliteHistory
from asyncplumber.stores.sqlite.registry import SqliteRegistry, find_instances, kept_secret
from asyncplumber.stores.sqlite.revocations import SqliteRevocations
from asyncplumber.stores.sqlite.tasks import SqliteTasks

# Seconds for which a successful ping answers for others: they must not keep the disk busy.
PING_LIFETIME = 1.0
Results = list[Stored | PlumberError]
Found = dict[str, list[Instance]]


def _parsed(uri: str) -> tuple[str, str]:
    """
    Return the path and the value of ``synchronous``.

    Raises:
        ValueError: There is something else; the message is for the user.
    """
    path, _, query = uri.removeprefix("sqlite:").partition("?")
    if not path or path == ":memory:":
        raise ValueError("sqlite: needs the path of a file; memory: is a store that does not last")
    options = dict(parse_qsl(query, keep_blank_values=True))
    synchronous = options.pop("synchronous", "normal")
    if options or synchronous not in ("normal", "full"):
        raise ValueError(
            "the only options of a sqlite: store are ?synchronous=normal and ?synchronous=full"
        )
    return path, synchronous


@implementer(IStore)
class SqliteStore:
    """
    All that a store keeps, in one file.

    Attributes:
        file: Runs statements in the file's thread.
    """

    shared = True

    def __init__(
        self,
        uri: str,
        retention: Retention,
        reactor: IReactorFromThreads,
        wall: TimeSource = WallClock,
        *,
        lease: float = LEASE,
        steady: TimeSource = SteadyClock,
    ) -> None:
        """
        Args:
            uri: ``sqlite:PATH``, which ``?synchronous=full`` may follow.
            retention: How much history it keeps.
            reactor: Takes the results from the file's thread.
            wall: The time of day.
            lease: Seconds that an instance counts after its last renewal.
            steady: A clock that is never set and may be used in any thread; it measures time-outs.

        Raises:
            ValueError: `uri` is something else; the message is for the user.
        """
        path, synchronous = _parsed(uri)
        self._wall = wall
        self._steady = steady
        self._disk = Disk(path, steady)
        self._pinged: float | None = None  # when a ping last succeeded, by the steady clock
        self.file = SqliteFile(path, synchronous, reactor, steady)
        self.figures = self.file.outage.figures
        self.history = SqliteHistory(self.file, retention, wall)
        self.registry = SqliteRegistry(self.file, lease, wall)
        self.revocations = SqliteRevocations(self.file, wall)
        self.tasks = SqliteTasks(self.file, wall)
        self.callback_urls = SqliteCallbackUrls(self.file, wall)

    def append(self, drafts: Sequence[Draft]) -> Deferred[Appended]:
        now = self._wall.seconds()

        def work(connection: Connection) -> tuple[Results, Found | Failure | None]:
            results = self.history.appender.append(connection, drafts, now)
            accounts = {result.event.account for result in results if isinstance(result, Stored)}
            try:
                return results, find_instances(connection, accounts, now) if accounts else None
            except Exception:
                return results, Failure()

        return self.file.run(work).addCallback(self._appended)

    def _appended(self, answer: tuple[Results, Found | Failure | None]) -> Appended:
        results, found = answer
        if found is None:
            return Appended(results, None)
        if isinstance(found, Failure):
            return Appended(results, fail(self.file.translated(found)))
        return Appended(results, succeed(found))

    def secret(self) -> Deferred[bytes]:
        return self.file.run(kept_secret)

    def start(self) -> Deferred[None]:
        """
        Open the file.

        Raises:
            ValueError: The file cannot be used, and will not become usable by itself, as a server
                would.  Through the Deferred; the message is for the user.
        """
        return Deferred.fromCoroutine(self.file.open())

    def stop(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self.file.close())

    def ping(self) -> Deferred[None]:
        """
        Write something, because on a full disk everything else succeeds.

        It also fails while the disk is nearly full, see `Disk`.
        """
        asked = self._steady.seconds()
        if self._pinged is not None and asked - self._pinged < PING_LIFETIME:
            return succeed(None)
        now = self._wall.seconds()

        def work(connection: Connection) -> None:
            probe(connection, now)
            self._disk.check()

        return self.file.run(work).addCallback(self._written)

    def _written(self, _: None) -> None:
        self._pinged = self._steady.seconds()
