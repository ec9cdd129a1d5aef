"""
What an application's callback returns, as a Deferred: of Twisted, of asyncio, or a mixture.

On the asyncio reactor a loop runs around us, and a coroutine may await things of both: it becomes a
task of that loop, because much of asyncio (its time-outs, say) wants one, and the Deferreds that it
awaits are waited for on its behalf.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator
from functools import partial
from inspect import iscoroutine
from types import coroutine
from typing import Any

from twisted.internet.defer import Deferred


def as_deferred(awaitable: Awaitable[Any]) -> Deferred[Any]:
    """
    A Deferred that fires as `awaitable` ends.

    Raises RuntimeError for a future of asyncio where no loop of asyncio runs: it would never end.
    """
    if isinstance(awaitable, Deferred):
        return awaitable
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        if asyncio.isfuture(awaitable):
            raise RuntimeError("a future of asyncio needs the asyncio reactor") from None
        return Deferred.fromCoroutine(_coroutine(awaitable))
    if not asyncio.isfuture(awaitable):
        awaitable = loop.create_task(_with_deferreds(_coroutine(awaitable), loop))
    return Deferred.fromFuture(awaitable)


def _coroutine(awaitable: Awaitable[Any]) -> Coroutine[Any, Any, Any]:
    async def wait() -> Any:
        return await awaitable

    return awaitable if iscoroutine(awaitable) else wait()


@coroutine
def _with_deferreds(
    work: Coroutine[Any, Any, Any], loop: asyncio.AbstractEventLoop
) -> Generator[Any, Any, Any]:
    """Step through a coroutine in a task of `loop`: a Deferred that it awaits becomes a future."""
    step: Callable[[], Any] = partial(work.send, None)
    while True:
        try:
            awaited = step()
        except StopIteration as end:
            return end.value
        try:
            if isinstance(awaited, Deferred):
                yield from _called(awaited, loop)
            else:
                yield awaited
        except (
            BaseException
        ) as error:  # the task is cancelled, say: it is for the coroutine to know
            step = partial(work.throw, error)
        else:
            step = partial(work.send, None)


def _called(deferred: Deferred[Any], loop: asyncio.AbstractEventLoop) -> asyncio.Future[None]:
    """
    A future that ends when `deferred` is called; the result stays with the Deferred, where `await`
    looks for it.
    """
    future: asyncio.Future[None] = loop.create_future()

    def called(result: Any) -> Any:
        if not future.done():
            future.set_result(None)
        return result

    deferred.addBoth(called)
    return future
