"""Channels open and close, and everything at once."""

from __future__ import annotations

import random
from typing import Any

from twisted.internet.defer import CancelledError, Deferred

from asyncplumber.core import channel, hub
from asyncplumber.errors import PlumberError, TooManyRequests, Unavailable
from asyncplumber.event import EARLIEST
from harness.core import CoreCase, Recorder
from tests.unit import examples


class LifeTests(CoreCase):
    """Channels open and close, and leave nothing behind."""

    def test_a_channel_lingers_and_then_its_hook_is_released(self) -> None:
        """A subscriber that returns in time finds it open."""
        opened = self.successResultOf(self.hub.admit("a"))
        subscriber = Recorder()
        subscriber.subscribe(opened, None)
        subscriber.cancel()
        subscriber.cancel()
        self.clock.advance(hub.LINGER - 1)
        self.assertTrue(self.hub.serves("a"))
        again = self.subscribed()
        self.clock.advance(hub.LINGER * 2)
        self.assertEqual(self.history.count("ensure"), 1)
        again.cancel()
        self.clock.advance(hub.LINGER)
        self.assertEqual(
            (self.hub.accounts, self.hooks.unregistered, self.hub.count("a")), ([], ["a"], 0)
        )
        self.assertEqual((self.clock.getDelayedCalls(), self.hub.subscribers), ([], 0))

    def test_the_hook_is_in_before_the_position_is_read(self) -> None:
        """Otherwise an event could fall between the two."""
        registered = self.hooks.registered = Deferred[None]()
        admitted = self.hub.admit("a")
        self.assertEqual(self.history.calls, [])
        registered.callback(None)
        self.successResultOf(admitted)

    def test_a_channel_that_cannot_be_opened_leaves_nothing_behind(self) -> None:
        """All admissions fail, the hook is taken out, and the next one may try."""
        self.history.held = {"ensure"}
        waiting = [self.hub.admit("a") for _ in range(3)]
        self.history.release(Unavailable())
        for each in waiting:
            self.failureResultOf(each, Unavailable)
        self.assertEqual(
            (self.hub.accounts, self.hooks.unregistered, self.hub.waiting), ([], ["a"], 0)
        )
        self.history.held = set()
        self.subscribed()

    def test_an_unexpected_error_is_internal(self) -> None:
        """It is logged, and the client is not told what it was."""
        self.history.error = KeyError("x")
        error = self.failureResultOf(self.hub.admit("a"), PlumberError)
        self.assertEqual(error.value.status, 500)
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)

    def test_a_closed_channel_takes_no_subscriber(self) -> None:
        """It would never be told anything."""
        opened = self.successResultOf(self.hub.admit("a"))
        self.clock.advance(hub.LINGER)
        with self.assertRaises(RuntimeError):
            opened.subscribe(Recorder())

    def test_a_subscription_that_is_cancelled_before_it_starts_is_told_nothing(self) -> None:
        """To start it then is harmless."""
        subscriber = Recorder()
        subscription = self.successResultOf(self.hub.admit("a")).subscribe(subscriber)
        subscription.cancel()
        subscription.start(EARLIEST)
        self.publish()
        self.assertEqual((subscriber.told, self.hub.subscribers), ([], 0))

    def test_a_subscription_starts_once(self) -> None:
        """A second start would bring each event twice, during a replay as well as live."""
        self.keep(3)
        opened = self.successResultOf(self.hub.admit("a"))
        for after in (None, EARLIEST):
            subscription = opened.subscribe(Recorder())
            self.history.held = {"read"}
            subscription.start(after)
            with self.assertRaises(RuntimeError):
                subscription.start(after)

    def test_an_admission_is_refused_if_another_one_stops_the_hub(self) -> None:
        """Although both waited for the same channel."""
        self.history.held = {"position", "ensure"}
        first, second = self.hub.admit("a"), self.hub.admit("a")
        first.addCallback(lambda _: self.hub.stop())
        self.history.release()
        self.failureResultOf(second, Unavailable)
        self.assertEqual((self.hub.waiting, self.hub.accounts), (0, []))

    def test_no_subscriber_is_admitted_beyond_the_limit(self) -> None:
        """Admissions whose channel is about to open count as well."""
        self.hub = self.make_hub(subscriber_limit=2)
        self.subscribed()
        self.history.held = {"ensure"}
        self.hub.admit("b")
        self.failureResultOf(self.hub.admit("c"), TooManyRequests)
        self.history.release()

    def test_an_admission_can_be_cancelled(self) -> None:
        """The others get their channel, and the limit has room again."""
        self.history.held = {"ensure"}
        gone, stays = self.hub.admit("a"), self.hub.admit("a")
        gone.cancel()
        self.failureResultOf(gone, CancelledError)
        self.assertEqual(self.hub.waiting, 1)
        self.history.release()
        self.assertTrue(self.successResultOf(stays))
        self.assertEqual(self.hub.waiting, 0)

    def test_a_channel_without_a_subscriber_closes(self) -> None:
        """The client was admitted, and never subscribed."""
        self.successResultOf(self.hub.admit("a"))
        self.clock.advance(hub.LINGER)
        self.assertEqual((self.hub.accounts, self.clock.getDelayedCalls()), ([], []))

    def test_stopping_refuses_closes_and_forgets(self) -> None:
        """Also channels that are about to open."""
        subscriber = self.subscribed()
        self.history.held = {"ensure"}
        opening = self.hub.admit("b")
        self.hub.stop()
        self.failureResultOf(opening, Unavailable)
        self.failureResultOf(self.hub.admit("a"), Unavailable)
        self.history.release()
        self.publish()
        self.assertEqual((subscriber.seqs, self.hub.subscribers, self.hub.accounts), ([], 0, []))
        self.assertEqual(sorted(self.hooks.unregistered), ["a", "b"])
        self.assertEqual(self.clock.getDelayedCalls(), [])


class StormTests(CoreCase):
    """Everything at once, by seed."""

    def test_clients_that_return_get_everything_once_and_in_order(self) -> None:
        """Clients come, go, read slowly and return; events are lost, duplicated and reordered."""
        self.patch(channel, "DELIVERIES_PER_TURN", 3)
        for seed in range(examples(25)):
            self._storm(random.Random(seed))

    def _storm(self, dice: random.Random) -> None:
        self.setUp()
        self.hub = self.make_hub(linger=1.0)
        accounts = ["a", "b"]
        kept: dict[str, list[int]] = {account: [] for account in accounts}
        clients: list[list[Recorder]] = []  # each client is a chain of connections
        connected: set[int] = set()
        late: list[Any] = []
        for _ in range(300):
            move = dice.randrange(8)
            account = dice.choice(accounts)
            if move < 3:
                events = self.keep(dice.randrange(1, 4), account)
                kept[account] += [each.seq for each in events]
                late += [each for each in events if dice.random() < 0.9] + [
                    each for each in events if dice.random() < 0.3
                ]
            elif move == 3:
                dice.shuffle(late)
                cut = dice.randrange(len(late) + 1)
                self.hub.publish(late[:cut])
                del late[:cut]
            elif move == 4 and len(clients) < 15:
                client = len(clients)
                self._connect(dice, account, [], clients)
                connected.add(client)
            elif move == 5 and connected:
                client = dice.choice(sorted(connected))
                connected.discard(client)
                clients[client][-1].cancel()
            elif move == 6:
                for client in range(len(clients)):
                    if client not in connected and dice.random() < 0.5:
                        self._connect(dice, clients[client][0].account, clients[client], clients)
                        connected.add(client)
            else:
                self._make_room(dice, clients)
                self.clock.advance(dice.choice([0, 0, 0.6]))
        self._finish(clients, connected)
        for chain in clients:
            stood = next(word[1].seq for word in chain[0].told if word[0] == "opened")
            seen = [seq for connection in chain for seq in connection.seqs]
            self.assertEqual(seen, [seq for seq in kept[chain[0].account] if seq > stood])

    def _connect(
        self,
        dice: random.Random,
        account: str,
        chain: list[Recorder],
        clients: list[list[Recorder]],
    ) -> None:
        told = [connection for connection in chain if connection.told]
        after = told[-1].cursor if told else dice.choice([None, EARLIEST])
        subscriber = Recorder()
        if dice.random() < 0.3:
            subscriber.room = Deferred()
        if not chain:
            clients.append(chain)
        chain.append(subscriber)
        subscriber.subscribe(self.successResultOf(self.hub.admit(account)), after)

    def _make_room(self, dice: random.Random | None, clients: list[list[Recorder]]) -> None:
        for chain in clients:
            for subscriber in chain:
                if subscriber.room is not None and (dice is None or dice.random() < 0.5):
                    room, subscriber.room = subscriber.room, None
                    room.callback(None)

    def _finish(self, clients: list[list[Recorder]], connected: set[int]) -> None:
        self._make_room(None, clients)
        for client, chain in enumerate(clients):
            if client not in connected:
                self._connect(random.Random(9), chain[0].account, chain, clients)
        self._make_room(None, clients)
        self.hub.check_soon()
        self.settle()
        for chain in clients:
            chain[-1].cancel()
        self.clock.advance(2)
        self.assertEqual(
            (self.hub.subscribers, self.hub.accounts, self.clock.getDelayedCalls()), (0, [], [])
        )
