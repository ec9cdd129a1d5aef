"""
Keeps this instance's hooks alive, lets them lapse, sweeps up after the dead.

The registry is told in groups: whatever is held or released while one call is under way goes into
the next, so the calls for one account never overtake each other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from asyncplumber.errors import PlumberError, Unavailable, to_client_error
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
        prepare: Callable[[], Deferred[None]] = lambda: succeed(None),
    ) -> None:
        """
        `lease` in seconds.  `forgotten` is called when the registry had lost us and has our hooks
        again: we may miss events.

        `prepare` is awaited before we add_instance, and so before others may ask something of us.
        """
        self.instance = instance
        self._registry = registry
        self._clock = clock
        self._forgotten = forgotten
        self._prepare = prepare
        self._held: set[str] = set()
        self._known: set[str] = set()  # what the registry has, as far as we know
        self._adding: set[str] = set()
        self._removing: set[str] = set()
        self._waiting: dict[str, list[Deferred[None]]] = {}
        self._busy = False
        self._idle: list[Deferred[None]] = []
        self._enlisted = False
        self._was_forgotten = False
        self._sweeping = False
        self._stopped = False
        self._renewal = LoopingCall(self._renew)
        self._renewal.clock = clock
        self._interval = lease / RENEWALS

    @property
    def held(self) -> int:
        """How many hooks this instance wants."""
        return len(self._held)

    def start(self) -> None:
        """
        Enlist, and renew from now on.  If the registry is away, it is tried again at each renewal.
        """
        self._renewal.start(self._interval)

    def hold(self, account: str) -> Deferred[None]:
        """
        Put a hook for this account into the registry.

        @return: Deferred that fires when it is there.  Fails with `Unavailable`; then it is not
        held.
        """
        if self._stopped:
            return fail(Unavailable("this instance is about to stop"))
        self._held.add(account)
        self._removing.discard(account)
        if account in self._known:
            return succeed(None)
        done: Deferred[None] = Deferred()
        self._adding.add(account)
        self._waiting.setdefault(account, []).append(done)
        self._stir()
        return done

    def release(self, account: str) -> None:
        """Take the hook out again, soon."""
        self._held.discard(account)
        if account in self._adding:
            self._adding.discard(account)
            self._answer(account, Unavailable("nobody wants this hook any more"))
        if account in self._known:
            self._removing.add(account)
            self._stir()

    def drop_stale(self, account: str) -> None:
        """
        The registry seems to have a hook of ours for an account that we do not hold: take it out
        again.
        """
        if account not in self._held:
            self._known.add(account)
            self.release(account)

    def resume(self) -> None:
        """Hold again, after a stop: the registry knows nothing of us any more."""
        self._stopped = self._enlisted = self._was_forgotten = False
        self._known.clear()
        self._removing.clear()

    def stop(self) -> Deferred[None]:
        """
        Take everything out.  @return: Deferred of None; an unreachable registry is no failure: the
        lease runs out.
        """
        self._stopped = True
        if self._renewal.running:
            self._renewal.stop()
        for account in list(self._waiting):
            self._answer(account, Unavailable("this instance is about to stop"))
        # What is under way must not overtake the resignation, and put in again what that takes out.
        told: Deferred[None] = Deferred()
        self._idle.append(told)
        self._rest()
        told.addCallback(lambda _: self._registry.remove_instance(self.instance))
        return told.addErrback(
            lambda failure: self._log.warn(
                "could not remove_instance: {error}", error=failure.getErrorMessage()
            )
        )

    # Telling the registry

    def _stir(self) -> None:
        if not self._busy and not self._stopped:
            self._busy = True
            self._clock.callLater(0, self._tell)

    def _tell(self) -> None:
        Deferred.fromCoroutine(self._told()).addErrback(self._not_told)

    def _rest(self) -> None:
        """Nothing is under way: whoever waits for that goes on."""
        if not self._busy:
            idle, self._idle = self._idle, []
            for done in idle:
                done.callback(None)

    async def _told(self) -> None:
        """
        Bring the registry up to what is held: first the new hooks, for which subscribers wait, then
        the old ones.
        """
        while not self._stopped:
            if not self._enlisted:
                await self._prepare()
                self.instance = await self._registry.add_instance(self.instance)
                self._enlisted = True
                self._known.clear()
                self._removing.clear()
                self._adding.update(self._held)
            if added := _some(self._adding):
                await self._add(added)
            elif removed := _some(self._removing):
                await self._remove(removed)
            else:
                break
        self._busy = False
        self._rest()
        if self._was_forgotten and not self._stopped:
            # Now that the hooks are in again: nothing falls between what this finds and what is
            # relayed.
            self._was_forgotten = False
            self._forgotten()

    async def _add(self, accounts: list[str]) -> None:
        try:
            await self._registry.register(self.instance, accounts)
        except Exception:
            self._removing.update(
                accounts
            )  # they may be there all the same; `_not_told` leaves out what is held
            raise
        self._known.update(accounts)
        self._removing.update([account for account in accounts if account not in self._held])
        for account in accounts:
            self._answer(account, None)

    async def _remove(self, accounts: list[str]) -> None:
        # From here on they may be gone, whatever the answer says.
        self._known.difference_update(accounts)
        try:
            await self._registry.unregister(self.instance, accounts)
        except Exception:
            self._removing.update(accounts)
            raise

    def _answer(self, account: str, error: PlumberError | None) -> None:
        for done in self._waiting.pop(account, ()):
            if error is None:
                done.callback(None)
            else:
                done.errback(error)

    def _not_told(self, failure: Failure) -> None:
        """Those who wait are told; whatever else is open is tried again at the next renewal."""
        error = to_client_error(failure, self._log, "telling the registry failed")
        self._log.warn("the registry cannot be told of hooks: {error}", error=error.message)
        waiting = list(self._waiting)
        self._held.difference_update(waiting)
        self._adding = self._held - self._known
        self._removing -= self._held
        self._busy = False
        self._rest()
        for account in waiting:
            self._answer(account, error)

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
                self._log.warn(
                    "the registry had forgotten this instance: enlisting again, with {hooks} hooks",
                    hooks=self.held,
                )
                self._enlisted = False
                self._was_forgotten = True
        if not self._enlisted or self._adding or self._removing:
            self._stir()
        if not self._sweeping:
            # Not awaited: a long sweep must not keep us from renewing.
            self._sweeping = True
            self._registry.sweep().addErrback(self._not_renewed).addCallback(self._swept)

    def _swept(self, _: Any) -> None:
        self._sweeping = False

    def _not_renewed(self, failure: Failure) -> None:
        self._log.warn(
            "renewing the lease, or sweeping, failed: {error}", error=failure.getErrorMessage()
        )
