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
