"""What the log says of a store that stops answering."""

from __future__ import annotations

from twisted.logger import Logger

from asyncplumber.figures import Counter, Gauge, Metric


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
        self._reason: str | None = None  # None: it answers
        #: How often it has come back.
        self.recoveries = 0
        self._count = Counter("store_outages_total", "Times that the store stopped answering.")
        up = Gauge("store_up", "Whether the store answers: 1 or 0.", self._is_up, "min")
        #: What metrics show of it.
        self.figures: tuple[Metric, ...] = (up, self._count)

    def _is_up(self) -> float:
        return float(self._reason is None)

    def began(self, reason: str, recoveries: int | None = None) -> None:
        """
        Note that a call failed.

        Args:
            reason: Why, for the operator.  The same reason is logged once.
            recoveries: What `recoveries` was when the call began.  If the store has come back since
                then, the call tells nothing about now.  None: the call began just now.
        """
        if recoveries is not None and recoveries != self.recoveries:
            return
        if self._reason is None:
            self._count.add()
        if reason != self._reason:
            self._reason = reason
            self._log.error(
                "the store {store} is unavailable: {reason}", store=self._store, reason=reason
            )

    def over(self) -> None:
        """Note that a call succeeded."""
        if self._reason is not None:
            self._reason = None
            self.recoveries += 1
            self._log.info("the store {store} is back", store=self._store)
