"""A bound on how many do something at once."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.concurrency import Semaphore


class SemaphoreTests(SynchronousTestCase):
    """Tokens, and who waits for one."""

    def test_waiters_are_served_in_their_order(self) -> None:
        """One token given back lets one waiter in."""
        semaphore = Semaphore(2)
        self.successResultOf(semaphore.acquire())
        self.successResultOf(semaphore.acquire())
        waiters = [semaphore.acquire() for _ in range(3)]
        semaphore.release()
        self.successResultOf(waiters[0])
        self.assertNoResult(waiters[1])
        semaphore.release()
        semaphore.release()
        self.successResultOf(waiters[2])
        self.assertEqual(semaphore.tokens, 0)

    def test_waiters_that_release_at_once_do_not_nest(self) -> None:
        """A hundred thousand of them leave every token where it was."""
        semaphore = Semaphore(1)
        semaphore.acquire()
        for _ in range(100_000):
            semaphore.acquire().addCallback(lambda _: semaphore.release())
        semaphore.release()
        self.assertEqual(semaphore.tokens, 1)

    def test_a_waiter_that_fails_leaves_the_others_their_turn(self) -> None:
        """What is raised stays in that waiter's Deferred."""
        semaphore = Semaphore(1)
        semaphore.acquire()
        broken = semaphore.acquire().addCallback(lambda _: 1 // 0)
        after: Deferred[None] = semaphore.acquire()
        semaphore.release()
        self.failureResultOf(broken, ZeroDivisionError)
        semaphore.release()
        self.successResultOf(after)
