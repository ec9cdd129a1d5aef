"""
This instance's row in the registry, and its hooks: keeps them alive, and equal to what is wanted.

The state is three sets of accounts.

- ``wanted``: the hub serves them, so the registry should have their hooks;
- ``registered``: the registry has their hooks, for certain or perhaps (see `_Row`);
- ``dirty``: they have changed, and must be looked at by the next synchronisation.

What to add and what to remove is computed from these when it is sent:

========  ==============  =================
wanted    row             action
========  ==============  =================
yes       none, MAYBE     register
yes       CERTAIN         nothing
no        MAYBE, CERTAIN  unregister
no        none            nothing
========  ==============  =================

A row is MAYBE from the moment that a call about it is sent, and stays so if the call fails.  One
call is under way at a time, so the calls for one account never overtake each other.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from asyncplumber.concurrency import PeriodicTask, SingleFlight, Waiters
from asyncplumber.errors import Unavailable, to_client_error
from asyncplumber.event import Instance
from asyncplumber.interfaces import IRegistry

RENEWALS = 3  # in the time of one lease: two may fail before the others take this instance for dead
MAX_HOOKS_PER_CALL = 1000


class _Row(Enum):
    """What this instance knows of a hook's row in the registry.  No entry: there is no row."""

    CERTAIN = "the registry has it"
    MAYBE = "a call about it is under way, or has failed"


class Leases:
    """Keeps this instance and its hooks in the registry."""

    _log = Logger()

    def __init__(
        self,
        registry: IRegistry,
        instance: Instance,
        clock: IReactorTime,
        lease: float,
        *,
        prepare: Callable[[], Deferred[None]] = lambda: succeed(None),
    ) -> None:
        """
        Args:
            registry: Where the hooks are.
            instance: This one.
            clock: Measures the time between renewals.
            lease: Seconds that a lease lasts.
            prepare: Is waited for before this instance is added to the registry, and so before
                other instances can ask something of it.
        """
        self.instance = instance
        self._registry = registry
        self._clock = clock
        self._prepare = prepare
        self._on_lease_lost: Callable[[], None] = lambda: None
        self._wanted: set[str] = set()
        self._registered: dict[str, _Row] = {}
        self._dirty: set[str] = set()
        self._may_add = False  # whether a dirty account may be wanted
        self._waiters: dict[str, Waiters] = {}  # for the hooks that are not registered yet
        self._is_added = False  # whether the registry has this instance
        self._was_lost = False  # whether it had lost it, and ``on_lease_lost`` is to be called
        # Whether a synchronisation is due or under way.  What changes meanwhile belongs to it, so
        # that a registry that is away is not called again for each change.
        self._sync_wanted = False
        self._stopped = False
        self._sync = SingleFlight(self._synchronise, "synchronising the registry")
        interval = lease / RENEWALS
        self._renewal = PeriodicTask(self._renew, interval, clock, now=True)
        # A task of its own: sweeping a million hooks of a dead instance delays no renewal.
        self._sweeping = PeriodicTask(self._sweep, interval, clock, now=True)

    @property
    def wanted(self) -> int:
        """The number of hooks that this instance wants."""
        return len(self._wanted)

    def start(self, on_lease_lost: Callable[[], None] = lambda: None) -> None:
        """
        Add this instance to the registry, and renew its lease from now on.

        A registry that is away is tried again at each renewal.

        Args:
            on_lease_lost: Called after the registry had lost this instance, when it has all hooks
                again.  Events may have been missed.
        """
        self._on_lease_lost = on_lease_lost
        self._stopped = False
        self._renewal.start()
        self._sweeping.start()

    def register(self, account: str) -> Deferred[None]:
        """
        Put a hook for this account into the registry.

        Returns:
            A Deferred that fires when it is there.  Fails with `Unavailable`; then the hook is not
            wanted any more.
        """
        if self._stopped:
            return fail(Unavailable("this instance is about to stop"))
        self._wanted.add(account)
        if self._registered.get(account) is _Row.CERTAIN:
            return succeed(None)
        self._dirty.add(account)
        self._may_add = True
        waiters = self._waiters.setdefault(account, Waiters())
        registered = waiters.wait()
        self._schedule_sync()
        return registered

    def unregister(self, account: str) -> None:
        """Take the hook out again, soon."""
        self._wanted.discard(account)
        if waiters := self._waiters.pop(account, None):
            waiters.fail(Unavailable("this hook is not wanted any more"))
        if account in self._registered:
            self._dirty.add(account)
            self._schedule_sync()

    def drop_stale(self, account: str) -> None:
        """Take out a hook of ours that the registry seems to have although it is not wanted."""
        if account not in self._wanted:
            self._registered[account] = _Row.MAYBE
            self.unregister(account)

    def stop(self) -> Deferred[None]:
        """
        Take this instance and all its hooks out.

        Returns:
            A Deferred that does not fail: if the registry is away, the lease ends by itself.
        """
        self._stopped = True
        self._renewal.stop()
        self._sweeping.stop()
        self._fail_waiters(Unavailable("this instance is about to stop"))
        return Deferred.fromCoroutine(self._remove_instance())

    async def _remove_instance(self) -> None:
        # A call that is under way must not put hooks in again after this.
        await self._sync.run()
        self._is_added = self._was_lost = self._sync_wanted = False
        self._registered.clear()
        self._dirty.clear()
        try:
            await self._registry.remove_instance(self.instance)
        except Exception as error:
            self._log.warn("this instance stays in the registry: {error}", error=str(error))

    # Synchronisation

    def _schedule_sync(self) -> None:
        if not self._sync_wanted and not self._stopped:
            self._sync_wanted = True
            self._sync.request()

    async def _synchronise(self) -> None:
        """Make the registry have what is wanted."""
        if not self._sync_wanted:
            return
        # What is asked for in this turn of the reactor goes into one call.
        await deferLater(self._clock, 0)
        self._may_add = True
        try:
            while not self._stopped and await self._take_step():
                pass
        except Exception:
            self._sync_failed(Failure())
        else:
            self._sync_wanted = False

    async def _take_step(self) -> bool:
        """Make one call, or report that the lease was lost.  Return whether there may be more."""
        if not self._is_added:
            await self._add_instance()
        elif added := self._to_add():
            # First the new hooks: subscribers wait for them.
            await self._add(added)
        elif removed := self._to_remove():
            await self._remove(removed)
        elif self._was_lost:
            # All hooks are in again, so no event falls between what the hub will find in the
            # history and what is relayed.
            self._was_lost = False
            self._on_lease_lost()
        else:
            self._dirty.clear()
            return False
        return True

    def _to_add(self) -> list[str]:
        if not self._may_add:
            return []  # at once: many hooks are taken out in many calls, and each looks here first
        certain, found = _Row.CERTAIN, []
        for account in self._dirty:
            if account in self._wanted and self._registered.get(account) is not certain:
                found.append(account)
                if len(found) == MAX_HOOKS_PER_CALL:
                    return found
        self._may_add = False
        return found

    def _to_remove(self) -> list[str]:
        found = []
        for account in self._dirty:
            if account not in self._wanted and account in self._registered:
                found.append(account)
                if len(found) == MAX_HOOKS_PER_CALL:
                    break
        return found

    async def _add_instance(self) -> None:
        await self._prepare()
        self.instance = await self._registry.add_instance(self.instance)
        self._is_added = True
        self._registered.clear()
        self._dirty = set(self._wanted)
        self._may_add = True

    async def _add(self, accounts: list[str]) -> None:
        self._registered.update(dict.fromkeys(accounts, _Row.MAYBE))
        await self._registry.register(self.instance, accounts)
        self._registered.update(dict.fromkeys(accounts, _Row.CERTAIN))
        # An account that is not wanted any more stays dirty, and is removed.
        self._dirty.difference_update(self._wanted.intersection(accounts))
        for account in accounts:
            if waiters := self._waiters.pop(account, None):
                waiters.release()

    async def _remove(self, accounts: list[str]) -> None:
        self._registered.update(dict.fromkeys(accounts, _Row.MAYBE))
        await self._registry.unregister(self.instance, accounts)
        for account in accounts:
            del self._registered[account]
        # An account that is wanted again stays dirty, and is added.
        self._dirty.difference_update(set(accounts) - self._wanted)

    def _sync_failed(self, failure: Failure) -> None:
        """Fail the waiters.  Everything else that is dirty is tried at the next renewal."""
        error = to_client_error(failure, self._log, "synchronising the registry failed")
        if not isinstance(error, Unavailable):  # the store has a line of its own about that
            self._log.warn("the registry cannot be told of hooks: {error}", error=error.message)
        self._sync_wanted = False
        self._fail_waiters(error)

    def _fail_waiters(self, error: Exception) -> None:
        """Give up the hooks that are waited for."""
        waiting, self._waiters = self._waiters, {}
        self._wanted.difference_update(waiting)
        for waiters in waiting.values():
            waiters.fail(error)

    # Renewing and sweeping

    async def _renew(self) -> None:
        if self._is_added:
            renewed = await self._registry.renew(self.instance)
            if renewed is not None:
                self.instance = renewed
            else:
                self._log.warn(
                    "the registry had lost this instance: adding it again, with {hooks} hooks",
                    hooks=self.wanted,
                )
                self._is_added = False
                self._was_lost = True
        if not self._is_added or self._dirty:
            self._schedule_sync()

    async def _sweep(self) -> None:
        await self._registry.sweep()
