"""
The line to MongoDB: commands with a time limit, what counts as durable here, and whose fault it is
when none is answered.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Sequence
from time import monotonic
from typing import Any, TypeVar

from pymongo.errors import AutoReconnect, OperationFailure, PyMongoError
from twisted.internet.defer import CancelledError, Deferred, TimeoutError, succeed
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThreadPool
from txmongo.errors import TimeExceeded

from asyncplumber.errors import Unavailable
from asyncplumber.stores.mongo.uri import Address, Pool, parsed
from asyncplumber.stores.outage import Outage

T = TypeVar("T")

PATIENCE = 5.0  # seconds for a call, however many commands it takes
START_PATIENCE = 2.0  # seconds that a start waits for a server; it goes on trying afterwards
RETRY_PAUSE = 0.1  # seconds before an interrupted command is sent again
READERS = 3  # connections beside the writer's: more gain nothing
_BAD_LOGIN = (13, 18, 8000)  # server codes of Unauthorized and AuthenticationFailed
_INDEX_DIFFERS = 85
LOST = (AutoReconnect, TimeExceeded, TimeoutError, CancelledError)


def _reason(error: BaseException) -> str:
    """
    What to tell the operator.  Never the text of a failed command, which holds what was to be
    stored.
    """
    if isinstance(error, OperationFailure):
        details = error.details or {}
        text = f"{details.get('errmsg', type(error).__name__)} (code {error.code})"
        if error.code in _BAD_LOGIN:
            return f"MongoDB does not let us in, check user, password and authSource of the URI: {text}"
        return text
    if isinstance(error, TimeExceeded | TimeoutError | CancelledError):
        return "no answer in time"
    return str(error) or type(error).__name__


class MongoLink:
    """
    Connections to one database.  `indexes` are (collection, specification) pairs, created before
    anything else is done.
    """

    def __init__(
        self, uri: str, reactor: Any, indexes: Sequence[tuple[str, dict[str, Any]]]
    ) -> None:
        """Raises ValueError if `uri` cannot be used; dials nothing."""
        self._uri = uri
        # The nodes behind mongodb+srv are in the DNS, which is asked at the start.
        self._address: Address | None = None if uri.startswith("mongodb+srv:") else parsed(uri)
        self.reactor = reactor
        self._indexes = indexes
        self._outage = Outage(str(self._address or "mongodb+srv"))
        self._waiting: list[Deferred[None]] = []
        self._ready = False
        self._preparing: Deferred[None] = succeed(None)
        self._calls = 0
        self._idle: Deferred[None] | None = None
        self._open = False
        self._generations = (
            0  # of the writer's connections before the last stop, which no later one may repeat
        )
        self.reader: Any = None
        self.writer: Any = None
        self.replicated = False
        self._durable: dict[str, Any] = {"w": 1, "j": True}
        self._settled: dict[str, Any] = {"level": "local"}

    async def open(self) -> None:
        """Begin to connect, and wait a little for it."""
        self._open = True
        self._preparing = Deferred.fromCoroutine(self._prepare())
        self._preparing.addErrback(lambda failure: failure.trap(CancelledError) and None)
        try:
            await self._until_ready(monotonic() + START_PATIENCE)
        except TimeoutError:
            self._outage.began("no answer yet; trying on")

    async def close(self) -> None:
        """Wait for the calls under way, each of which ends by its time limit, and hang up."""
        self._open = False
        self._preparing.cancel()
        if self._calls:
            self._idle = Deferred()
            await self._idle
        for pool in (self.reader, self.writer):
            if pool is not None:
                await pool.disconnect()
        if self.writer is not None:
            self._generations = self.writer.generation
        self.reader = self.writer = None
        self._ready = False

    def pause(self, seconds: float) -> Deferred[None]:
        """@return: Deferred of None after that time."""
        return deferLater(self.reactor, seconds, lambda: None)

    async def _prepare(self) -> None:
        while True:
            try:
                await self._prepare_once(monotonic() + PATIENCE)
            except CancelledError:
                raise
            except Exception as error:
                self._outage.began(_reason(error))
                await self.pause(RETRY_PAUSE * 5)
            else:
                self._outage.over()
                self._ready = True
                waiting, self._waiting = self._waiting, []
                for deferred in waiting:
                    deferred.callback(None)
                return

    async def _prepare_once(self, deadline: float) -> None:
        if self._address is None:
            self._address = await deferToThreadPool(
                self.reactor, self.reactor.getThreadPool(), parsed, self._uri
            )
        if self.reader is None:
            self.reader, self.writer = Pool(self._address, READERS), Pool(self._address, 1)
            self.writer.generation = self._generations
        # Once through all connections, so that their generations have settled.
        for _ in range(READERS):
            hello = await self._command(deadline, {"hello": 1}, self.reader, "admin")
        await self._command(deadline, {"hello": 1}, self.writer, "admin")
        self._agree(hello, self._address.options)
        for collection, index in self._indexes:
            await self._index(deadline, collection, index)

    def _agree(self, hello: dict[str, Any], options: dict[str, Any]) -> None:
        """
        Find out what durable means here: the journal on a single server, a majority of a replica
        set; never less.
        """
        self.replicated = "setName" in hello or hello.get("msg") == "isdbgrid"
        if not self.replicated:
            return
        wanted = options.get("w", "majority")
        if isinstance(wanted, int) and wanted <= len(hello.get("hosts", ())) // 2:
            wanted = "majority"
        self._durable = {"w": wanted, "j": True, "wtimeout": int(PATIENCE * 1000)}
        self._settled = {"level": "majority"}

    async def _index(self, deadline: float, collection: str, index: dict[str, Any]) -> None:
        try:
            await self._command(
                deadline, {"createIndexes": collection, "indexes": [index]}, self.reader
            )
        except OperationFailure as error:
            if error.code != _INDEX_DIFFERS or "expireAfterSeconds" not in index:
                raise
            change = {"name": index["name"], "expireAfterSeconds": index["expireAfterSeconds"]}
            await self._command(deadline, {"collMod": collection, "index": change}, self.reader)

    async def _until_ready(self, deadline: float) -> None:
        if not self._ready:
            waiting: Deferred[None] = Deferred(self._waiting.remove)
            self._waiting.append(waiting)
            await waiting.addTimeout(max(0.0, deadline - monotonic()), self.reactor)

    def call(self, work: Callable[[float], Coroutine[Any, Any, T]]) -> Deferred[T]:
        """
        Run `work` with the monotonic time at which its time is up.  What the store does to it
        becomes `Unavailable`.
        """
        return Deferred.fromCoroutine(self._guarded(work))

    async def _guarded(self, work: Callable[[float], Coroutine[Any, Any, T]]) -> T:
        if not self._open:
            raise Unavailable
        deadline = monotonic() + PATIENCE
        self._calls += 1
        try:
            await self._until_ready(deadline)
            result = await work(deadline)
        except (PyMongoError, *LOST) as error:
            # Before the first contact the reason is known better by who tries to connect.
            if self._ready:
                self._outage.began(_reason(error))
            raise Unavailable from error
        finally:
            self._calls -= 1
            if self._idle is not None and not self._calls:
                self._idle.callback(None)
        self._outage.over()
        return result

    async def command(
        self, deadline: float, body: dict[str, Any], pool: Any = None
    ) -> dict[str, Any]:
        """
        Send a command that does no harm when it is sent twice, again and again until the deadline.
        """
        while True:
            try:
                return await self._command(deadline, dict(body), pool or self.reader)
            except AutoReconnect:
                if monotonic() + RETRY_PAUSE > deadline:
                    raise
                await self.pause(RETRY_PAUSE)

    async def rows(
        self, deadline: float, body: dict[str, Any], *, fresh: bool = False, proven: bool = False
    ) -> list[dict[str, Any]]:
        """
        The rows that a ``find`` or ``aggregate`` answers at once: its batch is all that is fetched.

        With `fresh` they are what the writer's server has at this moment, settled or not; else what
        a majority has. With `proven` the server that answers is the primary of that majority, see
        `mongo_proof`.
        """
        if fresh:
            answer = await self.command(
                deadline, {**body, "readConcern": {"level": "local"}}, self.writer
            )
        else:
            concern = {"level": "linearizable"} if proven and self.replicated else self._settled
            answer = await self.command(deadline, {**body, "readConcern": concern})
        return answer["cursor"]["firstBatch"]  # type: ignore[no-any-return]

    async def change(self, deadline: float, body: dict[str, Any]) -> dict[str, Any]:
        """The same for a command that writes; the answer comes when it is durable."""
        answer = await self.command(deadline, {**body, "writeConcern": self._durable})
        for error in (*answer.get("writeErrors", ()), answer.get("writeConcernError")):
            if error is not None:
                raise OperationFailure(error.get("errmsg", ""), error.get("code"), error)
        return answer

    async def write_once(self, deadline: float, body: dict[str, Any]) -> dict[str, Any]:
        """
        Send a command by the writer's connection, once.  The caller has to look for ``writeErrors``
        in the answer.

        It is sent before this coroutine first waits, if there is a connection: see
        `writer_generation`.
        """
        answer = await self._command(deadline, {**body, "writeConcern": self._durable}, self.writer)
        if error := answer.get("writeConcernError"):
            raise OperationFailure(error.get("errmsg", ""), error.get("code"), error)
        return answer

    async def writer_generation(self, deadline: float) -> int:
        """
        The generation of the connection that a `write_once` would use that is called without
        waiting for anything.
        """
        await self.writer.getprotocol().addTimeout(max(0.0, deadline - monotonic()), self.reactor)
        return self.writer.generation  # type: ignore[no-any-return]

    async def _command(
        self, deadline: float, body: dict[str, Any], pool: Any, database: str = ""
    ) -> dict[str, Any]:
        left = deadline - monotonic()
        if left <= 0:
            raise TimeoutError
        # Both limits: ours, and the server's, which otherwise would go on with what nobody waits
        # for.
        body["maxTimeMS"] = int(left * 1000) + 1
        answer: Awaitable[dict[str, Any]] = pool.command(
            database or self._address.database, body, timeout=left
        )  # type: ignore[union-attr]
        return await answer
