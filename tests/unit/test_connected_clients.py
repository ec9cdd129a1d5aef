"""Heartbeats for all, spread over time, and the close_going_away at the end."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.transports.connected_clients import FAREWELL, RECONNECT, SLICE, ConnectedClients


class Attendee:
    """Remembers what it was told, and when."""

    def __init__(self, clients: ConnectedClients, clock: Clock) -> None:
        self.told: list[tuple[str, float]] = []
        self.then: Callable[[], object] = lambda: None
        self._clock = clock
        self._attendance = clients
        self._group = clients.enter(self)

    def leave(self) -> None:
        """Go."""
        self._attendance.leave(self, self._group)

    def beat(self) -> None:
        self.told.append(("beat", self._clock.seconds()))
        self.then()

    def close_going_away(self, reconnect_after: float) -> None:
        self.told.append(("close_going_away", reconnect_after))
        self.then()

    def abort(self) -> None:
        self.told.append(("abort", self._clock.seconds()))
        self.leave()


class AttendanceTests(SynchronousTestCase):
    """Who is there, and what they are told."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.clients = ConnectedClients(self.clock, lambda: 0.5, 15.0)
        self.clients.start()

    def attendees(self, count: int) -> list[Attendee]:
        """So many more."""
        return [Attendee(self.clients, self.clock) for _ in range(count)]

    def pass_time(self, seconds: int) -> None:
        """Second by second."""
        for _ in range(seconds):
            self.clock.advance(1)
            self.clock.advance(0)

    def test_each_has_a_heartbeat_in_each_interval(self) -> None:
        """The first a whole one after it came."""
        first = self.attendees(1)[0]
        self.pass_time(7)
        second = self.attendees(1)[0]
        self.pass_time(40)
        self.assertEqual([time for _, time in first.told], [15, 30, 45])
        self.assertEqual([time for _, time in second.told], [22, 37])

    def test_those_who_come_one_after_the_other_are_served_one_after_the_other(self) -> None:
        """No second has more to do than another."""
        everybody = []
        for _ in range(15):
            everybody += self.attendees(3)
            self.pass_time(1)
        self.pass_time(15)
        times = [attendee.told[0][1] for attendee in everybody]
        self.assertEqual({times.count(time) for time in times}, {3})

    def test_many_are_served_in_slices(self) -> None:
        """The reactor has a turn between; and who leaves meanwhile is not told."""
        everybody = self.attendees(SLICE + 2)
        told: list[int] = []

        def first() -> None:
            everybody[-1].leave()
            self.clock.callLater(
                0, lambda: told.append(sum(len(attendee.told) for attendee in everybody))
            )

        everybody[0].then = first
        self.pass_time(15)
        self.assertEqual(
            (told, everybody[-2].told, everybody[-1].told), ([SLICE], [("beat", 15)], [])
        )

    def test_one_that_raises_ends_alone(self) -> None:
        """It is hung up on, and the others have their heartbeat."""
        broken, whole = self.attendees(2)
        broken.then = lambda: 1 / 0
        self.pass_time(30)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual([word for word, _ in broken.told], ["beat", "abort"])
        self.assertEqual(len(whole.told), 2)

    def test_no_heartbeats_if_none_are_wanted(self) -> None:
        """An interval of 0."""
        self.clients = ConnectedClients(self.clock, lambda: 0.5, 0)
        self.clients.start()
        (attendee,) = self.attendees(1)
        self.pass_time(30)
        self.assertEqual(attendee.told, [])

    def test_all_are_sent_away(self) -> None:
        """Over `RECONNECT` seconds; it is done when the last has gone."""
        everybody = self.attendees(3)
        for attendee in everybody[:2]:
            attendee.then = attendee.leave
        dismissed = Deferred.fromCoroutine(self.clients.dismiss())
        self.assertEqual(
            {tuple(attendee.told) for attendee in everybody},
            {(("close_going_away", 0.5 * RECONNECT),)},
        )
        self.assertNoResult(dismissed)
        everybody[2].leave()
        self.successResultOf(dismissed)
        self.assertEqual((len(self.clients), self.clock.getDelayedCalls()), (0, []))

    def test_who_does_not_go_is_hung_up_on(self) -> None:
        """After `FAREWELL` seconds."""
        polite, rude = self.attendees(2)
        polite.then = polite.leave
        dismissed = Deferred.fromCoroutine(self.clients.dismiss())
        self.clock.advance(FAREWELL)
        self.successResultOf(dismissed)
        self.assertEqual([word for word, _ in rude.told], ["close_going_away", "abort"])
        self.assertEqual(
            (len(polite.told), len(self.clients), self.clock.getDelayedCalls()), (1, 0, [])
        )

    def test_nobody_is_sent_away_quickly(self) -> None:
        """An empty house closes at once; to leave twice does no harm."""
        (attendee,) = self.attendees(1)
        attendee.leave()
        attendee.leave()
        self.successResultOf(Deferred.fromCoroutine(self.clients.dismiss()))
        self.assertEqual(self.clock.getDelayedCalls(), [])
