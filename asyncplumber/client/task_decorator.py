"""A function as a task: each of its calls is a run."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from inspect import iscoroutinefunction
from typing import Any


def decorated(
    function: Callable[..., Any], make: Callable[[tuple[Any, ...], dict[str, Any]], Any]
) -> Callable[..., Any]:
    """
    Return a function whose calls are runs of a task, with what they return as results.

    Args:
        function: An ordinary function, one that returns a Deferred, or a coroutine function.
        make: Returns the ``TaskRun`` of a call, by the arguments of the call.
    """
    if iscoroutinefunction(function):

        @wraps(function)
        async def coroutine(*arguments: Any, **named: Any) -> Any:
            async with make(arguments, named) as task:
                task.result = result = await function(*arguments, **named)
                return result

        return coroutine

    @wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        with make(arguments, named) as task:
            result = function(*arguments, **named)
            if hasattr(result, "addCallbacks"):
                return task.follow(result)
            task.result = result
            return result

    return call
