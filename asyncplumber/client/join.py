"""
Waits for the end of a task that another program executes, and ends as that one did.

Needs only the standard library.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from asyncplumber.client.request import Endpoint
from asyncplumber.client.response import (
    Refused,
    Response,
    TryLater,
    interpret_bytes,
    interpret_json,
)
from asyncplumber.client.retry import RetryPolicy, Undelivered
from asyncplumber.client.send import Sender

UNKNOWN = 75  # EX_TEMPFAIL of sysexits.h: try again later
FAILED = 1  # of a run that says no status
CANCELED = 143  # of a command that SIGTERM ended
WAIT = 25  # seconds of one question
PATIENCE = 300.0  # seconds that a plumber may be away meanwhile
MAX_RESPONSE = 64 * 1024 * 1024  # bytes

_log = logging.getLogger(__name__)


class JoinedRun:
    """The run of a task that is live."""

    def __init__(self, url: str, token: str | None, account: str, key: str) -> None:
        """
        Args:
            url: Where the plumber is.
            token: A bearer token that may read the task; None for none.
            account: Who waits for the task.
            key: The name of the task.
        """
        policy = RetryPolicy(timeout=WAIT + 10.0, deadline=PATIENCE)
        self._sender = Sender(url, token=token, retry_policy=policy, body_limit=MAX_RESPONSE)
        self._endpoint = Endpoint(url, token, None)
        self._path = ("tasks", account, key)

    def wait(self) -> int:
        """
        Wait until the task ends, and print its result.

        Returns:
            0 if it completed; the status of the command that failed, if it was one; `FAILED`,
            `CANCELED`, or `UNKNOWN` if it is not known how it ended.
        """
        _log.warning("the task runs already; waiting for that run")
        try:
            while True:
                task = self._ask((), f"?wait={WAIT}", interpret_json)
                if task.get("done") is not False:
                    return self._end(task)
        except Refused as error:
            if error.status in (401, 403):
                _log.error("the task runs already, and this credential may not read how it ends")
            else:
                _log.error("cannot wait for the run: %s", error)
        except Undelivered as error:
            _log.error("cannot wait for the run: %s", error.reason)
        return UNKNOWN

    def _end(self, task: dict[str, Any]) -> int:
        state, error = task.get("state"), task.get("error")
        error = error if isinstance(error, dict) else {}
        code = error.get("code")
        if state == "completed":
            self._print_result()
            return 0
        _log.error("the run that was joined is %s: %s", state, error.get("message"))
        if isinstance(code, int) and not isinstance(code, bool) and 0 < code < 256:
            return code
        return {"failed": FAILED, "canceled": CANCELED}.get(str(state), UNKNOWN)

    def _print_result(self) -> None:
        with suppress(OSError):
            try:
                view = memoryview(self._ask(("result",), "", interpret_bytes))
                while view:
                    view = view[os.write(1, view) :]
            except (Refused, Undelivered) as error:
                _log.warning("the result of the run cannot be read: %s", error)

    def _ask(
        self,
        more: tuple[str, ...],
        query: str,
        understand: Callable[[Response], Any | TryLater],
    ) -> Any:
        request = self._endpoint.get(*self._path, *more, query=query)
        return self._sender.exchange(request, understand)
