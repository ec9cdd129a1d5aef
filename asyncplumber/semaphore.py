"""A bound on how many do something at once, which stays whole however many wait for their turn."""

from __future__ import annotations

from collections import deque

from twisted.internet.defer import Deferred, succeed


class Semaphore:
    """
    So many tokens; who finds none waits, and is served in order.

    Twisted's `DeferredSemaphore` resumes the next waiter inside `release`.  If that waiter has
    nothing to do any more and releases at once, the calls nest, one level for each waiter: the
    stack ends after some hundred of them, and the token of that moment is lost.  Here a waiter
    that is resumed and releases returns first, and the next one is resumed after it.
    """

    def __init__(self, tokens: int) -> None:
        """`tokens` is how many may hold one at the same time."""
        self.tokens = tokens
        self._waiting: deque[Deferred[None]] = deque()
        self._resuming = False

    def acquire(self) -> Deferred[None]:
        """Return a Deferred that fires when the caller holds a token."""
        if self.tokens:
            self.tokens -= 1
            return succeed(None)
        waiter: Deferred[None] = Deferred()
        self._waiting.append(waiter)
        return waiter

    def release(self) -> None:
        """Give a token back.  The next waiter is resumed before this returns, or by the caller."""
        self.tokens += 1
        if self._resuming:
            return
        self._resuming = True
        try:
            while self.tokens and self._waiting:
                self.tokens -= 1
                self._waiting.popleft().callback(None)
        finally:
            self._resuming = False
