"""
How many listen to an account at the other instances: asked when somebody wants to know, and within
a bound.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import quote

from treq.client import HTTPClient
from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import Logger
from twisted.web.client import Agent

from asyncplumber.auth.signatures import PeerSigner, count_target
from asyncplumber.event import Instance

PATIENCE = 2.0  # seconds; an instance that does not answer counts as one that has nobody


class PresenceClient:
    """Asks the other instances."""

    _log = Logger()

    def __init__(self, client: HTTPClient, now: Callable[[], float], signer: PeerSigner) -> None:
        """`now` is the time in seconds since 1970."""
        self._client = client
        self._now = now
        self._signer = signer

    @classmethod
    def over_treq(
        cls, reactor: Any, now: Callable[[], float], signer: PeerSigner
    ) -> PresenceClient:
        """A census with connections of its own, one for each question: it is asked rarely."""
        return cls(HTTPClient(Agent(reactor, connectTimeout=PATIENCE)), now, signer)

    async def count(self, instances: Iterable[Instance], account: str) -> list[int | None]:
        """
        For each instance how many subscribers the account has there, None where it does not say.
        """
        asked = [Deferred.fromCoroutine(self._ask(instance, account)) for instance in instances]
        counts: list[int | None] = await gatherResults(asked)
        return counts

    async def _ask(self, instance: Instance, account: str) -> int | None:
        try:
            headers: Any = await self._signer.sign(
                count_target(instance.id, account), self._now(), b""
            )
            url = f"{instance.url}/accounts/{quote(account, safe='')}"
            response = await self._client.get(
                url, headers=headers, allow_redirects=False, timeout=PATIENCE
            )
            if response.code != 200:
                return None
            return int(json.loads(await response.content())["subscribers"])
        except Exception as error:
            self._log.warn(
                "{id} does not say who listens: {error}",
                id=instance.id,
                error=f"{type(error).__name__}: {error}",
            )
            return None
