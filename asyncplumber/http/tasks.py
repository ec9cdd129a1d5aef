"""
``/tasks``: start or join, look, wait, list and cancel.

Both ways in call this, as they call `Subscribers`: a request that is held is a subscriber, which
waits for one event.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from asyncplumber.concurrency import Waiters
from asyncplumber.core.hub import Hub
from asyncplumber.core.tasks.errors import ResultGone
from asyncplumber.core.tasks.outcomes import Outcome
from asyncplumber.core.tasks.service import Tasks
from asyncplumber.errors import GrantExpired, PlumberError, to_client_error
from asyncplumber.grant import Grant
from asyncplumber.http.clients import Visit
from asyncplumber.http.gate import Gate
from asyncplumber.http.problems import problem
from asyncplumber.http.request import Request
from asyncplumber.http.responses import Response
from asyncplumber.http.subscribers import Exchange
from asyncplumber.http.task_paths import Page, task_path
from asyncplumber.http.task_requests import Asked, allowed, asked_by
from asyncplumber.http.task_responses import (
    canceled_response,
    list_response,
    result_response,
    started_response,
    task_response,
)
from asyncplumber.task import Task
from asyncplumber.transports.deadlines import Deadlines

# Seconds before the end of a grant at which a held request is answered.
MARGIN = 1.0
DRAIN_TIMEOUT = 5.0  # seconds in which a stop waits for the last responses


class TaskPages:
    """Serves ``/tasks``."""

    log = Logger()

    def __init__(
        self, tasks: Tasks, hub: Hub, gate: Gate, deadlines: Deadlines, clock: IReactorTime
    ) -> None:
        """
        Args:
            tasks: The tasks of this instance.
            hub: Says whether somebody is subscribed to an account already.
            gate: Says who may read a response, and what clients may do at most.
            deadlines: Knows how long grants last.
            clock: The reactor's clock.
        """
        self.gate = gate
        self.deadlines = deadlines
        self._tasks = tasks
        self._hub = hub
        self._clock = clock
        self._pending: set[_Pending] = set()
        self._all_answered = Waiters()

    def serve(self, exchange: Exchange, request: Request, grant: Grant, body: bytes) -> None:
        """
        Answer a request, now or later.

        Args:
            exchange: The request's connection.
            request: The request.
            grant: What its sender may do, and until when.
            body: The body.

        Raises:
            PlumberError: The request is wrong; nothing was begun.
        """
        if request.method == b"OPTIONS":
            path = task_path(request.target.partition(b"?")[0])
            allow = (b"Allow", allowed(path.page).encode("ascii"))
            exchange.respond(
                self.gate.readable(request, Response(200, b"text/plain", b"", (allow,)))
            )
            return
        asked = asked_by(request, body, self._tasks.hold)
        wait, account = self._wait_of(asked, exchange, grant), asked.path.account
        opens = wait > 0 and not self._hub.serves(account)
        visit = self._visit(exchange, request, grant, opens) if wait > 0 else None
        if wait <= 0 and asked.start is None:
            self.gate.clients.check_read(request)
        pending = _Pending(self, exchange, request, grant, account, visit)
        self._pending.add(pending)
        exchange.awaits_events = wait > 0
        pending.wait_for(Deferred.fromCoroutine(self._response(asked, wait, grant)))
        if visit is not None and opens and self._hub.serves(account):
            visit.opened(account)

    def _wait_of(self, asked: Asked, exchange: Exchange, grant: Grant) -> float:
        """Return the seconds for which a request is held."""
        if exchange.input_ended:
            return 0.0  # nothing would tell that it leaves
        left = self.deadlines.expires_in(grant)
        return asked.wait if left is None else max(0.0, min(asked.wait, left - MARGIN))

    def _visit(
        self, exchange: Exchange, request: Request, grant: Grant, opens: bool
    ) -> Visit | None:
        """Count a held request as a long-poll.  Raises `TooManyRequests`."""
        return self.gate.clients.visit(
            request,
            grant,
            is_poll=True,
            resumes=False,
            opens=opens,
            is_counted=exchange.arrival is not None and exchange.arrival.hold is not None,
        )

    async def _response(self, asked: Asked, wait: float, grant: Grant) -> Response:
        page, account, key = asked.path
        if page is Page.LIST:
            tasks = await self._tasks.of_account(account, live_only=asked.is_live_only)
            return list_response(tasks, asked)
        if page is Page.CANCEL:
            return canceled_response(await self._tasks.cancel(account, key), asked)
        if asked.start is not None:
            outcome: Outcome = await self._tasks.start(asked.start, wait, grant)
            task = await self._tasks.result(outcome.task)
            return started_response(outcome._replace(task=task), asked)
        outcome = await self._tasks.get(account, key, wait, grant)
        if page is Page.RESULT:
            return result_response(await self._tasks.result(outcome.task))
        return task_response(await self._with_result(outcome.task), asked)

    async def _with_result(self, task: Task) -> Task:
        try:
            return await self._tasks.result(task)
        except ResultGone:
            return task  # the task itself is known

    # Endings

    def answered(self, pending: _Pending) -> None:
        """Forget a request that has its response, or whose client has left."""
        self._pending.discard(pending)
        if not self._pending:
            self._all_answered.release()

    def end_where(self, matches: Callable[[Grant, str], bool], error: PlumberError) -> None:
        """Answer the requests whose grant and account match with this error."""
        for pending in [each for each in self._pending if matches(each.grant, each.account)]:
            pending.refuse(error)

    async def drain(self) -> None:
        """Return when those who waited have their responses, or after `DRAIN_TIMEOUT`."""
        if not self._pending:
            return
        answered = self._all_answered.wait()
        answered.addTimeout(DRAIN_TIMEOUT, self._clock, lambda *_: None)
        await answered


class _Pending:
    """A request that has no response yet."""

    __slots__ = (
        "_exchange",
        "_is_over",
        "_pages",
        "_request",
        "_visit",
        "_work",
        "account",
        "grant",
    )

    def __init__(
        self,
        pages: TaskPages,
        exchange: Exchange,
        request: Request,
        grant: Grant,
        account: str,
        visit: Visit | None,
    ) -> None:
        self._pages = pages
        self._exchange = exchange
        self._request = request
        self.grant = grant
        self.account = account
        self._visit = visit
        self._is_over = False
        self._work: Deferred[Response] | None = None

    def wait_for(self, work: Deferred[Response]) -> None:
        """Respond when this work is done.  It is cancelled if the client leaves."""
        self._work = work
        self._exchange.on_disconnect = self._left
        work.addBoth(self._done)

    def refuse(self, error: PlumberError) -> None:
        """Respond with this error, and let nothing else be sent."""
        if not self._is_over:
            self._end()
            self._respond(problem(error))

    def _left(self, _: Failure) -> None:
        self._end()

    def _end(self) -> None:
        if self._is_over:
            return
        self._is_over = True
        if self._visit is not None:
            self._visit.release()
        self._pages.answered(self)
        if self._work is not None:
            self._work.cancel()

    def _done(self, result: Response | Failure) -> None:
        if self._is_over:
            return
        self._end()
        if isinstance(result, Failure):
            error = to_client_error(result, self._pages.log, "a request about a task failed")
            result = problem(error)
        elif self._pages.deadlines.expires_in(self.grant) == 0.0:
            result = problem(GrantExpired())  # the store took its time
        self._respond(result)

    def _respond(self, response: Response) -> None:
        self._exchange.respond(self._pages.gate.readable(self._request, response))
