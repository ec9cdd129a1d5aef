"""
Keeps this instance's hooks alive, lets them lapse, sweeps up after the dead.

The registry is told in groups: whatever is held or released while one call is under way goes into the next, so the
calls for one account never overtake each other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from asyncplumber.errors import PlumberError, blame
from asyncplumber.event import Instance
from asyncplumber.interfaces import IRegistry

RENEWALS = 3  # in the time of one lease: two may fail before the others take us for dead
GROUP = 1000  # hooks in one call


def _some(accounts: set[str]) -> list[str]:
    """Take a group out of `accounts`."""
    return [accounts.pop() for _ in range(min(GROUP, len(accounts)))]


class Leases:
    """This instance's row in the registry, and its hooks."""

    _log = Logger()

    def __init__(
        self,
        registry: IRegistry,
        instance: Instance,
        clock: Any,
        lease: float,
        *,
        forgotten: Callable[[], Any] = lambda: None,
    ) -> None:
        """`lease` in seconds.  `forgotten` is called when the registry turns out to have lost us: we may have missed events."""
        self.instance = instance
        self._registry = registry
        self._clock = clock
        self._forgotten = forgotten
        self._held: set[str] = set()
        self._known: set[str] = set()  # what the registry has, as far as we know
        self._adding: set[str] = set()
        self._removing: set[str] = set()
        self._waiting: dict[str, list[Deferred[None]]] = {}
        self._busy = False
        self._enlisted = False
        self._stopped = False
        self._renewal = LoopingCall(self._renew)
        self._renewal.clock = clock
        self._interval = lease / RENEWALS

    @property
    def held(self) -> int:
        """How many hooks this instance wants."""
        return len(self._held)

    def start(self) -> None:
        """Enlist, and renew from now on.  If the registry is away, it is tried again at each renewal."""
        self._renewal.start(self._interval)

    def hold(self, account: str) -> Deferred[None]:
        """
        Put a hook for this account into the registry.

        @return: Deferred that fires when it is there.  Fails with `Unavailable`; then it is not held.
        """
        self._held.add(account)
        self._removing.discard(account)
        if account in self._known or self._stopped:
            return succeed(None)
        done: Deferred[None] = Deferred()
        self._adding.add(account)
        self._waiting.setdefault(account, []).append(done)
        self._stir()
        return done

    def release(self, account: str) -> None:
        """Take the hook out again, soon."""
        self._held.discard(account)
        self._adding.discard(account)
        if account in self._known:
            self._removing.add(account)
            self._stir()

    def disown(self, account: str) -> None:
        """The registry seems to have a hook of ours for an account that we do not hold: take it out again."""
        if account not in self._held:
            self._known.add(account)
            self.release(account)

    def stop(self) -> Deferred[None]:
        """Take everything out.  @return: Deferred of None; an unreachable registry is no failure: the lease runs out."""
        self._stopped = True
        if self._renewal.running:
            self._renewal.stop()
        resigned = self._registry.resign(self.instance)
        resigned.addErrback(lambda failure: self._log.warn("could not resign: {error}", error=failure.getErrorMessage()))
        return resigned

    # Telling the registry

    def _stir(self) -> None:
        if not self._busy and not self._stopped:
            self._busy = True
            self._clock.callLater(0, self._tell)

    def _tell(self) -> None:
        Deferred.fromCoroutine(self._told()).addErrback(self._not_told)

    async def _told(self) -> None:
        """Bring the registry up to what is held: first the new hooks, for which subscribers wait, then the old ones."""
        while not self._stopped:
            if not self._enlisted:
                self.instance = await self._registry.enlist(self.instance)
                self._enlisted = True
                self._known.clear()
                self._removing.clear()
                self._adding.update(self._held)
            if added := _some(self._adding):
                await self._registry.register(self.instance, added)
                self._known.update(added)
                self._removing.update([account for account in added if account not in self._held])
                for account in added:
                    self._answer(account, None)
            elif removed := _some(self._removing):
                # From here on they may be gone, whatever the answer says.
                self._known.difference_update(removed)
                await self._registry.withdraw(self.instance, removed)
            else:
                break
        self._busy = False

    def _answer(self, account: str, error: PlumberError | None) -> None:
        for done in self._waiting.pop(account, ()):
            if error is None:
                done.callback(None)
            else:
                done.errback(error)

    def _not_told(self, failure: Failure) -> None:
        """Those who wait are told; whatever else is open is tried again at the next renewal."""
        error = blame(failure, self._log, "telling the registry failed")
        self._log.warn("the registry cannot be told of hooks: {error}", error=error.message)
        self._busy = False
        for account in list(self._waiting):
            self._held.discard(account)
            self._answer(account, error)
        self._adding = {account for account in self._held if account not in self._known}

    # Renewing

    def _renew(self) -> Deferred[None]:
        # A LoopingCall ends for good at the first failure that reaches it.
        return Deferred.fromCoroutine(self._renewed()).addErrback(self._not_renewed)

    async def _renewed(self) -> None:
        if self._enlisted:
            renewed = await self._registry.renew(self.instance)
            if renewed is not None:
                self.instance = renewed
            else:
                self._log.warn("the registry had forgotten this instance: enlisting again, with {hooks} hooks", hooks=self.held)
                self._enlisted = False
                self._forgotten()
        if not self._enlisted or self._adding or self._removing:
            self._stir()
        await self._registry.sweep()

    def _not_renewed(self, failure: Failure) -> None:
        self._log.warn("the lease was not renewed: {error}", error=failure.getErrorMessage())
