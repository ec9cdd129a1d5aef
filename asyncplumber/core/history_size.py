"""How much history the store keeps, as metrics show it."""

from __future__ import annotations

import math

from asyncplumber.figures import Gauge, Metric
from asyncplumber.interfaces import IHistory

# Seconds between two looks.  They cost the store little, and the size changes slowly.
SIZE_INTERVAL = 60.0


class HistoryGauges:
    """Remembers the size that the store told last.  All workers on one store tell the same."""

    def __init__(self, history: IHistory) -> None:
        self._history = history
        self._events = self._bytes = math.nan
        #: What metrics show of it.
        self.figures: tuple[Metric, ...] = (
            Gauge("history_events", "Events that the store keeps.", lambda: self._events, "max"),
            Gauge(
                "history_bytes",
                "Bytes of the history: of the used pages of the file (SQLite), of the documents "
                "(MongoDB) or of the payloads (memory).",
                lambda: self._bytes,
                "max",
            ),
        )

    async def look(self) -> None:
        """
        Ask the store.

        Raises:
            Unavailable: It does not answer; the last size stays.
        """
        size = await self._history.size()
        self._events, self._bytes = float(size.events), float(size.bytes)
