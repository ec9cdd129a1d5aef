"""The responses about this instance: whether it is ready, and who subscribes to an account."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from twisted.internet.defer import Deferred

from asyncplumber.core.lifecycle import State
from asyncplumber.errors import Unavailable
from asyncplumber.http.responses import Response, json_response
from asyncplumber.interfaces import IStore


class StatusPages:
    """Responds to questions about this instance, and about the cluster it belongs to."""

    def __init__(
        self,
        store: IStore,
        state: Callable[[], State],
        presence: Callable[[str], Awaitable[dict[str, int]]],
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """
        Args:
            store: Where the history is.
            state: Returns where this instance is in its life.
            presence: Returns how many subscribers an account has in the whole cluster.
            check: Raises `Unavailable` if something else that requests need is not there yet.
        """
        self._check = check
        self._store = store
        self._state = state
        self._presence = presence

    def ready(self) -> Deferred[Response]:
        """Return 200 if the instance runs, and the store can be reached."""
        return Deferred.fromCoroutine(self._ready())

    async def _ready(self) -> Response:
        state = self._state()
        if state is not State.RUNNING:
            raise Unavailable(f"this instance is {state.value}")
        self._check()
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
