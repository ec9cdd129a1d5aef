"""The fakes that are shipped for the tests of applications."""

from __future__ import annotations

import inspect
import re
from datetime import UTC, datetime
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from asyncplumber import client, testing
from asyncplumber.client import Refused, Undelivered
from asyncplumber.client.twisted import TreqSender
from asyncplumber.testing import FakeOutbox, FakeSender, FakeTreqSender, MemoryServer


class DocumentationTests(SynchronousTestCase):
    """The examples in the module's docstring."""

    def test_the_examples_run(self) -> None:
        """One after the other, as a reader would type them."""
        blocks = re.findall(r"::\n\n((?:    .*\n|\n)+)", f"{inspect.getdoc(testing)}\n")
        self.assertEqual(len(blocks), 3)
        code = "\n".join(inspect.cleandoc(f"\n{block}") for block in blocks)
        exec(compile(code, "asyncplumber.testing", "exec"), {})

    def test_every_public_name_is_there_and_says_what_it_is(self) -> None:
        """With a docstring, but for constants."""
        for name in testing.__all__:
            value = getattr(testing, name)
            self.assertTrue(isinstance(value, float) or value.__doc__, name)


class FakeSenderTests(SynchronousTestCase):
    """A sender that only remembers."""

    def setUp(self) -> None:
        self.sender = FakeSender()

    def test_it_has_the_methods_of_the_real_one(self) -> None:
        """Each public method of a sender or outbox that an application calls."""
        pairs = (
            (FakeSender, client.Sender, {"deliver", "exchange"}),
            (FakeOutbox, client.Outbox, {"put", "hand_over"}),
            (FakeTreqSender, TreqSender, set()),
        )
        for fake, real, internal in pairs:
            names = {name for name in vars(real) if not name.startswith("_")} - internal
            for name in names:
                self.assertTrue(hasattr(fake, name) or hasattr(fake(), name), (fake, name))

    def test_what_was_sent_is_there_as_a_subscriber_gets_it(self) -> None:
        """Account, id, type, time and data, whatever the application gave."""
        noon = datetime(2012, 9, 28, 12, tzinfo=UTC)
        self.sender.send(42, {"at": noon}, id=7, type="report", time=noon)
        self.sender.send("43", b"<a/>", content_type="application/xml")
        first, second = self.sender.sent
        self.assertEqual((first.account, first.id, first.type), ("42", "7", "report"))
        self.assertEqual(
            (first.time, first.data), ("2012-09-28T12:00:00.000Z", {"at": noon.isoformat()})
        )
        self.assertEqual((second.data, second.content_type), ("<a/>", "application/xml"))

    def test_receipts_count_up_per_account(self) -> None:
        """With cursors as a plumber gives them, and as many subscribers as the test says."""
        sender = FakeSender(subscribers=3)
        receipts = [sender.send(account, 1) for account in "aba"]
        self.assertEqual([each.cursor for each in receipts], ["fake.1", "fake.1", "fake.2"])
        self.assertEqual({each.subscribers for each in receipts}, {3})

    def test_an_id_is_one_event(self) -> None:
        """The second receipt says that it was there before."""
        first, second = (self.sender.send("a", number, id="t") for number in range(2))
        self.assertEqual((first.duplicate, second), (False, first._replace(duplicate=True)))
        self.assertEqual([event.data for event in self.sender.sent], [0])
        self.sender.send("b", 1, id="t")
        self.assertEqual(len(self.sender.sent), 2)

    def test_it_can_be_told_to_fail(self) -> None:
        """Some times, or until it recovers; nothing is sent then."""
        error = Undelivered("t", 3, "nobody there")
        self.sender.fail(error, times=2)
        for _ in range(2):
            self.assertIs(self.assertRaises(Undelivered, self.sender.send, "a", 1), error)
        self.sender.send("a", 2)
        self.sender.fail(error)
        for _ in range(3):
            self.assertRaises(Undelivered, self.sender.send, "a", 3)
        self.sender.recover()
        self.sender.send("a", 4)
        self.assertEqual([event.data for event in self.sender.sent], [2, 4])

    def test_it_refuses_what_a_plumber_refuses(self) -> None:
        """And raises for what cannot be sent at all."""
        for account, data, options in (
            ("a", 1, {"type": "plumber.open"}),
            ("\x00", 1, {}),
            ("a", b"{", {"content_type": "application/json"}),
            ("a", b"1\n2\n", {"content_type": "application/x-ndjson"}),
        ):
            self.assertRaises(Refused, self.sender.send, account, data, **options)
        self.assertRaises(ValueError, self.sender.send, "", 1)
        self.assertRaises(TypeError, self.sender.send, "a", {1})
        self.assertEqual(self.sender.sent, [])

    def test_it_can_be_used_in_with(self) -> None:
        """As the real one."""
        with self.sender as sender:
            sender.send("a", 1)
        self.assertEqual(len(self.sender.sent), 1)


class OtherSenderTests(SynchronousTestCase):
    """The fakes for programs on Twisted, and for an outbox."""

    def test_the_sender_for_twisted_is_a_coroutine(self) -> None:
        """It remembers, and fails, as the other one does."""
        sender = FakeTreqSender()
        receipt = self.successResultOf(Deferred.fromCoroutine(sender.send("a", 1)))
        self.assertEqual((receipt.cursor, sender.sent[0].data), ("fake.1", 1))
        sender.fail(Undelivered("t", 1, "nobody there"))
        self.failureResultOf(Deferred.fromCoroutine(sender.send("a", 1)), Undelivered)

    def test_an_outbox_raises_nothing_and_counts_what_is_lost(self) -> None:
        """What cannot be sent, and what the test lets fail."""
        outbox = FakeOutbox()
        wrong: list[Any] = [("a", {1}), ("", 1), (None, 1)]
        for account, data in wrong:
            outbox.send(account, data)
        outbox.send("a", 1)
        outbox.fail(Undelivered("t", 1, "nobody there"), times=1)
        outbox.send("a", 2)
        self.assertEqual((outbox.dropped, [event.data for event in outbox.sent]), (4, [1]))
        self.assertTrue(outbox.flush(1.0))
        self.assertTrue(outbox.close())

    def test_an_outbox_remembers_the_reports_of_tasks(self) -> None:
        """In the words of the program; and a test can ask a task to stop."""
        outbox = FakeOutbox()
        with outbox.task(42, "invoice-7") as task:
            task.progress({"done": 1})
            outbox.to_cancel.add("invoice-7")
            task.progress("half")
            task.progress("more", raise_on_cancel=True)
            self.fail("it is to stop")
        told = [(report.state, report.data) for report in outbox.reports]
        self.assertEqual(
            told,
            [
                ("started", None),
                ("running", {"done": 1}),
                ("running", "half"),
                ("running", "more"),
                ("canceled", None),
            ],
        )
        self.assertEqual(
            {(each.account, each.task) for each in outbox.reports}, {("42", "invoice-7")}
        )
        outbox.task("42", object()).complete(1)
        self.assertEqual(outbox.dropped, 1)


class MemoryServerTests(SynchronousTestCase):
    """What the tests of other modules do not show."""

    def test_it_stops_and_starts_like_any_service(self) -> None:
        """It listens again, connections stay open, and its plumber keeps what is registered."""
        server = MemoryServer()
        seen: list[Any] = []
        server.plumber.register("a", lambda event: seen.append(event.data))
        server.settle()
        server.post("a", b"1")
        self.successResultOf(server.stop())
        self.assertEqual(server.clock.getDelayedCalls(), [])
        server.service.startService()
        server.settle()
        response = server.post("a", b"2")
        self.assertEqual((response.status, seen), (201, [1, 2]))
        self.assertNotIn(b"connection", response.headers)
        self.assertEqual(len(server.clock.tcpServers), 2)
        self.successResultOf(server.stop())
