"""The connection to MongoDB: commands with a time limit, what counts as durable, and outages."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar, TypeVarTuple, cast

from pymongo.errors import AutoReconnect, OperationFailure, PyMongoError
from twisted.internet.defer import CancelledError, Deferred, TimeoutError, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThreadPool

from asyncplumber.clocks import SteadyClock, TimeSource
from asyncplumber.concurrency import Waiters
from asyncplumber.errors import Unavailable
from asyncplumber.stores.mongo.pool import Pool, TimeExceeded
from asyncplumber.stores.mongo.uri import Address, parsed
from asyncplumber.stores.outage import Outage

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")
Document = dict[str, Any]

CALL_TIMEOUT = 5.0  # seconds for a call, however many commands it takes
START_TIMEOUT = 2.0  # seconds that a start waits for a server; it goes on trying afterwards
RETRY_PAUSE = 0.1  # seconds before an interrupted command is sent again
PREPARE_PAUSE = 0.5  # seconds before a failed first contact is tried again
READERS = 3  # connections beside the writer's; more gain nothing
DUPLICATE_KEY = 11000  # the server's code
_BAD_LOGIN = (13, 18, 8000)  # server codes of Unauthorized and AuthenticationFailed
_INDEX_DIFFERS = 85
LOST = (AutoReconnect, TimeExceeded, TimeoutError, CancelledError)


def _reason(error: BaseException) -> str:
    """
    Return what the operator is told.

    This is never the text of a failed command, which contains what was to be stored.
    """
    if isinstance(error, OperationFailure):
        details = error.details or {}
        text = f"{details.get('errmsg', type(error).__name__)} (code {error.code})"
        if error.code in _BAD_LOGIN:
            return (
                f"MongoDB refuses the login, check user, password and authSource of the URI: {text}"
            )
        return text
    if isinstance(error, TimeExceeded | TimeoutError | CancelledError):
        return "no answer in time"
    return str(error) or type(error).__name__


class MongoLink:
    """
    Connections to one database.

    Deadlines are times of `clock`.
    """

    def __init__(
        self,
        uri: str,
        reactor: IReactorTime,
        indexes: Sequence[tuple[str, Document]],
        clock: TimeSource = SteadyClock,
        connect: Callable[[Address, int], Any] = Pool,
    ) -> None:
        """
        Connect to nothing yet.

        Args:
            uri: A MongoDB URI.
            reactor: For timers; for ``mongodb+srv`` also its thread pool.
            indexes: Collections and specifications of the indexes to create first.
            clock: A clock that is never set.
            connect: Makes a pool of so many connections.

        Raises:
            ValueError: `uri` cannot be used.
        """
        self._uri = uri
        # For mongodb+srv the nodes are in the DNS, which is asked at the start.
        self._address: Address | None = None if uri.startswith("mongodb+srv:") else parsed(uri)
        self._reactor = reactor
        self._indexes = indexes
        self.clock = clock
        self._connect = connect
        #: Counts and logs when the server does not answer.
        self.outage = Outage(str(self._address or "mongodb+srv"))
        self._is_open = False
        self._is_ready = False
        self._ready = Waiters()
        self._preparing: Deferred[None] = succeed(None)
        self._calls = 0
        self._idle = Waiters()
        self._generations = 0  # of the writer before the last stop; no later one may repeat them
        self._reader: Any = None
        self._writer: Any = None
        self.replicated = False
        self._durable: Document = {"w": 1, "j": True}
        self._settled: Document = {"level": "local"}

    async def open(self) -> None:
        """Begin to connect, and wait a little for it."""
        self._is_open = True
        self._preparing = Deferred.fromCoroutine(self._prepare())
        self._preparing.addErrback(lambda failure: failure.trap(CancelledError) and None)
        try:
            await self._until_ready(self.clock.seconds() + START_TIMEOUT)
        except TimeoutError:
            self.outage.began("no answer yet; trying on")

    async def close(self) -> None:
        """Wait for the calls under way, each of which ends by its time limit, and disconnect."""
        self._is_open = False
        self._preparing.cancel()
        if self._calls:
            await self._idle.wait()
        for pool in (self._reader, self._writer):
            if pool is not None:
                await pool.disconnect()
        if self._writer is not None:
            self._generations = self._writer.generation
        self._reader = self._writer = None
        self._is_ready = False

    def pause(self, seconds: float) -> Deferred[None]:
        """Return a Deferred that fires after that time."""
        return deferLater(self._reactor, seconds, lambda: None)

    def limited(self, waiting: Deferred[T], deadline: float) -> Deferred[T]:
        """Give `waiting` a time limit.  It then fails with `TimeoutError`."""
        return waiting.addTimeout(max(0.0, deadline - self.clock.seconds()), self._reactor)

    async def _prepare(self) -> None:
        while True:
            try:
                await self._prepare_once(self.clock.seconds() + CALL_TIMEOUT)
            except CancelledError:
                raise
            except Exception as error:
                self.outage.began(_reason(error))
                await self.pause(PREPARE_PAUSE)
            else:
                self.outage.over()
                self._is_ready = True
                self._ready.release()
                return

    async def _prepare_once(self, deadline: float) -> None:
        if self._address is None:
            reactor = cast(Any, self._reactor)
            pool = reactor.getThreadPool()
            self._address = await deferToThreadPool(reactor, pool, parsed, self._uri)
        if self._reader is None:
            self._reader = self._connect(self._address, READERS)
            self._writer = self._connect(self._address, 1)
            self._writer.generation = self._generations
        # Use each connection once, so that the generations have settled.
        for _ in range(READERS):
            hello = await self._command(deadline, {"hello": 1}, self._reader, "admin")
        await self._command(deadline, {"hello": 1}, self._writer, "admin")
        self._agree(hello, self._address.options)
        await self._create_indexes(deadline)

    def _agree(self, hello: Document, options: Document) -> None:
        """
        Find out what durable means here.

        It is the journal on a single server and a majority of a replica set, and never less.
        """
        self.replicated = "setName" in hello or hello.get("msg") == "isdbgrid"
        if not self.replicated:
            return
        wanted = options.get("w", "majority")
        if isinstance(wanted, int) and wanted <= len(hello.get("hosts", ())) // 2:
            wanted = "majority"
        self._durable = {"w": wanted, "j": True, "wtimeout": int(CALL_TIMEOUT * 1000)}
        self._settled = {"level": "majority"}

    async def _create_indexes(self, deadline: float) -> None:
        wanted: dict[str, list[Document]] = {}
        for collection, index in self._indexes:
            wanted.setdefault(collection, []).append(index)
        for collection, indexes in wanted.items():
            create = {"createIndexes": collection, "indexes": indexes}
            try:
                await self._command(deadline, create, self._reader)
            except OperationFailure as error:
                if error.code != _INDEX_DIFFERS:
                    raise
                for index in indexes:
                    await self._create_index(deadline, collection, index)

    async def _create_index(self, deadline: float, collection: str, index: Document) -> None:
        create = {"createIndexes": collection, "indexes": [index]}
        try:
            await self._command(deadline, create, self._reader)
        except OperationFailure as error:
            if error.code != _INDEX_DIFFERS or "expireAfterSeconds" not in index:
                raise
            change = {"name": index["name"], "expireAfterSeconds": index["expireAfterSeconds"]}
            await self._command(deadline, {"collMod": collection, "index": change}, self._reader)

    async def _until_ready(self, deadline: float) -> None:
        if not self._is_ready:
            await self.limited(self._ready.wait(), deadline)

    def call(
        self,
        work: Callable[[float, *Arguments], Coroutine[Any, Any, T]],
        *arguments: *Arguments,
        is_part: bool = False,
    ) -> Deferred[T]:
        """
        Run `work` with a deadline.

        Args:
            work: Takes the deadline and the arguments.
            arguments: What else it takes.
            is_part: Whether this is a part of calls under way, which a stop waits for.

        Raises:
            Unavailable: Through the Deferred, for all that the connection or the server does.
        """
        return Deferred.fromCoroutine(self._guarded(work, arguments, is_part))

    async def _guarded(
        self,
        work: Callable[[float, *Arguments], Coroutine[Any, Any, T]],
        arguments: tuple[*Arguments],
        is_part: bool,
    ) -> T:
        if not self._is_open and not is_part:
            raise Unavailable
        deadline = self.clock.seconds() + CALL_TIMEOUT
        self._calls += 1
        recoveries = self.outage.recoveries
        try:
            await self._until_ready(deadline)
            result = await work(deadline, *arguments)
        except (PyMongoError, *LOST) as error:
            # Before the first contact, `_prepare` knows the reason better.
            if self._is_ready:
                self.outage.began(_reason(error), recoveries)
            raise Unavailable from error
        finally:
            self._calls -= 1
            if not self._calls:
                self._idle.release()
        self.outage.over()
        return result

    async def command(self, deadline: float, body: Document, pool: Any = None) -> Document:
        """Send a command that may be sent twice, again and again until the deadline."""
        while True:
            try:
                return await self._command(deadline, dict(body), pool or self._reader)
            except AutoReconnect:
                if self.clock.seconds() + RETRY_PAUSE > deadline:
                    raise
                await self.pause(RETRY_PAUSE)

    async def rows(
        self, deadline: float, body: Document, *, fresh: bool = False, proven: bool = False
    ) -> list[Document]:
        """
        Return the rows of a ``find`` or ``aggregate``.  Only its first batch is fetched.

        Args:
            deadline: When the time is up.
            body: The command.
            fresh: Read what the writer's server has at this moment, durable or not.  Otherwise
                read what a majority has.
            proven: Read from the primary of that majority, see `asyncplumber.stores.mongo.proof`.
        """
        if fresh:
            local = {**body, "readConcern": {"level": "local"}}
            answer = await self.command(deadline, local, self._writer)
        else:
            concern = {"level": "linearizable"} if proven and self.replicated else self._settled
            answer = await self.command(deadline, {**body, "readConcern": concern})
        rows: list[Document] = answer["cursor"]["firstBatch"]
        return rows

    async def change(self, deadline: float, body: Document) -> Document:
        """Send a command that writes and may be sent twice; it is durable when this returns."""
        answer = await self.command(deadline, {**body, "writeConcern": self._durable})
        for error in (*answer.get("writeErrors", ()), answer.get("writeConcernError")):
            if error is not None:
                raise OperationFailure(error.get("errmsg", ""), error.get("code"), error)
        return answer

    @property
    def reader_generation(self) -> int:
        """A number that changes when one of the readers' connections does."""
        return int(self._reader.generation)

    async def writer_generation(self, deadline: float) -> int:
        """Wait for the writer's connection, and return its generation."""
        await self.limited(self._writer.getprotocol(), deadline)
        return int(self._writer.generation)

    async def write_on(self, generation: int, deadline: float, body: Document) -> Document:
        """
        Send a command once, by the writer's connection of this generation.

        The caller has to look for ``writeErrors`` in the answer.

        Raises:
            ConnectionChanged: The connection is another one; nothing was sent.
            AutoReconnect: The connection was lost; nobody knows whether the server got it.
        """
        body = {**body, "writeConcern": self._durable}
        answer = await self._command(deadline, body, self._writer, generation=generation)
        if error := answer.get("writeConcernError"):
            raise OperationFailure(error.get("errmsg", ""), error.get("code"), error)
        return answer

    async def _command(
        self,
        deadline: float,
        body: Document,
        pool: Any,
        database: str = "",
        generation: int | None = None,
    ) -> Document:
        left = deadline - self.clock.seconds()
        if left <= 0:
            raise TimeoutError
        # The server has the same limit: else it would go on with what nobody waits for.
        body["maxTimeMS"] = int(left * 1000) + 1
        if not database:
            assert self._address is not None  # known since the first contact
            database = self._address.database
        if generation is None:
            answer: Deferred[Document] = pool.command(database, body, timeout=left)
        else:
            answer = pool.command_on(generation, database, body, timeout=left)
        return await answer
