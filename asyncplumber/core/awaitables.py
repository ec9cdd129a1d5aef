"""
Turn what an application's callback returns into a Deferred.

On the asyncio reactor a coroutine may await Deferreds as well as asyncio's futures.  It becomes a
task of the loop, because parts of asyncio need one (its time-outs, for example).  A Deferred that
it awaits is turned into a future.
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
    Return a Deferred with the result of ``awaitable``.

    Raises:
        RuntimeError: It is a future of asyncio and no loop of asyncio runs, so it would never end.
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
    """Run a coroutine in a task of ``loop``.  A Deferred that it awaits becomes a future."""
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
        except BaseException as error:  # also if the task is cancelled: the coroutine is told
            step = partial(work.throw, error)
        else:
            step = partial(work.send, None)


def _called(deferred: Deferred[Any], loop: asyncio.AbstractEventLoop) -> asyncio.Future[None]:
    """
    Return a future that ends when ``deferred`` is called.

    The result stays in the Deferred, where ``await`` looks for it.
    """
    future: asyncio.Future[None] = loop.create_future()

    def called(result: Any) -> Any:
        if not future.done():
            future.set_result(None)
        return result

    deferred.addBoth(called)
    return future
