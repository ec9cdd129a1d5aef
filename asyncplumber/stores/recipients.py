"""The second step of an append, for stores that cannot do both steps in one call."""

from __future__ import annotations

from twisted.internet.defer import Deferred, maybeDeferred

from asyncplumber.errors import PlumberError
from asyncplumber.event import Stored
from asyncplumber.interfaces import Appended, IRegistry


def with_recipients(
    stored: Deferred[list[Stored | PlumberError]], registry: IRegistry | None
) -> Deferred[Appended]:
    """
    Look up which instances want the events, once they are in the history.

    Args:
        stored: The outcome for each draft, as in `Appended.results`.
        registry: The registry to ask; None if no other process can use the store.
    """
    return stored.addCallback(_look_up, registry)


def _look_up(results: list[Stored | PlumberError], registry: IRegistry | None) -> Appended:
    if registry is None:
        return Appended(results, None)
    accounts = {result.event.account for result in results if isinstance(result, Stored)}
    if not accounts:
        return Appended(results, None)
    # The look-up is only started here: the caller delivers and appends without waiting for it.
    return Appended(results, maybeDeferred(registry.instances, accounts))
