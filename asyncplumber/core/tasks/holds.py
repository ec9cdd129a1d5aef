"""Requests that are held until a task ends: each is a subscriber that wants one event."""

from __future__ import annotations

from twisted.internet.defer import Deferred, succeed
from zope.interface import implementer

from asyncplumber.core.channel import Channel
from asyncplumber.errors import PlumberError
from asyncplumber.event import Cursor, Event, Position
from asyncplumber.interfaces import PAGE_BYTES, ISubscriber
from asyncplumber.task import TaskState
from asyncplumber.wire.delivery import Delivery
from asyncplumber.wire.tasks import member_begins

_END_TYPES = frozenset({state.event_type for state in TaskState if state.is_done})


@implementer(ISubscriber)
class Hold:
    """
    Waits for the end of one run.

    It is subscribed before the row of the task is read.  An end that comes before it is known
    which run is waited for is kept.
    """

    page_size = PAGE_BYTES

    def __init__(self, channel: Channel, key: str) -> None:
        """Subscribe to the account's channel, for the task with this key."""
        self._key = key
        self._run: str | None = None
        self._ends: dict[str, Event] = {}  # by run
        self._ended: Deferred[Event | None] | None = None
        self._has_missed = False  # whether events were missed since the last `wait`
        self.is_over = False  # whether it can hear nothing more
        # Results may be large, and there may be many holds: most events are seen not to be meant
        # without parsing them.
        self._mark = member_begins(key)
        self._subscription = channel.subscribe(self)
        self._subscription.start(None)

    def wait(self, run: str) -> Deferred[Event | None]:
        """
        Return a Deferred of the event of the end of this run.

        It is None if the wait was given up, or if events were missed: then the row tells, and the
        wait can be taken up again unless `is_over`.
        """
        self._run = run
        self._ended = Deferred()
        event = self._ends.get(run)
        if event is not None or self.is_over or self._has_missed:
            self._has_missed = False
            self._fire(event)
        return self._ended

    def give_up(self) -> None:
        """Wait no more.  Harmless if it has ended."""
        self.cancel()
        self.is_over = True
        self._fire(None)

    def cancel(self) -> None:
        """Subscribe no more."""
        self._subscription.cancel()

    def _fire(self, event: Event | None) -> None:
        if self._ended is not None and not self._ended.called:
            self._ended.callback(event)

    # ISubscriber

    def opened(self, cursor: Cursor) -> None:
        pass

    def deliver(self, batch: Delivery) -> None:
        for event in batch.events:
            if event.type not in _END_TYPES or self._mark not in event.payload:
                continue
            about = event.task or {}
            if about.get("task") == self._key:
                self._ends[about["run"]] = event
                if about["run"] == self._run:
                    self._fire(event)

    def replayed(self, size: int) -> None:
        pass

    def caught_up(self) -> None:
        pass

    def missed(self, cursor: Cursor, position: Position) -> None:
        if self._ended is None or self._ended.called:
            self._has_missed = True
        self._fire(None)

    def drained(self) -> Deferred[None]:
        return succeed(None)

    def end(self, error: PlumberError | None) -> None:
        self.is_over = True
        self._fire(None)
