"""
A MongoDB server in memory, in which a test decides what happens next.

It knows the commands that the history, the tasks and the revocations send, and what they rest on:
unique indexes, inserts of several documents that are applied one by one, and a journal.  Each small
step is taken when a test says so: a command arrives, a document is applied, the journal advances,
an answer arrives, a connection opens.  So a test can kill the server between any two steps, lose an
answer, or have an insert arrive long after its sender gave up.

A replica set is the same with other words.  Its "journal" is what a majority has, and a "killed"
server is a primary that was replaced: the new one has only what a majority had.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from typing import Any

from pymongo.errors import AutoReconnect
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from txmongo.errors import TimeExceeded

from asyncplumber.stores.mongo.pool import ConnectionChanged
from harness.aggregation import Evaluation, piped

Document = dict[str, Any]
State = dict[str, dict[Any, Document]]  # collection -> _id -> document
Change = Callable[[State], None]
DUPLICATE = 11000
COLLECTIONS = (
    "events", "accounts", "epochs", "revocations", "tickets", "versions", "pings", "tasks",
    "task_presence", "callback_urls",
)  # fmt: skip
# The unique indexes of the events, in the order in which the server checks them.
EVENT_INDEXES = (("_id",), ("account", "epoch", "seq"), ("account", "key"))


def matches(document: Document, query: Document, now: datetime | None = None) -> bool:
    """
    Return whether a document matches a query of equality and simple operators.

    `now` is the server's time, for queries that need it.
    """
    for name, wanted in query.items():
        if name == "$expr":
            assert now is not None
            if not Evaluation(document, now).value(wanted):
                return False
            continue
        value = document.get(name)
        if not isinstance(wanted, dict):
            if value != wanted:
                return False
            continue
        for operator, operand in wanted.items():
            if not _compares(operator, value):
                return False
            if operator == "$in":
                right = value in operand
            elif operator == "$exists":
                right = (name in document) == operand
            elif operator == "$ne":
                right = operand not in value if isinstance(value, list) else value != operand
            elif operator == "$gt":
                right = value > operand
            elif operator == "$gte":
                right = value >= operand
            elif operator == "$lt":
                right = value < operand
            elif operator == "$lte":
                right = value <= operand
            else:
                raise NotImplementedError(operator)
            if not right:
                return False
    return True


def _compares(operator: str, value: Any) -> bool:
    """Whether a comparison makes sense.  A field that is missing is neither more nor less."""
    return value is not None or operator in ("$in", "$ne", "$exists")


class Request:
    """A command on its way to the server, and its answer on the way back."""

    def __init__(self, body: Document, answer: Deferred[Document]) -> None:
        self.body = body
        self.answer = answer
        self.applied = 0  # documents of an insert
        self.result: Document | None = None
        self.needs = 0  # the length of the log that must be durable before the answer is sent


class Connection:
    """A connection.  When its client's end is lost, the server's end may still have commands."""

    def __init__(self) -> None:
        self.inbox: deque[Request] = deque()
        self.outbox: deque[Request] = deque()

    def send(self, body: Document) -> Deferred[Document]:
        """Put a command on its way."""
        answer: Deferred[Document] = Deferred(lambda _: None)
        self.inbox.append(Request(deepcopy(body), answer))
        return answer

    def lose(self) -> None:
        """End the client's end.  Commands that are on their way may still arrive."""
        for request in (*self.outbox, *self.inbox):
            if not request.answer.called:
                request.answer.errback(AutoReconnect("the connection was lost"))
        self.outbox.clear()


class SimulatedPool:
    """What `asyncplumber.stores.mongo.uri.Pool` is to the link, for a `SimulatedMongod`."""

    def __init__(self, server: SimulatedMongod, size: int) -> None:
        self.generation = 0
        self._server = server
        self._connections: list[Connection | None] = [None] * size
        self._waiting: list[list[Deferred[Connection]]] = [[] for _ in range(size)]
        self._seen: list[Connection] = []
        self._next = 0
        self._open = True
        server.pools.append(self)

    def connectable(self) -> Iterator[Callable[[], None]]:
        """Yield, for each connection that is down, what opens it."""
        for index, connection in enumerate(self._connections):
            if connection is None and self._open:
                yield lambda index=index: self._connect(index)

    def _connect(self, index: int) -> None:
        connection = Connection()
        self._server.connections.append(connection)
        self._connections[index] = connection
        waiting, self._waiting[index] = self._waiting[index], []
        for deferred in waiting:
            deferred.callback(connection)

    def cut(self) -> None:
        """Lose all connections, as the client sees it."""
        lost = [each for each in self._connections if each is not None]
        self._connections = [None] * len(self._connections)
        for connection in lost:
            connection.lose()

    def getprotocol(self) -> Deferred[Connection]:
        index = self._next
        self._next = (index + 1) % len(self._connections)
        connection = self._connections[index]
        if connection is not None:
            return succeed(connection).addCallback(self._noted)
        waiting: Deferred[Connection] = Deferred(self._waiting[index].remove)
        self._waiting[index].append(waiting)
        return waiting.addCallback(self._noted)

    def _noted(self, connection: Connection) -> Connection:
        if connection not in self._seen:
            self._seen.append(connection)
            self.generation += 1
        return connection

    def command_on(
        self, generation: int, database: str, body: Document, timeout: float
    ) -> Deferred[Document]:
        """Send a command, but only by a connection of this generation."""

        def checked(connection: Connection) -> Deferred[Document]:
            if self.generation != generation:
                raise ConnectionChanged
            return connection.send(body)

        return self._limited(self.getprotocol().addCallback(checked), timeout)

    def command(self, database: str, body: Document, timeout: float) -> Deferred[Document]:
        return self._limited(
            self.getprotocol().addCallback(lambda connection: connection.send(body)), timeout
        )

    def _limited(self, answer: Deferred[Document], timeout: float) -> Deferred[Document]:
        def late(_: Any, timeout: float) -> Any:
            raise TimeExceeded(f"run time of {timeout} s exceeded")

        return answer.addTimeout(timeout, self._server.clock, late)

    def disconnect(self) -> Deferred[None]:
        self._open = False
        self.cut()
        return succeed(None)


class SimulatedMongod:
    """The server.  It does nothing by itself: see `steps`."""

    def __init__(self, clock: Clock, *, replicated: bool = False) -> None:
        self.clock = clock
        self.replicated = replicated
        self.is_up = True
        self.state: State = {name: {} for name in COLLECTIONS}
        self.durable_state: State = deepcopy(self.state)
        self.connections: list[Connection] = []
        self.pools: list[SimulatedPool] = []
        self._log: list[Change] = []
        self._durable = 0  # the length of the log that survives a kill

    def pool(self, address: object, size: int) -> SimulatedPool:
        """Stand in for the constructor of a pool.  Two connections show what any number shows."""
        return SimulatedPool(self, min(size, 2))

    def steps(self, *, journal: bool = True) -> list[Callable[[], None]]:
        """Return the steps that can be taken now, in a fixed order; those of the journal too?"""
        if not self.is_up:
            return []
        possible: list[Callable[[], None]] = []
        for connection in self.connections:
            if connection.inbox:
                possible.append(lambda at=connection: self._apply(at))
            if connection.outbox and connection.outbox[0].needs <= self._durable:
                possible.append(lambda at=connection: self._answer(at))
        if journal and self._durable < len(self._log):
            possible.append(self._journal)
        for pool in self.pools:
            possible.extend(pool.connectable())
        return possible

    def kill(self) -> None:
        """Forget what is not durable, and all that is on its way."""
        self.is_up = False
        self.state = deepcopy(self.durable_state)
        del self._log[self._durable :]
        self.connections.clear()
        for pool in self.pools:
            pool.cut()

    def start(self) -> None:
        """Come back with what is durable."""
        self.is_up = True

    def _journal(self) -> None:
        self._log[self._durable](self.durable_state)
        self._durable += 1

    def _write(self, change: Change) -> None:
        change(self.state)
        self._log.append(change)

    def _apply(self, connection: Connection) -> None:
        """Take one step with the oldest command of a connection."""
        request = connection.inbox[0]
        result = self._run(request)
        if result is None:
            return  # there are more documents
        connection.inbox.popleft()
        request.result = result
        if self._waits_for_journal(request, result):
            request.needs = len(self._log)
        if not request.answer.called:
            connection.outbox.append(request)

    @staticmethod
    def _waits_for_journal(request: Request, result: Document) -> bool:
        """Return whether the answer waits.  Nothing is promised of one that only tells an error."""
        if request.body.get("readConcern") == {"level": "linearizable"}:
            return True
        is_error = "writeErrors" in result and not result["n"]
        return "writeConcern" in request.body and not is_error

    def _answer(self, connection: Connection) -> None:
        request = connection.outbox.popleft()
        if not request.answer.called:
            request.answer.callback(request.result)  # type: ignore[arg-type]

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self.clock.seconds(), UTC)

    def _run(self, request: Request) -> Document | None:
        name = next(iter(request.body))
        result: Document | None = getattr(self, f"_run_{name}")(request)
        return result

    def _run_hello(self, request: Request) -> Document:
        return {"setName": "s", "hosts": ["a", "b", "c"]} if self.replicated else {}

    def _run_ping(self, request: Request) -> Document:
        return {}

    def _run_createIndexes(self, request: Request) -> Document:
        return {}

    def _run_insert(self, request: Request) -> Document | None:
        """Apply one document; None if there are more."""
        documents = request.body["documents"]
        document = documents[request.applied]
        for index in EVENT_INDEXES:
            key = {name: document[name] for name in index}
            if any(matches(other, key) for other in self.state["events"].values()):
                pattern = dict.fromkeys(index, 1)
                error = {"index": request.applied, "code": DUPLICATE, "keyPattern": pattern}
                return {"n": request.applied, "writeErrors": [error]}
        self._write(lambda state: state["events"].update({document["_id"]: document}))
        request.applied += 1
        return {"n": request.applied} if request.applied == len(documents) else None

    def _run_update(self, request: Request) -> Document:
        collection, now = request.body["update"], self._now()
        for update in request.body["updates"]:
            if isinstance(update["u"], list):
                self._pipe(collection, update, now)
                continue
            self._write(lambda state, update=update: self._update(state[collection], update, now))
        return {"n": len(request.body["updates"])}

    @staticmethod
    def _update(documents: dict[Any, Document], update: Document, now: datetime) -> None:
        query, change = update["q"], update["u"]
        found = [each for each in documents.values() if matches(each, query)]
        if not found and update.get("upsert"):
            new = {"_id": query["_id"], **change.get("$setOnInsert", {})}
            documents[new["_id"]] = new
            found = [new]
        for document in found if update.get("multi") else found[:1]:
            document.update(change.get("$set", {}))
            document.update(dict.fromkeys(change.get("$currentDate", {}), now))
            for name, value in change.get("$max", {}).items():
                document[name] = max(document.get(name, value), value)
            for name, value in change.get("$inc", {}).items():
                document[name] = document.get(name, 0) + value
            for name, unwanted in change.get("$pull", {}).items():
                document[name] = [each for each in document[name] if not matches(each, unwanted)]

    def _pipe(self, collection: str, update: Document, now: datetime) -> list[Document]:
        """Change documents by a pipeline, and return them as they are now."""
        documents = self.state[collection]
        found = [each for each in documents.values() if matches(each, update["q"], now)]
        for name in update.get("sort", ()):
            found.sort(key=lambda row, name=name: row[name])
        if not found and update.get("upsert"):
            found = [{"_id": update["q"]["_id"]}]
        changed = []
        for document in found if update.get("multi") else found[:1]:
            new = piped(document, update["u"], now)
            if new != document:
                change: Change = lambda state, new=new: state[collection].update(  # noqa: E731
                    {new["_id"]: deepcopy(new)}
                )
                self._write(change)
            changed.append(new)
        return changed

    def _run_findAndModify(self, request: Request) -> Document:
        body, now = request.body, self._now()
        collection = body["findAndModify"]
        update = {"q": body["query"], "u": body["update"], "upsert": body.get("upsert")}
        if isinstance(body["update"], list):
            changed = self._pipe(collection, {**update, "sort": body.get("sort", {})}, now)
            return {"value": deepcopy(changed[0]) if changed else None}
        self._write(lambda state: self._update(state[collection], update, now))
        return {"value": deepcopy(self.state[collection][update["q"]["_id"]])}

    def _run_count(self, request: Request) -> Document:
        documents = self._seen(request)[request.body["count"]].values()
        return {"n": sum(matches(each, request.body["query"]) for each in documents)}

    def _run_delete(self, request: Request) -> Document:
        collection, count = request.body["delete"], 0
        for delete in request.body["deletes"]:
            documents, now = self.state[collection].values(), self._now()
            for id in [each["_id"] for each in documents if matches(each, delete["q"], now)]:
                self._write(lambda state, id=id: state[collection].__delitem__(id))
                count += 1
        return {"n": count}

    def _seen(self, request: Request) -> State:
        """Return what a read with this concern sees."""
        if request.body.get("readConcern") == {"level": "majority"}:
            return self.durable_state
        return self.state

    def _run_find(self, request: Request) -> Document:
        body, now = request.body, self._now()
        documents = self._seen(request)[body["find"]].values()
        rows = [deepcopy(each) for each in documents if matches(each, body["filter"], now)]
        for name, direction in reversed(body.get("sort", {}).items()):
            rows.sort(key=lambda row, name=name: row[name], reverse=direction < 0)
        rows = rows[body.get("skip", 0) :][: body.get("limit", None)]
        if "projection" in body:
            rows = [self._projected(row, body["projection"], now) for row in rows]
        return {"cursor": {"firstBatch": rows}}

    @staticmethod
    def _projected(row: Document, projection: Document, now: datetime) -> Document:
        evaluation = Evaluation(row, now)
        computed = {name: evaluation.value(each) for name, each in projection.items() if each != 1}
        kept = {name: row[name] for name in ("_id", *projection) if name in row}
        return {**kept, **computed}

    def _run_aggregate(self, request: Request) -> Document:
        state, body = self._seen(request), request.body
        documents = list(state[body["aggregate"]].values())
        if body["aggregate"] == "epochs":
            rows = self._newest_epoch(documents, body["pipeline"])
        else:
            rows = self._events(state, documents, body["pipeline"])
        return {"cursor": {"firstBatch": rows}}

    def _newest_epoch(self, documents: list[Document], pipeline: list[Document]) -> list[Document]:
        milliseconds = pipeline[2]["$project"]["due"]["$lt"][1]["$subtract"][1]
        horizon = self._now() - timedelta(milliseconds=milliseconds)
        newest = sorted(documents, key=lambda each: (each["began"], each["_id"]))[-1:]
        return [{"_id": each["_id"], "due": each["began"] < horizon} for each in newest]

    def _events(
        self, state: State, documents: list[Document], pipeline: list[Document]
    ) -> list[Document]:
        """Run the stages that the history uses: match, newest of each account, rows of accounts."""
        rows = [deepcopy(each) for each in documents if matches(each, pipeline[0]["$match"])]
        if "stored_at" in pipeline[0]["$match"]:
            places = {(row["account"], row["epoch"]) for row in rows}
            return [
                {
                    "_id": {"account": account, "epoch": epoch},
                    "seq": max(
                        r["seq"] for r in rows if (r["account"], r["epoch"]) == (account, epoch)
                    ),
                }
                for account, epoch in sorted(places)
            ]
        if "total" in pipeline[0]["$match"]:
            rows.sort(key=lambda row: int(row["seq"]))
            found = [{**row, "size": len(row["payload"])} for row in rows]
            return [{name: row[name] for name in ("seq", "total", "size")} for row in found[:1]]
        for stage in pipeline[1:]:
            if "$group" in stage:
                newest: dict[str, Document] = {}
                for row in sorted(rows, key=lambda row: (row["epoch"], row["seq"])):
                    newest[row["account"]] = {
                        "_id": row["account"], "epoch": row["epoch"], "seq": row["seq"],
                        "total": row["total"],
                    }  # fmt: skip
                rows = list(newest.values())
            elif "$unionWith" in stage:
                rows += self._account_rows(state, stage["$unionWith"]["pipeline"])
            elif "$sort" not in stage:
                raise NotImplementedError(stage)
        return rows

    def _account_rows(self, state: State, pipeline: list[Document]) -> list[Document]:
        project = pipeline[1]["$project"]["row"]
        milliseconds = project["stale"]["$lt"][1]["$subtract"][1]
        horizon = self._now() - timedelta(milliseconds=milliseconds)
        return [
            {
                "_id": each["_id"],
                "row": {
                    "epoch": each["epoch"],
                    "floor": each["floor"],
                    "stale": each["touched"] < horizon,
                },
            }
            for each in state["accounts"].values()
            if matches(each, pipeline[0]["$match"])
        ]
