"""Whatever happens, a client gets each event once and in order, or is told what it missed."""

from __future__ import annotations

import random

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from asyncplumber.core import channel
from asyncplumber.core.channel import Channel
from asyncplumber.errors import Unavailable
from asyncplumber.event import EARLIEST, Cursor, Event
from asyncplumber.stores.retention import Retention
from harness.core import CoreCase, Recorder, draft

ACCOUNTS = ("a", "b")


class Client:
    """A client that reconnects with its cursor: a chain of connections."""

    def __init__(self, account: str, after: str | None) -> None:
        self.account = account
        self.after = after  # where it begins if it was never told a cursor
        self.connections: list[Recorder] = []
        self.admission: Deferred[None] | None = None  # while it waits for it

    @property
    def is_connected(self) -> bool:
        """Whether its latest connection was neither cancelled nor ended."""
        return bool(self.connections) and not self.connections[-1].ended

    @property
    def cursor(self) -> Cursor | str | None:
        """The cursor with which it resumes."""
        told = [connection for connection in self.connections if connection.told]
        return told[-1].cursor if told else self.after

    def connect(self, case: CoreCase, *, slow: bool) -> None:
        """Subscribe, as soon as the channel is open."""
        if self.is_connected or self.admission is not None:
            return

        def admitted(opened: Channel) -> None:
            self.admission = None
            connection = Recorder()
            if slow:
                connection.room = Deferred()
            after = self.cursor
            self.connections.append(connection)
            connection.subscribe(opened, after)

        def refused(failure: Failure) -> None:
            self.admission = None
            failure.trap(Unavailable, CancelledError)

        self.admission = admission = case.hub.admit(self.account).addCallback(admitted)
        admission.addErrback(refused)
        if admission.called:
            self.admission = None

    def disconnect(self) -> None:
        """Cancel the admission or the subscription."""
        if self.admission is not None:
            self.admission.cancel()
        if self.is_connected:
            self.connections[-1].cancel()
            self.connections[-1].ended.append(None)

    def make_room(self) -> None:
        """Read what waits."""
        for connection in self.connections:
            if connection.room is not None:
                room, connection.room = connection.room, None
                room.callback(None)

    def check(self, case: CoreCase) -> Cursor | None:
        """Follow what it was told, and return where it is: no hole, unless it was told of one."""
        cursor: Cursor | None = None
        for connection in self.connections:
            before = cursor
            for word, *details in connection.told:
                if word == "opened":
                    before, cursor = cursor, details[0]
                elif word == "missed":
                    case.assertIn(details[0], (before, cursor), "the gap begins where it was")
                    before = cursor = details[1].cursor
                elif details[0].epoch:
                    case.assertTrue(before in (None, cursor) or before.seq == 0, "an untold gap")
                    event: Event = details[0]
                    assert cursor is not None
                    case.assertEqual(event.cursor, Cursor(cursor.epoch, cursor.seq + 1))
                    before = cursor = event.cursor
        return cursor


class PromiseTests(CoreCase):
    """Moves by seed, on a history that forgets soon."""

    retention = Retention(length=20, age=1000.0)

    def test_a_client_misses_nothing_or_is_told_of_the_gap(self) -> None:
        """The store fails and is slow, events are lost and reordered, numberings begin anew."""
        self.patch(channel, "DELIVERIES_PER_TURN", 3)
        for seed in range(25):
            self.dice = random.Random(seed)
            self.setUp()
            self.hub = self.make_hub(linger=1.0)
            self.clients: list[Client] = []
            self.late: list[Event] = []
            moves = (
                self.publish_some,
                self.publish_some,
                self.deliver_late,
                self.deliver_late,
                self.come,
                self.come_back,
                self.go,
                self.pass_time,
                self.pass_time,
                self.fail_or_wait,
            )
            for _ in range(300):
                self.dice.choice(moves)()
                if self.dice.random() < 0.01:
                    self.dice.choice([self.begin_anew, self.stop_and_resume])()
            self.finish()

    def publish_some(self) -> None:
        """Keep events; some of them will never be delivered, and some twice."""
        account = self.dice.choice(ACCOUNTS)
        for event in self.keep(self.dice.choice([1, 1, 2, 3, 15]), account):
            self.late += [event] * self.dice.choice([0, 1, 1, 1, 2])
        self.hub.deliver_ephemeral([draft("ephemeral", account)])

    def deliver_late(self) -> None:
        """Deliver some of the events that wait for it, in any order."""
        if self.dice.random() < 0.5:
            self.dice.shuffle(self.late)
        cut = self.dice.randrange(len(self.late) + 1)
        self.hub.publish(self.late[:cut])
        del self.late[:cut]

    def come(self) -> None:
        """Connect a new client."""
        if len(self.clients) < 15:
            client = Client(self.dice.choice(ACCOUNTS), self.dice.choice([None, EARLIEST]))
            self.clients.append(client)
            client.connect(self, slow=self.dice.random() < 0.3)

    def come_back(self) -> None:
        """Connect some clients again."""
        for client in self.clients:
            if self.dice.random() < 0.5:
                client.connect(self, slow=self.dice.random() < 0.3)

    def go(self) -> None:
        """Disconnect a client."""
        if self.clients:
            self.dice.choice(self.clients).disconnect()

    def stop_and_resume(self) -> None:
        """Stop the hub, as at the end of the service, and let it admit again."""
        self.hub.stop()
        self.hub.resume()
        for client in self.clients:
            client.disconnect()

    def pass_time(self) -> None:
        """Let slow clients read, let the reactor turn, and compare positions."""
        for client in self.clients:
            if self.dice.random() < 0.5:
                client.make_room()
        self.clock.advance(self.dice.choice([0, 0, 0.6]))
        if self.dice.random() < 0.3:
            self.hub.check_soon()

    def fail_or_wait(self) -> None:
        """Let the store fail or wait, or answer what waits."""
        self.history.failures = self.dice.choice([0, 0, 1])
        self.history.held = self.dice.choice([set(), set(), {"read"}, {"heads"}, {"ensure"}])
        if not self.history.held:
            self.history.release(self.dice.choice([None, None, Unavailable()]))

    def finish(self) -> None:
        """Let everything work again.  Each client is at the head then."""
        self.history.failures, self.history.held = 0, set()
        self.history.release()
        for _ in range(3):
            for client in self.clients:
                client.make_room()
                client.connect(self, slow=False)
            self.hub.check_soon()
            self.settle()
        heads = self.successResultOf(self.store.history.heads(ACCOUNTS))
        for client in self.clients:
            self.assertEqual(client.check(self), heads[client.account])
            client.disconnect()
        self.clock.advance(2)
        self.assertEqual((self.hub.subscribers, self.hub.waiting, self.hub.accounts), (0, 0, []))
        self.assertEqual((self.hub.replays.tokens, self.clock.getDelayedCalls()), (64, []))
