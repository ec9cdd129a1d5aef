"""This instance's hooks in the registry: put in, kept alive, taken out."""

from __future__ import annotations

import random
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed

from asyncplumber.core import leases
from asyncplumber.core.leases import Leases
from asyncplumber.errors import PlumberError, Unavailable
from asyncplumber.event import Instance
from harness.core import CoreCase

LEASE = 15.0


class LeasesCase(CoreCase):
    """An instance with a lease of 15 seconds, on the registry in memory behind `FaultProxy`."""

    def setUp(self) -> None:
        super().setUp()
        self.lost: list[list[str]] = []  # the hooks at each time that a lost lease is reported
        self.leases = self.make_leases()

    def make_leases(self, **options: Any) -> Leases:
        return Leases(self.registry, Instance("me", "http://me"), self.clock, LEASE, **options)

    def start(self) -> None:
        self.leases.start(lambda: self.lost.append(self.own_hooks()))
        self.turn()

    def own_hooks(self) -> list[str]:
        """Return our hooks that the registry really has."""
        return sorted(account for account, ids in self.store.registry._hooks.items() if "me" in ids)

    def register(self, *accounts: str) -> None:
        """Put these hooks in, and nothing else."""
        for account in accounts:
            self.leases.register(account)
        self.turn()
        self.assertEqual(self.own_hooks(), sorted(accounts))

    def renew(self) -> None:
        """Let time pass until the next renewal."""
        self.clock.advance(LEASE / leases.RENEWALS)
        self.turn()

    def hook_calls(self) -> list[Any]:
        """Return the calls about hooks, each with its accounts."""
        return [
            (name, *[sorted(arg) for arg in args[1:]])
            for name, *args in self.registry.calls
            if name in ("register", "unregister")
        ]


class PrepareTests(LeasesCase):
    """What must be done before other instances can ask something of this one."""

    def test_an_instance_is_added_when_it_is_prepared(self) -> None:
        """A preparation that fails is tried again at the next renewal."""
        waiting: Deferred[None] = Deferred()
        outcomes: list[Deferred[None]] = [fail(Unavailable()), waiting]
        self.leases = self.make_leases(prepare=lambda: outcomes.pop(0))
        self.start()
        self.assertEqual((len(outcomes), self.registry.count("add_instance")), (1, 0))
        self.renew()
        registered = self.leases.register("a")
        self.turn()
        self.assertEqual((len(outcomes), self.registry.count("add_instance")), (0, 0))
        waiting.callback(None)
        self.successResultOf(registered)
        self.assertEqual((self.registry.count("add_instance"), self.own_hooks()), (1, ["a"]))

    def test_an_instance_that_was_lost_is_prepared_again(self) -> None:
        """The registry may be a new one, with another secret."""
        prepared: list[int] = []

        def prepare() -> Deferred[None]:
            prepared.append(1)
            return succeed(None)

        self.leases = self.make_leases(prepare=prepare)
        self.start()
        self.store.registry.prune(self.leases.instance)
        self.renew()
        self.assertEqual((len(prepared), self.registry.count("add_instance")), (2, 2))


class HookTests(LeasesCase):
    """Hooks come and go."""

    def test_the_hooks_of_a_turn_are_one_call(self) -> None:
        """However many they are; each Deferred fires when its hook is in."""
        self.start()
        registered = [self.leases.register(account) for account in "abc"]
        for each in registered:
            self.assertNoResult(each)
        self.turn()
        for each in registered:
            self.successResultOf(each)
        self.assertEqual(self.hook_calls(), [("register", ["a", "b", "c"])])
        self.assertEqual((self.own_hooks(), self.leases.wanted), (["a", "b", "c"], 3))
        self.successResultOf(self.leases.register("a"))

    def test_a_call_is_bounded(self) -> None:
        """The rest goes into the next, in both directions."""
        self.patch(leases, "MAX_HOOKS_PER_CALL", 2)
        self.start()
        self.register("a", "b", "c", "d", "e")
        self.assertEqual(self.registry.count("register"), 3)
        for account in "abcd":
            self.leases.unregister(account)
        self.turn()
        self.assertEqual((self.own_hooks(), self.registry.count("unregister")), (["e"], 2))

    def test_a_hook_before_the_start_adds_the_instance(self) -> None:
        """A hook without a row of its instance would count for nothing."""
        self.register("a")
        self.assertEqual(self.registry.calls[0][0], "add_instance")

    def test_an_unregistered_hook_is_taken_out_soon(self) -> None:
        """With others of its turn; to unregister it again does nothing."""
        self.start()
        self.register("a", "b", "c")
        self.leases.unregister("a")
        self.leases.unregister("b")
        self.leases.unregister("b")
        self.turn()
        self.assertEqual(
            (self.own_hooks(), self.hook_calls()[1:]), (["c"], [("unregister", ["a", "b"])])
        )

    def test_registered_again_at_once_it_is_never_taken_out(self) -> None:
        """A page that reloads costs nothing."""
        self.start()
        self.register("a")
        self.leases.unregister("a")
        self.successResultOf(self.leases.register("a"))
        self.turn()
        self.assertEqual((self.own_hooks(), self.registry.count("unregister")), (["a"], 0))

    def test_registered_again_while_it_is_taken_out_it_is_put_in_after_that(self) -> None:
        """The calls never overtake each other."""
        self.start()
        self.register("a")
        self.registry.held = {"unregister"}
        self.leases.unregister("a")
        self.turn()
        again = self.leases.register("a")
        self.turn()
        self.assertNoResult(again)
        self.registry.release()
        self.successResultOf(again)
        self.assertEqual(self.own_hooks(), ["a"])

    def test_unregistered_while_it_is_put_in_it_is_taken_out_after_that(self) -> None:
        """If it is registered again in between it stays.  Who waited first is told at once."""
        for again, hooks in ((False, []), (True, ["a"])):
            self.setUp()
            self.start()
            self.registry.held = {"register"}
            registered = self.leases.register("a")
            self.turn()
            self.leases.unregister("a")
            self.failureResultOf(registered, Unavailable)
            if again:
                registered = self.leases.register("a")
            self.registry.held = set()
            self.registry.release()
            self.turn()
            self.assertEqual(self.own_hooks(), hooks)
            if again:
                self.successResultOf(registered)

    def test_unregistered_before_it_was_put_in_it_is_never_put_in(self) -> None:
        """And its waiter fails."""
        self.start()
        registered = self.leases.register("a")
        self.leases.unregister("a")
        self.failureResultOf(registered, Unavailable)
        self.turn()
        self.assertEqual(self.hook_calls(), [])

    def test_a_stale_hook_is_dropped(self) -> None:
        """But not one that is wanted."""
        self.start()
        self.register("a")
        self.store.registry.register(self.leases.instance, ["phantom"])
        self.leases.drop_stale("phantom")
        self.leases.drop_stale("a")
        self.turn()
        self.assertEqual(self.own_hooks(), ["a"])

    def test_new_hooks_go_before_old_ones(self) -> None:
        """Subscribers wait for the new ones, and nobody for the old ones."""
        self.start()
        self.register("a")
        self.leases.unregister("a")
        self.leases.register("b")
        self.turn()
        self.assertEqual(self.hook_calls()[1:], [("register", ["b"]), ("unregister", ["a"])])

    def test_a_callback_may_register_the_next_hook(self) -> None:
        """From inside its callback, after a success and after a failure."""
        self.start()
        for failures in (0, 1):
            self.registry.failures = failures
            later: list[Deferred[None]] = []
            first = self.leases.register(f"first {failures}")
            first.addBoth(self.register_next, later)
            self.turn()
            self.successResultOf(later[0])
            self.leases.unregister("next")
            self.turn()

    def register_next(self, _: object, later: list[Deferred[None]]) -> None:
        later.append(self.leases.register("next"))


class ModelTests(LeasesCase):
    """Whatever happens in between, in the end the registry has what is wanted."""

    def test_the_registry_ends_with_what_is_wanted(self) -> None:
        """By seed: hooks come and go, calls fail, hang, or succeed although they seem to fail."""
        self.patch(leases, "MAX_HOOKS_PER_CALL", 2)
        for seed in range(40):
            self.setUp()
            self.start()
            self.live(random.Random(seed))

    def live(self, dice: random.Random) -> None:
        wanted: set[str] = set()
        for _ in range(120):
            account, move = dice.choice("abcdef"), dice.random()
            if move < 0.4:
                wanted.add(account)
                # A hook that cannot be registered is not wanted any more.
                registered = self.leases.register(account)
                registered.addErrback(self.forget, wanted, account)
            elif move < 0.65:
                wanted.discard(account)
                self.leases.unregister(account)
            elif move < 0.75:
                self.registry.held = dice.choice([set(), {"register"}, {"unregister"}])
            elif move < 0.85:
                self.release_some(dice)
            elif move < 0.88:
                self.registry.failures = 1
            elif move < 0.90:
                self.store.registry.prune(self.leases.instance)
            else:
                self.clock.advance(dice.choice([0, 0, LEASE / leases.RENEWALS]))
        self.registry.held, self.registry.failures = set(), 0
        self.registry.release()
        for _ in range(3):
            self.renew()
            self.settle()
        self.assertEqual((self.own_hooks(), self.leases.wanted), (sorted(wanted), len(wanted)))

    def forget(self, _: object, wanted: set[str], account: str) -> None:
        wanted.discard(account)

    def release_some(self, dice: random.Random) -> None:
        """Answer what hangs; some calls fail, and some of those were done all the same."""
        fate = dice.random()
        if fate < 0.3:
            for _, ask in self.registry.waiting:
                ask()
        self.registry.release(Unavailable() if fate < 0.6 else None)


class OutageTests(LeasesCase):
    """The registry is away, and comes back."""

    def test_away_at_the_start_it_is_tried_at_each_renewal(self) -> None:
        """And not more often."""
        self.registry.error = Unavailable()
        self.start()
        for _ in range(9):
            self.clock.advance(LEASE / 3)
            self.turn(5)
        self.assertEqual(self.registry.count("add_instance"), 10)
        self.registry.error = None
        self.clock.advance(LEASE / 3)
        self.register("a")

    def test_waiters_fail_and_the_hook_is_not_wanted(self) -> None:
        """The subscriber comes back.  Other hooks that are wanted stay wanted."""
        self.start()
        self.register("a")
        self.registry.error = Unavailable()
        waiting = [self.leases.register("b"), self.leases.register("b"), self.leases.register("c")]
        self.turn()
        for each in waiting:
            self.failureResultOf(each, Unavailable)
        self.assertEqual(self.leases.wanted, 1)
        calls = len(self.registry.calls)
        self.turn(50)
        self.assertEqual(len(self.registry.calls), calls)

    def test_a_removal_that_failed_is_repeated_at_the_next_renewal(self) -> None:
        """Otherwise the hook would stay for as long as this instance lives."""
        self.start()
        self.register("a", "b")
        self.registry.failures = 1
        self.leases.unregister("a")
        self.turn()
        self.assertEqual(self.own_hooks(), ["a", "b"])
        self.renew()
        self.assertEqual(self.own_hooks(), ["b"])

    def test_a_hook_whose_removal_failed_is_put_in_when_it_is_registered_again(self) -> None:
        """It may have been taken out all the same."""
        self.start()
        self.register("a")
        self.registry.held = {"unregister"}
        self.leases.unregister("a")
        self.turn()
        self.store.registry.unregister(self.leases.instance, ["a"])
        self.registry.release(Unavailable())
        again = self.leases.register("a")
        self.turn()
        self.successResultOf(again)
        self.renew()
        self.assertEqual(self.own_hooks(), ["a"])

    def test_a_hook_that_came_in_although_the_call_failed_is_taken_out(self) -> None:
        """An answer that was lost on the way."""
        self.start()
        self.registry.held = {"register"}
        waiting = self.leases.register("a")
        self.turn()
        self.store.registry.register(self.leases.instance, ["a"])
        self.registry.held = set()
        self.registry.release(Unavailable())
        self.failureResultOf(waiting, Unavailable)
        self.renew()
        self.assertEqual(self.own_hooks(), [])

    def test_an_error_that_nobody_expected_is_logged_once_for_all_who_wait(self) -> None:
        """They are told that the error is ours."""
        self.start()
        self.registry.error = KeyError("x")
        error = self.failureResultOf(self.register_now("a"), PlumberError)
        self.assertEqual(error.value.status, 500)
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)

    def register_now(self, account: str) -> Any:
        waiting = self.leases.register(account)
        self.turn()
        return waiting


class RenewalTests(LeasesCase):
    """The lease is kept alive."""

    def test_a_lease_is_renewed_thrice_in_its_time(self) -> None:
        """So it never ends, and dead instances are swept."""
        self.start()
        self.register("a")
        for _ in range(12):
            self.clock.advance(LEASE / 3)
            self.assertIn("a", self.successResultOf(self.store.registry.instances(["a"])))
        self.assertEqual(
            (self.registry.count("renew"), self.registry.count("add_instance")), (12, 1)
        )
        self.assertEqual(self.registry.count("sweep"), 13)

    def test_each_renewal_has_a_new_lease(self) -> None:
        """So that no instance prunes this one by an old lease."""
        self.start()
        before = self.leases.instance
        self.clock.advance(LEASE / 3)
        self.assertNotEqual(self.leases.instance.lease, before.lease)
        self.assertFalse(self.successResultOf(self.store.registry.prune(before)))

    def test_a_renewal_that_fails_is_repeated_by_the_next(self) -> None:
        """Two may fail in a row."""
        self.start()
        self.register("a")
        self.registry.error = Unavailable()
        self.clock.advance(LEASE / 3)
        self.clock.advance(LEASE / 3)
        self.registry.error = None
        self.clock.advance(LEASE / 3 - 0.1)
        self.assertIn("a", self.successResultOf(self.store.registry.instances(["a"])))
        self.clock.advance(0.1)
        self.clock.advance(LEASE / 3)
        self.assertEqual((self.own_hooks(), self.lost), (["a"], []))

    def test_a_long_sweep_does_not_keep_us_from_renewing(self) -> None:
        """To remove a million hooks of a dead instance takes time."""
        self.registry.held = {"sweep"}
        self.start()
        for _ in range(6):
            self.clock.advance(LEASE / 3)
        self.assertEqual((self.registry.count("renew"), self.registry.count("sweep")), (6, 1))
        self.registry.release()
        self.clock.advance(LEASE / 3)
        self.assertEqual(self.registry.count("sweep"), 2)

    def test_after_a_lost_lease_everything_is_put_in_again(self) -> None:
        """And only then the loss is reported: events may have been missed."""
        self.patch(leases, "MAX_HOOKS_PER_CALL", 2)
        self.start()
        self.register("a", "b", "c", "d", "e")
        self.store.registry.prune(self.leases.instance)
        self.leases.unregister("e")
        self.turn()
        self.assertEqual(self.own_hooks(), [])
        self.renew()
        self.assertEqual((self.own_hooks(), self.lost), (list("abcd"), [list("abcd")]))
        self.clock.advance(LEASE / 3)
        self.assertEqual(len(self.lost), 1)

    def test_lost_and_then_cut_off_everything_is_put_in_when_the_registry_is_back(
        self,
    ) -> None:
        """The half that was put in counts for nothing."""
        self.patch(leases, "MAX_HOOKS_PER_CALL", 1)
        self.start()
        self.register("a", "b")
        self.store.registry.prune(self.leases.instance)
        self.registry.held = {"register"}
        self.renew()
        self.registry.held = set()
        self.registry.release(Unavailable())
        self.assertEqual(self.lost, [])
        self.renew()
        self.assertEqual((self.own_hooks(), self.lost), (["a", "b"], [["a", "b"]]))


class StopTests(LeasesCase):
    """Taking everything out."""

    def test_stopping_removes_the_instance(self) -> None:
        """No row, no hook, no timer is left."""
        self.start()
        self.register("a")
        self.successResultOf(self.leases.stop())
        self.assertEqual(
            (self.own_hooks(), self.store.registry._rows, self.clock.getDelayedCalls()),
            ([], {}, []),
        )
        self.failureResultOf(self.leases.register("b"), Unavailable)

    def test_stopping_does_not_overtake_what_is_under_way(self) -> None:
        """A hook that comes in after the removal would be a phantom."""
        self.start()
        self.registry.held = {"register"}
        waiting = self.leases.register("a")
        self.turn()
        stopped = self.leases.stop()
        self.failureResultOf(waiting, Unavailable)
        self.assertNoResult(stopped)
        self.registry.release()
        self.successResultOf(stopped)
        self.assertEqual(
            (self.own_hooks(), self.registry.calls[-1][0], self.lost), ([], "remove_instance", [])
        )
        # The hook of the waiter that failed is not wanted any more.
        self.registry.held = set()
        self.start()
        self.assertEqual((self.own_hooks(), self.leases.wanted), ([], 0))

    def test_an_unreachable_registry_does_not_keep_us_from_stopping(self) -> None:
        """The lease runs out."""
        self.start()
        self.registry.error = Unavailable()
        self.assertIsNone(self.successResultOf(self.leases.stop()))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_stopping_without_having_started_is_no_failure(self) -> None:
        """Code that cleans up need not know."""
        self.assertIsNone(self.successResultOf(self.leases.stop()))

    def test_started_again_it_registers_what_is_wanted(self) -> None:
        """The registry has lost nothing, so no loss is reported."""
        self.start()
        self.register("a")
        self.leases.unregister("b")
        self.successResultOf(self.leases.stop())
        self.leases.unregister("c")
        self.start()
        self.turn()
        self.assertEqual((self.own_hooks(), self.lost), (["a"], []))
        self.register("a", "d")
