"""What the log says of a store that stops answering."""

from __future__ import annotations

from twisted.logger import Logger


class Outage:
    """
    Whether a store answers at present.

    The log gets one line when it stops answering and one when it answers again, however many calls
    fail in between.
    """

    _log = Logger()

    def __init__(self, store: str) -> None:
        """`store` is its name for the log, without secrets."""
        self._store = store
        self._reason: str | None = None

    def began(self, reason: str) -> None:
        """
        Note that a call failed.

        Args:
            reason: Why, for the operator.  The same reason is logged once.
        """
        if reason != self._reason:
            self._reason = reason
            self._log.error(
                "the store {store} is unavailable: {reason}", store=self._store, reason=reason
            )

    def over(self) -> None:
        """Note that a call succeeded."""
        if self._reason is not None:
            self._reason = None
            self._log.info("the store {store} is back", store=self._store)
