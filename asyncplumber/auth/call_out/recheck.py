"""
Asks the application again about streams that are open, and ends those that it refuses now.

Each stream has a time of its own in every round, so that the questions are spread.  A stream that
the application does not refuse stays, also while the application cannot be asked; but then for a
limited time.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from weakref import WeakSet

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from asyncplumber.auth.authority import End
from asyncplumber.auth.call_out.call_out import Asked, AskedGrant, CallOut
from asyncplumber.concurrency import PeriodicTask, Semaphore
from asyncplumber.errors import (
    GrantExpired,
    GrantRevoked,
    NotAllowed,
    PlumberError,
    Unauthenticated,
    Unavailable,
)
from asyncplumber.grant import Action

TICK = 1.0  # seconds between two looks
AT_ONCE = 32  # questions of this kind under way


class Recheck:
    """Asks about open streams again."""

    _log = Logger()

    def __init__(
        self,
        call_out: CallOut | None,
        clock: IReactorTime,
        now: Callable[[], float],
        draw: Callable[[], float] = random.random,
    ) -> None:
        """
        Args:
            call_out: Whom to ask; None ends all streams that were asked about.
            clock: A clock that is never set.
            now: Returns the seconds since 1970, which the ends of permissions are compared with.
            draw: Returns a number between 0 and 1.
        """
        self._clock = clock
        self._now = now
        self._draw = draw
        self._tokens = Semaphore(AT_ONCE)
        #: Ends streams.  The part that has the streams sets it.
        self.end: End = lambda matches, error: 0
        self._tick = 0
        # Weak: a stream that has ended takes its grant with it, and needs to tell nobody.
        self._slots: list[WeakSet[Asked]] = []
        self._bounded: WeakSet[Asked] = WeakSet()  # those whose permission has an end
        self._task = PeriodicTask(self._look, TICK, clock)
        self.configure(call_out)

    def configure(self, call_out: CallOut | None) -> None:
        """Ask this one from now on."""
        known = [asked for slot in self._slots for asked in slot]
        self._call_out = call_out
        self._slots = [WeakSet() for _ in range(call_out.table.recheck if call_out else 1)]
        if call_out is not None:
            call_out.watch = self.watch
        for asked in known:
            self.watch(asked)

    def start(self) -> None:
        """Begin."""
        self._task.start()

    def stop(self) -> None:
        """Ask no more."""
        self._task.stop()

    def __len__(self) -> int:
        """Return how many permissions are asked about, of streams or remembered."""
        return sum(map(len, self._slots))

    def watch(self, asked: Asked) -> None:
        """Ask about this from now on, once in each round."""
        # The slot that is looked at next is the first one: so the first time is one round away
        # at most.
        offset = int(self._draw() * len(self._slots)) % len(self._slots)
        self._slots[(self._tick + offset) % len(self._slots)].add(asked)
        if asked.until is not None:
            self._bounded.add(asked)

    def _look(self) -> None:
        now = self._now()
        ended = [asked for asked in self._bounded if asked.until is not None and asked.until <= now]
        if ended:
            self._bounded.difference_update(ended)
            self._end(ended, GrantExpired())
        if self._call_out is not None:
            self._call_out.forget_old()
        slot = self._slots[self._tick % len(self._slots)]
        self._tick += 1
        for asked in list(slot):
            if not asked.is_asked:
                asked.is_asked = True
                # No ``finally`` in the coroutine, see `CallOut`.
                done = Deferred.fromCoroutine(self._ask(asked))
                done.addErrback(self._broke_off).addCallback(self._asked, asked)

    async def _ask(self, asked: Asked) -> PlumberError | None:
        await self._tokens.acquire()
        return await self._refusal(asked)

    def _broke_off(self, failure: Failure) -> None:
        self._log.failure("asking again failed", failure)

    def _asked(self, error: PlumberError | None, asked: Asked) -> None:
        asked.is_asked = False
        self._tokens.release()
        if error is not None:
            self._end([asked], error)

    async def _refusal(self, asked: Asked) -> PlumberError | None:
        """Ask, and return why the streams have to end; None if they may stay."""
        call_out, question = self._call_out, asked.question
        if call_out is None:
            return GrantRevoked()
        try:
            grant = await call_out.ask_again(asked)
            if question.account is not None:
                grant.check(Action.SUBSCRIBE, question.account)
        except (Unauthenticated, NotAllowed) as error:
            return error
        except Unavailable:
            return self._unavailable(asked, call_out.table.grace)
        asked.failing_since = None
        if grant.start != asked.start:
            # A stream takes wishes to start tasks, with the grant that it has.  Its client comes
            # back at once, and gets the new one.
            return GrantExpired()
        self._shorten(asked, grant.until)
        return None

    def _unavailable(self, asked: Asked, grace: float) -> PlumberError | None:
        now = self._clock.seconds()
        if asked.failing_since is None:
            asked.failing_since = now
        if now - asked.failing_since < grace:
            return None
        return Unavailable("the application cannot be asked about this stream any more")

    def _shorten(self, asked: Asked, until: float | None) -> None:
        """Note that a permission ends earlier.  It never ends later than it was said first."""
        if until is not None and (asked.until is None or until < asked.until):
            asked.until = until
            self._bounded.add(asked)

    def _end(self, ended: list[Asked], error: PlumberError) -> None:
        these = set(ended)
        for slot in self._slots:
            slot.difference_update(these)
        self.end(lambda grant, _: isinstance(grant, AskedGrant) and grant.asked in these, error)
