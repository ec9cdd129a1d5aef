"""A store that can only be asked one thing at a time."""

from __future__ import annotations

from collections.abc import Sequence

from twisted.internet.defer import Deferred, maybeDeferred

from asyncplumber.errors import PlumberError
from asyncplumber.event import Draft, Stored
from asyncplumber.interfaces import Appended, IHistory, IRegistry


class TwoStepAppend:
    """
    The append of `IStore` in two steps: the history's append, and then the registry's look-up.
    """

    def __init__(self, history: IHistory, registry: IRegistry, *, shared: bool) -> None:
        self.history = history
        self.registry = registry
        self.shared = shared

    def append(self, drafts: Sequence[Draft]) -> Deferred[Appended]:
        return self.history.append(drafts).addCallback(self._look)

    def _look(self, results: list[Stored | PlumberError]) -> Appended:
        accounts = (
            {result.event.account for result in results if isinstance(result, Stored)}
            if self.shared
            else ()
        )
        # The look-up is only begun here: whoever appends need not wait for it to deliver, nor to
        # append again.
        return results, maybeDeferred(self.registry.instances, accounts) if accounts else None
