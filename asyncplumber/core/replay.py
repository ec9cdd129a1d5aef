"""
A subscriber's way from its cursor to where the live ones stand: page by page, at its own pace, and
then live.

The step from the last page to the live stream is one step, with nothing between.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from asyncplumber.core.subscription import Subscription
from asyncplumber.errors import to_client_error
from asyncplumber.event import EARLIEST, Cursor, Event, Position
from asyncplumber.interfaces import CursorLost, CursorMoved, ISubscriber
from asyncplumber.wire.delivery import first_page

if TYPE_CHECKING:
    from asyncplumber.core.channel import Channel
    from asyncplumber.core.hub import Hub

PAGE = 256  # events in one page of a replay


class Replay:
    """One subscriber on its way.  The channel knows it for as long as it is wanted."""

    _log = Logger()

    def __init__(
        self, channel: Channel, hub: Hub, subscription: Subscription, after: Cursor | str
    ) -> None:
        self._channel = channel
        self._hub = hub
        self._subscription = subscription
        self._subscriber: ISubscriber = subscription.subscriber
        self._after = after
        self._opened = False
        self._waited = False

    def start(self) -> None:
        """Set out.  What goes wrong on the way ends the subscriber."""
        Deferred.fromCoroutine(self._run()).addErrback(self._failed)

    def _failed(self, failure: Failure) -> None:
        error = to_client_error(failure, self._log, "a replay failed")
        if self._wanted:
            self._channel.dismiss(self._subscription, error)

    @property
    def _wanted(self) -> bool:
        return self._channel.is_joining(self._subscription)

    async def _run(self) -> None:
        """Hand over pages until the subscriber stands where the live ones stand, or is gone."""
        stand = self._after if isinstance(self._after, Cursor) else await self._earliest()
        while self._wanted and stand != self._channel.delivered:
            try:
                page = await self._page(stand)
            except CursorMoved as moved:
                stand = moved.cursor
                continue
            except CursorLost as lost:
                if self._after == EARLIEST and not self._opened:
                    stand = await self._earliest()  # forgotten between the two questions
                elif not await self._is_news(lost.position):
                    self._miss(stand, lost.position)
                    return
                continue
            if self._wanted and not self._opened:
                self._opened = True
                self._subscriber.opened(stand)
            if page and self._wanted:
                stand = self._hand_over(page)
                # Nothing of it is held while the client reads; what was too much is read again.
                page = ()
                # Not in a slot: those who read slowly, or not at all, must not keep the others from
                # coming back.
                await self._subscriber.drained()
        if self._wanted:
            self._channel.go_live(self._subscription, self._opened)

    def _hand_over(self, page: Sequence[Event]) -> Cursor:
        """
        Deliver as much of the page as may wait for the client.  @return: where it stands then.
        """
        batch = first_page(page, self._subscriber.page_size)
        self._subscriber.deliver(batch)
        return batch.events[-1].cursor

    async def _earliest(self) -> Cursor:
        position = await self._hub.history.ensure(self._channel.account)
        return Cursor(position.epoch, position.floor)

    async def _page(self, stand: Cursor) -> Sequence[Event]:
        """
        The next events after `stand`, none beyond what the live ones have.  Fails with
        `CursorLost`.
        """
        await self._hub.replays.acquire()
        try:
            account, history, delivered = (
                self._channel.account,
                self._hub.history,
                self._channel.delivered,
            )
            if not self._wanted or delivered is None:
                return ()
            if stand.epoch == delivered.epoch and stand.seq <= delivered.seq:
                return await history.read(
                    account, stand, delivered.seq, PAGE, self._subscriber.page_size
                )
            # It comes from an instance that was faster than this one, or from a dream: the history
            # knows.
            await history.read(account, stand, None, 1)
        finally:
            self._hub.replays.release()
        await self._follow()
        return ()

    async def _follow(self) -> None:
        """Let the live ones come up to the history."""
        await self._channel.catch_up()
        await deferLater(self._hub.clock, 0, lambda: None)

    async def _is_news(self, position: Position) -> bool:
        """
        Whether the numbering began anew and the live ones did not know it: then they come first,
        and only once.
        """
        delivered = self._channel.delivered
        if self._waited or delivered is None or delivered.epoch == position.epoch:
            return False
        self._waited = True
        await self._follow()
        return True

    def _miss(self, stand: Cursor, position: Position) -> None:
        """What came after `stand` cannot be replayed: go live, and say so."""
        delivered = self._channel.delivered
        if self._wanted and delivered is not None:
            epoch, seq = delivered
            floor = min(position.floor, seq) if position.epoch == epoch else seq
            self._channel.go_live(self._subscription, self._opened)
            self._channel.tell(
                self._subscription, self._subscriber.missed, stand, Position(epoch, seq, floor)
            )
