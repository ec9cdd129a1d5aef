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
from twisted.web.client import Agent

from asyncplumber.auth.signatures import PeerSigner, count_target
from asyncplumber.event import Instance

TIMEOUT = 2.0  # seconds


class PresenceClient:
    """Asks the other instances, each time anew."""

    _log = Logger()

    def __init__(
        self,
        client: HTTPClient,
        reactor: Any,
        now: Callable[[], float],
        signer: PeerSigner,
    ) -> None:
        """`now` returns the seconds since 1970, for signatures."""
        self._client = client
        self._reactor = reactor
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

        None stands for an instance that does not answer within `TIMEOUT` seconds.
        """
        asked = [Deferred.fromCoroutine(self._ask(instance, account)) for instance in instances]
        counts: list[int | None] = await gatherResults(asked)
        return counts

    async def _ask(self, instance: Instance, account: str) -> int | None:
        try:
            headers: Any = await self._signer.sign(
                count_target(instance.id, account), self._now(), b""
            )
            response = await self._client.get(
                f"{instance.url}/accounts/{quote(account, safe='')}",
                headers=headers,
                allow_redirects=False,
                timeout=TIMEOUT,
                reactor=self._reactor,
            )
            if response.code != 200:
                return None
            return int(json.loads(await response.content())["subscribers"])
        except Exception as error:
            self._log.warn(
                "instance {id} does not tell its number of subscribers: {error}",
                id=instance.id,
                error=f"{type(error).__name__}: {error}",
            )
            return None
