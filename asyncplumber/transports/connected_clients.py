"""
All clients that are connected by a stream: their heartbeats, and how they are drained.

A heartbeat finds dead connections, and keeps proxies from closing a connection that looks idle.
The clients are in as many groups as the interval has seconds, and one group is served each second:
so ten thousand of them are not served at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from asyncplumber.clocks import WallClock
from asyncplumber.concurrency import PeriodicTask, Waiters
from asyncplumber.errors import PlumberError
from asyncplumber.grant import Grant
from asyncplumber.transports.closes import Closes
from asyncplumber.transports.deadlines import Deadlines
from asyncplumber.transports.dosed_reads import DosedReadsByReactor

HEARTBEAT = 15.0  # seconds between heartbeats: proxies close what is idle for 30 or 60
SLICE = 200  # clients served before the reactor has a turn
RECONNECT_SPREAD = 3.0  # seconds over which drained clients are to come back
DRAIN_TIMEOUT = 5.0  # seconds in which a client must close after it was told to


class Pingable(Protocol):
    """What ``ConnectedClients`` asks of a client."""

    def ping(self) -> None:
        """Send a heartbeat; cut off a client that has shown no sign of life for too long."""

    def close_going_away(self, reconnect_after: float) -> None:
        """Tell the client to come back after so many seconds, and close."""

    def end_if(self, matches: Callable[[Grant, str], bool], error: PlumberError) -> bool:
        """End it with this error if its grant and account match; return whether they do."""

    def abort(self) -> None:
        """Close the connection at once."""


class ConnectedClients:
    """The connected clients of this instance."""

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        random: Callable[[], float],
        interval: float = HEARTBEAT,
        now: Callable[[], float] = WallClock.seconds,
    ) -> None:
        """
        Begin without clients.

        Args:
            clock: Tells the time.
            random: Returns a number between 0 and 1.
            interval: Seconds between two heartbeats of a client; 0 for no heartbeats.
            now: Returns the time in seconds since 1970, which grants are compared with.
        """
        self._clock = clock
        self._random = random
        count = max(1, round(interval))
        self._groups: list[dict[Pingable, None]] = [{} for _ in range(count)]
        self._next = 0  # the group that is served next
        self._emptied = Waiters()
        self._heartbeats = PeriodicTask(self._serve_group, interval / count, clock)
        self._has_heartbeats = interval > 0
        self.reads = DosedReadsByReactor()
        #: Counts those that end.
        self.closes = Closes(clock.seconds)
        #: Ends the streams whose grants end.
        self.deadlines = Deadlines(clock, now, random)

    def __len__(self) -> int:
        return sum(map(len, self._groups))

    def __iter__(self) -> Iterator[Pingable]:
        for group in self._groups:
            yield from list(group)

    def start(self) -> None:
        """Begin the heartbeats, and to watch how long grants last."""
        self.deadlines.start()
        if self._has_heartbeats:
            self._heartbeats.start()

    def add(self, client: Pingable) -> int:
        """Add a client, and return the number of its group, which ``discard`` needs."""
        # The group that was served last: the client's first heartbeat is one interval away.
        self._groups[self._next - 1][client] = None
        return self._next - 1

    def discard(self, client: Pingable, group: int) -> None:
        """Remove a client.  Harmless if it is not there."""
        self._groups[group].pop(client, None)
        if len(self._emptied) and not len(self):
            self._emptied.release()

    async def _serve_group(self) -> None:
        group = self._groups[self._next]
        self._next = (self._next + 1) % len(self._groups)
        await self._call_in_slices([group], lambda client: client.ping())

    async def _call_in_slices(
        self, groups: list[dict[Pingable, None]], call: Callable[[Pingable], None]
    ) -> None:
        """Call ``call`` with each client of these groups that has not left before its turn."""
        present = [(client, group) for group in groups for client in group]
        for start in range(0, len(present), SLICE):
            if start:
                await deferLater(self._clock, 0, lambda: None)
            for client, group in present[start : start + SLICE]:
                if client in group:
                    self._guarded(client, call)

    def _guarded(self, client: Pingable, call: Callable[[Pingable], None]) -> None:
        try:
            call(client)
        except Exception:
            self._log.failure("a client of a stream raised, and is cut off")
            client.abort()

    def end_where(self, matches: Callable[[Grant, str], bool], error: PlumberError) -> int:
        """End the clients whose grant and account match, and return how many there were."""
        ended = 0
        for client in self:
            try:
                ended += client.end_if(matches, error)
            except Exception:
                self._log.failure("a client of a stream raised, and is cut off")
                client.abort()
        return ended

    async def drain(self) -> None:
        """
        Stop the heartbeats, and tell all clients to come back later, each at another time.

        Returns when all have gone.  Clients that are left after ``DRAIN_TIMEOUT`` seconds are cut
        off.
        """
        self._heartbeats.stop()
        if not len(self):
            self.deadlines.stop()
            return
        emptied = self._emptied.wait()
        await self._call_in_slices(self._groups, self._send_away)
        if not emptied.called:
            timer = self._clock.callLater(DRAIN_TIMEOUT, self._abort_all)
            await emptied
            if timer.active():
                timer.cancel()
        self.deadlines.stop()

    def _send_away(self, client: Pingable) -> None:
        client.close_going_away(round(self._random() * RECONNECT_SPREAD, 2))

    def _abort_all(self) -> None:
        for client in self:
            client.abort()
        self._emptied.release()
