"""Asks the other instances how many subscribers an account has there."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import quote

from treq.client import HTTPClient
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.client import Agent

from asyncplumber.auth.signatures import PeerSigner, count_target
from asyncplumber.event import Instance
from asyncplumber.relays.http_bodies import ResponseBody

TIMEOUT = 2.0  # seconds


class PresenceClient:
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

    @classmethod
    def over_treq(
        cls, reactor: IReactorTime, now: Callable[[], float], signer: PeerSigner
    ) -> PresenceClient:
        """Make a client that opens a connection for each question: questions are rare."""
        return cls(HTTPClient(Agent(reactor, connectTimeout=TIMEOUT)), reactor, now, signer)

    async def count(self, instances: Iterable[Instance], account: str) -> list[int | None]:
        """
        Return the number of the account's subscribers at each of these instances.

        None stands for an instance whose whole answer is not there within `TIMEOUT` seconds.
        """
        counts: list[int | None] = await gatherResults(
            [self._ask(instance, account) for instance in instances]
        )
        return counts

    def _ask(self, instance: Instance, account: str) -> Deferred[int | None]:
        asked: Deferred[int | None] = Deferred.fromCoroutine(self._exchange(instance, account))
        asked.addTimeout(TIMEOUT, self._clock)
        return asked.addErrback(self._failed, instance)

    async def _exchange(self, instance: Instance, account: str) -> int | None:
        headers: Any = await self._signer.sign(count_target(instance.id, account), self._now(), b"")
        response = await self._client.get(
            f"{instance.url}/accounts/{quote(account, safe='')}",
            headers=headers,
            allow_redirects=False,
            unbuffered=True,
        )
        body = ResponseBody()
        response.deliverBody(body)
        text = await body.complete
        return int(json.loads(text)["subscribers"]) if response.code == 200 else None

    def _failed(self, failure: Failure, instance: Instance) -> None:
        self._log.warn(
            "instance {id} does not tell its number of subscribers: {error}",
            id=instance.id,
            error=f"{type(failure.value).__name__}: {failure.getErrorMessage()}",
        )
