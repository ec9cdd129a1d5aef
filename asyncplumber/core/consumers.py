"""
The application's own subscribers: its callbacks, and its ``async for`` loops.

They may be made at any time, also before the instance runs.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import IReactorTime

from asyncplumber.core.callbacks import Callback, CallbackSubscriber
from asyncplumber.core.event_iterator import EventIterator, Feed
from asyncplumber.core.hub import Hub
from asyncplumber.errors import Unavailable
from asyncplumber.event import EARLIEST, Cursor, checked_account
from asyncplumber.sending import Key, key_text

After = Cursor | str | None  # where to begin; None is now


def _account(account: Key) -> str:
    return checked_account(key_text("account", account))


def _position(after: After) -> After:
    if isinstance(after, str) and after != EARLIEST:
        return Cursor.parse(after)
    return after


class Consumers:
    """Starts and stops the application's subscribers together with the instance."""

    def __init__(self, hub: Hub, clock: IReactorTime) -> None:
        self._hub = hub
        self._clock = clock
        self._is_running = False
        self._callbacks: dict[tuple[str, Any], CallbackSubscriber] = {}
        self._feeds: set[Feed] = set()

    def register(self, account: Key, callback: Callback, after: After) -> None:
        """See ``asyncplumber.Plumber.register``."""
        name, position = _account(account), _position(after)
        if (name, callback) in self._callbacks:
            return
        subscriber = CallbackSubscriber(self._hub, name, callback, position, self._clock)
        self._callbacks[name, callback] = subscriber
        if self._is_running:
            subscriber.start()

    def unregister(self, account: Key, callback: Callback) -> None:
        """See ``asyncplumber.Plumber.unregister``."""
        subscriber = self._callbacks.pop((key_text("account", account), callback), None)
        if subscriber is not None:
            subscriber.stop()

    def events(self, account: Key, after: After) -> EventIterator:
        """See ``asyncplumber.Plumber.events``."""
        feed = Feed(
            self._hub, _account(account), _position(after), self._clock, self._feeds.discard
        )
        self._feeds.add(feed)
        if self._is_running:
            feed.start()
        return EventIterator(feed)

    def start(self) -> None:
        """Subscribe all of them."""
        self._is_running = True
        # A start may call the application at once, with events that are kept.  The application may
        # then unregister other callbacks, or stop the plumber.
        for key, subscriber in list(self._callbacks.items()):
            if self._is_running and self._callbacks.get(key) is subscriber:
                subscriber.start()
        for feed in list(self._feeds):
            if self._is_running and feed in self._feeds:
                feed.start()

    def stop(self) -> None:
        """Pause the callbacks until the next start, and end the iterators with an error."""
        self._is_running = False
        for subscriber in list(self._callbacks.values()):
            subscriber.stop()
        for feed in list(self._feeds):
            feed.end(Unavailable("this instance is about to stop"))


class ConsumerMethods:
    """The methods of a `Plumber` that subscribe its application."""

    _consumers: Consumers

    def register(self, account: Key, callback: Callback, after: After = None) -> None:
        """
        Call ``callback`` with each ``Event`` of an account.

        It may be called before the start, and lasts over a stop and a start.  What the callback
        raises is logged.  A second registration of the same callback changes nothing.

        Args:
            account: Whose events.
            callback: A callable, or an Autobahn WebSocket protocol, which is sent the envelope.  If
                the callable returns an awaitable, that is awaited before the next event: a
                Deferred, a coroutine, or on the asyncio reactor a future.
            after: Where to begin: a ``Cursor`` or its text, ``"earliest"`` for all that is kept, or
                None for now.  Now is when the store has answered, a moment after this call or after
                the start: an event that is sent before that is not delivered.

        Raises:
            BadAccount: There can be no such account.
            BadCursor: The cursor was never given out.
            TypeError: The callback cannot be called.
        """
        self._consumers.register(account, callback, after)

    def unregister(self, account: Key, callback: Callback) -> None:
        """Call it no more.  Harmless if it is not registered."""
        self._consumers.unregister(account, callback)

    def events(self, account: Key, *, after: After = None) -> EventIterator:
        """
        Iterate over the events of an account: ``async for event in plumber.events("42")``.

        The next event is handed over when the loop asks for it.  Leaving the loop unsubscribes.
        To go on later, even in another process, begin ``after`` the ``cursor`` of the last event.
        It may be called before the start; then the loop waits for that.

        Args:
            account: Whose events.
            after: Where to begin: a ``Cursor`` or its text, ``"earliest"`` for all that is kept, or
                None for now.

        Raises:
            BadAccount: There can be no such account.
            BadCursor: The cursor was never given out.
            EventsMissed: In the loop: some events cannot be replayed any more.
            Unavailable: In the loop: the plumber stops.
        """
        return self._consumers.events(account, after)
