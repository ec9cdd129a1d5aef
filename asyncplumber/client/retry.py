"""
When to try again, and when to give up.

Knows no socket and no clock: times are seconds on a monotonic clock, which the caller reads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

from asyncplumber.client.response import Response, TryLater, interpret
from asyncplumber.sending import Receipt

MAX_RETRY_AFTER = 60.0  # seconds; a server that asks for a longer pause is asked again after this

Answer = TypeVar("Answer")  # that to an event, or that to a report


class Undelivered(Exception):
    """
    The event was given up.

    It may have arrived if only the responses were lost.  Send it again with the same id: it will
    not be there twice.

    Attributes:
        id: The event's id.
        attempts: How many attempts were made.
        reason: Why the last one failed.
    """

    def __init__(self, id: str, attempts: int, reason: str) -> None:
        super().__init__(id, attempts, reason)
        self.id, self.attempts, self.reason = id, attempts, reason

    def __str__(self) -> str:
        times = f"{self.attempts} attempt{'s'[: self.attempts != 1]}"
        return f"event {self.id} is undelivered after {times}: {self.reason}"


class RetryPolicy(NamedTuple):
    """
    How long one send keeps trying.

    The pause before the next attempt is a random part of ``initial_backoff``, doubled with each
    failure up to ``max_backoff`` (full jitter): many tasks that failed together do not come back
    together.

    Attributes:
        timeout: Seconds without a sign of life after which an attempt has failed.
        attempts: The most attempts; None allows as many as fit into ``deadline``.
        deadline: Seconds for all attempts and the pauses between them.
        initial_backoff: Seconds of the longest first pause.
        max_backoff: Seconds of the longest pause at all.
    """

    timeout: float = 5.0
    attempts: int | None = None
    deadline: float = 30.0
    initial_backoff: float = 0.25
    max_backoff: float = 8.0


class RetryState:
    """The attempts of one send."""

    def __init__(
        self, policy: RetryPolicy, id: str, now: float, random: Callable[[], float]
    ) -> None:
        """
        Args:
            policy: How long to try.
            id: The event's id, for ``Undelivered``.
            now: When the send begins.
            random: Returns a number from 0 to 1.
        """
        self._policy = policy
        self._id = id
        self._deadline = now + policy.deadline
        self._random = random
        self._failures = 0

    def timeout(self, now: float) -> float:
        """Return the seconds that an attempt may take which begins now."""
        return max(0.001, min(self._policy.timeout, self._deadline - now))

    def failed(self, reason: str, now: float, *, delay: float = 0.0) -> float:
        """
        Note a failed attempt.

        Args:
            reason: Why it failed.
            now: When.
            delay: Seconds that the server asks to wait at least.

        Returns:
            The seconds to wait before the next attempt.

        Raises:
            Undelivered: There is no next attempt.
        """
        doubled = self._policy.initial_backoff * 2.0 ** min(self._failures, 30)
        self._failures += 1
        jitter = self._random() * min(self._policy.max_backoff, doubled)
        pause = min(delay, MAX_RETRY_AFTER) + jitter
        if self._failures == self._policy.attempts or now + pause >= self._deadline:
            raise Undelivered(self._id, self._failures, reason)
        return pause

    def fatal(self, reason: str) -> Undelivered:
        """Return the error to raise after a failure that every further attempt would meet too."""
        return Undelivered(self._id, self._failures + 1, reason)

    def responded(self, response: Response, now: float) -> Receipt | float:
        """
        Note the response to an attempt.

        Returns:
            The receipt, or the seconds to wait before the next attempt.

        Raises:
            Refused: The event is refused for good.
            Undelivered: There is no next attempt.
        """
        return self.understood(interpret(response), now)

    def understood(self, outcome: Answer | TryLater, now: float) -> Answer | float:
        """
        Note what the response to an attempt means.

        Returns:
            The answer, or the seconds to wait before the next attempt.

        Raises:
            Undelivered: There is no next attempt.
        """
        if isinstance(outcome, TryLater):
            return self.failed(outcome.reason, now, delay=outcome.delay)
        return outcome
