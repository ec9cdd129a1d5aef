"""
A subscription that also tells which tasks are live, before the first event and after each gap.

It joins its channel, reads the rows of the tasks, and then begins to deliver from where it joined.
So no event is between the rows and the stream: what happened before the join is in the rows, as
every row is written before its event, and what happens after it is delivered.
"""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from asyncplumber.core.channel import Channel
from asyncplumber.core.subscription import Subscription
from asyncplumber.core.tasks.snapshots import MAX_SNAPSHOT_BYTES, Snapshot, Snapshots
from asyncplumber.errors import PlumberError, to_client_error
from asyncplumber.event import Cursor, Position
from asyncplumber.interfaces import ISubscriber, ITaskSubscriber
from asyncplumber.wire.delivery import Delivery

TASKS_TYPE = "plumber.tasks"


class ChannelWithTasks:
    """A channel whose subscriptions also tell which tasks are live."""

    def __init__(self, channel: Channel, snapshots: Snapshots) -> None:
        """``snapshots`` reads the tasks."""
        self._channel = channel
        self._snapshots = snapshots

    def subscribe(self, subscriber: ITaskSubscriber) -> TaskSubscription:
        """Add a subscriber.  Nothing is delivered before `TaskSubscription.start`."""
        return TaskSubscription(self._channel, subscriber, self._snapshots)


@implementer(ISubscriber)
class TaskSubscription:
    """
    The link between a channel and a subscriber, which is told of the tasks.

    To the channel it is the subscriber; to the subscriber it is the `Subscription`.
    """

    __slots__ = (
        "_channel",
        "_inner",
        "_is_opened",
        "_is_over",
        "_joined",
        "_reading",
        "_snapshot",
        "_snapshots",
        "_subscriber",
        "_unsent",
    )
    _log = Logger()

    def __init__(self, channel: Channel, subscriber: ITaskSubscriber, snapshots: Snapshots) -> None:
        self._channel = channel
        self._subscriber = subscriber
        self._snapshots = snapshots
        self._is_opened = self._is_over = False
        self._reading: Deferred[None] | None = None
        self._snapshot = b""  # the notice that is to be sent when the subscription goes on
        self._unsent = 0  # bytes of the notice that may still be queued for the client
        self._join()

    def _join(self) -> None:
        self._inner: Subscription = self._channel.subscribe(self)
        self._joined = self._channel.delivered

    @property
    def account(self) -> str:
        """The account whose events it gets."""
        return self._channel.account

    def start(self, after: Cursor | str | None) -> None:
        """Begin to deliver, as `Subscription.start` does, as soon as the tasks are known."""
        if not self._is_over:
            self._read(self._joined if after is None else after)

    def cancel(self) -> None:
        """Deliver nothing more.  Harmless if it was cancelled before, or has ended."""
        self._is_over = True
        self._inner.cancel()
        if self._reading is not None:
            self._reading.cancel()

    def _read(self, after: Cursor | str) -> None:
        """Read the tasks, and then deliver what comes after this place."""
        reading = self._snapshots.read(self.account)
        begun = reading.addCallback(self._begin, after).addErrback(self._failed)
        self._reading = begun if not begun.called else None

    def _begin(self, snapshot: Snapshot, after: Cursor | str) -> None:
        self._reading = None
        if self._is_over:
            return
        # At most half of what may be queued for the client: a page of its replay follows.
        room = min(MAX_SNAPSHOT_BYTES, self._subscriber.page_size // 2)
        self._snapshot = snapshot.notice(self.account, self._joined, room)
        self._inner.start(after)

    def _failed(self, failure: Failure) -> None:
        """End the stream: the client comes back, and is told of the tasks then."""
        self._reading = None
        if not self._is_over:
            error = to_client_error(failure, self._log, "the tasks of an account cannot be listed")
            self._inner.end(error)

    # ISubscriber

    @property
    def page_size(self) -> int:
        """Bytes of one page of a replay."""
        size: int = self._subscriber.page_size
        return max(1, size - self._unsent)

    def opened(self, cursor: Cursor) -> None:
        if not self._is_opened:
            self._is_opened = True
            self._subscriber.opened(cursor)
        if not self._is_over:
            self._unsent = len(self._snapshot)
            self._subscriber.notify(TASKS_TYPE, self._snapshot)
            self._snapshot = b""

    def deliver(self, batch: Delivery) -> None:
        self._subscriber.deliver(batch)

    def replayed(self, size: int) -> None:
        self._subscriber.replayed(size)

    def caught_up(self) -> None:
        self._subscriber.caught_up()

    def missed(self, cursor: Cursor, position: Position) -> None:
        """Tell of the gap, and begin again after it: what happened in it is in the rows only."""
        self._subscriber.missed(cursor, position)
        if self._is_over:
            return
        self._subscriber.await_notice()
        former = self._inner
        self._join()
        former.cancel()
        self._read(position.cursor)

    def drained(self) -> Deferred[None]:
        self._unsent = 0
        return self._subscriber.drained()

    def end(self, error: PlumberError | None) -> None:
        self._is_over = True
        self._subscriber.end(error)
