"""`Plumber` as a library: a service in an application's tree, that sends and tells about itself."""

from __future__ import annotations

import inspect
from datetime import UTC, date, datetime
from decimal import Decimal
from itertools import cycle
from typing import Any
from uuid import UUID

from twisted.application.service import MultiService, Service
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import LogLevel, capturedLogs, formatEvent
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

import asyncplumber
from asyncplumber import Plumber, PlumberError, Receipt, Unavailable, client
from asyncplumber.client.request import Endpoint
from asyncplumber.client.response import Refused, Response, interpret
from asyncplumber.client.twisted import TreqSender
from asyncplumber.core.lifecycle import State
from asyncplumber.event import Event
from asyncplumber.interfaces import IStore
from asyncplumber.stores import open_store
from asyncplumber.stores.memory import MemoryStore
from asyncplumber.stores.retention import Retention
from asyncplumber.testing import FakeOutbox, FakeSender, MemoryServer, RecordingSubscriber
from harness.carriers import HeldCarrier


class PlumberCase(SynchronousTestCase):
    """Plumbers on a clock of the test."""

    def setUp(self) -> None:
        self.clock = MemoryReactorClock()

    def plumber(self, store: str | IStore = "memory:", **options: Any) -> Plumber:
        return Plumber(store, reactor=self.clock, wall=self.clock, **options)

    def store(self, **methods: Any) -> IStore:
        """Return a store in memory, some of whose methods are these."""
        store = open_store("memory:", Retention(), self.clock, self.clock)
        for name, method in methods.items():
            setattr(store, name, method)
        return store

    def settle(self, seconds: float = 0.0) -> None:
        self.clock.advance(seconds)
        for _ in range(20):
            self.clock.advance(0)

    def sent(self, plumber: Plumber, account: Any, data: Any, **options: Any) -> Receipt:
        sending = Deferred.fromCoroutine(plumber.send(account, data, **options))
        self.settle()
        receipt: Receipt = self.successResultOf(sending)
        return receipt

    def stop(self, service: Service) -> None:
        stopped = service.stopService()
        self.settle()
        self.successResultOf(stopped)


class SendTests(PlumberCase):
    """`Plumber.send` beside the senders of `asyncplumber.client`."""

    def test_all_senders_have_one_signature(self) -> None:
        """The same arguments with the same defaults; all but the outbox return a receipt."""
        senders = (
            client.send,
            client.Sender.send,
            client.Outbox.send,
            TreqSender.send,
            FakeSender.send,
            FakeOutbox.send,
        )
        expected = inspect.signature(Plumber.send)
        for sender in senders:
            found = inspect.signature(sender)
            parameters = {k: v for k, v in found.parameters.items() if k != "self"}
            wanted = {k: v for k, v in expected.parameters.items() if k != "self"}
            self.assertEqual(parameters, wanted, sender)
            returns = "None" if "Outbox" in sender.__qualname__ else "Receipt"
            self.assertEqual(found.return_annotation, returns, sender)
        self.assertEqual(expected.return_annotation, "Receipt")

    def test_there_is_one_receipt(self) -> None:
        """The class is the same on both sides."""
        self.assertIs(asyncplumber.Receipt, client.Receipt)

    def both(self, account: Any, data: Any, **options: Any) -> tuple[Any, Any]:
        """Send by HTTP and by the library to two servers; return what comes of each."""
        found: list[Any] = []
        for by_http in (True, False):
            server = MemoryServer()
            subscriber = RecordingSubscriber()
            self.successResultOf(server.plumber.hub.admit("42")).subscribe(subscriber).start(None)
            try:
                if by_http:
                    request = Endpoint("http://localhost", None, None).request(
                        account, data, **options
                    )
                    headers = [*request.headers.items()]
                    reply = server.request("POST", request.path, headers, request.body)
                    receipt = interpret(Response(reply.status, {}, reply.body))
                else:
                    sending = Deferred.fromCoroutine(server.plumber.send(account, data, **options))
                    server.settle()
                    outcome: list[Any] = []
                    sending.addBoth(outcome.append)
                    if isinstance(outcome[0], Failure):
                        outcome[0].raiseException()
                    receipt = outcome[0]
            except Refused as error:
                found.append((error.status, error.code))
            except PlumberError as error:
                found.append((error.status, error.code))
            else:
                assert isinstance(receipt, Receipt)
                seq = receipt.cursor.partition(".")[2]
                events = [each._replace(epoch="") for each in subscriber.events]
                found.append((receipt._replace(cursor=seq), events))
            self.successResultOf(server.stop())
        return found[0], found[1]

    def test_an_event_is_the_same_by_http(self) -> None:
        """Id, type, time, content type and data arrive alike, and the receipts are equal."""
        data: list[Any] = [
            {"total": [7, None]},
            7,
            "text",
            b"\xff\x00",
            None,
            [],
            "{}",
            b'{"a": 1}',
        ]
        data.append({"at": date(2012, 9, 28), "price": Decimal("1.50"), "key": UUID(int=7)})
        accounts = cycle(("42", 42))
        for options in (
            {"id": "t-1"},
            {"id": 7, "type": "progress"},
            {"id": UUID(int=7), "content_type": "application/json"},
            {"id": "t-2", "time": datetime(2012, 9, 28, tzinfo=UTC)},
            {"id": "t-3", "content_type": "image/png"},
        ):
            for each in data:
                # A pair of servers for each: the name of the account takes turns.
                account = next(accounts)
                by_http, by_library = self.both(account, each, **options)
                self.assertEqual(by_http, by_library, (account, each, options))

    def test_a_refusal_is_the_same_by_http(self) -> None:
        """With the same status and code."""
        for account, data, options in (
            ("42", 1, {"type": "plumber.open"}),
            ("\x00", 1, {}),
            ("42", b"{", {"content_type": "application/json"}),
            ("42", bytes(1024 * 1024 + 1), {}),
            ("42", 1, {"content_type": "application/cloudevents+json"}),
        ):
            by_http, by_library = self.both(account, data, id="t", **options)
            self.assertEqual(by_http, by_library, (account, options))
            self.assertIn(by_http[0], (400, 413))

    def test_what_cannot_be_sent_is_a_value_error(self) -> None:
        """As with the client, before anything is sent."""
        plumber = self.plumber()
        wrong: list[Any] = [(ValueError, "", 1), (TypeError, None, 1), (TypeError, "a", {1})]
        for error, account, data in wrong:
            self.failureResultOf(Deferred.fromCoroutine(plumber.send(account, data)), error)

    def test_a_batch_is_refused(self) -> None:
        """One call is one event with one receipt."""
        plumber = self.plumber()
        sending = plumber.send("a", b"1\n2\n", content_type="application/x-ndjson")
        self.failureResultOf(Deferred.fromCoroutine(sending), asyncplumber.BadRequest)

    def test_a_second_send_with_the_same_id_is_a_duplicate(self) -> None:
        """It gets the receipt of the first one."""
        plumber = self.plumber()
        plumber.startService()
        first, second = self.sent(plumber, "a", 1, id="t"), self.sent(plumber, "a", 2, id="t")
        self.assertEqual((first.duplicate, second), (False, first._replace(duplicate=True)))


class ServiceTests(PlumberCase):
    """In a tree of services."""

    def test_it_starts_and_stops_with_its_parent(self) -> None:
        """As often as the parent does; what is registered stays."""
        tree = MultiService()
        plumber = self.plumber()
        plumber.setServiceParent(tree)
        seen: list[Any] = []
        plumber.register("a", lambda event: seen.append(event.data))
        for number in range(3):
            tree.privilegedStartService()
            tree.startService()
            self.settle()
            self.sent(plumber, "a", number)
            self.stop(tree)
            self.assertIs(plumber.status().state, State.STOPPED)
        self.assertEqual(seen, [0, 1, 2])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_it_starts_when_it_is_added_to_a_running_parent(self) -> None:
        """And stops when it is taken out."""
        tree = MultiService()
        tree.startService()
        plumber = self.plumber()
        plumber.setServiceParent(tree)
        self.settle()
        self.assertIs(plumber.status().state, State.RUNNING)
        removed = plumber.disownServiceParent()
        self.settle()
        self.successResultOf(removed)
        self.assertIs(plumber.status().state, State.STOPPED)

    def test_a_parent_waits_for_its_stop(self) -> None:
        """The tree has stopped when the store is closed."""
        closed: Deferred[None] = Deferred()
        tree = MultiService()
        self.plumber(self.store(stop=lambda: closed)).setServiceParent(tree)
        tree.startService()
        self.settle()
        stopped = tree.stopService()
        self.settle()
        self.assertNoResult(stopped)
        closed.callback(None)
        self.successResultOf(stopped)

    def test_a_stop_while_the_store_opens(self) -> None:
        """It does not wait for a store that may never open."""
        plumber = self.plumber(self.store(start=lambda: Deferred()))
        plumber.startService()
        self.settle()
        running = plumber.when_running()
        self.assertIs(plumber.status().state, State.STARTING)
        self.stop(plumber)
        self.failureResultOf(running, Unavailable)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_stop_while_the_carrier_starts(self) -> None:
        """Nothing is opened after it, and it can be started again."""
        calls: list[str] = []
        store = self.store()
        for name in ("start", "stop"):
            setattr(store, name, lambda name=name: calls.append(name) or succeed(None))
        starts = [Deferred[None](), succeed(None)]
        carrier = HeldCarrier()
        carrier.start = lambda deliver: starts[len(calls) // 2]  # type: ignore[method-assign]
        plumber = self.plumber(store, carrier=lambda id: carrier)
        plumber.startService()
        self.stop(plumber)
        starts[0].callback(None)
        self.settle()
        self.assertEqual(calls, ["start", "stop"])
        plumber.startService()
        self.successResultOf(plumber.when_running())
        self.stop(plumber)
        self.assertEqual(calls, ["start", "stop"] * 2)

    def test_a_carrier_that_cannot_start(self) -> None:
        """The start has failed, as without a store, and the log says why."""
        carrier = HeldCarrier()
        carrier.start = lambda deliver: fail(OSError("no broker"))  # type: ignore[method-assign]
        plumber = self.plumber(carrier=lambda id: carrier)
        with capturedLogs() as logged:
            plumber.startService()
            self.settle()
        self.failureResultOf(plumber.when_running(), OSError)
        [problem] = [event for event in logged if event["log_level"] is LogLevel.critical]
        self.assertEqual(formatEvent(problem), "this instance cannot start: no broker")
        self.stop(plumber)

    def test_a_store_that_cannot_be_opened(self) -> None:
        """The reason is in the log, and those who wait get it; the tree can be stopped."""
        opened = [fail(OSError("no such folder"))]
        store = self.store()
        start = store.start
        store.start = lambda: opened.pop() if opened else start()  # type: ignore[method-assign]
        tree = MultiService()
        plumber = self.plumber(store)
        plumber.setServiceParent(tree)
        running = plumber.when_running()
        tree.startService()
        self.settle()
        self.failureResultOf(running, OSError)
        self.assertIs(plumber.status().state, State.FAILED)
        self.stop(tree)
        tree.startService()
        self.settle()
        self.successResultOf(plumber.when_running())
        self.sent(plumber, "a", 1)
        self.stop(tree)

    def test_what_was_accepted_is_finished(self) -> None:
        """A send that is under way when the stop begins gets its receipt."""
        plumber = self.plumber()
        plumber.startService()
        self.settle()
        sending = Deferred.fromCoroutine(plumber.send("a", 1))
        stopped = plumber.stopService()
        self.settle()
        self.successResultOf(stopped)
        self.assertEqual(self.successResultOf(sending).duplicate, False)

    def test_nothing_is_accepted_while_it_stops(self) -> None:
        """Nor after that, until it is started again."""
        plumber = self.plumber()
        plumber.startService()
        self.settle()
        self.stop(plumber)
        self.failureResultOf(Deferred.fromCoroutine(plumber.send("a", 1)), Unavailable)

    def test_two_plumbers_in_one_process(self) -> None:
        """They share nothing, unless it is the store."""
        tree = MultiService()
        first, second = self.plumber(), self.plumber()
        seen: list[tuple[str, Any]] = []
        for name, plumber in (("first", first), ("second", second)):
            plumber.setServiceParent(tree)
            plumber.register("a", lambda event, name=name: seen.append((name, event.data)))
        tree.startService()
        self.settle()
        self.sent(first, "a", 1)
        self.sent(second, "a", 2)
        self.assertEqual(seen, [("first", 1), ("second", 2)])
        self.assertNotEqual(first.status().instance_id, second.status().instance_id)
        self.stop(tree)


class RegisterTests(PlumberCase):
    """Callbacks of the application."""

    def test_an_account_may_be_a_number(self) -> None:
        """As with the senders; the account is its text."""
        plumber = self.plumber()
        plumber.startService()
        seen: list[Event] = []
        plumber.register(42, seen.append)
        self.settle()
        self.sent(plumber, "42", 1)
        plumber.unregister("42", seen.append)
        self.sent(plumber, 42, 2)
        self.assertEqual([(event.account, event.data) for event in seen], [("42", 1)])

    def restarted(self, plumber: Plumber) -> None:
        """Start it with an event that is kept, stop it, and start it when all is registered."""
        plumber.startService()
        self.sent(plumber, "a", 1)
        self.stop(plumber)

    def test_one_may_unregister_others_at_the_start(self) -> None:
        """Those that have had no turn yet never get one."""
        plumber = self.plumber()
        self.restarted(plumber)
        seen: list[Event] = []
        plumber.register("a", lambda event: plumber.unregister("a", seen.append), "earliest")
        plumber.register("a", seen.append, "earliest")
        plumber.startService()
        self.settle()
        self.sent(plumber, "a", 2)
        self.assertEqual((seen, plumber.hub.subscribers), ([], 1))
        self.stop(plumber)

    def test_one_may_close_an_iterator_at_the_start(self) -> None:
        """It is not subscribed then."""
        plumber = self.plumber()
        self.restarted(plumber)
        events = plumber.events("a", after="earliest")
        plumber.register("a", lambda event: Deferred.fromCoroutine(events.aclose()), "earliest")
        plumber.startService()
        self.settle()
        self.assertEqual(plumber.hub.subscribers, 1)
        self.stop(plumber)

    def test_one_may_stop_the_plumber_at_the_start(self) -> None:
        """Nothing is left that tries to subscribe the others."""
        plumber = self.plumber()
        self.restarted(plumber)
        plumber.register("a", lambda event: plumber.stopService(), "earliest")
        plumber.register("b", print)
        plumber.startService()
        self.settle()
        self.assertIs(plumber.status().state, State.STOPPED)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_cursor_may_be_its_text(self) -> None:
        """The cursor of a receipt is a text."""
        plumber = self.plumber()
        plumber.startService()
        receipt = self.sent(plumber, "a", 1)
        self.sent(plumber, "a", 2)
        seen: list[Any] = []
        plumber.register("a", lambda event: seen.append(event.data), after=receipt.cursor)
        self.settle()
        self.assertEqual(seen, [2])


class StatusTests(PlumberCase):
    """The one read model."""

    def test_it_tells_about_accounts_and_figures(self) -> None:
        """Each account that has a channel, with its subscribers and cursor."""
        plumber = self.plumber(advertise_url="http://10.0.0.7:8080/plumber/")
        before = plumber.status()
        self.assertEqual((before.state, before.accounts), (State.STOPPED, ()))
        plumber.startService()
        plumber.register("a", lambda event: None)
        self.settle()
        receipt = self.sent(plumber, "a", 1)
        status = plumber.status()
        self.assertEqual((status.state, status.peers, status.hooks), (State.RUNNING, (), ()))
        self.assertEqual(status.advertise_url, "http://10.0.0.7:8080/plumber")
        (account,) = status.accounts
        self.assertEqual((account.account, account.subscribers), ("a", 1))
        self.assertEqual(str(account.cursor), receipt.cursor)
        self.assertEqual(status.figures["events_accepted_total"].value, 1)
        self.assertEqual(before.figures["events_accepted_total"].value, 0)

    def test_it_is_frozen(self) -> None:
        """A snapshot, which no reader can change for another one."""
        with self.assertRaises(AttributeError):
            self.plumber().status().state = State.RUNNING  # type: ignore[misc]

    def test_it_tells_about_hooks_and_peers(self) -> None:
        """Where the store is shared: our hooks, and the instances that could not be reached."""
        store = MemoryStore(Retention(), self.clock, shared=True)
        plumber, other = self.plumber(store), self.plumber(store)
        for each in (plumber, other):
            each.startService()
        plumber.register("a", lambda event: None)
        other.register("a", lambda event: None)
        self.settle()
        self.assertEqual(plumber.status().hooks, ("a",))
        Deferred.fromCoroutine(plumber.send("a", 1))
        self.settle()
        (peer,) = plumber.status().peers
        self.assertEqual(peer.instance_id, other.status().instance_id)
        self.assertTrue(peer.url.endswith(f"/instances/{peer.instance_id}"))
