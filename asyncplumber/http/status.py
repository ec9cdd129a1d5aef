"""
What the instance tells about itself: readiness, who listens to an account, figures for Prometheus.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from twisted.internet.defer import Deferred

from asyncplumber.core.hub import Hub
from asyncplumber.errors import Unavailable
from asyncplumber.http.responses import Response, json_response
from asyncplumber.interfaces import IStore

Figures = dict[
    str, tuple[str, str, float]
]  # name → (type, help, value), as Prometheus' text format has them


class About:
    """Answers questions about this instance, and the cluster it belongs to."""

    def __init__(
        self,
        store: IStore,
        hub: Hub,
        figures: Callable[[], Figures],
        listeners: Callable[[str], Awaitable[dict[str, Any]]],
    ) -> None:
        """`listeners` tells who listens to an account, everywhere."""
        self._store = store
        self._hub = hub
        self._figures = figures
        self._listeners = listeners
        self.stopping = False
        #: Takes our figures, and returns those to tell: of all workers, where there are several.
        self.combine: Callable[[Figures], Figures] = lambda figures: figures

    def ready(self) -> Deferred[Response]:
        """Whether the store can be reached and the instance is not about to stop."""
        return Deferred.fromCoroutine(self._ready())

    async def _ready(self) -> Response:
        if self.stopping:
            raise Unavailable("this instance is about to stop")
        await self._store.ping()
        return json_response(200, {"status": "ok"})

    def account(self, account: str) -> Deferred[Response]:
        """How many listen to an account, and how far its history reaches."""
        return Deferred.fromCoroutine(self._account(account))

    async def _account(self, account: str) -> Response:
        heads = await self._store.history.heads([account])
        head = heads.get(account)
        told = {"account": account, "cursor": str(head) if head is not None else None}
        return json_response(200, {**told, **await self._listeners(account)})

    def combined(self) -> Figures:
        """The figures of this instance, or of all workers."""
        return self.combine(self._figures())

    def metrics(self) -> Response:
        """The figures in Prometheus' text format, version 0.0.4."""
        lines = []
        for name, (kind, help, value) in self.combined().items():
            # Never rounded: a rate of what was rounded is 0, and then too much.
            text = str(int(value)) if value == int(value) else repr(value)
            lines.append(
                f"# HELP asyncplumber_{name} {help}\n# TYPE asyncplumber_{name} {kind}\nasyncplumber_{name} {text}\n"
            )
        return Response(200, b"text/plain; version=0.0.4; charset=utf-8", "".join(lines).encode())
