"""Connected clients: their heartbeats are spread over time, and all can be drained."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.errors import GrantRevoked, PlumberError
from asyncplumber.grant import OPEN, Grant
from asyncplumber.transports.connected_clients import (
    DRAIN_TIMEOUT,
    RECONNECT_SPREAD,
    SLICE,
    ConnectedClients,
)


class FakeClient:
    """Remembers which methods were called, each with its argument or the time."""

    def __init__(self, clients: ConnectedClients, clock: Clock) -> None:
        self.calls: list[tuple[str, float]] = []
        self.react: Callable[[], object] = lambda: None  # called after each call but ``abort``
        self.account = "a"
        self._clock = clock
        self._clients = clients
        self._group = clients.add(self)

    def leave(self) -> None:
        """Lose the connection."""
        self._clients.discard(self, self._group)

    def ping(self) -> None:
        self.calls.append(("ping", self._clock.seconds()))
        self.react()

    def close_going_away(self, reconnect_after: float) -> None:
        self.calls.append(("close_going_away", reconnect_after))
        self.react()

    def end_if(self, matches: Callable[[Grant, str], bool], error: PlumberError) -> bool:
        self.react()
        if matched := matches(OPEN, self.account):
            self.calls.append((error.code, self._clock.seconds()))
        return matched

    def abort(self) -> None:
        self.calls.append(("abort", self._clock.seconds()))
        self.leave()


class ConnectedClientsTests(SynchronousTestCase):
    """Clients that remember what is asked of them."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.clients = ConnectedClients(self.clock, lambda: 0.5, 15.0)
        self.clients.start()

    def connect(self, count: int) -> list[FakeClient]:
        """Add this many clients."""
        return [FakeClient(self.clients, self.clock) for _ in range(count)]

    def pass_time(self, seconds: int) -> None:
        """Advance the clock second by second."""
        for _ in range(seconds):
            self.clock.advance(1)
            self.clock.advance(0)

    def drain(self) -> Deferred[None]:
        """Begin to drain."""
        return Deferred.fromCoroutine(self.clients.drain())

    def test_each_client_has_a_heartbeat_in_each_interval(self) -> None:
        """The first comes one interval after the client was added."""
        (first,) = self.connect(1)
        self.pass_time(7)
        (second,) = self.connect(1)
        self.pass_time(40)
        self.assertEqual([time for _, time in first.calls], [15, 30, 45])
        self.assertEqual([time for _, time in second.calls], [22, 37])

    def test_clients_that_come_over_time_are_served_over_time(self) -> None:
        """No second has more to do than another."""
        found = []
        for _ in range(15):
            found += self.connect(3)
            self.pass_time(1)
        self.pass_time(15)
        times = [client.calls[0][1] for client in found]
        self.assertEqual({times.count(time) for time in times}, {3})

    def test_many_clients_are_served_in_slices(self) -> None:
        """The reactor has a turn between; a client that leaves meanwhile is not called."""
        found = self.connect(SLICE + 2)
        counts: list[int] = []

        def react() -> None:
            found[-1].leave()
            self.clock.callLater(
                0, lambda: counts.append(sum(len(client.calls) for client in found))
            )

        found[0].react = react
        self.pass_time(15)
        self.assertEqual(counts, [SLICE])
        self.assertEqual((found[-2].calls, found[-1].calls), ([("ping", 15)], []))

    def test_a_client_that_raises_is_cut_off_alone(self) -> None:
        """The others have their heartbeat, also in the next interval."""
        broken, whole = self.connect(2)
        broken.react = lambda: 1 / 0
        self.pass_time(30)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual([name for name, _ in broken.calls], ["ping", "abort"])
        self.assertEqual(len(whole.calls), 2)

    def test_an_interval_of_0_means_no_heartbeats(self) -> None:
        """Clients can still be added and drained."""
        self.clients = ConnectedClients(self.clock, lambda: 0.5, 0)
        self.clients.start()
        (client,) = self.connect(1)
        self.pass_time(30)
        self.assertEqual(client.calls, [])
        client.react = client.leave
        self.successResultOf(self.drain())

    def test_all_are_told_to_come_back_over_some_seconds(self) -> None:
        """Draining is done when the last has gone."""
        found = self.connect(3)
        for client in found[:2]:
            client.react = client.leave
        drained = self.drain()
        expected = (("close_going_away", 0.5 * RECONNECT_SPREAD),)
        self.assertEqual({tuple(client.calls) for client in found}, {expected})
        self.assertNoResult(drained)
        found[2].leave()
        self.successResultOf(drained)
        self.assertEqual((len(self.clients), self.clock.getDelayedCalls()), (0, []))

    def test_a_client_that_does_not_go_is_cut_off(self) -> None:
        """After ``DRAIN_TIMEOUT`` seconds."""
        polite, rude = self.connect(2)
        polite.react = polite.leave
        drained = self.drain()
        self.clock.advance(DRAIN_TIMEOUT)
        self.successResultOf(drained)
        self.assertEqual([name for name, _ in rude.calls], ["close_going_away", "abort"])
        self.assertEqual(len(polite.calls), 1)
        self.assertEqual((len(self.clients), self.clock.getDelayedCalls()), (0, []))

    def test_draining_is_done_at_once_without_clients(self) -> None:
        """To discard a client twice does no harm."""
        (client,) = self.connect(1)
        client.leave()
        client.leave()
        self.successResultOf(self.drain())
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_heartbeats_begin_again_after_a_drain(self) -> None:
        """A server can be started again."""
        self.successResultOf(self.drain())
        self.clients.start()
        (client,) = self.connect(1)
        self.pass_time(15)
        self.assertEqual([name for name, _ in client.calls], ["ping"])


class EndWhereTests(SynchronousTestCase):
    """Clients are ended by what their grants and accounts are."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.clients = ConnectedClients(self.clock, lambda: 0.5, 15.0)

    def connect(self, count: int) -> list[FakeClient]:
        """Add this many clients."""
        return [FakeClient(self.clients, self.clock) for _ in range(count)]

    def test_only_those_that_match_are_ended(self) -> None:
        """The number of them is returned."""
        one, other = self.connect(2)
        other.account = "b"
        ended = self.clients.end_where(lambda grant, account: account == "b", GrantRevoked())
        self.assertEqual(ended, 1)
        self.assertEqual((one.calls, other.calls), ([], [("revoked", 0.0)]))

    def test_one_that_raises_is_cut_off(self) -> None:
        """The others are ended all the same."""
        broken, whole = self.connect(2)
        broken.react = lambda: 1 / 0
        self.assertEqual(self.clients.end_where(lambda *_: True, GrantRevoked()), 1)
        self.assertEqual(whole.calls, [("revoked", 0.0)])
        self.assertEqual(broken.calls, [("abort", 0.0)])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
