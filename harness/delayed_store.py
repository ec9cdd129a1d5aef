"""A store that takes its time: what holds with one that answers at once may not hold with it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.task import deferLater
from zope.interface import implementer

from asyncplumber.event import Draft
from asyncplumber.interfaces import Appended, IStore

T = TypeVar("T")


class _Delayed:
    """A part of a `DelayedStore`, such as the history or the registry."""

    def __init__(self, store: DelayedStore, part: Any) -> None:
        self._store = store
        self._part = part

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._part, name)
        return lambda *args, **named: self._store.delayed(partial(method, **named), *args)


@implementer(IStore)
class DelayedStore:
    """
    Asks another store some turns of the reactor later, and answers as many turns after that.

    `turns` 0 only counts what is under way, which tells a test when a real store has answered.
    """

    def __init__(self, store: IStore, clock: Any, turns: int = 3) -> None:
        self._store = store
        self._clock = clock
        self._turns = turns
        self.pending = 0  # calls that are not answered yet
        self.shared = store.shared
        self.figures = store.figures
        self.history: Any = _Delayed(self, store.history)
        self.registry: Any = _Delayed(self, store.registry)
        self.revocations: Any = _Delayed(self, store.revocations)
        self.tasks: Any = _Delayed(self, store.tasks)
        self.callback_urls: Any = _Delayed(self, store.callback_urls)

    def delayed(self, method: Any, *args: Any, **options: Any) -> Deferred[Any]:
        """Call it later, and answer later."""
        self.pending += 1
        called: Deferred[Any] = self._later(None)
        called.addCallback(lambda _: maybeDeferred(method, *args, **options))
        called.addBoth(self._later)
        return called.addBoth(self._answered)

    def _answered(self, result: T) -> T:
        self.pending -= 1
        return result

    def _later(self, result: T) -> Deferred[T]:
        """Return a Deferred of `result` that fires some turns later."""
        later: Deferred[Any] = succeed(None)
        for _ in range(self._turns):
            later.addCallback(lambda _: deferLater(self._clock, 0, lambda: None))
        return later.addCallback(lambda _: result)

    def append(self, drafts: Sequence[Draft]) -> Deferred[Appended]:
        return self.delayed(self._store.append, drafts).addCallback(self._appended)

    def _appended(self, appended: Appended) -> Appended:
        found = appended.recipients
        return Appended(appended.results, None if found is None else self.delayed(lambda: found))

    def start(self) -> Deferred[None]:
        return self.delayed(self._store.start)

    def stop(self) -> Deferred[None]:
        return self._store.stop()

    def ping(self) -> Deferred[None]:
        return self.delayed(self._store.ping)

    def secret(self) -> Deferred[bytes]:
        return self.delayed(self._store.secret)
