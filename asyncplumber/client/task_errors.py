"""What a program says of an exception, or of a value that cannot be sent."""

from __future__ import annotations

from traceback import format_exception
from typing import Any

TEXT_LENGTH = 1000  # characters of an error's message, or of the repr of what cannot be sent

# What encoding raises for unsuitable data.  A task queue's time limit can interrupt us at any
# moment; it is none of these, and reaches the task.
UNSUITABLE = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)
# The exceptions that say that somebody stopped the work.  They are compared by name: each of
# asyncio, concurrent.futures and Twisted has a ``CancelledError`` of its own.
STOPPED = frozenset({"CancelledError", "KeyboardInterrupt", "GeneratorExit"})


def error_of(error: BaseException, *, traceback: bool) -> dict[str, str]:
    """
    Return an exception as the error of a run: ``type`` and ``message``.

    Args:
        error: The exception.
        traceback: Whether its traceback is added, which shows the code to browsers.
    """
    # Celery wraps an exception that cannot be pickled, and keeps the name of its type beside.
    name = getattr(error, "exc_cls_name", type(error).__name__)
    try:
        message = str(error)
    except Exception:  # its own code may raise anything
        message = ""
    described = {"type": name, "message": message[:TEXT_LENGTH]}
    if traceback:
        described["traceback"] = _traceback_of(error)
    return described


def _traceback_of(error: BaseException) -> str:
    try:
        return "".join(format_exception(error))
    except Exception:  # the exception's own code may raise anything
        return ""


def repr_of(data: Any) -> str:
    """Return the beginning of the repr of what JSON cannot express."""
    try:
        return repr(data)[:TEXT_LENGTH]
    except Exception:  # its own code may raise anything
        return f"<{type(data).__name__}>"
