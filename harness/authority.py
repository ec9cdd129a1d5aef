"""An authority whose answers a test decides."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from zope.interface import implementer

from asyncplumber.errors import InvalidToken, PlumberError, Unauthenticated
from asyncplumber.grant import Grant
from asyncplumber.interfaces import Decision, Facts, IAuthority


@implementer(IAuthority)
class FakeAuthority:
    """
    Knows bearer tokens by heart.

    Attributes:
        grants: What each token allows; a `PlumberError` is raised.
        later: Whether it answers only when `answer` is called.
        asked: What it was asked, in order.
        waiting: The Deferreds that wait for `answer`.
    """

    def __init__(self, grants: dict[str, Grant | PlumberError], *, later: bool = False) -> None:
        self.grants = grants
        self.later = later
        self.asked: list[Facts] = []
        self.cancelled = 0
        self.waiting: list[tuple[Deferred[Decision], Facts]] = []

    def grant(self, facts: Facts) -> Decision | Deferred[Decision]:
        self.asked.append(facts)
        if not self.later:
            return self._known(facts)
        answer: Deferred[Decision] = Deferred(self._cancel)
        self.waiting.append((answer, facts))
        return answer

    def _cancel(self, _: object) -> None:
        self.cancelled += 1

    def _known(self, facts: Facts) -> Grant:
        header = facts.headers.get(b"authorization")
        if header is None:
            raise Unauthenticated
        found = self.grants.get(header.decode().removeprefix("Bearer "))
        if found is None:
            raise InvalidToken("unknown")
        if isinstance(found, PlumberError):
            raise found
        return found

    def answer(self) -> None:
        """Answer all that wait."""
        waiting, self.waiting = self.waiting, []
        for answer, facts in waiting:
            try:
                answer.callback(self._known(facts))
            except PlumberError as error:
                answer.errback(error)
