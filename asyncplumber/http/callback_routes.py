"""Which request below ``/callbacks`` is for whom."""

from __future__ import annotations

from urllib.parse import parse_qs

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from asyncplumber.errors import to_client_error
from asyncplumber.http.callback_pages import CallbackPages
from asyncplumber.http.callbacks import Callbacks, Post
from asyncplumber.http.gate import granted
from asyncplumber.http.responses import Response, error_response
from asyncplumber.interfaces import Decision
from asyncplumber.wire.fields import Headers


class CallbackRoutes:
    """Gives requests below ``/callbacks`` to the one who answers them."""

    _log = Logger()

    def __init__(self, callbacks: Callbacks, pages: CallbackPages) -> None:
        """
        Args:
            callbacks: Answers what comes to URLs.
            pages: Makes, lists and removes them.
        """
        self._callbacks = callbacks
        self._pages = pages

    def answer(
        self,
        method: bytes,
        token: str | None,
        query: str,
        headers: Headers,
        body: bytes,
        decision: Decision,
    ) -> Deferred[Response]:
        """
        Answer a request.

        Args:
            method: One of those that the path has.
            token: The last segment of the path; None for ``/callbacks`` itself.
            query: What follows the question mark.
            headers: With names in lower case.
            body: The body.
            decision: What the gate says.

        Returns:
            A Deferred that never fails.
        """
        answered = self._answer(method, token, query, headers, body, decision)
        return Deferred.fromCoroutine(answered).addErrback(self._failed)

    async def _answer(
        self,
        method: bytes,
        token: str | None,
        query: str,
        headers: Headers,
        body: bytes,
        decision: Decision,
    ) -> Response:
        if token is not None and method != b"DELETE":
            return await self._callbacks.answer(Post(method, token, query, headers, body))
        grant, parameters = granted(decision), parse_qs(query, keep_blank_values=True)
        if token is not None:
            return await self._pages.remove(token, parameters, grant)
        if method == b"POST":
            return await self._pages.make(body, grant)
        return await self._pages.listed(parameters, grant)

    def _failed(self, failure: Failure) -> Response:
        error = to_client_error(failure, self._log, "a callback could not be answered")
        return error_response(error)
