"""Asks the other instances about themselves: signed GETs below the URL that each has."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

from treq.client import HTTPClient
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.client import Agent

from asyncplumber.auth.signatures import PeerSigner, question_target
from asyncplumber.concurrency import Semaphore
from asyncplumber.event import Instance
from asyncplumber.http_bodies import ResponseBody
from asyncplumber.rate_limited_log import RateLimitedLog

TIMEOUT = 2.0  # seconds
MAX_ANSWER = 4 * 1024 * 1024  # bytes: a page of accounts with the longest names is below 1 MiB
MAX_QUESTIONS = 64  # under way at once


class Questions:
    """Asks the other instances, each time anew."""

    _log = Logger()

    def __init__(
        self,
        client: HTTPClient,
        clock: IReactorTime,
        now: Callable[[], float],
        signer: PeerSigner,
    ) -> None:
        """
        Args:
            client: Sends the questions.
            clock: Measures how long they take.
            now: Returns the seconds since 1970, for signatures.
            signer: Signs the questions.
        """
        self._client = client
        self._clock = clock
        self._now = now
        self._signer = signer
        self._under_way = Semaphore(MAX_QUESTIONS)
        self._unanswered = RateLimitedLog(self._log, clock.seconds)

    @classmethod
    def over_treq(
        cls, reactor: IReactorTime, now: Callable[[], float], signer: PeerSigner
    ) -> Questions:
        """Make one that opens a connection for each question: questions are rare."""
        return cls(HTTPClient(Agent(reactor, connectTimeout=TIMEOUT)), reactor, now, signer)

    async def ask(self, instances: Iterable[Instance], path: str) -> list[Any]:
        """
        Ask all these instances the same, at the same time.

        Args:
            instances: Whom.
            path: What, below the URL of each: path and query, with a slash at the beginning.

        Returns:
            For each instance the value of its JSON; None if its whole answer is not there within
            `TIMEOUT` seconds, is no JSON, or longer than `MAX_ANSWER`.
        """
        answers: list[Any] = await gatherResults([self._ask(each, path) for each in instances])
        return answers

    async def _limited(self, instance: Instance, path: str) -> Any:
        await self._under_way.acquire()
        try:
            return await self._timed(instance, path)
        finally:
            self._under_way.release()

    def _ask(self, instance: Instance, path: str) -> Deferred[Any]:
        return Deferred.fromCoroutine(self._limited(instance, path))

    def _timed(self, instance: Instance, path: str) -> Deferred[Any]:
        asked: Deferred[Any] = Deferred.fromCoroutine(self._exchange(instance, path))
        asked.addTimeout(TIMEOUT, self._clock)
        return asked.addErrback(self._failed, instance)

    async def _exchange(self, instance: Instance, path: str) -> Any:
        target = question_target(instance.id, path)
        headers: Any = await self._signer.sign(target, self._now(), b"")
        response = await self._client.get(
            f"{instance.url}{path}", headers=headers, allow_redirects=False, unbuffered=True
        )
        body = ResponseBody(MAX_ANSWER)
        response.deliverBody(body)
        text = await body.complete
        return json.loads(text) if response.code == 200 else None

    def _failed(self, failure: Failure, instance: Instance) -> None:
        self._unanswered.warn(
            "instance {id} does not answer a question: {error}",
            id=instance.id,
            error=f"{type(failure.value).__name__}: {failure.getErrorMessage()}",
        )
