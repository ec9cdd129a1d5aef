"""This instance's row in the registry, and its hooks."""

from __future__ import annotations

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
        self.forgotten: list[list[str]] = []
        self.leases = Leases(
            self.registry,
            Instance("me", "http://me"),
            self.clock,
            LEASE,
            forgotten=lambda: self.forgotten.append(self.hooks()),
        )

    def started(self) -> None:
        self.leases.start()
        self.turn()

    def hooks(self) -> list[str]:
        """What the registry really has of ours."""
        return sorted(account for account, ids in self.store.registry._hooks.items() if "me" in ids)

    def held(self, *accounts: str) -> None:
        for account in accounts:
            self.leases.hold(account)
        self.turn()
        self.assertEqual(self.hooks(), sorted(accounts))

    def tell_calls(self) -> list[Any]:
        return [
            (name, *[sorted(arg) for arg in args[1:]])
            for name, *args in self.registry.calls
            if name in ("register", "unregister")
        ]


class PrepareTests(LeasesCase):
    """What must be there before anybody asks something of this instance."""

    def test_nobody_finds_an_instance_that_is_not_prepared(self) -> None:
        """It enlists when it is; what it could not prepare is tried again at the next renewal."""
        outcomes: list[Deferred[None]] = [fail(Unavailable()), Deferred()]
        prepared = Leases(
            self.registry,
            Instance("me", "http://me"),
            self.clock,
            LEASE,
            prepare=lambda: outcomes.pop(0),
        )
        waiting = outcomes[1]
        prepared.start()
        self.turn()
        self.assertEqual((len(outcomes), self.registry.count("add_instance")), (1, 0))
        self.clock.advance(LEASE / leases.RENEWALS)
        self.turn()
        held = prepared.hold("a")
        self.turn()
        self.assertEqual((len(outcomes), self.registry.count("add_instance")), (0, 0))
        waiting.callback(None)
        self.successResultOf(held)
        self.assertEqual((self.registry.count("add_instance"), self.hooks()), (1, ["a"]))

    def test_who_was_forgotten_prepares_anew(self) -> None:
        """The registry may be a new one, with another secret."""
        prepared: list[int] = []
        again = Leases(
            self.registry,
            Instance("me", "http://me"),
            self.clock,
            LEASE,
            prepare=lambda: succeed(prepared.append(1)),
        )
        again.start()
        self.turn()
        self.store.registry.prune(again.instance)
        self.clock.advance(LEASE / leases.RENEWALS)
        self.turn()
        self.assertEqual((len(prepared), self.registry.count("add_instance")), (2, 2))


class HoldTests(LeasesCase):
    """Hooks come and go."""

    def test_the_hooks_of_a_turn_are_one_call(self) -> None:
        """However many they are; each Deferred fires when its hook is in."""
        self.started()
        waiting = [self.leases.hold(account) for account in "abc"]
        for each in waiting:
            self.assertNoResult(each)
        self.turn()
        for each in waiting:
            self.successResultOf(each)
        self.assertEqual(self.tell_calls(), [("register", ["a", "b", "c"])])
        self.assertEqual((self.hooks(), self.leases.held), (["a", "b", "c"], 3))
        self.successResultOf(self.leases.hold("a"))

    def test_a_call_is_bounded(self) -> None:
        """The rest goes into the next."""
        self.patch(leases, "GROUP", 2)
        self.started()
        self.held("a", "b", "c", "d", "e")
        self.assertEqual(self.registry.count("register"), 3)

    def test_a_hook_held_before_the_start_brings_the_instance_in(self) -> None:
        """A hook without a row would count for nothing."""
        self.held("a")
        self.assertEqual(self.registry.calls[0][0], "add_instance")

    def test_a_released_hook_is_taken_out_soon(self) -> None:
        """With others of its turn; releasing it again does nothing."""
        self.started()
        self.held("a", "b", "c")
        self.leases.release("a")
        self.leases.release("b")
        self.leases.release("b")
        self.turn()
        self.assertEqual(
            (self.hooks(), self.tell_calls()[1:]), (["c"], [("unregister", ["a", "b"])])
        )

    def test_held_again_at_once_it_is_never_taken_out(self) -> None:
        """A page that reloads costs nothing."""
        self.started()
        self.held("a")
        self.leases.release("a")
        self.successResultOf(self.leases.hold("a"))
        self.turn()
        self.assertEqual((self.hooks(), self.registry.count("unregister")), (["a"], 0))

    def test_held_again_while_it_is_being_taken_out_it_is_put_in_again_after_that(self) -> None:
        """The calls never overtake each other."""
        self.started()
        self.held("a")
        self.registry.kept = {"unregister"}
        self.leases.release("a")
        self.turn()
        again = self.leases.hold("a")
        self.turn()
        self.assertNoResult(again)
        self.registry.let_go()
        self.successResultOf(again)
        self.assertEqual(self.hooks(), ["a"])

    def test_released_while_it_is_being_put_in_it_is_taken_out_after_that(self) -> None:
        """And held again in between it stays."""
        for again, hooks in ((False, []), (True, ["a"])):
            self.setUp()
            self.started()
            self.registry.kept = {"register"}
            self.leases.hold("a")
            self.turn()
            self.leases.release("a")
            if again:
                self.leases.hold("a")
            self.registry.kept = set()
            self.registry.let_go()
            self.turn()
            self.assertEqual(self.hooks(), hooks)

    def test_released_before_it_was_put_in_nobody_waits_for_ever(self) -> None:
        """It is not put in at all."""
        self.started()
        waiting = self.leases.hold("a")
        self.leases.release("a")
        self.failureResultOf(waiting, Unavailable)
        self.turn()
        self.assertEqual(self.tell_calls(), [])

    def test_a_hook_that_nobody_here_wants_is_disowned(self) -> None:
        """But not one that is held."""
        self.started()
        self.held("a")
        self.store.registry.register(self.leases.instance, ["phantom"])
        self.leases.drop_stale("phantom")
        self.leases.drop_stale("a")
        self.turn()
        self.assertEqual(self.hooks(), ["a"])


class OutageTests(LeasesCase):
    """The registry is away, and comes back."""

    def test_away_at_the_start_it_is_tried_at_each_renewal(self) -> None:
        """And not more often."""
        self.registry.away = Unavailable()
        self.started()
        for _ in range(9):
            self.clock.advance(LEASE / 3)
            self.turn(5)
        self.assertEqual(self.registry.count("add_instance"), 10)
        self.registry.away = None
        self.clock.advance(LEASE / 3)
        self.held("a")

    def test_who_waits_is_told_and_the_hook_is_not_held(self) -> None:
        """The subscriber is to come back; others that are held stay held."""
        self.started()
        self.held("a")
        self.registry.away = Unavailable()
        waiting = [self.leases.hold("b"), self.leases.hold("b"), self.leases.hold("c")]
        self.turn()
        for each in waiting:
            self.failureResultOf(each, Unavailable)
        self.assertEqual(self.leases.held, 1)
        calls = len(self.registry.calls)
        self.turn(50)
        self.assertEqual(len(self.registry.calls), calls)

    def test_a_withdrawal_that_failed_is_made_good_at_the_next_renewal(self) -> None:
        """Else the hook would stay for as long as this instance lives."""
        self.started()
        self.held("a", "b")
        self.registry.fails = 1
        self.leases.release("a")
        self.turn()
        self.assertEqual(self.hooks(), ["a", "b"])
        self.clock.advance(LEASE / 3)
        self.turn()
        self.assertEqual(self.hooks(), ["b"])

    def test_a_hook_whose_withdrawal_failed_is_put_in_when_it_is_held_again(self) -> None:
        """It may have been taken out all the same."""
        self.started()
        self.held("a")
        self.registry.kept = {"unregister"}
        self.leases.release("a")
        self.turn()
        self.store.registry.unregister(self.leases.instance, ["a"])
        self.registry.let_go(Unavailable())
        again = self.leases.hold("a")
        self.turn()
        self.successResultOf(again)
        self.clock.advance(LEASE / 3)
        self.turn()
        self.assertEqual(self.hooks(), ["a"])

    def test_a_hook_that_came_in_although_the_call_failed_is_taken_out(self) -> None:
        """An answer that was lost on the way."""
        self.started()
        self.registry.kept = {"register"}
        waiting = self.leases.hold("a")
        self.turn()
        self.store.registry.register(self.leases.instance, ["a"])
        self.registry.kept = set()
        self.registry.let_go(Unavailable())
        self.failureResultOf(waiting, Unavailable)
        self.clock.advance(LEASE / 3)
        self.turn()
        self.assertEqual(self.hooks(), [])

    def test_an_error_that_nobody_expected_is_logged_once_for_all_who_wait(self) -> None:
        """They learn that it is our fault."""
        self.started()
        self.registry.away = KeyError("x")
        error = self.failureResultOf(self._turned("a"), PlumberError)
        self.assertEqual(error.value.status, 500)
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)

    def _turned(self, account: str) -> Any:
        waiting = self.leases.hold(account)
        self.turn()
        return waiting


class RenewalTests(LeasesCase):
    """The lease is kept alive."""

    def test_a_lease_is_renewed_thrice_in_its_time(self) -> None:
        """So it never runs out, and the dead are swept."""
        self.started()
        self.held("a")
        for _ in range(12):
            self.clock.advance(LEASE / 3)
            self.assertIn("a", self.successResultOf(self.store.registry.instances(["a"])))
        self.assertEqual(
            (self.registry.count("renew"), self.registry.count("add_instance")), (12, 1)
        )
        self.assertEqual(self.registry.count("sweep"), 13)

    def test_each_renewal_has_a_new_lease(self) -> None:
        """So that nobody prunes us by an old one."""
        self.started()
        before = self.leases.instance
        self.clock.advance(LEASE / 3)
        self.assertNotEqual(self.leases.instance.lease, before.lease)
        self.assertFalse(self.successResultOf(self.store.registry.prune(before)))

    def test_a_renewal_that_fails_is_made_good_by_the_next(self) -> None:
        """Two may fail in a row."""
        self.started()
        self.held("a")
        self.registry.away = Unavailable()
        self.clock.advance(LEASE / 3)
        self.clock.advance(LEASE / 3)
        self.registry.away = None
        self.clock.advance(LEASE / 3 - 0.1)
        self.assertIn("a", self.successResultOf(self.store.registry.instances(["a"])))
        self.clock.advance(0.1)
        self.clock.advance(LEASE / 3)
        self.assertEqual((self.hooks(), self.forgotten), (["a"], []))

    def test_a_long_sweep_does_not_keep_us_from_renewing(self) -> None:
        """A million hooks of somebody dead take their time."""
        self.registry.kept = {"sweep"}
        self.started()
        for _ in range(6):
            self.clock.advance(LEASE / 3)
        self.assertEqual((self.registry.count("renew"), self.registry.count("sweep")), (6, 1))
        self.registry.let_go()
        self.clock.advance(LEASE / 3)
        self.assertEqual(self.registry.count("sweep"), 2)

    def test_once_forgotten_everything_is_put_in_again(self) -> None:
        """And only then whoever may have missed something is told."""
        self.patch(leases, "GROUP", 2)
        self.started()
        self.held("a", "b", "c", "d", "e")
        self.store.registry.prune(self.leases.instance)
        self.leases.release("e")
        self.turn()
        self.assertEqual(self.hooks(), [])
        self.clock.advance(LEASE / 3)
        self.turn()
        self.assertEqual((self.hooks(), self.forgotten), (list("abcd"), [list("abcd")]))
        self.clock.advance(LEASE / 3)
        self.assertEqual(len(self.forgotten), 1)

    def test_forgotten_and_then_cut_off_everything_is_put_in_when_the_registry_is_back(
        self,
    ) -> None:
        """The half that was put in counts for nothing."""
        self.patch(leases, "GROUP", 1)
        self.started()
        self.held("a", "b")
        self.store.registry.prune(self.leases.instance)
        self.registry.kept = {"register"}
        self.clock.advance(LEASE / 3)
        self.turn()
        self.registry.kept = set()
        self.registry.let_go(Unavailable())
        self.assertEqual(self.forgotten, [])
        self.clock.advance(LEASE / 3)
        self.turn()
        self.assertEqual((self.hooks(), self.forgotten), (["a", "b"], [["a", "b"]]))


class StopTests(LeasesCase):
    """Taking everything out."""

    def test_stopping_resigns(self) -> None:
        """No row, no hook, no timer is left."""
        self.started()
        self.held("a")
        self.successResultOf(self.leases.stop())
        self.assertEqual(
            (self.hooks(), self.store.registry._rows, self.clock.getDelayedCalls()), ([], {}, [])
        )
        self.failureResultOf(self.leases.hold("b"), Unavailable)

    def test_stopping_does_not_overtake_what_is_under_way(self) -> None:
        """A hook that comes in after the resignation would be a phantom."""
        self.started()
        self.registry.kept = {"register"}
        waiting = self.leases.hold("a")
        self.turn()
        stopped = self.leases.stop()
        self.failureResultOf(waiting, Unavailable)
        self.assertNoResult(stopped)
        self.registry.let_go()
        self.successResultOf(stopped)
        self.assertEqual(
            (self.hooks(), self.registry.calls[-1][0], self.forgotten), ([], "remove_instance", [])
        )

    def test_an_unreachable_registry_does_not_keep_us_from_stopping(self) -> None:
        """The lease runs out."""
        self.started()
        self.registry.away = Unavailable()
        self.assertIsNone(self.successResultOf(self.leases.stop()))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_stopping_without_having_started_is_no_failure(self) -> None:
        """Whoever cleans up need not know."""
        self.assertIsNone(self.successResultOf(self.leases.stop()))
