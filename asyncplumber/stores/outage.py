"""
One log line when a store stops answering and one when it answers again, however many calls fail in
between.
"""

from __future__ import annotations

from twisted.logger import Logger


class Outage:
    """Whether a store answers at present.  `store` is its name for the log, without secrets."""

    _log = Logger()

    def __init__(self, store: str) -> None:
        self._store = store
        self._reason: str | None = None

    def began(self, reason: str) -> None:
        """A call failed; `reason` is for the operator.  The same reason is said once."""
        if reason != self._reason:
            self._reason = reason
            self._log.error(
                "the store {store} is unavailable: {reason}", store=self._store, reason=reason
            )

    def over(self) -> None:
        """A call succeeded."""
        if self._reason is not None:
            self._reason = None
            self._log.info("the store {store} is back", store=self._store)
