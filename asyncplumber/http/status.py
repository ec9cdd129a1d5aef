"""The responses about this instance: whether it is ready, and who subscribes to an account."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from twisted.internet.defer import Deferred

from asyncplumber.core.lifecycle import State
from asyncplumber.core.status import Status
from asyncplumber.errors import Unavailable
from asyncplumber.http.responses import Response, json_response
from asyncplumber.interfaces import IStore


class StatusPages:
    """Responds to questions about this instance, and about the cluster it belongs to."""

    def __init__(
        self,
        store: IStore,
        status: Callable[[], Status],
        presence: Callable[[str], Awaitable[dict[str, int]]],
    ) -> None:
        """
        Args:
            store: Where the history is.
            status: Returns the status of this instance.
            presence: Returns how many subscribers an account has in the whole cluster.
        """
        self._store = store
        self._status = status
        self._presence = presence

    def ready(self) -> Deferred[Response]:
        """Return 200 if the store can be reached, and the instance is not about to stop."""
        return Deferred.fromCoroutine(self._ready())

    async def _ready(self) -> Response:
        if self._status().state in (State.DRAINING, State.STOPPING):
            raise Unavailable("this instance is about to stop")
        await self._store.ping()
        return json_response(200, {"status": "ok"})

    def account(self, account: str) -> Deferred[Response]:
        """Return how many subscribers an account has, and how far its history reaches."""
        return Deferred.fromCoroutine(self._account(account))

    async def _account(self, account: str) -> Response:
        heads = await self._store.history.heads([account])
        head = heads.get(account)
        cursor = str(head) if head is not None else None
        presence = await self._presence(account)
        return json_response(200, {"account": account, "cursor": cursor, **presence})
